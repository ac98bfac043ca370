"""Rows for the tests of the read side, and what a sketch of them is."""

import hashlib
import math
from collections.abc import Iterable
from datetime import datetime

from aggregation_steps import aggregate as aggregate_days
from conftest import Database
from retention_steps import retention

STANDARD_ERROR = 0.65 / math.sqrt(2048)


def events(database: Database, moment: datetime, visitors: Iterable[str], website_id: str = "site") -> None:
    """Store one event per visitor."""
    with database.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
            " VALUES (gen_random_uuid(), %s, '/', %s, 'session', %s)",
            [(website_id, visitor, moment) for visitor in visitors],
        )


def people(first: int, last: int) -> list[str]:
    return [f"visitor {number}" for number in range(first, last + 1)]


def aggregate(database: Database, *days: datetime) -> None:
    aggregate_days(database, *(day.date() for day in days))


def purge(database: Database, today: datetime, retention_days: int) -> None:
    """Delete the raw events that retention would today; at least one."""
    with retention(database, today) as run:
        assert run.seal(retention_days=retention_days) == []
        assert sum(run.delete(run.plan(retention_days=retention_days))) > 0


def sketch(names: Iterable[str]) -> str:
    """The visitors' sketch by its definition: of SHA-256, 11 bits say which bit of a level, the next 23 which level."""
    bits = set()
    for name in names:
        head = f"{int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]):064b}"
        level = f"{head[11:34]}1".index("1")
        bits.add(level * 2048 + int(head[:11], 2))
    return "".join("1" if bit in bits else "0" for bit in range(49152))
