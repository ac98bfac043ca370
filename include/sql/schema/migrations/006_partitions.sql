-- What is to be known where analytics_event is partitioned: see repeatable/55_partitions.sql.

CREATE TABLE analytics_detached_partition (
    partition regclass PRIMARY KEY,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    bound text NOT NULL
);

COMMENT ON TABLE analytics_detached_partition IS
'Partitions that the retention detaches, from before it does so until they are dropped or attached again.';
COMMENT ON COLUMN analytics_detached_partition.partition IS 'The table.';
COMMENT ON COLUMN analytics_detached_partition.starts_at IS 'The first time that it may have; -infinity if any.';
COMMENT ON COLUMN analytics_detached_partition.ends_at IS 'The first time that is after all that it may have.';
COMMENT ON COLUMN analytics_detached_partition.bound IS 'The same, as ATTACH PARTITION has it.';

CREATE TABLE analytics_partitioning (
    every text NOT NULL CHECK (every IN ('day', 'week', 'month')),
    ahead integer NOT NULL DEFAULT 30 CHECK (ahead BETWEEN 8 AND 3650)
);

CREATE UNIQUE INDEX analytics_partitioning_one_row ON analytics_partitioning ((TRUE));

COMMENT ON TABLE analytics_partitioning IS
'One row where the jobs are to make the next partitions of analytics_event; none where somebody else does.';
COMMENT ON COLUMN analytics_partitioning.every IS 'The time that a partition is for, in the time zone of all websites.';
COMMENT ON COLUMN analytics_partitioning.ahead IS 'For how many days from now on there are always partitions.';
