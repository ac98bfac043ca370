"""aggregate_day.sql: one row per website and day, exact, and the same however often and when it runs."""

import json
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traffic
from aggregation_steps import AGGREGATE, set_zone
from aggregation_steps import aggregate as aggregate_days
from conftest import DATA, LOGIN, Database
from day_oracle import ATTRIBUTES, DIMENSIONS, Event, count_day

DAY = "2024-01-15"
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

CONTRACT = (
    "website_id, date::text, total_pageviews, total_custom_events, unique_visitors, unique_sessions, top_pages,"
    " top_referrers"
)
STATS = f'SELECT {CONTRACT} FROM analytics_daily_stats ORDER BY website_id COLLATE "C", date'
ALL_STATS = STATS.replace(" FROM", ", total_events, deleted_events, events_hash, edits_hash, visitor_sketch FROM")
# The tables of older versions of the application take any type.
ANY_TYPE = "ALTER TABLE analytics_event DROP CONSTRAINT IF EXISTS analytics_event_event_type_check"
VERSIONS = "SELECT *, ctid::text, xmin::text FROM analytics_daily_stats ORDER BY website_id, date"


PARAMETERS = {"days": [DAY], "label": DAY, "recount": False}
HASH = (
    "analytics_event_hash(id, event_type, event_name, pathname, referrer_source, visitor_id, session_id,"
    f" analytics_attributes_hash({', '.join(DIMENSIONS.values())}), timestamp)"
)
REPEATABLE_READ = (
    "-c search_path=analytics,public -c default_transaction_isolation=repeatable\\ read -c statement_timeout=20s"
)


def aggregate(database: Database, *days: str) -> list[str]:
    """Aggregate days; return what the log says about each website and day, without the sign of success."""
    return [line.removeprefix("✅ Aggregated ") for line in aggregate_days(database, *(days or [DAY]))]


def said(**events: int) -> list[str]:
    """What the log says about websites of a day."""
    return [f"{count} events for website {website_id}" for website_id, count in events.items()]


def test_a_day_without_events_gives_no_row(database: Database) -> None:
    assert aggregate(database) == []
    database.event(NOON - timedelta(days=1))
    database.event(NOON + timedelta(days=1))
    assert aggregate(database) == []
    assert database.query(VERSIONS) == []


def test_one_event_gives_one_row(database: Database) -> None:
    database.event(NOON, pathname="/shop", referrer_source="google")
    before = database.value("SELECT NOW()")
    assert aggregate(database) == said(site=1)
    row = database.query("SELECT * FROM analytics_daily_stats")[0]
    assert before <= row.pop("aggregated_at") <= database.value("SELECT NOW()")
    assert row.pop("visitor_sketch").count("1") == 1
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
        "deleted_events": 0,
        "events_hash": database.value(f"SELECT {HASH} FROM analytics_event"),
        "edits_hash": 0,
        "starts_at": datetime(2024, 1, 15, tzinfo=UTC),
        "ends_at": datetime(2024, 1, 16, tzinfo=UTC),
        "sealed_at": None,
        "kept_at": None,
        "late_pageviews": 0,
        "late_custom_events": 0,
        "late_ignored_events": 0,
        "bounced_sessions": 1,
        "session_seconds": 0,
        "top_countries": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_devices": [{"item": "desktop", "count": 1, "visitors": 1}],
        "top_browsers": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_os": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_utm_sources": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_utm_mediums": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_utm_campaigns": [{"item": "(none)", "count": 1, "visitors": 1}],
        "top_events": [],
        "ignored_events": [],
    }


def test_days_that_are_given_together_are_counted_each_on_its_own(database: Database) -> None:
    for days in range(4):
        for _ in range(days + 1):
            database.event(NOON + timedelta(days=days))
    database.event(NOON + timedelta(days=2), website_id="other")
    # A day without events among them.
    result = aggregate(database, "2024-01-17", "2024-01-14", "2024-01-15")
    assert result == said(other=1) + said(site=1) + said(site=3)
    rows = [(row["website_id"], row["date"]) for row in database.query(STATS)]
    assert rows == [("other", "2024-01-17"), ("site", "2024-01-15"), ("site", "2024-01-17")]


def test_the_days_of_one_statement_are_written_all_or_none(database: Database) -> None:
    for website_id in ("a", "b"):
        database.event(NOON, website_id=website_id)
    database.connection.execute("ALTER TABLE analytics_daily_stats ADD CHECK (website_id < 'b')")
    with pytest.raises(psycopg.errors.CheckViolation):
        aggregate(database)
    assert database.query(STATS) == []


def test_the_hash_is_that_of_all_that_is_counted_of_the_counted_events(database: Database) -> None:
    for n in range(5):
        database.event(NOON, pathname=f"/{n % 2}", visitor_id=str(n))
    database.event(NOON, deleted_at=NOON)
    database.event(NOON - timedelta(days=1))
    aggregate(database)
    query = f"SELECT bit_xor({HASH}) FROM analytics_event WHERE deleted_at IS NULL AND timestamp = %s"
    assert database.query(ALL_STATS)[0]["events_hash"] == database.value(query, NOON)


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
        *(f"{column} = 'mobile'" for column in ATTRIBUTES[1:]),
        "event_type = 'custom_event'",
        "timestamp = timestamp + interval '1 microsecond'",
        "id = 'another'",
        "deleted_at = now()",
    ],
)
def test_a_change_of_anything_that_is_counted_is_written(database: Database, change: str) -> None:
    database.event(NOON, referrer_source="google")
    event = database.event(NOON, referrer_source="google")
    aggregate(database)
    before = database.query(ALL_STATS)
    database.connection.execute(f"UPDATE analytics_event SET {change} WHERE id = %s".encode(), [event])
    aggregate(database)
    assert database.query(ALL_STATS) != before


def test_soft_deleted_events_are_not_counted(database: Database) -> None:
    database.event(NOON)
    database.event(NOON, deleted_at=NOON, pathname="/deleted", visitor_id="deleted", session_id="deleted")
    database.event(NOON, website_id="all deleted", deleted_at=NOON)
    assert aggregate(database) == said(site=1)
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
    database.connection.execute(ANY_TYPE)
    for event_type in ("custom_event", "custom_event", "heartbeat"):
        database.event(NOON, event_type=event_type, pathname="/b", referrer_source="b")
        database.event(NOON, event_type=event_type, pathname="/c", referrer_source="c")
    database.event(NOON, pathname="/a", referrer_source="a")
    database.event(NOON, pathname="/b", referrer_source="b")
    assert aggregate(database) == said(site=8)
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


def test_a_visitor_is_one_of_the_item_of_most_of_its_pageviews_and_of_several_of_the_first(database: Database) -> None:
    for country in ("b", "b", "a", "a", "c"):
        database.event(NOON, country=country, visitor_id="tie")
    for country in ("c", "c", "a"):
        database.event(NOON, country=country, visitor_id="most")
    # An event that is no pageview decides nothing.
    for _ in range(5):
        database.event(NOON, event_type="custom_event", country="b", visitor_id="most")
    aggregate(database)
    assert database.value("SELECT top_countries FROM analytics_daily_stats") == [
        {"item": "a", "count": 3, "visitors": 1},
        {"item": "c", "count": 3, "visitors": 1},
        {"item": "b", "count": 2, "visitors": 0},
    ]


def test_the_items_of_each_dimension_add_up_to_the_pageviews_or_the_custom_events(database: Database) -> None:
    for n in range(30):
        names = {column: f"{column} {n % 13}" for column in ("country", "browser", "os", "utm_source", "event_name")}
        for event_type in ("pageview", "custom_event"):
            database.event(NOON, visitor_id=str(n % 17), event_type=event_type, **names)
    aggregate(database)
    row = database.query("SELECT * FROM analytics_daily_stats")[0]
    for column in ("top_countries", "top_browsers", "top_os", "top_utm_sources", "top_events", "top_utm_campaigns"):
        assert sum(entry["count"] for entry in row[column]) == 30, column
        assert sum(entry["visitors"] for entry in row[column]) == 17, column
    assert [entry["item"] for entry in row["top_countries"]][-1] == "(other)"
    assert len(row["top_countries"]) == 11


def test_an_ignored_event_is_proven_and_makes_no_session_unbounced(database: Database) -> None:
    database.value("SELECT analytics_ignore_events(ARRAY['heartbeat'])")
    database.event(NOON)
    for seconds in (30, 60):
        moment = NOON + timedelta(seconds=seconds)
        database.event(moment, event_type="custom_event", event_name="heartbeat")
    # Only custom events are ignored.
    database.event(NOON, event_name="heartbeat", session_id="second")
    aggregate(database)
    row = database.query("SELECT * FROM analytics_daily_stats")[0]
    assert (row["total_pageviews"], row["total_custom_events"], row["total_events"]) == (2, 0, 4)
    assert (row["bounced_sessions"], row["session_seconds"], row["top_events"]) == (2, 60, [])
    assert row["ignored_events"] == ["heartbeat"]


@pytest.mark.parametrize("first_time", [True, False])
def test_of_two_runs_at_the_same_moment_the_second_fails_and_finds_all_done_when_it_is_retried(
    database: Database, first_time: bool
) -> None:
    for website_id in ("a", "b"):
        database.event(NOON, website_id=website_id)
    if not first_time:
        aggregate(database)
        database.event(NOON, website_id="a")
    with database.connect(LOGIN, options=REPEATABLE_READ) as first:
        with first.transaction():
            database.run(AGGREGATE, first, **PARAMETERS)
            second = database.start(AGGREGATE, database.connect(LOGIN, options=REPEATABLE_READ), **PARAMETERS)
        once = database.query(VERSIONS)
    with pytest.raises(psycopg.errors.SerializationFailure):
        second.result(timeout=10)
    assert [row["total_events"] for row in once] == ([1, 1] if first_time else [2, 1])
    assert aggregate(database) == (said(a=1, b=1) if first_time else said(a=2, b=1))
    assert database.query(VERSIONS) == once


def test_an_older_snapshot_never_overwrites_a_newer_one(database: Database) -> None:
    database.event(NOON)
    with database.gate("analytics_event"):
        older = database.start(AGGREGATE, database.connect(LOGIN, options=REPEATABLE_READ), **PARAMETERS)
        database.event(NOON)
        database.run(AGGREGATE, database.connection, **PARAMETERS)
        rows = database.query(VERSIONS)
    with pytest.raises(psycopg.errors.SerializationFailure):
        older.result(timeout=10)
    assert rows[0]["total_events"] == 2
    assert database.query(VERSIONS) == rows


ZONES = {  # with a first day such that the three days from it on have a change-over, where there is one
    "UTC": date(2024, 2, 28),
    "Asia/Kolkata": date(2024, 12, 31),
    "America/New_York": date(2024, 11, 2),
    "Australia/Lord_Howe": date(2024, 10, 5),
}


# More than ten, so that some are the others; what applications call so; and none in both ways.
ITEMS = st.sampled_from([None, "", "(none)", "(other)", *"aAbBzZéÉ_~-1%'\""])


@st.composite
def traffic_of_three_days(draw: st.DrawFn) -> tuple[str, list[Event], int, list[str]]:
    """A time zone, events around three of its days, how many of them arrive before the first run, and ignored names."""
    timezone = draw(st.sampled_from(sorted(ZONES)))
    midnights = [
        datetime.combine(ZONES[timezone] + timedelta(days=n), time(), ZoneInfo(timezone)).astimezone(UTC)
        for n in range(4)
    ]
    offsets = st.sampled_from([-MICROSECOND, timedelta(), MICROSECOND]) | st.timedeltas(
        timedelta(hours=-30), timedelta(hours=30)
    )
    event = st.builds(
        Event,
        website_id=st.sampled_from(["a", "B", "é"]),
        event_type=st.sampled_from(["pageview", "pageview", "pageview", "custom_event", "custom_event", "heartbeat"]),
        event_name=ITEMS,
        pathname=st.sampled_from(["", *(f"/{c}" for c in "aAbBzZéÉ_~-1%'\"")]),
        referrer_source=st.sampled_from([None, "", "direct", *"gGéÖ_zZxyabc"]),
        visitor_id=st.sampled_from("uvwxyz"),
        session_id=st.sampled_from("opqrstuvwxyz"),
        country=ITEMS,
        device_type=st.sampled_from(["desktop", "mobile"]),
        browser=ITEMS,
        os=ITEMS,
        utm_source=ITEMS,
        utm_medium=ITEMS,
        utm_campaign=ITEMS,
        timestamp=st.builds(datetime.__add__, st.sampled_from(midnights), offsets),
        deleted_at=st.sampled_from([None, None, None, midnights[0]]),
    )
    events = draw(st.lists(event, max_size=80))
    ignored = draw(st.lists(st.sampled_from(["", "a", "é", "(other)", "absent"]), unique=True, max_size=3))
    return timezone, events, draw(st.integers(0, len(events))), ignored


def oracle(events: list[Event], timezone: str, days: list[str], ignored: list[str]) -> list[dict[str, Any]]:
    """What the daily statistics are, said in plain Python."""
    groups: dict[tuple[str, str], list[Event]] = {}
    deleted: Counter[tuple[str, str]] = Counter()
    for event in events:
        day = str(event.timestamp.astimezone(ZoneInfo(timezone)).date())
        if event.deleted_at is not None:
            deleted[event.website_id, day] += 1
        elif day in days:
            groups.setdefault((event.website_id, day), []).append(event)
    return [
        {"website_id": website_id, "date": day, "deleted_events": deleted[website_id, day]} | count_day(group, ignored)
        for (website_id, day), group in sorted(groups.items(), key=lambda item: (item[0][0].encode(), item[0][1]))
    ]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=traffic_of_three_days())
def test_random_traffic_against_an_oracle_in_python(
    database: Database, case: tuple[str, list[Event], int, list[str]]
) -> None:
    timezone, events, early, ignored = case
    days = [str(ZONES[timezone] + timedelta(days=n)) for n in range(3)]
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats, analytics_timezone")
    database.connection.execute(ANY_TYPE)
    database.value("SELECT analytics_ignore_events(%s)", ignored)
    set_zone(database, timezone)
    ids = iter(range(len(events)))
    for arrived in (events[:early], events[early:]):
        with (
            database.connection.cursor() as cursor,
            cursor.copy(f"COPY analytics_event ({', '.join(Event._fields)}, id) FROM STDIN".encode()) as copy,
        ):
            for event in arrived:
                copy.write_row((*event, str(next(ids))))
        reported = aggregate_days(database, *days, connection=database.connection)
    expected = oracle(events, timezone, days, ignored)
    columns = ", ".join(["website_id", "date::text", "deleted_events", *count_day([])])
    assert database.query(STATS.replace(CONTRACT, columns)) == expected
    assert Counter(reported) == Counter(
        f"✅ Aggregated {row['total_events']} events for website {row['website_id']}" for row in expected
    )


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample data is not in {DATA}")
def test_the_sample_data_gives_its_expected_rows(database: Database) -> None:
    with psycopg.connect(database.dsn) as connection:
        traffic.load(connection, DATA)
    aggregate(database, *(f"2015-05-{day}" for day in range(17, 21)))
    expected = json.loads((DATA / "expected_daily_stats.json").read_text())
    assert len(expected) == 12
    assert database.query(STATS) == sorted(expected, key=itemgetter("website_id", "date"))
