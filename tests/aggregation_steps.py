"""The steps of aggregate_daily_analytics, as its tasks run them, at any moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import psycopg

from clock import SEARCH_PATH
from clock import install as set_clock
from conftest import LOGIN, Database, run_file

AGGREGATE = "aggregate_daily_analytics/aggregate_day.sql"
DUE = "aggregate_daily_analytics/find_due_days.sql"

Connection = psycopg.Connection[dict[str, Any]]


def find(database: Database, connection: Connection | None = None) -> list[str]:
    """The days that are due."""
    days: list[str] = database.run(DUE, connection)[0]["result"]
    return days


def aggregate_days(connection: Connection, *days: str, recount: bool = False) -> Any:
    """Aggregate days; return the rows of the result."""
    return run_file(connection, AGGREGATE, days=list(days), label=", ".join(days), recount=recount)


def aggregate(
    database: Database, *days: date | str, recount: bool = False, connection: Connection | None = None
) -> list[str]:
    """Aggregate days; return what the log says about each website and day."""
    if connection is None:
        with database.connect(LOGIN) as own:
            return aggregate(database, *days, recount=recount, connection=own)
    rows = aggregate_days(connection, *map(str, days), recount=recount)
    return [line.removeprefix("[Analytics Job] ") for line in rows[0]["log"].splitlines()[1:-1]]


def aggregate_due(database: Database, connection: Connection | None = None) -> list[str]:
    """Aggregate the days that are due; return them."""
    days = find(database, connection)
    aggregate(database, *days, connection=connection)
    return days


def set_zone(
    database: Database, timezone: str, website_id: str | None = None, from_date: date | str = "-infinity"
) -> None:
    """Let a time zone hold from a day on, for a website or for all that have none of their own."""
    database.connection.execute(
        "INSERT INTO analytics_timezone VALUES (%s, %s, %s)"
        " ON CONFLICT (website_id, from_date) DO UPDATE SET timezone = excluded.timezone",
        [website_id, str(from_date), timezone],
    )


def versions(database: Database, website_id: str = "site") -> list[dict[str, Any]]:
    """The rows of a website and which version each of them is."""
    query = "SELECT *, ctid::text, xmin::text FROM analytics_daily_stats WHERE website_id = %s ORDER BY date"
    return database.query(query, website_id)


def seal(database: Database, *days: date | str, website_id: str = "site") -> None:
    """Seal rows of a website, as the retention does: all, or those of some days."""
    database.connection.execute(
        """
        UPDATE analytics_daily_stats SET sealed_at = now()
        WHERE website_id = %s AND (date = ANY(%s::date[]) OR %s) AND sealed_at IS NULL AND total_events > 0
        """,
        [website_id, [str(day) for day in days], not days],
    )


@contextmanager
def clock(database: Database, now: datetime | str) -> Iterator[Connection]:
    """A connection at another moment."""
    set_clock(database.connection, now)
    with database.connect(options=f"-c search_path={SEARCH_PATH} -c timezone=Pacific/Auckland") as connection:
        yield connection
