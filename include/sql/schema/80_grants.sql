-- The least-privileged role of the jobs. It cannot log in: make a login role a member of it.

DO $$
BEGIN
    -- Asked first, so that an owner who may not create roles can install once somebody else has made this one.
    IF TO_REGROLE('analytics_jobs') IS NULL THEN
        CREATE ROLE analytics_jobs NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object THEN NULL;
END
$$;

DO $$
DECLARE
    schema_name name;
BEGIN
    FOREACH schema_name IN ARRAY current_schemas(false) LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO analytics_jobs', schema_name);
    END LOOP;
END
$$;

GRANT SELECT, INSERT, UPDATE ON analytics_daily_stats TO analytics_jobs;
GRANT SELECT, INSERT, UPDATE, DELETE ON analytics_purge_proof TO analytics_jobs;
GRANT SELECT ON analytics_website_policy, analytics_proven_days, analytics_traffic_daily TO analytics_jobs;
GRANT SELECT, DELETE ON analytics_event TO analytics_jobs;
GRANT SELECT, DELETE, UPDATE (ended_at, duration_seconds, updated_at) ON analytics_session TO analytics_jobs;
