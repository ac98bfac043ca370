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
CREATE OR REPLACE FUNCTION analytics_signs(
    website text,
    from_instant timestamptz,
    to_instant timestamptz,
    OUT total_events bigint,
    OUT deleted_events bigint,
    OUT edits_hash bigint
)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
    total_events := (
        SELECT count(*) FROM analytics_event AS event
        WHERE
            event.website_id = website
            AND event.timestamp >= from_instant
            AND event.timestamp < to_instant
            AND event.deleted_at IS NULL
    );
    deleted_events := (
        SELECT count(*) FROM analytics_event AS event
        WHERE
            event.website_id = website
            AND event.timestamp >= from_instant
            AND event.timestamp < to_instant
            AND event.deleted_at IS NOT NULL
    );
    edits_hash := (
        SELECT coalesce(bit_xor(hash_record_extended(ROW(event.id, event.updated_at), 0)), 0)
        FROM analytics_event AS event
        WHERE
            event.website_id = website
            AND event.timestamp >= from_instant
            AND event.timestamp < to_instant
            AND event.updated_at <> event.created_at
            AND event.deleted_at IS NULL
    );
END
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

-- The row that a website's day [from_instant, to_instant) should have in analytics_daily_stats. Of an item its first
-- 2048 characters are kept: more than any address has, and far less than what fits into a jsonb value.
CREATE OR REPLACE FUNCTION analytics_count_day(
    website text, day date, from_instant timestamptz, to_instant timestamptz, OUT counted analytics_daily_stats
)
LANGUAGE plpgsql STABLE
-- Planned once for all websites and days. Groups must be hashed: sorting them under the database's collation is many
-- times slower, and is what the planner chooses where it overestimates their number.
SET plan_cache_mode = force_generic_plan
SET enable_sort = off
SET jit = off
AS $$
BEGIN
    counted.website_id := website;
    counted.date := day;
    counted.starts_at := from_instant;
    counted.ends_at := to_instant;
    counted.late_pageviews := 0;
    counted.late_custom_events := 0;

    WITH grouped AS MATERIALIZED (
        SELECT
            event.pathname,
            event.referrer_source,
            event.visitor_id,
            grouping(event.pathname, event.referrer_source, event.visitor_id, event.session_id) AS absent,
            count(*) AS events,
            count(*) FILTER (WHERE event.event_type = 'pageview') AS pageviews,
            count(*) FILTER (WHERE event.event_type = 'custom_event') AS custom_events,
            bit_xor(analytics_event_hash(
                event.id, event.event_type, event.pathname, event.referrer_source, event.visitor_id, event.session_id
            )) AS hash
        FROM analytics_event AS event
        WHERE
            event.website_id = website
            AND event.timestamp >= from_instant
            AND event.timestamp < to_instant
            AND event.deleted_at IS NULL
        GROUP BY GROUPING SETS ((event.pathname), (event.referrer_source), (event.visitor_id), (event.session_id))
    ),

    sign AS MATERIALIZED (SELECT * FROM analytics_signs(website, from_instant, to_instant)),

    page AS (
        SELECT
            grouped.pathname AS item,
            grouped.pageviews
        FROM grouped
        WHERE grouped.absent = b'0111'::int AND grouped.pageviews > 0
        ORDER BY grouped.pageviews DESC, grouped.pathname COLLATE "C" ASC LIMIT 10
    ),

    referrer AS (
        SELECT
            grouped.referrer_source AS item,
            grouped.pageviews
        FROM grouped
        WHERE grouped.absent = b'1011'::int AND grouped.pageviews > 0 AND grouped.referrer_source <> ''
        ORDER BY grouped.pageviews DESC, grouped.referrer_source COLLATE "C" ASC LIMIT 10
    ),

    -- SHA-256, since sketches are kept for ever, and PostgreSQL's own hashes may differ between versions.
    visitor AS MATERIALIZED (
        SELECT ('x' || left(encode(sha256(convert_to(grouped.visitor_id, 'UTF8')), 'hex'), 16))::bit(64) AS hash
        FROM grouped
        WHERE grouped.absent = b'1101'::int
    ),

    sketch AS (
        SELECT coalesce(string_agg(repeat('0', numbered.gap) || '1', '' ORDER BY numbered.number), '') AS bits
        FROM (
            SELECT
                visitor_bit.number,
                visitor_bit.number - lag(visitor_bit.number, 1, -1) OVER (ORDER BY visitor_bit.number) - 1 AS gap
            FROM (SELECT DISTINCT analytics_sketch_bit(visitor.hash) AS number FROM visitor) AS visitor_bit
        ) AS numbered
    )

    SELECT
        coalesce(sum(grouped.pageviews) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        coalesce(sum(grouped.custom_events) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        count(*) FILTER (WHERE grouped.absent = b'1101'::int),
        count(*) FILTER (WHERE grouped.absent = b'1110'::int),
        coalesce((
            SELECT
                jsonb_agg(
                    jsonb_build_object('item', left(page.item, 2048), 'count', page.pageviews)
                    ORDER BY page.pageviews DESC, page.item COLLATE "C" ASC
                )
            FROM page
        ), '[]'),
        coalesce((
            SELECT
                jsonb_agg(
                    jsonb_build_object('item', left(referrer.item, 2048), 'count', referrer.pageviews)
                    ORDER BY referrer.pageviews DESC, referrer.item COLLATE "C" ASC
                )
            FROM referrer
        ), '[]'),
        coalesce(sum(grouped.events) FILTER (WHERE grouped.absent = b'0111'::int), 0)::bigint,
        (SELECT sign.deleted_events FROM sign),
        (SELECT sign.edits_hash FROM sign),
        coalesce(bit_xor(grouped.hash) FILTER (WHERE grouped.absent = b'0111'::int), 0),
        -- The cast fills up with zeros.
        (SELECT sketch.bits::bit(49152) FROM sketch)
    INTO
        counted.total_pageviews,
        counted.total_custom_events,
        counted.unique_visitors,
        counted.unique_sessions,
        counted.top_pages,
        counted.top_referrers,
        counted.total_events,
        counted.deleted_events,
        counted.edits_hash,
        counted.events_hash,
        counted.visitor_sketch
    FROM grouped;
END
$$;

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
