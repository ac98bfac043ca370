-- Deletes one batch: the oldest expired sessions of a planned range that have no event left, at most batch_size.
-- Params: lo_started_at, lo_id (exclusive), hi_started_at, hi_id (inclusive), cutoff (timestamptz),
--   batch_size (int).
-- Result: rows deleted. Repeated after a failure it deletes only what is left of its own range.
-- Runs after the events' batches: a session of which an event is left, for whatever reason, stays.
WITH batch AS MATERIALIZED (
    SELECT session.ctid AS row_address
    FROM analytics_session AS session
    WHERE
        (session.started_at, session.id) > (%(lo_started_at)s::timestamptz, %(lo_id)s)
        AND (session.started_at, session.id) <= (%(hi_started_at)s::timestamptz, %(hi_id)s)
        AND session.started_at < %(cutoff)s::timestamptz
        AND session.last_activity_at < %(cutoff)s::timestamptz
        AND NOT EXISTS (
            SELECT FROM analytics_event AS event
            WHERE event.session_id = session.session_id AND event.deleted_at IS NULL
        )
    ORDER BY session.started_at, session.id
    LIMIT %(batch_size)s::int
)

DELETE FROM analytics_session
WHERE
    analytics_session.ctid = any(array(SELECT batch.row_address FROM batch))
    AND analytics_session.last_activity_at < %(cutoff)s::timestamptz;
