-- Writes what a run did, after it did it.
-- Params: job, run_id, target, outcome, problem (text), rows_written, rows_deleted, batches, unsealed_days (bigint).
-- Result: one row: result (json: outcome, rows_read, rows_written, rows_deleted, batches, late_events, database_bytes,
--   duration_seconds, and error_rate, the share of the 100 runs before it that failed).
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
    unsealed_days,
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
    %(unsealed_days)s::bigint AS unsealed_days,
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
        unsealed_days = excluded.unsealed_days,
        database_bytes = excluded.database_bytes,
        outcome = excluded.outcome,
        problem = excluded.problem
RETURNING
    json_build_object(
        'outcome', run.outcome,
        'rows_read', run.rows_read,
        'rows_written', run.rows_written,
        'rows_deleted', run.rows_deleted,
        'batches', run.batches,
        'late_events', run.late_events,
        'database_bytes', run.database_bytes,
        'duration_seconds', extract(EPOCH FROM run.finished_at - run.started_at)::float8,
        'error_rate', (
            SELECT coalesce(avg((earlier.outcome = 'failed')::int), 0)::float8
            FROM (
                SELECT previous.outcome FROM analytics_job_run AS previous
                WHERE previous.job = %(job)s AND previous.outcome <> 'running'
                ORDER BY previous.started_at DESC LIMIT 100
            ) AS earlier
        )
    ) AS result;
