-- The alerts that are open, the newest first.
-- Result: condition, subject, message, opened_at, sent_at.
SELECT
    alert.condition,
    alert.subject,
    alert.message,
    alert.opened_at,
    alert.sent_at
FROM analytics_alert AS alert
WHERE alert.recovered_at IS NULL
ORDER BY alert.opened_at DESC;
