-- On request, before the installer: lets the jobs work on the tables of Umami 3 instead of analytics_event and
-- analytics_session, which become views of its website_event and session. Run it with psql, not in one transaction, as
-- the owner of Umami's tables; once more changes nothing. Where they are not in public, or ours not in analytics,
-- change that here.
-- The collector waits for half a second at most: indexes are built concurrently, and a trigger is made in a moment
-- without writers of its table; if there is none for so long, the file stops, and can be run again.
-- Back, and before an update of Umami that changes a column of a view, which PostgreSQL refuses:
--   DROP VIEW analytics.analytics_event, analytics.analytics_session;
--   DROP FUNCTION analytics.umami_delete_children, analytics.umami_refuse CASCADE;
-- and without the jobs, its indexes, whose names begin with umami_.
CREATE SCHEMA IF NOT EXISTS analytics;
SET search_path = analytics, public;
SET lock_timeout = '500ms';
SET client_min_messages = warning;

-- To Umami, a session is a visitor of a month, and a visit is what the jobs call a session: so visitors, sessions and
-- bounces are those of its own dashboards. One table and no join, so that PostgreSQL deletes through the view, and
-- leaves out what a statement does not ask for. A UUID as text has the same order in COLLATE "C" as itself.
-- Nothing is ever edited or soft-deleted: where constants say so, such rows are not even looked for.
-- noqa: disable=RF03,ST06
CREATE OR REPLACE VIEW analytics_event AS
SELECT
    event.event_id::text COLLATE "C" AS id,
    event.website_id::text COLLATE "C" AS website_id,
    CASE event.event_type WHEN 1 THEN 'pageview' ELSE 'custom_event' END AS event_type,
    CASE event.event_type
        WHEN 1 THEN NULL
        WHEN 3 THEN coalesce(event.event_name, 'link')
        WHEN 4 THEN coalesce(event.event_name, 'pixel')
        WHEN 5 THEN 'performance'
        ELSE event.event_name
    END::text AS event_name,
    event.url_path::text AS pathname,
    -- A page of the site itself is no referrer.
    nullif(event.referrer_domain, event.hostname)::text AS referrer_source,
    event.session_id::text COLLATE "C" AS visitor_id,
    event.visit_id::text COLLATE "C" AS session_id,
    (
        SELECT visitor.country::text FROM session AS visitor
        WHERE visitor.session_id = event.session_id
    ) AS country,
    (
        SELECT visitor.device::text FROM session AS visitor
        WHERE visitor.session_id = event.session_id
    ) AS device_type,
    (
        SELECT visitor.browser::text FROM session AS visitor
        WHERE visitor.session_id = event.session_id
    ) AS browser,
    (
        SELECT visitor.os::text FROM session AS visitor
        WHERE visitor.session_id = event.session_id
    ) AS os,
    event.utm_source::text AS utm_source,
    event.utm_medium::text AS utm_medium,
    event.utm_campaign::text AS utm_campaign,
    event.created_at AS timestamp,
    event.created_at,
    NULL::timestamptz AS updated_at,
    NULL::timestamptz AS deleted_at
FROM website_event AS event;

-- Its last activity is its last event, as long as it has one: a session that has events left is asked for by the visit
-- of the last one, and an event without a time keeps it. It has no end that the cleanup could find: to the jobs it is
-- soft-deleted, which to the retention is the same, and of which the cleanup looks for none.
CREATE OR REPLACE VIEW analytics_session AS
SELECT
    visitor.session_id::text COLLATE "C" AS id,
    visitor.website_id::text COLLATE "C" AS website_id,
    coalesce(
        (
            SELECT event.visit_id FROM website_event AS event
            WHERE event.website_id = visitor.website_id AND event.session_id = visitor.session_id
            ORDER BY event.created_at DESC LIMIT 1
        ),
        visitor.session_id
    )::text COLLATE "C" AS session_id,
    visitor.session_id::text COLLATE "C" AS visitor_id,
    visitor.created_at AS started_at,
    coalesce(
        (
            SELECT coalesce(event.created_at, 'infinity') FROM website_event AS event
            WHERE event.website_id = visitor.website_id AND event.session_id = visitor.session_id
            ORDER BY event.created_at DESC LIMIT 1
        ),
        visitor.created_at
    ) AS last_activity_at,
    visitor.created_at AS ended_at,
    NULL::integer AS duration_seconds,
    NULL::timestamptz AS updated_at,
    '-infinity'::timestamptz AS deleted_at
FROM session AS visitor;

-- The cleanup's statement has to be one that PostgreSQL can plan. It finds no row.
CREATE OR REPLACE FUNCTION umami_refuse() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER umami_refuse INSTEAD OF UPDATE ON analytics_session
FOR EACH ROW EXECUTE FUNCTION umami_refuse();

-- What belongs to deleted rows goes in their transaction, whoever deletes them, once for the whole statement: row by
-- row takes several times as long. Umami itself deletes it before, and then nothing is found here. We wait for somebody
-- who deletes the same rows in another order for less than deadlock_timeout, so that we give way and not Umami.
CREATE OR REPLACE FUNCTION umami_delete_children() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '500ms'
-- Of each row by an index, and never by reading a whole table.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF TG_RELID = 'website_event'::regclass THEN
        DELETE FROM event_data AS child USING gone WHERE child.website_event_id = gone.event_id;
        DELETE FROM revenue AS child USING gone
        WHERE child.session_id = gone.session_id AND child.event_id = gone.event_id;
    ELSE
        DELETE FROM session_data AS child USING gone WHERE child.session_id = gone.session_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER umami_delete_children AFTER DELETE ON website_event
REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION umami_delete_children();

CREATE OR REPLACE TRIGGER umami_delete_children AFTER DELETE ON session
REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION umami_delete_children();

-- Left by a run that was stopped.
DO $$
DECLARE
    half_built regclass;
BEGIN
    FOR half_built IN
        SELECT stored.indexrelid FROM pg_catalog.pg_index AS stored
        INNER JOIN pg_catalog.pg_class AS relation ON stored.indexrelid = relation.oid
        WHERE
            stored.indrelid IN ('website_event'::regclass, 'session'::regclass)
            AND starts_with(relation.relname, 'umami_')
            AND NOT stored.indisvalid
    LOOP
        EXECUTE format('DROP INDEX %s', half_built);
    END LOOP;
END
$$;

-- Building an index waits for transactions that have begun before, and nobody waits for it.
RESET lock_timeout;
CREATE INDEX CONCURRENTLY IF NOT EXISTS umami_event_id_idx ON website_event ((event_id::text COLLATE "C"));
-- What is included lets PostgreSQL count the events of a day in the index alone.
CREATE INDEX CONCURRENTLY IF NOT EXISTS umami_event_website_idx
ON website_event ((website_id::text COLLATE "C"), created_at) INCLUDE (website_id);
-- To the planner, the events of a website are scattered and those of a time are not: where it knows that websites are
-- few, it reads the events of all of them for each. So it is not to know.
ALTER INDEX umami_event_website_idx ALTER COLUMN 1 SET STATISTICS 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS umami_event_visit_idx ON website_event ((visit_id::text COLLATE "C"));
CREATE INDEX CONCURRENTLY IF NOT EXISTS umami_session_id_idx ON session ((session_id::text COLLATE "C"));
-- Of expressions, statistics are made only after there are the indexes.
ANALYZE website_event, session;
