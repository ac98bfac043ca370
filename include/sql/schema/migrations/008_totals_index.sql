-- What the page adds up of all websites for a range of days: of a year of 50 websites, 2 MB instead of 63.
CREATE INDEX analytics_daily_stats_totals_idx ON analytics_daily_stats (date, website_id) INCLUDE (
    total_pageviews, total_custom_events, unique_visitors, unique_sessions, bounced_sessions, session_seconds,
    late_pageviews, late_custom_events, late_ignored_events
);
