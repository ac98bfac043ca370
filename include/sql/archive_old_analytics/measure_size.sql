-- Measures the database.
-- Result: one row: database_bytes, database_size.
SELECT
    pg_database_size(current_database()) AS database_bytes,
    pg_size_pretty(pg_database_size(current_database())) AS database_size;
