-- Compares the live database with what the jobs need: tables, columns and their types, privileges, indexes, and the
-- version of our functions. Tables are looked for the way the jobs' own statements find them, along search_path.
-- Params: version (text), that of the files which make our schema.
-- Result: no row when all is well, else one row per problem: problem (text), one sentence with what to do.
WITH needed_column (table_name, column_name, type_name, privileges) AS (
    VALUES
    ('analytics_event', 'id', 'text', 'SELECT'),
    ('analytics_event', 'website_id', 'text', 'SELECT'),
    ('analytics_event', 'event_type', 'text', 'SELECT'),
    ('analytics_event', 'pathname', 'text', 'SELECT'),
    ('analytics_event', 'referrer_source', 'text', 'SELECT'),
    ('analytics_event', 'visitor_id', 'text', 'SELECT'),
    ('analytics_event', 'session_id', 'text', 'SELECT'),
    ('analytics_event', 'timestamp', 'timestamp with time zone', 'SELECT'),
    ('analytics_event', 'deleted_at', 'timestamp with time zone', 'SELECT'),
    ('analytics_session', 'id', 'text', 'SELECT'),
    ('analytics_session', 'website_id', 'text', 'SELECT'),
    ('analytics_session', 'session_id', 'text', 'SELECT'),
    ('analytics_session', 'duration_seconds', 'integer', 'SELECT,UPDATE'),
    ('analytics_session', 'started_at', 'timestamp with time zone', 'SELECT'),
    ('analytics_session', 'ended_at', 'timestamp with time zone', 'SELECT,UPDATE'),
    ('analytics_session', 'last_activity_at', 'timestamp with time zone', 'SELECT'),
    ('analytics_session', 'updated_at', 'timestamp with time zone', 'UPDATE'),
    ('analytics_session', 'deleted_at', 'timestamp with time zone', 'SELECT'),
    ('analytics_daily_stats', 'website_id', 'text', 'SELECT,INSERT'),
    ('analytics_daily_stats', 'date', 'date', 'SELECT,INSERT'),
    ('analytics_daily_stats', 'total_pageviews', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'total_custom_events', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'unique_visitors', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'unique_sessions', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'top_pages', 'jsonb', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'top_referrers', 'jsonb', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'total_events', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'deleted_events', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'events_hash', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'visitor_sketch', 'bit(49152)', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'timezone', 'text', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'starts_at', 'timestamp with time zone', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'ends_at', 'timestamp with time zone', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'aggregated_at', 'timestamp with time zone', 'SELECT,INSERT,UPDATE'),
    ('analytics_daily_stats', 'raw_purged_at', 'timestamp with time zone', 'SELECT,UPDATE'),
    ('analytics_daily_stats', 'purge_snapshot', 'pg_snapshot', 'SELECT,UPDATE'),
    ('analytics_website_policy', 'website_id', 'text', 'SELECT'),
    ('analytics_website_policy', 'timezone', 'text', 'SELECT'),
    ('analytics_website_policy', 'retention_days', 'integer', 'SELECT'),
    ('analytics_website_policy', 'legal_hold', 'boolean', 'SELECT'),
    ('analytics_purge_proof', 'website_id', 'text', 'SELECT,INSERT'),
    ('analytics_purge_proof', 'date', 'date', 'SELECT,INSERT'),
    ('analytics_purge_proof', 'starts_at', 'timestamp with time zone', 'SELECT,INSERT,UPDATE'),
    ('analytics_purge_proof', 'ends_at', 'timestamp with time zone', 'SELECT,INSERT,UPDATE'),
    ('analytics_purge_proof', 'total_events', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_purge_proof', 'events_hash', 'bigint', 'SELECT,INSERT,UPDATE'),
    ('analytics_purge_proof', 'snapshot', 'pg_snapshot', 'SELECT,INSERT,UPDATE'),
    ('analytics_proven_days', 'days', 'tstzmultirange', 'SELECT'),
    ('analytics_job_run', 'run_id', 'text', 'SELECT,INSERT,UPDATE'),
    ('analytics_alert', 'condition', 'text', 'SELECT,INSERT,UPDATE')
),

needed_index (table_name, index_columns, predicate) AS (
    VALUES
    ('analytics_event', ARRAY['"timestamp"', 'id'], NULL),
    ('analytics_event', ARRAY['website_id', '"timestamp"'], '(deleted_at IS NULL)'),
    ('analytics_event', ARRAY['website_id', '"timestamp"'], '(deleted_at IS NOT NULL)'),
    ('analytics_session', ARRAY['started_at', 'id'], NULL),
    ('analytics_session', ARRAY['started_at'], '((ended_at IS NULL) AND (deleted_at IS NULL))')
),

found_table AS (
    SELECT
        needed_table.table_name,
        to_regclass(needed_table.table_name) AS table_oid,
        needed_table.table_name NOT IN ('analytics_event', 'analytics_session') AS is_ours
    FROM (SELECT DISTINCT needed_column.table_name FROM needed_column) AS needed_table
),

found_column AS (
    SELECT
        needed_column.*,
        found_table.table_oid,
        found_table.is_ours,
        found.attnum,
        format_type(found.atttypid, found.atttypmod) AS found_type,
        -- Of a table that is not the right one, nothing else needs to be said.
        bool_and(found.attnum IS NOT NULL) OVER (PARTITION BY needed_column.table_name) AS table_is_right
    FROM needed_column
    INNER JOIN found_table ON needed_column.table_name = found_table.table_name
    LEFT JOIN pg_catalog.pg_attribute AS found
        ON
            found_table.table_oid = found.attrelid
            AND needed_column.column_name = found.attname
            AND NOT found.attisdropped
    WHERE found_table.table_oid IS NOT NULL
)

SELECT
    format(
        'Table %%s is missing from search_path "%%s": %%s.',
        found_table.table_name,
        current_setting('search_path'),
        CASE
            WHEN found_table.is_ours
                THEN 'run "make schema" and put its schema (analytics) into the connection''s search_path'
            ELSE 'the application creates it; put its schema into the connection''s search_path'
        END
    ) AS problem
FROM found_table
WHERE found_table.table_oid IS NULL

UNION ALL

SELECT
    format(
        'Table %%s is not the one the jobs know (missing column(s): %%s): %%s.',
        found_column.table_oid,
        string_agg(found_column.column_name, ', ' ORDER BY found_column.column_name),
        CASE
            WHEN found_column.is_ours
                THEN 'run "make schema" and put its schema (analytics) first in the connection''s search_path'
            ELSE 'check the connection''s search_path and the application''s version'
        END
    )
FROM found_column
WHERE found_column.attnum IS NULL
GROUP BY found_column.table_oid, found_column.is_ours

UNION ALL

SELECT format('Table %%s is partitioned, which the jobs do not know how to delete from.', found_table.table_oid)
FROM found_table
INNER JOIN pg_catalog.pg_class ON found_table.table_oid = pg_class.oid
WHERE pg_class.relkind = 'p'

UNION ALL

SELECT
    format(
        'Column %%s of table %%s has type %%s instead of %%s: check the application''s version.',
        found_column.column_name, found_column.table_oid, found_column.found_type, found_column.type_name
    )
FROM found_column
WHERE found_column.table_is_right AND found_column.found_type <> found_column.type_name

UNION ALL

SELECT
    format(
        'Role %%s lacks %%s on table %%s: run "make schema" and make the role a member of analytics_jobs.',
        current_user,
        lacking.privilege,
        lacking.table_oid
    )
FROM (
    SELECT DISTINCT
        found_column.table_oid,
        privilege.privilege
    FROM found_column
    CROSS JOIN LATERAL unnest(string_to_array(found_column.privileges, ',')) AS privilege (privilege)
    WHERE
        found_column.table_is_right
        AND NOT has_column_privilege(found_column.table_oid, found_column.attnum, privilege.privilege)
    UNION
    SELECT
        found_table.table_oid,
        'DELETE' AS privilege
    FROM found_table
    WHERE
        found_table.table_name IN ('analytics_event', 'analytics_session', 'analytics_purge_proof')
        AND NOT has_table_privilege(found_table.table_oid, 'DELETE')
) AS lacking

UNION ALL

SELECT
    format(
        'Table %%s has no valid index on (%%s)%%s: run "make schema".',
        found_table.table_oid,
        array_to_string(needed_index.index_columns, ', '),
        coalesce(' where ' || needed_index.predicate, '')
    )
FROM needed_index
INNER JOIN found_table ON needed_index.table_name = found_table.table_name
WHERE
    found_table.table_oid IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_index AS candidate
        WHERE
            candidate.indrelid = found_table.table_oid
            AND candidate.indisvalid
            AND pg_get_expr(candidate.indpred, candidate.indrelid) IS NOT DISTINCT FROM needed_index.predicate
            AND (
                SELECT array_agg(pg_get_indexdef(candidate.indexrelid, key_position, TRUE) ORDER BY key_position)
                FROM generate_series(1, cardinality(needed_index.index_columns)) AS key_position
            ) = needed_index.index_columns
    )

UNION ALL

SELECT 'The functions in the database are of another version of the jobs: run "make schema".'
FROM found_table
WHERE
    found_table.table_name = 'analytics_daily_stats'
    AND coalesce(obj_description(found_table.table_oid, 'pg_class'), '') NOT LIKE '%%' || %(version)s
    -- Of a table that is not the right one, enough has been said.
    AND EXISTS (
        SELECT FROM found_column
        WHERE found_column.table_oid = found_table.table_oid AND found_column.table_is_right
    )
ORDER BY problem;
