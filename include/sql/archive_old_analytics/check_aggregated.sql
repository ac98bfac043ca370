-- Finds expired days that have events but no daily stats: deleting them would lose them uncounted.
-- Params: cutoff (timestamptz), timezone (IANA name).
-- Result: no row when every day is aggregated, else one row: problem (text).
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
        '-infinity'::timestamptz AS next_day,
        NULL::date AS date
    FROM website
    WHERE website.website_id IS NOT NULL
    UNION
    SELECT
        day_start.website_id,
        (first_event.date + 1)::timestamp AT TIME ZONE %(timezone)s,
        first_event.date
    FROM day_start
    CROSS JOIN LATERAL (
        SELECT (event.timestamp AT TIME ZONE %(timezone)s)::date AS date
        FROM analytics_event AS event
        WHERE
            event.website_id = day_start.website_id
            AND event.deleted_at IS NULL
            AND event.timestamp >= day_start.next_day
            AND event.timestamp < %(cutoff)s::timestamptz
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
    FORMAT(
        'Nothing was deleted: %%s expired website-day(s) have events but no daily stats; '
        'run aggregate_daily_analytics with from = %%s and to = %%s, then clear this task.',
        COUNT(*), MIN(missing.date), MAX(missing.date)
    ) AS problem
FROM missing
HAVING COUNT(*) > 0;
