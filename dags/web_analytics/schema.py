"""Installs what the jobs need in the database: ``python dags/web_analytics/schema.py postgresql://owner@host/database``.

Tables change by the numbered files of ``migrations/``, each applied once; functions, views and grants are replaced
whole from ``repeatable/``. All in one transaction: whoever looks sees the state before or the one after. The application
is never kept waiting: of its tables only indexes are changed, concurrently.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

FOLDER = Path(__file__).resolve().parents[2] / "include" / "sql" / "schema"
PATIENCE = 30
"""Seconds for which the installer tries to get our tables from those who use them."""
OBSOLETE = ["CREATE INDEX analytics_session_started_at_id_idx ON % USING btree (started_at, id)"]
"""LIKE patterns of indexes on the application's tables that a release has made and nothing needs any more."""

# All that the repeatable files define.
DEFINED = """
    SELECT
        ARRAY(
            SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_catalog.pg_proc
            WHERE pronamespace = quote_ident(current_schema())::regnamespace AND prokind = 'f'
            ORDER BY oid
        ),
        ARRAY(
            SELECT concat(oid, relacl, CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END) FROM pg_catalog.pg_class
            WHERE starts_with(relname, 'analytics_') ORDER BY oid
        ),
        ARRAY(SELECT pg_get_triggerdef(oid) FROM pg_catalog.pg_trigger WHERE NOT tgisinternal ORDER BY oid),
        ARRAY(SELECT attacl::text FROM pg_catalog.pg_attribute WHERE attacl IS NOT NULL ORDER BY attrelid, attnum),
        ARRAY(SELECT concat(nspname, nspacl) FROM pg_catalog.pg_namespace ORDER BY oid),
        (SELECT datacl::text FROM pg_catalog.pg_database WHERE datname = current_database())
"""
HOLDERS = """
    SELECT string_agg(DISTINCT format('%s (process %s)', coalesce(nullif(application_name, ''), usename), pid), ', ')
    FROM pg_catalog.pg_locks INNER JOIN pg_catalog.pg_stat_activity USING (pid)
    INNER JOIN pg_catalog.pg_class ON pg_class.oid = relation
    WHERE relnamespace = quote_ident(current_schema())::regnamespace AND datname = current_database()
    AND granted AND pid <> pg_backend_pid()
"""
RUNNING = """
    SELECT string_agg(format('%s (%s)', job, run_id), ', ') FROM analytics_job_run
    WHERE outcome = 'running' AND started_at > now() - interval '1 day'
"""
MISSING = """
    SELECT table_name, index_name, definition, (
        SELECT indexrelid::regclass::text FROM pg_catalog.pg_index INNER JOIN pg_catalog.pg_class ON oid = indexrelid
        WHERE indrelid = table_name::regclass AND relname = index_name AND NOT indisvalid
    ) FROM analytics_missing_indexes()
"""
# What is alike in the definitions of a partitioned table's index and of those of its partitions; their names are not.
SHAPE = "regexp_replace(pg_get_indexdef({}), '^.*? USING ', ' USING ')"
UNATTACHED = f"""
    SELECT partition.oid::regclass::text, {SHAPE.format("parent.indexrelid")}, (
        SELECT indexrelid::regclass::text FROM pg_catalog.pg_index
        INNER JOIN pg_catalog.pg_class ON oid = indexrelid
        WHERE indrelid = partition.oid AND NOT relispartition AND NOT indisunique AND indisvalid = %s
        AND {SHAPE.format("indexrelid")} = {SHAPE.format("parent.indexrelid")}
        ORDER BY indexrelid LIMIT 1
    ), parent.indexrelid::regclass::text
    FROM pg_catalog.pg_index AS parent
    INNER JOIN pg_catalog.pg_class AS name ON name.oid = parent.indexrelid
    INNER JOIN pg_catalog.pg_inherits ON inhparent = parent.indrelid
    INNER JOIN pg_catalog.pg_class AS partition ON partition.oid = inhrelid
    WHERE parent.indrelid = %s::regclass AND name.relname = %s AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS attached INNER JOIN pg_catalog.pg_index ON indexrelid = attached.inhrelid
        WHERE attached.inhparent = parent.indexrelid AND indrelid = partition.oid
    )
    ORDER BY partition.relname
"""


def _files(kind: str) -> list[Path]:
    return sorted((FOLDER / kind).glob("*.sql"))


def _newest() -> tuple[int, int]:
    """Return the number of the last migration and the checksum of the repeatable files."""
    definitions = b"".join(file.read_bytes() for file in _files("repeatable"))
    return int(_files("migrations")[-1].name[:3]), zlib.crc32(definitions)


def version() -> int:
    """Return the one number of the schema: another one whenever a file is, and greater after another migration."""
    number, definitions = _newest()
    return number << 32 | definitions


def install(dsn: str, search_path: str) -> None:
    """Bring our tables, functions and grants in the first schema of `search_path` up to date, and the indexes.

    :param dsn: libpq connection string or URI of a role that owns the application's tables.
    :param search_path: comma-separated schemas: ours first, then the application's.
    :raises psycopg.Error: it could not be done, and nothing but indexes was changed.
    """
    from web_analytics import session  # here, since the command line has to say first where it is

    schemas = [sql.Identifier(name.strip()).as_string() for name in search_path.split(",")]
    settings = session.SETTINGS | {"search_path": ", ".join(schemas), "statement_timeout": "0", "lock_timeout": "0"}
    # Autocommit: CREATE INDEX CONCURRENTLY cannot run in a transaction. A prepared statement cannot be a whole file.
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        session.apply(connection, settings)
        # One installer at a time. Without waiting in the database: the other one's indexes would wait for our snapshot.
        while not _value(connection, "SELECT pg_try_advisory_lock(hashtextextended('web_analytics.schema', 0))"):
            time.sleep(0.2)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _bring_up_to_date(connection, schemas)
                break
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if time.monotonic() > deadline:
                    raise _refusal(
                        f"{_value(connection, HOLDERS) or 'somebody'} uses our tables: "
                        "try again when the runs have ended, or pause the DAGs"
                    ) from None
                time.sleep(0.5)
            except psycopg.errors.DependentObjectsStillExist as error:
                dependents = (error.diag.message_detail or "").replace("\n", " and ")
                raise _refusal(f"{dependents}, which changes: drop it, install again, and create it anew") from None
        indexes = "SELECT indexrelid::regclass::text FROM pg_catalog.pg_index WHERE pg_get_indexdef(indexrelid)"
        for (index,) in connection.execute(f"{indexes} LIKE ANY (%s)", [OBSOLETE]).fetchall():
            print(f"dropping the index {index}, which nothing needs any more")
            connection.execute(f"DROP INDEX CONCURRENTLY {index}")
        for table, index, definition, invalid in connection.execute(MISSING).fetchall():
            print(f"building the index {index} on {table}")
            if " ON ONLY " in definition:
                _index_partitions(connection, table, index, definition, invalid)
                continue
            if invalid:
                connection.execute(f"DROP INDEX CONCURRENTLY {invalid}")
            connection.execute(definition)


def _index_partitions(
    connection: psycopg.Connection[Any], table: str, index: str, definition: str, invalid: str | None
) -> None:
    """Make the index of a partitioned table, or go on with what an installer that was stopped has made of it: each
    partition's own concurrently, and then, in a moment each, part of it."""
    if not invalid:
        patiently(connection, definition)

    def partitions(valid: bool) -> list[tuple[str, ...]]:
        return connection.execute(UNATTACHED, [valid, table, index]).fetchall()

    for *_, half_built, _ in partitions(valid=False):
        if half_built:
            connection.execute(f"DROP INDEX CONCURRENTLY {half_built}")
    for partition, shape, found, _ in partitions(valid=True):
        if not found:
            connection.execute(f"CREATE INDEX CONCURRENTLY ON {partition}{shape}")
    for _, _, found, parent in partitions(valid=True):
        patiently(connection, f"ALTER INDEX {parent} ATTACH PARTITION {found}")


def patiently(connection: psycopg.Connection[Any], what: str | sql.Composed | Callable[[], None]) -> None:
    """Run a statement, or several, that need a lock for a moment, in a transaction, so that nobody waits behind them for
    longer than half a second.

    :raises psycopg.Error: there was no such moment for PATIENCE seconds, and nothing was done.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with connection.transaction():
                connection.execute("SET LOCAL lock_timeout = '500ms'")
                if callable(what):
                    what()
                else:
                    connection.execute(what)
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > deadline:
                raise _refusal(
                    f"others have held locks on the application's tables for {PATIENCE} seconds: try again when long "
                    "transactions have ended"
                ) from None
            time.sleep(0.5)


def _bring_up_to_date(connection: psycopg.Connection[Any], schemas: list[str]) -> None:
    with connection.transaction() as transaction:
        # Readers wait no longer than this. It is less than deadlock_timeout, so that we give way and not a job.
        connection.execute("SET LOCAL lock_timeout = '500ms'")
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schemas[0]}")
        for table in ("analytics_event", "analytics_session"):
            if not _value(connection, f"SELECT to_regclass('{table}')::oid"):
                raise _refusal(
                    f"table {table} is not in {','.join(schemas)}: create it with the application first, "
                    "or name its schema with --search-path"
                )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS analytics_schema_version"
            " (number integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now(), definitions bigint)"
        )
        newest = "SELECT number, definitions FROM analytics_schema_version ORDER BY number DESC LIMIT 1"
        installed = connection.execute(newest).fetchone() or (0, None)
        if installed[0] > _newest()[0]:
            raise _refusal(
                f"the database has migration {installed[0]}, and these files end with {_newest()[0]}: "
                "install with the files of the version that is there, or of a later one"
            )
        defined = connection.execute(DEFINED).fetchone()
        for file in _files("migrations"):
            if int(file.name[:3]) > installed[0]:
                connection.execute(file.read_bytes())
                connection.execute("INSERT INTO analytics_schema_version VALUES (%s)", [int(file.name[:3])])
        for file in _files("repeatable"):
            connection.execute(file.read_bytes())
        connection.execute("UPDATE analytics_schema_version SET definitions = %s WHERE number = %s", _newest()[::-1])
        # The files are applied even where they were, for somebody may have changed, dropped or revoked something, and a
        # database that was restored on another server has no grants; but nothing is written where nothing differs.
        if installed == _newest() and connection.execute(DEFINED).fetchone() == defined:
            raise psycopg.Rollback(transaction)
    print(f"the schema is of version {version()}")
    if installed[0] < _newest()[0] and (runs := _value(connection, RUNNING)):
        print(f"{runs} began before that: if it fails, run it again or leave the rest to the next run")


def _value(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    return row and row[0]


def _refusal(text: str) -> psycopg.Error:
    return psycopg.errors.ObjectNotInPrerequisiteState(text)


def main() -> int:
    """Run the installer from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dsn", help="connection string of the analytics database, as the owner of its tables")
    parser.add_argument("--search-path", default="analytics,public", help="ours first, then the application's schema")
    arguments = parser.parse_args()
    if not arguments.dsn.strip():
        parser.error("name the database, as in: make schema DSN=postgresql://owner@host/database")
    try:
        install(arguments.dsn, arguments.search_path)
    except psycopg.Error as error:
        text = " ".join((error.diag.message_primary or str(error)).split())
        print(f"The schema was not installed: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
