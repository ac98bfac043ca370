-- Drops a detached partition, or attaches it again if not each event of it may go.
-- Params: partition (bigint, its oid), retention_days (int).
-- Result: one row: result (json: rows, that were deleted; left: 0), log.
SELECT
    json_build_object('rows', dropped.events, 'left', 0) AS result,
    '[Analytics Archive] ' || analytics_one_line(dropped.log) AS log
FROM analytics_drop_detached(%(partition)s::bigint::oid::regclass, %(retention_days)s::int) AS dropped;
