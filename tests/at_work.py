"""An Airflow at work, and what can be asked of it."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

from embedded import Server
from local_airflow import PROGRAMS, Airflow

IDLE = 20  # seconds for which the scheduler is watched

DEFAULTS = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "5",
    "PYTHONPATH": "",  # without the preload
}
"""What the README changes."""


class AtWork:
    """An Airflow that runs, and what can be asked of it."""

    def __init__(self, server: Server, airflow: Airflow, metadata: psycopg.Connection[Any]) -> None:
        self.server, self.airflow, self.metadata = server, airflow, metadata

    def run(self, dag_id: str, **params: Any) -> None:
        """Run a DAG and wait for its end."""
        self.finish(dag_id, self.airflow.trigger(dag_id, **params))

    def finish(self, dag_id: str, run_id: str) -> None:
        """Wait for a run's end, without asking the api-server, which is being measured."""
        state = "SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s"
        while (found := self.metadata.execute(state, [dag_id, run_id]).fetchall()[0][0]) not in ("success", "failed"):
            self.airflow.check()
            time.sleep(0.2)
        assert found == "success", f"{run_id} of {dag_id}: see {self.airflow.logs}"

    def batches(self) -> tuple[int, float]:
        """How many batches the last run deleted, and in how many seconds."""
        query = (
            "SELECT count(*), extract(epoch FROM max(end_date) - min(start_date))::float FROM task_instance"
            " WHERE task_id = 'delete_event_batch' AND state = 'success'"
        )
        [(tasks, took)] = self.metadata.execute(query).fetchall()
        return tasks, took

    def cpu(self, work: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
        """The CPU seconds of Airflow and PostgreSQL while something is done."""
        began = self._cpu()
        work(*arguments, **keywords)
        return self._cpu() - began

    def _cpu(self) -> float:
        server = psutil.Process(int((self.server.data / "postmaster.pid").read_text().split()[0]))
        sessions = {process.pid for process in self.airflow.processes.values()} | {server.pid}
        total = 0.0
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has just ended: its parent has its times
                if os.getsid(process.pid) in sessions or process.ppid() == server.pid:
                    times = process.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
        return total

    def loop(self) -> float:
        """Milliseconds that the scheduler's loop takes with nothing to do."""
        log = self.airflow.logs / "scheduler.log"
        read = log.stat().st_size
        time.sleep(IDLE)
        with log.open() as file:
            file.seek(read)
            return statistics.median(map(float, re.findall(r"Ran scheduling loop in ([\d.]+) ms", file.read())))

    def clean(self, before: datetime) -> None:
        """Remove old runs."""
        options = ("--tables", "dag_run,log", "--skip-archive", "--batch-size", "10000", "--yes")
        subprocess.run(
            [PROGRAMS / "airflow", "db", "clean", "--clean-before-timestamp", before.isoformat(), *options],
            env=self.airflow.environment,
            capture_output=True,
            check=True,
        )
