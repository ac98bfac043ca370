-- Finds the days whose raw events have expired and cuts them into steps of about 100,000 events, for seal_days.sql.
-- Params: retention_days (int), for websites without a policy of their own; batch_size (int); dry_run, confirm
--   (boolean); job, run_id (text).
-- Result: one row: result (json: cutoff; steps, each with first_day and last_day; events, raw rows of all of them;
--   left_days, that are left for the next run; bytes, that raw data takes on the disk), log, problem (why the run is
--   unusual and stops here).
-- A run takes 1,000 days and 10,000 batches at most, so that its list stays small whatever the backlog.
-- A run is unusual if more than three times the median of the last eight runs has expired (of those that found
-- something; the first of them is unusual), or if a website's data is kept for fewer days, or has its days in another
-- time zone, than at the last run. It stops, unless confirm is true. What it is compared with is written into the
-- ledger of a run that goes on.
WITH expired_day AS MATERIALIZED (
    SELECT * FROM analytics_expired_days(%(retention_days)s::int)
),

expired AS (
    SELECT
        expired_day.date,
        sum(expired_day.events) AS events
    FROM expired_day
    GROUP BY expired_day.date
),

numbered AS (
    SELECT
        expired.date,
        expired.events,
        row_number() OVER by_date AS number,
        sum(expired.events) OVER by_date - expired.events AS events_before
    FROM expired
    WINDOW by_date AS (ORDER BY expired.date)
),

step AS (
    SELECT
        min(numbered.date) AS first_day,
        max(numbered.date) AS last_day
    FROM numbered
    WHERE numbered.number <= 1000 AND numbered.events_before < 10000 * %(batch_size)s::bigint
    GROUP BY floor(numbered.events_before / 100000)
),

taken AS (
    SELECT
        max(step.last_day) AS last_day,
        json_agg(
            json_build_object(
                'first_day', to_char(step.first_day, 'YYYY-MM-DD'), 'last_day', to_char(step.last_day, 'YYYY-MM-DD')
            )
            ORDER BY step.first_day
        ) AS steps
    FROM step
),

found AS (
    SELECT
        count(*) FILTER (WHERE numbered.date > taken.last_day) AS left_days,
        coalesce(sum(numbered.events) FILTER (WHERE numbered.date <= taken.last_day), 0) AS events
    FROM numbered
    CROSS JOIN taken
),

expired_website AS MATERIALIZED (
    SELECT
        event.first_day,
        coalesce(event.website_id, expired_session.website_id) AS website_id,
        coalesce(event.events, 0) AS events,
        coalesce(expired_session.sessions, 0) AS sessions,
        format(
            '%%s: %%s event(s)%%s and %%s session(s)',
            analytics_one_line(coalesce(event.website_id, expired_session.website_id)),
            to_char(coalesce(event.events, 0), 'FM999,999,999,999,990'),
            CASE
                WHEN event.events > 0
                    THEN format(
                        ' from %%s on (%%s up to 30 days past what is kept, %%s up to a year, %%s more)',
                        to_char(event.first_day, 'YYYY-MM-DD'),
                        to_char(event.days_30, 'FM999,999,999,999,990'),
                        to_char(event.days_365, 'FM999,999,999,999,990'),
                        to_char(event.events - event.days_30 - event.days_365, 'FM999,999,999,999,990')
                    )
            END,
            to_char(coalesce(expired_session.sessions, 0), 'FM999,999,999,999,990')
        ) AS text,
        row_number() OVER (
            ORDER BY
                coalesce(event.events, 0) + coalesce(expired_session.sessions, 0) DESC,
                convert_to(coalesce(event.website_id, expired_session.website_id), 'UTF8') ASC
        ) AS number
    FROM (
        SELECT
            day.website_id,
            sum(day.events) AS events,
            coalesce(sum(day.events) FILTER (WHERE day.age < interval '30 days'), 0) AS days_30,
            coalesce(
                sum(day.events) FILTER (WHERE day.age >= interval '30 days' AND day.age < interval '365 days'), 0
            ) AS days_365,
            min(day.date) AS first_day
        FROM expired_day AS day
        GROUP BY day.website_id
    ) AS event
    FULL JOIN analytics_expired_sessions(%(retention_days)s::int) AS expired_session
        ON event.website_id = expired_session.website_id
),

expired_total AS (
    SELECT
        coalesce(sum(website.events + website.sessions), 0)::bigint AS rows,
        count(*) AS websites,
        string_agg('[Analytics Archive] Expired of ' || website.text, E'\n' ORDER BY website.number)
        FILTER (WHERE website.number <= 50) AS log,
        string_agg(website.text, '; ' ORDER BY website.number) FILTER (WHERE website.number <= 5) AS text
    FROM expired_website AS website
),

brake AS MATERIALIZED (
    SELECT
        analytics_one_line(format(
            'This run would delete %%s row(s), which is unusual: %%s%%s. Nothing was deleted; if it is right, trigger '
            || 'archive_old_analytics with the Param confirm. It would delete %%s%%s.',
            to_char(expired_total.rows, 'FM999,999,999,999,990'),
            string_agg(reason.text, '; ' ORDER BY reason.number) FILTER (WHERE reason.number <= 5),
            CASE WHEN count(*) > 5 THEN format('; and %%s more reason(s)', count(*) - 5) END,
            coalesce(expired_total.text, 'nothing now'),
            CASE WHEN expired_total.websites > 5 THEN format('; and of %%s more', expired_total.websites - 5) END
        )) AS sentence
    FROM expired_total
    CROSS JOIN
        LATERAL analytics_unusual(%(retention_days)s::int, expired_total.rows, %(run_id)s)
        WITH ORDINALITY AS reason (text, number)
    GROUP BY expired_total.rows, expired_total.text, expired_total.websites
),

let_go AS (
    UPDATE analytics_job_run AS run
    SET
        expired_rows = expired_total.rows,
        policies = (
            SELECT jsonb_agg(to_jsonb(policy) ORDER BY convert_to(policy.website_id, 'UTF8') NULLS FIRST)
            FROM analytics_policies(%(retention_days)s::int) AS policy
        )
    FROM expired_total
    WHERE
        run.job = %(job)s
        AND run.run_id = %(run_id)s
        AND NOT %(dry_run)s::boolean
        AND (%(confirm)s::boolean OR NOT EXISTS (SELECT FROM brake))
),

held AS (
    SELECT
        to_char(
            analytics_cutoff(NULL, %(retention_days)s::int) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'
        ) AS cutoff,
        CASE WHEN count(*) > 0 THEN format('; %%s website(s) have a policy of their own', count(*)) END AS websites,
        '; legal hold on the raw data of '
        || string_agg(analytics_one_line(stored.website_id), ', ' ORDER BY stored.website_id)
        FILTER (WHERE stored.legal_hold) AS holds
    FROM analytics_website_policy AS stored
),

anomaly AS (
    SELECT
        string_agg(
            format(
                '[Analytics Archive] Website %%s: %%s event(s) have a time that no calendar has; they are left',
                analytics_one_line(website.website_id), website.events
            ),
            E'\n' ORDER BY website.website_id
        ) AS websites
    FROM analytics_anomalies() AS website
)

SELECT
    json_build_object(
        'cutoff', held.cutoff,
        'left_days', found.left_days,
        'events', found.events,
        'bytes', raw_data.bytes,
        'steps', coalesce(taken.steps, '[]')
    ) AS result,
    concat_ws(
        E'\n',
        concat('[Analytics Archive] Raw data before ', held.cutoff, ' has expired', held.websites, held.holds),
        expired_total.log,
        CASE
            WHEN found.left_days > 0
                THEN format(
                    '[Analytics Archive] %%s more day(s) have expired than a run takes: the next run goes on with them',
                    found.left_days
                )
        END,
        anomaly.websites,
        CASE
            WHEN standby.unseen > 0
                THEN
                    '[Analytics Archive] Batches do not wait for standbys that lag: the owner of the function '
                    || 'analytics_standbys may not look at them, until he is granted pg_read_all_stats'
        END,
        CASE
            WHEN %(dry_run)s::boolean THEN '[Analytics Archive] Dry run, without it or confirm: ' || brake.sentence
            WHEN %(confirm)s::boolean THEN '[Analytics Archive] Confirmed: ' || brake.sentence
        END
    ) AS log,
    CASE WHEN NOT %(dry_run)s::boolean AND NOT %(confirm)s::boolean THEN brake.sentence END AS problem
FROM found
CROSS JOIN taken
CROSS JOIN expired_total
CROSS JOIN held
CROSS JOIN anomaly
CROSS JOIN analytics_standbys() AS standby
CROSS JOIN analytics_storage() AS raw_data
LEFT JOIN brake ON TRUE;
