-- Conditions are named after the files that find them.
UPDATE analytics_alert SET condition = 'unsealed_days'
WHERE condition = 'proof_failed';

COMMENT ON COLUMN analytics_alert.condition IS 'The name of the file in include/sql/alerts that finds it.';

-- The function of this name has other parameters now.
DROP FUNCTION IF EXISTS analytics_count_day(text, timestamptz, timestamptz);
