"""Brings rows back from the archive: ``python dags/web_analytics/restore.py postgresql://owner@host/database --website …``.

The rows of a website and a range of days are put into a table of your choice, as they were when they were deleted. What
the table has already, stays; a row that is in several files comes from the newest. Either all comes back, or nothing.
"""

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from web_analytics.archive import Table

FILES = """
SELECT number, date::text, uri, rows, content_hash FROM analytics_archive_file
WHERE kind = %(kind)s AND website_id = %(website)s AND verified_at IS NOT NULL
    AND (date BETWEEN %(first)s AND %(last)s OR NOT isfinite(date))
ORDER BY number DESC
"""
# Partitions of the application's tables are its own as well.
OWN = """
SELECT 1 FROM pg_catalog.pg_class
WHERE oid = to_regclass(%(into)s)
    AND coalesce(pg_partition_root(oid), oid) IN ('analytics_event'::regclass, 'analytics_session'::regclass)
"""


def restore(dsn: str, search_path: str, kind: str, website: str, days: tuple[str, str], into: str) -> int:
    """Bring the rows of a website's days back into a table, which is made like the application's if there is none.

    :param kind: ``event`` or ``session``.
    :param into: the table, with its schema if it is not the first of the search path.
    :return: how many rows were added.
    :raises ValueError: with a sentence about what is wrong; nothing was changed.
    """
    import pyarrow.parquet
    from airflow.sdk import ObjectStoragePath

    from web_analytics import archive, session

    settings = session.SETTINGS | {"search_path": search_path, "statement_timeout": "0"}
    with psycopg.connect(dsn, autocommit=True) as connection:
        session.apply(connection, settings)
        with connection.transaction():
            name = sql.Identifier(*into.split("."))
            if connection.execute(OWN, {"into": into}).fetchone():
                raise ValueError(
                    f"{into} is the application's own table, where the jobs would delete the rows again: name another one"
                )
            files = connection.execute(
                FILES, {"kind": kind, "website": website, "first": days[0], "last": days[1]}
            ).fetchall()
            if not files:
                raise ValueError(f"the archive has no {kind}s of website {website} in these days")
            is_new = connection.execute("SELECT to_regclass(%s) IS NULL", [into]).fetchone() == (True,)
            if is_new:
                make = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS)")
                connection.execute(make.format(name, sql.Identifier(f"analytics_{kind}")))
            added = 0
            for number, day, uri, rows, content_hash in files:
                where = f"file {number} of {day}, {uri}"
                try:
                    store: Any = ObjectStoragePath(uri)
                    with store.open("rb") as source:
                        file = pyarrow.parquet.ParquetFile(source)
                        table = archive.described(file, connection, kind)
                        connection.execute("DROP TABLE IF EXISTS pg_temp.read_back, pg_temp.verified")
                        table.make_temporary(connection)
                        found = archive.read_back(connection, table, archive.text_of(file, table, number))
                except psycopg.OperationalError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever a store, or a file that is not right, may raise
                    raise ValueError(f"{where}, cannot be read: {archive.sentence(error)}") from None
                if found.get(number) != (rows, content_hash):
                    raise ValueError(f"{where}, has not the {rows:,} row(s) that were written")
                if is_new:
                    add_columns(connection, name, table)
                names = sql.SQL(", ").join(sql.Identifier(column) for column, _ in table.columns)
                query = sql.SQL(
                    "INSERT INTO {name} ({names}) SELECT {values} FROM read_back"
                    " WHERE NOT EXISTS (SELECT FROM {name} AS present WHERE present.id = read_back.id)"
                ).format(name=name, names=names, values=table.restored)
                added += connection.execute(query).rowcount
        return added


def add_columns(connection: psycopg.Connection[Any], name: sql.Identifier, table: "Table") -> None:
    """Add the columns of a file that the application's table does not have any more."""
    for column, kind in table.columns:
        query = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}")
        # The type is one that is known, see described().
        connection.execute(query.format(name, sql.Identifier(column), sql.SQL(kind)))


def main(arguments: list[str] | None = None) -> int:
    """Restore from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].partition(":")[0])
    add: Any = parser.add_argument
    add("dsn", help="connection string of the analytics database")
    add("--website", required=True, help="the website's id")
    add("--from", dest="first", type=date.fromisoformat, help="the first day (YYYY-MM-DD)")
    add("--to", dest="last", type=date.fromisoformat, help="the last day")
    add("--kind", choices=["event", "session"], default="event", help="what to bring back")
    add("--into", required=True, help="the table that gets the rows; it is made if there is none")
    add("--search-path", default="analytics,public", help="ours first, then the application's schema")
    given = parser.parse_args(arguments)
    try:
        days = (str(given.first or "-infinity"), str(given.last or "infinity"))
        added = restore(given.dsn, given.search_path, given.kind, given.website, days, given.into)
    except (ValueError, psycopg.Error) as error:
        reason = " ".join(str(error).split())
        print(f"Nothing was restored: {reason}.", file=sys.stderr)
        return 1
    print(f"Restored {added:,} {given.kind}(s) into {given.into}.")
    return 0


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
