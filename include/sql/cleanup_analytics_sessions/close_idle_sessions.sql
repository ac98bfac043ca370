-- Closes one batch of open sessions that have been idle for longer than the timeout.
-- Params: idle_minutes (int), batch_size (int), done (int, closed by the batches before).
-- Result: one row: log, result (json: rows closed), again (json: parameters of the next batch; NULL after the last
--   one).
-- The idle test is repeated on the latest version of each row, so a visitor who returns meanwhile stays open.
-- A row that the application is writing at this moment is passed over: it is in use, and looked at again next run.
-- Looks at all open sessions, which are few, and not only at old ones: where a clock was wrong, a session's last
-- activity can be before its start; the log says how many there are.
WITH closed AS (
    UPDATE analytics_session AS session
    SET
        ended_at = session.last_activity_at,
        duration_seconds = analytics_duration(session.started_at, session.last_activity_at),
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
    RETURNING session.session_id, session.duration_seconds
)

SELECT
    json_build_object('rows', count(*)) AS result,
    CASE WHEN count(*) = %(batch_size)s::int THEN json_build_object('done', %(done)s::int + count(*)) END AS again,
    concat_ws(
        E'\n',
        CASE
            WHEN %(done)s::int = 0
                THEN (
                    SELECT
                        format(
                            '[Analytics Cleanup] Clock skew: %%s open session(s) with activity before their start, '
                            || '%%s in the future',
                            count(*) FILTER (WHERE session.last_activity_at < session.started_at),
                            count(*) FILTER (WHERE session.last_activity_at > now())
                        )
                    FROM analytics_session AS session
                    WHERE session.ended_at IS NULL AND session.deleted_at IS NULL
                )
        END,
        CASE WHEN count(*) > 0 THEN format('[Analytics Cleanup] Found %%s stale session(s) to close', count(*)) END,
        string_agg(
            format(
                '[Analytics Cleanup] ✅ Closed session %%s (duration: %%ss)',
                analytics_one_line(closed.session_id), closed.duration_seconds
            ),
            E'\n'
        ),
        CASE
            WHEN %(done)s::int + count(*) = 0 THEN '[Analytics Cleanup] No stale sessions'
            WHEN count(*) < %(batch_size)s::int
                THEN format('[Analytics Cleanup] ✅ Closed %%s stale session(s)', %(done)s::int + count(*))
        END
    ) AS log
FROM closed;
