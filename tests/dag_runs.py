"""Runs a DAG through a real Airflow, in the test's own process."""

import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from sqlalchemy import select

from conftest import ROOT
from web_analytics.job import JOB

# The tests have no reason to wait for a back-off.
JOB["default_args"]["retry_delay"] = timedelta(0)


@dataclass
class Run:
    """What a finished DAG run left behind in Airflow."""

    state: str
    tasks: dict[str, list[str]]
    """The states of each task, mapped ones in the order of their map index."""
    tries: dict[str, list[int]]
    """How often the instances of each task ran."""
    labels: dict[str, list[str]]
    """How the UI names the mapped tasks."""
    log: str


def dags() -> dict[str, Any]:
    """Return the bundle's DAGs by id, parsed anew; an import error fails the test."""
    bag = DagBag(str(ROOT / "dags"), collect_dags=True)
    assert not bag.import_errors
    return dict(bag.dags)


def without_waiting(dag: Any, **arguments: Any) -> DagRun:
    """Run a DAG with its test(), which sleeps for a second each time it finds nothing to run, as after a skipped task."""
    sleep = time.sleep
    with mock.patch("time.sleep", lambda seconds: sleep(0 if seconds == 1 else seconds)):
        dag_run: DagRun = dag.test(**arguments)
    return dag_run


def run_dag(
    dag_id: str,
    capsys: pytest.CaptureFixture[str],
    conf: dict[str, Any] | None = None,
    logical_date: datetime | None = None,
) -> Run:
    """Run a DAG once, with its retries, and return what became of it. The brake of the retention is off by default."""
    capsys.readouterr()
    dag = dags()[dag_id]
    confirmed = {"confirm": True} if "confirm" in dag.params else {}
    dag_run = without_waiting(dag, run_conf=confirmed | (conf or {}), logical_date=logical_date)
    instances = sorted(dag_run.get_task_instances(), key=lambda ti: (ti.task_id, ti.map_index))
    tasks: dict[str, list[str]] = {}
    tries: dict[str, list[int]] = {}
    labels: dict[str, list[str]] = {}
    for ti in instances:
        tasks.setdefault(ti.task_id, []).append(str(ti.state))
        tries.setdefault(ti.task_id, []).append(ti.try_number)
        labels.setdefault(ti.task_id, []).append(ti.rendered_map_index)
    log = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return Run(str(dag_run.state), tasks, tries, labels, log)


def triggered_confs() -> list[Any]:
    """The conf of each run that another run has started, oldest first."""
    with create_session() as session:
        query = select(DagRun.conf).where(DagRun.triggered_by == DagRunTriggeredByType.OPERATOR)
        return list(session.scalars(query.order_by(DagRun.id)))
