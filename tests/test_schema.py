"""The installer of our schema, on a database that the application already uses: from nothing, and from the release."""

import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import embedded
from conftest import BACKGROUND, ROOT, SQL, Database
from day_oracle import count_day
from web_analytics import schema

MIGRATIONS = len(list((SQL / "schema" / "migrations").glob("*.sql")))
SEARCH_PATH = "analytics,public"
PRIVILEGES = {
    "analytics_jobs": [
        "analytics_alert INSERT SELECT UPDATE",
        "analytics_archive_file DELETE INSERT SELECT UPDATE",
        "analytics_daily_stats INSERT SELECT UPDATE",
        "analytics_detached_partition DELETE INSERT SELECT",
        "analytics_event DELETE SELECT",
        "analytics_ignored_event DELETE INSERT SELECT",
        "analytics_job_run INSERT SELECT UPDATE",
        "analytics_partitioning SELECT",
        "analytics_purge_batch DELETE INSERT SELECT UPDATE",
        "analytics_schema_version SELECT",
        "analytics_session DELETE SELECT",
        "analytics_session UPDATE duration_seconds",
        "analytics_session UPDATE ended_at",
        "analytics_session UPDATE updated_at",
        "analytics_timezone INSERT SELECT UPDATE",
        "analytics_traffic_daily SELECT",
        "analytics_website_policy SELECT",
    ],
    "analytics_readers": [
        "analytics_alert SELECT",
        "analytics_archive_file SELECT",
        "analytics_daily_stats SELECT",
        "analytics_detached_partition SELECT",
        "analytics_event SELECT",
        "analytics_ignored_event SELECT",
        "analytics_job_run SELECT",
        "analytics_partitioning SELECT",
        "analytics_purge_batch SELECT",
        "analytics_schema_version SELECT",
        "analytics_session SELECT",
        "analytics_timezone SELECT",
        "analytics_traffic_daily SELECT",
        "analytics_website_policy SELECT",
    ],
}


@pytest.fixture
def shop(server: embedded.Server) -> Iterator[Database]:
    """A shop's database: the application's tables with some rows, and nothing of ours."""
    name = f"shop_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    shop = Database(server.dsn(name))
    shop.connection.execute((ROOT / "dev" / "application.sql").read_bytes())
    for n in range(3):
        shop.event(f"2024-01-0{n + 1}T00:00Z")
        shop.session(shop.value("SELECT NOW()"), shop.value("SELECT NOW()"))
    yield shop
    shop.close_connections()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def release(shop: Database) -> Database:
    """A shop's database with the schema of the release in it."""
    shop.connection.execute("CREATE SCHEMA analytics")
    shop.connection.execute((ROOT / "tests" / "schema_release.sql").read_bytes())
    shop.connection.execute("SET jit = off")  # where a server compiles, it did so for each day that it counted
    return shop


def aggregate(release: Database, website: str, timezone: str, *days: date) -> None:
    """Count days as the release did: anew where a row is not final."""
    release.connection.execute(
        """
        INSERT INTO analytics_daily_stats AS stats
        SELECT %(website)s, day.date, counted.*, %(timezone)s, day.starts_at, day.ends_at, now()
        FROM (
            SELECT
                date,
                analytics_website_day_start(%(website)s, date, %(timezone)s) AS starts_at,
                analytics_website_day_start(%(website)s, date + 1, %(timezone)s) AS ends_at
            FROM unnest(%(days)s::date[]) AS date
        ) AS day
        CROSS JOIN analytics_count_day(%(website)s, day.starts_at, day.ends_at) AS counted
        WHERE day.starts_at < day.ends_at
        ON CONFLICT (website_id, date) DO UPDATE SET
            timezone = excluded.timezone, starts_at = excluded.starts_at, ends_at = excluded.ends_at
        WHERE stats.raw_purged_at IS NULL
        """,
        {"website": website, "timezone": timezone, "days": list(days)},
    )


def make_final(release: Database, website: str, timezone: str, *days: date) -> None:
    """Make rows final as the release did, if their bounds are those of their days."""
    release.connection.execute(
        """
        UPDATE analytics_daily_stats SET raw_purged_at = now(), purge_snapshot = pg_current_snapshot()
        WHERE
            website_id = %(website)s AND date = ANY(%(days)s) AND timezone = %(timezone)s AND raw_purged_at IS NULL
            AND starts_at = analytics_website_day_start(website_id, date, timezone)
            AND ends_at = analytics_website_day_start(website_id, date + 1, timezone)
        """,
        {"website": website, "timezone": timezone, "days": list(days)},
    )


def fill(release: Database) -> dict[str, list[str]]:
    """Put everything into the release's tables; return the ids that must be listed, live ones and soft-deleted ones."""
    first, second, third = (date(2024, 1, day) for day in (1, 2, 3))
    for website in ("site", "moved", "india"):
        for day in (first, second, third):
            for n in range(5):
                release.event(f"{day}T12:0{n}Z", website, id=f"{website}-{day.day}-{n}")
    release.event(f"{second}T12:30Z", id="deleted before", deleted_at=first)
    release.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT 'bulk-' || n, 'bulk', '/', 'visitor', 'session', '2024-01-02T00:00Z'::timestamptz + n * '1 minute'::interval
        FROM generate_series(0, 1199) AS n
        """
    )
    aggregate(release, "moved", "America/New_York", first, second)
    make_final(release, "moved", "America/New_York", first, second)
    with release.connect() as other, other.transaction():
        # A snapshot does not list the numbers of subtransactions.
        with other.transaction():
            insert = "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
            other.execute(
                f"{insert} VALUES ('unseen', 'site', '/', 'visitor', 'session', '2024-01-02T12:00Z')".encode()
            )
        for website, zone in (("site", "Europe/Berlin"), ("bulk", "Europe/Berlin"), ("india", "Asia/Kolkata")):
            aggregate(release, website, zone, first, second)
            make_final(release, website, zone, first, second)
    aggregate(release, "moved", "Europe/Berlin", third)
    aggregate(release, "site", "Europe/Berlin", third)
    aggregate(release, "india", "Asia/Kolkata", third)
    days = [date(2024, 1, day) for day in (1, 2, 3, 4)]
    for day in days:
        release.event(f"{day}T12:00Z", "gap", id=f"gap-{day.day}")
    aggregate(release, "gap", "America/New_York", *days)
    make_final(release, "gap", "America/New_York", *days[:1])
    aggregate(release, "gap", "Europe/Berlin", *days)
    make_final(release, "gap", "Europe/Berlin", *days[3:])
    # What the release's batches deleted, and what happened meanwhile.
    release.connection.execute(
        """
        DELETE FROM analytics_event
        WHERE id ~ '-1-' OR id ~ '-2-0$' OR timestamp = '2024-01-01T00:00Z' OR id IN ('gap-1', 'gap-4');
        UPDATE analytics_event SET deleted_at = now() WHERE id = 'site-2-1';
        UPDATE analytics_event SET pathname = '/edited' WHERE id = 'site-2-2';
        INSERT INTO analytics_purge_proof VALUES ('site', '2024-01-02', now(), now(), 5, 7, pg_current_snapshot());
        INSERT INTO analytics_website_policy VALUES
            ('india', 'Asia/Kolkata', 30, false), ('held', NULL, NULL, true), ('quiet', 'Asia/Tokyo', NULL, false),
            ('berlin', 'Europe/Berlin', 7, false);
        INSERT INTO analytics_job_run VALUES
            ('archive_old_analytics', 'manual', '2024-01-02', '2024-04-01', NULL, 1, 2, 3, 4, 5, 'running', NULL),
            ('archive_old_analytics', 'lost', '2024-01-02', now(), NULL, 1, 2, 3, 4, 5, 'running', NULL),
            ('archive_old_analytics', 'gone', '2024-01-02', now(), now(), 1, 2, 3, 4, 5, 'failed', 'It failed');
        INSERT INTO analytics_alert (condition, subject, message, opened_at, claimed_at, sent_at)
        VALUES ('proof_failed', 'site', 'Look', now(), now(), now())
        """
    )
    release.event(f"{second}T12:31Z", id="late")
    left = release.query("SELECT id, deleted_at FROM analytics_event WHERE timestamp::date = '2024-01-02'")
    uncounted = {"unseen", "site-2-1", "site-2-2", "late", "gap-2"}
    return {
        "ids": sorted(row["id"] for row in left if row["id"] not in uncounted and not row["deleted_at"]),
        "deleted_ids": ["deleted before"],
    }


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
            pg_namespace.xmin::text AS schema_xmin,
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
            pg_get_functiondef(pg_proc.oid) AS definition, proacl::text, pg_proc.xmin::text
        FROM pg_proc INNER JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE proname ~ '^analytics_'
        ORDER BY pg_proc.oid
        """
    )


def blueprint(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All that is installed, by name: the same for two databases that were installed in different ways."""
    queries = {
        "relations": """
            SELECT
                nspname, relname, relkind::text, ARRAY(SELECT unnest(relacl)::text ORDER BY 1) AS privileges,
                obj_description(pg_class.oid, 'pg_class') AS comment,
                CASE relkind WHEN 'v' THEN pg_get_viewdef(pg_class.oid) WHEN 'i' THEN pg_get_indexdef(pg_class.oid) END
                    AS definition
            FROM pg_class INNER JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE nspname IN ('analytics', 'public')
        """,
        "columns": """
            SELECT
                attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity::text,
                attacl::text, pg_get_expr(adbin, adrelid) AS default, col_description(attrelid, attnum) AS comment
            FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE attrelid::regclass::text ~ '^analytics_' AND attnum > 0 AND NOT attisdropped
        """,
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'analytics'::regnamespace
        """,
        "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger",
        "functions": """
            SELECT pg_get_functiondef(oid), proacl::text FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace
        """,
        "schemas": "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname IN ('analytics', 'public')",
        "version": "SELECT number, definitions FROM analytics_schema_version",
    }
    return {
        name: sorted(database.query(query), key=lambda row: str(list(row.values()))) for name, query in queries.items()
    }


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
    assert {"analytics_daily_stats", "analytics_website_policy", "analytics_purge_batch"} < ours
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
            CROSS JOIN unnest(%(privileges)s::text[]) AS privilege
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
    every = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
    if shop.connection.info.server_version >= 170000:
        every.append("MAINTAIN")
    granted = shop.connection.execute(query.encode(), {"role": role, "privileges": every}).fetchall()
    assert [row["text"] for row in granted] == privileges


@pytest.mark.parametrize("start", ["shop", "release"])
def test_installed_twice_is_installed_once(request: pytest.FixtureRequest, start: str) -> None:
    database = request.getfixturevalue(start)
    if start == "release":
        fill(database)
    schema.install(database.dsn, SEARCH_PATH)
    database.connection.execute("INSERT INTO analytics_website_policy VALUES ('site', 30, true)")
    tables = ("daily_stats", "website_policy", "timezone", "purge_batch", "job_run", "alert", "schema_version")
    kept = [f"SELECT analytics_{table}::text, ctid::text, xmin::text FROM analytics_{table}" for table in tables]
    before = [catalog(database), functions(database), *(database.query(query) for query in kept), *rows(database)]
    schema.install(database.dsn, SEARCH_PATH)
    assert [
        catalog(database),
        functions(database),
        *(database.query(query) for query in kept),
        *rows(database),
    ] == before
    assert len(database.query("SELECT * FROM analytics_schema_version")) == MIGRATIONS


def test_what_somebody_changed_is_mended(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    before = blueprint(shop)
    for change in (
        "DROP VIEW analytics_traffic_daily",
        "DROP TRIGGER analytics_check_zones ON analytics_timezone",
        "DROP FUNCTION analytics_duration(timestamptz, timestamptz)",
        "ALTER FUNCTION analytics_midnight IMMUTABLE",
        "REVOKE UPDATE ON analytics_daily_stats FROM analytics_jobs",
        "REVOKE UPDATE (ended_at) ON analytics_session FROM analytics_jobs",
        "REVOKE EXECUTE ON FUNCTION analytics_midnight FROM analytics_readers",
        "REVOKE USAGE ON SCHEMA analytics FROM analytics_readers",
        # As in a database that was restored on a server without these roles.
        "DROP OWNED BY analytics_jobs, analytics_readers",
        f"UPDATE analytics_schema_version SET definitions = 1 WHERE number = {MIGRATIONS}",
    ):
        shop.connection.execute(change.encode())
        assert blueprint(shop) != before, change
        schema.install(shop.dsn, SEARCH_PATH)
        assert blueprint(shop) == before, change
        assert problems(shop) == []


def test_the_version_is_another_one_when_any_file_of_the_schema_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = schema.version()
    folder = tmp_path / "schema"
    shutil.copytree(schema.FOLDER, folder)
    monkeypatch.setattr(schema, "FOLDER", folder)
    assert schema.version() == version
    for file in folder.glob("repeatable/*"):
        text = file.read_text()
        file.write_text(f"{text}\n-- Changed.\n")
        assert schema.version() != version
        file.write_text(text)
    assert schema.version() == version
    (folder / "migrations" / "999_last.sql").touch()
    assert schema.version() > version


def test_the_release_is_brought_up_to_date_with_all_its_data(release: Database) -> None:
    listed = fill(release)
    application = rows(release)
    tables = ("daily_stats", "website_policy", "job_run", "alert")
    before = {table: release.query(f"SELECT * FROM analytics_{table} ORDER BY 1, 2") for table in tables}
    assert len({row["timezone"] for row in before["daily_stats"] if row["raw_purged_at"]}) == 3
    schema.install(release.dsn, SEARCH_PATH)
    assert problems(release) == []
    assert rows(release) == application
    after = {table: release.query(f"SELECT * FROM analytics_{table} ORDER BY 1, 2") for table in tables}

    for row in before["daily_stats"]:
        row["sealed_at"] = row.pop("raw_purged_at")
        row |= {
            "edits_hash": 0,
            "kept_at": None,
            "late_pageviews": 0,
            "late_custom_events": 0,
            "late_ignored_events": 0,
        }
        # What was not counted before is not known.
        row |= dict.fromkeys(count_day([]).keys() - row.keys())
        del row["timezone"], row["purge_snapshot"]
    for row in before["website_policy"]:
        del row["timezone"]
        row["name"] = None
    for row in before["job_run"]:
        row |= {"late_events": 0, "unsealed_days": 0, "expired_rows": None, "policies": None}
    for row in before["alert"]:
        row["condition"] = "unsealed_days"
    assert after == before

    assert release.query("SELECT website_id, from_date::text, timezone FROM analytics_timezone ORDER BY 1, 2") == [
        {"website_id": website, "from_date": from_date, "timezone": timezone}
        for website, from_date, timezone in (
            ("berlin", "-infinity", "Europe/Berlin"),
            ("gap", "-infinity", "America/New_York"),
            ("gap", "2024-01-02", "Europe/Berlin"),
            ("india", "-infinity", "Asia/Kolkata"),
            ("moved", "-infinity", "America/New_York"),
            ("moved", "2024-01-03", "Europe/Berlin"),
            ("quiet", "-infinity", "Asia/Tokyo"),
            (None, "-infinity", "Europe/Berlin"),
        )
    ]
    # Those that are not final as well, since nobody's present time zone is another one.
    assert moved_days(release, "true") == []

    batches = release.query("SELECT * FROM analytics_purge_batch ORDER BY number")
    assert {name: sorted(id for batch in batches for id in batch[name]) for name in listed} == listed
    assert [batch["rows"] for batch in batches] == [1000, 212]
    events = {row["id"]: row["timestamp"] for row in application[0]}
    for batch in batches:
        times = [events[id] for id in batch["ids"] + batch["deleted_ids"]]
        assert (batch["kind"], batch["rows"], batch["first_at"], batch["last_at"]) == (
            "event",
            len(times),
            min(times),
            max(times),
        )
    assert batches[0]["last_at"] <= batches[1]["first_at"]


def moved_days(database: Database, condition: str) -> list[dict[str, Any]]:
    """Rows whose bounds are not those of their day."""
    return database.query(
        f"""
        SELECT website_id, date FROM analytics_daily_stats
        WHERE {condition} AND (starts_at, ends_at) IS DISTINCT FROM (
            analytics_day_start(website_id, date), analytics_day_start(website_id, date + 1)
        )
        """
    )


def test_final_rows_keep_their_bounds_whatever_the_time_zones_were(release: Database) -> None:
    zones = ["Asia/Kolkata", "America/New_York", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Asia/Tokyo"]
    # Clocks go forward and back on these days, at midnight in Havana.
    firsts = [date(2024, 3, 6), date(2024, 10, 29), date(2024, 6, 1)]
    for seed in range(60):
        chance = random.Random(seed)
        website, first, used = f"site {seed}", chance.choice(firsts), chance.sample(zones, chance.randint(1, 3))
        days = [first + timedelta(n) for n in range(8) if chance.random() < 0.8]
        for _ in range(chance.randint(1, 4)):
            timezone = chance.choice(used)
            aggregate(release, website, timezone, *days)
            # The oldest days, or any.
            some = days[: chance.randint(0, len(days))] if seed % 2 else chance.sample(days, len(days) // 2)
            for day in some:
                make_final(release, website, timezone, day)
        if chance.random() < 0.5:
            release.connection.execute("INSERT INTO analytics_website_policy VALUES (%s, %s)", [website, timezone])
    schema.install(release.dsn, SEARCH_PATH)
    assert release.value("SELECT count(*) > 100 FROM analytics_daily_stats WHERE sealed_at IS NOT NULL")
    assert release.value("SELECT count(*) > 60 FROM analytics_timezone")
    assert moved_days(release, "sealed_at IS NOT NULL") == []


def test_the_snapshots_of_another_server_show_nothing(release: Database) -> None:
    fill(release)
    release.connection.execute(
        "UPDATE analytics_daily_stats SET purge_snapshot = '4000000000:4000000000:' WHERE purge_snapshot IS NOT NULL"
    )
    schema.install(release.dsn, SEARCH_PATH)
    assert release.query("SELECT * FROM analytics_purge_batch") == []


def test_an_upgrade_ends_where_a_new_installation_does(server: embedded.Server, release: Database) -> None:
    fill(release)
    schema.install(release.dsn, SEARCH_PATH)
    name = f"fresh_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    fresh = Database(server.dsn(name))
    try:
        fresh.connection.execute((ROOT / "dev" / "application.sql").read_bytes())
        schema.install(fresh.dsn, SEARCH_PATH)
        assert blueprint(release) == blueprint(fresh)
    finally:
        fresh.close_connections()
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_the_settings_of_the_database_do_not_matter(release: Database) -> None:
    listed = fill(release)
    name = release.value("SELECT current_database()")
    for setting in (
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
        "datestyle = 'German, DMY'",
        "quote_all_identifiers = on",
        "statement_timeout = '100ms'",
        "search_path = 'pg_catalog'",
    ):
        release.connection.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    release.connection.execute(
        """
        CREATE FUNCTION take_time() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); END';
        CREATE EVENT TRIGGER take_time ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION take_time()
        """
    )
    for _ in range(2):
        done = run(release.dsn)
        assert (done.returncode, done.stderr) == (0, "")
    assert problems(release) == []
    assert len(release.query("SELECT unnest(ids) FROM analytics_purge_batch")) == len(listed["ids"])


def test_grants_of_others_on_our_view_stay(release: Database) -> None:
    role = f"dashboard of {uuid.uuid4().hex}"
    release.connection.execute(f'CREATE ROLE "{role}"; GRANT SELECT ON analytics_traffic_daily TO "{role}"'.encode())
    try:
        schema.install(release.dsn, SEARCH_PATH)
        assert release.value("SELECT has_table_privilege(%s, 'analytics_traffic_daily', 'SELECT')", role)
    finally:
        release.connection.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())


def test_a_view_of_somebody_else_on_ours_is_named_and_nothing_changes(release: Database) -> None:
    fill(release)
    release.connection.execute("CREATE VIEW public.report AS SELECT date FROM analytics_traffic_daily")
    before = [catalog(release), functions(release)]
    done = run(release.dsn)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "The schema was not installed: view report depends on view analytics_traffic_daily, which changes: "
        "drop it, install again, and create it anew\n"
    )
    assert [catalog(release), functions(release)] == before
    release.connection.execute("DROP VIEW public.report")
    assert run(release.dsn).returncode == 0
    assert problems(release) == []


def test_a_newer_schema_stays(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    shop.connection.execute("INSERT INTO analytics_schema_version VALUES (999); DROP VIEW analytics_traffic_daily")
    before = [catalog(shop), functions(shop)]
    done = run(shop.dsn)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "The schema was not installed: the database has migration 999, and these files end with"
    )
    assert done.stderr.count("\n") == 1
    assert [catalog(shop), functions(shop)] == before


UPDATE = "UPDATE analytics_daily_stats SET top_pages = '[1]' WHERE website_id = 'site' AND date = '2024-01-03'"


def test_an_upgrade_waits_for_a_running_job_and_holds_up_nobody(
    release: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(release)
    with release.connect() as job, release.connect(options="-c lock_timeout=1s") as reader:
        with job.transaction():
            job.execute(UPDATE)
            installed = BACKGROUND.submit(schema.install, release.dsn, SEARCH_PATH)
            release.wait_until(
                "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            )
            for _ in range(100):
                reader.execute("SELECT * FROM analytics.analytics_daily_stats")
                time.sleep(0.02)
            assert not installed.done()
        installed.result(timeout=20)
    assert problems(release) == []
    assert release.value(
        "SELECT top_pages FROM analytics_daily_stats WHERE website_id = 'site' AND date = '2024-01-03'"
    ) == [1]
    assert "archive_old_analytics (lost) began before that" in capsys.readouterr().out


def test_a_job_that_runs_on_is_named_and_nothing_changes(release: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(release)
    monkeypatch.setattr(schema, "PATIENCE", 1)
    before = [catalog(release), functions(release)]
    with release.connect(application_name="airflow:aggregate_daily_analytics.aggregate_day") as job, job.transaction():
        job.execute(UPDATE)
        with pytest.raises(psycopg.Error) as refused:
            schema.install(release.dsn, SEARCH_PATH)
        assert str(refused.value) == (
            f"airflow:aggregate_daily_analytics.aggregate_day (process {job.info.backend_pid}) uses our tables: "
            "try again when the runs have ended, or pause the DAGs"
        )
        assert [catalog(release), functions(release)] == before
    schema.install(release.dsn, SEARCH_PATH)
    assert problems(release) == []


def test_two_installers_wait_for_each_other(release: Database) -> None:
    fill(release)
    with release.connect() as application:
        with application.transaction():
            # The first one's indexes wait for this, and the second one for the first one.
            application.execute("UPDATE analytics_event SET updated_at = now()")
            installers = [BACKGROUND.submit(schema.install, release.dsn, SEARCH_PATH) for _ in range(2)]
            for query in ("CREATE INDEX", "advisory_lock"):
                release.wait_until(
                    "SELECT count(*) = 1 FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query ~ %s AND pid <> pg_backend_pid()",
                    query,
                )
            time.sleep(1.5)  # longer than deadlock_timeout
        for installer in installers:
            installer.result(timeout=20)
    assert problems(release) == []
    assert len(release.query("SELECT * FROM analytics_schema_version")) == MIGRATIONS


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
        "INSERT INTO public.analytics_daily_stats (id, website_id, date, pageviews) VALUES ('a', 'site', NOW(), 7)"
    )
    query = "SELECT *, ctid::text, xmin::text FROM public.analytics_daily_stats"
    before = catalog(shop), shop.query(query)
    schema.install(shop.dsn, SEARCH_PATH)
    assert problems(shop) == []
    assert shop.value("SELECT COUNT(*) FROM analytics.analytics_daily_stats") == 0
    theirs = [row for row in catalog(shop) if row["nspname"] == "public" and "daily_stats" in row["relname"]]
    acl: dict[str, Any] = {"nspacl": None, "schema_xmin": None}
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
        f'The schema was not installed: table {missing} is not in "analytics","public": create it'
    )
    assert done.stderr.count("\n") == 1
    assert shop.value("SELECT to_regnamespace('analytics') IS NULL")


def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    done = run(f"postgresql://postgres@127.0.0.1:{embedded.free_port()}/shop")
    assert done.returncode == 1
    assert done.stderr.startswith("The schema was not installed: connection failed")
    assert "Traceback" not in done.stderr


def test_an_invalid_index_is_built_again(shop: Database) -> None:
    schema.install(shop.dsn, SEARCH_PATH)
    names = "'analytics_event_timestamp_id_idx'::regclass, 'analytics_session_open_idx'::regclass"
    shop.connection.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ({names})".encode())
    # An invalid index of the application is none of ours.
    theirs = "analytics_event_visitor_id_idx"
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
