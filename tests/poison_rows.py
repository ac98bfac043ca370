"""Absurd rows that the application's tables can store, ordinary ones beside them, and all steps of the jobs over both."""

import secrets
from datetime import datetime, timedelta
from typing import Any

from aggregation_steps import Connection, aggregate_due, set_zone
from alert_steps import find_alerts
from conftest import QUERIES, Database
from retention_steps import NOW, Retention, retention

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
ALERTS = {"retention_days": 90, "idle_minutes": 30, "behind_hours": 36, "database_gb": 10.0}
ZONES = {"utc": "UTC", "york": "America/New_York", "tokyo": "Asia/Tokyo"}
"""Websites and their time zones."""

ANOMALY = "anomaly"
FUTURE = "future"
TIMES = {
    "-infinity": (ANOMALY, ANOMALY, ANOMALY),
    "4713-01-01 00:00+00 BC": (ANOMALY, ANOMALY, ANOMALY),
    "0001-12-31 14:41:00.999999+00 BC": (ANOMALY, ANOMALY, ANOMALY),
    "0001-12-31 14:41:01+00 BC": (ANOMALY, ANOMALY, "0001-01-01"),  # the first instant of year 1 in Tokyo
    "0001-12-31 23:59:59.999999+00 BC": (ANOMALY, ANOMALY, "0001-01-01"),
    "0001-01-01 00:00+00": ("0001-01-01", ANOMALY, "0001-01-01"),  # "no time" of Go and .NET
    "0001-01-01 04:56:01.999999+00": ("0001-01-01", ANOMALY, "0001-01-01"),
    "0001-01-01 04:56:02+00": ("0001-01-01", "0001-01-01", "0001-01-01"),  # and in New York
    "1900-01-01 00:00+00": ("1900-01-01", "1899-12-31", "1900-01-01"),
    "1970-01-01 00:00+00": ("1970-01-01", "1969-12-31", "1970-01-01"),  # "no time" of Unix
    "9999-12-31 12:00+00": (FUTURE, FUTURE, FUTURE),
    "9999-12-31 15:00+00": (FUTURE, FUTURE, ANOMALY),
    "10000-01-01 00:00+00": (ANOMALY, FUTURE, ANOMALY),
    "10000-01-01 05:00+00": (ANOMALY, ANOMALY, ANOMALY),
    "294276-12-31 23:59:59.999999+00": (ANOMALY, ANOMALY, ANOMALY),
    "infinity": (ANOMALY, ANOMALY, ANOMALY),
}
"""Times of events, and which day that is for each of the websites, if it is one and has begun."""

STRINGS = [
    "",
    " ",
    "'",
    '"',
    "'; DROP TABLE analytics_event; --",
    "%",
    "%s %(days)s %%",
    "{}",
    "{{ 1 / 0 }}",
    "{% raw %}",
    "$1",
    "\\",
    "\n",
    "a\nBcc: b",
    "\r\n\t\x01",
    "NULL",
    "<script>alert(1)</script>",
    "🦆",
    "\u202eright to left\u2028",
    "e\u0301",
    "\xe9",
    "[Analytics Cleanup] ✅ Closed session",
    "x" * 100_000,  # what can be compressed may be longer than an index holds
    secrets.token_hex(1000),
]

SESSION_TIMES = {
    "-infinity": None,
    "0044-03-15 00:00+00 BC": None,
    "0001-01-01 00:00+00": None,
    "1900-01-01 00:00+00": None,
    "long ago": timedelta(days=-100),
    "idle": -HOUR,
    "active": timedelta(minutes=-5),
    "tomorrow": DAY,
    "9999-12-31 00:00+00": None,
    "infinity": None,
}
"""Times of sessions: some as they are, and some by how long after now they are."""


def session_time(name: str, now: datetime) -> str:
    """One of SESSION_TIMES as a text."""
    offset = SESSION_TIMES[name]
    return name if offset is None else str(now.replace(microsecond=0) + offset)


def sessions(database: Database, now: datetime) -> list[tuple[str, str, str, str | None]]:
    """Insert a session of each start, last activity and end; return their ids and the names of these times."""
    rows: list[tuple[str, str, str, str | None]] = []
    with database.connection.pipeline():
        for start in SESSION_TIMES:
            for last in SESSION_TIMES:
                for end in (None, "-infinity", "1900-01-01 00:00+00", "idle", "tomorrow", "infinity"):
                    name = f"odd {len(rows)}"
                    started_at: Any = session_time(start, now)
                    last_activity_at: Any = session_time(last, now)
                    ended_at = end and session_time(end, now)
                    database.session(started_at, last_activity_at, id=name, session_id=name, ended_at=ended_at)
                    rows.append((name, start, last, end))
    return rows


def set_zones(database: Database) -> None:
    """Give each of the websites its time zone."""
    for website_id, timezone in ZONES.items():
        set_zone(database, timezone, website_id)


def ordinary(database: Database, *website_ids: str, now: datetime = NOW) -> None:
    """For each website two expired days, two days that are kept, and a session of each kind."""
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
    for website_id in website_ids:
        for age in (100, 99, 10, 2):
            for n in range(3):
                database.event(noon - age * DAY, website_id, visitor_id=str(n), session_id=f"{website_id} {age}")
        database.session(now - 100 * DAY, now - 99 * DAY, website_id=website_id, session_id=f"{website_id} 100")
        database.session(now - 10 * DAY, now - 10 * DAY + HOUR, website_id=website_id, session_id=f"{website_id} 10")
        database.session(now - 3 * HOUR, now - HOUR, website_id=website_id, session_id=f"{website_id} idle")
        database.session(now - HOUR, now - HOUR / 12, website_id=website_id, session_id=f"{website_id} active")
        returned = {"website_id": website_id, "session_id": f"{website_id} returned", "ended_at": now - 4 * HOUR}
        database.session(now - 5 * HOUR, now - 2 * HOUR, **returned)


def assert_ordinary(database: Database, *website_ids: str, now: datetime = NOW) -> None:
    """All jobs did all they had to do with the rows of ordinary()."""
    days = [(now - age * DAY).date() for age in (100, 99, 10, 2)]
    for website_id in website_ids:
        rows = database.query(
            "SELECT date, total_events, unique_visitors, sealed_at IS NOT NULL AS is_sealed FROM analytics_daily_stats"
            " WHERE website_id = %s AND date = ANY(%s) ORDER BY date",
            website_id,
            days,
        )
        assert [tuple(row.values()) for row in rows] == [(day, 3, 3, n < 2) for n, day in enumerate(days)]
        left = database.query(
            "SELECT session_id, count(*) AS events FROM analytics_event WHERE website_id = %s AND session_id LIKE %s"
            " GROUP BY session_id ORDER BY session_id",
            website_id,
            f"{website_id} %",
        )
        assert [tuple(row.values()) for row in left] == [(f"{website_id} 10", 3), (f"{website_id} 2", 3)]
        seconds = database.query(
            "SELECT session_id, duration_seconds FROM analytics_session WHERE website_id = %s AND session_id LIKE %s",
            website_id,
            f"{website_id} %",
        )
        assert {row["session_id"].removeprefix(website_id): row["duration_seconds"] for row in seconds} == {
            " 10": 3600,
            " idle": 7200,
            " active": None,
            " returned": 10800,
        }


def open_alerts(database: Database, connection: Connection | None = None) -> list[tuple[str, str]]:
    """The alerts that are open, after they were looked for."""
    find_alerts(database, connection, **ALERTS)
    rows = database.query("SELECT condition, subject FROM analytics_alert WHERE recovered_at IS NULL ORDER BY 1, 2")
    return [(row["condition"], row["subject"]) for row in rows]


def look_at_the_page(database: Database, connection: Connection) -> dict[str, Any]:
    """The results of all queries of the page by name, for all there is and for one website."""
    results: dict[str, Any] = {}
    for file in sorted(QUERIES.glob("*.sql")):
        for website in (None, "utc"):
            for live in (False, True):
                results[file.stem] = database.run(
                    file,
                    connection,
                    from_day="0001-01-01",
                    to_day="9999-12-31",
                    before_day="0001-01-01",
                    last_day="9999-12-31",
                    first_item_day="0001-01-01",
                    last_item_day="9999-12-31",
                    tab="countries",
                    website=website,
                    live=live,
                    retention_days=90,
                    idle_minutes=30,
                )
    for website_id in ("utc", ""):
        query = "SELECT analytics_unique_visitors(%s, %s, %s) FROM analytics_anomalies()"
        for days in (("-infinity", "infinity"), ("0001-01-01", "9999-12-31"), ("4713-01-01 BC", "0044-03-15 BC")):
            connection.execute(query, [website_id, *days])
    return results


def run(database: Database, connection: Connection, file: str, **parameters: Any) -> list[str]:
    """Run a file until it does not ask for another time; return what it logs."""
    log: list[str] = []
    again: Any = {}
    while again is not None:
        [row] = database.run(file, connection, **parameters | again)
        log += (row["log"] or "").split("\n")
        again = row.get("again")
    return log


def cleanup(database: Database, connection: Connection) -> list[str]:
    """All steps of the cleanup; return what they log."""
    files = ("close_idle_sessions", "end_returned_sessions")
    parameters = {"idle_minutes": 30, "batch_size": 100, "done": 0}
    return [
        line
        for file in files
        for line in run(database, connection, f"cleanup_analytics_sessions/{file}.sql", **parameters)
    ]


def archive(steps: Retention) -> list[str]:
    """All steps of the retention; return what the first one logs. Nothing is left over."""
    steps.find()
    log = steps.log.split("\n")
    steps.aggregate(steps.seal())
    assert steps.seal() == []
    for kind in ("event", "session"):
        steps.delete(steps.plan(kind), kind)
        assert steps.left == 0
        if kind == "event":
            steps.list_sessions()
    assert steps.database.value("SELECT count(*) FROM analytics_purge_batch") == 0
    return log


def run_all_jobs(database: Database) -> list[str]:
    """Run all steps of all jobs, and all queries of the page before and after; return what they log. No alert stays open."""
    with retention(database) as steps:
        connection = steps.connection
        for job in ("aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"):
            run(database, connection, "watch/start_run.sql", job=job, run_id="test", timezone="UTC", ignored_events=[])
        look_at_the_page(database, connection)
        opened = open_alerts(database, connection)
        aggregate_due(database, connection)
        assert aggregate_due(database, connection) == []
        log = cleanup(database, connection) + archive(steps)
        result = {
            "rows_written": 0,
            "rows_deleted": 0,
            "batches": 0,
            "unsealed_days": 0,
            "target": None,
            "problem": None,
        }
        for job in ("aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"):
            database.run("watch/finish_run.sql", connection, job=job, run_id="test", outcome="success", **result)
        assert open_alerts(database, connection) == [], opened
        anomalies = look_at_the_page(database, connection)["anomalies"]
    return [*log, *(f"{row['website_id']}: {row['events']}" for row in anomalies)]
