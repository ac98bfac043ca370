-- The runs of all jobs that are in the ledger and may have ended otherwise since: those that have not ended, and the
-- newest 50 of each job, for a run may be cleared, or marked by hand, after its end.
-- Params: job, run_id (text, the run that asks).
-- Result: one row: result (json: job, outcome and run_ids).
SELECT coalesce(json_agg(runs), '[]') AS result
FROM (
    SELECT
        recent.job,
        recent.outcome,
        json_agg(recent.run_id) AS run_ids
    FROM (
        SELECT
            run.job,
            run.outcome,
            run.run_id,
            row_number() OVER (PARTITION BY run.job ORDER BY run.started_at DESC) AS place
        FROM analytics_job_run AS run
        WHERE run.started_at > now() - interval '30 days' OR run.outcome = 'running'
    ) AS recent
    WHERE
        (recent.place <= 50 OR recent.outcome = 'running')
        AND (recent.job, recent.run_id) <> (%(job)s, %(run_id)s)
    GROUP BY recent.job, recent.outcome
) AS runs;
