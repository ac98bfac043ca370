-- The top 10 pages and referrers of a day, of one website or among those of all.
-- Params: to_day (date), website (text; NULL: all), live (boolean: the day may not be aggregated yet; count it now).
-- Result: kind (page, referrer), website_id, item, pageviews.
WITH traffic AS MATERIALIZED (
    SELECT
        stats.website_id,
        stats.top_pages,
        stats.top_referrers
    FROM analytics_daily_stats AS stats
    WHERE NOT %(live)s::boolean AND stats.date = %(to_day)s::date
    UNION ALL
    SELECT
        daily.website_id,
        daily.top_pages,
        daily.top_referrers
    FROM analytics_traffic_daily AS daily
    WHERE %(live)s::boolean AND daily.date = %(to_day)s::date
),

entry AS (
    SELECT
        'page' AS kind,
        traffic.website_id,
        jsonb_array_elements(traffic.top_pages) AS entry
    FROM traffic
    UNION ALL
    SELECT
        'referrer' AS kind,
        traffic.website_id,
        jsonb_array_elements(traffic.top_referrers) AS entry
    FROM traffic
),

ranked AS (
    SELECT
        kind,
        website_id,
        entry ->> 'item' AS item,
        (entry ->> 'count')::bigint AS pageviews,
        row_number() OVER (
            PARTITION BY kind ORDER BY (entry ->> 'count')::bigint DESC, entry ->> 'item' ASC, website_id ASC
        ) AS place
    FROM entry
    WHERE %(website)s::text IS NULL OR website_id = %(website)s::text
)

SELECT
    kind,
    website_id,
    item,
    pageviews
FROM ranked
WHERE place <= 10
ORDER BY kind, place;
