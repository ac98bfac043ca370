-- Websites that usually have traffic, and have none.
-- Result: subject (the website), message; the busiest first.
WITH usual AS (
    SELECT
        stats.website_id,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY stats.total_events) AS events
    FROM analytics_daily_stats AS stats
    WHERE stats.ends_at >= now() - interval '15 days' AND stats.total_events > 0
    GROUP BY stats.website_id
    -- Normally has some: on half the days at least, and enough for a day without any not to be chance.
    HAVING count(*) >= 7
)

SELECT
    usual.website_id AS subject,
    format(
        'Website %%s: no event since %%s UTC, where a day has %%s as a rule; look at its tracking script and at '
        || 'what stores the events.',
        usual.website_id,
        coalesce(to_char(newest.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'its raw data was deleted'),
        usual.events
    ) AS message
FROM usual
CROSS JOIN
    LATERAL (
        SELECT max(event.timestamp) AS timestamp FROM analytics_event AS event
        WHERE event.website_id = usual.website_id AND event.timestamp <= now() AND event.deleted_at IS NULL
    ) AS newest
WHERE usual.events >= 20 AND coalesce(newest.timestamp, '-infinity') < now() - interval '1 day'
ORDER BY usual.events DESC, usual.website_id ASC;
