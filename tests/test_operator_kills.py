"""PostgresOperator when its task or its server is killed."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException

import embedded
from conftest import ROOT, Database
from operator_steps import execute, prepare
from web_analytics.postgres import BatchOperator


def wait_for_statement(database: Database, active: bool, seconds: float) -> None:
    """Wait until the sleeping statement runs on the server, or does no more."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%%' AND state = 'active'"
    deadline = time.monotonic() + seconds
    while bool(database.value(query)) != active:
        assert time.monotonic() < deadline, f"statement still {'missing' if active else 'running'} after {seconds} s"
        time.sleep(0.05)


def test_a_kill_cancels_the_statement_on_the_server(database: Database) -> None:
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


def test_no_statement_is_started_after_a_kill(database: Database) -> None:
    database.connection.execute("CREATE TABLE number (n int); GRANT ALL ON number TO analytics_jobs")
    steps = [{"n": 1}, {"n": 2}]
    sql = "INSERT INTO number VALUES (%(n)s)"
    operator, context = prepare(sql, BatchOperator, parameters={"steps": steps}, pause=0.5)

    def kill() -> None:
        database.wait_until("SELECT count(*) = 1 FROM number")
        operator.on_kill()

    threading.Thread(target=kill).start()
    with pytest.raises(AirflowException, match="killed between two statements"):
        operator.execute(context)
    assert database.query("SELECT n FROM number") == [{"n": 1}]


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = embedded.start(tmp_path, "-c fsync=off")
    try:
        monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", own.dsn().replace("postgresql", "postgres", 1))
        with psycopg.connect(own.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE number AS SELECT n FROM generate_series(1, 10) AS n")
        crash = threading.Timer(1, own.restart, ["immediate"])
        crash.start()
        with pytest.raises(psycopg.OperationalError):
            execute("WITH gone AS (DELETE FROM number RETURNING n) SELECT pg_sleep(60) FROM gone LIMIT 1")
        crash.join()
        gone = "WITH gone AS (DELETE FROM number RETURNING n) SELECT count(*) AS result FROM gone"
        assert execute(gone) == 10
    finally:
        own.stop("immediate")
        shutil.rmtree(own.home)
