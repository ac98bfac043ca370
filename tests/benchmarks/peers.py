"""What people use instead of the jobs, as they use it."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.bench import Connection, execute

TAKE = 100_000
"""How many events of a website the row-by-row job reads at most."""
PAUSE = 0.1
BATCH = 1000

COUNTS = "total_pageviews, total_custom_events, unique_visitors, unique_sessions, bounced_sessions, session_seconds"
TOPS = {"top_pages": "pathname", "top_referrers": "referrer_source"}
DIMENSIONS = {
    "top_countries": "country",
    "top_devices": "device_type",
    "top_browsers": "browser",
    "top_os": "os",
    **{name: name.replace("top_", "")[:-1] for name in ("top_utm_sources", "top_utm_mediums", "top_utm_campaigns")},
    "top_events": "event_name",
}
"""Of which column of an event each column of a row is."""
COLUMNS = ", ".join(("website_id", "date", COUNTS, *TOPS, *DIMENSIONS))
MAKE_TABLE = f"""
CREATE TABLE peer_stats AS SELECT {COLUMNS} FROM analytics_daily_stats WHERE FALSE;
ALTER TABLE peer_stats ADD PRIMARY KEY (website_id, date);
GRANT ALL ON peer_stats TO analytics_jobs
"""
WRITE = f"""
INSERT INTO peer_stats ({COLUMNS}) SELECT * FROM json_populate_recordset(NULL::peer_stats, %s)
ON CONFLICT (website_id, date) DO UPDATE SET ({COLUMNS}) = ROW (excluded.*)
"""
OF_THE_DAY = "timestamp >= %(from)s::timestamptz AND timestamp < %(to)s::timestamptz AND deleted_at IS NULL"

Day = Mapping[str, Any]
"""Of a day: `date`, `from` and `to`."""


def written(day: Day, rows: Iterable[Iterable[Any]]) -> str:
    """What WRITE takes: rows of a website's id and the other columns."""
    names = COLUMNS.split(", ")
    return json.dumps([dict(zip(names, [website, day["date"], *row], strict=True)) for website, *row in rows])


def counted(column: str) -> str:
    """The type of the events that a dimension is of."""
    return "custom_event" if column == "event_name" else "pageview"


def row_by_row(connection: Connection, day: Day, _: Path) -> None:
    """Aggregate as the cron job does: the rows of each website, 100,000 at most, are gone through in memory."""
    websites = execute(connection, f"SELECT DISTINCT website_id FROM analytics_event WHERE {OF_THE_DAY}", day)
    query = f"SELECT * FROM analytics_event WHERE website_id = %(website)s AND {OF_THE_DAY} LIMIT {TAKE}"
    for website in (row["website_id"] for row in websites):
        types: Counter[str] = Counter()
        items: dict[str, Counter[str]] = defaultdict(Counter)
        shares: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        visitors = set()
        sessions: dict[str, list[Any]] = {}
        for event in execute(connection, query, {**day, "website": website}):
            kind = event["event_type"]
            types[kind] += 1
            visitors.add(event["visitor_id"])
            session = sessions.setdefault(event["session_id"], [Counter(), event["timestamp"], event["timestamp"]])
            session[0][kind] += 1
            session[1:] = min(session[1], event["timestamp"]), max(session[2], event["timestamp"])
            for name, column in TOPS.items():
                if kind == "pageview" and event[column]:
                    items[name][event[column]] += 1
            for name, column in DIMENSIONS.items():
                if kind == counted(column):
                    shares[name][event["visitor_id"]][event[column] or "(none)"] += 1
        counts = [
            *(types["pageview"], types["custom_event"], len(visitors), len(sessions)),
            sum(kinds["pageview"] == 1 and kinds["custom_event"] == 0 for kinds, _, _ in sessions.values()),
            int(sum((last - first for _, first, last in sessions.values()), timedelta()).total_seconds()),
        ]
        tops = [top(items[name]) for name in TOPS]
        dimensions = [divided(shares[name].values()) for name in DIMENSIONS]
        connection.execute(WRITE.encode(), [written(day, [[website, *counts, *tops, *dimensions]])])


def ordered(items: Mapping[str, int]) -> list[str]:
    """Items, the most frequent first."""
    return sorted(items, key=lambda item: (-items[item], item.encode()))


def top(items: Mapping[str, int]) -> list[dict[str, Any]]:
    """The ten most frequent items."""
    return [{"item": item, "count": items[item]} for item in ordered(items)[:10]]


def divided(visitors: Iterable[Mapping[str, int]]) -> list[dict[str, Any]]:
    """The ten most frequent items and the others, each visitor with the one that it has most often."""
    counts: Counter[str] = Counter()
    mains: Counter[str] = Counter()
    for items in visitors:
        counts.update(items)
        mains[ordered(items)[0]] += 1
    first = [{"item": item, "count": counts[item], "visitors": mains[item]} for item in ordered(counts)[:10]]
    rest = ordered(counts)[10:]
    others = {
        "item": "(other)",
        "count": sum(map(counts.__getitem__, rest)),
        "visitors": sum(map(mains.__getitem__, rest)),
    }
    return first + [others] * bool(rest)


# In the SQL of both PostgreSQL and DuckDB.
SHARES = """
SELECT
    website_id, CASE WHEN place <= 10 THEN item ELSE '(other)' END AS item, min(place) AS place,
    CAST(sum(events) AS bigint) AS events, CAST(sum(visitors) AS bigint) AS visitors
FROM (
    SELECT
        website_id, item, sum(events) AS events, sum(CASE WHEN place = 1 THEN 1 ELSE 0 END) AS visitors,
        row_number() OVER (PARTITION BY website_id ORDER BY sum(events) DESC, item COLLATE "C") AS place
    FROM (
        SELECT
            website_id, item, events,
            row_number() OVER (PARTITION BY website_id, visitor_id ORDER BY events DESC, item COLLATE "C") AS place
        FROM (
            SELECT website_id, visitor_id, coalesce(nullif({column}, ''), '(none)') AS item, count(*) AS events
            FROM {events} AND event_type = '{kind}' GROUP BY 1, 2, 3
        ) AS pair
    ) AS main
    GROUP BY website_id, item
) AS share
GROUP BY 1, 2
"""


def shares(column: str, events: str) -> str:
    """A query for a dimension: the ten most frequent items and the others, each visitor with one of them."""
    return SHARES.format(column=column, events=events, kind=counted(column))


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
SESSIONS = f"""
UPDATE peer_stats AS stats SET (bounced_sessions, session_seconds) = (found.bounced, found.seconds)
FROM (
    SELECT
        website_id, count(*) FILTER (WHERE pageviews = 1 AND custom_events = 0) AS bounced,
        floor(extract(epoch FROM sum(duration))) AS seconds
    FROM (
        SELECT
            website_id, max(timestamp) - min(timestamp) AS duration,
            count(*) FILTER (WHERE event_type = 'pageview') AS pageviews,
            count(*) FILTER (WHERE event_type = 'custom_event') AS custom_events
        FROM analytics_event WHERE {OF_THE_DAY} GROUP BY website_id, session_id
    ) AS session
    GROUP BY website_id
) AS found
WHERE stats.website_id = found.website_id AND stats.date = %(date)s::date
"""
SHARE = """
UPDATE peer_stats AS stats SET {0} = coalesce(found.entries, '[]')
FROM peer_stats AS every
LEFT JOIN (
    SELECT
        website_id,
        jsonb_agg(jsonb_build_object('item', item, 'count', events, 'visitors', visitors) ORDER BY place) AS entries
    FROM ({1}) AS share GROUP BY website_id
) AS found ON every.website_id = found.website_id
WHERE stats.website_id = every.website_id AND stats.date = every.date AND stats.date = %(date)s::date
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
    SESSIONS,
    *(TOP.format(name, column) for name, column in TOPS.items()),
    *(SHARE.format(name, shares(column, f"analytics_event WHERE {OF_THE_DAY}")) for name, column in DIMENSIONS.items()),
]


def plain_sql(connection: Connection, day: Day, _: Path) -> None:
    """Aggregate as under pg_cron: a statement per metric."""
    with connection.transaction():
        for statement in STATEMENTS:
            execute(connection, statement, day)


READ_COLUMNS = ("website_id", "event_type", "visitor_id", "session_id", *TOPS.values(), *DIMENSIONS.values())
COPY = f"""
COPY (SELECT timestamp::timestamp, {", ".join(READ_COLUMNS)} FROM analytics_event WHERE {OF_THE_DAY}) TO STDOUT (FORMAT csv)
"""
READ = f"""
CREATE TEMP TABLE event AS SELECT * FROM read_csv(?, header = false, columns = {{
    'timestamp': 'TIMESTAMP', {", ".join(f"'{name}': 'VARCHAR'" for name in READ_COLUMNS)}
}})
"""
FIRST = """
SELECT website_id, list({{'item': item, 'count': events}} ORDER BY events DESC, item) AS entries
FROM (
    SELECT website_id, {0} AS item, count(*) AS events FROM event WHERE event_type = 'pageview' AND {0} <> ''
    GROUP BY 1, 2 QUALIFY row_number() OVER (PARTITION BY website_id ORDER BY events DESC, item) <= 10
)
GROUP BY website_id
"""
DIVIDED = """
SELECT website_id, list({{'item': item, 'count': events, 'visitors': visitors}} ORDER BY place) AS entries
FROM ({0}) GROUP BY website_id
"""
LISTS = {name: FIRST.format(column) for name, column in TOPS.items()} | {
    name: DIVIDED.format(shares(column, "event WHERE TRUE")) for name, column in DIMENSIONS.items()
}
REDUCE = f"""
SELECT total.*, session.bounced, session.seconds, {", ".join(f"coalesce({name}.entries, [])" for name in LISTS)} FROM (
    SELECT
        website_id, count(*) FILTER (event_type = 'pageview'), count(*) FILTER (event_type = 'custom_event'),
        count(DISTINCT visitor_id), count(DISTINCT session_id)
    FROM event GROUP BY website_id
) AS total
LEFT JOIN (
    SELECT website_id, count(*) FILTER (pageviews = 1 AND custom_events = 0) AS bounced, sum(duration) // 1000000 AS seconds
    FROM (
        SELECT
            website_id, epoch_us(max(timestamp)) - epoch_us(min(timestamp)) AS duration,
            count(*) FILTER (event_type = 'pageview') AS pageviews,
            count(*) FILTER (event_type = 'custom_event') AS custom_events
        FROM event GROUP BY website_id, session_id
    )
    GROUP BY website_id
) AS session USING (website_id)
{" ".join(f"LEFT JOIN ({query}) AS {name} USING (website_id)" for name, query in LISTS.items())}
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
        cursor.execute(WRITE.encode(), [written(day, rows)])
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
