-- The raw events by their age in weeks, and how many of them are past the cutoff of their website. The last row has all
-- that are two years old or older.
-- Params: timezone (IANA name), retention_days (int), for websites without a policy of their own.
-- Result: weeks, events, expired.
-- Counts each week in the index on (timestamp, id).
WITH cutoffs AS MATERIALIZED (
    SELECT * FROM analytics_cutoffs(now(), %(timezone)s, %(retention_days)s::int)
),

week AS (
    SELECT
        age.weeks,
        CASE WHEN age.weeks = 104 THEN '-infinity' ELSE now() - make_interval(weeks => age.weeks + 1) END AS starts_at,
        CASE WHEN age.weeks = 0 THEN 'infinity' ELSE now() - make_interval(weeks => age.weeks) END AS ends_at
    FROM (SELECT extract(EPOCH FROM now() - min(event.timestamp)) AS seconds FROM analytics_event AS event) AS oldest
    CROSS JOIN generate_series(0, least(104, floor(oldest.seconds / 604800))::int) AS age (weeks)
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
        INNER JOIN cutoffs AS general ON general.website_id IS NULL
        LEFT JOIN cutoffs AS policy ON event.website_id = policy.website_id
        WHERE
            event.timestamp >= week.starts_at
            AND event.timestamp < least(week.ends_at, (SELECT max(cutoffs.cutoff) FROM cutoffs))
            AND event.timestamp < coalesce(policy.cutoff, general.cutoff)
    ) AS expired
FROM week
ORDER BY week.weeks;
