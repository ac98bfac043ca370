"""What people receive from a real Airflow: failed, killed and stopped runs, the alerts that jobs watch for, the events
of the asset analytics_daily_stats, and OpenTelemetry's metrics."""

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

import embedded
from aggregation_steps import aggregate_due
from conftest import ROOT, Database
from demo import connection
from local_airflow import Airflow
from sinks import ADDRESS, METRICS, SECRET, mail_server, metrics_of, otlp_server, slack_server, text_of
from web_analytics import schema

JOBS = ("aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics")
OWN = "report_changed_days"
# Jobs that are too slow: one for its time limit, one to be killed or marked.
SLOW = """
from datetime import timedelta
from airflow.sdk import dag
from web_analytics.job import JOB, check_database
from web_analytics.postgres import PostgresOperator
from web_analytics.watch import close_run

def sleep():
    slept = PostgresOperator(task_id="sleep", sql="SELECT pg_sleep(600)", retries=0)
    after = PostgresOperator(task_id="after", sql="SELECT 1")
    check_database() >> slept >> after
    close_run(after)

@dag(**JOB | {"dagrun_timeout": timedelta(seconds=8)}, schedule=None)
def slow():
    sleep()

@dag(**JOB, schedule=None)
def endless():
    sleep()

slow()
endless()
"""


@dataclass
class Live:
    """A real Airflow, its analytics database, and what it sent."""

    airflow: Airflow
    database: Database
    mails: list[EmailMessage]
    slack: list[dict[str, Any]]
    metrics: list[ExportMetricsServiceRequest]

    def run(self, dag_id: str, conf: dict[str, Any] | None = None, logical_date: str | None = None) -> str:
        """Run a DAG to its end; return the run's state."""
        run = self.start(dag_id, conf, logical_date)
        self.wait(lambda: self.airflow.call("GET", run)["state"] in ("success", "failed"))
        return str(self.airflow.call("GET", run)["state"])

    def start(self, dag_id: str, conf: dict[str, Any] | None = None, logical_date: str | None = None) -> str:
        """Start a run of a DAG, by hand, or as the one of a schedule's moment; return its address in the REST API."""
        body = {"logical_date": logical_date, "conf": conf or {}}
        run = self.airflow.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)
        return f"/api/v2/dags/{dag_id}/dagRuns/{run['dag_run_id']}"

    def wait(self, condition: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until the condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def received(self, start: str) -> str:
        """Wait for the mail whose subject begins so; return its text, which Slack has got as well."""

        def found() -> list[EmailMessage]:
            return [mail for mail in self.mails if mail["Subject"].startswith(start)]

        self.wait(found)
        [mail] = found()
        text = text_of(mail).strip()
        assert mail["To"] == ADDRESS
        subject = f"*{mail['Subject']}*"
        self.wait(lambda: [message for message in self.slack if message["text"].startswith(subject)])
        [message] = [message for message in self.slack if message["text"].startswith(subject)]
        assert message["text"] == f"{subject}\n{text}"
        self.mails.remove(mail)
        self.slack.remove(message)
        return text


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Airflow with the three jobs and the slow ones, started once."""
    state = tmp_path_factory.mktemp("live")
    server = embedded.start(state, "-c fsync=off")
    try:
        yield from _live(state, server)
    finally:
        server.stop("immediate")
        shutil.rmtree(server.home, ignore_errors=True)


def _live(state: Path, server: embedded.Server) -> Iterator[Live]:
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE airflow")
        admin.execute("CREATE DATABASE analytics")
    with psycopg.connect(server.dsn("analytics")) as admin:
        admin.execute((ROOT / "dev" / "application.sql").read_bytes())
    schema.install(server.dsn("analytics"), "analytics,public")
    database = Database(server.dsn("analytics"))
    database.connection.execute("CREATE ROLE airflow_jobs LOGIN IN ROLE analytics_jobs")
    (state / "slow").mkdir()
    (state / "slow" / "slow.py").write_text(SLOW)
    # PostgreSQL's own functions come last, so that a test can put its own before them.
    analytics = connection(server) | {"extra": {"options": "-c search_path=analytics,public,pg_catalog"}}
    bundle = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": name, "classpath": bundle, "kwargs": {"path": str(path)}}
        for name, path in (("jobs", ROOT / "dags"), ("slow", state / "slow"), ("own", ROOT / "docs" / "examples"))
    ]
    with (
        mail_server() as (mails, smtp),
        slack_server() as (slack, webhook),
        otlp_server() as (metrics, collector),
        (state / "lock").open("w") as lock,
        Airflow(state, server, analytics, lock.fileno()) as airflow,
    ):
        airflow.environment |= {
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW_CONN_SMTP_DEFAULT": smtp,
            "AIRFLOW_CONN_SLACK_DEFAULT": webhook,
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "web_analytics",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
            "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=airflow",
            "ANALYTICS_ALERT_EMAIL": ADDRESS,
            "ANALYTICS_AGGREGATE_SCHEDULE": "0 0 29 2 *",
            "ANALYTICS_CLEANUP_SCHEDULE": "0 0 29 2 *",
            "ANALYTICS_ARCHIVE_SCHEDULE": "0 0 29 2 *",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "config"), str(ROOT / "dags")]),
        }
        airflow.run("db", "migrate")
        airflow.finish("db")
        airflow.start(triggerer=False)
        dags = [*JOBS, "slow", "endless", OWN]
        airflow.wait_for_dags(dags)
        for dag_id in dags:
            airflow.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        yield Live(airflow, database, mails, slack, metrics)
        database.close_connections()


def test_a_failed_run_is_one_message_that_says_what_happened(live: Live, midnight: datetime) -> None:
    for hour in (3, 2, 1):
        live.database.event(midnight - timedelta(hours=hour))
    aggregate_due(live.database)
    live.database.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON analytics_event EXECUTE FUNCTION refuse()"
    )
    assert live.run("archive_old_analytics", {"batch_size": 1, "confirm": True}) == "failed"
    live.database.connection.execute("DROP TRIGGER refuse ON analytics_event")
    text = live.received("[Analytics] archive_old_analytics failed")
    first, happened, done, _, log = text.splitlines()
    assert first.startswith("The run manual__")
    assert happened.startswith("What happened: delete_event_batch (3 of 3): batch 1 of 3, to ")
    assert happened.endswith(": check_violation (23514).")
    assert (
        "check_database, find_expired_days, seal_days, archive_events, find_partitions, plan_event_batches. It stays done"
        in done
    )
    assert "report_result" not in done
    # The link leads to the log's page of this Airflow.
    assert log.startswith(f"Log: {live.airflow.url}/dags/archive_old_analytics/runs/manual__")
    assert log.endswith("/tasks/delete_event_batch/mapped/0")
    with urllib.request.urlopen(log.removeprefix("Log: ")) as page:
        assert page.status == 200
    assert SECRET not in text


def test_a_failed_run_that_is_cleared_ends_well_and_the_ledger_says_so(live: Live) -> None:
    """Just the failed tasks are cleared, so that the closing one does not run again."""
    query = "SELECT outcome FROM analytics_job_run WHERE job = 'archive_old_analytics'"
    [run] = live.airflow.call("GET", "/api/v2/dags/archive_old_analytics/dagRuns")["dag_runs"]
    address = f"/api/v2/dags/archive_old_analytics/dagRuns/{run['dag_run_id']}"
    assert (run["state"], live.database.value(query)) == ("failed", "failed")
    live.airflow.call("POST", f"{address}/clear", {"dry_run": False, "only_failed": True})
    live.wait(lambda: live.airflow.call("GET", address)["state"] == "success")
    assert live.database.value("SELECT count(*) FROM analytics_event") == 0
    assert live.run("cleanup_analytics_sessions") == "success"
    assert live.database.value(query) == "success"
    assert not live.mails


def test_a_database_that_is_down_is_one_message_within_two_minutes(live: Live) -> None:
    def cleanup(logical_date: str) -> None:
        assert live.run("cleanup_analytics_sessions", logical_date=logical_date) == "failed"

    live.database.connection.execute("ALTER DATABASE analytics CONNECTION LIMIT 0")
    began = time.monotonic()
    cleanup("2026-01-01T00:00Z")
    live.database.connection.execute("ALTER DATABASE analytics CONNECTION LIMIT -1")
    text = live.received("[Analytics] cleanup_analytics_sessions failed")
    assert time.monotonic() - began < 120
    assert 'too many connections for database "analytics" (no connection).\nNothing was done.\n' in text

    live.database.connection.execute("ALTER TABLE analytics_alert RENAME TO alert")
    cleanup("2026-01-01T00:10Z")
    assert "make schema" in live.received("[Analytics] cleanup_analytics_sessions failed")
    cleanup("2026-01-01T00:20Z")  # in the same way on the same day: not told
    cleanup("2026-01-02T00:00Z")
    live.database.connection.execute("ALTER TABLE alert RENAME TO analytics_alert")
    live.received("[Analytics] cleanup_analytics_sessions failed")
    assert not live.mails


def test_a_killed_process_is_told_about(live: Live) -> None:
    run = live.start("endless")
    query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'airflow:endless.sleep' AND state = 'active'"
    live.wait(lambda: live.database.query(query))
    process = psutil.Process(live.airflow.call("GET", f"{run}/taskInstances/sleep")["pid"])
    process.kill()
    text = live.received("[Analytics] endless failed")
    assert "What happened: sleep: it failed without a word, as when its process was killed, or somebody marked" in text
    assert "What was done: check_database. It stays done" in text
    assert text.endswith("/tasks/sleep")


def test_a_run_that_is_stopped_by_its_time_limit_is_told_about_once(live: Live) -> None:
    live.start("slow")
    text = live.received("[Analytics] slow failed")
    assert "What happened: It hit its time limit (0:00:08) before all its tasks had ended." in text
    assert live.run("cleanup_analytics_sessions") == "success"
    problem = "The run hit its time limit (dagrun_timeout) before these had ended: after, sleep."
    assert ledger(live, "slow") == ("failed", problem)
    assert not live.mails


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_is_marked_by_hand_is_no_success_in_the_ledger(live: Live, state: str) -> None:
    run = live.start("endless")
    live.wait(lambda: live.database.query("SELECT 1 FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'"))
    live.airflow.call("PATCH", run, {"state": state})
    live.wait(lambda: live.airflow.call("GET", run)["state"] in ("success", "failed"))
    for _ in range(2):
        outcome, problem = ledger(live, "endless")
        assert outcome == "failed"
        assert problem.endswith(
            "These did not run, since somebody marked them or the run by hand (Airflow's audit log says who): after."
        )
        assert live.run("cleanup_analytics_sessions") == "success"


def ledger(live: Live, job: str) -> tuple[str, str]:
    """What the ledger says of the last run of a job: its outcome and problem."""
    query = "SELECT outcome, problem FROM analytics_job_run WHERE job = %s ORDER BY started_at DESC LIMIT 1"
    [row] = live.database.query(query, job)
    return row["outcome"], row["problem"]


def test_the_cleanup_watches_for_an_aggregation_that_never_ran(live: Live, now: datetime) -> None:
    live.airflow.call("PATCH", "/api/v2/dags/aggregate_daily_analytics", {"is_paused": True})
    live.database.event(now - timedelta(days=3), website_id="shop")
    assert live.run("cleanup_analytics_sessions") == "success"
    day = str((now.astimezone(UTC) - timedelta(days=3)).date())
    text = live.received("[Analytics] aggregation_behind shop: opened")
    assert text.startswith(f"ALERT: Website shop: its day {day} ended ")
    assert live.run("cleanup_analytics_sessions") == "success"
    aggregate_due(live.database)
    assert live.run("cleanup_analytics_sessions") == "success"
    text = live.received("[Analytics] aggregation_behind shop: recovered")
    assert text.startswith("RECOVERED, was open since ")
    # Twice in all: nothing was sent while it was open.
    assert not live.mails


def test_the_database_has_grown_too_large(live: Live) -> None:
    size = "analytics.pg_database_size(name) RETURNS bigint LANGUAGE sql RETURN 11 * 1024::bigint * 1024 * 1024"
    live.database.connection.execute(f"CREATE FUNCTION {size}".encode())
    assert live.run("cleanup_analytics_sessions") == "success"
    text = live.received("[Analytics] database_size: opened")
    assert text.startswith("ALERT: The database has 11 GB, more than 10 GB")
    live.database.connection.execute("DROP FUNCTION analytics.pg_database_size")
    assert live.run("cleanup_analytics_sessions") == "success"
    assert "The database has 11 GB" in live.received("[Analytics] database_size: recovered")


def test_a_dag_of_ones_own_runs_when_days_were_counted_and_again_when_one_is_counted_again(
    live: Live, midnight: datetime
) -> None:
    runs = f"/api/v2/dags/{OWN}/dagRuns"

    def told() -> list[dict[str, list[str]]]:
        """What the DAG was told, by each of its runs that has ended."""
        found = live.airflow.call("GET", f"{runs}?state=success&order_by=end_date")["dag_runs"]
        task = "taskInstances/changed_days/xcomEntries/return_value"
        return [live.airflow.call("GET", f"{runs}/{run['dag_run_id']}/{task}")["value"] for run in found]

    live.database.connection.execute("DELETE FROM analytics_event; DELETE FROM analytics_daily_stats")
    live.airflow.call("PATCH", "/api/v2/dags/aggregate_daily_analytics", {"is_paused": False})
    days = [midnight.astimezone(UTC) - timedelta(hours=hours) for hours in (1, 25)]
    for website_id in ("shop", 'a"b'):
        live.database.event(days[0], website_id=website_id)
    live.database.event(days[1], website_id="shop")
    last, first = (str(day.date()) for day in days)
    assert live.run("aggregate_daily_analytics") == "success"
    live.wait(lambda: told()[-1:] == [{first: ["shop"], last: ['a"b', "shop"]}])

    # What changes nothing tells nobody.
    before = len(told())
    assert live.run("aggregate_daily_analytics") == "success"
    live.database.event(days[1], website_id="shop")
    assert live.run("aggregate_daily_analytics") == "success"
    live.wait(lambda: len(told()) > before)
    assert told()[before:] == [{first: ["shop"]}]


def test_opentelemetry_receives_the_metrics_of_a_task_process_before_it_ends(live: Live, now: datetime) -> None:
    """A process lives much shorter than the interval at which metrics are exported, and has counted one run."""
    cleanup = "cleanup_analytics_sessions"
    failed = "SELECT coalesce(avg((outcome = 'failed')::int), 0)::float8 FROM analytics_job_run WHERE job = %s"
    error_rate = live.database.value(failed, cleanup)
    live.metrics.clear()
    live.database.session(now - timedelta(hours=3), now - timedelta(hours=2))
    assert live.run(cleanup) == "success"
    row = live.database.query("SELECT * FROM analytics_job_run WHERE job = %s ORDER BY started_at", cleanup)[-1]
    assert row["rows_written"] == 1
    expected = metrics_of(row, error_rate)

    def received() -> dict[str, float]:
        found = {}
        for resource in [resource for request in live.metrics for resource in request.resource_metrics]:
            assert "airflow" in [
                item.value.string_value for item in resource.resource.attributes if item.key == "service.instance.id"
            ]
            for metric in [metric for scope in resource.scope_metrics for metric in scope.metrics]:
                data = getattr(metric, str(metric.WhichOneof("data")))
                [point] = data.data_points
                assert [(tag.key, tag.value.string_value) for tag in point.attributes] == [("job", cleanup)]
                # What sums up says that it is of this process only, so that the receiver adds it to the others'.
                if metric.HasField("gauge"):
                    found[metric.name] = getattr(point, point.WhichOneof("value"))
                else:
                    assert data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
                    found[metric.name] = point.as_int if metric.HasField("sum") else point.sum
        return found

    live.wait(lambda: len(received()) == len(METRICS) - 1, 30)
    assert received() == pytest.approx({f"airflow.web_analytics.{name}": value for name, value in expected.items()})
