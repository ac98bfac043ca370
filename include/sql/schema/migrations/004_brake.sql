-- What the brake of the retention compares a run with: see find_expired_days.sql.

ALTER TABLE analytics_job_run
ADD COLUMN expired_rows bigint,
ADD COLUMN policies jsonb;

COMMENT ON COLUMN analytics_job_run.expired_rows IS
'Of archive_old_analytics: how many events and sessions had expired when the run was let go on to delete them.';
COMMENT ON COLUMN analytics_job_run.policies IS
'Of archive_old_analytics: what analytics_policies returned when the run was let go on.';

-- It returns a table now.
DROP FUNCTION IF EXISTS analytics_signs(text, timestamptz, timestamptz);
