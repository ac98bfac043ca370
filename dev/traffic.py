"""Traffic for the demo and the benchmarks: made up by traffic.sql, or copied from a folder's CSV files.

The files are `events.csv.gz` and `sessions.csv.gz`. Their header line names the columns; columns left out take their
default; an empty field is NULL.
"""

import csv
import gzip
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

FILES = {"analytics_event": "events.csv.gz", "analytics_session": "sessions.csv.gz"}
WEBSITES = ("shop.example", "outlet.example", "blog.example", "b2b.example", "atelier.example")
DAYS = 100
SESSIONS = 42_000


def sample(connection: psycopg.Connection[Any], now: datetime) -> dict[str, int]:
    """Store the traffic of the hundred days before today, and of today up to `now`; return the rows per table."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    rows = make(
        connection,
        WEBSITES,
        start=today - timedelta(days=DAYS),
        days=DAYS + 1,
        sessions=SESSIONS,
        now=now,
        live=30,
        store_sessions=True,
    )
    beats = connection.execute(
        (Path(__file__).parent / "heartbeats.sql").read_bytes(), {"website": WEBSITES[0], "now": now}
    )
    rows["analytics_event"] += beats.rowcount
    for table in FILES:
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return rows


def make(
    connection: psycopg.Connection[Any],
    websites: Sequence[str],
    start: datetime | str,
    days: int,
    sessions: int,
    now: datetime | str = "infinity",
    steps: int | None = None,
    live: int = 0,
    store_sessions: bool = False,
    salt: int = 0,
) -> dict[str, int]:
    """Store made-up traffic; return the rows per table. The parameters are those of traffic.sql."""
    values = {
        "websites": list(websites),
        "start": start,
        "days": days,
        "sessions": sessions,
        "now": now,
        "steps": steps,
        "live": live,
        "store_sessions": store_sessions,
        "salt": salt,
    }
    # Parts of one day differ.
    connection.execute("SELECT setseed(%s)", [(0.5 + salt * 0.6180339887498949) % 1])
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute((Path(__file__).parent / "traffic.sql").read_bytes(), values)
        return dict(zip(FILES, cursor.fetchone() or (), strict=True))


def load(connection: psycopg.Connection, folder: Path) -> dict[str, int]:
    """Copy the folder's CSV files into the application's tables, without a commit; return the rows per table.

    ValueError says in one sentence which file is missing or unreadable, or which column the table lacks.
    """
    loaded = {}
    for table, name in FILES.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: the folder must hold {' and '.join(FILES.values())}")
        try:
            with gzip.open(path, "rb") as file:
                loaded[table] = _copy(connection, table, file)
        except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from error
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return loaded


def _copy(connection: psycopg.Connection, table: str, file: gzip.GzipFile) -> int:
    columns = next(csv.reader([file.readline().decode()]), [])
    known = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [table],
    )
    if not columns:
        raise ValueError("it has no header line")
    if unknown := sorted(set(columns) - {name for (name,) in known}):
        raise ValueError(f"{table} has no column {', '.join(unknown)}")
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            while chunk := file.read(1 << 20):
                copy.write(chunk)
        return cursor.rowcount
