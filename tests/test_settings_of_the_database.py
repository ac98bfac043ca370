"""Results do not depend on settings of the database or the role, on privileges of PUBLIC, or on how queries are planned."""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

import clock
import embedded
from alert_steps import CONDITIONS, LIMITS
from conftest import LOGIN, ROOT, SQL, Database
from dag_runs import run_dag
from operator_steps import execute, prepare
from web_analytics import schema, session
from web_analytics.postgres import REPEATABLE_READ, BatchOperator, PostgresOperator, SessionPostgresHook

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

# For each setting that a session has of its own, another value; and some that decide only how a query is planned.
DISTURBED: dict[str, dict[str, str]] = {
    "how a value is written": {
        "client_encoding": "LATIN1",
        "datestyle": "German, DMY",
        "intervalstyle": "sql_standard",
        "timezone": "America/New_York",
        "timezone_abbreviations": "Australia",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
        "lc_numeric": "POSIX",
        "lc_time": "POSIX",
        "quote_all_identifiers": "on",
    },
    "what a statement means": {
        "standard_conforming_strings": "off",
        "backslash_quote": "off",
        "transform_null_equals": "on",
        "array_nulls": "off",
        "row_security": "on",
        "restrict_nonsystem_relation_kind": "view, foreign-table",
    },
    "what a transaction does": {
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "synchronous_commit": "off",
        "exit_on_error": "on",
        "idle_session_timeout": "20s",
        "transaction_timeout": "20s",
    },
    "planned without hashes": {
        "jit": "on",
        "enable_hashagg": "off",
        "enable_hashjoin": "off",
        "enable_seqscan": "off",
        "plan_cache_mode": "force_custom_plan",
    },
    "planned without indexes": {
        "enable_bitmapscan": "off",
        "enable_indexonlyscan": "off",
        "enable_indexscan": "off",
        "enable_nestloop": "off",
        "join_collapse_limit": "1",
        "work_mem": "64kB",
    },
}


def connect_airflow(database: Database, monkeypatch: pytest.MonkeyPatch, search_path: str) -> None:
    """Let Airflow's connection lead to a database."""
    info = database.connection.info
    uri = f"postgres://{LOGIN}@127.0.0.1:{info.port}/{info.dbname}?options=-c%20search_path%3D{search_path}"
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri)


def step(
    file: str,
    parameters: dict[str, Any],
    settings: dict[str, str] | None = None,
    operator: type[PostgresOperator] = PostgresOperator,
) -> Any:
    """What the task of a file gives to the next one."""
    sql = (SQL / f"{file}.sql").read_text()
    return execute(sql, operator=operator, parameters=parameters, session_settings=settings)


def rows(file: str, parameters: dict[str, Any]) -> Any:
    """The rows of a statement, as a task gets them."""
    task, _ = prepare("SELECT")
    return task.run_statement((SQL / f"{file}.sql").read_text(), parameters)


class Jobs:
    """The steps of the three jobs on a database with traffic, as their tasks run them, at a moment of 2024."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = database
        connect_airflow(database, monkeypatch, clock.SEARCH_PATH)
        clock.install(database.connection, NOW)
        database.connection.execute(SEED.encode())

    def run(self, job: str) -> None:
        """All steps of a job."""
        own = {"job": job, "run_id": uuid.uuid5(uuid.NAMESPACE_DNS, f"{job}").hex}
        step("check_database", {"version": schema.version()})
        step("watch/start_run", own | {"timezone": "UTC", "ignored_events": []})
        getattr(self, f"_{job.split('_', maxsplit=1)[0]}")(own)
        counts = dict.fromkeys(("rows_written", "rows_deleted", "batches", "unsealed_days"), 0)
        step("watch/finish_run", own | counts | {"target": None, "outcome": "success", "problem": None})
        step("watch/recent_runs", own)
        found = [
            {"condition": condition} | row for condition in CONDITIONS for row in rows(f"alerts/{condition}", LIMITS)
        ]
        alerts = step("watch/keep_alerts", {"found": json.dumps(found), "unknown": "[]"})
        step("watch/mark_alerts_sent", {"ids": [alert["id"] for alert in alerts]})

    def _aggregate(self, own: dict[str, Any]) -> None:
        days = step("aggregate_daily_analytics/find_due_days", {})
        self._count({"days": days, "label": "all", "recount": False})

    def _count(self, days: dict[str, Any]) -> None:
        step("aggregate_daily_analytics/aggregate_day", days, REPEATABLE_READ)

    def _cleanup(self, own: dict[str, Any]) -> None:
        for task in ("close_idle_sessions", "end_returned_sessions"):
            parameters = {"idle_minutes": 30, "batch_size": 10, "done": 0}
            step(f"cleanup_analytics_sessions/{task}", parameters, operator=BatchOperator)

    def _archive(self, own: dict[str, Any]) -> None:
        policy = own | {"retention_days": 90, "batch_size": 20, "dry_run": False, "confirm": True, "has_archive": False}
        steps = step("archive_old_analytics/find_expired_days", policy)["steps"]
        for days in self._seal(policy, steps):
            self._count(days)
        self._seal(policy, steps)
        self._delete(policy, "event")
        step("archive_old_analytics/list_sessions", policy | {"after": None}, operator=BatchOperator)
        self._delete(policy, "session")

    def _seal(self, policy: dict[str, Any], steps: Any) -> Any:
        return step("archive_old_analytics/seal_days", policy | {"steps": steps}, REPEATABLE_READ, BatchOperator)

    def _delete(self, policy: dict[str, Any], kind: str) -> None:
        for task in step("archive_old_analytics/plan_batches", policy | {"kind": kind}):
            step(f"archive_old_analytics/delete_{kind}_batch", task, operator=BatchOperator)

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
        with self.database.connect(
            LOGIN,
            options="-c search_path=analytics,public -c client_encoding=UTF8 -c restrict_nonsystem_relation_kind=",
        ) as reader:
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
def new_database(server: embedded.Server, template: str, options: str = "") -> Iterator[Database]:
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
    server: embedded.Server,
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
    assert len(expected["log"]) > 200


def quoted(value: str) -> str:
    """A value as SET takes it: a list of names is not one name."""
    return ", ".join(f"'{name.strip()}'" for name in value.split(","))


def known(database: Database, settings: Mapping[str, str]) -> dict[str, str]:
    """Those of the settings that the server's version has."""
    there = "SELECT current_setting(%s, true) IS NOT NULL"
    return {setting: value for setting, value in settings.items() if database.value(there, setting)}


def disturb(database: Database, settings: dict[str, str]) -> None:
    """Set settings for all who connect to a database from now on."""
    name = database.connection.info.dbname
    for setting, value in known(database, settings).items():
        database.connection.execute(f"ALTER DATABASE {name} SET {setting} = {quoted(value)}".encode())


@pytest.mark.parametrize("kind", DISTURBED)
def test_results_do_not_depend_on_settings(
    kind: str,
    expected: dict[str, Any],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = Jobs(database, monkeypatch)
    disturb(database, DISTURBED[kind])
    found = jobs.all(capsys)
    for name, rows in expected.items():
        assert found[name] == rows, name


@pytest.mark.parametrize("whose", ["database", "role", "connection"])
def test_a_sessions_settings_win(whose: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        name: value for values in DISTURBED.values() for name, value in values.items() if name in session.SETTINGS
    }
    assert others.keys() == session.SETTINGS.keys(), "each of them is disturbed"
    others = known(database, others)
    name, port = database.connection.info.dbname, database.connection.info.port
    options = ""
    if whose == "database":
        disturb(database, others)
    elif whose == "role":
        for setting, value in others.items():
            statement = f"ALTER ROLE {LOGIN} IN DATABASE {name} SET {setting} = {quoted(value)}"
            database.connection.execute(statement.encode())
    else:
        options = " ".join(f"-c {setting}={value.replace(' ', '')}" for setting, value in others.items())
    uri = f"postgres://{LOGIN}@127.0.0.1:{port}/{name}?options={quote(options)}"
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri)
    hook = SessionPostgresHook(postgres_conn_id="analytics_db", session_settings={})
    query = "SELECT name, setting FROM pg_settings WHERE lower(name) = ANY(%s)"
    with hook.get_conn() as connection:
        before = {name.lower(): setting for name, setting in connection.execute(query, [list(others)])}
        connection.rollback()
        session.apply(connection, session.SETTINGS)
        after = {name.lower(): setting for name, setting in connection.execute(query, [list(others)])}
    assert {name for name in others if before[name] == after[name]} == set()
    assert after == known(database, session.SETTINGS)


def test_a_setting_that_the_server_does_not_know_is_left_out(database: Database) -> None:
    with database.connect() as connection:
        session.apply(connection, {"of_a_later_version": "on", "datestyle": "ISO, YMD"})
        assert connection.execute("SHOW datestyle").fetchone() == {"DateStyle": "ISO, YMD"}


def test_settings_last_where_every_statement_is_not_a_transaction(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        session.apply(connection, {"datestyle": "ISO, YMD"})
        connection.rollback()
        assert connection.execute("SHOW datestyle").fetchone() == ("ISO, YMD",)


@pytest.fixture
def login(server: embedded.Server) -> Iterator[str]:
    """A login of the test's own."""
    name = f"login_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        yield name
        admin.execute(f"DROP ROLE {name}".encode())


def test_no_privilege_of_public_is_needed(
    expected: dict[str, Any],
    server: embedded.Server,
    login: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a careful administrator leaves a database, for the application's owner to install in."""
    with new_database(server, "template1", f"OWNER {login}") as database:
        name = database.connection.info.dbname
        everything = "".join(
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {login} REVOKE ALL ON {kind} FROM PUBLIC;"
            for kind in ("TABLES", "SEQUENCES", "FUNCTIONS", "TYPES", "SCHEMAS")
        )
        database.connection.execute(
            f"{everything} REVOKE ALL ON DATABASE {name} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC".encode()
        )
        with database.connect(login) as owner:
            owner.execute((ROOT / "dev" / "application.sql").read_bytes())
        schema.install(database.dsn.replace("postgres@", f"{login}@"), "analytics,public")
        found = Jobs(database, monkeypatch).all(capsys)
    for name, rows in expected.items():
        assert found[name] == rows, name


@pytest.mark.parametrize(
    ("job", "change", "sentence"),
    [
        (
            "archive_old_analytics",
            "CREATE TABLE older () INHERITS (analytics_event)",
            "Rows of tables that inherit from analytics_event would be taken for its own: ",
        ),
        (
            "cleanup_analytics_sessions",
            "ALTER TABLE analytics_session ENABLE ROW LEVEL SECURITY",
            "Row level security of table analytics_session would hide rows from role ",
        ),
        (
            "aggregate_daily_analytics",
            "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA analytics FROM PUBLIC, analytics_jobs",
            f"Role {LOGIN} lacks EXECUTE on function analytics_",
        ),
    ],
)
def test_a_run_that_cannot_be_right_changes_nothing(
    job: str,
    change: str,
    sentence: str,
    database: Database,
    airflow_metadata: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database.connection.execute(f"{SEED}; {change}".encode())
    before = tables(database)
    run = run_dag(job, capsys)
    assert run.state == "failed"
    assert run.tasks["check_database"] == ["failed"]
    assert sentence in run.log
    changed = {name for name, rows in tables(database).items() if rows != before[name]}
    assert changed <= {"job_run", "alert"}, "what tells people about it"


def test_a_setting_that_a_session_may_not_have_of_its_own_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_airflow(database, monkeypatch, "analytics,public")
    name = database.connection.info.dbname
    statement = f"ALTER ROLE {LOGIN} IN DATABASE {name} SET session_replication_role = 'replica'"
    database.connection.execute(statement.encode())
    with pytest.raises(AirflowFailException, match=r"^Setting session_replication_role is not \"origin\""):
        step("check_database", {"version": schema.version()})


def test_a_database_without_an_encoding_is_refused(server: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_database(server, "template0", "ENCODING 'SQL_ASCII' LOCALE 'C'") as database:
        database.connection.execute((ROOT / "dev" / "application.sql").read_bytes())
        schema.install(database.dsn, "analytics,public")
        connect_airflow(database, monkeypatch, "analytics,public")
        with pytest.raises(
            AirflowFailException, match=r"^The database has the encoding SQL_ASCII and the jobs need UTF8"
        ):
            step("check_database", {"version": schema.version()})


@pytest.fixture
def reader(
    server: embedded.Server, login: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """What the page answers to the role of its connection, by the name of the query."""
    monkeypatch.syspath_prepend(str(ROOT / "plugins"))
    from web_analytics_page.database import Reader

    database.connection.execute(f"GRANT analytics_readers TO {login}".encode())
    name = database.connection.info.dbname
    uri = f"postgres://{login}@127.0.0.1:{server.port}/{name}?options=-c%20search_path%3Danalytics,public"
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_READER", uri)
    first, last = date(2024, 1, 1), date(2024, 12, 31)
    days = {"before_day": first, "from_day": first, "to_day": last, "last_day": last}
    items = {"website": "berlin", "tab": "pages", "first_item_day": first, "last_item_day": last}

    def ask(query: str) -> Any:
        with Reader(**days, **items, live=True) as reader:
            return reader.ask(query)

    return ask


def test_the_pages_settings_are_those_of_the_jobs() -> None:
    from web_analytics_page.database import MEANING

    assert MEANING.items() <= session.SETTINGS.items()
    written = DISTURBED["how a value is written"].keys() | DISTURBED["what a statement means"].keys()
    # What only whoever writes SQL has to know, or what the page writes nothing of.
    needless = {"bytea_output", "lc_numeric", "lc_time", "quote_all_identifiers"}
    needless |= {"standard_conforming_strings", "backslash_quote"}
    assert written - MEANING.keys() == needless


def test_the_page_does_not_depend_on_settings(
    reader: Callable[[str], Any],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from web_analytics_page.database import QUERIES, SESSION_SETTINGS

    Jobs(database, monkeypatch).run("aggregate_daily_analytics")
    monkeypatch.setitem(SESSION_SETTINGS, "of_a_later_version", "on")
    queries = sorted(path.stem for path in QUERIES.glob("*.sql"))
    before = {name: reader(name) for name in queries}
    assert len(before["traffic"].rows) > 50
    disturb(database, {name: value for values in DISTURBED.values() for name, value in values.items()})
    for name in queries:
        found = reader(name)
        if name not in {"database_size", "runs"}:  # they change by themselves
            assert found == before[name], name
        assert not found.problem, (name, found)


def test_the_page_tells_a_policy_from_a_missing_privilege(reader: Callable[[str], Any], database: Database) -> None:
    assert not reader("alerts").problem
    database.connection.execute("ALTER TABLE analytics_alert ENABLE ROW LEVEL SECURITY")
    assert "Row level security would hide rows" in reader("alerts").problem
    database.connection.execute("ALTER TABLE analytics_alert DISABLE ROW LEVEL SECURITY")
    database.connection.execute("REVOKE SELECT ON analytics_alert FROM analytics_readers")
    assert "make the role a member of analytics_readers" in reader("alerts").problem
