-- The raw events by their age in weeks, and how many of them are past the cutoff of their website. The last row has all
-- that are two years old or older.
-- Params: retention_days (int), for websites without a policy of their own.
-- Result: weeks, events, expired.
-- Counts each week in the index on (timestamp, id).
WITH website AS MATERIALIZED (
    SELECT
        name.website_id,
        analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff,
        -- What is before has a time that no calendar has, and stays.
        analytics_day_start(name.website_id, '0001-01-01') AS first_instant
    FROM analytics_websites() AS name (website_id)
),

week AS (
    SELECT
        age.weeks,
        CASE WHEN age.weeks = 104 THEN '-infinity' ELSE now() - make_interval(weeks => age.weeks + 1) END AS starts_at,
        CASE WHEN age.weeks = 0 THEN 'infinity' ELSE now() - make_interval(weeks => age.weeks) END AS ends_at
    FROM (
        -- Seconds are subtracted and not times: of those, PostgreSQL 16 subtracts no infinite ones.
        SELECT extract(EPOCH FROM now()) - extract(EPOCH FROM min(event.timestamp)) AS seconds
        FROM analytics_event AS event
    ) AS oldest
    CROSS JOIN generate_series(0, greatest(-1, least(104, floor(oldest.seconds / 604800)))::int) AS age (weeks)
    WHERE oldest.seconds IS NOT NULL
)

SELECT
    week.weeks,
    (
        SELECT count(*) FROM analytics_event AS event
        WHERE event.timestamp >= week.starts_at AND event.timestamp < week.ends_at
    ) AS events,
    (
        SELECT count(*)
        FROM analytics_event AS event
        INNER JOIN website ON event.website_id = website.website_id
        WHERE
            event.timestamp >= week.starts_at
            AND event.timestamp < least(week.ends_at, (SELECT max(newest.cutoff) FROM website AS newest))
            AND event.timestamp < website.cutoff
            AND event.timestamp >= website.first_instant
    ) AS expired
FROM week
ORDER BY week.weeks;
