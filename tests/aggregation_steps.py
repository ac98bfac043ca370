"""The steps of aggregate_daily_analytics, as its tasks run them, at any moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import psycopg

from conftest import Database

AGGREGATE = "aggregate_daily_analytics/aggregate_day.sql"
DUE = "aggregate_daily_analytics/find_due_days.sql"

Connection = psycopg.Connection[dict[str, Any]]


def find(database: Database, timezone: str = "UTC", connection: Connection | None = None) -> list[str]:
    """The days that are due."""
    return [row["day"] for row in database.run(DUE, connection, timezone=timezone)]


def aggregate(
    database: Database, *days: date | str, timezone: str = "UTC", connection: Connection | None = None
) -> list[tuple[str, str]]:
    """Aggregate days; return the remark about each website and day counted."""
    rows = database.run(AGGREGATE, connection, days=[str(day) for day in days], timezone=timezone)
    return [(row["website_id"], row["remark"]) for row in rows]


def aggregate_due(database: Database, timezone: str = "UTC", connection: Connection | None = None) -> list[str]:
    """Aggregate the days that are due; return them."""
    days = find(database, timezone, connection)
    aggregate(database, *days, timezone=timezone, connection=connection)
    return days


def versions(database: Database, website_id: str = "site") -> list[dict[str, Any]]:
    """The rows of a website and which version each of them is."""
    query = "SELECT *, ctid::text, xmin::text FROM analytics_daily_stats WHERE website_id = %s ORDER BY date"
    return database.query(query, website_id)


def make_final(database: Database, *days: date | str, website_id: str = "site") -> None:
    """Make rows of a website final, as the retention does: all, or those of some days."""
    database.connection.execute(
        """
        UPDATE analytics_daily_stats SET raw_purged_at = now(), purge_snapshot = pg_current_snapshot()
        WHERE website_id = %s AND (date = ANY(%s::date[]) OR %s) AND raw_purged_at IS NULL AND total_events > 0
        """,
        [website_id, [str(day) for day in days], not days],
    )


@contextmanager
def clock(database: Database, now: datetime | str) -> Iterator[Connection]:
    """A connection at another moment: the files say now(), and search_path decides whose."""
    database.connection.execute(
        f"""
        CREATE SCHEMA IF NOT EXISTS clock;
        CREATE OR REPLACE FUNCTION clock.now() RETURNS timestamptz RETURN '{now}'::timestamptz
        """.encode()
    )
    options = "-c search_path=clock,analytics,public,pg_catalog -c timezone=Pacific/Auckland"
    with database.connect(options=options) as connection:
        yield connection
