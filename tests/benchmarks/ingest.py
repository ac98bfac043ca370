"""What the application notices of the jobs: the latency of its writes, and its waits for our locks."""

import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.bench import ROUNDS, Bench, Connection, Database, day, progress, seconds
from benchmarks.sessions import load_sessions
from conftest import run_file
from retention_steps import POLICY, Retention

RATE = 600  # statements per second, one half inserts of events, one half heartbeats
SECONDS = 2
CONNECTIONS = 6
DAYS_KEPT = 10
IDLE, ACTIVE = 60_000, 5000

INSERT = """
INSERT INTO analytics_event (
    id, website_id, event_type, pathname, referrer, referrer_source, visitor_id, session_id, browser, os, device_type,
    country, timestamp
) VALUES (
    'anevt_' || gen_random_uuid(), 'website 01', 'pageview', '/products/item-1', 'https://www.google.com/', 'google',
    md5('visitor'), 'sess_1', 'Chrome', 'Windows', 'desktop', 'DE', now()
);
"""
# One heartbeat in ten is of a visitor who comes back to a session that is about to be closed.
HEARTBEAT = f"""
\\set session case when random(1, 10) > 1 then random({IDLE + 1}, {IDLE + ACTIVE}) else random(1, {IDLE}) end
UPDATE analytics_session
SET last_activity_at = now(), pageviews = pageviews + 1, exit_page = '/sale', updated_at = now()
WHERE session_id = 'sess_' || :session AND deleted_at IS NULL;
"""

WAITING = re.compile(r"ingest\|LOG: +process (\d+) still waiting for (.+) after [\d.]+ ms")
HOLDER = re.compile(r"ingest\|DETAIL: +Process(?:es)? holding the lock: ([\d, ]+)\.")
ACQUIRED = re.compile(r"ingest\|LOG: +process (\d+) acquired (.+) after ([\d.]+) ms")

Statement = Callable[[Connection], Any]


class Rest(float):
    """How many seconds a task rests after a statement."""


@dataclass
class Noticed:
    """What the application noticed of one job, over all rounds."""

    latencies: list[list[float]] = field(default_factory=list)
    """Milliseconds, by round."""
    waits: list[float] = field(default_factory=list)
    """Milliseconds that the application waited for a lock of the job's."""
    statements: list[float] = field(default_factory=list)
    """Milliseconds that the job's statements took."""

    def percentile(self, percent: int) -> float:
        """The median of the rounds' percentiles."""
        return statistics.median(statistics.quantiles(values, n=100)[percent - 1] for values in self.latencies)


def ingest(bench: Bench) -> None:
    """The application's writes, alone and beside each job, which runs flat out; delete_event_batch.sql also with the rests
    that its task takes. The writes come from pgbench, open loop at 600/s on 6 connections: one half inserts of events,
    one half heartbeats, one in ten of which is of a session that is about to be closed. Latency is counted from when a
    statement was due, and only while the job is running. Waits are those of more than 1 ms for a lock that a job held."""
    base = bench.database("ingest_base")
    with base.bulk():
        base.load(600_000, days_ago=DAYS_KEPT + 40, days=40)
        base.load(100_000, days_ago=DAYS_KEPT, days=DAYS_KEPT - 1)
        base.load(200_000, days_ago=1)
        load_sessions(base, idle=IDLE, active=ACTIVE, closed=100_000)
    base.aggregate(DAYS_KEPT + 40)
    with base.connect(work_mem="64MB") as job:
        steps = Retention(job, retention_days=DAYS_KEPT).find()["steps"]
        assert Retention(job, retention_days=DAYS_KEPT).seal() == []
    scripts = [bench.state / "insert.sql", bench.state / "heartbeat.sql"]
    for script, text in zip(scripts, (INSERT, HEARTBEAT), strict=True):
        script.write_text(text)

    noticed: dict[str, Noticed] = {}
    for number in range(ROUNDS):
        database = bench.database("ingest_copy", base.name)
        jobs = prepare(database, steps)
        write_and_run(bench, database, scripts, 0, iter(()), Noticed())  # warm up
        names = list(jobs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            progress(f"round {number + 1} of {ROUNDS}: {name}")
            connections, statements = jobs[name]
            write_and_run(bench, database, scripts, connections, statements, noticed.setdefault(name, Noticed()))
    report(bench, {name: noticed[name] for name in names})


def prepare(database: Database, steps: list[dict[str, Any]]) -> dict[str, tuple[int, Iterator[Statement]]]:
    """Return the jobs by name: on how many connections they run, and their statements."""
    from web_analytics.settings import settings

    retention = "archive_old_analytics"
    with database.connect() as job:
        planned = Retention.batches(Retention(job, retention_days=DAYS_KEPT).plan())

    def statement(file: str, **values: Any) -> Statement:
        return lambda connection: run_file(connection, file, **values)

    def deletions(part: list[dict[str, Any]], rest: float = 0) -> Iterator[Statement]:
        return iter([resting(statement(f"{retention}/delete_event_batch.sql", **batch), rest) for batch in part])

    def resting(delete: Statement, rest: float) -> Statement:
        return lambda connection: Rest(rest * seconds(delete, connection))

    aggregation = "aggregate_daily_analytics"
    close = statement("cleanup_analytics_sessions/close_idle_sessions.sql", idle_minutes=30, batch_size=1000, done=0)
    yesterday = {"days": [day(1)[:10]], "label": "yesterday", "recount": False}
    aggregate = statement(f"{aggregation}/aggregate_day.sql", **yesterday)
    # They were sealed: this reads and hashes their events, and writes nothing.
    reseal = statement(f"{retention}/seal_days.sql", **POLICY | {"retention_days": DAYS_KEPT} | steps[0])
    return {
        "nothing": (0, iter(())),
        "find_due_days": (1, repeat(statement(f"{aggregation}/find_due_days.sql"))),
        "aggregate_day, 200,000 events": (1, repeat(aggregate)),
        "close_idle_sessions": (1, repeat(close, IDLE // 1000)),
        "seal_days": (1, repeat(reseal)),
        "delete_event_batch, with rests": (1, deletions(planned[::3], rest=settings.batch_rest)),
        "delete_event_batch, flat out": (1, deletions(planned[1::3])),
        "delete_event_batch, 2 at a time": (2, deletions(planned[2::3])),
    }


def write_and_run(
    bench: Bench, database: Database, scripts: list[Path], count: int, statements: Iterator[Statement], noticed: Noticed
) -> None:
    """Let the application write for a while, and the job run beside it on `count` connections; note what happened."""
    logged = bench.server.log.stat().st_size
    prefix = bench.state / "latency"
    command = [
        *(str(bench.server.programs / "pgbench"), "-h", "127.0.0.1", "-p", str(bench.server.port), "-U", "postgres"),
        *("-n", "-M", "prepared", "-c", str(CONNECTIONS), "-R", str(RATE), "-T", str(SECONDS)),
        *("-l", "--log-prefix", str(prefix), *(f"--file={script}" for script in scripts), database.name),
    ]
    environment = os.environ | {"PGAPPNAME": "ingest", "PGOPTIONS": "-c search_path=analytics,public"}
    with ExitStack() as stack:
        connections = [stack.enter_context(database.connect(work_mem="256MB")) for _ in range(count)]
        pgbench = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.3)  # it connects
        began = time.time()
        until = began + SECONDS - 0.5
        elapsed = work(connections, statements, until)
        ended = time.time() if count else until
        _, errors = pgbench.communicate()
        if pgbench.returncode:
            raise RuntimeError(f"pgbench failed: {errors}")
        pids = {connection.info.backend_pid for connection in connections}
    latencies = []
    for file in prefix.parent.glob(f"{prefix.name}.*"):
        for line in file.read_text().splitlines():
            _, _, latency, _, epoch, micros, *_ = map(int, line.split())
            due = epoch + (micros - latency) / 1e6
            if began <= due <= ended:
                latencies.append(latency / 1000)
        file.unlink()
    noticed.latencies.append(latencies)
    noticed.statements += elapsed
    with bench.server.log.open() as log:
        log.seek(logged)
        noticed.waits += waits(log.read(), pids)


def work(connections: list[Connection], statements: Iterator[Statement], until: float) -> list[float]:
    """Run statements on all connections until the time is over or there are none left; return how long each took."""
    elapsed = []
    lock = threading.Lock()

    def worker(connection: Connection) -> None:
        while time.time() < until:
            with lock:
                statement = next(statements, None)
            if statement is None:
                return
            began = time.perf_counter()
            done = statement(connection)
            elapsed.append((time.perf_counter() - began) * 1000)
            if isinstance(done, Rest):
                time.sleep(done)

    threads = [threading.Thread(target=worker, args=[connection]) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return elapsed


def waits(log: str, pids: set[int]) -> list[float]:
    """How long the application waited for locks that these processes held, in milliseconds."""
    found = []
    waiting, ours = "", set()
    for line in log.splitlines():
        if match := WAITING.match(line):
            waiting = match[1]
        elif match := HOLDER.match(line):
            if pids & set(map(int, match[1].split(","))):
                ours.add(waiting)
        elif (match := ACQUIRED.match(line)) and match[1] in ours:
            ours.discard(match[1])
            found.append(float(match[3]))
    return found


def report(bench: Bench, noticed: Mapping[str, Noticed]) -> None:
    """Print what the application noticed of each job."""
    idle = noticed["nothing"]
    bench.table(
        f"Latency of the application's writes, {RATE}/s",
        [
            *("beside", "writes", "p50 ms", "p99 ms", "max ms", "p50 x nothing", "p99 x nothing"),
            *("our statements", "longest ms", "waits for us", "longest ms"),
        ],
        [
            [
                name,
                f"{sum(map(len, its.latencies)):,}",
                *(f"{value:.1f}" for value in (its.percentile(50), its.percentile(99), max(map(max, its.latencies)))),
                *(f"{its.percentile(percent) / idle.percentile(percent):.1f}" for percent in (50, 99)),
                *(f"{len(its.statements):,}", f"{max(its.statements, default=0):.0f}"),
                *(f"{len(its.waits):,}", f"{max(its.waits, default=0):.1f}"),
            ]
            for name, its in noticed.items()
        ],
    )
    for name, its in noticed.items():
        if its.waits:
            bench.limit(f"longest wait / longest statement, {name}", max(its.waits) / max(its.statements), at_most=1)
    p99 = {
        name: [statistics.quantiles(values, n=100)[98] / 1000 for values in its.latencies]
        for name, its in noticed.items()
    }
    medians = bench.compare("99th percentile of the latency", p99, "nothing")
    for name in ("with rests", "flat out"):
        ratio = medians[f"delete_event_batch, {name}"] / medians["nothing"]
        bench.limit(f"p99 of writes beside delete_event_batch {name} / alone", ratio, at_most=1.5)
