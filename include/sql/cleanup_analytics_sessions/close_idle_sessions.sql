-- Closes one batch of open sessions that have been idle for longer than the timeout.
-- Params: idle_minutes (int), batch_size (int).
-- Result: one row per closed session: session_id, duration_seconds.
-- The idle test is repeated on the latest version of each row, so a visitor who returns meanwhile stays open.
-- A row that the application is writing at this moment is passed over: it is in use, and looked at again next run.
-- Looks at all open sessions, which are few, and not only at old ones: where a clock was wrong, a session's last
-- activity can be before its start.
UPDATE analytics_session AS session
SET
    ended_at = session.last_activity_at,
    duration_seconds = greatest(0, floor(extract(EPOCH FROM session.last_activity_at - session.started_at)))::int,
    updated_at = now()
WHERE
    session.id = any(array(
        SELECT idle.id FROM analytics_session AS idle
        WHERE
            idle.ended_at IS NULL
            AND idle.deleted_at IS NULL
            AND idle.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int)
        ORDER BY idle.started_at
        LIMIT %(batch_size)s::int
        FOR UPDATE SKIP LOCKED
    ))
    AND session.ended_at IS NULL
    AND session.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int)
RETURNING session.session_id, session.duration_seconds;
