-- The raw events whose time is on no day of the calendar: nothing counts or deletes them.
-- Result: website_id, events.
SELECT
    anomaly.website_id,
    anomaly.events
FROM analytics_anomalies() AS anomaly
ORDER BY anomaly.events DESC, anomaly.website_id ASC;
