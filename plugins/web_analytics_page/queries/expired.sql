-- What the next run of the retention would delete, by website and age, and why it would stop before (NULL: it would
-- not).
-- Params: retention_days (int), for websites without a policy of their own.
-- Result: website_id, first_day, events, events_30_days (up to 30 days past what is kept), events_365_days (up to a
--   year), sessions; of the last row website_id is NULL: sums, and unusual.
WITH event AS (
    SELECT
        day.website_id,
        min(day.date) AS first_day,
        sum(day.events)::bigint AS events,
        coalesce(sum(day.events) FILTER (WHERE day.age < interval '30 days'), 0)::bigint AS events_30_days,
        coalesce(
            sum(day.events) FILTER (WHERE day.age >= interval '30 days' AND day.age < interval '365 days'), 0
        )::bigint AS events_365_days
    FROM analytics_expired_days(%(retention_days)s::int) AS day
    GROUP BY day.website_id
),

website AS MATERIALIZED (
    SELECT
        coalesce(event.website_id, session.website_id) AS website_id,
        event.first_day,
        coalesce(event.events, 0) AS events,
        coalesce(event.events_30_days, 0) AS events_30_days,
        coalesce(event.events_365_days, 0) AS events_365_days,
        coalesce(session.sessions, 0) AS sessions
    FROM event
    FULL JOIN analytics_expired_sessions(%(retention_days)s::int) AS session ON event.website_id = session.website_id
),

total AS (
    SELECT
        min(website.first_day) AS first_day,
        coalesce(sum(website.events), 0)::bigint AS events,
        coalesce(sum(website.events_30_days), 0)::bigint AS events_30_days,
        coalesce(sum(website.events_365_days), 0)::bigint AS events_365_days,
        coalesce(sum(website.sessions), 0)::bigint AS sessions
    FROM website
)

SELECT
    website.*,
    NULL AS unusual
FROM website
UNION ALL
SELECT
    NULL AS website_id,
    total.*,
    (
        SELECT string_agg(reason.text, '; ' ORDER BY reason.number)
        FROM
            analytics_unusual(%(retention_days)s::int, total.events + total.sessions, '')
            WITH ORDINALITY AS reason (text, number)
    ) AS unusual
FROM total
ORDER BY website_id ASC NULLS LAST;
