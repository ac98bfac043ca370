"""What StatsD receives from runs in a real Airflow. What OpenTelemetry receives is in test_alerts_live.py."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

from conftest import ROOT, Database
from sinks import GAUGES, METRICS, metrics_of
from web_analytics.watch import report_metrics

AGGREGATE, CLEANUP, ARCHIVE = "aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"
RUN = """
import ast, sys
from dag_runs import dags, without_waiting

for dag_id, conf in ast.literal_eval(sys.argv[1]):
    without_waiting(dags()[dag_id], run_conf=conf)
"""
HOUR = timedelta(hours=1)


@contextmanager
def statsd(**settings: str) -> Iterator[tuple[dict[str, str], Callable[[], list[str]]]]:
    """A UDP socket in StatsD's place: the environment that leads there, with these [metrics], and what has arrived."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)

        def received() -> list[str]:
            lines: list[str] = []
            while True:
                try:
                    lines.append(receiver.recv(65536).decode())
                except BlockingIOError:
                    return lines

        settings |= {"STATSD_ON": "True", "STATSD_PORT": str(receiver.getsockname()[1])}
        settings |= {"METRICS_ALLOW_LIST": "web_analytics"}
        yield {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}, received


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
    with statsd(STATSD_INFLUXDB_ENABLED="True") as (environment, lines):
        environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / folder) for folder in ("dags", "dev", "tests"))
        command = [sys.executable, "-c", RUN, repr(runs)]
        subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        sent = lines()
    received: list[tuple[str, dict[str, str]]] = []
    for line in sent:
        [(name, job, value)] = re.findall(r"^airflow\.(web_analytics\.\w+),job=(\w+):(.+)$", line)
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


def test_plain_statsd_drops_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    with statsd() as (environment, lines):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
        report_metrics(CLEANUP, dict.fromkeys(GAUGES, 1) | {"duration_seconds": 1, "outcome": "success"})
        monkeypatch.undo()
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
        names = [line.split(":")[0] for line in lines()]
    assert names == [f"airflow.web_analytics.{name}" for name in METRICS if name != "run_failed"]


def test_the_documentation_names_the_metrics() -> None:
    [section] = re.findall(r"\n## The ledger\n(.+?)\n## ", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    names = re.findall(r"`(?:web_analytics)?\.(\w+)`", section)
    assert sorted(names) == sorted(METRICS)
