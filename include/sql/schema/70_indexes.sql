-- Indexes that the jobs need on the application's tables. CONCURRENTLY does not block the application's writes.
-- None has last_activity_at in its columns or its predicate: with one that had, no heartbeat could be a HOT update.

-- Batches of expired events. Not partial: soft-deleted events expire as well.
CREATE INDEX CONCURRENTLY IF NOT EXISTS analytics_event_timestamp_id_idx
ON analytics_event (timestamp, id) INCLUDE (website_id);

-- Days of which events were soft-deleted. Costs an insert nothing: only soft-deleted events are in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS analytics_event_deleted_idx
ON analytics_event (website_id, timestamp)
WHERE deleted_at IS NOT NULL;

-- Batches of expired sessions.
CREATE INDEX CONCURRENTLY IF NOT EXISTS analytics_session_started_at_id_idx
ON analytics_session (started_at, id);

-- Idle sessions: the open ones are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS analytics_session_open_idx
ON analytics_session (started_at)
WHERE ended_at IS NULL AND deleted_at IS NULL;
