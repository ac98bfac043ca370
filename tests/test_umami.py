"""umami.sql: the jobs work on Umami's tables, which its collector writes at the same time."""

import re
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import embedded
import plans
import umami_steps
from aggregation_steps import AGGREGATE, DUE, aggregate_due
from conftest import LOGIN, SQL, Database
from dag_runs import run_dag
from day_oracle import Event, count_day
from retention_steps import CUTOFF, DELETE_EVENTS, DELETE_SESSIONS, POLICY, SEAL, Retention, policy, sealed_days
from web_analytics import restore, schema
from web_analytics.settings import settings

DAY = timedelta(days=1)
SITE = uuid.UUID(int=1)
PARENTS = {
    "event_data": "website_event ON event_id = website_event_id",
    "revenue": "website_event USING (event_id)",
    "session_data": "session USING (session_id)",
    "website_event": "session USING (session_id)",
}


@pytest.fixture(scope="module")
def template(server: embedded.Server, template: str) -> str:
    """A database with Umami's tables, what umami.sql adds, and everything that the installer adds.

    The template of the other tests has made the jobs' role.
    """
    name = "template_umami"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        umami_steps.create(connection)
        umami_steps.prepare(connection)
    schema.install(server.dsn(name), "analytics,public")
    return name


@pytest.fixture
def umami(database: Database) -> Database:
    """2,000 events of two websites and ten days around CUTOFF."""
    umami_steps.traffic(database.connection, 2000, CUTOFF - 7 * DAY, 10, websites=2)
    database.connection.execute("ANALYZE")
    return database


def problems(database: Database) -> list[str]:
    rows = database.run("check_database.sql", version=schema.version(), timezone="UTC", ignored_events=[])
    return [row["problem"] for row in rows]


def rows(database: Database, table: str) -> int:
    count: int = database.value(f"SELECT count(*) FROM {table}")
    return count


def orphans(database: Database) -> dict[str, int]:
    """How many rows have lost what they belong to."""
    return {
        child: database.value(f"SELECT count(*) FROM {child} LEFT JOIN {parent} WHERE {parent.split()[0]} IS NULL")
        for child, parent in PARENTS.items()
    }


def test_once_more_changes_nothing_and_the_jobs_lack_nothing(database: Database) -> None:
    def indexes() -> list[dict[str, Any]]:
        return database.query(
            "SELECT relname, relfilenode, indisvalid FROM pg_index INNER JOIN pg_class ON oid = indexrelid"
            " WHERE relname LIKE 'umami%%' ORDER BY relname"
        )

    before = indexes()
    assert [index["indisvalid"] for index in before] == [True] * 4
    umami_steps.prepare(database.connection)
    assert indexes() == before
    assert problems(database) == []
    schema.install(database.dsn, "analytics,public")
    assert problems(database) == []
    # One whose building was stopped.
    database.connection.execute(
        "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'umami_event_id_idx'::regclass"
    )
    umami_steps.prepare(database.connection)
    assert [index["indisvalid"] for index in indexes()] == [True] * 4


def test_the_jobs_may_delete_through_the_views_and_touch_nothing_of_umami(umami: Database) -> None:
    with umami.connect(LOGIN) as connection:
        for table in ("website", *PARENTS, "session"):
            for statement in (f"SELECT FROM {table}", f"DELETE FROM {table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
        for statement in (
            "UPDATE analytics_event SET timestamp = now()",
            "INSERT INTO analytics_event (timestamp) VALUES (now())",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        assert connection.execute("DELETE FROM analytics_event").rowcount == 2000


def days(database: Database) -> dict[tuple[str, str], list[Event]]:
    """The events of each website and day, from Umami's tables, by what its documentation says of them."""
    found: dict[tuple[str, str], list[Event]] = {}
    for row in database.query("SELECT session.*, event.* FROM website_event AS event JOIN session USING (session_id)"):
        event = Event(
            event_type="pageview" if row["event_type"] == 1 else "custom_event",
            event_name={1: None, 5: "performance"}.get(row["event_type"], row["event_name"]),
            pathname=row["url_path"],
            referrer_source=None if row["referrer_domain"] == row["hostname"] else row["referrer_domain"],
            visitor_id=str(row["session_id"]),
            session_id=str(row["visit_id"]),
            country=row["country"],
            device_type=row["device"],
            browser=row["browser"],
            os=row["os"],
            utm_source=row["utm_source"],
            utm_medium=row["utm_medium"],
            utm_campaign=row["utm_campaign"],
            timestamp=row["created_at"],
            website_id=str(row["website_id"]),
            deleted_at=None,
        )
        found.setdefault((event.website_id, str(event.timestamp.astimezone(UTC).date())), []).append(event)
    return found


def stats(database: Database, table: str = "analytics_daily_stats") -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["website_id"], str(row["date"])): row for row in database.query(f"SELECT * FROM {table}")}


def test_days_are_counted_as_umami_counts_them(umami: Database) -> None:
    umami.connection.execute("INSERT INTO analytics_ignored_event VALUES ('performance')")
    expected = {day: count_day(events, {"performance"}) for day, events in days(umami).items()}
    assert len(expected) >= 20
    live = stats(umami, "analytics_traffic_daily")
    aggregate_due(umami)
    counted = stats(umami)
    assert {day: {name: counted[day][name] for name in row} for day, row in expected.items()} == expected
    assert counted.keys() == expected.keys() == live.keys()
    assert all(live[day]["top_devices"] == row["top_devices"] for day, row in counted.items())
    assert aggregate_due(umami) == []
    # A visit that has gone is noticed, as is one that comes late.
    umami.connection.execute("DELETE FROM website_event WHERE event_id = (SELECT event_id FROM website_event LIMIT 1)")
    assert len(aggregate_due(umami)) == 1


@pytest.fixture
def run(umami: Database, run: Retention) -> Retention:
    """The steps of a retention, with Umami's traffic."""
    return run


def test_what_belongs_to_expired_events_and_sessions_goes_with_them(umami: Database, run: Retention) -> None:
    before = days(umami)
    of_kept = {
        table: f"SELECT DISTINCT {table}.* FROM {table} JOIN website_event AS event ON {condition} ORDER BY 1"
        for table, condition in {
            "website_event": "event.event_id = website_event.event_id",
            "event_data": "event.event_id = website_event_id",
            "revenue": "event.event_id = revenue.event_id",
            "session": "event.session_id = session.session_id",
            "session_data": "event.session_id = session_data.session_id",
        }.items()
    }
    kept = {
        table: umami.query(query.replace(" ORDER", " WHERE event.created_at >= %s ORDER"), CUTOFF)
        for table, query in of_kept.items()
    }
    for table in PARENTS:
        assert rows(umami, table) > 20
    dry = run.find(dry_run=True)["events"], run.list_sessions(dry_run=True)
    deleted = run.archive(batch_size=100)
    assert (sum(deleted["event"]), sum(deleted["session"])) == dry
    assert dry == (2000 - len(kept["website_event"]), 200 - len(kept["session"]))
    assert run.left == 0
    assert {table: umami.query(query) for table, query in of_kept.items()} == kept
    assert orphans(umami) == dict.fromkeys(PARENTS, 0)
    assert all(kept.values())
    # The rows are sealed, and say what was there.
    expired = {day: count_day(events) for day, events in before.items() if day[1] < str(CUTOFF.date())}
    assert sealed_days(umami) == sorted(expired)
    counted = stats(umami)
    assert {day: {name: counted[day][name] for name in row} for day, row in expired.items()} == expired
    assert run.archive() == {"event": [], "session": []}


def test_what_a_hold_keeps_keeps_what_belongs_to_it(umami: Database, run: Retention) -> None:
    held = umami.value("SELECT min(website_id::text) FROM website")
    tables = ("website_event", "event_data", "revenue", "session", "session_data")

    def of_the_website() -> list[int]:
        return [rows(umami, f"{table} WHERE website_id = '{held}'") for table in tables]

    before = of_the_website()
    run.aggregate(run.seal())
    run.seal()
    policy(umami, "legal_hold = TRUE", held)  # after its events were listed
    run.delete(run.plan())
    run.list_sessions()
    run.delete(run.plan("session"), "session")
    assert of_the_website() == before
    assert orphans(umami) == dict.fromkeys(PARENTS, 0)
    assert rows(umami, "website_event") < 2000


def test_a_session_stays_as_long_as_an_event_of_it_does(umami: Database, run: Retention) -> None:
    assert run.list_sessions() == 0  # each has its events yet, however old they are
    # Nothing counts or deletes an event that has no time.
    timeless, late = umami.query("SELECT session_id FROM session WHERE created_at < %s LIMIT 2", CUTOFF - 2 * DAY)
    for session, time in ((timeless, None), (late, CUTOFF + DAY)):
        umami.connection.execute(
            "INSERT INTO website_event (event_id, website_id, session_id, visit_id, url_path, created_at)"
            " SELECT gen_random_uuid(), website_id, session_id, gen_random_uuid(), '/', %s FROM session"
            " WHERE session_id = %s",
            [time, session["session_id"]],
        )
    run.archive()
    assert orphans(umami) == dict.fromkeys(PARENTS, 0)
    left = {row["session_id"] for row in umami.query("SELECT session_id FROM session")}
    assert {timeless["session_id"], late["session_id"]} <= left


def test_a_session_that_comes_back_after_it_was_listed_stays(umami: Database, run: Retention) -> None:
    run.aggregate(run.seal())
    run.seal()
    run.delete(run.plan())
    listed = run.list_sessions()
    [batch] = run.batches(run.plan("session"))
    [back] = umami.query("SELECT session_id, website_id FROM session ORDER BY created_at LIMIT 1")
    collect(umami.connection, back["session_id"], back["website_id"])
    assert run.run("delete_session_batch", **batch) == {"rows": listed - 1, "left": 0}
    assert orphans(umami) == dict.fromkeys(PARENTS, 0)


def test_an_update_of_umami_may_change_its_columns_once_the_views_are_gone(umami: Database) -> None:
    change = b"ALTER TABLE website_event ALTER COLUMN url_path TYPE varchar(2048)"
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="used by a view"):
        umami.connection.execute(change)
    back = re.findall(r"^--   (DROP .*)$", (SQL / "umami.sql").read_text(), re.MULTILINE)
    for statement in (*back, change.decode()):
        umami.connection.execute(statement.encode())
    umami_steps.prepare(umami.connection)
    schema.install(umami.dsn, "analytics,public")
    assert problems(umami) == []


def test_umami_deletes_a_website_as_it_does_without_the_jobs(umami: Database) -> None:
    website = umami.value("SELECT min(website_id::text) FROM website")
    left = {table: rows(umami, f"{table} WHERE website_id <> '{website}'") for table in (*PARENTS, "session")}
    with umami.connection.transaction():
        for table in ("revenue", "event_data", "session_data", "website_event", "session"):
            umami.connection.execute(f"DELETE FROM {table} WHERE website_id = %s".encode(), [website])
    assert {table: rows(umami, table) for table in left} == left


WRITES = """
INSERT INTO session (session_id, website_id, browser, country) VALUES (%(session)s, %(website)s, 'chrome', 'NZ')
ON CONFLICT (session_id) DO NOTHING;

INSERT INTO website_event (event_id, website_id, session_id, visit_id, url_path, event_type, event_name)
VALUES (%(event)s, %(website)s, %(session)s, gen_random_uuid(), '/', 2, 'buy');

INSERT INTO event_data (event_data_id, website_id, website_event_id, data_key, string_value, data_type)
VALUES (gen_random_uuid(), %(website)s, %(event)s, 'size', 'L', 1);

INSERT INTO revenue (revenue_id, website_id, session_id, event_id, event_name, currency, revenue)
VALUES (gen_random_uuid(), %(website)s, %(session)s, %(event)s, 'buy', 'EUR', 1);

INSERT INTO session_data (session_data_id, website_id, session_id, data_key, string_value, data_type)
VALUES (gen_random_uuid(), %(website)s, %(session)s, 'plan', 'gold', 1)
ON CONFLICT (session_id, data_key) DO UPDATE SET string_value = excluded.string_value;

UPDATE session SET distinct_id = 'me' WHERE website_id = %(website)s AND session_id = %(session)s
"""
"""What the collector writes for an event of an identified visitor, each a transaction of its own."""


def collect(connection: psycopg.Connection[Any], session: uuid.UUID, website: uuid.UUID = SITE) -> uuid.UUID:
    """Write as the collector does; return the event's id."""
    event = uuid.uuid4()
    for statement in WRITES.split(";"):
        connection.execute(statement.encode(), {"session": session, "website": website, "event": event})
    return event


@pytest.fixture
def collector(umami: Database) -> Iterator[list[uuid.UUID]]:
    """The events that the collector has stored, which goes on without ever waiting for 100 ms for a lock."""
    stored: list[uuid.UUID] = []
    errors: list[Exception] = []
    stop = threading.Event()
    # Those of visitors who are new, and of some whose old events expire.
    known = umami.query("SELECT session_id AS session, website_id AS website FROM session ORDER BY created_at LIMIT 50")

    def write() -> None:
        try:
            with umami.connect(options="-c search_path=public -c lock_timeout=100ms") as connection:
                while not stop.is_set():
                    visitor = known[len(stored) // 2 % 50] if len(stored) % 2 else {"session": uuid.uuid4()}
                    stored.append(collect(connection, **visitor))
        except Exception as error:  # noqa: BLE001 - the test raises it
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    umami.wait_until("SELECT count(*) >= 2100 FROM website_event")
    yield stored
    stop.set()
    thread.join()
    assert errors == []


def test_the_collector_writes_on_and_loses_nothing(umami: Database, run: Retention, collector: list[uuid.UUID]) -> None:
    already = len(collector)
    deleted = run.archive(batch_size=50)
    assert sum(deleted["event"]) > 1000
    assert len(collector) > already
    stored = {row["event_id"] for row in umami.query("SELECT event_id FROM website_event")}
    assert set(collector[:already]) <= stored
    assert orphans(umami) == dict.fromkeys(PARENTS, 0)


def test_the_file_waits_for_a_long_transaction_for_half_a_second_and_then_nobody_waits(umami: Database) -> None:
    umami.connection.execute("SET statement_timeout = '5s'")
    with umami.connect() as long, long.transaction():
        collect(long, uuid.uuid4())
        with pytest.raises(psycopg.errors.LockNotAvailable):
            umami_steps.prepare(umami.connection)
        umami.connection.execute("RESET lock_timeout")
        with umami.connect(options="-c lock_timeout=50ms") as other:
            collect(other, uuid.uuid4())
    umami_steps.prepare(umami.connection)


WEBSITE = r"(Index Scan using umami_event_website_idx on|Bitmap Heap Scan on) website_event"
NEEDED = {
    plans.CLOSE: [],
    plans.RETURNED: [],
    DUE: ["Index Only Scan using umami_event_website_idx on website_event"],
    AGGREGATE: [
        (
            r"CTE grouped\n +->  HashAggregate .*\n( +Hash Key: .*\n){5} +->  Nested Loop .*\n( +Disabled: .*\n)*"
            rf" +->  CTE Scan on day .*\n +->  {WEBSITE}"
        )
    ],
    SEAL: [rf"CTE raw\n +->  Nested Loop .*\n +->  CTE Scan on day .*\n +->  {WEBSITE}"],
    DELETE_EVENTS: [
        r"Delete on website_event(.*\n){1,20}?.*Index Scan (using|on) umami_event_id_idx",
        "Index Scan using event_data_website_event_id_idx on event_data",
    ],
    DELETE_SESSIONS: [
        r"Delete on session(.*\n){1,14}?.*Index Scan (using|on) umami_session_id_idx",
        "Index Scan using umami_event_visit_idx on website_event",
    ],
}


def test_statements_find_their_rows_through_indexes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    umami_steps.traffic(database.connection, 30_000, CUTOFF - 20 * DAY, 10, websites=20)
    database.connection.execute("VACUUM (ANALYZE)")
    monkeypatch.setattr(plans, "NEEDED", NEEDED)
    monkeypatch.setitem(plans.UNWANTED, "reads a whole table", r"Seq Scan on (website_event|session|event_data)\b.*")
    wrong = plans.run(database.connection, DUE)[0]
    wrong += plans.run(database.connection, AGGREGATE, days=["2024-02-15"], label="", recount=False)[0]
    aggregate_due(database)
    retention = Retention(database.connection, database)
    [step] = retention.find()["steps"]
    wrong += plans.run(database.connection, SEAL, **POLICY | step)[0]
    first, *others = retention.batches(retention.plan())
    wrong += plans.run(database.connection, DELETE_EVENTS, **first)[0]
    for batch in others:
        retention.run("delete_event_batch", **batch)
    retention.list_sessions()
    wrong += plans.run(database.connection, DELETE_SESSIONS, **retention.batches(retention.plan("session"))[0])[0]
    # The cleanup has nothing to look for.
    for file in (plans.CLOSE, plans.RETURNED):
        plan = plans.run(database.connection, file, idle_minutes=30, batch_size=1000, done=0)[1]
        assert re.search(r"LockRows .*\n(.*\n){0,4}? +One-Time Filter: false", plan), plan
    assert wrong == []


@pytest.mark.usefixtures("airflow_metadata")
def test_the_three_jobs_run_in_airflow(
    database: Database,
    midnight: datetime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    umami_steps.traffic(database.connection, 3000, midnight - 3 * DAY, 5, websites=2)
    kept = rows(database, f"website_event WHERE created_at >= '{midnight}'")
    sessions = database.query("SELECT *, ctid::text FROM session ORDER BY session_id")
    for job in ("aggregate_daily_analytics", "cleanup_analytics_sessions"):
        assert run_dag(job, capsys).state == "success"
    assert database.query("SELECT *, ctid::text FROM session ORDER BY session_id") == sessions
    assert stats(database).keys() == days(database).keys()
    refused = run_dag("archive_old_analytics", capsys, conf={"confirm": False})
    assert (refused.state, rows(database, "website_event")) == ("failed", 3000)
    website, *_ = before = database.query("SELECT * FROM analytics_event WHERE timestamp < %s ORDER BY id", midnight)
    monkeypatch.setattr(settings, "archive_uri", f"file://{tmp_path}")
    archived = run_dag("archive_old_analytics", capsys)
    assert archived.state == "success"
    assert f"Archived {3000 - kept:,} old event(s)" in archived.log
    assert rows(database, "website_event") == kept
    assert orphans(database) == dict.fromkeys(PARENTS, 0)
    # What has gone comes back, into a table of its own, with the columns of the view.
    assert restore.main([database.dsn, "--website", website["website_id"], "--into", "back"]) == 0
    of_the_website = [row for row in before if row["website_id"] == website["website_id"]]
    assert database.query("SELECT * FROM back ORDER BY id") == of_the_website
