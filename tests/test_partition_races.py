"""What comes between the steps of dropping a partition: other runs, other people's transactions, and the other tasks."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

import embedded
from aggregation_steps import aggregate
from conftest import BACKGROUND, LOGIN, Database
from partition_steps import detach, drop, find, partitioned_template, partitions
from retention_steps import CUTOFF, DAY, HOUR, Retention, connect, ids, late, listed
from web_analytics import schema

OLD = CUTOFF - DAY
BOUNDS = ("MINVALUE", "2024-02-29T00:00Z", "2024-03-01T00:00Z", "2024-04-01T00:00Z", "MAXVALUE")


@pytest.fixture(scope="module")
def template(server: embedded.Server, template: str) -> str:
    """A database whose analytics_event is partitioned, and owned by the jobs' role."""
    return partitioned_template(server, template, "template_races", BOUNDS, owner=LOGIN)


@pytest.fixture
def task(database: Database, run: Retention) -> dict[str, Any]:
    """What is to drop a partition of three events, after which one of another partition is left on their batch."""
    database.event(OLD - HOUR, id="before", session_id="old")
    for n in range(3):
        database.event(OLD + n * HOUR, id=str(n), session_id="old")
    database.session(OLD, OLD + 2 * HOUR, session_id="old")
    aggregate(database, "2024-02-28", "2024-02-29")
    run.seal()
    return next(task for task in find(run) if task["label"] == "event_1")


@pytest.fixture
def other(database: Database, run: Retention) -> Iterator[Retention]:
    """The steps of another run at the same moment."""
    with connect(database) as connection:
        connection.execute("SET lock_timeout = '200ms'")
        yield Retention(connection, database)


def test_batches_wait_while_a_partition_of_theirs_is_detached(
    database: Database, run: Retention, other: Retention, task: dict[str, Any]
) -> None:
    """They would leave the list with events that are not gone, and if it is attached again, these would be late."""
    tasks = other.plan()
    assert detach(run, task)
    assert other.delete(tasks) == [1, 0]
    assert other.log.endswith(" waits: a partition of its events is detached")
    assert listed(database) == {"event": 3}
    database.connection.execute("INSERT INTO analytics_website_policy VALUES ('site', NULL, TRUE)")
    assert drop(run, task) == 0
    database.connection.execute("DELETE FROM analytics_website_policy")
    run.seal()
    assert (sum(run.delete(run.plan())), ids(database), late(database)) == (3, set(), {})


def test_sessions_wait_while_a_partition_is_detached(database: Database, run: Retention, task: dict[str, Any]) -> None:
    database.connection.execute("DELETE FROM analytics_event WHERE id = 'before'")
    assert detach(run, task)
    assert (ids(database), run.list_sessions()) == (set(), 0)
    drop(run, task)
    assert run.list_sessions() == 1


def test_another_run_waits_for_the_one_that_drops(
    database: Database, run: Retention, other: Retention, task: dict[str, Any]
) -> None:
    """It would let a partition be forgotten that is detached in the next moment."""
    row = run.connection.execute("SELECT * FROM analytics_begin_detach(%(partition)s::oid, 90)", task).fetchall()[0]
    with pytest.raises(psycopg.errors.LockNotAvailable):
        detach(other, task)
    assert "event_1" in [found["label"] for found in find(other)]
    run.connection.execute(row["statement"])
    assert database.value("SELECT count(*) FROM analytics_detached_partition") == 1
    assert drop(run, task) == 3


def test_no_detach_is_begun_beside_a_long_transaction(database: Database, run: Retention, task: dict[str, Any]) -> None:
    """Such as a backup's: DETACH would wait for it, with the events hidden all the while."""
    with database.connect() as backup, backup.transaction():
        backup.execute("LOCK TABLE analytics_event IN ACCESS SHARE MODE")
        assert not detach(run, task)
        assert "goes in batches: a transaction has used analytics_event for 5 seconds" in run.log
    assert (len(partitions(database)), len(ids(database))) == (4, 4)
    assert detach(run, task)


def test_an_insert_that_is_under_way_is_waited_for_and_seen(
    database: Database, run: Retention, task: dict[str, Any]
) -> None:
    row = run.connection.execute("SELECT * FROM analytics_begin_detach(%(partition)s::oid, 90)", task).fetchall()[0]
    detaching: Future[Any]
    with database.connect() as application, application.transaction():
        application.execute(
            "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
            " VALUES ('late', 'site', '/', 'v', 's', %s)",
            [OLD + HOUR],
        )
        detaching = BACKGROUND.submit(run.connection.execute, row["statement"])
        database.wait_until("SELECT bool_or(is_pending) FROM analytics_event_partitions()")
    detaching.result(10)
    assert drop(run, task) == 0
    assert "attached again and goes in batches: 1 of its 4 event(s) are not on the list" in run.log
    run.seal()
    assert (sum(run.delete(run.plan())), late(database)) == (5, {("site", "2024-02-29"): 1})


def test_one_that_somebody_else_has_begun_to_detach_stands_in_the_way(
    database: Database, run: Retention, task: dict[str, Any]
) -> None:
    database.connection.execute("UPDATE pg_inherits SET inhdetachpending = TRUE WHERE inhrelid = 'event_0'::regclass")
    assert find(run) == []
    assert (
        "Partition event_1 goes in batches: somebody else has begun to detach event_0: ALTER TABLE analytics_event "
        "DETACH PARTITION event_0 FINALIZE"
    ) in run.log


def test_a_temporary_table_does_not_lead_the_owners_functions_astray(database: Database) -> None:
    """It would be found first, and a view in its place would call the caller's functions as the owner."""
    with database.connect(LOGIN) as jobs:
        jobs.execute(
            """
            CREATE FUNCTION pg_temp.who() RETURNS text LANGUAGE plpgsql AS $$
            BEGIN
                RAISE NOTICE 'run as %', current_user;
                RETURN 'day';
            END
            $$;
            CREATE TEMP VIEW analytics_partitioning AS SELECT pg_temp.who() AS every, 30 AS ahead
            """
        )
        notices: list[str | None] = []
        jobs.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        assert jobs.execute("SELECT analytics_add_partitions() AS made").fetchall() == [{"made": None}]
        assert notices == []
    definer = "SELECT proname, proconfig FROM pg_proc WHERE prosecdef AND pronamespace = 'analytics'::regnamespace"
    for row in database.query(definer):
        path = next(setting for setting in row["proconfig"] if setting.startswith("search_path="))
        assert path == "search_path=pg_catalog" or path.endswith(", pg_temp"), row["proname"]
    schema.install(database.dsn, "analytics,public")
