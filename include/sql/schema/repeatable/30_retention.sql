-- Which raw data has expired, and what is to be known of a session.

-- The cutoff of a website's raw data: the start of its day so many days ago, as its policy says, or else the run. Under
-- a legal hold nothing ever expires.
CREATE OR REPLACE FUNCTION analytics_cutoff(website text, retention_days integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    policy record;
BEGIN
    SELECT stored.legal_hold, stored.retention_days INTO policy
    FROM analytics_website_policy AS stored WHERE stored.website_id = website;
    IF policy.legal_hold THEN
        RETURN '-infinity';
    END IF;
    RETURN analytics_day_start(
        website,
        (SELECT today.date FROM analytics_day(website, now()) AS today)
        - coalesce(policy.retention_days, analytics_cutoff.retention_days)
    );
END
$$;

-- The whole seconds of a session that its column can hold, whatever its clocks said.
CREATE OR REPLACE FUNCTION analytics_duration(started_at timestamptz, last_activity_at timestamptz) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT
        CASE
            WHEN last_activity_at <= started_at THEN 0
            -- Seconds are subtracted and not times: of those, PostgreSQL 16 subtracts no infinite ones.
            ELSE least(floor(extract(EPOCH FROM last_activity_at) - extract(EPOCH FROM started_at)), 2147483647)::integer
        END
$$;

-- Whether a session has events from an instant on, live or soft-deleted; while a partition is detached and not dropped
-- yet, it may have. Planned once: planning it for each session takes ten times as long as the answer.
CREATE OR REPLACE FUNCTION analytics_has_events(session text, from_instant timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN
        EXISTS (
            SELECT FROM analytics_event AS event
            WHERE event.session_id = session AND event.timestamp >= from_instant AND event.deleted_at IS NULL
        )
        OR EXISTS (
            SELECT FROM analytics_event AS event
            WHERE event.session_id = session AND event.timestamp >= from_instant AND event.deleted_at IS NOT NULL
        )
        OR EXISTS (SELECT FROM analytics_detached_partition);
END
$$;

-- How many standbys follow this server, by how many bytes of write-ahead log the slowest is behind in replaying it, and
-- how many of them the owner of this function may not look at: it needs the role pg_read_all_stats for that, and those
-- who call it do not.
CREATE OR REPLACE FUNCTION analytics_standbys(OUT standbys bigint, OUT lag_bytes bigint, OUT unseen bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT
        count(*),
        max(pg_wal_lsn_diff(pg_current_wal_lsn(), standby.replay_lsn))::bigint,
        count(*) FILTER (WHERE standby.state IS NULL)
    FROM pg_stat_replication AS standby
$$;

-- The days that have expired, each with how long ago, and how many of its raw events are there, live or soft-deleted.
CREATE OR REPLACE FUNCTION analytics_expired_days(retention_days integer)
RETURNS TABLE (website_id text, date date, age interval, events bigint)
LANGUAGE sql STABLE ROWS 1000 SET jit = off AS $$
    SELECT
        website.website_id,
        day.date,
        website.cutoff - day.ends_at,
        sign.total_events + sign.deleted_events
    FROM (
        SELECT
            name.website_id,
            analytics_cutoff(name.website_id, analytics_expired_days.retention_days) AS cutoff
        FROM analytics_websites() AS name (website_id)
        OFFSET 0
    ) AS website
    CROSS JOIN LATERAL analytics_event_days(website.website_id, '-infinity', website.cutoff) AS day
    CROSS JOIN LATERAL analytics_signs(website.website_id, day.starts_at, day.ends_at) AS sign
    WHERE day.ends_at <= website.cutoff
$$;

-- For how many days raw data is kept (NULL: for ever, under a legal hold), and the time zone of the days: of all
-- websites (website_id NULL) and of those that have a policy or a time zone of their own.
CREATE OR REPLACE FUNCTION analytics_policies(retention_days integer)
RETURNS TABLE (website_id text, days integer, timezone text)
LANGUAGE sql STABLE ROWS 10 AS $$
    SELECT
        website.website_id,
        CASE WHEN policy.legal_hold IS NOT TRUE
            THEN coalesce(policy.retention_days, analytics_policies.retention_days)
        END,
        analytics_zone(website.website_id, (now() AT TIME ZONE 'UTC')::date)
    FROM (
        SELECT NULL AS website_id
        UNION
        SELECT stored.website_id FROM analytics_website_policy AS stored
        UNION
        SELECT zone.website_id FROM analytics_timezone AS zone
    ) AS website
    LEFT JOIN analytics_website_policy AS policy ON website.website_id = policy.website_id
$$;

-- The sessions whose last activity has expired, by website.
CREATE OR REPLACE FUNCTION analytics_expired_sessions(retention_days integer)
RETURNS TABLE (website_id text, sessions bigint)
LANGUAGE sql STABLE ROWS 10 SET jit = off AS $$
    WITH website AS MATERIALIZED (
        SELECT
            name.website_id,
            analytics_cutoff(name.website_id, analytics_expired_sessions.retention_days) AS cutoff
        FROM (SELECT DISTINCT session.website_id FROM analytics_session AS session) AS name
    )

    SELECT
        website.website_id,
        count(*)
    FROM website
    INNER JOIN analytics_session AS session
        ON website.website_id = session.website_id AND website.cutoff > session.last_activity_at
    GROUP BY website.website_id
$$;

-- Why it is unusual that a run of the retention finds so many expired rows, in the order in which to say it: none if it
-- is not. It is if they are more than three times the median of the last eight runs (of those that found something; the
-- first of them is unusual), or if a website's data is kept for fewer days, or has its days in another time zone, than
-- at the last run. The run itself is not among them.
CREATE OR REPLACE FUNCTION analytics_unusual(retention_days integer, expired_rows bigint, of_run text)
RETURNS SETOF text
LANGUAGE sql STABLE ROWS 2 AS $$
    WITH run AS MATERIALIZED (
        SELECT
            stored.started_at,
            stored.policies,
            coalesce(stored.expired_rows, stored.rows_deleted) AS rows
        FROM analytics_job_run AS stored
        WHERE stored.job = 'archive_old_analytics' AND stored.run_id <> of_run
    ),

    policy AS MATERIALIZED (SELECT * FROM analytics_policies(analytics_unusual.retention_days)),

    policy_before AS MATERIALIZED (
        SELECT stored.*
        FROM (
            SELECT run.policies FROM run
            WHERE run.policies IS NOT NULL
            ORDER BY run.started_at DESC LIMIT 1
        ) AS latest
        CROSS JOIN LATERAL jsonb_to_recordset(latest.policies) AS stored (website_id text, days int, timezone text)
    ),

    -- A website that has no policy of its own at one of the two runs has that of all.
    changed AS (
        SELECT
            website.website_id,
            present.days,
            former.days AS days_before,
            present.timezone,
            former.timezone AS timezone_before,
            coalesce(website.website_id, 'all websites without a policy of their own') AS name
        FROM (
            SELECT policy.website_id FROM policy
            UNION
            SELECT policy_before.website_id FROM policy_before
        ) AS website
        CROSS JOIN
            LATERAL (
                SELECT
                    own.days,
                    own.timezone
                FROM policy AS own
                WHERE own.website_id = website.website_id OR own.website_id IS NULL
                ORDER BY own.website_id ASC NULLS LAST LIMIT 1
            ) AS present
        CROSS JOIN
            LATERAL (
                SELECT
                    own.days,
                    own.timezone
                FROM policy_before AS own
                WHERE own.website_id = website.website_id OR own.website_id IS NULL
                ORDER BY own.website_id ASC NULLS LAST LIMIT 1
            ) AS former
    ),

    usual AS (
        SELECT
            percentile_cont(0.5) WITHIN GROUP (ORDER BY latest.rows) AS median,
            count(*) AS runs
        FROM (
            SELECT run.rows FROM run
            WHERE run.rows > 0
            ORDER BY run.started_at DESC LIMIT 8
        ) AS latest
    ),

    reason AS (
        SELECT
            1 AS place,
            NULL AS website_id,
            CASE
                WHEN usual.runs = 0 THEN 'it is the first one that finds any'
                ELSE
                    format(
                        'that is more than 3 times %s, the median of the last %s run(s)',
                        to_char(usual.median, 'FM999,999,999,999,990'), usual.runs
                    )
            END AS text
        FROM usual
        WHERE analytics_unusual.expired_rows > coalesce(3 * usual.median, 0)
        UNION ALL
        SELECT
            2 AS place,
            changed.website_id,
            format(
                'raw data of %s is kept for %s days, and was kept %s at the last run',
                changed.name, changed.days, coalesce('for ' || changed.days_before, 'for ever')
            ) AS text
        FROM changed
        WHERE changed.days < coalesce(changed.days_before, 2147483647)
        UNION ALL
        SELECT
            3 AS place,
            changed.website_id,
            format(
                'days of %s are of time zone %s, and were of %s at the last run',
                changed.name, changed.timezone, changed.timezone_before
            ) AS text
        FROM changed
        WHERE changed.timezone <> changed.timezone_before
    )

    SELECT reason.text FROM reason
    ORDER BY reason.place ASC, reason.website_id ASC NULLS FIRST
$$;

-- What raw data takes on the disk, indexes included, and how much of it is of live rows. The latter is an estimate: the
-- number of rows is that of the statistics, their size that of the newest thousand, and indexes are as full as tables.
CREATE OR REPLACE FUNCTION analytics_storage(OUT bytes bigint, OUT live_bytes bigint)
LANGUAGE sql STABLE SET jit = off AS $$
    SELECT
        sum(pg_total_relation_size(part.oid))::bigint,
        -- A row has a pointer of 4 bytes besides.
        coalesce(sum(pg_total_relation_size(part.oid) * least(
            1, pg_stat_get_live_tuples(part.oid) * (source.row_bytes + 4) / nullif(pg_relation_size(part.oid), 0)
        )), 0)::bigint
    FROM (
        SELECT
            'analytics_event'::regclass AS name,
            (
                SELECT avg(pg_column_size(newest.*)) FROM (
                    SELECT * FROM analytics_event
                    ORDER BY timestamp DESC LIMIT 1000
                ) AS newest
            ) AS row_bytes
        UNION ALL
        SELECT
            'analytics_session'::regclass AS name,
            (
                SELECT avg(pg_column_size(newest.*)) FROM (
                    SELECT * FROM analytics_session
                    ORDER BY id DESC LIMIT 1000
                ) AS newest
            ) AS row_bytes
    ) AS source
    CROSS JOIN LATERAL (
        SELECT source.name::oid AS oid
        UNION
        SELECT tree.relid::oid FROM pg_partition_tree(source.name) AS tree
    ) AS part
$$;

-- The hash of all columns of a row, whatever their types are: of its text, which depends on the settings of the session
-- that the jobs set.
CREATE OR REPLACE FUNCTION analytics_row_hash(row_text text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended(row_text, 0)
$$;
