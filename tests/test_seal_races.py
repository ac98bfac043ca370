"""What happens while a day is sealed, and what comes for it later."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from aggregation_steps import AGGREGATE
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
    count,
    ids,
    late,
    listed,
    policy,
    retention,
    sealed_days,
    stats,
)

OLD = CUTOFF - DAY
NAME = ("site", "2024-02-29")
STEP = POLICY | {"first_day": "2024-02-29", "last_day": "2024-02-29"}
ONE_DAY = {"days": ["2024-02-29"], "label": "2024-02-29", "recount": False}
REPEATABLE_READ = "repeatable read"
INSERT = """
    INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
    VALUES (%s, 'site', '/', 'v', 's', '2024-02-29T12:00Z')
"""
TOO_LATE = pytest.raises(psycopg.errors.SerializationFailure)


@pytest.fixture
def counted(database: Database) -> Database:
    """Two counted events of an expired day."""
    for n in range(2):
        database.event(OLD + n * HOUR, id=str(n))
    count(database, "2024-02-29")
    return database


@pytest.fixture
def run(database: Database) -> Iterator[Retention]:
    """The steps of a run for which that day has expired."""
    with retention(database) as steps:
        yield steps


def everything(database: Database) -> tuple[Any, ...]:
    """The statistics and the list."""
    return stats(database), database.query("SELECT * FROM analytics_purge_batch ORDER BY number")


class TestAtTheSameMoment:
    def test_of_two_seals_the_second_fails_and_finds_nothing_to_do_when_it_is_retried(
        self, counted: Database, run: Retention
    ) -> None:
        with run.connection.transaction():
            assert run.seal() == []
            second = run.start(SEAL, REPEATABLE_READ, **STEP)
        once = everything(counted)
        with TOO_LATE:
            second.result(timeout=10)
        assert run.seal() == []
        assert everything(counted) == once
        assert listed(counted) == {"event": 2}

    def test_of_two_that_find_late_events_one_counts_them(self, counted: Database, run: Retention) -> None:
        run.archive()
        counted.event(OLD)
        with run.connection.transaction():
            run.seal()
            second = run.start(SEAL, REPEATABLE_READ, **STEP)
        with TOO_LATE:
            second.result(timeout=10)
        run.seal()
        assert (late(counted), listed(counted)) == ({NAME: 1}, {"event": 1})

    def test_a_seal_that_waits_for_an_aggregation_fails_and_is_right_when_it_is_retried(
        self, counted: Database, run: Retention
    ) -> None:
        counted.event(OLD, id="late")
        with counted.connect(LOGIN) as aggregation, aggregation.transaction():
            counted.run(AGGREGATE, aggregation, **ONE_DAY)
            # Its snapshot shows the row as it was, and three events.
            assert run.seal()
            counted.connection.execute("DELETE FROM analytics_event WHERE id = 'late'")
            # This one shows both as they were.
            seal = run.start(SEAL, REPEATABLE_READ, **STEP)
        with TOO_LATE:
            seal.result(timeout=10)
        assert listed(counted) == {}
        assert [step["days"] for step in run.seal()] == [["2024-02-29"]]

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
            with TOO_LATE:
                slow.result(timeout=10)
        else:
            slow.result(timeout=10)
        assert sealed_days(counted) == [NAME]
        assert everything(counted) == sealed

    def test_an_event_that_comes_while_the_seal_reads_is_late(self, counted: Database, run: Retention) -> None:
        with counted.gate("analytics_event"):
            seal = run.start(SEAL, REPEATABLE_READ, **STEP)
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
                application.execute(INSERT, ["late"])
                run.seal()
                tasks = run.plan()
            assert (run.delete(tasks), ids(counted)) == ([2], {"late"})
        assert run.archive()["event"] == [1]
        assert late(counted) == {NAME: 1}

    def test_a_hold_that_comes_while_the_seal_reads_is_asked_for_before_the_deletion(
        self, counted: Database, run: Retention
    ) -> None:
        with counted.gate("analytics_event"):
            seal = run.start(SEAL, REPEATABLE_READ, **STEP)
            policy(counted, "legal_hold = TRUE")
        seal.result(timeout=10)
        assert run.delete(run.plan()) == [0]

    @pytest.mark.xfail(strict=True, reason="the seal's snapshot is older than the zone, and nothing tells it")
    def test_a_zone_that_comes_while_the_seal_waits_is_not_overlooked(self, counted: Database, run: Retention) -> None:
        with counted.connect() as operator, operator.transaction():
            operator.execute("INSERT INTO analytics_timezone VALUES ('site', '2024-02-01', 'America/New_York')")
            seal = run.start(SEAL, REPEATABLE_READ, **STEP)
        with suppress(psycopg.errors.SerializationFailure):
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


WHILE_IT_WAITS = {
    "edited": ("pathname = '/new', updated_at = now()", 3, set()),
    "soft-deleted": ("deleted_at = now()", 3, set()),
    "moved past the cutoff": (f"timestamp = '{CUTOFF}'", 2, {"0"}),
    "moved to a website": ("website_id = 'other'", 2, {"0"}),
}


class TestWhileABatchWaits:
    """The application has changed a row and not committed yet when a batch wants to delete it."""

    @pytest.mark.parametrize(("change", "deleted", "stays"), WHILE_IT_WAITS.values(), ids=WHILE_IT_WAITS)
    def test_an_event_is_changed(
        self, counted: Database, run: Retention, change: str, deleted: int, stays: set[str]
    ) -> None:
        counted.event(OLD, id="soft", deleted_at=CUTOFF)
        run.seal()
        [task] = run.plan()
        with counted.connect() as application, application.transaction():
            application.execute(f"UPDATE analytics_event SET {change} WHERE id = '0'".encode())
            batch = run.start(DELETE_EVENTS, **task, **task["steps"][0])
        assert batch.result(timeout=10)[0]["result"]["rows"] == deleted
        assert ids(counted) == stays

    def test_a_soft_deleted_event_is_restored(self, counted: Database, run: Retention) -> None:
        counted.event(OLD, id="soft", deleted_at=CUTOFF)
        run.seal()
        [task] = run.plan()
        with counted.connect() as application, application.transaction():
            application.execute("UPDATE analytics_event SET deleted_at = NULL WHERE id = 'soft'")
            batch = run.start(DELETE_EVENTS, **task, **task["steps"][0])
        assert batch.result(timeout=10)[0]["result"]["rows"] == 2
        assert ids(counted) == {"soft"}
        run.archive()
        assert (ids(counted), late(counted), listed(counted)) == (set(), {NAME: 1}, {})

    @pytest.mark.xfail(strict=True, reason="what the application did is taken for what a trigger of it kept")
    @pytest.mark.parametrize(
        "change",
        [
            "DELETE FROM analytics_event WHERE id = '0'",
            f"UPDATE analytics_event SET timestamp = '{CUTOFF}' WHERE id = '0'",
            "UPDATE analytics_event SET deleted_at = NULL WHERE id = 'soft'",
        ],
    )
    def test_what_the_application_did_is_no_reason_to_fail(
        self, counted: Database, run: Retention, change: str
    ) -> None:
        counted.event(OLD, id="soft", deleted_at=CUTOFF)
        run.seal()
        [task] = run.plan()
        with counted.connect() as application, application.transaction():
            application.execute(change.encode())
            batch = run.start(DELETE_EVENTS, **task, **task["steps"][0])
        assert batch.result(timeout=10)[0]["result"] == {"rows": 2, "left": 0}

    @pytest.mark.xfail(strict=True, reason="what the application did is taken for what a trigger of it kept")
    def test_a_session_that_comes_back_is_no_reason_to_fail(self, counted: Database, run: Retention) -> None:
        assert self.session_comes_back(counted, run) == {"rows": 1, "left": 0}

    def test_a_session_that_comes_back_stays(self, counted: Database, run: Retention) -> None:
        assert self.session_comes_back(counted, run)["rows"] == 1
        assert ids(counted, "session") == {"back"}

    def session_comes_back(self, counted: Database, run: Retention) -> dict[str, int]:
        for name in ("back", "gone"):
            counted.session(OLD, OLD, id=name)
        run.list_sessions()
        [task] = run.plan("session")
        with counted.connect() as application, application.transaction():
            application.execute("UPDATE analytics_session SET last_activity_at = now() WHERE id = 'back'")
            batch = run.start(DELETE_SESSIONS, **task, **task["steps"][0])
        result: dict[str, int] = batch.result(timeout=10)[0]["result"]
        return result


class TestLateEvents:
    def test_6000_imported_events_of_sealed_days_are_counted_and_reported(
        self, counted: Database, run: Retention
    ) -> None:
        counted.event(OLD - DAY, event_type="custom_event")
        count(counted, "2024-02-28")
        run.archive()
        before = stats(counted)
        counted.run("watch/start_run.sql", run.connection, job=POLICY["job"], run_id=POLICY["run_id"], timezone="UTC")
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
        alerts = counted.run(
            "watch/find_alerts.sql", run.connection, retention_days=90, idle_minutes=30, behind_hours=36, database_gb=10
        )[0]["result"]
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
        counted.run("watch/start_run.sql", run.connection, job=POLICY["job"], run_id=POLICY["run_id"], timezone="UTC")
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
        sealed = stats(counted)
        assert run.archive()["event"] == [1]
        assert stats(counted) == sealed

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
