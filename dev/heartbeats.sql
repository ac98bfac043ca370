-- Makes up what the tracker of one website sends every 30 seconds while somebody looks at a page, of the last week.
-- Params: website (text), now (timestamptz).
INSERT INTO analytics_event (
    id, website_id, event_type, event_name, pathname, visitor_id, session_id, browser, os, device_type, country,
    timestamp, created_at, updated_at
)
SELECT
    'anevt_beat_' || beat.n || session.id AS id,
    session.website_id,
    'custom_event' AS event_type,
    'heartbeat' AS event_name,
    session.entry_page AS pathname,
    session.visitor_id,
    session.session_id,
    session.browser,
    session.os,
    session.device_type,
    session.country,
    session.started_at + beat.n * interval '30 seconds' AS timestamp,
    session.started_at + beat.n * interval '30 seconds' AS created_at,
    session.started_at + beat.n * interval '30 seconds' AS updated_at
FROM analytics_session AS session
CROSS JOIN generate_series(1, 20) AS beat (n)
WHERE
    session.website_id = %(website)s
    AND session.started_at > %(now)s::timestamptz - interval '7 days'
    AND session.started_at + beat.n * interval '30 seconds' <= session.last_activity_at;
