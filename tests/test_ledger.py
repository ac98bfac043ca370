"""The ledger: what each run leaves in analytics_job_run."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select

from conftest import Database
from dag_runs import run_dag
from embedded import free_port

pytestmark = pytest.mark.usefixtures("airflow_metadata")

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CLEANUP = "cleanup_analytics_sessions"


def ledger(database: Database) -> list[tuple[Any, ...]]:
    names = ("job", "target", "rows_read", "rows_written", "rows_deleted", "batches", "outcome", "problem")
    rows = database.query("SELECT * FROM analytics_job_run ORDER BY started_at")
    assert all(row["started_at"] <= row["finished_at"] and row["database_bytes"] > 1_000_000 for row in rows)
    return [tuple(row[name] for name in names) for row in rows]


def test_each_run_is_one_row(
    database: Database, now: datetime, midnight: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    for days in (1, 2):
        database.event(now - days * DAY)
    database.session(now - 3 * HOUR, now - 2 * HOUR)
    database.session(now - 3 * HOUR, now - 2 * HOUR, ended_at=now - 3 * HOUR)
    run_dag("aggregate_daily_analytics", capsys)
    run_dag(CLEANUP, capsys)
    for n in range(3):
        database.event(midnight - HOUR, website_id=f"old {n}")
    database.session(midnight - 3 * HOUR, midnight - 2 * HOUR, ended_at=midnight)
    run_dag("archive_old_analytics", capsys, conf={"batch_size": 2})
    dates = [str((now - days * DAY).date()) for days in (2, 1)]
    assert ledger(database) == [
        ("aggregate_daily_analytics", f"{dates[0]} to {dates[1]}, 2 days", 2, 2, 0, 0, "success", None),
        (CLEANUP, None, 0, 2, 0, 0, "success", None),
        ("archive_old_analytics", f"{midnight:%Y-%m-%d} 00:00 UTC", 0, 0, 4, 3, "success", None),
    ]


def test_a_failed_run_says_why(database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]) -> None:
    database.event(midnight - HOUR)
    database.connection.execute("ALTER TABLE analytics_daily_stats ADD CONSTRAINT no_site CHECK (website_id <> 'site')")
    run = run_dag("archive_old_analytics", capsys)
    assert run.state == "failed"
    day = str((midnight - HOUR).date())
    [row] = ledger(database)
    assert row[6] == "failed"
    for text in (
        f"aggregate_day: {day}: new row for relation",
        "report_result: 1 day(s) were left alone",
    ):
        assert text in row[7]
    assert "[Analytics Watch] opened: The last run of archive_old_analytics failed: aggregate_day:" in run.log


def test_a_run_that_was_lost_stays_running(database: Database) -> None:
    start: dict[str, Any] = {"job": "x", "run_id": "1", "timezone": "UTC", "ignored_events": []}
    database.run("watch/start_run.sql", **start)
    [first] = database.query("SELECT * FROM analytics_job_run")
    assert (first["outcome"], first["finished_at"]) == ("running", None)
    # One whose task is tried again began when it began.
    database.connection.execute("UPDATE analytics_job_run SET outcome = 'failed', problem = 'x', finished_at = now()")
    database.run("watch/start_run.sql", **start)
    assert database.query("SELECT * FROM analytics_job_run") == [first]


def test_the_error_rate_is_of_the_runs_before(database: Database) -> None:
    parameters: dict[str, Any] = {"job": "x", "target": None, "problem": None}
    parameters |= dict.fromkeys(("rows_written", "rows_deleted", "batches", "unsealed_days"), 0)
    rates = []
    for n, outcome in enumerate(["failed", "success", "success", "success", "success"]):
        database.run("watch/start_run.sql", job="x", run_id=str(n), timezone="UTC", ignored_events=[])
        [row] = database.run("watch/finish_run.sql", **parameters | {"run_id": str(n), "outcome": outcome})
        rates.append(row["result"]["error_rate"])
    assert rates == [0, 1, 0.5, pytest.approx(1 / 3), 0.25]


class TestWhatAirflowKnowsBetter:
    """A run that ended otherwise than it wrote itself is corrected by the next run of any job."""

    def mark(self, run_state: str, **task_states: str) -> None:
        """Set the states of the last run of the cleanup in Airflow."""
        with create_session() as session:
            run = session.scalars(select(DagRun).order_by(DagRun.id.desc()).limit(1)).one()
            run.state = run_state
            for ti in run.task_instances:
                ti.state = task_states.get(ti.task_id, ti.state)

    def corrected(self, database: Database, capsys: pytest.CaptureFixture[str]) -> tuple[Any, ...]:
        """The outcome and the problem of the first run, after a run of another job."""
        assert run_dag("aggregate_daily_analytics", capsys).state == "success"
        [first, *_] = database.query("SELECT outcome, problem, finished_at FROM analytics_job_run ORDER BY started_at")
        assert first.pop("finished_at")
        return tuple(first.values())

    def test_a_run_that_was_marked_by_hand_after_its_end(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dag(CLEANUP, capsys)
        self.mark("failed")
        by_hand = "It was marked as failed by hand (Airflow's audit log says by whom)."
        for _ in range(2):
            assert self.corrected(database, capsys) == ("failed", by_hand)

    def test_a_failed_run_that_was_cleared_and_ended_well(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.connection.execute("UPDATE analytics_session SET ended_at = NULL")
        run_dag(CLEANUP, capsys, conf={"idle_minute": 5})
        self.mark("running")
        assert self.corrected(database, capsys)[0] == "failed", "it is not over"
        with create_session() as session:
            for run in session.scalars(select(DagRun).where(DagRun.dag_id == CLEANUP, DagRun.state == "running")):
                run.state = "success"
                for ti in run.task_instances:
                    ti.state = "success"
        assert self.corrected(database, capsys) == ("success", None)

    def test_a_run_that_was_stopped_by_its_time_limit(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dag(CLEANUP, capsys)
        database.connection.execute("UPDATE analytics_job_run SET outcome = 'running', finished_at = NULL")
        self.mark("failed", close_idle_sessions="skipped", close_run="skipped")
        problem = "The run hit its time limit (dagrun_timeout) before these had ended: close_idle_sessions."
        assert self.corrected(database, capsys) == ("failed", problem)

    def test_a_run_that_airflow_does_not_know(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        database.run("watch/start_run.sql", job=CLEANUP, run_id="lost", timezone="UTC", ignored_events=[])
        assert self.corrected(database, capsys) == ("failed", "Airflow does not know the run any more.")
        # Old runs are removed from Airflow: what they wrote stays.
        database.connection.execute("UPDATE analytics_job_run SET outcome = 'success', problem = NULL")
        assert self.corrected(database, capsys) == ("success", None)


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"dryrun": True}, '"dryrun" is not a Param of archive_old_analytics: write dry_run. Nothing was done.'),
        ({"Dry-Run": True, "batch_size": 10}, '"Dry-Run" is not a Param of archive_old_analytics: write dry_run.'),
        ({"x": 1}, "its Params are retention_days, batch_size, dry_run, confirm. Nothing was done."),
    ],
)
def test_a_param_that_the_job_does_not_have_is_refused_before_anything_is_done(
    database: Database,
    midnight: datetime,
    capsys: pytest.CaptureFixture[str],
    conf: dict[str, Any],
    sentence: str,
) -> None:
    database.event(midnight - HOUR)
    run = run_dag("archive_old_analytics", capsys, conf=conf)
    assert (run.state, run.tasks["check_database"]) == ("failed", ["failed"])
    assert sentence in run.log
    assert database.value("SELECT count(*) FROM analytics_event") == 1
    assert database.value("SELECT problem FROM analytics_job_run").startswith("check_database: ")


def test_a_python_task_that_fails_says_why(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run_dag("aggregate_daily_analytics", capsys, conf={"from": "2026-01-01"})
    [row] = ledger(database)
    assert row[-2:] == ("failed", "plan_days: Give both from and to: they are the first and the last day of the range.")


def test_a_condition_that_cannot_be_asked_is_an_alert_and_the_others_are_asked(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.connection.execute(
        "INSERT INTO analytics_job_run (job, run_id, started_at, outcome, late_events)"
        " VALUES ('archive_old_analytics', 'x', now(), 'success', 6000);"
        "ALTER FUNCTION analytics_websites RENAME TO websites"
    )
    run = run_dag(CLEANUP, capsys)
    assert (run.state, run.tasks["close_run"]) == ("success", ["success"])
    message = "Whether to alert about retention_backlog could not be found out: function analytics_websites() does not"
    assert f"[Analytics Watch] opened: {message}" in run.log
    assert "[Analytics Watch] opened: 6000 event(s) came for days that were sealed already" in run.log


def test_a_database_that_is_down_fails_the_first_task_and_is_not_waited_for_again(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", f"postgres://someone@127.0.0.1:{free_port()}/nowhere")
    run = run_dag(CLEANUP, capsys)
    assert run.state == "failed"
    assert {task for task, states in run.tasks.items() if states == ["failed"]} == {"check_database", "close_run"}
    assert [run.tries[task] for task in ("check_database", "close_run")] == [[5], [1]]
    assert "The next run of any job writes into the ledger how this one ended." in run.log
