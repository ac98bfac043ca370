"""What it costs to aggregate a day, to catch up, and to find out that nothing is due."""

from collections.abc import Callable, Mapping
from functools import partial

from aggregation_steps import aggregate_days
from benchmarks import peers
from benchmarks.bench import HUGE_DAY, LARGE_DAY, Bench, Connection, Database, day, execute, in_turns, seconds
from conftest import run_file

FIND_DUE_DAYS = "aggregate_daily_analytics/find_due_days.sql"
COUNT = f"""
SELECT count(*) FROM analytics_event
WHERE website_id IN (SELECT * FROM analytics_websites()) AND {peers.OF_THE_DAY}
"""
CATCH_UP = 50


def aggregate(bench: Bench) -> None:
    """aggregate_day.sql of a day written for the first time, beside what people do instead, whose rows are compared with
    ours after each round: the day copied out into DuckDB (on all cores) and written back; a statement per metric, as
    under pg_cron; a cron job that goes through at most 100,000 rows per website in memory. They count all that our rows do,
    without proof: no hash of what was counted, no sketch of its visitors. Beside them the limit, count(*) of the same rows
    through the heap. Days of a tenth and of half of all events with 50 websites; then days of a tenth
    with one website and with 10,000."""
    large, huge = bench.events // 10, bench.events // 2
    database = bench.database("aggregate", bench.traffic().name)
    medians = ways(bench, database, large, LARGE_DAY, *peers.AGGREGATIONS)
    event = medians["aggregate_day"] / large
    heap = medians["aggregate_day"] / medians["count(*) via heap"]
    bench.limit(f"aggregate {large:,} events / count(*) via heap", heap, at_most=4)
    bench.limit(f"aggregate {large:,} events / DuckDB", medians["aggregate_day"] / medians["DuckDB"], at_most=0.7)
    bench.limit("row by row / aggregate_day", medians["row by row"] / medians["aggregate_day"], at_least=10)
    for events, websites in ((huge, 50), (large, 1), (large, 10_000)):
        if websites != 50:
            database = bench.database(f"aggregate_{websites}")
            with database.bulk():
                database.load(events, days_ago=LARGE_DAY, websites=websites)
        medians = ways(bench, database, events, HUGE_DAY if events == huge else LARGE_DAY, "DuckDB")
        what = f"{events:,} events, {websites:,} website(s)"
        bench.limit(f"aggregate {what} / DuckDB", medians["aggregate_day"] / medians["DuckDB"], at_most=1)
        bench.limit(f"time per event, {what} / 50", medians["aggregate_day"] / events / event, at_most=1.5)


def ways(bench: Bench, database: Database, events: int, days_ago: int, *others: str) -> dict[str, float]:
    """Measure ways to aggregate a day, and say how the results of others differ from ours; return the medians."""
    span = {"date": day(days_ago)[:10], "from": day(days_ago), "to": day(days_ago - 1)}
    wrong: dict[str, str] = {}

    def via_heap() -> float:
        job.execute("SET enable_indexonlyscan = off")
        elapsed = seconds(execute, job, COUNT, span)
        job.execute("RESET enable_indexonlyscan")
        return elapsed

    def peer(name: str) -> float:
        owner.execute("TRUNCATE peer_stats")
        elapsed = seconds(peers.AGGREGATIONS[name], job, span, bench.state)
        if rows := peers.differences(owner, span):
            wrong[name] = (
                f"{name}: {len(rows)} of {database.name}'s websites have other rows, for the largest one"
                f" {rows[0]['peer']:,} pageviews and {rows[0]['peer_visitors']:,} visitors instead of {rows[0]['ours']:,}"
                f" and {rows[0]['our_visitors']:,}"
            )
        return elapsed

    with database.owner() as owner, database.connect(work_mem="256MB") as job:
        if not execute(owner, "SELECT to_regclass('peer_stats') IS NOT NULL AS there")[0]["there"]:
            owner.execute(peers.MAKE_TABLE.encode())
        aggregate_days(job, span["date"])
        variants: dict[str, Callable[[], float]] = {
            "count(*), index only": lambda: seconds(execute, job, COUNT, span),
            "count(*) via heap": via_heap,
            "aggregate_day": lambda: first_aggregation(owner, job, span["date"]),
            **{name: partial(peer, name) for name in others},
        }
        samples = in_turns(variants)
        [websites] = execute(owner, "SELECT count(*) FROM analytics_daily_stats WHERE date = %(date)s::date", span)
    title = f"A day of {events:,} events, {websites['count']:,} website(s)"
    medians = bench.compare(title, samples, "count(*) via heap", "aggregate_day", rows=events)
    bench.note(f"{title}: " + ("; ".join(wrong.values()) or "all rows are equal"))
    assert set(wrong) <= {"row by row"}, wrong
    return medians


def first_aggregation(owner: Connection, job: Connection, *dates: str) -> float:
    """How long it takes to aggregate days that have no row yet, one after the other."""
    owner.execute("DELETE FROM analytics_daily_stats WHERE date = ANY(%s::date[])", [list(dates)])
    owner.execute("VACUUM analytics_daily_stats")
    return seconds(lambda: [aggregate_days(job, date) for date in dates])


def catch_up(bench: Bench) -> None:
    """Making up for 50 missed days, aggregate_day.sql of one after the other: the same number of events with 50 and with
    5,000 websites, most of which have few."""
    events = bench.events * 45 // 1000
    databases = {websites: bench.database(f"catch_up_{websites}") for websites in (50, 5000)}
    variants: dict[str, Callable[[], float]] = {}
    connections: list[Connection] = []
    for websites, database in databases.items():
        with database.bulk():
            database.load(events, days_ago=CATCH_UP + 1, days=CATCH_UP, websites=websites)
        owner, job = database.owner(), database.connect(work_mem="256MB")
        connections += [owner, job]
        dates = run_file(job, FIND_DUE_DAYS)[0]["result"]
        assert len(dates) >= CATCH_UP
        variants[f"aggregate_day, {websites:,} websites"] = partial(first_aggregation, owner, job, *dates)
    samples = in_turns(variants)
    for connection in connections:
        connection.close()
    few, many = bench.compare(f"{events:,} events of {CATCH_UP} days", samples, next(iter(variants))).values()
    bench.limit("catch-up, 5,000 websites / 50", many / few, at_most=2)


def due(bench: Bench) -> None:
    """find_due_days.sql with nothing due, where 90 days of raw events are left of a year and all older rows are sealed,
    beside count(*) of these events, as the planner likes it (index only) and through the heap."""
    database = bench.database("due", bench.traffic().name)
    with database.owner() as owner, database.connect() as job:
        cutoff = {"cutoff": day(90)}
        execute(owner, "DELETE FROM analytics_event WHERE timestamp < %(cutoff)s", cutoff)
        execute(owner, "UPDATE analytics_daily_stats SET sealed_at = now() WHERE ends_at <= %(cutoff)s", cutoff)
        owner.execute("VACUUM (ANALYZE)")
        assert run_file(job, FIND_DUE_DAYS)[0]["result"] == []
        count = "SELECT count(*) FROM analytics_event WHERE deleted_at IS NULL"
        [events] = execute(job, count)
        variants: Mapping[str, Callable[[], float]] = {
            "count(*), index only": lambda: seconds(execute, job, count),
            "count(*) via heap": lambda: seconds(execute, job, f"{count} AND device_type <> ''"),
            "find_due_days": lambda: seconds(run_file, job, FIND_DUE_DAYS),
        }
        samples = in_turns(variants)
    title = f"Nothing due, {events['count']:,} events of 90 days"
    medians = bench.compare(title, samples, "count(*), index only")
    bench.limit("nothing due / count(*), index only", medians["find_due_days"] / medians["count(*), index only"], 1.2)
