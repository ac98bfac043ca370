"""What it costs to delete raw events: seal and list, and batches."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import peers
from benchmarks.bench import ROUNDS, Bench, Connection, Database, day, execute, in_turns, seconds
from conftest import run_file
from retention_steps import Retention

FOLDER = "archive_old_analytics"
DAYS_KEPT = 10
COUNT = "SELECT count(*) FROM analytics_event WHERE timestamp < %(cutoff)s::timestamptz"
RANGE = "timestamp BETWEEN %(first_at)s AND %(last_at)s"
SINGLE, BARE, IDS, DROP = "single DELETE", "bare DELETE, 1,000 a batch", "1,000 ids, recount, pause", "DETACH and DROP"

Batches = list[dict[str, Any]]


def retention(bench: Bench) -> None:
    """Sealing and listing the expired events of 40 days in steps, beside an index-only count(*) of them. Then deleting
    equal slices of them by delete_event_batch.sql, each batch of 1,000 a transaction on one open connection, without its
    rests, beside one single DELETE, as under pg_cron; beside a bare DELETE of each batch's range (no list, no policy);
    beside a cron job that deletes 1,000 ids at a time, counts what is left and pauses for 0.1 s; and beside copies of the
    slices that are partitions, which are detached and dropped as pg_partman does it (no proof that they were counted;
    nothing to vacuum). With 50 and with 5,000 websites."""
    for websites in (50, 5000):
        database = bench.database(f"retention_{websites}")
        with database.bulk():
            database.load(bench.events // 10, days_ago=DAYS_KEPT + 40, days=40, websites=websites)
            database.load(bench.events // 50, days_ago=DAYS_KEPT, days=DAYS_KEPT, websites=websites)
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
                owner,
                "UPDATE analytics_daily_stats SET sealed_at = NULL, late_pageviews = 0, late_custom_events = 0"
                ", late_ignored_events = 0",
            )
            execute(owner, "VACUUM analytics_daily_stats")
            return seconds(Retention(job, retention_days=DAYS_KEPT).seal)

        [expired] = execute(job, COUNT, {"cutoff": day(DAYS_KEPT)})
        samples = in_turns(
            {
                "count(*), index only": lambda: seconds(execute, job, COUNT, {"cutoff": day(DAYS_KEPT)}),
                "find_expired_days": lambda: seconds(Retention(job, retention_days=DAYS_KEPT).find),
                "find_expired_days + seal_days": seal_and_list,
            }
        )
        title = f"{expired['count']:,} expired events of 40 days, {websites:,} websites"
        medians = bench.compare(title, samples, "count(*), index only", rows=expired["count"])
        ratio = medians["find_expired_days + seal_days"] / medians["count(*), index only"]
        bench.limit(f"seal and list / count(*), index only, {websites:,} websites", ratio, at_most=10)
        size = "SELECT pg_total_relation_size('analytics_purge_batch') / sum(rows) AS bytes FROM analytics_purge_batch"
        bench.note(f"{websites:,} websites: the list has {execute(owner, size)[0]['bytes']:.0f} bytes per event.")


def deletions(bench: Bench, database: Database, websites: int) -> None:
    """Measure ways to delete a slice of the batches."""
    each: dict[str, list[float]] = {}
    log: dict[str, list[float]] = {}
    with database.owner() as owner, database.connect() as job:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats, analytics_purge_batch")

        def delete(batches: Batches) -> list[float]:
            return [seconds(execute, job, f"DELETE FROM analytics_event WHERE {RANGE}", whole(batches))]

        def by_list(batch: dict[str, Any]) -> float:
            began = time.perf_counter()
            [row] = run_file(job, f"{FOLDER}/delete_event_batch.sql", **batch)
            elapsed = time.perf_counter() - began
            assert row["result"]["left"] == 0, row["log"]
            return elapsed

        def drop(number: int) -> list[float]:
            names = [f"ALTER TABLE peer_event DETACH PARTITION peer_event_{number}", f"DROP TABLE peer_event_{number}"]
            return [sum(seconds(execute, owner, name) for name in names)]

        ways: dict[str, Callable[[Batches], list[float]]] = {
            SINGLE: delete,
            BARE: lambda part: [elapsed for batch in part for elapsed in delete([batch])],
            "delete_event_batch": lambda part: [by_list(batch) for batch in part],
        }
        if websites == 50:
            ways[IDS] = lambda part: peers.delete_by_ids(job, whole(part) | {"cutoff": day(DAYS_KEPT)})
        parts = slices(owner, Retention.batches(Retention(job, retention_days=DAYS_KEPT).plan()), ROUNDS * len(ways))
        rows = sum(batch["rows"] for batch in parts[0])
        left = iter(parts)

        def timed(name: str, way: Callable[[Batches], list[float]]) -> Callable[[], float]:
            def measure() -> float:
                part = next(left)
                owner.execute("CHECKPOINT")  # so that each way writes as many full page images
                position = log_position(owner)
                durations = way(part)
                each.setdefault(name, []).extend(durations)
                log.setdefault(name, []).append((log_position(owner) - position) / rows)
                [there] = execute(owner, f"SELECT count(*) AS rows FROM analytics_event WHERE {RANGE}", whole(part))
                assert there["rows"] == 0, f"{name} left rows"
                return sum(durations)

            return measure

        variants = {name: timed(name, way) for name, way in ways.items()}
        if websites == 50:
            partition(owner, parts[:ROUNDS])
            numbers = iter(range(ROUNDS))
            variants[DROP] = lambda: sum(drop(next(numbers)))
        samples = in_turns(variants)
    medians = bench.compare(f"Deleting {rows:,} events, {websites:,} websites", samples, SINGLE, BARE, rows=rows)
    bench.table(
        f"Each transaction, {websites:,} websites",
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
    if IDS in medians:
        pauses = medians[IDS] - len(parts[0]) * peers.PAUSE
        bench.note(f"{IDS}: {rows / pauses:,.0f} rows a second without its pauses.")
    ratio = medians["delete_event_batch"] / medians[SINGLE]
    bench.limit(f"batches / single DELETE, {websites:,} websites", ratio, at_most=3)
    per_row = {name: statistics.median(values) for name, values in log.items()}
    ratio = per_row["delete_event_batch"] / per_row[SINGLE]
    bench.limit(f"WAL of batches / of single DELETE, {websites:,} websites", ratio, at_most=1.1)


def whole(batches: Batches) -> dict[str, Any]:
    """The range of consecutive batches."""
    return {"first_at": batches[0]["first_at"], "last_at": batches[-1]["last_at"]}


def slices(owner: Connection, batches: Batches, number: int) -> list[Batches]:
    """So many slices of the batches, of equal size, each batch with its range."""
    bounds = {
        row["number"]: row
        for row in execute(owner, "SELECT number, rows, first_at, last_at FROM analytics_purge_batch")
    }
    bounded = [batch | bounds[batch["number"]] for batch in batches]
    size = len(bounded) // number
    return [bounded[start : start + size] for start in range(0, size * number, size)]


def partition(owner: Connection, parts: Iterable[Batches]) -> None:
    """Copy slices into a table of which each is a partition."""
    owner.execute("CREATE TABLE peer_event (LIKE analytics_event INCLUDING DEFAULTS) PARTITION BY RANGE (timestamp)")
    for number, part in enumerate(parts):
        name = f"peer_event_{number}"
        owner.execute(f"CREATE TABLE {name} (LIKE analytics_event INCLUDING ALL)".encode())
        execute(owner, f"INSERT INTO {name} SELECT * FROM analytics_event WHERE {RANGE}", whole(part))
        [bounds] = execute(owner, f"SELECT min(timestamp), max(timestamp) + '1 us'::interval AS max FROM {name}")
        owner.execute(
            f"ALTER TABLE peer_event ATTACH PARTITION {name} FOR VALUES FROM ('{bounds['min']}') TO ('{bounds['max']}')".encode()
        )


def log_position(connection: Connection) -> float:
    """How many bytes of write-ahead log there have been."""
    return float(execute(connection, "SELECT pg_current_wal_insert_lsn() - '0/0' AS bytes")[0]["bytes"])
