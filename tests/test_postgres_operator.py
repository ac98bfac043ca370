"""PostgresOperator against a real server: settings, messages, errors, time-outs, kills and restarts."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

import postgres
from conftest import ROOT, Database
from web_analytics.postgres import PostgresOperator, SessionPostgresHook


def prepare(sql: str, map_index: int = -1, **kwargs: Any) -> tuple[PostgresOperator, Any]:
    """Return the operator as a task process has it, with its fields rendered, and the context to execute it in."""
    operator = PostgresOperator(task_id="task", sql=sql, **kwargs)
    ti = SimpleNamespace(dag_id="dag", task_id="task", map_index=map_index, xcom_push=lambda key, value: None)
    context: Any = {"ti": ti, "params": {}}
    operator.render_template_fields(context)
    return operator, context


def execute(sql: str, **kwargs: Any) -> Any:
    """Run the operator as a task process does."""
    operator, context = prepare(sql, **kwargs)
    return operator.execute(context)


BATCH = "DELETE FROM number WHERE n IN (SELECT n FROM number ORDER BY n LIMIT %(batch_size)s) RETURNING n"


@pytest.fixture
def numbers(database: Database) -> Database:
    """Ten rows in a table of their own."""
    database.connection.execute("CREATE TABLE number AS SELECT n FROM generate_series(1, 10) AS n")
    database.connection.execute("GRANT ALL ON number TO analytics_jobs")
    return database


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


def wait_for_statement(database: Database, active: bool, seconds: float) -> None:
    """Wait until the sleeping statement runs on the server, or does no more."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    deadline = time.monotonic() + seconds
    while bool(database.value(query)) != active:
        assert time.monotonic() < deadline, f"statement still {'missing' if active else 'running'} after {seconds} s"
        time.sleep(0.05)


def test_session_settings_win_over_the_connections_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri + "%20-c%20lock_timeout%3D99s&application_name=theirs")
    row = execute(
        "SELECT current_setting('lock_timeout') AS lock_timeout, current_setting('statement_timeout') AS statement,"
        " current_setting('timezone') AS timezone, current_setting('work_mem') AS work_mem,"
        " current_setting('jit') AS jit, current_setting('application_name') AS name,"
        " current_setting('client_connection_check_interval') AS check, current_setting('search_path') AS path",
        map_index=7,
        session_settings={"work_mem": "5MB", "statement_timeout": "1min"},
        returns="row",
    )
    assert row == {
        "lock_timeout": "5s",
        "statement": "1min",
        "timezone": "UTC",
        "work_mem": "5MB",
        "jit": "off",
        "name": "airflow:dag.task[7]",
        "check": "5s",
        "path": "analytics,public",
    }


def test_returns(numbers: Database) -> None:
    query = "SELECT n FROM number WHERE n < 3 ORDER BY n"
    assert execute(query, returns="rows") == [{"n": 1}, {"n": 2}]
    assert execute(query, returns="row") == {"n": 1}
    assert execute(query) == 2
    assert execute("DELETE FROM number WHERE n > 7") == 3
    assert execute("SELECT n FROM number WHERE false", returns="row") is None


def test_messages(numbers: Database, log: Log) -> None:
    execute(
        BATCH,
        parameters={"batch_size": 3, "done": 100, "name": "x"},
        repeat=True,
        row_messages=4,
        messages={
            "start": "start {name}",
            "batch": "batch {count} {total}",
            "row": "row {n}",
            "end": "end {total}",
            "none": "none",
        },
    )
    lines = log.lines()
    assert [line for line in lines if line.split()[0] in ("start", "batch", "row", "end", "none")] == [
        "start x",
        "batch 3 103",
        "row 1",
        "row 2",
        "row 3",
        "batch 3 106",
        "row 4",
        "batch 3 109",
        "batch 1 110",
        "end 10",
    ]
    assert sum(line.startswith("PostgreSQL: DELETE 3 in ") for line in lines) == 3

    execute("DELETE FROM number", messages={"batch": "batch", "end": "end", "none": "none"})
    assert {"batch", "end", "none"} & set(log.lines()) == {"none"}


def test_a_server_notice_is_logged(database: Database, log: Log) -> None:
    execute("DO $$ BEGIN RAISE NOTICE 'from the server'; END $$")
    assert "from the server" in log.lines()


@pytest.mark.parametrize(("size", "statements"), [(3, 4), (5, 3), (10, 2), (11, 1)])
def test_repeats_until_a_batch_is_not_full(numbers: Database, log: Log, size: int, statements: int) -> None:
    assert execute(BATCH, parameters={"batch_size": size}, repeat=True) == 10
    assert sum(line.startswith("PostgreSQL: ") for line in log.lines()) == statements


def test_a_planned_batch_that_is_not_full_is_not_the_last_one(numbers: Database) -> None:
    # As when the application changes a row of the batch at that moment: the first statement skips row 2.
    sql = "DELETE FROM number WHERE n IN (SELECT n FROM number ORDER BY n LIMIT %(batch_size)s) AND n <> 2"
    assert execute(sql, parameters={"batch_size": 4, "batches": 5}, repeat=True) == 9
    assert numbers.query("SELECT n FROM number") == [{"n": 2}]


def test_repeats_at_most_as_often_as_planned(numbers: Database) -> None:
    assert execute(BATCH, parameters={"batch_size": 2, "batches": 3}, repeat=True) == 6
    assert numbers.value("SELECT count(*) FROM number") == 4


def test_each_batch_is_a_transaction_of_its_own(numbers: Database) -> None:
    sql = BATCH.replace("RETURNING n", "RETURNING 1 / (n - 6)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        execute(sql, parameters={"batch_size": 4}, repeat=True)
    assert [row["n"] for row in numbers.query("SELECT n FROM number ORDER BY n")] == [5, 6, 7, 8, 9, 10]


def test_pauses_after_each_batch(numbers: Database) -> None:
    started = time.monotonic()
    execute(BATCH, parameters={"batch_size": 5}, repeat=True, pause=0.3)
    assert time.monotonic() - started >= 0.6


def test_error_rows_are_named_and_fail_the_task_for_good(numbers: Database, log: Log) -> None:
    with pytest.raises(AirflowFailException, match=r"^2 is wrong\.$"):
        execute("SELECT n FROM number WHERE n > 1 ORDER BY n", messages={"error": "{n} is wrong."}, row_messages=2)
    assert log.lines("error") == ["2 is wrong.", "3 is wrong."]


def test_undefined_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowFailException, match="Airflow has no connection nowhere: add it"):
        execute("SELECT 1", conn_id="nowhere")


@pytest.mark.parametrize(
    ("sql", "error", "sentence"),
    [
        (
            "SELECT 1 FROM nothing",
            psycopg.errors.UndefinedTable,
            'relation "nothing" does not exist (42P01). Run "make',
        ),
        ("SELECT nothing", psycopg.errors.UndefinedColumn, "Check search_path"),
        (
            "TRUNCATE analytics_event",
            psycopg.errors.InsufficientPrivilege,
            "permission denied for table analytics_event",
        ),
        ("SELEKT 1", psycopg.errors.SyntaxError, "syntax error"),
    ],
)
def test_an_error_is_logged_as_one_sentence(
    database: Database, log: Log, sql: str, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error):
        execute(sql)
    [line] = log.lines("error")
    assert line.startswith("task failed: ")
    assert sentence in line


def test_no_password_in_the_log(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    port = postgres.free_port()
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", f"postgres://someone:hunter2@127.0.0.1:{port}/nowhere")
    with pytest.raises(psycopg.OperationalError) as raised:
        execute("SELECT 1")
    [line] = log.lines("error")
    assert "(no connection)" in line
    assert "hunter2" not in line + str(raised.value)


def test_statement_timeout(database: Database, log: Log) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        execute("SELECT pg_sleep(60)", session_settings={"statement_timeout": "100ms"})
    assert "nothing was changed" in log.lines("error")[0]


def test_lock_timeout_leaves_the_application_alone(database: Database, log: Log) -> None:
    event = database.event("2026-01-01 00:00Z")
    with database.connect() as application, application.transaction():
        application.execute("SELECT FROM analytics_event WHERE id = %s FOR UPDATE", [event])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute("DELETE FROM analytics_event", session_settings={"lock_timeout": "100ms"})
    assert "The application holds a lock; nothing was changed." in log.lines("error")[0]
    assert database.value("SELECT count(*) FROM analytics_event") == 1


def test_on_kill_cancels_the_statement_on_the_server(database: Database) -> None:
    operator, context = prepare("SELECT pg_sleep(60)")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            operator.execute(context)
        except psycopg.errors.QueryCanceled as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for_statement(database, active=True, seconds=10)
    operator.on_kill()
    thread.join(timeout=5)
    assert raised
    wait_for_statement(database, active=False, seconds=5)


def test_no_statement_is_started_after_the_kill(numbers: Database) -> None:
    operator, context = prepare(BATCH, parameters={"batch_size": 1}, repeat=True)
    operator.on_kill()
    with pytest.raises(AirflowException, match="killed between two batches"):
        operator.execute(context)
    assert numbers.value("SELECT count(*) FROM number") == 10


def test_a_row_security_policy_is_an_error_and_not_a_wrong_count(database: Database) -> None:
    database.event("2026-01-01 00:00Z")
    database.connection.execute("ALTER TABLE analytics_event ENABLE ROW LEVEL SECURITY")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        execute("SELECT count(*) FROM analytics_event")


def test_the_connections_own_limits_win_over_ours(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", f"{uri}&keepalives_idle=7")
    with SessionPostgresHook(postgres_conn_id="analytics_db", session_settings={"jit": "off"}).get_conn() as connection:
        parameters = connection.info.get_parameters()
    assert (parameters["keepalives_idle"], parameters["connect_timeout"]) == ("7", "10")


def test_a_killed_process_leaves_no_statement_behind(database: Database) -> None:
    script = (
        "from types import SimpleNamespace\n"
        "from web_analytics.postgres import PostgresOperator\n"
        "context = {'ti': SimpleNamespace(dag_id='dag', task_id='task', map_index=-1)}\n"
        "operator = PostgresOperator(task_id='task', sql='SELECT pg_sleep(120)')\n"
        "operator.render_template_fields(context)\n"
        "operator.execute(context)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "dags")}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for_statement(database, active=True, seconds=60)
    finally:
        process.kill()
        process.wait()
    # client_connection_check_interval is 5 s.
    wait_for_statement(database, active=False, seconds=15)


def test_a_server_that_crashes_under_the_statement_is_a_passing_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: Database
) -> None:
    own = postgres.start(tmp_path, "-c fsync=off")
    try:
        monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", own.dsn().replace("postgresql", "postgres", 1))
        with psycopg.connect(own.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE number AS SELECT n FROM generate_series(1, 10) AS n")
        crash = threading.Timer(1, own.restart, ["immediate"])
        crash.start()
        with pytest.raises(psycopg.OperationalError):
            execute("WITH gone AS (DELETE FROM number RETURNING n) SELECT pg_sleep(60) FROM gone LIMIT 1")
        crash.join()
        assert execute("DELETE FROM number") == 10
    finally:
        own.stop("immediate")
        shutil.rmtree(own.home)
