"""A year: what reading it costs, and how the database's size goes through it, with and without retention."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import clock
from aggregation_steps import DUE, aggregate_days
from benchmarks.bench import (
    GIANT,
    HUGE_DAY,
    YEAR,
    Bench,
    Connection,
    Database,
    day,
    execute,
    in_turns,
    progress,
    seconds,
)
from conftest import run_file
from retention_steps import Retention

WEEKS = 52
FIRST = YEAR + HUGE_DAY  # days ago
VIEW = "analytics_traffic_daily"

RAW_PAGEVIEWS = """
SELECT (timestamp AT TIME ZONE 'UTC')::date AS date, count(*) AS pageviews FROM analytics_event
WHERE
    website_id = %(website)s AND event_type = 'pageview' AND deleted_at IS NULL
    AND timestamp >= %(from)s::timestamptz AND timestamp < %(to)s::timestamptz
GROUP BY 1 ORDER BY 1
"""
PAGEVIEWS = f"""
SELECT date, total_pageviews AS pageviews FROM {VIEW}
WHERE website_id = %(website)s AND date >= %(from)s::date AND date < %(to)s::date ORDER BY 1
"""


def history(bench: Bench) -> None:
    """The pageviews of each day of a year of the website with 60 percent of the traffic: from analytics_traffic_daily,
    beside the same from its raw events. The rows are equal."""
    database = bench.traffic()
    span = {"website": GIANT, "from": day(YEAR), "to": day(0)}
    with database.connect() as reader:
        raw, stats = (execute(reader, query, span) for query in (RAW_PAGEVIEWS, PAGEVIEWS))
        assert raw == stats
        assert len(raw) >= YEAR - 1

        def read(query: str) -> Callable[[], float]:
            return lambda: seconds(execute, reader, query, span)

        samples = in_turns({"raw events": read(RAW_PAGEVIEWS), VIEW: read(PAGEVIEWS)})
    title = f"A year of {sum(row['pageviews'] for row in raw):,} pageviews"
    medians = bench.compare(title, samples, VIEW)
    bench.limit(f"a year from raw events / {VIEW}", medians["raw events"] / medians[VIEW], at_least=1000)


# Free space as VACUUM has found it: in pages of tables, and pages of indexes that are all free.
SIZES = """
SELECT
    sum(pg_total_relation_size(relation)) FILTER (WHERE is_raw) AS raw,
    sum(pg_total_relation_size(relation)) FILTER (WHERE NOT is_raw) AS ours,
    sum((
        SELECT sum(page.avail) FROM pg_class AS file CROSS JOIN LATERAL pg_freespace(file.oid::regclass) AS page
        WHERE file.oid = relation OR file.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = relation)
    )) AS free
FROM (
    SELECT
        name::regclass AS relation,
        name IN ('analytics_event', 'analytics_session') AS is_raw
    FROM unnest(%(tables)s::text[]) AS name
) AS stored
"""
TABLES = ["analytics_event", "analytics_session", "analytics_daily_stats", "analytics_purge_batch"]


def storage(bench: Bench) -> None:
    """A simulated year of events and sessions, which are inserted week by week into two databases, with all indexes. In one
    of them each week ends, on a clock of its own, with all steps of aggregate_daily_analytics and of
    archive_old_analytics, which keeps 90 days, and a VACUUM; in the other one nothing is deleted. Sizes are those of
    tables and indexes; what is free in them is used again, and is not given back to the disk."""
    source = bench.traffic()
    with_retention, without = bench.database("with_retention"), bench.database("without_retention")
    with ThreadPoolExecutor(2) as pool:
        kept, grown = pool.map(simulate, [source] * 2, [with_retention, without], [True, False])
    lines = {
        "without retention": [(size["raw"] + size["ours"]) / 1e9 for size in grown],
        "with retention": [(size["raw"] + size["ours"]) / 1e9 for size in kept],
        "in use": [(size["raw"] + size["ours"] - size["free"]) / 1e9 for size in kept],
        "daily stats": [size["ours"] / 1e9 for size in kept],
    }
    bench.curves("Size of the database", "weeks", "GB", range(1, WEEKS + 1), lines)
    weeks = (4, 13, 26, 39, WEEKS)
    bench.table(
        f"GB after so many weeks, {bench.events * 4 // 10 // 12:,} events a month",
        ["", *map(str, weeks)],
        [[name, *(f"{values[week - 1]:.3f}" for week in weeks)] for name, values in lines.items()],
    )
    all_, end = grown[-1]["raw"], kept[-1]
    bench.limit(
        "size after 52 weeks / 26 weeks", lines["with retention"][-1] / lines["with retention"][25], at_most=1.1
    )
    bench.limit("a year's saving, of the files", 1 - (end["raw"] + end["ours"]) / all_, at_least=0.74)
    bench.limit(
        "a year's saving, of what is in use", 1 - (end["raw"] + end["ours"] - end["free"]) / all_, at_least=0.74
    )
    bench.limit("daily stats / a year of raw data", end["ours"] / all_, at_most=0.02)


def simulate(source: Database, database: Database, retain: bool) -> list[dict[str, float]]:
    """Insert a year week by week, with a run of the jobs after each, or without; return the sizes after each week."""
    sizes = []
    with source.owner() as reader, database.owner() as owner:
        owner.execute("CREATE EXTENSION pg_freespacemap")
        clock.install(owner)
        with database.connect(search_path=clock.SEARCH_PATH, work_mem="256MB") as job:
            for week in range(WEEKS):
                progress(f"week {week + 1} of {WEEKS}")
                ends = FIRST - 7 * week - 7
                for table, column in (("analytics_event", "timestamp"), ("analytics_session", "started_at")):
                    rows = f"SELECT * FROM {table} WHERE {column} >= '{day(ends + 7)}' AND {column} < '{day(ends)}'"
                    copy(reader, owner, f"{rows} ORDER BY {column}", table)
                if retain:
                    clock.set_now(job, day(ends).replace("T00", "T02"))
                    for date in run_file(job, DUE)[0]["result"]:
                        aggregate_days(job, date)
                    retention = Retention(job)
                    assert retention.seal() == []
                    deleted = sum(retention.delete(retention.plan()))
                    retention.list_sessions()
                    deleted_sessions = sum(retention.delete(retention.plan("session"), "session"))
                    assert week < 14 or deleted > 5 * deleted_sessions / 2 > 0
                    owner.execute(f"VACUUM (ANALYZE) {', '.join(TABLES)}")
                sizes.append(
                    {name: float(value) for name, value in execute(owner, SIZES, {"tables": TABLES})[0].items()}
                )
    return sizes


def copy(reader: Connection, writer: Connection, query: str, table: str) -> None:
    """Copy the rows of a query from one database into a table of another one."""
    with (
        reader.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode()) as source,
        writer.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)".encode()) as target,
    ):
        for block in source:
            target.write(block)
