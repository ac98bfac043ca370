"""application_panels.sql: the application's dashboards read our statistics in the shape of its own table."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from aggregation_steps import aggregate_due
from conftest import SQL, Database

PANELS = (SQL / "application_panels.sql").read_bytes()
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)
COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum
"""
OLD = """
    INSERT INTO public.analytics_daily_stats (id, website_id, date, pageviews, bounce_rate, desktop_visitors, browser_stats)
    VALUES (%s, 'site', %s, %s, 12.5, 7, '{"Chrome": 7}')
"""


@pytest.fixture
def shop(database: Database) -> Iterator[Database]:
    """A database whose application has a table of its own, which a role may read."""
    database.connection.execute(
        "CREATE ROLE dashboard LOGIN; GRANT SELECT ON public.analytics_daily_stats TO dashboard"
    )
    yield database
    database.connection.execute("DROP OWNED BY dashboard; DROP ROLE dashboard")


def panels(database: Database) -> list[dict[str, Any]]:
    """What a dashboard reads."""
    with database.connect("dashboard") as connection:
        return connection.execute("SELECT * FROM public.analytics_daily_stats ORDER BY website_id, date").fetchall()


def test_the_view_has_the_columns_of_the_table(shop: Database) -> None:
    before = shop.query(COLUMNS, "public.analytics_daily_stats")
    for _ in range(2):
        shop.connection.execute(PANELS)
        assert shop.query(COLUMNS, "public.analytics_daily_stats") == before
    assert panels(shop) == []


def test_our_days_are_shown_and_of_the_others_the_rows_that_were_there(shop: Database) -> None:
    for n, device in enumerate(("desktop", "mobile", "mobile")):
        visit = {"visitor_id": str(n), "session_id": str(n), "device_type": device, "country": "DE"}
        shop.event(NOON, **visit)
    shop.event(NOON + timedelta(seconds=61), visitor_id="2", session_id="2", device_type="mobile", country="DE")
    shop.connection.execute(OLD.encode(), ["before", NOON - DAY / 2 - DAY, 40])
    shop.connection.execute(OLD.encode(), ["same day", NOON - DAY / 2, 50])
    aggregate_due(shop)
    shop.connection.execute(PANELS)
    before, ours = panels(shop)
    assert (before["id"], before["date"], before["pageviews"]) == ("before", NOON - DAY / 2 - DAY, 40)
    assert (before["desktop_visitors"], before["browser_stats"]) == (7, {"Chrome": 7})
    numbers = (
        "pageviews",
        "unique_visitors",
        "sessions",
        "avg_session_duration",
        "desktop_visitors",
        "mobile_visitors",
    )
    assert [ours[name] for name in numbers] == [4, 3, 3, 20, 1, 2]
    assert (ours["date"], ours["tablet_visitors"], round(ours["bounce_rate"], 1)) == (NOON - DAY / 2, 0, 66.7)
    assert ours["top_countries"][0] == {"item": "DE", "count": 4, "visitors": 3}


def test_what_was_not_counted_when_a_row_was_sealed_is_taken_from_the_row_that_was_there(shop: Database) -> None:
    shop.event(NOON)
    shop.connection.execute(OLD.encode(), ["same day", NOON - DAY / 2, 50])
    aggregate_due(shop)
    shop.connection.execute(
        "UPDATE analytics_daily_stats SET bounced_sessions = NULL, session_seconds = NULL, top_devices = NULL,"
        " top_browsers = NULL, sealed_at = now()"
    )
    shop.connection.execute(PANELS)
    [row] = panels(shop)
    assert (row["pageviews"], row["bounce_rate"], row["desktop_visitors"]) == (1, 12.5, 7)
    assert (row["avg_session_duration"], row["browser_stats"]) == (0, {"Chrome": 7})


def test_without_a_table_of_the_application_nothing_is_changed(database: Database) -> None:
    database.connection.execute("DROP TABLE public.analytics_daily_stats")
    with pytest.raises(psycopg.errors.RaiseException, match="is not the application's table"):
        database.connection.execute(PANELS)
    assert database.value("SELECT to_regclass('public.analytics_daily_stats')") is None
