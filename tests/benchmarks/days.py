"""Which days are due, and what it costs to aggregate one."""

from collections.abc import Callable, Mapping
from typing import Any

from aggregation_steps import aggregate_days
from benchmarks.bench import Bench, Connection, Database, day, execute, in_turns, seconds
from conftest import run_file

FIND_DUE_DAYS = "aggregate_daily_analytics/find_due_days.sql"

OF_THE_DAY = """
website_id = ANY(%(websites)s) AND timestamp >= %(from)s::timestamptz AND timestamp < %(to)s::timestamptz
AND deleted_at IS NULL
"""
COUNT = f"SELECT count(*) FROM analytics_event WHERE {OF_THE_DAY}"
READ = f"""
SELECT
    count(id), count(event_type), count(pathname), count(referrer_source), count(visitor_id), count(session_id)
FROM analytics_event
WHERE {OF_THE_DAY}
"""
# What one would write first: for each website, a query per figure.
OF_THE_WEBSITE = OF_THE_DAY.replace("= ANY(%(websites)s)", "= %(website)s")
TOP = f"""
SELECT {{0}} AS item, count(*) FROM analytics_event
WHERE {OF_THE_WEBSITE} AND event_type = 'pageview' AND {{0}} <> '' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10
"""
NAIVE = [
    f"SELECT count(*) FROM analytics_event WHERE {OF_THE_WEBSITE} AND event_type = 'pageview'",
    f"SELECT count(*) FROM analytics_event WHERE {OF_THE_WEBSITE} AND event_type = 'custom_event'",
    f"SELECT count(DISTINCT visitor_id) FROM analytics_event WHERE {OF_THE_WEBSITE}",
    f"SELECT count(DISTINCT session_id) FROM analytics_event WHERE {OF_THE_WEBSITE}",
    TOP.format("pathname"),
    TOP.format("referrer_source"),
]


def due(bench: Bench) -> None:
    """find_due_days.sql with nothing due, on 1,000,000 events of 100 days and 50 websites, beside count(*) over the
    same rows (as the planner likes, which is an index alone, and through the heap), and beside aggregate_day.sql of one
    average day."""
    database = bench.database("due")
    with database.bulk():
        database.load(1_000_000, days_ago=100, days=100)
    database.aggregate(100)
    with database.owner() as owner, database.connect() as job, database.connect(work_mem="256MB") as aggregation:
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats")
        assert run_file(job, FIND_DUE_DAYS)[0]["result"] == []
        count = "SELECT count(*) FROM analytics_event WHERE deleted_at IS NULL"
        samples = in_turns(
            {
                "count(*)": lambda: seconds(execute, job, count),
                "count(*) via heap": lambda: seconds(execute, job, count + " AND device_type <> ''"),
                "find_due_days": lambda: seconds(run_file, job, FIND_DUE_DAYS),
                "aggregate_day": lambda: first_aggregation(owner, aggregation, 50),
            }
        )
    medians = bench.compare("1,000,000 events, 10,000 a day", samples, "count(*)", "aggregate_day")
    bench.limit("find_due_days / count(*)", medians["find_due_days"] / medians["count(*)"], at_most=8)


def aggregate(bench: Bench) -> None:
    """aggregate_day.sql of a day of 100,000 and of 1,000,000 events and 50 websites, written for the first time, beside
    count(*) over the same rows (index only, and through the heap), beside reading the same columns, and beside six
    queries per website with count(DISTINCT), which make no sketch and no hash, and are quicker here than under the
    collation of a language, which this PostgreSQL lacks; and a second aggregation of the day, which writes nothing."""
    database = bench.database("aggregate")
    with database.bulk():
        database.load(200_000, days_ago=12, days=8)
        database.load(100_000, days_ago=3)
        database.load(1_000_000, days_ago=2)
        database.load(100_000, days_ago=1)
    for days_ago, name in ((3, "100,000"), (2, "1,000,000")):
        with database.owner() as owner, database.connect(work_mem="256MB") as job:
            samples = in_turns(ways(database, owner, job, days_ago))
        bases = ("count(*)", "count(*) via heap", "read the columns")
        medians = bench.compare(f"A day of {name} events", samples, *bases)
        total = medians["aggregate_day"]
        bench.limit("aggregate_day / count(*), index only", total / medians["count(*)"], at_most=40)
        bench.limit("aggregate_day / count(*) via heap", total / medians["count(*) via heap"], at_most=10)
        bench.limit("aggregate_day / read the columns", total / medians["read the columns"], at_most=10)
        bench.limit("six queries per website / aggregate_day", medians["six queries"] / total, at_least=1.2)


def first_aggregation(owner: Connection, job: Connection, days_ago: int) -> float:
    """How long it takes to aggregate a day that has no row yet."""
    owner.execute("DELETE FROM analytics_daily_stats WHERE date = %s::date", [day(days_ago)[:10]])
    return seconds(aggregate_days, job, day(days_ago)[:10])


def ways(database: Database, owner: Connection, job: Connection, days_ago: int) -> Mapping[str, Callable[[], float]]:
    """Ways to read a day."""
    websites = [
        row["website_id"]
        for row in execute(owner, "SELECT website_id FROM analytics_websites() AS website (website_id)")
    ]
    values: dict[str, Any] = {"websites": websites, "from": day(days_ago), "to": day(days_ago - 1)}

    def naive() -> None:
        for website in websites:
            for query in NAIVE:
                execute(job, query, values | {"website": website})

    def via_heap() -> float:
        job.execute("SET enable_indexonlyscan = off")
        elapsed = seconds(execute, job, COUNT, values)
        job.execute("RESET enable_indexonlyscan")
        return elapsed

    return {
        "count(*)": lambda: seconds(execute, job, COUNT, values),
        "count(*) via heap": via_heap,
        "read the columns": lambda: seconds(execute, job, READ, values),
        "aggregate_day": lambda: first_aggregation(owner, job, days_ago),
        "aggregate_day again": lambda: seconds(aggregate_days, job, day(days_ago)[:10]),
        "six queries": lambda: seconds(naive),
    }
