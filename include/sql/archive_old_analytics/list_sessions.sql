-- Lists expired sessions for deletion: those whose last activity is past the cutoff and of which no event is left.
-- Params: after (text, the id after which to go on; NULL: from the start), retention_days (int), batch_size (int),
--   dry_run (boolean: write nothing, and look only for events that are not expired), has_archive (boolean: nothing that
--   is listed is in it yet).
-- Result: one row: result (json: rows listed), again (json: parameters of the next step; NULL after the last one), log.
-- A step reads 100,000 sessions in the order of the primary key, whatever their times.
WITH step AS MATERIALIZED (
    SELECT
        session.id,
        session.website_id,
        session.session_id,
        session.last_activity_at
    FROM analytics_session AS session
    WHERE %(after)s::text IS NULL OR session.id > %(after)s::text
    ORDER BY session.id
    LIMIT 100000
),

website AS MATERIALIZED (
    SELECT
        name.website_id,
        analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff
    FROM (SELECT DISTINCT step.website_id FROM step) AS name
),

listed AS MATERIALIZED (
    SELECT unnest(batch.ids) AS id FROM analytics_purge_batch AS batch
    WHERE batch.kind = 'session'
),

-- Before their events are looked for: most sessions have not expired.
expired AS MATERIALIZED (
    SELECT
        step.id,
        step.session_id,
        step.last_activity_at,
        website.cutoff
    FROM step
    INNER JOIN website ON step.website_id = website.website_id
    WHERE step.last_activity_at < website.cutoff AND step.id NOT IN (SELECT listed.id FROM listed)
),

numbered AS MATERIALIZED (
    SELECT
        expired.id,
        expired.last_activity_at,
        (row_number() OVER (ORDER BY expired.id) - 1) / %(batch_size)s::int AS batch
    FROM expired
    WHERE
        NOT analytics_has_events(
            expired.session_id, CASE WHEN %(dry_run)s::boolean THEN expired.cutoff ELSE '-infinity' END
        )
),

written AS (
    INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids, archived)
    SELECT
        'session' AS kind,
        count(*) AS rows,
        min(numbered.last_activity_at) AS first_at,
        max(numbered.last_activity_at) AS last_at,
        array_agg(numbered.id) AS ids,
        '{}' AS deleted_ids,
        CASE WHEN %(has_archive)s::boolean THEN '{}'::bigint[] END AS archived
    FROM numbered
    WHERE NOT %(dry_run)s::boolean
    GROUP BY numbered.batch
    ORDER BY numbered.batch
)

SELECT
    json_build_object('rows', count(*)) AS result,
    (SELECT CASE WHEN count(*) = 100000 THEN json_build_object('after', max(step.id)) END FROM step) AS again,
    CASE
        WHEN count(*) > 0 THEN format('[Analytics Archive] Listed %%s old session(s) without events', count(*))
    END AS log
FROM numbered;
