"""The read side: traffic per day whatever became of its raw rows, and visitors of any range of days."""

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from aggregation_steps import aggregate as aggregate_days
from aggregation_steps import aggregate_due, clock, set_zone
from conftest import Database
from read_side_rows import STANDARD_ERROR, aggregate, events, people, purge, sketch

DAY = timedelta(days=1)
TRAFFIC = 'SELECT * FROM analytics.analytics_traffic_daily ORDER BY website_id COLLATE "C", date'
# What retention or aggregation says about a row, and not the row about its day.
BOOKKEEPING = {"aggregated_at", "sealed_at"}


@pytest.fixture
def today(now: datetime) -> datetime:
    """The start of the present day, in UTC. Events at this moment are of today and not in the future."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def traffic(database: Database, *columns: str) -> list[tuple[Any, ...]]:
    """These columns of the view's rows."""
    return [tuple(row[column] for column in columns) for row in database.query(TRAFFIC)]


def visitors(database: Database, first: date | str, last: date | str, website_id: str = "site") -> int:
    return int(database.value("SELECT analytics_unique_visitors(%s, %s, %s)", website_id, first, last))


class TestTraffic:
    def test_columns_are_of_the_stats_and_the_users_contract_comes_first(self, database: Database) -> None:
        query = (
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
        view, stats = (
            {row["attname"]: row["format_type"] for row in database.query(query, f"analytics.analytics_{name}")}
            for name in ("traffic_daily", "daily_stats")
        )
        assert list(view.items())[:8] == list(stats.items())[:8]
        # The sketch is of any length; the totals have what came late.
        assert {name for name in view if view[name] != stats[name]} == {"visitor_sketch"}
        assert stats.keys() - view.keys() == {
            *("deleted_events", "events_hash", "edits_hash", "kept_at", "late_pageviews", "late_custom_events"),
            *("late_ignored_events", "ignored_events"),
        }

    def test_no_events_no_rows(self, database: Database) -> None:
        assert traffic(database) == []

    def test_a_row_of_the_stats_is_shown_as_it_is(self, database: Database, today: datetime) -> None:
        database.event(today - DAY)
        aggregate(database, today - DAY)
        database.event(today - DAY)  # the row is right again after the next aggregation
        columns = list(database.query(TRAFFIC)[0])
        assert database.query(TRAFFIC) == database.query(f"SELECT {', '.join(columns)} FROM analytics_daily_stats")
        assert traffic(database, "total_events") == [(1,)]

    def test_totals_have_the_events_that_came_late(self, database: Database, today: datetime) -> None:
        events(database, today - 3 * DAY, people(1, 5))
        database.event(today - 3 * DAY, event_type="custom_event")
        aggregate(database, today - 3 * DAY)
        purge(database, today, retention_days=2)
        columns = ("total_events", "total_pageviews", "total_custom_events", "unique_visitors", "top_pages")
        before = traffic(database, *columns)
        assert before == [(6, 5, 1, 6, [{"item": "/", "count": 5}])]
        for event_type in ("pageview", "custom_event", "custom_event"):
            database.event(today - 3 * DAY, visitor_id="late", pathname="/late", event_type=event_type)
        assert traffic(database, *columns) == before
        purge(database, today, retention_days=2)
        assert traffic(database, *columns) == [(9, 6, 3, *before[0][3:])]
        assert visitors(database, (today - 3 * DAY).date(), (today - 3 * DAY).date()) == 6

    def test_a_day_is_shown_once_and_the_same_whatever_became_of_it(self, database: Database, today: datetime) -> None:
        days = [today - n * DAY for n in range(7)]
        for number, day in enumerate(days):
            events(database, day, people(1, 3 + number))
            database.event(day, pathname=f"/{number}", referrer_source="google", session_id=f"session {number}")
            database.event(day, event_type="custom_event", website_id="other")

        def rows() -> list[dict[str, Any]]:
            return [{k: v for k, v in row.items() if k not in BOOKKEEPING} for row in database.query(TRAFFIC)]

        live = rows()
        assert [(row["website_id"], row["date"]) for row in live] == [
            (website, day.date()) for website in ("other", "site") for day in reversed(days)
        ]
        assert [row["unique_visitors"] for row in live if row["website_id"] == "site"] == [10, 9, 8, 7, 6, 5, 4]

        aggregate(database, days[1], days[2], days[4], days[5], days[6])  # a gap in the middle; today
        assert rows() == live
        aggregated = [bool(moment) for (moment,) in traffic(database, "aggregated_at")]
        assert aggregated == [True, True, True, False, True, True, False] * 2

        purge(database, today, retention_days=4)
        assert database.value("SELECT count(*) FROM analytics_event WHERE timestamp < %s", days[4]) == 0
        assert rows() == live
        purged = [bool(moment) for (moment,) in traffic(database, "sealed_at")]
        assert purged == [True, True, False, False, False, False, False] * 2

    def test_soft_deleted_events_are_not_counted(self, database: Database, today: datetime) -> None:
        database.event(today)
        database.event(today, visitor_id="gone", pathname="/gone", deleted_at=today)
        database.event(today - DAY, deleted_at=today)  # a day of nothing else has no row
        columns = ("date", "total_events", "unique_visitors", "top_pages")
        assert traffic(database, *columns) == [(today.date(), 1, 1, [{"item": "/", "count": 1}])]

    def test_days_to_come_are_not_shown(self, database: Database, today: datetime) -> None:
        database.event(today)
        database.event(today + 2 * DAY)
        assert traffic(database, "date") == [(today.date(),)]

    def test_each_website_has_days_of_its_own_zone(self, database: Database, today: datetime) -> None:
        zones = {"east": "Pacific/Kiritimati", "utc": "UTC", "west": "Pacific/Pago_Pago"}
        moments = [today - 3 * DAY + timedelta(hours=hour) for hour in (9.5, 10.5, 11.5)]
        for website, zone in zones.items():
            if website != "utc":
                set_zone(database, zone, website)
            for moment in moments:
                database.event(moment, website_id=website)
        shown = traffic(database, "website_id", "date", "total_events")
        expected = {
            website: Counter(moment.astimezone(ZoneInfo(zone)).date() for moment in moments)
            for website, zone in zones.items()
        }
        assert [len(days) for days in expected.values()] == [2, 1, 2]
        assert shown == [
            (website, day, expected[website][day]) for website in sorted(zones) for day in sorted(expected[website])
        ]
        assert {visitors(database, day, day, website) for website, day, *_ in shown} == {1}

    def test_a_day_has_the_zone_that_holds_then(self, database: Database, today: datetime) -> None:
        """The default until the website has its own: its day in between is longer."""
        change = (today - 3 * DAY).date()
        set_zone(database, "Asia/Tokyo")
        set_zone(database, "America/New_York", "site", change)
        tokyo, new_york = ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")

        def midnight(day: date, zone: ZoneInfo) -> datetime:
            return datetime(day.year, day.month, day.day, tzinfo=zone)

        bounds = [
            midnight(change - DAY, tokyo),
            midnight(change, tokyo),
            midnight(change + DAY, new_york),
            midnight(change + 2 * DAY, new_york),
        ]
        microsecond = timedelta(microseconds=1)
        for start, end in pairwise(bounds):
            database.event(start)
            database.event(end - microsecond, visitor_id="another")
        live = traffic(database, "date", "starts_at", "ends_at", "total_events")
        days = [change - DAY, change, change + DAY]
        assert live == [(day, *between, 2) for day, between in zip(days, pairwise(bounds), strict=True)]
        assert [visitors(database, day, day) for day in [change - 2 * DAY, *days]] == [0, 2, 2, 2]
        aggregate_days(database, *days)
        assert traffic(database, "date", "starts_at", "ends_at", "total_events") == live

    def test_aggregated_days_are_not_counted_again(self, database: Database, today: datetime) -> None:
        events(database, today - DAY, people(1, 5000))
        aggregate(database, today - DAY)
        database.event(today)
        database.connection.execute("ANALYZE analytics_event")
        assert rows_read(database, TRAFFIC) < 50


def rows_read(database: Database, query: str, *arguments: Any) -> int:
    """How many rows of analytics_event a query reads."""
    with database.connection.transaction():
        database.query(query, *arguments)
        return int(
            database.value(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'analytics_event'"
            )
        )


class TestReader:
    @pytest.fixture
    def reader(self, database: Database) -> Iterator[str]:
        """A role that may read, and nothing else."""
        role = f"reader_of_{database.connection.info.dbname}"
        database.connection.execute(f"CREATE ROLE {role} LOGIN IN ROLE analytics_readers".encode())
        yield role
        database.connection.execute(f"DROP ROLE {role}".encode())

    @pytest.mark.parametrize("search_path", ["analytics,public", "public", "''", "decoy", "pg_catalog,decoy,analytics"])
    def test_reads_the_same_with_any_search_path(
        self, database: Database, today: datetime, reader: str, search_path: str
    ) -> None:
        for day in range(5):
            events(database, today - day * DAY, people(day, day + 10))
        aggregate(database, *(today - day * DAY for day in (1, 3, 4)))
        purge(database, today, retention_days=2)
        database.connection.execute(
            """
            CREATE SCHEMA decoy;
            CREATE TABLE decoy.analytics_event AS SELECT * FROM analytics_event WHERE FALSE;
            CREATE TABLE decoy.analytics_daily_stats AS SELECT * FROM analytics_daily_stats WHERE FALSE;
            CREATE TABLE decoy.analytics_timezone AS
            SELECT 'site' AS website_id, '-infinity'::date AS from_date, 'Asia/Tokyo' AS timezone;
            CREATE FUNCTION decoy.analytics_zone(website text, day date) RETURNS text RETURN 'Asia/Tokyo';
            CREATE FUNCTION decoy.analytics_sketch_bit(hash bit(64)) RETURNS integer RETURN 0;
            GRANT USAGE ON SCHEMA decoy TO public;
            GRANT SELECT ON ALL TABLES IN SCHEMA decoy TO public
            """
        )
        question = "SELECT analytics.analytics_unique_visitors('site', %s, %s) AS visitors"
        ranges = [(today, today), (today - 3 * DAY, today), (today - 4 * DAY, today - 4 * DAY)]
        with database.connect(reader, options=f"-c search_path={search_path}") as connection:
            assert connection.execute(TRAFFIC.encode()).fetchall() == database.query(TRAFFIC)
            counts = [
                row["visitors"]
                for first, last in ranges
                for row in connection.execute(question, [first.date(), last.date()])
            ]
        assert counts == [11, 14, 11]
        assert len(database.query(TRAFFIC)) == 5


class TestUniqueVisitors:
    def test_never_a_sum_of_days(self, database: Database, today: datetime) -> None:
        for day in range(1, 5):
            events(database, today - day * DAY, people(1, 20))
        first, last = (today - 4 * DAY).date(), (today - DAY).date()
        assert visitors(database, first, last) == 20
        aggregate(database, *(today - day * DAY for day in range(1, 5)))
        assert visitors(database, first, last) == 20
        purge(database, today, retention_days=2)
        assert visitors(database, first, last) == 20
        purge(database, today, retention_days=1)
        assert visitors(database, first, last) == 20

    def test_exact_while_the_raw_rows_cover_the_range(self, database: Database, today: datetime) -> None:
        # So many that an estimate would be another number: see below.
        events(database, today - 2 * DAY, people(1, 3000))
        events(database, today - DAY, people(2001, 4000))
        events(database, today, people(3501, 5001))
        database.event(today, visitor_id="gone", deleted_at=today)
        for _ in range(2):  # without stats, and with
            assert visitors(database, (today - 2 * DAY).date(), today.date()) == 5001
            assert visitors(database, (today - DAY).date(), today.date()) == 3001
            assert visitors(database, "2000-01-01", "2100-01-01") == 5001
            aggregate(database, today - 2 * DAY, today - DAY)

    def test_exact_in_the_websites_own_zone(self, database: Database, today: datetime) -> None:
        set_zone(database, "Asia/Kolkata", "site")
        start = today - 2 * DAY - timedelta(hours=5.5)  # of the day there
        day = (today - 2 * DAY).date()
        microsecond = timedelta(microseconds=1)
        for moment in (start - microsecond, start, start + DAY - microsecond, start + DAY):
            database.event(moment, visitor_id=str(moment))
        assert visitors(database, day, day) == 2
        assert visitors(database, day - DAY, day) == 3
        assert visitors(database, day, day + DAY) == 3

    def test_a_single_purged_day_is_exact_and_more_are_an_estimate(self, database: Database, today: datetime) -> None:
        names = {3: people(1, 3000), 4: people(2001, 4000)}
        for day, those in names.items():
            events(database, today - day * DAY, those)
            aggregate(database, today - day * DAY)
        purge(database, today, retention_days=2)
        third, fourth = (today - 3 * DAY).date(), (today - 4 * DAY).date()
        assert visitors(database, third, third) == 3000
        assert visitors(database, fourth, fourth) == 2000
        assert visitors(database, third, today.date()) == 3000  # the other days have nothing
        estimate = visitors(database, fourth, third)
        assert estimate == database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", sketch(people(1, 4000)))
        assert estimate == pytest.approx(4000, rel=3 * STANDARD_ERROR)
        assert estimate != 4000  # else this would not tell an estimate from a count

    def test_a_row_that_is_kept_has_visitors_whose_events_others_deleted(
        self, database: Database, today: datetime
    ) -> None:
        for day in (3, 2):
            events(database, today - day * DAY, people(1, 20))
        aggregate(database, today - 3 * DAY, today - 2 * DAY)
        database.connection.execute("DELETE FROM analytics_event WHERE timestamp < %s", [today - 2 * DAY])
        with clock(database, today) as connection:
            aggregate_due(database, connection)
        assert visitors(database, (today - 3 * DAY).date(), (today - 3 * DAY).date()) == 20
        assert visitors(database, (today - 3 * DAY).date(), today.date()) == 20
        assert database.value("SELECT count(*) FROM analytics_daily_stats WHERE kept_at IS NOT NULL") == 1

    def test_a_range_of_purged_raw_and_live_days(self, database: Database, today: datetime) -> None:
        days = [today - number * DAY for number in range(6)]
        for number, day in enumerate(days):
            events(database, day, people(1 + 400 * number, 1000 + 400 * number))
        aggregate(database, *(days[number] for number in (2, 3, 4, 5)))  # today and the day before are live
        purge(database, today, retention_days=3)  # days 4 and 5
        for first, last, count in [(5, 0, 3000), (5, 3, 1800), (4, 1, 2200), (3, 0, 2200), (1, 0, 1400)]:
            found = visitors(database, days[first].date(), days[last].date())
            if first <= 3:
                assert found == count
            else:
                names = people(1 + 400 * last, 1000 + 400 * first)
                assert found == database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", sketch(names))
                assert found == pytest.approx(count, rel=3 * STANDARD_ERROR)

    def test_nothing_is_nobody(self, database: Database, today: datetime) -> None:
        for day in (3, 4):
            events(database, today - day * DAY, people(1, 5))
        empty: list[tuple[Any, Any]] = [
            ("2001-01-01", "2001-12-31"),
            (today.date(), today.date()),
            (today.date() - 3 * DAY, today.date() - 4 * DAY),
        ]
        assert [visitors(database, first, last) for first, last in empty] == [0, 0, 0]
        aggregate(database, today - 3 * DAY, today - 4 * DAY)
        purge(database, today, retention_days=1)
        assert [visitors(database, first, last) for first, last in empty] == [0, 0, 0]
        assert visitors(database, "2000-01-01", "2100-01-01", "unknown") == 0
        assert visitors(database, "2000-01-01", "2100-01-01", "") == 0

    def test_other_websites_are_not_counted(self, database: Database, today: datetime) -> None:
        expected = {"site": 10, "other": 30, 'it\'s "quoted"; --': 7}
        for website, last in expected.items():
            for day in (0, 3, 4):
                events(database, today - day * DAY, people(1, last), website)
        year = (today - 365 * DAY).date(), today.date()
        assert {website: visitors(database, *year, website) for website in expected} == expected
        aggregate(database, today - 3 * DAY, today - 4 * DAY)
        purge(database, today, retention_days=1)
        assert {website: visitors(database, *year, website) for website in expected} == expected

    def test_a_purged_year_is_read_without_raw_rows(self, database: Database, today: datetime) -> None:
        for day in range(2, 367, 7):
            events(database, today - day * DAY, people(day, day + 9))
        aggregate(database, *(today - day * DAY for day in range(2, 367)))
        purge(database, today, retention_days=1)
        events(database, today, people(1, 500))
        year = (today - 366 * DAY).date(), (today - DAY).date()
        question = "SELECT analytics_unique_visitors('site', %s, %s)"
        assert database.value(question, *year) == pytest.approx(374, rel=3 * STANDARD_ERROR)
        # A few for finding the days that have raw rows, none for counting days that are not asked for.
        assert rows_read(database, question, *year) < 50
