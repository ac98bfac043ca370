-- Aggregates days into analytics_daily_stats: one row per website and day that has events, all or none.
-- Params: days (date[]), label (text, names them in the log), recount (boolean).
-- Result: one row: log, result (json: by day, the websites whose row is new or has changed; NULL if none has).
-- A day that is not over and has no row is left for a later run. A sealed row stays as it is.
-- Where fewer events are there than a row counts, and they were not soft-deleted, somebody deleted or moved them. If an
-- older day still has at least a tenth of the events that its row counts (half, if that row is sealed or kept; any
-- event, if no older day was counted), that was a correction, and what is there is counted. Else they may be missing
-- because another retention job deletes from the old end: the row is kept, unless recount is true.
-- Runs in REPEATABLE READ: of two runs of a day at the same moment, one fails and is tried again.
WITH bound AS MATERIALIZED (
    -- Of the websites that have no time zone of their own: all days from the first to the last one.
    SELECT
        min(day.date) AS first_day,
        max(day.date) AS last_day,
        analytics_day_start(NULL, min(day.date)) AS starts_at,
        analytics_day_start(NULL, max(day.date) + 1) AS ends_at
    FROM unnest(%(days)s::date[]) AS day (date)
),

event_day AS MATERIALIZED (
    SELECT
        website.website_id,
        day.date,
        day.starts_at,
        day.ends_at
    FROM (
        SELECT
            name.website_id,
            exists(
                SELECT FROM analytics_timezone AS stored
                WHERE stored.website_id = name.website_id
            ) AS has_zone
        FROM analytics_websites() AS name (website_id)
    ) AS website
    CROSS JOIN bound
    CROSS JOIN
        LATERAL analytics_event_days(
            website.website_id,
            CASE
                WHEN website.has_zone THEN analytics_day_start(website.website_id, bound.first_day) ELSE bound.starts_at
            END,
            CASE
                WHEN website.has_zone THEN analytics_day_start(website.website_id, bound.last_day + 1) ELSE
                    bound.ends_at
            END
        ) AS day
    WHERE day.date = any(%(days)s::date[])
),

website_day AS (
    SELECT * FROM event_day
    UNION ALL
    -- Those that have no raw events left, but a row that may change.
    SELECT
        stats.website_id,
        stats.date,
        analytics_day_start(stats.website_id, stats.date) AS starts_at,
        analytics_day_start(stats.website_id, stats.date + 1) AS ends_at
    FROM analytics_daily_stats AS stats
    WHERE
        stats.date = any(%(days)s::date[])
        AND stats.sealed_at IS NULL
        AND (stats.website_id, stats.date) NOT IN (
            SELECT
                event_day.website_id,
                event_day.date
            FROM event_day
        )
),

seen AS MATERIALIZED (
    SELECT
        website_day.*,
        stats.starts_at AS row_starts_at,
        stats.ends_at AS row_ends_at,
        stats.total_events AS row_events,
        stats.deleted_events AS row_deleted_events,
        stats.website_id IS NOT NULL AS has_row,
        stats.sealed_at IS NOT NULL AS is_sealed,
        stats.kept_at IS NOT NULL AS is_kept,
        (
            SELECT count(*) FROM (
                SELECT FROM analytics_event AS event
                WHERE
                    event.website_id = website_day.website_id
                    AND event.timestamp >= website_day.starts_at
                    AND event.timestamp < website_day.ends_at
                    AND event.deleted_at IS NULL
                LIMIT 2000 -- noqa: AM09
            ) AS live
        ) AS some_events
    FROM website_day
    LEFT JOIN analytics_daily_stats AS stats
        ON website_day.website_id = stats.website_id AND website_day.date = stats.date
),

due AS MATERIALIZED (
    SELECT
        seen.*,
        -- Days of few events are counted a hundred at a time: each count has costs of its own.
        CASE
            WHEN seen.some_events = 2000
                THEN -row_number() OVER (PARTITION BY seen.some_events = 2000 ORDER BY seen.website_id, seen.date)
            ELSE row_number() OVER (PARTITION BY seen.some_events = 2000 ORDER BY seen.website_id, seen.date) / 100
        END AS part
    FROM seen
    WHERE seen.has_row AND NOT seen.is_sealed OR seen.ends_at <= now() AND seen.some_events > 0
),

recounted AS MATERIALIZED (
    SELECT
        part_count AS counted,
        part_count.website_id,
        part_count.date
    FROM (
        SELECT
            array_agg(due.website_id) AS websites,
            array_agg(due.date) AS dates,
            array_agg(due.starts_at) AS starts_at,
            array_agg(due.ends_at) AS ends_at
        FROM due
        WHERE NOT due.is_sealed
        GROUP BY due.part
    ) AS part
    CROSS JOIN LATERAL analytics_count_days(part.websites, part.dates, part.starts_at, part.ends_at) AS part_count
),

counted AS MATERIALIZED (
    SELECT
        recounted.counted,
        due.website_id,
        due.date,
        due.starts_at,
        due.ends_at,
        due.is_sealed,
        due.is_kept,
        due.row_events,
        (recounted.counted).total_events AS events,
        CASE
            WHEN NOT due.has_row OR %(recount)s::boolean THEN FALSE
            -- What is kept has the bounds of its day, and nothing of it is in another day's row.
            WHEN (due.row_starts_at, due.row_ends_at) <> (due.starts_at, due.ends_at) THEN FALSE
            WHEN due.is_kept THEN (recounted.counted).total_events < due.row_events
            ELSE
                due.row_events - (recounted.counted).total_events
                > greatest((recounted.counted).deleted_events - due.row_deleted_events, 0)
        END AS has_vanished
    FROM due
    LEFT JOIN recounted ON due.website_id = recounted.website_id AND due.date = recounted.date
),

kept AS MATERIALIZED (
    SELECT
        counted.website_id,
        counted.date
    FROM counted
    CROSS JOIN
        LATERAL (
            SELECT min(event.timestamp) AS timestamp FROM analytics_event AS event
            WHERE
                event.website_id = counted.website_id
                AND event.timestamp >= analytics_day_start(counted.website_id, '0001-01-01')
                AND event.deleted_at IS NULL
        ) AS oldest_event
    CROSS JOIN
        LATERAL (
            SELECT
                count(*) AS days,
                -- A few events may have come for an older day after all of it was deleted, above all where that has
                -- happened.
                bool_or(
                    CASE
                        WHEN stats.ends_at > oldest_event.timestamp
                            THEN (
                                SELECT
                                    sign.total_events
                                    * CASE WHEN coalesce(stats.sealed_at, stats.kept_at) IS NULL THEN 10 ELSE 2 END
                                    >= stats.total_events
                                FROM analytics_signs(stats.website_id, stats.starts_at, stats.ends_at) AS sign
                            )
                    END
                ) AS has_events
            FROM analytics_daily_stats AS stats
            WHERE stats.website_id = counted.website_id AND stats.date < counted.date AND stats.total_events > 0
        ) AS older
    WHERE
        counted.has_vanished
        AND (
            counted.is_kept
            OR CASE WHEN older.days > 0 THEN older.has_events ELSE oldest_event.timestamp < counted.starts_at END
            IS NOT TRUE
        )
),

numbered AS (
    SELECT
        counted.counted,
        row_number() OVER (ORDER BY counted.website_id, counted.date) AS number
    FROM counted
    WHERE
        NOT counted.is_sealed
        -- Hashed, where a join might be a nested loop.
        AND (counted.website_id, counted.date) NOT IN (SELECT
            kept.website_id,
            kept.date
        FROM kept)
),

-- In parts, whose memory is small, and in one order, so that two runs of the same day wait for each other instead of
-- deadlocking.
written AS MATERIALIZED (
    SELECT
        changed.website_id,
        changed.date
    FROM (
        SELECT array_agg(numbered.counted ORDER BY numbered.number) AS counted
        FROM numbered
        GROUP BY numbered.number / 100
        ORDER BY numbered.number / 100
    ) AS part
    CROSS JOIN LATERAL analytics_write_days(part.counted) AS changed
),

made_kept AS (
    UPDATE analytics_daily_stats AS stats
    SET kept_at = now()
    FROM kept
    WHERE stats.website_id = kept.website_id AND stats.date = kept.date AND stats.kept_at IS NULL
)

SELECT
    concat_ws(
        E'\n',
        '[Analytics Job] Aggregating data for ' || %(label)s::text,
        string_agg(
            format(
                '[Analytics Job] ✅ Aggregated %%s events for website %%s%%s',
                coalesce(counted.events, counted.row_events),
                analytics_one_line(counted.website_id),
                CASE
                    WHEN counted.is_sealed
                        THEN ', but left its row as it is: it is sealed, its raw events are being deleted'
                    WHEN (counted.website_id, counted.date) IN (SELECT
                        kept.website_id,
                        kept.date
                    FROM kept)
                        THEN format(
                            ', but kept its row, which counts %%s: somebody else deleted raw events, and none older '
                            || 'are there; to count what is left, run this job with recount, from and to %%s',
                            counted.row_events, to_char(counted.date, 'YYYY-MM-DD')
                        )
                END
            ),
            E'\n' ORDER BY counted.website_id, counted.date
        ),
        CASE
            WHEN count(*) > 0
                THEN format('[Analytics Job] ✅ Aggregated %%s website(s) for %%s', count(*), %(label)s::text)
            ELSE format('[Analytics Job] No events on %%s: no row written', %(label)s::text)
        END
    ) AS log,
    (
        SELECT json_object_agg(day.date, day.websites ORDER BY day.date)
        FROM (
            SELECT
                written.date,
                json_agg(written.website_id ORDER BY written.website_id) AS websites
            FROM written
            GROUP BY written.date
        ) AS day
    ) AS result
FROM counted;
