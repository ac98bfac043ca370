"""The orphan law: a session goes only when it has expired and no event of it is left, live or soft-deleted."""

from datetime import datetime, timedelta

import pytest

from conftest import Database
from retention_steps import CUTOFF, DAY, Retention, ids, listed, policy

MICROSECOND = timedelta(microseconds=1)
OLD = CUTOFF - DAY


def expired(database: Database, *names: str) -> None:
    """Sessions that have expired."""
    for name in names:
        database.session(OLD, OLD, id=name, session_id=name)


def delete(run: Retention) -> list[int]:
    """List and delete."""
    run.list_sessions()
    return run.delete(run.plan("session"), "session")


def test_the_last_activity_decides(database: Database, run: Retention) -> None:
    database.session(OLD, CUTOFF - MICROSECOND, id="expired")
    database.session(OLD, CUTOFF, id="kept")
    database.session(OLD, OLD, id="deleted", deleted_at=CUTOFF)
    database.session(OLD, OLD, id="ended", ended_at=OLD)
    assert delete(run) == [3]
    assert ids(database, "session") == {"kept"}


def test_nothing_to_do(database: Database, run: Retention) -> None:
    assert delete(run) == []
    assert run.log == "[Analytics Archive] Found 0 old session(s) in 0 batch(es)"


EVENTS = pytest.mark.parametrize("deleted_at", [None, CUTOFF], ids=["live", "soft-deleted"])


@EVENTS
@pytest.mark.parametrize("moment", [OLD, CUTOFF, "infinity"])
@pytest.mark.parametrize("website_id", ["site", "other"])
def test_an_event_that_is_left_keeps_its_session(
    database: Database, run: Retention, moment: datetime | str, deleted_at: datetime | None, website_id: str
) -> None:
    expired(database, "this", "bystander")
    database.event(moment, website_id, session_id="this", deleted_at=deleted_at)
    assert delete(run) == [1]
    assert ids(database, "session") == {"this"}


@EVENTS
def test_one_that_arrives_after_the_list_keeps_it_as_well(
    database: Database, run: Retention, deleted_at: datetime | None
) -> None:
    expired(database, "this", "bystander")
    run.list_sessions()
    event = database.event(OLD, session_id="this", deleted_at=deleted_at)
    assert (run.delete(run.plan("session"), "session"), run.left) == ([1], 0)
    assert run.log.endswith(
        "; 1 stay or are gone: back, with events, held, not as in the archive, or deleted by others"
    )
    assert (ids(database, "session"), listed(database)) == ({"this"}, {})
    # It goes with its last event.
    database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [event])
    assert delete(run) == [1]


def test_two_rows_of_one_session_go_together(database: Database, run: Retention) -> None:
    for name, deleted_at in (("one", None), ("other", CUTOFF)):
        database.session(OLD, OLD, id=name, session_id="this", deleted_at=deleted_at)
    event = database.event(OLD, session_id="this")
    assert delete(run) == []
    database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [event])
    assert delete(run) == [2]


def test_a_run_deletes_the_sessions_of_the_events_that_it_deleted(database: Database, run: Retention) -> None:
    expired(database, "old", "kept")
    database.event(OLD, session_id="old")
    database.event(OLD, session_id="kept")
    database.event(CUTOFF, session_id="kept")
    assert run.archive() == {"event": [2], "session": [1]}
    assert ids(database, "session") == {"kept"}


BETWEEN = {
    "nothing": ("SELECT", set()),
    "its visitor comes back": ("UPDATE analytics_session SET last_activity_at = now() WHERE id = 'this'", {"this"}),
    "it was active later, and has expired": (
        f"UPDATE analytics_session SET last_activity_at = '{CUTOFF - MICROSECOND}' WHERE id = 'this'",
        set(),
    ),
    "it was active at the cutoff": (
        f"UPDATE analytics_session SET last_activity_at = '{CUTOFF}' WHERE id = 'this'",
        {"this"},
    ),
    "its clock was wrong": ("UPDATE analytics_session SET last_activity_at = '-infinity' WHERE id = 'this'", set()),
    "it is moved to a held website": ("UPDATE analytics_session SET website_id = 'held' WHERE id = 'this'", {"this"}),
    "it is soft-deleted": ("UPDATE analytics_session SET deleted_at = now()", set()),
    "it is deleted": ("DELETE FROM analytics_session WHERE id = 'this'", set()),
    "its website is held": ("INSERT INTO analytics_website_policy VALUES ('site', NULL, TRUE)", {"this", "other"}),
    "it is kept for longer": ("INSERT INTO analytics_website_policy VALUES ('site', 91)", {"this", "other"}),
    "it is kept for less": ("INSERT INTO analytics_website_policy VALUES ('site', 1)", set()),
}


@pytest.mark.parametrize("keep", ["legal_hold = TRUE", "retention_days = 1000"])
def test_a_hold_keeps_what_expired_long_ago(database: Database, run: Retention, keep: str) -> None:
    database.session(OLD - 365 * DAY, OLD - 365 * DAY)
    run.list_sessions()
    policy(database, keep)
    assert (run.delete(run.plan("session"), "session"), run.left) == ([0], 0)


@pytest.mark.parametrize(("change", "stay"), BETWEEN.values(), ids=BETWEEN)
def test_between_list_and_deletion(database: Database, run: Retention, change: str, stay: set[str]) -> None:
    expired(database, "this", "other")
    policy(database, "legal_hold = TRUE", "held")
    run.list_sessions()
    tasks = run.plan("session")
    database.connection.execute(change.encode())
    run.delete(tasks, "session")
    assert (ids(database, "session"), listed(database), run.left) == (stay, {}, 0)


def test_held_and_longer_kept_websites(database: Database, run: Retention) -> None:
    expired(database, "site")
    for website_id, columns in (("held", "legal_hold = TRUE"), ("long", "retention_days = 91")):
        policy(database, columns, website_id)
        database.session(OLD, OLD, website_id=website_id, id=website_id)
    assert delete(run) == [1]
    assert ids(database, "session") == {"held", "long"}
    database.connection.execute("TRUNCATE analytics_website_policy")
    assert delete(run) == [2]


def test_absurd_times(database: Database, run: Retention) -> None:
    policy(database, "legal_hold = TRUE", "held")
    times = ("-infinity", "infinity", "4713-01-01 BC", "0001-01-01 BC", "200000-01-01")
    for moment in times:
        for website_id in ("site", "held"):
            database.session(OLD, OLD, website_id=website_id, id=f"{website_id} {moment}")
            database.connection.execute(
                "UPDATE analytics_session SET last_activity_at = %s WHERE id = %s", [moment, f"{website_id} {moment}"]
            )
    expired(database, "usual")
    run.list_sessions(batch_size=1)
    tasks = run.plan("session")
    assert sorted(task["label"].split(", to ")[1] for task in tasks) == [
        "0001-01-01 00:00", "2024-02-29 00:00", "4713-01-01 00:00", "no time"
    ]  # fmt: skip
    assert run.delete(tasks, "session") == [1] * 4
    left = {f"held {moment}" for moment in times} | {"site infinity", "site 200000-01-01"}
    assert ids(database, "session") == left


def test_listed_twice_is_listed_once(database: Database, run: Retention) -> None:
    expired(database, "first")
    assert [run.list_sessions(), run.list_sessions()] == [1, 0]
    expired(database, "second")
    assert run.list_sessions() == 1
    assert run.delete(run.plan("session"), "session") == [1, 1]


def test_a_batch_that_is_repeated_deletes_nothing(database: Database, run: Retention) -> None:
    expired(database, "a", "b", "c")
    run.list_sessions(batch_size=2)
    tasks = run.plan("session")
    assert run.delete(tasks, "session") == [2, 1]
    assert run.log == "[Analytics Archive] Deleted batch of 1 sessions (3/3)"
    expired(database, "a")
    assert (run.delete(tasks, "session"), run.left) == ([0, 0], 0)
    assert ids(database, "session") == {"a"}


def test_sessions_that_a_trigger_keeps_are_reported(database: Database, run: Retention) -> None:
    expired(database, "a", "b")
    database.connection.execute(
        """
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER keep BEFORE DELETE ON analytics_session FOR EACH ROW WHEN (old.id = 'a') EXECUTE FUNCTION keep()
        """
    )
    assert (delete(run), run.left) == ([1], 1)
    assert run.log.endswith("; 1 did not go, and nothing of ours keeps them")


def test_a_step_reads_100000_sessions(database: Database, run: Retention) -> None:
    database.connection.execute(
        """
        DO $$
        DECLARE
            name regclass;
        BEGIN
            -- To write them is what takes time.
            FOR name IN SELECT indexrelid FROM pg_index WHERE indrelid = 'analytics_session'::regclass AND NOT indisprimary
            LOOP
                EXECUTE 'DROP INDEX ' || name;
            END LOOP;
        END
        $$;
        INSERT INTO analytics_session (id, website_id, session_id, visitor_id, entry_page, started_at, last_activity_at)
        SELECT
            lpad(i::text, 6, '0'), 'site', i, '', '', '2024-02-01',
            CASE WHEN i IN (1, 100000, 100001) THEN '2024-02-01' ELSE '2024-04-01' END::timestamptz
        FROM generate_series(1, 100001) AS i
        """
    )
    after, found = None, []
    while True:
        rows = database.run("archive_old_analytics/list_sessions.sql", run.connection, after=after, retention_days=90,
            batch_size=1000, dry_run=False, has_archive=False)[0]  # fmt: skip
        found.append((rows["result"]["rows"], rows["again"]))
        if rows["again"] is None:
            break
        after = rows["again"]["after"]
    assert found == [(2, {"after": "100000"}), (1, None)]
    assert [batch["ids"] for batch in database.query("SELECT ids FROM analytics_purge_batch ORDER BY number")] == [
        ["000001", "100000"], ["100001"]
    ]  # fmt: skip
