"""PostgresOperator against a real server: settings, what a statement says, loops, errors."""

import os
import re
import threading
import time
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

import embedded
from conftest import Database
from operator_steps import execute, execute_batches
from web_analytics.postgres import LOG_LINES, REPEATABLE_READ, SessionPostgresHook, sentence

# Deletes a batch of the smallest numbers, and goes on until there was none.
BATCH = """
WITH gone AS (
    DELETE FROM number WHERE n IN (SELECT n FROM number ORDER BY n LIMIT %(size)s) RETURNING n
)
SELECT
    json_agg(n ORDER BY n) AS result,
    format('line %%s after %%s', json_agg(n ORDER BY n), %(done)s::int) AS log,
    CASE WHEN count(*) = 7 THEN 'These are seven.' END AS problem,
    CASE WHEN count(*) > 0 THEN json_build_object('done', %(done)s::int + count(*)) END AS again
FROM gone
"""
# Deletes the numbers of a step.
STEP = """
WITH gone AS (DELETE FROM number WHERE n BETWEEN %(first)s AND %(last)s RETURNING n)
SELECT json_build_object(%(name)s::text, count(*)) AS result, 'line ' || %(first)s::text AS log
FROM gone HAVING count(*) > 0
"""


@pytest.fixture
def numbers(database: Database) -> Database:
    """Ten rows in a table of their own."""
    database.connection.execute("CREATE TABLE number AS SELECT n FROM generate_series(1, 10) AS n")
    database.connection.execute("GRANT ALL ON number TO analytics_jobs")
    return database


def left_over(numbers: Database) -> list[int]:
    return [row["n"] for row in numbers.query("SELECT n FROM number ORDER BY n")]


class Log:
    """What the operator has logged so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def lines(self, level: str = "info") -> list[str]:
        """The messages of a level since the last call."""
        out = re.sub(r"\x1b\[[0-9;]*m", "", self.capsys.readouterr().out)
        return re.findall(rf"^\S+ \[{level} *\] (.*?) +\[airflow\.", out, re.MULTILINE)


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    """The log of the operator."""
    return Log(capsys)


def test_session_settings_win_over_the_connections_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri + "%20-c%20lock_timeout%3D99s&application_name=theirs")
    expected = {
        "lock_timeout": "5s",
        "statement_timeout": "1min",
        "idle_in_transaction_session_timeout": "1min",
        "client_connection_check_interval": "5s",
        "transaction_isolation": "repeatable read",
        "timezone": "UTC",
        "work_mem": "5MB",
        "jit": "off",
        "application_name": "airflow:dag.task[7]",
        "search_path": "analytics,public",
    }
    found = execute(
        "SELECT json_object_agg(name, current_setting(name)) AS result FROM unnest(%(names)s::text[]) AS name",
        map_index=7,
        parameters={"names": list(expected)},
        session_settings=REPEATABLE_READ | {"work_mem": "5MB", "statement_timeout": "1min"},
    )
    assert found == expected


def test_a_setting_that_the_server_does_not_know_is_left_out(database: Database) -> None:
    settings = {"setting_of_a_later_version": "on", "jit": "on"}
    assert execute("SELECT current_setting('jit') AS result", session_settings=settings) == "on"


@pytest.mark.parametrize(
    ("sql", "result"),
    [
        ("SELECT json_build_object('rows', 3) AS result", {"rows": 3}),
        ("SELECT '[\"2024-01-15\"]'::json AS result, 'log' AS log", ["2024-01-15"]),
        ("SELECT n AS result FROM number ORDER BY n", 10),  # that of the last row
        ("SELECT NULL AS result, NULL AS log, NULL AS problem", None),
        ("SELECT n AS another FROM number", None),
        ("SELECT n AS result FROM number WHERE FALSE", None),
        ("DELETE FROM number", None),
        ("SELECT", None),
        (["DELETE FROM number WHERE n = 10", "SELECT max(n) AS result FROM number"], 9),
    ],
)
def test_result(numbers: Database, sql: str | list[str], result: Any) -> None:
    assert execute(sql) == result


def test_of_several_files_those_before_one_that_fails_are_done(numbers: Database) -> None:
    sql = ["DELETE FROM number WHERE n > 3", "SELECT 'It is wrong.' AS problem", "DELETE FROM number"]
    with pytest.raises(AirflowFailException, match=r"^It is wrong\.$"):
        execute(sql)
    assert left_over(numbers) == [1, 2, 3]


@pytest.mark.parametrize("again", ["", ", NULL AS again"])
def test_batches_give_a_list_also_where_there_is_one_statement(database: Database, again: str) -> None:
    assert execute_batches(f"SELECT 1 AS result{again}") == [1]
    assert execute_batches(f"SELECT NULL AS result{again}") == []


class TestLog:
    def said(self, log: Log) -> list[str]:
        affected, report, *lines = log.lines()
        assert affected.startswith("Rows affected: ")  # the provider's line
        assert re.fullmatch(r"PostgreSQL: SELECT \d+ in \d+ ms", report)
        return lines

    def test_lines_of_all_rows_follow_the_report(self, numbers: Database, log: Log) -> None:
        execute(
            "SELECT format(E'%%s\\n%%s.5', n, n) AS log FROM number WHERE n < %(end)s ORDER BY n", parameters={"end": 3}
        )
        assert self.said(log) == ["1", "1.5", "2", "2.5"]

    def test_a_sign_of_percent_and_rows_without_a_line(self, database: Database, log: Log) -> None:
        execute("SELECT log FROM (VALUES ('100 %s'), (NULL), (''), ('2')) AS line (log)")
        assert self.said(log) == ["100 %s", "2"]

    @pytest.mark.parametrize("more", [0, 1, 2, 2400])
    def test_the_first_hundred_lines_and_the_last_one(self, database: Database, log: Log, more: int) -> None:
        total = 100 + more
        execute(f"SELECT n::text AS log FROM generate_series(1, {total}) AS n ORDER BY n")
        lines = self.said(log)
        assert LOG_LINES == 100
        assert lines[:100] == [str(n) for n in range(1, 101)]
        assert lines[100:] == {0: [], 1: ["101"], 2: ["... and 1 more line(s)", "102"]}.get(
            more, ["... and 2,399 more line(s)", "2500"]
        )

    def test_a_server_notice(self, database: Database, log: Log) -> None:
        execute("DO $$ BEGIN RAISE NOTICE 'from the server'; END $$")
        assert "from the server" in log.lines()


class TestProblem:
    def test_each_is_named_and_the_task_fails_for_good_with_the_first(self, numbers: Database, log: Log) -> None:
        left: dict[str, str] = {}
        sql = "SELECT n || ' is wrong.' AS problem, 'line' AS log, n AS result FROM number WHERE n > 8 ORDER BY n"
        with pytest.raises(AirflowFailException, match=r"^9 is wrong\.$"):
            execute(sql, left=left)
        out = log.capsys.readouterr().out
        assert out.index("line") < out.index("9 is wrong.") < out.index("10 is wrong.")
        assert left == {"problem": "9 is wrong."}

    def test_they_are_errors_in_the_log_and_limited_like_its_lines(self, database: Database, log: Log) -> None:
        with pytest.raises(AirflowFailException, match=r"^1 is wrong\.$"):
            execute("SELECT n || ' is wrong.' AS problem FROM generate_series(1, 500) AS n")
        lines = log.lines("error")
        assert (len(lines), lines[1], lines[-1]) == (102, "2 is wrong.", "500 is wrong.")

    def test_it_ends_a_loop_and_what_was_done_stays(self, numbers: Database) -> None:
        left: dict[str, str] = {}
        with pytest.raises(AirflowFailException, match=r"^These are seven\.$"):
            execute_batches(BATCH, parameters={"size": 7, "done": 0, "label": "all numbers"}, left=left)
        assert left_over(numbers) == [8, 9, 10]
        assert left == {"problem": "all numbers: These are seven."}


class TestLoop:
    @pytest.mark.parametrize(("size", "statements"), [(3, 5), (5, 3), (10, 2), (11, 2)])
    def test_it_goes_on_with_what_the_statement_says(
        self, numbers: Database, log: Log, size: int, statements: int
    ) -> None:
        batches = [list(range(first, min(first + size, 11))) for first in range(1, 11, size)]
        assert execute_batches(BATCH, parameters={"size": size, "done": 0}) == batches
        lines = log.lines()
        assert sum(line.startswith("PostgreSQL: ") for line in lines) == statements
        said = [f"line {batch} after {batch[0] - 1}" for batch in batches]
        assert [line for line in lines if line.startswith("line")] == [*said, "line  after 10"]
        assert left_over(numbers) == []

    def test_each_statement_is_a_transaction_of_its_own(self, numbers: Database) -> None:
        sql = BATCH.replace("json_agg(n ORDER BY n) AS result", "sum(1 / (n - 6)) AS result")
        with pytest.raises(psycopg.errors.DivisionByZero):
            execute_batches(sql, parameters={"size": 4, "done": 0})
        assert left_over(numbers) == [5, 6, 7, 8, 9, 10]

    def test_steps(self, numbers: Database, log: Log) -> None:
        """Each has its own parameters over those of all; what gives no result is left out."""
        steps = [{"first": 9, "last": 20}, {"first": 20, "last": 30}, {"first": 1, "last": 3, "name": "own"}]
        assert execute_batches(STEP, parameters={"name": "all", "steps": steps}) == [{"all": 2}, {"own": 3}]
        assert [line for line in log.lines() if line.startswith("line")] == ["line 9", "line 1"]
        assert left_over(numbers) == [4, 5, 6, 7, 8]

    def test_a_step_that_fails_leaves_those_before_it_done(self, numbers: Database) -> None:
        steps = [{"first": 1, "last": 2}, {"first": 3, "last": "x"}, {"first": 5, "last": 6}]
        with pytest.raises(psycopg.DataError):
            execute_batches(STEP, parameters={"name": "all", "steps": steps})
        assert left_over(numbers) == [3, 4, 5, 6, 7, 8, 9, 10]

    def test_no_steps_are_nothing_to_do(self, numbers: Database, log: Log) -> None:
        assert execute_batches(STEP, parameters={"name": "all", "steps": []}) == []
        assert log.lines() == []
        assert len(left_over(numbers)) == 10

    def test_a_step_may_go_on_by_itself(self, numbers: Database) -> None:
        steps = [{"size": 2, "done": 4}, {"size": 5, "done": 0}]
        sql = BATCH.replace("count(*) > 0", "%(done)s < 5")
        assert execute_batches(sql, parameters={"steps": steps}) == [[1, 2], [3, 4], [5, 6, 7, 8, 9], [10]]

    def test_it_pauses_after_each_statement(self, numbers: Database) -> None:
        def seconds(sql: str, **parameters: Any) -> float:
            started = time.monotonic()
            execute_batches(sql, parameters=parameters, pause=0.4)
            return time.monotonic() - started

        assert seconds(STEP, name="x", steps=[{"first": n, "last": n} for n in (1, 2)]) >= 0.8
        assert 1.2 <= seconds(BATCH, size=5, done=0) < 1.6

    def test_it_rests_in_proportion_to_what_a_statement_took(self, numbers: Database) -> None:
        started = time.monotonic()
        execute_batches("SELECT pg_sleep(0.3)", parameters={"steps": [{}, {}]}, rest=2)
        assert 1.8 <= time.monotonic() - started < 2.4

    def test_all_statements_use_one_connection_and_none_stays_open(self, numbers: Database) -> None:
        sql = "SELECT pg_backend_pid() AS result"
        [one, other] = execute_batches(sql, parameters={"steps": [{}, {}]})
        assert one == other
        numbers.wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s", one)


def test_what_a_statement_says_cannot_steer_a_terminal(numbers: Database, capsys: pytest.CaptureFixture[str]) -> None:
    execute(r"SELECT E'one \x1b[2J\r\u202Etxt\u2028\u0085é🦆\nlast' AS log")
    written = capsys.readouterr().out
    assert r"one \x1b[2J\r\u202etxt\u2028\x85é🦆" in written
    assert "last" in written
    assert "\x1b[2J" not in written


class TestErrors:
    def test_undefined_connection_is_one_sentence(self) -> None:
        left: dict[str, str] = {}
        problem = "Airflow has no connection nowhere: add it under Admin > Connections."
        with pytest.raises(AirflowFailException, match=problem):
            execute("SELECT 1", conn_id="nowhere", left=left)
        assert left == {"problem": problem}

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ("the same with another login", "Airflow's connection elsewhere is not of the type postgres"),
            ('{"conn_type": "mysql"}', "Airflow's connection elsewhere is not of the type postgres"),
            ("[]", "Airflow's connection elsewhere is not of the type postgres"),
            ('{"conn_type": "postgres", "password": "topsecret"', "AIRFLOW_CONN_ELSEWHERE is not a connection"),
            ('{"conn_type": "postgres", "passwort": "topsecret"}', "AIRFLOW_CONN_ELSEWHERE is not a connection"),
            (
                '{"conn_type": "postgres", "extra": "topsecret"}',
                "The extra of Airflow's connection elsewhere is not a JSON",
            ),
            ('{"conn_type": "postgres", "extra": "[1]"}', "The extra of Airflow's connection elsewhere is not a JSON"),
        ],
    )
    def test_what_is_no_connection_to_postgresql_is_one_sentence(
        self, value: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", value)
        with pytest.raises(AirflowFailException, match=problem) as error:
            execute("SELECT 1", conn_id="elsewhere")
        assert str(error.value).endswith(": write it as JSON, as README.md shows.")
        assert "topsecret" not in str(error.value) + capsys.readouterr().err

    @pytest.mark.parametrize(
        ("sql", "error", "problem"),
        [
            (
                "SELECT 1 FROM nothing",
                psycopg.errors.UndefinedTable,
                'relation "nothing" does not exist (42P01). Run "make schema" and check search_path in the connection.',
            ),
            ("SELECT nothing", psycopg.errors.UndefinedColumn, "(42703). Check search_path in the connection and the"),
            ("SELECT nothing()", psycopg.errors.UndefinedFunction, '(42883). Run "make schema"'),
            (
                "TRUNCATE analytics_event",
                psycopg.errors.InsufficientPrivilege,
                'permission denied for table analytics_event (42501). Run "make schema", make the role a member of',
            ),
            ("SELEKT 1", psycopg.errors.SyntaxError, 'syntax error at or near "SELEKT" (42601).'),
        ],
    )
    def test_an_error_is_one_sentence_with_what_to_do(
        self, database: Database, log: Log, sql: str, error: type[Exception], problem: str
    ) -> None:
        left: dict[str, str] = {}
        with pytest.raises(error):
            execute(sql, parameters={"label": "2024-01-15"}, left=left)
        [line] = log.lines("error")
        assert problem in line
        assert (line, left["problem"]) == (f"task failed: {line[13:]}", f"2024-01-15: {line[13:]}")

    def test_a_fault_of_the_code_is_a_sentence_too(self) -> None:
        assert sentence(TypeError("a\nb")) == "TypeError: a b; the task's log has more."

    def test_no_password_in_the_log(self, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
        port = embedded.free_port()
        monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", f"postgres://someone:hunter2@127.0.0.1:{port}/nowhere")
        with pytest.raises(psycopg.OperationalError) as raised:
            execute("SELECT 1")
        [line] = log.lines("error")
        assert "(no connection)" in line
        assert "hunter2" not in line + str(raised.value)

    def test_statement_timeout(self, database: Database, log: Log) -> None:
        with pytest.raises(psycopg.errors.QueryCanceled):
            execute("SELECT pg_sleep(60)", session_settings={"statement_timeout": "100ms"})
        assert "hit its statement_timeout; nothing was changed." in log.lines("error")[0]

    def test_lock_timeout_leaves_the_application_alone(self, database: Database, log: Log) -> None:
        event = database.event("2026-01-01 00:00Z")
        with database.connect() as application, application.transaction():
            application.execute("SELECT FROM analytics_event WHERE id = %s FOR UPDATE", [event])
            with pytest.raises(psycopg.errors.LockNotAvailable):
                execute("DELETE FROM analytics_event", session_settings={"lock_timeout": "100ms"})
        assert "The application holds a lock; nothing was changed." in log.lines("error")[0]
        assert database.value("SELECT count(*) FROM analytics_event") == 1

    def test_a_row_security_policy_is_an_error_and_not_a_wrong_count(self, database: Database, log: Log) -> None:
        database.event("2026-01-01 00:00Z")
        database.connection.execute("ALTER TABLE analytics_event ENABLE ROW LEVEL SECURITY")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            execute("SELECT count(*) AS result FROM analytics_event")
        assert "let no row-level security apply to it." in log.lines("error")[0]

    def test_a_second_writer_of_a_row_gives_way(self, numbers: Database) -> None:
        """What is computed from a snapshot is not written over what somebody wrote meanwhile."""
        sql = "UPDATE number SET n = n + (SELECT count(*) FROM pg_sleep(1)) WHERE n = 10"
        raised: list[psycopg.Error] = []

        def run() -> None:
            with pytest.raises(psycopg.errors.SerializationFailure) as info:
                execute(sql, session_settings=REPEATABLE_READ)
            raised.append(info.value)

        with numbers.connect() as other, other.transaction():
            other.execute("UPDATE number SET n = 20 WHERE n = 10")
            thread = threading.Thread(target=run)
            thread.start()
            numbers.wait_until("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        thread.join(timeout=10)
        assert [error.sqlstate for error in raised] == ["40001"]
        assert left_over(numbers)[-1] == 20


def test_the_connections_own_limits_win_over_ours(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", f"{uri}&keepalives_idle=7")
    with SessionPostgresHook(postgres_conn_id="analytics_db", session_settings={"jit": "off"}).get_conn() as connection:
        parameters = connection.info.get_parameters()
    assert (parameters["keepalives_idle"], parameters["connect_timeout"]) == ("7", "5")
