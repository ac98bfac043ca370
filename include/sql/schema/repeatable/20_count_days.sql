-- What the raw events of a day say.

-- The hash of what an event says of its visitor: the attributes that the statistics divide pageviews by.
CREATE OR REPLACE FUNCTION analytics_attributes_hash(
    country text, device_type text, browser text, os text, utm_source text, utm_medium text, utm_campaign text
)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- Each hash is the seed of the next one, which takes half the time of the hash of a record.
    SELECT hashtextextended(coalesce(country, ''),
        hashtextextended(coalesce(device_type, ''),
        hashtextextended(coalesce(browser, ''),
        hashtextextended(coalesce(os, ''),
        hashtextextended(coalesce(utm_source, ''),
        hashtextextended(coalesce(utm_medium, ''),
        hashtextextended(coalesce(utm_campaign, ''), 0)))))))
$$;

-- The hash of everything of an event that is counted. Rows are known by their id, so that no two events cancel out.
CREATE OR REPLACE FUNCTION analytics_event_hash(
    id text, event_type text, event_name text, pathname text, referrer_source text, visitor_id text, session_id text,
    attributes bigint, instant timestamptz
)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended(coalesce(id, ''),
        hashtextextended(coalesce(event_type, ''),
        hashtextextended(coalesce(event_name, ''),
        hashtextextended(coalesce(pathname, ''),
        hashtextextended(coalesce(referrer_source, ''),
        hashtextextended(coalesce(visitor_id, ''),
        hashtextextended(coalesce(session_id, ''),
        interval_hash_extended(instant - '2000-01-01 00:00:00+00'::timestamptz, attributes))))))))
$$;

-- The names of custom events that are proven and deleted like all, but not counted as custom events.
CREATE OR REPLACE FUNCTION analytics_ignored_events() RETURNS text[]
LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(ignored.event_name ORDER BY ignored.event_name COLLATE "C"), '{}')
    FROM analytics_ignored_event AS ignored
$$;

-- Makes these the names, in place of those before. Returns a sentence about a change: days that have their raw events
-- are counted again, sealed rows stay as they are.
CREATE OR REPLACE FUNCTION analytics_ignore_events(names text[]) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    ignored_before text[] := analytics_ignored_events();
BEGIN
    IF ignored_before @> names AND names @> ignored_before THEN
        RETURN NULL;
    END IF;
    DELETE FROM analytics_ignored_event AS ignored WHERE ignored.event_name <> ALL (names);
    INSERT INTO analytics_ignored_event (event_name) SELECT unnest(names) ON CONFLICT DO NOTHING;
    RETURN format(
        'ANALYTICS_IGNORED_EVENTS is %s now, and was %s: days whose rows are not sealed are counted again',
        coalesce(nullif(array_to_string(analytics_ignored_events(), ', '), ''), 'empty'),
        coalesce(nullif(array_to_string(ignored_before, ', '), ''), 'empty')
    );
END
$$;

-- What tells cheaply, from indexes alone, that events came, went or were edited: how many there are, how many are
-- soft-deleted, and which of them the application has edited, and when. A change that leaves no trace in it, such as
-- one event in place of another, is found by the hash of all events before any of them is deleted.
-- Of a form that PostgreSQL makes a part of the statement which calls it: a call for each day would take longer.
CREATE OR REPLACE FUNCTION analytics_signs(website text, from_instant timestamptz, to_instant timestamptz)
RETURNS TABLE (total_events bigint, deleted_events bigint, edits_hash bigint)
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT
        (
            SELECT count(*) FROM analytics_event AS event
            WHERE
                event.website_id = website
                AND event.timestamp >= from_instant
                AND event.timestamp < to_instant
                AND event.deleted_at IS NULL
        ),
        (
            SELECT count(*) FROM analytics_event AS event
            WHERE
                event.website_id = website
                AND event.timestamp >= from_instant
                AND event.timestamp < to_instant
                AND event.deleted_at IS NOT NULL
        ),
        (
            SELECT coalesce(bit_xor(hash_record_extended(ROW(event.id, event.updated_at), 0)), 0)
            FROM analytics_event AS event
            WHERE
                event.website_id = website
                AND event.timestamp >= from_instant
                AND event.timestamp < to_instant
                AND event.updated_at <> event.created_at
                AND event.deleted_at IS NULL
        )
$$;

-- The bit of a visitor in visitor_sketch, a bitmap of 24 levels of 2048 bits (Flajolet and Martin, "Probabilistic
-- counting algorithms for data base applications", 1985). The visitor's hash decides: level n gets a visitor with
-- probability 2^-(n+1), the last level what is left. The sketch of several days is the bitwise or of theirs.
CREATE OR REPLACE FUNCTION analytics_sketch_bit(hash bit(64)) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT
        substring(hash FROM 1 FOR 11)::bit(11)::integer
        + 2048 * (position(B'1' IN substring(hash FROM 12 FOR 23) || B'1') - 1)
$$;

-- The rows that websites' days [from_instant, to_instant) should have in analytics_daily_stats; the n-th of each array
-- is of the n-th day. Of an item its first 2048 characters are kept: more than any address has, and far less than what
-- fits into a jsonb value.
CREATE OR REPLACE FUNCTION analytics_count_days(
    websites text[], days date[], from_instants timestamptz[], to_instants timestamptz[]
)
RETURNS SETOF analytics_daily_stats
LANGUAGE plpgsql STABLE ROWS 100
-- Planned once for all websites and days. Groups must be hashed: sorting them under the database's collation is many
-- times slower, and is what the planner chooses where it overestimates their number. So must what is joined: each with
-- each takes minutes, and is what it chooses where it underestimates them.
SET plan_cache_mode = force_generic_plan
SET enable_sort = off
SET enable_nestloop = off
SET jit = off
AS $$
DECLARE
    ignored text[] := analytics_ignored_events();
    counted analytics_daily_stats;
    found record;
BEGIN
    FOR found IN
        WITH day AS MATERIALIZED (
            SELECT * FROM unnest(websites, days, from_instants, to_instants)
            WITH ORDINALITY AS given (website_id, date, starts_at, ends_at, number)
        ),

        -- By page, referrer, session, attributes, and visitor, of whom few have several attributes. Only events that are
        -- no pageviews have a custom_event.
        grouped AS MATERIALIZED (
            SELECT
                day.number,
                event.pathname,
                event.referrer_source,
                event.session_id,
                event.country,
                event.device_type,
                event.browser,
                event.os,
                event.utm_source,
                event.utm_medium,
                event.utm_campaign,
                event.attributes,
                event.visitor_id,
                event.custom_event,
                grouping(event.pathname, event.referrer_source, event.session_id, event.country, event.visitor_id)
                    AS absent,
                count(*) AS events,
                count(*) FILTER (WHERE event.is_pageview) AS pageviews,
                count(event.custom_event) AS custom_events,
                max(event.timestamp) - min(event.timestamp) AS duration,
                bit_xor(analytics_event_hash(
                    event.id,
                    event.event_type,
                    event.event_name,
                    event.pathname,
                    event.referrer_source,
                    event.visitor_id,
                    event.session_id,
                    event.attributes,
                    event.timestamp
                )) AS hash
            FROM day
            CROSS JOIN LATERAL (
                -- OFFSET 0 makes it a scan of an index for each day, whatever the planner thinks of their number.
                SELECT
                    event.id,
                    event.event_type,
                    event.event_name,
                    event.pathname,
                    event.referrer_source,
                    event.visitor_id,
                    event.session_id,
                    event.timestamp,
                    event.event_type = 'pageview' AS is_pageview,
                    coalesce(event.country, '') AS country,
                    coalesce(event.device_type, '') AS device_type,
                    coalesce(event.browser, '') AS browser,
                    coalesce(event.os, '') AS os,
                    coalesce(event.utm_source, '') AS utm_source,
                    coalesce(event.utm_medium, '') AS utm_medium,
                    coalesce(event.utm_campaign, '') AS utm_campaign,
                    analytics_attributes_hash(
                        event.country,
                        event.device_type,
                        event.browser,
                        event.os,
                        event.utm_source,
                        event.utm_medium,
                        event.utm_campaign
                    ) AS attributes,
                    CASE
                        WHEN event.event_type = 'custom_event' AND (event.event_name = any(ignored)) IS NOT TRUE
                            THEN coalesce(nullif(event.event_name, ''), '(none)')
                    END AS custom_event
                FROM analytics_event AS event
                WHERE
                    event.website_id = day.website_id
                    AND event.timestamp >= day.starts_at
                    AND event.timestamp < day.ends_at
                    AND event.deleted_at IS NULL
                OFFSET 0
            ) AS event
            GROUP BY
                GROUPING SETS (
                    (day.number, event.pathname),
                    (day.number, event.referrer_source),
                    (day.number, event.session_id),
                    (
                        day.number, event.country, event.device_type, event.browser, event.os, event.utm_source,
                        event.utm_medium, event.utm_campaign, event.attributes
                    ),
                    (day.number, event.visitor_id, event.attributes, event.custom_event)
                )
        ),

        -- Of each visitor, and of all who have the same attributes: the pairs of the two that have pageviews.
        pair AS MATERIALIZED (
            SELECT
                grouped.number,
                grouped.visitor_id,
                grouped.attributes,
                grouping(grouped.attributes) = 1 AS is_visitor,
                count(*) FILTER (WHERE grouped.pageviews > 0) AS pairs
            FROM grouped
            WHERE grouped.absent = b'11110'::int
            GROUP BY GROUPING SETS ((grouped.number, grouped.visitor_id), (grouped.number, grouped.attributes))
        ),

        attribute AS MATERIALIZED (
            SELECT
                grouped.number,
                grouped.attributes,
                grouped.pageviews,
                pair.pairs,
                dimension.number AS dimension,
                coalesce(nullif(dimension.item, ''), '(none)') AS item
            FROM grouped
            INNER JOIN pair ON grouped.number = pair.number AND grouped.attributes = pair.attributes
            CROSS JOIN LATERAL (
                VALUES
                (1, grouped.country), (2, grouped.device_type), (3, grouped.browser), (4, grouped.os),
                (5, grouped.utm_source), (6, grouped.utm_medium), (7, grouped.utm_campaign)
            ) AS dimension (number, item)
            WHERE grouped.absent = b'11101'::int AND grouped.pageviews > 0 AND NOT pair.is_visitor
        ),

        -- A visitor is one of the item of most of its pageviews or custom events, of several of the first one in byte
        -- order. The dimension of custom events is 8.
        share AS (
            SELECT
                part.number,
                part.dimension,
                part.item,
                sum(part.count) AS count,
                sum(part.visitors) AS visitors
            FROM (
                SELECT
                    attribute.number,
                    attribute.dimension,
                    attribute.item,
                    attribute.pageviews AS count,
                    attribute.pairs AS visitors
                FROM attribute
                UNION ALL
                SELECT
                    several.number,
                    attribute.dimension,
                    attribute.item,
                    0 AS count,
                    CASE
                        row_number() OVER (
                            PARTITION BY several.number, several.visitor_id COLLATE "C", attribute.dimension
                            ORDER BY sum(several.pageviews) DESC, attribute.item COLLATE "C" ASC
                        )
                        WHEN 1 THEN 1
                        ELSE 0
                    END - count(*) AS visitors
                FROM (
                    -- Who has several attributes was counted with each. OFFSET 0: they are few, and so looked up first.
                    SELECT
                        grouped.number,
                        grouped.visitor_id,
                        grouped.attributes,
                        grouped.pageviews
                    FROM grouped
                    INNER JOIN pair ON grouped.number = pair.number AND grouped.visitor_id = pair.visitor_id
                    WHERE
                        grouped.absent = b'11110'::int
                        AND grouped.pageviews > 0
                        AND pair.is_visitor
                        AND pair.pairs > 1
                    OFFSET 0
                ) AS several
                INNER JOIN attribute
                    ON several.number = attribute.number AND several.attributes = attribute.attributes
                GROUP BY several.number, several.visitor_id, attribute.dimension, attribute.item
                UNION ALL
                SELECT
                    grouped.number,
                    8 AS dimension,
                    grouped.custom_event AS item,
                    sum(grouped.custom_events) AS count,
                    CASE
                        row_number() OVER (
                            PARTITION BY grouped.number, grouped.visitor_id COLLATE "C"
                            ORDER BY sum(grouped.custom_events) DESC, grouped.custom_event COLLATE "C" ASC
                        )
                        WHEN 1 THEN 1
                        ELSE 0
                    END AS visitors
                FROM grouped
                WHERE grouped.absent = b'11110'::int AND grouped.custom_event IS NOT NULL
                GROUP BY grouped.number, grouped.visitor_id, grouped.custom_event
            ) AS part
            GROUP BY part.number, part.dimension, part.item
        ),

        -- An item that is named (other) is one of the others.
        dimension AS (
            SELECT
                named.number,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 1) AS countries,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 2) AS devices,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 3) AS browsers,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 4) AS os,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 5) AS utm_sources,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 6) AS utm_mediums,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 7) AS utm_campaigns,
                jsonb_agg(named.entry ORDER BY named.place) FILTER (WHERE named.dimension = 8) AS events
            FROM (
                SELECT
                    placed.number,
                    placed.dimension,
                    least(placed.place, 11) AS place,
                    jsonb_build_object(
                        'item', min(CASE WHEN placed.place > 10 THEN '(other)' ELSE left(placed.item, 2048) END),
                        'count', sum(placed.count),
                        'visitors', sum(placed.visitors)
                    ) AS entry
                FROM (
                    SELECT
                        share.*,
                        CASE
                            WHEN share.item = '(other)' THEN 11
                            ELSE row_number() OVER (
                                PARTITION BY share.number, share.dimension
                                ORDER BY share.item = '(other)' ASC, share.count DESC, share.item COLLATE "C" ASC
                            )
                        END AS place
                    FROM share
                ) AS placed
                GROUP BY placed.number, placed.dimension, least(placed.place, 11)
            ) AS named
            GROUP BY named.number
        ),

        total AS (
            SELECT
                grouped.number,
                sum(grouped.events) AS events,
                sum(grouped.pageviews) AS pageviews,
                sum(grouped.custom_events) AS custom_events,
                bit_xor(grouped.hash) AS hash
            FROM grouped
            WHERE grouped.absent = b'01111'::int
            GROUP BY grouped.number
        ),

        session AS (
            SELECT
                grouped.number,
                count(*) AS sessions,
                count(*) FILTER (WHERE grouped.pageviews = 1 AND grouped.custom_events = 0) AS bounced,
                floor(extract(EPOCH FROM sum(grouped.duration))) AS seconds
            FROM grouped
            WHERE grouped.absent = b'11011'::int
            GROUP BY grouped.number
        ),

        item AS (
            SELECT
                grouped.number,
                grouped.absent,
                grouped.pageviews,
                coalesce(grouped.pathname, grouped.referrer_source) AS item,
                row_number() OVER (
                    PARTITION BY grouped.number, grouped.absent
                    ORDER BY
                        grouped.pageviews DESC, coalesce(grouped.pathname, grouped.referrer_source) COLLATE "C" ASC
                ) AS place
            FROM grouped
            WHERE
                grouped.pageviews > 0
                AND (
                    grouped.absent = b'01111'::int
                    OR grouped.absent = b'10111'::int AND grouped.referrer_source <> ''
                )
        ),

        top AS (
            SELECT
                item.number,
                jsonb_agg(
                    jsonb_build_object('item', left(item.item, 2048), 'count', item.pageviews) ORDER BY item.place
                ) FILTER (WHERE item.absent = b'01111'::int) AS pages,
                jsonb_agg(
                    jsonb_build_object('item', left(item.item, 2048), 'count', item.pageviews) ORDER BY item.place
                ) FILTER (WHERE item.absent = b'10111'::int) AS referrers
            FROM item
            WHERE item.place <= 10
            GROUP BY item.number
        ),

        -- SHA-256, since sketches are kept for ever, and PostgreSQL's own hashes may differ between versions.
        visitor_bit AS (
            SELECT
                hashed.number,
                analytics_sketch_bit(hashed.hash) AS bit,
                count(*) AS visitors
            FROM (
                -- OFFSET 0: the function has the hash in it twice.
                SELECT
                    pair.number,
                    ('x' || left(encode(sha256(convert_to(pair.visitor_id, 'UTF8')), 'hex'), 16))::bit(64) AS hash
                FROM pair
                WHERE pair.is_visitor
                OFFSET 0
            ) AS hashed
            GROUP BY hashed.number, analytics_sketch_bit(hashed.hash)
        ),

        sketch AS (
            SELECT
                numbered.number,
                string_agg(repeat('0', numbered.gap) || '1', '' ORDER BY numbered.bit) AS bits,
                sum(numbered.visitors) AS visitors
            FROM (
                SELECT
                    visitor_bit.number,
                    visitor_bit.bit,
                    visitor_bit.visitors,
                    visitor_bit.bit
                    - lag(visitor_bit.bit, 1, -1) OVER (PARTITION BY visitor_bit.number ORDER BY visitor_bit.bit)
                    - 1 AS gap
                FROM visitor_bit
            ) AS numbered
            GROUP BY numbered.number
        )

        SELECT
            day.website_id,
            day.date,
            day.starts_at,
            day.ends_at,
            sign.deleted_events,
            sign.edits_hash,
            coalesce(total.pageviews, 0) AS pageviews,
            coalesce(total.custom_events, 0) AS custom_events,
            coalesce(sketch.visitors, 0) AS visitors,
            coalesce(session.sessions, 0) AS sessions,
            coalesce(session.bounced, 0) AS bounced_sessions,
            coalesce(session.seconds, 0) AS session_seconds,
            coalesce(total.events, 0) AS events,
            coalesce(total.hash, 0) AS hash,
            coalesce(top.pages, '[]') AS pages,
            coalesce(top.referrers, '[]') AS referrers,
            coalesce(dimension.countries, '[]') AS countries,
            coalesce(dimension.devices, '[]') AS devices,
            coalesce(dimension.browsers, '[]') AS browsers,
            coalesce(dimension.os, '[]') AS os,
            coalesce(dimension.utm_sources, '[]') AS utm_sources,
            coalesce(dimension.utm_mediums, '[]') AS utm_mediums,
            coalesce(dimension.utm_campaigns, '[]') AS utm_campaigns,
            coalesce(dimension.events, '[]') AS top_events,
            -- The cast fills up with zeros.
            coalesce(sketch.bits, '')::bit(49152) AS sketch
        FROM day
        CROSS JOIN LATERAL analytics_signs(day.website_id, day.starts_at, day.ends_at) AS sign
        LEFT JOIN total ON day.number = total.number
        LEFT JOIN session ON day.number = session.number
        LEFT JOIN top ON day.number = top.number
        LEFT JOIN dimension ON day.number = dimension.number
        LEFT JOIN sketch ON day.number = sketch.number
    LOOP
        counted.website_id := found.website_id;
        counted.date := found.date;
        counted.starts_at := found.starts_at;
        counted.ends_at := found.ends_at;
        counted.total_pageviews := found.pageviews;
        counted.total_custom_events := found.custom_events;
        counted.unique_visitors := found.visitors;
        counted.unique_sessions := found.sessions;
        counted.top_pages := found.pages;
        counted.top_referrers := found.referrers;
        counted.total_events := found.events;
        counted.deleted_events := found.deleted_events;
        counted.edits_hash := found.edits_hash;
        counted.events_hash := found.hash;
        counted.visitor_sketch := found.sketch;
        counted.late_pageviews := 0;
        counted.late_custom_events := 0;
        counted.late_ignored_events := 0;
        counted.bounced_sessions := found.bounced_sessions;
        counted.session_seconds := found.session_seconds;
        counted.top_countries := found.countries;
        counted.top_devices := found.devices;
        counted.top_browsers := found.browsers;
        counted.top_os := found.os;
        counted.top_utm_sources := found.utm_sources;
        counted.top_utm_mediums := found.utm_mediums;
        counted.top_utm_campaigns := found.utm_campaigns;
        counted.top_events := found.top_events;
        counted.ignored_events := ignored;
        RETURN NEXT counted;
    END LOOP;
END
$$;

-- What it replaces.
DROP FUNCTION IF EXISTS analytics_count_day(text, date, timestamptz, timestamptz);

-- Writes rows of analytics_daily_stats that are new, or other than what is there, and returns which these are. A sealed
-- row stays as it is.
CREATE OR REPLACE FUNCTION analytics_write_days(counted analytics_daily_stats[])
RETURNS TABLE (website_id text, date date)
LANGUAGE plpgsql AS $$
DECLARE
    -- All columns, so that a new one need not be named here.
    columns text[] := ARRAY(
        SELECT quote_ident(stored.attname) FROM pg_catalog.pg_attribute AS stored
        WHERE
            stored.attrelid = 'analytics_daily_stats'::regclass
            AND stored.attnum > 0
            AND NOT stored.attisdropped
            AND stored.attname <> 'aggregated_at'
        ORDER BY stored.attnum
    );
BEGIN
    RETURN QUERY EXECUTE format(
        'INSERT INTO analytics_daily_stats AS stats (%1$s, aggregated_at)'
        ' SELECT %1$s, now() FROM unnest($1)'
        ' ON CONFLICT (website_id, date) DO UPDATE SET (%1$s, aggregated_at) = ROW (%3$s, excluded.aggregated_at)'
        ' WHERE stats.sealed_at IS NULL AND (%2$s) IS DISTINCT FROM (%3$s)'
        ' RETURNING stats.website_id, stats.date',
        array_to_string(columns, ', '),
        'stats.' || array_to_string(columns, ', stats.'),
        'excluded.' || array_to_string(columns, ', excluded.')
    ) USING counted;
END
$$;
