-- Counts open sessions whose times cannot be true, because a clock was wrong.
-- Result: one row: log.
SELECT
    format(
        '[Analytics Cleanup] Clock skew: %%s open session(s) with activity before their start, %%s in the future',
        count(*) FILTER (WHERE session.last_activity_at < session.started_at),
        count(*) FILTER (WHERE session.last_activity_at > now())
    ) AS log
FROM analytics_session AS session
WHERE session.ended_at IS NULL AND session.deleted_at IS NULL;
