"""Whatever row the tables can store: every other row and website is processed in the same run, the odd one as far as it has
a meaning, else it is named and left, and no alert stays open because of it."""

import hashlib
import math
import secrets
from datetime import datetime
from typing import Any

import pytest

from aggregation_steps import aggregate_days, aggregate_due, find
from alert_steps import find_alerts
from conftest import Database
from dag_runs import run_dag
from poison_rows import (
    ANOMALY,
    DAY,
    FUTURE,
    HOUR,
    STRINGS,
    TIMES,
    ZONES,
    archive,
    assert_ordinary,
    cleanup,
    open_alerts,
    ordinary,
    run_all_jobs,
    session_time,
    sessions,
    set_zones,
)
from retention_steps import CUTOFF, NOW, retention
from web_analytics.postgres import printable
from web_analytics.watch import alert_message

OLD = CUTOFF - 2 * DAY
"""An expired day that has no ordinary rows."""
NEW = CUTOFF + 2 * DAY


def days_of(database: Database, website_id: str, *but: Any) -> list[tuple[str, int, bool]]:
    """The rows of a website: day, events, and whether it is sealed."""
    rows = database.query(
        "SELECT date::text, total_events, sealed_at IS NOT NULL FROM analytics_daily_stats"
        " WHERE website_id = %s AND NOT date = ANY(%s) ORDER BY date",
        website_id,
        [str((NOW - age * DAY).date()) for age in (100, 99, 10, 2)],
    )
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("timestamp", TIMES)
def test_an_event_at_any_time(database: Database, timestamp: str) -> None:
    set_zones(database)
    ordinary(database, *ZONES)
    for website_id in ZONES:
        database.event(timestamp, website_id, id=f"odd {website_id}")
        database.event(timestamp, website_id, id=f"odd and soft-deleted {website_id}", deleted_at=NOW)
    log = run_all_jobs(database)
    assert_ordinary(database, *ZONES)
    left = {row["id"] for row in database.query("SELECT id FROM analytics_event WHERE id LIKE 'odd%%'")}
    for website_id, day in zip(ZONES, TIMES[timestamp], strict=True):
        is_counted = day not in (ANOMALY, FUTURE)
        assert days_of(database, website_id) == ([(day, 1, True)] if is_counted else [])
        names = set() if is_counted else {f"odd {website_id}", f"odd and soft-deleted {website_id}"}
        assert {name for name in left if name.endswith(website_id)} == names
        said = f"Website {website_id}: 1 event(s) have a time that no calendar has; they are left"
        assert ((f"[Analytics Archive] {said}" in log), (f"{website_id}: 1" in log)) == (day == ANOMALY,) * 2


def test_events_at_all_times_in_one_run(database: Database) -> None:
    set_zones(database)
    ordinary(database, *ZONES)
    for website_id in ZONES:
        for timestamp in TIMES:
            for _ in range(2):
                database.event(timestamp, website_id, session_id=f"odd {timestamp}")
    for timestamp in TIMES:
        last: Any = timestamp
        database.session(last, last, session_id=f"odd {timestamp}", ended_at=last)
    run_all_jobs(database)
    assert_ordinary(database, *ZONES)
    for number, website_id in enumerate(ZONES):
        days = [days[number] for days in TIMES.values()]
        counted = {day: 2 * days.count(day) for day in days if day not in (ANOMALY, FUTURE)}
        assert days_of(database, website_id) == [(day, events, True) for day, events in sorted(counted.items())]
    # A session goes with its last event, and stays with one that nothing can count.
    left = {row["session_id"] for row in database.query("SELECT session_id FROM analytics_session")}
    gone = {timestamp for timestamp, days in TIMES.items() if not {*days} & {ANOMALY, FUTURE}}
    assert {f"odd {timestamp}" for timestamp in TIMES} - left == {f"odd {timestamp}" for timestamp in gone}


@pytest.mark.parametrize("zone", ["-infinity", "0001-01-01", "1900-01-01", "9999-12-31", "infinity"])
def test_a_time_zone_from_any_day_on(database: Database, zone: str) -> None:
    for website_id, timezone in ZONES.items():
        database.connection.execute("INSERT INTO analytics_timezone VALUES (%s, %s, %s)", [website_id, zone, timezone])
    ordinary(database, *ZONES)
    for website_id in ZONES:
        for timestamp in TIMES:
            database.event(timestamp, website_id)
    run_all_jobs(database)
    assert_ordinary(database, *ZONES)


def test_no_name_begins_a_line_of_a_log(database: Database) -> None:
    name = "a\n[Forged] ✅ line"
    ordinary(database, name)
    database.event("infinity", name)
    database.connection.execute("INSERT INTO analytics_website_policy VALUES (%s, NULL, TRUE)", [f"{name} held"])
    with retention(database) as steps:
        connection = steps.connection
        logs = [aggregate_days(connection, *find(database, connection))[0]["log"]]
        logs += cleanup(database, connection) + archive(steps)
    log = "\n".join(logs)
    for said in (
        r"Aggregated 3 events for website a\n[Forged]",
        r"Expired of a\n[Forged] ✅ line: 6 event(s)",
        r"legal hold on the raw data of a\n[Forged] ✅ line held",
        r"Website a\n[Forged] ✅ line: 1 event(s) have a time",
        r"Closed session a\n[Forged] ✅ line idle",
        r"Closed session a\n[Forged] ✅ line returned",
    ):
        assert said in log
    assert "\n[Forged]" not in log


def test_events_that_nothing_counts_hide_no_alert(database: Database) -> None:
    set_zones(database)
    for website_id in ZONES:
        for timestamp, days in TIMES.items():
            if {*days} <= {ANOMALY, FUTURE}:
                database.event(timestamp, website_id)
    with retention(database) as steps:
        assert open_alerts(database, steps.connection) == []
        for website_id in ZONES:
            database.event(OLD - 10 * DAY, website_id)
        behind = [("aggregation_behind", website_id) for website_id in sorted(ZONES)]
        assert open_alerts(database, steps.connection) == [*behind, ("retention_backlog", "")]
        database.connection.execute("DELETE FROM analytics_event WHERE timestamp = %s", [OLD - 10 * DAY])
        for website_id in ZONES:
            for age in range(2, 14):
                for _ in range(20):
                    database.event(NOW - age * DAY, website_id)
        aggregate_due(database, steps.connection)
        assert open_alerts(database, steps.connection) == [
            ("traffic_missing", website_id) for website_id in sorted(ZONES)
        ]


def seconds(database: Database, name: str) -> float:
    """A time of a session as a number."""
    number: float = database.value("SELECT extract(EPOCH FROM %s::timestamptz)::float8", session_time(name, NOW))
    return number


def test_sessions_of_all_times(database: Database) -> None:
    rows = sessions(database, NOW)
    value = {name: seconds(database, name) for _, name, _, _ in rows}
    expected = {}
    for name, start, last, end in rows:
        is_idle = value[last] < NOW.timestamp() - 1800
        ends = is_idle and (end is None or value[end] < value[last])
        duration = 0 if value[last] <= value[start] else min(value[last] - value[start], 2**31 - 1)
        expected[name] = (value[last], math.floor(duration)) if ends else (None if end is None else value[end], None)
    with retention(database) as steps:
        log = cleanup(database, steps.connection)
        found = database.query(
            "SELECT id, extract(EPOCH FROM ended_at)::float8 AS ended_at, duration_seconds FROM analytics_session"
            " WHERE id LIKE 'odd%%'"
        )
        assert {row["id"]: (row["ended_at"], row["duration_seconds"]) for row in found} == expected
        assert len([line for line in log if "Closed session odd" in line]) == len(
            [name for name, (_, duration) in expected.items() if duration is not None]
        )
        assert cleanup(database, steps.connection)[1:3] == [
            "[Analytics Cleanup] No stale sessions",
            "[Analytics Cleanup] No closed session had come back",
        ]
        archive(steps)
        gone = {name for name, _, last, _ in rows if value[last] < CUTOFF.timestamp()}
        left = {row["id"] for row in database.query("SELECT id FROM analytics_session WHERE id LIKE 'odd%%'")}
        assert left == {name for name, *_ in rows} - gone
        assert len(gone) == 300


def test_all_jobs_over_sessions_of_all_times(database: Database) -> None:
    ordinary(database, "site", "other")
    sessions(database, NOW)
    run_all_jobs(database)
    assert_ordinary(database, "site", "other")
    assert database.value("SELECT bool_and(duration_seconds >= 0) FROM analytics_session WHERE ended_at IS NOT NULL")


def put(database: Database, column: str, strings: list[str]) -> None:
    """For each text an event and a session of an expired day that have it, and where it may be there twice, an event of a
    day that is kept and an idle session."""
    for number, text in enumerate(strings):
        for day, last in ((OLD, OLD + HOUR), (NEW, NOW - HOUR)):
            if day == OLD or column not in ("id", "session_id"):
                own = {"website_id": "odd", "visitor_id": str(number), "session_id": f"{column} {number} {day}"}
                database.event(day + HOUR, **own | {column: text})
                database.session(day, last, **own | {"entry_page" if column == "pathname" else column: text})


COLUMNS = ["id", "website_id", "visitor_id", "session_id", "pathname", "referrer_source"]


@pytest.mark.parametrize("column", COLUMNS)
def test_any_text_in_any_column_that_is_read(database: Database, column: str) -> None:
    ordinary(database, "site", "other")
    put(database, column, STRINGS)
    run_all_jobs(database)
    assert_ordinary(database, "site", "other")
    days = [(OLD.date(), True)] if column in ("id", "session_id") else [(OLD.date(), True), (NEW.date(), False)]
    if column == "website_id":
        for text in STRINGS:
            assert days_of(database, text) == [(str(day), 1, is_sealed) for day, is_sealed in days]
    else:
        rows = database.query("SELECT * FROM analytics_daily_stats WHERE website_id = 'odd' ORDER BY date")
        assert [(row["date"], row["sealed_at"] is not None) for row in rows] == days
        for row in rows:
            assert row["total_events"] == row["unique_visitors"] == row["unique_sessions"] == len(STRINGS)
            in_order = [{"item": text, "count": 1} for text in sorted(STRINGS, key=str.encode)]
            pages = in_order[:10] if column == "pathname" else [{"item": "/", "count": len(STRINGS)}]
            assert row["top_pages"] == pages
            assert row["top_referrers"] == (in_order[1:11] if column == "referrer_source" else [])
    left = "SELECT count(*) FROM analytics_event WHERE timestamp < %s"
    assert database.value(left, CUTOFF) == 0
    assert database.value("SELECT count(*) FROM analytics_session WHERE last_activity_at < %s", CUTOFF) == 0
    idle = "SELECT count(*) FROM analytics_session WHERE ended_at IS NULL AND last_activity_at < %s"
    assert database.value(idle, NOW - HOUR / 2) == 0


def test_any_text_and_any_time_in_columns_that_are_not_counted(database: Database) -> None:
    ordinary(database, "site")
    texts = ["event_name", "referrer", "user_agent", "browser", "os", "country", "utm_source", "query_string"]
    for number, text in enumerate([*STRINGS, "y" * 3_000_000]):
        database.event(OLD, "odd", id=str(number), visitor_id=str(number), **dict.fromkeys(texts, text))
    for number, json in enumerate(["null", "[]", "{}", '""', "1e300", '{"": {"": [[[[]]]]}}', '"\\ud83e\\udd86"']):
        database.event(OLD, "odd", id=f"json {number}", visitor_id=json, metadata=json)
    moments = ["-infinity", "0044-03-15 BC", "0001-01-01Z", "9999-12-31Z", "294276-12-31Z", "infinity"]
    for number, moment in enumerate(moments):
        for day in (OLD, NEW):
            name = f"time {number} {day}"
            columns = {"created_at": moment, "updated_at": moments[-1 - number]}
            database.event(day, "odd", id=name, visitor_id=moment, session_id=name, **columns)
            database.event(day, "odd", id=f"deleted {name}", session_id=name, **columns | {"deleted_at": moment})
            database.session(day, day, id=name, session_id=name, **columns)
            database.session(day, day, id=f"deleted {name}", **columns | {"deleted_at": moment})
    run_all_jobs(database)
    assert_ordinary(database, "site")
    events = len(STRINGS) + 1 + 7 + len(moments)
    assert days_of(database, "odd") == [(str(OLD.date()), events, True), (str(NEW.date()), len(moments), False)]
    for table, time in (("event", "timestamp"), ("session", "last_activity_at")):
        assert database.value(f"SELECT count(*) FROM analytics_{table} WHERE {time} < %s", CUTOFF) == 0


def alerts_about(database: Database, *website_ids: str) -> list[dict[str, Any]]:
    """The alerts that are due about websites."""
    for website_id in website_ids:
        database.event(OLD, website_id, id=website_id[:2], pathname="")
    alerts = find_alerts(database, retention_days=36500)
    assert [alert["subject"] for alert in alerts] == [
        name if len(name) <= 500 else name[:468] + hashlib.md5(name.encode()).hexdigest()
        for name in sorted(website_ids)
    ]
    return alerts


@pytest.mark.parametrize("website_id", STRINGS, ids=range(len(STRINGS)))
def test_an_alert_about_a_website_of_any_name_can_be_sent(database: Database, website_id: str) -> None:
    title, text = alert_message(alerts_about(database, website_id))
    assert printable(website_id) in text
    assert len(text.splitlines()) == len(title.splitlines()) == 1


def test_an_alert_about_a_website_with_the_longest_name_that_an_index_holds(database: Database) -> None:
    assert alerts_about(database, secrets.token_hex(1337), "z")


@pytest.mark.parametrize("timestamp", ["-infinity", "0044-03-15 BC"])
def test_an_anomaly_does_not_make_a_correction_of_what_another_retention_deletes(
    database: Database, timestamp: str
) -> None:
    database.event(timestamp)
    for day in (OLD, NEW):
        database.event(day)
    aggregate_due(database)
    database.connection.execute("DELETE FROM analytics_event WHERE timestamp = %s", [OLD])
    aggregate_due(database)
    assert days_of(database, "site") == [(str(OLD.date()), 1, False), (str(NEW.date()), 1, False)]


@pytest.mark.usefixtures("airflow_metadata")
def test_a_real_run_of_each_job_over_all_of_it(
    database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    set_zones(database)
    names = [*ZONES, "site"]
    ordinary(database, *names, now=now)
    for website_id in ZONES:
        for timestamp in TIMES:
            database.event(timestamp, website_id, session_id="odd")
            database.event(timestamp, website_id, session_id="odd", deleted_at=timestamp)
    sessions(database, now)
    for column in COLUMNS:
        put(database, column, STRINGS)
    for dag_id in ("cleanup_analytics_sessions", "aggregate_daily_analytics", "archive_old_analytics"):
        run = run_dag(dag_id, capsys)
        assert (run.state, [task for task, states in run.tasks.items() if "failed" in states]) == ("success", [])
    assert_ordinary(database, *names, now=now)
    for number, website_id in enumerate(ZONES):
        anomalies = [days[number] for days in TIMES.values()].count(ANOMALY)
        assert f"Website {website_id}: {anomalies} event(s) have a time that no calendar has; they are left" in run.log
    assert database.value("SELECT count(*) FROM analytics_purge_batch") == 0
    assert open_alerts(database) == []
    assert database.value("SELECT bool_and(duration_seconds >= 0) FROM analytics_session WHERE ended_at < 'infinity'")
