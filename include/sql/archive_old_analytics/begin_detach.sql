-- Asks whether each event of a partition may go, and remembers that it is detached.
-- Params: partition (bigint, its oid), retention_days (int).
-- Result: one row: statement (text, what detaches it; NULL if it is not to be detached, or was before), log.
SELECT
    begun.statement,
    '[Analytics Archive] ' || analytics_one_line(begun.log) AS log
FROM analytics_begin_detach(%(partition)s::bigint::oid::regclass, %(retention_days)s::int) AS begun;
