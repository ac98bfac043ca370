-- Where the first partition ends, which has all events until now: at least a week from now, so that the application can
-- store events with the clocks that its clients have, and this can be stopped and begun again.
-- Params: every (day, week or month).
-- Result: one row: schema_name (of analytics_event, quoted), bound (timestamptz), name (of the first partition).
WITH first AS (
    SELECT
        clock.timezone,
        (
            date_trunc(%(every)s::text, (now() AT TIME ZONE clock.timezone) + interval '7 days')
            + ('1 ' || %(every)s::text)::interval
        )::date AS day
    FROM analytics_zone(NULL, (now() AT TIME ZONE 'UTC')::date) AS clock (timezone)
)

SELECT
    relation.relnamespace::regnamespace::text AS schema_name,
    analytics_midnight(first.day, first.timezone) AS bound,
    'analytics_event_before_' || to_char(first.day, 'YYYY_MM_DD') AS name
FROM first
CROSS JOIN pg_catalog.pg_class AS relation
WHERE relation.oid = 'analytics_event'::regclass;
