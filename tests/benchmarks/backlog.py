"""What a backlog of years costs: nothing grows with it but the number of steps and batches."""

import statistics
import time
from typing import Any

from benchmarks.bench import Bench, day, execute
from benchmarks.memory import allocated_at_most
from conftest import run_file
from retention_steps import POLICY, Retention

FOLDER = "archive_old_analytics"
DAYS_KEPT = 90


def backlog(bench: Bench) -> None:
    """A whole retention of nine months, as its tasks run it: find_expired_days.sql, seal_days.sql in steps, then
    delete_event_batch.sql for all batches on one connection, without its rests; for each kind of statement its number,
    median and longest, and the server process's own memory at the most."""
    database = bench.database("backlog", bench.traffic().name)
    took: dict[str, list[float]] = {}
    with database.owner() as owner, database.connect(work_mem="64MB") as job:
        retention = Retention(job, retention_days=DAYS_KEPT)

        def timed(file: str, **parameters: Any) -> Any:
            began = time.perf_counter()
            [row] = run_file(job, f"{FOLDER}/{file}.sql", **POLICY | {"retention_days": DAYS_KEPT} | parameters)
            took.setdefault(file, []).append(time.perf_counter() - began)
            return row["result"]

        with allocated_at_most(job.info.backend_pid) as peak:
            events, left = 0, 1
            while left:  # as many runs as it takes
                expired = timed("find_expired_days")
                events, left = events + expired["events"], expired["left_days"]
                for step in expired["steps"]:
                    assert timed("seal_days", **step) is None
                [size] = execute(owner, "SELECT pg_total_relation_size('analytics_purge_batch') AS bytes")
                for batch in Retention.batches(retention.plan()):
                    timed("delete_event_batch", **batch)
        [old] = execute(owner, f"SELECT count(*) AS rows FROM analytics_event WHERE timestamp < '{day(DAYS_KEPT)}'")
    assert old["rows"] == 0
    bench.table(
        f"{events:,} expired events",
        ["", "statements", "median ms", "longest ms", "all, s"],
        [
            [
                name,
                f"{len(values):,}",
                f"{statistics.median(values) * 1000:,.1f}",
                f"{max(values) * 1000:,.0f}",
                f"{sum(values):.1f}",
            ]
            for name, values in took.items()
        ],
    )
    bench.note(
        f"The list had {size['bytes'] / 1e6:.0f} MB, the server's process {peak[0] / 1e6:.0f} MB of its own at the most."
    )
    bench.limit("longest step, seconds", max(took["seal_days"]), at_most=30)
