-- Days have time zones that are stored with the day from which they hold, rows are sealed, and what is to be deleted is
-- on a list. All data is kept: final rows are sealed with the bounds they have, and what they count of raw events that
-- are left is on the list.

-- Views, which readers lock before the tables. Without CASCADE: views of other people are not ours to drop. What they
-- were granted on ours stays with the view's name, to which CREATE OR REPLACE VIEW adds the columns.
DO $$
DECLARE
    statement text;
    grants text[] := ARRAY(
        SELECT format('GRANT %s ON analytics_traffic_daily TO %s', privilege_type, coalesce(quote_ident(rolname), 'public'))
        FROM pg_catalog.pg_class
        CROSS JOIN aclexplode(relacl)
        LEFT JOIN pg_catalog.pg_roles ON grantee = pg_roles.oid
        WHERE relname = 'analytics_traffic_daily' AND relnamespace = quote_ident(current_schema())::regnamespace
    );
BEGIN
    EXECUTE format('DROP VIEW IF EXISTS %1$I.analytics_traffic_daily, %1$I.analytics_proven_days', current_schema());
    CREATE VIEW analytics_traffic_daily AS SELECT;
    FOREACH statement IN ARRAY grants LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

-- All at once, so that no job waits for one of them while we wait for another.
LOCK TABLE analytics_daily_stats, analytics_purge_proof, analytics_website_policy, analytics_job_run;

CREATE TABLE analytics_timezone (
    website_id text,
    from_date date NOT NULL,
    timezone text NOT NULL,
    UNIQUE NULLS NOT DISTINCT (website_id, from_date)
);

COMMENT ON TABLE analytics_timezone IS 'The time zones of the websites'' days, each with the day from which it holds.';
COMMENT ON COLUMN analytics_timezone.website_id IS
'The website; NULL stands for all that have no time zone of their own on that day.';
COMMENT ON COLUMN analytics_timezone.from_date IS
'The first day of which the time zone is; it starts where the day before ends. There is none before -infinity.';
COMMENT ON COLUMN analytics_timezone.timezone IS 'An IANA name such as Europe/Berlin.';

-- The default: what the websites without a zone of their own were counted in last.
INSERT INTO analytics_timezone (website_id, from_date, timezone)
SELECT
    NULL AS website_id,
    '-infinity' AS from_date,
    stats.timezone
FROM analytics_daily_stats AS stats
LEFT JOIN analytics_website_policy AS policy ON stats.website_id = policy.website_id
WHERE policy.timezone IS NULL
ORDER BY stats.date DESC, stats.aggregated_at DESC
LIMIT 1;

-- Websites with a zone of their own, and those whose final rows are of other zones than their days are now.
WITH final_bound AS (
    SELECT
        stats.website_id,
        bound.date,
        stats.timezone,
        -- Where a row was final before its neighbour, that one begins or ends with it, whatever its own zone was.
        (bound.ends_at AT TIME ZONE stats.timezone)::date > bound.date
        AND ((bound.ends_at - interval '1 microsecond') AT TIME ZONE stats.timezone)::date <= bound.date AS is_midnight,
        bound.date = stats.date AS is_own
    FROM analytics_daily_stats AS stats
    -- The zone of a day decides where it ends, and so where the day after it starts.
    CROSS JOIN LATERAL (VALUES (stats.date - 1, stats.starts_at), (stats.date, stats.ends_at)) AS bound (date, ends_at)
    WHERE stats.raw_purged_at IS NOT NULL
),

final_day AS (
    SELECT DISTINCT ON (final_bound.website_id, final_bound.date)
        final_bound.website_id,
        final_bound.date,
        final_bound.timezone
    FROM final_bound
    ORDER BY
        final_bound.website_id ASC,
        final_bound.date ASC,
        final_bound.is_midnight DESC,
        final_bound.is_own DESC
),

last_final_day AS (
    SELECT
        final_day.website_id,
        max(final_day.date) AS date
    FROM final_day
    GROUP BY final_day.website_id
),

-- From the day after the last final one on, the present zone.
known_day AS (
    SELECT
        final_day.website_id,
        final_day.date,
        final_day.timezone
    FROM final_day
    UNION ALL
    SELECT
        coalesce(last_final_day.website_id, policy.website_id) AS website_id,
        last_final_day.date + 1 AS date,
        coalesce(policy.timezone, (SELECT general.timezone FROM analytics_timezone AS general)) AS timezone
    FROM last_final_day
    FULL JOIN analytics_website_policy AS policy ON last_final_day.website_id = policy.website_id
    WHERE last_final_day.website_id IS NOT NULL OR policy.timezone IS NOT NULL
),

zone AS (
    SELECT
        known_day.website_id,
        known_day.timezone,
        lag(known_day.date) OVER by_date AS date_before,
        lag(known_day.timezone) OVER by_date AS timezone_before
    FROM known_day
    WINDOW by_date AS (PARTITION BY known_day.website_id ORDER BY known_day.date)
)

-- A zone holds from the day after the last one that is known to be of another zone.
INSERT INTO analytics_timezone (website_id, from_date, timezone)
SELECT
    zone.website_id,
    coalesce(zone.date_before + 1, '-infinity') AS from_date,
    zone.timezone
FROM zone
WHERE
    zone.timezone IS DISTINCT FROM zone.timezone_before
    -- Without a zone of its own and without a change, it has the default.
    AND (
        zone.website_id IN (
            SELECT changed.website_id FROM zone AS changed
            WHERE changed.timezone <> changed.timezone_before
        )
        OR zone.website_id IN (
            SELECT policy.website_id FROM analytics_website_policy AS policy
            WHERE policy.timezone IS NOT NULL
        )
    );

CREATE TABLE analytics_purge_batch (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('event', 'session')),
    rows integer NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    ids text[] NOT NULL,
    deleted_ids text[] NOT NULL
);

COMMENT ON TABLE analytics_purge_batch IS
'What the retention deletes, one row per batch. A batch that was deleted has no row any more.';
COMMENT ON COLUMN analytics_purge_batch.kind IS 'Whether its rows are of analytics_event or of analytics_session.';
COMMENT ON COLUMN analytics_purge_batch.rows IS 'How many rows it has.';
COMMENT ON COLUMN analytics_purge_batch.first_at IS 'The oldest time of its rows.';
COMMENT ON COLUMN analytics_purge_batch.last_at IS 'The newest time of its rows.';
COMMENT ON COLUMN analytics_purge_batch.ids IS
'The primary keys of its rows that were live when they were listed. Such events are counted.';
COMMENT ON COLUMN analytics_purge_batch.deleted_ids IS
'The primary keys of its rows that were soft-deleted when they were listed. Such events are not counted.';

-- Raw events of final rows that are counted, or were soft-deleted before: those that purge_snapshot shows, by the rule
-- of the release. Their row versions are older than every transaction that was running then; xmin has the lower 32 bits
-- of a transaction's number. A snapshot with numbers that are yet to come is another server's, and shows nothing here.
DO $$
BEGIN
    -- In a new database there are none, and its analytics_event may be a view, which has no xmin.
    IF EXISTS (SELECT FROM analytics_daily_stats WHERE raw_purged_at IS NOT NULL) THEN
        WITH event AS (
            SELECT
                raw.*,
                stats.purge_snapshot
            FROM analytics_daily_stats AS stats
            -- In two halves, one for each of the indexes on (website_id, timestamp).
            CROSS JOIN
                LATERAL (
                    SELECT
                        live.id,
                        live.timestamp,
                        TRUE AS is_live,
                        live.xmin::text::bigint AS xid
                    FROM analytics_event AS live
                    WHERE
                        live.website_id = stats.website_id
                        AND live.timestamp >= stats.starts_at
                        AND live.timestamp < stats.ends_at
                        AND live.deleted_at IS NULL
                    UNION ALL
                    SELECT
                        deleted.id,
                        deleted.timestamp,
                        FALSE AS is_live,
                        deleted.xmin::text::bigint AS xid
                    FROM analytics_event AS deleted
                    WHERE
                        deleted.website_id = stats.website_id
                        AND deleted.timestamp >= stats.starts_at
                        AND deleted.timestamp < stats.ends_at
                        AND deleted.deleted_at IS NOT NULL
                ) AS raw
            WHERE stats.raw_purged_at IS NOT NULL
        ),

        present AS (
            SELECT greatest(pg_snapshot_xmax(pg_current_snapshot()), pg_current_xact_id())::text::bigint AS newest_xid
        ),

        counted AS (
            SELECT
                event.id,
                event.timestamp,
                event.is_live
            FROM event
            CROSS JOIN present
            WHERE
                greatest(present.newest_xid - ((present.newest_xid - event.xid) & 4294967295), 0)
                < pg_snapshot_xmin(event.purge_snapshot)::text::bigint
                AND pg_snapshot_xmax(event.purge_snapshot)::text::bigint <= present.newest_xid
        ),

        numbered AS (
            SELECT
                *,
                (row_number() OVER (ORDER BY timestamp ASC, id COLLATE "C" ASC) - 1) / 1000 AS batch
            FROM counted
        )

        INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids)
        SELECT
            'event' AS kind,
            count(*) AS rows,
            min(numbered.timestamp) AS first_at,
            max(numbered.timestamp) AS last_at,
            coalesce(array_agg(numbered.id) FILTER (WHERE numbered.is_live), '{}') AS ids,
            coalesce(array_agg(numbered.id) FILTER (WHERE NOT numbered.is_live), '{}') AS deleted_ids
        FROM numbered
        GROUP BY numbered.batch
        ORDER BY numbered.batch;
    END IF;
END
$$;

DROP TABLE analytics_purge_proof;

-- Nothing of this writes the tables' rows anew.
ALTER TABLE analytics_daily_stats RENAME COLUMN raw_purged_at TO sealed_at;
ALTER TABLE analytics_daily_stats
DROP COLUMN timezone,
DROP COLUMN purge_snapshot,
ADD COLUMN edits_hash bigint NOT NULL DEFAULT 0,
ADD COLUMN kept_at timestamptz,
ADD COLUMN late_pageviews bigint NOT NULL DEFAULT 0,
ADD COLUMN late_custom_events bigint NOT NULL DEFAULT 0;
ALTER TABLE analytics_website_policy DROP COLUMN timezone;
ALTER TABLE analytics_job_run
ADD COLUMN late_events bigint NOT NULL DEFAULT 0,
ADD COLUMN unsealed_days bigint NOT NULL DEFAULT 0;

-- Functions that are gone, or that CREATE OR REPLACE cannot change into what they are now.
DO $$
DECLARE
    obsolete text;
BEGIN
    FOR obsolete IN
        SELECT pg_proc.oid::regprocedure FROM pg_catalog.pg_proc
        WHERE
            pg_proc.pronamespace = quote_ident(current_schema())::regnamespace
            AND pg_proc.proname IN (
                'analytics_check_timezone',
                'analytics_day_start',
                'analytics_website_day_start',
                'analytics_website_day',
                'analytics_websites',
                'analytics_event_days',
                'analytics_count_day',
                'analytics_cutoff',
                'analytics_cutoffs',
                'analytics_expired_sessions',
                'analytics_newest_xid',
                'analytics_is_visible',
                'analytics_live_days'
            )
    LOOP
        EXECUTE format('DROP FUNCTION %s', obsolete);
    END LOOP;
END
$$;

COMMENT ON TABLE analytics_daily_stats IS
'The daily statistics, one row per website and day. They are never deleted.';
COMMENT ON COLUMN analytics_daily_stats.date IS
'The calendar day in the time zone of the website, see analytics_timezone.';
COMMENT ON COLUMN analytics_daily_stats.total_events IS 'How many raw events were counted, of every type.';
COMMENT ON COLUMN analytics_daily_stats.deleted_events IS
'How many raw events of the day were soft-deleted, and not counted.';
COMMENT ON COLUMN analytics_daily_stats.events_hash IS
'The exclusive or of analytics_event_hash of the counted events: tells whether the raw events still are as counted.';
COMMENT ON COLUMN analytics_daily_stats.edits_hash IS
'The exclusive or of hashes of the edited ones among the counted events: tells cheaply that more were edited.';
COMMENT ON COLUMN analytics_daily_stats.visitor_sketch IS
'Which visitors there were, for analytics_unique_visitors; see analytics_sketch_bit.';
COMMENT ON COLUMN analytics_daily_stats.starts_at IS 'The first instant of the day.';
COMMENT ON COLUMN analytics_daily_stats.ends_at IS 'The first instant after the day.';
COMMENT ON COLUMN analytics_daily_stats.aggregated_at IS 'The start of the transaction whose snapshot was counted.';
COMMENT ON COLUMN analytics_daily_stats.sealed_at IS
'When the row counted exactly the raw events, and they were listed for deletion. Its counts never change again.';
COMMENT ON COLUMN analytics_daily_stats.kept_at IS
'When raw events were found missing that somebody else had deleted: the row stays as it was counted.';
COMMENT ON COLUMN analytics_daily_stats.late_pageviews IS 'How many pageviews came after the row was sealed.';
COMMENT ON COLUMN analytics_daily_stats.late_custom_events IS 'How many other events came after the row was sealed.';

COMMENT ON TABLE analytics_website_policy IS
'What an operator says about a website. One without a row has the jobs'' own settings.';
COMMENT ON COLUMN analytics_website_policy.retention_days IS
'How many whole days of raw data are kept; NULL stands for the run''s Param.';
COMMENT ON COLUMN analytics_website_policy.legal_hold IS 'While this is true, no raw data of the website is deleted.';

COMMENT ON TABLE analytics_job_run IS
'One row per run of a job, written when it starts and when it ends. One that was lost stays ''running''.';
COMMENT ON COLUMN analytics_job_run.job IS 'The dag_id of the Airflow DAG.';
COMMENT ON COLUMN analytics_job_run.run_id IS 'The run_id of the Airflow run.';
COMMENT ON COLUMN analytics_job_run.target IS 'The days that were aggregated, or the cutoff of the retention.';
COMMENT ON COLUMN analytics_job_run.rows_read IS 'How many events were counted into the rows written.';
COMMENT ON COLUMN analytics_job_run.rows_written IS 'How many daily statistics were written, or sessions closed.';
COMMENT ON COLUMN analytics_job_run.rows_deleted IS 'How many events and sessions were deleted.';
COMMENT ON COLUMN analytics_job_run.problem IS 'One sentence about a run that failed.';
COMMENT ON COLUMN analytics_job_run.late_events IS
'How many events were counted as late, since the row of their day was sealed.';
COMMENT ON COLUMN analytics_job_run.unsealed_days IS
'How many expired days were left, since their row does not count exactly their events.';

COMMENT ON TABLE analytics_alert IS
'One row per alert, from when its condition came true until it was no longer.';
COMMENT ON COLUMN analytics_alert.subject IS 'The website, or empty where the condition is not about one.';
COMMENT ON COLUMN analytics_alert.claimed_at IS
'When a run last took it upon itself to send it, so that no other does.';
COMMENT ON COLUMN analytics_alert.sent_at IS 'When people were last told that it is open.';
