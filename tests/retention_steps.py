"""The steps of archive_old_analytics, as its tasks run them, for tests that come between them."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from aggregation_steps import AGGREGATE, Connection, clock
from conftest import LOGIN, Database, run_file

FOLDER = "archive_old_analytics"
SEAL = f"{FOLDER}/seal_days.sql"
DELETE_EVENTS = f"{FOLDER}/delete_event_batch.sql"
DELETE_SESSIONS = f"{FOLDER}/delete_session_batch.sql"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
CUTOFF = datetime(2024, 3, 1, tzinfo=UTC)
NOW = CUTOFF + 90 * DAY + timedelta(hours=2)
POLICY: dict[str, Any] = {
    "retention_days": 90,
    "batch_size": 1000,
    "dry_run": False,
    "confirm": True,
    "has_archive": False,
    "job": "archive_old_analytics",
    "run_id": "test",
}


@contextmanager
def retention(database: Database, now: datetime = NOW) -> Iterator["Retention"]:
    """The steps at a moment, for which what is before CUTOFF has expired."""
    with clock(database, now), connect(database) as connection:
        yield Retention(connection, database)


def connect(database: Database, isolation: str = "read committed") -> Connection:
    """A connection as the jobs' role, at the moment of the clock."""
    settings = {
        "search_path": "clock,analytics,public,pg_catalog",
        "default_transaction_isolation": isolation.replace(" ", r"\ "),
        "statement_timeout": "20s",
        "jit": "off",  # as of the jobs' sessions
    }
    return database.connect(LOGIN, options=" ".join(f"-c {name}={value}" for name, value in settings.items()))


class Retention:
    """The steps of a run on a connection of the jobs' role, with `policy` over POLICY.

    `left` is what the last delete() left, and nothing of ours keeps it.
    """

    def __init__(self, connection: Connection, database: Any = None, **policy: Any) -> None:
        self.connection, self.database, self.policy = connection, database, POLICY | policy
        self.log, self.again, self.left = "", None, 0

    def run(self, file: str, **parameters: Any) -> Any:
        """The result of one of the files, and what it logs as ``log``."""
        row = run_file(self.connection, f"{FOLDER}/{file}.sql", **self.policy | parameters)[0]
        self.log, self.again = row["log"], row.get("again")
        return row["result"]

    def find(self, **policy: Any) -> Any:
        """What has expired, in steps."""
        return self.run("find_expired_days", **policy)

    def seal(self, **policy: Any) -> list[dict[str, Any]]:
        """Seal and list what has expired, in one transaction per step; return the steps with days that are left."""
        results = [self.run("seal_days", **policy | step) for step in self.find(**policy)["steps"]]
        return [result for result in results if result is not None]

    def list_sessions(self, **policy: Any) -> int:
        """List the expired sessions; return how many."""
        rows: int = self.run("list_sessions", **policy, after=None)["rows"]
        return rows

    def plan(self, kind: str = "event", **policy: Any) -> list[dict[str, Any]]:
        """The parameters of each mapped task."""
        tasks: list[dict[str, Any]] = self.run("plan_batches", kind=kind, **policy)
        return tasks

    @staticmethod
    def batches(tasks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parameters of each batch of planned tasks."""
        return [{**task, **step} for task in tasks for step in task["steps"]]

    def delete(self, tasks: Iterable[dict[str, Any]], kind: str = "event") -> list[int]:
        """Run planned tasks; return how many rows each of their batches deleted."""
        deleted = []
        self.left = 0
        for step in self.batches(tasks):
            result = self.run(f"delete_{kind}_batch", **step)
            deleted.append(result["rows"])
            if self.again:
                result = self.run(f"delete_{kind}_batch", **step | self.again)
                deleted[-1] += result["rows"]
            self.left += result["left"]
        return deleted

    def start(self, file: str, isolation: str = "read committed", **parameters: Any) -> Future[Any]:
        """Run a file in another thread and connection; return its future rows once it waits for a lock."""
        future: Future[Any] = self.database.start(file, connect(self.database, isolation), **parameters)
        return future

    def aggregate(self, unsealed: Iterable[dict[str, Any]]) -> None:
        """Aggregate the days that were left."""
        for step in unsealed:
            run_file(self.connection, AGGREGATE, **step)

    def archive(self, **policy: Any) -> dict[str, list[int]]:
        """All steps of a run; return the rows that each batch deleted."""
        self.aggregate(self.seal(**policy))
        self.seal(**policy)
        events = self.delete(self.plan("event", **policy))
        self.list_sessions(**policy)
        return {"event": events, "session": self.delete(self.plan("session", **policy), "session")}


def archive(database: Database, **policy: Any) -> dict[str, list[int]]:
    """A whole run at NOW; return the rows that each batch deleted."""
    with retention(database) as run:
        return run.archive(**policy)


def ids(database: Database, table: str = "event") -> set[str]:
    """The ids of the rows that are left."""
    return {row["id"] for row in database.query(f"SELECT id FROM analytics_{table}")}


def stats(database: Database) -> list[dict[str, Any]]:
    """Every row with its version."""
    return database.query("SELECT *, ctid::text, xmin::text FROM analytics_daily_stats ORDER BY website_id, date")


def sealed_days(database: Database) -> list[tuple[str, str]]:
    """The days whose row is sealed."""
    query = "SELECT website_id, date::text FROM analytics_daily_stats WHERE sealed_at IS NOT NULL ORDER BY 1, 2"
    return [(row["website_id"], row["date"]) for row in database.query(query)]


def listed(database: Database) -> dict[str, int]:
    """How many rows of which kind are on the list."""
    query = "SELECT kind, SUM(rows)::int AS rows FROM analytics_purge_batch GROUP BY kind"
    return {row["kind"]: row["rows"] for row in database.query(query)}


def policy(database: Database, columns: str, website_id: str = "site") -> None:
    """Give a website a policy, like `legal_hold = TRUE`, over the one that it has."""
    database.connection.execute("INSERT INTO analytics_website_policy VALUES (%s) ON CONFLICT DO NOTHING", [website_id])
    query = f"UPDATE analytics_website_policy SET {columns} WHERE website_id = %s"
    database.connection.execute(query.encode(), [website_id])


def late(database: Database) -> dict[tuple[str, str], int]:
    """The days that have late events, and how many."""
    rows = database.query(
        "SELECT website_id, date::text, (late_pageviews + late_custom_events + late_ignored_events)::int AS late FROM analytics_daily_stats"
    )
    return {(row["website_id"], row["date"]): row["late"] for row in rows if row["late"]}
