"""What StatsD receives from runs in a real Airflow. What OpenTelemetry receives is in test_alerts_live.py."""

import os
import re
import socket
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from conftest import ROOT, Database
from sinks import METRICS, metrics_of

AGGREGATE, CLEANUP, ARCHIVE = "aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"
RUN = """
import ast, sys
from dag_runs import dags, without_waiting

for dag_id, conf in ast.literal_eval(sys.argv[1]):
    without_waiting(dags()[dag_id], run_conf=conf)
"""
HOUR = timedelta(hours=1)


def statsd_lines(runs: list[tuple[str, dict[str, object]]], **settings: str) -> list[str]:
    """What arrives at a UDP socket when these DAGs run, one after the other, in an Airflow with these [metrics]."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        settings |= {"STATSD_PORT": str(receiver.getsockname()[1]), "METRICS_ALLOW_LIST": "web_analytics"}
        environment = os.environ | {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / folder) for folder in ("dags", "dev", "tests"))
        subprocess.run([sys.executable, "-c", RUN, repr(runs)], env=environment, check=True, stdout=subprocess.DEVNULL)
        lines: list[str] = []
        while True:
            try:
                lines.append(receiver.recv(65536).decode())
            except BlockingIOError:
                return lines


@pytest.mark.usefixtures("airflow_metadata")
def test_statsd_receives_what_each_run_did_with_its_job_as_a_tag(
    database: Database, now: datetime, midnight: datetime
) -> None:
    for days in (1, 2):
        database.event(now - timedelta(days=days))
    for n in range(3):
        database.event(midnight - HOUR, website_id=f"old {n}")
    database.session(now - 3 * HOUR, now - 2 * HOUR)
    runs: list[tuple[str, dict[str, object]]] = [
        (AGGREGATE, {}),
        (ARCHIVE, {"batch_size": 2, "confirm": True}),
        (CLEANUP, {"no_param": 1}),
        (CLEANUP, {}),
    ]
    received: list[tuple[str, dict[str, str]]] = []
    for line in statsd_lines(runs, STATSD_ON="True", STATSD_INFLUXDB_ENABLED="True"):
        name, job, value = re.fullmatch(r"airflow\.(web_analytics\.\w+),job=(\w+):(.+)", line).groups()  # type: ignore[union-attr]
        if name == "web_analytics.run_duration":
            received.append((job, {}))
        assert received[-1][0] == job
        received[-1][1][name] = value

    ledger = database.query("SELECT * FROM analytics_job_run ORDER BY started_at")
    did = ("job", "rows_read", "rows_written", "rows_deleted", "batches", "outcome")
    assert [tuple(row[name] for name in did) for row in ledger] == [
        (AGGREGATE, 5, 5, 0, 0, "success"),
        (ARCHIVE, 0, 0, 3, 2, "success"),
        (CLEANUP, 0, 0, 0, 0, "failed"),
        (CLEANUP, 0, 1, 0, 0, "success"),
    ]
    kinds = {"run_duration": "ms", "run_success": "c", "run_failed": "c"}
    assert received == [
        (
            row["job"],
            {
                f"web_analytics.{name}": f"{value:{'.6f' if name == 'run_duration' else ''}}|{kinds.get(name, 'g')}"
                for name, value in metrics_of(row, error_rate).items()
            },
        )
        for row, error_rate in zip(ledger, (0, 0, 0, 1), strict=True)
    ]


@pytest.mark.usefixtures("airflow_metadata")
def test_plain_statsd_drops_the_tag(database: Database) -> None:
    names = [line.split(":")[0] for line in statsd_lines([(CLEANUP, {})], STATSD_ON="True")]
    assert names == [f"airflow.web_analytics.{name}" for name in METRICS if name != "run_failed"]


def test_the_documentation_names_the_metrics() -> None:
    [section] = re.findall(r"\n## The ledger\n(.+?)\n## ", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    names = re.findall(r"`(?:web_analytics)?\.(\w+)`", section)
    assert sorted(names) == sorted(METRICS)
