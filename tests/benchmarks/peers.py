"""What people use instead of the jobs, as they use it."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.bench import Connection, execute

TAKE = 100_000
"""How many events of a website the row-by-row job reads at most."""
PAUSE = 0.1
BATCH = 1000

COLUMNS = (
    "website_id, date, total_pageviews, total_custom_events, unique_visitors, unique_sessions, top_pages, top_referrers"
)
MAKE_TABLE = f"""
CREATE TABLE peer_stats AS SELECT {COLUMNS} FROM analytics_daily_stats WHERE FALSE;
ALTER TABLE peer_stats ADD PRIMARY KEY (website_id, date);
GRANT ALL ON peer_stats TO analytics_jobs
"""
INSERT = f"""
INSERT INTO peer_stats ({COLUMNS}) {{0}}
ON CONFLICT (website_id, date) DO UPDATE SET ({COLUMNS}) = ROW (excluded.*)
"""
WRITE = INSERT.format("VALUES (%s, %s, %s, %s, %s, %s, %s, %s)")
WRITE_ALL = INSERT.format("SELECT * FROM json_populate_recordset(NULL::peer_stats, %s)")
OF_THE_DAY = "timestamp >= %(from)s::timestamptz AND timestamp < %(to)s::timestamptz AND deleted_at IS NULL"

Day = Mapping[str, Any]
"""Of a day: `date`, `from` and `to`."""


def row_by_row(connection: Connection, day: Day, _: Path) -> None:
    """Aggregate as the cron job does: the rows of each website, 100,000 at most, are gone through in memory."""
    websites = execute(connection, f"SELECT DISTINCT website_id FROM analytics_event WHERE {OF_THE_DAY}", day)
    query = f"SELECT * FROM analytics_event WHERE website_id = %(website)s AND {OF_THE_DAY} LIMIT {TAKE}"
    for website in (row["website_id"] for row in websites):
        types: Counter[str] = Counter()
        pages: Counter[str] = Counter()
        referrers: Counter[str] = Counter()
        visitors, sessions = set(), set()
        for event in execute(connection, query, {**day, "website": website}):
            types[event["event_type"]] += 1
            visitors.add(event["visitor_id"])
            sessions.add(event["session_id"])
            if event["event_type"] == "pageview":
                pages[event["pathname"]] += 1
                if event["referrer_source"]:
                    referrers[event["referrer_source"]] += 1
        counts = [types["pageview"], types["custom_event"], len(visitors), len(sessions)]
        connection.execute(WRITE, [website, day["date"], *counts, top(pages), top(referrers)])


def top(items: Counter[str]) -> str:
    """The ten most frequent items, as JSON."""
    first = sorted(items.items(), key=lambda item: (-item[1], item[0].encode()))[:10]
    return json.dumps([{"item": item, "count": count} for item, count in first])


TOP = f"""
UPDATE peer_stats AS stats SET {{0}} = coalesce((
    SELECT jsonb_agg(jsonb_build_object('item', item, 'count', events) ORDER BY events DESC, item COLLATE "C")
    FROM (
        SELECT {{1}} AS item, count(*) AS events FROM analytics_event
        WHERE website_id = stats.website_id AND {OF_THE_DAY} AND event_type = 'pageview' AND {{1}} <> ''
        GROUP BY 1 ORDER BY 2 DESC, {{1}} COLLATE "C" LIMIT 10
    ) AS first
), '[]')
WHERE date = %(date)s::date
"""
COUNT = f"""
UPDATE peer_stats AS stats SET {{0}} = found.count
FROM (SELECT website_id, {{1}} AS count FROM analytics_event WHERE {OF_THE_DAY} GROUP BY website_id) AS found
WHERE stats.website_id = found.website_id AND stats.date = %(date)s::date
"""
STATEMENTS = [
    f"""
    INSERT INTO peer_stats (website_id, date, total_pageviews)
    SELECT website_id, %(date)s::date, count(*) FILTER (WHERE event_type = 'pageview')
    FROM analytics_event WHERE {OF_THE_DAY} GROUP BY website_id
    ON CONFLICT (website_id, date) DO UPDATE SET total_pageviews = excluded.total_pageviews
    """,
    COUNT.format("total_custom_events", "count(*) FILTER (WHERE event_type = 'custom_event')"),
    COUNT.format("unique_visitors", "count(DISTINCT visitor_id)"),
    COUNT.format("unique_sessions", "count(DISTINCT session_id)"),
    TOP.format("top_pages", "pathname"),
    TOP.format("top_referrers", "referrer_source"),
]


def plain_sql(connection: Connection, day: Day, _: Path) -> None:
    """Aggregate as under pg_cron: a statement per metric."""
    with connection.transaction():
        for statement in STATEMENTS:
            execute(connection, statement, day)


COPY = f"""
COPY (
    SELECT website_id, event_type, pathname, referrer_source, visitor_id, session_id
    FROM analytics_event WHERE {OF_THE_DAY}
) TO STDOUT (FORMAT csv)
"""
READ = """
CREATE TEMP TABLE event AS SELECT * FROM read_csv(?, header = false, columns = {
    'website_id': 'VARCHAR', 'event_type': 'VARCHAR', 'pathname': 'VARCHAR', 'referrer_source': 'VARCHAR',
    'visitor_id': 'VARCHAR', 'session_id': 'VARCHAR'
})
"""
FIRST = """
SELECT website_id, list({{'item': item, 'count': events}} ORDER BY events DESC, item) AS first
FROM (
    SELECT website_id, {0} AS item, count(*) AS events FROM event WHERE event_type = 'pageview' AND {0} <> ''
    GROUP BY 1, 2 QUALIFY row_number() OVER (PARTITION BY website_id ORDER BY events DESC, item) <= 10
)
GROUP BY website_id
"""
REDUCE = f"""
SELECT total.*, page.first, referrer.first FROM (
    SELECT
        website_id, count(*) FILTER (event_type = 'pageview'), count(*) FILTER (event_type = 'custom_event'),
        count(DISTINCT visitor_id), count(DISTINCT session_id)
    FROM event GROUP BY website_id
) AS total
LEFT JOIN ({FIRST.format("pathname")}) AS page USING (website_id)
LEFT JOIN ({FIRST.format("referrer_source")}) AS referrer USING (website_id)
"""


def through_duckdb(connection: Connection, day: Day, folder: Path) -> None:
    """Aggregate in DuckDB, on all cores: COPY the day out, read the file, write the result back."""
    file = folder / "day.csv"
    with connection.cursor() as cursor:
        with cursor.copy(COPY.encode(), day) as copy, file.open("wb") as output:
            for block in copy:
                output.write(block)
        with duckdb.connect() as duck:
            duck.execute(READ, [str(file)])
            rows = duck.execute(REDUCE).fetchall()
        values = [
            dict(zip(COLUMNS.split(", "), [website, day["date"], *counts, pages or [], referrers or []], strict=True))
            for website, *counts, pages, referrers in rows
        ]
        cursor.execute(WRITE_ALL, [json.dumps(values)])
    file.unlink()


AGGREGATIONS: dict[str, Callable[[Connection, Day, Path], None]] = {
    "DuckDB": through_duckdb,
    "plain SQL": plain_sql,
    "row by row": row_by_row,
}


def differences(connection: Connection, day: Day) -> list[dict[str, Any]]:
    """The rows of a day in which a peer's result differs from ours: our and its pageviews and visitors."""
    return list(
        execute(
            connection,
            f"""
            SELECT
                website_id, ours.total_pageviews AS ours, peer.total_pageviews AS peer,
                ours.unique_visitors AS our_visitors, peer.unique_visitors AS peer_visitors
            FROM (SELECT {COLUMNS} FROM analytics_daily_stats WHERE date = %(date)s::date) AS ours
            FULL JOIN peer_stats AS peer USING (website_id, date)
            WHERE ROW (ours.*)::text IS DISTINCT FROM ROW (peer.*)::text
            ORDER BY 2 DESC NULLS FIRST
            """,
            day,
        )
    )


IDS = f"SELECT id FROM analytics_event WHERE timestamp BETWEEN %(first_at)s AND %(last_at)s LIMIT {BATCH}"
RECOUNT = "SELECT count(*) FROM analytics_event WHERE timestamp < %(cutoff)s"


def delete_by_ids(connection: Connection, expired: Mapping[str, Any]) -> list[float]:
    """Delete as the cron job does: 1,000 ids, a count of what is left, and a pause; how long each batch took."""
    durations: list[float] = []
    while True:
        began = time.perf_counter()
        ids = [row["id"] for row in execute(connection, IDS, expired)]
        if not ids:
            return durations
        connection.execute("DELETE FROM analytics_event WHERE id = ANY(%s)", [ids])
        execute(connection, RECOUNT, expired)
        time.sleep(PAUSE)
        durations.append(time.perf_counter() - began)


FIND = """
SELECT * FROM analytics_session
WHERE ended_at IS NULL AND deleted_at IS NULL AND last_activity_at < now() - INTERVAL '30 minutes'
ORDER BY started_at LIMIT %(limit)s
"""
CLOSE_ONE = """
UPDATE analytics_session SET ended_at = %(last_activity_at)s, duration_seconds = %(duration)s, updated_at = now()
WHERE id = %(id)s
"""


def close_one_by_one(connection: Connection, limit: int) -> None:
    """Close idle sessions as the cron job does: read them, then update each. One that comes back meanwhile is closed."""
    for session in execute(connection, FIND, {"limit": limit}):
        duration = int((session["last_activity_at"] - session["started_at"]).total_seconds())
        execute(connection, CLOSE_ONE, session | {"duration": duration})
