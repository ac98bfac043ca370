-- Each job's last success, and how its runs of the last 30 days ended.
-- Result: job, success_run_id, success_at, median_seconds (of those that succeeded), ended, failed.
-- A run that says it is running and is not its job's last one was lost with its process: it failed.
WITH run AS (
    SELECT
        job_run.job,
        CASE
            WHEN job_run.outcome <> 'running' THEN job_run.outcome
            WHEN lead(job_run.run_id) OVER (PARTITION BY job_run.job ORDER BY job_run.started_at) <> '' THEN 'failed'
        END AS outcome,
        extract(EPOCH FROM job_run.finished_at - job_run.started_at)::float AS seconds
    FROM analytics_job_run AS job_run
    WHERE job_run.started_at > now() - make_interval(days => 30)
)

SELECT
    run.job,
    success.run_id AS success_run_id,
    success.finished_at AS success_at,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY run.seconds) FILTER (WHERE run.outcome = 'success') AS median_seconds,
    count(run.outcome) AS ended,
    count(*) FILTER (WHERE run.outcome = 'failed') AS failed
FROM run
LEFT JOIN LATERAL (
    SELECT
        job_run.run_id,
        job_run.finished_at
    FROM analytics_job_run AS job_run
    WHERE job_run.job = run.job AND job_run.outcome = 'success'
    ORDER BY job_run.started_at DESC
    LIMIT 1
) AS success ON TRUE
GROUP BY run.job, success.run_id, success.finished_at;
