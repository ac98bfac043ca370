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
    aggregated_at timestamptz NOT NULL,
    raw_purged_at timestamptz,
    PRIMARY KEY (website_id, date)
);

COMMENT ON COLUMN analytics_daily_stats.date IS 'Calendar day in the time zone of the aggregation';
COMMENT ON COLUMN analytics_daily_stats.total_events IS 'Raw events counted, of every type';
COMMENT ON COLUMN analytics_daily_stats.aggregated_at IS 'Start of the transaction whose snapshot was counted';
COMMENT ON COLUMN analytics_daily_stats.raw_purged_at IS
'When retention first deleted raw events of this day: from then on the row is final';
