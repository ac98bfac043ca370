"""Websites' own days: each in its time zone, which holds from a day on, and every instant belongs to exactly one day."""

from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aggregation_steps import Connection, aggregate, aggregate_due, clock, find, set_zone
from conftest import LOGIN, Database

MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
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


def midnight(day: date, timezone: str) -> datetime:
    """The first instant of a day, by Python's own time zone data."""
    return datetime.combine(day, time(), ZoneInfo(timezone)).astimezone(UTC)


def day_bounds(day: date | str, timezone: str) -> tuple[datetime, datetime]:
    """The first instant of a day and of the next one."""
    first = date.fromisoformat(str(day))
    return midnight(first, timezone), midnight(first + DAY, timezone)


def impatient(database: Database, timezone: str) -> Connection:
    """A connection with a session time zone, whose statements end after a while if they do not by themselves."""
    options = f"-c search_path=analytics,public -c statement_timeout=20s -c timezone={timezone}"
    return database.connect(LOGIN, options=options)


@pytest.mark.parametrize(("timezone", "day", "hours"), DAYS)
def test_a_day_is_half_open_in_its_time_zone(database: Database, timezone: str, day: str, hours: float) -> None:
    set_zone(database, timezone)
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
            due = find(database, connection)
            assert day in due
            assert len(due) == 3
            aggregate(database, day, connection=connection)
            row = database.query("SELECT date::text, starts_at, ends_at, top_pages FROM analytics_daily_stats")
            pages = [{"item": "first", "count": 2}, {"item": "last", "count": 1}]
            assert row == [{"date": day, "starts_at": start, "ends_at": end, "top_pages": pages}]
            assert find(database, connection) == sorted({*due} - {day})
            aggregate_due(database, connection)
            assert find(database, connection) == []
        assert database.value("SELECT sum(total_events) FROM analytics_daily_stats") == 5


@pytest.mark.parametrize(("timezone", "day"), [(timezone, day) for timezone, day, hours in DAYS if hours != 24])
def test_an_event_at_any_time_of_a_change_over_is_found_and_counted_once(
    database: Database, timezone: str, day: str
) -> None:
    set_zone(database, timezone)
    # One website per half an hour, so that no event is found because of another one.
    for half_hours in range(-7, 8):
        database.event(day_bounds(day, timezone)[0] + HOUR / 2 * half_hours, f"site {half_hours}")
    with impatient(database, "UTC") as connection:
        aggregate_due(database, connection)
        assert find(database, connection) == []
    counted = database.query(
        "SELECT FROM analytics_daily_stats AS stats INNER JOIN analytics_event AS event USING (website_id)"
        " WHERE total_events = 1 AND event.timestamp >= stats.starts_at AND event.timestamp < stats.ends_at"
    )
    assert len(counted) == database.value("SELECT count(*) FROM analytics_daily_stats") == 15


def test_every_website_has_the_days_of_its_own_time_zone_in_one_run(database: Database) -> None:
    zones = {
        "a default": "Europe/Berlin",
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
        set_zone(database, timezone, None if website_id == "a default" else website_id)
        for day in days:
            start, end = day_bounds(day, timezone)
            if (timezone, day) == ("Pacific/Apia", "2011-12-30"):
                assert start == end  # a day that never was
                continue
            for moment in (start, end - MICROSECOND):
                database.event(moment, website_id)
            expected.append((website_id, day, start, end, 2))
    assert aggregate_due(database) == days
    rows = database.query(
        "SELECT website_id, date::text, starts_at, ends_at, total_events FROM analytics_daily_stats"
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
            set_zone(database, timezone, website_id)
        database.event(day_bounds("2024-03-10", timezone)[0], website_id)
    with clock(database, now) as connection:
        assert find(database, connection) == (["2024-03-10"] if over else [])
        assert aggregate(database, "2024-03-10", connection=connection) == [
            f"✅ Aggregated 1 events for website {website_id}" for website_id in over
        ]
        assert find(database, connection) == []
    assert [
        row["website_id"] for row in database.query("SELECT website_id FROM analytics_daily_stats ORDER BY 1")
    ] == over


CHANGES = {
    "eastwards": (
        ["Etc/GMT+12", "Asia/Kolkata"],
        ["2024-03-09T12:00Z", "2024-03-10T12:00Z", "2024-03-10T18:30Z", "2024-03-11T18:30Z"],
    ),
    "westwards": (
        ["Asia/Kolkata", "America/New_York"],  # and the clocks go forward in New York
        ["2024-03-08T18:30Z", "2024-03-09T18:30Z", "2024-03-11T04:00Z", "2024-03-12T04:00Z"],
    ),
    "a day forward: the 10th is empty": (
        ["Pacific/Pago_Pago", "Pacific/Kiritimati"],
        ["2024-03-09T11:00Z", "2024-03-10T11:00Z", "2024-03-10T11:00Z", "2024-03-11T10:00Z"],
    ),
    "a day back: the 10th has 49 hours": (
        ["Pacific/Kiritimati", "Pacific/Pago_Pago"],
        ["2024-03-08T10:00Z", "2024-03-09T10:00Z", "2024-03-11T11:00Z", "2024-03-12T11:00Z"],
    ),
    "forward by two steps": (
        ["Pacific/Pago_Pago", "UTC", "Pacific/Kiritimati"],
        ["2024-03-09T11:00Z", "2024-03-10T11:00Z", "2024-03-11T00:00Z", "2024-03-11T10:00Z"],
    ),
    "there and back: the 11th is empty": (
        ["Pacific/Kiritimati", "Pacific/Pago_Pago", "Pacific/Kiritimati"],
        ["2024-03-08T10:00Z", "2024-03-09T10:00Z", "2024-03-11T11:00Z", "2024-03-11T11:00Z"],
    ),
    "back and there: the 10th is empty": (
        ["Pacific/Pago_Pago", "Pacific/Kiritimati", "Pacific/Pago_Pago"],
        ["2024-03-09T11:00Z", "2024-03-10T11:00Z", "2024-03-10T11:00Z", "2024-03-12T11:00Z"],
    ),
}
"""Time zones, the second one of the 10th of March 2024 on and a third one from the next day on, and where the 9th, the
10th, the 11th and the 12th start."""


@pytest.mark.parametrize("website_id", [None, "site"], ids=["the default", "its own"])
@pytest.mark.parametrize(("timezones", "starts"), CHANGES.values(), ids=CHANGES)
def test_the_day_that_a_zone_begins_with_starts_where_the_one_before_ends(
    database: Database, timezones: list[str], starts: list[str], website_id: str | None
) -> None:
    for timezone, from_date in zip(timezones, ["-infinity", "2024-03-10", "2024-03-11"], strict=False):
        set_zone(database, timezone, website_id, from_date)
    found = database.query(
        "SELECT analytics_day_start('site', day::date) AS start FROM generate_series(date '2024-03-09', '2024-03-12', '1 day')"
        " AS day"
    )
    assert [row["start"] for row in found] == [datetime.fromisoformat(start) for start in starts]
    # Days before keep theirs, and each day has just its events.
    assert database.value("SELECT analytics_day_start('site', '2024-03-08')") == midnight(
        date(2024, 3, 8), timezones[0]
    )
    expected = {}
    for day, start, end in zip(("2024-03-09", "2024-03-10", "2024-03-11"), starts, starts[1:], strict=False):
        if start != end:
            database.event(start)
            database.event(datetime.fromisoformat(end) - MICROSECOND)
            expected[day] = 2
    assert aggregate_due(database) == list(expected)
    rows = database.query("SELECT date::text, total_events FROM analytics_daily_stats")
    assert {row["date"]: row["total_events"] for row in rows} == expected


def test_a_website_has_its_own_zone_from_its_day_on_and_the_default_before(database: Database) -> None:
    set_zone(database, "America/New_York")
    set_zone(database, "Asia/Kolkata", "site", "2024-03-05")
    set_zone(database, "Europe/Berlin", from_date="2024-03-03")
    set_zone(database, "Asia/Tokyo", from_date="2024-03-07")  # after the website has its own
    days = [f"2024-03-0{day}" for day in range(1, 9)]
    query = "SELECT array_agg(analytics_zone(%s, day) ORDER BY day) FROM unnest(%s::date[]) AS day"
    other = ["America/New_York"] * 2 + ["Europe/Berlin"] * 4 + ["Asia/Tokyo"] * 2
    assert database.value(query, "other", days) == other
    assert database.value(query, "site", days) == other[:4] + ["Asia/Kolkata"] * 4
    database.connection.execute("DELETE FROM analytics_timezone WHERE website_id IS NULL")
    assert database.value(query, "site", days) == ["UTC"] * 4 + ["Asia/Kolkata"] * 4


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Asia/Tokyo", "Pacific/Kiritimati"])
def test_days_are_those_of_the_calendar_and_no_others(database: Database, timezone: str) -> None:
    set_zone(database, timezone)
    rows = database.query(
        """
        SELECT day.date::text FROM unnest(ARRAY[
            '-infinity', '4714-11-24 00:00+00 BC', '0044-03-15 12:00+00 BC', first - '1 microsecond'::interval, first,
            last, last + '1 microsecond'::interval, '10001-06-01', '294276-12-31 23:59:59.999999+00', 'infinity'
        ]::timestamptz[]) WITH ORDINALITY AS moment (at, number), analytics_day('site', moment.at) AS day ORDER BY number
        """.replace("first", "analytics_day_start('site', '0001-01-01')").replace(
            "last", "(analytics_day_start('site', '10000-01-01') - '1 microsecond'::interval)"
        )
    )
    assert [row["date"] for row in rows] == [None] * 4 + ["0001-01-01", "9999-12-31"] + [None] * 4


ZONES = [
    "UTC",
    "America/Havana",
    "America/New_York",
    "America/St_Johns",
    "Antarctica/Casey",
    "Asia/Chita",
    "Asia/Kolkata",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Etc/GMT+12",
    "Pacific/Apia",
    "Pacific/Kiritimati",
]
CHANGE_OVERS = [date(2024, 11, 3), date(2024, 10, 27), date(2023, 3, 9), date(2014, 10, 26), date(2011, 12, 30)]

Zones = dict[tuple[str | None, date], str]
"""The rows of analytics_timezone; date.min stands for -infinity."""


class Calendar:
    """The days of a website around a day, by their definition: the zone of a day decides where it ends."""

    def __init__(self, zones: Zones, website_id: str, middle: date) -> None:
        self.starts: dict[date, datetime] = {}
        start = datetime.min.replace(tzinfo=UTC)
        for offset in range(-12, 12):
            day = middle + offset * DAY
            self.starts[day] = start
            start = max(start, midnight(day + DAY, self.zone(zones, website_id, day)))

    @staticmethod
    def zone(zones: Zones, website_id: str, day: date) -> str:
        """The time zone of a day."""
        for owner in (website_id, None):
            if held := [(since, zone) for (name, since), zone in zones.items() if name == owner and since <= day]:
                return max(held)[1]
        return "UTC"

    def day(self, instant: datetime) -> tuple[date, datetime, datetime]:
        """The one day that an instant belongs to, and its bounds."""
        [found] = [
            (day, start, self.starts[day + DAY])
            for day, start in self.starts.items()
            if day + DAY in self.starts and start <= instant < self.starts[day + DAY]
        ]
        return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[date, Zones, list[tuple[str, datetime]]]:
    """A day, zones that begin around it, of all websites and of one, and events near midnights around it."""
    middle = draw(st.sampled_from(CHANGE_OVERS))
    days = st.integers(-4, 4).map(lambda n: middle + DAY * n)
    owners = st.sampled_from([None, None, "site"])
    zones = draw(st.dictionaries(st.tuples(owners, st.just(date.min) | days), st.sampled_from(ZONES), max_size=6))
    midnights = st.builds(midnight, days, st.sampled_from(ZONES))
    offsets = st.sampled_from([-MICROSECOND, timedelta()]) | st.timedeltas(-26 * HOUR, 26 * HOUR)
    events = st.tuples(st.sampled_from(["site", "other"]), st.builds(datetime.__add__, midnights, offsets))
    return middle, zones, draw(st.lists(events, max_size=20))


def set_zones(database: Database, zones: Zones) -> None:
    """Let these be the zones, and no others."""
    with database.connection.pipeline():
        database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats, analytics_timezone")
        for (website_id, since), timezone in zones.items():
            set_zone(database, timezone, website_id, "-infinity" if since == date.min else since)


TO_AND_FRO: Any = {(None, date(2024, 11, day)): ("Pacific/Kiritimati", "Etc/GMT+12")[day % 2] for day in range(1, 6)}


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases())
@example(
    case=(
        date(2024, 11, 3),
        TO_AND_FRO,
        [("site", datetime(2024, 11, 1, 12, tzinfo=UTC) + n * HOUR) for n in range(99)],
    )
)
def test_every_instant_belongs_to_exactly_one_day_whatever_the_zones_are(
    database: Database, case: tuple[date, Zones, list[tuple[str, datetime]]]
) -> None:
    middle, zones, events = case
    set_zones(database, zones)
    database.connection.execute("SET statement_timeout = '20s'")
    calendars = {website_id: Calendar(zones, website_id, middle) for website_id in ("site", "other")}
    with database.connection.pipeline():
        for website_id, moment in events:
            database.event(moment, website_id)
    expected: Counter[tuple[Any, ...]] = Counter()
    for website_id, moment in events:
        day = calendars[website_id].day(moment)
        query = "SELECT date, starts_at, ends_at FROM analytics_day(%s, %s)"
        assert tuple(database.query(query, website_id, moment)[0].values()) == day
        expected[website_id, *day] += 1
    days = aggregate_due(database, database.connection)
    assert days == sorted({str(day) for _, day, _, _ in expected})
    rows = database.query("SELECT website_id, date, starts_at, ends_at, total_events FROM analytics_daily_stats")
    assert {tuple(row.values())[:4]: row["total_events"] for row in rows} == expected
    assert find(database, database.connection) == []
