-- The items of a dimension of a website, the most counted first.
-- Params: website (text), first_item_day (date), last_item_day (date, included), tab (text, the dimension), live
--   (boolean: also days that are not aggregated yet, which are counted now).
-- Result: item, count, visitor_days, hidden (see analytics_top_items); unknown_days, whose rows were sealed before the
--   dimension was counted. One row with item NULL where there is none.
SELECT
    top_item.item,
    top_item.count,
    top_item.visitor_days,
    top_item.hidden,
    known.unknown_days
FROM (
    SELECT count(*) AS unknown_days
    FROM analytics_daily_stats AS stats
    WHERE
        stats.website_id = %(website)s::text
        AND stats.date BETWEEN %(first_item_day)s::date AND %(last_item_day)s::date
        AND stats.bounced_sessions IS NULL
        AND %(tab)s::text NOT IN ('pages', 'referrers')
) AS known
LEFT JOIN analytics_top_items(
    %(website)s::text, %(first_item_day)s::date, %(last_item_day)s::date, %(tab)s::text, %(live)s::boolean
) AS top_item ON TRUE;
