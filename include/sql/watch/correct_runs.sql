-- Writes how runs have ended that did not write it themselves, or ended otherwise since.
-- Params: runs (json: job, run_id, outcome, problem).
-- Result: one row: log.
WITH corrected AS (
    UPDATE analytics_job_run AS run
    SET
        outcome = ended.outcome,
        problem = ended.problem,
        finished_at = coalesce(run.finished_at, now())
    FROM json_to_recordset(%(runs)s::json) AS ended (job text, run_id text, outcome text, problem text)
    WHERE run.job = ended.job AND run.run_id = ended.run_id
    RETURNING run.job, run.run_id, run.outcome, run.problem
)

SELECT
    string_agg(
        format(
            '[Analytics Watch] The run %%s of %%s ended as %%s', corrected.run_id, corrected.job, corrected.outcome
        ) || coalesce(': ' || analytics_one_line(corrected.problem), ''),
        E'\n' ORDER BY corrected.job, corrected.run_id
    ) AS log
FROM corrected;
