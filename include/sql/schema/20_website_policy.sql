-- What an operator may say about a website. A website without a row has the jobs' own settings.

CREATE OR REPLACE FUNCTION analytics_check_timezone(timezone text) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- AT TIME ZONE accepts more than zones: abbreviations, and offsets of the wrong sign.
    IF timezone NOT IN (SELECT name FROM pg_catalog.pg_timezone_names) THEN
        RAISE EXCEPTION 'Time zone "%" is not known: write an IANA name such as Europe/Berlin', timezone
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN true;
END
$$;

CREATE TABLE IF NOT EXISTS analytics_website_policy (
    website_id text PRIMARY KEY,
    timezone text CHECK (analytics_check_timezone(timezone)),
    retention_days integer CHECK (retention_days BETWEEN 1 AND 36500),
    legal_hold boolean NOT NULL DEFAULT FALSE
);

COMMENT ON COLUMN analytics_website_policy.timezone IS
'IANA name of the time zone of the website''s days; NULL: ANALYTICS_TIMEZONE';
COMMENT ON COLUMN analytics_website_policy.retention_days IS 'Whole days of raw data kept; NULL: the run''s Param';
COMMENT ON COLUMN analytics_website_policy.legal_hold IS 'While this is true, no raw data of the website is deleted';
