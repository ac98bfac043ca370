-- Raw events that should have been deleted more than a week ago, by the weekly run before.
-- Params: retention_days (int), for websites without a policy of their own.
-- Result: subject (none), message.
WITH expired AS (
    SELECT
        website.website_id,
        extract(DAY FROM cutoff.instant - oldest.timestamp) AS days,
        row_number() OVER (ORDER BY oldest.timestamp - cutoff.instant, website.website_id) AS place
    FROM analytics_websites() AS website (website_id)
    CROSS JOIN LATERAL analytics_cutoff(website.website_id, %(retention_days)s::int) AS cutoff (instant)
    CROSS JOIN
        LATERAL (
            SELECT min(event.timestamp) AS timestamp FROM analytics_event AS event
            WHERE
                event.website_id = website.website_id
                -- What is before has a time that no calendar has, and stays.
                AND event.timestamp >= analytics_day_start(website.website_id, '0001-01-01')
                AND event.timestamp < cutoff.instant
                AND event.deleted_at IS NULL
        ) AS oldest
    WHERE oldest.timestamp < cutoff.instant - interval '8 days'
)

SELECT
    '' AS subject,
    format(
        'Raw events of %%s website(s) should have been deleted up to %%s days ago (%%s%%s); look whether '
        || 'archive_old_analytics is paused or fails.',
        count(*),
        max(expired.days),
        string_agg(expired.website_id, ', ' ORDER BY expired.place) FILTER (WHERE expired.place <= 10),
        CASE WHEN count(*) > 10 THEN ', ...' END
    ) AS message
FROM expired
HAVING count(*) > 0;
