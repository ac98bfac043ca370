-- The size of the database: what the jobs measured in half a year, what it is now, and a straight line through the last
-- eight weeks, drawn eight weeks on. No forecast where less than a week was measured.
-- Result: day, bytes, forecast (one of them NULL).
WITH size AS (
    SELECT
        (run.finished_at AT TIME ZONE 'UTC')::date AS day,
        max(run.database_bytes) AS bytes
    FROM analytics_job_run AS run
    WHERE run.started_at > now() - make_interval(weeks => 26) AND run.finished_at < current_date
    GROUP BY day
    HAVING max(run.database_bytes) IS NOT NULL
    UNION ALL
    SELECT
        current_date AS day,
        pg_database_size(current_database()) AS bytes
)

SELECT
    size.day,
    size.bytes,
    NULL AS forecast
FROM size
UNION ALL
SELECT
    current_date + 7 * weeks AS day,
    NULL AS bytes,
    greatest(0, trend.bytes + trend.slope * 7 * weeks) AS forecast
FROM (
    SELECT
        regr_intercept(size.bytes, size.day - current_date) AS bytes,
        regr_slope(size.bytes, size.day - current_date) AS slope
    FROM size
    WHERE size.day >= current_date - 56
    HAVING max(size.day) - min(size.day) >= 7
) AS trend
CROSS JOIN generate_series(0, 8) AS weeks
ORDER BY day;
