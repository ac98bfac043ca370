-- Says what raw data takes on the disk after the deletion: live rows, space that new rows will use again, and what the
-- run gave back. A DELETE gives back nothing; dropped partitions do, and VACUUM where the end of a table is empty.
-- Params: bytes_before (bigint, what find_expired_days.sql found).
-- Result: one row: log.
SELECT
    format(
        '[Analytics Archive] Raw data on the disk: about %%s live, %%s for new rows, %%s returned by this run',
        pg_size_pretty(raw_data.live_bytes),
        pg_size_pretty(raw_data.bytes - raw_data.live_bytes),
        pg_size_pretty(greatest(%(bytes_before)s::bigint - raw_data.bytes, 0))
    ) AS log
FROM analytics_storage() AS raw_data
-- What is behind views is not known.
WHERE raw_data.bytes > 0;
