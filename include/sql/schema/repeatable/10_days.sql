-- Days: which there are, and which instants they cover. A day is a half-open interval [starts_at, ends_at) of a
-- website. Its bounds are a function of the website, the date and analytics_timezone alone. A time zone holds from a
-- day on; a day starts where the one before ends. So every instant belongs to exactly one day, and a new zone changes
-- none before.

-- The first instant of a calendar day in a time zone. Where the clocks go back to midnight or before it, midnight comes
-- twice: PostgreSQL takes the second one, and the day begins with the first. They have gone back by half an hour
-- (Lord Howe), one (Azores, Havana), two (Chita in 2014) and three (Casey in 2010).
CREATE OR REPLACE FUNCTION analytics_midnight(day date, timezone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        (day::timestamp AT TIME ZONE timezone)
        - CASE day
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '3 hours') AT TIME ZONE timezone)::date
                THEN INTERVAL '3 hours'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '2 hours') AT TIME ZONE timezone)::date
                THEN INTERVAL '2 hours'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '1 hour') AT TIME ZONE timezone)::date
                THEN INTERVAL '1 hour'
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '30 minutes') AT TIME ZONE timezone)::date
                THEN INTERVAL '30 minutes'
            ELSE INTERVAL '0'
        END
$$;

-- The time zone of a website's day: the one of its own that holds, else that of all websites.
CREATE OR REPLACE FUNCTION analytics_zone(website text, day date) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN coalesce(
        (
            SELECT zone.timezone FROM analytics_timezone AS zone
            WHERE zone.website_id = website AND zone.from_date <= day
            ORDER BY zone.from_date DESC LIMIT 1
        ),
        (
            SELECT zone.timezone FROM analytics_timezone AS zone
            WHERE zone.website_id IS NULL AND zone.from_date <= day
            ORDER BY zone.from_date DESC LIMIT 1
        ),
        'UTC'
    );
END
$$;

-- The first instant of a website's day: where the day before ends in the time zone of that day. Zones are at most 26
-- hours apart, so where they change, a day may be empty, and the one after begins where it does.
CREATE OR REPLACE FUNCTION analytics_day_start(website text, day date) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    zone text := analytics_zone(website, day - 1);
    zone_before text := analytics_zone(website, day - 2);
BEGIN
    IF zone = zone_before THEN
        RETURN analytics_midnight(day, zone);
    END IF;
    RETURN greatest(analytics_midnight(day, zone), analytics_midnight(day - 1, zone_before));
END
$$;

-- The day of a website that an instant belongs to; NULL for one that is on no day from 0001-01-01 to 9999-12-31, the
-- calendar of ISO 8601 and of every client.
CREATE OR REPLACE FUNCTION analytics_day(
    website text, instant timestamptz, OUT date date, OUT starts_at timestamptz, OUT ends_at timestamptz
)
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    IF instant < '0002-01-01 BC' OR instant >= '10001-01-01' THEN
        RETURN;
    END IF;
    date := (instant AT TIME ZONE analytics_zone(website, (instant AT TIME ZONE 'UTC')::date))::date;
    starts_at := analytics_day_start(website, date);
    ends_at := analytics_day_start(website, date + 1);
    -- Near a change of the zone, and where the clocks go back across midnight, the calendar shows a date beside it.
    WHILE instant < starts_at LOOP
        date := date - 1;
        ends_at := starts_at;
        starts_at := analytics_day_start(website, date);
    END LOOP;
    WHILE instant >= ends_at LOOP
        date := date + 1;
        starts_at := ends_at;
        ends_at := analytics_day_start(website, date + 1);
    END LOOP;
    IF date NOT BETWEEN '0001-01-01' AND '9999-12-31' THEN
        date := NULL;
        starts_at := NULL;
        ends_at := NULL;
    END IF;
END
$$;

-- All websites that have raw events, or the one that is named. Jumps through indexes that begin with website_id. A view
-- calls it for readers of any search_path.
CREATE OR REPLACE FUNCTION analytics_websites(only_website text DEFAULT NULL) RETURNS SETOF text
LANGUAGE plpgsql STABLE ROWS 50
SET search_path FROM CURRENT SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    website text := coalesce(only_website, least(
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NULL),
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NOT NULL)
    ));
BEGIN
    WHILE website IS NOT NULL LOOP
        RETURN NEXT website;
        EXIT WHEN only_website IS NOT NULL;
        website := least(
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > website AND event.deleted_at IS NULL
            ),
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > website AND event.deleted_at IS NOT NULL
            )
        );
    END LOOP;
END
$$;

-- The days of a website that have raw events in [from_instant, before), soft-deleted ones as well. Jumps through the
-- indexes on (website_id, timestamp) from day to day instead of reading the events.
CREATE OR REPLACE FUNCTION analytics_event_days(website text, from_instant timestamptz, before timestamptz)
RETURNS TABLE (date date, starts_at timestamptz, ends_at timestamptz)
LANGUAGE plpgsql STABLE ROWS 100 SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    live_event timestamptz;
    deleted_event timestamptz := '-infinity';
    instant timestamptz;
    -- The zone of all days of the website, where there is but one.
    zone text := (
        SELECT coalesce(max(stored.timezone), 'UTC') FROM analytics_timezone AS stored
        WHERE stored.website_id = website OR stored.website_id IS NULL
        HAVING count(*) = 0 OR count(*) = 1 AND max(stored.from_date) = '-infinity'
    );
BEGIN
    ends_at := greatest(from_instant, analytics_day_start(website, '0001-01-01'));
    before := least(before, analytics_day_start(website, '10000-01-01'));
    LOOP
        live_event := (
            SELECT min(event.timestamp) FROM analytics_event AS event
            WHERE
                event.website_id = website
                AND event.timestamp >= ends_at
                AND event.timestamp < before
                AND event.deleted_at IS NULL
        );
        IF deleted_event < ends_at THEN
            deleted_event := (
                SELECT min(event.timestamp) FROM analytics_event AS event
                WHERE
                    event.website_id = website
                    AND event.timestamp >= ends_at
                    AND event.timestamp < before
                    AND event.deleted_at IS NOT NULL
            );
        END IF;
        EXIT WHEN live_event IS NULL AND deleted_event IS NULL;
        instant := least(live_event, deleted_event);
        IF zone IS NOT NULL THEN
            date := (instant AT TIME ZONE zone)::date;
            starts_at := analytics_midnight(date, zone);
            ends_at := analytics_midnight(date + 1, zone);
        END IF;
        IF zone IS NULL OR instant < starts_at OR instant >= ends_at THEN
            SELECT day.* INTO date, starts_at, ends_at FROM analytics_day(website, instant) AS day;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- The raw events of each website that are on no day of the calendar: nothing counts or deletes them.
CREATE OR REPLACE FUNCTION analytics_anomalies() RETURNS TABLE (website_id text, events bigint)
LANGUAGE sql STABLE ROWS 10 SET jit = off AS $$
    SELECT
        website.website_id,
        anomaly.events
    FROM analytics_websites() AS website (website_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS events FROM (
            SELECT FROM analytics_event AS event
            WHERE
                event.website_id = website.website_id
                AND event.timestamp < analytics_day_start(website.website_id, '0001-01-01')
                AND event.deleted_at IS NULL
            UNION ALL
            SELECT FROM analytics_event AS event
            WHERE
                event.website_id = website.website_id
                AND event.timestamp >= analytics_day_start(website.website_id, '10000-01-01')
                AND event.deleted_at IS NULL
        ) AS outside
    ) AS anomaly
    WHERE anomaly.events > 0
$$;

-- Refuses a time zone that does not exist, and one that would change the bounds of a day whose row must not change.
CREATE OR REPLACE FUNCTION analytics_check_zones() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    zone record;
    changed record;
BEGIN
    -- AT TIME ZONE accepts more than zones: offsets of the wrong sign, and abbreviations, which it takes before a zone of
    -- the same name, such as CET.
    IF
        TG_OP <> 'DELETE' AND new.timezone <> 'UTC' AND (
            new.timezone NOT IN (SELECT zone_name.name FROM pg_catalog.pg_timezone_names AS zone_name)
            OR upper(new.timezone) IN (SELECT short.abbrev FROM pg_catalog.pg_timezone_abbrevs AS short)
        )
    THEN
        RAISE EXCEPTION 'Time zone "%" is not known: write an IANA name such as Europe/Berlin', new.timezone
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR zone IN SELECT old.website_id, old.from_date WHERE TG_OP <> 'INSERT'
        UNION ALL SELECT new.website_id, new.from_date WHERE TG_OP <> 'DELETE'
    LOOP
        -- A day that is being sealed at this moment is sealed first, or sees the new zone.
        IF zone.from_date <= (now() AT TIME ZONE 'UTC')::date THEN
            LOCK TABLE analytics_daily_stats IN SHARE ROW EXCLUSIVE MODE;
        END IF;
        SELECT stats.website_id, stats.date INTO changed
        FROM analytics_daily_stats AS stats
        WHERE
            stats.date >= zone.from_date - 1
            AND (stats.website_id = zone.website_id OR zone.website_id IS NULL)
            AND (stats.sealed_at IS NOT NULL OR stats.kept_at IS NOT NULL)
            AND (stats.starts_at, stats.ends_at) IS DISTINCT FROM (
                analytics_day_start(stats.website_id, stats.date), analytics_day_start(stats.website_id, stats.date + 1)
            )
        ORDER BY stats.date DESC LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'The time zone would change the day % of website %, whose row in analytics_daily_stats must '
                'not change any more: choose a from_date after it', to_char(changed.date, 'YYYY-MM-DD'), changed.website_id
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER analytics_check_zones AFTER INSERT OR UPDATE OR DELETE ON analytics_timezone
FOR EACH ROW EXECUTE FUNCTION analytics_check_zones();

-- Makes a time zone that of all websites without one of their own: for ever where there was none yet, else from
-- tomorrow on, so that no day which has begun is another one than before. Returns a sentence about a change.
CREATE OR REPLACE FUNCTION analytics_use_timezone(zone text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    present text := analytics_zone(NULL, (now() AT TIME ZONE 'UTC')::date);
    tomorrow date := greatest((now() AT TIME ZONE present)::date, (now() AT TIME ZONE zone)::date) + 1;
BEGIN
    IF NOT EXISTS (SELECT FROM analytics_timezone AS stored WHERE stored.website_id IS NULL) THEN
        INSERT INTO analytics_timezone (website_id, from_date, timezone) VALUES (NULL, '-infinity', zone)
        ON CONFLICT DO NOTHING;
    ELSIF analytics_zone(NULL, tomorrow) <> zone THEN
        INSERT INTO analytics_timezone AS stored (website_id, from_date, timezone) VALUES (NULL, tomorrow, zone)
        ON CONFLICT (website_id, from_date) DO UPDATE SET timezone = excluded.timezone;
        RETURN format(
            'ANALYTICS_TIMEZONE is %s now: days from %s on are of it, those before stay as they are, of %s',
            zone, to_char(tomorrow, 'YYYY-MM-DD'), present
        );
    END IF;
    RETURN NULL;
END
$$;
