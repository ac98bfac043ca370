-- Cuts the expired sessions into batches of batch_size rows, one mapped task each.
-- Params: moment (timestamptz), retention_days (int), timezone (IANA name), expired (bigint, rows counted),
--   batch_size (int), dry_run (boolean).
-- Result: one row per mapped task, the parameters of delete_session_batch.sql and their label; none on a dry run.
-- Batches, cuts and ranges are as in plan_event_batches.sql.
WITH task AS (
    SELECT
        ceil(%(expired)s::numeric / %(batch_size)s::int)::bigint AS total,
        greatest(1, ceil(%(expired)s::numeric / %(batch_size)s::int / 1000))::bigint AS batches
),

newest AS (
    SELECT max(cutoff) AS cutoff
    FROM analytics_cutoffs(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int)
),

numbered AS (
    SELECT
        row_number() OVER by_start - 1 AS number,
        lag(session.started_at, 1, '-infinity') OVER by_start AS previous_started_at,
        lag(session.id, 1, '') OVER by_start AS previous_id
    FROM analytics_expired_sessions(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int) AS session
    WINDOW by_start AS (ORDER BY session.started_at, session.id)
),

-- The first session of each task: its range begins after the session before.
planned AS (
    SELECT
        numbered.previous_started_at AS lo_started_at,
        numbered.previous_id AS lo_id,
        numbered.number / (task.batches * %(batch_size)s::int) AS task_index,
        lead(numbered.previous_started_at, 1, newest.cutoff) OVER by_number AS hi_started_at,
        lead(numbered.previous_id, 1, '') OVER by_number AS hi_id
    FROM numbered
    CROSS JOIN task
    CROSS JOIN newest
    WHERE mod(numbered.number, task.batches * %(batch_size)s::int) = 0
    WINDOW by_number AS (ORDER BY numbered.number)
)

SELECT
    planned.lo_id,
    planned.hi_id,
    task.batches,
    %(moment)s AS moment,
    %(retention_days)s::int AS retention_days,
    %(timezone)s AS timezone,
    %(batch_size)s::int AS batch_size,
    %(expired)s::bigint AS expired,
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
