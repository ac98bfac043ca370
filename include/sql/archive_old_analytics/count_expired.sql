-- Counts what a run may delete: the events of proven days, and the sessions that have expired and lose all their
-- events.
-- Params: moment (timestamptz), retention_days (int), timezone (IANA name), for websites without a policy of their own.
-- Result: one row: events, sessions.
WITH proven AS MATERIALIZED (
    SELECT
        website_id,
        days
    FROM analytics_proven_days
)

SELECT
    (
        SELECT count(*)
        FROM analytics_event AS event
        INNER JOIN proven ON event.website_id = proven.website_id
        WHERE
            event.timestamp < (SELECT max(upper(newest.days)) FROM proven AS newest)
            AND proven.days @> event.timestamp
    ) AS events,
    (
        SELECT count(*)
        FROM analytics_expired_sessions(%(moment)s::timestamptz, %(timezone)s, %(retention_days)s::int)
    ) AS sessions;
