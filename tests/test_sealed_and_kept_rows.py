"""The freeze law in aggregate_day.sql: a row whose raw events were deleted is final, whoever deleted them."""

from datetime import UTC, date, datetime, timedelta

import pytest

from aggregation_steps import AGGREGATE, aggregate, aggregate_due, find, make_final, versions
from conftest import LOGIN, Database

DAY = "2024-01-15"
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
NEXT_NOON = NOON + timedelta(days=1)
NEIGHBOURS = ["2024-01-13", "2024-01-14", "2024-01-15", "2024-01-16", "2024-01-17"]
IS_FINAL = ", but left its row as it is: raw events of it were deleted before"
BECAME_FINAL = ", but left its row as it is and made it final: somebody else deleted raw events of it"


CHANGES = {
    "nothing": "SELECT",
    "a late event": """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        VALUES ('late', 'site', '/late', 'late', 'late', '2024-01-15T12:00Z')
    """,
    "events soft-deleted": "UPDATE analytics_event SET deleted_at = now() WHERE pathname = '/first'",
    "all events soft-deleted": "UPDATE analytics_event SET deleted_at = now() WHERE website_id = 'site'",
    "an event restored": "UPDATE analytics_event SET deleted_at = NULL",
    "events deleted": "DELETE FROM analytics_event WHERE pathname = '/first'",
    "all events of the day deleted": "DELETE FROM analytics_event WHERE website_id = 'site'",
    "another time zone": "INSERT INTO analytics_website_policy VALUES ('site', 'America/New_York')",
    "another time zone ahead": "INSERT INTO analytics_website_policy VALUES ('site', 'Pacific/Kiritimati')",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_changes_a_row_whose_raw_events_were_purged(database: Database, change: str) -> None:
    for pathname in ("/first", "/second"):
        database.event(NOON, pathname=pathname)
    database.event(NOON, pathname="/deleted", deleted_at=NOON)
    aggregate(database, DAY)
    make_final(database)
    final = versions(database)
    database.connection.execute(change.encode())
    assert find(database) == []
    is_left = database.value(
        "SELECT count(*) > 0 FROM analytics_event WHERE website_id = 'site' AND deleted_at IS NULL"
    )
    for days in ([DAY], NEIGHBOURS):
        assert aggregate(database, *days) == ([("site", IS_FINAL)] if is_left else [])
        assert versions(database) == final


def test_a_final_row_keeps_no_other_website_from_being_counted(database: Database) -> None:
    for website_id in ("other", "site"):
        database.event(NOON, website_id=website_id)
    aggregate(database, DAY)
    make_final(database)
    final = versions(database)
    for website_id in ("new", "other", "site"):
        database.event(NOON, website_id=website_id)
    assert find(database) == [DAY]
    assert aggregate(database, DAY) == [("new", ""), ("other", ""), ("site", IS_FINAL)]
    assert versions(database) == final
    assert [versions(database, name)[0]["total_events"] for name in ("new", "other")] == [1, 2]


def test_a_row_that_becomes_final_while_its_day_is_counted_stays_as_it_is(database: Database) -> None:
    database.event(NOON)
    aggregate(database, DAY)
    database.event(NOON)
    with database.connect() as retention:
        with retention.transaction():
            retention.execute("UPDATE analytics_daily_stats SET raw_purged_at = now()")
            statement = database.start(AGGREGATE, days=[DAY], timezone="UTC")
        final = versions(database)
    assert statement.result(timeout=10)
    assert versions(database) == final
    assert final[0]["total_events"] == 1


@pytest.mark.parametrize("left", ["an event of the day", "an event of another day", "a soft-deleted event", "nothing"])
def test_a_row_of_which_somebody_else_deleted_raw_events_becomes_final_instead_of_lower(
    database: Database, left: str
) -> None:
    for pathname in ("/first", "/second"):
        database.event(NOON, pathname=pathname)
    if left == "an event of the day":
        database.event(NOON)
    if left == "an event of another day":
        database.event(NEXT_NOON)
    if left == "a soft-deleted event":
        database.event(NOON, deleted_at=NOON)
    aggregate(database, DAY, "2024-01-17")
    aggregate_due(database)
    before = versions(database)[0]
    database.connection.execute("DELETE FROM analytics_event WHERE pathname IN ('/first', '/second')")
    assert find(database) == [DAY]
    assert aggregate(database, DAY) == [("site", BECAME_FINAL)]
    final = versions(database)
    assert final[0]["raw_purged_at"] is not None
    assert final[0]["purge_snapshot"] is not None
    changed = ("raw_purged_at", "purge_snapshot", "ctid", "xmin")
    assert final[0] == before | {column: final[0][column] for column in changed}
    assert find(database) == []
    assert aggregate(database, DAY) == ([("site", IS_FINAL)] if left == "an event of the day" else [])
    assert versions(database) == final


def test_a_soft_deleted_event_lowers_its_row_and_one_that_is_deleted_does_not(database: Database) -> None:
    events = [database.event(NOON) for _ in range(4)]
    aggregate(database, DAY)
    database.connection.execute("UPDATE analytics_event SET deleted_at = now() WHERE id = %s", [events[0]])
    assert aggregate(database, DAY) == [("site", "")]
    [lowered] = versions(database)
    assert (lowered["total_events"], lowered["deleted_events"], lowered["raw_purged_at"]) == (3, 1, None)
    # Both at once: of what is left, nobody can tell what was counted.
    database.connection.execute("UPDATE analytics_event SET deleted_at = now() WHERE id = %s", [events[1]])
    database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [events[2]])
    assert find(database) == [DAY]
    assert aggregate(database, DAY) == [("site", BECAME_FINAL)]
    [final] = versions(database)
    assert (final["total_events"], final["deleted_events"], final["raw_purged_at"] is None) == (3, 1, False)


@pytest.mark.parametrize("late_events", [0, 1])
def test_soft_deleted_events_that_the_application_deletes_for_good_make_no_row_final(
    database: Database, late_events: int
) -> None:
    database.event(NOON)
    for _ in range(3):
        database.event(NOON, deleted_at=NOON)
    aggregate(database, DAY)
    database.connection.execute("DELETE FROM analytics_event WHERE deleted_at IS NOT NULL")
    for _ in range(late_events):
        database.event(NOON)
    assert find(database) == [DAY]
    assert aggregate(database, DAY) == [("site", "")]
    [row] = versions(database)
    assert (row["total_events"], row["deleted_events"], row["raw_purged_at"]) == (1 + late_events, 0, None)
    assert find(database) == []


def test_an_event_that_comes_after_the_retention_deleted_soft_deleted_ones_of_its_day_is_counted(
    database: Database,
) -> None:
    for _ in range(2):
        database.event(NOON)
    aggregate(database, DAY)
    database.connection.execute("UPDATE analytics_event SET deleted_at = now()")
    aggregate(database, DAY)
    # A day without countable events needs no final row to be deleted.
    database.connection.execute("DELETE FROM analytics_event")
    database.event(NOON)
    assert find(database) == [DAY]
    assert aggregate(database, DAY) == [("site", "")]
    assert [(row["total_events"], row["raw_purged_at"]) for row in versions(database)] == [(1, None)]


def test_two_runs_at_the_same_moment_make_a_row_final_once(database: Database) -> None:
    events = [database.event(NOON) for _ in range(2)]
    aggregate(database, DAY)
    database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [events[0]])
    with database.connect(LOGIN) as first:
        with first.transaction():
            result = database.run(AGGREGATE, first, days=[DAY], timezone="UTC")
            second = database.start(AGGREGATE, days=[DAY], timezone="UTC")
        final = versions(database)
    assert [row["remark"] for row in result] == [row["remark"] for row in second.result(timeout=10)] == [BECAME_FINAL]
    assert versions(database) == final
    assert (final[0]["date"], final[0]["total_events"]) == (date.fromisoformat(DAY), 2)
