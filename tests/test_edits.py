"""Events that are edited, moved and replaced reach the statistics: the next night, or at the latest before they go."""

from datetime import timedelta
from typing import Any

import pytest

from aggregation_steps import aggregate, aggregate_due, clock, find, seal, versions
from alert_steps import find_alerts
from conftest import Database
from retention_steps import CUTOFF, DAY, Retention, ids, retention, sealed_days

FIRST, OLD, NEW, LAST = (CUTOFF - days * DAY for days in (4, 3, 2, 1))
"""Noon-less days that have expired; the first one has events that nothing happens to."""
EDIT = ", updated_at = now()"
COUNTS = (
    "website_id, date::text, total_pageviews, total_custom_events, unique_visitors, unique_sessions, top_pages,"
    " top_referrers, total_events, deleted_events, edits_hash, events_hash, visitor_sketch, starts_at, ends_at,"
    " sealed_at IS NOT NULL AS is_sealed"
)


def counts(database: Database) -> list[dict[str, Any]]:
    """All that the rows count."""
    return database.query(f"SELECT {COUNTS} FROM analytics_daily_stats ORDER BY website_id, date")


def truth(database: Database) -> list[dict[str, Any]]:
    """What rows count that are counted from nothing, now."""
    with database.connection.transaction(force_rollback=True):
        database.connection.execute("DELETE FROM analytics_daily_stats")
        aggregate_due(database, database.connection)
        return counts(database)


def change(database: Database, assignments: str, *ids: str, edit: str = EDIT) -> None:
    """Edit events in place, as the application does: it says when."""
    query = f"UPDATE analytics_event SET {assignments}{edit} WHERE id = ANY(%s)"
    assert database.connection.execute(query.encode(), [list(ids)]).rowcount == len(ids)


@pytest.fixture
def events(database: Database) -> dict[str, str]:
    """Events of two websites on four days, all of them counted; some of them by name."""
    names = {}
    for website_id in ("site", "other"):
        for day in (FIRST, OLD, NEW, LAST):
            for n in range(5):
                name = database.event(
                    day + timedelta(hours=n + 8),
                    website_id,
                    pathname=f"/{n}",
                    referrer_source="google",
                    visitor_id=f"v{n}",
                    session_id=f"s{n}",
                    event_type="custom_event" if n == 4 else "pageview",
                )
                names[f"{website_id} {day.day} {n}"] = name
    aggregate_due(database)
    assert find(database) == []
    return names


def event(names: dict[str, str], day: Any = OLD, number: int = 0, website_id: str = "site") -> str:
    return names[f"{website_id} {day.day} {number}"]


EDITS = [
    "event_type = 'custom_event'",
    "pathname = '/other'",
    "referrer_source = 'other'",
    "referrer_source = NULL",
    "visitor_id = 'v1'",
    "session_id = 's1'",
    "event_type = 'custom_event', pathname = '', referrer_source = '', visitor_id = '', session_id = ''",
    "metadata = '{}', browser = 'lynx'",  # nothing that is counted
]
MOVES = {
    "to another day": (f"timestamp = '{NEW + timedelta(hours=1)}'", [OLD, NEW]),
    "to another website": ("website_id = 'other'", [OLD]),
    "to a website that is new": ("website_id = 'new'", [OLD]),
    "to another day of another website": (f"website_id = 'other', timestamp = '{NEW}'", [OLD, NEW]),
    "to a day without a row": (f"timestamp = '{FIRST - DAY}'", [FIRST - DAY, OLD]),
}


def names_of(days: list[Any]) -> list[str]:
    return [str(day.date()) for day in days]


@pytest.mark.parametrize("assignments", EDITS)
def test_an_event_that_is_edited_makes_its_day_due_the_next_night(
    database: Database, events: dict[str, str], assignments: str
) -> None:
    before = {(row["website_id"], row["date"]): row for row in versions(database)}
    change(database, assignments, event(events))
    assert aggregate_due(database) == names_of([OLD])
    assert find(database) == []
    assert counts(database) == truth(database)
    after = {(row["website_id"], row["date"]): row for row in versions(database)}
    assert {key for key in after if after[key] != before[key]} == {("site", OLD.date())}
    # And again: an edit of what was edited is found as well, and so is one of one among many.
    change(database, "pathname = '/again'", event(events), event(events, OLD, 1))
    assert aggregate_due(database) == names_of([OLD])
    change(database, "pathname = '/once more'", event(events))
    assert aggregate_due(database) == names_of([OLD])
    assert find(database) == []
    assert counts(database) == truth(database)


@pytest.mark.parametrize(("assignments", "days"), MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("edit", [EDIT, ""], ids=["with updated_at", "without"])
def test_an_event_that_is_moved_makes_both_days_due(
    database: Database, events: dict[str, str], assignments: str, days: list[Any], edit: str
) -> None:
    change(database, assignments, event(events), edit=edit)
    assert aggregate_due(database) == names_of(days)
    assert find(database) == []
    assert counts(database) == truth(database)
    assert database.value("SELECT sum(total_events) FROM analytics_daily_stats") == 40


def test_all_events_of_a_day_that_are_moved_to_another_website_leave_zeros(
    database: Database, events: dict[str, str]
) -> None:
    change(database, "website_id = 'new'", *(event(events, OLD, n) for n in range(5)))
    assert aggregate_due(database) == names_of([OLD])
    assert find(database) == []
    totals = "SELECT website_id, total_events FROM analytics_daily_stats WHERE date = %s"
    assert {row["website_id"]: row["total_events"] for row in database.query(totals, OLD.date())} == {
        "new": 5,
        "other": 5,
        "site": 0,
    }


SWAPS = {
    "of their days": ("timestamp", OLD, NEW, "site", "site"),
    "of their websites": ("website_id", OLD, OLD, "site", "other"),
    "of their ids": ("id", OLD, NEW, "site", "site"),
    "of their paths": ("pathname", OLD, NEW, "site", "site"),
    "of their visitors on one day": ("visitor_id", OLD, OLD, "site", "site"),
}


def swap(database: Database, column: str, one: str, other: str, edit: str = EDIT) -> None:
    """Give each of two events what the other one has."""
    values = {row["id"]: row["value"] for row in database.query(f"SELECT id, {column} AS value FROM analytics_event")}
    if column == "id":
        values = {one: one, other: other}
        change(database, "id = 'temporary'", one, edit=edit)
        change(database, f"id = '{one}'", other, edit=edit)
        change(database, f"id = '{other}'", "temporary", edit=edit)
    else:
        change(database, f"{column} = '{values[other]}'", one, edit=edit)
        change(database, f"{column} = '{values[one]}'", other, edit=edit)


def swapped(
    events: dict[str, str], one_day: Any, other_day: Any, website_id: str, other_website_id: str
) -> tuple[str, str]:
    return (event(events, one_day, 0, website_id), event(events, other_day, 1, other_website_id))


@pytest.mark.parametrize(("column", "day", "other_day", "website_id", "other_website_id"), SWAPS.values(), ids=SWAPS)
def test_two_events_that_are_swapped_make_their_days_due(
    database: Database,
    events: dict[str, str],
    column: str,
    day: Any,
    other_day: Any,
    website_id: str,
    other_website_id: str,
) -> None:
    swap(database, column, *swapped(events, day, other_day, website_id, other_website_id))
    assert aggregate_due(database) == sorted({*names_of([day, other_day])})
    assert find(database) == []
    assert counts(database) == truth(database)


def assert_that_the_retention_mends(database: Database, days: list[Any]) -> None:
    """The days are found before anything is deleted, counted again and sealed in the same run; all others at once."""
    right = truth(database)
    assert counts(database) != right
    assert find(database) == []
    with retention(database) as run:
        [left] = run.seal()
        assert (left["days"], left["recount"]) == (sorted(names_of(days)), False)
        assert {row["date"] for row in counts(database) if not row["is_sealed"]} == {*left["days"]}
        before = ids(database)
        run.aggregate([left])
        assert run.seal() == []
        assert [row | {"is_sealed": False} for row in counts(database)] == right
        assert ids(database) == before
        assert sum(run.delete(run.plan())) == 40
    assert len(sealed_days(database)) == len(right)
    assert [row | {"is_sealed": False} for row in counts(database)] == right


@pytest.mark.parametrize("assignments", EDITS[:-1])
def test_an_edit_that_leaves_no_sign_is_found_before_its_event_is_deleted(
    database: Database, events: dict[str, str], assignments: str
) -> None:
    change(database, assignments, event(events), edit="")
    assert_that_the_retention_mends(database, [OLD])


@pytest.mark.parametrize(("column", "day", "other_day", "website_id", "other_website_id"), SWAPS.values(), ids=SWAPS)
def test_a_swap_that_leaves_no_sign_is_found_before_its_events_are_deleted(
    database: Database,
    events: dict[str, str],
    column: str,
    day: Any,
    other_day: Any,
    website_id: str,
    other_website_id: str,
) -> None:
    swap(database, column, *swapped(events, day, other_day, website_id, other_website_id), edit="")
    assert_that_the_retention_mends(database, [*{day, other_day}])


def test_an_event_that_takes_the_place_of_another_is_found_before_it_is_deleted(
    database: Database, events: dict[str, str]
) -> None:
    database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [event(events)])
    database.event(OLD + timedelta(hours=8), pathname="/0", referrer_source="google", visitor_id="v0", session_id="s0")
    assert_that_the_retention_mends(database, [OLD])


def test_an_edit_with_a_sign_is_found_by_the_retention_as_well(database: Database, events: dict[str, str]) -> None:
    change(database, "visitor_id = 'v1'", *(event(events, OLD, n) for n in range(4)))
    with retention(database) as run:
        [left] = run.seal()
        assert left["days"] == names_of([OLD])
        run.aggregate([left])
        assert run.seal() == []
    assert [row["unique_visitors"] for row in counts(database) if row["date"] == str(OLD.date())] == [5, 2]


@pytest.mark.parametrize("aggregated_at", ["2124-01-01", "infinity", "-infinity", "0044-03-15 BC"])
def test_a_wrong_clock_freezes_nothing(database: Database, events: dict[str, str], aggregated_at: str) -> None:
    def wrong_clock() -> None:
        database.connection.execute("UPDATE analytics_daily_stats SET aggregated_at = %s", [aggregated_at])

    for assignments in ("pathname = '/edited'", "website_id = 'other'", "deleted_at = now()", "deleted_at = NULL"):
        wrong_clock()
        change(database, assignments, event(events, OLD, 1))
        assert aggregate_due(database) == names_of([OLD])
        assert counts(database) == truth(database)
    wrong_clock()
    # The application's clock was wrong as well, at each of the two times.
    database.event(NEW, created_at="2124-01-01", updated_at="2124-01-01")
    database.event(NEW, created_at="-infinity", updated_at="-infinity")
    change(database, f"updated_at = '{aggregated_at}', pathname = '/edited'", event(events, LAST), edit="")
    assert aggregate_due(database) == names_of([NEW, LAST])
    assert find(database) == []
    assert counts(database) == truth(database)
    wrong_clock()
    with retention(database) as run:
        assert run.seal() == []
        assert sum(run.delete(run.plan())) == 42


def test_a_row_that_was_counted_while_the_clock_was_decades_ahead_does_not_stay_due(database: Database) -> None:
    database.event("2099-01-10T12:00Z")
    with clock(database, "2099-01-11T12:00Z") as connection:
        assert aggregate_due(database, connection) == ["2099-01-10"]
    assert aggregate_due(database) == []
    # And a day that is over has no row: that is told.
    database.event(OLD)
    assert [alert["condition"] for alert in find_alerts(database, retention_days=36500)] == ["aggregation_behind"]


HANDS = [
    "total_pageviews = 0",
    "total_custom_events = total_custom_events + 1",
    "unique_visitors = 99",
    "unique_sessions = 99",
    "top_pages = '[]'",
    "top_referrers = '{}'",
    "total_events = 1",
    "total_events = 1000",
    "deleted_events = 7",
    "edits_hash = 7",
    "events_hash = 7",
    "visitor_sketch = ~visitor_sketch",
    "starts_at = starts_at - '1 hour'::interval",
    "ends_at = '9999-12-31Z'",
    "starts_at = '0001-01-02Z'",
]


@pytest.mark.parametrize("assignments", HANDS)
def test_a_row_that_somebody_changed_by_hand_is_right_again_after_a_run_for_its_day(
    database: Database, events: dict[str, str], assignments: str
) -> None:
    right = counts(database)
    query = f"UPDATE analytics_daily_stats SET {assignments} WHERE website_id = 'site' AND date = %s"
    database.connection.execute(query.encode(), [OLD.date()])
    assert counts(database) != right
    before = {(row["website_id"], row["date"]): row for row in versions(database)}
    aggregate(database, OLD.date())
    assert counts(database) == right
    assert find(database) == []
    after = {(row["website_id"], row["date"]): row for row in versions(database)}
    assert {key for key in after if after[key] != before[key]} == {("site", OLD.date())}


@pytest.mark.parametrize(
    "assignments", ["total_pageviews = 0", "visitor_sketch = ~visitor_sketch", "late_pageviews = 3"]
)
def test_a_sealed_row_stays_as_it_is(database: Database, events: dict[str, str], assignments: str) -> None:
    seal(database, OLD.date())
    query = f"UPDATE analytics_daily_stats SET {assignments} WHERE website_id = 'site' AND date = %s"
    database.connection.execute(query.encode(), [OLD.date()])
    change(database, "pathname = '/edited'", event(events))
    database.event(OLD)
    before = versions(database)
    assert find(database) == []
    assert aggregate(database, OLD.date(), recount=True) == [
        "✅ Aggregated 5 events for website other",
        "✅ Aggregated 5 events for website site, but left its row as it is: it is sealed, its raw events are being deleted",
    ]
    assert versions(database) == before


def test_an_edit_while_the_day_is_aggregated_is_found_the_next_night(
    database: Database, events: dict[str, str]
) -> None:
    change(database, "pathname = '/first'", event(events))
    with database.connect() as application, application.transaction():
        edit = f"UPDATE analytics_event SET pathname = '/second'{EDIT} WHERE id = %s"
        application.execute(edit.encode(), [event(events)])
        aggregate_due(database)
        assert find(database) == []
    assert aggregate_due(database) == names_of([OLD])
    assert counts(database) == truth(database)


def test_the_retention_leaves_a_day_that_is_edited_again_and_again(database: Database, events: dict[str, str]) -> None:
    def edited(run: Retention, pathname: str) -> list[str]:
        change(database, f"pathname = '{pathname}'", event(events), edit="")
        [left] = run.seal()
        days: list[str] = left["days"]
        return days

    with retention(database) as run:
        for pathname in ("/1", "/2", "/3"):
            assert edited(run, pathname) == names_of([OLD])
            aggregate(database, OLD.date())
        assert run.seal() == []
