"""The SQL of archive_old_analytics: what expires, how it is cut into batches, and what a batch may delete."""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from conftest import LOGIN, SQL, Database
from retention_steps import (
    CUTOFF,
    DAY,
    DELETE_EVENTS,
    DELETE_SESSIONS,
    FOLDER,
    POLICY,
    TIME,
    aggregate_due,
    archive,
    delete,
    ids,
    plan,
    prove,
    stats,
)

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
TABLES = pytest.mark.parametrize("table", ["event", "session"])


def freeze(database: Database, retention_days: int = 90, timezone: str = "UTC", connection: Any = None) -> Any:
    return database.run(f"{FOLDER}/freeze_cutoff.sql", connection, retention_days=retention_days, timezone=timezone)[0]


def delete_events(
    database: Database, after: tuple[Any, str] = ("-infinity", ""), to: tuple[Any, str] = (CUTOFF, ""), **rest: Any
) -> int:
    """Aggregate and prove everything, then delete one batch of the events after `after` up to and including `to`."""
    aggregate_due(database)
    assert prove(database) == []
    bounds = {"lo_timestamp": after[0], "lo_id": after[1], "hi_timestamp": to[0], "hi_id": to[1]}
    return int(database.run(DELETE_EVENTS, **POLICY | {"batch_size": 1000} | bounds | rest))


def delete_sessions(
    database: Database, after: tuple[Any, str] = ("-infinity", ""), to: tuple[Any, str] = (CUTOFF, ""), **rest: Any
) -> int:
    """Delete one batch of the sessions after `after` up to and including `to`."""
    bounds = {"lo_started_at": after[0], "lo_id": after[1], "hi_started_at": to[0], "hi_id": to[1]}
    return int(database.run(DELETE_SESSIONS, **POLICY | {"batch_size": 1000} | bounds | rest))


class TestFreezeCutoff:
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
            frozen = freeze(database, retention_days, timezone, connection)
        day = datetime.fromisoformat(now).astimezone(ZoneInfo(timezone)).date() - timedelta(days=retention_days)
        midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone))
        assert datetime.fromisoformat(frozen["cutoff"]) == midnight.astimezone(UTC)
        assert datetime.fromisoformat(frozen["moment"]) == datetime.fromisoformat(now)

    def test_the_policies_are_named_and_the_database_is_measured(self, database: Database) -> None:
        frozen = freeze(database)
        assert frozen["remark"] == ""
        assert frozen["database_bytes"] > 1_000_000
        assert frozen["database_size"].endswith(("kB", "MB"))
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, retention_days, legal_hold)"
            " VALUES ('a', 10, FALSE), ('b', NULL, TRUE), ('c', NULL, TRUE)"
        )
        remark = "; 3 website(s) have a policy of their own; legal hold on the raw data of b, c"
        assert freeze(database)["remark"] == remark


class TestCountExpired:
    def count(self, database: Database, **policy: Any) -> tuple[int, int]:
        aggregate_due(database)
        prove(database, **policy)
        row = database.run(f"{FOLDER}/count_expired.sql", **POLICY | policy)[0]
        return row["events"], row["sessions"]

    def test_nothing_has_expired(self, database: Database) -> None:
        database.event(CUTOFF)
        database.session(CUTOFF, CUTOFF)
        assert self.count(database) == (0, 0)

    def test_expired_rows_are_counted_soft_deleted_ones_as_well(self, database: Database) -> None:
        before = CUTOFF - MICROSECOND
        for columns in ({}, {"deleted_at": CUTOFF}, {"website_id": "other"}):
            database.event(before, **columns)
            database.event(CUTOFF, **columns)
            database.session(before, before, **columns)
            database.session(before, CUTOFF, **columns)
        assert self.count(database) == (3, 3)

    def test_a_session_with_a_kept_event_has_not_expired(self, database: Database) -> None:
        before = CUTOFF - MICROSECOND
        for name, moment, deleted_at in (
            ("kept", CUTOFF, None),
            ("old event", before, None),
            ("deleted event", CUTOFF, CUTOFF),
        ):
            database.session(before, before, session_id=name)
            database.event(moment, session_id=name, deleted_at=deleted_at)
        assert self.count(database)[1] == 2

    def test_a_website_has_its_own_retention_time_zone_and_hold(self, database: Database) -> None:
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, timezone, retention_days, legal_hold) VALUES"
            " ('short', NULL, 80, FALSE), ('long', NULL, 100, FALSE), ('held', NULL, NULL, TRUE),"
            " ('east', 'Asia/Kolkata', NULL, FALSE)"
        )
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
                database.session(moment, moment, website_id=website_id)
        assert self.count(database) == (4, 4)
        assert archive(database) == {"event": [4], "session": [4]}
        assert database.value("SELECT min(timestamp) FROM analytics_event") == cutoffs["held"] - MICROSECOND
        assert {row["website_id"]: row["timestamp"] for row in database.query(
            "SELECT * FROM analytics_event ORDER BY timestamp DESC"
        )} == cutoffs | {"held": cutoffs["held"] - MICROSECOND}  # fmt: skip


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
        aggregate_due(database)
        prove(database)
        planned = plan(database, table)
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
        aggregate_due(database)
        prove(database)
        planned = plan(database, table, batch_size=2)
        assert [row["label"] for row in planned] == [
            "batch 1 of 3, to 2024-02-29 00:00",
            "batch 2 of 3, to 2024-02-29 00:00",
            "batch 3 of 3, to 2024-03-01 00:00",
        ]
        assert [row["done"] for row in planned] == [0, 2, 4]
        assert {(row["batch_size"], row["batches"], row["expired"]) for row in planned} == {(2, 1, 5)}
        assert {(row["moment"], row["retention_days"], row.get("timezone")) for row in planned} == {
            (POLICY["moment"], 90, "UTC")
        }

    @TABLES
    def test_the_bounds_are_exact_to_the_microsecond(self, database: Database, table: str) -> None:
        for n in range(1, 5):
            moment = CUTOFF - n * MICROSECOND
            database.event(moment, id=str(n)) if table == "event" else database.session(moment, moment, id=str(n))
        aggregate_due(database)
        prove(database)
        planned = plan(database, table, batch_size=1)
        assert delete(database, table, planned) == [1] * 4

    @TABLES
    @pytest.mark.parametrize("dry_run", [True, "True", "true"])
    def test_a_dry_run_plans_no_batch(self, database: Database, table: str, dry_run: bool | str) -> None:
        insert(database, table, 10)
        aggregate_due(database)
        prove(database)
        assert plan(database, table, dry_run=dry_run) == []
        assert len(plan(database, table, dry_run="False")) == 1

    @TABLES
    @pytest.mark.parametrize(
        ("rows", "tasks", "batches"), [(1000, 1000, 1), (1001, 501, 2), (2000, 1000, 2), (2001, 667, 3)]
    )
    def test_beyond_1000_batches_a_task_takes_several(
        self, database: Database, table: str, rows: int, tasks: int, batches: int
    ) -> None:
        insert(database, table, rows)
        aggregate_due(database)
        prove(database)
        planned = plan(database, table, batch_size=1)
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
            CREATE UNIQUE INDEX analytics_event_timestamp_id_idx ON analytics_event (timestamp, id) INCLUDE (website_id);
            -- What proves the days is not what this test is about.
            INSERT INTO analytics_purge_proof (date, website_id, starts_at, ends_at, total_events, events_hash, snapshot)
            VALUES ('2024-02-01', 's', '2024-01-01Z', '{CUTOFF}', 1, 0, pg_current_snapshot())
            """.encode()
        )
        database.connection.execute("VACUUM ANALYZE analytics_event")
        planned = plan(database, "event")
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
        assert [row["hi_id"] for row in plan(database, "session", batch_size=2)] == ["2", ""]

    def test_sessions_that_all_stay_give_no_batch(self, database: Database) -> None:
        database.session(CUTOFF - DAY, CUTOFF)
        database.session(CUTOFF - DAY, CUTOFF - DAY, session_id="kept")
        database.event(CUTOFF, session_id="kept")
        assert plan(database, "session") == []

    def test_a_plan_does_not_cut_at_events_that_stay(self, database: Database) -> None:
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, legal_hold) VALUES ('held', TRUE)"
        )
        for n in range(8):
            database.event(CUTOFF - DAY + n * HOUR, website_id="held" if n % 2 else "site", id=str(n))
        aggregate_due(database)
        assert prove(database) == []
        planned = plan(database, "event", batch_size=2)
        assert [row["hi_id"] for row in planned] == ["2", ""]
        assert delete(database, "event", planned) == [2, 2]
        assert ids(database) == {"1", "3", "5", "7"}


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
        last = (CUTOFF - 2 * HOUR, "in")
        assert delete_events(database, to=last, batch_size=1) == 1
        before = stats(database)
        assert delete_events(database, to=last, batch_size=1) == 0
        assert ids(database) == {"out"}
        assert stats(database) == before

    def test_never_a_row_at_or_after_the_cutoff(self, database: Database) -> None:
        for n in (-1, 0, 1):
            database.event(CUTOFF + n * MICROSECOND, id=str(n))
        assert delete_events(database, to=(CUTOFF + DAY, "")) == 1
        assert ids(database) == {"0", "1"}

    def test_soft_deleted_events_and_every_website_go(self, database: Database) -> None:
        database.event(CUTOFF - HOUR, deleted_at=CUTOFF)
        database.event(CUTOFF - HOUR, website_id="other")
        assert delete_events(database) == 2


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
            batch = database.start(DELETE_SESSIONS, **POLICY | bounds, batch_size=10)
            database.connection.execute("UPDATE analytics_session SET last_activity_at = NOW() WHERE id = 'returns'")
        assert batch.result(timeout=10) == 1
        assert ids(database, "session") == {"returns"}


def test_measure_size(database: Database) -> None:
    row = database.run(f"{FOLDER}/measure_size.sql")[0]
    assert row["database_bytes"] == pytest.approx(freeze(database)["database_bytes"], rel=0.05)
    assert row["database_size"].endswith(("kB", "MB"))


def test_statements_that_run_often_go_through_indexes(database: Database) -> None:
    insert(database, "event", 20_000)
    insert(database, "session", 20_000)
    database.connection.execute("UPDATE analytics_event SET session_id = id")
    aggregate_due(database)
    assert prove(database) == []
    database.connection.execute("VACUUM ANALYZE analytics_event, analytics_session, analytics_purge_proof")
    common = POLICY | {"dry_run": False}
    event, session = (plan(database, table)[-1] | common for table in TIME)
    for file, parameters, index in (
        ("count_expired.sql", event, "Index Only Scan using analytics_event_timestamp_id_idx"),
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


@TABLES
def test_a_plan_is_one_pass(database: Database, table: str) -> None:
    insert(database, table, 2_000)
    aggregate_due(database)
    prove(database)
    query = b"EXPLAIN (ANALYZE, FORMAT JSON) " + (SQL / FOLDER / f"plan_{table}_batches.sql").read_bytes()
    parameters = POLICY | {"expired": 2_000, "batch_size": 100, "dry_run": False}
    scans = []
    nodes = database.connection.execute(query, parameters).fetchall()[0]["QUERY PLAN"]
    while nodes:
        node = nodes.pop()
        nodes += [*node.get("Plans", []), *([node["Plan"]] if "Plan" in node else [])]
        if node.get("Relation Name") == f"analytics_{table}":
            scans.append(node["Actual Loops"])
    assert scans == [1]
