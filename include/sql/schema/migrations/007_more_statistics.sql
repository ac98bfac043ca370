-- More of each day outlives its raw events: bounces, durations, and the items of eight dimensions. Rows that are sealed
-- have none of it; all others are counted again by the next run of the aggregation, for their ignored_events are NULL.

ALTER TABLE analytics_daily_stats
ADD COLUMN bounced_sessions bigint,
ADD COLUMN session_seconds bigint,
ADD COLUMN top_countries jsonb,
ADD COLUMN top_devices jsonb,
ADD COLUMN top_browsers jsonb,
ADD COLUMN top_os jsonb,
ADD COLUMN top_utm_sources jsonb,
ADD COLUMN top_utm_mediums jsonb,
ADD COLUMN top_utm_campaigns jsonb,
ADD COLUMN top_events jsonb,
ADD COLUMN ignored_events text[],
ADD COLUMN late_ignored_events bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN analytics_daily_stats.bounced_sessions IS
'How many sessions had one pageview that day and no custom event. NULL if the row was sealed before this was counted.';
COMMENT ON COLUMN analytics_daily_stats.session_seconds IS
'The sum of the times from the first to the last event of each session on that day, in whole seconds. NULL as above.';
COMMENT ON COLUMN analytics_daily_stats.top_countries IS
'The pageviews of the day by country, and by what the names of the following columns say: at most ten items, the '
'others as (other), those without one as (none). A visitor counts once, with the item of most of its pageviews, of '
'several the first in byte order. NULL as above.';
COMMENT ON COLUMN analytics_daily_stats.top_events IS 'The same of the custom events of the day by their names.';
COMMENT ON COLUMN analytics_daily_stats.ignored_events IS
'The names of custom events that are not counted as such in this row: see analytics_ignored_event. NULL as above.';
COMMENT ON COLUMN analytics_daily_stats.late_ignored_events IS
'How many events of names in analytics_ignored_event came after the row was sealed.';

CREATE TABLE analytics_ignored_event (event_name text PRIMARY KEY);

COMMENT ON TABLE analytics_ignored_event IS
'The names of custom events that are proven and deleted like all, but not counted as custom events, such as '
'heartbeats. The setting ANALYTICS_IGNORED_EVENTS fills it.';

ALTER TABLE analytics_website_policy ADD COLUMN name text;

COMMENT ON COLUMN analytics_website_policy.name IS 'What the page calls the website; NULL: its id.';

-- It returns what it has written now.
DROP FUNCTION IF EXISTS analytics_write_days(analytics_daily_stats[]);

-- More of an event is counted now.
DROP FUNCTION IF EXISTS analytics_event_hash(text, text, text, text, text, text);
