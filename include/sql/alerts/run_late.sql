-- Runs that have not ended long after they began. Those that Airflow has ended are not among them.
-- Result: subject (the job), message.
SELECT
    run.job AS subject,
    format(
        'The run %%s of %%s began %%s ago and has not ended; look whether the scheduler is up, and what its tasks wait '
        || 'for.',
        run.run_id,
        run.job,
        CASE
            WHEN now() - run.started_at < interval '2 hours'
                THEN round(extract(EPOCH FROM now() - run.started_at) / 60) || ' minutes'
            ELSE floor(extract(EPOCH FROM now() - run.started_at) / 3600) || ' hours'
        END
    ) AS message
FROM (
    SELECT DISTINCT ON (running.job)
        running.job,
        running.run_id,
        running.started_at
    FROM analytics_job_run AS running
    WHERE running.outcome = 'running'
    ORDER BY running.job, running.started_at
) AS run
WHERE
    run.started_at < now() - CASE
        WHEN run.job = 'cleanup_analytics_sessions' THEN interval '30 minutes'
        ELSE interval '12 hours'
    END;
