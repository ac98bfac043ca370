-- The traffic of a range and of the range before it, of equal length: of each day, of all websites together or of one;
-- and of each website in each period.
-- Params: from_day (date), to_day (date, included), before_day (date, the first one of the range before), website
--   (text; NULL: all), live (boolean: also days that are not aggregated yet, which are counted now).
-- Result: date or website_id, the other one NULL; period: 'range', 'open' (days of the range that are not over yet) or
--   'before' (days of the range before whose counterparts are over); days (with traffic), pageviews, custom_events,
--   visitors (of single days, added up), sessions, of which bounced_sessions and session_seconds are known for
--   known_sessions, late_events, is_live (some of it was counted now), first_day (of the website's rows), last_day (the
--   last one that is over).
WITH calendar AS MATERIALIZED (
    SELECT min((now() AT TIME ZONE policy.timezone)::date) - 1 AS last_day
    FROM analytics_policies(0) AS policy
    WHERE %(website)s::text IS NULL OR policy.website_id IS NULL OR policy.website_id = %(website)s::text
),

daily AS (
    SELECT
        stats.website_id AS of_website,
        stats.*,
        FALSE AS is_live
    FROM analytics_daily_stats AS stats
    UNION ALL
    SELECT
        counted.website_id AS of_website,
        counted.*,
        TRUE AS is_live
    FROM analytics_live_rows(%(website)s::text, %(before_day)s::date, %(to_day)s::date) AS counted
    WHERE %(live)s::boolean
)

SELECT
    daily.date,
    daily.of_website AS website_id,
    CASE
        WHEN daily.date < %(from_day)s::date THEN 'before'
        WHEN daily.date <= calendar.last_day THEN 'range'
        ELSE 'open'
    END AS period,
    count(*) AS days,
    sum(daily.total_pageviews + daily.late_pageviews)::bigint AS pageviews,
    sum(daily.total_custom_events + daily.late_custom_events)::bigint AS custom_events,
    sum(daily.unique_visitors)::bigint AS visitors,
    sum(daily.unique_sessions)::bigint AS sessions,
    coalesce(sum(daily.unique_sessions) FILTER (WHERE daily.bounced_sessions IS NOT NULL), 0)::bigint AS known_sessions,
    coalesce(sum(daily.bounced_sessions), 0)::bigint AS bounced_sessions,
    coalesce(sum(daily.session_seconds), 0)::bigint AS session_seconds,
    sum(daily.late_pageviews + daily.late_custom_events + daily.late_ignored_events)::bigint AS late_events,
    bool_or(daily.is_live) AS is_live,
    (
        SELECT min(stats.date) FROM analytics_daily_stats AS stats
        WHERE stats.website_id = daily.of_website
    ) AS first_day,
    min(calendar.last_day) AS last_day
FROM daily
CROSS JOIN calendar
WHERE
    daily.date BETWEEN %(before_day)s::date AND %(to_day)s::date
    AND (
        daily.date >= %(from_day)s::date
        OR daily.date + (%(from_day)s::date - %(before_day)s::date) <= calendar.last_day
    )
    AND (%(website)s::text IS NULL OR daily.of_website = %(website)s::text)
GROUP BY GROUPING SETS ((daily.date, period), (daily.of_website, period))
ORDER BY daily.date ASC, pageviews DESC, website_id ASC;
