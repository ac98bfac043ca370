"""The steps of archive_old_analytics, as its tasks run them, for tests that come between them."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from conftest import Database

FOLDER = "archive_old_analytics"
PROVE = f"{FOLDER}/prove_days.sql"
DELETE_EVENTS = f"{FOLDER}/delete_event_batch.sql"
DELETE_SESSIONS = f"{FOLDER}/delete_session_batch.sql"
AGGREGATE = "aggregate_daily_analytics/aggregate_day.sql"
DUE = "aggregate_daily_analytics/find_due_days.sql"
DAY = timedelta(days=1)
CUTOFF = datetime(2024, 3, 1, tzinfo=UTC)
POLICY: dict[str, Any] = {"moment": CUTOFF + 90 * DAY, "retention_days": 90, "timezone": "UTC"}
TIME = {"event": "timestamp", "session": "started_at"}


def aggregate(database: Database, *days: date | str, timezone: str = "UTC") -> Any:
    """Aggregate days."""
    return database.run(AGGREGATE, days=[str(day) for day in days], timezone=timezone)


def aggregate_due(database: Database, timezone: str = "UTC") -> None:
    """Aggregate every day that is due."""
    aggregate(database, *(row["day"] for row in database.run(DUE, timezone=timezone)), timezone=timezone)


def prove(database: Database, **policy: Any) -> list[tuple[str, str, bool, int]]:
    """Prove the expired days; return those that are not proven, or final and have late events."""
    rows = database.run(PROVE, **POLICY | policy)
    return [(row["website_id"], row["day"], row["is_proven"], row["late_events"]) for row in rows]


def proven_days(database: Database) -> list[tuple[str, str]]:
    """The days that are proven now."""
    rows = database.query("SELECT website_id, date::text FROM analytics_purge_proof ORDER BY 1, 2")
    return [(row["website_id"], row["date"]) for row in rows]


def plan(database: Database, table: str, batch_size: int = 1000, dry_run: bool | str = False, **policy: Any) -> Any:
    """Count what may go, and plan its batches."""
    policy = POLICY | policy
    counted = database.run(f"{FOLDER}/count_expired.sql", **policy)[0][f"{table}s"]
    file = f"{FOLDER}/plan_{table}_batches.sql"
    return database.run(file, **policy, expired=counted, batch_size=batch_size, dry_run=dry_run)


def delete(database: Database, table: str, batches: Iterable[dict[str, Any]]) -> list[int]:
    """Run each planned task once; return how many rows each deleted."""
    return [database.run(f"{FOLDER}/delete_{table}_batch.sql", **batch) for batch in batches]


def archive(database: Database, batch_size: int = 1000, **policy: Any) -> dict[str, list[int]]:
    """All steps of a run; return the rows that each batch deleted."""
    unproven = [day for _, day, proven, _ in prove(database, **policy) if not proven]
    aggregate(database, *unproven, timezone=(POLICY | policy)["timezone"])
    prove(database, **policy)
    plans = {table: plan(database, table, batch_size, **policy) for table in TIME}
    return {table: delete(database, table, plans[table]) for table in TIME}


def ids(database: Database, table: str = "event") -> set[str]:
    """The ids of the rows that are left."""
    return {row["id"] for row in database.query(f"SELECT id FROM analytics_{table}")}


def stats(database: Database) -> list[dict[str, Any]]:
    """Every row with its version."""
    return database.query("SELECT *, ctid::text, xmin::text FROM analytics_daily_stats ORDER BY website_id, date")


def final_days(database: Database) -> list[tuple[str, str]]:
    """The days whose row is final."""
    query = "SELECT website_id, date::text FROM analytics_daily_stats WHERE raw_purged_at IS NOT NULL ORDER BY 1, 2"
    return [(row["website_id"], row["date"]) for row in database.query(query)]
