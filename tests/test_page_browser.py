"""The Analytics page as people see it: in a real Chromium, inside Airflow's own user interface."""

from __future__ import annotations

import os
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
    if address != "/analytics/":
        tab.wait_for_selector("iframe")
    frame = tab.frames[-1]
    frame.wait_for_selector("#websites table, #problem:not([hidden])")
    return frame


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
    expect(frame.locator("#panels .note")).to_have_count(3)
    assert frame.locator("h1:visible, h2:visible").all_inner_texts() == [
        "Analytics",
        "Jobs",
        "Traffic",
        "Raw events by age",
        "Database size",
        "Rows deleted per week",
    ]
    assert frame.locator("#jobs tbody tr").count() == 3
    expect(frame.get_by_text("Loading …")).to_have_count(0)
    for canvas in frame.locator("canvas:visible").all():
        assert canvas.get_attribute("aria-label")
        drawn = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
        assert canvas.evaluate(drawn) > 2, canvas.get_attribute("aria-label")
    with tab.expect_navigation(url="**/dags/aggregate_daily_analytics/runs/scheduled__*"):
        frame.get_by_role("link", name="Succeeded").first.click()


def test_alert_comes_first_and_says_where_to_look(tab: Tab, database: Database) -> None:
    page_rows.job_runs(database)
    database.connection.execute(
        "UPDATE analytics_job_run SET outcome = 'failed' WHERE started_at = (SELECT max(started_at) FROM analytics_job_run WHERE job LIKE 'arch%')"
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
            "[getComputedStyle(document.body).backgroundColor, Chart.getChart('traffic').options.color]"
        )
        pairs = [[text, "ground"] for text in ("text", "muted", "link", "good", "bad", "solid", "dashed")]
        for text, ground, ratio in frame.evaluate(
            CONTRAST, [*pairs, ["text", "bad-ground"], ["link", "bad-ground"], ["link", "chosen"]]
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
    frame.locator("#to").focus()
    while frame.evaluate("document.activeElement.textContent") != "website-02":
        tab.keyboard.press("Tab")
        assert frame.evaluate("document.activeElement !== document.body")
    assert frame.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    expect(frame.locator("#traffic-title")).to_have_text("Website website-02")
    expect(frame.locator("#websites [aria-pressed=true]")).to_have_text("website-02")
    expect(frame.locator("#websites [aria-pressed=true]")).to_be_focused()
    frame.locator("summary").first.focus()
    tab.keyboard.press("Enter")
    day = frame.locator("#traffic-table button").nth(3)
    day.focus()
    tab.keyboard.press("Enter")
    expect(frame.locator("#day")).to_have_value(str(TODAY - timedelta(days=3)))
    expect(frame.locator("#day-title")).to_contain_text("website website-02")
    expect(frame.locator("#items table").first).to_contain_text("/products/item-1")
    assert frame.locator("#items thead").first.inner_text().split() == ["Page", "Pageviews"]


def test_day_is_chosen_by_a_click_and_range_by_a_preset(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=10, until=TODAY)
    frame = look(tab)
    frame.select_option("#preset", "7")
    expect(frame.locator("#traffic-table tbody tr")).to_have_count(7)
    place = frame.evaluate(
        "() => { const {x, y} = Chart.getChart('traffic').getDatasetMeta(2).data[1]; return {x, y: y + 3}; }"
    )
    frame.locator("#traffic").click(position=place)
    expect(frame.locator("#day")).to_have_value(str(TODAY - timedelta(days=5)))
    frame.fill("#from", str(TODAY - timedelta(days=2)))
    expect(frame.locator("#traffic-table tbody tr")).to_have_count(3)
    expect(frame.locator("#preset")).to_have_value("")


def test_what_visitors_sent_is_shown_as_text(tab: Tab, database: Database) -> None:
    markup = "<img src=x onerror=alert(1)>"
    database.event(datetime.now(UTC) - timedelta(seconds=1), website_id=markup, pathname=markup, referrer_source=markup)
    frame = look(tab)
    expect(frame.locator("#items")).to_contain_text(markup)
    expect(frame.locator("#websites")).to_contain_text(markup)
    assert frame.locator("img").count() == 0


def test_events_with_a_time_that_no_calendar_has_are_named_by_website(tab: Tab, database: Database) -> None:
    def note(frame: Frame) -> Any:
        return frame.locator("#panels section", has=frame.get_by_role("heading", name="Raw events by age")).locator(
            ".note"
        )

    sentence = "Website {}: {} with a time that no calendar has; nothing counts or deletes them."
    database.event("infinity")
    expect(note(look(tab))).to_contain_text(sentence.format("site", "1 event"))
    for moment in ("-infinity", "0001-12-30 BC", datetime.now(UTC)):
        database.event(moment, website_id="<b>shop</b>")
    expect(note(look(tab))).to_have_text(
        f"None is past the cutoff of retention. {sentence.format('<b>shop</b>', '2 events')} "
        + sentence.format("site", "1 event")
    )


def test_empty_tables_say_what_to_do(tab: Tab) -> None:
    frame = look(tab)
    expect(frame.locator("#jobs")).to_contain_text("Never: unpause or trigger it")
    expect(frame.locator("#traffic-note")).to_contain_text("look whether the application writes to analytics_event")
    expect(frame.locator("#items")).to_contain_text("No page is known of this day.")
    notes = " ".join(frame.locator("#panels").all_inner_texts())
    for sentence in ("There is none. Look whether", "A forecast needs a week of sizes", "No run is recorded yet."):
        assert sentence in notes
    assert frame.locator("#traffic:visible, #raw_events:visible").count() == 0, "an empty chart"


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
    expect(frame.locator("#websites tbody")).not_to_contain_text("…")  # visitors come last
    tab.context.clear_cookies()
    frame.select_option("#preset", "7")
    expect(frame.locator("#problem")).to_contain_text("Your login has ended")


def test_without_the_library_the_numbers_are_there(tab: Tab, database: Database) -> None:
    page_rows.daily_stats(database, websites=2, days=10, until=TODAY)
    tab.route("**/static/chart.js*", lambda route: route.abort())
    frame = look(tab)
    expect(frame.get_by_text("The charts need the Python package chartkick")).to_be_visible()
    assert frame.locator("#traffic-table tbody tr").count() == 30


def test_year_of_fifty_websites_loads_fast(tab: Tab, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    page_rows.daily_stats(database, websites=50, days=365, until=TODAY)
    page_rows.job_runs(database)
    for table in ("analytics_daily_stats", "analytics_job_run"):
        database.connection.execute(f"VACUUM ANALYZE {table}".encode())
    requests: list[tuple[str, float]] = []
    tab.on("requestfinished", lambda request: requests.append((request.url, request.timing["responseEnd"])))
    for attempt in ("first", "second"):
        requests.clear()
        start = time.perf_counter()
        tab.goto("/analytics/")
        tab.wait_for_function("() => window.Chart?.getChart('traffic')")
        shown = time.perf_counter() - start
        tab.wait_for_load_state("networkidle")
        with capsys.disabled():
            print(f"\n{attempt} look at 50 websites: jobs and traffic shown after {shown * 1000:.0f} ms")
    tab.select_option("#preset", "365")
    expect(tab.locator("#traffic-table tbody tr")).to_have_count(365)
    expect(tab.locator("#websites tbody tr")).to_have_count(51)
    tab.wait_for_load_state("networkidle")
    with capsys.disabled():
        for url, milliseconds in requests:
            if "/data/" in url:
                print(f"  {milliseconds:6.0f} ms  {url.split('/data/')[1]}")
    total: Any = database.value(
        "SELECT sum(total_pageviews) FROM analytics_traffic_daily WHERE date > %s", TODAY - timedelta(days=365)
    )
    expect(tab.locator("#websites tbody tr").first).to_contain_text(f"{total:,}")
