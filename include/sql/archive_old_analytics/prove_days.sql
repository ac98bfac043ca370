-- Proves, under one snapshot, which expired days may be deleted: those whose row counts exactly the raw events that are
-- there, and those whose row is final already. Puts them, and no others, into analytics_purge_proof.
-- Params: moment (timestamptz), retention_days (int), timezone (IANA name), for websites without a policy of their own.
-- Result: one row per day that is not proven, or is final and has events that came later: website_id, day (text),
--   is_proven (boolean), late_events, remark (text).
-- Later changes cannot make a proof wrong. An event that is stored, or changed, or brought back after the snapshot is a
-- row version that it does not show, and no batch deletes it. A row that is counted again in the meantime differs from
-- its proof, unless it counts the very same events, and no batch deletes anything of its day. A second run proves anew,
-- and its proofs serve the first one's batches as well. synchronous_commit must be on: were this transaction lost in a
-- crash of the server, transaction numbers that its snapshot calls old could be given to new events.
WITH cutoffs AS MATERIALIZED (
    SELECT * FROM analytics_cutoffs(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int)
),

expired_day AS MATERIALIZED (
    SELECT day.*
    FROM analytics_event_days(%(timezone)s, (SELECT max(cutoffs.cutoff) FROM cutoffs)) AS day
    LEFT JOIN cutoffs AS policy ON day.website_id = policy.website_id
    INNER JOIN cutoffs AS general ON general.website_id IS NULL
    WHERE day.ends_at <= coalesce(policy.cutoff, general.cutoff)
),

expired AS MATERIALIZED (
    SELECT
        expired_day.*,
        live.events,
        stats.total_events,
        stats.events_hash,
        stats.purge_snapshot,
        analytics_newest_xid() AS newest_xid,
        stats.raw_purged_at IS NOT NULL AS is_final,
        stats.raw_purged_at IS NOT NULL
        OR (stats.starts_at, stats.ends_at, stats.total_events, stats.events_hash)
        = (expired_day.starts_at, expired_day.ends_at, live.events, live.ids)
        OR stats.website_id IS NULL AND live.events = 0 AS is_proven
    FROM expired_day
    LEFT JOIN analytics_daily_stats AS stats
        ON expired_day.website_id = stats.website_id AND expired_day.date = stats.date
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS events,
            coalesce(bit_xor(hashtextextended(event.id, 0)), 0) AS ids
        FROM analytics_event AS event
        WHERE
            event.website_id = expired_day.website_id
            AND event.timestamp >= expired_day.starts_at
            AND event.timestamp < expired_day.ends_at
            AND event.deleted_at IS NULL
    ) AS live
),

disproven AS (
    DELETE FROM analytics_purge_proof AS proof
    WHERE
        NOT EXISTS (
            SELECT FROM expired
            WHERE expired.website_id = proof.website_id AND expired.date = proof.date AND expired.is_proven
        )
),

written AS (
    INSERT INTO analytics_purge_proof AS proof (
        website_id, date, starts_at, ends_at, total_events, events_hash, snapshot
    )
    -- In one order, so that two runs at the same moment wait for each other instead of deadlocking.
    SELECT
        website_id,
        date,
        starts_at,
        ends_at,
        coalesce(total_events, 0) AS total_events,
        coalesce(events_hash, 0) AS events_hash,
        pg_current_snapshot() AS snapshot
    FROM expired
    WHERE is_proven
    ORDER BY date, website_id
    ON CONFLICT (date, website_id) DO UPDATE SET
        starts_at = excluded.starts_at,
        ends_at = excluded.ends_at,
        total_events = excluded.total_events,
        events_hash = excluded.events_hash,
        snapshot = excluded.snapshot
)

SELECT
    expired.website_id,
    late.events AS late_events,
    expired.date::text AS day,
    coalesce(expired.is_proven, FALSE) AS is_proven,
    CASE
        WHEN expired.is_proven
            THEN format('%%s event(s) came after its stats were final and were not counted', late.events)
        WHEN expired.total_events IS NULL THEN format('%%s event(s), no stats', expired.events)
        ELSE format('%%s event(s), stats of %%s', expired.events, expired.total_events)
    END AS remark
FROM expired
CROSS JOIN
    LATERAL (
        SELECT count(*) AS events FROM analytics_event AS event
        WHERE
            expired.is_final
            AND event.website_id = expired.website_id
            AND event.timestamp >= expired.starts_at
            AND event.timestamp < expired.ends_at
            AND event.deleted_at IS NULL
            AND NOT analytics_is_visible(event.xmin, expired.newest_xid, expired.purge_snapshot)
    ) AS late
WHERE expired.is_proven IS NOT TRUE OR late.events > 0
ORDER BY expired.date, expired.website_id;
