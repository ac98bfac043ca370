"""find_due_days.sql: every day that is over and whose rows do not count exactly its events, and no other day."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation_steps import aggregate, aggregate_due, clock, find, set_zone
from conftest import Database

BEFORE = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NOON = BEFORE - DAY / 2
MICROSECOND = timedelta(microseconds=1)


def counted(database: Database) -> dict[str, int]:
    """The events that the rows of the website count, by day."""
    rows = database.query("SELECT date::text, total_events FROM analytics_daily_stats WHERE website_id = 'site'")
    return {row["date"]: row["total_events"] for row in rows}


def test_no_events(database: Database) -> None:
    assert find(database) == []


def test_a_day_is_found_once_and_the_oldest_first(database: Database) -> None:
    for days in (30, 3, 20):
        database.event(BEFORE - days * DAY)
        database.event(BEFORE - days * DAY + 5 * HOUR)
    database.event(BEFORE - 3 * DAY, website_id="other")
    assert find(database) == ["2024-01-31", "2024-02-10", "2024-02-27"]


def test_a_row_of_every_website_that_has_events_is_needed(database: Database) -> None:
    days = [(BEFORE - n * DAY).date() for n in (1, 2, 5, 31)]
    for website_id in ("a", "b", "c"):
        for day in days:
            midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
            database.event(midnight, website_id=website_id)
            database.event(midnight + 23 * HOUR, website_id=website_id)
    aggregate(database, *days)
    assert find(database) == []
    for website_id in ("a", "b", "c"):
        for day in days:
            with database.connection.transaction(force_rollback=True):
                database.connection.execute(
                    "DELETE FROM analytics_daily_stats WHERE website_id = %s AND date = %s", [website_id, day]
                )
                assert find(database, database.connection) == [str(day)]


@pytest.mark.parametrize(
    ("now", "timezone", "found"),
    [
        ("2024-03-10T23:59:59.999999Z", "UTC", ["2024-03-09"]),
        ("2024-03-11T00:00Z", "UTC", ["2024-03-09", "2024-03-10"]),
        ("2024-03-10T18:30Z", "Asia/Kolkata", ["2024-03-09", "2024-03-10"]),
        ("2024-03-11T03:59:59.999999Z", "America/New_York", ["2024-03-09"]),  # a day of 23 hours
        ("2024-03-11T04:00Z", "America/New_York", ["2024-03-09", "2024-03-10"]),
    ],
)
def test_only_days_that_are_over(database: Database, now: str, timezone: str, found: list[str]) -> None:
    set_zone(database, timezone)
    for day in (9, 10, 11):
        midnight = datetime(2024, 3, day, tzinfo=ZoneInfo(timezone))
        database.event(midnight.astimezone(UTC))
        database.event((midnight + DAY).astimezone(UTC) - MICROSECOND)
    with clock(database, now) as connection:
        assert find(database, connection) == found
        aggregate(database, "2024-03-09", "2024-03-10", "2024-03-11", connection=connection)
        assert sorted(counted(database)) == found
        assert find(database, connection) == []


def test_soft_deleted_events_need_no_row(database: Database) -> None:
    database.event(NOON, deleted_at=BEFORE)
    assert find(database) == []


@pytest.mark.parametrize("created_at", [None, "2024-02-29T12:00Z", "2001-01-01T00:00Z", "2051-01-01T00:00Z"])
def test_an_event_that_is_stored_late_is_counted_whatever_its_created_at_says(
    database: Database, created_at: str | None
) -> None:
    database.event(NOON, pathname="/in time")
    database.event(NOON - DAY)
    aggregate_due(database)
    assert find(database) == []
    database.event(NOON, pathname="/late", **{"created_at": created_at} if created_at else {})
    assert aggregate_due(database) == ["2024-02-29"]
    assert counted(database) == {"2024-02-28": 1, "2024-02-29": 2}
    assert find(database) == []


def test_an_event_of_a_writer_that_had_not_committed_when_the_day_was_aggregated_is_counted(database: Database) -> None:
    database.event(NOON)
    with database.connect() as writer:
        with writer.transaction():
            writer.execute(
                "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
                " VALUES ('slow', 'site', '/', 'visitor', 'session', %s)",
                [NOON],
            )
            aggregate_due(database)
            assert counted(database) == {"2024-02-29": 1}
            assert find(database) == []
        # Its created_at is before the row's aggregated_at.
        assert database.value("SELECT max(created_at) < max(aggregated_at) FROM analytics_event, analytics_daily_stats")
    assert aggregate_due(database) == ["2024-02-29"]
    assert counted(database) == {"2024-02-29": 2}
    assert find(database) == []


def test_a_soft_deleted_event_and_one_that_is_restored_make_their_day_due(database: Database) -> None:
    database.event(NOON)
    event = database.event(NOON)
    aggregate_due(database)
    for deleted_at, events in ((BEFORE, 1), (None, 2)):
        database.connection.execute("UPDATE analytics_event SET deleted_at = %s WHERE id = %s", [deleted_at, event])
        assert find(database) == ["2024-02-29"]
        aggregate_due(database)
        assert counted(database) == {"2024-02-29": events}
        assert find(database) == []


def test_an_event_that_is_replaced_by_another_at_the_same_moment_makes_its_day_due(database: Database) -> None:
    event = database.event(NOON, pathname="/old")
    aggregate_due(database)
    database.connection.execute("UPDATE analytics_event SET deleted_at = now() WHERE id = %s", [event])
    database.event(NOON, pathname="/new")
    assert aggregate_due(database) == ["2024-02-29"]
    assert counted(database) == {"2024-02-29": 1}
    assert database.value("SELECT top_pages FROM analytics_daily_stats") == [{"item": "/new", "count": 1}]
    assert find(database) == []


def test_a_row_whose_events_were_all_soft_deleted_becomes_zeros_and_is_right_then(database: Database) -> None:
    for _ in range(2):
        database.event(NOON, event_type="custom_event", referrer_source="google")
        database.event(NOON, referrer_source="google")
    aggregate_due(database)
    database.connection.execute("UPDATE analytics_event SET deleted_at = now()")
    assert aggregate_due(database) == ["2024-02-29"]
    assert find(database) == []
    row = database.query("SELECT * FROM analytics_daily_stats")[0]
    assert {row[column] for column in row if column.startswith(("total_", "unique_"))} == {0}
    assert (row["top_pages"], row["top_referrers"], row["deleted_events"], row["events_hash"]) == ([], [], 4, 0)
    assert "1" not in row["visitor_sketch"]
    database.event(NOON, deleted_at=BEFORE)
    assert aggregate_due(database) == ["2024-02-29"]
    database.event(NOON)
    assert aggregate_due(database) == ["2024-02-29"]
    assert counted(database) == {"2024-02-29": 1}


@pytest.mark.parametrize("timezone", ["America/New_York", "Asia/Kolkata"])
def test_a_day_is_one_of_the_time_zone(database: Database, timezone: str) -> None:
    set_zone(database, timezone)
    first, end = (datetime(2024, 11, day, tzinfo=ZoneInfo(timezone)).astimezone(UTC) for day in (3, 5))
    for moment in (first, end - MICROSECOND):
        database.event(moment)
    assert find(database) == ["2024-11-03", "2024-11-04"]
    aggregate(database, "2024-11-03")
    assert find(database) == ["2024-11-04"]


def test_any_number_of_days_is_found_at_once(database: Database) -> None:
    with database.connection.pipeline():
        for days in range(1, 1102):
            database.event(BEFORE - days * DAY)
    found = find(database)
    assert found == [str((BEFORE - days * DAY).date()) for days in range(1101, 0, -1)]
    aggregate(database, *found)
    assert find(database) == []
    assert sum(counted(database).values()) == 1101


Change = tuple[str, timedelta, bool, bool]
"""What happens to an event: its website, its moment, whether it is stored after the aggregation, and soft-deleted."""


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    timezone=st.sampled_from(["UTC", "America/New_York", "Australia/Lord_Howe"]),
    events=st.lists(
        st.tuples(st.sampled_from("aBc"), st.timedeltas(-9 * DAY, 3 * DAY), st.booleans(), st.booleans()), max_size=25
    ),
    aggregated=st.sets(st.integers(-9, 1)),
)
def test_random_events_against_an_oracle_in_python(
    database: Database, timezone: str, events: list[Change], aggregated: set[int]
) -> None:
    today = date(2024, 11, 5)
    now = datetime(2024, 11, 5, tzinfo=ZoneInfo(timezone)).astimezone(UTC)
    database.connection.execute("TRUNCATE analytics_event, analytics_daily_stats, analytics_timezone")
    set_zone(database, timezone)
    done = {today + timedelta(days=n) for n in aggregated}
    rows: Counter[tuple[str, date, bool]] = Counter()
    there: Counter[tuple[str, date, bool]] = Counter()
    with clock(database, now) as connection:
        for are_late in (False, True):
            with database.connection.pipeline():
                for website_id, offset, is_late, is_deleted in events:
                    if is_late == are_late:
                        database.event(now + offset, website_id, deleted_at=now if is_deleted else None)
                        there[website_id, (now + offset).astimezone(ZoneInfo(timezone)).date(), is_deleted] += 1
            if not are_late:
                aggregate(database, *done, connection=connection)
                rows = there.copy()
        found = find(database, connection)
        due = set()
        for website_id, day, _ in there:
            has_row = day in done and rows[website_id, day, False] > 0
            live, deleted = (there[website_id, day, is_deleted] for is_deleted in (False, True))
            is_right = (rows[website_id, day, False], rows[website_id, day, True]) == (live, deleted)
            if day < today and (not is_right if has_row else live > 0):
                due.add(str(day))
        assert found == sorted(due)
        aggregate(database, *found, connection=connection)
        assert find(database, connection) == []


def test_days_are_found_by_jumps_through_indexes_and_counted_from_them(database: Database) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT i, 'site ' || i % 3, '/', i, i, '2024-01-01T00:00Z'::timestamptz + i * INTERVAL '1 minute'
        FROM GENERATE_SERIES(1, 20000) AS i
        """
    )
    database.connection.execute("VACUUM ANALYZE analytics_event")
    read = """
        SELECT seq_scan, idx_tup_fetch,
            (
                SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)) FROM pg_index
                WHERE indrelid = 'analytics_event'::regclass
            ) AS index_entries
        FROM pg_stat_xact_user_tables WHERE relid = 'analytics_event'::regclass
    """
    with database.connection.transaction():
        days = database.query(
            "SELECT day.* FROM analytics_websites() AS website (website_id)"
            " CROSS JOIN LATERAL analytics_event_days(website.website_id, '-infinity', now()) AS day"
        )
        jumps = database.query(read)[0]
        assert len(days) == 14 * 3
        assert jumps["index_entries"] < 2 * len(days)
        assert len(find(database, connection=database.connection)) == 14
        counts = database.query(read)[0]
    assert 20000 <= counts["index_entries"] < 20000 + 4 * len(days)
    # Nothing of the table itself.
    assert (counts["seq_scan"], counts["idx_tup_fetch"]) == (0, 0)
