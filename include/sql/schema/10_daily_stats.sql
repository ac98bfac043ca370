-- The daily statistics, one row per website and day. They are never deleted.
-- Created in the first schema of search_path, beside whatever table of the same name the application has elsewhere.

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

COMMENT ON COLUMN analytics_daily_stats.date IS 'Calendar day in the time zone of the website';
COMMENT ON COLUMN analytics_daily_stats.total_events IS 'Raw events counted, of every type';
COMMENT ON COLUMN analytics_daily_stats.deleted_events IS 'Soft-deleted raw events of the day, which were not counted';
COMMENT ON COLUMN analytics_daily_stats.events_hash IS
'Exclusive or of the hashes of the counted events'' ids: tells whether the raw events are still the counted ones';
COMMENT ON COLUMN analytics_daily_stats.visitor_sketch IS
'Which visitors there were, for analytics_unique_visitors: see analytics_sketch_bit';
COMMENT ON COLUMN analytics_daily_stats.starts_at IS 'First instant of the day';
COMMENT ON COLUMN analytics_daily_stats.ends_at IS 'First instant after the day';
COMMENT ON COLUMN analytics_daily_stats.aggregated_at IS 'Start of the transaction whose snapshot was counted';
COMMENT ON COLUMN analytics_daily_stats.raw_purged_at IS
'When raw events of this day were first deleted: from then on the row is final';
COMMENT ON COLUMN analytics_daily_stats.purge_snapshot IS
'The snapshot in which the row was proven to count exactly the raw events; events that it does not show came later';
