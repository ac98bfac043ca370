"""A real PostgreSQL and a real Airflow metadata database for the whole test session.

Airflow reads its configuration when it is first imported, so the servers are up before any test module is imported.
"""

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

ROOT = Path(__file__).resolve().parents[1]
SQL = ROOT / "include" / "sql"
QUERIES = ROOT / "plugins" / "web_analytics_page" / "queries"
"""The SQL of the Analytics page."""
DATA = ROOT.parent / "shared" / "data"
sys.path += [str(ROOT / "dags"), str(ROOT / "dev")]

import embedded

LOGIN = "airflow_jobs"
"""The role that the jobs use in the tests: a member of analytics_jobs and nothing else."""
DAYS_KEPT = 90

BACKGROUND = ThreadPoolExecutor(thread_name_prefix="background")

STATE = pytest.StashKey[tuple[Path, embedded.Server]]()


def pytest_configure(config: pytest.Config) -> None:
    state = Path(tempfile.mkdtemp(prefix="web-analytics-tests-"))
    options = "-c fsync=off -c full_page_writes=off -c shared_buffers=256MB -c max_connections=60"
    server = embedded.start(state, options)
    config.stash[STATE] = (state, server)
    for name in [name for name in os.environ if name.startswith(("AIRFLOW", "ANALYTICS_"))]:
        del os.environ[name]
    os.environ |= {
        "AIRFLOW_HOME": str(state / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://postgres@127.0.0.1:{server.port}/airflow",
        "NO_PROXY": "*",
    }
    # Here and not in pyproject.toml: pytest imports what a filter names, and Airflow must not be imported before now.
    for warning in ("exceptions.RemovedInAirflow4Warning", "utils.deprecation_tools.DeprecatedImportWarning"):
        config.addinivalue_line("filterwarnings", f"error::airflow.{warning}")


def pytest_unconfigure(config: pytest.Config) -> None:
    state, server = config.stash[STATE]
    server.stop("immediate")
    shutil.rmtree(server.home, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> embedded.Server:
    """The PostgreSQL server of the test session."""
    return pytestconfig.stash[STATE][1]


@pytest.fixture(scope="session")
def template(server: embedded.Server) -> str:
    """A database with the application's tables and everything that the installer adds."""
    from web_analytics import schema

    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_analytics")
    with psycopg.connect(server.dsn("template_analytics")) as connection:
        connection.execute((ROOT / "dev" / "application.sql").read_bytes())
    schema.install(server.dsn("template_analytics"), "analytics,public")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE analytics_jobs")
    return "template_analytics"


def run_file(connection: psycopg.Connection[dict[str, Any]], file: str | Path, **parameters: Any) -> Any:
    """The result of a file below include/sql, or elsewhere by its full path: its rows, or how many it affected."""
    cursor = connection.execute((SQL / file).read_bytes(), parameters or None)
    return cursor.fetchall() if cursor.description else cursor.rowcount


class Database:
    """One test's own analytics database."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = self.connect()

    def connect(self, user: str = "postgres", **settings: Any) -> psycopg.Connection[dict[str, Any]]:
        """A new connection as `user`, by default the owner of every table."""
        settings = {"options": "-c search_path=analytics,public"} | settings
        return psycopg.connect(self.dsn, user=user, autocommit=True, row_factory=dict_row, **settings)

    def query(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        """The rows of a query."""
        return self.connection.execute(query.encode(), arguments).fetchall()

    def value(self, query: str, *arguments: Any) -> Any:
        """The first column of the first row."""
        return next(iter(self.query(query, *arguments)[0].values()))

    def run(
        self, file: str | Path, connection: psycopg.Connection[dict[str, Any]] | None = None, **parameters: Any
    ) -> Any:
        """The result of a file below include/sql, as the jobs' role: its rows, or how many it affected."""
        if connection is None:
            with self.connect(LOGIN) as own:
                return self.run(file, own, **parameters)
        return run_file(connection, file, **parameters)

    def start(self, file: str, own: psycopg.Connection[dict[str, Any]] | None = None, **parameters: Any) -> Future[Any]:
        """Run a file in another thread; return its future result once its statement waits for a lock."""
        own = own or self.connect(LOGIN, options="-c search_path=analytics,public -c statement_timeout=20s")
        result = BACKGROUND.submit(self.run, file, own, **parameters)
        result.add_done_callback(lambda _: own.close())
        waiting = "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = %s"
        self.wait_until(waiting, own.info.backend_pid)
        return result

    def wait_until(self, query: str, *arguments: Any) -> None:
        """Wait until the query's value is true."""
        deadline = time.monotonic() + 10
        while not self.value(query, *arguments):
            assert time.monotonic() < deadline, f"never became true: {query}"
            time.sleep(0.01)

    @contextmanager
    def gate(self, table: str) -> Iterator[None]:
        """Stop statements of the jobs' role at the first row that they read of `table`, with their snapshot taken."""
        self.connection.execute(
            f"""
            CREATE FUNCTION pass_gate() RETURNS boolean LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1); RETURN true; END';
            GRANT EXECUTE ON FUNCTION pass_gate() TO public;
            ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
            CREATE POLICY gate ON {table} TO {LOGIN} USING (pass_gate());
            SELECT pg_advisory_lock(1)
            """.encode()
        )
        try:
            yield
        finally:
            self.connection.execute("SELECT pg_advisory_unlock(1)")

    def event(self, timestamp: datetime | str, website_id: str = "site", **columns: Any) -> str:
        """Insert one event and return its id."""
        values: dict[str, Any] = {
            "id": f"anevt_{uuid.uuid4().hex}",
            "website_id": website_id,
            "event_type": "pageview",
            "pathname": "/",
            "visitor_id": "visitor",
            "session_id": "session",
            "device_type": "desktop",
            "timestamp": timestamp,
        } | columns
        return self._insert("analytics_event", values)

    def session(self, started_at: datetime, last_activity_at: datetime, **columns: Any) -> str:
        """Insert one session and return its session_id."""
        name = uuid.uuid4().hex
        values: dict[str, Any] = {
            "id": f"anses_{name}",
            "website_id": "site",
            "session_id": f"session_{name}",
            "visitor_id": "visitor",
            "entry_page": "/",
            "started_at": started_at,
            "last_activity_at": last_activity_at,
        } | columns
        self._insert("analytics_session", values)
        return str(values["session_id"])

    def _insert(self, table: str, values: dict[str, Any]) -> str:
        self.connection.execute(
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})".encode(),
            list(values.values()),
        )
        return str(values["id"])

    def close_connections(self) -> None:
        """End every connection to this database, so that it can be dropped."""
        self.connection.close()


@pytest.fixture
def database(server: embedded.Server, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty analytics database of the test's own, which Airflow's connection analytics_db leads to."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    database = Database(server.dsn(name))
    monkeypatch.setenv(
        "AIRFLOW_CONN_ANALYTICS_DB",
        f"postgres://{LOGIN}@127.0.0.1:{server.port}/{name}?options=-c%20search_path%3Danalytics,public",
    )
    yield database
    database.close_connections()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def run(database: Database) -> Iterator[Any]:
    """The steps of a retention at a moment for which what is before CUTOFF has expired."""
    from retention_steps import retention

    with retention(database) as steps:
        yield steps


@pytest.fixture(scope="session")
def airflow_metadata(server: embedded.Server) -> None:
    """Airflow's own database, made once."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE airflow")
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def now() -> datetime:
    """The present moment, which the jobs' own clock can only be later than."""
    return datetime.now(UTC)


@pytest.fixture
def midnight(now: datetime) -> datetime:
    """The start of the oldest day that retention keeps by default, in UTC: the cutoff."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS_KEPT)
