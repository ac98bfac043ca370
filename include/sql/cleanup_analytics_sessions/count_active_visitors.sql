-- Counts the visitors who sent an event within the session timeout.
-- Params: idle_minutes (int).
-- Result: one row: active_visitors.
SELECT count(DISTINCT visitor_id COLLATE "C") AS active_visitors
FROM analytics_event
WHERE
    timestamp >= now() - make_interval(mins => %(idle_minutes)s::int)
    AND timestamp <= now()
    AND deleted_at IS NULL;
