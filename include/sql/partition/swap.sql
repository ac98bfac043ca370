-- The statements that make analytics_event the first partition of a new table of its name, in their order. The caller
-- has locked it, and runs them in one transaction. None of them reads the events: constraint check_name says what the
-- partition's range asks for, and the partition has all indexes already.
-- Params: bound (timestamptz), name (of the partition), key (the unique index on id and timestamp), check_name.
-- Result: command (text).
WITH relation AS (
    SELECT
        stored.*,
        stored.relnamespace::regnamespace AS schema_name,
        format('%%s.%%I', stored.relnamespace::regnamespace, stored.relname) AS full_name,
        format('%%s.%%I', stored.relnamespace::regnamespace, %(name)s::text) AS part_name
    FROM pg_catalog.pg_class AS stored
    WHERE stored.oid = 'analytics_event'::regclass
),

index AS (
    SELECT
        name.relname,
        stored.indisprimary,
        stored.indexrelid,
        left(name.relname, 57) || '_first' AS new_name,
        regexp_replace(pg_get_indexdef(stored.indexrelid), '^.*? USING ', '') AS shape
    FROM pg_catalog.pg_index AS stored
    INNER JOIN pg_catalog.pg_class AS name ON stored.indexrelid = name.oid
    INNER JOIN relation ON stored.indrelid = relation.oid
    WHERE stored.indisvalid AND name.relname <> %(key)s::text
),

statement (place, text) AS (
    SELECT
        1,
        format('ALTER TABLE %%s RENAME TO %%I', relation.full_name, %(name)s::text)
    FROM relation
    UNION ALL
    SELECT
        2,
        format('ALTER INDEX %%s.%%I RENAME TO %%I', relation.schema_name, index.relname, index.new_name)
    FROM index
    CROSS JOIN relation
    WHERE NOT index.indisprimary
    UNION ALL
    SELECT
        3,
        format(
            'ALTER TABLE %%s DROP CONSTRAINT %%I, ADD CONSTRAINT %%I PRIMARY KEY USING INDEX %%I',
            relation.part_name, index.relname, index.new_name, %(key)s::text
        )
    FROM index
    CROSS JOIN relation
    WHERE index.indisprimary
    UNION ALL
    SELECT
        4,
        format(
            'CREATE TABLE %%s (LIKE %%s INCLUDING ALL EXCLUDING INDEXES, CONSTRAINT %%I PRIMARY KEY (id, timestamp)) '
            || 'PARTITION BY RANGE (timestamp)',
            relation.full_name, relation.part_name, index.relname
        )
    FROM index
    CROSS JOIN relation
    WHERE index.indisprimary
    UNION ALL
    SELECT
        5,
        format('ALTER TABLE %%s DROP CONSTRAINT %%I', relation.full_name, %(check_name)s::text)
    FROM relation
    UNION ALL
    SELECT
        6,
        format(
            'ALTER TABLE %%s ATTACH PARTITION %%s FOR VALUES FROM (MINVALUE) TO (%%L)',
            relation.full_name, relation.part_name, %(bound)s::timestamptz
        )
    FROM relation
    UNION ALL
    SELECT
        7,
        format('ALTER TABLE %%s DROP CONSTRAINT %%I', relation.part_name, %(check_name)s::text)
    FROM relation
    UNION ALL
    SELECT
        8,
        format('CREATE INDEX %%I ON %%s USING %%s', index.relname, relation.full_name, index.shape)
    FROM index
    CROSS JOIN relation
    WHERE NOT index.indisprimary
    UNION ALL
    SELECT
        9,
        format('COMMENT ON TABLE %%s IS %%L', relation.full_name, obj_description(relation.oid, 'pg_class'))
    FROM relation
    UNION ALL
    SELECT
        10,
        format(
            'GRANT %%s%%s ON %%s TO %%s%%s',
            granted.privilege_type,
            ' (' || quote_ident(granted.column_name) || ')',
            relation.full_name,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END,
            CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' END
        )
    FROM relation
    CROSS JOIN
        LATERAL (
            SELECT
                NULL AS column_name,
                acl.*
            FROM aclexplode(relation.relacl) AS acl
            UNION ALL
            SELECT
                stored.attname,
                acl.*
            FROM pg_catalog.pg_attribute AS stored
            CROSS JOIN LATERAL aclexplode(stored.attacl) AS acl
            WHERE stored.attrelid = relation.oid
        ) AS granted
    UNION ALL
    SELECT
        11,
        format('ALTER TABLE %%s OWNER TO %%s', relation.full_name, relation.relowner::regrole)
    FROM relation
)

SELECT statement.text AS command FROM statement
ORDER BY statement.place;
