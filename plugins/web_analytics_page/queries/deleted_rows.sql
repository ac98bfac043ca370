-- What retention deleted in each week of the last year, weeks without a run included.
-- Result: monday (the week's first day), rows_deleted, run_ids.
WITH run AS (
    SELECT
        job_run.started_at,
        job_run.run_id,
        job_run.rows_deleted,
        date_trunc('week', job_run.started_at) AS monday
    FROM analytics_job_run AS job_run
    WHERE job_run.job = 'archive_old_analytics' AND job_run.started_at > now() - make_interval(years => 1)
),

calendar AS (
    SELECT generate_series(min(run.monday), now(), make_interval(days => 7)) AS monday
    FROM run
)

SELECT
    calendar.monday::date AS monday,
    coalesce(sum(run.rows_deleted), 0)::bigint AS rows_deleted,
    coalesce(array_agg(run.run_id ORDER BY run.started_at) FILTER (WHERE run.run_id IS NOT NULL), '{}') AS run_ids
FROM calendar
LEFT JOIN run ON calendar.monday = run.monday
GROUP BY calendar.monday
ORDER BY calendar.monday;
