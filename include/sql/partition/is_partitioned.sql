-- Whether analytics_event is partitioned.
-- Result: one row: is_partitioned.
SELECT relation.relkind = 'p' AS is_partitioned FROM pg_catalog.pg_class AS relation
WHERE relation.oid = 'analytics_event'::regclass;
