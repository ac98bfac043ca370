"""What it costs to delete raw events: proof, plan, and batches."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench import ROUNDS, Bench, Connection, day, execute, in_turns, policy, run, seconds

FOLDER = "archive_old_analytics"
DAYS_KEPT = 10
BATCH = 1000
SLICE = 50  # batches per measurement
WAYS = 4

RANGE = """
(timestamp, id) > (%(lo_timestamp)s::timestamptz, %(lo_id)s)
AND (timestamp, id) <= (%(hi_timestamp)s::timestamptz, %(hi_id)s)
"""
BARE_DELETE = f"DELETE FROM analytics_event WHERE {RANGE}"


def retention(bench: Bench) -> None:
    """Deleting 50,000 of 1,000,000 expired events in 50 batches of 1,000 by delete_event_batch.sql, each a transaction
    on one open connection, beside the same ranges by a bare DELETE (no proof, no policy, no lock), beside batches of
    10,000, and beside one single DELETE; write-ahead log per row; and the steps before: prove_days.sql,
    count_expired.sql and plan_event_batches.sql, beside an index-only count(*) of the expired events."""
    database = bench.database("retention")
    with database.bulk():
        database.load(ROUNDS * WAYS * SLICE * BATCH, days_ago=DAYS_KEPT + 40, days=40)
        database.load(100_000, days_ago=DAYS_KEPT, days=DAYS_KEPT)
    database.aggregate(DAYS_KEPT + 40)
    with database.owner() as owner, database.connect(work_mem="64MB") as prover, database.connect() as job:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats")
        batches = before(bench, prover, job)
        deletions(bench, owner, job, batches)


def before(bench: Bench, prover: Connection, job: Connection) -> list[dict[str, Any]]:
    """Measure the steps before the deletion; return the planned batches."""
    parameters = policy(DAYS_KEPT)
    assert run(prover, f"{FOLDER}/prove_days.sql", **parameters) == []
    expired = run(job, f"{FOLDER}/count_expired.sql", **parameters)[0]["events"]
    plan = parameters | {"expired": expired, "batch_size": BATCH, "dry_run": False}
    count = "SELECT count(*) FROM analytics_event WHERE timestamp < %(cutoff)s::timestamptz"
    samples = in_turns(
        {
            "count(*)": lambda: seconds(execute, job, count, {"cutoff": day(DAYS_KEPT)}),
            "prove_days": lambda: seconds(run, prover, f"{FOLDER}/prove_days.sql", **parameters),
            "count_expired": lambda: seconds(run, job, f"{FOLDER}/count_expired.sql", **parameters),
            "plan_event_batches": lambda: seconds(run, job, f"{FOLDER}/plan_event_batches.sql", **plan),
        }
    )
    medians = bench.compare(f"{expired:,} expired events of 40 days and 50 websites", samples, "count(*)")
    bench.limit("prove_days / count(*)", medians["prove_days"] / medians["count(*)"], at_most=12)
    bench.limit("plan_event_batches / count(*)", medians["plan_event_batches"] / medians["count(*)"], at_most=16)
    batches = run(job, f"{FOLDER}/plan_event_batches.sql", **plan)
    assert [batch["batches"] for batch in batches] == [1] * (expired // BATCH)
    return list(batches)


def deletions(bench: Bench, owner: Connection, job: Connection, batches: list[dict[str, Any]]) -> None:
    """Measure ways to delete a slice of the batches."""
    parts = iter(batches[start : start + SLICE] for start in range(0, len(batches), SLICE))
    longest: dict[str, list[float]] = {}
    log: dict[str, list[float]] = {}

    def timed(name: str, way: Callable[[list[dict[str, Any]]], list[float]]) -> Callable[[], float]:
        def measure() -> float:
            part = next(parts)
            owner.execute("CHECKPOINT")  # so that each way writes as many full page images
            before = log_position(owner)
            began = time.perf_counter()
            durations = way(part)
            elapsed = time.perf_counter() - began
            longest.setdefault(name, []).extend(durations)
            log.setdefault(name, []).append((log_position(owner) - before) / (SLICE * BATCH))
            [left] = execute(owner, f"SELECT count(*) AS rows FROM analytics_event WHERE {RANGE}", whole(part))
            assert left["rows"] == 0, f"{name} left rows"
            return elapsed

        return measure

    def single(part: list[dict[str, Any]]) -> list[float]:
        return [seconds(execute, job, BARE_DELETE, whole(part))]

    def bare(part: list[dict[str, Any]]) -> list[float]:
        return [seconds(execute, job, BARE_DELETE, batch) for batch in part]

    def batch_by_batch(part: list[dict[str, Any]]) -> list[float]:
        return [seconds(run, job, f"{FOLDER}/delete_event_batch.sql", **batch) for batch in part]

    def large(part: list[dict[str, Any]]) -> list[float]:
        tens = [whole(part[start : start + 10]) for start in range(0, SLICE, 10)]
        return batch_by_batch([batch | {"batch_size": 10 * BATCH} for batch in tens])

    ways = {
        "single DELETE": single,
        "bare DELETE, 1,000 a batch": bare,
        "delete_event_batch, 1,000": batch_by_batch,
        "delete_event_batch, 10,000": large,
    }
    samples = in_turns({name: timed(name, way) for name, way in ways.items()})
    rows = SLICE * BATCH
    medians = bench.compare(
        f"Deleting {rows:,} events", samples, "single DELETE", "bare DELETE, 1,000 a batch", rows=rows
    )
    bench.table(
        "Each transaction",
        ["", "median ms", "longest ms", "WAL bytes/row"],
        [
            [
                name,
                f"{statistics.median(longest[name]) * 1000:.1f}",
                f"{max(longest[name]) * 1000:.1f}",
                f"{statistics.median(log[name]):.0f}",
            ]
            for name in ways
        ],
    )
    base = medians["single DELETE"]
    bench.limit("batches of 1,000 / single DELETE", medians["delete_event_batch, 1,000"] / base, at_most=12)
    bench.limit("batches of 10,000 / single DELETE", medians["delete_event_batch, 10,000"] / base, at_most=8)
    per_row = {name: statistics.median(values) for name, values in log.items()}
    bench.limit(
        "WAL of batches / of single", per_row["delete_event_batch, 1,000"] / per_row["single DELETE"], at_most=1.2
    )


def whole(part: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of several consecutive batches as one."""
    return part[0] | {key: part[-1][key] for key in ("hi_timestamp", "hi_id")}


def log_position(connection: Connection) -> float:
    """How many bytes of write-ahead log there have been."""
    return float(execute(connection, "SELECT pg_current_wal_insert_lsn() - '0/0' AS bytes")[0]["bytes"])
