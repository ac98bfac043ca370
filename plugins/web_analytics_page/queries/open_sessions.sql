-- The sessions that are open now, by website.
-- Params: idle_minutes (int).
-- Result: website_id, sessions, idle (of them, those that the next cleanup closes).
SELECT
    session.website_id,
    count(*) AS sessions,
    count(*) FILTER (
        WHERE session.last_activity_at < now() - make_interval(mins => %(idle_minutes)s::int)
    ) AS idle
FROM analytics_session AS session
WHERE session.ended_at IS NULL AND session.deleted_at IS NULL
GROUP BY session.website_id;
