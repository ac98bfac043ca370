"""The purge law: no event goes that was not counted, whatever happens between the seal, the list and the deletion."""

from typing import NamedTuple

import pytest

from aggregation_steps import aggregate, set_zone
from conftest import Database
from retention_steps import (
    CUTOFF,
    DAY,
    DELETE_EVENTS,
    HOUR,
    Retention,
    archive,
    ids,
    late,
    listed,
    policy,
    sealed_days,
    stats,
)

OLD = CUTOFF - DAY
NAME = ("site", "2024-02-29")
LATE = f"""
    INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
    VALUES ('late', 'site', '/', 'v', 's', '{OLD + HOUR / 2}')
"""


@pytest.fixture
def counted(database: Database) -> Database:
    """Three counted events of an expired day, an hour apart, and a soft-deleted one after them."""
    for n in range(3):
        database.event(OLD + n * HOUR, id=str(n))
    database.event(OLD + 3 * HOUR, id="soft", deleted_at=CUTOFF)
    aggregate(database, "2024-02-29")
    return database


EDIT = "UPDATE analytics_event SET {} WHERE id = '0'"
OTHERWISE = {
    "one more": LATE,
    "one less": EDIT.format("deleted_at = now()"),
    "one restored": "UPDATE analytics_event SET deleted_at = NULL",
    "one deleted": "DELETE FROM analytics_event WHERE id = '0'",
    "another one": EDIT.format("id = 'other'"),
    # Edits that leave no cheap sign.
    "another type": EDIT.format("event_type = 'custom_event'"),
    "another page": EDIT.format("pathname = '/other'"),
    "another referrer": EDIT.format("referrer_source = 'other'"),
    "another visitor": EDIT.format("visitor_id = 'other'"),
    "another session": EDIT.format("session_id = 'other'"),
    "another website": EDIT.format("website_id = 'other'"),
    "another day": EDIT.format(f"timestamp = '{CUTOFF}'"),
    "no row": "DELETE FROM analytics_daily_stats WHERE date = '2024-02-29'",
}


class TestSeal:
    """Which days are sealed and listed, and which are left."""

    def left(self, run: Retention) -> list[str]:
        return [step["named"] for step in run.seal()]

    def test_a_day_whose_row_counts_exactly_its_events_is_sealed_and_all_of_it_is_listed(
        self, counted: Database, run: Retention
    ) -> None:
        before = stats(counted)[0]
        assert self.left(run) == []
        [row] = stats(counted)
        changed = ("sealed_at", "ctid", "xmin")
        assert row == before | {column: row[column] for column in changed}
        assert sealed_days(counted) == [NAME]
        # One for each partition that has some of it.
        batches = counted.query("SELECT * FROM analytics_purge_batch ORDER BY number")
        [tables] = counted.query("SELECT count(DISTINCT tableoid) AS batches, count(*) AS events FROM analytics_event")
        assert (len(batches), sum(batch["rows"] for batch in batches)) == (tables["batches"], tables["events"])
        assert [id for batch in batches for id in batch["ids"]] == ["0", "1", "2"]
        assert [id for batch in batches for id in batch["deleted_ids"]] == ["soft"]
        assert (batches[0]["first_at"], batches[-1]["last_at"]) == (OLD, OLD + 3 * HOUR)
        assert run.log == (
            "[Analytics Archive] 2024-02-29 to 2024-02-29: sealed 1 day(s), "
            f"listed 4 event(s) in {len(batches)} batch(es)"
        )

    @pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
    def test_one_that_counts_anything_else_is_left_and_aggregated_and_sealed_then(
        self, counted: Database, run: Retention, change: str
    ) -> None:
        counted.event(OLD - DAY, id="older")
        aggregate(counted, "2024-02-28")
        counted.connection.execute(change.encode())
        step = run.seal()
        assert [one["days"] for one in step] == [["2024-02-29"]]
        assert (sealed_days(counted), listed(counted)) == ([("site", "2024-02-28")], {"event": 1})
        run.aggregate(step)
        assert self.left(run) == []
        # All that is left of the day was counted, however often it is sealed.
        assert NAME in sealed_days(counted)
        run.delete(run.plan())
        assert ids(counted) == ({"0"} if "timestamp =" in change else set())
        assert late(counted) == {}

    def test_ten_visitors_of_whom_six_become_one_are_counted_as_five(self, database: Database) -> None:
        for n in range(10):
            database.event(OLD, id=str(n), visitor_id=str(n), session_id=str(n))
        aggregate(database, "2024-02-29")
        database.connection.execute("UPDATE analytics_event SET visitor_id = 'one', session_id = 'one' WHERE id < '6'")
        assert archive(database)["event"] == [10]
        [row] = stats(database)
        assert (row["unique_visitors"], row["unique_sessions"], row["total_events"]) == (5, 5, 10)

    def test_a_row_of_another_interval_is_not_exact(self, counted: Database, run: Retention) -> None:
        # All events are in both the day of UTC and that of the other zone.
        set_zone(counted, "Atlantic/Azores")
        counted.connection.execute("UPDATE analytics_event SET timestamp = timestamp + INTERVAL '12 h'")
        assert self.left(run) == ["site 2024-02-29 (3 event(s), stats of 3)"]
        assert (sealed_days(counted), listed(counted)) == ([], {})

    def test_days_are_sealed_one_by_one(self, counted: Database, run: Retention) -> None:
        counted.event(OLD, website_id="other")
        counted.event(OLD - DAY)
        assert self.left(run) == ["site 2024-02-28 (1 event(s), no stats), other 2024-02-29 (1 event(s), no stats)"]
        assert (sealed_days(counted), listed(counted)) == ([NAME], {"event": 4})

    def test_a_day_of_soft_deleted_events_needs_no_row(self, database: Database) -> None:
        database.event(OLD, deleted_at=CUTOFF)
        assert archive(database)["event"] == [1]
        assert (stats(database), ids(database)) == ([], set())

    def test_a_row_of_zeros_is_sealed(self, database: Database) -> None:
        database.event(OLD)
        aggregate(database, "2024-02-29")
        database.connection.execute("UPDATE analytics_event SET deleted_at = now()")
        assert archive(database)["event"] == [1]
        assert [(row["total_events"], row["sealed_at"] is None) for row in stats(database)] == [(0, False)]

    def test_only_days_that_ended_before_the_cutoff(self, database: Database, run: Retention) -> None:
        database.event(CUTOFF)
        aggregate(database, "2024-03-01")
        assert run.find()["steps"] == []
        # A step of another run, or of a policy that has changed since.
        assert run.run("seal_days", first_day="2024-02-01", last_day="2024-03-09") is None
        assert (sealed_days(database), listed(database)) == ([], {})

    def test_repeated_it_seals_and_lists_nothing_more(self, counted: Database, run: Retention) -> None:
        run.seal()
        once = (stats(counted), counted.query("SELECT * FROM analytics_purge_batch"))
        assert self.left(run) == []
        assert (stats(counted), counted.query("SELECT * FROM analytics_purge_batch")) == once


class Change(NamedTuple):
    """What the application does between the list and the deletion, and what must come of it."""

    statement: str
    deleted: int  # by the batch that was listed
    stays: str = ""  # the id of the event that the batch leaves
    late: int = 0  # counted so by the next run
    remains: bool = False  # whether that event is there after the next run, which removes what has expired
    days: tuple[tuple[str, str], ...] = (NAME,)  # that are sealed at the end


COPY = """
    CREATE TEMPORARY TABLE old AS SELECT * FROM analytics_event WHERE id = '{0}';
    DELETE FROM analytics_event WHERE id = '{0}';
    INSERT INTO analytics_event SELECT * FROM old
"""
CHANGES = {
    "nothing": Change("SELECT", 4),
    "an event arrives": Change(LATE, 4, "late", 1),
    "a soft-deleted event arrives": Change(f"{LATE}; UPDATE analytics_event SET deleted_at = now() WHERE id = 'late'",
        4, "late"),
    "edited": Change(EDIT.format("visitor_id = 'new', event_type = 'custom_event', updated_at = now()"), 4),
    "moved to another time of the batch": Change(EDIT.format(f"timestamp = '{OLD + 2 * HOUR}'"), 4),
    "moved to another day": Change(EDIT.format(f"timestamp = '{OLD - DAY}'"), 3, "0",
        days=(("site", "2024-02-28"), NAME)),
    "moved past the cutoff": Change(EDIT.format(f"timestamp = '{CUTOFF}'"), 3, "0", remains=True),
    "moved to a website": Change(EDIT.format("website_id = 'other'"), 4),
    "soft-deleted": Change(EDIT.format("deleted_at = now()"), 4),
    "soft-deleted and restored": Change(f"{EDIT.format('deleted_at = now()')}; {EDIT.format('deleted_at = NULL')}", 4),
    "restored": Change("UPDATE analytics_event SET deleted_at = NULL WHERE id = 'soft'", 3, "soft", 1),
    "restored and soft-deleted": Change(
        "UPDATE analytics_event SET deleted_at = NULL; UPDATE analytics_event SET deleted_at = now()", 4),
    "hard-deleted": Change("DELETE FROM analytics_event WHERE id = '0'", 3),
    "hard-deleted and inserted again": Change(COPY.format("0"), 4),
    "restored by being inserted again": Change(
        f"{COPY.format('soft')}; UPDATE analytics_event SET deleted_at = NULL WHERE id = 'soft'", 3, "soft", 1),
}  # fmt: skip


class TestBetweenListAndDeletion:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("sealed_again", [False, True])
    def test_the_application_goes_on(
        self, counted: Database, run: Retention, change: Change, sealed_again: bool
    ) -> None:
        run.seal()
        sealed = stats(counted)[0]
        tasks = run.plan()
        counted.connection.execute(change.statement.encode())
        if sealed_again:
            run.seal()  # by another run, before the batches of this one
        assert (run.delete(tasks), run.left) == ([change.deleted], 0)
        assert ids(counted) == ({change.stays} if change.stays else set())
        run.archive()
        assert late(counted) == ({NAME: change.late} if change.late else {})
        assert tuple(sealed_days(counted)) == change.days
        assert ids(counted) == ({change.stays} if change.remains else set())
        assert listed(counted) == {}
        # Nothing of the sealed row has changed but the late events.
        changed = ("late_pageviews", "ctid", "xmin")
        row = next(row for row in stats(counted) if str(row["date"]) == NAME[1])
        assert row == sealed | {column: row[column] for column in changed}

    @pytest.mark.parametrize(("keep", "end"), [("legal_hold = TRUE", "FALSE"), ("retention_days = 91", "NULL")])
    def test_a_held_website_stays_on_the_list_until_the_hold_ends(
        self, counted: Database, run: Retention, keep: str, end: str
    ) -> None:
        counted.event(OLD, website_id="other", id="other")
        aggregate(counted, "2024-02-29")
        run.seal()
        tasks = run.plan()
        policy(counted, keep)
        held = {"0", "1", "2", "soft"}
        assert (run.delete(tasks), run.left) == ([1], 0)
        assert run.log.endswith("; 4 stay on the list: a legal hold or the retention keeps them")
        # However many runs there are meanwhile.
        for _ in range(2):
            assert (run.archive()["event"], run.left) == ([0], 0)
            assert (ids(counted), listed(counted)) == (held, {"event": 4})
        assert late(counted) == {}
        policy(counted, f"{keep.split(maxsplit=1)[0]} = {end}")
        assert run.archive()["event"] == [4]
        assert (ids(counted), listed(counted), late(counted)) == (set(), {}, {})

    def test_an_event_that_moves_to_a_held_website_stays_on_the_list(self, counted: Database, run: Retention) -> None:
        run.seal()
        policy(counted, "legal_hold = TRUE", "held")
        counted.connection.execute("UPDATE analytics_event SET website_id = 'held' WHERE id = '0'")
        assert run.archive()["event"] == [3]
        assert (ids(counted), listed(counted)) == ({"0"}, {"event": 1})
        policy(counted, "legal_hold = FALSE", "held")
        run.archive()
        assert (ids(counted), listed(counted), late(counted)) == (set(), {}, {})

    @pytest.mark.parametrize(("zone", "deleted"), [("Asia/Kolkata", 0), ("UTC", 1), ("America/New_York", 0)])
    def test_an_event_that_moves_to_a_website_where_its_day_has_not_expired_stays_on_the_list(
        self, database: Database, run: Retention, zone: str, deleted: int
    ) -> None:
        database.event(CUTOFF - HOUR, id="0")
        aggregate(database, "2024-02-29")
        run.seal()
        set_zone(database, zone, "other")
        database.connection.execute("UPDATE analytics_event SET website_id = 'other'")
        assert run.delete(run.plan()) == [deleted]
        assert listed(database) == ({} if deleted else {"event": 1})

    @pytest.mark.parametrize("keep", ["legal_hold = TRUE", "retention_days = 1000"])
    def test_a_hold_keeps_what_expired_long_ago(self, database: Database, run: Retention, keep: str) -> None:
        database.event(OLD - 365 * DAY)
        aggregate(database, "2023-03-01")
        run.seal()
        policy(database, keep)
        assert run.delete(run.plan()) == [0]
        assert listed(database) == {"event": 1}

    def test_an_event_that_is_restored_under_a_hold_is_late(self, counted: Database, run: Retention) -> None:
        run.seal()
        policy(counted, "legal_hold = TRUE")
        counted.connection.execute("UPDATE analytics_event SET deleted_at = NULL")
        assert run.archive()["event"] == [0]
        assert listed(counted) == {"event": 3}
        policy(counted, "legal_hold = FALSE")
        assert run.archive()["event"] == [3, 1]
        assert late(counted) == {NAME: 1}

    def test_a_shorter_retention_lets_nothing_go_that_is_not_listed(self, counted: Database, run: Retention) -> None:
        counted.event(CUTOFF, id="kept")
        run.seal()
        policy(counted, "retention_days = 9")
        assert run.delete(run.plan()) == [4]
        assert ids(counted) == {"kept"}

    def test_a_batch_that_is_repeated_deletes_nothing(self, counted: Database, run: Retention) -> None:
        run.seal(batch_size=2)
        tasks = run.plan()
        assert run.delete(tasks) == [2, 2]
        counted.event(OLD, id="0")
        before = stats(counted)
        assert (run.delete(tasks), run.left) == ([0, 0], 0)
        assert run.log == f"[Analytics Archive] Batch {tasks[1]['steps'][0]['number']} was deleted before"
        assert (ids(counted), stats(counted)) == ({"0"}, before)

    def test_of_two_workers_on_a_batch_one_waits_and_deletes_nothing(self, counted: Database, run: Retention) -> None:
        run.seal()
        [task] = run.plan()
        with run.connection.transaction():
            assert run.delete([task]) == [4]
            second = run.start(DELETE_EVENTS, **task, **task["steps"][0])
        assert second.result(timeout=10)[0]["result"] == {"rows": 0, "left": 0}
        assert listed(counted) == {}

    def test_a_batch_that_fails_leaves_its_events_and_its_place_on_the_list(
        self, counted: Database, run: Retention
    ) -> None:
        run.seal()
        [task] = run.plan()
        with run.connection.transaction(force_rollback=True):
            assert run.delete([task]) == [4]
        assert (len(ids(counted)), listed(counted)) == (4, {"event": 4})
        assert run.delete([task]) == [4]

    def test_rows_that_a_trigger_keeps_stay_on_the_list_and_are_reported(
        self, counted: Database, run: Retention
    ) -> None:
        counted.connection.execute(
            """
            CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER keep BEFORE DELETE ON analytics_event FOR EACH ROW WHEN (old.id = '1') EXECUTE FUNCTION keep()
            """
        )
        for deleted in (3, 0):
            assert (run.archive()["event"], listed(counted)) == ([deleted], {"event": 1})
        [task] = run.plan()
        assert (run.delete([task]), run.left) == ([0], 1)
        assert run.log.endswith("; 1 did not go, and nothing of ours keeps them")
        counted.connection.execute("DROP TRIGGER keep ON analytics_event")
        assert run.archive()["event"] == [1]
        assert (listed(counted), late(counted)) == ({}, {})
