-- The application's tables, as its analytics module creates them: what the jobs find in a shop's database. Its own
-- analytics_daily_stats has nothing but the name in common with ours.

CREATE TABLE public.analytics_event (
    id text NOT NULL PRIMARY KEY,
    website_id text NOT NULL,
    event_type text NOT NULL DEFAULT 'pageview' CHECK (event_type IN ('pageview', 'custom_event')),
    event_name text,
    pathname text NOT NULL,
    referrer text,
    referrer_source text,
    visitor_id text NOT NULL,
    session_id text NOT NULL,
    user_agent text,
    browser text,
    os text,
    device_type text NOT NULL DEFAULT 'unknown' CHECK (device_type IN ('desktop', 'mobile', 'tablet', 'unknown')),
    country text,
    utm_source text,
    utm_medium text,
    utm_campaign text,
    utm_term text,
    utm_content text,
    query_string text,
    is_404 boolean NOT NULL DEFAULT FALSE,
    event_id text,
    metadata jsonb,
    timestamp timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

CREATE INDEX ON public.analytics_event (website_id, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (website_id, pathname, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (website_id, event_type, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (session_id) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (visitor_id) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (event_id) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (deleted_at) WHERE deleted_at IS NULL;

CREATE TABLE public.analytics_session (
    id text NOT NULL PRIMARY KEY,
    website_id text NOT NULL,
    session_id text NOT NULL,
    visitor_id text NOT NULL,
    entry_page text NOT NULL,
    exit_page text,
    pageviews integer NOT NULL DEFAULT 1,
    duration_seconds integer,
    is_bounce boolean NOT NULL DEFAULT FALSE,
    referrer text,
    referrer_source text,
    country text,
    device_type text,
    browser text,
    os text,
    utm_source text,
    utm_medium text,
    utm_campaign text,
    utm_term text,
    utm_content text,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    last_activity_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

CREATE INDEX ON public.analytics_session (website_id, started_at) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX ON public.analytics_session (session_id) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_session (visitor_id) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_session (website_id, is_bounce) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_session (utm_campaign) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_session (deleted_at) WHERE deleted_at IS NULL;

CREATE TABLE public.analytics_daily_stats (
    id text NOT NULL PRIMARY KEY,
    website_id text NOT NULL,
    date timestamptz NOT NULL,
    pageviews integer NOT NULL DEFAULT 0,
    unique_visitors integer NOT NULL DEFAULT 0,
    sessions integer NOT NULL DEFAULT 0,
    bounce_rate real NOT NULL DEFAULT 0,
    avg_session_duration integer NOT NULL DEFAULT 0,
    top_pages jsonb,
    top_referrers jsonb,
    top_countries jsonb,
    desktop_visitors integer NOT NULL DEFAULT 0,
    mobile_visitors integer NOT NULL DEFAULT 0,
    tablet_visitors integer NOT NULL DEFAULT 0,
    browser_stats jsonb,
    os_stats jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

CREATE UNIQUE INDEX ON public.analytics_daily_stats (website_id, date) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_daily_stats (deleted_at) WHERE deleted_at IS NULL;
