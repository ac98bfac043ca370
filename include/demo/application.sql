-- The application's two tables, as its analytics module creates them: what the jobs find in a shop's database.
-- No schema is named; search_path decides.

CREATE TABLE analytics_event (
    id text NOT NULL PRIMARY KEY,
    website_id text NOT NULL,
    event_type text NOT NULL DEFAULT 'pageview',
    event_name text,
    pathname text NOT NULL,
    referrer text,
    referrer_source text,
    visitor_id text NOT NULL,
    session_id text NOT NULL,
    user_agent text,
    browser text,
    os text,
    device_type text NOT NULL DEFAULT 'unknown',
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

CREATE INDEX ON analytics_event (website_id, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_event (website_id, pathname, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_event (website_id, event_type, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_event (session_id) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_event (visitor_id) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_event (event_id) WHERE deleted_at IS NULL;

CREATE TABLE analytics_session (
    id text NOT NULL PRIMARY KEY,
    website_id text NOT NULL,
    session_id text NOT NULL UNIQUE,
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

CREATE INDEX ON analytics_session (website_id, started_at) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_session (session_id) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_session (visitor_id) WHERE deleted_at IS NULL;
CREATE INDEX ON analytics_session (website_id, is_bounce) WHERE deleted_at IS NULL;
