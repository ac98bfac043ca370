-- Compares the live database with what the jobs need, and names what they cannot work with, before anything is changed.
-- Tables are looked for the way the jobs' own statements find them, along search_path.
-- Params: version (bigint), that of the files which make our schema.
-- Result: no row when all is well, else one row per problem: problem (text), one sentence with what to do.
-- Our schema may be missing or of another version, so its tables and functions are named in text alone. Its version
-- stands for everything in it.
WITH needed_table (table_name, is_ours, privileges) AS (
    VALUES
    ('analytics_event', FALSE, 'DELETE'),
    ('analytics_session', FALSE, 'DELETE'),
    ('analytics_schema_version', TRUE, 'SELECT'),
    ('analytics_daily_stats', TRUE, 'SELECT,INSERT,UPDATE'),
    ('analytics_timezone', TRUE, 'SELECT,INSERT,UPDATE'),
    ('analytics_website_policy', TRUE, 'SELECT'),
    ('analytics_purge_batch', TRUE, 'SELECT,INSERT,UPDATE,DELETE'),
    ('analytics_archive_file', TRUE, 'SELECT,INSERT,UPDATE,DELETE'),
    ('analytics_detached_partition', TRUE, 'SELECT,INSERT,DELETE'),
    ('analytics_ignored_event', TRUE, 'SELECT,INSERT,DELETE'),
    ('analytics_partitioning', TRUE, 'SELECT'),
    ('analytics_job_run', TRUE, 'SELECT,INSERT,UPDATE'),
    ('analytics_alert', TRUE, 'SELECT,INSERT,UPDATE'),
    ('analytics_traffic_daily', TRUE, 'SELECT')
),

needed_column (table_name, type_name, privileges, column_names) AS (
    VALUES
    ('analytics_event', 'text', 'SELECT', 'id website_id event_type pathname referrer_source visitor_id session_id'),
    ('analytics_event', 'text', 'SELECT', 'event_name country device_type browser os'),
    ('analytics_event', 'text', 'SELECT', 'utm_source utm_medium utm_campaign'),
    ('analytics_event', 'timestamp with time zone', 'SELECT', 'timestamp created_at updated_at deleted_at'),
    ('analytics_session', 'text', 'SELECT', 'id website_id session_id'),
    ('analytics_session', 'timestamp with time zone', 'SELECT', 'started_at last_activity_at deleted_at'),
    ('analytics_session', 'timestamp with time zone', 'SELECT,UPDATE', 'ended_at'),
    ('analytics_session', 'timestamp with time zone', 'UPDATE', 'updated_at'),
    ('analytics_session', 'integer', 'SELECT,UPDATE', 'duration_seconds')
),

found_table AS MATERIALIZED (
    SELECT
        needed_table.*,
        found.oid AS table_oid,
        found.relkind,
        partitioned.is_by_timestamp,
        found.relpersistence,
        found.relnamespace
    FROM needed_table
    INNER JOIN pg_catalog.pg_class AS found ON to_regclass(needed_table.table_name) = found.oid
    LEFT JOIN LATERAL (
        SELECT
            stored.partstrat = 'r' AND stored.partnatts = 1 AND part_key.attname = 'timestamp'
            AND needed_table.table_name = 'analytics_event'
            AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_inherits AS child
                INNER JOIN pg_catalog.pg_class AS part ON child.inhrelid = part.oid
                WHERE child.inhparent = found.oid AND part.relkind <> 'r'
            ) AS is_by_timestamp
        FROM pg_catalog.pg_partitioned_table AS stored
        LEFT JOIN pg_catalog.pg_attribute AS part_key
            ON stored.partrelid = part_key.attrelid AND stored.partattrs[0] = part_key.attnum
        WHERE stored.partrelid = found.oid
    ) AS partitioned ON TRUE
),

-- A statement that names a missing table fails as a whole; ts_stat runs one that it is given as text, of type tsvector.
installed AS MATERIALIZED (
    SELECT
        found_table.relnamespace,
        latest.word::bigint AS release_number
    FROM found_table
    LEFT JOIN ts_stat(
        CASE
            WHEN has_table_privilege(to_regclass('analytics_schema_version'), 'SELECT') THEN '
                SELECT array_to_tsvector(ARRAY[coalesce(max(number::bigint << 32 | coalesce(definitions, 0)), 0)::text])
                FROM analytics_schema_version'
            ELSE 'SELECT NULL::tsvector'
        END
    ) AS latest ON TRUE
    WHERE found_table.table_name = 'analytics_schema_version'
),

right_table AS MATERIALIZED (
    SELECT
        found_table.*,
        found_table.table_oid::regclass AS full_name
    FROM found_table
    LEFT JOIN installed ON found_table.relnamespace = installed.relnamespace
    WHERE
        NOT found_table.is_ours
        OR coalesce(installed.release_number = %(version)s::bigint, installed.relnamespace IS NOT NULL)
),

right_column AS MATERIALIZED (
    SELECT
        needed_column.type_name,
        needed_column.privileges,
        wanted.column_name,
        right_table.table_oid,
        right_table.full_name,
        right_table.relkind,
        found.attnum,
        found.attcollation,
        found.atttypid AS type_oid,
        format_type(found.atttypid, found.atttypmod) AS found_type
    FROM needed_column
    CROSS JOIN LATERAL string_to_table(needed_column.column_names, ' ') AS wanted (column_name)
    INNER JOIN right_table ON needed_column.table_name = right_table.table_name
    LEFT JOIN pg_catalog.pg_attribute AS found
        ON right_table.table_oid = found.attrelid AND wanted.column_name = found.attname AND NOT found.attisdropped
),

problem (problem) AS MATERIALIZED (
    SELECT format(law.sentence, current_setting('server_encoding'))
    FROM (
        VALUES
        (
            pg_is_in_recovery(),
            'The database is a standby, which can only be read: let the connection lead to its primary server.'
        ),
        (
            current_setting('server_encoding') <> 'UTF8',
            'The database has the encoding %%s and the jobs need UTF8: restore a dump of it into one of that encoding.'
        ),
        -- A session has the jobs' own settings, but for those that only a superuser may set.
        (
            current_setting('session_replication_role') <> 'origin',
            'Setting session_replication_role is not "origin", so triggers do not fire: reset it for role and database.'
        ),
        (
            'on' IN (current_setting('zero_damaged_pages'), current_setting('ignore_checksum_failure')),
            'Setting zero_damaged_pages or ignore_checksum_failure is on, so rows may be missing: switch both off.'
        )
    ) AS law (is_broken, sentence)
    WHERE law.is_broken

    UNION ALL

    SELECT
        CASE
            WHEN installed.release_number >> 32 > %(version)s::bigint >> 32
                THEN 'The schema in the database is of a newer release than the jobs: update the jobs.'
            ELSE 'The schema in the database is of another release than the jobs: run "make schema".'
        END
    FROM installed
    WHERE installed.release_number <> %(version)s::bigint

    UNION ALL

    SELECT
        format(
            CASE
                WHEN NOT has_schema_privilege(elsewhere.oid, 'USAGE')
                    THEN
                        'Role %%1$I lacks USAGE on schema %%2$I: run "make schema" and make the role a member of '
                        || 'analytics_jobs.'
                WHEN elsewhere.oid IS NOT NULL
                    THEN
                        'Table %%2$I.%%3$I is not the first of its name along search_path "%%4$s": name the jobs'' '
                        || 'schema first in the connection''s, then the application''s.'
                WHEN needed_table.is_ours
                    THEN 'The jobs'' schema is not in the database, or of an older release: run "make schema".'
                ELSE 'Table %%3$I is missing: the application makes it; let the connection lead to its database.'
            END,
            current_user, elsewhere.nspname, needed_table.table_name, current_setting('search_path')
        )
    FROM needed_table
    LEFT JOIN right_table ON needed_table.table_name = right_table.table_name
    LEFT JOIN installed ON TRUE
    LEFT JOIN LATERAL (
        SELECT pg_namespace.*
        FROM pg_catalog.pg_class
        INNER JOIN pg_catalog.pg_namespace ON pg_class.relnamespace = pg_namespace.oid
        WHERE
            pg_class.relname = needed_table.table_name
            AND (NOT needed_table.is_ours OR pg_namespace.oid = coalesce(installed.relnamespace, pg_namespace.oid))
        ORDER BY pg_namespace.nspname LIMIT 1
    ) AS elsewhere ON TRUE
    WHERE
        right_table.table_oid IS NULL
        AND (
            NOT needed_table.is_ours
            OR CASE
                WHEN needed_table.table_name = 'analytics_schema_version' THEN installed.relnamespace IS NULL
                ELSE installed.release_number = %(version)s::bigint
            END
        )

    UNION ALL

    SELECT format(law.sentence, right_table.full_name, current_user, parent.children)
    FROM right_table
    CROSS JOIN
        LATERAL (
            SELECT string_agg(child.inhrelid::regclass::text, ', ') AS children FROM pg_catalog.pg_inherits AS child
            WHERE child.inhparent = right_table.table_oid
        ) AS parent
    CROSS JOIN
        LATERAL (
            VALUES
            (
                right_table.relkind <> 'r'
                AND right_table.table_name <> 'analytics_traffic_daily'
                AND right_table.is_by_timestamp IS NOT TRUE
                -- The bits of UPDATE and DELETE; a view may do with a trigger what PostgreSQL cannot do through it.
                AND NOT (
                    right_table.relkind = 'v'
                    AND NOT right_table.is_ours
                    AND pg_relation_is_updatable(right_table.table_oid, TRUE) & 20 = 20
                ),
                '%%1$s is partitioned, foreign or a view, and the jobs know only how to work with an ordinary table, '
                || 'a view that rows can be updated and deleted through, or an analytics_event with ordinary '
                || 'partitions by ranges of timestamp.'
            ),
            (
                right_table.relkind = 'r' AND parent.children IS NOT NULL,
                'Rows of tables that inherit from %%1$s would be taken for its own: ALTER TABLE %%3$s NO INHERIT %%1$s.'
            ),
            (
                row_security_active(right_table.table_oid),
                'Row level security of table %%1$s would hide rows from role %%2$I: run "ALTER ROLE %%2$I BYPASSRLS".'
            ),
            (
                right_table.is_ours AND right_table.relpersistence = 'u',
                'Table %%1$s is unlogged, and a crash of the server would empty it: run "ALTER TABLE %%1$s SET LOGGED".'
            )
        ) AS law (is_broken, sentence)
    WHERE law.is_broken

    UNION ALL

    SELECT
        format(
            law.sentence,
            right_column.full_name,
            right_column.column_name,
            right_column.found_type,
            right_column.type_name
        )
    FROM right_column
    CROSS JOIN
        LATERAL (
            VALUES
            (
                right_column.attnum IS NULL,
                'Table %%1$s has no column %%2$I: check the connection''s search_path and the application''s version.'
            ),
            (
                right_column.type_oid <> right_column.type_name::regtype,
                'Column %%2$I of table %%1$s has type %%3$s instead of %%4$s: check the application''s version.'
            ),
            (
                EXISTS (
                    SELECT FROM pg_catalog.pg_collation AS collation_used
                    WHERE collation_used.oid = right_column.attcollation AND NOT collation_used.collisdeterministic
                ),
                'Column %%2$I of table %%1$s has a collation that takes different texts for equal: give it another one.'
            ),
            (
                -- Of a view, whoever made it knows.
                right_column.column_name = 'id' AND right_column.relkind <> 'v' AND NOT EXISTS (
                    SELECT FROM pg_catalog.pg_index AS candidate
                    WHERE
                        candidate.indrelid = right_column.table_oid
                        AND candidate.indkey[0] = right_column.attnum
                        AND (
                            candidate.indnkeyatts = 1
                            -- No other index of a partitioned table can be unique.
                            OR candidate.indnkeyatts = 2 AND EXISTS (
                                SELECT FROM pg_catalog.pg_partitioned_table AS partitioned
                                WHERE
                                    partitioned.partrelid = candidate.indrelid
                                    AND candidate.indkey[1] = partitioned.partattrs[0]
                            )
                        )
                        AND candidate.indisunique
                        AND candidate.indisvalid
                        AND candidate.indpred IS NULL
                ),
                'Column %%2$I of table %%1$s, by which rows are deleted, is not unique: make it the primary key.'
            )
        ) AS law (is_broken, sentence)
    WHERE law.is_broken

    UNION ALL

    SELECT
        format(
            'Role %%I lacks %%s: run "make schema" and make the role a member of analytics_jobs.',
            current_user, lacking.privilege
        )
    FROM (
        SELECT format('%%s on table %%s', privilege, right_table.full_name) AS privilege
        FROM right_table
        CROSS JOIN LATERAL string_to_table(right_table.privileges, ',') AS privilege
        WHERE NOT has_table_privilege(right_table.table_oid, privilege)
        UNION
        SELECT format('%%s on table %%s', privilege, right_column.full_name) AS privilege
        FROM right_column
        CROSS JOIN LATERAL string_to_table(right_column.privileges, ',') AS privilege
        WHERE NOT has_column_privilege(right_column.table_oid, right_column.attnum, privilege)
        UNION
        SELECT format('EXECUTE on function %%s', pg_proc.oid::regprocedure) AS privilege
        FROM pg_catalog.pg_proc
        INNER JOIN installed ON pg_proc.pronamespace = installed.relnamespace
        WHERE starts_with(pg_proc.proname, 'analytics_') AND NOT has_function_privilege(pg_proc.oid, 'EXECUTE')
    ) AS lacking
)

SELECT problem.problem FROM problem
UNION ALL
-- Where all of this is well, the rest is for a function of our schema to say.
SELECT found.word AS problem
FROM (
    SELECT
        CASE
            WHEN count(*) > 0 THEN 'SELECT NULL::tsvector'
            ELSE 'SELECT array_to_tsvector(array_agg(found)) FROM analytics_problems() AS found'
        END AS query
    FROM problem
) AS further
CROSS JOIN LATERAL ts_stat(further.query) AS found
ORDER BY problem;
