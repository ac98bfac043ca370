-- Keeps one row per alert in analytics_alert, and says which alerts people should be told about now.
-- Params: found (json: condition, subject, message, and once, of what is wrong at this moment), unknown (json: the
--   conditions that could not be asked, whose alerts stay as they are).
-- Result: one row: log, result (json: the alerts to send: id, state (opened, still open, recovered), condition,
--   subject, message, opened_at). An alert is due when it opens, a day after it was last sent, and when it has
--   recovered; one that tells what happened once does not recover. It is claimed here, so that of two runs at the same
--   moment one sends it, and due again if it is not marked as sent within 5 minutes.
WITH found AS MATERIALIZED (
    SELECT
        item.ordinality AS place,
        item.alert ->> 'condition' AS condition,
        -- An index entry has an end, and the name of a website may not.
        CASE
            WHEN length(item.alert ->> 'subject') > 500
                THEN left(item.alert ->> 'subject', 468) || md5(item.alert ->> 'subject')
            ELSE item.alert ->> 'subject'
        END AS subject,
        item.alert ->> 'message' AS message,
        coalesce((item.alert ->> 'once')::boolean, FALSE) AS once
    FROM json_array_elements(%(found)s::json) WITH ORDINALITY AS item (alert, ordinality)
),

open_alert AS (
    INSERT INTO analytics_alert AS alert (condition, subject, message, opened_at, claimed_at, recovery_sent_at)
    SELECT
        found.condition,
        found.subject,
        found.message,
        now() AS opened_at,
        now() AS claimed_at,
        -- Nobody need know that it is over.
        CASE WHEN found.once THEN now() END AS recovery_sent_at
    FROM found
    -- In one order, so that two runs wait for each other instead of deadlocking.
    ORDER BY found.condition, found.subject
    ON CONFLICT (condition, subject) WHERE recovered_at IS NULL DO UPDATE
        SET
            message = excluded.message,
            claimed_at = CASE
                WHEN
                    coalesce(alert.sent_at, '-infinity') <= now() - interval '1 day'
                    AND alert.claimed_at <= now() - interval '5 minutes'
                    THEN now()
                ELSE alert.claimed_at
            END
    RETURNING *
),

recovered_alert AS (
    UPDATE analytics_alert AS alert
    SET
        recovered_at = coalesce(alert.recovered_at, now()),
        claimed_at = now(),
        -- Nobody was told that it was open, so nobody need know that it is over.
        recovery_sent_at = CASE WHEN alert.sent_at IS NULL THEN now() ELSE alert.recovery_sent_at END
    WHERE
        alert.recovered_at IS NULL
        AND alert.condition NOT IN (
            SELECT unasked.condition FROM json_array_elements_text(%(unknown)s::json) AS unasked (condition)
        )
        AND NOT EXISTS (
            SELECT FROM found
            WHERE found.condition = alert.condition AND found.subject = alert.subject
        )
        OR alert.recovered_at IS NOT NULL
        AND alert.recovery_sent_at IS NULL
        AND alert.claimed_at <= now() - interval '5 minutes'
    RETURNING *
),

due AS (
    SELECT
        open_alert.id,
        open_alert.condition,
        open_alert.subject,
        open_alert.message,
        open_alert.opened_at,
        CASE WHEN open_alert.sent_at IS NULL THEN 'opened' ELSE 'still open' END AS state,
        found.place
    FROM open_alert
    INNER JOIN found ON open_alert.condition = found.condition AND open_alert.subject = found.subject
    WHERE open_alert.claimed_at = now()
    UNION ALL
    SELECT
        recovered_alert.id,
        recovered_alert.condition,
        recovered_alert.subject,
        recovered_alert.message,
        recovered_alert.opened_at,
        'recovered' AS state,
        recovered_alert.id AS place
    FROM recovered_alert
    WHERE recovered_alert.recovery_sent_at IS NULL
)

SELECT
    coalesce(
        json_agg(
            json_build_object(
                'id', due.id,
                'state', due.state,
                'condition', due.condition,
                'subject', due.subject,
                'message', due.message,
                'opened_at', to_char(due.opened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')
            )
            ORDER BY due.state, due.condition, due.place
        ),
        '[]'
    ) AS result,
    coalesce(
        string_agg(
            format('[Analytics Watch] %%s: %%s', due.state, analytics_one_line(due.message)),
            E'\n' ORDER BY due.state, due.condition, due.place
        ),
        '[Analytics Watch] No alert is due'
    ) AS log
FROM due;
