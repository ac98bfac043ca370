"""check_database.sql: says in a clear sentence what the database lacks, and how to mend it."""

import re
import shutil
from pathlib import Path

import psycopg
import pytest

import embedded
from conftest import LOGIN, Database
from web_analytics import schema

FILE = "check_database.sql"
MAKE = 'run "make schema"'
MEMBER = f"{MAKE} and make the role a member of analytics_jobs."

# What serves when it is there, and is named when it is not.
INDEXES = {
    "analytics_event_website_id_timestamp_idx": '(website_id, "timestamp") WHERE deleted_at IS NULL',
    "analytics_event_deleted_idx": '(website_id, "timestamp") WHERE deleted_at IS NOT NULL',
    "analytics_event_edited_idx": (
        '(website_id, "timestamp") INCLUDE (id, updated_at) WHERE updated_at <> created_at AND deleted_at IS NULL'
    ),
    "analytics_event_session_id_idx": "(session_id) WHERE deleted_at IS NULL",
    "analytics_event_deleted_session_idx": "(session_id) WHERE deleted_at IS NOT NULL",
    "analytics_event_timestamp_id_idx": '("timestamp", id) INCLUDE (website_id)',
    "analytics_session_open_idx": "(started_at) WHERE ended_at IS NULL AND deleted_at IS NULL",
}
# What the other SQL files use of the application's tables, column by column.
USED = {
    "analytics_event": (
        "id website_id event_type pathname referrer_source visitor_id session_id timestamp created_at updated_at deleted_at"
    ),
    "analytics_session": (
        "id website_id session_id duration_seconds started_at ended_at last_activity_at updated_at deleted_at"
    ),
}
COLUMNS = [(table, column) for table, columns in USED.items() for column in columns.split()]
OURS = {
    "analytics_schema_version": "SELECT",
    "analytics_daily_stats": "SELECT INSERT UPDATE",
    "analytics_timezone": "SELECT INSERT UPDATE",
    "analytics_website_policy": "SELECT",
    "analytics_purge_batch": "SELECT INSERT UPDATE DELETE",
    "analytics_job_run": "SELECT INSERT UPDATE",
    "analytics_alert": "SELECT INSERT UPDATE",
    "analytics_traffic_daily": "SELECT",
}


def problems(database: Database, search_path: str = "analytics,public", version: int | None = None) -> list[str]:
    """What the file says to the jobs' role."""
    with database.connect(LOGIN, options=f"-c search_path={search_path}") as connection:
        rows = database.run(FILE, connection, version=schema.version() if version is None else version)
    return [row["problem"] for row in rows]


def problems_after(database: Database, change: str, role: str = LOGIN) -> list[str]:
    """What the file says to a role after a change, which is undone."""
    with database.connection.transaction(force_rollback=True):
        database.connection.execute(f"{change}; SET LOCAL ROLE {role}".encode())
        return [row["problem"] for row in database.run(FILE, database.connection, version=schema.version())]


def only_problem(database: Database, change: str, role: str = LOGIN) -> str:
    """The one sentence that is said after a change, nothing having been said before it."""
    assert problems_after(database, "SELECT") == []
    found = problems_after(database, change, role)
    assert len(found) == 1, found
    assert found[0].endswith(".")
    return found[0]


def test_nothing_is_said_when_all_is_well(database: Database) -> None:
    assert problems(database) == []


@pytest.mark.parametrize("table", USED)
def test_a_missing_table_of_the_application(database: Database, table: str) -> None:
    sentence = f"Table {table} is missing: the application makes it; let the connection lead to its database."
    assert only_problem(database, f"DROP TABLE {table} CASCADE") == sentence


@pytest.mark.parametrize("table", USED)
def test_a_table_of_the_application_in_another_schema(database: Database, table: str) -> None:
    change = (
        f'CREATE SCHEMA "My Shop"; GRANT USAGE ON SCHEMA "My Shop" TO PUBLIC; ALTER TABLE {table} SET SCHEMA "My Shop"'
    )
    assert only_problem(database, change).startswith(f'Table "My Shop".{table} is not the first of its name along ')


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("DROP SCHEMA analytics CASCADE", f"The jobs' schema is not in the database, or of an older release: {MAKE}."),
        # As the first release left it, which knew no versions.
        (
            "DROP TABLE analytics_schema_version",
            f"The jobs' schema is not in the database, or of an older release: {MAKE}.",
        ),
        (
            "DELETE FROM analytics_schema_version",
            f"The schema in the database is of another release than the jobs: {MAKE}.",
        ),
        # An installation of a release that had fewer tables, functions and columns.
        (
            (
                "DELETE FROM analytics_schema_version WHERE number > 1; DROP TABLE analytics_purge_batch CASCADE;"
                "ALTER TABLE analytics_daily_stats DROP COLUMN kept_at CASCADE; DROP FUNCTION analytics_missing_indexes CASCADE"
            ),
            f"The schema in the database is of another release than the jobs: {MAKE}.",
        ),
        (
            "UPDATE analytics_schema_version SET definitions = definitions # 1",
            f"The schema in the database is of another release than the jobs: {MAKE}.",
        ),
        (
            (
                "INSERT INTO analytics_schema_version (number, definitions) VALUES (1000, 0);"
                "DROP FUNCTION analytics_missing_indexes CASCADE"
            ),
            "The schema in the database is of a newer release than the jobs: update the jobs.",
        ),
    ],
)
def test_a_schema_that_is_not_of_this_release(database: Database, changed: str, sentence: str) -> None:
    assert only_problem(database, changed) == sentence


def test_jobs_that_are_not_of_this_release(database: Database) -> None:
    newer = "The schema in the database is of a newer release than the jobs: update the jobs."
    assert problems(database, version=schema.version() - (1 << 32)) == [newer]
    assert problems(database, version=schema.version() + (1 << 32)) == [
        f"The schema in the database is of another release than the jobs: {MAKE}."
    ]


def test_our_schema_is_not_on_the_search_path(database: Database) -> None:
    [problem] = problems(database, "public")
    assert problem == (
        'Table analytics.analytics_schema_version is not the first of its name along search_path "public": name the jobs\' '
        "schema first in the connection's, then the application's."
    )


def test_the_applications_table_with_the_name_of_ours_comes_first(database: Database) -> None:
    database.connection.execute(
        "CREATE SCHEMA aaa; GRANT USAGE ON SCHEMA aaa TO PUBLIC; ALTER TABLE public.analytics_daily_stats SET SCHEMA aaa"
    )
    [problem] = problems(database, "aaa,analytics,public")
    assert problem.startswith("Table analytics.analytics_daily_stats is not the first of its name along search_path ")
    database.connection.execute("ALTER TABLE aaa.analytics_daily_stats SET SCHEMA public")
    [problem] = problems(database, "public,analytics")
    assert problem.startswith(
        'Table analytics.analytics_daily_stats is not the first of its name along search_path "pub'
    )


@pytest.mark.parametrize("table", ["analytics_event", "analytics_session"])
@pytest.mark.parametrize(
    "definition",
    [
        "CREATE TABLE {table} (LIKE former) PARTITION BY RANGE (created_at)",
        "CREATE VIEW {table} AS SELECT DISTINCT * FROM former",
        "CREATE MATERIALIZED VIEW {table} AS SELECT * FROM former",
        (
            "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;"
            "CREATE FOREIGN TABLE {table} (LIKE former) SERVER nowhere"
        ),
    ],
    ids=["partitioned", "view", "materialized view", "foreign"],
)
def test_what_is_not_an_ordinary_table(database: Database, table: str, definition: str) -> None:
    if "FOREIGN" in definition:  # CREATE FOREIGN TABLE has no LIKE before PostgreSQL 19
        columns = "SELECT string_agg(format('%%I %%s', attname, atttypid::regtype), ', ') FROM pg_attribute"
        listed = database.value(f"{columns} WHERE attrelid = %s::regclass AND attnum > 0", table)
        definition = definition.replace("LIKE former", listed)
    change = definition.format(table=table)
    found = problems_after(
        database, f"ALTER TABLE {table} RENAME TO former; {change}; GRANT ALL ON {table} TO analytics_jobs"
    )
    kind = (
        f"{table} is partitioned, foreign or a view, and the jobs know only how to work with an ordinary table, a view "
        "that rows can be updated and deleted through, or an analytics_event with ordinary partitions by ranges of "
        "timestamp."
    )
    assert kind in found


@pytest.mark.parametrize("table", ["analytics_event", "analytics_session", "analytics_daily_stats"])
def test_children_by_inheritance(database: Database, table: str) -> None:
    sentence = (
        f"Rows of tables that inherit from {table} would be taken for its own: "
        f'ALTER TABLE "an older one" NO INHERIT {table}.'
    )
    assert only_problem(database, f'CREATE TABLE "an older one" () INHERITS ({table})') == sentence


def test_a_table_that_is_a_child_is_like_any_other(database: Database) -> None:
    change = "CREATE TABLE parent (LIKE analytics_event INCLUDING DEFAULTS); ALTER TABLE analytics_event INHERIT parent"
    assert problems_after(database, change) == []


@pytest.mark.parametrize("table", ["analytics_event", "analytics_session", "analytics_daily_stats"])
@pytest.mark.parametrize("policy", ["", "CREATE POLICY one ON {table} USING (website_id = 'x')"])
def test_row_level_security(database: Database, table: str, policy: str) -> None:
    change = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; {policy.format(table=table)}"
    sentence = (
        f'Row level security of table {table} would hide rows from role {LOGIN}: run "ALTER ROLE {LOGIN} BYPASSRLS".'
    )
    assert only_problem(database, change) == sentence
    assert problems_after(database, f"{change}; ALTER ROLE {LOGIN} BYPASSRLS") == []
    # It does not hold for the owner, unless it is said to.
    assert problems_after(database, change, "postgres") == []


def test_a_table_of_ours_that_would_not_survive_a_crash(database: Database) -> None:
    change = "ALTER TABLE analytics_purge_batch SET UNLOGGED"
    assert only_problem(database, change).startswith("Table analytics_purge_batch is unlogged, ")
    assert problems_after(database, "ALTER TABLE analytics_event SET UNLOGGED") == [], (
        "that is the application's choice"
    )


def is_consequence(problem: str) -> bool:
    """Whether a sentence is about something that a column takes with it."""
    return " is not unique: " in problem


def test_each_missing_column(database: Database) -> None:
    for table, column in COLUMNS:
        found = problems_after(database, f"ALTER TABLE {table} DROP COLUMN {column} CASCADE")
        name = '"timestamp"' if column == "timestamp" else column
        sentence = (
            f"Table {table} has no column {name}: check the connection's search_path and the application's version."
        )
        assert [problem for problem in found if not is_consequence(problem)] == [sentence]


def test_each_column_of_another_type(database: Database) -> None:
    query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
    for table, column in COLUMNS:
        # Made anew rather than altered, for the indexes would not all bear the other type.
        change = f"DROP COLUMN {column} CASCADE, ADD COLUMN {column} varchar(9)"
        found = problems_after(database, f"ALTER TABLE {table} {change}; GRANT ALL ON {table} TO analytics_jobs")
        [problem] = (problem for problem in found if not is_consequence(problem))
        assert re.match(rf'Column "?{column}"? of table {table} has type character varying\(9\) instead of ', problem)
        assert f" instead of {database.value(query, table, column)}: " in problem


@pytest.mark.parametrize("table", ["analytics_event", "analytics_session"])
@pytest.mark.parametrize(
    "instead",
    [
        "",
        "CREATE INDEX ON {table} (id)",
        "CREATE UNIQUE INDEX ON {table} (id) WHERE deleted_at IS NULL",
        "CREATE UNIQUE INDEX ON {table} (id, website_id)",
        "CREATE UNIQUE INDEX ON {table} (lower(id))",
    ],
)
def test_a_table_without_a_primary_key(database: Database, table: str, instead: str) -> None:
    change = f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey; {instead.format(table=table)}"
    sentence = f"Column id of table {table}, by which rows are deleted, is not unique: make it the primary key."
    assert only_problem(database, change) == sentence
    assert problems_after(database, f"{change}; CREATE UNIQUE INDEX ON {table} (id) INCLUDE (website_id)") == []


@pytest.mark.parametrize(("index", "definition"), INDEXES.items())
@pytest.mark.parametrize(
    "change",
    ["DROP INDEX {index}", "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"],
    ids=["missing", "invalid"],
)
def test_a_missing_or_invalid_index(database: Database, index: str, definition: str, change: str) -> None:
    table = "analytics_session" if index == "analytics_session_open_idx" else "analytics_event"
    sentence = f"Table {table} has no valid index on {definition}: {MAKE}, which makes it."
    assert only_problem(database, change.format(index=index)) == sentence


@pytest.mark.parametrize("index", INDEXES)
def test_the_installer_makes_a_missing_index(database: Database, index: str) -> None:
    database.connection.execute(f"DROP INDEX {index}".encode())
    assert len(problems(database)) == 1
    schema.install(database.dsn, "analytics,public")
    assert problems(database) == []


@pytest.mark.parametrize(
    ("index", "definition"),
    [
        # Soft-deleted events expire as well.
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp, id) WHERE deleted_at IS NULL"),
        ("analytics_event_timestamp_id_idx", "analytics_event (id, timestamp)"),
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp)"),
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp) INCLUDE (id)"),
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp, lower(id))"),
        ("analytics_event_deleted_idx", "analytics_event (website_id, timestamp)"),
        ("analytics_event_deleted_idx", "analytics_event (timestamp, website_id) WHERE deleted_at IS NOT NULL"),
        ("analytics_event_website_id_timestamp_idx", "analytics_event (website_id) WHERE deleted_at IS NULL"),
        ("analytics_event_website_id_timestamp_idx", "analytics_event (website_id, pathname) WHERE deleted_at IS NULL"),
        (
            "analytics_event_website_id_timestamp_idx",
            "analytics_event (website_id text_pattern_ops, timestamp) WHERE deleted_at IS NULL",
        ),
        (
            "analytics_event_website_id_timestamp_idx",
            'analytics_event (website_id COLLATE "POSIX", timestamp) WHERE deleted_at IS NULL',
        ),
        ("analytics_event_session_id_idx", "analytics_event USING hash (session_id) WHERE deleted_at IS NULL"),
        ("analytics_event_edited_idx", "analytics_event (website_id, timestamp) WHERE updated_at <> created_at"),
        ("analytics_session_open_idx", "analytics_session (started_at) WHERE ended_at IS NULL"),
        ("analytics_session_open_idx", "analytics_session (started_at)"),
    ],
)
def test_an_index_that_does_not_serve(database: Database, index: str, definition: str) -> None:
    problem = only_problem(database, f"DROP INDEX {index}; CREATE INDEX another ON {definition}")
    assert f" has no valid index on {INDEXES[index]}: " in problem


@pytest.mark.parametrize(
    ("index", "definition"),
    [
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp, id)"),
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp, id, pathname) INCLUDE (website_id)"),
        # One with all rows finds the live ones as well.
        ("analytics_event_website_id_timestamp_idx", "analytics_event (website_id, timestamp)"),
        ("analytics_event_session_id_idx", "analytics_event (session_id)"),
        ("analytics_event_deleted_session_idx", "analytics_event (session_id)"),
        ("analytics_event_deleted_idx", "analytics_event (website_id, timestamp DESC) WHERE deleted_at IS NOT NULL"),
    ],
)
def test_an_index_of_another_name_or_with_more_serves(database: Database, index: str, definition: str) -> None:
    assert problems_after(database, f"DROP INDEX {index}; CREATE INDEX another ON {definition}") == []


@pytest.mark.parametrize(
    ("table", "privilege"),
    [
        ("analytics_event", "SELECT"),
        ("analytics_event", "DELETE"),
        ("analytics_session", "SELECT"),
        ("analytics_session", "UPDATE (ended_at)"),
        ("analytics_session", "UPDATE (duration_seconds)"),
        ("analytics_session", "UPDATE (updated_at)"),
        ("analytics_session", "DELETE"),
        *((table, privilege) for table, privileges in OURS.items() for privilege in privileges.split()),
    ],
)
def test_a_missing_privilege(database: Database, table: str, privilege: str) -> None:
    problem = only_problem(database, f"REVOKE {privilege} ON {table} FROM analytics_jobs")
    assert problem == f"Role {LOGIN} lacks {privilege.split(maxsplit=1)[0]} on table {table}: {MEMBER}"


def functions(database: Database) -> list[str]:
    """Our functions, with their arguments."""
    query = "SELECT oid::regprocedure::text AS name FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace"
    return [row["name"] for row in database.query(query)]


def test_each_function_without_the_privilege_to_execute_it(database: Database) -> None:
    names = functions(database)
    assert len(names) > 10
    for name in names:
        change = f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC, analytics_jobs"
        assert only_problem(database, change) == f"Role {LOGIN} lacks EXECUTE on function {name}: {MEMBER}"


def test_no_privilege_comes_from_public(database: Database) -> None:
    revoked = "".join(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC;" for name in functions(database))
    change = (
        f"{revoked} REVOKE ALL ON SCHEMA public, analytics FROM PUBLIC;"
        "REVOKE ALL ON ALL TABLES IN SCHEMA public, analytics FROM PUBLIC"
    )
    assert problems_after(database, change) == []


def test_a_role_that_may_nothing(database: Database) -> None:
    found = problems_after(database, "CREATE ROLE stranger", "stranger")
    assert f"Role stranger lacks USAGE on schema analytics: {MEMBER}" in found
    assert f"Role stranger lacks SELECT on table analytics_event: {MEMBER}" in found
    found = problems_after(database, "CREATE ROLE stranger; REVOKE USAGE ON SCHEMA public FROM PUBLIC", "stranger")
    assert found == [
        f"Role stranger lacks USAGE on schema {name}: {MEMBER}" for name in ("analytics", "public", "public")
    ]


def test_a_time_zone_that_this_server_does_not_know(database: Database) -> None:
    change = (
        "ALTER TABLE analytics_timezone DISABLE TRIGGER USER; INSERT INTO analytics_timezone VALUES"
        " ('a', '-infinity', 'Mars/Olympus'), ('b', '-infinity', 'Mars/Olympus'), ('c', '-infinity', 'Europe/Berlin')"
    )
    sentence = 'Time zone "Mars/Olympus" of analytics_timezone is not known to this server: update its time zone data.'
    assert only_problem(database, change) == sentence


@pytest.mark.parametrize(
    ("setting", "value"),
    [("session_replication_role", "replica"), ("zero_damaged_pages", "on"), ("ignore_checksum_failure", "on")],
)
def test_a_setting_that_only_a_superuser_may_set(database: Database, setting: str, value: str) -> None:
    assert setting in only_problem(database, f"SET LOCAL {setting} = {value}")


@pytest.mark.parametrize("column", ["id", "website_id", "visitor_id", "referrer_source"])
def test_a_collation_by_which_different_texts_are_equal(database: Database, column: str) -> None:
    # A server without ICU has none, so one of its own says that it is.
    change = (
        f'ALTER TABLE analytics_event ALTER {column} TYPE text COLLATE "POSIX";'
        "UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'POSIX'"
    )
    start = f"Column {column} of table analytics_event has a collation that takes different texts for equal: "
    assert [problem for problem in problems_after(database, change) if problem.startswith(start)]
    other = change.replace(f"ALTER {column}", "ALTER utm_term")
    assert problems_after(database, other) == [], "nothing counts by it"


def test_a_standby(tmp_path: Path) -> None:
    own = embedded.start(tmp_path, "-c fsync=off")
    try:
        own.stop()
        (own.data / "standby.signal").touch()
        own.restart()
        database = Database(own.dsn())
        found = [row["problem"] for row in database.run(FILE, database.connection, version=0)]
        database.close_connections()
    finally:
        own.stop("immediate")
        shutil.rmtree(own.home)
    assert "The database is a standby, which can only be read: let the connection lead to its primary server." in found


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_an_encoding_that_is_not_utf_8(server: embedded.Server, encoding: str) -> None:
    name = f"encoded_{encoding.lower()}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'".encode())
        try:
            database = Database(server.dsn(name))
            database.connection.execute("SET client_encoding = 'UTF8'")
            found = [row["problem"] for row in database.run(FILE, database.connection, version=0)]
            database.close_connections()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    start = f"The database has the encoding {encoding} and the jobs need UTF8: "
    assert [problem for problem in found if problem.startswith(start)]
