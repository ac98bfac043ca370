"""The Analytics page, asked in a real api-server: who may see it, what it says, and what when something is missing."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import psycopg
import pytest

import embedded
import page_rows
from conftest import QUERIES, ROOT, Database
from local_airflow import READER

if TYPE_CHECKING:
    from page_server import Page

pytest_plugins = ["page_server"]
sys.path.append(str(ROOT / "plugins"))

JOBS = {"aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"}
PARTS = ("status", "range", "traffic", "items", "retention", "storage")
TABLES = ("days", "websites", "items")
TODAY = datetime.now(UTC).date()
DAY = timedelta(days=1)
SITE = "website-01"
MARKUP = """<img src=x onerror=alert(1)>"'</script>"""


def routes() -> list[Any]:
    from web_analytics_page.app import app

    return list(app.routes)


def ask(database: Database, query: str, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of a query of the page, as its role."""
    length = TODAY - parameters.get("from_day", TODAY) + DAY
    days = {"from_day": TODAY, "to_day": TODAY, "before_day": parameters.get("from_day", TODAY) - length}
    settings = {"website": None, "live": False, "retention_days": 90, "idle_minutes": 30}
    with database.connect(READER) as connection:
        rows: list[dict[str, Any]] = database.run(QUERIES / f"{query}.sql", connection, **days | settings | parameters)
        return rows


def test_every_route_is_for_those_who_are_logged_in_and_only_reads(page: Page) -> None:
    paths = {"/": [""], "/static/{name}": ["static/page.css", "static/page.js", "static/chart.js"]}
    paths |= {"/part/range": ["part/range"], "/part/{name}": [f"part/{name}" for name in PARTS]}
    paths["/csv/{name}"] = [f"csv/{name}" for name in TABLES]
    assert {route.path: route.methods for route in routes()} == {path: {"GET"} for path in paths}
    for path in [f"/analytics/{path}" for examples in paths.values() for path in examples]:
        assert page.request(path, user="nobody")[0] == 401, path
        assert page.request(path, user="guest")[0] == 403, f"{path}: has no role"
        assert page.request(path, user="clerk")[0] == 403, f"{path}: may not see the runs of one job"
        assert page.request(path)[0] == 200, path
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert page.request(path, method, "admin")[0] == 405, path
    for path in (
        "docs",
        "redoc",
        "openapi.json",
        "static/app.py",
        "static/..%2Fapp.py",
        "part/items_table",
        "csv/names",
    ):
        assert page.request(f"/analytics/{path}")[0] in (404, 422), path
        assert page.request(f"/analytics/{path}", user="nobody")[0] in (401, 404), path


def test_jobs_and_alerts(page: Page, database: Database) -> None:
    page_rows.job_runs(database)
    page_rows.alert(database, "cleanup_missing", "", "No cleanup for 3 hours")
    page_rows.alert(database, "traffic_missing", "shop", "No traffic")
    database.connection.execute("UPDATE analytics_alert SET recovered_at = now() WHERE subject = 'shop'")
    (alert,) = ask(database, "alerts")
    assert (alert["condition"], alert["message"]) == ("cleanup_missing", "No cleanup for 3 hours")
    text = page.text("status")
    assert text.startswith("✗ 1 open alert; paused: every job")
    assert "cleanup missing: No cleanup for 3 hours Open since 3 hours ago ; people were told 3 hours ago" in text
    assert "No traffic" not in text

    runs = ask(database, "runs")
    assert {run["job"] for run in runs} == JOBS
    assert [run["started_at"] for run in runs] == sorted(run["started_at"] for run in runs)
    cleanup = [run for run in runs if run["job"] == "cleanup_analytics_sessions"]
    assert len(cleanup) == 30
    failed = [(run["problem"], run["seconds"] is None) for run in cleanup if run["outcome"] == "failed"]
    assert failed == [
        ("close_idle_sessions failed: canceling statement due to lock timeout", False),
        ("Its process was lost", True),
    ]
    jobs = {job["job"]: job for job in ask(database, "jobs")}
    ended = database.value("SELECT count(*) FROM analytics_job_run WHERE job = %s", cleanup[0]["job"])
    assert (jobs[cleanup[0]["job"]]["ended"], jobs[cleanup[0]["job"]]["failed"]) == (ended, 2)
    assert jobs[cleanup[0]["job"]]["success_run_id"] == cleanup[-1]["run_id"]
    assert 3 < jobs[cleanup[0]["job"]]["median_seconds"] < 4.5
    chart = page.charts("status")["durations-cleanup_analytics_sessions"]
    bad = [number for number, run in enumerate(cleanup) if run["outcome"] == "failed"]
    assert chart["series"][0]["bad"] == bad
    assert chart["links"][0].startswith("../dags/cleanup_analytics_sessions/runs/scheduled__")


def test_run_that_runs_is_neither_a_success_nor_a_failure(page: Page, database: Database) -> None:
    job = "archive_old_analytics"
    insert = "INSERT INTO analytics_job_run (job, run_id, started_at, finished_at, outcome) VALUES (%s, %s, now() - %s, %s, %s)"
    hour = timedelta(hours=1)
    database.connection.execute(
        insert.encode(), (job, "old", 40 * 24 * hour, datetime.now(UTC) - 959 * hour, "success")
    )
    database.connection.execute(insert.encode(), (job, "now", hour, None, "running"))
    runs = ask(database, "runs")
    assert [(run["run_id"], run["outcome"]) for run in runs] == [("old", "success"), ("now", "running")]
    assert runs[1]["seconds"] == pytest.approx(3600, abs=60)
    (summary,) = ask(database, "jobs")
    assert (summary["ended"], summary["failed"], summary["success_run_id"]) == (0, 0, "old")
    assert "… Running, started 1 hour ago" in page.text("status")


# --- Traffic


def test_traffic_is_that_of_the_read_side(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=3, days=20, until=TODAY)
    for visitor in ("a", "b", "b"):
        database.event(now - timedelta(seconds=1), website_id=SITE, visitor_id=visitor, pathname="/new")
    start = TODAY - 4 * DAY
    for website in (None, "website-02"):
        for live in (False, True):
            rows = ask(database, "traffic", from_day=start, website=website, live=live)
            for first, last, periods in (
                (start, TODAY, {"range", "open"}),
                (start - 5 * DAY, start - 2 * DAY, {"before"}),
            ):
                totals = database.query("SELECT * FROM analytics_totals(%s, %s, %s, %s)", website, first, last, live)
                for total in totals:
                    own = [row for row in rows if row["website_id"] == total["website_id"] and row["period"] in periods]
                    for column, name in (
                        ("pageviews", "total_pageviews"), ("custom_events", "total_custom_events"), ("sessions", "sessions"),
                        ("visitors", "visitor_days"), ("late_events", "late_events"), ("days", "days"),
                        ("known_sessions", "known_sessions"), ("bounced_sessions", "bounced_sessions"),
                        ("session_seconds", "session_seconds"),
                    ):  # fmt: skip
                        assert sum(row[column] for row in own) == total[name], column
                by_day = [row for row in rows if row["date"] and row["period"] in periods]
                assert sum(row["pageviews"] for row in by_day) == sum(row["total_pageviews"] for row in totals)
    days = {row["date"]: row for row in ask(database, "traffic", from_day=start, live=True) if row["date"]}
    assert (days[TODAY]["period"], days[TODAY]["is_live"], days[TODAY]["visitors"]) == ("open", True, 2)
    assert (days[TODAY - DAY]["period"], days[TODAY - DAY]["is_live"]) == ("range", False)
    assert start - DAY not in days, "the counterpart of the day that is not over"
    chart = page.charts("traffic", range=5, live=True)["traffic-chart"]
    sessions, visitors, pageviews = chart["series"]
    assert (sessions["data"][-1], visitors["data"][-1]) == (None, None), "a line down to it would look like a loss"
    assert (pageviews["data"][-1], pageviews["hatched"]) == (3, [4])


def test_a_day_is_over_when_it_is_so_for_the_website(page: Page, database: Database) -> None:
    zone = "Etc/GMT+12"  # where it is yesterday until noon
    database.connection.execute("INSERT INTO analytics_timezone VALUES ('west', '-infinity', %s)", [zone])
    page_rows.day_stats(database, "west", TODAY - 9 * DAY, 5)
    local: Any = database.value("SELECT (now() AT TIME ZONE %s)::date", zone)
    for website, today in (("west", local), (None, local), ("east", TODAY)):
        page_rows.day_stats(database, "east", TODAY - 9 * DAY, 5) if website == "east" else None
        rows = ask(database, "traffic", from_day=TODAY - 9 * DAY, website=website)
        assert {row["last_day"] for row in rows} == {today - DAY}, website


def test_visitors_of_a_range_are_counted_once(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=2, days=20, until=TODAY)
    database.connection.execute("UPDATE analytics_daily_stats SET sealed_at = now()")
    days = {"from_day": TODAY - 5 * DAY, "last_day": TODAY - DAY, "website": SITE}
    found = {row["period"]: row["visitors"] for row in ask(database, "visitors", **days)}
    for period, first, last in (("all", 5, 0), ("range", 5, 1), ("before", 11, 7)):
        question = "SELECT analytics_unique_visitors(%s, %s, %s)"
        assert found[period] == database.value(question, SITE, TODAY - first * DAY, TODAY - last * DAY), period
    for visitor in ("a", "b", "b"):
        database.event(now - timedelta(seconds=1), website_id="new", visitor_id=visitor)
    new = ask(database, "visitors", website="new", last_day=TODAY - DAY, live=True)
    assert new == [{"period": "all", "visitors": 2}]
    assert f"Visitors {found['all']:,}" in page.text("traffic", website=SITE, range=6, live=True)
    text = page.text("traffic", range=6, live=True)
    a_day = database.value(
        "SELECT sum(unique_visitors) / 5.0 FROM analytics_daily_stats WHERE date >= %s", TODAY - 5 * DAY
    )
    assert f"Visitors a day {a_day:,.0f}" in text, "a sum of visitors of several websites is nothing"


def week(database: Database, website: str, pageviews: int, days_ago: int, **columns: Any) -> None:
    """Stats of the seven days before so many days ago."""
    for number in range(1, 8):
        page_rows.day_stats(database, website, TODAY - (days_ago + number) * DAY, pageviews, **columns)


def test_range_is_compared_with_as_many_whole_days_before(page: Page, database: Database, now: datetime) -> None:
    week(database, "shop", 100, 7)
    week(database, "shop", 120, 0)
    page_rows.day_stats(database, "shop", TODAY - 15 * DAY, 1)
    database.event(now - timedelta(seconds=1), website_id="shop")
    seven = {"from": TODAY - 7 * DAY, "to": TODAY - DAY, "live": True}
    text = page.text("traffic", website="shop", **seven)
    for tile in (
        "Pageviews 840 +20 %",
        "Sessions 840 +20 %",
        "Bounce rate 25.0 % ±0.0 points",
        "duration 1 min 30 s ±0 %",
    ):
        assert tile in text
    assert "Custom events 0 Changes:" in text, "there were none before: no change in percent"
    assert "what is not over" not in text
    # Today has begun: it is in the total, and neither it nor its counterpart in the change.
    text = page.text("traffic", website="shop", range=7, live=True)
    assert "Pageviews 721 +20 %" in text, "6 days of 120 against 6 of 100"
    assert "what is not over is not compared" in text
    assert "%" not in page.text("traffic", website="shop", **seven | {"live": False}).split("Sessions")[0], (
        "not yet complete"
    )
    assert "A day that is not over is not compared" in page.text("traffic", website="shop", range=1, live=True)


def test_what_is_known_in_part_is_not_compared(page: Page, database: Database) -> None:
    week(database, "shop", 120, 0)
    page_rows.day_stats(database, "shop", TODAY - 8 * DAY, 1)
    seven = {"from": TODAY - 7 * DAY, "to": TODAY - DAY, "live": True}
    text = page.text("traffic", **seven)
    assert "Pageviews 840 Visitors" in text
    assert "nothing, or only a part, is known before" in text
    # A website that is new is no growth of the others.
    week(database, "old", 100, 7)
    week(database, "old", 50, 0)
    text = page.text("traffic", **seven)
    assert "Pageviews 1,190 −50 %" in text  # noqa: RUF001
    assert "of the 1 of 2 websites that are known since then" in text
    assert "old 350 −50 %" in text  # noqa: RUF001
    assert "shop 840 60" in text, "without a change"


def test_rows_sealed_before_the_upgrade_say_so(page: Page, database: Database) -> None:
    unknown = {"bounced_sessions": None, "session_seconds": None}
    week(database, "shop", 100, 7, **unknown)
    week(database, "shop", 100, 0)
    seven = {"from": TODAY - 7 * DAY, "to": TODAY - DAY, "live": True, "website": "shop"}
    text = page.text("traffic", **seven)
    assert "Bounce rate 25.0 % Session duration 1 min 30 s Custom" in text, "no change: the week before is not known"
    text = page.text("traffic", **seven | {"from": TODAY - 9 * DAY})
    assert "Bounce rate 25.0 %" in text, "of the sessions that are known"
    assert "not known of 200 sessions: their days were sealed before the upgrade" in text
    text = page.text("traffic", **seven | {"from": TODAY - 9 * DAY, "to": TODAY - 8 * DAY})
    assert "Bounce rate – Session duration – Custom" in text  # noqa: RUF001
    text = page.text("items", tab="countries", **seven | {"from": TODAY - 9 * DAY})
    assert "Not known of 2 days that were sealed before the upgrade" in text
    assert "Not known" not in page.text("items", tab="pages", **seven | {"from": TODAY - 9 * DAY})


def test_late_events_are_told_where_there_are_any(page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=3, days=10, until=TODAY)
    assert "Late: 7 events of website-02 came after their day was sealed." in page.text("traffic")
    assert "Late: 7 events came after" in page.text("traffic", website="website-02")
    assert "Late" not in page.text("traffic", website="website-03")
    database.connection.execute("INSERT INTO analytics_website_policy (website_id, name) VALUES ('website-02', 'Tea')")
    assert "Late: 7 events of Tea (website-02) came" in page.text("traffic")


def test_websites_are_called_by_their_names(page: Page, database: Database, now: datetime) -> None:
    for website, name in (("01JM1PEW9H0ES7GGMD173GM2T9", "Shop"), ("second", "Shop"), ("third", None), ("fourth", "")):
        page_rows.day_stats(database, website, TODAY - DAY, 10)
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, name) VALUES (%s, %s)", (website, name)
        )
    text = page.text("traffic")
    for label in ("Shop 01JM1PEW9H0ES7GGMD173GM2T9 10", "Shop second 10", "third 10", "fourth 10"):
        assert label in text
    assert "All websites › Shop second" in page.text("traffic", website="second")  # noqa: RUF001
    database.connection.execute("UPDATE analytics_website_policy SET retention_days = 1")
    database.event(now - 5 * DAY, website_id="second")
    assert "Shop second" in page.text("retention")


# --- The items of the tabs


def test_items_of_the_tabs(page: Page, database: Database, now: datetime) -> None:
    from web_analytics_page.view import TABS

    page_rows.daily_stats(database, websites=2, days=3, until=TODAY)
    assert page.part("items").strip() == "", "of one website only"
    for tab in TABS:
        rows = database.query("SELECT * FROM analytics_top_items(%s, %s, %s, %s)", SITE, TODAY - 29 * DAY, TODAY, tab)
        text = page.text("items", website=SITE, tab=tab)
        for row in rows:
            visitors = "" if tab in ("pages", "referrers") else f" {row['visitor_days']:,}"
            assert f"{row['item']} {row['count']:,}{visitors}" in text
        assert len(rows) > 3, tab
    database.event(now - timedelta(seconds=1), website_id=SITE, pathname="/new")
    today = {"website": SITE, "day": TODAY}
    assert "Nothing is aggregated yet" in page.text("items", **today)
    assert "/new 1" in page.text("items", **today, live=True)
    assert "/new" not in page.text("items", website=SITE, day=TODAY - DAY, live=True)
    assert "Nothing of this kind is known" in page.text("items", **today, tab="events", live=True)


def test_the_most_that_an_item_can_have_besides_is_told(page: Page, database: Database) -> None:
    items = [{"item": f"/{number}", "count": 100 - number} for number in range(10)]
    for day, shift in ((1, 0), (2, 5)):
        pages = [item | {"item": f"/{number + shift}"} for number, item in enumerate(items)]
        page_rows.day_stats(database, SITE, TODAY - day * DAY, 2000, top_pages=psycopg.types.json.Jsonb(pages))
    assert "an item can have had up to 91 more in all." in page.text("items", website=SITE)
    assert "more in all" not in page.text("items", website=SITE, day=TODAY - DAY)


# --- Files for spreadsheets


def table(page: Page, name: str, **query: Any) -> list[list[str]]:
    status, content = page.request(f"/analytics/csv/{name}?{urlencode(query)}")
    assert status == 200, content
    return list(csv.reader(content.decode("utf-8-sig").splitlines(keepends=True)))


def test_tables_are_files(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=2, days=10, until=TODAY)
    database.connection.execute(
        "INSERT INTO analytics_website_policy (website_id, name) VALUES ('website-02', 'Käse, \"fein\"')"
    )
    database.event(now - timedelta(seconds=1), website_id=SITE, pathname="/new")
    header, *rows = table(page, "days", range=3, website=SITE)
    assert header[:4] == ["date", "pageviews", "visitors", "sessions"]
    assert [row[0] for row in rows] == [str(TODAY - number * DAY) for number in (2, 1, 0)]
    assert rows[-1][1:4] == ["1", "1", "1"], "also what is counted now"
    header, *rows = table(page, "websites", range=3)
    assert [row[:2] for row in rows] == [["website-01", ""], ["website-02", 'Käse, "fein"']]
    header, *rows = table(page, "items", website=SITE, tab="countries")
    assert (header, rows[0][0]) == (["item", "count", "visitor_days", "hidden"], "DE")
    query = urlencode({"website": 'a/"b', "tab": "os", "day": TODAY})
    headers = page.headers(f"/analytics/csv/items?{query}")
    assert headers["Content-Type"] == "text/csv; charset=utf-8"
    assert headers["Content-Disposition"] == f'attachment; filename="os_a_b_{TODAY}_{TODAY}.csv"'


def test_no_cell_of_a_file_is_a_formula(page: Page, database: Database) -> None:
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@a", "\ta", "\rb", "a=b", 'quo"te', "new\nline", "comma,"]
    items = [{"item": name, "count": 20 - number} for number, name in enumerate(names)]
    page_rows.day_stats(database, "=cmd", TODAY - DAY, 100, top_pages=psycopg.types.json.Jsonb(items))
    _, *rows = table(page, "items", website="=cmd")
    assert [row[0] for row in rows] == [f"'{name}" for name in names[:6]] + names[6:]
    assert [row[1] for row in rows] == [str(20 - number) for number in range(10)], "numbers stay numbers"
    assert table(page, "websites")[1][0] == "'=cmd"


# --- The address


def test_address_holds_website_range_and_tab() -> None:
    from web_analytics_page.view import view

    shown = view(website="a&b", days=7, tab="os")
    assert (shown.first, shown.last, shown.length) == (TODAY - 6 * DAY, TODAY, 7)
    assert parse_qs(shown.link()[1:]) == {"website": ["a&b"], "range": ["7"], "tab": ["os"]}
    assert parse_qs(shown.link(website=None, day=TODAY)[1:]) == {"range": ["7"], "tab": ["os"], "day": [str(TODAY)]}
    chosen = view(first=TODAY - DAY, last=TODAY - 3 * DAY)
    assert (chosen.first, chosen.last) == (TODAY - 3 * DAY, TODAY - DAY)
    assert parse_qs(chosen.link()[1:]) == {"from": [str(chosen.first)], "to": [str(chosen.last)], "tab": ["pages"]}
    assert parse_qs(chosen.link(range=30)[1:]) == {"tab": ["pages"], "range": ["30"]}
    # Whatever the address says, the calendar has the range and the one before it.
    for extreme in (view(first=date.min, last=date.max), view(days=10**9), view(days=-5)):
        assert 1 <= extreme.length <= 1100
        assert extreme.parameters()["before_day"].year > 1990


def test_today_is_that_of_the_default_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    from web_analytics_page.view import view

    for zone in ("Etc/GMT+12", "Etc/GMT-14", "nonsense"):
        monkeypatch.setenv("ANALYTICS_TIMEZONE", zone)
        hours = {"Etc/GMT+12": -12, "Etc/GMT-14": 14}.get(zone, 0)
        assert view().last == (datetime.now(UTC) + timedelta(hours=hours)).date()


def test_unknown_values_of_the_address_are_one_sentence(page: Page) -> None:
    for query in ("tab=x", "range=many", "from=yesterday", "day=2026-13-01"):
        assert page.request(f"/analytics/part/items?{query}") == (
            422,
            b"The address of this page has a value that it does not know.",
        )


def test_whatever_visitors_sent_is_escaped(page: Page, database: Database, now: datetime) -> None:
    columns = {"pathname": MARKUP, "referrer_source": MARKUP, "country": MARKUP, "utm_source": MARKUP}
    for moment in (now - timedelta(seconds=1), now - 100 * DAY, "infinity"):
        database.event(moment, website_id=MARKUP, **columns)
    page_rows.alert(database, MARKUP, MARKUP, MARKUP)
    database.connection.execute(
        "INSERT INTO analytics_job_run (job, run_id, started_at, outcome, problem) VALUES (%s, %s, now(), 'failed', %s)",
        (MARKUP, MARKUP, MARKUP),
    )
    for name in (MARKUP, None):
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, name) VALUES (%s, %s)"
            " ON CONFLICT (website_id) DO UPDATE SET name = excluded.name",
            (MARKUP, name),
        )
        for part in PARTS:
            for query in ({}, {"website": MARKUP, "tab": "countries"}, {"website": MARKUP}):
                html = page.part(part, live=True, **query)
                assert not any(tag in html for tag in ("<img", "</script", "alert(1)>")), part
        assert MARKUP in page.text("traffic", live=True)


# --- The rest


def test_open_sessions(page: Page, database: Database, now: datetime) -> None:
    for minutes, columns in ((1, {}), (29, {}), (31, {}), (1, {"ended_at": now}), (1, {"deleted_at": now})):
        database.session(now - timedelta(hours=1), now - timedelta(minutes=minutes), **columns)
    assert ask(database, "open_sessions") == [{"website_id": "site", "sessions": 3, "idle": 1}]


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
    rows = ask(database, "raw_events")
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
    assert ask(database, "anomalies") == [{"website_id": "site", "events": 3}, {"website_id": "other", "events": 1}]
    # They are never deleted, so no run will.
    assert sum(row["expired"] for row in ask(database, "raw_events")) == 2


def test_database_size_and_its_forecast(page: Page, database: Database) -> None:
    size = "INSERT INTO analytics_job_run (job, run_id, started_at, finished_at, database_bytes) VALUES ('job', %s, %s, %s, %s)"
    now_bytes = database.value("SELECT pg_database_size(current_database())")
    for days in (1, 6, 20, 50):
        moment = datetime.now(UTC) - timedelta(days=days)
        database.connection.execute(size.encode(), (str(days), moment, moment, now_bytes - days * 1_000_000))
    rows = ask(database, "database_size")
    sizes = {row["day"]: row["bytes"] for row in rows if row["bytes"]}
    assert sizes[TODAY - timedelta(days=20)] == now_bytes - 20_000_000
    assert sizes[TODAY] == pytest.approx(now_bytes, rel=0.01)
    forecast = [row for row in rows if row["forecast"] is not None]
    assert (forecast[0]["day"], forecast[-1]["day"]) == (TODAY, TODAY + timedelta(weeks=8))
    assert forecast[-1]["forecast"] == pytest.approx(now_bytes + 56_000_000, rel=0.02)
    database.connection.execute("DELETE FROM analytics_job_run WHERE started_at < now() - interval '7 days'")
    assert all(row["forecast"] is None for row in ask(database, "database_size")), "less than a week is no trend"


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
    rows = [(row["monday"], row["rows_deleted"], row["run_ids"]) for row in ask(database, "deleted_rows")]
    assert rows == [
        (monday - timedelta(days=14), 13, ["first", "second", "retry"]),
        (monday - timedelta(days=7), 0, []),
        (monday, 0, []),
    ]


def test_what_the_next_retention_deletes_and_whether_the_brake_stops_it(
    page: Page, database: Database, midnight: datetime
) -> None:
    assert "Nothing: no raw data is past the cutoff" in page.text("retention")
    assert "stop" not in page.text("retention")
    for days, website in ((1, "shop"), (40, "shop"), (400, "shop"), (2, "blog")):
        database.event(midnight - days * DAY, website_id=website)
    database.session(midnight - DAY, midnight - DAY, website_id="shop")
    text = page.text("retention")
    assert "4 events and 1 session of 2 websites" in text
    assert "✗ It will stop before it deletes anything : it is the first one that finds any." in text
    assert "none, it is paused." in text
    oldest = f"{midnight - 400 * DAY:%-d %B %Y}"
    assert f"Sessions shop {oldest} 3 1 1 1 1 blog" in text
    run = "INSERT INTO analytics_job_run (job, run_id, started_at, outcome, expired_rows) VALUES ('archive_old_analytics', %s, now(), 'success', %s)"
    database.connection.execute(run.encode(), ("large", 1000))
    assert "✓ This is usual: it will not stop." in page.text("retention")
    database.connection.execute("UPDATE analytics_job_run SET expired_rows = 1")
    assert "that is more than 3 times 1, the median of the last 1 run(s)" in page.text("retention")


def test_empty_database(page: Page) -> None:
    for part, sentences in {
        "status": [
            "No alert is open; no run recorded yet: every job; paused: every job",
            "Never: unpause or trigger it",
        ],
        "traffic": ["No traffic from", "look whether the application writes to analytics_event", "0 open sessions now"],
        "retention": ["Nothing: no raw data is past the cutoff"],
        "storage": ["There is none. Look whether", "A forecast needs a week of sizes", "No run is recorded yet."],
    }.items():
        for sentence in sentences:
            assert sentence in page.text(part, live=True), part
    assert "Nothing is aggregated: the raw events are being counted" in page.text("traffic")
    text = page.text("traffic", website="unknown", live=True)
    assert "look whether its id is the one that the application writes" in text
    assert "Nothing of this kind is known of these days." in page.text("items", website="unknown", live=True)
    assert all(len(table(page, name, website="unknown")) == 1 for name in TABLES)


def test_missing_connection_and_stopped_database(page: Page, database: Database) -> None:
    page.disconnect()
    status, answer = page.request("/analytics/part/status")
    assert status == 503
    assert "no connection analytics_reader, or cannot read it: make a login" in answer.decode()
    page.connect(database, port=embedded.free_port())
    for path in ("part/status", "csv/days"):
        status, answer = page.request(f"/analytics/{path}")
        assert status == 503
        assert "database does not answer: check that it runs" in answer.decode()
    for change, problem in (
        ({"extra": '{"no_such_option": 1}'}, 'has a mistake: invalid connection option "no_such_option".'),
        ({"conn_type": "http"}, "is not of the type postgres, or its extra is no JSON object: write it as JSON"),
    ):
        page.connect(database, **change)
        status, answer = page.request("/analytics/part/status")
        assert (status, f"connection analytics_reader {problem}" in answer.decode()) == (503, True)
    for path in ("/analytics/", "/api/v2/dags", "/analytics/part/range"):
        assert page.request(path)[0] == 200, "Airflow and the page itself do not depend on the database"
    page.connect(database)
    assert "No alert is open" in page.text("status")


def test_missing_table_or_privilege_leaves_the_rest(page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=1, days=2, until=TODAY)
    page_rows.job_runs(database)
    database.connection.execute("DROP TABLE analytics_alert; REVOKE SELECT ON analytics_session FROM analytics_readers")
    text = page.text("status")
    assert 'run "make schema"' in text
    assert "Succeeded" in text
    text = page.text("traffic")
    assert "a member of analytics_readers" in text
    assert "website-01" in text
    database.connection.execute("REVOKE SELECT ON analytics_event FROM analytics_readers")
    for part in ("retention", "storage"):
        assert "a member of analytics_readers" in page.text(part), part
    assert "Database size" in page.text("storage")
    page.connect(database, extra="{}")
    assert "put its schema (analytics) first" in page.text("status")


def replace_live_rows(database: Database, statement: str) -> None:
    """Put a function in the place of analytics_live_rows that does something else first."""
    database.connection.execute(
        f"""
        CREATE OR REPLACE FUNCTION analytics_live_rows(
            website text, from_day date DEFAULT '-infinity', to_day date DEFAULT 'infinity'
        )
        RETURNS SETOF analytics_daily_stats LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN; END $$
        """.encode()
    )


def test_slow_count_is_cancelled_and_a_lock_not_waited_for(page: Page, database: Database, now: datetime) -> None:
    page_rows.daily_stats(database, websites=1, days=2, until=TODAY)
    database.event(now, website_id=SITE)
    replace_live_rows(database, "PERFORM pg_sleep(60)")
    text = page.text("traffic", live=True)
    assert "Without the days that are not aggregated yet. This took longer than 5 seconds" in text
    assert "website-01" in text, "what is aggregated is shown all the same"
    assert "website-01" in page.text("traffic")
    with psycopg.connect(database.dsn, options="-c search_path=analytics,public") as holder:
        holder.execute("LOCK TABLE analytics_alert")
        assert "is locked" in page.text("status")


def test_page_cannot_write_even_as_the_owner(page: Page, database: Database, now: datetime) -> None:
    database.event(now, website_id=SITE)
    page.connect(database, login="postgres")
    replace_live_rows(database, "INSERT INTO analytics_website_policy VALUES ('x')")
    assert "could not be read" in page.text("traffic", live=True)
    assert database.value("SELECT count(*) FROM analytics_website_policy") == 0


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page as `pip install` puts it there, from a copy, since building leaves files in its source."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "plugins", folder / "source" / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder / "source")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([sys.executable, *install, folder / "site", folder / "source"], check=True, capture_output=True)
    return folder / "site"


def test_page_can_be_installed_as_a_package(package: Path, tmp_path: Path) -> None:
    script = """
        from airflow import plugins_manager
        (page,) = [plugin for plugin in plugins_manager._get_plugins()[0] if plugin.name == "analytics_page"]
        assert [app["url_prefix"] for app in page.fastapi_apps] == ["/analytics"]
        """
    environment = os.environ | {"PYTHONPATH": str(package), "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert files(package) == files(ROOT / "plugins")


def files(folder: Path) -> dict[str, bytes]:
    """What the page consists of below a folder."""
    folder /= "web_analytics_page"
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_missing_chart_library_is_told_about() -> None:
    script = """
        import sys
        sys.path.insert(0, "plugins")
        sys.modules["chartkick"] = None
        import web_analytics_page.app
        assert "chart.js" not in web_analytics_page.app.FILES
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "shows no charts: install the Python package chartkick" in done.stdout + done.stderr


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
