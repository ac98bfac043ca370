"""The ledger: what each run leaves in analytics_job_run."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from conftest import Database
from dag_runs import run_dag

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
    start: dict[str, Any] = {"job": "x", "run_id": "1", "timezone": "UTC"}
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
        database.run("watch/start_run.sql", job="x", run_id=str(n), timezone="UTC")
        [row] = database.run("watch/finish_run.sql", **parameters | {"run_id": str(n), "outcome": outcome})
        rates.append(row["result"]["error_rate"])
    assert rates == [0, 1, 0.5, pytest.approx(1 / 3), 0.25]
