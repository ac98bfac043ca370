"""What changes a row: corrections do; other people's deletions do not; and a sealed one is changed by nobody."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from aggregation_steps import aggregate, aggregate_due, find, seal, set_zone, versions
from alert_steps import find_alerts
from conftest import LOGIN, Database
from retention_steps import CUTOFF, archive, ids, late, retention, stats

DAY = "2024-01-15"
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
ONE_DAY = timedelta(days=1)
NEIGHBOURS = ["2024-01-13", "2024-01-14", "2024-01-15", "2024-01-16", "2024-01-17"]
IS_SEALED = ", but left its row as it is: it is sealed, its raw events are being deleted"
REFUSED = "The time zone would change the day 2024-01-15 of website site, whose row"


def kept(events: int, day: str = DAY) -> str:
    """The end of the log's line about a row that counts `events` and is kept."""
    return (
        f", but kept its row, which counts {events}: somebody else deleted raw events, and none older are there; to count "
        f"what is left, run this job with recount, from and to {day}"
    )


def line(events: int, remark: str = "", website_id: str = "site") -> str:
    return f"✅ Aggregated {events} events for website {website_id}{remark}"


def delete(database: Database, where: str) -> None:
    database.connection.execute(f"DELETE FROM analytics_event WHERE {where}".encode())


def states(database: Database, website_id: str = "site") -> list[tuple[int, bool]]:
    """How many events each row counts, and whether it is kept."""
    return [(row["total_events"], row["kept_at"] is not None) for row in versions(database, website_id)]


CHANGES = {
    "nothing": "SELECT",
    "a late event": """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        VALUES ('late', 'site', '/late', 'late', 'late', '2024-01-15T12:00Z')
    """,
    "events edited": "UPDATE analytics_event SET pathname = '/edited', updated_at = now() + INTERVAL '1 second'",
    "events soft-deleted": "UPDATE analytics_event SET deleted_at = now() WHERE pathname = '/first'",
    "all events soft-deleted": "UPDATE analytics_event SET deleted_at = now() WHERE website_id = 'site'",
    "an event restored": "UPDATE analytics_event SET deleted_at = NULL",
    "events deleted": "DELETE FROM analytics_event WHERE pathname = '/first'",
    "all events of the day deleted": "DELETE FROM analytics_event WHERE website_id = 'site'",
    "its neighbours counted": """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT day, 'site', '/', 'v', 's', '2024-01-10Z'::timestamptz + day * INTERVAL '1 day'
        FROM unnest(ARRAY[4, 6]) AS day
    """,
}


class TestSealedRows:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_nothing_changes_one(self, database: Database, change: str) -> None:
        for pathname in ("/first", "/second"):
            database.event(NOON, pathname=pathname)
        database.event(NOON, pathname="/deleted", deleted_at=NOON)
        aggregate(database, DAY)
        seal(database)
        sealed = versions(database)
        database.connection.execute(change.encode())
        assert find(database) == (["2024-01-14", "2024-01-16"] if "unnest" in change else [])
        for recount in (False, True):
            for days in ([DAY], NEIGHBOURS):
                aggregate(database, *days, recount=recount)
                assert [row for row in versions(database) if row["sealed_at"]] == sealed

    def test_it_is_said_in_the_log_where_raw_events_are_left(self, database: Database) -> None:
        database.event(NOON, id="counted")
        aggregate(database, DAY)
        seal(database)
        database.event(NOON, id="late")
        assert aggregate(database, DAY) == [line(1, IS_SEALED)]
        delete(database, "TRUE")
        assert aggregate(database, DAY) == []

    def test_it_keeps_no_other_website_from_being_counted(self, database: Database) -> None:
        for website_id in ("other", "site"):
            database.event(NOON, website_id=website_id)
        aggregate(database, DAY)
        seal(database)
        for website_id in ("new", "other", "site"):
            database.event(NOON, website_id=website_id)
        assert find(database) == [DAY]
        assert aggregate(database, DAY) == [line(1, "", "new"), line(2, "", "other"), line(1, IS_SEALED)]

    @pytest.mark.parametrize("state", ["sealed_at", "kept_at"])
    @pytest.mark.parametrize("website_id", ["site", None])
    def test_a_zone_that_would_change_its_day_is_refused(
        self, database: Database, state: str, website_id: str | None
    ) -> None:
        database.event(NOON)
        aggregate(database, DAY)
        database.connection.execute(f"UPDATE analytics_daily_stats SET {state} = now()".encode())
        for from_date in ("-infinity", DAY, "2024-01-14"):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match=REFUSED):
                set_zone(database, "Pacific/Kiritimati", website_id, from_date)
        # One that leaves it as it is is not, and is what it stays with.
        set_zone(database, "Pacific/Kiritimati", website_id, "2024-01-17")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=REFUSED):
            database.connection.execute("UPDATE analytics_timezone SET from_date = '2024-01-15'")

    def test_the_jobs_may_not_delete_statistics(self, database: Database) -> None:
        with database.connect(LOGIN) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM analytics_daily_stats")


@pytest.fixture
def three_days(database: Database) -> Database:
    """Ten events of ten visitors on each of three days that are counted: 13, 14 and 15 January."""
    for days in range(3):
        for n in range(10):
            name = f"{n} of {13 + days}"
            database.event(NOON + (days - 2) * ONE_DAY, id=name, visitor_id=f"v{n}", pathname=f"/{13 + days}")
    aggregate_due(database)
    return database


class TestCorrections:
    def test_a_visitor_is_erased(self, three_days: Database) -> None:
        delete(three_days, "visitor_id = 'v1' AND timestamp > '2024-01-14'")
        assert find(three_days) == ["2024-01-14", "2024-01-15"]
        assert aggregate(three_days, DAY, "2024-01-14") == [line(9), line(9)]
        assert states(three_days) == [(10, False), (9, False), (9, False)]
        assert find(three_days) == []

    def test_a_visitor_is_erased_and_late_events_come_the_same_day(self, three_days: Database) -> None:
        delete(three_days, "id = '1 of 13'")  # the oldest day of all
        for _ in range(3):
            three_days.event(NOON - 2 * ONE_DAY)
        assert aggregate_due(three_days) == ["2024-01-13"]
        assert states(three_days) == [(12, False), (10, False), (10, False)]

    def test_a_visitor_is_erased_and_another_event_comes_in_its_place(self, three_days: Database) -> None:
        delete(three_days, "id = '1 of 15'")
        three_days.event(NOON, id="other", visitor_id="other", pathname="/other")
        # As many as before: nothing cheap tells, but the hash of all does before they go.
        assert find(three_days) == []
        assert sum(archive(three_days)["event"]) == 30
        assert {page["item"] for page in versions(three_days)[2]["top_pages"]} == {"/15", "/other"}

    def test_bots_are_removed(self, three_days: Database) -> None:
        delete(three_days, "id > '1' AND timestamp > '2024-01-14'")
        aggregate_due(three_days)
        assert states(three_days) == [(10, False), (1, False), (1, False)]

    def test_the_events_of_a_day_get_another_website(self, three_days: Database) -> None:
        three_days.connection.execute("UPDATE analytics_event SET website_id = 'other' WHERE timestamp > '2024-01-15'")
        assert aggregate_due(three_days) == [DAY]
        assert states(three_days) == [(10, False), (10, False), (0, False)]
        assert states(three_days, "other") == [(10, False)]
        assert find(three_days) == []

    def test_events_move_to_another_day(self, three_days: Database) -> None:
        three_days.connection.execute("UPDATE analytics_event SET timestamp = '2024-01-20' WHERE id < '4 of 15' AND "
            "timestamp > '2024-01-15'")  # fmt: skip
        assert aggregate_due(three_days) == [DAY, "2024-01-20"]
        assert [events for events, _ in states(three_days)] == [10, 10, 6, 4]

    def test_a_soft_deleted_event_lowers_its_row(self, three_days: Database) -> None:
        three_days.connection.execute("UPDATE analytics_event SET deleted_at = now() WHERE visitor_id = 'v1'")
        aggregate_due(three_days)
        assert states(three_days) == [(9, False)] * 3
        # The application removes them for good, which nobody counted.
        delete(three_days, "deleted_at IS NOT NULL")
        assert len(aggregate_due(three_days)) == 3
        assert states(three_days) == [(9, False)] * 3


def one_statement(database: Database, days: list[str]) -> None:
    aggregate(database, *days)


def oldest_first(database: Database, days: list[str]) -> None:
    for day in days:
        aggregate(database, day)


def newest_first(database: Database, days: list[str]) -> None:
    oldest_first(database, days[::-1])


ORDERS = pytest.mark.parametrize("order", [one_statement, oldest_first, newest_first])


class TestKeptRows:
    """What another retention job leaves: raw events are missing at the old end."""

    @pytest.mark.parametrize(
        "left", ["an event of the day", "an event of another day", "a soft-deleted event", "nothing", "late events"]
    )
    def test_the_row_stays_as_it_was_counted(self, database: Database, left: str) -> None:
        for _ in range(4):
            database.event(NOON, pathname="/first")
        if left == "an event of the day":
            database.event(NOON)
        if left == "an event of another day":
            database.event(NOON + ONE_DAY)
        if left == "a soft-deleted event":
            database.event(NOON, deleted_at=NOON)
        aggregate_due(database)
        before = versions(database)
        events = before[0]["total_events"]
        delete(database, "pathname = '/first'")
        if left == "late events":
            for _ in range(3):
                database.event(NOON)
        assert find(database) == [DAY]
        live = {"an event of the day": 1, "late events": 3}.get(left, 0)
        assert aggregate(database, DAY) == [line(live, kept(events))]
        rows = versions(database)
        changed = ("kept_at", "ctid", "xmin")
        assert rows[0] == before[0] | {column: rows[0][column] for column in changed}
        assert rows[0]["kept_at"] is not None
        assert rows[1:] == before[1:]
        # Once: it is not due any more, and stays the same.
        assert find(database) == []
        assert aggregate(database, DAY) == [line(live, kept(events))]
        assert versions(database) == rows

    @ORDERS
    def test_the_old_end_moves_on(self, three_days: Database, order: Callable[[Database, list[str]], None]) -> None:
        before = versions(three_days)
        delete(three_days, "timestamp < '2024-01-14' OR id < '5 of 14' AND timestamp < '2024-01-15'")
        order(three_days, find(three_days))
        assert states(three_days) == [(10, True), (10, True), (10, False)]
        assert versions(three_days)[2] == before[2]
        delete(three_days, "timestamp < '2024-01-15' OR id < '9'")
        order(three_days, find(three_days))
        assert states(three_days) == [(10, True)] * 3

    def test_behind_a_sealed_day(self, three_days: Database) -> None:
        # What is older was deleted by us, so nobody can tell who else deleted.
        seal(three_days, "2024-01-13")
        delete(three_days, "timestamp < '2024-01-14' OR id = '1 of 14'")
        aggregate_due(three_days)
        assert states(three_days) == [(10, False), (10, True), (10, False)]

    @ORDERS
    def test_a_visitor_who_is_erased_on_every_day_lowers_all_rows_but_the_oldest(
        self, three_days: Database, order: Callable[[Database, list[str]], None]
    ) -> None:
        delete(three_days, "visitor_id = 'v1'")
        order(three_days, find(three_days))
        assert states(three_days) == [(10, True), (9, False), (9, False)]

    def test_one_alert_tells(self, three_days: Database) -> None:
        delete(three_days, "timestamp < '2024-01-15'")
        aggregate_due(three_days)
        three_days.event(NOON, website_id="another")
        aggregate_due(three_days)
        delete(three_days, "website_id = 'another'")
        aggregate_due(three_days)
        alerts = [find_alerts(three_days, retention_days=36500) for _ in range(2)]
        messages = [[alert["message"] for alert in some if alert["condition"] == "rows_kept"] for some in alerts]
        message = (
            "Raw events that were counted are missing at the old end of 2 website(s), and none of these jobs deleted them "
            "(another, site); 3 row(s) are kept as they were counted; look whether another job deletes events."
        )
        assert messages == [[message], []]

    def test_one_that_has_as_many_events_again_is_counted_again(self, three_days: Database) -> None:
        delete(three_days, "timestamp < '2024-01-14'")
        aggregate_due(three_days)
        for n in range(9):
            three_days.event(NOON - 2 * ONE_DAY, visitor_id=str(n), id=str(n))
        assert find(three_days) == []
        for n in range(2):
            three_days.event(NOON - 2 * ONE_DAY, visitor_id=f"another {n}")
        assert aggregate_due(three_days) == ["2024-01-13"]
        assert states(three_days)[0] == (11, False)
        assert versions(three_days)[0]["unique_visitors"] == 11

    def test_it_stays_so_when_an_older_event_comes(self, three_days: Database) -> None:
        delete(three_days, "id = '1 of 13'")
        aggregate_due(three_days)
        three_days.event(NOON - 3 * ONE_DAY)
        assert aggregate_due(three_days) == ["2024-01-12"]
        assert aggregate(three_days, "2024-01-13") == [line(9, kept(10, "2024-01-13"))]
        assert states(three_days) == [(1, False), (10, True), (10, False), (10, False)]

    def test_recount_counts_what_is_there(self, three_days: Database) -> None:
        delete(three_days, "timestamp < '2024-01-14' OR id < '5' AND timestamp < '2024-01-15'")
        aggregate_due(three_days)
        assert states(three_days) == [(10, True), (10, True), (10, False)]
        assert aggregate(three_days, "2024-01-13", "2024-01-14", recount=True) == [line(0), line(5)]
        assert states(three_days) == [(0, False), (5, False), (10, False)]
        assert find(three_days) == []


class TestRetentionOfKeptRows:
    def test_one_is_sealed_as_it_is_and_what_is_left_of_it_goes(self, three_days: Database) -> None:
        delete(three_days, "id < '8' AND timestamp < '2024-01-14'")
        aggregate_due(three_days)
        before = stats(three_days)
        with retention(three_days) as run:
            assert run.seal() == []
            assert (
                run.log.splitlines()[0] == "[Analytics Archive] site 2024-01-13 (sealed as it is: 10 counted, 2 left)"
            )
            assert run.delete(run.plan()) == [22]
        rows = stats(three_days)
        changed = ("sealed_at", "ctid", "xmin")
        assert rows == [old | {name: row[name] for name in changed} for old, row in zip(before, rows, strict=True)]
        assert all(row["sealed_at"] for row in rows)

    def test_what_another_job_left_since_the_last_night_is_kept_first(self, three_days: Database) -> None:
        delete(three_days, "id < '8' AND timestamp < '2024-01-14'")
        assert sum(archive(three_days)["event"]) == 22
        assert states(three_days) == [(10, True), (10, False), (10, False)]
        assert (ids(three_days), late(three_days)) == (set(), {})

    def test_what_comes_after_it_was_sealed_is_late(self, three_days: Database) -> None:
        delete(three_days, "id < '8' AND timestamp < '2024-01-14'")
        archive(three_days)
        three_days.event(NOON - 2 * ONE_DAY)
        assert archive(three_days)["event"] == [1]
        assert late(three_days) == {("site", "2024-01-13"): 1}

    def test_a_correction_since_the_last_night_is_counted_first(self, three_days: Database) -> None:
        three_days.event(CUTOFF, id="young")
        delete(three_days, "id = '1 of 15'")
        three_days.connection.execute("UPDATE analytics_event SET website_id = 'other' WHERE id = '2 of 15'")
        assert sum(archive(three_days)["event"]) == 29
        assert states(three_days) == [(10, False), (10, False), (8, False)]
        assert states(three_days, "other") == [(1, False)]
        assert ids(three_days) == {"young"}


def test_an_event_that_comes_for_a_kept_day_does_not_lower_the_day_after(database: Database) -> None:
    for day in (13, 14, 15):
        for hour in range(10):
            database.event(f"2024-01-{day}T{hour:02}:00Z")
    aggregate_due(database)
    for day in (13, 14):
        database.query("DELETE FROM analytics_event WHERE timestamp < %s RETURNING id", f"2024-01-{day + 1}T00:00Z")
        aggregate_due(database)
        database.event("2024-01-13T12:00Z")
    counts = database.query("SELECT total_events FROM analytics_daily_stats ORDER BY date")
    assert [row["total_events"] for row in counts] == [10, 10, 10]
