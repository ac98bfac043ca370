-- A partitioned analytics_event whose newest partition ends soon: then the application can store no event any more.
-- Result: subject (none), message.
SELECT
    '' AS subject,
    format(
        'The newest partition of analytics_event ends on %%s UTC, and later events cannot be stored: look why no '
        || 'others were made, in the log of find_due_days of aggregate_daily_analytics where these jobs make them.',
        to_char(max(stored.ends_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')
    ) AS message
FROM analytics_event_partitions() AS stored
HAVING max(stored.ends_at) < now() + interval '7 days' AND NOT bool_or(stored.is_default);
