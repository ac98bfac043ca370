-- What a partition is compared with before it is dropped. Batches that were listed before have none: they are deleted
-- one after the other.
ALTER TABLE analytics_purge_batch ADD COLUMN listed_hash bigint;

COMMENT ON COLUMN analytics_purge_batch.listed_hash IS
'The xor of analytics_listed_hash of its events, as they were when they were listed. NULL of sessions, of a batch that '
'is the rest of another one, and of what was listed before there was this column.';
