"""Installs what the jobs need in the database: ``python dags/web_analytics/schema.py postgresql://owner@host/database``.

Runs every file of ``include/sql/schema/`` in order. All of it can be repeated, and none of it blocks a live
application: indexes are built concurrently.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

import psycopg
from psycopg import sql

FOLDER = Path(__file__).resolve().parents[2] / "include" / "sql" / "schema"


def version() -> str:
    """Return a short text that is another one whenever a file of the schema is."""
    files = b"".join(file.read_bytes() for file in sorted(FOLDER.glob("*.sql")))
    return hashlib.sha256(files).hexdigest()[:12]


def install(dsn: str, search_path: str) -> None:
    """Create our tables and functions in the first schema of `search_path`, the indexes and the grants.

    :param dsn: libpq connection string or URI of a role that owns the application's tables.
    :param search_path: comma-separated schemas: ours first, then the application's.
    :raises psycopg.Error: a statement failed; what was done before it stays and is skipped next time.
    """
    import sqlparse  # here, since every task imports this file for its version

    schemas = [name.strip() for name in search_path.split(",")]
    # Autocommit: CREATE INDEX CONCURRENTLY cannot run in a transaction.
    with psycopg.connect(dsn, autocommit=True) as connection:
        identifiers = [sql.Identifier(name) for name in schemas]
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(identifiers[0]))
        connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(identifiers)))
        for table in ("analytics_event", "analytics_session"):
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
                raise psycopg.errors.UndefinedTable(
                    f"table {table} is not in {search_path}: create it with the application first, "
                    "or name its schema with --search-path"
                )
        # An index whose concurrent build failed stays behind invalid, and IF NOT EXISTS would keep it for ever.
        for (index,) in connection.execute(
            "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON oid = indexrelid"
            " WHERE NOT indisvalid AND relname = ANY(%s)",
            [re.findall(r"CONCURRENTLY IF NOT EXISTS (\w+)", (FOLDER / "70_indexes.sql").read_text())],
        ).fetchall():
            print(f"dropping the invalid index {index}")
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.SQL(index)))
        for file in sorted(FOLDER.glob("*.sql")):
            print(f"{file.name}")
            for statement in sqlparse.split(file.read_text()):
                connection.execute(sql.SQL(statement))
        connection.execute(
            sql.SQL("COMMENT ON TABLE analytics_daily_stats IS {}").format(
                f"Daily statistics, one row per website and day. Schema of the jobs: version {version()}"
            )
        )


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
        print(f"The schema was not installed: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
