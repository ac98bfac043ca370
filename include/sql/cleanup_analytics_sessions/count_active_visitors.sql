-- Counts the visitors who sent an event within the session timeout, and the sessions that should have been closed.
-- Params: idle_minutes (int).
-- Result: one row: log. Sessions are left open that the application was writing when they were to be closed.
SELECT format(
    '[Analytics Cleanup] %%s visitor(s) active now; %%s idle session(s) left, since they were being written',
    (
        SELECT count(*) FROM (
            SELECT DISTINCT event.visitor_id FROM analytics_event AS event
            WHERE
                event.timestamp >= now() - make_interval(mins => %(idle_minutes)s::int)
                AND event.timestamp <= now()
                AND event.deleted_at IS NULL
        ) AS visitor
    ),
    (
        SELECT count(*) FROM analytics_session AS session
        WHERE
            session.ended_at IS NULL
            AND session.deleted_at IS NULL
            -- Not those whose timeout ended while the run went on.
            AND session.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int + 1)
    )
) AS log;
