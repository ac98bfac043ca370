-- Deletes one batch: the oldest expired sessions of a planned range that have no event left, at most batch_size.
-- Params: lo_started_at, lo_id (exclusive), hi_started_at, hi_id (inclusive), batch_size (int), and for the policy as
-- it
--   is now: moment (timestamptz), retention_days (int), timezone (IANA name).
-- Result: rows deleted. Repeated after a failure it deletes only what is left of its own range.
-- Runs after the events' batches: a session of which an event is left, for whatever reason, stays. An event that is
-- stored for it while the statement runs is stored for a session that ended before the cutoff: as if it came after the
-- deletion.
WITH cutoffs AS MATERIALIZED (
    SELECT * FROM analytics_cutoffs(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int)
),

batch AS MATERIALIZED (
    SELECT session.ctid AS row_address
    FROM analytics_session AS session
    LEFT JOIN cutoffs AS policy ON session.website_id = policy.website_id
    INNER JOIN cutoffs AS general ON general.website_id IS NULL
    WHERE
        (session.started_at, session.id) > (%(lo_started_at)s::timestamptz, %(lo_id)s)
        AND (session.started_at, session.id) <= (%(hi_started_at)s::timestamptz, %(hi_id)s)
        AND session.last_activity_at < coalesce(policy.cutoff, general.cutoff)
        AND NOT EXISTS (
            SELECT FROM analytics_event AS event
            WHERE event.session_id = session.session_id AND event.deleted_at IS NULL
        )
    ORDER BY session.started_at, session.id
    LIMIT %(batch_size)s::int
)

-- A session that its visitor comes back to meanwhile is another row version, at another address.
DELETE FROM analytics_session
WHERE analytics_session.ctid = any(array(SELECT batch.row_address FROM batch));
