-- Writes what a run did, after it did it.
-- Params: job (text), run_id (text), target (text), rows_written, rows_deleted, batches (bigint), outcome (text),
-- problem
--   (text).
-- Result: one row: outcome, rows_read, rows_written, rows_deleted, batches, database_bytes, duration_seconds, and
--   error_rate (share of the 100 runs before it that failed).
WITH aggregated AS (
    -- What this run counted is what was counted since it began.
    SELECT
        count(*) AS days,
        coalesce(sum(stats.total_events), 0)::bigint AS events
    FROM analytics_daily_stats AS stats
    WHERE
        %(job)s = 'aggregate_daily_analytics'
        AND stats.aggregated_at >= (
            SELECT this.started_at FROM analytics_job_run AS this
            WHERE this.job = %(job)s AND this.run_id = %(run_id)s
        )
)

INSERT INTO analytics_job_run AS run (
    job,
    run_id,
    started_at,
    finished_at,
    rows_read,
    rows_written,
    database_bytes,
    target,
    rows_deleted,
    batches,
    outcome,
    problem
)
SELECT
    %(job)s AS job,
    %(run_id)s AS run_id,
    now() AS started_at,
    now() AS finished_at,
    aggregated.events AS rows_read,
    aggregated.days + %(rows_written)s::bigint AS rows_written,
    pg_database_size(current_database()) AS database_bytes,
    %(target)s AS target,
    %(rows_deleted)s::bigint AS rows_deleted,
    %(batches)s::bigint AS batches,
    %(outcome)s AS outcome,
    %(problem)s AS problem
FROM aggregated
ON CONFLICT (job, run_id) DO UPDATE
    SET
        target = excluded.target,
        finished_at = excluded.finished_at,
        rows_read = excluded.rows_read,
        rows_written = excluded.rows_written,
        rows_deleted = excluded.rows_deleted,
        batches = excluded.batches,
        database_bytes = excluded.database_bytes,
        outcome = excluded.outcome,
        problem = excluded.problem
RETURNING
    run.outcome,
    run.rows_read,
    run.rows_written,
    run.rows_deleted,
    run.batches,
    run.database_bytes,
    extract(EPOCH FROM run.finished_at - run.started_at)::float8 AS duration_seconds,
    (
        SELECT coalesce(avg((earlier.outcome = 'failed')::int), 0)::float8
        FROM (
            SELECT previous.outcome FROM analytics_job_run AS previous
            WHERE previous.job = %(job)s AND previous.outcome <> 'running'
            ORDER BY previous.started_at DESC LIMIT 100
        ) AS earlier
    ) AS error_rate;
