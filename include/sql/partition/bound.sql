-- Where the first partition ends, which has all events until now: at least a week from now, so that the application can
-- store events with the clocks that its clients have, and this can be stopped and begun again.
-- Params: every (day, week or month).
-- Result: one row: schema (of analytics_event, quoted), bound (timestamptz), name (of the first partition).
SELECT
    relation.relnamespace::regnamespace::text AS schema,
    analytics_midnight(first.day, zone.name) AS bound,
    'analytics_event_before_' || to_char(first.day, 'YYYY_MM_DD') AS name
FROM pg_catalog.pg_class AS relation
CROSS JOIN analytics_zone(NULL, (now() AT TIME ZONE 'UTC')::date) AS zone (name)
CROSS JOIN
    LATERAL ( -- noqa: ST05
        SELECT
            (
                date_trunc(%(every)s::text, (now() AT TIME ZONE zone.name) + interval '7 days')
                + ('1 ' || %(every)s::text)::interval
            )::date AS day
    ) AS first
WHERE relation.oid = 'analytics_event'::regclass;
