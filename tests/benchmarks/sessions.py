"""Closing idle sessions, finding those that came back, and what our indexes on the table cost the application."""

import re
from functools import partial

from benchmarks import peers
from benchmarks.bench import ROUNDS, Bench, Connection, Database, execute, in_turns, seconds
from conftest import SQL, run_file
from plans import CLOSE, RETURNED, SETTINGS

# Sessions 1 to `idle` are open ones of yesterday, then come `active` ones, then those of the last 90 days that were
# closed. They are stored in the order of their start: the closed ones first, which have the highest numbers.
LOAD = """
INSERT INTO analytics_session (
    id, website_id, session_id, visitor_id, entry_page, pageviews, device_type, browser, os, country, started_at,
    ended_at, last_activity_at
)
SELECT
    'anses_' || lpad((1e9 - n)::text, 10, '0') || left(session.hash, 11), 'website ' || lpad(mod(n, 50)::text, 2, '0'),
    'sess_' || n, session.hash, '/', 3, 'desktop', 'Chrome', 'Windows', 'DE',
    session.started_at,
    CASE WHEN n > %(idle)s + %(active)s THEN session.started_at + INTERVAL '10 minutes' END,
    CASE
        WHEN n > %(idle)s AND n <= %(idle)s + %(active)s THEN now()
        ELSE session.started_at + INTERVAL '10 minutes'
    END
FROM generate_series(%(idle)s + %(active)s + %(closed)s, 1, -1) AS n
CROSS JOIN LATERAL (
    SELECT
        md5(n::text) AS hash,
        CASE
            WHEN n > %(idle)s + %(active)s
                THEN now() - INTERVAL '1 day' - INTERVAL '90 days' * (n - %(idle)s - %(active)s) / %(closed)s
            WHEN n > %(idle)s THEN now() - random() * INTERVAL '25 minutes'
            ELSE now() - INTERVAL '1 hour' - INTERVAL '23 hours' * n / %(idle)s
        END AS started_at
) AS session
"""
CLOSE_ALL = """
UPDATE analytics_session
SET
    ended_at = last_activity_at, updated_at = now(),
    duration_seconds = analytics_duration(started_at, last_activity_at)
WHERE id = ANY(ARRAY(
    SELECT id FROM analytics_session
    WHERE ended_at IS NULL AND deleted_at IS NULL AND last_activity_at < now() - INTERVAL '30 minutes'
    ORDER BY started_at LIMIT %(limit)s
))
"""

# Of those that are active, 100 become idle; 50 that were closed days ago came back and are idle again.
BETWEEN_RUNS = """
UPDATE analytics_session
SET
    last_activity_at = now() - INTERVAL '40 minutes',
    started_at = CASE WHEN ended_at IS NULL THEN now() - INTERVAL '50 minutes' ELSE started_at END
WHERE session_id = ANY(ARRAY(
    SELECT 'sess_' || n + %(round)s * 100 FROM generate_series(1, 100) AS n
    UNION ALL
    SELECT 'sess_' || %(active)s + (n + %(round)s * 50) * (%(closed)s / 1000) FROM generate_series(1, 50) AS n
))
"""
RAN_TODAY = """
INSERT INTO analytics_job_run (job, run_id, started_at, outcome)
VALUES ('cleanup_analytics_sessions', 'first', now(), 'success')
ON CONFLICT DO NOTHING
"""
LEFT = """
SELECT count(*) AS sessions FROM analytics_session
WHERE
    deleted_at IS NULL AND last_activity_at < now() - INTERVAL '30 minutes'
    AND (ended_at IS NULL OR ended_at < last_activity_at)
"""

HEARTBEAT = """
UPDATE analytics_session
SET last_activity_at = now(), pageviews = pageviews + 1, exit_page = '/sale', updated_at = now()
WHERE session_id = %(session_id)s AND deleted_at IS NULL
"""

OURS = re.findall(r"'(analytics_session_\w+)'", (SQL / "schema/repeatable/50_indexes.sql").read_text())


def load_sessions(database: Database, idle: int, active: int, closed: int) -> None:
    """Store sessions 1 to `idle`, then the active ones, then those that were closed."""
    with database.owner() as owner:
        execute(owner, LOAD, {"idle": idle, "active": active, "closed": closed})


def sessions(bench: Bench) -> None:
    """Closing a thousandth of the scale's events, so many idle sessions, while a hundred times as many are open and
    active: close_idle_sessions.sql in batches of 1,000, beside one UPDATE of them all, as under pg_cron, and beside a cron
    job that reads them and updates one after the other. And heartbeats, 10,000 of 5,000 active sessions: how many are HOT
    updates with our indexes, without, and with an index on last_activity_at, which we do not make."""
    count, active = bench.events // 1000, bench.events // 10
    database = bench.database("sessions")
    with database.bulk():
        load_sessions(database, idle=3 * count * ROUNDS, active=active, closed=active // 10)

    def batches() -> None:
        for done in range(0, count, 1000):
            assert close_batch(job, done=done) == 1000

    with database.owner() as owner, database.connect() as job:
        idle = execute(owner, LEFT)[0]["sessions"]
        samples = in_turns(
            {
                "close_idle_sessions, 1,000 a batch": lambda: seconds(batches),
                "single UPDATE": lambda: seconds(execute, owner, CLOSE_ALL, {"limit": count}),
                "one by one": lambda: seconds(peers.close_one_by_one, job, count),
            }
        )
        assert (idle, execute(owner, LEFT)[0]["sessions"]) == (3 * count * ROUNDS, 0)
        wrong = "ended_at <> last_activity_at OR duration_seconds <> 600"
        assert not execute(owner, f"SELECT FROM analytics_session WHERE duration_seconds IS NOT NULL AND ({wrong})")
    ours, one, loop = bench.compare(
        f"Closing {count:,} sessions, {active:,} are active", samples, next(iter(samples)), rows=count
    ).values()
    bench.limit("closing one by one / close_idle_sessions", loop / ours, at_least=10)
    bench.limit("close_idle_sessions / single UPDATE", ours / one, at_most=1.6)
    heartbeats(bench)


def close_batch(job: Connection, file: str = CLOSE, done: int = 0) -> int:
    """Close one batch of sessions at most, after others that closed `done`; return how many."""
    [row] = run_file(job, file, idle_minutes=30, batch_size=1000, done=done)
    return int(row["result"]["rows"])


def cleanup(bench: Bench) -> None:
    """A run of the cleanup (close_idle_sessions.sql and end_returned_sessions.sql) in which 100 of 5,000 open sessions are
    idle and 50 that were closed days ago have come back, in tables with few and with a hundred times as many closed
    sessions of 90 days; and the first run of a day, which lets the index of returned sessions forget those of the day
    before."""
    few, many = bench.events // 100, bench.events
    active = 5000
    databases = {closed: bench.database(f"cleanup_{closed}") for closed in (few, many)}
    for database, closed in ((databases[closed], closed) for closed in databases):
        with database.bulk():
            load_sessions(database, idle=0, active=active, closed=closed)
    owners = {closed: database.owner() for closed, database in databases.items()}
    jobs = {closed: database.connect() for closed, database in databases.items()}
    others = {closed: database.connect(**SETTINGS[RETURNED]) for closed, database in databases.items()}
    rounds = dict.fromkeys(databases, 0)

    def run(closed: int, first: bool = False) -> float:
        owner = owners[closed]
        execute(owner, "DELETE FROM analytics_job_run" if first else RAN_TODAY)
        execute(owner, BETWEEN_RUNS, {"round": rounds[closed], "active": active, "closed": closed})
        rounds[closed] += 1
        elapsed = seconds(lambda: [close_batch(jobs[closed]), close_batch(others[closed], RETURNED)])
        assert execute(owner, LEFT)[0]["sessions"] == 0
        return elapsed

    def read(closed: int) -> float:
        return seconds(execute, jobs[closed], "SELECT count(*) FROM analytics_session WHERE visitor_id <> ''")

    name = "close_idle_sessions + end_returned_sessions"
    samples = in_turns(
        {
            f"{name}, {few:,} closed": partial(run, few),
            f"{name}, {many:,}": partial(run, many),
            f"{name}, {many:,}, first of the day": partial(run, many, first=True),
            f"count(*) via heap, {many:,} closed": partial(read, many),
        }
    )
    for connection in (*owners.values(), *jobs.values(), *others.values()):
        connection.close()
    medians = bench.compare("A run of the cleanup", samples, next(iter(samples)))
    first, second, *_ = medians.values()
    bench.limit(f"cleanup, {many:,} closed sessions / {few:,}", second / first, at_most=2)


def heartbeats(bench: Bench) -> None:
    """Measure 10,000 heartbeats of 5,000 active sessions on copies of one table with other indexes."""
    base = bench.database("heartbeats_ours")
    load_sessions(base, idle=0, active=5000, closed=45_000)
    with base.owner() as owner:
        owner.execute("VACUUM (ANALYZE)")
    layouts = {"our indexes": base}
    for name, statement in {
        "without ours": f"DROP INDEX IF EXISTS {', '.join(OURS)}",
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

    samples = in_turns({name: partial(beat, name) for name in layouts})
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
