"""Real runs of archive_old_analytics."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from conftest import LOGIN, Database
from dag_runs import Run, dags, run_dag, triggered_confs
from partition_steps import partition, partitions
from retention_steps import late, listed, policy, sealed_days
from web_analytics.job import JOB

pytestmark = pytest.mark.usefixtures("airflow_metadata", "_old_traffic")

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
EVENTS = "SELECT count(*) FROM analytics_event"
SESSIONS = "SELECT count(*) FROM analytics_session"


@pytest.fixture
def _old_traffic(database: Database, midnight: datetime) -> None:
    """2,100 expired events of one session, one kept event of another."""
    store(database, midnight)


def store(database: Database, midnight: datetime) -> None:
    database.query(
        "INSERT INTO analytics_event (id, website_id, event_type, pathname, visitor_id, session_id, device_type,"
        " timestamp) SELECT 'anevt_' || n, 'site', 'pageview', '/', 'visitor', 'old', 'desktop',"
        " %s::timestamptz - n * interval '1 s' FROM generate_series(1, 2100) AS n RETURNING 1",
        midnight,
    )
    database.session(midnight - timedelta(hours=1), midnight - SECOND, session_id="old")
    database.event(midnight, session_id="kept")
    database.session(midnight, midnight, session_id="kept")


@pytest.fixture
def old_day(midnight: datetime) -> str:
    """The day of the expired events."""
    return str((midnight - SECOND).date())


def archive(capsys: pytest.CaptureFixture[str], **conf: Any) -> Run:
    return run_dag("archive_old_analytics", capsys, conf=conf)


def stats(database: Database) -> list[dict[str, Any]]:
    """The rows, but for what the retention itself writes into them."""
    rows = database.query("SELECT * FROM analytics_daily_stats ORDER BY website_id, date")
    own = ("sealed_at", "late_pageviews", "late_custom_events", "late_ignored_events", "visitor_sketch")
    return [{name: value for name, value in row.items() if name not in own} for row in rows]


def ledger(database: Database) -> list[tuple[Any, ...]]:
    """What the runs have recorded, oldest first."""
    names = ("outcome", "rows_deleted", "batches", "late_events", "unsealed_days")
    rows = database.query("SELECT * FROM analytics_job_run WHERE job LIKE 'archive%%' ORDER BY started_at")
    return [tuple(row[name] for name in names) for row in rows]


def test_batches_are_mapped_tasks_and_a_second_run_has_nothing_to_do(
    database: Database, old_day: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dag("aggregate_daily_analytics", capsys, conf={"stat_date": old_day})
    before = stats(database)
    run = archive(capsys)
    assert run.state == "success"
    assert run.tasks["delete_event_batch"] == ["success"] * 3
    assert [label.split(",")[0] for label in run.labels["delete_event_batch"]] == [
        "batch 1 of 3",
        "batch 2 of 3",
        "batch 3 of 3",
    ]
    # The day was right, so it was sealed at once.
    skipped = {"aggregate_day", "seal_again", "drop_partition", "continue_backlog"}
    assert {task for task, states in run.tasks.items() if states == ["skipped"]} == skipped
    for table in ("event", "session"):
        assert database.query(f"SELECT session_id FROM analytics_{table}") == [{"session_id": "kept"}]
    assert (stats(database), sealed_days(database), listed(database)) == (before, [("site", old_day)], {})
    for line in (
        f"{old_day} to {old_day}: sealed 1 day(s), listed 2100 event(s) in 3 batch(es)",
        "Found 2,100 old event(s) in 3 batch(es)",
        "Deleted batch of 1000 events (1000/2100)",
        "Deleted batch of 100 events (2100/2100)",
        "Listed 1 old session(s) without events",
        "Deleted batch of 1 sessions (1/1)",
        "✅ Archived 2,100 old event(s) (kept daily aggregated stats)",
        "✅ Archived 1 old session(s)",
    ):
        assert f"[Analytics Archive] {line}" in run.log
    sizes = r"Raw data on the disk: about \d+ \w+ live, \d+ \w+ for new rows, 0 bytes returned by this run"
    assert re.search(sizes, run.log)

    again = archive(capsys)
    assert again.state == "success"
    skipped |= {"delete_event_batch", "delete_session_batch"}
    assert {task for task, states in again.tasks.items() if states == ["skipped"]} == skipped
    assert "[Analytics Archive] ✅ Archived 0 old event(s)" in again.log
    assert stats(database) == before
    assert ledger(database) == [("success", 2101, 4, 0, 0), ("success", 0, 0, 0, 0)]


def test_a_partition_of_expired_events_is_dropped_and_the_others_go_in_batches(
    database: Database, midnight: datetime, old_day: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database.connection.execute("DELETE FROM analytics_session")
    partition(database, "MINVALUE", str(midnight - 1000 * SECOND), "MAXVALUE", owner=LOGIN)
    store(database, midnight)
    run_dag("aggregate_daily_analytics", capsys, conf={"stat_date": old_day})
    before = stats(database)
    run = archive(capsys)
    assert run.state == "success"
    assert (run.tasks["drop_partition"], run.labels["drop_partition"]) == (["success"], ["event_0"])
    assert run.tasks["delete_event_batch"] == ["success"]
    for table in ("event", "session"):
        assert database.query(f"SELECT session_id FROM analytics_{table}") == [{"session_id": "kept"}]
    assert (stats(database), sealed_days(database), listed(database)) == (before, [("site", old_day)], {})
    assert partitions(database) == ["event_1"]
    assert "[Analytics Archive] Dropped partition event_0 of 1,100 events" in run.log
    assert "[Analytics Archive] ✅ Archived 2,100 old event(s)" in run.log
    assert ledger(database) == [("success", 2101, 3, 0, 0)]


def test_a_day_that_was_never_aggregated_is_aggregated_and_goes_in_the_same_run(
    database: Database, old_day: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = archive(capsys)
    assert run.state == "success"
    assert run.labels["aggregate_day"] == [old_day]
    assert run.tasks["seal_again"] == ["success"]
    assert f"site {old_day} (2100 event(s), no stats)" in run.log
    assert [(row["website_id"], str(row["date"]), row["total_events"]) for row in stats(database)] == [
        ("site", old_day, 2100)
    ]
    assert sealed_days(database) == [("site", old_day)]
    assert database.value(EVENTS) == 1
    assert ledger(database) == [("success", 2101, 4, 0, 0)]


def test_dry_run_deletes_seals_and_lists_nothing(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run = archive(capsys, dry_run=True, batch_size=500)
    assert run.state == "success"
    assert run.tasks["delete_event_batch"] == run.tasks["delete_session_batch"] == ["skipped"]
    assert (database.value(EVENTS), database.value(SESSIONS)) == (2101, 2)
    assert (sealed_days(database), listed(database)) == ([], {})
    for rows in ("2,100 events in 5 batch(es)", "1 sessions in 1 batch(es)"):
        assert f"[Analytics Archive] Dry run: would delete {rows}" in run.log
    assert "listed 0 event(s) in 0 batch(es); a dry run writes nothing" in run.log


def test_late_events_of_a_sealed_day_are_counted_named_and_go(
    database: Database, midnight: datetime, old_day: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive(capsys)
    before = stats(database)
    database.event(midnight - SECOND)
    database.event(midnight - SECOND, event_type="custom_event", session_id="late")
    run = run_dag("aggregate_daily_analytics", capsys, conf={"stat_date": old_day})
    assert "✅ Aggregated 2100 events for website site, but left its row as it is: it is sealed" in run.log
    assert (stats(database), late(database)) == (before, {})
    run = archive(capsys)
    assert run.state == "success"
    assert f"site {old_day} (2 event(s) came after its stats were sealed and are counted as late)" in run.log
    assert (database.value(EVENTS), listed(database)) == (1, {})
    assert (stats(database), late(database)) == (before, {("site", old_day): 2})
    assert ledger(database) == [("success", 2101, 4, 0, 0), ("success", 2, 1, 2, 0)]


class TestWhatIsLeft:
    def test_a_day_whose_row_cannot_be_right_is_named_and_everything_else_goes(
        self, database: Database, midnight: datetime, old_day: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # A trigger that swallows the row stands for whatever keeps it from being written.
        database.connection.execute(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
            "CREATE TRIGGER swallow BEFORE INSERT ON analytics_daily_stats FOR EACH ROW WHEN (NEW.website_id = 'site')"
            " EXECUTE FUNCTION swallow()"
        )
        for _ in range(3):
            database.event(midnight - 2 * DAY, website_id="other")
        run = archive(capsys)
        assert run.state == "failed"
        assert [task for task, states in run.tasks.items() if "failed" in states] == ["report_result"]
        sentence = (
            "1 day(s) were left alone, since their stats do not count exactly their events: "
            f"site {old_day} (2100 event(s), no stats); read the log of aggregate_day and run this job again."
        )
        assert sentence in run.log
        assert database.query("SELECT website_id, count(*) FROM analytics_event GROUP BY 1") == [
            {"website_id": "site", "count": 2101}
        ]
        assert ledger(database) == [("failed", 3, 1, 0, 1)]
        assert database.value("SELECT problem FROM analytics_job_run") == f"report_result: {sentence}"

    def test_an_aggregation_that_fails_leaves_its_days_alone_and_everything_else_goes(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.event(midnight - 2 * DAY, website_id="other")
        run_dag("aggregate_daily_analytics", capsys, conf={"stat_date": str((midnight - 2 * DAY).date())})
        database.connection.execute("ALTER TABLE analytics_daily_stats ADD CHECK (website_id <> 'site')")
        run = archive(capsys)
        assert run.state == "failed"
        tasks = ("aggregate_day", "seal_again", "delete_event_batch", "delete_session_batch", "report_result")
        assert [run.tasks[task] for task in tasks] == [["failed"], ["success"], ["success"], ["skipped"], ["failed"]]
        assert database.value(EVENTS) == 2101
        assert ledger(database) == [("failed", 1, 1, 0, 1)]
        problem = database.value("SELECT problem FROM analytics_job_run WHERE outcome = 'failed'")
        assert problem.startswith("aggregate_day: ")
        assert ': new row for relation "analytics_daily_stats" violates' in problem
        assert "report_result: 1 day(s) were left alone" in problem

    def test_rows_that_did_not_go_are_an_error_and_stay_on_the_list(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.connection.execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
            "CREATE TRIGGER keep BEFORE DELETE ON analytics_event FOR EACH ROW WHEN (OLD.id = 'anevt_7')"
            " EXECUTE FUNCTION keep()"
        )
        run = archive(capsys)
        assert run.state == "failed"
        assert [task for task, states in run.tasks.items() if "failed" in states] == ["report_result"]
        assert "1 events did not go, though no policy and no change keeps them: look for a trigger or a rule" in run.log
        assert (database.value(EVENTS), listed(database)) == (2, {"event": 1})
        database.connection.execute("DROP TRIGGER keep ON analytics_event")
        assert archive(capsys).state == "success"
        assert (database.value(EVENTS), database.value(SESSIONS), listed(database)) == (1, 1, {})

    def test_seals_that_fail_stop_the_run_before_anything_is_deleted(
        self, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(JOB["default_args"], "retries", 0)
        database.connection.execute("ALTER TABLE analytics_purge_batch ADD CHECK (rows < 100)")
        run_dag("aggregate_daily_analytics", capsys)
        run = archive(capsys)
        assert run.state == "failed"
        assert [task for task, states in run.tasks.items() if "failed" in states] == ["seal_days"]
        assert (database.value(EVENTS), sealed_days(database), listed(database)) == (2101, [], {})


def test_a_website_on_hold_keeps_everything_and_is_named(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    policy(database, "legal_hold = TRUE")
    run = archive(capsys)
    assert run.state == "success"
    assert "1 website(s) have a policy of their own; legal hold on the raw data of site" in run.log
    assert (database.value(EVENTS), database.value(SESSIONS)) == (2101, 2)


def test_params_set_retention_and_batch_size(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run = archive(capsys, retention_days=91, batch_size=10)
    assert run.tasks["delete_event_batch"] == ["skipped"]
    assert database.value(EVENTS) == 2101
    assert archive(capsys, batch_size=500.0).tasks["delete_event_batch"] == ["success"] * 5


@pytest.mark.parametrize("conf", [{"retention_days": 0}, {"batch_size": 0}, {"retention_days": "x"}])
def test_params_out_of_bounds_are_refused(database: Database, conf: dict[str, Any]) -> None:
    with pytest.raises((ParamValidationError, ValueError)):
        dags()["archive_old_analytics"].test(run_conf=conf)
    assert database.value(EVENTS) == 2101


def test_what_one_run_does_not_take_is_left_to_the_next_with_its_params(
    database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    # A soft-deleted event, which needs no row, on each of 1,003 more days; one run takes 1,000.
    database.query(
        "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp, deleted_at)"
        " SELECT 'old_' || n, 'site', '/', 'v', 's', %s::timestamptz - n * interval '1 day', now()"
        " FROM generate_series(1, 1003) AS n RETURNING 1",
        midnight - SECOND,
    )
    before = len(triggered_confs())
    conf = {"retention_days": 89, "batch_size": 500}
    run = archive(capsys, dry_run=True)
    assert (run.state, run.tasks["continue_backlog"]) == ("success", ["skipped"])
    run = archive(capsys, **conf)
    assert (run.state, run.tasks["continue_backlog"]) == ("success", ["success"])
    assert "[Analytics Archive] 5 more day(s) have expired" in run.log
    assert database.value(EVENTS) == 2101 + 3
    assert triggered_confs()[before:] == [conf | {"dry_run": False, "confirm": True}]
    run = archive(capsys, **triggered_confs()[-1])
    assert (run.state, run.tasks["continue_backlog"]) == ("success", ["skipped"])
    assert (database.value(EVENTS), len(triggered_confs())) == (0, before + 1)
