-- What the jobs did, and what people were told about.

-- One row per run of a job, written when it starts and when it ends. A run whose process was lost stays 'running'.
CREATE TABLE IF NOT EXISTS analytics_job_run (
    job text NOT NULL,
    run_id text NOT NULL,
    target text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    rows_read bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0,
    database_bytes bigint,
    outcome text NOT NULL DEFAULT 'running' CHECK (outcome IN ('running', 'success', 'failed')),
    problem text,
    PRIMARY KEY (job, run_id)
);

CREATE INDEX IF NOT EXISTS analytics_job_run_started_at_idx ON analytics_job_run (started_at);

COMMENT ON COLUMN analytics_job_run.job IS 'dag_id of the Airflow DAG';
COMMENT ON COLUMN analytics_job_run.run_id IS 'run_id of the Airflow run';
COMMENT ON COLUMN analytics_job_run.target IS 'The days that were aggregated, or the cutoff of the retention';
COMMENT ON COLUMN analytics_job_run.rows_read IS 'Events counted into the rows written';
COMMENT ON COLUMN analytics_job_run.rows_written IS 'Daily stats written, or sessions closed';
COMMENT ON COLUMN analytics_job_run.rows_deleted IS 'Events and sessions deleted';
COMMENT ON COLUMN analytics_job_run.problem IS 'One sentence about a run that failed';

-- One row per alert, from when its condition came true until it was no longer. At most one per condition and subject is
-- open.
CREATE TABLE IF NOT EXISTS analytics_alert (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    condition text NOT NULL,
    subject text NOT NULL,
    message text NOT NULL,
    opened_at timestamptz NOT NULL,
    claimed_at timestamptz NOT NULL,
    sent_at timestamptz,
    recovered_at timestamptz,
    recovery_sent_at timestamptz
);

CREATE UNIQUE INDEX IF NOT EXISTS analytics_alert_open_idx ON analytics_alert (condition, subject)
WHERE recovered_at IS NULL;

COMMENT ON COLUMN analytics_alert.condition IS
'aggregation_behind, database_size, retention_backlog, proof_failed, cleanup_missing, traffic_missing';
COMMENT ON COLUMN analytics_alert.subject IS 'The website, or empty where the condition is not about one';
COMMENT ON COLUMN analytics_alert.claimed_at IS 'When a run last took it upon itself to send it, so that no other does';
COMMENT ON COLUMN analytics_alert.sent_at IS 'When people were last told that it is open';
