-- Deletes one batch: the oldest events of a planned range that are of proven days, at most batch_size, and makes their
-- days' stats final in the same transaction, so that no later aggregation counts what is left of a day.
-- Params: lo_timestamp, lo_id (exclusive), hi_timestamp, hi_id (inclusive), batch_size (int), and for the policy as it
-- is
--   now: moment (timestamptz), retention_days (int), timezone (IANA name).
-- Result: rows deleted. Repeated after a failure it deletes only what is left of its own range.
-- Only row versions go that the proof's snapshot shows: each of them is counted in the day's row, or soft-deleted. What
-- was stored, changed or brought back since stays. See prove_days.sql.
WITH proven AS MATERIALIZED (
    SELECT
        proof.*,
        analytics_newest_xid() AS newest_xid,
        stats.raw_purged_at IS NOT NULL AS is_final
    FROM analytics_purge_proof AS proof
    INNER JOIN analytics_cutoffs(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int) AS general
        ON general.website_id IS NULL
    LEFT JOIN analytics_cutoffs(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int) AS policy
        ON proof.website_id = policy.website_id
    LEFT JOIN analytics_daily_stats AS stats ON proof.website_id = stats.website_id AND proof.date = stats.date
    WHERE
        proof.date >= (%(lo_timestamp)s::timestamptz AT TIME ZONE 'UTC')::date - 2
        AND proof.date <= (%(hi_timestamp)s::timestamptz AT TIME ZONE 'UTC')::date + 2
        AND proof.starts_at <= %(hi_timestamp)s::timestamptz
        AND proof.ends_at > %(lo_timestamp)s::timestamptz
        AND proof.ends_at <= coalesce(policy.cutoff, general.cutoff)
        AND (coalesce(stats.total_events, 0), coalesce(stats.events_hash, 0)) = (proof.total_events, proof.events_hash)
),

batch AS MATERIALIZED (
    SELECT
        event.ctid AS row_address,
        proven.website_id,
        proven.date,
        proven.is_final OR proven.total_events = 0 AS may_go
    FROM analytics_event AS event
    -- Not an inner join, which may read the range once per proven day instead of once.
    LEFT JOIN proven
        ON
            event.website_id = proven.website_id
            AND event.timestamp >= proven.starts_at
            AND event.timestamp < proven.ends_at
    WHERE
        (event.timestamp, event.id) > (%(lo_timestamp)s::timestamptz, %(lo_id)s)
        AND (event.timestamp, event.id) <= (%(hi_timestamp)s::timestamptz, %(hi_id)s)
        AND coalesce(analytics_is_visible(event.xmin, proven.newest_xid, proven.snapshot), FALSE)
    ORDER BY event.timestamp, event.id
    LIMIT %(batch_size)s::int
),

-- Rows that are not final yet, as they are once nobody else writes them. Locked in one order, so that batches which
-- share days wait for each other instead of deadlocking.
locked AS MATERIALIZED (
    SELECT
        stats.website_id,
        stats.date,
        proven.snapshot
    FROM analytics_daily_stats AS stats
    INNER JOIN proven ON stats.website_id = proven.website_id AND stats.date = proven.date
    WHERE
        (stats.website_id, stats.date) IN (SELECT
            batch.website_id,
            batch.date
        FROM batch
        WHERE NOT batch.may_go)
        AND (stats.starts_at, stats.ends_at, stats.total_events, stats.events_hash)
        = (proven.starts_at, proven.ends_at, proven.total_events, proven.events_hash)
    ORDER BY stats.website_id, stats.date
    FOR NO KEY UPDATE OF stats
),

made_final AS (
    UPDATE analytics_daily_stats AS stats
    SET raw_purged_at = now(), purge_snapshot = locked.snapshot
    FROM locked
    WHERE stats.website_id = locked.website_id AND stats.date = locked.date AND stats.raw_purged_at IS NULL
)

DELETE FROM analytics_event
WHERE
    analytics_event.ctid = any(array(
        SELECT batch.row_address FROM batch
        WHERE
            batch.may_go
            OR EXISTS (
                SELECT FROM locked
                WHERE locked.website_id = batch.website_id AND locked.date = batch.date
            )
    ));
