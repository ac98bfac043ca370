-- Makes up the traffic of some websites: their sessions, and the events in them.
-- Params: websites (text[], the largest first), start (timestamptz), days (int), now (timestamptz: nothing is later),
--   sessions (bigint), steps (int, the events of a session; NULL: one to many), live (bigint, sessions that go on now),
--   store_sessions (boolean), salt (bigint, of the numbers of sessions and visitors).
-- Result: one row: events, sessions. The same after setseed() with the same parameters.
-- A choice of n things by floor((n + 1) ^ random()) takes the first most often, and the others ever less.
WITH choice AS (
    SELECT
        ARRAY['direct', 'google', NULL, 'instagram', 'facebook', 'bing', 'duckduckgo', 'old.reddit.com'] AS sources,
        ARRAY['mobile', 'desktop', 'tablet', 'unknown'] AS devices,
        ARRAY['Safari', 'Chrome', 'Firefox', NULL] AS browsers,
        ARRAY['iOS', 'Windows', 'Android', 'macOS', NULL] AS systems,
        ARRAY['US', 'DE', 'GB', 'FR', 'IN', 'NL', 'BR', 'CA', 'JP', NULL] AS countries,
        ARRAY['product_viewed', 'add_to_cart', 'search', 'newsletter', 'checkout_started', 'order_placed']
            AS event_names,
        ARRAY['/', '/products', '/sale', '/cart', '/about', '/checkout', '/contact'] AS pages
),

session AS MATERIALIZED (
    SELECT
        number.n + %(salt)s::bigint AS number,
        -- One website has 60 percent. Most visitors come once.
        (%(websites)s::text[])[
            CASE WHEN random() < 0.6 THEN 1 ELSE floor((cardinality(%(websites)s::text[]) + 1) ^ random()) END::int
        ] AS website_id,
        CASE
            WHEN random() < 0.4 THEN floor(random() * random() * %(sessions)s::bigint / 60)
            ELSE number.n + %(salt)s::bigint + 1e9
        END AS visitor,
        CASE
            WHEN number.n <= %(live)s::bigint THEN %(now)s::timestamptz - (1 + 24 * random()) * interval '1 minute'
            -- More at noon than at night.
            ELSE
                %(start)s::timestamptz
                + floor(random() * %(days)s::int) * interval '1 day'
                + (random() + random() + random()) / 3 * interval '23 hours 50 minutes'
        END AS started_at,
        coalesce(%(steps)s::int, 1 + floor(-2.4 * ln(1 - random()))::int) AS steps,
        random() < 0.02 AS comes_back,
        random() < 0.04 AS has_campaign
    FROM generate_series(1, %(sessions)s::bigint) AS number (n)
),

-- Who it is, what they use and where they are is the same at each return.
visit AS (
    SELECT
        session.*,
        md5('visitor ' || session.visitor) AS visitor_id,
        'sess_' || md5('session ' || session.number) AS session_id,
        choice.devices[floor(5 ^ ((hashfloat8(session.visitor) & 1023) / 1024.0))::int] AS device_type,
        choice.browsers[floor(5 ^ ((hashfloat8(session.visitor) >> 10 & 1023) / 1024.0))::int] AS browser,
        choice.systems[floor(6 ^ ((hashfloat8(session.visitor) >> 20 & 1023) / 1024.0))::int] AS os,
        choice.countries[floor(11 ^ ((hashint8(session.visitor::bigint) & 1023) / 1024.0))::int] AS country,
        choice.sources[floor(9 ^ random())::int] AS referrer_source
    FROM session
    CROSS JOIN choice
),

event AS MATERIALIZED (
    SELECT
        visit.*,
        step.n AS step,
        visit.started_at + step.n * random() * interval '100 seconds'
        -- A few visitors come back to a session that was closed already.
        + CASE
            WHEN visit.comes_back AND step.n = visit.steps - 1 AND step.n > 1 THEN interval '2 hours'
            ELSE interval '0'
        END AS moment,
        CASE WHEN step.n > 0 AND random() < 0.3 THEN choice.event_names[floor(7 ^ random())::int] END AS event_name,
        coalesce(choice.pages[floor(40 ^ random())::int], '/products/item-' || floor(2000 ^ random())) AS pathname,
        random() < 0.002 AS is_deleted
    FROM visit
    CROSS JOIN choice
    CROSS JOIN LATERAL generate_series(0, visit.steps - 1) AS step (n)
),

made_event AS (
    INSERT INTO analytics_event (
        id, website_id, event_type, event_name, pathname, referrer, referrer_source, visitor_id, session_id, user_agent,
        browser, os, device_type, country, utm_source, utm_medium, utm_campaign, timestamp, created_at, updated_at,
        deleted_at
    )
    SELECT
        'anevt_' || to_hex((extract(EPOCH FROM event.moment) * 1000)::bigint) || left(md5(random()::text), 15) AS id,
        event.website_id,
        CASE WHEN event.event_name IS NULL THEN 'pageview' ELSE 'custom_event' END AS event_type,
        event.event_name,
        event.pathname,
        CASE WHEN event.step = 0 AND event.referrer_source <> 'direct' THEN 'https://www.source.example/' END
            AS referrer,
        CASE WHEN event.step = 0 THEN event.referrer_source END AS referrer_source,
        event.visitor_id,
        event.session_id,
        'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 '
        || 'Safari/537.36' AS user_agent,
        event.browser,
        event.os,
        event.device_type,
        event.country,
        CASE WHEN event.has_campaign THEN (ARRAY['newsletter', 'google', 'instagram'])[1 + mod(event.number, 3)] END
            AS utm_source,
        CASE WHEN event.has_campaign THEN (ARRAY['email', 'cpc', 'social'])[1 + mod(event.number, 3)] END AS utm_medium,
        CASE WHEN event.has_campaign THEN (ARRAY['spring sale', 'new arrivals'])[1 + mod(event.number, 2)] END
            AS utm_campaign,
        event.moment AS timestamp,
        event.moment AS created_at,
        event.moment AS updated_at,
        CASE WHEN event.is_deleted THEN event.moment END AS deleted_at
    FROM event
    WHERE event.moment <= %(now)s::timestamptz
    ORDER BY event.moment  -- the order of arrival
    RETURNING 1
),

made_session AS (
    INSERT INTO analytics_session (
        id, website_id, session_id, visitor_id, entry_page, pageviews, is_bounce, referrer_source, country, device_type,
        browser, os, started_at, last_activity_at, ended_at, duration_seconds
    )
    SELECT
        'anses_'
        || to_hex((extract(EPOCH FROM min(event.moment)) * 1000)::bigint)
        || left(md5(event.session_id), 15) AS id,
        min(event.website_id) AS website_id,
        event.session_id,
        min(event.visitor_id) AS visitor_id,
        (array_agg(event.pathname ORDER BY event.step))[1] AS entry_page,
        count(*) FILTER (WHERE event.event_name IS NULL) AS pageviews,
        count(*) = 1 AS is_bounce,
        min(event.referrer_source) AS referrer_source,
        min(event.country) AS country,
        min(event.device_type) AS device_type,
        min(event.browser) AS browser,
        min(event.os) AS os,
        min(event.moment) AS started_at,
        max(event.moment) AS last_activity_at,
        -- The application's own cleanup ran last 16 hours ago.
        CASE WHEN max(event.moment) < %(now)s::timestamptz - interval '16 hours' THEN max(event.closed_at) END
            AS ended_at,
        CASE
            WHEN max(event.moment) < %(now)s::timestamptz - interval '16 hours'
                THEN floor(extract(EPOCH FROM max(event.closed_at) - min(event.moment)))
        END AS duration_seconds
    FROM (
        SELECT
            event.*,
            CASE
                WHEN NOT event.comes_back OR event.step < event.steps - 1 OR event.step < 2 THEN event.moment
                WHEN event.moment < %(now)s::timestamptz - interval '4 days' THEN event.moment
            END AS closed_at
        FROM event
        WHERE event.moment <= %(now)s::timestamptz AND %(store_sessions)s::boolean
    ) AS event
    GROUP BY event.session_id
    ORDER BY min(event.moment)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM made_event) AS events,
    (SELECT count(*) FROM made_session) AS sessions;
