"""Umami's tables, and what its collector writes into them."""

from typing import Any

import psycopg
import sqlparse

from conftest import ROOT, SQL

# Of a visitor ten events in two visits, a minute apart: pageviews, two custom events with two properties each and some
# revenue, and a performance event. Ids are hashes, and so in no order, as the collector's are.
TRAFFIC = """
INSERT INTO website (website_id, name)
SELECT md5('website ' || n)::uuid, 'Website ' || n FROM generate_series(1, %(websites)s) AS n;

CREATE TEMPORARY TABLE made AS
SELECT
    visitor.*,
    n,
    md5(concat('event ', visitor.number, ' ', n))::uuid AS event_id,
    md5(concat('visit ', visitor.number, ' ', n / 5))::uuid AS visit_id,
    visitor.started_at + n * interval '1 minute' + n / 5 * interval '3 hours' AS created_at,
    CASE n WHEN 3 THEN 2 WHEN 8 THEN 5 WHEN 9 THEN 2 ELSE 1 END AS event_type
FROM (
    SELECT
        number,
        md5('session ' || number)::uuid AS session_id,
        md5('website ' || 1 + number %% %(websites)s)::uuid AS website_id,
        %(from)s::timestamptz + number * (%(days)s * interval '1 day' / %(visitors)s) AS started_at
    FROM generate_series(1, %(visitors)s) AS number
) AS visitor
CROSS JOIN generate_series(0, 9) AS n;

INSERT INTO session (session_id, website_id, browser, os, device, country, created_at)
SELECT
    session_id, website_id, (ARRAY['chrome', 'safari', 'firefox'])[1 + number %% 3], 'os ' || number %% 5,
    (ARRAY['desktop', 'laptop', 'mobile'])[1 + number %% 3], (ARRAY['DE', 'NZ', NULL])[1 + number %% 3], started_at
FROM made WHERE n = 0;

INSERT INTO website_event (
    event_id, website_id, session_id, visit_id, created_at, url_path, referrer_domain, hostname, event_type, event_name,
    utm_source
)
SELECT
    event_id, website_id, session_id, visit_id, created_at, '/page/' || (number + n) %% 40,
    (ARRAY['search.example', 'site.example', NULL])[1 + number %% 3], 'site.example', event_type,
    CASE event_type WHEN 2 THEN 'buy' END, CASE WHEN number %% 4 = 0 THEN 'letter' END
FROM made ORDER BY created_at;

INSERT INTO event_data (event_data_id, website_id, website_event_id, data_key, string_value, data_type, created_at)
SELECT md5(concat(event_id, key))::uuid, website_id, event_id, key, 'value', 1, created_at
FROM made CROSS JOIN unnest(ARRAY['size', 'colour']) AS key WHERE event_type = 2;

INSERT INTO revenue (revenue_id, website_id, session_id, event_id, event_name, currency, revenue, created_at)
SELECT md5('revenue ' || event_id)::uuid, website_id, session_id, event_id, 'buy', 'EUR', 9.5, created_at
FROM made WHERE event_type = 2 AND number %% 2 = 0;

INSERT INTO session_data (session_data_id, website_id, session_id, data_key, string_value, data_type, created_at)
SELECT md5('plan ' || session_id)::uuid, website_id, session_id, 'plan', 'gold', 1, created_at
FROM made WHERE n = 0 AND number %% 5 = 0;

DROP TABLE made
"""


def create(connection: psycopg.Connection[Any], of: str = "CREATE") -> None:
    """Create Umami's tables and their indexes, or one of the two: CREATE TABLE, INDEX."""
    for statement in sqlparse.split((ROOT / "tests" / "umami_tables.sql").read_text()):
        if of in statement:
            connection.execute(statement.encode())


def prepare(connection: psycopg.Connection[Any]) -> None:
    """Run umami.sql as psql does, one statement after the other, and end what it has set."""
    for statement in sqlparse.split((SQL / "umami.sql").read_text()):
        connection.execute(statement.encode())
    connection.execute("RESET ALL")


def traffic(connection: psycopg.Connection[Any], events: int, from_time: Any, days: int, websites: int = 5) -> None:
    """Store so many events of some days, with all that belongs to them."""
    parameters = {"visitors": events // 10, "from": str(from_time), "days": days, "websites": websites}
    with psycopg.ClientCursor(connection) as cursor:  # several statements
        cursor.execute(TRAFFIC.encode(), parameters)
