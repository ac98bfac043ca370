-- What websites are called that have a name.
-- Result: website_id, name.
SELECT
    policy.website_id,
    policy.name
FROM analytics_website_policy AS policy
WHERE policy.name <> '';
