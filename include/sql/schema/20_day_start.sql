-- The first instant of a calendar day in a time zone. Where the clocks go back to midnight (Azores, Havana), midnight
-- comes twice: PostgreSQL takes the second one, and the day begins with the first.

CREATE OR REPLACE FUNCTION analytics_day_start(day date, timezone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        (day::timestamp AT TIME ZONE timezone)
        - CASE
            WHEN ((day::timestamp AT TIME ZONE timezone - INTERVAL '1 hour') AT TIME ZONE timezone)::date = day
                THEN INTERVAL '1 hour'
            ELSE INTERVAL '0'
        END
$$;
