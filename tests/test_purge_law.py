"""The purge law and the freeze law: no event goes that was not counted, whatever happens between proof and deletion."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from conftest import LOGIN, Database
from retention_steps import (
    AGGREGATE,
    CUTOFF,
    DAY,
    DELETE_EVENTS,
    POLICY,
    PROVE,
    aggregate,
    aggregate_due,
    archive,
    delete,
    final_days,
    ids,
    plan,
    prove,
    proven_days,
    stats,
)

HOUR = timedelta(hours=1)
OLD = CUTOFF - DAY
NAME = ("site", "2024-02-29")
WHOLE = POLICY | {"lo_timestamp": "-infinity", "lo_id": "", "hi_timestamp": CUTOFF, "hi_id": "", "batch_size": 1000}


@pytest.fixture
def counted(database: Database) -> Database:
    """Four events of an expired day that is aggregated and proven."""
    for n in range(4):
        database.event(OLD + n * HOUR, id=str(n))
    aggregate(database, "2024-02-29")
    assert prove(database) == []
    return database


def soft_delete(database: Database, *names: str) -> None:
    database.connection.execute("UPDATE analytics_event SET deleted_at = now() WHERE id = ANY(%s)", [list(names)])


def restore(database: Database, *names: str) -> None:
    database.connection.execute("UPDATE analytics_event SET deleted_at = NULL WHERE id = ANY(%s)", [list(names)])


class TestProof:
    def test_a_day_without_a_row_is_not_proven(self, database: Database) -> None:
        database.event(OLD)
        assert prove(database) == [(*NAME, False, 0)]
        assert proven_days(database) == []

    def test_a_day_whose_row_counts_exactly_its_events_is_proven(self, counted: Database) -> None:
        assert proven_days(counted) == [NAME]

    def test_one_event_more_or_less_voids_the_proof(self, counted: Database) -> None:
        counted.event(OLD, id="late")
        assert prove(counted) == [(*NAME, False, 0)]
        assert proven_days(counted) == []
        soft_delete(counted, "late")
        assert prove(counted) == []
        soft_delete(counted, "0")
        assert prove(counted) == [(*NAME, False, 0)]

    def test_as_many_events_are_not_the_same_events(self, counted: Database) -> None:
        soft_delete(counted, "0")
        counted.event(OLD, id="other")
        assert prove(counted) == [(*NAME, False, 0)]

    def test_a_row_of_another_interval_proves_nothing(self, counted: Database) -> None:
        # All events are in both the day of UTC and that of the other zone.
        counted.connection.execute("UPDATE analytics_event SET timestamp = timestamp + INTERVAL '12 h'")
        counted.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, timezone) VALUES ('site', 'Africa/Cairo')"
        )
        assert prove(counted) == [(*NAME, False, 0)]

    def test_days_are_proven_one_by_one(self, counted: Database) -> None:
        counted.event(OLD, website_id="other")
        counted.event(OLD - DAY)
        assert set(prove(counted)) == {("other", "2024-02-29", False, 0), ("site", "2024-02-28", False, 0)}
        assert proven_days(counted) == [NAME]

    def test_a_day_of_soft_deleted_events_needs_no_row(self, database: Database) -> None:
        database.event(OLD, deleted_at=CUTOFF)
        assert archive(database)["event"] == [1]
        assert stats(database) == []

    def test_only_days_that_ended_before_the_cutoff(self, database: Database) -> None:
        database.event(CUTOFF)
        assert archive(database)["event"] == []
        assert proven_days(database) == []

    def test_a_legal_hold_needs_no_proof_and_loses_the_one_it_has(self, counted: Database) -> None:
        counted.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, legal_hold) VALUES ('site', TRUE)"
        )
        assert archive(counted)["event"] == []
        assert proven_days(counted) == []

    def test_two_proofs_at_the_same_moment(self, counted: Database) -> None:
        with counted.connect(LOGIN) as first:
            with first.transaction():
                assert counted.run(PROVE, first, **POLICY) == []
                second = counted.start(PROVE, **POLICY)
            assert second.result(timeout=10) == []
        assert proven_days(counted) == [NAME]


class TestBetweenProofAndDeletion:
    """Everything that the application, an aggregation or a second run can do there."""

    def test_nothing_happens(self, counted: Database) -> None:
        assert delete(counted, "event", plan(counted, "event", 2)) == [2, 2]
        assert final_days(counted) == [NAME]

    def test_an_event_arrives_in_a_planned_range(self, counted: Database) -> None:
        batches = plan(counted, "event", 2)
        counted.event(OLD + HOUR / 2, id="late")
        assert delete(counted, "event", batches) == [2, 2]
        assert ids(counted) == {"late"}

    def test_an_event_arrives_after_the_day_is_final(self, counted: Database) -> None:
        first, second = plan(counted, "event", 2)
        delete(counted, "event", [first])
        counted.event(OLD + 2 * HOUR, id="late")
        assert delete(counted, "event", [second]) == [2]
        assert ids(counted) == {"late"}

    def test_an_event_was_inserted_before_the_proof_and_is_committed_after_it(self, database: Database) -> None:
        database.event(OLD, id="counted")
        aggregate(database, "2024-02-29")
        with database.connect() as application:
            with application.transaction():
                application.execute("UPDATE analytics_event SET id = 'other' WHERE FALSE")
                application.execute(
                    "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
                    " VALUES ('late', 'site', '/', 'v', 's', %s)",
                    [OLD],
                )
                # Younger transactions than the application's have ended when the snapshot is taken.
                database.event(CUTOFF, id="kept")
                assert prove(database) == []
                batches = plan(database, "event")
            assert delete(database, "event", batches) == [1]
        assert ids(database) == {"late", "kept"}

    def test_an_event_was_inserted_in_a_subtransaction_before_the_proof(self, database: Database) -> None:
        database.event(OLD, id="counted")
        aggregate(database, "2024-02-29")
        with database.connect() as application:
            with application.transaction(), application.transaction():
                application.execute(
                    "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
                    " VALUES ('late', 'site', '/', 'v', 's', %s)",
                    [OLD],
                )
                database.event(CUTOFF, id="kept")
                assert prove(database) == []
                batches = plan(database, "event")
            assert delete(database, "event", batches) == [1]
        assert ids(database) == {"late", "kept"}
        assert prove(database) == [(*NAME, True, 1)]

    def test_an_event_is_soft_deleted(self, counted: Database) -> None:
        batches = plan(counted, "event")
        soft_delete(counted, "0")
        assert delete(counted, "event", batches) == [3]
        # It was counted, as it would have been had it gone a moment before; the next run removes it.
        assert (ids(counted), stats(counted)[0]["total_events"]) == ({"0"}, 4)
        assert archive(counted)["event"] == [1]

    def test_a_soft_deleted_event_is_restored(self, database: Database) -> None:
        for n in range(2):
            database.event(OLD, id=str(n), deleted_at=CUTOFF if n else None)
        aggregate(database, "2024-02-29")
        assert prove(database) == []
        batches = plan(database, "event")
        restore(database, "1")
        assert delete(database, "event", batches) == [1]
        assert ids(database) == {"1"}

    def test_an_event_moves_past_the_cutoff(self, counted: Database) -> None:
        batches = plan(counted, "event")
        counted.connection.execute("UPDATE analytics_event SET timestamp = %s WHERE id = '0'", [CUTOFF])
        assert delete(counted, "event", batches) == [3]
        assert ids(counted) == {"0"}

    def test_an_event_is_changed_while_the_batch_reads(self, counted: Database) -> None:
        batches = plan(counted, "event")
        with counted.gate("analytics_event"):
            batch = counted.start(DELETE_EVENTS, **batches[0])
            counted.connection.execute("UPDATE analytics_event SET pathname = '/new' WHERE id = '0'")
        assert batch.result(timeout=10) == 3
        assert ids(counted) == {"0"}

    def test_the_day_is_counted_again_with_a_late_event(self, counted: Database) -> None:
        batches = plan(counted, "event")
        counted.event(OLD, id="late")
        aggregate(counted, "2024-02-29")
        # What the row says was not proven: the next run does it.
        assert delete(counted, "event", batches) == [0]
        assert final_days(counted) == []
        assert archive(counted)["event"] == [5]
        assert stats(counted)[0]["total_events"] == 5

    def test_the_day_is_counted_again_with_the_same_events(self, counted: Database) -> None:
        batches = plan(counted, "event")
        aggregate(counted, "2024-02-29")
        assert delete(counted, "event", batches) == [4]

    def test_an_aggregation_that_was_slower_than_the_batch_changes_nothing(self, counted: Database) -> None:
        batches = plan(counted, "event", 2)
        counted.event(OLD, id="late")
        with counted.gate("analytics_event"):
            # Its snapshot shows the late event, and the row not final.
            slow = counted.start(AGGREGATE, days=["2024-02-29"], timezone="UTC")
            assert counted.run(DELETE_EVENTS, counted.connection, **batches[0]) == 2
            final = stats(counted)
        slow.result(timeout=10)
        assert stats(counted) == final
        assert final[0]["total_events"] == 4

    def test_a_batch_waits_for_an_aggregation_and_sees_what_it_wrote(self, counted: Database) -> None:
        batches = plan(counted, "event")
        counted.event(OLD, id="late")
        with counted.connect(LOGIN) as aggregation:
            with aggregation.transaction():
                counted.run(AGGREGATE, aggregation, days=["2024-02-29"], timezone="UTC")
                batch = counted.start(DELETE_EVENTS, **batches[0])
            assert batch.result(timeout=10) == 0
        assert len(ids(counted)) == 5

    def test_a_second_run_deletes_the_same_days(self, counted: Database) -> None:
        batches = plan(counted, "event", 2)
        delete(counted, "event", batches[:1])
        counted.event(OLD + 3 * HOUR, id="late")
        # The second run finds the day final, and reports the late event before it removes it.
        assert prove(counted) == [(*NAME, True, 1)]
        assert delete(counted, "event", plan(counted, "event")) == [3]
        assert delete(counted, "event", batches) == [0, 0]
        assert (ids(counted), stats(counted)[0]["total_events"]) == (set(), 4)

    def test_a_second_run_finds_a_day_unproven_that_the_first_one_proved(self, counted: Database) -> None:
        batches = plan(counted, "event")
        counted.event(OLD, id="late")
        assert prove(counted) == [(*NAME, False, 0)]
        assert delete(counted, "event", batches) == [0]
        assert len(ids(counted)) == 5

    @pytest.mark.parametrize("policy", ["legal_hold) VALUES ('site', TRUE)", "retention_days) VALUES ('site', 91)"])
    def test_a_website_is_put_on_hold_or_kept_for_longer(self, counted: Database, policy: str) -> None:
        batches = plan(counted, "event")
        counted.connection.execute(f"INSERT INTO analytics_website_policy (website_id, {policy}".encode())
        assert delete(counted, "event", batches) == [0]
        assert final_days(counted) == []

    def test_a_shorter_retention_lets_no_unproven_day_go(self, counted: Database) -> None:
        counted.event(CUTOFF, id="kept")
        batches = [row | {"hi_timestamp": str(CUTOFF + DAY)} for row in plan(counted, "event")]
        counted.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, retention_days) VALUES ('site', 9)"
        )
        assert delete(counted, "event", batches) == [4]
        assert ids(counted) == {"kept"}

    def test_a_batch_that_fails_leaves_the_day_as_it_was(self, counted: Database) -> None:
        before = stats(counted)
        with counted.connect(LOGIN) as connection:
            connection.execute("BEGIN")
            assert counted.run(DELETE_EVENTS, connection, **WHOLE) == 4
            connection.execute("ROLLBACK")
        assert stats(counted) == before
        assert len(ids(counted)) == 4


class TestFinalRows:
    def test_the_days_that_a_batch_touches_become_final_in_the_same_transaction(self, database: Database) -> None:
        for website_id in ("a", "b", "c"):
            for days in (1, 2):
                database.event(CUTOFF - days * DAY, website_id=website_id)
        aggregate_due(database)
        prove(database)
        first = plan(database, "event", 3)[0]
        assert delete(database, "event", [first]) == [3]
        assert final_days(database) == [(name, "2024-02-28") for name in ("a", "b", "c")]
        assert len({row["raw_purged_at"] for row in stats(database)}) == 2
        once = stats(database)
        assert delete(database, "event", plan(database, "event", 2)) == [2, 1]
        assert [row for row in stats(database) if row["date"] == once[0]["date"]] == once[::2]

    @pytest.mark.parametrize(("timezone", "day"), [("UTC", "2024-02-28"), ("Asia/Kolkata", "2024-02-29")])
    def test_a_day_is_one_of_the_websites_time_zone(self, database: Database, timezone: str, day: str) -> None:
        database.event(datetime(2024, 2, 28, 20, tzinfo=UTC))
        archive(database, timezone=timezone)
        assert final_days(database) == [("site", day)]

    def test_late_events_are_reported_then_removed_and_the_row_is_not_touched(self, counted: Database) -> None:
        delete(counted, "event", plan(counted, "event"))
        final = stats(counted)
        for name in ("late", "later"):
            counted.event(OLD, id=name)
        counted.event(OLD, id="soft-deleted", deleted_at=CUTOFF)
        assert prove(counted) == [(*NAME, True, 2)]
        # Repeated, as after a lost connection, it says the same.
        assert prove(counted) == [(*NAME, True, 2)]
        counted.event(OLD, id="after the report")
        assert delete(counted, "event", plan(counted, "event")) == [3]
        assert ids(counted) == {"after the report"}
        assert archive(counted)["event"] == [1]
        assert stats(counted) == final

    def test_what_a_failed_run_left_of_a_day_is_not_called_late(self, counted: Database) -> None:
        delete(counted, "event", plan(counted, "event", 2)[:1])
        final = stats(counted)
        assert prove(counted) == []
        assert delete(counted, "event", plan(counted, "event")) == [2]
        assert stats(counted) == final


class TestLocks:
    def test_batches_that_share_a_day_wait_for_each_other(self, counted: Database) -> None:
        first_batch, second_batch = plan(counted, "event", 2)
        with counted.connect(LOGIN) as first:
            with first.transaction():
                assert counted.run(DELETE_EVENTS, first, **first_batch) == 2
                second = counted.start(DELETE_EVENTS, **second_batch)
            assert second.result(timeout=10) == 2
        assert ids(counted) == set()
        assert final_days(counted) == [NAME]

    def test_batches_of_a_final_day_do_not(self, counted: Database) -> None:
        batches = plan(counted, "event", 1)
        delete(counted, "event", batches[:1])
        with counted.connect(LOGIN) as first, first.transaction():
            assert counted.run(DELETE_EVENTS, first, **batches[1]) == 1
            assert delete(counted, "event", batches[2:]) == [1, 1]

    def test_days_are_locked_in_one_order(self, database: Database) -> None:
        # Events and rows alike come in the other order.
        for n, website_id in enumerate("zyxwvutsrqponmlkjihgfedcba"):
            database.event(OLD + n * timedelta(microseconds=1), website_id=website_id)
            aggregate(database, "2024-02-29")
        prove(database)
        with database.connect() as other:
            with other.transaction():
                other.execute("SELECT FROM analytics_daily_stats WHERE website_id = 'a' FOR UPDATE")
                batch = database.start(DELETE_EVENTS, **WHOLE)
                # It waits for a, so it holds no other row, which somebody else may have locked before waiting for a.
                other.execute("SELECT FROM analytics_daily_stats WHERE website_id <> 'a' FOR UPDATE NOWAIT")
            assert batch.result(timeout=10) == 26


class TestVisibility:
    """analytics_is_visible tells old row versions from new ones though xmin has 32 bits only."""

    WRAP = 2**32

    @pytest.mark.parametrize(
        ("xmin", "newest", "visible"),
        [
            (100, 200, True),
            (149, 200, True),
            (150, 200, False),  # still running when the snapshot was taken
            (151, 200, False),  # perhaps a subtransaction of it
            (199, 200, False),
            (100, WRAP + 50, True),
            (10, WRAP + 50, False),
            (2**31 + 500, WRAP + 50, False),
            (3, 200, True),
        ],
    )
    def test_by_hand(self, database: Database, xmin: int, newest: int, visible: bool) -> None:
        query = "SELECT analytics_is_visible(%s::text::xid, %s, '150:160:150')"
        assert database.value(query, xmin, newest) is visible

    @pytest.mark.parametrize("frozen", [False, True])
    def test_real_rows(self, database: Database, frozen: bool) -> None:
        database.event(OLD, id="before")
        if frozen:
            database.connection.execute("VACUUM (FREEZE) analytics_event")
        snapshot = database.value("SELECT pg_current_snapshot()::text")
        database.event(OLD, id="after")
        visible: Any = database.query(
            "SELECT id FROM analytics_event WHERE analytics_is_visible(xmin, analytics_newest_xid(), %s)", snapshot
        )
        assert visible == [{"id": "before"}]


def test_the_jobs_may_not_delete_statistics(database: Database) -> None:
    with database.connect(LOGIN) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM analytics_daily_stats")
