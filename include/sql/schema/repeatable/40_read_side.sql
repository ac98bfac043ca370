-- What people ask: traffic per day, whether it was aggregated yet or not, and visitors of any range of days.
-- Their names are resolved here once, whatever search_path the reader has.

-- The days of a website, or of all (NULL), that have events and no row yet, today included, counted now.
CREATE OR REPLACE FUNCTION analytics_live_rows(
    website text, from_day date DEFAULT '-infinity', to_day date DEFAULT 'infinity'
)
RETURNS SETOF analytics_daily_stats
LANGUAGE sql STABLE ROWS 2
SET search_path FROM CURRENT
SET jit = off
AS $$
    -- Between the rows that there are: the days of a year need not be looked at one by one.
    WITH gap AS (
        SELECT
            edge.website_id,
            edge.day_before + 1 AS first_day,
            edge.date - 1 AS last_day
        FROM (
            SELECT
                name.website_id,
                stored.date,
                lag(stored.date, 1, greatest(from_day, '0001-01-01') - 1)
                OVER (PARTITION BY name.website_id ORDER BY stored.date) AS day_before
            FROM analytics_websites(website) AS name (website_id)
            CROSS JOIN LATERAL (
                SELECT stats.date FROM analytics_daily_stats AS stats
                WHERE
                    stats.website_id = name.website_id
                    AND stats.date BETWEEN greatest(from_day, '0001-01-01') AND least(to_day, '9999-12-31')
                UNION ALL
                SELECT least(to_day, '9999-12-31') + 1 AS date
            ) AS stored
        ) AS edge
        WHERE edge.date > edge.day_before + 1
    ),

    missing AS (
        SELECT
            array_agg(gap.website_id) AS websites,
            array_agg(day.date) AS dates,
            array_agg(day.starts_at) AS starts,
            array_agg(day.ends_at) AS ends
        FROM gap
        CROSS JOIN LATERAL analytics_event_days(
            gap.website_id,
            analytics_day_start(gap.website_id, gap.first_day),
            least(now(), analytics_day_start(gap.website_id, gap.last_day + 1))
        ) AS day
        HAVING count(*) > 0
    )

    SELECT counted.*
    FROM missing
    CROSS JOIN LATERAL analytics_count_days(missing.websites, missing.dates, missing.starts, missing.ends) AS counted
    WHERE counted.total_events > 0
$$;

-- Per website and day, the row of analytics_daily_stats where there is one, else what a count gives now (aggregated_at
-- is NULL). Right before and after the raw events are gone. The totals have the events that came late as well.
CREATE OR REPLACE VIEW analytics_traffic_daily AS
-- The order and the types of the columns are a contract; that of the sketch is without a length.
SELECT -- noqa: ST06
    daily.of_website AS website_id,
    daily.date,
    daily.total_pageviews + daily.late_pageviews AS total_pageviews,
    daily.total_custom_events + daily.late_custom_events AS total_custom_events,
    daily.unique_visitors,
    daily.unique_sessions,
    daily.top_pages,
    daily.top_referrers,
    daily.total_events + daily.late_pageviews + daily.late_custom_events + daily.late_ignored_events AS total_events,
    daily.visitor_sketch::pg_catalog.bit AS visitor_sketch,
    daily.starts_at,
    daily.ends_at,
    daily.aggregated_at,
    daily.sealed_at,
    daily.bounced_sessions,
    daily.session_seconds,
    daily.top_countries,
    daily.top_devices,
    daily.top_browsers,
    daily.top_os,
    daily.top_utm_sources,
    daily.top_utm_mediums,
    daily.top_utm_campaigns,
    daily.top_events
FROM (
    -- Not the column of the function's rows, so that who asks for one website does not make it look at all.
    SELECT
        stats.website_id AS of_website,
        stats.*
    FROM analytics_daily_stats AS stats
    UNION ALL
    SELECT
        website.website_id AS of_website,
        live.*
    FROM analytics_websites() AS website (website_id)
    CROSS JOIN LATERAL analytics_live_rows(website.website_id) AS live
) AS daily;

-- What the view stood on in an earlier release.
DROP FUNCTION IF EXISTS analytics_live_days(text, date, date);

-- How many visitors a sketch has seen: the most likely number. Its standard error is 0.65 / sqrt(2048) = 1.4 %.
-- A bit of a level that gets a visitor with probability p is set with probability 1 - exp(-n * p / 2048).
CREATE OR REPLACE FUNCTION analytics_sketch_visitors(sketch bit(49152)) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    -- Bits that are set, and the probability of one of them, by level. The last level has what is left.
    bits bigint[] := ARRAY(
        SELECT bit_count(substring(sketch FROM level * 2048 + 1 FOR 2048)) FROM generate_series(0, 23) AS level
    );
    chance float8[] := ARRAY(SELECT 0.5 ^ least(level + 1, 23) / 2048 FROM generate_series(0, 23) AS level);
    few float8 := 0;
    many float8 := 1e11;
    visitors float8;
BEGIN
    IF bit_count(sketch) = 0 THEN
        RETURN 0;
    END IF;
    WHILE many - few > 0.1 LOOP
        visitors := (few + many) / 2;
        -- The derivative of the logarithm of the likelihood; exp() of more than 700 is out of range.
        IF (
            SELECT sum(level.chance * (level.bits / (exp(least(visitors * level.chance, 700)) - 1) - (2048 - level.bits)))
            FROM unnest(bits, chance) AS level (bits, chance)
        ) > 0 THEN
            few := visitors;
        ELSE
            many := visitors;
        END IF;
    END LOOP;
    RETURN round(visitors);
END
$$;

-- The unique visitors of a website from a day to another, both included: never a sum of days. Exact while the raw
-- events of all these days are there, and for a single day; else estimated from the days' sketches, with a standard
-- error of 1.4 %.
CREATE OR REPLACE FUNCTION analytics_unique_visitors(website text, from_day date, to_day date) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM analytics_daily_stats AS stats
        WHERE
            stats.website_id = website
            AND stats.date BETWEEN from_day AND to_day
            AND (stats.sealed_at IS NOT NULL OR stats.kept_at IS NOT NULL)
    ) THEN
        RETURN (
            SELECT count(*) FROM (
                SELECT DISTINCT event.visitor_id FROM analytics_event AS event
                WHERE
                    event.website_id = website
                    AND event.timestamp >= analytics_day_start(website, greatest(from_day, '0001-01-01'))
                    AND event.timestamp < analytics_day_start(website, least(to_day, '9999-12-31') + 1)
                    AND event.deleted_at IS NULL
            ) AS visitor
        );
    END IF;
    RETURN (
        SELECT
            CASE
                WHEN count(*) = 1 THEN max(traffic.unique_visitors)
                ELSE analytics_sketch_visitors(bit_or(traffic.visitor_sketch))
            END
        FROM (
            SELECT
                stats.unique_visitors,
                stats.visitor_sketch
            FROM analytics_daily_stats AS stats
            WHERE stats.website_id = website AND stats.date BETWEEN from_day AND to_day
            UNION ALL
            SELECT
                live.unique_visitors,
                live.visitor_sketch
            FROM analytics_live_rows(website, from_day, to_day) AS live
        ) AS traffic
    );
END
$$;

-- The traffic of each website, or of the one that is named, from a day to another, both included: before and after its
-- raw events are gone. Days without a row are counted now, unless live is false. Visitors and sessions are those of
-- single days, added up: visitor_days (see analytics_unique_visitors) and sessions, of which bounced_sessions and
-- session_seconds are known for known_sessions. Late events are in the totals, and in late_events.
CREATE OR REPLACE FUNCTION analytics_totals(
    website text, from_day date, to_day date, live boolean DEFAULT TRUE,
    OUT website_id text, OUT days bigint, OUT total_pageviews bigint, OUT total_custom_events bigint,
    OUT visitor_days bigint, OUT sessions bigint, OUT known_sessions bigint, OUT bounced_sessions bigint,
    OUT session_seconds bigint, OUT late_events bigint
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 50
-- Planned each time, so that one website is looked up in the index.
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT
        daily.of_website,
        count(*),
        sum(daily.total_pageviews + daily.late_pageviews)::bigint,
        sum(daily.total_custom_events + daily.late_custom_events)::bigint,
        sum(daily.unique_visitors)::bigint,
        sum(daily.unique_sessions)::bigint,
        coalesce(sum(daily.unique_sessions) FILTER (WHERE daily.bounced_sessions IS NOT NULL), 0)::bigint,
        sum(daily.bounced_sessions)::bigint,
        sum(daily.session_seconds)::bigint,
        sum(daily.late_pageviews + daily.late_custom_events + daily.late_ignored_events)::bigint
    FROM (
        SELECT
            stats.website_id AS of_website,
            stats.*
        FROM analytics_daily_stats AS stats
        WHERE stats.date BETWEEN from_day AND to_day
        UNION ALL
        SELECT
            live_row.website_id AS of_website,
            live_row.*
        FROM analytics_live_rows(website, from_day, to_day) AS live_row
        WHERE live
    ) AS daily
    WHERE website IS NULL OR daily.of_website = website
    GROUP BY daily.of_website;
END
$$;

-- The items of a dimension (pages, referrers, countries, devices, browsers, os, utm_sources, utm_mediums,
-- utm_campaigns, events) of a website, from a day to another, both included: before and after its raw events are gone,
-- the most counted first. Of each day ten items are kept: what an item may have had on days on which it was not one of
-- them is at most hidden, for then it had at most what the tenth had, and what all others had together. visitor_days
-- are the visitors of single days, added up; NULL of pages and referrers. Late events are not among them.
CREATE OR REPLACE FUNCTION analytics_top_items(
    website text, from_day date, to_day date, dimension text, live boolean DEFAULT TRUE,
    OUT item text, OUT count bigint, OUT visitor_days bigint, OUT hidden bigint
)
RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 100
SET search_path FROM CURRENT
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH daily AS (
        SELECT
            CASE dimension WHEN 'events' THEN traffic.total_custom_events ELSE traffic.total_pageviews END AS total,
            CASE dimension
                WHEN 'pages' THEN traffic.top_pages
                WHEN 'referrers' THEN traffic.top_referrers
                WHEN 'countries' THEN traffic.top_countries
                WHEN 'devices' THEN traffic.top_devices
                WHEN 'browsers' THEN traffic.top_browsers
                WHEN 'os' THEN traffic.top_os
                WHEN 'utm_sources' THEN traffic.top_utm_sources
                WHEN 'utm_mediums' THEN traffic.top_utm_mediums
                WHEN 'utm_campaigns' THEN traffic.top_utm_campaigns
                WHEN 'events' THEN traffic.top_events
            END AS items
        FROM (
            SELECT * FROM analytics_daily_stats AS stats
            WHERE stats.website_id = website AND stats.date BETWEEN from_day AND to_day
            UNION ALL
            SELECT * FROM analytics_live_rows(website, from_day, to_day)
            WHERE live
        ) AS traffic
    ),

    bound AS MATERIALIZED (
        SELECT
            daily.items,
            (
                SELECT
                    CASE
                        WHEN count(*) = 10 THEN least(min(named.count), daily.total - sum(named.count)) ELSE 0
                    END
                FROM jsonb_to_recordset(daily.items) AS named (item text, count bigint)
                WHERE named.item <> '(other)'
            ) AS hidden
        FROM daily
    )

    SELECT
        listed.item,
        sum(listed.count)::bigint AS count,
        sum(listed.visitors)::bigint,
        CASE
            WHEN listed.item <> '(other)' THEN (SELECT sum(every.hidden) FROM bound AS every) - sum(bound.hidden) ELSE 0
        END::bigint
    FROM bound
    CROSS JOIN LATERAL jsonb_to_recordset(bound.items) AS listed (item text, count bigint, visitors bigint)
    GROUP BY listed.item
    ORDER BY listed.item = '(other)' ASC, count DESC, listed.item COLLATE "C" ASC;
END
$$;
