"""What a backlog of years costs: nothing grows with it but the number of steps and batches."""

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, day, execute
from conftest import run_file
from retention_steps import POLICY, Retention

FOLDER = "archive_old_analytics"
DAYS_KEPT = 10
EVENTS = int(os.environ.get("BACKLOG", "5000000"))
DAYS = 300


def backlog(bench: Bench) -> None:
    """A whole retention of 5,000,000 expired events (BACKLOG=events: others) in 300 days of 50 websites, as its tasks
    run it: find_expired_days.sql, seal_days.sql in steps, then delete_event_batch.sql for all batches on one connection;
    for each kind of statement its number, median and longest, and the server process's own memory at the most."""
    database = bench.database("backlog")
    with database.bulk():
        for part in range(10):
            database.load(EVENTS // 10, days_ago=DAYS_KEPT + DAYS - part * DAYS // 10, days=DAYS // 10)
    for first in range(DAYS_KEPT + DAYS, DAYS_KEPT, -30):
        database.aggregate(first, max(first - 29, DAYS_KEPT + 1))
    took: dict[str, list[float]] = {}
    with database.owner() as owner, database.connect(work_mem="64MB") as job:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats")
        peak = Peak(job.info.backend_pid)

        def timed(file: str, **parameters: Any) -> Any:
            began = time.perf_counter()
            [row] = run_file(job, f"{FOLDER}/{file}.sql", **POLICY | {"retention_days": DAYS_KEPT} | parameters)
            took.setdefault(file, []).append(time.perf_counter() - began)
            return row["result"]

        expired = timed("find_expired_days")
        assert expired["left_days"] == 0
        for step in expired["steps"]:
            assert timed("seal_days", **step) is None
        [size] = execute(owner, "SELECT pg_total_relation_size('analytics_purge_batch') AS bytes")
        for batch in Retention.batches(Retention(job, retention_days=DAYS_KEPT).plan()):
            timed("delete_event_batch", **batch)
        memory = peak.stop()
        [left] = execute(owner, f"SELECT count(*) AS rows FROM analytics_event WHERE timestamp < '{day(DAYS_KEPT)}'")
    assert left["rows"] == 0
    bench.table(
        f"{expired['events']:,} expired events",
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
    bench.say(
        f"    the list had {size['bytes'] / 1e6:.0f} MB, the server's process {memory / 1e6:.0f} MB of its own at the most"
    )
    bench.limit("longest step, seconds", max(took["seal_days"]), at_most=30)


class Peak:
    """Watches how much memory a process of the server has for itself."""

    def __init__(self, pid: int) -> None:
        self.pid, self.bytes, self.ended = pid, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024.0)

    def stop(self) -> float:
        """The most that it had, in bytes."""
        self.ended.set()
        self.thread.join()
        return self.bytes
