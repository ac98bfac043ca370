"""What it costs to delete Umami's events, beside what its users run."""

import contextlib
import io
import statistics
from collections.abc import Callable
from typing import Any

import umami_steps
from benchmarks.bench import ROUNDS, Bench, Connection, day, execute, in_turns, seconds
from retention_steps import Retention
from web_analytics import schema

DAYS_KEPT = 10
DAYS = 10
"""How many days expire each round."""
OURS, SCRIPT = "archive_old_analytics, 1,000 a batch", "script, 10,000 a tick"

OLD = "created_at < %(cutoff)s::timestamptz"
# By its table, what a tick deletes.
TICK = {
    "event_data": (
        "SELECT event_data_id FROM event_data INNER JOIN website_event AS event ON event_id = website_event_id"
        f" WHERE event.{OLD} ORDER BY event.created_at, event_data_id"
    ),
    "website_event": (
        f"SELECT event_id FROM website_event WHERE {OLD}"
        " AND NOT EXISTS (SELECT FROM event_data WHERE website_event_id = event_id) ORDER BY created_at, event_id"
    ),
    "revenue": f"SELECT revenue_id FROM revenue WHERE {OLD} ORDER BY website_id, created_at",
    "session_data": f"SELECT session_data_id FROM session_data WHERE {OLD} ORDER BY created_at",
    "session": (
        f"SELECT session_id FROM session WHERE {OLD}"
        " AND NOT EXISTS (SELECT FROM website_event WHERE website_event.session_id = session.session_id)"
        " AND NOT EXISTS (SELECT FROM session_data WHERE session_data.session_id = session.session_id)"
        " ORDER BY created_at"
    ),
}


def umami(bench: Bench) -> None:
    """Deleting ten days of Umami's events on PostgreSQL, with all that belongs to them and the sessions that have no
    others: a whole run of the retention, from finding what has expired and sealing its days to the last batch of 1,000,
    each a transaction, without its rests; the days were aggregated before. Beside it a script as Umami's users run it
    from cron, on a copy of the tables without our indexes: a tick is one transaction that deletes, table after table,
    children first, the 10,000 oldest expired rows of each. It proves nothing and leaves no statistics. Here one tick
    follows the other; the one that is modelled has four an hour, 40,000 events or 667 a minute (koala73/worldmonitor,
    pull request 6189)."""
    expired, first_day = bench.events // 5 // ROUNDS, DAYS_KEPT + DAYS * ROUNDS
    ours = bench.database("umami_ours", "template1")
    with ours.owner() as owner:
        umami_steps.create(owner, "CREATE TABLE")
        umami_steps.traffic(owner, expired * (ROUNDS + 1), day(first_day), DAYS * (ROUNDS + 1), websites=50)
        umami_steps.create(owner, "INDEX")
        umami_steps.prepare(owner)
    with contextlib.redirect_stdout(io.StringIO()):
        schema.install(bench.server.dsn(ours.name), "analytics,public")
    ours.aggregate(first_day)
    theirs = bench.database("umami_theirs", ours.name)
    parts: dict[str, list[float]] = {}
    with ours.owner() as our_owner, theirs.owner() as their_owner, ours.connect(work_mem="64MB") as job:
        their_owner.execute(
            "DROP FUNCTION umami_delete_children CASCADE; DROP INDEX umami_event_id_idx, umami_event_website_idx,"
            " umami_event_visit_idx, umami_session_id_idx"
        )

        def timed(owner: Connection, delete: Callable[[int], float]) -> Callable[[], float]:
            days = iter(range(first_day - DAYS, 0, -DAYS))

            def measure() -> float:
                owner.execute("VACUUM (ANALYZE)")
                owner.execute("CHECKPOINT")
                return delete(next(days))

            return measure

        samples = in_turns(
            {
                OURS: timed(our_owner, lambda days: retain(job, days, parts)),
                SCRIPT: timed(their_owner, lambda days: seconds(run_script, their_owner, days)),
            }
        )
        for table in ("website_event", "event_data", "revenue", "session"):
            query = f"SELECT count(*) AS rows FROM {table}"
            assert execute(our_owner, query) == execute(their_owner, query), f"{table} is not the same"
    medians = bench.compare(f"Deleting {expired:,} events of ten days, 50 websites", samples, SCRIPT, rows=expired)
    bench.table(
        "The steps of the retention",
        ["", "median ms"],
        [[name, f"{statistics.median(times) * 1000:,.0f}"] for name, times in parts.items()],
    )
    bench.limit("retention of Umami's events / script without proof", medians[OURS] / medians[SCRIPT], at_most=8)


def retain(job: Connection, days: int, parts: dict[str, list[float]]) -> float:
    """Run all steps of the retention; return how long they took together, and keep it by step."""
    retention = Retention(job, retention_days=days)
    expired: list[dict[str, Any]] = []
    steps: dict[str, Callable[[], Any]] = {
        "find_expired_days": lambda: expired.extend(retention.find()["steps"]),
        "seal_days": lambda: [retention.run("seal_days", **step) for step in expired],
        "delete_event_batch": lambda: retention.delete(retention.plan()),
        "list_sessions": retention.list_sessions,
        "delete_session_batch": lambda: retention.delete(retention.plan("session"), "session"),
    }
    for name, step in steps.items():
        parts.setdefault(name, []).append(seconds(step))
    return sum(times[-1] for times in parts.values())


def run_script(owner: Connection, days: int) -> None:
    """Run ticks until one deletes nothing."""
    deleted = True
    while deleted:
        with owner.transaction():
            deleted = False
            for table, rows in TICK.items():
                key = rows.split()[1]
                statement = f"DELETE FROM {table} WHERE {key} IN ({rows} LIMIT 10000)"
                deleted |= execute(owner, statement, {"cutoff": day(days)}) > 0
