-- Finds days whose daily stats are missing or no longer right: events came late, were edited, moved, soft- or
-- hard-deleted since, or the website's time zone or the events that are ignored were changed. Sealed rows are never
-- due, and rows that are kept as they are not while fewer events are there than they count. A day that is not over is
-- due only if it has a row, as it can have after a change of the zone.
-- Result: one row: result (json: the days, YYYY-MM-DD, oldest first), log.
-- What was counted is compared with what is there, never one clock with another.
WITH event_day AS MATERIALIZED (
    SELECT
        website.website_id,
        day.date,
        day.starts_at,
        day.ends_at
    FROM analytics_websites() AS website (website_id)
    CROSS JOIN LATERAL analytics_event_days(website.website_id, '-infinity', now()) AS day
),

due AS (
    SELECT event_day.date
    FROM event_day
    LEFT JOIN analytics_daily_stats AS stats
        ON event_day.website_id = stats.website_id AND event_day.date = stats.date
    CROSS JOIN LATERAL analytics_signs(event_day.website_id, event_day.starts_at, event_day.ends_at) AS sign
    WHERE
        stats.sealed_at IS NULL
        AND CASE
            WHEN stats.website_id IS NULL THEN event_day.ends_at <= now() AND sign.total_events > 0
            WHEN stats.kept_at IS NOT NULL THEN sign.total_events >= stats.total_events
            ELSE
                (stats.starts_at, stats.ends_at, stats.total_events, stats.deleted_events, stats.edits_hash)
                <> (event_day.starts_at, event_day.ends_at, sign.total_events, sign.deleted_events, sign.edits_hash)
                OR stats.ignored_events IS DISTINCT FROM (SELECT analytics_ignored_events())
        END
    UNION
    -- All events of the day are gone, or are another day's now.
    SELECT stats.date
    FROM analytics_daily_stats AS stats
    LEFT JOIN event_day ON stats.website_id = event_day.website_id AND stats.date = event_day.date
    WHERE
        stats.sealed_at IS NULL
        AND stats.kept_at IS NULL
        AND stats.total_events > 0
        AND stats.ends_at <= now()
        AND event_day.date IS NULL
)

SELECT
    coalesce(json_agg(to_char(due.date, 'YYYY-MM-DD') ORDER BY due.date), '[]') AS result,
    CASE
        WHEN count(*) > 0 THEN '[Analytics Job] Found ' || count(*) || ' day(s) without right stats'
        ELSE '[Analytics Job] No day is due'
    END AS log
FROM due;
