-- Whether the database has something more urgent to do than a batch: statements of others that wait for a lock, whoever
-- holds it, or a standby that lags.
-- Params: standby_lag_mb (int).
-- Result: one row for each reason: reason (text).
-- Of other roles, any role sees the process and its application_name, and what pg_locks says of it, but nothing more.
SELECT format('%%s statement(s) of the application wait for locks', count(*)) AS reason
FROM pg_catalog.pg_stat_activity AS activity
WHERE
    activity.datname = current_database()
    AND NOT starts_with(activity.application_name, 'airflow:')
    AND activity.pid IN (
        SELECT pg_locks.pid FROM pg_catalog.pg_locks
        WHERE NOT pg_locks.granted
    )
HAVING count(*) > 0
UNION ALL
SELECT format('a standby lags by %%s', pg_size_pretty(standby.lag_bytes)) AS reason
FROM analytics_standbys() AS standby
WHERE standby.lag_bytes > %(standby_lag_mb)s::bigint * 1024 * 1024;
