-- Aggregates days into analytics_daily_stats: one row per website and day that has events, all or none.
-- Params: days (date[]), label (text, names them in the log), recount (boolean).
-- Result: one row: log.
-- A day that is not over and has no row is left for a later run. A sealed row stays as it is.
-- Where fewer events are there than a row counts, and they were not soft-deleted, somebody deleted or moved them. If an
-- older day still has at least a tenth of the events that its row counts (half, if that row is sealed or kept; any
-- event, if no older day was counted), that was a correction, and what is there is counted. Else they may be missing
-- because another retention job deletes from the old end: the row is kept, unless recount is true.
-- Runs in REPEATABLE READ: of two runs of a day at the same moment, one fails and is tried again.
WITH website AS (
    SELECT website.website_id FROM analytics_websites() AS website (website_id)
    UNION
    -- Those that have no raw events left, but a row that may change.
    SELECT stats.website_id FROM analytics_daily_stats AS stats
    WHERE stats.date = any(%(days)s::date[]) AND stats.sealed_at IS NULL
),

website_day AS MATERIALIZED (
    SELECT
        website.website_id,
        day.date,
        analytics_day_start(website.website_id, day.date) AS starts_at,
        analytics_day_start(website.website_id, day.date + 1) AS ends_at
    FROM website
    CROSS JOIN unnest(%(days)s::date[]) AS day (date)
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
        stats.kept_at IS NOT NULL AS is_kept
    FROM website_day
    LEFT JOIN analytics_daily_stats AS stats
        ON website_day.website_id = stats.website_id AND website_day.date = stats.date
    WHERE
        stats.website_id IS NOT NULL AND stats.sealed_at IS NULL
        OR website_day.ends_at <= now() AND EXISTS (
            SELECT FROM analytics_event AS event
            WHERE
                event.website_id = website_day.website_id
                AND event.timestamp >= website_day.starts_at
                AND event.timestamp < website_day.ends_at
                AND event.deleted_at IS NULL
        )
),

counted AS MATERIALIZED (
    SELECT
        day_total.counted,
        seen.website_id,
        seen.date,
        seen.starts_at,
        seen.ends_at,
        seen.is_sealed,
        seen.is_kept,
        seen.row_events,
        (day_total.counted).total_events AS events,
        CASE
            WHEN NOT seen.has_row OR %(recount)s::boolean THEN FALSE
            -- What is kept has the bounds of its day, and nothing of it is in another day's row.
            WHEN (seen.row_starts_at, seen.row_ends_at) <> (seen.starts_at, seen.ends_at) THEN FALSE
            WHEN seen.is_kept THEN (day_total.counted).total_events < seen.row_events
            ELSE
                seen.row_events - (day_total.counted).total_events
                > greatest((day_total.counted).deleted_events - seen.row_deleted_events, 0)
        END AS has_vanished
    FROM seen
    LEFT JOIN LATERAL (
        SELECT count AS counted
        FROM analytics_count_day(seen.website_id, seen.date, seen.starts_at, seen.ends_at) AS count
        WHERE NOT seen.is_sealed
    ) AS day_total ON TRUE
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
    SELECT analytics_write_days(array_agg(numbered.counted ORDER BY numbered.number))
    FROM numbered
    GROUP BY numbered.number / 100
    ORDER BY numbered.number / 100
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
                counted.website_id,
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
            WHEN count(*) > 0 AND (SELECT count(*) FROM written) > 0
                THEN format('[Analytics Job] ✅ Aggregated %%s website(s) for %%s', count(*), %(label)s::text)
            ELSE format('[Analytics Job] No events on %%s: no row written', %(label)s::text)
        END
    ) AS log
FROM counted;
