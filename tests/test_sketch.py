"""Sketches of visitors: which bits they have, and how many visitors they are taken for."""

import hashlib
from collections import Counter
from datetime import datetime, timedelta

import pytest

from conftest import Database
from read_side_rows import STANDARD_ERROR, aggregate, events, people, sketch

DAY = timedelta(days=1)
COUNT = "SELECT visitor_sketch::text FROM analytics_count_days('{site}', '{2024-01-01}', ARRAY[%s], ARRAY[%s])"
HARD_NAMES = ["", "visitor", "C:\\new\\x41\\101", "\\\\x00", "naïve 🦊 visitor", "'quoted'", "line\nfeed"]
# Once and for all, with the sketch of these names and 5,000 more.
FIXED_BITS = {760, 1821, 1929, 3266, 3548, 5535, 8568}
FIXED_SKETCH = "f9367119f53e02f6362e1f3d400d35b38b305c7cbbbb708cc803e402d6e46e8c"
FIXED_ESTIMATE = 4967


@pytest.fixture
def today(now: datetime) -> datetime:
    """The start of the present day, in UTC. Events at this moment are of today and not in the future."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def test_a_days_sketch_is_that_of_its_visitors(database: Database, today: datetime) -> None:
    names = HARD_NAMES + people(1, 500)
    events(database, today, names)
    events(database, today, names)
    assert database.value(COUNT, today, today + DAY) == sketch(names)
    events(database, today - DAY, names)
    aggregate(database, today - DAY)
    assert database.value("SELECT visitor_sketch::text FROM analytics_daily_stats") == sketch(names)


def test_the_or_of_days_is_the_sketch_of_the_union(database: Database, today: datetime) -> None:
    days = [today - number * DAY for number in range(1, 5)]
    for number, day in enumerate(days):
        events(database, day, people(100 * number, 100 * number + 500))
    aggregate(database, *days)
    union = database.value("SELECT bit_or(visitor_sketch)::text FROM analytics_daily_stats")
    assert union == database.value(COUNT, days[-1], today)
    assert union == sketch(people(0, 800))


def test_sketches_are_kept_for_ever_and_so_is_their_hash(database: Database, today: datetime) -> None:
    events(database, today, HARD_NAMES)
    text = database.value(COUNT, today, today + DAY)
    assert {bit for bit, value in enumerate(text) if value == "1"} == FIXED_BITS
    events(database, today, people(1, 5000))
    text = database.value(COUNT, today, today + DAY)
    assert hashlib.sha256(text.encode()).hexdigest() == FIXED_SKETCH
    assert database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", text) == FIXED_ESTIMATE


def test_levels_halve_and_bits_are_even(database: Database) -> None:
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
def test_the_last_level_has_what_is_left(database: Database, zeros: int, level: int) -> None:
    for position in (0, 5, 2047):
        hash_bits = f"{position:011b}{'0' * zeros}{'1' * 53}"[:64]
        assert database.value("SELECT analytics_sketch_bit(%s::bit(64))", hash_bits) == level * 2048 + position


@pytest.mark.parametrize("count", [0, 1, 2, 100, 10_000, 200_000])
def test_the_estimate_is_within_three_standard_errors(database: Database, count: int) -> None:
    estimate = database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", sketch(people(1, count)))
    assert estimate == pytest.approx(count, rel=3 * STANDARD_ERROR)
    if count <= 2:
        assert estimate == count


def test_the_estimate_of_a_full_sketch_ends(database: Database) -> None:
    assert database.value("SELECT analytics_sketch_visitors(%s::bit(49152))", "1" * 49152) > 1e10
