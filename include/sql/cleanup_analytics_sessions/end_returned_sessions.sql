-- Ends one batch of sessions again that came back after they were closed and have been idle since.
-- Params: idle_minutes (int), batch_size (int), done (int, ended by the batches before).
-- Result: one row: log, which ends with who is active now; result (json: rows ended), again (json: parameters of the
--   next batch; NULL after the last one).
-- From PostgreSQL 16 on, an index tells the parts of the table that have had such sessions since the first run of the
-- day; that run lets it forget them. An older server reads the whole table: no index that it has could find these rows
-- and leave heartbeats, which are HOT updates, as cheap as they are.
WITH ended AS (
    UPDATE analytics_session AS session
    SET
        ended_at = session.last_activity_at,
        duration_seconds = analytics_duration(session.started_at, session.last_activity_at),
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
    RETURNING session.session_id, session.duration_seconds
)

SELECT
    json_build_object('rows', count(*)) AS result,
    CASE WHEN count(*) = %(batch_size)s::int THEN json_build_object('done', %(done)s::int + count(*)) END AS again,
    concat_ws(
        E'\n',
        string_agg(
            format(
                '[Analytics Cleanup] ✅ Closed session %%s (duration: %%ss)',
                analytics_one_line(ended.session_id), ended.duration_seconds
            ),
            E'\n'
        ),
        CASE
            WHEN %(done)s::int + count(*) = 0 THEN '[Analytics Cleanup] No closed session had come back'
            WHEN count(*) < %(batch_size)s::int
                THEN format(
                    '[Analytics Cleanup] Ended %%s session(s) again that had come back', %(done)s::int + count(*)
                )
        END,
        CASE
            WHEN
                count(*) < %(batch_size)s::int
                AND NOT EXISTS (
                    SELECT FROM analytics_job_run AS run
                    WHERE
                        run.job = 'cleanup_analytics_sessions'
                        AND run.outcome = 'success'
                        AND run.started_at >= date_trunc('day', now())
                )
                THEN nullif(analytics_forget_returned()::text, '')
        END,
        CASE
            WHEN count(*) < %(batch_size)s::int
                THEN format(
                    '[Analytics Cleanup] %%s visitor(s) active now; %%s idle session(s) left, since they were being '
                    || 'written',
                    (
                        -- Hashed: count(DISTINCT) would sort, which is slow in most collations.
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
                )
        END
    ) AS log
FROM ended;
