-- Websites with a day that ended long ago and has no daily stats.
-- Params: behind_hours (int).
-- Result: subject (the website), message; of the websites that wait longest.
SELECT
    website.website_id AS subject,
    format(
        'Website %%s: its day %%s ended %%s hours ago and has no daily stats; look whether '
        || 'aggregate_daily_analytics is paused or fails, and run it: it makes up for every day.',
        website.website_id, day.date, round(extract(EPOCH FROM now() - day.ends_at) / 3600)
    ) AS message
FROM analytics_websites() AS website (website_id)
LEFT JOIN LATERAL (
    SELECT stats.ends_at FROM analytics_daily_stats AS stats
    -- A clock that was ahead may have let days be counted that are still to come.
    WHERE stats.website_id = website.website_id AND stats.ends_at <= now()
    ORDER BY stats.date DESC LIMIT 1
) AS newest ON TRUE
CROSS JOIN
    LATERAL (
        SELECT min(event.timestamp) AS timestamp FROM analytics_event AS event
        WHERE
            event.website_id = website.website_id
            -- What is before has a time that no calendar has, and stays.
            AND event.timestamp >= coalesce(newest.ends_at, analytics_day_start(website.website_id, '0001-01-01'))
            AND event.timestamp < now()
            AND event.deleted_at IS NULL
    ) AS first_event
CROSS JOIN LATERAL analytics_day(website.website_id, first_event.timestamp) AS day
WHERE
    day.ends_at < now() - make_interval(hours => %(behind_hours)s::int)
    -- The first run of all, which makes up for everything, is given the time after which a run is late.
    AND NOT (
        SELECT coalesce(bool_and(run.outcome = 'running' AND run.started_at > now() - interval '12 hours'), FALSE)
        FROM analytics_job_run AS run
        WHERE run.job = 'aggregate_daily_analytics'
    )
ORDER BY day.ends_at, website.website_id;
