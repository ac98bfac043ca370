-- Finds the partitions of analytics_event that can be dropped instead of deleting their events, and those that an
-- earlier run has begun to detach and not dropped.
-- Params: retention_days (int), dry_run (boolean).
-- Result: one row: log, result (json: the parameters of each task: label, retention_days, and partition, its oid).
WITH found AS MATERIALIZED (
    SELECT * FROM analytics_expired_partitions(%(retention_days)s::int, %(dry_run)s::boolean)
)

SELECT
    string_agg(
        '[Analytics Archive] ' || CASE
            WHEN found.reason IS NOT NULL
                THEN format('Partition %%s goes in batches: %%s', found.partition, analytics_one_line(found.reason))
            WHEN found.events IS NULL
                THEN format('Partition %%s was begun with by an earlier run, and not dropped', found.partition)
            WHEN %(dry_run)s::boolean
                THEN
                    format(
                        'Dry run: would drop partition %%s of %%s events',
                        found.partition, to_char(found.events, 'FM999,999,999,999,990')
                    )
        END,
        E'\n' ORDER BY found.starts_at
    ) AS log,
    coalesce(
        json_agg(
            json_build_object(
                'label', found.partition::text,
                'retention_days', %(retention_days)s::int,
                'partition', found.partition::oid::bigint
            )
            ORDER BY found.starts_at
        ) FILTER (WHERE found.reason IS NULL AND NOT %(dry_run)s::boolean),
        '[]'
    ) AS result
FROM found;
