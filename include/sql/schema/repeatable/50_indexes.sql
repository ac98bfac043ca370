-- What the database has to have beside our tables and functions.

-- The indexes that the jobs need on the application's tables, and do not find; definition makes one. Those that the
-- application makes itself are among them, for a table may have been restored or copied without. An index serves,
-- whatever its name, if it is valid and has these leading columns and this predicate; without a predicate, only where
-- many rows have to be read anyway. No B-tree index has last_activity_at in its columns or its predicate: with one that
-- had, no heartbeat could be a HOT update. A BRIN index allows it from PostgreSQL 16 on, and is made only there.
-- That of a partitioned table is made without its partitions' own ones, which cannot be made concurrently with it, and
-- is valid once all of them are attached. Those that a view needs are for whoever made it: they are of its tables.
CREATE OR REPLACE FUNCTION analytics_missing_indexes()
RETURNS TABLE (table_name text, index_name text, definition text)
LANGUAGE sql STABLE AS $$
    SELECT
        needed.table_name::text,
        needed.index_name,
        format(
            'CREATE INDEX %s%I ON %s%s USING %s (%s)%s%s%s',
            CASE relation.relkind WHEN 'p' THEN '' ELSE 'CONCURRENTLY ' END,
            needed.index_name,
            CASE relation.relkind WHEN 'p' THEN 'ONLY ' END,
            needed.table_name,
            needed.method,
            (
                SELECT string_agg(quote_ident(key.name), ', ' ORDER BY key.position)
                FROM unnest(needed.columns) WITH ORDINALITY AS key (name, position)
            ),
            ' INCLUDE (' || needed.included || ')',
            CASE needed.method WHEN 'brin' THEN ' WITH (pages_per_range = 32, autosummarize = on)' END,
            ' WHERE ' || needed.predicate
        )
    FROM (
        VALUES
        -- Days of a website, and their events.
        (
            to_regclass('analytics_event'), 'analytics_event_live_idx',
            'btree', ARRAY['website_id', 'timestamp'], NULL, 'deleted_at IS NULL', TRUE
        ),
        -- The same of soft-deleted events, and which of the others were edited. They cost an insert nothing.
        (
            to_regclass('analytics_event'), 'analytics_event_deleted_idx',
            'btree', ARRAY['website_id', 'timestamp'], NULL, 'deleted_at IS NOT NULL', FALSE
        ),
        (
            to_regclass('analytics_event'), 'analytics_event_edited_idx',
            'btree', ARRAY['website_id', 'timestamp'], 'id, updated_at', 'updated_at <> created_at AND deleted_at IS NULL', FALSE
        ),
        -- Whether an event of a session is left.
        (
            to_regclass('analytics_event'), 'analytics_event_session_idx',
            'btree', ARRAY['session_id'], NULL, 'deleted_at IS NULL', TRUE
        ),
        (
            to_regclass('analytics_event'), 'analytics_event_deleted_session_idx',
            'btree', ARRAY['session_id'], NULL, 'deleted_at IS NOT NULL', TRUE
        ),
        -- The oldest events of all, and how many there are by their age.
        (
            to_regclass('analytics_event'), 'analytics_event_timestamp_id_idx',
            'btree', ARRAY['timestamp', 'id'], 'website_id', NULL, TRUE
        ),
        -- Idle sessions: the open ones are few.
        (
            to_regclass('analytics_session'), 'analytics_session_open_idx',
            'btree', ARRAY['started_at'], NULL, 'ended_at IS NULL AND deleted_at IS NULL', FALSE
        ),
        -- Sessions that came back after they were closed: where in the table there are any.
        (
            to_regclass('analytics_session'), 'analytics_session_returned_idx',
            'brin', ARRAY['last_activity_at'], NULL, 'ended_at < last_activity_at AND deleted_at IS NULL', FALSE
        )
    ) AS needed (table_name, index_name, method, columns, included, predicate, or_without)
    INNER JOIN pg_catalog.pg_class AS relation ON needed.table_name = relation.oid
    WHERE
        relation.relkind <> 'v'
        AND (needed.method = 'btree' OR current_setting('server_version_num')::integer >= 160000)
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_index AS candidate
            WHERE
                candidate.indrelid = needed.table_name
                AND candidate.indisvalid
                AND (
                    candidate.indpred IS NULL AND needed.or_without
                    -- Its text has parentheses, and quotation marks where the session likes them.
                    OR translate(pg_get_expr(candidate.indpred, candidate.indrelid), '()"', '') = needed.predicate
                )
                AND needed.columns = (
                    SELECT array_agg(stored.attname::text ORDER BY key.position)
                    FROM unnest(candidate.indkey::int2[], candidate.indclass::oid[], candidate.indcollation::oid[])
                        WITH ORDINALITY AS key (attnum, opclass, collation_oid, position)
                    INNER JOIN pg_catalog.pg_attribute AS stored
                        ON candidate.indrelid = stored.attrelid AND key.attnum = stored.attnum
                    INNER JOIN pg_catalog.pg_opclass AS opclass ON key.opclass = opclass.oid
                    INNER JOIN pg_catalog.pg_am AS method ON opclass.opcmethod = method.oid
                    WHERE
                        key.position <= cardinality(needed.columns)
                        AND opclass.opcdefault
                        AND method.amname = needed.method
                        AND key.collation_oid = stored.attcollation
                )
        )
$$;

-- Lets the index of returned sessions forget where there have been some: BRIN itself only ever adds. Reads the whole
-- table, and passes over it while somebody else has a lock that excludes VACUUM.
CREATE OR REPLACE FUNCTION analytics_forget_returned() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    index regclass := to_regclass(format('%s.analytics_session_returned_idx', (
        SELECT relnamespace::regnamespace FROM pg_catalog.pg_class WHERE oid = 'analytics_session'::regclass
    )));
    pages bigint := pg_relation_size('analytics_session') / current_setting('block_size')::integer;
BEGIN
    IF index IS NULL THEN
        RETURN;
    END IF;
    LOCK TABLE analytics_session IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    PERFORM brin_desummarize_range(index, page) FROM generate_series(0, pages, 32) AS page;
    PERFORM brin_summarize_new_values(index);
EXCEPTION
    WHEN lock_not_available THEN NULL;
END
$$;

-- Whether this server has a time zone: one where the database was restored may not. To list them all takes a tenth of
-- a second.
CREATE OR REPLACE FUNCTION analytics_knows_zone(timezone text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM now() AT TIME ZONE timezone;
    RETURN TRUE;
EXCEPTION
    WHEN invalid_parameter_value THEN RETURN FALSE;
END
$$;

-- What check_database.sql asks where our schema is of its version: one sentence per problem.
CREATE OR REPLACE FUNCTION analytics_problems() RETURNS SETOF text
LANGUAGE sql STABLE AS $$
    SELECT
        format(
            'Table %s has no valid index on %s: run "make schema", which makes it.',
            missing.table_name, substring(missing.definition FROM position(' (' IN missing.definition) + 1)
        )
    FROM analytics_missing_indexes() AS missing
    UNION ALL
    SELECT
        format(
            'Time zone "%s" of analytics_timezone is not known to this server: update its time zone data.',
            zone.timezone
        )
    FROM (SELECT DISTINCT stored.timezone FROM analytics_timezone AS stored) AS zone
    WHERE NOT analytics_knows_zone(zone.timezone)
$$;
