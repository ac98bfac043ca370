"""The DAGs as Airflow sees them: their shape, and real runs. Those of archive_old_analytics are in test_archive_dag.py."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from conftest import ROOT, SQL, Database
from dag_runs import Run, dags, run_dag
from web_analytics.archive import ArchiveOperator
from web_analytics.job import JOB
from web_analytics.postgres import CLIENT_SETTINGS, RETRIES
from web_analytics.settings import settings
from web_analytics.watch import STATEMENTS

pytestmark = pytest.mark.usefixtures("airflow_metadata")

EDGES: dict[str, dict[str, set[str]]] = {
    "aggregate_daily_analytics": {
        "check_database": {"find_due_days"},
        "find_due_days": {"plan_days"},
        "plan_days": {"aggregate_day", "close_run"},
        "aggregate_day": {"close_run"},
        "close_run": set(),
    },
    "cleanup_analytics_sessions": {
        "check_database": {"close_idle_sessions"},
        "close_idle_sessions": {"close_run"},
        "close_run": set(),
    },
    "archive_old_analytics": {
        "check_database": {"find_expired_days"},
        "find_expired_days": {"seal_days", "measure_storage", "report_result", "close_run"},
        "seal_days": {"aggregate_day", "seal_again"},
        "aggregate_day": {"seal_again", "close_run"},
        "seal_again": {"archive_events", "report_result", "close_run"},
        "archive_events": {"find_partitions", "report_result"},
        "find_partitions": {"drop_partition"},
        "drop_partition": {"plan_event_batches", "report_result", "close_run"},
        "plan_event_batches": {"delete_event_batch"},
        "delete_event_batch": {"list_sessions", "report_result", "close_run"},
        "list_sessions": {"archive_sessions", "report_result"},
        "archive_sessions": {"plan_session_batches", "report_result"},
        "plan_session_batches": {"delete_session_batch"},
        "delete_session_batch": {"measure_storage", "report_result", "close_run"},
        "measure_storage": {"report_result"},
        "report_result": {"continue_backlog", "close_run"},
        "continue_backlog": set(),
        "close_run": set(),
    },
}
JOBS = list(EDGES)
SHARED = {
    **{(dag_id, "check_database"): ["check_database.sql", "watch/start_run.sql"] for dag_id in JOBS},
    **{
        (dag_id, "close_run"): [
            *(f"watch/{name}.sql" for name in STATEMENTS),
            *(f"alerts/{file.name}" for file in sorted((SQL / "alerts").glob("*.sql"))),
        ]
        for dag_id in JOBS
    },
    ("cleanup_analytics_sessions", "close_idle_sessions"): [
        f"cleanup_analytics_sessions/{name}.sql" for name in ("close_idle_sessions", "end_returned_sessions")
    ],
    ("aggregate_daily_analytics", "find_due_days"): [
        "aggregate_daily_analytics/add_partitions.sql",
        "aggregate_daily_analytics/find_due_days.sql",
    ],
    ("archive_old_analytics", "aggregate_day"): ["aggregate_daily_analytics/aggregate_day.sql"],
    ("archive_old_analytics", "seal_again"): ["archive_old_analytics/seal_days.sql"],
    ("archive_old_analytics", "drop_partition"): [
        "archive_old_analytics/begin_detach.sql",
        "archive_old_analytics/drop_detached.sql",
    ],
    ("archive_old_analytics", "plan_event_batches"): ["archive_old_analytics/plan_batches.sql"],
    ("archive_old_analytics", "plan_session_batches"): ["archive_old_analytics/plan_batches.sql"],
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
        # People hear of a database that is down within two minutes.
        assert task.retries * (RETRIES["retry_delay"].total_seconds() + CLIENT_SETTINGS["connect_timeout"]) < 120
        # What closes the run does so whatever became of the job, and does not hide its failure.
        assert task.is_teardown == (task.task_id == "close_run")
        assert [callback.__name__ for callback in task.on_failure_callback] == ["leave_problem"]
        sql = task.partial_kwargs.get("sql") if task.is_mapped else getattr(task, "sql", None)
        # Its statements name the columns of the application's table, whichever it has.
        if sql and not isinstance(task, ArchiveOperator):
            names = SHARED.get((dag_id, task.task_id), [f"{dag_id}/{task.task_id}.sql"])
            # Airflow has read the files of an ordinary task by now; those of a mapped one are read when it runs.
            assert ([sql] if isinstance(sql, str) else sql) in ([(SQL / name).read_text() for name in names], names)
            files |= {SQL / name for name in names}
    assert set((SQL / dag_id).glob("*.sql")) <= files


def test_schedules_and_pause() -> None:
    by_id = dags()
    timetables = [by_id[dag_id].timetable for dag_id in JOBS]
    assert [timetable.expression for timetable in timetables] == ["0 1 * * *", "*/10 * * * *", "0 2 * * 0"]
    # Airflow would take a mere expression in its own default_timezone.
    assert {str(timetable.timezone) for timetable in timetables} == {"UTC"}
    assert by_id["archive_old_analytics"].is_paused_upon_creation is True
    # Without a start date, unpausing waits for the next Sunday; with one, it would delete at once.
    assert by_id["archive_old_analytics"].start_date is None
    batches = by_id["archive_old_analytics"].get_task("delete_event_batch").partial_kwargs
    assert batches["max_active_tis_per_dag"] == settings.archive_parallelism
    # A pool that nobody has made keeps tasks waiting for ever, without a word.
    assert {task.pool for task_id in JOBS for task in by_id[task_id].tasks} == {"default_pool"}


def test_retry_policy_fails_at_once_what_a_retry_cannot_mend() -> None:
    policy = dags()["archive_old_analytics"].get_task("seal_days").retry_policy

    def decide(error: type[Exception]) -> str:
        return str(policy.evaluate(error(), 1, 4).action.value)

    errors = psycopg.errors
    for permanent in (errors.UndefinedTable, errors.InsufficientPrivilege, errors.SyntaxError, errors.DivisionByZero):
        assert decide(permanent) == "fail"
    for fault in (TypeError, ValueError, KeyError, IndexError, AttributeError, UnboundLocalError, ZeroDivisionError):
        assert decide(fault) == "fail"
    passing = (
        ConnectionError,
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


@pytest.mark.parametrize("dag_id", JOBS)
def test_what_writes_from_a_snapshot_fails_if_somebody_else_wrote_meanwhile(dag_id: str) -> None:
    found = set()
    for task in dags()[dag_id].tasks:
        arguments = task.partial_kwargs if task.is_mapped else vars(task)
        settings = arguments.get("session_settings") or {}
        if settings.get("default_transaction_isolation") == "repeatable read":
            found.add(task.task_id)
    assert found == {"aggregate_day"} & EDGES[dag_id].keys()


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

    def test_a_row_is_kept_where_others_deleted_until_somebody_says_recount(
        self, database: Database, now: datetime, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old = now - timedelta(days=40)
        gone, _ = database.event(old), database.event(old)
        aggregate(capsys)
        database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [gone])
        kept = (
            "Aggregated 1 events for website site, but kept its row, which counts 2: somebody else deleted raw events"
        )
        day = str(old.date())
        assert kept in aggregate(capsys).log
        assert [row["total_events"] for row in stats(database)] == [2]
        assert aggregate(capsys).labels["aggregate_day"] == [str((now - timedelta(days=1)).date())], "it is not due"
        recount = {"from": day, "to": day, "recount": True}
        assert "✅ Aggregated 1 events for website site [" in aggregate(capsys, conf=recount).log
        assert [row["total_events"] for row in stats(database)] == [1]

    def test_another_time_zone_holds_from_tomorrow_on(
        self, database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        zones = "SELECT from_date::text, timezone FROM analytics_timezone ORDER BY from_date"
        for _ in range(2):
            assert "ANALYTICS_TIMEZONE is" not in aggregate(capsys).log
        monkeypatch.setattr(settings, "timezone", "Asia/Tokyo")
        tomorrow = str((datetime.now(ZoneInfo("Asia/Tokyo")) + timedelta(days=1)).date())
        sentence = f"[Analytics] ANALYTICS_TIMEZONE is Asia/Tokyo now: days from {tomorrow} on are of it, those before"
        assert [sentence in aggregate(capsys).log for _ in range(2)] == [True, False]
        assert [tuple(row.values()) for row in database.query(zones)] == [
            ("-infinity", "UTC"),
            (tomorrow, "Asia/Tokyo"),
        ]

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
        assert "[Analytics Cleanup] Ended 1 session(s) again that had come back" in run.log
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
        assert [run.log.count(f"Found {rows} stale session(s) to close") for rows in (1000, 500)] == [2, 1]
        # Of each batch a hundred lines, the first of which is its number of rows, and the last one.
        assert run.log.count("✅ Closed session ") == 98 + 1 + 99 + 1 + 99
        assert [run.log.count(f"... and {count} more line(s)") for count in (901, 900)] == [1, 1]
        assert "[Analytics Cleanup] ✅ Closed 2500 stale session(s)" in run.log
        assert database.value("SELECT rows_written FROM analytics_job_run") == 2500


@pytest.mark.parametrize("dag_id", JOBS)
def test_a_database_that_is_not_right_is_one_sentence_and_nothing_is_done(
    database: Database, capsys: pytest.CaptureFixture[str], dag_id: str
) -> None:
    database.connection.execute("DROP SCHEMA analytics CASCADE")
    run = run_dag(dag_id, capsys)
    assert run.state == "failed"
    assert 'The jobs\' schema is not in the database, or of an older release: run "make schema".' in run.log
    tried = {task for task, states in run.tasks.items() if states != ["upstream_failed"]}
    assert tried == {"check_database", "close_run"}
    # What kept the job from its work keeps the closing task from its own: neither is tried again.
    assert run.log.count("The next run of any job writes into the ledger how this one ended.") >= 1


def test_the_applications_table_of_the_same_name_is_left_alone(
    database: Database, now: datetime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database.connection.execute("GRANT ALL ON public.analytics_daily_stats TO analytics_jobs")
    database.event(now - timedelta(days=1))
    assert aggregate(capsys).state == "success"
    assert database.value("SELECT count(*) FROM public.analytics_daily_stats") == 0
    assert database.value("SELECT count(*) FROM analytics.analytics_daily_stats") == 1

    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", uri.replace("analytics,public", "public,analytics"))
    monkeypatch.setitem(JOB["default_args"], "retries", 0)
    run = aggregate(capsys)
    assert (run.state, run.tasks["check_database"]) == ("failed", ["failed"])
    assert "Table analytics.analytics_daily_stats is not the first of its name along search_path" in run.log
