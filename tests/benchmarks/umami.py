"""What it costs to delete Umami's events, beside what its users run."""

import contextlib
import io

import umami_steps
from benchmarks.bench import ROUNDS, Bench, Connection, Database, day, execute, in_turns, seconds
from retention_steps import Retention
from web_analytics import schema

DAYS_KEPT = 10
DAYS = 10
"""How many days expire each round."""
TICK = 10_000

# By the table, what is to go first: the rows of a tick, oldest first.
SCRIPT = {
    "event_data": (
        "SELECT event_data_id FROM event_data AS child INNER JOIN website_event ON event_id = website_event_id"
        " WHERE website_event.created_at < {cutoff} ORDER BY website_event.created_at, event_data_id"
    ),
    "website_event": (
        "SELECT event_id FROM website_event WHERE created_at < {cutoff}"
        " AND NOT EXISTS (SELECT FROM event_data WHERE website_event_id = event_id) ORDER BY created_at, event_id"
    ),
    "revenue": "SELECT revenue_id FROM revenue WHERE created_at < {cutoff} ORDER BY website_id, created_at",
    "session_data": "SELECT session_data_id FROM session_data WHERE created_at < {cutoff} ORDER BY created_at",
    "session": (
        "SELECT session_id FROM session WHERE created_at < {cutoff} AND NOT EXISTS"
        " (SELECT FROM website_event WHERE website_event.session_id = session.session_id) AND NOT EXISTS"
        " (SELECT FROM session_data WHERE session_data.session_id = session.session_id) ORDER BY created_at"
    ),
}


def umami(bench: Bench) -> None:
    """Deleting ten days of Umami's events on PostgreSQL, with all that belongs to them and the sessions that have no others.
    The retention's statements, from finding what has expired and sealing its days to the last batch of 1,000, each a
    transaction, without its rests; the days were aggregated before. Beside it a script as its users run it from cron, on
    a copy of the tables: a tick is one transaction that deletes, table after table, children first, the oldest 10,000
    expired rows of each. Here one tick follows the other. Of a known one there are four ticks an hour, so that 40,000
    events go an hour, 667 a minute (koala73/worldmonitor, pull request 6189). It proves nothing and keeps no statistics."""
    expired = bench.events // 5 // ROUNDS
    ours = bench.database("umami_ours", "template1")
    with ours.owner() as owner:
        umami_steps.create(owner, "CREATE TABLE")
        umami_steps.traffic(owner, expired * (ROUNDS + 1), day(DAYS_KEPT + DAYS * ROUNDS), DAYS * (ROUNDS + 1), 50)
        umami_steps.create(owner, "INDEX")
        umami_steps.prepare(owner)
    with contextlib.redirect_stdout(io.StringIO()):
        schema.install(bench.server.dsn(ours.name), "analytics,public")
    ours.aggregate(DAYS_KEPT + DAYS * ROUNDS + 1)
    theirs = bench.database("umami_theirs", ours.name)
    with ours.owner() as our_owner, theirs.owner() as their_owner, ours.connect(work_mem="64MB") as job:
        # A view of ours would do no harm, but the trigger would help.
        for table in ("website_event", "session"):
            their_owner.execute(f"DROP TRIGGER umami_delete_children ON {table}".encode())
        for index in ("umami_event_id_idx", "umami_event_website_idx", "umami_event_visit_idx", "umami_session_id_idx"):
            their_owner.execute(f"DROP INDEX {index}".encode())

        def measure(database: Database, owner: Connection) -> float:
            owner.execute("VACUUM (ANALYZE)")
            owner.execute("CHECKPOINT")
            kept[database.name] -= DAYS
            if database is ours:
                return seconds(retain, job, kept[database.name])
            return seconds(run_script, owner, kept[database.name])

        kept = dict.fromkeys((ours.name, theirs.name), DAYS_KEPT + DAYS * ROUNDS)
        samples = in_turns(
            {
                "archive_old_analytics, 1,000 a batch": lambda: measure(ours, our_owner),
                "script, 10,000 a tick": lambda: measure(theirs, their_owner),
            }
        )
        for table in SCRIPT:
            left = [execute(owner, f"SELECT count(*) AS rows FROM {table}")[0]["rows"] for owner in (our_owner, their_owner)]
            print(table, left)
    medians = bench.compare(f"Deleting {expired:,} of Umami's events", samples, "script, 10,000 a tick", rows=expired)
    print(medians)


def retain(job: Connection, days: int, parts: Samples) -> float:
    """Run all steps of the retention; return how long they took together, and keep it by step."""
    retention = Retention(job, retention_days=days)
    steps: dict[str, Callable[[], Any]] = {
        "find_expired_days": retention.find,
        "seal_days": lambda: [retention.run("seal_days", **step) for step in retention.find()["steps"]],
        "delete_event_batch": lambda: retention.delete(retention.plan()),
        "list_sessions": retention.list_sessions,
        "delete_session_batch": lambda: retention.delete(retention.plan("session"), "session"),
    }
    for name, step in steps.items():
        parts[name].append(seconds(step))
    return sum(times[-1] for times in parts.values())


def run_script(owner: Connection, days: int) -> None:
    """Ticks, until one deletes nothing."""
    deleted = True
    while deleted:
        with owner.transaction():
            deleted = False
            for table, rows in SCRIPT.items():
                query = rows.format(cutoff="%(cutoff)s::timestamptz") + f" LIMIT {TICK}"
                key = rows.split()[1]
                deleted |= execute(owner, f"DELETE FROM {table} WHERE {key} IN ({query})", {"cutoff": day(days)}) > 0
