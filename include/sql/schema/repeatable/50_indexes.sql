-- What the database has to have beside our tables and functions.

-- The indexes that the jobs need on the application's tables, and do not find; definition makes one. Those that the
-- application makes itself are among them, for a table may have been restored or copied without. An index serves,
-- whatever its name, if it is valid and has these leading columns and this predicate; without a predicate, only where
-- many rows have to be read anyway. No index has last_activity_at in its columns or its predicate: with one that had,
-- no heartbeat could be a HOT update.
CREATE OR REPLACE FUNCTION analytics_missing_indexes()
RETURNS TABLE (table_name text, index_name text, definition text)
LANGUAGE sql STABLE AS $$
    SELECT
        needed.table_name::text,
        needed.index_name,
        format(
            'CREATE INDEX CONCURRENTLY %I ON %s (%s)%s%s',
            needed.index_name,
            needed.table_name,
            (
                SELECT string_agg(quote_ident(key.name), ', ' ORDER BY key.position)
                FROM unnest(needed.columns) WITH ORDINALITY AS key (name, position)
            ),
            ' INCLUDE (' || needed.included || ')',
            ' WHERE ' || needed.predicate
        )
    FROM (
        VALUES
        -- Days of a website, and their events.
        (
            to_regclass('analytics_event'), 'analytics_event_live_idx',
            ARRAY['website_id', 'timestamp'], NULL, 'deleted_at IS NULL', TRUE
        ),
        -- The same of soft-deleted events, and which of the others were edited. They cost an insert nothing.
        (
            to_regclass('analytics_event'), 'analytics_event_deleted_idx',
            ARRAY['website_id', 'timestamp'], NULL, 'deleted_at IS NOT NULL', FALSE
        ),
        (
            to_regclass('analytics_event'), 'analytics_event_edited_idx',
            ARRAY['website_id', 'timestamp'], 'id, updated_at', 'updated_at <> created_at AND deleted_at IS NULL', FALSE
        ),
        -- Whether an event of a session is left.
        (
            to_regclass('analytics_event'), 'analytics_event_session_idx',
            ARRAY['session_id'], NULL, 'deleted_at IS NULL', TRUE
        ),
        (
            to_regclass('analytics_event'), 'analytics_event_deleted_session_idx',
            ARRAY['session_id'], NULL, 'deleted_at IS NOT NULL', TRUE
        ),
        -- The oldest events of all, and how many there are by their age.
        (
            to_regclass('analytics_event'), 'analytics_event_timestamp_id_idx',
            ARRAY['timestamp', 'id'], 'website_id', NULL, TRUE
        ),
        -- Idle sessions: the open ones are few.
        (
            to_regclass('analytics_session'), 'analytics_session_open_idx',
            ARRAY['started_at'], NULL, 'ended_at IS NULL AND deleted_at IS NULL', FALSE
        )
    ) AS needed (table_name, index_name, columns, included, predicate, or_without)
    WHERE
        needed.table_name IS NOT NULL
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
                        AND method.amname = 'btree'
                        AND key.collation_oid = stored.attcollation
                )
        )
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
