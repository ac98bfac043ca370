"""What it costs to delete raw events: seal and list, and batches."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench import (
    ROUNDS,
    Bench,
    Connection,
    Database,
    day,
    execute,
    in_turns,
    seconds,
)
from conftest import run_file
from retention_steps import Retention

FOLDER = "archive_old_analytics"
DAYS_KEPT = 10
BATCH = 1000
SLICE = 25  # batches per measurement
WAYS = 3
COUNT = "SELECT count(*) FROM analytics_event WHERE timestamp < %(cutoff)s::timestamptz"
RANGE = "timestamp BETWEEN %(first_at)s AND %(last_at)s"


def retention(bench: Bench) -> None:
    """Sealing and listing the expired events of 40 days in steps, beside an index-only count(*) of them; then deleting
    25,000 of them in 25 batches of 1,000 by delete_event_batch.sql, each a transaction on one open connection, beside
    the same rows by a bare DELETE of their range (no list, no policy), and by one single DELETE; write-ahead log per row.
    With 50 and with 5,000 websites."""
    for websites in (50, 5000):
        database = bench.database(f"retention_{websites}")
        with database.bulk():
            database.load(ROUNDS * WAYS * SLICE * BATCH, days_ago=DAYS_KEPT + 40, days=40, websites=websites)
            database.load(100_000, days_ago=DAYS_KEPT, days=DAYS_KEPT, websites=websites)
        database.aggregate(DAYS_KEPT + 40)
        before(bench, database, websites)
        deletions(bench, database, websites)


def before(bench: Bench, database: Database, websites: int) -> None:
    """Measure the steps before the deletion; leave the list full."""
    with database.owner() as owner, database.connect(work_mem="64MB") as job:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats")

        def seal_and_list() -> float:
            execute(owner, "TRUNCATE analytics_purge_batch")
            execute(
                owner, "UPDATE analytics_daily_stats SET sealed_at = NULL, late_pageviews = 0, late_custom_events = 0"
            )
            execute(owner, "VACUUM analytics_daily_stats")
            return seconds(Retention(job, retention_days=DAYS_KEPT).seal)

        [expired] = execute(job, COUNT, {"cutoff": day(DAYS_KEPT)})
        samples = in_turns(
            {
                "count(*)": lambda: seconds(execute, job, COUNT, {"cutoff": day(DAYS_KEPT)}),
                "find_expired_days": lambda: seconds(Retention(job, retention_days=DAYS_KEPT).find),
                "find_expired_days + seal_days": seal_and_list,
            }
        )
        medians = bench.compare(
            f"{expired['count']:,} expired events of 40 days, {websites:,} websites",
            samples,
            "count(*)",
            rows=expired["count"],
        )
        ratio = medians["find_expired_days + seal_days"] / medians["count(*)"]
        bench.limit("seal and list / count(*)", ratio, at_most=80 if websites == 50 else 300)
        size = "SELECT pg_total_relation_size('analytics_purge_batch') / sum(rows) AS bytes FROM analytics_purge_batch"
        bench.say(f"    the list has {execute(owner, size)[0]['bytes']:.0f} bytes per event")


def deletions(bench: Bench, database: Database, websites: int) -> None:
    """Measure ways to delete a slice of the batches."""
    with database.owner() as owner, database.connect() as job:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats, analytics_purge_batch")
        full = Retention.batches(Retention(job, retention_days=DAYS_KEPT).plan())
        bounds = {
            row["number"]: row for row in execute(job, "SELECT number, first_at, last_at FROM analytics_purge_batch")
        }
        planned = [batch | bounds[batch["number"]] for batch in full]
        parts = iter(planned[start : start + SLICE] for start in range(0, len(planned), SLICE))
        each: dict[str, list[float]] = {}
        log: dict[str, list[float]] = {}

        def timed(name: str, way: Callable[[list[dict[str, Any]]], list[float]]) -> Callable[[], float]:
            def measure() -> float:
                part = next(parts)
                owner.execute("CHECKPOINT")  # so that each way writes as many full page images
                before = log_position(owner)
                durations = way(part)
                each.setdefault(name, []).extend(durations)
                log.setdefault(name, []).append((log_position(owner) - before) / (SLICE * BATCH))
                whole = {"first_at": part[0]["first_at"], "last_at": part[-1]["last_at"]}
                [left] = execute(owner, f"SELECT count(*) AS rows FROM analytics_event WHERE {RANGE}", whole)
                assert left["rows"] == 0, f"{name} left rows"
                return sum(durations)

            return measure

        def delete(parameters: dict[str, Any]) -> float:
            return seconds(execute, job, f"DELETE FROM analytics_event WHERE {RANGE}", parameters)

        def by_list(batch: dict[str, Any]) -> float:
            began = time.perf_counter()
            [row] = run_file(job, f"{FOLDER}/delete_event_batch.sql", **batch)
            elapsed = time.perf_counter() - began
            assert row["result"]["left"] == 0, row["log"]
            return elapsed

        ways = {
            "single DELETE": lambda part: [delete({"first_at": part[0]["first_at"], "last_at": part[-1]["last_at"]})],
            "bare DELETE, 1,000 a batch": lambda part: [delete(batch) for batch in part],
            "delete_event_batch": lambda part: [by_list(batch) for batch in part],
        }
        samples = in_turns({name: timed(name, way) for name, way in ways.items()})
        rows = SLICE * BATCH
        bare = "bare DELETE, 1,000 a batch"
        medians = bench.compare(
            f"Deleting {rows:,} events, {websites:,} websites", samples, "single DELETE", bare, rows=rows
        )
        bench.table(
            "Each transaction",
            ["", "median ms", "longest ms", "WAL bytes/row"],
            [
                [
                    name,
                    f"{statistics.median(each[name]) * 1000:.1f}",
                    f"{max(each[name]) * 1000:.1f}",
                    f"{statistics.median(log[name]):.0f}",
                ]
                for name in ways
            ],
        )
        bench.limit("batches by the list / bare batches", medians["delete_event_batch"] / medians[bare], at_most=6)
        per_row = {name: statistics.median(values) for name, values in log.items()}
        bench.limit("WAL of batches / of single", per_row["delete_event_batch"] / per_row["single DELETE"], at_most=1.2)


def log_position(connection: Connection) -> float:
    """How many bytes of write-ahead log there have been."""
    return float(execute(connection, "SELECT pg_current_wal_insert_lsn() - '0/0' AS bytes")[0]["bytes"])
