-- Counts open sessions whose times cannot be true, because a clock was wrong.
-- Result: one row: before_start (last activity before the start), in_future (last activity still to come).
SELECT
    count(*) FILTER (WHERE last_activity_at < started_at) AS before_start,
    count(*) FILTER (WHERE last_activity_at > now()) AS in_future
FROM analytics_session
WHERE ended_at IS NULL AND deleted_at IS NULL;
