-- Days that the last retention left alone, since their rows do not count exactly their events.
-- Result: subject (none), message.
SELECT
    '' AS subject,
    format('The last run of archive_old_analytics failed: %%s', run.problem) AS message
FROM (
    SELECT
        last_run.unsealed_days,
        last_run.problem
    FROM analytics_job_run AS last_run
    WHERE last_run.job = 'archive_old_analytics' AND last_run.outcome <> 'running'
    ORDER BY last_run.started_at DESC LIMIT 1
) AS run
WHERE run.unsealed_days > 0;
