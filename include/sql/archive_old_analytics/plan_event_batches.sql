-- Cuts the expired events into batches of batch_size rows, one mapped task each.
-- Params: cutoff (timestamptz), expired (bigint, rows counted), batch_size (int), timezone (IANA name),
--   dry_run (boolean).
-- Result: one row per mapped task, the parameters of delete_event_batch.sql and their label; none on a dry run.
-- Airflow maps at most 1024 tasks: beyond 1000 batches, each task gets several consecutive ones.
-- Cuts are existing rows, found by jumping through the index on (timestamp, id); ranges are (lo, hi], and a last one
-- that is not full goes up to the cutoff, so they cover every expired row exactly once.
WITH RECURSIVE task AS (
    SELECT
        ceil(%(expired)s::numeric / %(batch_size)s::int)::bigint AS total,
        greatest(1, ceil(%(expired)s::numeric / %(batch_size)s::int / 1000))::bigint AS batches
),

cut AS (
    SELECT
        0 AS task_index,
        '-infinity'::timestamptz AS timestamp,
        '' AS id
    UNION ALL
    SELECT
        cut.task_index + 1 AS task_index,
        next_cut.timestamp,
        next_cut.id
    FROM cut
    CROSS JOIN LATERAL (
        SELECT
            event.timestamp,
            event.id
        FROM analytics_event AS event
        WHERE
            (event.timestamp, event.id) > (cut.timestamp, cut.id)
            AND event.timestamp < %(cutoff)s::timestamptz
        ORDER BY event.timestamp, event.id
        LIMIT 1 OFFSET (SELECT task.batches * %(batch_size)s::int - 1 FROM task)
    ) AS next_cut
),

planned AS (
    SELECT
        cut.task_index,
        cut.timestamp AS lo_timestamp,
        cut.id AS lo_id,
        coalesce(lead(cut.timestamp) OVER (ORDER BY cut.task_index), %(cutoff)s::timestamptz) AS hi_timestamp,
        coalesce(lead(cut.id) OVER (ORDER BY cut.task_index), '') AS hi_id
    FROM cut
)

SELECT
    planned.lo_id,
    planned.hi_id,
    task.batches,
    %(timezone)s AS timezone,
    %(batch_size)s::int AS batch_size,
    %(expired)s::bigint AS expired,
    %(cutoff)s::timestamptz::text AS cutoff,
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
WHERE
    NOT %(dry_run)s::boolean
    AND EXISTS (
        SELECT FROM analytics_event AS event
        WHERE
            (event.timestamp, event.id) > (planned.lo_timestamp, planned.lo_id)
            AND event.timestamp < %(cutoff)s::timestamptz
    )
ORDER BY planned.task_index;
