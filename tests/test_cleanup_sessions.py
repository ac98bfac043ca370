"""The SQL of cleanup_analytics_sessions: who is closed, at which moment, and who is left alone."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from conftest import LOGIN, SQL, Database

CLOSE = "cleanup_analytics_sessions/close_idle_sessions.sql"
RETURNED = "cleanup_analytics_sessions/end_returned_sessions.sql"
SKEW = "Clock skew: "
ACTIVE = " visitor(s) active now; "
BOTH = pytest.mark.parametrize("file", [CLOSE, RETURNED])
IDLE = timedelta(minutes=30)
HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)


LINE = re.compile(r"\[Analytics Cleanup\] ✅ Closed session (.+) \(duration: (\d+)s\)")


def closed(rows: Any) -> dict[str, int]:
    """The sessions that a batch has closed, by what it logs, and how many seconds long they were."""
    [row] = rows
    lines = {match[1]: int(match[2]) for match in map(LINE.fullmatch, row["log"].split("\n")) if match}
    assert row["result"] == {"rows": len(lines)}
    return lines


def run(database: Database, file: str, batch_size: int = 1000, connection: Any = None) -> dict[str, int]:
    """Run one batch; return the sessions that it has closed."""
    return closed(database.run(file, connection, idle_minutes=30, batch_size=batch_size, done=0))


def session(database: Database, file: str, started_at: datetime, last_activity_at: datetime, **columns: Any) -> str:
    """A session of the kind that the file looks for: open, or ended a second before its last activity."""
    ended_at = None if file == CLOSE else last_activity_at - timedelta(seconds=1)
    return database.session(started_at, last_activity_at, **{"ended_at": ended_at} | columns)


def counted(database: Database, line: str, connection: Any = None) -> tuple[int, int]:
    """The two numbers in a line of the log, after a run that closes nothing."""
    file = CLOSE if line == SKEW else RETURNED
    with (connection or database.connect(LOGIN)).transaction(force_rollback=True) as own:
        [row] = database.run(file, own.connection, idle_minutes=30, batch_size=1000, done=0)
    [found] = [text for text in row["log"].split("\n") if line in text]
    first, second = re.findall(r"\d+", found)
    return int(first), int(second)


def rows(database: Database) -> dict[str, dict[str, Any]]:
    """Every session with the version of its row, by session_id."""
    query = "SELECT *, ctid::text, xmin::text FROM analytics_session"
    return {row["session_id"]: row for row in database.query(query)}


@pytest.fixture
def frozen(database: Database) -> Iterator[datetime]:
    """NOW() of an open transaction: what is inserted and run on the database's own connection has exact ages."""
    with database.connection.transaction():
        yield database.value("SELECT NOW()")


@BOTH
def test_nothing_to_do(database: Database, file: str) -> None:
    said = {CLOSE: "No stale sessions", RETURNED: "No closed session had come back"}[file]
    [row] = database.run(file, idle_minutes=30, batch_size=1000, done=0)
    assert (row["result"], row["again"]) == ({"rows": 0}, None)
    assert f"[Analytics Cleanup] {said}" in row["log"].split("\n")


@BOTH
@pytest.mark.parametrize(("idle", "ends"), [(IDLE - MICROSECOND, 0), (IDLE, 0), (IDLE + MICROSECOND, 1)])
def test_a_session_ends_when_it_is_idle_for_longer_than_the_timeout(
    database: Database, frozen: datetime, file: str, idle: timedelta, ends: int
) -> None:
    session(database, file, frozen - HOUR, frozen - idle)
    before = rows(database)
    assert len(run(database, file, connection=database.connection)) == ends
    assert (rows(database) != before) == bool(ends)


@BOTH
def test_the_timeout_does_not_depend_on_the_time_zone_of_the_session(
    database: Database, frozen: datetime, file: str
) -> None:
    database.connection.execute("SET LOCAL timezone = 'Asia/Kolkata'")
    session(database, file, frozen - HOUR, frozen - IDLE)
    idle = session(database, file, frozen - HOUR, frozen - IDLE - MICROSECOND)
    assert list(run(database, file, connection=database.connection)) == [idle]


@BOTH
@pytest.mark.parametrize(
    ("length", "seconds"),
    [
        (timedelta(), 0),
        (timedelta(seconds=1500), 1500),
        (timedelta(seconds=60) - MICROSECOND, 59),
        (timedelta(days=3), 259_200),
        (timedelta(milliseconds=-500), 0),  # a client's clock was wrong
        (timedelta(minutes=-10), 0),
    ],
)
def test_the_end_is_the_last_activity_and_the_duration_whole_seconds_never_negative(
    database: Database, now: datetime, file: str, length: timedelta, seconds: int
) -> None:
    started_at = now - timedelta(days=4)
    name = session(database, file, started_at, started_at + length)
    assert run(database, file) == {name: seconds}
    row = rows(database)[name]
    assert (row["ended_at"], row["duration_seconds"]) == (started_at + length, seconds)


@BOTH
def test_only_the_end_the_duration_and_updated_at_change(database: Database, now: datetime, file: str) -> None:
    texts = {
        name: name
        for name in (
            "exit_page",
            "referrer",
            "referrer_source",
            "country",
            "device_type",
            "browser",
            "os",
            "utm_source",
        )
    }
    name = session(
        database, file, now - 2 * HOUR, now - HOUR, created_at=now - HOUR, updated_at=now - HOUR, pageviews=7,
        is_bounce=True, **texts,
    )  # fmt: skip
    before = rows(database)[name]
    run(database, file)
    after = rows(database)[name]
    changed = {column for column in before if before[column] != after[column]}
    assert changed == {"ended_at", "duration_seconds", "updated_at", "ctid", "xmin"}
    assert after["updated_at"] > now


@BOTH
def test_a_soft_deleted_session_stays(database: Database, now: datetime, file: str) -> None:
    session(database, file, now - 2 * HOUR, now - HOUR, deleted_at=now)
    before = rows(database)
    assert run(database, file) == {}
    assert rows(database) == before


@BOTH
def test_a_second_run_does_nothing(database: Database, now: datetime, file: str) -> None:
    for _ in range(3):
        session(database, file, now - 2 * HOUR, now - HOUR)
    assert len(run(database, file)) == 3
    before = rows(database)
    assert run(database, file) == {}
    assert rows(database) == before


@BOTH
def test_a_batch_asks_for_the_next_one_until_one_is_not_full(database: Database, now: datetime, file: str) -> None:
    names = {session(database, file, now - 2 * HOUR, now - HOUR) for _ in range(5)}
    results: list[dict[str, Any]] = []
    again: Any = {"done": 0}
    while again is not None:
        [row] = database.run(file, idle_minutes=30, batch_size=2, **again)
        results.append(row)
        again = row["again"]
    assert [row["again"] for row in results] == [{"done": 2}, {"done": 4}, None]
    assert [row["result"]["rows"] for row in results] == [2, 2, 1]
    assert {name for row in results for name in closed([row])} == names
    last = {CLOSE: "✅ Closed 5 stale session(s)", RETURNED: "Ended 5 session(s) again that had come back"}[file]
    assert [last in row["log"] for row in results] == [False, False, True]
    assert [("Found 2 stale session(s) to close" in row["log"]) for row in results] == [file == CLOSE] * 2 + [False]


@BOTH
def test_a_full_last_batch_asks_once_more_and_then_says_the_total(database: Database, now: datetime, file: str) -> None:
    for _ in range(2):
        session(database, file, now - 2 * HOUR, now - HOUR)
    assert len(run(database, file, 2)) == 2
    [row] = database.run(file, idle_minutes=30, batch_size=2, done=2)
    assert (row["again"], row["result"]) == (None, {"rows": 0})
    total = {CLOSE: "✅ Closed 2 stale session(s)", RETURNED: "Ended 2 session(s) again that had come back"}[file]
    assert row["log"].split("\n")[0] == f"[Analytics Cleanup] {total}"


@BOTH
def test_a_row_that_the_application_writes_is_passed_over_and_does_not_fill_the_batch(
    database: Database, now: datetime, file: str
) -> None:
    oldest = session(database, file, now - 3 * HOUR, now - 2 * HOUR, id="1")
    next_one = session(database, file, now - 2 * HOUR, now - HOUR, id="2")
    with database.connect() as application, database.connect(LOGIN) as job:
        job.execute("SET lock_timeout = '200ms'")
        with application.transaction():
            application.execute("UPDATE analytics_session SET pageviews = 2 WHERE session_id = %s", [oldest])
            assert list(run(database, file, 1, job)) == [next_one]
        assert list(run(database, file, 1, job)) == [oldest]


@BOTH
def test_sessions_that_need_nothing_do_not_fill_the_batch(database: Database, now: datetime, file: str) -> None:
    session(database, file, now - 3 * HOUR, now)
    session(database, file, now - 3 * HOUR, now - HOUR, deleted_at=now)
    for ended_at in (now - HOUR, now):
        session(database, file, now - 3 * HOUR, now - HOUR, ended_at=ended_at)
    last = session(database, file, now - 2 * HOUR, now - HOUR)
    assert list(run(database, file, 1)) == [last]


@BOTH
def test_a_visitor_who_returns_while_the_statement_reads_stays(database: Database, now: datetime, file: str) -> None:
    name = session(database, file, now - 2 * HOUR, now - HOUR)
    with database.gate("analytics_session"):
        statement = database.start(file, idle_minutes=30, batch_size=1000, done=0)
        # Its snapshot shows the session idle; the return comes after it.
        database.connection.execute("UPDATE analytics_session SET last_activity_at = %s", [now])
        before = rows(database)
    assert closed(statement.result(timeout=10)) == {}
    assert rows(database) == before
    assert before[name]["last_activity_at"] == now


@BOTH
def test_a_session_that_is_written_while_the_statement_reads_and_stays_idle_ends_with_its_new_values(
    database: Database, now: datetime, file: str
) -> None:
    name = session(database, file, now - 3 * HOUR, now - 2 * HOUR)
    with database.gate("analytics_session"):
        statement = database.start(file, idle_minutes=30, batch_size=1000, done=0)
        later = now - HOUR
        database.connection.execute("UPDATE analytics_session SET pageviews = 9, last_activity_at = %s", [later])
    assert closed(statement.result(timeout=10)) == {name: 7200}
    row = rows(database)[name]
    assert (row["pageviews"], row["ended_at"], row["last_activity_at"]) == (9, later, later)


def test_two_runs_at_the_same_moment_close_each_session_once(database: Database, now: datetime) -> None:
    names = {session(database, CLOSE, now - 2 * HOUR, now - HOUR) for _ in range(4)}
    with database.connect(LOGIN) as first, database.connect(LOGIN) as second, first.transaction():
        closed = [run(database, CLOSE, 2, first), run(database, CLOSE, 1000, second)]
    assert [len(batch) for batch in closed] == [2, 2]
    assert {name for batch in closed for name in batch} == names


def test_the_oldest_are_closed_first(database: Database, now: datetime) -> None:
    ages = [3, 5, 2, 4]
    names = {hours: session(database, CLOSE, now - hours * HOUR, now - HOUR) for hours in ages}
    assert set(run(database, CLOSE, 2)) == {names[5], names[4]}


def test_closing_leaves_ended_sessions_to_the_other_statement(database: Database, now: datetime) -> None:
    for ended_at in (now - 2 * HOUR, now - HOUR, now):
        database.session(now - 2 * HOUR, now - HOUR, ended_at=ended_at)
    before = rows(database)
    assert run(database, CLOSE) == {}
    assert rows(database) == before


@pytest.mark.parametrize("after", [timedelta(), MICROSECOND, HOUR / 2])
def test_a_session_ended_at_or_after_its_last_activity_did_not_return(
    database: Database, now: datetime, after: timedelta
) -> None:
    database.session(now - 2 * HOUR, now - HOUR, ended_at=now - HOUR + after, duration_seconds=1)
    before = rows(database)
    assert run(database, RETURNED) == {}
    assert rows(database) == before


def test_a_session_that_returned_and_left_again_ends_at_its_true_last_activity(
    database: Database, now: datetime
) -> None:
    name = database.session(now - 5 * HOUR, now - 4 * HOUR)
    assert run(database, CLOSE) == {name: 3600}
    # The heartbeat of the application touches last_activity_at and nothing else.
    database.connection.execute("UPDATE analytics_session SET last_activity_at = %s", [now - 2 * HOUR])
    assert run(database, CLOSE) == {}
    assert run(database, RETURNED) == {name: 3 * 3600}
    assert rows(database)[name]["ended_at"] == now - 2 * HOUR


def test_a_session_that_comes_back_twice_is_closed_each_time(database: Database, now: datetime) -> None:
    name = database.session(now - 9 * HOUR, now - 8 * HOUR)
    assert run(database, CLOSE) == {name: 3600}
    for hours in (6, 4):
        database.connection.execute("UPDATE analytics_session SET last_activity_at = %s", [now - hours * HOUR])
        assert run(database, CLOSE) == {}
        assert run(database, RETURNED) == {name: (9 - hours) * 3600}
        assert rows(database)[name]["ended_at"] == now - hours * HOUR
    # The application reopens it, and it is left for good.
    database.connection.execute("UPDATE analytics_session SET ended_at = NULL, last_activity_at = %s", [now - HOUR])
    assert run(database, RETURNED) == {}
    assert run(database, CLOSE) == {name: 8 * 3600}
    assert run(database, CLOSE) == run(database, RETURNED) == {}


@BOTH
@pytest.mark.parametrize("started_at", [-3 * HOUR, -HOUR, timedelta(), MICROSECOND, 3 * HOUR])
def test_only_the_last_activity_decides_whatever_the_start_is(
    database: Database, frozen: datetime, file: str, started_at: timedelta
) -> None:
    idle = session(database, file, frozen + started_at, frozen - IDLE - MICROSECOND)
    session(database, file, frozen + started_at, frozen - IDLE)
    # The clock of the last one was wrong the other way: it is left until its last activity has passed.
    session(database, file, frozen + started_at, frozen + HOUR)
    seconds = max(0, int((-IDLE - MICROSECOND - started_at) / timedelta(seconds=1)))
    assert run(database, file, connection=database.connection) == {idle: seconds}
    assert rows(database)[idle]["ended_at"] == frozen - IDLE - MICROSECOND


def test_sessions_with_times_that_cannot_be_true_are_counted(database: Database, frozen: datetime) -> None:
    def skewed() -> tuple[int, int]:
        return counted(database, SKEW, database.connection)

    assert skewed() == (0, 0)
    database.session(frozen - HOUR, frozen)
    database.session(frozen, frozen)
    assert skewed() == (0, 0)
    database.session(frozen, frozen - MICROSECOND)
    assert skewed() == (1, 0)
    database.session(frozen, frozen + MICROSECOND)
    assert skewed() == (1, 1)
    database.session(frozen + 2 * HOUR, frozen + HOUR)
    assert skewed() == (2, 2)
    database.session(frozen, frozen - HOUR, ended_at=frozen)
    database.session(frozen, frozen + HOUR, deleted_at=frozen)
    assert skewed() == (2, 2)


def test_an_idle_session_that_the_application_is_writing_is_counted_as_left_open(
    database: Database, now: datetime
) -> None:
    written, other = (database.session(now - 2 * HOUR, now - HOUR) for _ in range(2))
    with database.connect() as application, application.transaction():
        application.execute("UPDATE analytics_session SET pageviews = 2 WHERE session_id = %s", [written])
        assert list(run(database, CLOSE)) == [other]
        assert counted(database, ACTIVE) == (0, 1)
    assert list(run(database, CLOSE)) == [written]
    assert counted(database, ACTIVE) == (0, 0)


@pytest.mark.parametrize(
    ("idle", "columns", "left_open"),
    [
        (IDLE + MICROSECOND, {}, 0),  # its timeout ended while the run went on
        (IDLE + timedelta(minutes=1), {}, 0),
        (IDLE + timedelta(minutes=1) + MICROSECOND, {}, 1),
        (HOUR, {"ended_at": "2024-01-15T00:00Z"}, 0),
        (HOUR, {"deleted_at": "2024-01-15T00:00Z"}, 0),
    ],
)
def test_which_sessions_are_left_open(
    database: Database, frozen: datetime, idle: timedelta, columns: dict[str, Any], left_open: int
) -> None:
    database.session(frozen - 2 * HOUR, frozen - idle, **columns)
    assert counted(database, ACTIVE, database.connection) == (0, left_open)


def test_the_active_visitors_are_those_with_an_event_within_the_timeout(database: Database, frozen: datetime) -> None:
    moments = {
        "too old": frozen - IDLE - MICROSECOND,
        "oldest": frozen - IDLE,
        "newest": frozen,
        "in the future": frozen + MICROSECOND,
    }
    for visitor_id, moment in moments.items():
        database.event(moment, visitor_id=visitor_id)
    database.event(frozen, visitor_id="deleted", deleted_at=frozen)
    database.event(frozen, visitor_id="newest", website_id="other", event_type="custom_event")
    assert counted(database, ACTIVE, database.connection) == (2, 0)


def test_idle_sessions_and_active_visitors_are_found_through_indexes(database: Database) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_session (
            id, session_id, website_id, visitor_id, entry_page, started_at, last_activity_at, ended_at
        )
        SELECT
            'anses_' || i, i, 'site', i, '/', NOW() - i * INTERVAL '1 minute', NOW() - i * INTERVAL '1 minute',
            CASE WHEN i % 100 <> 0 THEN NOW() END
        FROM GENERATE_SERIES(1, 20000) AS i;
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT i, 'site', '/', i, i, NOW() - i * INTERVAL '1 minute'
        FROM GENERATE_SERIES(1, 20000) AS i;
        ANALYZE analytics_session, analytics_event
        """
    )
    for file, *lines in (
        (CLOSE, "Index Scan using analytics_session_open_idx"),
        (RETURNED, "analytics_event_timestamp_id_idx", 'Index Cond: (("timestamp" >= ', "analytics_session_open_idx"),
    ):
        query = b"EXPLAIN (COSTS OFF) " + (SQL / file).read_bytes()
        with database.connect(LOGIN) as connection:
            explained = connection.execute(query, {"idle_minutes": 30, "batch_size": 1000, "done": 0}).fetchall()
        plan = "\n".join(line["QUERY PLAN"] for line in explained)
        assert [line for line in lines if line not in plan] == []
        # To find sessions that came back, the whole table is read once.
        assert plan.count("Seq Scan") == (file == RETURNED)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's node and all below it."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


class TestManyClosedSessions:
    """What a run costs does not depend on how many sessions have been closed."""

    ROWS = 30_000

    @pytest.fixture(autouse=True)
    def _sessions(self, database: Database, now: datetime) -> None:
        database.connection.execute(
            """
            INSERT INTO analytics_session (
                id, session_id, website_id, visitor_id, entry_page, started_at, last_activity_at, ended_at
            )
            SELECT
                'anses_' || lpad(number::text, 6, '0'), number, 'site', number, '/', at, at + '1 minute', at + '1 minute'
            FROM generate_series(1, %(rows)s) AS number
            CROSS JOIN LATERAL (VALUES (%(now)s - make_interval(hours => %(rows)s - number))) AS moment (at)
            """,
            {"rows": self.ROWS, "now": now},
        )
        database.connection.execute("ANALYZE analytics_session; SELECT analytics_forget_returned()")

    def read(self, database: Database) -> tuple[int, int]:
        """The sessions that a run ends again, and how many rows of the table it looks at to find them."""
        with database.connect(LOGIN, options="-c search_path=analytics,public -c enable_seqscan=off") as own:
            query = (SQL / RETURNED).read_text()
            parameters = {"idle_minutes": 30, "batch_size": 1000, "done": 0}
            plan = own.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode(), parameters).fetchall()[0][
                "QUERY PLAN"
            ]
        [scan] = [node for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "Bitmap Heap Scan"]
        assert scan["Plans"][0]["Index Name"] == "analytics_session_returned_idx"
        return scan["Actual Rows"], scan["Actual Rows"] + scan["Rows Removed by Index Recheck"]

    def test_a_run_reads_only_where_sessions_came_back(self, database: Database, now: datetime) -> None:
        assert self.read(database) == (0, 0)
        database.connection.execute(
            "UPDATE analytics_session SET last_activity_at = %s WHERE session_id IN ('77', '20000')", [now - HOUR]
        )
        found, rows = self.read(database)
        assert found == 2
        assert rows < 0.25 * self.ROWS
        assert self.read(database) == (0, rows)
        # The first run of a day lets the index forget them.
        run(database, RETURNED)
        assert self.read(database) == (0, 0)

    def test_later_runs_of_a_day_do_not_read_the_table_for_it(self, database: Database, now: datetime) -> None:
        database.connection.execute(
            "UPDATE analytics_session SET last_activity_at = %s WHERE session_id = '77'", [now - HOUR]
        )
        database.connection.execute(
            "INSERT INTO analytics_job_run (job, run_id, started_at, outcome) VALUES (%s, 'x', now(), 'success')",
            ["cleanup_analytics_sessions"],
        )
        run(database, RETURNED)
        assert self.read(database)[1] > 0

    def test_a_lock_is_not_waited_for(self, database: Database) -> None:
        with database.connect() as other, other.transaction():
            other.execute("LOCK TABLE analytics_session IN SHARE UPDATE EXCLUSIVE MODE")
            assert run(database, RETURNED) == {}

    def test_heartbeats_are_as_cheap_as_without_our_indexes(self, database: Database, now: datetime) -> None:
        database.connection.execute("UPDATE analytics_session SET ended_at = NULL WHERE session_id::int % 100 = 0")
        shares = []
        for _ in range(2):
            database.connection.execute("VACUUM (FULL, ANALYZE) analytics_session")
            with database.connection.transaction(force_rollback=True):
                query = "SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot FROM pg_stat_xact_user_tables WHERE relname = 'analytics_session'"
                [before] = database.query(query)
                for _ in range(10):
                    database.connection.execute(
                        "UPDATE analytics_session SET last_activity_at = last_activity_at + '1 s'::interval"
                        " WHERE session_id::int % 1000 = 0"
                    )
                [after] = database.query(query)
                shares.append((after["hot"] - before["hot"]) / (after["updates"] - before["updates"]))
            database.connection.execute(
                "DROP INDEX IF EXISTS analytics_session_open_idx, analytics_session_returned_idx"
            )
        assert shares[0] >= 0.95 * shares[1] > 0.5
