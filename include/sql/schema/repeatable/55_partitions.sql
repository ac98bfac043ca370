-- Partitions of analytics_event, where it has some: a range of timestamp each.

-- The partitions, with the bounds of their range.
CREATE OR REPLACE FUNCTION analytics_event_partitions()
RETURNS TABLE (
    partition regclass, starts_at timestamptz, ends_at timestamptz, bound text, is_default boolean, is_pending boolean
)
LANGUAGE sql STABLE ROWS 20 AS $$
    SELECT
        child.inhrelid::regclass,
        -- MINVALUE and MAXVALUE are not in quotation marks.
        coalesce(substring(stored.bound FROM 'FROM \(''([^'']*)''\)')::timestamptz, '-infinity'),
        coalesce(substring(stored.bound FROM 'TO \(''([^'']*)''\)')::timestamptz, 'infinity'),
        stored.bound,
        stored.bound = 'DEFAULT',
        child.inhdetachpending
    FROM pg_catalog.pg_inherits AS child
    INNER JOIN pg_catalog.pg_class AS relation ON child.inhrelid = relation.oid
    CROSS JOIN LATERAL pg_get_expr(relation.relpartbound, relation.oid) AS stored (bound)
    WHERE child.inhparent = 'analytics_event'::regclass AND relation.relispartition
$$;

-- How many events a partition has, and why it must not be dropped as a whole (NULL: it may), but for the general
-- cutoff, which is not asked here. An event may go if it is on the list, as one that was live or as one that was and
-- still is soft-deleted, is still in the time of its batch, and no policy and no hold keeps it. Without is_exact, the
-- list is only asked whether it has as many. A row's hash beside an archived one would be compared in the same query.
-- Nested loops would look into the list of all batches for each event.
CREATE OR REPLACE FUNCTION analytics_why_kept(
    partition regclass, starts_at timestamptz, ends_at timestamptz, retention_days integer, is_exact boolean,
    OUT events bigint, OUT reason text
)
LANGUAGE plpgsql SET enable_nestloop = off SET enable_mergejoin = off AS $$
DECLARE
    kept text;
    listed bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', partition) INTO events;
    EXECUTE format(
        $query$
            SELECT min(website.website_id)
            FROM (
                SELECT own.website_id, analytics_cutoff(own.website_id, $1) AS cutoff
                FROM (
                    SELECT policy.website_id FROM analytics_website_policy AS policy
                    UNION
                    SELECT zone.website_id FROM analytics_timezone AS zone WHERE zone.website_id IS NOT NULL
                ) AS own
            ) AS website
            WHERE
                EXISTS (
                    SELECT FROM %1$s AS event
                    WHERE event.website_id = website.website_id AND event.timestamp >= website.cutoff
                    AND event.deleted_at IS NULL
                    OFFSET 0
                )
                OR EXISTS (
                    SELECT FROM %1$s AS event
                    WHERE event.website_id = website.website_id AND event.timestamp >= website.cutoff
                    AND event.deleted_at IS NOT NULL
                    OFFSET 0
                )
        $query$,
        partition
    ) INTO kept USING retention_days;
    IF kept IS NOT NULL THEN
        reason := format('a legal hold or the retention of website %s keeps events of it', kept);
        RETURN;
    END IF;
    IF is_exact THEN
        EXECUTE format(
            $query$
                WITH listed AS MATERIALIZED (
                    SELECT unnest(batch.ids) AS id, batch.first_at, batch.last_at, TRUE AS was_live
                    FROM analytics_purge_batch AS batch
                    WHERE batch.kind = 'event' AND batch.last_at >= $1 AND batch.first_at < $2
                    UNION ALL
                    SELECT unnest(batch.deleted_ids) AS id, batch.first_at, batch.last_at, FALSE AS was_live
                    FROM analytics_purge_batch AS batch
                    WHERE batch.kind = 'event' AND batch.last_at >= $1 AND batch.first_at < $2
                )

                SELECT $3 - count(*)
                FROM %s AS event
                WHERE NOT EXISTS (
                    SELECT FROM listed
                    WHERE
                        listed.id = event.id
                        AND event.timestamp BETWEEN listed.first_at AND listed.last_at
                        AND (listed.was_live OR event.deleted_at IS NOT NULL)
                )
            $query$,
            partition
        ) INTO listed USING starts_at, ends_at, events;
    ELSE
        SELECT coalesce(sum(batch.rows), 0) INTO listed
        FROM analytics_purge_batch AS batch
        WHERE batch.kind = 'event' AND batch.last_at >= starts_at AND batch.first_at < ends_at;
    END IF;
    IF listed < events THEN
        reason := format('%s of its %s event(s) are not on the list', events - listed, events);
    END IF;
END
$$;

-- Partitions that lie before the general cutoff, and why their events go in batches (NULL: the partition is dropped);
-- and those that an earlier run has detached and not dropped.
-- On a dry run nothing is on the list, and what else may keep an event is asked. What was to be detached and never was
-- is forgotten.
CREATE OR REPLACE FUNCTION analytics_expired_partitions(retention_days integer, dry_run boolean)
RETURNS TABLE (partition regclass, starts_at timestamptz, events bigint, reason text)
LANGUAGE sql AS $$
    DELETE FROM analytics_detached_partition AS remembered
    WHERE remembered.partition IN (
        SELECT attached.partition FROM analytics_event_partitions() AS attached WHERE NOT attached.is_pending
    );
    SELECT
        expired.partition,
        expired.starts_at,
        kept.events,
        coalesce(
            way.reason, CASE WHEN NOT (dry_run AND kept.reason LIKE '% are not on the list') THEN kept.reason END
        )
    FROM analytics_event_partitions() AS expired
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN EXISTS (SELECT FROM analytics_event_partitions() AS other WHERE other.is_default)
                    THEN 'analytics_event has a default partition, beside which none can be detached concurrently'
                WHEN
                    EXISTS (
                        SELECT FROM pg_catalog.pg_class AS owned
                        WHERE
                            owned.oid IN ('analytics_event'::regclass, expired.partition)
                            AND NOT pg_has_role(owned.relowner, 'USAGE')
                    )
                    THEN format('role %I is not a member of the owner of analytics_event', current_user)
                WHEN
                    EXISTS (
                        -- 8 stands for DELETE.
                        SELECT FROM pg_catalog.pg_trigger AS trigger
                        WHERE trigger.tgrelid = expired.partition AND NOT trigger.tgisinternal AND trigger.tgtype & 8 > 0
                    )
                    THEN 'it has a trigger for deleted rows'
            END AS reason
    ) AS way
    -- Who does not own the partitions may not read them by their names.
    LEFT JOIN LATERAL (
        SELECT asked.*
        FROM analytics_why_kept(
            expired.partition, expired.starts_at, expired.ends_at, analytics_expired_partitions.retention_days, FALSE
        ) AS asked
        WHERE way.reason IS NULL
    ) AS kept ON TRUE
    WHERE
        NOT expired.is_default
        AND NOT expired.is_pending
        AND expired.ends_at <= analytics_cutoff(NULL, analytics_expired_partitions.retention_days)
    UNION ALL
    SELECT
        remembered.partition,
        remembered.starts_at,
        NULL,
        NULL
    FROM analytics_detached_partition AS remembered
$$;

-- Makes sure that each event of a partition may go, remembers it, and returns the statement that detaches it; NULL if
-- it is not to be detached, or was before. No function can run that statement.
CREATE OR REPLACE FUNCTION analytics_begin_detach(
    partition regclass, retention_days integer, OUT statement text, OUT log text
)
LANGUAGE plpgsql AS $$
DECLARE
    attached record;
    kept record;
BEGIN
    SELECT stored.* INTO attached
    FROM analytics_event_partitions() AS stored
    WHERE stored.partition = analytics_begin_detach.partition;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF attached.is_pending THEN
        statement := format('ALTER TABLE %s DETACH PARTITION %s FINALIZE', 'analytics_event'::regclass, partition);
        RETURN;
    END IF;
    SELECT * INTO kept
    FROM analytics_why_kept(partition, attached.starts_at, attached.ends_at, retention_days, TRUE);
    DELETE FROM analytics_detached_partition AS remembered
    WHERE remembered.partition = analytics_begin_detach.partition;
    IF kept.reason IS NOT NULL OR attached.ends_at > analytics_cutoff(NULL, retention_days) THEN
        log := format('Partition %s goes in batches: %s', partition, coalesce(kept.reason, 'it has not expired'));
        RETURN;
    END IF;
    INSERT INTO analytics_detached_partition (partition, starts_at, ends_at, bound)
    VALUES (partition, attached.starts_at, attached.ends_at, attached.bound);
    statement := format('ALTER TABLE %s DETACH PARTITION %s CONCURRENTLY', 'analytics_event'::regclass, partition);
END
$$;

-- Drops a detached partition and takes its batches off the list, if still each event of it may go; else attaches it
-- again. Nobody else can write into it any more: what was written meanwhile is seen.
CREATE OR REPLACE FUNCTION analytics_drop_detached(
    partition regclass, retention_days integer, OUT events bigint, OUT log text
)
LANGUAGE plpgsql AS $$
DECLARE
    remembered record;
    kept record;
BEGIN
    events := 0;
    DELETE FROM analytics_detached_partition AS stored
    WHERE
        stored.partition = analytics_drop_detached.partition
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_class AS relation
            WHERE relation.oid = stored.partition AND relation.relispartition
        )
    RETURNING * INTO remembered;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM pg_catalog.pg_class AS relation WHERE relation.oid = partition) THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', partition);
    SELECT * INTO kept
    FROM analytics_why_kept(partition, remembered.starts_at, remembered.ends_at, retention_days, TRUE);
    IF kept.reason IS NULL AND remembered.ends_at > analytics_cutoff(NULL, retention_days) THEN
        kept.reason := 'the retention keeps it';
    END IF;
    IF kept.reason IS NULL THEN
        BEGIN
            log := format(
                'Dropped partition %s of %s events', partition, to_char(kept.events, 'FM999,999,999,999,990')
            );
            EXECUTE format('DROP TABLE %s', partition);
            DELETE FROM analytics_purge_batch AS batch
            WHERE
                batch.kind = 'event' AND batch.first_at >= remembered.starts_at AND batch.last_at < remembered.ends_at;
            events := kept.events;
            RETURN;
        EXCEPTION
            WHEN dependent_objects_still_exist OR insufficient_privilege THEN
                kept.reason := sqlerrm;
        END;
    END IF;
    EXECUTE format('ALTER TABLE analytics_event ATTACH PARTITION %s %s', partition, remembered.bound);
    log := format('Partition %s was attached again and goes in batches: %s', partition, kept.reason);
END
$$;

-- Makes the next partitions of analytics_event where that was set up, as its owner. Returns what it did, or why it
-- could not: days are to be counted all the same, and there is time until the alert about it. Attaching a table keeps
-- nobody waiting, whereas CREATE TABLE ... PARTITION OF would; PostgreSQL makes its indexes.
CREATE OR REPLACE FUNCTION analytics_add_partitions() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    way analytics_partitioning;
    parent pg_catalog.pg_class;
    zone text := analytics_zone(NULL, (now() AT TIME ZONE 'UTC')::date);
    newest timestamptz;
    next timestamptz;
    first_day date;
    name text;
    made text[];
BEGIN
    SELECT * INTO way FROM analytics_partitioning;
    SELECT * INTO parent FROM pg_catalog.pg_class AS stored WHERE stored.oid = 'analytics_event'::regclass;
    IF way.every IS NULL OR parent.relkind <> 'p' THEN
        RETURN NULL;
    END IF;
    SELECT max(stored.ends_at) INTO newest FROM analytics_event_partitions() AS stored WHERE NOT stored.is_default;
    IF EXISTS (SELECT FROM analytics_event_partitions() AS stored WHERE stored.is_default) THEN
        RETURN 'No partitions were made: analytics_event has a default partition, which would be read for each of them.';
    END IF;
    WHILE newest < now() + make_interval(days => way.ahead) LOOP
        first_day := (newest AT TIME ZONE zone)::date;
        next := analytics_midnight(
            (date_trunc(way.every, first_day::timestamp) + ('1 ' || way.every)::interval)::date, zone
        );
        name := 'analytics_event_'
            || to_char(first_day, CASE way.every WHEN 'month' THEN 'YYYY_MM' ELSE 'YYYY_MM_DD' END);
        IF to_regclass(format('%s.%I', parent.relnamespace::regnamespace, name)) IS NOT NULL THEN
            name := name || to_char(newest AT TIME ZONE 'UTC', '_HH24MI');
        END IF;
        name := format('%s.%I', parent.relnamespace::regnamespace, name);
        EXECUTE format(
            'CREATE TABLE %s (LIKE analytics_event INCLUDING ALL EXCLUDING INDEXES)', name
        );
        EXECUTE format('ALTER TABLE %s OWNER TO %s', name, parent.relowner::regrole);
        EXECUTE format(
            'ALTER TABLE analytics_event ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', name, newest, next
        );
        made := made || name;
        newest := next;
    END LOOP;
    RETURN 'Made the partitions ' || array_to_string(made, ', ');
EXCEPTION
    WHEN OTHERS THEN
        RETURN format('No partitions were made: %s (%s).', sqlerrm, sqlstate);
END
$$;
