"""A year of the jobs in Airflow's metadata database, and the documented command that keeps it small."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import airflow_year
from conftest import ROOT, Database
from dag_runs import run_dag
from embedded import Server

pytestmark = pytest.mark.usefixtures("airflow_metadata")

CLEANUP = "cleanup_analytics_sessions"
TENTH = {dag_id: (runs // 10, 10 * apart) for dag_id, (runs, apart) in airflow_year.RUNS.items()}
KEPT = timedelta(days=35)


@pytest.fixture
def metadata(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """Airflow's metadata database, from which the runs that a test adds are removed."""
    with psycopg.connect(server.dsn("airflow"), autocommit=True) as connection:
        [(before,)] = connection.execute("SELECT coalesce(max(id), 0) FROM dag_run").fetchall()
        yield connection
        connection.execute("DELETE FROM dag_run WHERE id > %s", [before])


def commands() -> str:
    """The commands that docs/operations.md gives for every night, with the schedule of cron taken off."""
    text = (ROOT / "docs" / "operations.md").read_text()
    [block] = re.findall(r"```\n(30 3 \* \* \* .*?)```", text, re.DOTALL)
    return str(block).replace("30 3 * * * ", "").replace("\\%", "%")


def clean(folder: Path) -> str:
    """Run them; return what they print."""
    script = f'PATH="{Path(sys.executable).parent}:$PATH"; AIRFLOW_HOME="{folder}"; set -e\n{commands()}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cleaning_removes_old_runs_and_nothing_that_anyone_needs(
    database: Database,
    metadata: psycopg.Connection[Any],
    now: datetime,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    database.session(now - timedelta(hours=3), now - timedelta(hours=2))
    for dag_id in airflow_year.RUNS:
        assert run_dag(dag_id, capsys, conf={"confirm": True} if "archive" in dag_id else {}).state == "success"
    runs = airflow_year.add_year(metadata, now, TENTH)
    metadata.execute(
        "UPDATE dag_run SET state = 'running' WHERE dag_id = %s AND run_type = 'scheduled' AND run_after > %s",
        [CLEANUP, now - timedelta(hours=4)],
    )
    # What the ledger says of runs that are removed stays, however it says that they ended.
    added = metadata.execute("SELECT dag_id, run_id, run_after FROM dag_run WHERE run_type = 'scheduled'").fetchall()
    with database.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO analytics_job_run (job, run_id, started_at, finished_at, outcome) VALUES (%s, %s, %s, %s, %s)",
            [(*run, run[2], ("success", "failed")[number % 2]) for number, run in enumerate(added)],
        )
    ledger = "SELECT * FROM analytics_job_run WHERE started_at < %s ORDER BY started_at, job"
    old = database.query(ledger, now - KEPT)
    logs = {"old": now - KEPT - timedelta(days=2), "new": now - KEPT + timedelta(days=2)}
    for name, at in logs.items():
        file = tmp_path / "logs" / f"run_id={name}" / "attempt=1.log"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (at.timestamp(), at.timestamp()))
    before = airflow_year.sizes(metadata)
    states = "SELECT run_id, state FROM dag_run WHERE run_after >= %s ORDER BY dag_id, run_id"
    recent = metadata.execute(states, [now - KEPT + timedelta(hours=1)]).fetchall()

    assert "Finished Performing Delete" in clean(tmp_path)

    after = airflow_year.sizes(metadata)
    assert before["dag_run"][0] - after["dag_run"][0] == pytest.approx(runs * (1 - KEPT.days / 365), abs=50)
    for table in ("task_instance", "xcom", "log"):
        assert after[table][0] < 0.2 * before[table][0], table
    assert metadata.execute(states, [now - KEPT + timedelta(hours=1)]).fetchall() == recent, (
        "what is newer stays, also a run that runs"
    )
    [(left,)] = metadata.execute(
        "SELECT count(*) FROM pg_tables WHERE tablename LIKE '\\_airflow\\_deleted%'"
    ).fetchall()
    assert left == 0, "nothing is put aside"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["run_id=new"]

    # The jobs ask Airflow about earlier runs, and go on.
    metadata.execute("UPDATE dag_run SET state = 'success' WHERE state = 'running'")
    assert run_dag(CLEANUP, capsys).state == "success"
    assert run_dag("aggregate_daily_analytics", capsys).state == "success"
    assert database.query(ledger, now - KEPT) == old


def test_a_scheduled_run_is_kept_of_each_dag_however_old(
    metadata: psycopg.Connection[Any], database: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dag(CLEANUP, capsys)
    long_ago = datetime.now(UTC) - timedelta(days=400)
    airflow_year.add_year(metadata, long_ago, {CLEANUP: (3, timedelta(days=1))})
    clean(tmp_path)
    # The next run is reckoned from the last one.
    scheduled = "SELECT run_after FROM dag_run WHERE dag_id = %s AND run_after < %s"
    assert metadata.execute(scheduled, [CLEANUP, long_ago]).fetchall() == [(long_ago - timedelta(days=1),)]
