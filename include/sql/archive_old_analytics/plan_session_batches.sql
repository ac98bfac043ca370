-- Cuts the expired sessions into batches of batch_size rows, one mapped task each.
-- Params: cutoff (timestamptz), expired (bigint, rows counted), batch_size (int),
--   dry_run (boolean).
-- Result: one row per mapped task, the parameters of delete_session_batch.sql and their label; none on a dry run.
-- Airflow maps at most 1024 tasks: beyond 1000 batches, each task gets several consecutive ones.
-- A session expires by its last activity, and while it has no event younger than the cutoff.
-- Cuts are existing rows, found in one pass: jumping from cut to cut, as the events' plan does, would look for the
-- sessions' events again at each jump. Ranges are (lo, hi], the last one open up to the cutoff, so they cover every
-- expired row exactly once.
WITH task AS (
    SELECT
        ceil(%(expired)s::numeric / %(batch_size)s::int)::bigint AS total,
        greatest(1, ceil(%(expired)s::numeric / %(batch_size)s::int / 1000))::bigint AS batches
),

numbered AS (
    SELECT
        row_number() OVER by_start - 1 AS number,
        lag(session.started_at, 1, '-infinity') OVER by_start AS previous_started_at,
        lag(session.id, 1, '') OVER by_start AS previous_id
    FROM analytics_session AS session
    WHERE
        session.started_at < %(cutoff)s::timestamptz
        AND session.last_activity_at < %(cutoff)s::timestamptz
        AND NOT EXISTS (
            SELECT FROM analytics_event AS event
            WHERE
                event.session_id = session.session_id
                AND event.deleted_at IS NULL
                AND event.timestamp >= %(cutoff)s::timestamptz
        )
    WINDOW by_start AS (ORDER BY session.started_at, session.id)
),

-- The first session of each task: its range begins after the session before.
planned AS (
    SELECT
        numbered.previous_started_at AS lo_started_at,
        numbered.previous_id AS lo_id,
        numbered.number / (task.batches * %(batch_size)s::int) AS task_index,
        lead(numbered.previous_started_at, 1, %(cutoff)s::timestamptz) OVER by_number AS hi_started_at,
        lead(numbered.previous_id, 1, '') OVER by_number AS hi_id
    FROM numbered
    CROSS JOIN task
    WHERE mod(numbered.number, task.batches * %(batch_size)s::int) = 0
    WINDOW by_number AS (ORDER BY numbered.number)
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
    format(
        'batch %%s of %%s, to %%s',
        concat_ws(
            '-',
            planned.task_index * task.batches + 1,
            CASE
                WHEN task.batches > 1 AND planned.task_index * task.batches + 1 < task.total
                    THEN least((planned.task_index + 1) * task.batches, task.total)
            END
        ),
        task.total,
        to_char(planned.hi_started_at, 'YYYY-MM-DD HH24:MI')
    ) AS label
FROM planned
CROSS JOIN task
WHERE NOT %(dry_run)s::boolean
ORDER BY planned.task_index;
