-- Finds the days whose raw events have expired and cuts them into steps of about 100,000 events, for seal_days.sql.
-- Params: retention_days (int), for websites without a policy of their own; batch_size (int).
-- Result: one row: result (json: cutoff; steps, each with first_day and last_day; events, raw rows of all of them; left_days,
--   that are left for the next run), log.
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

taken AS (
    SELECT
        min(numbered.date) AS first_day,
        max(numbered.date) AS last_day
    FROM numbered
    WHERE numbered.number <= 1000 AND numbered.events_before < 10000 * %(batch_size)s::bigint
    GROUP BY floor(numbered.events_before / 100000)
),

found AS (
    SELECT
        count(*) FILTER (WHERE numbered.date > newest.date) AS days,
        coalesce(sum(numbered.events) FILTER (WHERE numbered.date <= newest.date), 0) AS events
    FROM numbered
    CROSS JOIN (SELECT max(taken.last_day) AS date FROM taken) AS newest
)

SELECT
    json_build_object(
        'cutoff', general.cutoff,
        'left_days', found.days,
        'events', found.events,
        'steps', (
            SELECT
                coalesce(
                    json_agg(
                        json_build_object(
                            'first_day', to_char(taken.first_day, 'YYYY-MM-DD'),
                            'last_day', to_char(taken.last_day, 'YYYY-MM-DD')
                        )
                        ORDER BY taken.first_day
                    ),
                    '[]'
                )
            FROM taken
        )
    ) AS result,
    concat(
        format('[Analytics Archive] Raw data before %%s has expired', general.cutoff),
        (
            SELECT
                concat(
                    CASE WHEN count(*) > 0 THEN format('; %%s website(s) have a policy of their own', count(*)) END,
                    '; legal hold on the raw data of '
                    || string_agg(policy.website_id, ', ' ORDER BY policy.website_id) FILTER (WHERE policy.legal_hold)
                )
            FROM analytics_website_policy AS policy
        ),
        CASE
            WHEN found.days > 0
                THEN format(
                    E'\n[Analytics Archive] %%s more day(s) have expired than one run takes: the next run goes on with them',
                    found.days
                )
        END,
        (
            SELECT
                string_agg(
                    format(
                        E'\n[Analytics Archive] Website %%s: %%s event(s) have a time that no calendar has; they are left',
                        anomaly.website_id, anomaly.events
                    ),
                    '' ORDER BY anomaly.website_id
                )
            FROM analytics_anomalies() AS anomaly
        )
    ) AS log
FROM found
CROSS JOIN (
    SELECT
        to_char(
            analytics_cutoff(NULL, %(retention_days)s::int) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'
        ) AS cutoff
) AS general;
