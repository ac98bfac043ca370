-- Cuts the expired sessions into batches of batch_size rows, one mapped task each.
-- Params: cutoff (timestamptz), expired (bigint, rows counted), batch_size (int),
--   dry_run (boolean).
-- Result: one row per mapped task, the parameters of delete_session_batch.sql and their label; none on a dry run.
-- Airflow maps at most 1024 tasks: beyond 1000 batches, each task gets several consecutive ones.
-- A session expires by its last activity, and while it has no event younger than the cutoff.
-- Cuts are existing rows, found by jumping through the index on (started_at, id); ranges are (lo, hi], the last
-- one open up to the cutoff, so they cover every expired row exactly once.
WITH RECURSIVE task AS (
    SELECT
        CEIL(%(expired)s::numeric / %(batch_size)s::int)::bigint AS total,
        GREATEST(1, CEIL(%(expired)s::numeric / %(batch_size)s::int / 1000))::bigint AS batches
),

cut AS (
    SELECT
        0 AS task_index,
        '-infinity'::timestamptz AS started_at,
        '' AS id
    UNION ALL
    SELECT
        cut.task_index + 1 AS task_index,
        next_cut.started_at,
        next_cut.id
    FROM cut
    CROSS JOIN LATERAL (
        SELECT
            session.started_at,
            session.id
        FROM analytics_session AS session
        WHERE
            (session.started_at, session.id) > (cut.started_at, cut.id)
            AND session.started_at < %(cutoff)s::timestamptz
            AND session.last_activity_at < %(cutoff)s::timestamptz
            AND NOT EXISTS (
                SELECT FROM analytics_event AS event
                WHERE
                    event.session_id = session.session_id
                    AND event.deleted_at IS NULL
                    AND event.timestamp >= %(cutoff)s::timestamptz
            )
        ORDER BY session.started_at, session.id
        LIMIT 1 OFFSET (SELECT task.batches * %(batch_size)s::int - 1 FROM task)
    ) AS next_cut
),

planned AS (
    SELECT
        cut.task_index,
        cut.started_at AS lo_started_at,
        cut.id AS lo_id,
        COALESCE(LEAD(cut.started_at) OVER (ORDER BY cut.task_index), %(cutoff)s::timestamptz) AS hi_started_at,
        COALESCE(LEAD(cut.id) OVER (ORDER BY cut.task_index), '') AS hi_id
    FROM cut
)

SELECT
    planned.lo_id,
    planned.hi_id,
    task.batches,
    %(batch_size)s::int AS batch_size,
    %(expired)s::bigint AS expired,
    %(cutoff)s::timestamptz::text AS cutoff,
    planned.lo_started_at::text AS lo_started_at,
    planned.hi_started_at::text AS hi_started_at,
    planned.task_index * task.batches * %(batch_size)s::int AS done,
    FORMAT(
        'batch %%s of %%s, to %%s',
        CONCAT_WS(
            '-',
            planned.task_index * task.batches + 1,
            CASE WHEN task.batches > 1 THEN LEAST((planned.task_index + 1) * task.batches, task.total) END
        ),
        task.total,
        TO_CHAR(planned.hi_started_at, 'YYYY-MM-DD HH24:MI')
    ) AS label
FROM planned
CROSS JOIN task
WHERE
    NOT %(dry_run)s::boolean
    AND EXISTS (
        SELECT FROM analytics_session AS session
        WHERE
            (session.started_at, session.id) > (planned.lo_started_at, planned.lo_id)
            AND session.started_at < %(cutoff)s::timestamptz
            AND session.last_activity_at < %(cutoff)s::timestamptz
            AND NOT EXISTS (
                SELECT FROM analytics_event AS event
                WHERE
                    event.session_id = session.session_id
                    AND event.deleted_at IS NULL
                    AND event.timestamp >= %(cutoff)s::timestamptz
            )
    )
ORDER BY planned.task_index;
