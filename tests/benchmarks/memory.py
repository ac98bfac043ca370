"""How much memory a task needs."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, Connection, Database, day, execute
from conftest import LOGIN, ROOT, SQL
from retention_steps import POLICY, Retention

ROUNDS = 3
DAYS_KEPT = 10
FEW, MANY = 10_000, 1_000_000

# What a task process does: it builds the operator, renders it, and executes it.
TASK = """
import json, re, resource, sys
from pathlib import Path
from types import SimpleNamespace
from web_analytics.postgres import BatchOperator, PostgresOperator
arguments = json.load(sys.stdin)
kind = BatchOperator if "steps" in arguments["parameters"] else PostgresOperator
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
    """Peak resident memory of a process that runs PostgresOperator, as a task does, with 10,000 and with 1,000,000
    events of one day in the table: aggregate_day.sql of that day, plan_batches.sql (up to 1,000 tasks), and three batches
    of delete_event_batch.sql; and the peak that the server's process for it allocated (where there is /proc).
    Ten million events would take minutes to load."""
    databases = {size: bench.database(f"memory_{size}") for size in (FEW, MANY)}
    for size, database in databases.items():
        with database.bulk():
            database.load(size, days_ago=DAYS_KEPT + 1)
        database.aggregate(DAYS_KEPT + 1, DAYS_KEPT + 1)
        with database.connect() as job:
            assert Retention(job, retention_days=DAYS_KEPT).seal() == []
    measured: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for _ in range(ROUNDS):
        for size, database in databases.items():
            with database.owner() as owner:
                for name in ("aggregate_day", "plan_batches", "delete_event_batch"):
                    memory_used = run_task(database, owner, operator(database, name))
                    measured.setdefault(name, {}).setdefault(size, []).append(memory_used)
    medians = {
        name: {
            size: [statistics.median(values) / 1e6 for values in zip(*pairs, strict=True)]
            for size, pairs in sizes.items()
        }
        for name, sizes in measured.items()
    }
    bench.table(
        f"Peak memory in MB, medians of {ROUNDS} processes",
        ["", f"task, {FEW:,} events", f"task, {MANY:,}", "ratio", f"server, {FEW:,} events", f"server, {MANY:,}"],
        [
            [
                name,
                *(f"{value:.1f}" for value in (few[0], many[0])),
                f"{many[0] / few[0]:.3f}",
                f"{few[1]:.1f}",
                f"{many[1]:.1f}",
            ]
            for name, (few, many) in ((name, (sizes[FEW], sizes[MANY])) for name, sizes in medians.items())
        ],
    )
    for name, sizes in medians.items():
        bench.limit(f"{name}: {MANY:,} / {FEW:,} events", sizes[MANY][0] / sizes[FEW][0], at_most=1.03)


def operator(database: Database, name: str) -> dict[str, Any]:
    """The arguments of the operator of a task."""
    folder = "aggregate_daily_analytics" if name == "aggregate_day" else "archive_old_analytics"
    parameters: dict[str, Any] = POLICY | {"retention_days": DAYS_KEPT, "kind": "event"}
    if name == "aggregate_day":
        parameters = {"days": [day(DAYS_KEPT + 1)[:10]], "label": "a day", "recount": False}
    if name == "delete_event_batch":
        with database.connect() as job:
            retention = Retention(job, retention_days=DAYS_KEPT)
            parameters = retention.policy | {"steps": Retention.batches(retention.plan())[:3]}
    return {
        "sql": (SQL / folder / f"{name}.sql").read_text(),
        "parameters": parameters,
        "session_settings": {"work_mem": "256MB"} if name == "aggregate_day" else {},
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


def allocated(pid: int) -> float:
    """The memory that a process has for itself alone, in bytes; 0 where that is not to be known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024.0 if found else 0
