-- The least-privileged roles of the jobs and of those who only look. They cannot log in: make a login role a member.
-- Whatever the default privileges of the database give to PUBLIC, each of them has what it needs by name.

DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['analytics_jobs', 'analytics_readers'] LOOP
        BEGIN
            -- Asked first, so that an owner who may not create roles can install once somebody else has made them.
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            END IF;
        EXCEPTION
            -- Another database's installer was faster.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
END
$$;

-- What a function does as its owner must not be led astray by tables and views that its caller has made: temporary ones
-- would be found first, and are last where they are named.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT pg_proc.oid FROM pg_catalog.pg_proc
        INNER JOIN pg_catalog.pg_namespace ON pg_proc.pronamespace = pg_namespace.oid
        WHERE
            pg_namespace.nspname = current_schema()
            AND starts_with(pg_proc.proname, 'analytics_')
            AND pg_proc.prosecdef
            AND pg_proc.proconfig IS NULL
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %s, pg_temp', function, current_setting('search_path'));
    END LOOP;
END
$$;

-- Where the owner of our tables may not grant one of these, PostgreSQL warns, and PUBLIC has it.
DO $$
DECLARE
    object text;
BEGIN
    FOR object IN
        SELECT format('CONNECT ON DATABASE %I', current_database())
        UNION ALL
        SELECT format('USAGE ON SCHEMA %I', schema_name) FROM unnest(current_schemas(FALSE)) AS schema_name
        UNION ALL
        SELECT format('EXECUTE ON FUNCTION %s', pg_proc.oid::regprocedure)
        FROM pg_catalog.pg_proc
        INNER JOIN pg_catalog.pg_namespace ON pg_proc.pronamespace = pg_namespace.oid
        WHERE pg_namespace.nspname = current_schema() AND starts_with(pg_proc.proname, 'analytics_')
    LOOP
        EXECUTE format('GRANT %s TO analytics_jobs, analytics_readers', object);
    END LOOP;
END
$$;

GRANT SELECT ON
analytics_schema_version, analytics_website_policy, analytics_traffic_daily, analytics_partitioning
TO analytics_jobs;
GRANT SELECT, INSERT, UPDATE ON analytics_daily_stats, analytics_timezone, analytics_job_run, analytics_alert
TO analytics_jobs;
GRANT SELECT, INSERT, UPDATE, DELETE ON analytics_purge_batch, analytics_archive_file TO analytics_jobs;
GRANT SELECT, INSERT, DELETE ON analytics_detached_partition, analytics_ignored_event TO analytics_jobs;
GRANT SELECT, DELETE ON analytics_event TO analytics_jobs;
GRANT SELECT, DELETE, UPDATE (ended_at, duration_seconds, updated_at) ON analytics_session TO analytics_jobs;

GRANT SELECT ON
analytics_schema_version, analytics_website_policy, analytics_traffic_daily, analytics_daily_stats, analytics_timezone,
analytics_job_run, analytics_alert, analytics_purge_batch, analytics_archive_file, analytics_detached_partition,
analytics_partitioning, analytics_ignored_event, analytics_event, analytics_session
TO analytics_readers;
