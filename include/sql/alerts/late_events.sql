-- Events that came after their days were sealed. A few always do.
-- Result: subject (none), message, once.
SELECT
    '' AS subject,
    TRUE AS once,
    format(
        '%%s event(s) came for days that were sealed already; they are counted as late, without their visitors and '
        || 'pages; look whether old events were imported, or whether a client sends them months later.',
        max(run.late_events)
    ) AS message
FROM analytics_job_run AS run
WHERE run.late_events > 10 AND run.started_at > now() - interval '23 hours'
HAVING count(*) > 0;
