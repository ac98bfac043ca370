-- Freezes the moment of the run, so that all its tasks and their retries agree on what has expired.
-- Params: retention_days (int), timezone (IANA name), for websites without a policy of their own.
-- Result: one row: moment (timestamptz as text), cutoff (timestamptz as text), remark (text), database_bytes,
--   database_size.
SELECT
    now()::text AS moment,
    analytics_cutoff(now(), %(timezone)s, %(retention_days)s::int)::text AS cutoff,
    (
        SELECT
            concat(
                CASE WHEN count(*) > 0 THEN format('; %%s website(s) have a policy of their own', count(*)) END,
                '; legal hold on the raw data of '
                || string_agg(website_id, ', ' ORDER BY website_id) FILTER (WHERE legal_hold)
            )
        FROM analytics_website_policy
    ) AS remark,
    pg_database_size(current_database()) AS database_bytes,
    pg_size_pretty(pg_database_size(current_database())) AS database_size;
