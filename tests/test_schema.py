"""The installer of our tables, functions, indexes and grants, on a database that the application already uses."""

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import postgres
from conftest import BACKGROUND, ROOT, Database
from web_analytics import schema

SEARCH_PATH = "analytics,public"
PRIVILEGES = {
    "analytics_jobs": [
        "analytics_alert INSERT SELECT UPDATE",
        "analytics_daily_stats INSERT SELECT UPDATE",
        "analytics_event DELETE SELECT",
        "analytics_job_run INSERT SELECT UPDATE",
        "analytics_proven_days SELECT",
        "analytics_purge_proof DELETE INSERT SELECT UPDATE",
        "analytics_session DELETE SELECT",
        "analytics_session UPDATE duration_seconds",
        "analytics_session UPDATE ended_at",
        "analytics_session UPDATE updated_at",
        "analytics_traffic_daily SELECT",
        "analytics_website_policy SELECT",
    ],
    "analytics_readers": [
        "analytics_alert SELECT",
        "analytics_daily_stats SELECT",
        "analytics_event SELECT",
        "analytics_job_run SELECT",
        "analytics_proven_days SELECT",
        "analytics_purge_proof SELECT",
        "analytics_session SELECT",
        "analytics_traffic_daily SELECT",
        "analytics_website_policy SELECT",
    ],
}


@pytest.fixture
def shop(server: postgres.Server) -> Iterator[Database]:
    """A shop's database: the application's tables with some rows, and nothing of ours."""
    name = f"shop_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    shop = Database(server.dsn(name))
    shop.connection.execute((ROOT / "include" / "demo" / "application.sql").read_bytes())
    for n in range(3):
        shop.event(f"2024-01-0{n + 1}T00:00Z")
        shop.session(shop.value("SELECT NOW()"), shop.value("SELECT NOW()"))
    yield shop
    shop.close_connections()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def run(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installer's command line."""
    command = [sys.executable, str(ROOT / "dags" / "web_analytics" / "schema.py"), dsn, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def catalog(database: Database) -> list[dict[str, Any]]:
    """Everything that the installer could make or change: relations, columns, privileges, comments, schemas."""
    return database.query(
        """
        SELECT
            pg_class.oid::text, pg_namespace.nspname, relname, relkind::text, relfilenode::text, relacl::text,
            nspacl::text, OBJ_DESCRIPTION(pg_class.oid, 'pg_class') AS comment, pg_class.xmin::text,
            (SELECT JSONB_AGG(TO_JSONB(pg_attribute) ORDER BY attnum) FROM pg_attribute WHERE attrelid = pg_class.oid)
                AS columns,
            (SELECT JSONB_AGG(description ORDER BY objsubid) FROM pg_description WHERE objoid = pg_class.oid) AS comments,
            (SELECT indisvalid FROM pg_index WHERE indexrelid = pg_class.oid) AS valid
        FROM pg_class INNER JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname !~ '^(pg_|information_schema)'
        ORDER BY pg_class.oid
        """
    )


def functions(database: Database) -> list[dict[str, Any]]:
    """Our functions, with their source and settings."""
    return database.query(
        """
        SELECT
            pg_proc.oid::text, nspname, proname, pg_get_function_identity_arguments(pg_proc.oid) AS arguments,
            pg_get_functiondef(pg_proc.oid) AS definition, proacl::text
        FROM pg_proc INNER JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE proname ~ '^analytics_'
        ORDER BY pg_proc.oid
        """
    )


def rows(database: Database) -> list[list[dict[str, Any]]]:
    """The application's rows and their versions."""
    return [
        database.query(f"SELECT *, ctid::text, xmin::text FROM analytics_{table} ORDER BY id")
        for table in ("event", "session")
    ]


def problems(database: Database) -> Any:
    return database.run("check_database.sql", database.connection, version=schema.version())


def test_a_database_with_the_applications_tables_and_rows(shop: Database) -> None:
    before = rows(shop)
    assert problems(shop) != []
    schema.install(shop.dsn, SEARCH_PATH)
    assert problems(shop) == []
    assert rows(shop) == before
    assert {row["nspname"] for row in functions(shop)} == {"analytics"}
    ours = {row["relname"] for row in catalog(shop) if row["relkind"] in "rv" and row["nspname"] == "analytics"}
    assert {"analytics_daily_stats", "analytics_website_policy", "analytics_purge_proof"} < ours
    assert shop.query("SELECT * FROM analytics_traffic_daily WHERE total_events = 1 AND aggregated_at IS NULL")
    # Their names were resolved for readers of any search_path.
    with shop.connect(options="-c search_path=pg_catalog") as reader:
        assert len(reader.execute("SELECT * FROM analytics.analytics_traffic_daily").fetchall()) == 3


@pytest.mark.parametrize(("role", "privileges"), PRIVILEGES.items())
def test_a_role_may_do_what_it_needs_and_no_more(shop: Database, role: str, privileges: list[str]) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    query = """
        WITH granted AS (
            SELECT relname || ' ' || string_agg(privilege, ' ' ORDER BY privilege) AS text
            FROM pg_class
            CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,MAINTAIN}'::text[]) AS privilege
            WHERE
                relname ~ '^analytics_' AND relkind IN ('r', 'v')
                AND has_table_privilege(%(role)s, pg_class.oid, privilege)
            GROUP BY relname
            UNION ALL
            SELECT relname || ' UPDATE ' || attname
            FROM pg_class INNER JOIN pg_attribute ON attrelid = pg_class.oid
            WHERE
                relname ~ '^analytics_' AND relkind IN ('r', 'v') AND attnum > 0
                AND has_column_privilege(%(role)s, pg_class.oid, attnum, 'UPDATE')
                AND NOT has_table_privilege(%(role)s, pg_class.oid, 'UPDATE')
        )
        SELECT text FROM granted ORDER BY text COLLATE "C"
    """
    granted = shop.connection.execute(query.encode(), {"role": role}).fetchall()
    assert [row["text"] for row in granted] == privileges


def test_installed_twice_is_installed_once(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    shop.run(
        "aggregate_daily_analytics/aggregate_day.sql",
        shop.connection,
        days=["2024-01-01", "2024-01-02"],
        timezone="UTC",
    )
    shop.connection.execute("INSERT INTO analytics_website_policy VALUES ('site', 'Asia/Kolkata', 30, true)")
    kept = [
        f"SELECT *, ctid::text, xmin::text FROM {table}"
        for table in ("analytics_daily_stats", "analytics_website_policy")
    ]
    before = [catalog(shop), functions(shop), *(shop.query(query) for query in kept)]
    schema.install(shop.dsn, SEARCH_PATH)
    after = [catalog(shop), functions(shop), *(shop.query(query) for query in kept)]
    # A repeated GRANT or COMMENT writes the same content into a new version of the catalog's row.
    for rows_of_pg_class in (before[0], after[0]):
        for row in rows_of_pg_class:
            del row["xmin"]
    assert after == before
    assert [len(found) for found in after[2:]] == [2, 1]


def test_an_installation_of_another_version_is_brought_up_to_this_one(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    installed = functions(shop)
    shop.connection.execute(
        """
        COMMENT ON TABLE analytics_daily_stats IS 'Version 0123456789ab';
        CREATE OR REPLACE FUNCTION analytics.analytics_day_start(day date, timezone text) RETURNS timestamptz
        LANGUAGE sql STABLE AS 'SELECT NULL::timestamptz';
        DROP VIEW analytics_traffic_daily
        """
    )
    assert [row["problem"] for row in problems(shop)] == [
        'The functions in the database are of another version of the jobs: run "make schema".'
    ]
    schema.install(shop.dsn, SEARCH_PATH)
    assert problems(shop) == []
    assert functions(shop) == installed
    assert len(shop.query("SELECT * FROM analytics_traffic_daily")) == 3
    comment = shop.value("SELECT obj_description('analytics_daily_stats'::regclass, 'pg_class')")
    assert comment.endswith(f"version {schema.version()}")


def test_the_version_is_another_one_when_any_file_of_the_schema_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = schema.version()
    folder = tmp_path / "schema"
    shutil.copytree(schema.FOLDER, folder)
    monkeypatch.setattr(schema, "FOLDER", folder)
    assert schema.version() == version
    for file in folder.iterdir():
        text = file.read_text()
        file.write_text(f"{text}\n-- Changed.\n")
        assert schema.version() != version
        file.write_text(text)
    assert schema.version() == version


def test_the_owner_need_not_be_allowed_to_create_roles(shop: Database, template: str) -> None:
    # The template's installation has made the role of the jobs.
    name = shop.value("SELECT current_database()")
    shop.connection.execute(
        f"""
        CREATE ROLE shop_owner LOGIN;
        ALTER DATABASE {name} OWNER TO shop_owner;
        ALTER TABLE analytics_event OWNER TO shop_owner;
        ALTER TABLE analytics_session OWNER TO shop_owner
        """.encode()
    )
    try:
        for _ in range(2):
            done = run(shop.dsn.replace("postgres@", "shop_owner@"))
            assert (done.returncode, done.stderr) == (0, "")
        assert problems(shop) == []
    finally:
        shop.connection.execute("REASSIGN OWNED BY shop_owner TO postgres; DROP ROLE shop_owner")


def test_another_table_with_the_name_of_ours_stays_untouched(shop: Database) -> None:
    shop.connection.execute(
        "CREATE TABLE public.analytics_daily_stats (id text PRIMARY KEY, date timestamptz, pageviews int);"
        "INSERT INTO public.analytics_daily_stats VALUES ('a', NOW(), 7)"
    )
    query = "SELECT *, ctid::text, xmin::text FROM public.analytics_daily_stats"
    before = catalog(shop), shop.query(query)
    schema.install(shop.dsn, SEARCH_PATH)
    assert problems(shop) == []
    assert shop.value("SELECT COUNT(*) FROM analytics.analytics_daily_stats") == 0
    theirs = [row for row in catalog(shop) if row["nspname"] == "public" and "daily_stats" in row["relname"]]
    acl: dict[str, Any] = {"nspacl": None}
    assert [row | acl for row in theirs] == [row | acl for row in before[0] if "daily_stats" in row["relname"]]
    assert shop.query(query) == before[1]


def test_schemas_of_other_names(shop: Database) -> None:
    shop.connection.execute(
        'CREATE SCHEMA "My Shop"; ALTER TABLE analytics_event SET SCHEMA "My Shop";'
        'ALTER TABLE analytics_session SET SCHEMA "My Shop"'
    )
    path = '"Our Stats","My Shop"'
    done = run(shop.dsn, "--search-path", "Our Stats, My Shop")
    assert (done.returncode, done.stderr) == (0, "")
    with shop.connect(options="") as connection:
        connection.execute("SELECT set_config('search_path', %s, false)", [path])
        assert shop.run("check_database.sql", connection, version=schema.version()) == []
    assert shop.value("SELECT to_regclass('\"Our Stats\".analytics_daily_stats') IS NOT NULL")
    assert shop.value("SELECT to_regnamespace('analytics') IS NULL")


@pytest.mark.parametrize("missing", ["analytics_event", "analytics_session"])
def test_without_the_applications_tables_one_sentence_says_so(shop: Database, missing: str) -> None:
    shop.connection.execute(f"DROP TABLE {missing}".encode())
    done = run(shop.dsn)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"The schema was not installed: table {missing} is not in analytics,public: create it"
    )
    assert done.stderr.count("\n") == 1
    assert shop.value("SELECT to_regclass('analytics_daily_stats') IS NULL")


def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    done = run(f"postgresql://postgres@127.0.0.1:{postgres.free_port()}/shop")
    assert done.returncode == 1
    assert done.stderr.startswith("The schema was not installed: connection failed")
    assert "Traceback" not in done.stderr


def test_an_invalid_index_is_built_again(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    names = "'analytics_event_timestamp_id_idx'::regclass, 'analytics_session_open_idx'::regclass"
    shop.connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ({names})".encode())
    # An invalid index of the application is none of ours.
    theirs = "analytics_event_session_id_idx"
    shop.connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{theirs}'::regclass".encode())
    oid = shop.value(f"SELECT '{theirs}'::regclass::oid")
    assert len(problems(shop)) == 2
    schema.install(shop.dsn, SEARCH_PATH)
    assert problems(shop) == []
    assert shop.value(f"SELECT '{theirs}'::regclass::oid") == oid
    assert shop.value("SELECT COUNT(*) FROM pg_index WHERE NOT indisvalid") == 1


@pytest.mark.parametrize("table", ["event", "session"])
def test_a_live_application_writes_on_while_the_indexes_are_built(shop: Database, table: str) -> None:
    with shop.connect() as application, shop.connect(options="-c search_path=public -c lock_timeout=1s") as visitor:
        with application.transaction():
            application.execute(f"UPDATE analytics_{table} SET updated_at = NOW()".encode())
            installed = BACKGROUND.submit(schema.install, shop.dsn, SEARCH_PATH)
            shop.wait_until(
                "SELECT COUNT(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND query ~ 'CREATE INDEX' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
            )
            # It waits for the application's transaction to end, and lets everybody else write meanwhile.
            application.execute(f"UPDATE analytics_{table} SET updated_at = NOW()".encode())
            visitor.execute(
                "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
                " VALUES ('new', 'site', '/', 'visitor', 'session', NOW());"
                "INSERT INTO analytics_session (id, website_id, visitor_id, session_id, entry_page, started_at, last_activity_at)"
                " VALUES ('new', 'site', 'visitor', 'session', '/', NOW(), NOW())"
            )
            assert not installed.done()
        installed.result(timeout=20)
    assert problems(shop) == []
    assert shop.value("SELECT COUNT(*) FROM analytics_event") == 4
