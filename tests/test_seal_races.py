"""What happens while a day is sealed, and what comes for it later."""

from typing import Any, NamedTuple

import psycopg
import pytest

from aggregation_steps import AGGREGATE, aggregate
from alert_steps import find_alerts
from conftest import LOGIN, Database
from retention_steps import (
    CUTOFF,
    DAY,
    DELETE_EVENTS,
    DELETE_SESSIONS,
    HOUR,
    POLICY,
    SEAL,
    Retention,
    ids,
    late,
    listed,
    policy,
    sealed_days,
    stats,
)

OLD = CUTOFF - DAY
NAME = ("site", "2024-02-29")
START = {"job": POLICY["job"], "run_id": POLICY["run_id"], "timezone": "UTC", "ignored_events": []}
STEP = POLICY | {"first_day": "2024-02-29", "last_day": "2024-02-29"}
ONE_DAY = {"days": ["2024-02-29"], "label": "2024-02-29", "recount": False}
REPEATABLE_READ = "repeatable read"
LATE = """
    INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
    VALUES ('late', 'site', '/', 'v', 's', '2024-02-29T12:00Z')
"""


@pytest.fixture
def counted(database: Database) -> Database:
    """Two counted events of an expired day."""
    for n in range(2):
        database.event(OLD + n * HOUR, id=str(n))
    aggregate(database, "2024-02-29")
    return database


def everything(database: Database) -> tuple[Any, ...]:
    """The statistics and the list."""
    return stats(database), database.query("SELECT * FROM analytics_purge_batch ORDER BY number")


class TestAtTheSameMoment:
    def test_of_two_seals_the_second_leaves_the_day_to_the_first(self, counted: Database, run: Retention) -> None:
        with run.connection.transaction():
            assert run.seal() == []
            second = run.start(SEAL, **STEP)
        once = everything(counted)
        # It is looked at again, when it is sealed.
        assert second.result(timeout=10)[0]["result"]["days"] == ["2024-02-29"]
        assert run.seal() == []
        assert everything(counted) == once
        assert listed(counted) == {"event": 2}

    def test_of_two_that_find_late_events_one_counts_them(self, counted: Database, run: Retention) -> None:
        run.archive()
        counted.event(OLD)
        with run.connection.transaction():
            run.seal()
            counted.event(OLD)
            second = run.start(SEAL, **STEP)
        assert second.result(timeout=10)[0]["result"] is None
        assert (late(counted), listed(counted)) == ({NAME: 1}, {"event": 1})
        run.seal()
        assert (late(counted), listed(counted)) == ({NAME: 2}, {"event": 2})

    @pytest.mark.parametrize(
        ("change", "back"),
        [
            (LATE, "DELETE FROM analytics_event WHERE id = 'late'"),
            (
                "UPDATE analytics_event SET id = 'other' WHERE id = '1'",
                "UPDATE analytics_event SET id = '1' WHERE id = 'other'",
            ),
        ],
        ids=["one more", "another one"],
    )
    def test_a_seal_that_waits_for_an_aggregation_leaves_the_day(
        self, counted: Database, run: Retention, change: str, back: str
    ) -> None:
        counted.connection.execute(change.encode())
        with counted.connect(LOGIN) as aggregation, aggregation.transaction():
            counted.run(AGGREGATE, aggregation, **ONE_DAY)
            counted.connection.execute(back.encode())
            # Its snapshot shows the events, and the row that counts just them.
            seal = run.start(SEAL, **STEP)
        assert seal.result(timeout=10)[0]["result"]["days"] == ["2024-02-29"]
        assert (sealed_days(counted), listed(counted)) == ([], {})

    @pytest.mark.parametrize("isolation", [REPEATABLE_READ, "read committed"])
    def test_an_aggregation_that_was_slower_than_the_seal_changes_nothing(
        self, counted: Database, run: Retention, isolation: str
    ) -> None:
        counted.event(OLD, id="late", deleted_at=CUTOFF)
        with counted.gate("analytics_event"):
            slow = run.start(AGGREGATE, isolation, **ONE_DAY)
            # Its snapshot shows the row not sealed, and another number of soft-deleted events than the row.
            counted.run(SEAL, counted.connection, **STEP)
            sealed = everything(counted)
        if isolation == REPEATABLE_READ:
            with pytest.raises(psycopg.errors.SerializationFailure):
                slow.result(timeout=10)
        else:
            slow.result(timeout=10)
        assert sealed_days(counted) == [NAME]
        assert everything(counted) == sealed

    def test_an_event_that_comes_while_the_seal_reads_is_late(self, counted: Database, run: Retention) -> None:
        with counted.gate("analytics_event"):
            seal = run.start(SEAL, **STEP)
            counted.event(OLD, id="late")
        assert seal.result(timeout=10)[0]["result"] is None
        assert (run.delete(run.plan()), ids(counted)) == ([2], {"late"})
        assert run.archive()["event"] == [1]
        assert late(counted) == {NAME: 1}

    def test_an_event_that_was_inserted_before_the_seal_and_committed_after_it_is_late(
        self, counted: Database, run: Retention
    ) -> None:
        with counted.connect() as application:
            with application.transaction(), application.transaction():
                application.execute(LATE.encode())
                run.seal()
                tasks = run.plan()
            assert (run.delete(tasks), ids(counted)) == ([2], {"late"})
        assert run.archive()["event"] == [1]
        assert late(counted) == {NAME: 1}

    def test_a_hold_that_comes_while_the_seal_reads_is_asked_for_before_the_deletion(
        self, counted: Database, run: Retention
    ) -> None:
        with counted.gate("analytics_event"):
            seal = run.start(SEAL, **STEP)
            policy(counted, "legal_hold = TRUE")
        seal.result(timeout=10)
        assert run.delete(run.plan()) == [0]

    def test_a_zone_that_comes_while_the_seal_waits_is_not_overlooked(self, counted: Database, run: Retention) -> None:
        with counted.connect() as operator, operator.transaction():
            operator.execute("INSERT INTO analytics_timezone VALUES ('site', '2024-02-01', 'America/New_York')")
            seal = run.start(SEAL, **STEP)
        seal.result(timeout=10)
        assert sealed_days(counted) == []

    def test_a_zone_that_comes_after_the_seal_is_refused(self, counted: Database, run: Retention) -> None:
        zone = "INSERT INTO analytics_timezone VALUES ('site', '2024-02-01', 'America/New_York')"
        with counted.connect() as operator:
            operator.execute("SET lock_timeout = '100ms'")
            with run.connection.transaction():
                run.seal()
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    operator.execute(zone.encode())
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="the day 2024-02-29 of website site"):
                operator.execute(zone.encode())
        assert counted.query("SELECT * FROM analytics_timezone") == []


class Change(NamedTuple):
    """What the application does to a row, and what must come of it and of the two rows beside it."""

    statement: str
    deleted: int
    stays: str = ""
    listed: int = 0


EVENT = "UPDATE analytics_event SET {} WHERE id = '0'"
EVENTS = {
    "edited": Change(EVENT.format("pathname = '/new', updated_at = now()"), 3),
    "soft-deleted": Change(EVENT.format("deleted_at = now()"), 3),
    "deleted": Change("DELETE FROM analytics_event WHERE id = '0'", 2),
    "moved past the cutoff": Change(EVENT.format(f"timestamp = '{CUTOFF}'"), 2, "0"),
    "moved to a website": Change(EVENT.format("website_id = 'other'"), 3),
    "moved to a held website": Change(EVENT.format("website_id = 'held'"), 2, "0", 1),
    "restored": Change("UPDATE analytics_event SET deleted_at = NULL WHERE id = 'soft'", 2, "soft"),
}
SESSION = "UPDATE analytics_session SET {} WHERE id = '0'"
SESSIONS = {
    "back": Change(SESSION.format("last_activity_at = now()"), 2, "0"),
    "moved to a website": Change(SESSION.format("website_id = 'other'"), 3),
    "moved to a held website": Change(SESSION.format("website_id = 'held'"), 2, "0"),
    "deleted": Change("DELETE FROM analytics_session WHERE id = '0'", 2),
}


class TestWhileABatchWaits:
    """The application has changed a row and not committed yet when a batch wants to delete it: nothing is left over."""

    def delete(self, run: Retention, file: str, statement: str) -> int:
        policy(run.database, "legal_hold = TRUE", "held")
        [task] = run.plan("session" if file == DELETE_SESSIONS else "event")
        step = task | task["steps"][0]
        with run.database.connect() as application, application.transaction():
            application.execute(statement.encode())
            batch = run.start(file, **step)
        [first] = batch.result(timeout=10)
        result = first["result"]
        if first["again"]:
            [second] = run.database.run(file, run.connection, **step | first["again"])
            result = {name: result[name] + second["result"][name] for name in result}
        assert result["left"] == 0
        rows: int = result["rows"]
        return rows

    @pytest.mark.parametrize("change", EVENTS.values(), ids=EVENTS)
    def test_an_event_is_changed(self, counted: Database, run: Retention, change: Change) -> None:
        counted.event(OLD, id="soft", deleted_at=CUTOFF)
        run.seal()
        assert self.delete(run, DELETE_EVENTS, change.statement) == change.deleted
        assert ids(counted) == ({change.stays} if change.stays else set())
        assert sum(listed(counted).values()) == change.listed
        if change.stays == "soft":
            run.archive()
            assert (ids(counted), late(counted)) == (set(), {NAME: 1})

    @pytest.mark.parametrize("change", SESSIONS.values(), ids=SESSIONS)
    def test_a_session_is_changed(self, database: Database, run: Retention, change: Change) -> None:
        for n in range(3):
            database.session(OLD, OLD, id=str(n))
        run.list_sessions()
        assert self.delete(run, DELETE_SESSIONS, change.statement) == change.deleted
        assert ids(database, "session") == ({change.stays} if change.stays else set())
        assert listed(database) == {}


class TestLateEvents:
    def test_6000_imported_events_of_sealed_days_are_counted_and_reported(
        self, counted: Database, run: Retention
    ) -> None:
        counted.event(OLD - DAY, event_type="custom_event")
        aggregate(counted, "2024-02-28")
        run.archive()
        before = stats(counted)
        counted.run("watch/start_run.sql", run.connection, **START)
        counted.connection.execute(
            """
            INSERT INTO analytics_event (id, website_id, event_type, pathname, visitor_id, session_id, timestamp)
            SELECT
                'imported ' || i, 'site', CASE WHEN i % 3 = 0 THEN 'custom_event' ELSE 'pageview' END, '/', i, i,
                '2024-02-28Z'::timestamptz + i * INTERVAL '28 seconds'
            FROM generate_series(1, 6000) AS i
            """
        )
        assert run.archive()["event"] == [1000] * 6
        assert (ids(counted), listed(counted)) == (set(), {})
        assert late(counted) == {("site", "2024-02-28"): 3085, NAME: 2915}
        rows = stats(counted)
        assert [(row["late_pageviews"], row["late_custom_events"]) for row in rows] == [(2057, 1028), (1943, 972)]
        # Nothing else of the rows has changed.
        changed = ("late_pageviews", "late_custom_events", "ctid", "xmin")
        assert rows == [
            old | {column: row[column] for column in changed} for old, row in zip(before, rows, strict=True)
        ]
        assert counted.value("SELECT late_events FROM analytics_job_run") == 6000
        alerts = find_alerts(counted, run.connection)
        assert [alert["message"] for alert in alerts if alert["condition"] == "late_events"] == [
            (
                "6000 event(s) came for days that were sealed already; they are counted as late, without their visitors "
                "and pages; look whether old events were imported, or whether a client sends them months later."
            )
        ]

    def test_what_readers_see_has_them(self, counted: Database, run: Retention) -> None:
        run.archive()
        counted.event(OLD)
        for _ in range(2):
            counted.event(OLD, event_type="custom_event")
        run.archive()
        query = (
            "SELECT total_pageviews, total_custom_events, total_events, unique_visitors FROM analytics_traffic_daily"
        )
        assert counted.query(query) == [
            {"total_pageviews": 3, "total_custom_events": 2, "total_events": 5, "unique_visitors": 1}
        ]

    def test_they_are_named_and_counted_once_however_often_the_step_is_run(
        self, counted: Database, run: Retention
    ) -> None:
        run.archive()
        counted.run("watch/start_run.sql", run.connection, **START)
        counted.event(OLD)
        run.seal()
        assert run.log.splitlines()[0] == (
            "[Analytics Archive] site 2024-02-29 (1 event(s) came after its stats were sealed and are counted as late)"
        )
        once = everything(counted)
        # As after a lost connection.
        run.seal()
        assert everything(counted) == once
        counted.event(OLD)
        run.seal()
        assert (late(counted), listed(counted)) == ({NAME: 2}, {"event": 2})
        assert counted.value("SELECT late_events FROM analytics_job_run") == 2

    def test_soft_deleted_ones_go_without_being_counted(self, counted: Database, run: Retention) -> None:
        run.archive()
        counted.event(OLD, deleted_at=CUTOFF)
        sealed = counted.query("SELECT * FROM analytics_daily_stats")
        assert run.archive()["event"] == [1]
        assert counted.query("SELECT * FROM analytics_daily_stats") == sealed

    def test_what_a_failed_run_left_is_not_called_late(self, counted: Database, run: Retention) -> None:
        run.seal(batch_size=1)
        run.delete(run.plan()[:1])
        sealed = stats(counted)
        assert run.archive()["event"] == [1]
        assert (stats(counted), ids(counted)) == (sealed, set())

    def test_one_that_comes_for_a_day_without_a_row_is_counted_like_any_other(
        self, database: Database, run: Retention
    ) -> None:
        database.event(OLD, deleted_at=CUTOFF)
        run.seal()
        database.event(OLD, id="late")
        assert run.delete(run.plan()) == [1]
        assert run.archive()["event"] == [1]
        assert [(row["total_events"], row["late_pageviews"]) for row in stats(database)] == [(1, 0)]

    def test_of_a_held_website_they_are_counted_when_the_hold_ends(self, counted: Database, run: Retention) -> None:
        run.archive()
        policy(counted, "legal_hold = TRUE")
        counted.event(OLD)
        assert run.archive()["event"] == []
        assert late(counted) == {}
        policy(counted, "legal_hold = FALSE")
        assert run.archive()["event"] == [1]
        assert late(counted) == {NAME: 1}
