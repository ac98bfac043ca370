"""Partitions are dropped as wholes, under the same law as events."""

from datetime import datetime
from typing import Any

import psycopg
import pytest

import embedded
from aggregation_steps import aggregate
from conftest import LOGIN, Database, run_file
from partition_steps import detach, drop, find, partitioned_template, partitions
from retention_steps import CUTOFF, DAY, HOUR, Retention, ids, listed, policy, sealed_days

OLD = CUTOFF - DAY
COLUMNS = "id, website_id, pathname, visitor_id, session_id, timestamp"
BOUNDS = ("MINVALUE", "2024-02-29T00:00Z", "2024-03-01T00:00Z", "2024-04-01T00:00Z", "MAXVALUE")


@pytest.fixture(scope="module")
def template(server: embedded.Server, template: str) -> str:
    """A database whose analytics_event is partitioned, and owned by the jobs' role."""
    return partitioned_template(server, template, "template_owned", BOUNDS, owner=LOGIN)


@pytest.fixture(autouse=True)
def _counted(database: Database) -> None:
    """Two partitions that have expired: the first one empty, the second with four counted events and a soft-deleted one.
    One kept event."""
    for n in range(4):
        database.event(OLD + n * HOUR, id=str(n))
    database.event(OLD + 5 * HOUR, id="soft", deleted_at=CUTOFF)
    database.event(CUTOFF, id="kept")
    aggregate(database, "2024-02-29")


@pytest.fixture
def task(run: Retention) -> dict[str, Any]:
    """What is to drop the partition of five events."""
    run.seal()
    [_, task] = find(run)
    return task


def labels(run: Retention) -> list[str]:
    """The partitions that can be dropped."""
    return [task["label"] for task in find(run)]


def remembered(database: Database) -> int:
    count: int = database.value("SELECT COUNT(*) FROM analytics_detached_partition")
    return count


def test_a_partition_whose_every_event_is_listed_is_dropped_with_its_batches(
    database: Database, run: Retention
) -> None:
    run.seal(batch_size=2)
    tasks = find(run)
    assert [task["label"] for task in tasks] == ["event_0", "event_1"]
    assert [(detach(run, task), drop(run, task)) for task in tasks] == [(True, 0), (True, 5)]
    assert run.log == "[Analytics Archive] Dropped partition event_1 of 5 events"
    assert (partitions(database), ids(database), listed(database)) == (["event_2", "event_3"], {"kept"}, {})
    assert database.value("SELECT to_regclass('event_1')") is None
    assert (remembered(database), sealed_days(database), find(run)) == (0, [("site", "2024-02-29")], [])


def test_a_dry_run_says_what_it_would_drop(database: Database, run: Retention) -> None:
    assert find(run, dry_run=True) == []
    assert run.log.splitlines()[1] == "[Analytics Archive] Dry run: would drop partition event_1 of 5 events"
    policy(database, "legal_hold = TRUE")
    assert find(run, dry_run=True) == []
    assert run.log.splitlines()[1].endswith(
        "goes in batches: a legal hold or the retention of website site keeps events of it"
    )


def way_is_closed(run: Retention, reason: str) -> None:
    run.seal()
    assert "event_1" not in labels(run)
    assert f"[Analytics Archive] Partition event_1 goes in batches: {reason}" in run.log.splitlines()


def test_beside_a_default_partition_events_go_in_batches(database: Database, run: Retention) -> None:
    database.connection.execute("DROP TABLE event_3; CREATE TABLE rest PARTITION OF analytics_event DEFAULT")
    way_is_closed(run, "analytics_event has a default partition, beside which none can be detached concurrently")
    assert sum(run.delete(run.plan())) == 5


def test_a_role_that_does_not_own_the_table_deletes_in_batches(database: Database, run: Retention) -> None:
    database.connection.execute("ALTER TABLE analytics_event OWNER TO postgres")
    way_is_closed(run, f"role {LOGIN} is not a member of the owner of analytics_event")


def test_triggers_of_the_application_see_each_deleted_row(database: Database, run: Retention) -> None:
    database.connection.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN old; END';"
        "CREATE TRIGGER note AFTER DELETE ON analytics_event FOR EACH ROW EXECUTE FUNCTION note()"
    )
    way_is_closed(run, "it has a trigger for deleted rows")


def test_what_is_not_listed_keeps_its_partition(database: Database, run: Retention) -> None:
    run.seal()
    database.event(OLD + HOUR / 2, id="late")
    assert labels(run) == ["event_0"]
    assert run.log.splitlines()[-1].endswith(
        "Partition event_1 goes in batches: 1 of its 6 event(s) are not on the list"
    )


CHANGES = {
    "one more": (
        f"INSERT INTO {{}} ({COLUMNS}) VALUES ('new', 'site', '/', 'v', 's', '{OLD + HOUR / 2}')",
        True,
    ),
    "another one": ("UPDATE {} SET id = 'other' WHERE id = '0'", True),
    "one restored": ("UPDATE {} SET deleted_at = NULL WHERE id = 'soft'", True),
    "one moved out of its batch": ("UPDATE {} SET timestamp = timestamp + INTERVAL '20 hours' WHERE id = '0'", True),
    "a hold": ("INSERT INTO analytics_website_policy (website_id, legal_hold) VALUES ('site', TRUE)", True),
    "a longer retention": ("INSERT INTO analytics_website_policy VALUES ('site', 91)", True),
    "one edited": ("UPDATE {} SET pathname = '/other' WHERE id = '0'", False),
    "one deleted": ("DELETE FROM {} WHERE id = '0'", True),
    "one soft-deleted": ("UPDATE {} SET deleted_at = now() WHERE id = '0'", True),
    "one moved within its batch": ("UPDATE {} SET timestamp = timestamp + INTERVAL '1 minute' WHERE id = '0'", True),
}


@pytest.mark.parametrize("when", ["before the detach", "after it"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_meanwhile_is_seen(
    database: Database, run: Retention, task: dict[str, Any], change: str, when: str
) -> None:
    statement, keeps = CHANGES[change]
    if when == "before the detach":
        database.connection.execute(statement.format("event_1").encode())
        # Only what takes no look at each event is asked before.
        assert detach(run, task) is (change not in ("one more", "one deleted", "a hold", "a longer retention"))
    else:
        assert detach(run, task)
        database.connection.execute(statement.format("event_1").encode())
    before = set() if not keeps else {row["id"] for row in database.query("SELECT id FROM event_1")}
    assert drop(run, task) == (0 if keeps else 5)
    if when == "after it" and keeps:
        assert "Partition event_1 was attached again and goes in batches: " in run.log
    assert ids(database) == before | {"kept"}
    assert remembered(database) == 0
    if keeps:
        # What the law lets go, goes in batches.
        run.seal()
        run.delete(run.plan())
        held = change in ("a hold", "a longer retention")
        assert ids(database) == (before | {"kept"} if held else {"kept"})


@pytest.mark.parametrize("left", ["remembered", "pending", "detached", "dropped by somebody else"])
def test_a_run_that_was_stopped_is_gone_on_with(
    database: Database, run: Retention, task: dict[str, Any], left: str
) -> None:
    if left == "remembered":
        database.run("archive_old_analytics/begin_detach.sql", run.connection, **task)
    elif left == "pending":
        [begun] = run_file(run.connection, "archive_old_analytics/begin_detach.sql", **task)
        with database.connect() as reader, reader.transaction():
            reader.execute("SELECT count(*) FROM analytics_event")
            run.connection.execute("SET lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                run.connection.execute(begun["statement"])
        assert ids(database) == {"kept"}
    else:
        assert detach(run, task)
        if left != "detached":
            database.connection.execute("DROP TABLE event_1")
    tasks = [task for task in find(run) if task["label"] != "event_0"]
    assert len(tasks) == 1
    if left in ("pending", "detached"):
        assert "Partition event_1 was begun with by an earlier run, and not dropped" in run.log
    assert detach(run, tasks[0]) is (left in ("remembered", "pending"))
    assert drop(run, tasks[0]) == (0 if left.startswith("dropped") else 5)
    assert (ids(database), remembered(database)) == ({"kept"}, 0)
    assert database.value("SELECT to_regclass('event_1')") is None
    # And once more.
    assert (detach(run, task), drop(run, task)) == (False, 0)


def test_what_depends_on_a_partition_keeps_it(database: Database, run: Retention, task: dict[str, Any]) -> None:
    database.connection.execute("CREATE VIEW dependent AS SELECT * FROM event_1")
    assert (detach(run, task), drop(run, task)) == (True, 0)
    assert "attached again and goes in batches: cannot drop table event_1 because other objects depend on it" in run.log
    assert len(ids(database)) == 6


@pytest.mark.parametrize(("time", "label"), [(OLD + HOUR / 2, "event_1"), (OLD - HOUR / 2, "event_0")])
def test_one_with_an_event_of_an_id_on_the_list_goes_in_batches(
    database: Database, run: Retention, time: datetime, label: str
) -> None:
    """That one was not counted, even if all that were are in another partition."""
    database.event(OLD - HOUR, id="before")
    aggregate(database, "2024-02-28")
    run.seal()
    database.event(time, id="0")
    [task] = find(run)
    assert f"Partition {label} goes in batches: 1 of its {6 if label == 'event_1' else 2} event(s)" in run.log
    assert (detach(run, task), drop(run, task)) == (True, 1 if label == "event_1" else 5)
    assert database.value(f"SELECT count(*) FROM {label} WHERE timestamp = %s AND id = '0'", time) == 1


def test_as_many_others_in_place_of_what_is_listed_keep_their_partition(
    database: Database, run: Retention, task: dict[str, Any]
) -> None:
    database.connection.execute("DELETE FROM event_1 WHERE id = '0'")
    database.event(OLD + HOUR / 2, id="late")
    assert (detach(run, task), drop(run, task)) == (True, 0)
    assert run.log.endswith("its events are not just those on the list, or not as the archive has them")
    assert ids(database) == {"1", "2", "3", "soft", "late", "kept"}


ARCHIVE = """
UPDATE analytics_purge_batch AS batch
SET archived = (
    SELECT array_agg(analytics_row_hash((event.*)::text) ORDER BY name.place)
    FROM unnest(batch.ids || batch.deleted_ids) WITH ORDINALITY AS name (id, place)
    INNER JOIN analytics_event AS event ON name.id = event.id
)
"""
NOT_AS_ARCHIVED = {
    "one that no file has": "UPDATE analytics_purge_batch SET archived[2] = NULL",
    "nothing that any file has": "UPDATE analytics_purge_batch SET archived = '{}'",
    "one that was edited since": "UPDATE event_1 SET pathname = '/other' WHERE id = '0'",
}


@pytest.mark.parametrize("change", NOT_AS_ARCHIVED)
def test_with_an_archive_all_columns_are_as_the_archive_has_them(
    database: Database, run: Retention, task: dict[str, Any], change: str
) -> None:
    database.connection.execute(ARCHIVE)
    database.connection.execute(NOT_AS_ARCHIVED[change].encode())
    assert (detach(run, task), drop(run, task)) == (True, 0)
    assert run.log.endswith("its events are not just those on the list, or not as the archive has them")
    database.connection.execute(ARCHIVE)
    assert (detach(run, task), drop(run, task)) == (True, 5)


def test_no_batch_is_of_two_partitions(database: Database, run: Retention) -> None:
    """One that was listed so before there was this rule keeps both."""
    database.event(OLD - HOUR, id="before")
    aggregate(database, "2024-02-28")
    run.seal()
    assert labels(run) == ["event_0", "event_1"]
    database.connection.execute(
        """
        WITH batch AS (DELETE FROM analytics_purge_batch RETURNING *)
        INSERT INTO analytics_purge_batch (kind, rows, first_at, last_at, ids, deleted_ids, listed_hash)
        SELECT
            'event', 6, min(first_at), max(last_at), '{before,0,1,2,3}', '{soft}', bit_xor(listed_hash)
        FROM batch
        """
    )
    assert labels(run) == []
    assert "Partition event_1 goes in batches: a batch of the list reaches over its bounds" in run.log
    assert run.delete(run.plan()) == [6]
