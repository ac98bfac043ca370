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

-- Whether a session has events from an instant on, live or soft-deleted. Planned once: planning it for each session
-- takes ten times as long as the answer.
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
        );
END
$$;
