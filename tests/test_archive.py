"""The SQL of archive_old_analytics: what expires, in which steps and batches, and which sessions may go."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from aggregation_steps import aggregate, aggregate_due, set_zone
from conftest import Database
from retention_steps import (
    CUTOFF,
    DAY,
    HOUR,
    Retention,
    connect,
    ids,
    policy,
    retention,
)

MICROSECOND = timedelta(microseconds=1)
OLD = CUTOFF - DAY


def insert(database: Database, rows: int, first: datetime, apart: timedelta = MICROSECOND) -> None:
    """Soft-deleted events, which need no row to be listed, with ids in no order."""
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp, deleted_at)
        SELECT md5(i::text), 'site', '/', 'v', 's', %s + i * %s, now() FROM generate_series(0, %s - 1) AS i
        """,
        [first, apart, rows],
    )


class TestFindExpired:
    @pytest.mark.parametrize(
        ("now", "retention_days", "timezone"),
        [
            ("2024-06-15T12:00Z", 90, "UTC"),
            ("2024-06-15T00:00Z", 90, "UTC"),
            ("2024-06-14T23:59:59.999999Z", 90, "UTC"),
            ("2024-06-15T12:00Z", 1, "UTC"),
            ("2024-06-15T03:00Z", 90, "America/New_York"),  # still the 14th there
            ("2024-06-15T20:00Z", 90, "Asia/Kolkata"),  # the 16th already
            ("2024-03-20T12:00Z", 10, "America/New_York"),  # the cutoff's day has 23 hours
            ("2024-11-20T12:00Z", 17, "America/New_York"),  # 25 hours
            ("2024-10-20T12:00Z", 14, "Australia/Lord_Howe"),
            ("2018-11-14T12:00Z", 10, "America/Sao_Paulo"),  # that day began at one o'clock
            ("2024-11-10T12:00Z", 14, "Atlantic/Azores"),  # that day had two midnights
        ],
    )
    def test_the_cutoff_is_the_start_of_a_day(
        self, database: Database, now: str, retention_days: int, timezone: str
    ) -> None:
        set_zone(database, timezone)
        today = datetime.fromisoformat(now).astimezone(ZoneInfo(timezone)).date()
        day = today - timedelta(days=retention_days)
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)).astimezone(UTC)
        for moment in (midnight - MICROSECOND, midnight):
            database.event(moment)
        with retention(database, datetime.fromisoformat(now)) as run:
            found = run.find(retention_days=retention_days)
            assert found["cutoff"] == f"{midnight:%Y-%m-%d %H:%M} UTC"
            last = str(day - DAY)
            assert (found["events"], found["steps"]) == (1, [{"first_day": last, "last_day": last}])
            assert run.archive(retention_days=retention_days)["event"] == [1]
        assert database.value("SELECT timestamp FROM analytics_event") == midnight

    def test_nothing_has_expired(self, database: Database, run: Retention) -> None:
        database.event(CUTOFF)
        found = run.find()
        assert found.pop("bytes") > 0
        assert found == {"cutoff": "2024-03-01 00:00 UTC", "left_days": 0, "events": 0, "steps": []}
        assert run.log == "[Analytics Archive] Raw data before 2024-03-01 00:00 UTC has expired"

    def test_every_website_and_soft_deleted_events(self, database: Database, run: Retention) -> None:
        columns: dict[str, Any]
        for columns in ({}, {"deleted_at": CUTOFF}, {"website_id": "other"}):
            database.event(CUTOFF - MICROSECOND, **columns)
            database.event(CUTOFF, **columns)
        assert run.find()["events"] == 3
        assert run.archive()["event"] == [3]
        assert database.value("SELECT min(timestamp) FROM analytics_event") == CUTOFF

    def test_a_website_has_its_own_retention_time_zone_and_hold(self, database: Database, run: Retention) -> None:
        for website_id, columns in (
            ("short", "retention_days = 80"), ("long", "retention_days = 100"), ("held", "legal_hold = TRUE")
        ):  # fmt: skip
            policy(database, columns, website_id)
        set_zone(database, "Asia/Kolkata", "east")
        cutoffs = {
            "none": CUTOFF,
            "short": CUTOFF + 10 * DAY,
            "long": CUTOFF - 10 * DAY,
            "held": CUTOFF - 1000 * DAY,
            "east": CUTOFF - timedelta(hours=5, minutes=30),
        }
        for website_id, cutoff in cutoffs.items():
            for moment in (cutoff - MICROSECOND, cutoff):
                database.event(moment, website_id=website_id)
                database.session(moment, moment, website_id=website_id, id=f"{website_id} {moment == cutoff}")
        assert run.find()["events"] == 4
        assert run.log.splitlines()[0].endswith(
            "; 3 website(s) have a policy of their own; legal hold on the raw data of held"
        )
        assert run.archive() == {"event": [4], "session": [4]}
        left = database.query("SELECT * FROM analytics_event WHERE timestamp <> %s", cutoffs["held"] - MICROSECOND)
        assert {row["website_id"]: row["timestamp"] for row in left} == cutoffs
        assert ids(database, "session") == {f"{name} True" for name in cutoffs} | {"held False"}

    def test_events_of_no_calendar_day_are_left_and_named(self, database: Database, run: Retention) -> None:
        for moment in ("-infinity", "infinity", "0001-12-31 12:00 BC", "20000-01-01"):
            database.event(moment, id=moment)
        database.event("0001-01-01", id="first")
        assert run.find()["events"] == 1
        left = "[Analytics Archive] Website site: 4 event(s) have a time that no calendar has; they are left"
        assert left in run.log.splitlines()
        assert run.archive()["event"] == [1]
        assert len(ids(database)) == 4
        assert "first" not in ids(database)

    def test_days_are_cut_into_steps_of_about_100000_events(self, database: Database, run: Retention) -> None:
        for days, events in enumerate([1, 40_000, 50_000, 60_000, 250_000, 10_000, 40_000, 1]):
            database.event(CUTOFF - (9 - days) * DAY, website_id=f"{events} {days}")
        # A website's name says how many events it has.
        database.connection.execute(
            """
            CREATE FUNCTION clock.analytics_signs(text, timestamptz, timestamptz, OUT total_events bigint,
                OUT deleted_events bigint, OUT edits_hash bigint)
            RETURN (split_part($1, ' ', 1)::bigint, 0::bigint, 0::bigint)
            """
        )
        found = run.find()
        steps = [(step["first_day"][-2:], step["last_day"][-2:]) for step in found["steps"]]
        # A step ends with the day that reaches 100,000, or the next multiple of it.
        assert steps == [("21", "24"), ("25", "25"), ("26", "28")]
        assert (found["events"], found["left_days"]) == (450_002, 0)

    @pytest.mark.parametrize(("events", "left_days"), [(9_999, 0), (10_000, 1)])
    def test_a_run_takes_10000_batches(self, database: Database, run: Retention, events: int, left_days: int) -> None:
        insert(database, events, OLD - DAY)
        database.event(OLD, deleted_at=CUTOFF)
        found = run.find(batch_size=1)
        assert found["left_days"] == left_days
        assert found["events"] == events + 1 - left_days
        assert [step["last_day"] for step in found["steps"]] == ["2024-02-28" if left_days else "2024-02-29"]
        line = "1 more day(s) have expired than a run takes: the next run goes on with them"
        assert (line in run.log) == bool(left_days)

    def test_a_run_takes_1000_days_the_oldest_first(self, database: Database, run: Retention) -> None:
        insert(database, 1002, CUTOFF - 1002 * DAY, DAY)
        found = run.find()
        assert found.pop("bytes") > 0
        first, last = (str((CUTOFF - n * DAY).date()) for n in (1002, 3))
        assert found == {
            "cutoff": "2024-03-01 00:00 UTC", "left_days": 2, "events": 1000,
            "steps": [{"first_day": first, "last_day": last}],
        }  # fmt: skip
        assert run.archive()["event"] == [1000]
        assert run.archive()["event"] == [2]


def contents(database: Database) -> list[Any]:
    """Every row of every table that the jobs may write, and its version."""
    tables = ("event", "session", "daily_stats", "purge_batch", "timezone", "job_run", "alert")
    return [database.query(f"SELECT *, ctid::text, xmin::text FROM analytics_{name} ORDER BY ctid") for name in tables]


def test_a_dry_run_writes_nothing_and_says_what_would_go(database: Database, run: Retention) -> None:
    for deleted_at in (None, CUTOFF):
        database.event(OLD, session_id="old", deleted_at=deleted_at)
    database.event(OLD - DAY, session_id="older")
    aggregate_due(database)
    run.seal(retention_days=91)
    database.event(OLD - DAY, id="late")
    database.event(OLD - 2 * DAY, website_id="other", session_id="other")
    database.event(CUTOFF, session_id="kept")
    for name in ("old", "older", "kept"):
        database.session(OLD, OLD, session_id=name)
    before = contents(database)
    found = run.find(dry_run=True)
    assert found["events"] == 5
    # What a real run would find is said as well.
    assert [step["named"] for step in run.seal(dry_run=True)] == ["other 2024-02-27 (1 event(s), no stats)"]
    assert "1 event(s) came after its stats were sealed" in run.log
    assert run.log.endswith("; a dry run writes nothing")
    # Those of events that would be gone by then would go as well.
    assert run.list_sessions(dry_run=True) == 2
    assert run.plan("event", dry_run=True) == run.plan("session", dry_run=True) == []
    assert contents(database) == before


class TestPlan:
    @pytest.mark.parametrize(
        ("rows", "batches"),
        [(0, []), (1, [1]), (999, [999]), (1000, [1000]), (1001, [1000, 1]), (2500, [1000, 1000, 500])],
    )
    def test_every_expired_event_is_in_one_batch_of_at_most_batch_size(
        self, database: Database, run: Retention, rows: int, batches: list[int]
    ) -> None:
        insert(database, rows, OLD)
        assert run.seal() == []
        planned = database.query("SELECT * FROM analytics_purge_batch ORDER BY number")
        assert [(row["rows"], len(row["deleted_ids"])) for row in planned] == [(n, n) for n in batches]
        assert {name for row in planned for name in row["deleted_ids"]} == ids(database)
        # The oldest first, so that a batch reads few pages of the table.
        assert all(one["last_at"] < other["first_at"] for one, other in pairwise(planned))
        assert run.delete(run.plan()) == batches

    def test_a_task_is_told_which_batches_it_has_and_how_far_that_is(self, database: Database, run: Retention) -> None:
        insert(database, 5, OLD, 5 * HOUR)
        run.seal(batch_size=2)
        tasks = run.plan(retention_days=30)
        assert run.log == "[Analytics Archive] Found 5 old event(s) in 3 batch(es)"
        labels = [f"batch {n} of 3, to 2024-02-29 {hour}:00" for n, hour in ((1, "05"), (2, "15"), (3, "20"))]
        assert [task["label"] for task in tasks] == labels
        numbers = database.query("SELECT number FROM analytics_purge_batch ORDER BY number")
        assert [task["steps"] for task in tasks] == [
            [{"number": row["number"], "done": done, "total": 5}] for row, done in zip(numbers, (2, 4, 5), strict=True)
        ]
        assert {task["retention_days"] for task in tasks} == {30}

    def test_the_log_counts_up_to_the_total(self, database: Database, run: Retention) -> None:
        insert(database, 5, OLD, HOUR)
        run.seal(batch_size=2)
        tasks = run.plan()
        logs = []
        for task in tasks:
            run.delete([task])
            logs.append(run.log)
        assert logs == [
            f"[Analytics Archive] Deleted batch of {rows} events ({done}/5)" for rows, done in ((2, 2), (2, 4), (1, 5))
        ]

    @pytest.mark.parametrize(("rows", "tasks", "steps"), [(1000, 1000, 1), (1001, 501, 2), (2001, 667, 3)])
    def test_beyond_1000_batches_a_task_takes_several(
        self, database: Database, run: Retention, rows: int, tasks: int, steps: int
    ) -> None:
        insert(database, rows, OLD)
        run.seal(batch_size=1)
        planned = run.plan()
        assert len(planned) == tasks
        assert {len(task["steps"]) for task in planned[:-1]} == {steps}
        done = [step["done"] for task in planned for step in task["steps"]]
        assert done == list(range(1, rows + 1))
        assert {step["total"] for task in planned for step in task["steps"]} == {rows}
        if steps > 1:
            assert planned[1]["label"].startswith(f"batch {steps + 1}-{2 * steps} of {rows},")


@pytest.mark.parametrize("table", ["event", "session"])
@pytest.mark.parametrize("analyzed", [False, True])
def test_a_batch_reads_its_rows_by_their_primary_key_and_nothing_else(
    database: Database, run: Retention, table: str, analyzed: bool
) -> None:
    insert(database, 4_000, OLD)
    database.connection.execute(
        """
        UPDATE analytics_event SET session_id = id, deleted_at = CASE WHEN id < '8' THEN now() END;
        INSERT INTO analytics_session (
            id, website_id, session_id, visitor_id, entry_page, started_at, last_activity_at
        )
        SELECT id, website_id, 'gone ' || id, visitor_id, '/', timestamp, timestamp FROM analytics_event
        """
    )
    aggregate(database, "2024-02-29")
    run.seal(batch_size=10)
    run.list_sessions(batch_size=10)
    if analyzed:
        database.connection.execute("ANALYZE")
    [task, *_] = run.plan(table)
    # In a session of its own, for numbers of an earlier transaction may be among those of this one.
    with connect(database) as connection, connection.transaction():
        assert Retention(connection).delete([task], table) == [10]
        rows = connection.execute("SELECT * FROM pg_stat_xact_user_tables").fetchall()
    reads = {row["relname"]: (row["seq_scan"], row["idx_tup_fetch"]) for row in rows}
    # Events once, since all of them have expired by far; sessions once to look at each of them, and once to delete it.
    assert reads[f"analytics_{table}"] == ((0, 10) if table == "event" else (0, 20))
    assert reads["analytics_event"][0] == 0
