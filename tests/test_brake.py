"""The brake of archive_old_analytics: a run that would delete unusually much stops, says so, and changes nothing."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from aggregation_steps import set_zone
from conftest import Database
from dag_runs import run_dag
from retention_steps import CUTOFF, DAY, HOUR, Retention, ids, policy

JOB = "archive_old_analytics"
CONFIRM = "Nothing was deleted; if it is right, trigger archive_old_analytics with the Param confirm."


def runs_before(database: Database, *rows: int, column: str = "expired_rows") -> None:
    """Earlier runs which have deleted that many rows, the last one first."""
    for number, count in enumerate(rows):
        database.connection.execute(
            f"INSERT INTO analytics_job_run (job, run_id, started_at, outcome, {column})"
            " VALUES (%s, %s, %s, 'success', %s)".encode(),
            [JOB, f"before {number}", CUTOFF - number * DAY, count],
        )


def problem(run: Retention, **params: Any) -> str | None:
    """Begin a run, as its first tasks do; return why it stops."""
    parameters = run.policy | {"run_id": "present", "confirm": False} | params
    run.database.connection.execute(
        "INSERT INTO analytics_job_run (job, run_id, started_at) VALUES (%(job)s, %(run_id)s, %(now)s)"
        " ON CONFLICT DO NOTHING",
        parameters | {"now": CUTOFF},
    )
    [row] = run.database.run(f"{JOB}/find_expired_days.sql", run.connection, **parameters)
    run.log = row["log"]
    return None if row["problem"] is None else str(row["problem"])


def ledger(database: Database) -> tuple[Any, Any]:
    """What the present run is remembered by."""
    [row] = database.query("SELECT expired_rows, policies FROM analytics_job_run WHERE run_id = 'present'")
    return row["expired_rows"], row["policies"]


pytestmark = pytest.mark.usefixtures("airflow_metadata")


@pytest.fixture(autouse=True)
def _events(database: Database) -> None:
    """Four events and one session that have expired."""
    for age in (HOUR, 31 * DAY, 31 * DAY, 400 * DAY):
        database.event(CUTOFF - age, "shop")
    database.session(CUTOFF - DAY, CUTOFF - HOUR, website_id="blog")


def test_a_first_run_is_unusual_and_says_what_it_would_delete(database: Database, run: Retention) -> None:
    assert problem(run) == (
        f"This run would delete 5 row(s), which is unusual: it is the first one that finds any. {CONFIRM} It would delete "
        "shop: 4 event(s) from 2023-01-26 on (1 up to 30 days past what is kept, 2 up to a year, 1 more) and 0 session(s); "
        "blog: 0 event(s) and 1 session(s)."
    )
    assert "[Analytics Archive] Expired of shop: 4 event(s) from 2023-01-26 on (1 up to 30" in run.log
    assert ledger(database) == (None, None)


def test_a_run_that_finds_nothing_goes_on(database: Database, run: Retention) -> None:
    database.query("DELETE FROM analytics_event RETURNING 1")
    database.query("DELETE FROM analytics_session RETURNING 1")
    assert problem(run) is None
    assert ledger(database) == (0, [{"website_id": None, "days": 90, "timezone": "UTC"}])
    # One with nothing to do is nothing that later ones are compared with.
    database.event(CUTOFF - HOUR)
    assert "it is the first one" in str(problem(run, run_id="next"))


@pytest.mark.parametrize("column", ["expired_rows", "rows_deleted"])
def test_more_than_three_times_the_median_is_unusual(database: Database, run: Retention, column: str) -> None:
    """Also compared with runs of a release that knew no brake."""
    runs_before(database, 1, 2, 0, 1, 1, 1, 1, 2, 2, 100, 100, column=column)
    assert "that is more than 3 times 1, the median of the last 8 run(s)" in str(problem(run))
    database.query("DELETE FROM analytics_session RETURNING 1")
    assert problem(run) is not None
    assert problem(run, confirm=True) is None
    database.query("DELETE FROM analytics_event WHERE timestamp < %s RETURNING 1", CUTOFF - 399 * DAY)
    assert problem(run) is None
    assert ledger(database)[0] == 3


def test_a_dry_run_tells_and_is_not_remembered(database: Database, run: Retention) -> None:
    assert problem(run, dry_run=True) is None
    assert "[Analytics Archive] Dry run, without it or confirm: This run would delete 5 row(s), which is" in run.log
    assert ledger(database) == (None, None)
    assert problem(run, confirm=True) is None
    assert "[Analytics Archive] Confirmed: This run would delete 5 row(s)" in run.log
    assert ledger(database)[0] == 5
    assert problem(run, run_id="next") is None


@pytest.mark.parametrize(
    ("before", "present", "reason"),
    [
        (
            "retention_days = 365",
            "retention_days = 30",
            "of shop is kept for 30 days, and was kept for 365 at the last run",
        ),
        (
            "legal_hold = TRUE",
            "legal_hold = FALSE",
            "of shop is kept for 90 days, and was kept for ever at the last run",
        ),
        ("retention_days = 365", None, "of shop is kept for 90 days, and was kept for 365 at the last run"),
        (None, "retention_days = 30", "of shop is kept for 30 days, and was kept for 90 at the last run"),
        ("retention_days = 30", "retention_days = 365", None),
        ("legal_hold = FALSE", "legal_hold = TRUE", None),
        ("retention_days = 30", "retention_days = 30", None),
        (None, "retention_days = 90", None),
    ],
)
def test_a_policy_that_was_made_shorter_is_unusual(
    database: Database, run: Retention, before: str | None, present: str | None, reason: str | None
) -> None:
    runs_before(database, 1000)
    for columns, run_id in ((before, "first"), (present, "second")):
        database.query("DELETE FROM analytics_website_policy RETURNING 1")
        if columns:
            policy(database, columns, "shop")
        found = problem(run, run_id=run_id)
        database.query("UPDATE analytics_job_run SET started_at = started_at + '1 s' RETURNING 1")
        if run_id == "first":
            assert found is None
    assert found is None if reason is None else f"which is unusual: raw data {reason}. Nothing" in str(found)


def test_fewer_days_for_all_are_unusual_until_they_are_confirmed(database: Database, run: Retention) -> None:
    runs_before(database, 1000)
    policy(database, "retention_days = 400", "blog")
    assert problem(run, run_id="first") is None
    reason = "raw data of all websites without a policy of their own is kept for 60 days, and was kept for 90"
    later = {"run_id": "later", "retention_days": 60}
    database.query("UPDATE analytics_job_run SET started_at = started_at - '1 day'::interval RETURNING 1")
    assert f"unusual: {reason} at the last run. Nothing" in str(problem(run, **later))
    assert f"unusual: {reason} at the last run. Nothing" in str(problem(run, **later))
    assert problem(run, **later, confirm=True) is None
    database.query("UPDATE analytics_job_run SET started_at = started_at - '1 day'::interval RETURNING 1")
    assert problem(run, run_id="after", retention_days=60) is None


def test_another_time_zone_is_unusual(database: Database, run: Retention) -> None:
    runs_before(database, 1000)
    assert problem(run, run_id="first") is None
    set_zone(database, "Asia/Tokyo", "shop")
    found = str(problem(run, run_id="second"))
    assert "unusual: days of shop are of time zone Asia/Tokyo, and were of UTC at the last run. Nothing" in found


def test_many_reasons_and_hostile_names_stay_one_short_sentence(database: Database, run: Retention) -> None:
    runs_before(database, 1000)
    assert problem(run, run_id="first") is None
    for number in range(9):
        policy(database, "retention_days = 1", f"site\n{number}")
        database.event(CUTOFF - HOUR, f"site\n{number}")
    found = str(problem(run, run_id="second"))
    assert r"raw data of site\n0 is kept for 1 days" in found
    assert "; and 4 more reason(s). Nothing" in found
    assert found.endswith("; and of 6 more.")
    assert "\n" not in found


def test_the_run_fails_before_anything_is_sealed_and_confirm_lets_it_go_on(
    database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    database.event(midnight - timedelta(hours=1))
    left = ids(database)
    run = run_dag(JOB, capsys, conf={"confirm": False})
    assert run.state == "failed"
    assert run.tasks["find_expired_days"] == ["failed"]
    assert run.tries["find_expired_days"] == [1]
    assert set(run.tasks["seal_days"] + run.tasks["delete_event_batch"]) == {"upstream_failed"}
    assert ids(database) == left
    assert database.value("SELECT count(*) FROM analytics_daily_stats") == 0
    [problem] = [row["problem"] for row in database.query("SELECT problem FROM analytics_job_run")]
    assert problem.startswith(
        "find_expired_days: This run would delete 6 row(s), which is unusual: it is the first one"
    )
    assert run_dag(JOB, capsys, conf={"confirm": True}).state == "success"
    assert ids(database) == set()
    assert ids(database, "session") == set()
