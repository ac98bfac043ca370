"""What the statistics say of a range of days, before and after the raw events are gone."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation_steps import aggregate
from conftest import Database
from day_oracle import DIMENSIONS, Event, count_day
from retention_steps import CUTOFF
from retention_steps import archive as purge

DAY = timedelta(days=1)
FIRST = CUTOFF - 4 * DAY
DAYS = [str((FIRST + n * DAY).date()) for n in range(3)]
OF_EVENT = {column.removeprefix("top_"): attribute for column, attribute in DIMENSIONS.items()} | {
    "pages": "pathname",
    "referrers": "referrer_source",
    "events": "event_name",
}
TOTALS = "SELECT * FROM analytics_totals(%s, %s, %s)"
ITEMS = "SELECT * FROM analytics_top_items('site', %s, %s, %s)"
ITEM = st.sampled_from([f"item {n}" for n in range(14)])


EVENTS = st.builds(
    Event,
    event_type=st.sampled_from(["pageview", "pageview", "custom_event"]),
    event_name=ITEM,
    pathname=ITEM,
    referrer_source=ITEM | st.none(),
    visitor_id=st.sampled_from("uvwxyz"),
    session_id=st.sampled_from("opqrstuvwxyz"),
    country=ITEM,
    device_type=st.sampled_from(["desktop", "mobile"]),
    browser=ITEM,
    os=ITEM,
    utm_source=ITEM,
    utm_medium=ITEM,
    utm_campaign=ITEM,
    timestamp=st.builds(lambda minutes: FIRST + minutes * timedelta(minutes=1), st.integers(0, 3 * 1440 - 1)),
    website_id=st.just("site"),
    deleted_at=st.none(),
)


def answers(database: Database) -> dict[str, Any]:
    """All that is said of the three days."""
    said = {dimension: database.query(ITEMS, DAYS[0], DAYS[-1], dimension) for dimension in OF_EVENT}
    return said | {"totals": database.query(TOTALS, "site", DAYS[0], DAYS[-1])}


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, min_size=1, max_size=120))
def test_the_answers_are_right_within_their_bounds_and_stay_what_they_are(
    database: Database, events: list[Event]
) -> None:
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats, analytics_purge_batch")
    for event in events:
        database.event(**event._asdict())
    days = [count_day([event for event in events if str(event.timestamp.date()) == day]) for day in DAYS]
    live = answers(database)
    aggregate(database, *DAYS)
    before = answers(database)
    assert before == live
    purge(database)
    assert database.value("SELECT count(*) FROM analytics_event") == 0
    assert answers(database) == before

    [totals] = before["totals"]
    assert totals == {
        "website_id": "site",
        "days": sum(day["total_events"] > 0 for day in days),
        "total_pageviews": sum(day["total_pageviews"] for day in days),
        "total_custom_events": sum(day["total_custom_events"] for day in days),
        "visitor_days": sum(day["unique_visitors"] for day in days),
        "sessions": sum(day["unique_sessions"] for day in days),
        "known_sessions": sum(day["unique_sessions"] for day in days),
        "bounced_sessions": sum(day["bounced_sessions"] for day in days),
        "session_seconds": sum(day["session_seconds"] for day in days),
        "late_events": 0,
    }
    for dimension, attribute in OF_EVENT.items():
        kind = "custom_event" if dimension == "events" else "pageview"
        counted = [event for event in events if event.event_type == kind]
        true = Counter(getattr(event, attribute) for event in counted)
        said = {row["item"]: row for row in before[dimension]}
        for item, row in said.items():
            assert item == "(other)" or row["count"] <= true[item] <= row["count"] + row["hidden"], (dimension, row)
        if dimension not in ("pages", "referrers"):
            assert sum(row["count"] for row in said.values()) == len(counted)
            column = f"top_{dimension}"
            visitors = [entry["visitors"] for day in days for entry in day[column]]
            assert sum(row["visitor_days"] for row in said.values()) == sum(visitors)


def test_what_was_sealed_before_it_was_counted_is_not_known(database: Database) -> None:
    for n in range(2):
        database.event(FIRST + n * DAY, country="DE", session_id=str(n))
    aggregate(database, *DAYS)
    database.connection.execute(
        "UPDATE analytics_daily_stats SET sealed_at = now(), bounced_sessions = NULL, session_seconds = NULL,"
        " top_countries = NULL WHERE date = %s",
        [DAYS[0]],
    )
    [totals] = database.query(TOTALS, None, DAYS[0], DAYS[-1])
    assert (totals["sessions"], totals["known_sessions"], totals["bounced_sessions"]) == (2, 1, 1)
    assert database.query(ITEMS, DAYS[0], DAYS[-1], "countries") == [
        {"item": "DE", "count": 1, "visitor_days": 1, "hidden": 0}
    ]


def test_today_is_counted_unless_only_what_is_stored_is_asked_for(database: Database, now: datetime) -> None:
    database.event(now)
    today = now.astimezone(UTC).date()
    for website in ("site", None):
        assert database.query(TOTALS, website, today, today)[0]["total_pageviews"] == 1
        stored = "SELECT * FROM analytics_totals(%s, %s, %s, live => false)"
        assert database.query(stored, website, today, today) == []
    assert database.query(TOTALS, "another", today, today) == []
