-- The tables of the first release. Where they are installed, nothing of this changes them.

CREATE TABLE IF NOT EXISTS analytics_daily_stats (
    website_id text NOT NULL,
    date date NOT NULL,
    total_pageviews bigint NOT NULL,
    total_custom_events bigint NOT NULL,
    unique_visitors bigint NOT NULL,
    unique_sessions bigint NOT NULL,
    top_pages jsonb NOT NULL,
    top_referrers jsonb NOT NULL,
    total_events bigint NOT NULL,
    deleted_events bigint NOT NULL,
    events_hash bigint NOT NULL,
    visitor_sketch bit(49152) NOT NULL,
    timezone text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    aggregated_at timestamptz NOT NULL,
    raw_purged_at timestamptz,
    purge_snapshot pg_snapshot,
    PRIMARY KEY (website_id, date)
);

CREATE TABLE IF NOT EXISTS analytics_website_policy (
    website_id text PRIMARY KEY,
    timezone text,
    retention_days integer CHECK (retention_days BETWEEN 1 AND 36500),
    legal_hold boolean NOT NULL DEFAULT FALSE
);

CREATE TABLE IF NOT EXISTS analytics_purge_proof (
    website_id text NOT NULL,
    date date NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    total_events bigint NOT NULL,
    events_hash bigint NOT NULL,
    snapshot pg_snapshot NOT NULL,
    PRIMARY KEY (date, website_id)
);

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
