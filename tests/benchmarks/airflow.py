"""What the jobs cost in Airflow: a task, an idle run, and a year of runs in its metadata database."""

import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg

from airflow_year import add_year, sizes
from at_work import DEFAULTS, AtWork
from benchmarks.bench import Bench, seconds
from conftest import LOGIN
from demo import AGGREGATE, ARCHIVE, CLEANUP, DAGS
from local_airflow import Airflow

TASKS = int(os.environ.get("TASKS", "120"))
BATCH = 1000
DAYS_KEPT, DAYS = 10, 20

PAGES = {
    "home: DAGs": "/ui/dags?limit=50&dag_runs_limit=14",
    "home: last day": "/ui/dashboard/historical_metrics_data?start_date={yesterday}",
    "grid: runs": f"/ui/grid/runs/{CLEANUP}?limit=25",
    "grid: tasks": f"/ui/grid/structure/{CLEANUP}?limit=25",
    "list of runs": f"/api/v2/dags/{CLEANUP}/dagRuns?limit=50&order_by=-run_after",
    "audit log": "/api/v2/eventLogs?limit=50&order_by=-when",
}
"""What the UI asks for, by what it shows."""


def airflow(bench: Bench) -> None:
    """In a real Airflow (scheduler, api-server, dag-processor, LocalExecutor, metadata in PostgreSQL): the mapped tasks of
    archive_old_analytics, 1000 rows each (TASKS=number: others than 120), per second, with the README's settings and
    preload and with Airflow's defaults; the CPU time of a cleanup run that finds nothing to do; then a year of the three
    DAGs in the metadata database: its rows and bytes, the scheduler's loop and the UI's answers, empty, after a year, and
    after `airflow db clean`. CPU times are those of all processes of Airflow and of PostgreSQL."""
    seed = bench.database("airflow_seed")
    with seed.bulk():
        seed.load(TASKS * BATCH, days_ago=DAYS_KEPT + DAYS, days=DAYS)
    seed.aggregate(DAYS_KEPT + DAYS)
    rates = {}
    for name, environment in (("as in the README", {}), ("Airflow's defaults", DEFAULTS)):
        bench.database("analytics", template="airflow_seed")
        with running(bench, environment) as at_work:
            at_work.run(AGGREGATE)
            idle = statistics.median(at_work.cpu(at_work.run, CLEANUP) for _ in range(3))
            before = measure(at_work) if not environment else {}
            cpu = at_work.cpu(at_work.run, ARCHIVE, confirm=True, retention_days=DAYS_KEPT, batch_size=BATCH)
            tasks, took = at_work.batches()
            rates[name] = [f"{tasks / took:.2f}", f"{BATCH * tasks / took:,.0f}", f"{cpu / tasks:.2f}", f"{idle:.2f}"]
            if not environment:
                rate = tasks / took
                year(bench, at_work, before)
    columns = ["", "tasks a second", "rows a second", "CPU s a task", "CPU s an idle cleanup run"]
    bench.table(f"{TASKS} tasks", columns, [[name, *values] for name, values in rates.items()])
    bench.limit("tasks a second", rate, at_least=6)


def year(bench: Bench, at_work: AtWork, empty: Mapping[str, float]) -> None:
    """Add a year's runs, and take them away again as docs/operations.md says."""
    runs = add_year(at_work.metadata, datetime.now(UTC))
    grown = sizes(at_work.metadata)
    full = measure(at_work)
    took = seconds(at_work.clean, datetime.now(UTC) - timedelta(days=35))
    at_work.metadata.execute("VACUUM (FULL, ANALYZE)")
    left = sizes(at_work.metadata)
    after = measure(at_work)
    bench.table(
        f"a year in the metadata database: {runs:,} runs; `airflow db clean` took {took:.0f} s",
        ["", "rows", "MB", "rows, cleaned", "MB, cleaned"],
        [
            [table, f"{rows:,}", f"{size / 1e6:.0f}", f"{left[table][0]:,}", f"{left[table][1] / 1e6:.0f}"]
            for table, (rows, size) in grown.items()
        ],
    )
    bench.table(
        "the scheduler's loop and the UI's answers, ms",
        ["", "empty", "after a year", "x empty", "cleaned", "x empty"],
        [
            [name, *(f"{value:.1f}" for value in (was, full[name], full[name] / was, after[name], after[name] / was))]
            for name, was in empty.items()
        ],
    )


def measure(at_work: AtWork) -> dict[str, float]:
    """Return milliseconds: of the scheduler's loop, idle, and of the UI's answers."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = {"scheduler's loop": at_work.loop()}
    for name, path in PAGES.items():
        answers = [seconds(at_work.airflow.call, "GET", path.format(yesterday=yesterday)) for _ in range(7)]
        found[name] = 1000 * statistics.median(answers)
    return found


@contextmanager
def running(bench: Bench, environment: Mapping[str, str]) -> Iterator[AtWork]:
    """An Airflow with an empty metadata database and this environment."""
    connection = {
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": bench.server.port,
        "schema": "analytics",
        "login": LOGIN,
        "extra": {"options": "-c search_path=analytics,public"},
    }
    with psycopg.connect(bench.server.dsn(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS airflow WITH (FORCE)")
        admin.execute("CREATE DATABASE airflow")
    state = bench.state / "airflow"
    state.mkdir(exist_ok=True)
    with (state / "lock").open("w") as lock, Airflow(state, bench.server, connection, lock.fileno()) as started:
        started.environment |= {"AIRFLOW__LOGGING__NAMESPACE_LEVELS": "airflow.jobs.scheduler_job_runner=debug"}
        started.environment |= environment
        started.run("db", "migrate")
        started.finish("db")
        started.start(triggerer=False)
        started.wait_for_dags(DAGS)
        with psycopg.connect(bench.server.dsn("airflow"), autocommit=True) as metadata:
            yield AtWork(bench.server, started, metadata)
