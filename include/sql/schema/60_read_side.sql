-- What people ask: traffic per day, whether it was aggregated yet or not, and visitors of any range of days.
-- Their names are resolved here once, whatever search_path the reader has.

-- The days that have events and no row yet, today included, counted now.
CREATE OR REPLACE FUNCTION analytics_live_days(
    only_website text DEFAULT NULL, from_day date DEFAULT '-infinity', to_day date DEFAULT 'infinity'
)
RETURNS SETOF analytics_daily_stats
LANGUAGE sql STABLE ROWS 100
SET search_path FROM CURRENT
AS $$
    SELECT
        day.website_id, day.date, counted.total_pageviews, counted.total_custom_events, counted.unique_visitors,
        counted.unique_sessions, counted.top_pages, counted.top_referrers, counted.total_events, counted.deleted_events,
        counted.events_hash, counted.visitor_sketch, day.timezone, day.starts_at, day.ends_at, NULL::timestamptz,
        NULL::timestamptz, NULL::pg_snapshot
    FROM analytics_event_days(NULL, now(), only_website) AS day
    CROSS JOIN LATERAL analytics_count_day(day.website_id, day.starts_at, day.ends_at) AS counted
    WHERE
        day.date BETWEEN from_day AND to_day
        AND counted.total_events > 0
        AND NOT EXISTS (
            SELECT FROM analytics_daily_stats AS stats
            WHERE stats.website_id = day.website_id AND stats.date = day.date
        )
$$;

-- Per website and day, the row of analytics_daily_stats where there is one, else what a count gives now (aggregated_at
-- is NULL). Right before and after the raw events are gone.
CREATE OR REPLACE VIEW analytics_traffic_daily AS
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
    aggregated_at,
    raw_purged_at,
    purge_snapshot
FROM analytics_daily_stats
UNION ALL
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
    aggregated_at,
    raw_purged_at,
    purge_snapshot
FROM analytics_live_days();

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
AS $$
DECLARE
    day_timezone text := (SELECT timezone FROM analytics_websites(NULL, website));
    days bigint;
    purged_days bigint;
BEGIN
    SELECT count(*), count(stats.raw_purged_at) INTO days, purged_days
    FROM analytics_daily_stats AS stats
    WHERE stats.website_id = website AND stats.date BETWEEN from_day AND to_day;
    IF purged_days = 0 THEN
        RETURN (
            SELECT count(*) FROM (
                SELECT DISTINCT event.visitor_id FROM analytics_event AS event
                WHERE
                    event.website_id = website
                    AND event.timestamp >= analytics_website_day_start(website, from_day, day_timezone)
                    AND event.timestamp < analytics_website_day_start(website, to_day + 1, day_timezone)
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
                stats.date,
                stats.unique_visitors,
                stats.visitor_sketch
            FROM analytics_daily_stats AS stats
            WHERE stats.website_id = website
            UNION ALL
            SELECT
                live.date,
                live.unique_visitors,
                live.visitor_sketch
            FROM analytics_live_days(website, from_day, to_day) AS live
        ) AS traffic
        WHERE traffic.date BETWEEN from_day AND to_day
    );
END
$$;
