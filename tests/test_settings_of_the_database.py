"""Results do not depend on settings of the database or the role, on privileges of PUBLIC, or on how queries are planned."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

import postgres
from conftest import LOGIN, SQL, Database
from web_analytics import schema, session
from web_analytics.postgres import REPEATABLE_READ, PostgresOperator

NOW = "2024-06-01 12:00Z"
TABLES = ("daily_stats", "timezone", "purge_batch", "job_run", "alert", "event", "session")

SEED = """
    INSERT INTO analytics_timezone VALUES ('berlin', '-infinity', 'Europe/Berlin');
    ALTER TABLE analytics_timezone DISABLE TRIGGER USER;
    INSERT INTO analytics_timezone VALUES ('panama', '-infinity', 'EST');
    ALTER TABLE analytics_timezone ENABLE TRIGGER USER;
    INSERT INTO analytics_website_policy VALUES ('berlin', 60);
    INSERT INTO analytics_event (
        id, website_id, event_type, pathname, referrer_source, visitor_id, session_id, timestamp, created_at, updated_at,
        deleted_at
    )
    SELECT
        CASE n WHEN 7 THEN 'NULL' ELSE E'e\\\\' || n END,
        CASE n % 3 WHEN 0 THEN 'shop' WHEN 1 THEN 'berlin' ELSE 'panama' END,
        CASE WHEN n % 5 = 0 THEN 'custom_event' ELSE 'pageview' END,
        E'/\\u00e4''"\\\\' || n % 7,
        CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'NULL' ELSE E'\\u00df{,}' END,
        'visitor ' || n % 50,
        'session ' || n % 90,
        moment,
        moment,
        CASE WHEN n % 11 = 0 THEN moment + INTERVAL '1 hour' ELSE moment END,
        CASE WHEN n % 13 = 0 THEN moment + INTERVAL '2 hours' END
    FROM generate_series(0, 300) AS n, LATERAL (SELECT '2024-02-20 04:30Z'::timestamptz + n * INTERVAL '510 minutes') AS t (moment);
    INSERT INTO analytics_session (
        id, website_id, session_id, visitor_id, entry_page, started_at, last_activity_at, ended_at, created_at, updated_at
    )
    SELECT
        E's\\\\' || n, 'shop', CASE WHEN n < 15 THEN 'gone ' ELSE 'session ' END || n, 'visitor', '/', moment, moment + n * INTERVAL '17 seconds',
        CASE n % 3 WHEN 0 THEN moment + INTERVAL '5 seconds' END, moment, moment
    FROM generate_series(0, 150) AS n, LATERAL (SELECT '2024-02-20Z'::timestamptz + n * INTERVAL '17 hours') AS t (moment)
"""
LATE = """
    INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp, created_at, updated_at)
    SELECT 'late ' || n, 'berlin', '/', 'v', 'session 1', moment, moment, moment
    FROM generate_series(1, 12) AS n, LATERAL (SELECT '2024-02-22Z'::timestamptz + n * INTERVAL '5 hours') AS t (moment);
    UPDATE analytics_event SET visitor_id = 'somebody', updated_at = timestamp + INTERVAL '1 day'
    WHERE timestamp > '2024-05-20Z' AND id LIKE '%0'
"""

# What a reader asks, in numbers: how values are written is the reader's own affair.
READ = """
    SELECT
        website_id,
        date - '2024-01-01'::date AS day,
        extract(EPOCH FROM starts_at) AS starts_at,
        extract(EPOCH FROM ends_at) AS ends_at,
        total_pageviews, total_custom_events, unique_visitors, unique_sessions, top_pages, top_referrers,
        analytics_unique_visitors(website_id, date - 3, date) AS visitors
    FROM analytics_traffic_daily
    -- Another name of the zone of Panama is the abbreviation that others use for a zone of Australia.
    WHERE website_id <> 'panama'
    ORDER BY website_id COLLATE "C", date
"""

# Those on the left of the session's own settings, and some that change only how a query is planned.
DISTURBANCES = [
    ("datestyle", "German, DMY"),
    ("datestyle", "SQL, DMY"),
    ("datestyle", "Postgres, YMD"),
    ("intervalstyle", "iso_8601"),
    ("intervalstyle", "sql_standard"),
    ("timezone", "America/New_York"),
    ("timezone", "Pacific/Auckland"),
    ("timezone_abbreviations", "Australia"),
    ("client_encoding", "LATIN1"),
    ("client_encoding", "SQL_ASCII"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("synchronous_commit", "off"),
    ("restrict_nonsystem_relation_kind", "view, foreign-table"),
    ("exit_on_error", "on"),
    ("idle_session_timeout", "50ms"),
    ("jit", "on"),
    ("debug_parallel_query", "on"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_hashagg", "off"),
    ("enable_hashjoin", "off"),
    ("enable_nestloop", "off"),
    ("enable_sort", "off"),
    ("join_collapse_limit", "1"),
    ("work_mem", "64kB"),
]


class Jobs:
    """The steps of the three jobs on a database, as their tasks run them."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = database
        info = database.connection.info
        path = "clock,analytics,public,pg_catalog"
        monkeypatch.setenv(
            "AIRFLOW_CONN_ANALYTICS_DB",
            f"postgres://{LOGIN}@127.0.0.1:{info.port}/{info.dbname}?options=-c%20search_path%3D{path}",
        )
        database.connection.execute(
            f"CREATE SCHEMA clock; CREATE FUNCTION clock.now() RETURNS timestamptz RETURN '{NOW}'::timestamptz;"
            f"GRANT USAGE ON SCHEMA clock TO {LOGIN}; {SEED}".encode()
        )

    def step(self, file: str, parameters: dict[str, Any], settings: dict[str, str] | None = None) -> Any:
        """What the task of a file gives to the next one."""
        operator = PostgresOperator(
            task_id=file.rsplit("/", maxsplit=1)[-1],
            sql=(SQL / f"{file}.sql").read_text(),
            parameters=parameters,
            session_settings=settings,
        )
        ti = SimpleNamespace(dag_id="dag", task_id="task", map_index=-1, xcom_push=lambda key, value: None)
        context: Any = {"ti": ti, "params": {}}
        operator.render_template_fields(context)
        return operator.execute(context)

    def run(self, job: str) -> None:
        """All steps of a job."""
        own = {"job": job, "run_id": uuid.uuid5(uuid.NAMESPACE_DNS, f"{job}").hex}
        self.step("check_database", {"version": schema.version()})
        self.step("watch/start_run", own | {"timezone": "UTC"})
        getattr(self, f"_{job.split('_', maxsplit=1)[0]}")(own)
        counts = dict.fromkeys(("rows_written", "rows_deleted", "batches", "unsealed_days"), 0)
        self.step("watch/finish_run", own | counts | {"target": None, "outcome": "success", "problem": None})
        limits = {"retention_days": 90, "idle_minutes": 30, "behind_hours": 36, "database_gb": 10}
        alerts = self.step("watch/find_alerts", limits)
        self.step("watch/mark_alerts_sent", {"ids": [alert["id"] for alert in alerts]})

    def _aggregate(self, own: dict[str, Any]) -> None:
        days = self.step("aggregate_daily_analytics/find_due_days", {})
        self._count({"days": days, "label": "all", "recount": False})

    def _count(self, days: dict[str, Any]) -> None:
        self.step("aggregate_daily_analytics/aggregate_day", days, REPEATABLE_READ)

    def _cleanup(self, own: dict[str, Any]) -> None:
        for task in ("count_anomalies", "close_idle_sessions", "end_returned_sessions", "count_active_visitors"):
            self.step(f"cleanup_analytics_sessions/{task}", {"idle_minutes": 30, "batch_size": 10, "done": 0})

    def _archive(self, own: dict[str, Any]) -> None:
        policy = own | {"retention_days": 90, "batch_size": 20, "dry_run": False}
        steps = self.step("archive_old_analytics/find_expired_days", policy)["steps"]
        for days in self._seal(policy, steps):
            self._count(days)
        self._seal(policy, steps)
        self._delete(policy, "event")
        self.step("archive_old_analytics/list_sessions", policy | {"after": None})
        self._delete(policy, "session")

    def _seal(self, policy: dict[str, Any], steps: Any) -> Any:
        return self.step("archive_old_analytics/seal_days", policy | {"steps": steps}, REPEATABLE_READ)

    def _delete(self, policy: dict[str, Any], kind: str) -> None:
        for task in self.step("archive_old_analytics/plan_batches", policy | {"kind": kind}):
            self.step(f"archive_old_analytics/delete_{kind}_batch", task)

    def all(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """Run every job twice, with changes between; return all tables, what a reader sees, and what the jobs say."""
        capsys.readouterr()
        self.run("aggregate_daily_analytics")
        self.run("cleanup_analytics_sessions")
        self.run("archive_old_analytics")
        self.database.connection.execute(LATE)
        self.run("archive_old_analytics")
        self.run("aggregate_daily_analytics")
        log = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        lines = re.findall(r"^\S+ \[(?:info|error) *\] (\[Analytics.*?) +\[airflow\.", log, re.MULTILINE)
        return {"log": lines, "read": self.read()} | tables(self.database)

    def read(self) -> list[Any]:
        """What somebody reads with the settings that the database gives to everybody."""
        with self.database.connect(LOGIN, options="-c search_path=analytics,public -c client_encoding=UTF8") as reader:
            return reader.execute(READ).fetchall()


def tables(database: Database) -> dict[str, Any]:
    """Everything that is stored, but for the size of the database."""
    with database.connect() as connection:
        session.apply(connection, session.SETTINGS)
        return {
            table: connection.execute(
                f"SELECT to_jsonb(t) - 'database_bytes' AS row FROM analytics_{table} AS t ORDER BY t::text".encode()
            ).fetchall()
            for table in TABLES
        }


@contextmanager
def new_database(server: postgres.Server, template: str, options: str = "") -> Iterator[Database]:
    """A database beside the test's own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {options}".encode())
        database = Database(server.dsn(name))
        try:
            yield database
        finally:
            database.close_connections()
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module")
def cache() -> dict[str, Any]:
    """What the first test finds for all."""
    return {}


@pytest.fixture
def expected(
    server: postgres.Server,
    template: str,
    cache: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> dict[str, Any]:
    """The results where nobody has set anything."""
    if not cache:
        with new_database(server, template) as database:
            cache |= Jobs(database, monkeypatch).all(capsys)
    return cache


def test_the_jobs_had_something_to_do(expected: dict[str, Any]) -> None:
    counts = {name: len(rows) for name, rows in expected.items()}
    assert counts["daily_stats"] > 200
    assert counts["purge_batch"] == 0
    assert 200 < counts["event"] < 280, "some have expired"
    assert 100 < counts["session"] < 150
    rows = [row["row"] for row in expected["daily_stats"]]
    assert sum(row["sealed_at"] is not None for row in rows) > 20
    assert sum(row["late_pageviews"] for row in rows) == 9
    assert len(expected["read"]) > 100
    assert len(expected["log"]) > 300


@pytest.mark.parametrize(("setting", "value"), DISTURBANCES)
def test_results_do_not_depend_on(
    setting: str,
    value: str,
    expected: dict[str, Any],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = Jobs(database, monkeypatch)
    database.connection.execute(f"ALTER DATABASE {database.connection.info.dbname} SET {setting} = {value!r}".encode())
    found = jobs.all(capsys)
    for name, rows in expected.items():
        assert found[name] == rows, name
