-- What of analytics_event could not be kept if it became a partition.
-- Result: one row per problem: problem (text, one sentence with what to do).
WITH relation AS MATERIALIZED (
    SELECT * FROM pg_catalog.pg_class
    WHERE oid = 'analytics_event'::regclass AND relkind <> 'p'
)

SELECT 'analytics_event is not an ordinary table.' AS problem FROM relation
WHERE relation.relkind <> 'r' OR relation.relpersistence <> 'p'
UNION ALL
SELECT format('The foreign key %%I of %%s: drop it first.', stored.conname, stored.conrelid::regclass) AS problem
FROM pg_catalog.pg_constraint AS stored
INNER JOIN relation ON stored.contype = 'f' AND relation.oid IN (stored.conrelid, stored.confrelid)
UNION ALL
SELECT DISTINCT
    format('%%s depends on analytics_event: drop it first, and create it anew afterwards.', rewrite.ev_class::regclass)
        AS problem
FROM relation
INNER JOIN pg_catalog.pg_depend AS dependency
    ON relation.oid = dependency.refobjid AND dependency.refclassid = 'pg_class'::regclass
INNER JOIN pg_catalog.pg_rewrite AS rewrite
    ON dependency.objid = rewrite.oid AND dependency.classid = 'pg_rewrite'::regclass
UNION ALL
SELECT format('The trigger %%I: drop it first, and create it anew afterwards.', stored.tgname) AS problem
FROM pg_catalog.pg_trigger AS stored
INNER JOIN relation ON stored.tgrelid = relation.oid AND NOT stored.tgisinternal
UNION ALL
SELECT format('The publication of %%s: take the table out of it first.', relation.oid::regclass) AS problem
FROM pg_catalog.pg_publication_rel AS stored
INNER JOIN relation ON stored.prrelid = relation.oid
UNION ALL
SELECT format('The unique index %%s, which is not of id alone: drop it first.', stored.indexrelid::regclass) AS problem
FROM pg_catalog.pg_index AS stored
INNER JOIN relation ON stored.indrelid = relation.oid
INNER JOIN pg_catalog.pg_class AS name ON stored.indexrelid = name.oid
WHERE
    (stored.indisunique OR stored.indisexclusion)
    AND NOT stored.indisprimary
    AND name.relname <> 'analytics_event_id_timestamp_key'
UNION ALL
SELECT 'analytics_event has no primary key of id alone.' AS problem FROM relation
WHERE
    NOT EXISTS (
        SELECT FROM pg_catalog.pg_index AS stored
        INNER JOIN pg_catalog.pg_attribute AS id ON stored.indrelid = id.attrelid AND stored.indkey[0] = id.attnum
        WHERE stored.indrelid = relation.oid AND stored.indisprimary AND stored.indnatts = 1 AND id.attname = 'id'
    )
UNION ALL
SELECT 'Column timestamp may be NULL: ALTER TABLE analytics_event ALTER timestamp SET NOT NULL.' AS problem
FROM pg_catalog.pg_attribute AS stored
INNER JOIN relation ON stored.attrelid = relation.oid
WHERE stored.attname = 'timestamp' AND NOT stored.attnotnull
UNION ALL
SELECT 'Table analytics_event has inheritance, rules or row level security, which a partition cannot keep.' AS problem
FROM relation
WHERE
    relation.relhasrules
    OR relation.relrowsecurity
    OR EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS stored
        WHERE relation.oid IN (stored.inhparent, stored.inhrelid)
    );
