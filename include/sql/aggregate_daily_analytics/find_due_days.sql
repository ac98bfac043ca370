-- Finds days that are over and whose daily stats are missing or no longer right: events came late or were soft-deleted
-- since, or the website's time zone was changed. Days whose row is final are not due. A day that has a row is looked at
-- also while it is not over in its website's new time zone, so that its row does not overlap another one until then.
-- Params: timezone (IANA name, where a website has none of its own).
-- Result: one row per day, oldest first: day (text).
-- What was counted is compared with what is there, not when it was stored: a writer that had not committed when the day
-- was aggregated, or a clock that was wrong, makes no difference. The counts come from indexes alone.
WITH event_day AS MATERIALIZED (
    SELECT day.*
    FROM analytics_event_days(%(timezone)s, now()) AS day
    WHERE
        day.ends_at <= now()
        OR EXISTS (
            SELECT FROM analytics_daily_stats AS stats
            WHERE stats.website_id = day.website_id AND stats.date = day.date AND stats.raw_purged_at IS NULL
        )
),

due AS (
    SELECT event_day.date
    FROM event_day
    LEFT JOIN analytics_daily_stats AS stats
        ON event_day.website_id = stats.website_id AND event_day.date = stats.date
    CROSS JOIN
        LATERAL (
            SELECT count(*) AS events FROM analytics_event AS event
            WHERE
                event.website_id = event_day.website_id
                AND event.timestamp >= event_day.starts_at
                AND event.timestamp < event_day.ends_at
                AND event.deleted_at IS NULL
        ) AS live
    CROSS JOIN
        LATERAL (
            SELECT count(*) AS events FROM analytics_event AS event
            WHERE
                event.website_id = event_day.website_id
                AND event.timestamp >= event_day.starts_at
                AND event.timestamp < event_day.ends_at
                AND event.deleted_at IS NOT NULL
        ) AS deleted
    WHERE
        stats.raw_purged_at IS NULL
        AND (coalesce(stats.total_events, 0), coalesce(stats.deleted_events, deleted.events))
        <> (live.events, deleted.events)
        OR stats.raw_purged_at IS NULL
        AND (stats.starts_at, stats.ends_at) <> (event_day.starts_at, event_day.ends_at)
    UNION
    -- All events of the day are gone, or are another day's since the time zone was changed.
    SELECT row_without_events.date
    FROM (
        SELECT
            stats.*,
            analytics_website_day_start(stats.website_id, stats.date, website.timezone) AS day_starts_at,
            analytics_website_day_start(stats.website_id, stats.date + 1, website.timezone) AS day_ends_at
        FROM analytics_daily_stats AS stats
        LEFT JOIN event_day ON stats.website_id = event_day.website_id AND stats.date = event_day.date
        LEFT JOIN analytics_website_policy AS policy ON stats.website_id = policy.website_id
        CROSS JOIN LATERAL (SELECT coalesce(policy.timezone, %(timezone)s) AS timezone) AS website
        WHERE stats.raw_purged_at IS NULL AND event_day.date IS NULL
    ) AS row_without_events
    WHERE
        row_without_events.total_events > 0
        OR (row_without_events.starts_at, row_without_events.ends_at)
        <> (row_without_events.day_starts_at, row_without_events.day_ends_at)
)

SELECT due.date::text AS day
FROM due
ORDER BY due.date;
