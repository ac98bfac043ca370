-- Measures the database.
-- Result: one row: database_bytes, database_size.
SELECT
    PG_DATABASE_SIZE(CURRENT_DATABASE()) AS database_bytes,
    PG_SIZE_PRETTY(PG_DATABASE_SIZE(CURRENT_DATABASE())) AS database_size;
