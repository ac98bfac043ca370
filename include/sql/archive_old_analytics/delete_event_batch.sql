-- Deletes the events of one batch of the list, and takes it off the list in the same transaction: twice is once.
-- Params: number (bigint, of the batch), retention_days (int), done, total (bigint, for the log), retried (boolean).
-- Result: one row: log, result (json: rows, that were deleted; left, that should have gone and did not), again (json).
-- What should have gone and did not may have been changed by the application at that moment: it is tried once more.
-- Asked again of each event, as it is now: the legal hold and the retention of its website (an event that they keep
-- stays on the list), whether it was soft-deleted when it was listed and is not any more, and whether it is still of
-- that time. Of the last two, neither was counted where it is now: they are off the list, and found again by
-- seal_days.sql.
-- Most batches are gone through once: events are looked at before only where a policy or the nearness of the cutoff may
-- keep one, and afterwards only where not all have gone.
WITH batch AS MATERIALIZED (
    DELETE FROM analytics_purge_batch AS stored
    WHERE
        stored.number = %(number)s::bigint
        AND stored.kind = 'event'
        -- Events of a detached partition are not seen: they would leave the list, and be late if it is attached again.
        AND NOT EXISTS (
            SELECT FROM analytics_detached_partition AS part
            WHERE stored.first_at < part.ends_at AND stored.last_at >= part.starts_at
        )
    RETURNING rows, first_at, last_at, ids, deleted_ids, archived
),

-- As one array, by which PostgreSQL goes through the index on the primary key once.
listed AS MATERIALIZED (
    SELECT
        batch.first_at,
        batch.last_at,
        batch.ids || batch.deleted_ids AS ids
    FROM batch
),

was_deleted AS MATERIALIZED (
    SELECT unnest(batch.deleted_ids) AS id FROM batch
),

-- What the archive has of each row, if there is an archive.
archive AS MATERIALIZED (
    SELECT
        row_listed.id,
        row_listed.hash
    FROM batch
    CROSS JOIN LATERAL unnest(batch.ids || batch.deleted_ids, batch.archived) AS row_listed (id, hash)
    WHERE batch.archived IS NOT NULL
),

-- On a partitioned table an id is unique only together with its time: of several events, fewer may have been counted.
ambiguous AS MATERIALIZED (
    SELECT raw.id FROM analytics_event AS raw
    WHERE
        (
            SELECT relation.relkind = 'p' FROM pg_catalog.pg_class AS relation
            WHERE relation.oid = 'analytics_event'::regclass
        )
        AND raw.id = any((SELECT listed.ids FROM listed)::text[])
        AND raw.timestamp BETWEEN (SELECT listed.first_at FROM listed) AND (SELECT listed.last_at FROM listed)
    GROUP BY raw.id
    HAVING count(*) > 1 AND count(*) > (SELECT cardinality(array_positions(listed.ids, raw.id)) FROM listed)
),

doubt AS MATERIALIZED (
    SELECT
        batch.last_at >= CASE
            WHEN
                NOT EXISTS (
                    SELECT FROM analytics_timezone AS stored
                    WHERE stored.website_id IS NOT NULL OR stored.from_date > '-infinity'
                )
                THEN analytics_cutoff(NULL, %(retention_days)s::int)
            -- What is a few days past the general cutoff has expired in every time zone.
            ELSE now() - make_interval(days => %(retention_days)s::int + 3)
        END
        OR EXISTS (
            SELECT FROM analytics_website_policy AS policy
            WHERE policy.legal_hold OR policy.retention_days > %(retention_days)s::int
        ) AS is_near
    FROM batch
),

event AS MATERIALIZED (
    SELECT
        raw.id,
        raw.website_id,
        raw.timestamp
    FROM analytics_event AS raw
    WHERE
        (SELECT doubt.is_near FROM doubt)
        AND raw.id = any((SELECT listed.ids FROM listed)::text[])
        AND raw.timestamp BETWEEN (SELECT listed.first_at FROM listed) AND (SELECT listed.last_at FROM listed)
),

website AS MATERIALIZED (
    SELECT
        name.website_id,
        analytics_cutoff(name.website_id, %(retention_days)s::int) AS cutoff
    FROM (SELECT DISTINCT event.website_id FROM event) AS name
),

looked_at AS MATERIALIZED (
    SELECT
        event.id,
        event.website_id,
        event.timestamp >= website.cutoff AS is_held
    FROM event
    INNER JOIN website ON event.website_id = website.website_id
),

deleted AS (
    DELETE FROM analytics_event AS raw
    WHERE
        raw.id = any((SELECT listed.ids FROM listed)::text[])
        AND raw.timestamp BETWEEN (SELECT listed.first_at FROM listed) AND (SELECT listed.last_at FROM listed)
        AND (
            raw.deleted_at IS NOT NULL
            OR raw.id NOT IN (SELECT was_deleted.id FROM was_deleted)
        )
        AND raw.id NOT IN (SELECT ambiguous.id FROM ambiguous)
        AND (
            NOT (SELECT doubt.is_near FROM doubt)
            OR (raw.id, raw.website_id) IN (
                SELECT
                    looked_at.id,
                    looked_at.website_id
                FROM looked_at
                WHERE NOT looked_at.is_held
            )
        )
        AND (
            (SELECT batch.archived IS NULL FROM batch)
            OR (raw.id, analytics_row_hash((raw.*)::text)) IN (
                SELECT
                    archive.id,
                    archive.hash
                FROM archive
            )
        )
    RETURNING raw.id
),

-- An id is listed again once, so that it stays ambiguous.
remaining AS MATERIALIZED (
    SELECT DISTINCT ON (raw.id)
        raw.id,
        raw.id IN (SELECT ambiguous.id FROM ambiguous) AS is_ambiguous,
        (SELECT batch.archived IS NOT NULL FROM batch) AS has_archive,
        raw.id NOT IN (SELECT was_deleted.id FROM was_deleted) AS was_live,
        raw.deleted_at IS NULL AND raw.id IN (SELECT was_deleted.id FROM was_deleted) AS is_restored,
        raw.id IN (
            SELECT looked_at.id FROM looked_at
            WHERE looked_at.is_held
        ) AS is_held,
        CASE
            WHEN
                (raw.id, analytics_row_hash((raw.*)::text)) IN (
                    SELECT
                        archive.id,
                        archive.hash
                    FROM archive
                )
                THEN analytics_row_hash((raw.*)::text)
        END AS archived
    FROM analytics_event AS raw
    WHERE
        (SELECT count(*) FROM deleted) < (SELECT batch.rows FROM batch)
        AND raw.id = any((SELECT listed.ids FROM listed)::text[])
        AND raw.timestamp BETWEEN (SELECT listed.first_at FROM listed) AND (SELECT listed.last_at FROM listed)
        AND raw.id NOT IN (SELECT deleted.id FROM deleted)
    ORDER BY raw.id
),

listed_again AS (
    INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids, archived)
    SELECT
        'event' AS kind,
        count(*) AS rows,
        (SELECT listed.first_at FROM listed) AS first_at,
        (SELECT listed.last_at FROM listed) AS last_at,
        coalesce(array_agg(remaining.id ORDER BY remaining.id) FILTER (WHERE remaining.was_live), '{}') AS ids,
        coalesce(array_agg(remaining.id ORDER BY remaining.id) FILTER (WHERE NOT remaining.was_live), '{}')
            AS deleted_ids,
        CASE
            WHEN bool_or(remaining.has_archive)
                THEN array_agg(remaining.archived ORDER BY remaining.was_live DESC, remaining.id ASC)
        END AS archived
    FROM remaining
    WHERE NOT remaining.is_restored
    HAVING count(*) > 0
    RETURNING number
),

total AS (
    SELECT
        (SELECT count(*) FROM batch) AS batches,
        (SELECT sum(batch.rows) FROM batch) AS listed,
        (SELECT count(*) FROM deleted) AS deleted,
        count(*) AS found,
        count(*) FILTER (WHERE stays.why = 'restored') AS restored,
        count(*) FILTER (WHERE stays.why = 'held') AS held,
        count(*) FILTER (WHERE stays.why = 'not archived') AS unarchived,
        count(*) FILTER (WHERE stays.why = 'ambiguous') AS ambiguous,
        count(*) FILTER (WHERE stays.why IS NULL) AS unexplained,
        count(*) FILTER (WHERE stays.why = 'ambiguous' OR stays.why IS NULL) AS left_over
    FROM (
        SELECT
            CASE
                WHEN remaining.is_restored THEN 'restored'
                WHEN remaining.is_held THEN 'held'
                WHEN remaining.has_archive AND remaining.archived IS NULL THEN 'not archived'
                WHEN remaining.is_ambiguous THEN 'ambiguous'
            END AS why
        FROM remaining
    ) AS stays
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
        WHEN total.batches = 0
            THEN format(
                '[Analytics Archive] Batch %%s %%s',
                %(number)s::bigint,
                CASE
                    WHEN %(number)s::bigint IN (SELECT stored.number FROM analytics_purge_batch AS stored)
                        THEN 'waits: a partition of its events is detached'
                    ELSE 'was deleted before'
                END
            )
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
                CASE
                    WHEN total.unarchived > 0
                        THEN
                            total.unarchived
                            || ' stay on the list: they are not in the archive, or were changed since they are'
                END,
                CASE WHEN total.restored > 0 THEN total.restored || ' stay, since they were restored' END,
                CASE
                    WHEN total.listed > total.deleted + total.found
                        THEN
                            total.listed
                            - total.deleted
                            - total.found
                            || ' were not there any more, deleted or moved by somebody else'
                END,
                CASE
                    WHEN total.ambiguous > 0 THEN total.ambiguous || ' stay on the list: another event has the id'
                END,
                CASE
                    WHEN total.unexplained > 0
                        THEN total.unexplained || ' did not go, and nothing of ours keeps them'
                END
            )
    END AS log
FROM total;
