"""The read side: traffic per day whatever became of its raw rows, and visitors of any range of days."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from conftest import Database

DAY = timedelta(days=1)
TRAFFIC = 'SELECT * FROM analytics.analytics_traffic_daily ORDER BY website_id COLLATE "C", date'
# What retention or aggregation says about a row, and not the row about its day.
BOOKKEEPING = {"aggregated_at", "raw_purged_at", "purge_snapshot"}
STANDARD_ERROR = 0.65 / math.sqrt(2048)


@pytest.fixture
def today(now: datetime) -> datetime:
    """The start of the present day, in UTC. Events at this moment are of today and not in the future."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def events(database: Database, moment: datetime, visitors: Iterable[str], website_id: str = "site") -> None:
    """Store one event per visitor."""
    with database.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
            " VALUES (gen_random_uuid(), %s, '/', %s, 'session', %s)",
            [(website_id, visitor, moment) for visitor in visitors],
        )


def people(first: int, last: int) -> list[str]:
    return [f"visitor {number}" for number in range(first, last + 1)]


def aggregate(database: Database, *days: datetime, timezone: str = "UTC") -> None:
    database.run(
        "aggregate_daily_analytics/aggregate_day.sql", days=[str(day.date()) for day in days], timezone=timezone
    )


def purge(database: Database, today: datetime, retention_days: int) -> None:
    """Delete the raw events that retention would today, in one batch; at least one."""
    policy: dict[str, Any] = {
        "moment": today,
        "retention_days": retention_days,
        "timezone": "UTC",
        "batch_size": 100_000,
    }
    assert database.run("archive_old_analytics/prove_days.sql", **policy) == []
    bounds = {"lo_timestamp": "-infinity", "lo_id": "", "hi_timestamp": today, "hi_id": ""}
    assert database.run("archive_old_analytics/delete_event_batch.sql", **policy | bounds) > 0


def traffic(database: Database, *columns: str) -> list[tuple[Any, ...]]:
    """These columns of the view's rows."""
    return [tuple(row[column] for column in columns) for row in database.query(TRAFFIC)]


def visitors(database: Database, first: date | str, last: date | str, website_id: str = "site") -> int:
    return int(database.value("SELECT analytics_unique_visitors(%s, %s, %s)", website_id, first, last))


def sketch(names: Iterable[str]) -> str:
    """The visitors' sketch by its definition: of SHA-256, 11 bits say which bit of a level, the next 23 which level."""
    bits = set()
    for name in names:
        head = f"{int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]):064b}"
        level = f"{head[11:34]}1".index("1")
        bits.add(level * 2048 + int(head[:11], 2))
    return "".join("1" if bit in bits else "0" for bit in range(49152))


class TestTraffic:
    def test_columns_are_those_of_the_stats(self, database: Database) -> None:
        columns = (
            "SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
        )
        assert database.query(columns, "analytics_traffic_daily") == database.query(columns, "analytics_daily_stats")

    def test_no_events_no_rows(self, database: Database) -> None:
        assert traffic(database) == []

    def test_a_row_of_the_stats_is_shown_as_it_is(self, database: Database, today: datetime) -> None:
        database.event(today - DAY)
        aggregate(database, today - DAY)
        database.event(today - DAY)  # late: the row is right again after the next aggregation
        assert database.query(TRAFFIC) == database.query("SELECT * FROM analytics_daily_stats")

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
        purged = [bool(moment) for (moment,) in traffic(database, "raw_purged_at")]
        assert purged == [True, True, False, False, False, False, False] * 2

    def test_soft_deleted_events_are_not_counted(self, database: Database, today: datetime) -> None:
        database.event(today)
        database.event(today, visitor_id="gone", pathname="/gone", deleted_at=today)
        database.event(today - DAY, deleted_at=today)  # a day of nothing else has no row
        [row] = database.query(TRAFFIC)
        assert (row["date"], row["total_events"], row["deleted_events"]) == (today.date(), 1, 1)
        assert (row["unique_visitors"], row["top_pages"]) == (1, [{"item": "/", "count": 1}])

    def test_days_to_come_are_not_shown(self, database: Database, today: datetime) -> None:
        database.event(today)
        database.event(today + 2 * DAY)
        assert traffic(database, "date") == [(today.date(),)]

    def test_each_website_has_days_of_its_own_zone(self, database: Database, today: datetime) -> None:
        zones = {"east": "Pacific/Kiritimati", "utc": "UTC", "west": "Pacific/Pago_Pago"}
        moments = [today - 3 * DAY + timedelta(hours=hour) for hour in (9.5, 10.5, 11.5)]
        for website, zone in zones.items():
            if website != "utc":
                database.connection.execute("INSERT INTO analytics_website_policy VALUES (%s, %s)", [website, zone])
            for moment in moments:
                database.event(moment, website_id=website)
        shown = traffic(database, "website_id", "date", "total_events", "timezone")
        expected = {
            website: Counter(moment.astimezone(ZoneInfo(zone)).date() for moment in moments)
            for website, zone in zones.items()
        }
        assert [len(days) for days in expected.values()] == [2, 1, 2]
        assert shown == [
            (website, day, expected[website][day], zones[website])
            for website in sorted(zones)
            for day in sorted(expected[website])
        ]
        assert {visitors(database, day, day, website) for website, day, *_ in shown} == {1}

    def test_without_a_policy_the_zone_is_that_of_the_newest_row(self, database: Database, today: datetime) -> None:
        moment = today - DAY + timedelta(hours=2)  # in New York still the day before
        database.event(moment - 2 * DAY)
        aggregate(database, today - 4 * DAY, today - 3 * DAY, timezone="America/New_York")
        database.event(moment)
        assert traffic(database, "date", "timezone")[-1] == ((today - 2 * DAY).date(), "America/New_York")
        assert visitors(database, (today - 2 * DAY).date(), (today - 2 * DAY).date()) == 1
        assert visitors(database, (today - DAY).date(), today.date()) == 0

    def test_aggregated_days_are_not_counted_again(self, database: Database, today: datetime) -> None:
        events(database, today - DAY, people(1, 500))
        aggregate(database, today - DAY)
        database.event(today)
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
            CREATE TABLE decoy.analytics_website_policy AS SELECT 'site' AS website_id, 'Asia/Tokyo' AS timezone;
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
        database.connection.execute("INSERT INTO analytics_website_policy VALUES ('site', 'Asia/Kolkata')")
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


HARD_NAMES = ["", "visitor", "C:\\new\\x41\\101", "\\\\x00", "naïve 🦊 visitor", "'quoted'", "line\nfeed"]
# Once and for all, with the sketch of these names and 5,000 more.
FIXED_BITS = {760, 1821, 1929, 3266, 3548, 5535, 8568}
FIXED_SKETCH = "f9367119f53e02f6362e1f3d400d35b38b305c7cbbbb708cc803e402d6e46e8c"
FIXED_ESTIMATE = 4967


class TestSketch:
    COUNT = "SELECT visitor_sketch::text FROM analytics_count_day('site', %s, %s)"

    def test_a_days_sketch_is_that_of_its_visitors(self, database: Database, today: datetime) -> None:
        names = HARD_NAMES + people(1, 500)
        events(database, today, names)
        events(database, today, names)
        assert database.value(self.COUNT, today, today + DAY) == sketch(names)
        events(database, today - DAY, names)
        aggregate(database, today - DAY)
        assert database.value("SELECT visitor_sketch::text FROM analytics_daily_stats") == sketch(names)

    def test_the_or_of_days_is_the_sketch_of_the_union(self, database: Database, today: datetime) -> None:
        days = [today - number * DAY for number in range(1, 5)]
        for number, day in enumerate(days):
            events(database, day, people(100 * number, 100 * number + 500))
        aggregate(database, *days)
        union = database.value("SELECT bit_or(visitor_sketch)::text FROM analytics_daily_stats")
        assert union == database.value(self.COUNT, days[-1], today)
        assert union == sketch(people(0, 800))

    def test_sketches_are_kept_for_ever_and_so_is_their_hash(self, database: Database, today: datetime) -> None:
        events(database, today, HARD_NAMES)
        text = database.value(self.COUNT, today, today + DAY)
        assert {bit for bit, value in enumerate(text) if value == "1"} == FIXED_BITS
        events(database, today, people(1, 5000))
        text = database.value(self.COUNT, today, today + DAY)
        assert hashlib.sha256(text.encode()).hexdigest() == FIXED_SKETCH
        assert database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", text) == FIXED_ESTIMATE

    def test_levels_halve_and_bits_are_even(self, database: Database) -> None:
        query = """
            SELECT analytics_sketch_bit(('x' || left(encode(sha256(n::text::bytea), 'hex'), 16))::bit(64)) AS bit
            FROM generate_series(1, 65536) AS n
        """
        bits = [row["bit"] for row in database.query(query)]
        levels = Counter(min(bit // 2048, 10) for bit in bits)
        expected = {level: 65536 / 2 ** (level + 1) for level in range(10)} | {10: 65536 / 2**10}
        # Eleven classes: 99.9 % of random ids stay below 29.6.
        assert sum((levels[level] - mean) ** 2 / mean for level, mean in expected.items()) < 29.6
        # 2048 classes of 32 ids: likewise between 1845 and 2249.
        assert 1845 < sum((count - 32) ** 2 / 32 for count in Counter(bit % 2048 for bit in bits).values()) < 2249

    @pytest.mark.parametrize(
        ("zeros", "level"), [(0, 0), (1, 1), (10, 10), (22, 22), (23, 23), (24, 23), (53, 23)], ids=str
    )
    def test_the_last_level_has_what_is_left(self, database: Database, zeros: int, level: int) -> None:
        for position in (0, 5, 2047):
            hash_bits = f"{position:011b}{'0' * zeros}{'1' * 53}"[:64]
            assert database.value("SELECT analytics_sketch_bit(%s::bit(64))", hash_bits) == level * 2048 + position

    @pytest.mark.parametrize("count", [0, 1, 2, 100, 10_000, 200_000])
    def test_the_estimate_is_within_three_standard_errors(self, database: Database, count: int) -> None:
        estimate = database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", sketch(people(1, count)))
        assert estimate == pytest.approx(count, rel=3 * STANDARD_ERROR)
        if count <= 2:
            assert estimate == count

    def test_the_estimate_of_a_full_sketch_ends(self, database: Database) -> None:
        assert database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", "1" * 49152) > 1e10
