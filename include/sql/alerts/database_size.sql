-- A database that is larger than it should be.
-- Params: database_gb (float, of 1024^3 bytes).
-- Result: subject (none), message.
SELECT
    '' AS subject,
    format(
        'The database has %%s, more than %%s GB%%s%%s; a shorter retention stops its growth, but a DELETE gives '
        || 'space back to PostgreSQL, not to the disk: VACUUM FULL or pg_repack does.',
        pg_size_pretty(pg_database_size(current_database())),
        %(database_gb)s::float8,
        (
            SELECT
                format(
                    ': of the raw tables'' %%s, about %%s are live rows and %%s are free for new ones',
                    pg_size_pretty(raw_table.bytes),
                    pg_size_pretty(round(raw_table.live_bytes)),
                    pg_size_pretty(round(greatest(raw_table.bytes - raw_table.live_bytes, 0)))
                )
            FROM (
                SELECT
                    sum(pg_relation_size(raw.relid)) AS bytes,
                    -- The row's header and pointer have 28 bytes. Known only as well as the last ANALYZE.
                    sum(raw.n_live_tup * (28 + (
                        SELECT sum(width.avg_width) FROM pg_catalog.pg_stats AS width
                        WHERE width.schemaname = raw.schemaname AND width.tablename = raw.relname
                    ))) AS live_bytes
                FROM pg_catalog.pg_stat_user_tables AS raw
                WHERE raw.relid IN (to_regclass('analytics_event'), to_regclass('analytics_session'))
            ) AS raw_table
            WHERE raw_table.live_bytes IS NOT NULL
        ),
        (
            SELECT
                format(
                    ', growing by %%s a week',
                    pg_size_pretty(round(
                        regr_slope(run.database_bytes, extract(EPOCH FROM run.finished_at)) * 7 * 86400
                    )::bigint)
                )
            FROM analytics_job_run AS run
            WHERE run.started_at > now() - interval '28 days' AND run.database_bytes IS NOT NULL
            HAVING max(run.finished_at) - min(run.finished_at) > interval '1 day'
        )
    ) AS message
WHERE pg_database_size(current_database()) > %(database_gb)s::float8 * 1024 ^ 3;
