-- Marks alerts as sent: as open, or where they have recovered, as that.
-- Params: ids (bigint[]).
UPDATE analytics_alert
SET
    sent_at = CASE WHEN recovered_at IS NULL THEN now() ELSE sent_at END,
    recovery_sent_at = CASE WHEN recovered_at IS NOT NULL THEN now() ELSE recovery_sent_at END
WHERE id = any(%(ids)s::bigint[]);
