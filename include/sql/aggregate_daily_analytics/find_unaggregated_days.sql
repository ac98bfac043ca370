-- Finds days that are over and have events, but no daily stats for every website that has them.
-- Params: before (timestamptz, the start of a day; NULL: the start of today), timezone (IANA name).
-- Result: one row per day, oldest first, at most 1000, the parameters of aggregate_day.sql: day, timezone.
-- Jumps through the index on (website_id, timestamp) from website to website and from day to day instead of
-- reading the events.
WITH RECURSIVE website AS (
    (
        SELECT event.website_id FROM analytics_event AS event
        WHERE event.deleted_at IS NULL
        ORDER BY event.website_id LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT event.website_id FROM analytics_event AS event
        WHERE event.website_id > website.website_id AND event.deleted_at IS NULL
        ORDER BY event.website_id LIMIT 1
    )
    FROM website
    WHERE website.website_id IS NOT NULL
),

day_start AS (
    SELECT
        website.website_id,
        -- Older than any event; from -infinity on there would be dates that no calendar has.
        '0001-01-01'::timestamptz AS next_day,
        NULL::date AS date
    FROM website
    WHERE website.website_id IS NOT NULL
    UNION
    SELECT
        day_start.website_id,
        analytics_day_start(first_event.date + 1, %(timezone)s) AS next_day,
        first_event.date
    FROM day_start
    CROSS JOIN LATERAL (
        SELECT (event.timestamp AT TIME ZONE %(timezone)s)::date AS date
        FROM analytics_event AS event
        WHERE
            event.website_id = day_start.website_id
            AND event.deleted_at IS NULL
            AND event.timestamp >= day_start.next_day
            AND event.timestamp < coalesce(
                %(before)s::timestamptz,
                analytics_day_start((now() AT TIME ZONE %(timezone)s)::date, %(timezone)s)
            )
        ORDER BY event.timestamp LIMIT 1
    ) AS first_event
),

missing AS (
    SELECT
        day_start.website_id,
        day_start.date
    FROM day_start
    WHERE day_start.date IS NOT NULL
    EXCEPT
    SELECT
        stats.website_id,
        stats.date
    FROM analytics_daily_stats AS stats
)

SELECT
    missing.date::text AS day,
    %(timezone)s AS timezone
FROM missing
GROUP BY missing.date
ORDER BY missing.date
LIMIT 1000;
