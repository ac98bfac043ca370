"""aggregate_day.sql: one row per website and day, exact, and the same however often and when it runs."""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traffic
from conftest import DATA, LOGIN, SQL, Database

FILE = "aggregate_daily_analytics/aggregate_day.sql"
DAY = "2024-01-15"
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

STATS = """
SELECT
    website_id, date::text, total_pageviews, total_custom_events, unique_visitors, unique_sessions,
    top_pages, top_referrers
FROM analytics_daily_stats
ORDER BY website_id COLLATE "C", date
"""
VERSIONS = "SELECT *, ctid::text, xmin::text FROM analytics_daily_stats ORDER BY website_id, date"


def without_remark(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a day that no remark was made about."""
    assert {row.pop("remark") for row in rows} <= {""}
    return rows


def aggregate(database: Database, day: str = DAY, timezone: str = "UTC") -> list[dict[str, Any]]:
    return without_remark(database.run(FILE, day=day, timezone=timezone))


def day_bounds(day: str, timezone: str) -> tuple[datetime, datetime]:
    """The first instant of a day and of the next one, by Python's own time zone data."""
    first = date.fromisoformat(day)
    start, end = (
        datetime(d.year, d.month, d.day, tzinfo=ZoneInfo(timezone)).astimezone(UTC)
        for d in (first, first + timedelta(days=1))
    )
    return start, end


def test_a_day_without_events_gives_no_row(database: Database) -> None:
    database.event(NOON - timedelta(days=1))
    database.event(NOON + timedelta(days=1))
    assert aggregate(database) == []
    assert database.query(VERSIONS) == []


def test_a_database_without_events_gives_no_row(database: Database) -> None:
    assert aggregate(database) == []
    assert database.query(VERSIONS) == []


def test_one_event_gives_one_row(database: Database) -> None:
    database.event(NOON, pathname="/shop", referrer_source="google")
    before = database.value("SELECT NOW()")
    assert aggregate(database) == [{"website_id": "site", "total_events": 1}]
    row = database.query("SELECT * FROM analytics_daily_stats")[0]
    assert before <= row.pop("aggregated_at") <= database.value("SELECT NOW()")
    assert row == {
        "website_id": "site",
        "date": date(2024, 1, 15),
        "total_pageviews": 1,
        "total_custom_events": 0,
        "unique_visitors": 1,
        "unique_sessions": 1,
        "top_pages": [{"item": "/shop", "count": 1}],
        "top_referrers": [{"item": "google", "count": 1}],
        "total_events": 1,
        "raw_purged_at": None,
    }


@pytest.mark.parametrize("session_timezone", ["UTC", "Pacific/Auckland", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("timezone", "day", "hours"),
    [
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
    ],
)
def test_a_day_is_half_open_in_its_time_zone(
    database: Database, timezone: str, day: str, hours: float, session_timezone: str
) -> None:
    start, end = day_bounds(day, timezone)
    assert end - start == timedelta(hours=hours)
    for moment, pathname in [
        (start - MICROSECOND, "before"),
        (start, "first"),
        (end - MICROSECOND, "last"),
        (end, "after"),
    ]:
        database.event(moment, pathname=pathname)
    with database.connect(LOGIN) as connection:
        connection.execute("SELECT set_config('timezone', %s, false)", [session_timezone])
        database.run(FILE, connection, day=day, timezone=timezone)
    rows = database.query("SELECT date::text, top_pages FROM analytics_daily_stats")
    assert rows == [{"date": day, "top_pages": [{"item": "first", "count": 1}, {"item": "last", "count": 1}]}]


def test_a_second_run_writes_nothing(database: Database) -> None:
    database.event(NOON)
    database.event(NOON, website_id="other", referrer_source="direct")
    first_result = aggregate(database)
    first = database.query(VERSIONS)
    assert aggregate(database) == first_result
    assert database.query(VERSIONS) == first


def test_a_late_event_updates_the_row_of_its_website_only(database: Database) -> None:
    database.event(NOON)
    database.event(NOON, website_id="other")
    aggregate(database)
    before = {row["website_id"]: row for row in database.query(VERSIONS)}
    database.event(NOON, pathname="/late", visitor_id="second", session_id="second")
    aggregate(database)
    after = {row["website_id"]: row for row in database.query(VERSIONS)}
    assert after["other"] == before["other"]
    assert after["site"]["total_events"] == after["site"]["unique_visitors"] == after["site"]["unique_sessions"] == 2
    assert after["site"]["aggregated_at"] > before["site"]["aggregated_at"]


@pytest.mark.parametrize(
    "change",
    [
        "event_type = 'custom_event'",
        "visitor_id = 'other'",
        "session_id = 'other'",
        "pathname = '/other'",
        "referrer_source = 'other'",
        "event_type = 'heartbeat'",
    ],
)
def test_a_change_of_any_number_is_written(database: Database, change: str) -> None:
    database.event(NOON, referrer_source="google")
    event = database.event(NOON, referrer_source="google")
    aggregate(database)
    before = database.query(STATS)
    database.connection.execute(f"UPDATE analytics_event SET {change} WHERE id = %s".encode(), [event])
    aggregate(database)
    assert database.query(STATS) != before


def test_soft_deleted_events_are_not_counted(database: Database) -> None:
    database.event(NOON)
    database.event(NOON, deleted_at=NOON, pathname="/deleted", visitor_id="deleted", session_id="deleted")
    database.event(NOON, website_id="all deleted", deleted_at=NOON)
    assert aggregate(database) == [{"website_id": "site", "total_events": 1}]
    assert [row["top_pages"] for row in database.query(STATS)] == [[{"item": "/", "count": 1}]]


def test_rows_of_other_days_stay(database: Database) -> None:
    for days in (-1, 1):
        database.event(NOON + timedelta(days=days))
        aggregate(database, str((NOON + timedelta(days=days)).date()))
    bystanders = database.query(VERSIONS)
    database.connection.execute("TRUNCATE analytics_event")
    database.event(NOON)
    aggregate(database)
    rows = database.query(VERSIONS)
    assert len(rows) == 3
    assert [row for row in rows if row["date"] != date.fromisoformat(DAY)] == bystanders


def test_custom_events_and_others_raise_no_page_and_no_referrer(database: Database) -> None:
    for event_type in ("custom_event", "custom_event", "heartbeat"):
        database.event(NOON, event_type=event_type, pathname="/b", referrer_source="b")
        database.event(NOON, event_type=event_type, pathname="/c", referrer_source="c")
    database.event(NOON, pathname="/a", referrer_source="a")
    database.event(NOON, pathname="/b", referrer_source="b")
    assert aggregate(database) == [{"website_id": "site", "total_events": 8}]
    row = database.query(STATS)[0]
    assert (row["total_pageviews"], row["total_custom_events"]) == (2, 4)
    assert row["top_pages"] == [{"item": "/a", "count": 1}, {"item": "/b", "count": 1}]
    assert row["top_referrers"] == [{"item": "a", "count": 1}, {"item": "b", "count": 1}]


def test_empty_referrers_are_left_out_and_direct_is_a_referrer(database: Database) -> None:
    for source in (None, None, "", "", "direct"):
        database.event(NOON, referrer_source=source)
    aggregate(database)
    assert database.query(STATS)[0]["top_referrers"] == [{"item": "direct", "count": 1}]


def test_a_day_without_pageviews_has_empty_tops(database: Database) -> None:
    database.event(NOON, event_type="custom_event", referrer_source="google")
    aggregate(database)
    row = database.query(STATS)[0]
    assert (row["total_pageviews"], row["top_pages"], row["top_referrers"]) == (0, [], [])


@pytest.mark.parametrize(("column", "top"), [("pathname", "top_pages"), ("referrer_source", "top_referrers")])
def test_the_top_ten_break_ties_in_byte_order(database: Database, column: str, top: str) -> None:
    # Where the server knows a language's collation, the column gets it: it must not decide the order of ties.
    collations = database.query("SELECT collname FROM pg_collation WHERE collprovider = 'c' AND collname ~ '^en_US'")
    for collation in collations[:1]:
        database.connection.execute(
            f'ALTER TABLE analytics_event ALTER COLUMN {column} TYPE text COLLATE "{collation["collname"]}"'.encode()
        )
    # The cut falls where any order that puts A and a together would cut elsewhere.
    ties = ["/Z", "/a", "/é", "/B", "/_", "/aa", "/Y", "/日本", "/X", "/A", "/b", "/c"]
    for item in [*ties, "/most", "/most", "/most", "/more", "/more"]:
        database.event(NOON, **{column: item})
    aggregate(database)
    items = database.query(STATS)[0][top]
    assert items[:2] == [{"item": "/most", "count": 3}, {"item": "/more", "count": 2}]
    assert items[2:] == [{"item": item, "count": 1} for item in sorted(ties, key=str.encode)[:8]]


def test_a_row_whose_raw_events_were_purged_is_final(database: Database) -> None:
    database.event(NOON)
    database.event(NOON, website_id="other")
    aggregate(database)
    database.connection.execute("UPDATE analytics_daily_stats SET raw_purged_at = NOW() WHERE website_id = 'site'")
    frozen = database.query(VERSIONS)[1]
    database.event(NOON)
    database.event(NOON, website_id="other")
    remarks = {row["website_id"]: row["remark"] for row in database.run(FILE, day=DAY, timezone="UTC")}
    assert remarks == {
        "other": "",
        "site": ", but left its row as it is: raw events of it were deleted before",
    }
    other, site = database.query(VERSIONS)
    assert site == frozen
    assert other["total_events"] == 2


@pytest.mark.parametrize("first_time", [True, False])
def test_two_runs_at_the_same_moment_leave_what_one_leaves(database: Database, first_time: bool) -> None:
    for website_id in ("a", "b"):
        database.event(NOON, website_id=website_id)
    if not first_time:
        aggregate(database)
        database.event(NOON, website_id="a")
    with database.connect(LOGIN) as first:
        with first.transaction():
            result = database.run(FILE, first, day=DAY, timezone="UTC")
            second = database.start(FILE, day=DAY, timezone="UTC")
        once = database.query(VERSIONS)
    assert second.result(timeout=10) == result
    assert [row["total_events"] for row in once] == ([1, 1] if first_time else [2, 1])
    assert database.query(VERSIONS) == once


def test_an_older_snapshot_never_overwrites_a_newer_one(database: Database) -> None:
    database.event(NOON)
    with database.gate("analytics_event"):
        older = database.start(FILE, day=DAY, timezone="UTC")
        database.event(NOON)
        newer = without_remark(database.run(FILE, database.connection, day=DAY, timezone="UTC"))
        rows = database.query(VERSIONS)
    assert newer == [{"website_id": "site", "total_events": 2}]
    assert without_remark(older.result(timeout=10)) == [{"website_id": "site", "total_events": 1}]
    assert rows[0]["total_events"] == 2
    assert database.query(VERSIONS) == rows


class Event(NamedTuple):
    website_id: str
    event_type: str
    pathname: str
    referrer_source: str | None
    visitor_id: str
    session_id: str
    timestamp: datetime
    deleted_at: datetime | None


ZONES = {  # with a first day such that the three days from it on have a change-over, where there is one
    "UTC": date(2024, 2, 28),
    "Asia/Kolkata": date(2024, 12, 31),
    "America/New_York": date(2024, 11, 2),
    "Australia/Lord_Howe": date(2024, 10, 5),
}


@st.composite
def traffic_of_three_days(draw: st.DrawFn) -> tuple[str, list[Event], int]:
    """A time zone, events around three of its days, and how many of them arrive before the first run."""
    timezone = draw(st.sampled_from(sorted(ZONES)))
    midnights = [day_bounds(str(ZONES[timezone] + timedelta(days=n)), timezone)[0] for n in range(4)]
    offsets = st.sampled_from([-MICROSECOND, timedelta(), MICROSECOND]) | st.timedeltas(
        timedelta(hours=-30), timedelta(hours=30)
    )
    event = st.builds(
        Event,
        website_id=st.sampled_from(["a", "B", "é"]),
        event_type=st.sampled_from(["pageview", "pageview", "pageview", "custom_event", "heartbeat"]),
        pathname=st.sampled_from(["", *(f"/{c}" for c in "aAbBzZéÉ_~-1%'\"")]),
        referrer_source=st.sampled_from([None, "", "direct", *"gGéÖ_zZxyabc"]),
        visitor_id=st.sampled_from("uvwxyz"),
        session_id=st.sampled_from("opqrstuvwxyz"),
        timestamp=st.builds(datetime.__add__, st.sampled_from(midnights), offsets),
        deleted_at=st.sampled_from([None, None, None, midnights[0]]),
    )
    events = draw(st.lists(event, max_size=80))
    return timezone, events, draw(st.integers(0, len(events)))


def tops(items: Iterable[str]) -> list[dict[str, Any]]:
    ordered = sorted(Counter(items).items(), key=lambda pair: (-pair[1], pair[0].encode()))
    return [{"item": item, "count": count} for item, count in ordered[:10]]


def oracle(events: list[Event], timezone: str, days: list[str]) -> list[dict[str, Any]]:
    """What the daily statistics are, said in plain Python."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        day = str(event.timestamp.astimezone(ZoneInfo(timezone)).date())
        if event.deleted_at is None and day in days:
            groups.setdefault((event.website_id, day), []).append(event)
    rows = []
    for (website_id, day), group in sorted(groups.items(), key=lambda item: (item[0][0].encode(), item[0][1])):
        pageviews = [event for event in group if event.event_type == "pageview"]
        rows.append(
            {
                "website_id": website_id,
                "date": day,
                "total_pageviews": len(pageviews),
                "total_custom_events": sum(event.event_type == "custom_event" for event in group),
                "unique_visitors": len({event.visitor_id for event in group}),
                "unique_sessions": len({event.session_id for event in group}),
                # The empty path is a page like any other; the empty referrer is none.
                "top_pages": tops(event.pathname for event in pageviews),
                "top_referrers": tops(event.referrer_source for event in pageviews if event.referrer_source),
                "total_events": len(group),
            }
        )
    return rows


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=traffic_of_three_days())
def test_random_traffic_against_an_oracle_in_python(database: Database, case: tuple[str, list[Event], int]) -> None:
    timezone, events, early = case
    days = [str(ZONES[timezone] + timedelta(days=n)) for n in range(3)]
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats")
    ids = iter(range(len(events)))
    for arrived in (events[:early], events[early:]):
        with (
            database.connection.cursor() as cursor,
            cursor.copy(f"COPY analytics_event ({', '.join(Event._fields)}, id) FROM STDIN".encode()) as copy,
        ):
            for event in arrived:
                copy.write_row((*event, str(next(ids))))
        reported = [
            row | {"date": day}
            for day in days
            for row in without_remark(database.run(FILE, database.connection, day=day, timezone=timezone))
        ]
    expected = oracle(events, timezone, days)
    assert database.query(STATS.replace("top_referrers\n", "top_referrers, total_events\n")) == expected
    assert sorted(reported, key=lambda row: (row["website_id"].encode(), row["date"])) == [
        {key: row[key] for key in ("website_id", "date", "total_events")} for row in expected
    ]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample data is not in {DATA}")
def test_the_sample_data_gives_its_expected_rows(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        traffic.load(connection, DATA)
    for day in range(17, 21):
        aggregate(database, f"2015-05-{day}")
    expected = json.loads((DATA / "expected_daily_stats.json").read_text())
    assert len(expected) == 12
    assert database.query(STATS) == sorted(expected, key=itemgetter("website_id", "date"))


def test_the_plan_reads_the_day_through_an_index_and_hashes(database: Database) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, referrer_source, visitor_id, session_id, timestamp)
        SELECT
            'anevt_' || i, 'site ' || i % 7, '/' || i % 900, 'host ' || i % 90, 'visitor ' || i % 20000,
            'session ' || i / 3, '2024-01-01T00:00Z'::timestamptz + i * INTERVAL '40 seconds'
        FROM GENERATE_SERIES(1, 50000) AS i
        """
    )
    database.connection.execute("ANALYZE analytics_event")
    with database.connect(LOGIN) as connection:
        connection.execute("SET work_mem = '256MB'")  # as the task does
        query = b"EXPLAIN (COSTS OFF) " + (SQL / FILE).read_bytes()
        plan = [row["QUERY PLAN"] for row in connection.execute(query, {"day": DAY, "timezone": "UTC"})]
    assert sum("HashAggregate" in line for line in plan) == 1
    assert not [line for line in plan if "MixedAggregate" in line or "Seq Scan on analytics_event" in line]
