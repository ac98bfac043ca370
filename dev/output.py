"""What the demo prints: lines of progress, and what the jobs changed in the database."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg

TERMINAL = sys.stdout.isatty()
WIDTH = min(shutil.get_terminal_size((100, 0)).columns, 100) - 1
PAUSE = 5  # seconds between two lines about the same work where a line cannot be rewritten


class Line:
    """One line of output with the seconds that its work takes, rewritten in place on a terminal."""

    def __init__(self, text: str) -> None:
        self.started = self.printed = time.monotonic()
        if TERMINAL:
            self._print("…", text)

    def show(self, text: str) -> None:
        """Show how far the work is."""
        if TERMINAL or time.monotonic() > self.printed + PAUSE:
            self._print("…", text)

    def note(self, text: str) -> None:
        """Say something on a line of its own before going on."""
        print(f"{self._begin()}    {text}", flush=True)

    def done(self, text: str, mark: str = "✓") -> None:
        """Show the outcome."""
        self._print(mark, text, end="\n")

    def _begin(self) -> str:
        return "\r\033[K" if TERMINAL else ""

    def _print(self, mark: str, text: str, end: str = "" if TERMINAL else "\n") -> None:
        self.printed = time.monotonic()
        width, seconds = WIDTH - 14, f"{self.printed - self.started:6.1f} s"
        print(f"{self._begin()}  {mark} {text[:width]:<{width}} {seconds}", end=end, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns, numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligns = [">" if any(isinstance(row[index], int) for row in rows) else "<" for index in range(len(header))]
    for row in cells:
        padded = [f"{c:{a}{w}}" for c, a, w in zip(row, aligns, widths, strict=True)]
        print(f"      {'  '.join(padded).rstrip()}")


def daily_stats(database: psycopg.Connection) -> None:
    """Print the statistics of the newest day."""
    count, first, last = _row(database, "SELECT count(*), min(date), max(date) FROM analytics_daily_stats")
    print(f"\n    Daily stats: {count:,} rows, {first} to {last}. The newest day:")
    rows = database.execute(
        """
        SELECT website_id, total_pageviews, total_custom_events, unique_visitors, unique_sessions,
            top_pages -> 0 ->> 'item'
        FROM analytics_daily_stats WHERE date = %s ORDER BY total_pageviews DESC LIMIT 10
        """,
        [last],
    )
    table(("website", "pageviews", "custom events", "visitors", "sessions", "top page"), rows.fetchall())


def erase_visitor(database: psycopg.Connection) -> None:
    """Delete the events and sessions of a visitor of about three of the last days, and print how many."""
    (visitor,) = _row(
        database,
        """
        SELECT visitor_id FROM analytics_event WHERE timestamp > now() - interval '80 days'
        GROUP BY visitor_id ORDER BY abs(count(DISTINCT timestamp::date) - 3), visitor_id LIMIT 1
        """,
    )
    events = database.execute("DELETE FROM analytics_event WHERE visitor_id = %s", [visitor]).rowcount
    sessions = database.execute("DELETE FROM analytics_session WHERE visitor_id = %s", [visitor]).rowcount
    print(f"\n    A visitor is erased, with {events:,} events in {sessions:,} sessions: those days are counted again.")


def due_sessions(database: psycopg.Connection) -> list[str]:
    """The ids of the sessions that are open, or were closed before their last activity."""
    rows = database.execute("SELECT id FROM analytics_session WHERE ended_at IS NULL OR ended_at < last_activity_at")
    return [session for (session,) in rows]


def closed_sessions(database: psycopg.Connection, due: list[str]) -> None:
    """Print how many of the due sessions have an end now, and how long they lasted."""
    closed, seconds, left = _row(
        database,
        """
        SELECT count(*) FILTER (WHERE ended), coalesce(sum(duration_seconds) FILTER (WHERE ended), 0),
            count(*) FILTER (WHERE ended IS NOT TRUE)
        FROM (SELECT duration_seconds, ended_at >= last_activity_at AS ended
              FROM analytics_session WHERE id = ANY(%s)) AS session
        """,
        [due],
    )
    print(f"\n    Sessions: {closed:,} closed that lasted {seconds:,} seconds in all, {left:,} still active\n")


def raw_data(database: psycopg.Connection) -> str:
    """How much raw data there is."""
    events, sessions, size = _row(
        database,
        """
        SELECT (SELECT count(*) FROM analytics_event), (SELECT count(*) FROM analytics_session),
            pg_size_pretty(pg_database_size(current_database()))
        """,
    )
    return f"{events:,} events, {sessions:,} sessions, database of {size}"


def _row(database: psycopg.Connection, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    row = database.execute(query.encode(), parameters).fetchone()
    assert row is not None  # an aggregate without GROUP BY
    return row
