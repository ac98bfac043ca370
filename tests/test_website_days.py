"""Websites' own days: each in its time zone, and none overlaps another or leaves anything out when the zone is changed."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation_steps import Connection, aggregate, aggregate_due, clock, find, make_final, versions
from conftest import LOGIN, Database

MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CHAIN = ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati", "Etc/GMT+12"]
CHAINS = {
    "westwards at last": CHAIN,
    "eastwards": CHAIN[::-1],
    "a day back": ["Pacific/Kiritimati", "Etc/GMT+12", "UTC"],
}
DAYS = [
    ("UTC", "2024-01-15", 24),
    ("Asia/Kolkata", "2024-01-15", 24),
    ("America/New_York", "2024-03-10", 23),
    ("America/New_York", "2024-11-03", 25),
    ("Australia/Lord_Howe", "2024-10-06", 23.5),
    ("Australia/Lord_Howe", "2024-04-07", 24.5),
    ("America/Sao_Paulo", "2018-11-04", 23),  # begins at one o'clock
    ("Atlantic/Azores", "2024-10-27", 25),  # midnight comes twice
    ("Atlantic/Azores", "2024-10-26", 24),
    ("America/Havana", "2024-11-03", 25),
    ("America/St_Johns", "2010-11-07", 25),  # a minute after midnight, the clocks go back to the day before
    ("Asia/Colombo", "2006-04-15", 24.5),
    ("Asia/Chita", "2014-10-26", 26),  # midnight comes twice, two hours apart
    ("Antarctica/Casey", "2023-03-09", 27),
    ("Pacific/Apia", "2011-12-29", 24),
    ("Pacific/Apia", "2011-12-31", 24),  # the day after the 29th
]
"""Days of time zones, and how many hours they have."""


def day_bounds(day: date | str, timezone: str) -> tuple[datetime, datetime]:
    """The first instant of a day and of the next one, by Python's own time zone data."""
    first = date.fromisoformat(str(day))
    start, end = (datetime.combine(d, time(), ZoneInfo(timezone)).astimezone(UTC) for d in (first, first + DAY))
    return start, end


def set_timezone(database: Database, timezone: str | None, website_id: str = "site") -> None:
    """Say which time zone a website has."""
    database.connection.execute(
        "INSERT INTO analytics_website_policy VALUES (%s, %s)"
        " ON CONFLICT (website_id) DO UPDATE SET timezone = excluded.timezone",
        [website_id, timezone],
    )


def impatient(database: Database, timezone: str) -> Connection:
    """A connection with a session time zone, whose statements end after a while if they do not by themselves."""
    options = f"-c search_path=analytics,public -c statement_timeout=20s -c timezone={timezone}"
    return database.connect(LOGIN, options=options)


@pytest.mark.parametrize(("timezone", "day", "hours"), DAYS)
def test_a_day_is_half_open_in_its_time_zone(database: Database, timezone: str, day: str, hours: float) -> None:
    start, end = day_bounds(day, timezone)
    assert end - start == timedelta(hours=hours)
    for moment, pathname in [
        (start - MICROSECOND, "before"),
        (start, "first"),
        (start + HOUR / 2, "first"),
        (end - MICROSECOND, "last"),
        (end, "after"),
    ]:
        database.event(moment, pathname=pathname)
    for session_timezone in ("UTC", "Pacific/Auckland", "America/Los_Angeles"):
        database.connection.execute("TRUNCATE analytics_daily_stats")
        with impatient(database, session_timezone) as connection:
            due = find(database, timezone, connection)
            assert day in due
            assert len(due) == 3
            aggregate(database, day, timezone=timezone, connection=connection)
            row = database.query(
                "SELECT date::text, starts_at, ends_at, timezone, top_pages FROM analytics_daily_stats"
            )
            pages = [{"item": "first", "count": 2}, {"item": "last", "count": 1}]
            assert row == [{"date": day, "starts_at": start, "ends_at": end, "timezone": timezone, "top_pages": pages}]
            assert find(database, timezone, connection) == sorted({*due} - {day})
            aggregate_due(database, timezone, connection)
            assert find(database, timezone, connection) == []
        assert database.value("SELECT sum(total_events) FROM analytics_daily_stats") == 5


@pytest.mark.parametrize(("timezone", "day"), [(timezone, day) for timezone, day, hours in DAYS if hours != 24])
def test_an_event_at_any_time_of_a_change_over_is_found_and_counted_once(
    database: Database, timezone: str, day: str
) -> None:
    # One website per half an hour, so that no event is found because of another one.
    for half_hours in range(-7, 8):
        database.event(day_bounds(day, timezone)[0] + HOUR / 2 * half_hours, f"site {half_hours}")
    with impatient(database, "UTC") as connection:
        aggregate_due(database, timezone, connection)
        assert find(database, timezone, connection) == []
    counted = database.query(
        "SELECT FROM analytics_daily_stats AS stats INNER JOIN analytics_event AS event USING (website_id)"
        " WHERE total_events = 1 AND event.timestamp >= stats.starts_at AND event.timestamp < stats.ends_at"
    )
    assert len(counted) == database.value("SELECT count(*) FROM analytics_daily_stats") == 15


def test_every_website_has_the_days_of_its_own_time_zone_in_one_run(database: Database) -> None:
    zones = {
        "a default": "UTC",
        "apia": "Pacific/Apia",
        "azores": "Atlantic/Azores",
        "kolkata": "Asia/Kolkata",
        "lord howe": "Australia/Lord_Howe",
        "new york": "America/New_York",
    }
    days = ["2011-12-29", "2011-12-30", "2011-12-31"]
    days += ["2024-03-10", "2024-03-31", "2024-04-07", "2024-10-06", "2024-10-27", "2024-11-03"]
    expected = []
    for website_id, timezone in zones.items():
        if website_id != "a default":
            set_timezone(database, timezone, website_id)
        for day in days:
            start, end = day_bounds(day, timezone)
            if (timezone, day) == ("Pacific/Apia", "2011-12-30"):
                assert start == end  # a day that never was
                continue
            for moment in (start, end - MICROSECOND):
                database.event(moment, website_id)
            expected.append((website_id, day, timezone, start, end, 2))
    assert aggregate_due(database) == days
    rows = database.query(
        "SELECT website_id, date::text, timezone, starts_at, ends_at, total_events FROM analytics_daily_stats"
        " ORDER BY website_id, date"
    )
    assert [tuple(row.values()) for row in rows] == expected
    assert find(database) == []


@pytest.mark.parametrize(
    ("now", "over"),
    [
        ("2024-03-10T09:59:59.999999Z", []),
        ("2024-03-10T10:00Z", ["ahead"]),
        ("2024-03-10T23:59:59.999999Z", ["ahead"]),
        ("2024-03-11T00:00Z", ["ahead", "default"]),
        ("2024-03-11T11:59:59.999999Z", ["ahead", "default"]),
        ("2024-03-11T12:00Z", ["ahead", "behind", "default"]),
    ],
)
def test_a_date_is_counted_for_the_websites_where_it_is_over(database: Database, now: str, over: list[str]) -> None:
    for website_id, timezone in [("ahead", "Pacific/Kiritimati"), ("behind", "Etc/GMT+12"), ("default", "UTC")]:
        if website_id != "default":
            set_timezone(database, timezone, website_id)
        database.event(day_bounds("2024-03-10", timezone)[0], website_id)
    with clock(database, now) as connection:
        assert find(database, connection=connection) == (["2024-03-10"] if over else [])
        assert aggregate(database, "2024-03-10", connection=connection) == [(website_id, "") for website_id in over]
        assert find(database, connection=connection) == []
    assert [
        row["website_id"] for row in database.query("SELECT website_id FROM analytics_daily_stats ORDER BY 1")
    ] == over


@pytest.mark.parametrize("timezone", ["CEST", "Mars/Base", "", "+02:00", "UTC-5", "europe/berlin"])
def test_a_time_zone_that_is_not_known_is_refused_with_one_sentence(database: Database, timezone: str) -> None:
    set_timezone(database, "Europe/Berlin")
    for website_id in ("new", "site"):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
            set_timezone(database, timezone, website_id)
        assert raised.value.diag.message_primary == (
            f'Time zone "{timezone}" is not known: write an IANA name such as Europe/Berlin'
        )
    assert database.query("SELECT website_id, timezone FROM analytics_website_policy") == [
        {"website_id": "site", "timezone": "Europe/Berlin"}
    ]


def test_a_policy_need_not_name_a_time_zone(database: Database) -> None:
    set_timezone(database, None)
    database.event("2024-01-15T23:00Z")
    assert aggregate_due(database, "Asia/Kolkata") == ["2024-01-16"]
    assert versions(database)[0]["timezone"] == "Asia/Kolkata"


def assert_that_each_event_is_in_one_day(database: Database, final: list[dict[str, Any]]) -> None:
    """Rows and events agree, whatever the time zones were, and final rows are as they were."""
    assert find(database, connection=database.connection) == []
    assert [row for row in versions(database) if row["raw_purged_at"]] == final
    overlaps = """
        SELECT one.website_id, one.date::text, other.date::text AS other
        FROM analytics_daily_stats AS one
        INNER JOIN analytics_daily_stats AS other ON one.website_id = other.website_id AND one.date < other.date
        WHERE tstzrange(one.starts_at, one.ends_at) && tstzrange(other.starts_at, other.ends_at)
    """
    assert database.query(overlaps) == []
    elsewhere = """
        SELECT event.timestamp FROM analytics_event AS event
        WHERE 1 <> (
            SELECT count(*) FROM analytics_daily_stats AS stats
            WHERE
                stats.website_id = event.website_id
                AND event.timestamp >= stats.starts_at AND event.timestamp < stats.ends_at
        )
    """
    assert database.query(elsewhere) == []


FINAL = {
    "no row is final": [],
    "rows in the middle are final": ["2024-03-05", "2024-03-06", "2024-03-09"],
    "rows on both sides are final": ["2024-02-27", "2024-03-14", "2024-03-15"],
    "every other row is final": [f"2024-03-{day:02}" for day in range(1, 15, 2)],
    "all rows are final": [str(date(2024, 2, 25) + DAY * n) for n in range(30)],
}


@pytest.mark.parametrize("timezones", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("days", FINAL.values(), ids=FINAL)
def test_every_event_stays_in_one_day_when_the_time_zone_is_changed(
    database: Database, days: list[str], timezones: list[str]
) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT website_id || moment, website_id, '/', 'visitor', 'session', moment
        FROM
            generate_series('2024-02-27'::timestamptz, '2024-03-15T22:30', '30 minutes') AS moment,
            unnest('{bystander,site}'::text[]) AS website_id
        """
    )
    total = database.value("SELECT count(*) FROM analytics_event WHERE website_id = 'site'")
    final: list[dict[str, Any]] = []
    bystanders: list[dict[str, Any]] = []
    for timezone in timezones:
        set_timezone(database, timezone)
        aggregate_due(database)
        assert_that_each_event_is_in_one_day(database, final)
        assert sum(row["total_events"] for row in versions(database)) == total
        if not days:
            assert {row["timezone"] for row in versions(database)} == {timezone}
        bystanders = bystanders or versions(database, "bystander")
        assert versions(database, "bystander") == bystanders
        if days:
            make_final(database, *days)
        final = [row for row in versions(database) if row["raw_purged_at"]]
        assert bool(final) == bool(days)


@pytest.mark.parametrize(
    ("timezone", "new_timezone", "moment", "day"),
    [
        # The 4th in the new time zone, but the 5th, which is final, ended before it.
        ("Pacific/Kiritimati", "Etc/GMT+12", "2024-03-05T10:30Z", "2024-03-06"),
        # The 6th in the new time zone, but the 5th, which is final, began after it.
        ("Etc/GMT+12", "Pacific/Kiritimati", "2024-03-05T11:30Z", "2024-03-04"),
    ],
)
def test_an_event_beside_a_final_day_may_be_two_dates_away_from_its_day(
    database: Database, timezone: str, new_timezone: str, moment: str, day: str
) -> None:
    set_timezone(database, timezone)
    database.event(day_bounds("2024-03-05", timezone)[0])
    aggregate_due(database)
    make_final(database)
    set_timezone(database, new_timezone)
    database.event(moment)
    final = versions(database)
    assert aggregate_due(database) == [day]
    assert_that_each_event_is_in_one_day(database, final)
    assert {str(row["date"]): row["total_events"] for row in versions(database)} == {"2024-03-05": 1, day: 1}


def test_a_row_without_events_follows_its_website_into_another_time_zone(database: Database) -> None:
    # The event is of the 16th, of the 15th and of the 14th: the rows that lost it are of the new time zone as well.
    database.event("2024-01-15T11:00Z")
    for timezone, day in [("Pacific/Kiritimati", "2024-01-16"), ("UTC", "2024-01-15"), ("Etc/GMT+12", "2024-01-14")]:
        set_timezone(database, timezone)
        aggregate_due(database)
        rows = versions(database)
        assert [str(row["date"]) for row in rows if row["total_events"]] == [day]
        assert {row["timezone"] for row in rows} == {timezone}
        assert_that_each_event_is_in_one_day(database, [])


def test_the_row_of_a_day_that_is_not_over_in_the_new_time_zone_follows_at_once(database: Database) -> None:
    set_timezone(database, "Pacific/Kiritimati")
    for moment in ("2024-03-09T11:00Z", "2024-03-10T09:00Z"):
        database.event(moment)
    with clock(database, "2024-03-10T12:00Z") as connection:
        assert aggregate_due(database, connection=connection) == ["2024-03-10"]
        set_timezone(database, "Etc/GMT+12")
        assert aggregate_due(database, connection=connection) == ["2024-03-08", "2024-03-09", "2024-03-10"]
        assert_that_each_event_is_in_one_day(database, [])
        assert find(database, connection=connection) == []
    for moment, now in [("2024-03-10T13:00Z", "2024-03-10T14:00Z"), ("2024-03-10T15:00Z", "2024-03-11T12:00Z")]:
        database.event(moment)
        with clock(database, now) as connection:
            assert aggregate_due(database, connection=connection) == ["2024-03-10"]
            assert find(database, connection=connection) == []
    assert_that_each_event_is_in_one_day(database, [])
    assert [row["total_events"] for row in versions(database)] == [1, 1, 2]


ZONES = [
    *CHAIN,
    "America/Havana",
    "America/St_Johns",
    "Antarctica/Casey",
    "Asia/Chita",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Pacific/Apia",
]
CHANGE_OVERS = [date(2024, 11, 3), date(2024, 10, 27), date(2023, 3, 9), date(2011, 12, 30), date(2010, 11, 7)]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, list[datetime], set[str], bool]]:
    """Time zones that a website has one after the other, the events that it gets with each, the rows made final then, and
    whether their raw events are deleted."""
    middle = draw(st.sampled_from(CHANGE_OVERS))
    days = st.integers(-4, 4).map(lambda n: middle + DAY * n)
    midnights = st.builds(lambda day, zone: day_bounds(day, zone)[0], days, st.sampled_from(ZONES))
    offsets = st.sampled_from([-MICROSECOND, timedelta()]) | st.timedeltas(-13 * HOUR, 13 * HOUR)
    events = st.lists(st.builds(datetime.__add__, midnights, offsets), max_size=8)
    step = st.tuples(st.sampled_from(ZONES), events, st.sets(days.map(str), max_size=4), st.booleans())
    return draw(st.lists(step, min_size=2, max_size=4))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps())
def test_random_changes_of_the_time_zone(
    database: Database, steps: list[tuple[str, list[datetime], set[str], bool]]
) -> None:
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats, analytics_website_policy")
    database.connection.execute("SET statement_timeout = '20s'")
    total = 0
    final: list[dict[str, Any]] = []
    for timezone, events, days, is_purged in steps:
        with database.connection.pipeline():
            for moment in events:
                database.event(moment)
                # Those of final rows come too late.
                total += not any(row["starts_at"] <= moment < row["ends_at"] for row in final)
        set_timezone(database, timezone)
        aggregate_due(database, connection=database.connection)
        assert_that_each_event_is_in_one_day(database, final)
        assert sum(row["total_events"] for row in versions(database)) == total
        if days:
            make_final(database, *days)
        final = [row for row in versions(database) if row["raw_purged_at"]]
        if is_purged:
            database.connection.execute(
                "DELETE FROM analytics_event AS event USING analytics_daily_stats AS stats"
                " WHERE stats.raw_purged_at IS NOT NULL AND event.timestamp >= starts_at AND event.timestamp < ends_at"
            )
