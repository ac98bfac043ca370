-- Finds the days whose raw events have expired and cuts them into steps of about 100,000 events, for seal_days.sql.
-- Params: retention_days (int), for websites without a policy of their own; batch_size (int).
-- Result: one row: result (json: cutoff; steps, each with first_day and last_day; events, raw rows of all of them;
--   left_days, that are left for the next run), log.
-- A run takes 1,000 days and 10,000 batches at most, so that its list stays small whatever the backlog.
WITH website AS MATERIALIZED (
    SELECT
        website.website_id,
        analytics_cutoff(website.website_id, %(retention_days)s::int) AS cutoff
    FROM analytics_websites() AS website (website_id)
),

expired AS (
    SELECT
        day.date,
        sum(sign.total_events + sign.deleted_events) AS events
    FROM website
    CROSS JOIN LATERAL analytics_event_days(website.website_id, '-infinity', website.cutoff) AS day
    CROSS JOIN LATERAL analytics_signs(website.website_id, day.starts_at, day.ends_at) AS sign
    WHERE day.ends_at <= website.cutoff
    GROUP BY day.date
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

policy AS (
    SELECT
        to_char(
            analytics_cutoff(NULL, %(retention_days)s::int) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'
        ) AS cutoff,
        CASE WHEN count(*) > 0 THEN format('; %%s website(s) have a policy of their own', count(*)) END AS websites,
        '; legal hold on the raw data of '
        || string_agg(stored.website_id, ', ' ORDER BY stored.website_id) FILTER (WHERE stored.legal_hold) AS holds
    FROM analytics_website_policy AS stored
),

anomaly AS (
    SELECT
        string_agg(
            format(
                '[Analytics Archive] Website %%s: %%s event(s) have a time that no calendar has; they are left',
                website.website_id, website.events
            ),
            E'\n' ORDER BY website.website_id
        ) AS websites
    FROM analytics_anomalies() AS website
)

SELECT
    json_build_object(
        'cutoff', policy.cutoff,
        'left_days', found.left_days,
        'events', found.events,
        'steps', coalesce(taken.steps, '[]')
    ) AS result,
    concat_ws(
        E'\n',
        concat('[Analytics Archive] Raw data before ', policy.cutoff, ' has expired', policy.websites, policy.holds),
        CASE
            WHEN found.left_days > 0
                THEN format(
                    '[Analytics Archive] %%s more day(s) have expired than a run takes: the next run goes on with them',
                    found.left_days
                )
        END,
        anomaly.websites
    ) AS log
FROM found
CROSS JOIN taken
CROSS JOIN policy
CROSS JOIN anomaly;
