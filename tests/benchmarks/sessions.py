"""Closing idle sessions, and what our indexes on the table cost the application."""

from functools import partial

from benchmarks.bench import ROUNDS, Bench, Connection, Database, execute, in_turns, seconds
from conftest import run_file

CLOSE = "cleanup_analytics_sessions/close_idle_sessions.sql"
RETURNED = "cleanup_analytics_sessions/end_returned_sessions.sql"
SESSIONS = 5000  # per measurement

# `idle` open sessions of yesterday, then `active` ones, then `closed` ones.
LOAD = """
INSERT INTO analytics_session (
    id, website_id, session_id, visitor_id, entry_page, pageviews, device_type, browser, os, country, started_at,
    ended_at, last_activity_at
)
SELECT
    'anses_' || lpad(n::text, 9, '0') || left(md5(n::text), 11), 'website ' || lpad(mod(n, 50)::text, 2, '0'),
    'sess_' || n, md5(n::text), '/', 3, 'desktop', 'Chrome', 'Windows', 'DE',
    start.moment,
    CASE WHEN n > %(idle)s + %(active)s THEN start.moment + INTERVAL '10 minutes' END,
    CASE WHEN n > %(idle)s AND n <= %(idle)s + %(active)s THEN now() ELSE start.moment + INTERVAL '10 minutes' END
FROM generate_series(1, %(idle)s + %(active)s + %(closed)s) AS n
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN n > %(idle)s AND n <= %(idle)s + %(active)s THEN now() - random() * INTERVAL '25 minutes'
            ELSE now() - INTERVAL '1 hour' - random() * INTERVAL '23 hours'
        END AS moment
) AS start
ORDER BY start.moment
"""

FIND = """
SELECT id FROM analytics_session
WHERE ended_at IS NULL AND deleted_at IS NULL AND last_activity_at < now() - INTERVAL '30 minutes'
ORDER BY started_at LIMIT %(limit)s
"""
CLOSE_ONE = """
UPDATE analytics_session
SET
    ended_at = last_activity_at, updated_at = now(),
    duration_seconds = greatest(0, floor(extract(EPOCH FROM last_activity_at - started_at)))::int
WHERE id = %(id)s AND ended_at IS NULL AND last_activity_at < now() - INTERVAL '30 minutes'
"""

HEARTBEAT = """
UPDATE analytics_session
SET last_activity_at = now(), pageviews = pageviews + 1, exit_page = '/sale', updated_at = now()
WHERE session_id = %(session_id)s AND deleted_at IS NULL
"""
OURS = ("analytics_session_open_idx",)


def load_sessions(database: Database, idle: int, active: int, closed: int) -> None:
    """Store sessions 1 to `idle`, then the active ones, then those that were closed."""
    with database.owner() as owner:
        execute(owner, LOAD, {"idle": idle, "active": active, "closed": closed})


def sessions(bench: Bench) -> None:
    """Closing 5,000 of 100,000 idle sessions, in a table of 400,000, by close_idle_sessions.sql in batches of 1,000,
    beside one batch of all 5,000 and beside closing row by row; a run with nothing to close; and the share of
    heartbeats that are HOT updates with our indexes, without them, and with the index on last_activity_at that we do
    not make."""
    database = bench.database("sessions")
    with database.bulk():
        load_sessions(database, idle=4 * SESSIONS * ROUNDS, active=5000, closed=300_000)

    def close(size: int) -> float:
        return seconds(close_batches, job, size)

    def row_by_row() -> float:
        return seconds(lambda: [execute(job, CLOSE_ONE, row) for row in execute(job, FIND, {"limit": SESSIONS})])

    with database.owner() as owner, database.connect() as job:
        samples = in_turns(
            {"batches of 1,000": lambda: close(1000), "one batch": lambda: close(SESSIONS), "row by row": row_by_row}
        )
        medians = bench.compare(f"Closing {SESSIONS:,} sessions", samples, "batches of 1,000", rows=SESSIONS)
        bench.limit("row by row / batches", medians["row by row"] / medians["batches of 1,000"], at_least=4)
        bench.limit("batches / one batch", medians["batches of 1,000"] / medians["one batch"], at_most=1.6)
        while close_batch(job, 1000):
            pass
        owner.execute("VACUUM (ANALYZE)")
        samples = in_turns(
            {
                "count(*) of all": lambda: seconds(execute, job, "SELECT count(*) FROM analytics_session"),
                "close_idle_sessions": lambda: seconds(close_batch, job, 1000),
                "end_returned_sessions": lambda: seconds(close_batch, job, 1000, RETURNED),
            }
        )
        bench.compare("Nothing to close, 5,000 active sessions", samples, "count(*) of all")
    heartbeats(bench)


def close_batch(job: Connection, size: int, file: str = CLOSE) -> int:
    """Close one batch of sessions at most; return how many."""
    [row] = run_file(job, file, idle_minutes=30, batch_size=size, done=0)
    return int(row["result"]["rows"])


def close_batches(job: Connection, size: int) -> None:
    """Close sessions in batches of a size, which must be full."""
    for _ in range(SESSIONS // size):
        assert close_batch(job, size) == size


def heartbeats(bench: Bench) -> None:
    """Measure 10,000 heartbeats of 5,000 active sessions on copies of one table with other indexes."""
    base = bench.database("heartbeats_ours")
    load_sessions(base, idle=0, active=5000, closed=45_000)
    with base.owner() as owner:
        owner.execute("VACUUM (ANALYZE)")
    layouts = {"our indexes": base}
    for name, statement in {
        "without ours": f"DROP INDEX {', '.join(OURS)}",
        "(last_activity_at)": "CREATE INDEX ON analytics_session (last_activity_at) WHERE ended_at IS NULL",
    }.items():
        layouts[name] = bench.database(f"heartbeats_{len(layouts)}", base.name)
        with layouts[name].owner() as owner:
            owner.execute(statement.encode())
            owner.execute("VACUUM (ANALYZE)")
    owners = {name: database.owner() for name, database in layouts.items()}
    usage: dict[str, list[list[float]]] = {name: [] for name in layouts}

    def beat(name: str) -> float:
        owner = owners[name]
        owner.execute("SET synchronous_commit = off")  # the disk is not what is measured
        before = counters(owner)
        elapsed = seconds(
            lambda: [execute(owner, HEARTBEAT, {"session_id": f"sess_{1 + n % 5000}"}) for n in range(10_000)]
        )
        usage[name].append([after - earlier for after, earlier in zip(counters(owner), before, strict=True)])
        owner.execute("VACUUM analytics_session")
        return elapsed

    try:
        samples = in_turns({name: partial(beat, name) for name in layouts})
    finally:
        for owner in owners.values():
            owner.close()
    bench.compare("10,000 heartbeats", samples, "without ours", rows=10_000)
    hot = {name: sum(round_[1] for round_ in usage[name]) / sum(round_[0] for round_ in usage[name]) for name in usage}
    log = {name: sum(round_[2] for round_ in usage[name]) / sum(round_[0] for round_ in usage[name]) for name in usage}
    bench.table(
        "Their updates",
        ["", "HOT", "WAL bytes each", "x without ours"],
        [[name, f"{hot[name]:.1%}", f"{log[name]:.0f}", f"{log[name] / log['without ours']:.2f}"] for name in layouts],
    )
    bench.limit("HOT share with our indexes / without", hot["our indexes"] / hot["without ours"], at_least=0.95)


def counters(connection: Connection) -> list[float]:
    """Updates of sessions, those of them that were HOT, bytes of write-ahead log, so far."""
    execute(connection, "SELECT pg_stat_force_next_flush()::text")  # at its end
    [row] = execute(
        connection,
        "SELECT n_tup_upd, n_tup_hot_upd,"
        " pg_current_wal_insert_lsn() - '0/0' AS bytes FROM pg_stat_user_tables WHERE relname = 'analytics_session'",
    )
    return [float(row[key]) for key in ("n_tup_upd", "n_tup_hot_upd", "bytes")]
