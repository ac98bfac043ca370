-- Aggregates one day into analytics_daily_stats: one row per website that has events, all or none.
-- Params: day (date), timezone (IANA name): the calendar day, as the half-open interval of instants it covers.
-- Result: one row per website: website_id, total_events, remark (text).
-- A row whose raw events have been purged stays as it is, and a row counted from a newer snapshot wins.
-- LATERAL makes the planner estimate the groups of one website at a time and hash them. For all websites in one
-- GROUPING SETS it overestimates, and sorts under the database's collation instead, which is many times slower.
WITH RECURSIVE website AS (
    (
        SELECT event.website_id FROM analytics_event AS event
        WHERE event.deleted_at IS NULL
        ORDER BY event.website_id LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT event.website_id FROM analytics_event AS event
        WHERE event.website_id > website.website_id AND event.deleted_at IS NULL
        ORDER BY event.website_id LIMIT 1
    )
    FROM website
    WHERE website.website_id IS NOT NULL
),

counted AS MATERIALIZED (
    SELECT day_total.*
    FROM website
    CROSS JOIN
        LATERAL (
            WITH grouped AS MATERIALIZED (
                SELECT
                    event.pathname,
                    event.referrer_source,
                    grouping(event.pathname, event.referrer_source, event.visitor_id, event.session_id) AS absent,
                    count(*) AS events,
                    count(*) FILTER (WHERE event.event_type = 'pageview') AS pageviews,
                    count(*) FILTER (WHERE event.event_type = 'custom_event') AS custom_events
                FROM analytics_event AS event
                WHERE
                    event.website_id = website.website_id
                    AND event.deleted_at IS NULL
                    AND event.timestamp >= analytics_day_start(%(day)s::date, %(timezone)s)
                    AND event.timestamp < analytics_day_start(%(day)s::date + 1, %(timezone)s)
                GROUP BY
                    GROUPING SETS ((event.pathname), (event.referrer_source), (event.visitor_id), (event.session_id))
            ),

            page AS (
                SELECT
                    pathname AS item,
                    pageviews
                FROM grouped
                WHERE absent = b'0111'::int AND pageviews > 0
                ORDER BY pageviews DESC, pathname COLLATE "C" ASC LIMIT 10
            ),

            referrer AS (
                SELECT
                    referrer_source AS item,
                    pageviews
                FROM grouped
                WHERE absent = b'1011'::int AND pageviews > 0 AND referrer_source <> ''
                ORDER BY pageviews DESC, referrer_source COLLATE "C" ASC LIMIT 10
            )

            SELECT
                website.website_id,
                sum(grouped.pageviews) FILTER (WHERE grouped.absent = b'0111'::int)::bigint AS total_pageviews,
                sum(grouped.custom_events) FILTER (WHERE grouped.absent = b'0111'::int)::bigint AS total_custom_events,
                count(*) FILTER (WHERE grouped.absent = b'1101'::int) AS unique_visitors,
                count(*) FILTER (WHERE grouped.absent = b'1110'::int) AS unique_sessions,
                coalesce((
                    SELECT
                        jsonb_agg(
                            jsonb_build_object('item', item, 'count', pageviews)
                            ORDER BY pageviews DESC, item COLLATE "C" ASC
                        )
                    FROM page
                ), '[]') AS top_pages,
                coalesce((
                    SELECT
                        jsonb_agg(
                            jsonb_build_object('item', item, 'count', pageviews)
                            ORDER BY pageviews DESC, item COLLATE "C" ASC
                        )
                    FROM referrer
                ), '[]') AS top_referrers,
                sum(grouped.events) FILTER (WHERE grouped.absent = b'0111'::int)::bigint AS total_events
            FROM grouped
        ) AS day_total
    WHERE day_total.total_events > 0
),

written AS (
    INSERT INTO analytics_daily_stats AS stats (
        website_id, date, total_pageviews, total_custom_events, unique_visitors, unique_sessions,
        top_pages, top_referrers, total_events, aggregated_at
    )
    -- In one order, so that two runs of the same day wait for each other instead of deadlocking.
    SELECT
        website_id,
        %(day)s::date AS date,
        total_pageviews,
        total_custom_events,
        unique_visitors,
        unique_sessions,
        top_pages,
        top_referrers,
        total_events,
        now() AS aggregated_at
    FROM counted
    ORDER BY website_id
    ON CONFLICT (website_id, date) DO UPDATE SET
        total_pageviews = excluded.total_pageviews,
        total_custom_events = excluded.total_custom_events,
        unique_visitors = excluded.unique_visitors,
        unique_sessions = excluded.unique_sessions,
        top_pages = excluded.top_pages,
        top_referrers = excluded.top_referrers,
        total_events = excluded.total_events,
        aggregated_at = excluded.aggregated_at
    WHERE
    stats.raw_purged_at IS NULL
    AND stats.aggregated_at <= excluded.aggregated_at
    AND (
        stats.total_pageviews, stats.total_custom_events, stats.unique_visitors, stats.unique_sessions,
        stats.top_pages, stats.top_referrers, stats.total_events
    ) IS DISTINCT FROM (
        excluded.total_pageviews, excluded.total_custom_events, excluded.unique_visitors,
        excluded.unique_sessions, excluded.top_pages, excluded.top_referrers, excluded.total_events
    )
)

SELECT
    counted.website_id,
    counted.total_events,
    CASE
        WHEN stats.raw_purged_at IS NOT NULL THEN ', but left its row as it is: raw events of it were deleted before'
        ELSE ''
    END AS remark
FROM counted
LEFT JOIN analytics_daily_stats AS stats ON counted.website_id = stats.website_id AND stats.date = %(day)s::date
ORDER BY counted.website_id;
