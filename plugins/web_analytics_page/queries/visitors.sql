-- The unique visitors of a website, each counted once: in the range, in its days that are over, and in their
-- counterparts in the range before. Estimated from the days' sketches, with a standard error of 1.4 %%; exact where
-- there is one day.
-- Params: from_day (date), to_day (date, included), before_day (date, the first one of the range before), last_day
--   (date, the last one of the range that is over), website (text), live (boolean: also days that are not aggregated
--   yet, which are counted now).
-- Result: period ('all', 'range', 'before'), visitors.
WITH daily AS MATERIALIZED (
    SELECT
        stats.date,
        stats.unique_visitors,
        stats.visitor_sketch
    FROM analytics_daily_stats AS stats
    WHERE stats.website_id = %(website)s::text AND stats.date BETWEEN %(before_day)s::date AND %(to_day)s::date
    UNION ALL
    SELECT
        counted.date,
        counted.unique_visitors,
        counted.visitor_sketch
    FROM analytics_live_rows(%(website)s::text, %(before_day)s::date, %(to_day)s::date) AS counted
    WHERE %(live)s::boolean
)

SELECT
    span.period,
    CASE
        WHEN count(*) = 1 THEN max(daily.unique_visitors)
        ELSE analytics_sketch_visitors(bit_or(daily.visitor_sketch))
    END AS visitors
FROM (
    VALUES
    ('all', %(from_day)s::date, %(to_day)s::date),
    ('range', %(from_day)s::date, %(last_day)s::date),
    ('before', %(before_day)s::date, %(last_day)s::date - (%(from_day)s::date - %(before_day)s::date))
) AS span (period, first_day, last_day)
INNER JOIN daily ON daily.date BETWEEN span.first_day AND span.last_day
GROUP BY span.period
ORDER BY span.period;
