-- Days: which there are, and which instants they cover. A day is a half-open interval [starts_at, ends_at).

-- The first instant of a calendar day in a time zone. Where the clocks go back to midnight or before it, midnight comes
-- twice: PostgreSQL takes the second one, and the day begins with the first. They have gone back by half an hour
-- (Lord Howe), one (Azores, Havana), two (Chita in 2014) and three (Casey in 2010).
CREATE OR REPLACE FUNCTION analytics_day_start(day date, timezone text) RETURNS timestamptz
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

-- The first instant of a website's day. It is that of the calendar day, unless the website's time zone was changed:
-- a day whose row is final keeps its interval, and its neighbours begin where it ends and end where it begins. So the
-- days of a website never overlap and leave nothing out, and no event is counted in two of them.
CREATE OR REPLACE FUNCTION analytics_website_day_start(website text, day date, day_timezone text) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT
            coalesce(
                max(final.ends_at) FILTER (WHERE final.date = day - 1),
                max(final.starts_at) FILTER (WHERE final.date = day),
                -- least and greatest pass over NULL.
                least(
                    greatest(
                        analytics_day_start(day, day_timezone),
                        max(final.ends_at) FILTER (WHERE final.date < day)
                    ),
                    min(final.starts_at) FILTER (WHERE final.date > day)
                )
            )
        FROM analytics_daily_stats AS final
        WHERE
            final.website_id = website
            -- Time zones are at most 26 hours apart.
            AND final.date BETWEEN day - 3 AND day + 2
            AND final.raw_purged_at IS NOT NULL
    );
END
$$;

-- The day of a website that an instant belongs to.
CREATE OR REPLACE FUNCTION analytics_website_day(
    website text,
    instant timestamptz,
    day_timezone text,
    OUT date date,
    OUT starts_at timestamptz,
    OUT ends_at timestamptz
)
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    shift integer;
BEGIN
    -- It is the calendar day, or near where the time zone was changed, another one.
    FOREACH shift IN ARRAY ARRAY[0, -1, 1, -2, 2, -3, 3] LOOP
        date := (instant AT TIME ZONE day_timezone)::date + shift;
        starts_at := analytics_website_day_start(website, date, day_timezone);
        ends_at := analytics_website_day_start(website, date + 1, day_timezone);
        IF instant >= starts_at AND instant < ends_at THEN
            RETURN;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'Website % has no day for %: compare starts_at and ends_at of its rows in analytics_daily_stats',
        website, instant;
END
$$;

-- All websites that have raw events, or the one that is named, and their time zones. Jumps through indexes that begin
-- with website_id. Without a default time zone, it is that of the website's newest row. One that has moved has final
-- rows of another time zone.
CREATE OR REPLACE FUNCTION analytics_websites(default_timezone text, only_website text DEFAULT NULL)
RETURNS TABLE (website_id text, timezone text, has_moved boolean)
LANGUAGE plpgsql STABLE ROWS 50 AS $$
BEGIN
    website_id := coalesce(only_website, least(
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NULL),
        (SELECT min(event.website_id) FROM analytics_event AS event WHERE event.deleted_at IS NOT NULL)
    ));
    WHILE website_id IS NOT NULL LOOP
        timezone := coalesce(
            (
                SELECT policy.timezone FROM analytics_website_policy AS policy
                WHERE policy.website_id = analytics_websites.website_id
            ),
            default_timezone,
            (
                SELECT stats.timezone FROM analytics_daily_stats AS stats
                WHERE stats.website_id = analytics_websites.website_id
                ORDER BY stats.date DESC LIMIT 1
            ),
            'UTC'
        );
        has_moved := EXISTS (
            SELECT FROM analytics_daily_stats AS stats
            WHERE
                stats.website_id = analytics_websites.website_id
                AND stats.timezone <> analytics_websites.timezone
                AND stats.raw_purged_at IS NOT NULL
        );
        RETURN NEXT;
        EXIT WHEN only_website IS NOT NULL;
        website_id := least(
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > analytics_websites.website_id AND event.deleted_at IS NULL
            ),
            (
                SELECT min(event.website_id) FROM analytics_event AS event
                WHERE event.website_id > analytics_websites.website_id AND event.deleted_at IS NOT NULL
            )
        );
    END LOOP;
END
$$;

-- All days that have raw events before a moment, soft-deleted ones as well, of all websites or the one that is named.
-- Jumps through the indexes on (website_id, timestamp) from day to day instead of reading the events.
CREATE OR REPLACE FUNCTION analytics_event_days(
    default_timezone text, before timestamptz, only_website text DEFAULT NULL
)
RETURNS TABLE (website_id text, date date, starts_at timestamptz, ends_at timestamptz, timezone text)
LANGUAGE plpgsql STABLE ROWS 1000 AS $$
DECLARE
    has_moved boolean;
    live_event timestamptz;
    deleted_event timestamptz;
    instant timestamptz;
BEGIN
    FOR website_id, timezone, has_moved IN SELECT * FROM analytics_websites(default_timezone, only_website) LOOP
        -- Older than any event; from -infinity on there would be dates that no calendar has.
        ends_at := '0001-01-01';
        deleted_event := '-infinity';
        LOOP
            live_event := (
                SELECT min(event.timestamp) FROM analytics_event AS event
                WHERE
                    event.website_id = analytics_event_days.website_id
                    AND event.timestamp >= ends_at
                    AND event.timestamp < before
                    AND event.deleted_at IS NULL
            );
            IF deleted_event < ends_at THEN
                deleted_event := (
                    SELECT min(event.timestamp) FROM analytics_event AS event
                    WHERE
                        event.website_id = analytics_event_days.website_id
                        AND event.timestamp >= ends_at
                        AND event.timestamp < before
                        AND event.deleted_at IS NOT NULL
                );
            END IF;
            EXIT WHEN live_event IS NULL AND deleted_event IS NULL;
            instant := least(live_event, deleted_event);
            date := (instant AT TIME ZONE timezone)::date;
            starts_at := analytics_day_start(date, timezone);
            ends_at := analytics_day_start(date + 1, timezone);
            -- Where the clocks go back from just after midnight (St. John's until 2011), the date before comes again.
            IF has_moved OR instant < starts_at OR instant >= ends_at THEN
                SELECT day.* INTO date, starts_at, ends_at
                FROM analytics_website_day(website_id, instant, timezone) AS day;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$$;
