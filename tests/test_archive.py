"""The SQL of archive_old_analytics: what expires, how it is cut into batches, and what a batch may delete."""

from bisect import bisect_left
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import LOGIN, SQL, Database

FOLDER = "archive_old_analytics"
DELETE_EVENTS = f"{FOLDER}/delete_event_batch.sql"
DELETE_SESSIONS = f"{FOLDER}/delete_session_batch.sql"
AGGREGATE = "aggregate_daily_analytics/aggregate_day.sql"
UNAGGREGATED = "aggregate_daily_analytics/find_unaggregated_days.sql"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
CUTOFF = datetime(2024, 3, 1, tzinfo=UTC)
TABLES = pytest.mark.parametrize("table", ["event", "session"])
TIME = {"event": "timestamp", "session": "started_at"}


def count_expired(database: Database, retention_days: int = 90, timezone: str = "UTC", connection: Any = None) -> Any:
    return database.run(f"{FOLDER}/count_expired.sql", connection, retention_days=retention_days, timezone=timezone)[0]


def plan(database: Database, table: str, expired: int, batch_size: int = 1000, **parameters: Any) -> Any:
    defaults: dict[str, Any] = {
        "cutoff": CUTOFF,
        "expired": expired,
        "batch_size": batch_size,
        "timezone": "UTC",
        "dry_run": False,
    }
    return database.run(f"{FOLDER}/plan_{table}_batches.sql", **defaults | parameters)


def aggregate_all(database: Database, timezone: str = "UTC") -> None:
    for day in database.run(UNAGGREGATED, database.connection, before=None, timezone=timezone):
        database.run(AGGREGATE, database.connection, **day)


def delete_events(
    database: Database,
    after: tuple[datetime | str, str] = ("-infinity", ""),
    to: tuple[datetime, str] = (CUTOFF, ""),
    timezone: str = "UTC",
    **parameters: Any,
) -> int:
    """Aggregate what is not aggregated, then delete one batch of the events after `after` up to and including `to`."""
    aggregate_all(database, timezone)
    defaults: dict[str, Any] = {"cutoff": CUTOFF, "batch_size": 1000, "timezone": timezone}
    bounds: dict[str, Any] = {"lo_timestamp": after[0], "lo_id": after[1], "hi_timestamp": to[0], "hi_id": to[1]}
    return int(database.run(DELETE_EVENTS, **defaults | bounds | parameters))


def delete_sessions(
    database: Database,
    after: tuple[datetime | str, str] = ("-infinity", ""),
    to: tuple[datetime, str] = (CUTOFF, ""),
    batch_size: int = 1000,
) -> int:
    """Delete one batch of the sessions after `after` up to and including `to`."""
    bounds: dict[str, Any] = {"lo_started_at": after[0], "lo_id": after[1], "hi_started_at": to[0], "hi_id": to[1]}
    return int(database.run(DELETE_SESSIONS, cutoff=CUTOFF, batch_size=batch_size, **bounds))


def archive(database: Database, cutoff: datetime, batch_size: int, timezone: str = "UTC") -> dict[str, list[int]]:
    """All statements of a run in the order of its tasks; return the rows that each batch deleted."""
    connection = database.connection
    common = {"cutoff": cutoff, "timezone": timezone, "batch_size": batch_size, "dry_run": False}
    plans = {}
    for table, time in TIME.items():
        expired = database.value(f"SELECT COUNT(*) FROM analytics_{table} WHERE {time} < %s", cutoff)
        plans[table] = database.run(f"{FOLDER}/plan_{table}_batches.sql", connection, **common, expired=expired)
    return {
        table: [
            database.run(f"{FOLDER}/delete_{table}_batch.sql", connection, **batch)
            for batch in plans[table]
            for _ in range(batch["batches"])
        ]
        for table in TIME
    }


def ids(database: Database, table: str = "event") -> set[str]:
    return {row["id"] for row in database.query(f"SELECT id FROM analytics_{table}")}


def stats(database: Database) -> list[dict[str, Any]]:
    return database.query("SELECT *, ctid::text, xmin::text FROM analytics_daily_stats ORDER BY website_id, date")


def purged_days(database: Database) -> list[tuple[str, str]]:
    query = "SELECT website_id, date::text FROM analytics_daily_stats WHERE raw_purged_at IS NOT NULL ORDER BY 1, 2"
    return [(row["website_id"], row["date"]) for row in database.query(query)]


def aggregate(database: Database, *days: date, timezone: str = "UTC") -> None:
    for day in days:
        database.run(AGGREGATE, database.connection, day=day, timezone=timezone)


class TestCountExpired:
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
            ("2024-03-20T12:00Z", 11, "America/New_York"),
            ("2024-11-20T12:00Z", 17, "America/New_York"),  # 25 hours
            ("2024-11-20T12:00Z", 18, "America/New_York"),
            ("2024-10-20T12:00Z", 14, "Australia/Lord_Howe"),
            ("2024-10-20T12:00Z", 15, "Australia/Lord_Howe"),
            ("2018-11-14T12:00Z", 10, "America/Sao_Paulo"),  # that day began at one o'clock
            ("2024-11-10T12:00Z", 14, "Atlantic/Azores"),  # that day had two midnights
        ],
    )
    def test_the_cutoff_is_the_start_of_a_day(
        self, database: Database, now: str, retention_days: int, timezone: str
    ) -> None:
        # The file says NOW(), and search_path decides whose.
        database.connection.execute(
            f"CREATE SCHEMA clock; CREATE FUNCTION clock.now() RETURNS timestamptz RETURN '{now}'::timestamptz".encode()
        )
        options = "-c search_path=clock,analytics,public,pg_catalog -c timezone=Pacific/Auckland"
        with database.connect(options=options) as connection:
            counted = count_expired(database, retention_days, timezone, connection)
        day = datetime.fromisoformat(now).astimezone(ZoneInfo(timezone)).date() - timedelta(days=retention_days)
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone))
        assert datetime.fromisoformat(counted["cutoff"]) == midnight.astimezone(UTC)

    def test_nothing_has_expired(self, database: Database, midnight: datetime) -> None:
        database.event(midnight)
        database.session(midnight, midnight)
        counted = count_expired(database)
        assert (counted["events"], counted["sessions"]) == (0, 0)
        assert datetime.fromisoformat(counted["cutoff"]) == midnight
        assert counted["database_bytes"] > 1_000_000
        assert counted["database_size"].endswith(("kB", "MB"))

    def test_expired_rows_are_counted_soft_deleted_ones_as_well(self, database: Database, midnight: datetime) -> None:
        before = midnight - MICROSECOND
        for columns in ({}, {"deleted_at": midnight}, {"website_id": "other"}):
            database.event(before, **columns)
            database.event(midnight, **columns)
            database.session(before, before, **columns)
            database.session(before, midnight, **columns)
        counted = count_expired(database)
        assert (counted["events"], counted["sessions"]) == (3, 3)

    def test_a_session_with_a_kept_event_has_not_expired(self, database: Database, midnight: datetime) -> None:
        before = midnight - MICROSECOND
        for name, moment, deleted_at in (
            ("kept", midnight, None),
            ("old event", before, None),
            ("deleted event", midnight, midnight),
        ):
            database.session(before, before, session_id=name)
            database.event(moment, session_id=name, deleted_at=deleted_at)
        assert count_expired(database)["sessions"] == 2


def insert(database: Database, table: str, rows: int, ties: int = 7) -> None:
    """Expired rows with ids in no order, `ties` of them at each moment, and as many rows that are kept."""
    columns, values = {
        "event": ("pathname, session_id, timestamp", "'session', new.moment"),
        "session": ("entry_page, session_id, started_at, last_activity_at", "new.i, new.moment, new.moment"),
    }[table]
    database.connection.execute(
        f"""
        INSERT INTO analytics_{table} (id, website_id, visitor_id, {columns})
        SELECT MD5(new.i::text), 'site', 'visitor', '/', {values}
        FROM (
            SELECT
                i,
                '{CUTOFF}'::timestamptz
                + CASE WHEN i <= {rows} THEN INTERVAL '-1 day' ELSE INTERVAL '0' END
                + DIV(i - 1, {ties}) * INTERVAL '1 second' AS moment
            FROM GENERATE_SERIES(1, {2 * rows}) AS i
        ) AS new
        """.encode()
    )


class TestPlan:
    @TABLES
    @pytest.mark.parametrize(
        ("rows", "ties", "batches"), [(0, 1, 0), (1, 1, 1), (999, 7, 1), (1000, 7, 1), (1001, 7, 2), (2500, 2500, 3)]
    )
    def test_every_expired_row_is_in_exactly_one_batch_of_at_most_batch_size(
        self, database: Database, table: str, rows: int, ties: int, batches: int
    ) -> None:
        insert(database, table, rows, ties)
        time = TIME[table]
        planned = plan(database, table, rows)
        assert len(planned) == batches
        for before, after in pairwise([{f"hi_{time}": "-infinity", "hi_id": ""}, *planned]):
            assert (after[f"lo_{time}"], after["lo_id"]) == (before[f"hi_{time}"], before["hi_id"])
        his = [(datetime.fromisoformat(row[f"hi_{time}"]), row["hi_id"]) for row in planned]
        counts = [0] * batches
        for row in database.query(f"SELECT {time} AS moment, id FROM analytics_{table} WHERE {time} < %s", CUTOFF):
            counts[bisect_left(his, (row["moment"], row["id"]))] += 1
        assert counts == [1000] * (rows // 1000) + [rows % 1000] * (rows % 1000 > 0)

    @TABLES
    def test_a_task_is_told_all_that_its_batch_needs(self, database: Database, table: str) -> None:
        insert(database, table, 5, 1)
        planned = plan(database, table, 5, batch_size=2)
        assert [row["label"] for row in planned] == [
            "batch 1 of 3, to 2024-02-29 00:00",
            "batch 2 of 3, to 2024-02-29 00:00",
            "batch 3 of 3, to 2024-03-01 00:00",
        ]
        assert [row["done"] for row in planned] == [0, 2, 4]
        assert {(row["batch_size"], row["batches"], row["expired"]) for row in planned} == {(2, 1, 5)}
        assert {datetime.fromisoformat(row["cutoff"]) for row in planned} == {CUTOFF}

    @TABLES
    def test_the_bounds_are_exact_to_the_microsecond(self, database: Database, table: str) -> None:
        for n in range(1, 5):
            moment = CUTOFF - n * MICROSECOND
            database.event(moment, id=str(n)) if table == "event" else database.session(moment, moment, id=str(n))
        planned = plan(database, table, 4, batch_size=1)
        assert len(planned) == 4
        aggregate_all(database)
        for row in planned:
            assert database.run(f"{FOLDER}/delete_{table}_batch.sql", **row) == 1

    @TABLES
    @pytest.mark.parametrize("dry_run", [True, "True", "true"])
    def test_a_dry_run_plans_no_batch(self, database: Database, table: str, dry_run: bool | str) -> None:
        insert(database, table, 10)
        assert plan(database, table, 10, dry_run=dry_run) == []
        assert len(plan(database, table, 10, dry_run="False")) == 1

    @TABLES
    @pytest.mark.parametrize(
        ("rows", "tasks", "batches"), [(1000, 1000, 1), (1001, 501, 2), (2000, 1000, 2), (2001, 667, 3)]
    )
    def test_beyond_1000_batches_a_task_takes_several(
        self, database: Database, table: str, rows: int, tasks: int, batches: int
    ) -> None:
        insert(database, table, rows)
        planned = plan(database, table, rows, batch_size=1)
        assert len(planned) == tasks
        assert {row["batches"] for row in planned} == {batches}
        assert [row["done"] for row in planned] == list(range(0, rows, batches))
        assert planned[-1]["label"].startswith(f"batch {1 + (tasks - 1) * batches}")
        assert planned[-1]["label"].split(",")[0].endswith(f"{rows} of {rows}")

    def test_two_and_a_half_million_rows_are_834_tasks_of_three_batches(self, database: Database) -> None:
        rows = 2_500_000
        database.connection.execute(
            f"""
            DO $$
            DECLARE
                index regclass;
            BEGIN
                ALTER TABLE analytics_event SET UNLOGGED, DROP CONSTRAINT analytics_event_pkey;
                FOR index IN SELECT indexrelid FROM pg_index WHERE indrelid = 'analytics_event'::regclass LOOP
                    EXECUTE 'DROP INDEX ' || index;
                END LOOP;
            END
            $$;
            INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
            SELECT
                TO_HEX(HASHINT4(i)) || '_' || i, 's', '/', 'v', 's',
                '{CUTOFF}'::timestamptz - DIV({rows} - i + 1, 4) * INTERVAL '1 second' - INTERVAL '1 second'
            FROM GENERATE_SERIES(1, {rows}) AS i;
            CREATE UNIQUE INDEX analytics_event_timestamp_id_idx ON analytics_event (timestamp, id)
            """.encode()
        )
        database.connection.execute("VACUUM ANALYZE analytics_event")
        planned = plan(database, "event", rows)
        every_3000th = database.query(
            """
            SELECT numbered.timestamp, numbered.id
            FROM (
                SELECT timestamp, id, ROW_NUMBER() OVER (ORDER BY timestamp, id) AS number FROM analytics_event
            ) AS numbered
            WHERE numbered.number %% 3000 = 0
            ORDER BY numbered.number
            """
        )
        assert len(planned) == 834
        assert {row["batches"] for row in planned} == {3}
        cuts = [(row["timestamp"], row["id"]) for row in every_3000th]
        assert [(datetime.fromisoformat(row["hi_timestamp"]), row["hi_id"]) for row in planned] == [*cuts, (CUTOFF, "")]
        assert (planned[0]["lo_timestamp"], planned[0]["lo_id"]) == ("-infinity", "")
        assert [(row["lo_timestamp"], row["lo_id"]) for row in planned[1:]] == [
            (row["hi_timestamp"], row["hi_id"]) for row in planned[:-1]
        ]
        assert planned[-1]["label"] == "batch 2500 of 2500, to 2024-03-01 00:00"

    def test_a_plan_does_not_cut_at_sessions_that_stay(self, database: Database) -> None:
        old = CUTOFF - DAY
        for n in range(6):
            database.session(old + n * HOUR, old + n * HOUR, id=str(n), session_id=str(n))
        database.event(CUTOFF, session_id="1")
        database.connection.execute("UPDATE analytics_session SET last_activity_at = %s WHERE id = '3'", [CUTOFF])
        assert [row["hi_id"] for row in plan(database, "session", 4, batch_size=2)] == ["2", ""]

    def test_sessions_that_all_stay_give_no_batch(self, database: Database) -> None:
        database.session(CUTOFF - DAY, CUTOFF)
        database.session(CUTOFF - DAY, CUTOFF - DAY, session_id="kept")
        database.event(CUTOFF, session_id="kept")
        assert plan(database, "session", 2) == []


class TestDeleteEventBatch:
    def test_nothing_to_do(self, database: Database) -> None:
        assert delete_events(database) == 0

    def test_its_range_only_without_the_first_bound_and_with_the_last(self, database: Database) -> None:
        old = CUTOFF - DAY
        for moment in (old, old + HOUR):
            for name in "abc":
                database.event(moment, id=f"{moment.hour}{name}")
        assert delete_events(database, (old, "0b"), (old + HOUR, "1b")) == 3
        assert ids(database) == {"0a", "0b", "1c"}

    def test_at_most_batch_size_the_oldest_first(self, database: Database) -> None:
        for n in (3, 1, 5, 2, 4):
            database.event(CUTOFF - n * HOUR, id=str(n))
        assert delete_events(database, batch_size=2) == 2
        assert ids(database) == {"1", "2", "3"}
        assert [delete_events(database, batch_size=2) for _ in range(3)] == [2, 1, 0]

    def test_repeated_it_deletes_nothing_more_and_writes_nothing(self, database: Database) -> None:
        database.event(CUTOFF - 2 * HOUR, id="in")
        database.event(CUTOFF - HOUR, id="out")
        aggregate(database, (CUTOFF - DAY).date())
        last = (CUTOFF - 2 * HOUR, "in")
        assert delete_events(database, to=last, batch_size=1) == 1
        before = stats(database)
        assert delete_events(database, to=last, batch_size=1) == 0
        assert ids(database) == {"out"}
        assert stats(database) == before

    def test_a_late_row_in_its_range_takes_no_place_beyond_it(self, database: Database) -> None:
        for n in range(4):
            database.event(CUTOFF - DAY + n * HOUR, id=str(n))
        first, second = plan(database, "event", 4, batch_size=2)
        aggregate_all(database)
        database.event(CUTOFF - DAY + HOUR / 2, id="late")
        assert database.run(DELETE_EVENTS, **first) == 2
        assert ids(database) == {"1", "2", "3"}
        assert database.run(DELETE_EVENTS, **second) == 2
        assert ids(database) == {"1"}

    def test_never_a_row_at_or_after_the_cutoff(self, database: Database) -> None:
        for n in (-1, 0, 1):
            database.event(CUTOFF + n * MICROSECOND, id=str(n))
        assert delete_events(database, to=(CUTOFF + DAY, "")) == 1
        assert ids(database) == {"0", "1"}

    def test_a_row_that_moves_past_the_cutoff_while_the_statement_reads_stays(self, database: Database) -> None:
        database.event(CUTOFF - HOUR, id="moves")
        database.event(CUTOFF - HOUR, id="goes")
        aggregate_all(database)
        with database.gate("analytics_event"):
            bounds = {"lo_timestamp": "-infinity", "lo_id": "", "hi_timestamp": CUTOFF, "hi_id": ""}
            batch = database.start(DELETE_EVENTS, **bounds, cutoff=CUTOFF, batch_size=10, timezone="UTC")
            database.connection.execute("UPDATE analytics_event SET timestamp = %s WHERE id = 'moves'", [CUTOFF])
        assert batch.result(timeout=10) == 1
        assert ids(database) == {"moves"}

    def test_soft_deleted_events_and_every_website_go(self, database: Database) -> None:
        database.event(CUTOFF - HOUR, deleted_at=CUTOFF)
        database.event(CUTOFF - HOUR, website_id="other")
        assert delete_events(database) == 2

    @pytest.mark.parametrize(
        ("timezone", "touched"),
        [("UTC", ("2024-02-28", "2024-02-29")), ("Asia/Kolkata", ("2024-02-29", "2024-03-01"))],
    )
    def test_the_days_that_it_touches_become_final_in_the_same_transaction(
        self, database: Database, timezone: str, touched: tuple[str, str]
    ) -> None:
        one, two = datetime(2024, 2, 28, 20, tzinfo=UTC), datetime(2024, 2, 29, 20, tzinfo=UTC)
        database.event(one, website_id="a")
        database.event(two, website_id="b")
        for website_id in ("a", "b", "c"):
            database.event(one - 5 * DAY, website_id=website_id, id=f"other day {website_id}")
        days = [date(2024, 2, 20) + n * DAY for n in range(12)]
        aggregate(database, *days, timezone=timezone)
        assert delete_events(database, (one - DAY, ""), timezone=timezone) == 2
        assert purged_days(database) == [("a", touched[0]), ("b", touched[1])]
        once = stats(database)
        purged = [row["raw_purged_at"] for row in once if row["raw_purged_at"]]
        assert len(set(purged)) == 1
        assert delete_events(database, timezone=timezone) == 3
        assert [row for row in stats(database) if row["raw_purged_at"] in purged] == [
            row for row in once if row["raw_purged_at"]
        ]

    def test_an_event_of_a_day_without_stats_stays(self, database: Database) -> None:
        database.event(CUTOFF - HOUR, website_id="a", id="counted")
        aggregate_all(database)
        plan_row = plan(database, "event", 1)[0]
        database.event(CUTOFF - 2 * HOUR, website_id="b", id="late")
        database.event(CUTOFF - 2 * HOUR, website_id="b", id="late, soft-deleted", deleted_at=CUTOFF)
        assert database.run(DELETE_EVENTS, **plan_row) == 2
        assert ids(database) == {"late"}
        assert purged_days(database) == [("a", "2024-02-29")]

    def test_a_day_that_was_purged_before_keeps_its_mark(self, database: Database) -> None:
        for n in (1, 2):
            database.event(CUTOFF - n * HOUR)
        aggregate(database, (CUTOFF - DAY).date())
        assert delete_events(database, batch_size=1) == 1
        once = stats(database)
        assert delete_events(database, batch_size=1) == 1
        assert stats(database) == once

    def test_what_is_left_of_a_day_is_not_counted_again(self, database: Database) -> None:
        for n in (1, 2):
            database.event(CUTOFF - n * HOUR)
        aggregate(database, (CUTOFF - DAY).date())
        assert delete_events(database, batch_size=1) == 1
        before = stats(database)
        aggregate(database, (CUTOFF - DAY).date())
        assert stats(database) == before
        assert before[0]["total_events"] == 2

    def test_batches_that_share_a_day_wait_for_each_other(self, database: Database) -> None:
        for n in range(1, 5):
            database.event(CUTOFF - n * HOUR)
        aggregate(database, (CUTOFF - DAY).date())
        first_batch, second_batch = plan(database, "event", 4, batch_size=2)
        with database.connect(LOGIN) as first:
            with first.transaction():
                assert database.run(DELETE_EVENTS, first, **first_batch) == 2
                second = database.start(DELETE_EVENTS, **second_batch)
            assert second.result(timeout=10) == 2
        assert ids(database) == set()
        assert purged_days(database) == [("site", "2024-02-29")]

    def test_days_are_locked_in_one_order(self, database: Database) -> None:
        # Events and rows alike come in the other order.
        for n, website_id in enumerate("zyxwvutsrqponmlkjihgfedcba"):
            database.event(CUTOFF - DAY + n * MICROSECOND, website_id=website_id)
            aggregate(database, (CUTOFF - DAY).date())
        with database.connect() as other:
            with other.transaction():
                other.execute("SELECT FROM analytics_daily_stats WHERE website_id = 'a' FOR UPDATE")
                batch = database.start(
                    DELETE_EVENTS, lo_timestamp="-infinity", lo_id="", hi_timestamp=CUTOFF, hi_id="", cutoff=CUTOFF,
                    batch_size=1000, timezone="UTC",
                )  # fmt: skip
                # It waits for a, so it holds no other row, which somebody else may have locked before waiting for a.
                other.execute("SELECT FROM analytics_daily_stats WHERE website_id <> 'a' FOR UPDATE NOWAIT")
            assert batch.result(timeout=10) == 26


class TestDeleteSessionBatch:
    def test_nothing_to_do(self, database: Database) -> None:
        assert delete_sessions(database) == 0

    def test_the_last_activity_decides(self, database: Database) -> None:
        database.session(CUTOFF - DAY, CUTOFF - MICROSECOND, id="expired")
        database.session(CUTOFF - DAY, CUTOFF, id="kept")
        database.session(CUTOFF - DAY, CUTOFF - HOUR, id="deleted", deleted_at=CUTOFF)
        database.session(CUTOFF - DAY, CUTOFF - HOUR, id="ended", ended_at=CUTOFF - HOUR)
        assert delete_sessions(database, to=(CUTOFF + DAY, "")) == 3
        assert ids(database, "session") == {"kept"}

    @pytest.mark.parametrize(
        ("moment", "deleted_at", "left"),
        [
            (CUTOFF, None, 1),
            (CUTOFF - HOUR, None, 1),  # it arrived after the batches were planned
            (CUTOFF - HOUR, CUTOFF, 0),
            (CUTOFF, CUTOFF, 0),
        ],
    )
    def test_an_event_that_is_left_keeps_its_session(
        self, database: Database, moment: datetime, deleted_at: datetime | None, left: int
    ) -> None:
        database.session(CUTOFF - DAY, CUTOFF - DAY, session_id="this", id="this")
        database.session(CUTOFF - DAY, CUTOFF - DAY, session_id="bystander")
        database.event(moment, session_id="this", deleted_at=deleted_at)
        assert delete_sessions(database) == 2 - left
        assert ids(database, "session") == {"this"} & ({"this"} if left else set())

    def test_its_range_only_without_the_first_bound_and_with_the_last(self, database: Database) -> None:
        old = CUTOFF - DAY
        for moment in (old, old + HOUR):
            for name in "abc":
                database.session(moment, moment, id=f"{moment.hour}{name}")
        assert delete_sessions(database, (old, "0b"), (old + HOUR, "1b")) == 3
        assert ids(database, "session") == {"0a", "0b", "1c"}

    def test_at_most_batch_size_the_oldest_first_and_repeated_nothing_more(self, database: Database) -> None:
        for n in (3, 1, 2):
            database.session(CUTOFF - n * HOUR, CUTOFF - n * HOUR, id=str(n))
        assert delete_sessions(database, batch_size=2) == 2
        assert ids(database, "session") == {"1"}
        assert [delete_sessions(database, batch_size=2) for _ in range(2)] == [1, 0]

    def test_a_visitor_who_returns_while_the_statement_reads_keeps_the_session(self, database: Database) -> None:
        database.session(CUTOFF - DAY, CUTOFF - DAY, id="returns")
        database.session(CUTOFF - DAY, CUTOFF - DAY, id="gone")
        with database.gate("analytics_session"):
            bounds = {"lo_started_at": "-infinity", "lo_id": "", "hi_started_at": CUTOFF, "hi_id": ""}
            batch = database.start(DELETE_SESSIONS, **bounds, cutoff=CUTOFF, batch_size=10)
            database.connection.execute("UPDATE analytics_session SET last_activity_at = NOW() WHERE id = 'returns'")
        assert batch.result(timeout=10) == 1
        assert ids(database, "session") == {"returns"}


class Event(NamedTuple):
    timestamp: datetime
    website_id: str
    session_id: str
    deleted: bool


class Session(NamedTuple):
    started_at: datetime
    length: timedelta
    session_id: str
    deleted: bool


MOMENTS = st.builds(
    lambda days, offset: CUTOFF + days * DAY + offset,
    st.integers(-2, 1),
    st.sampled_from([-HOUR, -MICROSECOND, timedelta(), MICROSECOND, HOUR]),
)
SESSION_IDS = st.sampled_from("abcdefgh")
EVENTS = st.lists(st.builds(Event, MOMENTS, st.sampled_from("xyZ"), SESSION_IDS, st.booleans()), max_size=30)
SESSIONS = st.lists(
    st.builds(Session, MOMENTS, st.sampled_from([timedelta(), MICROSECOND, HOUR, DAY]), SESSION_IDS, st.booleans()),
    unique_by=lambda session: session.session_id,
)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=EVENTS,
    sessions=SESSIONS,
    batch_size=st.integers(1, 5),
    timezone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]),
    names=st.permutations([f"{a}{b}" for a in "aA_é-1" for b in "zZ~9é"]),
)
def test_a_run_on_random_data_leaves_exactly_what_has_not_expired(
    database: Database, events: list[Event], sessions: list[Session], batch_size: int, timezone: str, names: list[str]
) -> None:
    cutoff = CUTOFF.replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)
    database.connection.execute("TRUNCATE analytics_event, analytics_session, analytics_daily_stats")
    shift = cutoff - CUTOFF
    events = [event._replace(timestamp=event.timestamp + shift) for event in events]
    sessions = [session._replace(started_at=session.started_at + shift) for session in sessions]
    with database.connection.pipeline():
        for name, event in zip(names, events, strict=False):
            columns = {"session_id": event.session_id, "deleted_at": CUTOFF if event.deleted else None}
            database.event(event.timestamp, event.website_id, id=name, **columns)
        for name, session in zip(names, sessions, strict=False):
            columns = {"session_id": session.session_id, "deleted_at": CUTOFF if session.deleted else None}
            database.session(session.started_at, session.started_at + session.length, id=name, **columns)
    days = {event.timestamp.astimezone(ZoneInfo(timezone)).date() for event in events}
    aggregate(database, *sorted(days), timezone=timezone)
    assert database.run(UNAGGREGATED, database.connection, before=cutoff, timezone=timezone) == []
    before = stats(database)

    deleted = archive(database, cutoff, batch_size, timezone)

    assert all(count <= batch_size for counts in deleted.values() for count in counts)
    kept = [(name, event) for name, event in zip(names, events, strict=False) if event.timestamp >= cutoff]
    assert ids(database) == {name for name, _ in kept}
    needed = {event.session_id for _, event in kept if not event.deleted}
    assert ids(database, "session") == {
        name
        for name, session in zip(names, sessions, strict=False)
        if session.started_at + session.length >= cutoff or session.session_id in needed
    }
    gone = {
        (event.website_id, str(event.timestamp.astimezone(ZoneInfo(timezone)).date()))
        for event in events
        if event.timestamp < cutoff
    }
    counted = {(row["website_id"], str(row["date"])) for row in before}
    assert set(purged_days(database)) == gone & counted
    hidden = {"raw_purged_at": None, "ctid": None, "xmin": None}
    assert [row | hidden for row in stats(database)] == [row | hidden for row in before]
    assert archive(database, cutoff, batch_size, timezone) == {"event": [], "session": []}


def test_measure_size(database: Database) -> None:
    row = database.run(f"{FOLDER}/measure_size.sql")[0]
    assert row["database_bytes"] == pytest.approx(count_expired(database)["database_bytes"], rel=0.05)
    assert row["database_size"].endswith(("kB", "MB"))


def test_statements_that_run_often_go_through_indexes(database: Database) -> None:
    insert(database, "event", 20_000)
    insert(database, "session", 20_000)
    database.connection.execute("UPDATE analytics_event SET session_id = id")
    database.connection.execute("VACUUM ANALYZE analytics_event, analytics_session")
    common = {"timezone": "UTC", "dry_run": False}
    event, session = (plan(database, table, 20_000)[-1] | common for table in TIME)
    for file, parameters, index in (
        ("plan_event_batches.sql", event, "Index Only Scan using analytics_event_timestamp_id_idx"),
        ("delete_event_batch.sql", event, "analytics_event_timestamp_id_idx"),
        ("delete_session_batch.sql", session, "analytics_session_started_at_id_idx"),
    ):
        query = b"EXPLAIN (COSTS OFF) " + (SQL / FOLDER / file).read_bytes()
        with database.connect(LOGIN) as connection:
            lines = connection.execute(query, parameters).fetchall()
        text = "\n".join(line["QUERY PLAN"] for line in lines)
        assert index in text
        assert "Seq Scan on analytics_event" not in text
        assert "Seq Scan on analytics_session" not in text


def test_the_sessions_are_planned_in_one_pass(database: Database) -> None:
    insert(database, "session", 2_000)
    query = b"EXPLAIN (ANALYZE, FORMAT JSON) " + (SQL / FOLDER / "plan_session_batches.sql").read_bytes()
    parameters = {"cutoff": CUTOFF, "expired": 2_000, "batch_size": 100, "dry_run": False}
    scans = []
    nodes = database.connection.execute(query, parameters).fetchall()[0]["QUERY PLAN"]
    while nodes:
        node = nodes.pop()
        nodes += [*node.get("Plans", []), *([node["Plan"]] if "Plan" in node else [])]
        if node.get("Relation Name") == "analytics_session":
            scans.append(node["Actual Loops"])
    assert scans == [1]
