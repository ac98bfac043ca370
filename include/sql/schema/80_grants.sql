-- The least-privileged roles of the jobs and of those who only look. They cannot log in: make a login role a member.

DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['analytics_jobs', 'analytics_readers'] LOOP
        BEGIN
            -- Asked first, so that an owner who may not create roles can install once somebody else has made them.
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
