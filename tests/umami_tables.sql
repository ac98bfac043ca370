-- The tables of Umami 3 on PostgreSQL that hold traffic, with the columns, types and indexes that its migrations make.
-- It declares no foreign keys. Keys are UUIDs that the collector makes itself.

CREATE TABLE public.website (
    website_id uuid PRIMARY KEY,
    name varchar(100) NOT NULL,
    domain varchar(500),
    created_at timestamptz(6) DEFAULT now(),
    deleted_at timestamptz(6)
);

-- A visitor, for a month: the id is a hash of the address, the browser and the month, or of an id that the site gave.
CREATE TABLE public.session (
    session_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    browser varchar(20),
    os varchar(20),
    device varchar(20),
    screen varchar(11),
    language varchar(35),
    country char(2),
    region varchar(20),
    city varchar(50),
    distinct_id varchar(50),
    created_at timestamptz(6) DEFAULT now()
);

CREATE INDEX session_created_at_idx ON public.session (created_at);
CREATE INDEX session_website_id_idx ON public.session (website_id);
CREATE INDEX session_website_id_created_at_idx ON public.session (website_id, created_at);
CREATE INDEX session_website_id_created_at_browser_idx ON public.session (website_id, created_at, browser);
CREATE INDEX session_website_id_created_at_os_idx ON public.session (website_id, created_at, os);
CREATE INDEX session_website_id_created_at_device_idx ON public.session (website_id, created_at, device);
CREATE INDEX session_website_id_created_at_screen_idx ON public.session (website_id, created_at, screen);
CREATE INDEX session_website_id_created_at_language_idx ON public.session (website_id, created_at, language);
CREATE INDEX session_website_id_created_at_country_idx ON public.session (website_id, created_at, country);
CREATE INDEX session_website_id_created_at_region_idx ON public.session (website_id, created_at, region);
CREATE INDEX session_website_id_created_at_city_idx ON public.session (website_id, created_at, city);

-- event_type: 1 pageview, 2 custom event, 3 link, 4 pixel, 5 performance. A visit is what others call a session.
CREATE TABLE public.website_event (
    event_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    created_at timestamptz(6) DEFAULT now(),
    url_path varchar(1024) NOT NULL,
    url_query varchar(1024),
    referrer_path varchar(1024),
    referrer_query varchar(1024),
    referrer_domain varchar(500),
    page_title varchar(500),
    event_type integer NOT NULL DEFAULT 1,
    event_name varchar(50),
    visit_id uuid NOT NULL,
    tag varchar(50),
    fbclid varchar(1024),
    gclid varchar(1024),
    li_fat_id varchar(1024),
    msclkid varchar(1024),
    ttclid varchar(1024),
    twclid varchar(1024),
    utm_campaign varchar(512),
    utm_content varchar(512),
    utm_medium varchar(512),
    utm_source varchar(512),
    utm_term varchar(512),
    hostname varchar(100),
    cls decimal(10, 4),
    fcp decimal(10, 1),
    inp decimal(10, 1),
    lcp decimal(10, 1),
    ttfb decimal(10, 1)
);

CREATE INDEX website_event_created_at_idx ON public.website_event (created_at);
CREATE INDEX website_event_session_id_idx ON public.website_event (session_id);
CREATE INDEX website_event_visit_id_idx ON public.website_event (visit_id);
CREATE INDEX website_event_website_id_idx ON public.website_event (website_id);
CREATE INDEX website_event_website_id_created_at_idx ON public.website_event (website_id, created_at);
CREATE INDEX website_event_website_id_created_at_url_path_idx
ON public.website_event (website_id, created_at, url_path);
CREATE INDEX website_event_website_id_created_at_url_query_idx
ON public.website_event (website_id, created_at, url_query);
CREATE INDEX website_event_website_id_created_at_referrer_domain_idx
ON public.website_event (website_id, created_at, referrer_domain);
CREATE INDEX website_event_website_id_created_at_page_title_idx
ON public.website_event (website_id, created_at, page_title);
CREATE INDEX website_event_website_id_created_at_event_name_idx
ON public.website_event (website_id, created_at, event_name);
CREATE INDEX website_event_website_id_created_at_tag_idx ON public.website_event (website_id, created_at, tag);
CREATE INDEX website_event_website_id_created_at_hostname_idx
ON public.website_event (website_id, created_at, hostname);
CREATE INDEX website_event_website_id_session_id_created_at_idx
ON public.website_event (website_id, session_id, created_at);
CREATE INDEX website_event_website_id_visit_id_created_at_idx
ON public.website_event (website_id, visit_id, created_at);

CREATE TABLE public.event_data (
    event_data_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    website_event_id uuid NOT NULL,
    data_key varchar(500) NOT NULL,
    string_value varchar(500),
    number_value decimal(19, 4),
    date_value timestamptz(6),
    data_type integer NOT NULL,
    created_at timestamptz(6) DEFAULT now()
);

CREATE INDEX event_data_created_at_idx ON public.event_data (created_at);
CREATE INDEX event_data_website_id_idx ON public.event_data (website_id);
CREATE INDEX event_data_website_event_id_idx ON public.event_data (website_event_id);
CREATE INDEX event_data_website_id_created_at_idx ON public.event_data (website_id, created_at);
CREATE INDEX event_data_website_id_created_at_data_key_idx ON public.event_data (website_id, created_at, data_key);

CREATE TABLE public.session_data (
    session_data_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    data_key varchar(500) NOT NULL,
    string_value varchar(500),
    number_value decimal(19, 4),
    date_value timestamptz(6),
    data_type integer NOT NULL,
    distinct_id varchar(50),
    created_at timestamptz(6) DEFAULT now()
);

CREATE INDEX session_data_created_at_idx ON public.session_data (created_at);
CREATE INDEX session_data_website_id_idx ON public.session_data (website_id);
CREATE INDEX session_data_session_id_idx ON public.session_data (session_id);
CREATE INDEX session_data_session_id_created_at_idx ON public.session_data (session_id, created_at);
CREATE INDEX session_data_website_id_created_at_data_key_idx ON public.session_data (website_id, created_at, data_key);
CREATE UNIQUE INDEX session_data_session_id_data_key_key ON public.session_data (session_id, data_key);

CREATE TABLE public.revenue (
    revenue_id uuid PRIMARY KEY,
    website_id uuid NOT NULL,
    session_id uuid NOT NULL,
    event_id uuid NOT NULL,
    event_name varchar(50) NOT NULL,
    currency varchar(10) NOT NULL,
    revenue decimal(19, 4),
    created_at timestamptz(6) DEFAULT now()
);

CREATE INDEX revenue_website_id_idx ON public.revenue (website_id);
CREATE INDEX revenue_session_id_idx ON public.revenue (session_id);
CREATE INDEX revenue_website_id_created_at_idx ON public.revenue (website_id, created_at);
CREATE INDEX revenue_website_id_session_id_created_at_idx ON public.revenue (website_id, session_id, created_at);
