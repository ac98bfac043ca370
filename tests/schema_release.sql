CREATE TABLE IF NOT EXISTS analytics_daily_stats (
    website_id text NOT NULL,
    date date NOT NULL,
    total_pageviews bigint NOT NULL,
    total_custom_events bigint NOT NULL,
    unique_visitors bigint NOT NULL,
    unique_sessions bigint NOT NULL,
    top_pages jsonb NOT NULL,
    top_referrers jsonb NOT NULL,
    total_events bigint NOT NULL,
    deleted_events bigint NOT NULL,
    events_hash bigint NOT NULL,
    visitor_sketch bit(49152) NOT NULL,
    timezone text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    aggregated_at timestamptz NOT NULL,
    raw_purged_at timestamptz,
    purge_snapshot pg_snapshot,
    PRIMARY KEY (website_id, date)
);

COMMENT ON COLUMN analytics_daily_stats.date IS 'Calendar day in the time zone of the website';
COMMENT ON COLUMN analytics_daily_stats.total_events IS 'Raw events counted, of every type';
COMMENT ON COLUMN analytics_daily_stats.deleted_events IS 'Soft-deleted raw events of the day, which were not counted';
COMMENT ON COLUMN analytics_daily_stats.events_hash IS
'Exclusive or of the hashes of the counted events'' ids: tells whether the raw events are still the counted ones';
COMMENT ON COLUMN analytics_daily_stats.visitor_sketch IS
'Which visitors there were, for analytics_unique_visitors: see analytics_sketch_bit';
COMMENT ON COLUMN analytics_daily_stats.starts_at IS 'First instant of the day';
COMMENT ON COLUMN analytics_daily_stats.ends_at IS 'First instant after the day';
COMMENT ON COLUMN analytics_daily_stats.aggregated_at IS 'Start of the transaction whose snapshot was counted';
COMMENT ON COLUMN analytics_daily_stats.raw_purged_at IS
'When raw events of this day were first deleted: from then on the row is final';
COMMENT ON COLUMN analytics_daily_stats.purge_snapshot IS
'The snapshot in which the row was proven to count exactly the raw events; events that it does not show came later';

CREATE OR REPLACE FUNCTION analytics_check_timezone(timezone text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF timezone NOT IN (SELECT name FROM pg_catalog.pg_timezone_names) THEN
        RAISE EXCEPTION 'Time zone "%" is not known: write an IANA name such as Europe/Berlin', timezone
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;

CREATE TABLE IF NOT EXISTS analytics_website_policy (
    website_id text PRIMARY KEY,
    timezone text CHECK (analytics_check_timezone(timezone)),
    retention_days integer CHECK (retention_days BETWEEN 1 AND 36500),
    legal_hold boolean NOT NULL DEFAULT FALSE
);

COMMENT ON COLUMN analytics_website_policy.timezone IS
'IANA name of the time zone of the website''s days; NULL: ANALYTICS_TIMEZONE';
COMMENT ON COLUMN analytics_website_policy.retention_days IS 'Whole days of raw data kept; NULL: the run''s Param';
COMMENT ON COLUMN analytics_website_policy.legal_hold IS 'While this is true, no raw data of the website is deleted';

CREATE OR REPLACE FUNCTION analytics_day_start(day date, timezone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        (day::timestamp AT TIME ZONE timezone)
        - CASE day
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '3 hours') AT TIME ZONE timezone)::date
                THEN INTERVAL '3 hours'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '2 hours') AT TIME ZONE timezone)::date
                THEN INTERVAL '2 hours'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '1 hour') AT TIME ZONE timezone)::date
                THEN INTERVAL '1 hour'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '30 minutes') AT TIME ZONE timezone)::date
                THEN INTERVAL '30 minutes'
            ELSE INTERVAL '0'
        END
$$;

CREATE OR REPLACE FUNCTION analytics_website_day_start(website text, day date, day_timezone text) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT
            coalesce(
                max(final.ends_at) FILTER (WHERE final.date = day - 1),
                max(final.starts_at) FILTER (WHERE final.date = day),
                least(
                    greatest(
                        analytics_day_start(day, day_timezone),
                        max(final.ends_at) FILTER (WHERE final.date < day)
                    ),
                    min(final.starts_at) FILTER (WHERE final.date > day)
                )
            )
        FROM analytics_daily_stats AS final
        WHERE
            final.website_id = website
            AND final.date BETWEEN day - 3 AND day + 2
            AND final.raw_purged_at IS NOT NULL
    );
END
$$;

CREATE OR REPLACE FUNCTION analytics_website_day(
    website text,
    instant timestamptz,
    day_timezone text,
    OUT date date,
    OUT starts_at timestamptz,
    OUT ends_at timestamptz
)
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    shift integer;
BEGIN
    FOREACH shift IN ARRAY ARRAY[0, -1, 1, -2, 2, -3, 3] LOOP
        date := (instant AT TIME ZONE day_timezone)::date + shift;
        starts_at := analytics_website_day_start(website, date, day_timezone);
        ends_at := analytics_website_day_start(website, date + 1, day_timezone);
        IF instant >= starts_at AND instant < ends_at THEN
            RETURN;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'Website % has no day for %: compare starts_at and ends_at of its rows in analytics_daily_stats',
        website, instant;
END
$$;

CREATE OR REPLACE FUNCTION analytics_websites(default_timezone text, only_website text DEFAULT NULL)
RETURNS TABLE (website_id text, timezone text, has_moved boolean)
LANGUAGE plpgsql STABLE ROWS 50 AS $$
BEGIN
    website_id := coalesce(only_website, least(
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NULL),
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NOT NULL)
    ));
    WHILE website_id IS NOT NULL LOOP
        timezone := coalesce(
            (
                SELECT policy.timezone FROM analytics_website_policy AS policy
                WHERE policy.website_id = analytics_websites.website_id
            ),
            default_timezone,
            (
                SELECT stats.timezone FROM analytics_daily_stats AS stats
                WHERE stats.website_id = analytics_websites.website_id
                ORDER BY stats.date DESC LIMIT 1
            ),
            'UTC'
        );
        has_moved := EXISTS (
            SELECT FROM analytics_daily_stats AS stats
            WHERE
                stats.website_id = analytics_websites.website_id
                AND stats.timezone <> analytics_websites.timezone
                AND stats.raw_purged_at IS NOT NULL
        );
        RETURN NEXT;
        EXIT WHEN only_website IS NOT NULL;
        website_id := least(
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > analytics_websites.website_id AND event.deleted_at IS NULL
            ),
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > analytics_websites.website_id AND event.deleted_at IS NOT NULL
            )
        );
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION analytics_event_days(
    default_timezone text, before timestamptz, only_website text DEFAULT NULL
)
RETURNS TABLE (website_id text, date date, starts_at timestamptz, ends_at timestamptz, timezone text)
LANGUAGE plpgsql STABLE ROWS 1000 AS $$
DECLARE
    has_moved boolean;
    live_event timestamptz;
    deleted_event timestamptz;
    instant timestamptz;
BEGIN
    FOR website_id, timezone, has_moved IN SELECT * FROM analytics_websites(default_timezone, only_website) LOOP
        ends_at := '0001-01-01';
        deleted_event := '-infinity';
        LOOP
            live_event := (
                SELECT min(event.timestamp) FROM analytics_event AS event
                WHERE
                    event.website_id = analytics_event_days.website_id
                    AND event.timestamp >= ends_at
                    AND event.timestamp < before
                    AND event.deleted_at IS NULL
            );
            IF deleted_event < ends_at THEN
                deleted_event := (
                    SELECT min(event.timestamp) FROM analytics_event AS event
                    WHERE
                        event.website_id = analytics_event_days.website_id
                        AND event.timestamp >= ends_at
                        AND event.timestamp < before
                        AND event.deleted_at IS NOT NULL
                );
            END IF;
            EXIT WHEN live_event IS NULL AND deleted_event IS NULL;
            instant := least(live_event, deleted_event);
            date := (instant AT TIME ZONE timezone)::date;
            starts_at := analytics_day_start(date, timezone);
            ends_at := analytics_day_start(date + 1, timezone);
            IF has_moved OR instant < starts_at OR instant >= ends_at THEN
                SELECT day.* INTO date, starts_at, ends_at
                FROM analytics_website_day(website_id, instant, timezone) AS day;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION analytics_sketch_bit(hash bit(64)) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT
        substring(hash FROM 1 FOR 11)::bit(11)::integer
        + 2048 * (position(B'1' IN substring(hash FROM 12 FOR 23) || B'1') - 1)
$$;

CREATE OR REPLACE FUNCTION analytics_count_day(website text, from_instant timestamptz, to_instant timestamptz)
RETURNS TABLE (
    total_pageviews bigint,
    total_custom_events bigint,
    unique_visitors bigint,
    unique_sessions bigint,
    top_pages jsonb,
    top_referrers jsonb,
    total_events bigint,
    deleted_events bigint,
    events_hash bigint,
    visitor_sketch bit(49152)
)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_sort = off
AS $$
BEGIN
    RETURN QUERY
    WITH grouped AS MATERIALIZED (
        SELECT
            event.pathname,
            event.referrer_source,
            event.visitor_id,
            grouping(event.pathname, event.referrer_source, event.visitor_id, event.session_id) AS absent,
            count(*) AS events,
            count(*) FILTER (WHERE event.event_type = 'pageview') AS pageviews,
            count(*) FILTER (WHERE event.event_type = 'custom_event') AS custom_events,
            bit_xor(hashtextextended(event.id, 0)) AS ids
        FROM analytics_event AS event
        WHERE
            event.website_id = website
            AND event.timestamp >= from_instant
            AND event.timestamp < to_instant
            AND event.deleted_at IS NULL
        GROUP BY GROUPING SETS ((event.pathname), (event.referrer_source), (event.visitor_id), (event.session_id))
    ),

    page AS (
        SELECT
            grouped.pathname AS item,
            grouped.pageviews
        FROM grouped
        WHERE grouped.absent = b'0111'::int AND grouped.pageviews > 0
        ORDER BY grouped.pageviews DESC, grouped.pathname COLLATE "C" ASC LIMIT 10
    ),

    referrer AS (
        SELECT
            grouped.referrer_source AS item,
            grouped.pageviews
        FROM grouped
        WHERE grouped.absent = b'1011'::int AND grouped.pageviews > 0 AND grouped.referrer_source <> ''
        ORDER BY grouped.pageviews DESC, grouped.referrer_source COLLATE "C" ASC LIMIT 10
    ),

    visitor AS MATERIALIZED (
        SELECT ('x' || substring(sha256(convert_to(grouped.visitor_id, 'UTF8'))::text FROM 3 FOR 16))::bit(64) AS hash
        FROM grouped
        WHERE grouped.absent = b'1101'::int
    ),

    sketch AS (
        SELECT coalesce(string_agg(repeat('0', numbered.gap) || '1', '' ORDER BY numbered.number), '') AS bits
        FROM (
            SELECT
                visitor_bit.number,
                visitor_bit.number - lag(visitor_bit.number, 1, -1) OVER (ORDER BY visitor_bit.number) - 1 AS gap
            FROM (SELECT DISTINCT analytics_sketch_bit(visitor.hash) AS number FROM visitor) AS visitor_bit
        ) AS numbered
    )

    SELECT
        coalesce(sum(grouped.pageviews) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        coalesce(sum(grouped.custom_events) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        count(*) FILTER (WHERE grouped.absent = b'1101'::int),
        count(*) FILTER (WHERE grouped.absent = b'1110'::int),
        coalesce((
            SELECT
                jsonb_agg(
                    jsonb_build_object('item', page.item, 'count', page.pageviews)
                    ORDER BY page.pageviews DESC, page.item COLLATE "C" ASC
                )
            FROM page
        ), '[]'),
        coalesce((
            SELECT
                jsonb_agg(
                    jsonb_build_object('item', referrer.item, 'count', referrer.pageviews)
                    ORDER BY referrer.pageviews DESC, referrer.item COLLATE "C" ASC
                )
            FROM referrer
        ), '[]'),
        coalesce(sum(grouped.events) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        (
            SELECT count(*) FROM analytics_event AS event
            WHERE
                event.website_id = website
                AND event.timestamp >= from_instant
                AND event.timestamp < to_instant
                AND event.deleted_at IS NOT NULL
        ),
        coalesce(bit_xor(grouped.ids) FILTER (WHERE grouped.absent = b'0111'::int), 0),
        (SELECT sketch.bits::bit(49152) FROM sketch)
    FROM grouped;
END
$$;

CREATE TABLE IF NOT EXISTS analytics_purge_proof (
    website_id text NOT NULL,
    date date NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    total_events bigint NOT NULL,
    events_hash bigint NOT NULL,
    snapshot pg_snapshot NOT NULL,
    PRIMARY KEY (date, website_id)
);

CREATE OR REPLACE FUNCTION analytics_cutoff(moment timestamptz, timezone text, retention_days integer)
RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT analytics_day_start((moment AT TIME ZONE timezone)::date - retention_days, timezone)
$$;

CREATE OR REPLACE FUNCTION analytics_cutoffs(moment timestamptz, default_timezone text, default_retention_days integer)
RETURNS TABLE (website_id text, cutoff timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        policy.website_id,
        CASE
            WHEN policy.legal_hold THEN '-infinity'
            ELSE analytics_cutoff(
                moment,
                coalesce(policy.timezone, default_timezone),
                coalesce(policy.retention_days, default_retention_days)
            )
        END
    FROM analytics_website_policy AS policy
    UNION ALL
    SELECT NULL, analytics_cutoff(moment, default_timezone, default_retention_days)
$$;

CREATE OR REPLACE VIEW analytics_proven_days AS
SELECT
    proof.website_id,
    range_agg(tstzrange(proof.starts_at, proof.ends_at)) AS days
FROM analytics_purge_proof AS proof
GROUP BY proof.website_id;

CREATE OR REPLACE FUNCTION analytics_expired_sessions(
    moment timestamptz, default_timezone text, default_retention_days integer
)
RETURNS TABLE (started_at timestamptz, id text)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH cutoffs AS MATERIALIZED (
        SELECT * FROM analytics_cutoffs(moment, default_timezone, default_retention_days)
    ),

    proven AS MATERIALIZED (SELECT * FROM analytics_proven_days)

    SELECT
        session.started_at,
        session.id
    FROM analytics_session AS session
    LEFT JOIN cutoffs AS policy ON session.website_id = policy.website_id
    INNER JOIN cutoffs AS general ON general.website_id IS NULL
    WHERE
        session.started_at < (SELECT max(cutoffs.cutoff) FROM cutoffs)
        AND session.last_activity_at < coalesce(policy.cutoff, general.cutoff)
        AND (
            SELECT event.id FROM analytics_event AS event
            LEFT JOIN proven ON event.website_id = proven.website_id
            WHERE
                event.session_id = session.session_id
                AND event.deleted_at IS NULL
                AND (proven.days @> event.timestamp) IS NOT TRUE
            LIMIT 1
        ) IS NULL
$$;

CREATE OR REPLACE FUNCTION analytics_newest_xid() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest(
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_current_xact_id_if_assigned()::text::bigint
    )
$$;

CREATE OR REPLACE FUNCTION analytics_is_visible(row_xmin xid, newest_xid bigint, snapshot pg_snapshot) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        greatest(newest_xid - ((newest_xid - row_xmin::text::bigint) & 4294967295), 0)
        < pg_snapshot_xmin(snapshot)::text::bigint
$$;

CREATE OR REPLACE FUNCTION analytics_live_days(
    only_website text DEFAULT NULL, from_day date DEFAULT '-infinity', to_day date DEFAULT 'infinity'
)
RETURNS SETOF analytics_daily_stats
LANGUAGE sql STABLE ROWS 100
SET search_path FROM CURRENT
AS $$
    SELECT
        day.website_id, day.date, counted.total_pageviews, counted.total_custom_events, counted.unique_visitors,
        counted.unique_sessions, counted.top_pages, counted.top_referrers, counted.total_events, counted.deleted_events,
        counted.events_hash, counted.visitor_sketch, day.timezone, day.starts_at, day.ends_at, NULL::timestamptz,
        NULL::timestamptz, NULL::pg_snapshot
    FROM analytics_event_days(NULL, now(), only_website) AS day
    CROSS JOIN LATERAL analytics_count_day(day.website_id, day.starts_at, day.ends_at) AS counted
    WHERE
        day.date BETWEEN from_day AND to_day
        AND counted.total_events > 0
        AND NOT EXISTS (
            SELECT FROM analytics_daily_stats AS stats
            WHERE stats.website_id = day.website_id AND stats.date = day.date
        )
$$;

CREATE OR REPLACE VIEW analytics_traffic_daily AS
SELECT
    website_id,
    date,
    total_pageviews,
    total_custom_events,
    unique_visitors,
    unique_sessions,
    top_pages,
    top_referrers,
    total_events,
    deleted_events,
    events_hash,
    visitor_sketch,
    timezone,
    starts_at,
    ends_at,
    aggregated_at,
    raw_purged_at,
    purge_snapshot
FROM analytics_daily_stats
UNION ALL
SELECT
    website_id,
    date,
    total_pageviews,
    total_custom_events,
    unique_visitors,
    unique_sessions,
    top_pages,
    top_referrers,
    total_events,
    deleted_events,
    events_hash,
    visitor_sketch,
    timezone,
    starts_at,
    ends_at,
    aggregated_at,
    raw_purged_at,
    purge_snapshot
FROM analytics_live_days();

CREATE OR REPLACE FUNCTION analytics_sketch_visitors(sketch bit(49152)) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    bits bigint[] := ARRAY(
        SELECT bit_count(substring(sketch FROM level * 2048 + 1 FOR 2048)) FROM generate_series(0, 23) AS level
    );
    chance float8[] := ARRAY(SELECT 0.5 ^ least(level + 1, 23) / 2048 FROM generate_series(0, 23) AS level);
    few float8 := 0;
    many float8 := 1e11;
    visitors float8;
BEGIN
    IF bit_count(sketch) = 0 THEN
        RETURN 0;
    END IF;
    WHILE many - few > 0.1 LOOP
        visitors := (few + many) / 2;
        IF (
            SELECT sum(level.chance * (level.bits / (exp(least(visitors * level.chance, 700)) - 1) - (2048 - level.bits)))
            FROM unnest(bits, chance) AS level (bits, chance)
        ) > 0 THEN
            few := visitors;
        ELSE
            many := visitors;
        END IF;
    END LOOP;
    RETURN round(visitors);
END
$$;

CREATE OR REPLACE FUNCTION analytics_unique_visitors(website text, from_day date, to_day date) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    day_timezone text := (SELECT timezone FROM analytics_websites(NULL, website));
    days bigint;
    purged_days bigint;
BEGIN
    SELECT count(*), count(stats.raw_purged_at) INTO days, purged_days
    FROM analytics_daily_stats AS stats
    WHERE stats.website_id = website AND stats.date BETWEEN from_day AND to_day;
    IF purged_days = 0 THEN
        RETURN (
            SELECT count(*) FROM (
                SELECT DISTINCT event.visitor_id FROM analytics_event AS event
                WHERE
                    event.website_id = website
                    AND event.timestamp >= analytics_website_day_start(website, from_day, day_timezone)
                    AND event.timestamp < analytics_website_day_start(website, to_day + 1, day_timezone)
                    AND event.deleted_at IS NULL
            ) AS visitor
        );
    END IF;
    RETURN (
        SELECT
            CASE
                WHEN count(*) = 1 THEN max(traffic.unique_visitors)
                ELSE analytics_sketch_visitors(bit_or(traffic.visitor_sketch))
            END
        FROM (
            SELECT
                stats.date,
                stats.unique_visitors,
                stats.visitor_sketch
            FROM analytics_daily_stats AS stats
            WHERE stats.website_id = website
            UNION ALL
            SELECT
                live.date,
                live.unique_visitors,
                live.visitor_sketch
            FROM analytics_live_days(website, from_day, to_day) AS live
        ) AS traffic
        WHERE traffic.date BETWEEN from_day AND to_day
    );
END
$$;

CREATE TABLE IF NOT EXISTS analytics_job_run (
    job text NOT NULL,
    run_id text NOT NULL,
    target text,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    rows_read bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0,
    database_bytes bigint,
    outcome text NOT NULL DEFAULT 'running' CHECK (outcome IN ('running', 'success', 'failed')),
    problem text,
    PRIMARY KEY (job, run_id)
);

CREATE INDEX IF NOT EXISTS analytics_job_run_started_at_idx ON analytics_job_run (started_at);

COMMENT ON COLUMN analytics_job_run.job IS 'dag_id of the Airflow DAG';
COMMENT ON COLUMN analytics_job_run.run_id IS 'run_id of the Airflow run';
COMMENT ON COLUMN analytics_job_run.target IS 'The days that were aggregated, or the cutoff of the retention';
COMMENT ON COLUMN analytics_job_run.rows_read IS 'Events counted into the rows written';
COMMENT ON COLUMN analytics_job_run.rows_written IS 'Daily stats written, or sessions closed';
COMMENT ON COLUMN analytics_job_run.rows_deleted IS 'Events and sessions deleted';
COMMENT ON COLUMN analytics_job_run.problem IS 'One sentence about a run that failed';

CREATE TABLE IF NOT EXISTS analytics_alert (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    condition text NOT NULL,
    subject text NOT NULL,
    message text NOT NULL,
    opened_at timestamptz NOT NULL,
    claimed_at timestamptz NOT NULL,
    sent_at timestamptz,
    recovered_at timestamptz,
    recovery_sent_at timestamptz
);

CREATE UNIQUE INDEX IF NOT EXISTS analytics_alert_open_idx ON analytics_alert (condition, subject)
WHERE recovered_at IS NULL;

COMMENT ON COLUMN analytics_alert.condition IS
'aggregation_behind, database_size, retention_backlog, proof_failed, cleanup_missing, traffic_missing';
COMMENT ON COLUMN analytics_alert.subject IS 'The website, or empty where the condition is not about one';
COMMENT ON COLUMN analytics_alert.claimed_at IS 'When a run last took it upon itself to send it, so that no other does';
COMMENT ON COLUMN analytics_alert.sent_at IS 'When people were last told that it is open';

CREATE INDEX IF NOT EXISTS analytics_event_timestamp_id_idx
ON analytics_event (timestamp, id) INCLUDE (website_id);

CREATE INDEX IF NOT EXISTS analytics_event_deleted_idx
ON analytics_event (website_id, timestamp)
WHERE deleted_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS analytics_session_started_at_id_idx
ON analytics_session (started_at, id);

CREATE INDEX IF NOT EXISTS analytics_session_open_idx
ON analytics_session (started_at)
WHERE ended_at IS NULL AND deleted_at IS NULL;

DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['analytics_jobs', 'analytics_readers'] LOOP
        BEGIN
            IF TO_REGROLE(role_name) IS NULL THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION
            WHEN duplicate_object THEN NULL;
        END;
    END LOOP;
END
$$;

DO $$
DECLARE
    schema_name name;
BEGIN
    FOREACH schema_name IN ARRAY current_schemas(false) LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO analytics_jobs, analytics_readers', schema_name);
    END LOOP;
END
$$;

GRANT SELECT, INSERT, UPDATE ON analytics_daily_stats TO analytics_jobs;
GRANT SELECT, INSERT, UPDATE, DELETE ON analytics_purge_proof TO analytics_jobs;
GRANT SELECT, INSERT, UPDATE ON analytics_job_run, analytics_alert TO analytics_jobs;
GRANT SELECT ON analytics_website_policy, analytics_proven_days, analytics_traffic_daily TO analytics_jobs;
GRANT SELECT, DELETE ON analytics_event TO analytics_jobs;
GRANT SELECT, DELETE, UPDATE (ended_at, duration_seconds, updated_at) ON analytics_session TO analytics_jobs;

GRANT SELECT ON
analytics_daily_stats, analytics_website_policy, analytics_purge_proof, analytics_proven_days, analytics_traffic_daily,
analytics_job_run, analytics_alert, analytics_event, analytics_session
TO analytics_readers;

COMMENT ON TABLE analytics_daily_stats IS
'Daily statistics, one row per website and day. Schema of the jobs: version 0b782952cb91';
