-- What the raw events of a day say.

-- The hash of everything of an event that is counted. Rows are known by their id, so that no two events cancel out.
CREATE OR REPLACE FUNCTION analytics_event_hash(
    id text, event_type text, pathname text, referrer_source text, visitor_id text, session_id text
)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- Each hash is the seed of the next one, which takes half the time of the hash of a record.
    SELECT hashtextextended(coalesce(id, ''),
        hashtextextended(coalesce(event_type, ''),
            hashtextextended(coalesce(pathname, ''),
                hashtextextended(coalesce(referrer_source, ''),
                    hashtextextended(coalesce(visitor_id, ''),
                        hashtextextended(coalesce(session_id, ''), 0))))))
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
-- times slower, and is what the planner chooses where it overestimates their number.
SET plan_cache_mode = force_generic_plan
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    counted analytics_daily_stats;
    found record;
BEGIN
    FOR found IN
        WITH day AS MATERIALIZED (
            SELECT * FROM unnest(websites, days, from_instants, to_instants)
            WITH ORDINALITY AS given (website_id, date, starts_at, ends_at, number)
        ),

        grouped AS MATERIALIZED (
            SELECT
                day.number,
                event.pathname,
                event.referrer_source,
                event.visitor_id,
                grouping(event.pathname, event.referrer_source, event.visitor_id, event.session_id) AS absent,
                count(*) AS events,
                count(*) FILTER (WHERE event.event_type = 'pageview') AS pageviews,
                count(*) FILTER (WHERE event.event_type = 'custom_event') AS custom_events,
                bit_xor(analytics_event_hash(
                    event.id,
                    event.event_type,
                    event.pathname,
                    event.referrer_source,
                    event.visitor_id,
                    event.session_id
                )) AS hash
            FROM day
            CROSS JOIN LATERAL (
                -- OFFSET 0 makes it a scan of an index for each day, whatever the planner thinks of their number.
                SELECT event.* FROM analytics_event AS event
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
                    (day.number, event.visitor_id),
                    (day.number, event.session_id)
                )
        ),

        total AS (
            SELECT
                grouped.number,
                sum(grouped.events) FILTER (WHERE grouped.absent = b'0111'::int) AS events,
                sum(grouped.pageviews) FILTER (WHERE grouped.absent = b'0111'::int) AS pageviews,
                sum(grouped.custom_events) FILTER (WHERE grouped.absent = b'0111'::int) AS custom_events,
                count(*) FILTER (WHERE grouped.absent = b'1101'::int) AS visitors,
                count(*) FILTER (WHERE grouped.absent = b'1110'::int) AS sessions,
                bit_xor(grouped.hash) FILTER (WHERE grouped.absent = b'0111'::int) AS hash
            FROM grouped
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
                    grouped.absent = b'0111'::int
                    OR grouped.absent = b'1011'::int AND grouped.referrer_source <> ''
                )
        ),

        top AS (
            SELECT
                item.number,
                jsonb_agg(
                    jsonb_build_object('item', left(item.item, 2048), 'count', item.pageviews) ORDER BY item.place
                ) FILTER (WHERE item.absent = b'0111'::int) AS pages,
                jsonb_agg(
                    jsonb_build_object('item', left(item.item, 2048), 'count', item.pageviews) ORDER BY item.place
                ) FILTER (WHERE item.absent = b'1011'::int) AS referrers
            FROM item
            WHERE item.place <= 10
            GROUP BY item.number
        ),

        -- SHA-256, since sketches are kept for ever, and PostgreSQL's own hashes may differ between versions.
        visitor_bit AS (
            SELECT DISTINCT
                grouped.number,
                analytics_sketch_bit(
                    ('x' || left(encode(sha256(convert_to(grouped.visitor_id, 'UTF8')), 'hex'), 16))::bit(64)
                ) AS bit
            FROM grouped
            WHERE grouped.absent = b'1101'::int
        ),

        sketch AS (
            SELECT
                numbered.number,
                string_agg(repeat('0', numbered.gap) || '1', '' ORDER BY numbered.bit) AS bits
            FROM (
                SELECT
                    visitor_bit.number,
                    visitor_bit.bit,
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
            coalesce(total.visitors, 0) AS visitors,
            coalesce(total.sessions, 0) AS sessions,
            coalesce(total.events, 0) AS events,
            coalesce(total.hash, 0) AS hash,
            coalesce(top.pages, '[]') AS pages,
            coalesce(top.referrers, '[]') AS referrers,
            -- The cast fills up with zeros.
            coalesce(sketch.bits, '')::bit(49152) AS sketch
        FROM day
        CROSS JOIN LATERAL analytics_signs(day.website_id, day.starts_at, day.ends_at) AS sign
        LEFT JOIN total ON day.number = total.number
        LEFT JOIN top ON day.number = top.number
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
        RETURN NEXT counted;
    END LOOP;
END
$$;

-- What it replaces.
DROP FUNCTION IF EXISTS analytics_count_day(text, date, timestamptz, timestamptz);

-- Writes rows of analytics_daily_stats that are new, or other than what is there. A sealed row stays as it is.
CREATE OR REPLACE FUNCTION analytics_write_days(counted analytics_daily_stats[]) RETURNS void
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
    EXECUTE format(
        'INSERT INTO analytics_daily_stats AS stats (%1$s, aggregated_at)'
        ' SELECT %1$s, now() FROM unnest($1)'
        ' ON CONFLICT (website_id, date) DO UPDATE SET (%1$s, aggregated_at) = ROW (%3$s, excluded.aggregated_at)'
        ' WHERE stats.sealed_at IS NULL AND (%2$s) IS DISTINCT FROM (%3$s)',
        array_to_string(columns, ', '),
        'stats.' || array_to_string(columns, ', stats.'),
        'excluded.' || array_to_string(columns, ', excluded.')
    ) USING counted;
END
$$;
