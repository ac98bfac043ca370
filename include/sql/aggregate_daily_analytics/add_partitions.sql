-- Makes the next partitions of analytics_event, where that was set up.
-- Result: one row: log.
SELECT '[Analytics Job] ' || analytics_add_partitions() AS log;
