-- Rows that are kept as they were counted, since others deleted their raw events.
-- Result: subject (none), message, once.
SELECT
    '' AS subject,
    TRUE AS once,
    format(
        'Raw events that were counted are missing at the old end of %%s website(s), and none of these jobs deleted '
        || 'them (%%s%%s); %%s row(s) are kept as they were counted; look whether another job deletes events.',
        count(*),
        string_agg(kept.website_id, ', ' ORDER BY kept.place) FILTER (WHERE kept.place <= 10),
        CASE WHEN count(*) > 10 THEN ', ...' END,
        sum(kept.days)
    ) AS message
FROM (
    SELECT
        stats.website_id,
        count(*) AS days,
        row_number() OVER (ORDER BY stats.website_id) AS place
    FROM analytics_daily_stats AS stats
    WHERE stats.sealed_at IS NULL AND stats.kept_at > now() - interval '23 hours'
    GROUP BY stats.website_id
) AS kept
HAVING count(*) > 0;
