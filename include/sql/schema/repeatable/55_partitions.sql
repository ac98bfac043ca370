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

-- The hash of an event on the list: which one it is, when it was, and whether it was live.
CREATE OR REPLACE FUNCTION analytics_listed_hash(id text, instant timestamptz, is_live boolean) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended(id, timestamp_hash_extended(instant AT TIME ZONE 'UTC', is_live::integer))
$$;

-- How many events a partition has, and why it must not be dropped as a whole (NULL: it may), but for the general
-- cutoff, which is not asked here. It may if no policy and no hold keeps an event of it, and if its events are just
-- those of its batches: as many, and of the same hash, which is that of the archive, where there is one. To look for
-- each of them in the list would take several times as long. Without is_exact, only their number is compared.
CREATE OR REPLACE FUNCTION analytics_why_kept(
    partition regclass, starts_at timestamptz, ends_at timestamptz, retention_days integer, is_exact boolean,
    OUT events bigint, OUT reason text
)
LANGUAGE plpgsql AS $$
DECLARE
    kept text;
    listed record;
    events_hash bigint;
BEGIN
    SELECT
        coalesce(sum(batch.rows), 0) AS events,
        coalesce(bool_or(batch.archived IS NOT NULL), FALSE) AS has_archive,
        coalesce(bool_or(batch.first_at < starts_at OR batch.last_at >= ends_at), FALSE) AS reaches_over,
        bit_xor(
            CASE
                WHEN NOT is_exact THEN NULL
                WHEN batch.archived IS NULL THEN batch.listed_hash
                ELSE (SELECT bit_xor(event.hash) FROM unnest(batch.archived) AS event (hash))
            END
        ) AS hash
    INTO listed
    FROM analytics_purge_batch AS batch
    WHERE batch.kind = 'event' AND batch.last_at >= starts_at AND batch.first_at < ends_at;
    EXECUTE format(
        'SELECT count(*), %s FROM %s AS event',
        CASE
            WHEN NOT is_exact THEN 'NULL::bigint'
            WHEN listed.has_archive THEN 'bit_xor(analytics_row_hash((event.*)::text))'
            ELSE 'bit_xor(analytics_listed_hash(event.id, event.timestamp, event.deleted_at IS NULL))'
        END,
        partition
    ) INTO events, events_hash;
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
    reason := CASE
        WHEN kept IS NOT NULL
            THEN format('a legal hold or the retention of website %s keeps events of it', kept)
        WHEN listed.events < events
            THEN format('%s of its %s event(s) are not on the list', events - listed.events, events)
        WHEN listed.reaches_over THEN 'a batch of the list reaches over its bounds'
        WHEN listed.events > events OR listed.hash IS DISTINCT FROM events_hash
            THEN 'its events are not just those on the list, or not as the archive has them'
    END;
END
$$;

-- Why a partition cannot be detached, whatever its events are; NULL if it can be.
CREATE OR REPLACE FUNCTION analytics_detach_obstacle(partition regclass) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT
        CASE
            WHEN EXISTS (SELECT FROM analytics_event_partitions() AS other WHERE other.is_default)
                THEN 'analytics_event has a default partition, beside which none can be detached concurrently'
            WHEN
                EXISTS (
                    SELECT FROM pg_catalog.pg_class AS owned
                    WHERE
                        owned.oid IN ('analytics_event'::regclass, partition)
                        AND NOT pg_has_role(owned.relowner, 'USAGE')
                )
                THEN format('role %I is not a member of the owner of analytics_event', current_user)
            WHEN
                EXISTS (
                    -- 8 stands for DELETE.
                    SELECT FROM pg_catalog.pg_trigger AS trigger
                    WHERE trigger.tgrelid = partition AND NOT trigger.tgisinternal AND trigger.tgtype & 8 > 0
                )
                THEN 'it has a trigger for deleted rows'
            ELSE (
                -- PostgreSQL detaches one at a time.
                SELECT
                    format(
                        'somebody else has begun to detach %1$s: ALTER TABLE %2$s DETACH PARTITION %1$s FINALIZE',
                        pending.partition, 'analytics_event'::regclass
                    )
                FROM analytics_event_partitions() AS pending
                WHERE
                    pending.is_pending
                    AND pending.partition NOT IN (
                        SELECT remembered.partition FROM analytics_detached_partition AS remembered
                    )
            )
        END
$$;

-- Partitions that lie before the general cutoff, and why their events go in batches (NULL: the partition is dropped);
-- and those that an earlier run has begun to detach and not dropped.
-- On a dry run nothing is on the list, and what else may keep an event is asked.
CREATE OR REPLACE FUNCTION analytics_expired_partitions(retention_days integer, dry_run boolean)
RETURNS TABLE (partition regclass, starts_at timestamptz, events bigint, reason text)
LANGUAGE sql AS $$
    SELECT
        expired.partition,
        expired.starts_at,
        kept.events,
        coalesce(
            way.reason, CASE WHEN NOT (dry_run AND kept.reason LIKE '% are not on the list') THEN kept.reason END
        )
    FROM analytics_event_partitions() AS expired
    CROSS JOIN LATERAL analytics_detach_obstacle(expired.partition) AS way (reason)
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
        AND expired.partition NOT IN (SELECT begun.partition FROM analytics_detached_partition AS begun)
    UNION ALL
    SELECT
        remembered.partition,
        remembered.starts_at,
        NULL,
        NULL
    FROM analytics_detached_partition AS remembered
$$;

-- Remembers a partition that may go as far as that can be told without a look at each event, which is taken when nobody
-- can write into it any more, and returns the statement that detaches it; NULL if it is not to be detached, or was
-- before. No function can run that statement. From here to the end of the session no other run detaches or drops any,
-- nor lets this one be forgotten.
CREATE OR REPLACE FUNCTION analytics_begin_detach(
    partition regclass, retention_days integer, OUT statement text, OUT log text
)
LANGUAGE plpgsql AS $$
DECLARE
    attached record;
    reason text;
    users text[];
BEGIN
    -- Before anything of the table is locked, which DETACH of another run would wait for.
    PERFORM pg_advisory_lock(hashtextextended('web_analytics.partitions', 0));
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
    reason := analytics_detach_obstacle(partition);
    IF reason IS NULL THEN
        reason := (
            SELECT kept.reason
            FROM analytics_why_kept(partition, attached.starts_at, attached.ends_at, retention_days, FALSE) AS kept
        );
    END IF;
    IF attached.ends_at > analytics_cutoff(NULL, retention_days) THEN
        reason := 'it has not expired';
    END IF;
    -- While DETACH waits for those who use the table, nobody sees the events of the partition. So it is not begun beside
    -- a long transaction, such as that of a backup.
    FOR turn IN 1..50 LOOP
        EXIT WHEN reason IS NOT NULL;
        users := (
            SELECT array_agg(held.virtualtransaction) FROM pg_catalog.pg_locks AS held
            WHERE
                held.relation = 'analytics_event'::regclass
                AND held.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                AND held.pid <> pg_backend_pid()
                AND (users IS NULL OR held.virtualtransaction = any(users))
        );
        EXIT WHEN users IS NULL;
        PERFORM pg_sleep(0.1);
    END LOOP;
    IF users IS NOT NULL THEN
        reason := 'a transaction has used analytics_event for 5 seconds, and to detach it is to wait for its end';
    END IF;
    DELETE FROM analytics_detached_partition AS remembered
    WHERE remembered.partition = analytics_begin_detach.partition;
    IF reason IS NOT NULL THEN
        log := format('Partition %s goes in batches: %s', partition, reason);
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
    PERFORM pg_advisory_lock(hashtextextended('web_analytics.partitions', 0));
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
            DELETE FROM analytics_purge_batch AS batch
            WHERE
                batch.kind = 'event' AND batch.first_at >= remembered.starts_at AND batch.last_at < remembered.ends_at;
            EXECUTE format('DROP TABLE %s', partition);
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
LANGUAGE plpgsql SECURITY DEFINER AS $$
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
        -- After a long time without any, the next runs go on: a transaction cannot have locks without end.
        EXIT WHEN cardinality(made) = 60;
    END LOOP;
    RETURN 'Made the partitions ' || array_to_string(made, ', ');
EXCEPTION
    WHEN OTHERS THEN
        RETURN format('No partitions were made: %s (%s).', sqlerrm, sqlstate);
END
$$;
