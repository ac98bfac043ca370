-- Deletes one batch: the oldest expired events of a planned range, at most batch_size, and marks their days' stats
-- as final in the same transaction, so that no later aggregation counts what is left of a day.
-- Params: lo_timestamp, lo_id (exclusive), hi_timestamp, hi_id (inclusive), cutoff (timestamptz),
--   batch_size (int), timezone (IANA name).
-- An event whose day has no stats, because it arrived after they were checked, stays for the next run.
-- Result: rows deleted. Repeated after a failure it deletes only what is left of its own range.
WITH batch AS MATERIALIZED (
    SELECT
        event.ctid AS row_address,
        event.website_id,
        event.timestamp
    FROM analytics_event AS event
    WHERE
        (event.timestamp, event.id) > (%(lo_timestamp)s::timestamptz, %(lo_id)s)
        AND (event.timestamp, event.id) <= (%(hi_timestamp)s::timestamptz, %(hi_id)s)
        AND event.timestamp < %(cutoff)s::timestamptz
        AND (
            event.deleted_at IS NOT NULL
            OR EXISTS (
                SELECT FROM analytics_daily_stats AS stats
                WHERE
                    stats.website_id = event.website_id
                    AND stats.date = (event.timestamp AT TIME ZONE %(timezone)s)::date
            )
        )
    ORDER BY event.timestamp, event.id
    LIMIT %(batch_size)s::int
),

-- Locked in one order, so that batches which share days wait for each other instead of deadlocking.
day_to_mark AS MATERIALIZED (
    SELECT
        stats.website_id,
        stats.date
    FROM analytics_daily_stats AS stats
    WHERE
        stats.raw_purged_at IS NULL
        AND (stats.website_id, stats.date) IN (
            SELECT
                batch.website_id,
                (batch.timestamp AT TIME ZONE %(timezone)s)::date
            FROM batch
        )
    ORDER BY stats.website_id, stats.date
    FOR NO KEY UPDATE
),

marked AS (
    UPDATE analytics_daily_stats AS stats
    SET raw_purged_at = now()
    FROM day_to_mark
    WHERE stats.website_id = day_to_mark.website_id AND stats.date = day_to_mark.date
)

DELETE FROM analytics_event
WHERE
    analytics_event.ctid = any(array(SELECT batch.row_address FROM batch))
    AND analytics_event.timestamp < %(cutoff)s::timestamptz;
