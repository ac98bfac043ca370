-- Freezes the run's cutoff, the start of the day retention_days before today, and counts what is older.
-- Params: retention_days (int), timezone (IANA name).
-- Result: one row: cutoff (timestamptz as text), events, sessions, database_bytes, database_size.
-- Soft-deleted rows expire as well. A session expires by its last activity, and while it has no event younger
-- than the cutoff.
WITH retention AS (
    SELECT
        analytics_day_start(
            (now() AT TIME ZONE %(timezone)s)::date - %(retention_days)s::int, %(timezone)s
        ) AS cutoff
)

SELECT
    retention.cutoff::text AS cutoff,
    (
        SELECT count(*) FROM analytics_event AS event
        WHERE event.timestamp < retention.cutoff
    ) AS events,
    (
        SELECT count(*) FROM analytics_session AS session
        WHERE
            session.started_at < retention.cutoff
            AND session.last_activity_at < retention.cutoff
            AND NOT EXISTS (
                SELECT FROM analytics_event AS event
                WHERE
                    event.session_id = session.session_id
                    AND event.deleted_at IS NULL
                    AND event.timestamp >= retention.cutoff
            )
    ) AS sessions,
    pg_database_size(current_database()) AS database_bytes,
    pg_size_pretty(pg_database_size(current_database())) AS database_size
FROM retention;
