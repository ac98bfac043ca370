-- The traffic of each day, of one website or of all together, and of each website in the whole range.
-- Params: from_day (date), to_day (date, included), website (text; NULL: all), live (boolean: also days that are not
--   over, or not aggregated yet, which are counted now).
-- Result: date or website_id, the other one NULL; pageviews, visitors (of a website: of single days, added up),
-- sessions,
--   is_live.
WITH traffic AS MATERIALIZED (
    SELECT
        stats.website_id,
        stats.date,
        stats.total_pageviews + stats.late_pageviews AS total_pageviews,
        stats.unique_visitors,
        stats.unique_sessions,
        FALSE AS is_live
    FROM analytics_daily_stats AS stats
    WHERE NOT %(live)s::boolean AND stats.date BETWEEN %(from_day)s::date AND %(to_day)s::date
    UNION ALL
    SELECT
        daily.website_id,
        daily.date,
        daily.total_pageviews,
        daily.unique_visitors,
        daily.unique_sessions,
        daily.aggregated_at IS NULL AS is_live
    FROM analytics_traffic_daily AS daily
    WHERE %(live)s::boolean AND daily.date BETWEEN %(from_day)s::date AND %(to_day)s::date
)

SELECT
    traffic.date,
    NULL AS website_id,
    sum(traffic.total_pageviews)::bigint AS pageviews,
    sum(traffic.unique_visitors)::bigint AS visitors,
    sum(traffic.unique_sessions)::bigint AS sessions,
    bool_or(traffic.is_live) AS is_live
FROM traffic
WHERE %(website)s::text IS NULL OR traffic.website_id = %(website)s::text
GROUP BY traffic.date

UNION ALL

SELECT
    NULL AS date,
    traffic.website_id,
    sum(traffic.total_pageviews)::bigint AS pageviews,
    sum(traffic.unique_visitors)::bigint AS visitors,
    sum(traffic.unique_sessions)::bigint AS sessions,
    bool_or(traffic.is_live) AS is_live
FROM traffic
GROUP BY traffic.website_id
ORDER BY date ASC, pageviews DESC, website_id ASC;
