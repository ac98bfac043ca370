"""The Analytics page, asked in a real api-server: who may see it, what it says, and what when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import embedded
import page_rows
from conftest import ROOT, Database

if TYPE_CHECKING:
    from page_server import Page

pytest_plugins = ["page_server"]

JOBS = {"aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"}
GROUPS = ("status", "traffic", "visitors", "day", "storage", "raw")
TODAY = datetime.now(UTC).date()


def routes() -> list[Any]:
    sys.path.append(str(ROOT / "plugins"))
    from web_analytics_page.app import app

    return list(app.routes)


def test_every_route_is_for_those_who_are_logged_in_and_only_reads(page: Page) -> None:
    paths = {"/": [""], "/static/{name}": ["static/page.css", "static/page.js", "static/chart.js"]}
    paths["/data/{group}"] = [f"data/{group}" for group in GROUPS]
    assert {route.path: route.methods for route in routes()} == {path: {"GET"} for path in paths}
    for path in [f"/analytics/{path}" for examples in paths.values() for path in examples]:
        assert page.request(path, user="nobody")[0] == 401, path
        assert page.request(path, user="guest")[0] == 403, f"{path}: has no role"
        assert page.request(path, user="clerk")[0] == 403, f"{path}: may not see the runs of one job"
        assert page.request(path)[0] == 200, path
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert page.request(path, method, "admin")[0] == 405, path
    for path in ("docs", "redoc", "openapi.json", "static/app.py", "static/..%2Fapp.py", "data/runs"):
        assert page.request(f"/analytics/{path}")[0] in (404, 422), path
        assert page.request(f"/analytics/{path}", user="nobody")[0] in (401, 404), path


def test_jobs_and_alerts(page: Page, database: Database) -> None:
    page_rows.job_runs(database)
    page_rows.alert(database, "cleanup_missing", "", "No cleanup for 3 hours")
    page_rows.alert(database, "traffic_missing", "shop", "No traffic")
    database.connection.execute("UPDATE analytics_alert SET recovered_at = now() WHERE subject = 'shop'")
    (alert,) = page.rows("status", "alerts")
    assert (alert["condition"], alert["message"]) == ("cleanup_missing", "No cleanup for 3 hours")

    runs = page.rows("status", "runs")
    assert {run["job"] for run in runs} == JOBS
    assert [run["started_at"] for run in runs] == sorted(run["started_at"] for run in runs)
    cleanup = [run for run in runs if run["job"] == "cleanup_analytics_sessions"]
    assert len(cleanup) == 30
    failed = [(run["problem"], run["seconds"] is None) for run in cleanup if run["outcome"] == "failed"]
    assert failed == [
        ("close_idle_sessions failed: canceling statement due to lock timeout", False),
        ("Its process was lost", True),
    ]
    jobs = {job["job"]: job for job in page.rows("status", "jobs")}
    ended = database.value("SELECT count(*) FROM analytics_job_run WHERE job = %s", cleanup[0]["job"])
    assert (jobs[cleanup[0]["job"]]["ended"], jobs[cleanup[0]["job"]]["failed"]) == (ended, 2)
    assert jobs[cleanup[0]["job"]]["success_run_id"] == cleanup[-1]["run_id"]
    assert 3 < jobs[cleanup[0]["job"]]["median_seconds"] < 4.5


def test_run_that_runs_is_neither_a_success_nor_a_failure(page: Page, database: Database) -> None:
    job = "archive_old_analytics"
    insert = "INSERT INTO analytics_job_run (job, run_id, started_at, finished_at, outcome) VALUES (%s, %s, now() - %s, %s, %s)"
    hour = timedelta(hours=1)
    database.connection.execute(
        insert.encode(), (job, "old", 40 * 24 * hour, datetime.now(UTC) - 959 * hour, "success")
    )
    database.connection.execute(insert.encode(), (job, "now", hour, None, "running"))
    assert [(run["run_id"], run["outcome"]) for run in page.rows("status", "runs")] == [
        ("old", "success"),
        ("now", "running"),
    ]
    assert page.rows("status", "runs")[1]["seconds"] == pytest.approx(3600, abs=60)
    (summary,) = page.rows("status", "jobs")
    assert (summary["ended"], summary["failed"], summary["success_run_id"]) == (0, 0, "old")


def test_traffic_is_that_of_the_read_side(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=3, days=10, until=TODAY)
    for visitor in ("a", "b", "b"):
        database.event(now - timedelta(seconds=1), website_id="website-01", visitor_id=visitor, pathname="/new")
    start = TODAY - timedelta(days=4)
    for website in ("", "website-02"):
        query = f"from_day={start}&to_day={TODAY}&live=true" + (f"&website={website}" if website else "")
        rows = page.rows("traffic", "traffic", query)
        assert [row for row in rows if row["date"]] == database.query(
            """
            SELECT date::text, NULL AS website_id, sum(total_pageviews)::bigint AS pageviews,
                sum(unique_visitors)::bigint AS visitors, sum(unique_sessions)::bigint AS sessions,
                bool_or(aggregated_at IS NULL) AS is_live
            FROM analytics_traffic_daily WHERE date BETWEEN %s AND %s AND (%s = '' OR website_id = %s)
            GROUP BY date ORDER BY date
            """,
            start,
            TODAY,
            website,
            website,
        )
        found = {row["website_id"]: row["pageviews"] for row in rows if row["website_id"]}
        assert found == {
            row["website_id"]: row["sum"]
            for row in database.query(
                "SELECT website_id, sum(total_pageviews)::int FROM analytics_traffic_daily"
                " WHERE date BETWEEN %s AND %s GROUP BY 1",
                start,
                TODAY,
            )
        }
    query = f"from_day={start}&to_day={TODAY}"
    aggregated = {row["date"]: row for row in page.rows("traffic", "traffic", query) if row["date"]}
    assert list(aggregated) == [str(start + timedelta(days=day)) for day in range(4)]
    both = {row["date"]: row for row in page.rows("traffic", "traffic", f"{query}&live=true") if row["date"]}
    assert both == aggregated | {str(TODAY): both[str(TODAY)]}, "what is shown first is what is shown then"
    counted = page.rows("visitors", "visitors", f"from_day={TODAY}&to_day={TODAY}")
    assert counted == [{"website_id": "website-01", "visitors": 2}]
    sketched = {row["website_id"]: row["visitors"] for row in page.rows("visitors", "visitors", query)}
    assert sketched["website-02"] == database.value(
        "SELECT analytics_sketch_visitors(bit_or(visitor_sketch)) FROM analytics_daily_stats"
        " WHERE website_id = 'website-02' AND date BETWEEN %s AND %s",
        start,
        TODAY,
    )


def test_top_pages_and_referrers_of_a_day(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=2, days=3, until=TODAY)
    yesterday = f"to_day={TODAY - timedelta(days=1)}"
    everywhere = page.rows("day", "top_items", yesterday)
    assert [(row["kind"], row["item"], row["website_id"], row["pageviews"]) for row in everywhere] == [
        (kind, name.format(place // 2 + 1), f"website-0{place % 2 + 1}", most - place // 2 - 1)
        for kind, name, most in (("page", "/products/item-{}", 100), ("referrer", "shop-{}.example.org", 50))
        for place in range(10)
    ]
    one = page.rows("day", "top_items", f"{yesterday}&website=website-02")
    assert {row["website_id"] for row in one} == {"website-02"}
    assert len(one) == 20
    database.event(now - timedelta(seconds=1), website_id="website-01", pathname="/new", referrer_source="direct")
    assert page.rows("day", "top_items", f"to_day={TODAY}") == []
    live = page.rows("day", "top_items", f"to_day={TODAY}&live=true")
    assert [(row["kind"], row["item"], row["pageviews"]) for row in live] == [
        ("page", "/new", 1),
        ("referrer", "direct", 1),
    ]


def test_open_sessions(page: Page, database: Database, now: datetime) -> None:
    for minutes, columns in ((1, {}), (29, {}), (31, {}), (1, {"ended_at": now}), (1, {"deleted_at": now})):
        database.session(now - timedelta(hours=1), now - timedelta(minutes=minutes), **columns)
    assert page.rows("traffic", "open_sessions") == [{"website_id": "site", "sessions": 3, "idle": 1}]


def test_raw_events_by_age_against_the_cutoff(page: Page, database: Database, midnight: datetime) -> None:
    now = datetime.now(UTC)
    held = "INSERT INTO analytics_website_policy (website_id, retention_days, legal_hold) VALUES ('brief', 10, false), ('held', NULL, true)"
    database.connection.execute(held.encode())
    second = timedelta(seconds=1)
    for moment in (now, midnight, midnight - second, now - timedelta(days=4000)):
        database.event(moment)
    database.event(now - timedelta(days=11, hours=1), website_id="brief")
    database.event(midnight - second, website_id="held")
    database.event(now + timedelta(days=1))
    rows = page.rows("raw", "raw_events")
    assert [row["weeks"] for row in rows] == list(range(105))
    assert {row["weeks"]: (row["events"], row["expired"]) for row in rows if row["events"]} == {
        0: (2, 0), 1: (1, 1), 12: (3, 1), 104: (1, 1),
    }  # fmt: skip


def test_events_with_a_time_that_no_calendar_has(page: Page, database: Database, midnight: datetime) -> None:
    for moment, website_id in (
        ("-infinity", "site"), ("0001-01-01 00:00 BC", "site"), ("infinity", "site"), ("10001-01-01", "other"),
        (midnight, "site"), (midnight - timedelta(seconds=1), "site"), ("0001-01-03", "third"),
    ):  # fmt: skip
        database.event(moment, website_id=website_id)
    database.event("-infinity", website_id="deleted", deleted_at=midnight)
    assert page.rows("raw", "anomalies") == [{"website_id": "site", "events": 3}, {"website_id": "other", "events": 1}]
    # They are never deleted, so no run will.
    assert sum(row["expired"] for row in page.rows("raw", "raw_events")) == 2


def test_database_size_and_its_forecast(page: Page, database: Database) -> None:
    size = "INSERT INTO analytics_job_run (job, run_id, started_at, finished_at, database_bytes) VALUES ('job', %s, %s, %s, %s)"
    now_bytes = database.value("SELECT pg_database_size(current_database())")
    for days in (1, 6, 20, 50):
        moment = datetime.now(UTC) - timedelta(days=days)
        database.connection.execute(size.encode(), (str(days), moment, moment, now_bytes - days * 1_000_000))
    rows = page.rows("storage", "database_size")
    sizes = {date.fromisoformat(row["day"]): row["bytes"] for row in rows if row["bytes"]}
    assert sizes[TODAY - timedelta(days=20)] == now_bytes - 20_000_000
    assert sizes[TODAY] == pytest.approx(now_bytes, rel=0.01)
    forecast = [row for row in rows if row["forecast"] is not None]
    assert (forecast[0]["day"], forecast[-1]["day"]) == (str(TODAY), str(TODAY + timedelta(weeks=8)))
    assert forecast[-1]["forecast"] == pytest.approx(now_bytes + 56_000_000, rel=0.02)
    database.connection.execute("DELETE FROM analytics_job_run WHERE started_at < now() - interval '7 days'")
    assert all(row["forecast"] is None for row in page.rows("storage", "database_size")), "less than a week is no trend"


def test_rows_deleted_per_week(page: Page, database: Database) -> None:
    monday = TODAY - timedelta(days=TODAY.weekday())
    insert = "INSERT INTO analytics_job_run (job, run_id, started_at, rows_deleted) VALUES (%s, %s, %s, %s)"
    for job, run_id, days, deleted in (
        ("archive_old_analytics", "first", 14, 5),
        ("archive_old_analytics", "second", 8, 7),
        ("archive_old_analytics", "retry", 7.5, 1),
        ("cleanup_analytics_sessions", "other", 0, 9),
    ):
        moment = datetime.combine(monday, datetime.min.time(), UTC) - timedelta(days=days)
        database.connection.execute(insert.encode(), (job, run_id, moment, deleted))
    rows = [(row["monday"], row["rows_deleted"], row["run_ids"]) for row in page.rows("storage", "deleted_rows")]
    assert rows == [
        (str(monday - timedelta(days=14)), 13, ["first", "second", "retry"]),
        (str(monday - timedelta(days=7)), 0, []),
        (str(monday), 0, []),
    ]


def test_empty_database(page: Page) -> None:
    results = {name: result for group in GROUPS for name, result in page.data(group, "live=true").items()}
    assert [row["forecast"] for row in results.pop("database_size")["rows"]] == [None]
    assert list(results.values()) == [{"rows": []}] * 10


def test_missing_connection_and_stopped_database(page: Page, database: Database) -> None:
    page.disconnect()
    status, answer = page.request("/analytics/data/status")
    assert status == 503
    assert "no connection analytics_reader: make a login" in json.loads(answer)["problem"]
    page.connect(database, port=embedded.free_port())
    status, answer = page.request("/analytics/data/status")
    assert status == 503
    assert "database does not answer: check that it runs" in json.loads(answer)["problem"]
    page.connect(database, extra='{"no_such_option": 1}')
    assert page.request("/analytics/data/status")[0] == 503
    for path in ("/analytics/", "/api/v2/dags"):
        assert page.request(path)[0] == 200, "Airflow and the page itself do not depend on the database"
    page.connect(database)
    assert page.rows("status", "alerts") == []


def test_missing_table_or_privilege_leaves_the_rest(page: Page, database: Database) -> None:
    database.connection.execute("DROP TABLE analytics_alert; REVOKE SELECT ON analytics_session FROM analytics_readers")
    assert 'run "make schema"' in page.data("status")["alerts"]["problem"]
    assert page.rows("status", "runs") == []
    assert "a member of analytics_readers" in page.data("traffic")["open_sessions"]["problem"]
    assert page.rows("traffic", "traffic") == []
    page.connect(database, extra="{}")
    assert "put its schema (analytics) first" in page.data("status")["runs"]["problem"]


def hide_view(database: Database, condition: str) -> None:
    """Put a view in the place of analytics_traffic_daily that asks this of each row of it."""
    database.connection.execute(
        f"""
        ALTER VIEW analytics_traffic_daily RENAME TO traffic;
        CREATE VIEW analytics_traffic_daily AS SELECT * FROM traffic WHERE {condition};
        GRANT SELECT ON analytics_traffic_daily TO analytics_readers
        """.encode()
    )


def test_slow_count_is_cancelled_and_a_lock_not_waited_for(page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=1, days=2, until=TODAY)
    hide_view(database, "pg_sleep(60) IS NOT NULL")
    days = f"from_day={TODAY - timedelta(days=2)}&to_day={TODAY}"
    assert "longer than 5 seconds" in page.data("traffic", f"{days}&live=true")["traffic"]["problem"]
    assert len(page.rows("traffic", "traffic", days)) == 3, "what is aggregated is shown all the same"
    with psycopg.connect(database.dsn, options="-c search_path=analytics,public") as holder:
        holder.execute("LOCK TABLE analytics_alert")
        assert "is locked" in page.data("status")["alerts"]["problem"]


def test_page_cannot_write_even_as_the_owner(page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=1, days=2, until=TODAY)
    page.connect(database, login="postgres")
    write = """
        CREATE FUNCTION write_row() RETURNS boolean LANGUAGE sql
        AS $$ INSERT INTO analytics_website_policy VALUES ('x') ON CONFLICT DO NOTHING; SELECT true $$
        """
    database.connection.execute(write.encode())
    hide_view(database, "write_row()")
    assert "problem" in page.data("traffic", "live=true")["traffic"]
    assert database.value("SELECT count(*) FROM analytics_website_policy") == 0


def test_plugin_is_light_and_never_breaks_airflow() -> None:
    script = """
        import sys
        from airflow import plugins_manager
        plugins_manager.ensure_plugins_loaded()
        assert not plugins_manager.get_import_errors(), plugins_manager.get_import_errors()
        (page,) = [plugin for plugin in plugins_manager._get_plugins()[0] if plugin.name == "analytics_page"]
        assert not {"fastapi", "psycopg", "web_analytics_page", "app"} & set(sys.modules), "every task would import it"
        sys.modules["web_analytics_page.app"] = None
        assert page.fastapi_apps == [], "the api-server starts without the page"
        del sys.modules["web_analytics_page.app"]
        assert [app["url_prefix"] for app in page.fastapi_apps] == ["/analytics"]
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "The Analytics page cannot be loaded" in done.stdout + done.stderr
