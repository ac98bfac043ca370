-- What the running retention may delete: the raw rows of these days which the snapshot shows. The row of a day in
-- analytics_daily_stats was proven to count exactly them, or was final already.
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

-- The cutoff of a website's raw data: the start of the day retention_days before the moment.
CREATE OR REPLACE FUNCTION analytics_cutoff(moment timestamptz, timezone text, retention_days integer)
RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT analytics_day_start((moment AT TIME ZONE timezone)::date - retention_days, timezone)
$$;

-- The cutoffs of all websites with a policy; one of NULL is that of every other website.
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

-- The proven days of each website.
CREATE OR REPLACE VIEW analytics_proven_days AS
SELECT
    proof.website_id,
    range_agg(tstzrange(proof.starts_at, proof.ends_at)) AS days
FROM analytics_purge_proof AS proof
GROUP BY proof.website_id;

-- The sessions whose last activity is before the cutoff and whose events all go.
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
        -- Not NOT EXISTS, which may read all events there are to look for those of a few sessions.
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

-- The newest transaction that can have made a row version that is visible now.
CREATE OR REPLACE FUNCTION analytics_newest_xid() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest(
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_current_xact_id_if_assigned()::text::bigint
    )
$$;

-- Whether a row version that is visible now, by its xmin, is older than every transaction that was running when a
-- snapshot was taken. What such a transaction wrote may have been invisible then; pg_visible_in_snapshot() cannot tell,
-- since a snapshot does not list subtransactions. xmin has the lower 32 bits of a transaction's number: the version is
-- of the newest transaction with these bits that there can be. An old row version whose bits recur is taken for a new
-- one at most while as few transactions pass as since the snapshot.
CREATE OR REPLACE FUNCTION analytics_is_visible(row_xmin xid, newest_xid bigint, snapshot pg_snapshot) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        greatest(newest_xid - ((newest_xid - row_xmin::text::bigint) & 4294967295), 0)
        < pg_snapshot_xmin(snapshot)::text::bigint
$$;
