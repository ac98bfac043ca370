"""find_unaggregated_days.sql: every day that is over and has events, but not the row of each of its websites."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import LOGIN, SQL, Database

FILE = "aggregate_daily_analytics/find_unaggregated_days.sql"
AGGREGATE = "aggregate_daily_analytics/aggregate_day.sql"
BEFORE = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)


def find(database: Database, before: datetime | None = BEFORE, timezone: str = "UTC") -> list[str]:
    rows = database.run(FILE, before=before, timezone=timezone)
    assert all(row["timezone"] == timezone for row in rows)
    return [row["day"] for row in rows]


def aggregate(database: Database, day: date | str, timezone: str = "UTC") -> None:
    database.run(AGGREGATE, database.connection, day=day, timezone=timezone)


def test_no_events(database: Database) -> None:
    assert find(database) == []


def test_a_day_is_found_once_and_the_oldest_first(database: Database) -> None:
    for days in (30, 3, 20):
        database.event(BEFORE - days * DAY)
        database.event(BEFORE - days * DAY + 5 * HOUR)
    database.event(BEFORE - 3 * DAY, website_id="other")
    assert find(database) == ["2024-01-31", "2024-02-10", "2024-02-27"]


def test_a_row_of_every_website_that_has_events_is_needed(database: Database) -> None:
    days = [BEFORE - n * DAY for n in (1, 2, 5, 31)]
    for website_id in ("a", "b", "c"):
        for day in days:
            database.event(day, website_id=website_id)
            database.event(day + 23 * HOUR, website_id=website_id)
    for day in days:
        aggregate(database, day.date())
    assert find(database) == []
    for website_id in ("a", "b", "c"):
        for day in days:
            with database.connection.transaction(force_rollback=True):
                database.connection.execute(
                    "DELETE FROM analytics_daily_stats WHERE website_id = %s AND date = %s", [website_id, day.date()]
                )
                found = database.run(FILE, database.connection, before=BEFORE, timezone="UTC")
            assert found == [{"day": str(day.date()), "timezone": "UTC"}]


@pytest.mark.parametrize(("moment", "found"), [(BEFORE - MICROSECOND, ["2024-02-29"]), (BEFORE, [])])
def test_only_days_before_the_bound(database: Database, moment: datetime, found: list[str]) -> None:
    database.event(moment)
    assert find(database) == found


@pytest.mark.parametrize(
    ("now", "timezone", "found"),
    [
        ("2024-03-10T23:59:59.999999Z", "UTC", ["2024-03-09"]),
        ("2024-03-11T00:00Z", "UTC", ["2024-03-09", "2024-03-10"]),
        ("2024-03-10T18:30Z", "Asia/Kolkata", ["2024-03-09", "2024-03-10"]),
        ("2024-03-11T03:59Z", "America/New_York", ["2024-03-09"]),  # a day of 23 hours
        ("2024-03-11T04:00Z", "America/New_York", ["2024-03-09", "2024-03-10"]),
    ],
)
def test_without_a_bound_the_days_that_are_over(database: Database, now: str, timezone: str, found: list[str]) -> None:
    for day in (9, 10, 11):
        database.event(datetime(2024, 3, day, tzinfo=ZoneInfo(timezone)))
    # The file says NOW(), and search_path decides whose.
    database.connection.execute(
        f"CREATE SCHEMA clock; CREATE FUNCTION clock.now() RETURNS timestamptz RETURN '{now}'::timestamptz".encode()
    )
    options = "-c search_path=clock,analytics,public,pg_catalog -c timezone=Pacific/Auckland"
    with database.connect(options=options) as connection:
        rows = database.run(FILE, connection, before=None, timezone=timezone)
    assert [row["day"] for row in rows] == found


def test_soft_deleted_events_need_no_row(database: Database) -> None:
    database.event(BEFORE - DAY, deleted_at=BEFORE)
    assert find(database) == []


@pytest.mark.parametrize("timezone", ["America/New_York", "Asia/Kolkata"])
def test_a_day_is_one_of_the_time_zone(database: Database, timezone: str) -> None:
    before = datetime(2024, 11, 10, tzinfo=ZoneInfo(timezone))
    first, end = (datetime(2024, 11, day, tzinfo=ZoneInfo(timezone)).astimezone(UTC) for day in (3, 5))
    for moment in (first, end - MICROSECOND):
        database.event(moment)
    assert find(database, before, timezone) == ["2024-11-03", "2024-11-04"]
    aggregate(database, "2024-11-03", timezone)
    assert find(database, before, timezone) == ["2024-11-04"]


def test_a_day_begins_with_the_first_of_two_midnights(database: Database) -> None:
    # At 01:00 on the 27th the clocks of the Azores go back to midnight; the event is in the first of the two hours.
    database.event(datetime(2024, 10, 26, 12, tzinfo=UTC))
    database.event(datetime(2024, 10, 27, 0, 30, tzinfo=UTC))
    before = datetime(2024, 11, 10, tzinfo=UTC)
    assert find(database, before, "Atlantic/Azores") == ["2024-10-26", "2024-10-27"]
    for day in ("2024-10-26", "2024-10-27"):
        aggregate(database, day, "Atlantic/Azores")
    assert find(database, before, "Atlantic/Azores") == []


def test_a_thousand_days_at_most(database: Database) -> None:
    for days in range(1, 1002):
        database.event(BEFORE - days * DAY)
    found = find(database)
    assert (len(found), found[0]) == (1000, str((BEFORE - 1001 * DAY).date()))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    timezone=st.sampled_from(["UTC", "America/New_York", "Australia/Lord_Howe"]),
    events=st.lists(
        st.tuples(st.sampled_from("aBc"), st.timedeltas(-9 * DAY, 3 * DAY), st.booleans()), max_size=25, unique=True
    ),
    aggregated=st.sets(st.integers(-9, 1)),
)
def test_random_events_against_an_oracle_in_python(
    database: Database, timezone: str, events: list[tuple[str, timedelta, bool]], aggregated: set[int]
) -> None:
    before = datetime(2024, 11, 5, tzinfo=ZoneInfo(timezone)).astimezone(UTC)
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats")
    with database.connection.pipeline():
        for website_id, offset, deleted in events:
            database.event(before + offset, website_id, deleted_at=before if deleted else None)
    days = {
        (before + offset).astimezone(ZoneInfo(timezone)).date()
        for _, offset, deleted in events
        if offset < timedelta() and not deleted
    }
    done = {date(2024, 11, 5) + timedelta(days=n) for n in aggregated}
    for day in done:
        aggregate(database, day, timezone)
    found = database.run(FILE, database.connection, before=before, timezone=timezone)
    assert [row["day"] for row in found] == [str(day) for day in sorted(days - done)]


def test_it_jumps_through_the_index_instead_of_reading_the_events(database: Database) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT i, 'site ' || i % 3, '/', i, i, '2024-01-01T00:00Z'::timestamptz + i * INTERVAL '1 minute'
        FROM GENERATE_SERIES(1, 20000) AS i
        """
    )
    database.connection.execute("VACUUM ANALYZE analytics_event")
    query = b"EXPLAIN (COSTS OFF) " + (SQL / FILE).read_bytes()
    with database.connect(LOGIN) as connection:
        lines = connection.execute(query, {"before": BEFORE, "timezone": "UTC"}).fetchall()
    plan = "\n".join(line["QUERY PLAN"] for line in lines)
    assert "Index Only Scan using analytics_event_website_id_timestamp_idx" in plan
    assert "Seq Scan on analytics_event" not in plan
