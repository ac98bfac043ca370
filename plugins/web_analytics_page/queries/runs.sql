-- The last 30 runs of each job, oldest first.
-- Result: job, run_id, started_at, seconds (so far), outcome (running, success, failed), problem.
-- A run that says it is running and is not its job's last one was lost with its process: it failed.
SELECT
    run.job,
    run.run_id,
    run.started_at,
    extract(EPOCH FROM coalesce(run.finished_at, run.ends_before) - run.started_at)::float AS seconds,
    CASE WHEN run.outcome = 'running' AND run.recency > 1 THEN 'failed' ELSE run.outcome END AS outcome,
    CASE WHEN run.outcome = 'running' AND run.recency > 1 THEN 'Its process was lost' ELSE run.problem END AS problem
FROM (
    SELECT
        job_run.*,
        row_number() OVER (PARTITION BY job_run.job ORDER BY job_run.started_at DESC) AS recency,
        CASE WHEN lead(job_run.job) OVER (PARTITION BY job_run.job ORDER BY job_run.started_at) IS NULL THEN now() END
            AS ends_before
    FROM analytics_job_run AS job_run
    WHERE job_run.started_at > now() - make_interval(years => 1)
) AS run
WHERE run.recency <= 30
ORDER BY run.started_at;
