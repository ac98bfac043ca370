"""What it costs to write rows to the archive before they go, and what they take there."""

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from benchmarks.bench import Bench, Database, day, execute, in_turns, seconds
from benchmarks.memory import run_task
from retention_steps import Retention

DAYS_KEPT = 10
NOTHING_ARCHIVED = "TRUNCATE analytics_archive_file; UPDATE analytics_purge_batch SET archived = '{}'"
COPY, FILES, VERIFIED = "COPY the rows out", "write the files", "write, read back and verify them"


def archive(bench: Bench) -> None:
    """Writing the expired events of seven days and of 50 websites to Parquet files, one for each website and day, without
    and with reading them back into PostgreSQL and comparing all columns of all rows, beside a bare COPY of the same rows to
    a client that throws them away. The bytes of the files beside those of the table and its indexes. Peak memory of the
    task, with a tenth of the events and with all."""
    few, many = (filled(bench, events) for events in (bench.events // 100, bench.events // 10))
    folder = bench.state / "archive"
    measure(bench, many, folder)
    memory(bench, few, many, folder)


def filled(bench: Bench, events: int) -> Database:
    """A database with expired events of seven days, which are listed."""
    database = bench.database(f"archive_{events}")
    with database.bulk():
        database.load(events, days_ago=DAYS_KEPT + 7, days=7)
    database.aggregate(DAYS_KEPT + 7, DAYS_KEPT + 1)
    with database.connect(work_mem="64MB") as job:
        assert Retention(job, retention_days=DAYS_KEPT).seal() == []
    with database.owner() as owner:
        owner.execute("VACUUM (ANALYZE)")
    return database


def measure(bench: Bench, database: Database, folder: Path) -> None:
    """Measure time and bytes."""
    from web_analytics.archive import STEP, STEPS, Archive, describe

    with database.owner() as owner, database.connect() as reader, database.connect() as writer:
        for connection in (reader, writer):
            connection.row_factory = psycopg.rows.tuple_row  # type: ignore[assignment]
        archive: Any = Archive(f"file://{folder}", describe(writer, "event"), reader, writer)
        execute(owner, NOTHING_ARCHIVED)
        steps = [row["numbers"] for row in execute(owner, STEPS, {"kind": "event", "step": STEP})]

        def copy_out() -> None:
            query = f"COPY (SELECT * FROM analytics_event WHERE timestamp < '{day(DAYS_KEPT)}') TO STDOUT"
            with owner.cursor().copy(query.encode()) as copy:
                for _ in copy:
                    pass

        def fresh() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            execute(owner, NOTHING_ARCHIVED)

        def write() -> float:
            fresh()
            return seconds(lambda: [archive.write_step(numbers) for numbers in steps])

        def verify() -> float:
            fresh()
            took = seconds(lambda: [archive.run_step(numbers) for numbers in steps])
            assert archive.problems == []
            return took

        samples = in_turns({COPY: lambda: seconds(copy_out), FILES: write, VERIFIED: verify})
        sizes = execute(
            owner,
            "SELECT count(*) AS files, sum(rows)::bigint AS rows, sum(bytes)::bigint AS bytes,"
            " pg_table_size('analytics_event') AS heap, pg_indexes_size('analytics_event') AS indexes,"
            " (SELECT count(*) FROM analytics_event) AS events FROM analytics_archive_file WHERE verified_at IS NOT NULL",
        )[0]
    assert sizes["rows"] == sizes["events"], "not all events are in the archive"
    medians = bench.compare(f"Archiving {sizes['rows']:,} events", samples, COPY, rows=sizes["rows"])
    bench.table(
        f"{sizes['files']:,} Parquet files beside PostgreSQL",
        ["", "MB", "bytes an event"],
        [
            [name, f"{sizes[name] / 1e6:,.1f}", f"{sizes[name] / sizes['rows']:,.0f}"]
            for name in ("heap", "indexes", "bytes")
        ],
    )
    bench.limit("Parquet / heap and indexes", sizes["bytes"] / (sizes["heap"] + sizes["indexes"]), at_most=0.1)
    bench.limit("write the files / COPY the rows out", medians[FILES] / medians[COPY], at_most=3)
    bench.note(f"With verification it is {medians[VERIFIED] / medians[COPY]:.1f} times the COPY.")


def memory(bench: Bench, few: Database, many: Database, folder: Path) -> None:
    """Measure the peak memory of the task, and of the server's process for it."""
    found = []
    for database in (few, many):
        with (
            database.owner() as owner,
            mock.patch.dict(os.environ, ANALYTICS_ARCHIVE_URI=f"file://{folder}/{database.name}"),
        ):
            execute(owner, NOTHING_ARCHIVED)
            found.append(run_task(database, owner, {"kind": "event"}))
    bench.table(
        "Peak memory of archive_events in MB",
        ["", f"{few.loaded:,} events", f"{many.loaded:,} events"],
        [
            [name, *(f"{each[place] / 1e6:.1f}" for each in found)]
            for place, name in enumerate(("task", "server's process"))
        ],
    )
