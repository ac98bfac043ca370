"""Brings rows back from the archive: ``python dags/web_analytics/restore.py postgresql://owner@host/database --website …``.

The rows of a website and a range of days are put into a table of your choice, as they were when they were deleted. What
the table has already, stays; a row that is in several files comes from the newest. Either all comes back, or nothing.
"""

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

FILES = """
SELECT number, date::text, uri, rows, content_hash FROM analytics_archive_file
WHERE kind = %(kind)s AND website_id = %(website)s AND verified_at IS NOT NULL
    AND (date BETWEEN %(first)s AND %(last)s OR NOT isfinite(date))
ORDER BY number DESC
"""


def restore(dsn: str, search_path: str, kind: str, website: str, days: tuple[date, date], into: str) -> int:
    """Bring the rows of a website's days back into a table, which is made like the application's if there is none.

    :param kind: ``event`` or ``session``.
    :param into: the table, with its schema if it is not the first of the search path.
    :return: how many rows were added.
    :raises ValueError: with a sentence about what is wrong; nothing was changed.
    """
    from web_analytics import archive, session

    settings = session.SETTINGS | {"search_path": search_path, "statement_timeout": "0"}
    with psycopg.connect(dsn, autocommit=True) as connection:
        session.apply(connection, settings)
        with connection.transaction():
            table = archive.describe(connection, kind)
            name = sql.Identifier(*into.split("."))
            row = connection.execute("SELECT to_regclass(%s) = %s::regclass", [into, f"analytics_{kind}"]).fetchone()
            if row and row[0]:
                raise ValueError(
                    f"{into} is the application's own table, where the jobs would delete the rows again: name another one"
                )
            files = connection.execute(
                FILES, {"kind": kind, "website": website, "first": days[0], "last": days[1]}
            ).fetchall()
            if not files:
                raise ValueError(f"the archive has no {kind}s of website {website} from {days[0]} to {days[1]}")
            query = sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING DEFAULTS)").format(name, table.name)
            connection.execute(query)
            added = 0
            for number, day, uri, rows, content_hash in files:
                try:
                    found = archive.read_back(connection, table, uri)
                except psycopg.Error:
                    raise
                except Exception as error:  # noqa: BLE001
                    raise ValueError(
                        f"file {number} of {day}, {uri}, cannot be read: {archive.sentence(error)}"
                    ) from None
                if found != (rows, content_hash):
                    raise ValueError(f"file {number} of {day}, {uri}, has not the {rows:,} row(s) that were written")
                query = sql.SQL(
                    "INSERT INTO {name} SELECT (restored.row).* FROM (SELECT ROW({values})::{table} AS row FROM read_back)"
                    " AS restored WHERE NOT EXISTS (SELECT FROM {name} AS present WHERE present.id = (restored.row).id)"
                ).format(name=name, values=table.restored, table=table.name)
                added += connection.execute(query).rowcount
        return added


def main(arguments: list[str] | None = None) -> int:
    """Restore from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].partition(":")[0])
    add: Any = parser.add_argument
    add("dsn", help="connection string of the analytics database")
    add("--website", required=True, help="the website's id")
    add("--from", dest="first", type=date.fromisoformat, default=date.min, help="the first day (YYYY-MM-DD)")
    add("--to", dest="last", type=date.fromisoformat, default=date.max, help="the last day")
    add("--kind", choices=["event", "session"], default="event", help="what to bring back")
    add("--into", required=True, help="the table that gets the rows; it is made if there is none")
    add("--search-path", default="analytics,public", help="ours first, then the application's schema")
    given = parser.parse_args(arguments)
    try:
        days = (given.first, given.last)
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
