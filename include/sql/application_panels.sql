-- On request, once the application's own aggregation is stopped: lets its dashboards read our statistics.
-- Puts a view in place of the application's table public.analytics_daily_stats, which is kept as
-- public.analytics_daily_stats_before; its rows are shown for the days that we have no row of, and where a row of ours
-- was sealed before something was counted. Run it with psql as a role that owns both; once more changes nothing.
-- Back: DROP VIEW public.analytics_daily_stats; ALTER TABLE public.analytics_daily_stats_before RENAME TO
--   analytics_daily_stats;
-- A date is midnight in UTC, a bounce rate is in percent, and lists have items as ours do: {"item", "count",
-- "visitors"}. Where the application has another shape, change it here.
DO $$
BEGIN
    IF to_regclass('public.analytics_daily_stats_before') IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT EXISTS (
        SELECT FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name = 'analytics_daily_stats' AND column_name = 'avg_session_duration'
    ) THEN
        RAISE EXCEPTION 'public.analytics_daily_stats is not the application''s table: there is nothing to put a view in '
        'place of; nothing was changed';
    END IF;
    ALTER TABLE public.analytics_daily_stats RENAME TO analytics_daily_stats_before;
END
$$;

CREATE OR REPLACE VIEW public.analytics_daily_stats AS
WITH former AS (
    SELECT
        stored.*,
        (stored.date AT TIME ZONE 'UTC')::date AS day
    FROM public.analytics_daily_stats_before AS stored
    WHERE stored.deleted_at IS NULL
)

-- The order of the columns is that of the table.
SELECT -- noqa: ST06
    coalesce(former.id, stats.website_id || ' ' || to_char(stats.date, 'YYYY-MM-DD')) AS id,
    coalesce(stats.website_id, former.website_id) AS website_id,
    coalesce(stats.date::timestamp AT TIME ZONE 'UTC', former.date) AS date,
    coalesce(stats.total_pageviews + stats.late_pageviews, former.pageviews)::integer AS pageviews,
    coalesce(stats.unique_visitors, former.unique_visitors)::integer AS unique_visitors,
    coalesce(stats.unique_sessions, former.sessions)::integer AS sessions,
    coalesce(100.0 * stats.bounced_sessions / nullif(stats.unique_sessions, 0), former.bounce_rate, 0)::real
        AS bounce_rate,
    coalesce(stats.session_seconds / nullif(stats.unique_sessions, 0), former.avg_session_duration, 0)::integer
        AS avg_session_duration,
    coalesce(stats.top_pages, former.top_pages) AS top_pages,
    coalesce(stats.top_referrers, former.top_referrers) AS top_referrers,
    coalesce(stats.top_countries, former.top_countries) AS top_countries,
    coalesce(device.desktop, former.desktop_visitors, 0)::integer AS desktop_visitors,
    coalesce(device.mobile, former.mobile_visitors, 0)::integer AS mobile_visitors,
    coalesce(device.tablet, former.tablet_visitors, 0)::integer AS tablet_visitors,
    coalesce(stats.top_browsers, former.browser_stats) AS browser_stats,
    coalesce(stats.top_os, former.os_stats) AS os_stats,
    coalesce(former.created_at, stats.aggregated_at) AS created_at,
    coalesce(stats.aggregated_at, former.updated_at) AS updated_at,
    NULL::timestamptz AS deleted_at
FROM analytics.analytics_daily_stats AS stats
FULL JOIN former ON stats.website_id = former.website_id AND stats.date = former.day
LEFT JOIN LATERAL (
    -- No row where it is not known; of devices there are fewer than ten.
    SELECT
        coalesce(sum(named.visitors) FILTER (WHERE named.item = 'desktop'), 0) AS desktop,
        coalesce(sum(named.visitors) FILTER (WHERE named.item = 'mobile'), 0) AS mobile,
        coalesce(sum(named.visitors) FILTER (WHERE named.item = 'tablet'), 0) AS tablet
    FROM jsonb_to_recordset(stats.top_devices) AS named (item text, visitors bigint)
    HAVING stats.top_devices IS NOT NULL
) AS device ON TRUE;

COMMENT ON VIEW public.analytics_daily_stats IS
'The statistics of the Airflow jobs in the shape of the application''s table, which is analytics_daily_stats_before.';

-- Who may read the table may read the view.
DO $$
DECLARE
    reader text;
BEGIN
    FOR reader IN
        SELECT CASE privilege.grantee WHEN 0 THEN 'PUBLIC' ELSE privilege.grantee::regrole::text END
        FROM pg_catalog.pg_class AS stored
        CROSS JOIN LATERAL aclexplode(coalesce(stored.relacl, acldefault('r', stored.relowner))) AS privilege
        WHERE
            stored.oid = 'public.analytics_daily_stats_before'::regclass
            AND privilege.privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON public.analytics_daily_stats TO %s', reader);
    END LOOP;
END
$$;
