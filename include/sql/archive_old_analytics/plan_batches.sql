-- Shares out the batches on the list among mapped tasks.
-- Params: kind (event or session), retention_days (int), dry_run (boolean).
-- Result: one row: log, result (json: the parameters of each task: label, retention_days, retried, and steps, each with
--   the number of a batch, done, the rows of all batches up to it, and total).
-- Airflow maps at most 1024 tasks: beyond 1000 batches, each task gets several consecutive ones.
WITH batch AS (
    SELECT
        listed.number,
        listed.last_at,
        row_number() OVER by_number AS place,
        sum(listed.rows) OVER by_number AS done,
        sum(listed.rows) OVER () AS total,
        count(*) OVER () AS batches
    FROM analytics_purge_batch AS listed
    WHERE listed.kind = %(kind)s AND NOT %(dry_run)s::boolean
    WINDOW by_number AS (ORDER BY listed.number)
),

planned AS (
    SELECT
        min(batch.place) AS first_place,
        json_build_object(
            'label', format(
                'batch %%s of %%s, to %%s',
                concat_ws('-', min(batch.place), CASE WHEN count(*) > 1 THEN max(batch.place) END),
                max(batch.batches),
                coalesce(to_char(max(batch.last_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'no time')
            ),
            'retention_days', %(retention_days)s::int,
            'retried', FALSE,
            'steps', json_agg(
                json_build_object('number', batch.number, 'done', batch.done, 'total', batch.total)
                ORDER BY batch.number
            )
        ) AS task
    FROM batch
    GROUP BY (batch.place - 1) / ceil(batch.batches / 1000.0)::bigint
)

SELECT
    coalesce((SELECT json_agg(planned.task ORDER BY planned.first_place) FROM planned), '[]') AS result,
    format(
        '[Analytics Archive] Found %%s old %%s(s) in %%s batch(es)',
        to_char(coalesce(max(batch.total), 0), 'FM999,999,999,990'),
        %(kind)s::text,
        count(*)
    ) AS log
FROM batch;
