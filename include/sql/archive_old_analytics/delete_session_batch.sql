-- Deletes the sessions of one batch of the list, and takes it off the list in the same transaction: twice is once.
-- Params: number (bigint, of the batch), retention_days (int), done, total (bigint, for the log), retried (boolean).
-- Result: one row: log, result (json: rows, that were deleted; left, that should have gone and did not), again (json).
-- What should have gone and did not may have been changed by the application at that moment: it is tried once more.
-- Asked again of each session, as it is now: whether its visitor came back, whether an event of it is there, and the
-- legal hold and the retention of its website. What stays is listed again by a later run once it may go.
WITH batch AS MATERIALIZED (
    DELETE FROM analytics_purge_batch
    WHERE number = %(number)s::bigint AND kind = 'session'
    RETURNING ids, archived
),

-- What the archive has of each row, if there is an archive.
archive AS MATERIALIZED (
    SELECT
        row_listed.id,
        row_listed.hash
    FROM batch
    CROSS JOIN LATERAL unnest(batch.ids, batch.archived) AS row_listed (id, hash)
    WHERE batch.archived IS NOT NULL
),

listed AS MATERIALIZED (
    SELECT unnest(batch.ids) AS id FROM batch
),

session AS MATERIALIZED (
    SELECT
        listed.*,
        raw.website_id,
        raw.last_activity_at,
        CASE WHEN (SELECT batch.archived IS NOT NULL FROM batch) THEN analytics_row_hash((raw.*)::text) END AS hash
    FROM listed
    INNER JOIN analytics_session AS raw ON listed.id = raw.id
    WHERE
        NOT analytics_has_events(raw.session_id, '-infinity')
        AND (
            (SELECT batch.archived IS NULL FROM batch)
            OR (raw.id, analytics_row_hash((raw.*)::text)) IN (
                SELECT
                    archive.id,
                    archive.hash
                FROM archive
            )
        )
),

website AS MATERIALIZED (
    SELECT
        name.website_id,
        analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff
    FROM (
        SELECT session.website_id FROM session
        LEFT JOIN analytics_website_policy AS policy ON session.website_id = policy.website_id
        GROUP BY session.website_id
        -- What is a few days past the general cutoff has expired in every time zone.
        HAVING
            count(policy.website_id) > 0
            OR max(session.last_activity_at) >= now() - make_interval(days => %(retention_days)s::int + 3)
    ) AS name
),

due AS MATERIALIZED (
    SELECT session.*
    FROM session
    LEFT JOIN website ON session.website_id = website.website_id
    WHERE coalesce(session.last_activity_at < website.cutoff, TRUE)
),

deleted AS (
    DELETE FROM analytics_session AS raw
    USING due
    WHERE
        raw.id = due.id
        AND raw.website_id = due.website_id
        AND raw.last_activity_at = due.last_activity_at
        AND (due.hash IS NULL OR analytics_row_hash((raw.*)::text) = due.hash)
    RETURNING raw.id
),

listed_again AS (
    INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids, archived)
    SELECT
        'session' AS kind,
        count(*) AS rows,
        min(due.last_activity_at) AS first_at,
        max(due.last_activity_at) AS last_at,
        array_agg(due.id ORDER BY due.id) AS ids,
        '{}' AS deleted_ids,
        array_agg(due.hash ORDER BY due.id) FILTER (WHERE due.hash IS NOT NULL) AS archived
    FROM due
    WHERE due.id NOT IN (SELECT deleted.id FROM deleted) AND NOT %(retried)s::boolean
    HAVING count(*) > 0
    RETURNING number
),

total AS (
    SELECT
        (SELECT count(*) FROM batch) AS batches,
        (SELECT count(*) FROM listed) AS listed,
        (SELECT count(*) FROM due) AS due,
        (SELECT count(*) FROM deleted) AS deleted
)

SELECT
    json_build_object(
        'rows', total.deleted, 'left', CASE WHEN %(retried)s::boolean THEN total.due - total.deleted ELSE 0 END
    ) AS result,
    (SELECT json_build_object('number', listed_again.number, 'retried', TRUE) FROM listed_again) AS again,
    CASE
        WHEN total.batches = 0 THEN format('[Analytics Archive] Batch %%s was deleted before', %(number)s::bigint)
        ELSE
            concat_ws(
                '; ',
                format(
                    '[Analytics Archive] Deleted batch of %%s sessions (%%s/%%s)',
                    total.deleted, %(done)s::bigint, %(total)s::bigint
                ),
                CASE
                    WHEN total.listed > total.due
                        THEN
                            total.listed
                            - total.due
                            || ' stay or are gone: back, with events, held, not as in the archive, or deleted by others'
                END,
                CASE
                    WHEN total.due > total.deleted
                        THEN total.due - total.deleted || ' did not go, and nothing of ours keeps them'
                END
            )
    END AS log
FROM total;
