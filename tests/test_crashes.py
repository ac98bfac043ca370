"""The crash law: kill the task, the worker or PostgreSQL at any moment, and after Airflow's retries the tables equal
those of an undisturbed run."""

import select
import shutil
import socket
import socketserver
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg.rows import dict_row

import embedded
from conftest import BACKGROUND, LOGIN, ROOT, Database
from crash_runs import AGGREGATE, ARCHIVE, BATCH_SIZE, CLEANUP, JOBS, TABLES, Tables, run_jobs, seed, tables
from local_airflow import Airflow, terminate
from web_analytics import schema
from web_analytics.job import JOB
from web_analytics.postgres import SESSION_SETTINGS
from web_analytics.settings import settings

pytestmark = pytest.mark.usefixtures("airflow_metadata", "small_batches")

T = TypeVar("T")
Connection = psycopg.Connection[dict[str, Any]]


@pytest.fixture(scope="module")
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "batch_size", BATCH_SIZE)
        patch.setitem(JOB["default_args"], "retry_exponential_backoff", 0)  # of no delay it would make a second
        yield


@pytest.fixture(scope="module")
def template(template: str, server: embedded.Server) -> str:
    """The database that each test has a copy of."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE template_crashes TEMPLATE {template}".encode())
    database = Database(server.dsn("template_crashes"))
    seed(database)
    database.close_connections()
    return "template_crashes"


@pytest.fixture(scope="module")
def undisturbed(template: str, server: embedded.Server, airflow_metadata: None, small_batches: None) -> list[Tables]:
    """The tables after each job when nothing goes wrong."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE undisturbed TEMPLATE {template}".encode())
    database = Database(server.dsn("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        lead_to(patch, server.port, "undisturbed")
        after, tries = run_jobs(database)
    database.close_connections()
    assert {task for task, tried in tries.items() if set(tried) != {1}} == {"continue_backlog", "drop_partition"}
    mapped = ("aggregate_day", "delete_event_batch", "delete_session_batch")
    assert [len(tries[task]) for task in mapped] == [3, 6, 2]
    # What is held stays, and stays on the list.
    assert after[-1]["analytics_purge_batch"]
    return after


def lead_to(patch: pytest.MonkeyPatch, port: int, database: str) -> None:
    """Make Airflow's connection lead to a database."""
    uri = f"postgres://{LOGIN}@127.0.0.1:{port}/{database}?options=-c%20search_path%3Danalytics,public"
    patch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri)


def before_each_attempt(patch: pytest.MonkeyPatch, prepare: Callable[[Any], None]) -> None:
    """Call something with the task instance whenever Airflow is about to execute a task."""
    patch.setitem(JOB["default_args"], "on_execute_callback", lambda context: prepare(context["ti"]))


class Relay(socketserver.BaseRequestHandler):
    """A connection through the proxy."""

    server: "Proxy"

    def handle(self) -> None:
        has_settings = is_told = False
        with socket.create_connection(("127.0.0.1", self.server.database_port)) as database, suppress(ConnectionError):
            other = {self.request: database, database: self.request}
            while True:
                for source in select.select(list(other), [], [])[0]:
                    data = source.recv(65536)
                    if source is self.request:
                        # A statement commits by itself. That of give_way.sql only reads, before others.
                        is_told |= (
                            has_settings
                            and data.startswith((b"P", b"Q"))
                            and b"more urgent to do than a batch" not in data
                        )
                        has_settings |= b"COMMIT\0" in data
                    if is_told and self.server.attempt == 1:
                        return
                    if is_told and self.server.attempt == 2 and source is database and data.endswith(b"Z\0\0\0\5I"):
                        return
                    if not data:
                        return
                    other[source].sendall(data)


class Proxy(socketserver.ThreadingTCPServer):
    """Leads to the database, and breaks the connection of a task in its first statement, which commits by itself.

    At the first attempt before the server gets it, at the second before the task gets the answer that it is committed.
    """

    daemon_threads = True

    def __init__(self, database_port: int) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.database_port = database_port
        self.attempt = 0

    def prepare(self, ti: Any) -> None:
        self.attempt = ti.try_number


def test_connection_lost_in_a_commit(
    database: Database, server: embedded.Server, undisturbed: list[Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server.port) as proxy:
        BACKGROUND.submit(proxy.serve_forever)
        try:
            lead_to(monkeypatch, int(proxy.server_address[1]), database.connection.info.dbname)
            before_each_attempt(monkeypatch, proxy.prepare)
            after, tries = run_jobs(database)
        finally:
            proxy.shutdown()
    assert after == undisturbed
    without_sql = {"plan_days", "drop_partition", "report_result", "continue_backlog"}
    assert {task for task, tried in tries.items() if set(tried) != {3}} == without_sql


STATEMENTS = {
    "seal_days": "analytics_purge_batch INSERT",
    "aggregate_day": "analytics_daily_stats INSERT",
    "seal_again": "analytics_purge_batch INSERT",
    "delete_event_batch": "analytics_event DELETE",
    "list_sessions": "analytics_purge_batch INSERT",
    "delete_session_batch": "analytics_session DELETE",
    "close_idle_sessions": "analytics_session UPDATE",
}
"""What the tasks that write do; where one does several things, one of them, since all are done or none."""


def add_triggers(database: Database) -> None:
    """Let the server call on_write() at the end of each statement that writes, before it is committed."""
    on_write(database, "AS 'BEGIN RETURN NULL; END'")
    for statement in set(STATEMENTS.values()):
        table, action = statement.split()
        database.connection.execute(
            f"CREATE TRIGGER on_{action} AFTER {action} ON {table} EXECUTE FUNCTION on_write()".encode()
        )


def on_write(database: Database, body: str) -> None:
    database.connection.execute(
        f"CREATE OR REPLACE FUNCTION on_write() RETURNS trigger LANGUAGE plpgsql {body}".encode()
    )


def test_errors_that_pass(database: Database, undisturbed: list[Tables], monkeypatch: pytest.MonkeyPatch) -> None:
    application = database.connect()

    def prepare(ti: Any) -> None:
        slots, error = -1, "RETURN NULL"
        application.execute("ROLLBACK")
        match ti.try_number if ti.task_id in STATEMENTS else 0:
            case 1:  # out of connection slots, 53300
                slots = 0
            case 2:  # lock timeout, 55P03
                application.execute("BEGIN")
                application.execute(f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE".encode())
            case 3:
                error = "RAISE disk_full"
            case 4:
                error = "RAISE deadlock_detected"
        database.connection.execute(
            f"ALTER DATABASE {database.connection.info.dbname} CONNECTION LIMIT {slots}".encode()
        )
        on_write(database, f"AS 'BEGIN {error}; END'")

    add_triggers(database)
    monkeypatch.setitem(SESSION_SETTINGS, "lock_timeout", "10ms")
    before_each_attempt(monkeypatch, prepare)
    # The last task of all may have no need of what is locked.
    monkeypatch.setitem(JOB["default_args"], "on_success_callback", lambda _: application.execute("ROLLBACK"))
    with closing(application):
        after, tries = run_jobs(database)
    assert after == undisturbed
    assert {task for task, tried in tries.items() if max(tried) == 5} == set(STATEMENTS)


def hold_statements(database: Database) -> None:
    """Let the statement of a task wait, its work done and not committed, while somebody holds it with `hold`."""
    add_triggers(database)
    body = """
    DECLARE
        task text := substring(current_setting('application_name') FROM '[.](\\w+)');
        key integer := hashtext(concat_ws(' ', task, TG_TABLE_NAME, TG_OP));
    BEGIN
        PERFORM pg_advisory_lock_shared(key), pg_advisory_unlock_shared(key);
        RETURN NULL;
    END
    """
    on_write(database, f"SET lock_timeout = 0 AS $${body}$$")


def hold(connection: Connection, *tasks: str) -> None:
    for task in tasks:
        connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [f"{task} {STATEMENTS[task]}"])


def release(connection: Connection, *tasks: str) -> None:
    for task in tasks:
        connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [f"{task} {STATEMENTS[task]}"])


def held(connection: Connection) -> list[dict[str, Any]]:
    """The statements that wait so: their DAG and task, the server's process and the port of the task's."""
    return connection.execute(
        "SELECT pid, client_port, substring(application_name FROM 'airflow:(.*?)[.]') AS dag_id,"
        " substring(application_name FROM '[.](\\w+)') AS task FROM pg_stat_activity WHERE wait_event = 'advisory'"
    ).fetchall()


def until(condition: Callable[[], T]) -> T:
    """Wait until the condition is true, and return what it gave."""
    deadline = time.monotonic() + 180
    while not (value := condition()):
        assert time.monotonic() < deadline, "never became true"
        time.sleep(0.05)
    return value


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[embedded.Server]:
    """A server that may crash: with fsync, and synchronous_commit as it is by default."""
    server = embedded.start(tmp_path)
    try:
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(server.home)


def test_server_crashes(
    own_server: embedded.Server, undisturbed: list[Tables], monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(own_server.dsn()) as connection:
        connection.execute((ROOT / "dev" / "application.sql").read_bytes())
    schema.install(own_server.dsn(), "analytics,public")
    database = Database(own_server.dsn())
    database.connection.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE analytics_jobs".encode())
    seed(database)
    hold_statements(database)
    crashes: list[Future[None]] = []
    uncrashed = set(STATEMENTS)

    def crash(holder: Connection) -> None:
        with closing(holder):
            until(lambda: held(holder))
            own_server.restart("immediate")

    def prepare(ti: Any) -> None:
        if crashes:
            crashes[-1].result()
        if ti.task_id in uncrashed:
            uncrashed.remove(ti.task_id)
            holder = database.connect()
            hold(holder, ti.task_id)
            crashes.append(BACKGROUND.submit(crash, holder))

    lead_to(monkeypatch, own_server.port, "postgres")
    before_each_attempt(monkeypatch, prepare)
    after, tries = run_jobs(database)
    assert after == undisturbed
    assert {task for task, tried in tries.items() if max(tried) == 2} == set(STATEMENTS)


@pytest.fixture
def metadata(server: embedded.Server) -> Iterator[Connection]:
    """An empty database for a real Airflow."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE airflow_of_crashes")
    with psycopg.connect(server.dsn("airflow_of_crashes"), autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
def airflow(tmp_path: Path, server: embedded.Server, metadata: Connection, database: Database) -> Iterator[Airflow]:
    """A real Airflow, whose connection leads to the test's database."""
    analytics = {
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": server.port,
        "login": LOGIN,
        "schema": database.connection.info.dbname,
        "extra": {"options": "-c search_path=analytics,public"},
    }
    with (tmp_path / "lock").open("w") as lock, Airflow(tmp_path, server, analytics, lock.fileno()) as airflow:
        airflow.environment |= {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.dsn(metadata.info.dbname).replace("://", "+psycopg2://"),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
            "ANALYTICS_BATCH_SIZE": str(BATCH_SIZE),
            # No run comes by itself, as the one that was due last does until a tenth of the interval has passed.
            **{f"ANALYTICS_{job}_SCHEDULE": "0 0 29 2 *" for job in ("AGGREGATE", "CLEANUP", "ARCHIVE")},
        }
        airflow.run("db", "migrate")
        airflow.finish("db")
        airflow.start(triggerer=False)
        airflow.wait_for_dags(JOBS)
        yield airflow


def final_state(airflow: Airflow, dag_id: str, run_id: str) -> str:
    run = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
    return until(lambda: {str(airflow.call("GET", run)["state"])} - {"queued", "running"}).pop()


def test_killed_processes(
    airflow: Airflow, metadata: Connection, database: Database, undisturbed: list[Tables]
) -> None:
    connection = database.connection
    hold_statements(database)
    scheduler = airflow.processes["scheduler"]

    def age(table: str, column: str, condition: str) -> None:
        """Let an hour pass for some rows of Airflow's."""
        update = f"UPDATE {table} SET {column} = {column} - INTERVAL '1 hour' WHERE {condition}"
        until(lambda: metadata.execute(update.encode()).rowcount)

    def kill(task: str, whom: str) -> None:
        """Kill the process of a task or its worker while its statement waits, and let it be tried again at once."""
        until(lambda: [row for row in held(connection) if row["task"] == task])
        # Airflow's tasks hide from others which connections they have; Airflow knows which processes they are.
        query = "SELECT pid FROM task_instance WHERE task_id = %s AND state = 'running'"
        process = psutil.Process(metadata.execute(query, [task]).fetchall()[0]["pid"])
        (process if whom == "task" else process.parent()).kill()
        release(connection, task)
        # What Airflow would wait for: that the worker is silent for too long, and the retry of the task.
        if whom == "worker":
            age("task_instance", "last_heartbeat_at", f"task_id = '{task}' AND state = 'running'")
        age("task_instance", "end_date", f"task_id = '{task}' AND state = 'up_for_retry'")

    try:
        hold(connection, *STATEMENTS)
        runs = {ARCHIVE: airflow.trigger(ARCHIVE, confirm=True), CLEANUP: airflow.trigger(CLEANUP)}
        kill("seal_days", "worker")
        kill("close_idle_sessions", "worker")
        kill("aggregate_day", "task")
        kill("seal_again", "task")
        kill("delete_event_batch", "task")
        kill("list_sessions", "worker")
        hold(connection, "aggregate_day")

        runs[AGGREGATE] = airflow.trigger(AGGREGATE)
        until(lambda: {row["dag_id"] for row in held(connection)} == {ARCHIVE, AGGREGATE})
        before = {row["pid"] for row in held(connection)}
        ports = [open_socket.laddr.port for open_socket in psutil.Process(scheduler.pid).net_connections("tcp")]
        airflow.processes.pop("scheduler").kill()
        scheduler.wait()
        # Its workers were forked from it and live on: they keep its connections open, and a transaction's locks.
        metadata.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY(%s)", [ports])
        age("job", "latest_heartbeat", "job_type = 'SchedulerJob'")
        airflow.run("scheduler")
        until(lambda: {row["dag_id"] for row in held(connection) if row["pid"] not in before} == {ARCHIVE, AGGREGATE})
        release(connection, "aggregate_day", "delete_session_batch")
        assert [final_state(airflow, dag_id, run_id) for dag_id, run_id in runs.items()] == ["success"] * 3
    finally:
        terminate([scheduler.pid])
    assert tables(database) == undisturbed[-1]
