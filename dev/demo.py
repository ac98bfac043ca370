"""`make demo`: the three DAGs at work in a real Airflow on a real PostgreSQL, both private to this folder.

Environment: KEEP=0 stops when the runs are over, by default all stays up until Ctrl-C. DATA=folder loads that
folder's `events.csv.gz` and `sessions.csv.gz` in place of made-up traffic. `ANALYTICS_*` settings reach the DAGs.
Everything is kept below `.state/`. Exits with 1 if something failed.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import psycopg
from psycopg import sql

import embedded
import output
import traffic
from local_airflow import READER, REPOSITORY, USER, Airflow
from sample import create_login

STATE = REPOSITORY / ".state"
HERE = Path(__file__).parent
SCHEMA = REPOSITORY / "dags" / "web_analytics" / "schema.py"
AGGREGATE, CLEANUP, ARCHIVE = DAGS = (
    "aggregate_daily_analytics",
    "cleanup_analytics_sessions",
    "archive_old_analytics",
)
TOKYO = traffic.WEBSITES[-1]
LISTED = 20  # batches shown of one task
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(steps: Callable[[ExitStack, int], int]) -> int:
    """Call `steps` with what stops all that it starts, also after Ctrl-C, and the descriptor of this folder's lock; return
    the exit code."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # meant for the user's own databases
    # A script in the background would otherwise ignore Ctrl-C; a closed terminal ends the demo as well.
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _exit)
    STATE.mkdir(exist_ok=True)
    try:
        with _lock() as lock, ExitStack() as stack:
            try:
                return steps(stack, lock)
            finally:
                for number in STOPPING:
                    signal.signal(number, signal.SIG_IGN)  # nothing is left half stopped
                line = output.Line("Stopping")
                stack.close()
                line.done("Stopped")
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, ValueError, OSError, psycopg.Error) as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1


def demo(stack: ExitStack, lock: int) -> int:
    """The steps of the demo; what they start is stopped by `stack`. Returns the exit code."""
    folder, keep = os.environ.get("DATA", ""), os.environ.get("KEEP", "1") != "0"
    print("\nWeb analytics jobs on Airflow, with a PostgreSQL of their own\n")
    line = output.Line("PostgreSQL")
    # What a power failure would take back is a demo's; a commit need not wait for the disk.
    server = embedded.start(STATE, "-c synchronous_commit=off")
    stack.callback(server.stop)
    line.done(f"PostgreSQL on port {server.port}")

    airflow = stack.enter_context(Airflow(STATE, server, connection(server), lock))
    airflow.environment.setdefault("ANALYTICS_IGNORED_EVENTS", "heartbeat")
    migrating = create_metadata(airflow, server)
    if not migrating:
        airflow.launch(triggerer=keep)
    prepare(server, Path(folder).resolve() if folder else None)
    if migrating:
        line = output.Line("Airflow's metadata database")
        airflow.finish("db")
        keep_metadata(server)
        airflow.launch(triggerer=keep)
        line.done("Airflow's metadata database, made once")
    line = output.Line("Airflow")
    airflow.log_in()
    airflow.wait_for_dags(DAGS)
    line.done(f"Airflow {version('apache-airflow')} on port {airflow.port}")
    ok = run_dags(airflow, server, is_sample=not folder)
    if keep:
        print(f"\n  Look around at {airflow.url} as user {USER} with password {airflow.password}")
        print("  Ctrl-C stops everything.", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
                airflow.check()
        print("\r", end="")
    return 0 if ok else 1


def connection(server: embedded.Server) -> dict[str, Any]:
    """Airflow's connection to the analytics database: a role that can do what the jobs need, and no more."""
    return {
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": server.port,
        "schema": "analytics",
        "login": "airflow_jobs",
        "extra": {"options": "-c search_path=analytics,public"},
    }


def create_metadata(airflow: Airflow, server: embedded.Server) -> bool:
    """Give Airflow a fresh metadata database, without the runs and the settings of the demo before.

    Migrating one takes seconds: done once per version of Airflow. Returns whether it is being done now.
    """
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        template = admin.execute("SELECT FROM pg_database WHERE datname = %s", [_template()]).fetchone() is not None
        create_database(admin, "airflow", _template() if template else "template1")
    if not template:
        airflow.run("db", "migrate")
    return not template


def keep_metadata(server: embedded.Server) -> None:
    """Keep the migrated, empty metadata database as the template of the next."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        create_database(admin, _template(), "airflow")


def prepare(server: embedded.Server, folder: Path | None) -> None:
    """A fresh analytics database: the application's tables, its traffic, then what the jobs need."""
    line = output.Line("Traffic")
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        create_database(admin, "analytics")
    with psycopg.connect(server.dsn("analytics")) as database:
        database.execute((HERE / "application.sql").read_bytes())
        rows = traffic.load(database, folder) if folder else traffic.sample(database, datetime.now(UTC))
    counts = f"{rows['analytics_event']:,} events in {rows['analytics_session']:,} sessions"
    line.done(f"Traffic of {folder.name}: {counts}" if folder else f"Sample traffic: {counts}")

    line = output.Line("Schema")
    installed = subprocess.run(
        [sys.executable, SCHEMA, server.dsn("analytics")], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        raise RuntimeError(installed.stderr.strip())
    with psycopg.connect(server.dsn("analytics")) as database:
        for login, role in (("airflow_jobs", "analytics_jobs"), (READER, "analytics_readers")):
            create_login(database, login, role)
        if not folder:
            database.execute("SET search_path = analytics, public")
            database.execute(
                "INSERT INTO analytics_website_policy (website_id, name) VALUES (%s, %s)", [TOKYO, "Tōkyō shop"]
            )
            zone = "INSERT INTO analytics_timezone (website_id, from_date, timezone) VALUES (%s, '-infinity', 'Asia/Tokyo')"
            database.execute(zone, [TOKYO])
    line.done("Daily stats table, indexes and grants")


def run_dags(airflow: Airflow, server: embedded.Server, is_sample: bool) -> bool:
    """Run the three DAGs and print what they changed. Returns whether all succeeded."""
    print()
    with psycopg.connect(server.dsn("analytics"), autocommit=True) as database:
        database.execute("SET search_path = analytics, public")
        due = output.due_sessions(database)
        aggregate = airflow.trigger(AGGREGATE)
        cleanup = airflow.trigger(CLEANUP)
        # Both are watched to their ends, whatever the first one's is.
        if not all([watch(airflow, AGGREGATE, aggregate), watch(airflow, CLEANUP, cleanup)]):
            return False
        output.daily_stats(database)
        if is_sample:
            # Somebody asked to be forgotten.
            output.erase_visitor(database)
            if not watch(airflow, AGGREGATE, airflow.trigger(AGGREGATE)):
                return False
        output.closed_sessions(database, due)
        before = output.raw_data(database)
        # A first run is unusual, and stops before it deletes, unless it is confirmed.
        archive = airflow.trigger(ARCHIVE, confirm=True)
        if not watch(airflow, ARCHIVE, archive):
            return False
        print_batches(airflow, archive)
        print(f"\n    Raw data before: {before}\n    Raw data after:  {output.raw_data(database)}")
        print("    PostgreSQL uses the space of deleted rows for new ones.")
    return True


def watch(airflow: Airflow, dag_id: str, run_id: str) -> bool:
    """Show a run's progress until it ends, name failed tasks with their logs; returns whether it succeeded."""
    line = output.Line(dag_id)
    run = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
    instances = f"{run}/taskInstances?limit=5"
    retried = set()
    progress = ""
    while (finished := airflow.call("GET", run))["state"] not in ("success", "failed"):
        active = airflow.call("GET", f"{instances}&state=running&state=up_for_retry")["task_instances"]
        for task in active:
            log = airflow.task_log(dag_id, run_id, task)
            if task["state"] == "up_for_retry" and log not in retried:
                retried.add(log)
                line.note(f"{task['task_id']} failed and will be tried again; its log is {log}")
        for task in active[:1]:
            progress = task["task_id"]
            if task["map_index"] >= 0:
                mapped = f"{instances}&task_id={progress}"
                done = airflow.call("GET", f"{mapped}&state=success")["total_entries"]
                what = "days" if progress == "aggregate_day" else "batches"
                progress += f": {done} of {airflow.call('GET', mapped)['total_entries']} {what} done"
        line.show(f"{dag_id:<27} {progress}")
        time.sleep(1)
    # The run's own time: it may have run beside another one that was watched before it.
    line.started -= max(0, finished["duration"] - (time.monotonic() - line.started))
    if finished["state"] == "success":
        line.done(f"{dag_id:<27} {airflow.call('GET', instances)['total_entries']} tasks")
        return True
    line.done(f"{dag_id:<27} failed", mark="✗")
    for task in airflow.call("GET", f"{instances}&state=failed")["task_instances"]:
        line.note(f"{task['task_id']} failed; its log is {airflow.task_log(dag_id, run_id, task)}")
    return False


def print_batches(airflow: Airflow, run_id: str) -> None:
    """Print the rows that each mapped task of the archive run says it has deleted."""
    for what in ("event", "session"):
        task = f"/api/v2/dags/{ARCHIVE}/dagRuns/{run_id}/taskInstances/delete_{what}_batch"
        mapped = airflow.call("GET", f"{task}/listMapped?limit={LISTED}&order_by=map_index")
        rows = []
        for batch in mapped["task_instances"]:
            deleted = airflow.call("GET", f"{task}/xcomEntries/return_value?map_index={batch['map_index']}")
            count = sum(result["rows"] for result in deleted["value"])
            rows.append((batch["rendered_map_index"], count, f"{batch['duration']:.1f} s"))
        print(f"\n    delete_{what}_batch, {mapped['total_entries']} mapped task(s)")
        if rows:
            output.table(("batch", "rows deleted", "took"), rows)
        if mapped["total_entries"] > len(rows):
            print(f"      and {mapped['total_entries'] - len(rows)} more")


def create_database(admin: psycopg.Connection, name: str, template: str = "template1") -> None:
    """Make a database anew, as a copy of another one."""
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)").format(**names))
    admin.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))


def _template() -> str:
    return f"airflow {version('apache-airflow')}"


@contextmanager
def _lock() -> Iterator[int]:
    """The file descriptor of a lock that only one demo in this folder has.

    A demo that was killed leaves the lock to its guard until that has stopped Airflow.
    """
    with (STATE / "lock").open("w") as file:
        for _ in range(200):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"Another `make demo` runs in {REPOSITORY}: stop it first")
        yield file.fileno()


def _exit(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(demo))
