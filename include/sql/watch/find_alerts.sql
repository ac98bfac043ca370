-- Finds what people should know, whichever job should have taken care of it; keeps one row per alert in
-- analytics_alert.
-- Params: retention_days, idle_minutes, behind_hours (int), database_gb (float).
-- Result: one row: log, result (json: the alerts to send now: id, state (opened, still open, recovered), condition,
--   subject, message, opened_at). An alert is due when it opens, a day after it was last sent, and when it has
--   recovered. It is claimed here, so that of two runs at the same moment one sends it, and due again if it is not
--   marked as sent within 5 minutes.
WITH website AS MATERIALIZED (
    SELECT
        website.website_id,
        newest.ends_at AS counted_up_to,
        analytics_cutoff(website.website_id, %(retention_days)s::int) AS cutoff,
        -- What is before has a time that no calendar has, and stays.
        analytics_day_start(website.website_id, '0001-01-01') AS first_instant
    FROM analytics_websites() AS website (website_id)
    LEFT JOIN LATERAL (
        SELECT stats.ends_at FROM analytics_daily_stats AS stats
        -- A clock that was ahead may have let days be counted that are still to come.
        WHERE stats.website_id = website.website_id AND stats.ends_at <= now()
        ORDER BY stats.date DESC LIMIT 1
    ) AS newest ON TRUE
),

waiting AS (
    SELECT
        website.website_id,
        day.date,
        extract(EPOCH FROM now() - day.ends_at) / 3600 AS hours
    FROM website
    CROSS JOIN
        LATERAL (
            SELECT min(event.timestamp) AS timestamp FROM analytics_event AS event
            WHERE
                event.website_id = website.website_id
                AND event.timestamp >= coalesce(website.counted_up_to, website.first_instant)
                AND event.timestamp < now()
                AND event.deleted_at IS NULL
        ) AS first_event
    CROSS JOIN LATERAL analytics_day(website.website_id, first_event.timestamp) AS day
    WHERE day.ends_at < now() - make_interval(hours => %(behind_hours)s::int)
),

expired AS (
    SELECT
        website.website_id,
        extract(DAY FROM website.cutoff - oldest.timestamp) AS days
    FROM website
    CROSS JOIN
        LATERAL (
            SELECT min(event.timestamp) AS timestamp FROM analytics_event AS event
            WHERE
                event.website_id = website.website_id
                AND event.timestamp >= website.first_instant
                AND event.timestamp < website.cutoff
                AND event.deleted_at IS NULL
        ) AS oldest
    WHERE oldest.timestamp < website.cutoff - interval '8 days'
),

usual AS (
    SELECT
        stats.website_id,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY stats.total_events) AS events
    FROM analytics_daily_stats AS stats
    WHERE stats.ends_at >= now() - interval '15 days' AND stats.total_events > 0
    GROUP BY stats.website_id
    -- Normally has some: on half the days at least, and enough for a day without any not to be chance.
    HAVING count(*) >= 7
),

silent AS (
    SELECT
        usual.website_id,
        usual.events,
        newest.timestamp
    FROM usual
    CROSS JOIN
        LATERAL (
            SELECT max(event.timestamp) AS timestamp FROM analytics_event AS event
            WHERE event.website_id = usual.website_id AND event.timestamp <= now() AND event.deleted_at IS NULL
        ) AS newest
    WHERE usual.events >= 20 AND coalesce(newest.timestamp, '-infinity') < now() - interval '1 day'
),

raw_table AS (
    SELECT
        sum(pg_relation_size(raw.relid)) AS bytes,
        -- The row's header and pointer have 28 bytes. Known only as well as the last ANALYZE.
        sum(raw.n_live_tup * (28 + (
            SELECT sum(width.avg_width) FROM pg_catalog.pg_stats AS width
            WHERE width.schemaname = raw.schemaname AND width.tablename = raw.relname
        ))) AS live_bytes
    FROM pg_catalog.pg_stat_user_tables AS raw
    WHERE raw.relid IN (to_regclass('analytics_event'), to_regclass('analytics_session'))
),

growth AS (
    SELECT regr_slope(run.database_bytes, extract(EPOCH FROM run.finished_at)) * 7 * 86400 AS bytes_per_week
    FROM analytics_job_run AS run
    WHERE run.started_at > now() - interval '28 days' AND run.database_bytes IS NOT NULL
    HAVING max(run.finished_at) - min(run.finished_at) > interval '1 day'
),

kept AS (
    SELECT
        stats.website_id,
        count(*) AS days,
        row_number() OVER (ORDER BY stats.website_id) AS place,
        count(*) OVER () AS websites
    FROM analytics_daily_stats AS stats
    WHERE stats.sealed_at IS NULL AND stats.kept_at > now() - interval '23 hours'
    GROUP BY stats.website_id
),

last_run AS (
    SELECT DISTINCT ON (run.job)
        run.job,
        run.unsealed_days,
        run.problem
    FROM analytics_job_run AS run
    WHERE run.outcome <> 'running'
    ORDER BY run.job ASC, run.started_at DESC
),

found_alert (condition, subject, message) AS (
    SELECT
        'aggregation_behind',
        waiting.website_id,
        format(
            'Website %%s: its day %%s ended %%s hours ago and has no daily stats; look whether '
            || 'aggregate_daily_analytics is paused or fails, and run it: it makes up for every day.',
            waiting.website_id, waiting.date, round(waiting.hours)
        )
    FROM waiting
    UNION ALL
    SELECT
        'database_size',
        '',
        format(
            'The database has %%s, more than %%s GB%%s%%s; a shorter retention stops its growth, but a DELETE gives '
            || 'space back to PostgreSQL, not to the disk: VACUUM FULL or pg_repack does.',
            pg_size_pretty(pg_database_size(current_database())),
            %(database_gb)s::float8,
            (
                SELECT
                    format(
                        ': of the raw tables'' %%s, about %%s are live rows and %%s are free for new ones',
                        pg_size_pretty(raw_table.bytes),
                        pg_size_pretty(round(raw_table.live_bytes)),
                        pg_size_pretty(round(greatest(raw_table.bytes - raw_table.live_bytes, 0)))
                    )
                FROM raw_table
                WHERE raw_table.live_bytes IS NOT NULL
            ),
            (
                SELECT format(', growing by %%s a week', pg_size_pretty(round(growth.bytes_per_week)::bigint))
                FROM growth
            )
        )
    WHERE pg_database_size(current_database()) > %(database_gb)s::float8 * 1024 ^ 3
    UNION ALL
    SELECT
        'retention_backlog',
        '',
        format(
            'Raw events of %%s website(s) should have been deleted up to %%s days ago (%%s); look whether '
            || 'archive_old_analytics is paused or fails.',
            count(*), max(expired.days), string_agg(expired.website_id, ', ' ORDER BY expired.website_id)
        )
    FROM expired
    HAVING count(*) > 0
    UNION ALL
    SELECT
        'proof_failed',
        '',
        format('The last run of archive_old_analytics failed: %%s', last_run.problem)
    FROM last_run
    WHERE last_run.job = 'archive_old_analytics' AND last_run.unsealed_days > 0
    UNION ALL
    SELECT
        'cleanup_missing',
        '',
        format(
            'No run of cleanup_analytics_sessions has succeeded for %%s; look whether it is paused or fails.',
            coalesce(
                floor(extract(EPOCH FROM now() - max(run.finished_at)) / 60) || ' minutes',
                'at least an hour, and idle sessions are open'
            )
        )
    FROM analytics_job_run AS run
    WHERE run.job = 'cleanup_analytics_sessions' AND run.outcome = 'success'
    HAVING
        max(run.finished_at) < now() - interval '1 hour'
        OR count(*) = 0 AND EXISTS (
            SELECT FROM analytics_session AS session
            WHERE
                session.ended_at IS NULL
                AND session.deleted_at IS NULL
                AND session.last_activity_at < now() - make_interval(hours => 1, mins => %(idle_minutes)s::int)
        )
    UNION ALL
    SELECT
        'traffic_missing',
        silent.website_id,
        format(
            'Website %%s: no event since %%s UTC, where a day has %%s as a rule; look at its tracking script and at '
            || 'what stores the events.',
            silent.website_id,
            coalesce(to_char(silent.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), 'its raw data was deleted'),
            silent.events
        )
    FROM silent
    UNION ALL
    SELECT
        'rows_kept',
        '',
        format(
            'Raw events that were counted are missing at the old end of %%s website(s), and none of these jobs deleted '
            || 'them (%%s%%s); %%s row(s) are kept as they were counted; look whether another job deletes events.',
            max(kept.websites),
            string_agg(kept.website_id, ', ' ORDER BY kept.place) FILTER (WHERE kept.place <= 10),
            CASE WHEN max(kept.websites) > 10 THEN ', ...' ELSE '' END,
            sum(kept.days)
        )
    FROM kept
    HAVING count(*) > 0
    UNION ALL
    SELECT
        'late_events',
        '',
        format(
            '%%s event(s) came for days that were sealed already; they are counted as late, without their visitors and '
            || 'pages; look whether old events were imported, or whether a client sends them months later.',
            max(run.late_events)
        )
    FROM analytics_job_run AS run
    -- A few always come late.
    WHERE run.late_events > 10 AND run.started_at > now() - interval '23 hours'
    HAVING count(*) > 0
),

current_alert AS MATERIALIZED (
    SELECT
        condition,
        message,
        -- An index entry has an end, and the name of a website may not.
        CASE WHEN length(subject) > 500 THEN left(subject, 468) || md5(subject) ELSE subject END AS subject
    FROM found_alert
),

open_alert AS (
    INSERT INTO analytics_alert AS alert (condition, subject, message, opened_at, claimed_at)
    SELECT
        condition,
        subject,
        message,
        now() AS opened_at,
        now() AS claimed_at
    FROM current_alert
    -- In one order, so that two runs wait for each other instead of deadlocking.
    ORDER BY condition, subject
    ON CONFLICT (condition, subject) WHERE recovered_at IS NULL DO UPDATE
        SET
            message = excluded.message,
            claimed_at = CASE
                WHEN
                    coalesce(alert.sent_at, '-infinity') <= now() - interval '1 day'
                    AND alert.claimed_at <= now() - interval '5 minutes'
                    THEN now()
                ELSE alert.claimed_at
            END
    RETURNING *
),

recovered_alert AS (
    UPDATE analytics_alert AS alert
    SET
        recovered_at = coalesce(alert.recovered_at, now()),
        claimed_at = now(),
        -- Nobody was told that it was open, so nobody need know that it is over; and what happened once is not over.
        recovery_sent_at = CASE
            WHEN alert.sent_at IS NULL OR alert.condition IN ('rows_kept', 'late_events') THEN now()
        END
    WHERE
        alert.recovery_sent_at IS NULL
        AND (
            alert.recovered_at IS NULL AND NOT EXISTS (
                SELECT FROM current_alert
                WHERE current_alert.condition = alert.condition AND current_alert.subject = alert.subject
            )
            OR alert.recovered_at IS NOT NULL AND alert.claimed_at <= now() - interval '5 minutes'
        )
    RETURNING *
)

SELECT
    coalesce(json_agg(due ORDER BY due.state, due.condition, due.subject), '[]') AS result,
    coalesce(
        string_agg(
            format('[Analytics Watch] %%s: %%s', due.state, due.message),
            E'\n' ORDER BY due.state, due.condition, due.subject
        ),
        '[Analytics Watch] No alert is due'
    ) AS log
FROM (
    SELECT
        open_alert.id,
        open_alert.condition,
        open_alert.subject,
        open_alert.message,
        CASE WHEN open_alert.sent_at IS NULL THEN 'opened' ELSE 'still open' END AS state,
        to_char(open_alert.opened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS opened_at
    FROM open_alert
    WHERE open_alert.claimed_at = now()
    UNION ALL
    SELECT
        recovered_alert.id,
        recovered_alert.condition,
        recovered_alert.subject,
        recovered_alert.message,
        'recovered' AS state,
        to_char(recovered_alert.opened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS opened_at
    FROM recovered_alert
    WHERE recovered_alert.recovery_sent_at IS NULL
) AS due;
