-- Seals expired days and lists their raw events for deletion, in one statement with one snapshot. A day is sealed if
-- its row counts exactly the events that the snapshot shows, and just what the snapshot shows is listed: so nothing is
-- deleted that was not counted. What is found of a sealed day and is not on the list came later: it is counted in
-- columns of its own, and listed.
-- Params: first_day, last_day (date), retention_days (int), batch_size (int), dry_run (boolean: write nothing),
--   has_archive (boolean: nothing that is listed is in it yet), job, run_id (text).
-- Result: one row: log, result (NULL, or json about the days whose row does not count exactly their events, which are
--   left: first_day, last_day, count, named, and the parameters of aggregate_day.sql).
WITH ignored AS MATERIALIZED (SELECT analytics_ignored_events() AS event_names),

day AS MATERIALIZED (
    SELECT
        website.website_id,
        day.date,
        day.starts_at,
        day.ends_at,
        stats.total_events,
        stats.events_hash,
        stats.sealed_at,
        stats.kept_at,
        stats.late_pageviews + stats.late_custom_events + stats.late_ignored_events AS late_before,
        -- Counted in these bounds, and as events are counted now.
        (stats.starts_at, stats.ends_at, stats.ignored_events)
        = (day.starts_at, day.ends_at, (SELECT ignored.event_names FROM ignored)) AS is_as_now
    FROM (
        SELECT
            name.website_id,
            analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff
        FROM analytics_websites() AS name (website_id)
        -- OFFSET 0: the cutoff is asked once for each website, not for each day.
        OFFSET 0 -- noqa: AM09
    ) AS website
    CROSS JOIN
        LATERAL analytics_event_days(
            website.website_id,
            analytics_day_start(website.website_id, %(first_day)s::date),
            least(website.cutoff, analytics_day_start(website.website_id, %(last_day)s::date + 1))
        ) AS day
    LEFT JOIN analytics_daily_stats AS stats ON website.website_id = stats.website_id AND day.date = stats.date
    WHERE day.ends_at <= website.cutoff
),

on_list AS MATERIALIZED (
    SELECT
        batch.first_at,
        batch.last_at,
        batch.ids,
        batch.deleted_ids
    FROM analytics_purge_batch AS batch
    WHERE
        batch.kind = 'event'
        AND batch.last_at >= (SELECT min(day.starts_at) FROM day)
        AND batch.first_at < (SELECT max(day.ends_at) FROM day)
),

-- A soft-deleted event on the list that was restored is listed anew, as a live one; so is one that was moved away from
-- its batch, which lets it go.
listed AS MATERIALIZED (
    SELECT
        name.id,
        name.is_live
    FROM (
        SELECT
            unnest(on_list.ids) AS id,
            on_list.first_at,
            on_list.last_at,
            TRUE AS is_live
        FROM on_list
        UNION ALL
        SELECT
            unnest(on_list.deleted_ids) AS id,
            on_list.first_at,
            on_list.last_at,
            FALSE AS is_live
        FROM on_list
    ) AS name
    INNER JOIN analytics_event AS event
        ON name.id = event.id AND event.timestamp BETWEEN name.first_at AND name.last_at
),

-- Subqueries with IN here and below are hashed, whatever the planner thinks of their size; joins might be nested loops.
raw AS MATERIALIZED (
    SELECT
        day.*,
        event.id,
        event.timestamp,
        event.is_pageview,
        event.is_ignored,
        event.is_live,
        event.hash,
        not(
            event.id IN (
                SELECT listed.id FROM listed
                WHERE listed.is_live
            )
            OR NOT event.is_live AND event.id IN (
                SELECT listed.id FROM listed
                WHERE NOT listed.is_live
            )
        ) AS is_new
    FROM day
    CROSS JOIN LATERAL (
        SELECT
            live.id,
            live.timestamp,
            live.event_type = 'pageview' AS is_pageview,
            (
                live.event_type = 'custom_event'
                AND live.event_name = any((SELECT ignored.event_names FROM ignored)::text[])
            ) IS TRUE AS is_ignored,
            TRUE AS is_live,
            analytics_event_hash(
                live.id,
                live.event_type,
                live.event_name,
                live.pathname,
                live.referrer_source,
                live.visitor_id,
                live.session_id,
                analytics_attributes_hash(
                    live.country,
                    live.device_type,
                    live.browser,
                    live.os,
                    live.utm_source,
                    live.utm_medium,
                    live.utm_campaign
                ),
                live.timestamp
            ) AS hash
        FROM analytics_event AS live
        WHERE
            live.website_id = day.website_id
            AND live.timestamp >= day.starts_at
            AND live.timestamp < day.ends_at
            AND live.deleted_at IS NULL
        UNION ALL
        SELECT
            deleted.id,
            deleted.timestamp,
            FALSE AS is_pageview,
            FALSE AS is_ignored,
            FALSE AS is_live,
            NULL AS hash
        FROM analytics_event AS deleted
        WHERE
            deleted.website_id = day.website_id
            AND deleted.timestamp >= day.starts_at
            AND deleted.timestamp < day.ends_at
            AND deleted.deleted_at IS NOT NULL
    ) AS event
),

found AS (
    SELECT
        raw.website_id,
        raw.date,
        raw.is_as_now,
        raw.total_events,
        raw.events_hash,
        raw.sealed_at,
        raw.kept_at,
        raw.late_before,
        count(*) FILTER (WHERE raw.is_live) AS events,
        coalesce(bit_xor(raw.hash), 0) AS hash,
        count(*) FILTER (WHERE raw.is_new AND raw.is_live) AS new_events,
        count(*) FILTER (WHERE raw.is_new AND raw.is_live AND raw.is_pageview) AS new_pageviews,
        count(*) FILTER (WHERE raw.is_new AND raw.is_live AND raw.is_ignored) AS new_ignored_events
    FROM raw
    GROUP BY
        raw.website_id, raw.date, raw.is_as_now, raw.total_events, raw.events_hash, raw.sealed_at, raw.kept_at,
        raw.late_before
),

verdict AS MATERIALIZED (
    SELECT
        found.*,
        CASE
            WHEN found.sealed_at IS NOT NULL AND found.new_events > 0 THEN 'late'
            -- All that is new is soft-deleted.
            WHEN found.sealed_at IS NOT NULL OR found.total_events IS NULL AND found.events = 0 THEN 'not counted'
            WHEN found.kept_at IS NOT NULL AND found.events < found.total_events THEN 'kept'
            WHEN found.is_as_now AND (found.total_events, found.events_hash) = (found.events, found.hash) THEN 'exact'
            ELSE 'inexact'
        END AS outcome
    FROM found
),

sealed AS (
    UPDATE analytics_daily_stats AS stats
    SET
        sealed_at = coalesce(stats.sealed_at, now()),
        late_pageviews = stats.late_pageviews + CASE verdict.outcome WHEN 'late' THEN verdict.new_pageviews ELSE 0 END,
        late_custom_events = stats.late_custom_events
        + CASE verdict.outcome
            WHEN 'late' THEN verdict.new_events - verdict.new_pageviews - verdict.new_ignored_events ELSE 0
        END,
        late_ignored_events
        = stats.late_ignored_events + CASE verdict.outcome WHEN 'late' THEN verdict.new_ignored_events ELSE 0 END
    FROM verdict
    WHERE
        stats.website_id = verdict.website_id
        AND stats.date = verdict.date
        AND verdict.outcome IN ('exact', 'kept', 'late')
        -- Only as the snapshot shows it: of two runs at the same moment, the second one leaves the day to the first.
        AND (
            stats.sealed_at,
            stats.late_pageviews + stats.late_custom_events + stats.late_ignored_events,
            stats.total_events,
            stats.events_hash
        )
        IS NOT DISTINCT FROM (verdict.sealed_at, verdict.late_before, verdict.total_events, verdict.events_hash)
        AND NOT %(dry_run)s::boolean
    RETURNING
        stats.website_id,
        stats.date,
        CASE verdict.outcome WHEN 'late' THEN verdict.new_events END AS late_events
),

late_in_ledger AS (
    UPDATE analytics_job_run AS run
    SET late_events = run.late_events + late.events
    FROM (SELECT sum(sealed.late_events) AS events FROM sealed) AS late
    WHERE run.job = %(job)s AND run.run_id = %(run_id)s AND late.events > 0
),

numbered AS MATERIALIZED (
    SELECT
        id,
        timestamp,
        is_live,
        partition,
        (row_number() OVER (PARTITION BY partition ORDER BY timestamp ASC, id COLLATE "C" ASC) - 1)
        / %(batch_size)s::int AS batch
    FROM (
        -- No batch is of two partitions, so that each can be dropped with its batches. NULL where there are none.
        SELECT
            raw.*,
            width_bucket(raw.timestamp, (
                SELECT array_agg(bound.starts_at ORDER BY bound.starts_at) FROM analytics_event_partitions() AS bound
            )) AS partition
        FROM raw
    ) AS event
    WHERE
        is_new
        AND (
            (website_id, date) IN (SELECT
                sealed.website_id,
                sealed.date
            FROM sealed)
            OR (website_id, date) IN (
                SELECT
                    verdict.website_id,
                    verdict.date
                FROM verdict
                WHERE verdict.outcome = 'not counted'
            )
        )
),

written AS (
    INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids, archived, listed_hash)
    SELECT
        'event' AS kind,
        count(*) AS rows,
        min(numbered.timestamp) AS first_at,
        max(numbered.timestamp) AS last_at,
        coalesce(array_agg(numbered.id) FILTER (WHERE numbered.is_live), '{}') AS ids,
        coalesce(array_agg(numbered.id) FILTER (WHERE NOT numbered.is_live), '{}') AS deleted_ids,
        CASE WHEN %(has_archive)s::boolean THEN '{}'::bigint[] END AS archived,
        bit_xor(analytics_listed_hash(numbered.id, numbered.timestamp, numbered.is_live)) AS listed_hash
    FROM numbered
    WHERE NOT %(dry_run)s::boolean
    GROUP BY numbered.partition, numbered.batch
    ORDER BY numbered.partition, numbered.batch
    RETURNING rows
),

-- A day that another run has sealed or counted at this moment is looked at again.
decided AS (
    SELECT
        verdict.*,
        verdict.outcome = 'inexact' OR verdict.outcome IN ('exact', 'kept') AND NOT %(dry_run)s::boolean
        AND (verdict.website_id, verdict.date) NOT IN (SELECT
            sealed.website_id,
            sealed.date
        FROM sealed) AS is_left
    FROM verdict
),

remark AS (
    SELECT
        decided.date,
        decided.is_left,
        format(
            '%%s %%s (%%s)',
            analytics_one_line(decided.website_id),
            to_char(decided.date, 'YYYY-MM-DD'),
            CASE decided.outcome
                WHEN 'late'
                    THEN format(
                        '%%s event(s) came after its stats were sealed and are counted as late',
                        decided.new_events
                    )
                WHEN 'kept' THEN format('sealed as it is: %%s counted, %%s left', decided.total_events, decided.events)
                ELSE
                    format(
                        '%%s event(s), %%s', decided.events, coalesce('stats of ' || decided.total_events, 'no stats')
                    )
            END
        ) AS text,
        row_number() OVER (PARTITION BY decided.outcome ORDER BY decided.date, decided.website_id) AS number
    FROM decided
    WHERE decided.is_left OR decided.outcome IN ('kept', 'late')
)

SELECT
    concat_ws(
        E'\n',
        string_agg('[Analytics Archive] ' || remark.text, E'\n' ORDER BY remark.date, remark.text),
        format(
            '[Analytics Archive] %%s to %%s: sealed %%s day(s), listed %%s event(s) in %%s batch(es)%%s',
            %(first_day)s::text,
            %(last_day)s::text,
            (
                SELECT count(*) FROM sealed
                WHERE sealed.late_events IS NULL
            ),
            (SELECT coalesce(sum(written.rows), 0) FROM written),
            (SELECT count(*) FROM written),
            CASE WHEN %(dry_run)s::boolean THEN '; a dry run writes nothing' END
        )
    ) AS log,
    CASE
        WHEN bool_or(remark.is_left)
            THEN json_build_object(
                'first_day', %(first_day)s::text,
                'last_day', %(last_day)s::text,
                'count', count(*) FILTER (WHERE remark.is_left),
                'named', string_agg(remark.text, ', ' ORDER BY remark.number)
                FILTER (WHERE remark.is_left AND remark.number <= 10),
                'days', json_agg(DISTINCT to_char(remark.date, 'YYYY-MM-DD')) FILTER (WHERE remark.is_left),
                'label', concat_ws(' to ', %(first_day)s::text, nullif(%(last_day)s::text, %(first_day)s::text)),
                'recount', FALSE
            )
    END AS result
FROM remark;
