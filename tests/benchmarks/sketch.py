"""How far the estimates of unique visitors are off, and how long they take."""

import math
import random
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.bench import GIANT, YEAR, Bench, Database, day, execute, in_turns, seconds
from retention_steps import Retention

DRAWS = 20

# Visitors with random hashes come on two random days. SHA-256 of real names takes several times as long; its bits are
# as random. A day's sketch is made the way analytics_count_days makes it.
ESTIMATE = """
WITH visitor AS MATERIALIZED (
    SELECT random(-9223372036854775808, 9223372036854775807)::bit(64) AS hash FROM generate_series(1, %(visitors)s)
),

visitor_bit AS MATERIALIZED (SELECT analytics_sketch_bit(visitor.hash) AS number FROM visitor),

-- A day and a bit in one number.
visit AS (
    SELECT DISTINCT floor(random() * %(days)s)::int << 16 | visitor_bit.number AS bit
    FROM visitor_bit
    CROSS JOIN generate_series(1, least(%(days)s, 2)) AS visit
),

day_sketch AS (
    SELECT string_agg(repeat('0', numbered.gap) || '1', '' ORDER BY numbered.bit)::bit(49152) AS sketch
    FROM (
        SELECT
            visit.bit,
            visit.bit - 1
            - greatest(lag(visit.bit, 1, -1) OVER (ORDER BY visit.bit), (visit.bit >> 16 << 16) - 1) AS gap
        FROM visit
    ) AS numbered
    GROUP BY numbered.bit >> 16
)

SELECT analytics_sketch_visitors(bit_or(day_sketch.sketch)) AS visitors
FROM day_sketch
"""

PER_DAY = 2000
TODAY = 50_000
PURGED = "purged: analytics_unique_visitors"

EXACT = """
SELECT count(DISTINCT visitor_id COLLATE "C") AS visitors FROM analytics_event
WHERE
    website_id = %(website)s AND timestamp >= %(from)s::timestamptz AND timestamp < %(to)s::timestamptz
    AND deleted_at IS NULL
"""
UNIQUE = "SELECT analytics_unique_visitors(%(website)s, %(from)s::timestamptz::date, %(to)s::timestamptz::date - 1) AS visitors"
SKETCHES = "SELECT analytics_sketch_visitors(bit_or(visitor_sketch)) FROM analytics_daily_stats WHERE date < %(to)s"


def sketch(bench: Bench) -> None:
    """The error of analytics_sketch_visitors, 10 draws each of 100, 10,000 and 1,000,000 visitors by random 64-bit
    hashes, as SHA-256 gives, but faster, on two days of 1, 30 and 365; and reading the visitors of a year with
    analytics_unique_visitors after the raw rows are gone, while there are those of today, beside count(DISTINCT) over
    the raw rows."""
    database = bench.database("sketch")
    expected = 0.65 / math.sqrt(2048)
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for visitors in (100, 10_000, 1_000_000):
            for days in (1, 30, YEAR):
                errors = list(pool.map(partial(error, database, visitors, days), range(DRAWS)))
                rms = math.sqrt(statistics.mean(value**2 for value in errors))
                rows.append((visitors, days, rms, max(map(abs, errors)), statistics.mean(errors)))
    bench.table(
        f"Error of the estimate, {DRAWS} draws; the expected standard error is {expected:.2%}",
        ["", "days", "rms", "max", "mean", "rms / expected"],
        [
            [f"{visitors:,} visitors", str(days), *(f"{value:.2%}" for value in found), f"{found[0] / expected:.2f}"]
            for visitors, days, *found in rows
        ],
    )
    bench.limit("largest rms / expected", max(row[2] for row in rows) / expected, at_most=1.6)
    bench.limit("largest error / expected", max(row[3] for row in rows) / expected, at_most=4.5)
    year(bench)


def error(database: Database, visitors: int, days: int, number: int) -> float:
    """The relative error of a draw, the same in every run."""
    with database.owner() as owner:
        owner.execute("SELECT setseed(%s)", [random.Random(f"{visitors} {days} {number}").random()])
        [row] = execute(owner, ESTIMATE, {"visitors": visitors, "days": days})
    return float(row["visitors"]) / visitors - 1


def year(bench: Bench) -> None:
    """Measure how long it takes to read the visitors of a year, which ends before today."""
    database = bench.database("year")
    with database.bulk():
        database.load(YEAR * PER_DAY, days_ago=YEAR + 1, days=YEAR, websites=1)
        database.load(TODAY, days_ago=0, websites=1)
    database.aggregate(YEAR + 1)
    span: dict[str, Any] = {"website": GIANT, "from": day(YEAR + 1), "to": day(1)}
    with database.owner() as owner, database.connect(work_mem="64MB") as job, database.connect() as reader:

        def read(query: str) -> Callable[[], float]:
            return lambda: seconds(execute, reader, query, span)

        exact = execute(reader, EXACT, span)[0]["visitors"]
        samples = dict(in_turns({"raw: count(DISTINCT)": read(EXACT), "raw: analytics_unique_visitors": read(UNIQUE)}))
        retention = Retention(job, retention_days=0)
        assert retention.seal() == []
        retention.delete(retention.plan())
        assert execute(owner, "SELECT count(*) AS rows FROM analytics_purge_batch")[0]["rows"] == 0
        owner.execute("VACUUM (ANALYZE)")
        estimate = execute(reader, UNIQUE, span)[0]["visitors"]
        samples |= in_turns({PURGED: read(UNIQUE), "purged: sketches alone": read(SKETCHES)})
        owner.execute("TRUNCATE analytics_event")
        samples |= in_turns({"purged, nothing today: analytics_unique_visitors": read(UNIQUE)})
    medians = bench.compare(
        f"A year of {YEAR * PER_DAY:,} events and {exact:,} visitors, estimated {estimate:,}"
        f" ({estimate / exact - 1:+.2%}), and {TODAY:,} events today",
        samples,
        PURGED,
    )
    bench.limit("raw / purged", medians["raw: count(DISTINCT)"] / medians[PURGED], at_least=5)
