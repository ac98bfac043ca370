-- Ends one batch of sessions again that came back after they were closed and have been idle since.
-- Params: idle_minutes (int), batch_size (int).
-- Result: one row per session: session_id, duration_seconds.
-- Reads the whole table, on purpose, in about the order in which it is stored: an index that could find these rows
-- would have to contain last_activity_at, and then no heartbeat of the application could be a HOT update any more.
UPDATE analytics_session AS session
SET
    ended_at = session.last_activity_at,
    duration_seconds = greatest(0, floor(extract(EPOCH FROM session.last_activity_at - session.started_at)))::int,
    updated_at = now()
WHERE
    session.id = any(array(
        SELECT returned.id FROM analytics_session AS returned
        WHERE
            returned.ended_at < returned.last_activity_at
            AND returned.deleted_at IS NULL
            AND returned.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int)
        ORDER BY returned.started_at
        LIMIT %(batch_size)s::int
        FOR UPDATE SKIP LOCKED
    ))
    AND session.ended_at < session.last_activity_at
    AND session.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int)
RETURNING session.session_id, session.duration_seconds;
