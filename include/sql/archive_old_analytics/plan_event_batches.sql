-- Cuts the events of proven days into batches of batch_size rows, one mapped task each.
-- Params: moment (timestamptz), retention_days (int), timezone (IANA name), expired (bigint, rows counted),
--   batch_size (int), dry_run (boolean).
-- Result: one row per mapped task, the parameters of delete_event_batch.sql and their label; none on a dry run.
-- Airflow maps at most 1024 tasks: beyond 1000 batches, each task gets several consecutive ones.
-- Cuts are existing rows, found in one pass through the index on (timestamp, id). Ranges are (lo, hi], the last one
-- open up to the newest proven day, so they cover every row exactly once.
WITH proven AS MATERIALIZED (
    SELECT
        website_id,
        days
    FROM analytics_proven_days
),

task AS (
    SELECT
        ceil(%(expired)s::numeric / %(batch_size)s::int)::bigint AS total,
        greatest(1, ceil(%(expired)s::numeric / %(batch_size)s::int / 1000))::bigint AS batches
),

numbered AS (
    SELECT
        row_number() OVER by_time - 1 AS number,
        lag(event.timestamp, 1, '-infinity') OVER by_time AS previous_timestamp,
        lag(event.id, 1, '') OVER by_time AS previous_id
    FROM analytics_event AS event
    INNER JOIN proven ON event.website_id = proven.website_id
    WHERE
        event.timestamp < (SELECT max(upper(newest.days)) FROM proven AS newest)
        AND proven.days @> event.timestamp
    WINDOW by_time AS (ORDER BY event.timestamp, event.id)
),

-- The first event of each task: its range begins after the event before.
planned AS (
    SELECT
        numbered.previous_timestamp AS lo_timestamp,
        numbered.previous_id AS lo_id,
        numbered.number / (task.batches * %(batch_size)s::int) AS task_index,
        lead(numbered.previous_timestamp, 1, (SELECT max(upper(newest.days)) FROM proven AS newest))
            OVER by_number
            AS hi_timestamp,
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
    %(moment)s AS moment,
    %(retention_days)s::int AS retention_days,
    %(timezone)s AS timezone,
    %(batch_size)s::int AS batch_size,
    %(expired)s::bigint AS expired,
    planned.lo_timestamp::text AS lo_timestamp,
    planned.hi_timestamp::text AS hi_timestamp,
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
        to_char(planned.hi_timestamp, 'YYYY-MM-DD HH24:MI')
    ) AS label
FROM planned
CROSS JOIN task
WHERE NOT %(dry_run)s::boolean
ORDER BY planned.task_index;
