-- Aggregates days into analytics_daily_stats: one row per website and day that has events, all or none.
-- Params: days (date[]), timezone (IANA name, where a website has none of its own).
-- Result: one row per website and day counted: website_id, total_events, remark (text).
-- A day that is not over in its website's time zone and has no row is left for a later run. A final row stays as it is,
-- and a row counted from a newer snapshot wins. Where raw events have vanished that were counted and not soft-deleted,
-- somebody else deleted them: the row becomes final instead of counting what is left.
WITH website AS (
    SELECT
        website.website_id,
        website.timezone
    FROM analytics_websites(%(timezone)s) AS website
    UNION
    -- Those that have no raw events left, but a row that is not final.
    SELECT
        stats.website_id,
        coalesce(policy.timezone, %(timezone)s) AS timezone
    FROM analytics_daily_stats AS stats
    LEFT JOIN analytics_website_policy AS policy ON stats.website_id = policy.website_id
    WHERE stats.date = any(%(days)s::date[]) AND stats.raw_purged_at IS NULL
),

website_day AS MATERIALIZED (
    SELECT
        website.website_id,
        website.timezone,
        day.date,
        analytics_website_day_start(website.website_id, day.date, website.timezone) AS starts_at,
        analytics_website_day_start(website.website_id, day.date + 1, website.timezone) AS ends_at
    FROM website
    CROSS JOIN unnest(%(days)s::date[]) AS day (date)
),

counted AS MATERIALIZED (
    SELECT
        website_day.*,
        day_total.*,
        stats.raw_purged_at IS NOT NULL AS is_final,
        stats.raw_purged_at IS NULL
        AND (stats.starts_at, stats.ends_at) = (website_day.starts_at, website_day.ends_at)
        AND stats.total_events - day_total.total_events
        > greatest(day_total.deleted_events - stats.deleted_events, 0) AS has_vanished
    FROM website_day
    CROSS JOIN
        LATERAL analytics_count_day(website_day.website_id, website_day.starts_at, website_day.ends_at) AS day_total
    LEFT JOIN analytics_daily_stats AS stats
        ON website_day.website_id = stats.website_id AND website_day.date = stats.date
    WHERE
        -- A day without events has no row, but one whose events were all soft-deleted keeps it.
        website_day.ends_at <= now() AND day_total.total_events > 0
        OR stats.raw_purged_at IS NULL AND stats.website_id IS NOT NULL
),

written AS (
    INSERT INTO analytics_daily_stats AS stats (
        website_id,
        date,
        total_pageviews,
        total_custom_events,
        unique_visitors,
        unique_sessions,
        top_pages,
        top_referrers,
        total_events, deleted_events, events_hash, visitor_sketch, timezone, starts_at, ends_at, aggregated_at
    )
    -- In one order, so that two runs of the same day wait for each other instead of deadlocking.
    SELECT
        website_id,
        date,
        total_pageviews,
        total_custom_events,
        unique_visitors,
        unique_sessions,
        top_pages,
        top_referrers,
        total_events,
        deleted_events,
        events_hash,
        visitor_sketch,
        timezone,
        starts_at,
        ends_at,
        now() AS aggregated_at
    FROM counted
    WHERE has_vanished IS NOT TRUE
    ORDER BY website_id, date
    ON CONFLICT (website_id, date) DO UPDATE SET
        total_pageviews = excluded.total_pageviews,
        total_custom_events = excluded.total_custom_events,
        unique_visitors = excluded.unique_visitors,
        unique_sessions = excluded.unique_sessions,
        top_pages = excluded.top_pages,
        top_referrers = excluded.top_referrers,
        total_events = excluded.total_events,
        deleted_events = excluded.deleted_events,
        events_hash = excluded.events_hash,
        visitor_sketch = excluded.visitor_sketch,
        timezone = excluded.timezone,
        starts_at = excluded.starts_at,
        ends_at = excluded.ends_at,
        aggregated_at = excluded.aggregated_at
    WHERE
    stats.raw_purged_at IS NULL
    AND stats.aggregated_at <= excluded.aggregated_at
    AND (
        stats.total_pageviews, stats.total_custom_events, stats.unique_visitors, stats.unique_sessions, stats.top_pages,
        stats.top_referrers, stats.total_events, stats.deleted_events, stats.events_hash, stats.visitor_sketch,
        stats.timezone, stats.starts_at, stats.ends_at
    ) IS DISTINCT FROM (
        excluded.total_pageviews, excluded.total_custom_events, excluded.unique_visitors, excluded.unique_sessions,
        excluded.top_pages,
        excluded.top_referrers,
        excluded.total_events,
        excluded.deleted_events,
        excluded.events_hash,
        excluded.visitor_sketch, excluded.timezone, excluded.starts_at, excluded.ends_at
    )
),

made_final AS (
    UPDATE analytics_daily_stats AS stats
    SET raw_purged_at = now(), purge_snapshot = pg_current_snapshot()
    FROM counted
    WHERE
        counted.has_vanished
        AND stats.website_id = counted.website_id
        AND stats.date = counted.date
        AND stats.raw_purged_at IS NULL
        AND stats.aggregated_at <= now()
)

SELECT
    website_id,
    total_events,
    CASE
        WHEN is_final THEN ', but left its row as it is: raw events of it were deleted before'
        WHEN has_vanished
            THEN ', but left its row as it is and made it final: somebody else deleted raw events of it'
        ELSE ''
    END AS remark
FROM counted
ORDER BY website_id, date;
