-- Writes that a run has started, and which time zone and which ignored events hold from now on. One that is started
-- again keeps its start.
-- Params: job, run_id (text), timezone (IANA name, of websites that have none of their own), ignored_events (text[]).
-- Result: one row: log, a sentence where one of these has changed.
INSERT INTO analytics_job_run AS run (job, run_id, started_at)
VALUES (%(job)s, %(run_id)s, now())
ON CONFLICT (job, run_id) DO UPDATE SET outcome = 'running', finished_at = NULL, problem = NULL
RETURNING
    nullif(concat_ws(
        E'\n',
        '[Analytics] ' || analytics_use_timezone(%(timezone)s),
        '[Analytics] ' || analytics_ignore_events(%(ignored_events)s::text[])
    ), '') AS log;
