-- Sessions that nobody closes.
-- Params: idle_minutes (int).
-- Result: subject (none), message.
SELECT
    '' AS subject,
    format(
        'No run of cleanup_analytics_sessions has succeeded for %%s; look whether it is paused or fails.',
        coalesce(
            floor(extract(EPOCH FROM now() - max(run.finished_at)) / 60) || ' minutes',
            'at least an hour, and idle sessions are open'
        )
    ) AS message
FROM analytics_job_run AS run
WHERE run.job = 'cleanup_analytics_sessions' AND run.outcome = 'success'
HAVING
    max(run.finished_at) < now() - interval '1 hour'
    OR count(*) = 0 AND EXISTS (
        SELECT FROM analytics_session AS session
        WHERE
            session.ended_at IS NULL
            AND session.deleted_at IS NULL
            AND session.last_activity_at < now() - make_interval(hours => 1, mins => %(idle_minutes)s::int)
    );
