"""Makes analytics_event a partitioned table: ``python dags/web_analytics/partition.py postgresql://owner@host/database``.

The application goes on meanwhile, and nothing is copied: the table becomes the first partition of a new one of its name.
Each step can be stopped, and the command given again; only the last one, a moment, keeps the application waiting.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

KEY = "analytics_event_id_timestamp_key"
CHECK = "analytics_event_first_partition"
FOLDER = Path(__file__).resolve().parents[2] / "include" / "sql" / "partition"
PERIODS = ("day", "week", "month")


def partition(dsn: str, search_path: str, every: str) -> None:
    """Partition analytics_event by ranges of timestamp, and let the jobs make the next partitions.

    :param dsn: libpq connection string or URI of a role that owns the application's tables.
    :param search_path: comma-separated schemas: ours first, then the application's.
    :param every: the time that a partition is for: day, week or month.
    :raises psycopg.Error: it could not be done, and the application goes on with the table as it is.
    """
    from web_analytics import schema, session  # here, since the command line has to say first where they are

    schema.install(dsn, search_path)
    schemas = ", ".join(sql.Identifier(name.strip()).as_string() for name in search_path.split(","))
    settings = session.SETTINGS | {"search_path": schemas, "statement_timeout": "0", "lock_timeout": "0"}
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        session.apply(connection, settings)
        if problems := [row[0] for row in _run(connection, "refuse")]:
            raise psycopg.errors.ObjectNotInPrerequisiteState(" ".join(problems))
        if _run(connection, "is_partitioned") == [(False,)]:
            _convert(connection, schema.patiently, every)
        connection.execute(
            "INSERT INTO analytics_partitioning (every) VALUES (%s) ON CONFLICT ((TRUE)) DO UPDATE SET every = excluded.every",
            [every],
        )
        for (line,) in connection.execute("SELECT analytics_add_partitions()").fetchall():
            print(line or "there are partitions for the next time")
        connection.execute("ANALYZE analytics_event")
    schema.install(dsn, search_path)


def _convert(connection: psycopg.Connection[Any], patiently: Any, every: str) -> None:
    invalid = "SELECT FROM pg_catalog.pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"
    [(schema, bound, name)] = _run(connection, "bound", every=every)
    if connection.execute(invalid, [f"{schema}.{KEY}"]).fetchone():
        connection.execute(f"DROP INDEX CONCURRENTLY {schema}.{KEY}")
    print("building the primary key on id and timestamp")
    connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS {KEY} ON analytics_event (id, timestamp)")
    try:
        print(f"making sure that every event is before {bound}")
        patiently(connection, f"ALTER TABLE analytics_event DROP CONSTRAINT IF EXISTS {CHECK}")
        check = sql.SQL("ALTER TABLE analytics_event ADD CONSTRAINT {} CHECK (timestamp < {}) NOT VALID")
        patiently(connection, check.format(sql.Identifier(CHECK), sql.Literal(str(bound))))
        connection.execute(f"ALTER TABLE analytics_event VALIDATE CONSTRAINT {CHECK}")
        print(f"making the table the partition {name}")

        def swap() -> None:
            connection.execute("LOCK TABLE analytics_event IN ACCESS EXCLUSIVE MODE")
            for (statement,) in _run(connection, "swap", bound=bound, name=name, key=KEY, check_name=CHECK):
                connection.execute(statement)

        patiently(connection, swap)
    except BaseException:
        # It would refuse the events of the time after it.
        connection.execute(f"ALTER TABLE IF EXISTS analytics_event DROP CONSTRAINT IF EXISTS {CHECK}")
        raise


def _run(connection: psycopg.Connection[Any], file: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return connection.execute((FOLDER / f"{file}.sql").read_bytes(), parameters).fetchall()


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dsn", help="connection string of the analytics database, as the owner of its tables")
    parser.add_argument("--search-path", default="analytics,public", help="ours first, then the application's schema")
    parser.add_argument("--every", choices=PERIODS, default="week", help="the time that a partition is for")
    arguments = parser.parse_args()
    if not arguments.dsn.strip():
        parser.error("name the database, as in: make partition DSN=postgresql://owner@host/database")
    try:
        partition(arguments.dsn, arguments.search_path, arguments.every)
    except psycopg.Error as error:
        text = " ".join((error.diag.message_primary or str(error)).split())
        print(f"analytics_event was not partitioned: {text}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
