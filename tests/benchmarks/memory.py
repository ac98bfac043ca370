"""How much memory a task needs."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregation_steps import AGGREGATE, DUE
from benchmarks.bench import Bench, Connection, Database, day, execute, progress
from conftest import LOGIN, ROOT, SQL
from plans import CLOSE, RETURNED, SETTINGS
from retention_steps import DELETE_EVENTS, DELETE_SESSIONS, FOLDER, POLICY, SEAL, Retention

DAYS_KEPT = 10
LIST_SESSIONS = f"{FOLDER}/list_sessions.sql"
# In an order in which each finds something to do.
FILES = (
    *(DUE, AGGREGATE, CLOSE, RETURNED, f"{FOLDER}/find_expired_days.sql", SEAL, f"{FOLDER}/plan_batches.sql"),
    *(DELETE_EVENTS, LIST_SESSIONS, DELETE_SESSIONS),
)

# What a task process does: it builds the operator, renders it, and executes it.
TASK = """
import json, re, resource, sys
from pathlib import Path
from types import SimpleNamespace
from web_analytics.postgres import BatchOperator, PostgresOperator
arguments = json.load(sys.stdin)
if "kind" in arguments:
    from web_analytics.archive import ArchiveOperator as kind
else:
    kind = BatchOperator if arguments.pop("batches") else PostgresOperator
operator = kind(task_id="task", **arguments)
context = {"ti": SimpleNamespace(dag_id="dag", task_id="task", map_index=-1), "params": {}}
operator.render_template_fields(context)
operator.execute(context)
if sys.platform == "linux":
    # There, ru_maxrss begins with the size of the process that started this one.
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, file=sys.stderr)
"""


def memory(bench: Bench) -> None:
    """Peak resident memory of a process that runs PostgresOperator or BatchOperator, as a task does, once for each SQL
    file of the three jobs, with few and with many events of one day and their sessions in the tables; and the peak that
    the server's process for it allocated (where there is /proc)."""
    few, many = bench.events // 1000, bench.events // 10
    found: dict[str, list[tuple[float, float]]] = {}
    for size in (few, many):
        database = bench.database(f"memory_{size}")
        with database.bulk():
            database.load(size, days_ago=DAYS_KEPT + 1, sessions=True)
        with database.owner() as owner:
            for file in FILES:
                if file == LIST_SESSIONS:
                    owner.execute("TRUNCATE analytics_event, analytics_purge_batch")
                progress(f"{file}, {size:,} events")
                arguments = operator(database, file)
                found.setdefault(file, []).append(run_task(database, owner, arguments))
    bench.compare(
        f"A task's process, {many:,} events",
        {Path(file).stem: [both[1][0] / 1e6] for file, both in found.items()},
        unit="MB",
    )
    bench.table(
        "Peak memory in MB, one process each",
        ["", f"task, {few:,} events", f"task, {many:,}", "ratio", f"server, {few:,} events", f"server, {many:,}"],
        [
            [
                Path(file).stem,
                *(f"{value / 1e6:.1f}" for value in (few_[0], many_[0])),
                f"{many_[0] / few_[0]:.3f}",
                *(f"{value / 1e6:.1f}" for value in (few_[1], many_[1])),
            ]
            for file, (few_, many_) in found.items()
        ],
    )
    ratios = {Path(file).stem: both[1][0] / both[0][0] for file, both in found.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    bench.limit(f"memory of a task, {many:,} / {few:,} events, {worst}", ratios[worst], at_most=1.05)


def operator(database: Database, file: str) -> dict[str, Any]:
    """The arguments of the operator of a task."""
    parameters: dict[str, Any] = POLICY | {
        "retention_days": DAYS_KEPT,
        "kind": "event",
        "after": None,
        "idle_minutes": 30,
        "done": 0,
        "days": [day(DAYS_KEPT + 1)[:10]],
        "label": "a day",
        "recount": False,
    }
    with database.connect() as job:
        retention = Retention(job, retention_days=DAYS_KEPT)
        if file.endswith("seal_days.sql"):
            parameters["steps"] = retention.find()["steps"]
        if file.endswith("_batch.sql"):
            kind = "event" if file == DELETE_EVENTS else "session"
            parameters |= {"retried": False, "steps": Retention.batches(retention.plan(kind))[:3]}
            assert parameters["steps"]
    return {
        "sql": (SQL / file).read_text(),
        "parameters": parameters,
        "session_settings": SETTINGS.get(file, {}),
        "batches": file.endswith(("_batch.sql", "_sessions.sql", "seal_days.sql")),
    }


def run_task(database: Database, owner: Connection, arguments: dict[str, Any]) -> tuple[float, float]:
    """Run an operator in a process; return the peak memory of it and of the server's process, in bytes."""
    port = database.server.port
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "dags"),
        "AIRFLOW_CONN_ANALYTICS_DB": (
            f"postgres://{LOGIN}@127.0.0.1:{port}/{database.name}?options=-c%20search_path%3Danalytics,public"
        ),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", TASK],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(arguments))
    process.stdin.close()
    process.stdin = None
    server_peak = 0.0
    while process.poll() is None:
        for row in execute(owner, "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'airflow:%%'", {}):
            server_peak = max(server_peak, allocated(row["pid"]))
        time.sleep(0.01)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the task failed: {errors}")
    return int(errors.split()[-1]), server_peak


@contextmanager
def allocated_at_most(pid: int) -> Iterator[list[float]]:
    """The most that a process has for itself alone, in bytes, while the block runs."""
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], allocated(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def allocated(pid: int) -> float:
    """The memory that a process has for itself alone, in bytes; 0 where that is not to be known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024.0 if found else 0
