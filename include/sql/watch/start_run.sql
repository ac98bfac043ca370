-- Writes that a run has started. One that is started again keeps its start.
-- Params: job (text), run_id (text).
INSERT INTO analytics_job_run AS run (job, run_id, started_at)
VALUES (%(job)s, %(run_id)s, now())
ON CONFLICT (job, run_id) DO UPDATE SET outcome = 'running', finished_at = NULL, problem = NULL;
