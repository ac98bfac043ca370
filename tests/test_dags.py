"""The DAGs as Airflow sees them: their shape, and real runs of each."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import ParamValidationError

from conftest import ROOT, SQL, Database
from dag_runs import Run, dags, run_dag

pytestmark = pytest.mark.usefixtures("airflow_metadata")

WATCH = {
    "summarize_run": {"finish_run"},
    "finish_run": {"find_alerts", "send_alerts"},
    "find_alerts": {"send_alerts"},
    "send_alerts": {"mark_alerts_sent"},
    "mark_alerts_sent": set(),
}
EDGES = {
    "aggregate_daily_analytics": {
        "check_database": {"start_run"},
        "start_run": {"find_due_days"},
        "find_due_days": {"plan_days"},
        "plan_days": {"aggregate_day", "summarize_run"},
        "aggregate_day": {"summarize_run"},
    },
    "cleanup_analytics_sessions": {
        "check_database": {"start_run"},
        "start_run": {"count_anomalies"},
        "count_anomalies": {"close_idle_sessions"},
        "close_idle_sessions": {"end_returned_sessions", "summarize_run"},
        "end_returned_sessions": {"count_active_visitors", "summarize_run"},
        "count_active_visitors": {"summarize_run"},
    },
    "archive_old_analytics": {
        "check_database": {"start_run"},
        "start_run": {"freeze_cutoff"},
        "freeze_cutoff": {
            "prove_days",
            "prove_again",
            "count_expired",
            "plan_event_batches",
            "plan_session_batches",
            "report_result",
            "summarize_run",
        },
        "prove_days": {"plan_days"},
        "plan_days": {"aggregate_day"},
        "aggregate_day": {"prove_again"},
        "prove_again": {"count_expired", "report_result"},
        "count_expired": {"plan_event_batches", "plan_session_batches", "report_result"},
        "plan_event_batches": {"delete_event_batch"},
        "plan_session_batches": {"delete_session_batch"},
        "delete_event_batch": {"delete_session_batch", "report_result", "summarize_run"},
        "delete_session_batch": {"measure_size", "report_result", "summarize_run"},
        "measure_size": {"report_result"},
        "report_result": {"summarize_run"},
    },
}
EDGES = {dag_id: edges | WATCH for dag_id, edges in EDGES.items()}
JOBS = list(EDGES)
SHARED = {(dag_id, "check_database"): "check_database.sql" for dag_id in JOBS} | {
    **{(dag_id, file.stem): f"watch/{file.name}" for dag_id in JOBS for file in (SQL / "watch").glob("*.sql")},
    ("archive_old_analytics", "aggregate_day"): "aggregate_daily_analytics/aggregate_day.sql",
    ("archive_old_analytics", "prove_again"): "archive_old_analytics/prove_days.sql",
}
"""The SQL files of tasks that are not named after their DAG and task."""


def test_bundle_has_exactly_the_three_dags_without_import_errors() -> None:
    assert sorted(dags()) == sorted(JOBS)
    assert sorted(file.stem for file in (ROOT / "dags").glob("*.py")) == sorted(JOBS)


@pytest.mark.parametrize("dag_id", JOBS)
def test_edges(dag_id: str) -> None:
    assert {task.task_id: task.downstream_task_ids for task in dags()[dag_id].tasks} == EDGES[dag_id]


@pytest.mark.parametrize("dag_id", JOBS)
def test_house_rules(dag_id: str) -> None:
    dag = dags()[dag_id]
    assert dag.doc_md.startswith("# ")
    assert all(f"**{word}" in dag.doc_md for word in ("Reads", "Re-run", "On failure"))
    assert (dag.catchup, dag.max_active_runs, dag.tags) == (False, 1, {"analytics"})
    assert dag.on_failure_callback.__name__ == "notify_failure"
    files = set()
    for task in dag.tasks:
        assert task.retries == 4
        assert task.retry_exponential_backoff == 2.0
        # What watches runs whatever became of the job, and does not hide its failure.
        assert task.is_teardown == (task.task_id in WATCH)
        # One message per failed run, not one per mapped batch.
        assert not task.on_failure_callback
        sql = task.partial_kwargs.get("sql") if task.is_mapped else getattr(task, "sql", None)
        if sql:
            name = SHARED.get((dag_id, task.task_id), f"{dag_id}/{task.task_id}.sql")
            file = SQL / name
            # Airflow has read the file of an ordinary task by now; that of a mapped one is read when it runs.
            assert sql in (file.read_text(), name)
            files.add(file)
    assert set((SQL / dag_id).glob("*.sql")) <= files


def test_schedules_and_pause() -> None:
    by_id = dags()
    assert [by_id[dag_id].schedule for dag_id in JOBS] == ["0 1 * * *", "*/10 * * * *", "0 2 * * 0"]
    assert by_id["archive_old_analytics"].is_paused_upon_creation is True
    # Without a start date, unpausing waits for the next Sunday; with one, it would delete at once.
    assert by_id["archive_old_analytics"].start_date is None
    assert by_id["archive_old_analytics"].get_task("delete_event_batch").partial_kwargs["pool"] == "analytics_archive"


def test_retry_policy_fails_at_once_what_a_retry_cannot_mend() -> None:
    policy = dags()["archive_old_analytics"].get_task("freeze_cutoff").retry_policy

    def decide(error: type[Exception]) -> str:
        return str(policy.evaluate(error(), 1, 4).action.value)

    errors = psycopg.errors
    for permanent in (errors.UndefinedTable, errors.InsufficientPrivilege, errors.SyntaxError, errors.DivisionByZero):
        assert decide(permanent) == "fail"
    passing = (
        psycopg.OperationalError,
        errors.LockNotAvailable,
        errors.DeadlockDetected,
        errors.SerializationFailure,
        errors.AdminShutdown,
        errors.CannotConnectNow,
        errors.TooManyConnections,
        errors.QueryCanceled,
    )
    for error in passing:
        assert decide(error) == "default"


def stats(database: Database) -> list[dict[str, Any]]:
    return database.query(
        "SELECT website_id, date::text, total_events, total_pageviews FROM analytics_daily_stats ORDER BY 1, 2"
    )


def aggregate(capsys: pytest.CaptureFixture[str], **kwargs: Any) -> Run:
    return run_dag("aggregate_daily_analytics", capsys, **kwargs)


class TestAggregate:
    def test_default_is_the_day_before(
        self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        yesterday = now - timedelta(days=1)
        database.event(yesterday, website_id="shop")
        database.event(yesterday, website_id="shop", event_type="custom_event")
        database.event(now, website_id="shop")
        run = aggregate(capsys)
        assert run.state == "success"
        day = yesterday.date()
        assert run.labels["aggregate_day"] == [str(day)]
        assert stats(database) == [
            {"website_id": "shop", "date": str(day), "total_events": 2, "total_pageviews": 1},
        ]
        assert f"[Analytics Job] Aggregating data for {day}" in run.log
        assert "[Analytics Job] ✅ Aggregated 2 events for website shop" in run.log

        before = database.query("SELECT *, xmin::text FROM analytics_daily_stats")
        assert aggregate(capsys).state == "success"
        assert database.query("SELECT *, xmin::text FROM analytics_daily_stats") == before

    def test_logical_date_stands_for_the_day_before_it(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The 4th has no event, so it is the logical date alone that asks for it.
        database.event("2026-01-05 00:00:00Z")
        run = aggregate(capsys, logical_date=datetime(2026, 1, 5, 1, tzinfo=UTC))
        assert run.labels["aggregate_day"] == ["2026-01-04", "2026-01-05"]
        assert [row["date"] for row in stats(database)] == ["2026-01-05"]

    def test_days_missed_while_airflow_was_down_are_made_up_for(
        self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        days = [now - timedelta(days=age) for age in (40, 3, 2, 1)]
        for moment in [*days, now]:
            database.event(moment)
        assert aggregate(capsys, conf={"stat_date": str(days[1].date())}).state == "success"
        run = aggregate(capsys)
        assert run.labels["aggregate_day"] == [str(day.date()) for day in (days[0], days[2], days[3])]
        assert [row["date"] for row in stats(database)] == [str(day.date()) for day in days]

    def test_a_day_that_got_a_late_event_is_counted_again(
        self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = now - timedelta(days=40)
        database.event(old)
        aggregate(capsys)
        database.event(old)
        run = aggregate(capsys)
        assert "[Analytics Job] Found 1 day(s) without right stats" in run.log
        assert run.labels["aggregate_day"] == [str(old.date()), str((now - timedelta(days=1)).date())]
        assert stats(database)[0]["total_events"] == 2
        assert "[Analytics Job] No day is due" in aggregate(capsys).log

    def test_range_is_one_mapped_task_per_day(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        for day in (1, 2, 4):
            database.event(f"2026-01-0{day} 12:00Z")
        run = aggregate(capsys, conf={"from": "2026-01-01", "to": "2026-01-04"})
        assert run.labels["aggregate_day"] == ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"]
        assert [row["date"] for row in stats(database)] == ["2026-01-01", "2026-01-02", "2026-01-04"]
        assert "[Analytics Job] No events on 2026-01-03: no row written" in run.log

    @pytest.mark.parametrize(
        ("conf", "sentence"),
        [
            ({"from": "2026-01-01"}, "Give both from and to"),
            ({"stat_date": "2026-01-01", "from": "2026-01-01", "to": "2026-01-02"}, "not both"),
            ({"from": "2026-01-03", "to": "2026-01-02"}, "is after to"),
            ({"stat_date": "2999-01-01"}, "2999-01-01 is not over yet in UTC"),
        ],
    )
    def test_contradicting_params_fail_with_one_sentence(
        self, database: Database, capsys: pytest.CaptureFixture[str], conf: dict[str, str], sentence: str
    ) -> None:
        run = aggregate(capsys, conf=conf)
        assert run.state == "failed"
        assert run.tasks["plan_days"] == ["failed"]
        assert sentence in run.log
        assert stats(database) == []


class TestCleanup:
    def test_closes_idle_sessions(self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]) -> None:
        hour = timedelta(hours=1)
        idle = database.session(now - 3 * hour, now - 2 * hour - timedelta(minutes=35))
        returned = database.session(now - 3 * hour, now - hour, ended_at=now - 2 * hour, duration_seconds=3600)
        active = database.session(now - hour, now)
        database.session(now + hour, now - hour)
        database.session(now, now + hour)
        database.event(now - timedelta(minutes=5))
        run = run_dag("cleanup_analytics_sessions", capsys)
        assert run.state == "success"
        ended = {row["session_id"]: row for row in database.query("SELECT * FROM analytics_session")}
        assert (ended[idle]["ended_at"], ended[idle]["duration_seconds"]) == (ended[idle]["last_activity_at"], 1500)
        assert ended[returned]["duration_seconds"] == 7200
        assert ended[active]["ended_at"] is None
        assert "[Analytics Cleanup] Found 2 stale session(s) to close" in run.log
        anomalies = "Clock skew: 1 open session(s) with activity before their start, 1 in the future"
        assert f"[Analytics Cleanup] {anomalies}" in run.log
        assert f"[Analytics Cleanup] ✅ Closed session {idle} (duration: 1500s)" in run.log
        assert "[Analytics Cleanup] ✅ Ended 1 session(s) again that had come back" in run.log
        assert "[Analytics Cleanup] 1 visitor(s) active now; 0 idle session(s) left" in run.log

        before = database.query("SELECT *, xmin::text FROM analytics_session ORDER BY id")
        assert "[Analytics Cleanup] No stale sessions" in run_dag("cleanup_analytics_sessions", capsys).log
        assert database.query("SELECT *, xmin::text FROM analytics_session ORDER BY id") == before

    def test_param_moves_the_timeout(
        self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.session(now - timedelta(minutes=10), now - timedelta(minutes=10))
        run_dag("cleanup_analytics_sessions", capsys, conf={"idle_minutes": 5})
        assert database.value("SELECT count(*) FROM analytics_session WHERE ended_at IS NOT NULL") == 1

    def test_many_sessions_log_a_limited_number_of_lines_and_the_total(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.query(
            "INSERT INTO analytics_session (id, website_id, session_id, visitor_id, entry_page, started_at,"
            " last_activity_at) SELECT 'anses_' || n, 'site', 'session_' || n, 'visitor', '/', now() - interval '2 h',"
            " now() - interval '1 h' FROM generate_series(1, 2500) AS n RETURNING 1"
        )
        run = run_dag("cleanup_analytics_sessions", capsys)
        assert run.log.count("✅ Closed session") == 100
        assert run.log.count("Found 1000 stale session(s) to close") == 2
        assert "[Analytics Cleanup] ✅ Closed 2,500 stale session(s)" in run.log


class TestArchive:
    @pytest.fixture(autouse=True)
    def _old_traffic(self, database: Database, midnight: datetime) -> None:
        """2,100 expired events of one session, one kept event of another."""
        database.query(
            "INSERT INTO analytics_event (id, website_id, event_type, pathname, visitor_id, session_id, device_type,"
            " timestamp) SELECT 'anevt_' || n, 'site', 'pageview', '/', 'visitor', 'old', 'desktop',"
            " %s::timestamptz - n * interval '1 s' FROM generate_series(1, 2100) AS n RETURNING 1",
            midnight,
        )
        database.session(midnight - timedelta(hours=1), midnight - timedelta(seconds=1), session_id="old")
        database.event(midnight, session_id="kept")
        database.session(midnight, midnight, session_id="kept")

    def aggregate(self, capsys: pytest.CaptureFixture[str], midnight: datetime) -> None:
        day = str((midnight - timedelta(days=1)).date())
        assert aggregate(capsys, conf={"stat_date": day}).state == "success"

    def test_deletes_in_one_mapped_task_per_batch(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.aggregate(capsys, midnight)
        before = stats(database)
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "success"
        assert run.tasks["delete_event_batch"] == ["success"] * 3
        assert [label.split(",")[0] for label in run.labels["delete_event_batch"]] == [
            "batch 1 of 3",
            "batch 2 of 3",
            "batch 3 of 3",
        ]
        assert database.query("SELECT session_id FROM analytics_event") == [{"session_id": "kept"}]
        assert database.query("SELECT session_id FROM analytics_session") == [{"session_id": "kept"}]
        assert stats(database) == before
        for line in (
            "Found 2,100 event(s) and 1 session(s) before",
            "Deleted batch of 1000 events (1000/2100)",
            "Deleted batch of 100 events (2100/2100)",
            "✅ Archived 2,100 old event(s) (kept daily aggregated stats)",
            "Database size:",
        ):
            assert f"[Analytics Archive] {line}" in run.log

        again = run_dag("archive_old_analytics", capsys)
        assert again.state == "success"
        assert again.tasks["delete_event_batch"] == ["skipped"]
        assert "[Analytics Archive] Nothing to delete is older than" in again.log
        assert stats(database) == before

    def test_aggregation_after_retention_leaves_the_row_alone(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.aggregate(capsys, midnight)
        before = stats(database)
        run_dag("archive_old_analytics", capsys)
        database.event(midnight - timedelta(seconds=1))
        day = str((midnight - timedelta(days=1)).date())
        run = aggregate(capsys, conf={"stat_date": day})
        assert "✅ Aggregated 1 events for website site, but left its row as it is" in run.log
        assert stats(database) == before

    def test_dry_run_deletes_nothing(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.aggregate(capsys, midnight)
        run = run_dag("archive_old_analytics", capsys, conf={"dry_run": True})
        assert run.state == "success"
        assert run.tasks["delete_event_batch"] == run.tasks["delete_session_batch"] == ["skipped"]
        assert database.value("SELECT count(*) FROM analytics_event") == 2101
        assert database.value("SELECT count(*) FROM analytics_session") == 2
        assert "[Analytics Archive] Dry run: would delete 2,100 events in 3 batch(es)" in run.log

    def test_a_day_that_was_never_aggregated_is_aggregated_before_it_is_deleted(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "success"
        day = str((midnight - timedelta(days=1)).date())
        assert run.labels["aggregate_day"] == [day]
        assert stats(database) == [{"website_id": "site", "date": day, "total_events": 2100, "total_pageviews": 2100}]
        assert database.value("SELECT count(*) FROM analytics_event") == 1

    def test_a_day_that_cannot_be_proven_is_left_alone_and_named_and_everything_else_goes(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # A trigger that swallows the row stands for whatever keeps it from being written.
        database.connection.execute(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
            "CREATE TRIGGER swallow BEFORE INSERT ON analytics_daily_stats FOR EACH ROW WHEN (NEW.website_id = 'site')"
            " EXECUTE FUNCTION swallow()"
        )
        for _ in range(3):
            database.event(midnight - timedelta(days=2), website_id="other")
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "failed"
        assert [task for task, states in run.tasks.items() if "failed" in states] == ["report_result"]
        day = str((midnight - timedelta(days=1)).date())
        assert (
            "1 day(s) were left alone, since their stats do not count exactly their events: "
            f"site {day} (2100 event(s), no stats); read the log of aggregate_day"
        ) in run.log
        assert database.value("SELECT count(*) FROM analytics_event WHERE website_id = 'site'") == 2101
        assert database.value("SELECT count(*) FROM analytics_event WHERE website_id = 'other'") == 0

    def test_an_aggregation_that_fails_leaves_its_day_alone_and_everything_else_goes(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.event(midnight - timedelta(days=2), website_id="other")
        self.aggregate(capsys, midnight - timedelta(days=1))
        database.connection.execute("ALTER TABLE analytics_daily_stats ADD CHECK (website_id <> 'site')")
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "failed"
        assert (run.tasks["aggregate_day"], run.tasks["report_result"]) == (["failed"], ["failed"])
        assert run.tasks["delete_event_batch"] == ["success"]
        assert database.value("SELECT count(*) FROM analytics_event") == 2101

    def test_late_events_of_a_final_day_are_named_and_removed(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dag("archive_old_analytics", capsys)
        before = database.query("SELECT *, xmin::text FROM analytics_daily_stats")
        database.event(midnight - timedelta(seconds=1))
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "success"
        day = str((midnight - timedelta(days=1)).date())
        late = f"Website site, {day}: 1 event(s) came after its stats were final and were not counted"
        assert f"[Analytics Archive] {late}" in run.log
        assert database.value("SELECT count(*) FROM analytics_event") == 1
        assert database.query("SELECT *, xmin::text FROM analytics_daily_stats") == before

    def test_a_website_on_hold_keeps_everything_and_is_named(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, legal_hold) VALUES ('site', TRUE)"
        )
        run = run_dag("archive_old_analytics", capsys)
        assert run.state == "success"
        assert "legal hold on the raw data of site" in run.log
        assert database.value("SELECT count(*) FROM analytics_event") == 2101
        assert database.value("SELECT count(*) FROM analytics_session") == 2

    def test_params_set_retention_and_batch_size(
        self, database: Database, midnight: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.aggregate(capsys, midnight)
        run = run_dag("archive_old_analytics", capsys, conf={"retention_days": 91, "batch_size": 10})
        assert run.tasks["delete_event_batch"] == ["skipped"]
        assert database.value("SELECT count(*) FROM analytics_event") == 2101
        run = run_dag("archive_old_analytics", capsys, conf={"batch_size": 500})
        assert run.tasks["delete_event_batch"] == ["success"] * 5

    @pytest.mark.parametrize("conf", [{"retention_days": 0}, {"batch_size": 0}, {"retention_days": "x"}])
    def test_params_out_of_bounds_are_refused(self, database: Database, conf: dict[str, Any]) -> None:
        with pytest.raises((ParamValidationError, ValueError)):
            dags()["archive_old_analytics"].test(run_conf=conf)
        assert database.value("SELECT count(*) FROM analytics_event") == 2101


@pytest.mark.parametrize("dag_id", JOBS)
def test_database_without_our_tables_fails_with_one_sentence(
    database: Database, capsys: pytest.CaptureFixture[str], dag_id: str
) -> None:
    database.connection.execute("DROP SCHEMA analytics CASCADE")
    run = run_dag(dag_id, capsys)
    assert run.state == "failed"
    assert run.tasks["check_database"] == ["failed"]
    assert 'run "make schema"' in run.log


def test_another_table_of_the_same_name_is_left_alone(
    database: Database, now: datetime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database.connection.execute(
        "CREATE TABLE public.analytics_daily_stats (id text, website_id text, date timestamptz, pageviews int);"
        "GRANT ALL ON public.analytics_daily_stats TO analytics_jobs"
    )
    database.event(now - timedelta(days=1))
    assert aggregate(capsys).state == "success"
    assert database.value("SELECT count(*) FROM public.analytics_daily_stats") == 0
    assert database.value("SELECT count(*) FROM analytics.analytics_daily_stats") == 1

    monkeypatch.setenv(
        "AIRFLOW_CONN_ANALYTICS_DB", database.dsn.replace("postgresql://postgres@", "postgres://airflow_jobs@")
    )
    run = aggregate(capsys)
    assert run.state == "failed"
    assert "is not the one the jobs know" in run.log
