-- The unique visitors of each website in the range, each counted once: estimated from the days' sketches, with a
-- standard error of 1.4 %%; exact where there is one day.
-- Params: from_day (date), to_day (date, included).
-- Result: website_id, visitors.
SELECT
    daily.website_id,
    CASE
        WHEN count(*) = 1 THEN max(daily.unique_visitors)
        ELSE analytics_sketch_visitors(bit_or(daily.visitor_sketch))
    END AS visitors
FROM analytics_traffic_daily AS daily
WHERE daily.date BETWEEN %(from_day)s::date AND %(to_day)s::date
GROUP BY daily.website_id;
