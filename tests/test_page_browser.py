"""The Analytics page as people see it: in a real Chromium, inside Airflow's own user interface."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Frame, expect, sync_playwright
from playwright.sync_api import Page as Tab

import embedded
import page_rows
from conftest import Database

if TYPE_CHECKING:
    from page_server import Page

pytest_plugins = ["page_server"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TODAY = datetime.now(UTC).date()
DAY = timedelta(days=1)
SITE = "website-01"
CONTRAST = """
    names => {
        const value = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
        const light = name => {
            const digits = value(name).slice(1), width = digits.length / 3;
            const [red, green, blue] = [0, 1, 2].map(index => {
                const part = parseInt(digits.substr(index * width, width).padStart(2, digits[index * width]), 16) / 255;
                return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
        };
        return names.map(([text, ground]) => [text, ground, light(text), light(ground)])
            .map(([text, ground, one, other]) => [text, ground, Math.max(one, other) / Math.min(one, other)]);
    }
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: the page is not looked at in a browser")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser, page: Page) -> Iterator[Tab]:
    """A tab of a viewer who has logged in to Airflow. An error in the page's own code fails the test."""
    errors: list[str] = []
    with browser.new_context(viewport={"width": 1400, "height": 900}, base_url=page.airflow.url) as context:
        context.add_cookies([{"name": "_token", "value": page.tokens["viewer"], "url": page.airflow.url}])
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        yield tab
    assert errors == []


def look(tab: Tab, address: str = "/analytics/") -> Frame:
    """Go to the page, by default without Airflow around it; return its frame when it has said what there is."""
    tab.goto(address)
    if not address.startswith("/analytics/"):
        tab.wait_for_selector("iframe")
    frame = tab.frames[-1]
    frame.wait_for_selector("#traffic section, #problem:not([hidden])")
    settle(frame)
    return frame


def settle(frame: Frame) -> None:
    """Wait until nothing is asked any more."""
    expect(frame.locator("main[aria-busy]:visible")).to_have_count(0)


def test_page_in_airflow(tab: Tab, page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=3, days=40, until=TODAY)
    page_rows.job_runs(database)
    tab.context.clear_cookies()
    tab.goto("/plugin/analytics")
    tab.fill('input[name="username"]', "viewer")
    tab.fill('input[name="password"]', page.password)
    tab.click('button[type="submit"]')
    tab.wait_for_selector("iframe")
    expect(tab.get_by_role("link", name="Analytics")).to_be_visible()
    frame = tab.frames[-1]
    expect(frame.locator("#verdict")).to_contain_text("No alert is open; paused: every job")
    expect(frame.locator(".panels .note")).to_have_count(3)
    assert frame.locator("h1:visible, h2:visible").all_inner_texts() == [
        "Analytics",
        "Jobs",
        "Traffic",
        "All websites",
        "Websites",
        "What the next run of retention deletes",
        "Raw events by age",
        "Database size",
        "Rows deleted per week",
    ]
    assert frame.locator("#jobs tbody tr").count() == 3
    expect(frame.get_by_text("Loading …")).to_have_count(0)
    settle(frame)
    assert frame.locator("canvas:visible").count() == 6
    for canvas in frame.locator("canvas:visible").all():
        assert canvas.get_attribute("aria-label")
        drawn = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
        assert canvas.evaluate(drawn) > 2, canvas.get_attribute("aria-label")
    with tab.expect_navigation(url="**/dags/aggregate_daily_analytics/runs/scheduled__*"):
        frame.get_by_role("link", name="Succeeded").first.click()


def test_alert_comes_first_and_says_where_to_look(tab: Tab, database: Database) -> None:
    page_rows.job_runs(database)
    database.connection.execute(
        "UPDATE analytics_job_run SET outcome = 'failed' WHERE job = 'archive_old_analytics' AND started_at = (SELECT max(started_at) FROM analytics_job_run WHERE job LIKE 'arch%')"
    )
    page_rows.alert(database, "retention_backlog", "shop", "Raw events are 12 days past their cutoff.")
    frame = look(tab)
    expect(frame.locator("#verdict")).to_contain_text("✗ 1 open alert; the last run of archive_old_analytics failed")
    assert frame.locator("h2:visible").first.inner_text() == "1 open alert"
    item = frame.locator("#alerts li")
    expect(item).to_contain_text("retention backlog: Raw events are 12 days past their cutoff.")
    expect(item).to_contain_text("Open since 3 hours ago; people were told 3 hours ago")
    with tab.expect_navigation(url="**/dags/archive_old_analytics"):  # here without a frame
        item.get_by_role("link").click()


def test_theme_is_that_of_airflow(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=1, days=10, until=TODAY)
    frame = look(tab, "/plugin/analytics")
    colours = {}
    for theme in ("dark", "light"):
        tab.evaluate("theme => localStorage.setItem('theme', theme)", theme)  # as Airflow's switch does
        frame.wait_for_function(
            "dark => document.documentElement.classList.contains('dark') === dark", arg=theme == "dark"
        )
        colours[theme] = frame.evaluate(
            "[getComputedStyle(document.body).backgroundColor, Chart.getChart('traffic-chart').options.color]"
        )
        pairs = [[text, "ground"] for text in ("text", "muted", "link", "good", "bad", "solid", "dashed")]
        for text, ground, ratio in frame.evaluate(
            CONTRAST, [*pairs, ["text", "bad-ground"], ["link", "bad-ground"], ["text", "chosen"]]
        ):
            assert ratio >= 4.5, f"{theme}: {text} on {ground}"
    assert colours["dark"][0] != colours["light"][0]
    assert colours["dark"][1] != colours["light"][1], "charts are drawn anew"
    tab.evaluate("localStorage.removeItem('theme')")
    tab.emulate_media(color_scheme="dark")
    frame.wait_for_function("() => document.documentElement.classList.contains('dark')")


def test_page_is_used_with_the_keyboard(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=10, until=TODAY)
    frame = look(tab)

    def press(text: str) -> None:
        """Go on with the tabulator to a link of this text, and follow it."""
        while frame.evaluate("document.activeElement.innerText.trim()") != text:
            tab.keyboard.press("Tab")
            assert frame.evaluate("document.activeElement !== document.body")
        assert frame.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tab.keyboard.press("Enter")
        settle(frame)

    frame.locator("#to").focus()
    press("website-02")
    assert frame.evaluate("document.activeElement.id") == "title", "what was chosen is gone, and its title is there"
    press("Countries")
    expect(frame.locator("nav.tabs [aria-current]")).to_be_focused()
    expect(frame.locator("nav.tabs [aria-current]")).to_have_text("Countries")
    frame.locator("#numbers summary").focus()
    tab.keyboard.press("Enter")
    day = TODAY - 3 * DAY
    press(f"{day.day} {day:%B %Y}")
    expect(frame.locator("#items-title")).to_have_text(f"{day.day} {day:%B %Y}")
    expect(frame.locator("#items table")).to_contain_text("DE")
    expect(frame.locator("#numbers")).to_have_attribute("open", "")
    assert frame.evaluate("document.activeElement.innerText.trim()") == f"{day.day} {day:%B %Y}"


def test_address_can_be_sent_and_gone_back_in(tab: Tab, page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=40, until=TODAY)
    frame = look(tab)
    for link in ("7 days", "website-02", "Countries"):
        frame.get_by_role("link", name=link).click()
        settle(frame)
    expect(tab).to_have_url(re.compile(r"/analytics/\?website=website-02&range=7&tab=countries$"))
    expect(frame.locator("#items tbody tr").first).to_contain_text("DE")
    expect(tab).to_have_title("website-02 – Analytics")  # noqa: RUF001
    for title, rows in (("Pages", 8), ("All websites", 8), ("All websites", 31)):
        tab.go_back()
        settle(frame)
        shown = frame.locator("nav.tabs [aria-current]") if title == "Pages" else frame.locator("#title")
        expect(shown).to_have_text(title)
        assert frame.locator("#days tr").count() == rows
    expect(tab).to_have_title("Analytics")
    tab.go_forward()
    expect(frame.locator("#days tr")).to_have_count(8)
    # The form, and a bar of the chart.
    frame = look(tab, "/analytics/?website=website-02")
    frame.fill("#from", str(TODAY - 3 * DAY))
    frame.fill("#to", str(TODAY - DAY))
    frame.get_by_role("button", name="Show").click()
    expect(frame.locator("#days tr")).to_have_count(4)
    settle(frame)
    place = frame.evaluate(
        "() => { const {x, y} = Chart.getChart('traffic-chart').getDatasetMeta(2).data[1]; return {x, y: y + 3}; }"
    )
    frame.locator("#traffic-chart").click(position=place)
    day = TODAY - 2 * DAY
    expect(frame.locator("#items-title")).to_have_text(f"{day.day} {day:%B %Y}")
    assert tab.url.endswith(f"?website=website-02&from={TODAY - 3 * DAY}&to={TODAY - DAY}&tab=pages&day={day}"), tab.url


def test_address_of_airflow_goes_along(tab: Tab, page: Page, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=40, until=TODAY)
    for address in ("/plugin/analytics", "/plugin/analytics/analytics/"):
        frame = look(tab, f"{address}?website=website-02&range=7&tab=os")
        expect(frame.locator("#title .website")).to_have_text("website-02")
        expect(frame.locator("#days tr")).to_have_count(8)
        expect(frame.locator("nav.tabs [aria-current]")).to_have_text("Operating systems")
    frame.get_by_role("link", name="Devices").click()
    expect(tab).to_have_url(re.compile(r"/plugin/analytics.*\?website=website-02&range=7&tab=devices$"))
    frame.get_by_role("link", name="90 days").click()
    expect(tab).to_have_url(re.compile(r"range=90$"))
    tab.go_back()
    expect(tab).to_have_url(re.compile(r"range=7&tab=devices$"))
    expect(tab.frame_locator("iframe").locator("#days tr")).to_have_count(8)
    sent = tab.url
    tab.reload()
    settle(tab.frames[-1])
    expect(tab.frame_locator("iframe").locator("nav.tabs [aria-current]")).to_have_text("Devices")
    assert tab.url == sent
    with tab.expect_download() as download:
        tab.frame_locator("iframe").locator("#items").get_by_text("Download CSV").click()
    assert download.value.suggested_filename == f"devices_website-02_{TODAY - 6 * DAY}_{TODAY}.csv"
    with open(download.value.path(), encoding="utf-8-sig", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["item", "mobile", "desktop", "tablet", "unknown"]


def test_what_visitors_sent_is_shown_as_text(tab: Tab, database: Database) -> None:
    markup = """<img src=x onerror=alert(1)>"'"""
    database.event(datetime.now(UTC) - timedelta(seconds=1), website_id=markup, pathname=markup, referrer_source=markup)
    page_rows.alert(database, "rows_kept", markup, markup)
    frame = look(tab)
    expect(frame.locator("#alerts")).to_contain_text(markup)
    frame.locator("#websites").get_by_text(markup).click()
    expect(frame.locator("#title")).to_contain_text(markup)
    expect(frame.locator("#items table")).to_contain_text(markup)
    expect(tab).to_have_title(f"{markup} – Analytics")  # noqa: RUF001
    frame.get_by_role("link", name="7 days").click()
    settle(frame)
    expect(frame.locator("#title")).to_contain_text(markup)
    assert frame.locator("img").count() == 0


def test_nothing_runs_that_is_written_into_the_page(tab: Tab) -> None:
    frame = look(tab)
    refused = """() => new Promise(done => {
        addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.broken = true';
        document.body.append(script);
    })"""
    assert frame.evaluate(refused) == "script-src-elem"
    assert frame.evaluate("window.broken") is None


def test_page_is_never_wider_than_a_phone(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=40, until=TODAY)
    page_rows.job_runs(database)
    long = "website-" + "x" * 300
    page_rows.day_stats(database, long, TODAY - DAY, 10)
    database.connection.execute("UPDATE analytics_daily_stats SET sealed_at = now()")
    database.event(datetime.now(UTC) - 100 * DAY, website_id=long)
    tab.set_viewport_size({"width": 390, "height": 800})
    for query in ("", f"?website={SITE}&tab=utm_campaigns", f"?website={long}"):
        frame = look(tab, f"/analytics/{query}")
        assert frame.evaluate("document.documentElement.scrollWidth") <= 390, query


def test_names_and_ids_are_on_one_line(tab: Tab, database: Database) -> None:
    ids = ("one-of-several-words", "two-of-several-words")
    for website in ids:
        page_rows.day_stats(database, website, TODAY - DAY, 10)
        database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, name) VALUES (%s, 'Shop')", [website]
        )
    tab.set_viewport_size({"width": 390, "height": 800})
    frame = look(tab)
    for website in ids:
        label = frame.locator("#websites .website small", has_text=website)
        assert label.evaluate("label => label.getBoundingClientRect().height") < 30, "it is not broken"
        expect(frame.locator("#websites .website", has_text=website)).to_contain_text("Shop")


def test_second_pass_moves_nothing(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=70, until=TODAY)
    database.event(datetime.now(UTC) - timedelta(seconds=1), website_id=SITE)
    tab.add_init_script(
        "window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries()) shift += entry.value; })"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    for query in ("", f"?website={SITE}"):
        frame = look(tab, f"/analytics/{query}")
        assert frame.evaluate("shift") < 0.1, "what the web calls a good page"


def test_missing_database_and_login_are_one_sentence(tab: Tab, page: Page, database: Database) -> None:
    page.connect(database, port=embedded.free_port())
    frame = look(tab, "/plugin/analytics")
    expect(frame.locator("#problem")).to_contain_text("The analytics database does not answer")
    assert not frame.locator("main").is_visible()
    assert tab.get_by_role("link", name="Dags").is_visible(), "Airflow goes on"
    page.connect(database)
    frame.get_by_role("button", name="Reload").click()
    expect(frame.locator("#jobs table")).to_be_visible()
    expect(frame.get_by_text("Loading …")).to_have_count(0)
    settle(frame)
    tab.context.clear_cookies()
    frame.get_by_role("link", name="7 days").click()
    expect(frame.locator("#problem")).to_contain_text("Your login has ended")


def test_unknown_address_is_one_sentence(tab: Tab) -> None:
    frame = look(tab, "/analytics/?tab=nonsense")
    expect(frame.locator("#problem")).to_have_text("The address of this page has a value that it does not know.")


def test_without_the_library_the_numbers_are_there(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=10, until=TODAY)
    tab.route("**/static/chart.js*", lambda route: route.abort())
    frame = look(tab)
    expect(frame.get_by_text("The charts need the Python package chartkick")).to_be_visible()
    assert frame.locator("#days tbody tr").count() == 30


def test_year_of_fifty_websites_loads_fast(tab: Tab, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    page_rows.daily_stats(database, websites=50, days=365, until=TODAY)
    page_rows.job_runs(database)
    for table in ("analytics_daily_stats", "analytics_job_run"):
        database.connection.execute(f"VACUUM ANALYZE {table}".encode())
    requests: list[tuple[str, float]] = []
    tab.on("requestfinished", lambda request: requests.append((request.url, request.timing["responseEnd"])))
    for query in ("", "", "?range=365", f"?range=365&website={SITE}"):
        requests.clear()
        start = time.perf_counter()
        tab.goto(f"/analytics/{query}")
        tab.wait_for_function("() => window.Chart?.getChart('traffic-chart')")
        shown = time.perf_counter() - start
        tab.wait_for_load_state("networkidle")
        with capsys.disabled():
            print(f"\n/analytics/{query}: jobs and traffic shown after {shown * 1000:.0f} ms")
            for url, milliseconds in requests:
                if "/part/" in url:
                    print(f"  {milliseconds:6.0f} ms  {url.split('/part/')[1]}")
        if "website" not in query:
            expect(tab.locator("#websites tbody tr")).to_have_count(50)
        days: Any = 365 if "range" in query else 30
        expect(tab.locator("#days tbody tr")).to_have_count(days)
        total: Any = database.value(
            "SELECT sum(total_pageviews) FROM analytics_traffic_daily WHERE date > %s AND (%s OR website_id = %s)",
            TODAY - days * DAY,
            "website" not in query,
            SITE,
        )
        expect(tab.locator("#totals dd").first).to_contain_text(f"{total:,}")
