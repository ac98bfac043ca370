"""`make try-celery`: the three DAGs under other executors and bundles, each in a real Airflow with a PostgreSQL of its own.

First with faults: CeleryExecutor on a real Redis, two workers with homes of their own, GitDagBundle. While batches are
deleted, a worker is killed with all its processes, Redis is killed and comes back, and a commit renames the SQL file of
the batches. What is in the database then is compared with a copy of the raw data. After that, TASKS (by default 100; 0:
none) mapped tasks are timed per deployment, with the settings of the README and with Airflow's defaults.

Airflow waits 300 seconds until it gives up a worker that is silent, and 600 for a task that no worker has begun; here it
is 20 and 60, so that the script takes minutes. Exits with 0 only if everything was right.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

import demo
import embedded
import output
import sinks
from at_work import DEFAULTS, AtWork
from demo import AGGREGATE, ARCHIVE, CLEANUP, DAGS
from local_airflow import PROGRAMS, Airflow, terminate
from repository import Repository

STATE = demo.STATE / "executors"
SOURCE = STATE / "repository"  # the git repository that GitDagBundle follows
TASKS = int(os.environ.get("TASKS") or 100)
BATCHES = 220
WORKERS = ("worker-1", "worker-2")
DAYS_KEPT, FEWER_DAYS_KEPT = 90, 83
LOCAL, GIT = "LocalDagBundle", "GitDagBundle"

FAULTS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",  # by default a commit is seen after up to 300 seconds
    "ANALYTICS_BATCH_PAUSE_SECONDS": "0.5",  # so that there is always a batch at work to be killed
    "ANALYTICS_ALERT_BEHIND_HOURS": "8760",  # at first no day is counted yet, which is no fault
    "ANALYTICS_ALERT_EMAIL": sinks.ADDRESS,
}
GAPS = "timestamp < %(today)s - interval '97 days'" + "".join(
    # Where a cutoff may be, no row is: whenever midnight passes, in any time zone, the same rows have expired.
    f" OR timestamp BETWEEN %(today)s - interval '{days + 1} days' AND %(today)s - interval '{days - 2} days'"
    for days in (DAYS_KEPT, FEWER_DAYS_KEPT)
)
WITNESS = f"""
DELETE FROM analytics_event WHERE {GAPS};
DELETE FROM analytics_session WHERE {GAPS.replace("timestamp", "last_activity_at")};
CREATE SCHEMA witness;
CREATE TABLE witness.event AS SELECT * FROM analytics_event;
CREATE TABLE witness.session AS SELECT * FROM analytics_session
"""
# Each of them returns a row per difference.
CHECKS = {
    "events that should be gone, or should be there": """
        SELECT id FROM witness.event AS raw FULL JOIN analytics_event AS left_over USING (id)
        WHERE (left_over.id IS NULL) IS DISTINCT FROM (raw.timestamp < %(cutoff)s)
    """,
    "sessions that should be gone, or should be there": """
        SELECT id FROM witness.session AS raw FULL JOIN analytics_session AS left_over USING (id)
        WHERE (left_over.id IS NULL) IS DISTINCT FROM (
            raw.last_activity_at < %(cutoff)s AND NOT EXISTS (
                SELECT FROM witness.event WHERE session_id = raw.session_id AND timestamp >= %(cutoff)s
            )
        )
    """,
    "days whose statistics are not the counts of before": """
        SELECT website_id, date
        FROM (
            SELECT website_id, (timestamp AT TIME ZONE CASE website_id WHEN %(tokyo)s THEN 'Asia/Tokyo' ELSE 'UTC' END)::date,
                count(*) FILTER (WHERE event_type = 'pageview'),
                count(*) FILTER (WHERE event_type = 'custom_event' AND event_name IS DISTINCT FROM 'heartbeat'),
                count(DISTINCT visitor_id), count(DISTINCT session_id)
            FROM witness.event WHERE deleted_at IS NULL GROUP BY 1, 2
        ) AS counted (website_id, date, pageviews, custom_events, visitors, sessions)
        FULL JOIN analytics_daily_stats USING (website_id, date)
        WHERE (date < %(cutoff)s::date OR date < %(today)s::date - 1
            AND EXISTS (SELECT FROM analytics_job_run WHERE job = 'aggregate_daily_analytics'))
        AND (pageviews, custom_events, visitors, sessions)
            IS DISTINCT FROM (total_pageviews, total_custom_events, unique_visitors, unique_sessions)
    """,
    "days with events that were counted a second time": """
        SELECT website_id FROM analytics_daily_stats WHERE late_pageviews + late_custom_events + late_ignored_events > 0
    """,
    "rows that are listed and were not deleted": "SELECT FROM analytics_purge_batch",
    "sessions that are idle and open": """
        SELECT id FROM analytics_session
        WHERE ended_at IS NULL AND deleted_at IS NULL AND last_activity_at < %(now)s - interval '31 minutes'
            AND EXISTS (SELECT FROM analytics_job_run WHERE job = 'cleanup_analytics_sessions')
    """,
    "runs that did not succeed": "SELECT run_id FROM analytics_job_run WHERE outcome IS DISTINCT FROM 'success'",
}


def try_executors(stack: ExitStack, lock: int) -> int:
    """Run and time all deployments; print a table; return the exit code."""
    if not shutil.which("redis-server"):
        raise RuntimeError(
            "redis-server is not on PATH: install Redis, for example with `apt-get install redis-server`"
        )
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir()
    print("\nThe three DAGs under other executors and bundles\n")
    server = embedded.start(demo.STATE, "-c synchronous_commit=off")
    stack.callback(server.stop)
    demo.prepare(server, None)
    now = datetime.now(UTC)
    with psycopg.connect(server.dsn("analytics")) as database:
        moments = {"now": now, "today": now.replace(hour=0, minute=0, second=0, microsecond=0)}
        with psycopg.ClientCursor(database) as cursor:
            cursor.execute(WITNESS.encode(), moments)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        demo.create_database(admin, "seed", "analytics")
    repository = Repository(SOURCE)

    rows: list[tuple[str, ...]] = []
    mail = stack.enter_context(sinks.mail_server())
    with deployed(server, lock, "CeleryExecutor", GIT, FAULTS | {"AIRFLOW_CONN_SMTP_DEFAULT": mail[1]}) as at_work:
        wrong = faults(at_work, server, moments, repository)
    if len(mail[0]) > 1:
        wrong.append(f"{len(mail[0])} mails: {', '.join(received['Subject'] for received in mail[0])}")
    rows.append(("CeleryExecutor", GIT, "README", f"{BATCHES} batches, faults", "wrong" if wrong else "right", "", ""))
    for executor, bundle in (("LocalExecutor", LOCAL), ("LocalExecutor", GIT), ("CeleryExecutor", GIT)):
        for settings, environment in (("README", {}), ("defaults", DEFAULTS)) if TASKS else ():
            line = output.Line(f"{executor}, {bundle}, {settings}")
            with deployed(server, lock, executor, bundle, environment) as at_work:
                size = batch_size(server, TASKS)
                cpu = at_work.cpu(at_work.run, ARCHIVE, confirm=True, batch_size=size)
                tasks, took = at_work.batches()
                found = differences(server, moments, DAYS_KEPT)
            wrong += found
            rates = (f"{tasks / took:.2f}", f"{cpu / tasks:.2f}")
            rows.append((executor, bundle, settings, f"{tasks} batches", "wrong" if found else "right", *rates))
            line.done(f"{executor}, {bundle}, {settings}: {tasks} batches")
    print()
    output.table(("executor", "bundle", "settings", "run", "result", "tasks a second", "CPU s a task"), rows)
    for sentence in wrong:
        print(f"  ✗ {sentence}")
    return 1 if wrong else 0


@contextmanager
def deployed(
    server: embedded.Server, lock: int, executor: str, bundle: str, environment: Mapping[str, str]
) -> Iterator[AtWork]:
    """An Airflow with an empty metadata database. Each machine of the deployment is a folder: its AIRFLOW_HOME."""
    path = {LOCAL: f"airflow.dag_processing.bundles.local.{LOCAL}", GIT: f"airflow.providers.git.bundles.git.{GIT}"}
    where = {
        LOCAL: {"path": str(SOURCE / "dags")},
        GIT: {"repo_url": str(SOURCE), "tracking_ref": "main", "subdir": "dags"},
    }
    bundles = [{"name": "web-analytics", "classpath": path[bundle], "kwargs": where[bundle]}]
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        demo.create_database(admin, "analytics", "seed")
    with Airflow(STATE, server, demo.connection(server), lock) as airflow:
        port = embedded.free_port()
        airflow.environment |= {
            "AIRFLOW__CORE__EXECUTOR": executor,
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(STATE / "airflow" / "bundles"),
            "AIRFLOW_CONN_GIT_DEFAULT": '{"conn_type": "git"}',
            "ANALYTICS_IGNORED_EVENTS": "heartbeat",
            # No run comes by itself.
            **{f"ANALYTICS_{job}_SCHEDULE": "0 0 29 2 *" for job in ("AGGREGATE", "CLEANUP", "ARCHIVE")},
            **environment,
        }
        if demo.create_metadata(airflow, server):
            airflow.finish("db")
            demo.keep_metadata(server)
        if executor == "CeleryExecutor":
            shutil.rmtree(STATE / "appendonlydir", ignore_errors=True)  # another deployment's
            # Comes back two seconds after it was killed, with what it had: the append-only file.
            redis = f"redis-server --bind 127.0.0.1 --port {port} --save '' --appendonly yes"
            airflow.run("redis", command=("sh", "-c", f"while :; do {redis}; sleep 2; done"))
            for worker in WORKERS:
                home = STATE / worker
                airflow.run(
                    worker,
                    command=(PROGRAMS / "airflow", "celery", "worker", "--celery-hostname", worker),
                    AIRFLOW_HOME=str(home),
                    AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH=str(home / "bundles"),
                    AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(embedded.free_port()),
                )
        airflow.start(triggerer=False)
        airflow.wait_for_dags(DAGS)
        with psycopg.connect(server.dsn("airflow"), autocommit=True) as metadata:
            yield AtWork(server, airflow, metadata)


def faults(
    at_work: AtWork, server: embedded.Server, moments: Mapping[str, datetime], repository: Repository
) -> list[str]:
    """Run the three DAGs while a worker and Redis are killed and a commit comes; then the retention once more. Return
    what was wrong."""
    line = output.Line("")
    line.show("CeleryExecutor, GitDagBundle, with faults")
    airflow, metadata = at_work.airflow, at_work.metadata
    size = batch_size(server, BATCHES)

    def value(query: str, *arguments: Any) -> Any:
        return metadata.execute(query.encode(), arguments).fetchall()[0][0]

    def wait(what: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            airflow.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"It never came to this: {what}; the logs are in {airflow.logs}")
            time.sleep(0.05)

    done = (
        "SELECT count(*) FROM task_instance WHERE run_id = %s AND task_id = 'delete_event_batch' AND state = 'success'"
    )

    def wait_for_batches(number: int) -> None:
        wait(f"{number} batches are done", lambda: value(done, run) >= number)

    def runs_a_batch(worker: int) -> bool:
        batches = "SELECT pid FROM task_instance WHERE task_id = 'delete_event_batch' AND state = 'running' AND pid IS NOT NULL"
        return any(psutil.pid_exists(pid) and os.getsid(pid) == worker for (pid,) in metadata.execute(batches.encode()))

    runs = {dag_id: airflow.trigger(dag_id) for dag_id in (AGGREGATE, CLEANUP)}
    run = runs[ARCHIVE] = airflow.trigger(ARCHIVE, confirm=True, batch_size=size)
    wait_for_batches(20)
    worker = airflow.processes.pop(WORKERS[0])
    wait("a worker has a batch", lambda: runs_a_batch(worker.pid))
    terminate([worker.pid], ask=False)
    worker.wait()
    line.note(f"{WORKERS[0]} was killed")
    wait_for_batches(60)
    for redis in psutil.Process(airflow.processes["redis"].pid).children():
        redis.kill()
    line.note("Redis was killed, and comes back")
    wait_for_batches(80)
    repository.rename_batches()
    second = repository.commit()
    wait("the commit is known", lambda: value("SELECT count(*) FROM dag_version WHERE bundle_version = %s", second))
    left = BATCHES - value(done, run)
    line.note(f"A commit renamed the SQL file of the batches, with {left} to go")
    for dag_id, run_id in runs.items():
        at_work.finish(dag_id, run_id)
    retried = value("SELECT count(*) FROM task_instance WHERE try_number > 1 AND task_id LIKE 'delete%%batch'")
    wrong = differences(server, moments, DAYS_KEPT, size * retried)
    runs["again"] = airflow.trigger(ARCHIVE, confirm=True, retention_days=FEWER_DAYS_KEPT)
    at_work.finish(ARCHIVE, runs["again"])
    wrong += differences(server, moments, FEWER_DAYS_KEPT, size * retried)
    for run_id, version in ((run, repository.first), (runs["again"], second)):
        if (found := versions(run_id)) != {version}:
            wrong.append(f"{run_id} was to run on the commit {version}, and ran on {found}")
    if left <= 0 or not retried:
        wrong.append("the faults came when the run was over")
    line.done(f"CeleryExecutor, GitDagBundle, with faults: {retried} batches were tried again")
    return wrong


def differences(
    server: embedded.Server, moments: Mapping[str, datetime], days_kept: int, unreported: int = 0
) -> list[str]:
    """Return how the analytics database differs from what it should be, asked without any code of the jobs.

    A batch whose deletion was committed and not reported deletes nothing at its next try: of `unreported` rows, the
    ledger may know nothing.
    """
    values = {**moments, "cutoff": moments["today"] - timedelta(days=days_kept - 1), "tokyo": demo.TOKYO}
    with psycopg.connect(
        server.dsn("analytics"), options="-c search_path=analytics,public -c timezone=UTC"
    ) as database:
        wrong = []
        for what, query in CHECKS.items():
            rows = database.execute(query.encode(), values).fetchall()
            if rows:
                wrong.append(f"{len(rows)} {what}, such as {rows[0]}")
        gone = "(SELECT count(*) FROM witness.{0}) - (SELECT count(*) FROM analytics_{0})"
        [(expected, ledger)] = database.execute(
            f"SELECT {gone.format('event')} + {gone.format('session')}, (SELECT sum(rows_deleted) FROM analytics_job_run)".encode()
        ).fetchall()
        if not expected - unreported <= ledger <= expected:
            wrong.append(f"{expected} rows are gone, and the ledger says {ledger}")
    return wrong


def versions(run_id: str) -> set[str]:
    """The commits that the tasks of a run were on, as their logs say. Airflow's database names the newest one."""
    logs = STATE.glob(f"*/logs/*/run_id={run_id}/**/*.log")
    return {version for log in logs for version in re.findall(r'"bundle_version":"(\w+)"', log.read_text())}


def batch_size(server: embedded.Server, batches: int) -> int:
    """The rows of a batch so that there are about so many batches of expired events, and not fewer."""
    with psycopg.connect(server.dsn("analytics")) as database:
        query = "SELECT count(*) FROM analytics_event WHERE timestamp < now() - interval '90 days'"
        return int(database.execute(query.encode()).fetchall()[0][0]) // batches


if __name__ == "__main__":
    sys.exit(demo.main(try_executors))
