-- Deletes the events of one batch of the list, and takes it off the list in the same transaction: twice is once.
-- Params: number (bigint, of the batch), retention_days (int), done, total (bigint, for the log), retried (boolean).
-- Result: one row: log, result (json: rows, that were deleted; left, that should have gone and did not), again (json).
-- What should have gone and did not may have been changed by the application at that moment: it is tried once more.
-- Asked again of each event, as it is now: the legal hold and the retention of its website (an event that they keep
-- stays on the list), whether it was soft-deleted when it was listed and is not any more, and whether it is still of
-- that time. Of the last two, neither was counted where it is now: they are off the list, and found again by
-- seal_days.sql.
WITH batch AS MATERIALIZED (
    DELETE FROM analytics_purge_batch
    WHERE number = %(number)s::bigint AND kind = 'event'
    RETURNING first_at, last_at, ids, deleted_ids
),

listed AS MATERIALIZED (
    SELECT
        unnest(batch.ids) AS id,
        TRUE AS was_live,
        batch.first_at,
        batch.last_at
    FROM batch
    UNION ALL
    SELECT
        unnest(batch.deleted_ids) AS id,
        FALSE AS was_live,
        batch.first_at,
        batch.last_at
    FROM batch
),

event AS MATERIALIZED (
    SELECT
        listed.*,
        raw.website_id,
        raw.timestamp,
        raw.deleted_at IS NULL AND NOT listed.was_live AS is_restored
    FROM listed
    INNER JOIN analytics_event AS raw
        ON listed.id = raw.id AND raw.timestamp BETWEEN listed.first_at AND listed.last_at
),

website AS MATERIALIZED (
    SELECT
        name.website_id,
        analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff
    FROM (
        SELECT event.website_id FROM event
        LEFT JOIN analytics_website_policy AS policy ON event.website_id = policy.website_id
        GROUP BY event.website_id
        -- What is a few days past the general cutoff has expired in every time zone.
        HAVING
            count(policy.website_id) > 0
            OR max(event.timestamp) >= now() - make_interval(days => %(retention_days)s::int + 3)
    ) AS name
),

due AS MATERIALIZED (
    SELECT
        event.*,
        coalesce(event.timestamp >= website.cutoff, FALSE) AS is_held
    FROM event
    LEFT JOIN website ON event.website_id = website.website_id
    WHERE NOT event.is_restored
),

deleted AS (
    DELETE FROM analytics_event AS raw
    USING due
    WHERE
        raw.id = due.id
        AND NOT due.is_held
        AND raw.website_id = due.website_id
        AND raw.timestamp BETWEEN due.first_at AND due.last_at
        AND (due.was_live OR raw.deleted_at IS NOT NULL)
    RETURNING raw.id
),

kept AS MATERIALIZED (
    -- Not a join, which may be a nested loop of a batch with itself.
    SELECT due.* FROM due
    WHERE due.id NOT IN (SELECT deleted.id FROM deleted)
),

listed_again AS (
    INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids)
    SELECT
        'event' AS kind,
        count(*) AS rows,
        min(kept.first_at) AS first_at,
        max(kept.last_at) AS last_at,
        coalesce(array_agg(kept.id) FILTER (WHERE kept.was_live), '{}') AS ids,
        coalesce(array_agg(kept.id) FILTER (WHERE NOT kept.was_live), '{}') AS deleted_ids
    FROM kept
    HAVING count(*) > 0
    RETURNING number
),

total AS (
    SELECT
        (SELECT count(*) FROM batch) AS batches,
        (SELECT count(*) FROM listed) AS listed,
        (SELECT count(*) FROM deleted) AS deleted,
        (SELECT count(*) FROM event) AS found,
        (
            SELECT count(*) FROM event
            WHERE event.is_restored
        ) AS restored,
        (
            SELECT count(*) FROM kept
            WHERE kept.is_held
        ) AS held,
        (
            SELECT count(*) FROM kept
            WHERE NOT kept.is_held
        ) AS left_over
)

SELECT
    json_build_object(
        'rows', total.deleted, 'left', CASE WHEN %(retried)s::boolean THEN total.left_over ELSE 0 END
    ) AS result,
    CASE
        WHEN total.left_over > 0 AND NOT %(retried)s::boolean
            THEN (SELECT json_build_object('number', listed_again.number, 'retried', TRUE) FROM listed_again)
    END AS again,
    CASE
        WHEN total.batches = 0 THEN format('[Analytics Archive] Batch %%s was deleted before', %(number)s::bigint)
        ELSE
            concat_ws(
                '; ',
                format(
                    '[Analytics Archive] Deleted batch of %%s events (%%s/%%s)',
                    total.deleted, %(done)s::bigint, %(total)s::bigint
                ),
                CASE
                    WHEN total.held > 0 THEN total.held || ' stay on the list: a legal hold or the retention keeps them'
                END,
                CASE WHEN total.restored > 0 THEN total.restored || ' stay, since they were restored' END,
                CASE
                    WHEN total.listed > total.found
                        THEN total.listed - total.found || ' were not there any more, deleted or moved by somebody else'
                END,
                CASE WHEN total.left_over > 0 THEN total.left_over || ' did not go, and nothing of ours keeps them' END
            )
    END AS log
FROM total;
