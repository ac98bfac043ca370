"""The command that makes a big table a partitioned one, while the application goes on."""

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from conftest import BACKGROUND, ROOT, Database
from partition_steps import partitions
from web_analytics import schema
from web_analytics.partition import CHECK
from web_analytics.partition import partition as convert

SEARCH_PATH = "analytics,public"
INSERT = """
INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
VALUES (%s, 'site', '/', 'v', 's', now())
"""


def events(database: Database, count: int) -> None:
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT 'old ' || i, 'site', '/', 'v', 's', now() - i * INTERVAL '1 minute' FROM generate_series(1, %s) AS i
        """,
        [count],
    )


def shape(database: Database, table: str) -> list[dict[str, Any]]:
    """What a table has that the application or its users can notice."""
    return database.query(
        """
        SELECT
            relowner::regrole::text, obj_description(c.oid, 'pg_class') AS comment, ARRAY(
                SELECT concat(grantee, privilege_type, is_grantable) FROM aclexplode(relacl) ORDER BY 1
            ) AS grants, ARRAY(
                SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid),
                    attacl::text, col_description(attrelid, attnum))
                FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
            ) AS columns, ARRAY(
                SELECT concat(conname, pg_get_constraintdef(oid)) FROM pg_constraint
                WHERE conrelid = c.oid AND contype = 'c' ORDER BY 1
            ) AS checks, ARRAY(
                SELECT concat(relname, regexp_replace(pg_get_indexdef(indexrelid), '^.*? USING', '')) FROM pg_index
                INNER JOIN pg_class AS i ON i.oid = indexrelid WHERE indrelid = c.oid AND NOT indisprimary ORDER BY 1
            ) AS indexes
        FROM pg_class AS c WHERE oid = %s::regclass
        """,
        table,
    )


def test_a_table_becomes_the_first_partition_while_the_application_writes(database: Database) -> None:
    events(database, 20_000)
    database.connection.execute(
        "COMMENT ON TABLE analytics_event IS 'it''s ours'; COMMENT ON COLUMN analytics_event.id IS '50%';"
        "GRANT SELECT (id), UPDATE (pathname) ON analytics_event TO analytics_readers;"
        "GRANT INSERT ON analytics_event TO public"
    )
    before, file = shape(database, "analytics_event"), database.value("SELECT pg_relation_filenode('analytics_event')")
    stop = threading.Event()

    def write(name: str) -> list[float]:
        waits = list[float]()
        with database.connect() as connection:
            while not stop.is_set():
                started = time.monotonic()
                connection.execute(INSERT, [f"{name} {len(waits)}"])
                waits.append(time.monotonic() - started)
                time.sleep(0.003)
        return waits

    writers = [BACKGROUND.submit(write, name) for name in ("a", "b", "c", "d")]
    try:
        convert(database.dsn, SEARCH_PATH, "week")
    finally:
        stop.set()
    waits = [wait for writer in writers for wait in writer.result(10)]
    written = len(waits)
    print(f"{written} inserts, the longest took {max(waits):.3f} s")
    assert written > 200
    # lock_timeout of the command is half a second.
    assert max(waits) < 2
    assert database.value("SELECT count(*) FROM analytics_event") == 20_000 + written
    assert shape(database, "analytics_event") == before
    first = next(name for name in partitions(database) if "before" in name)
    assert database.value("SELECT pg_relation_filenode(%s)", first) == file
    assert database.run("check_database.sql", version=schema.version()) == []
    ends = [row["ends_at"] for row in database.query("SELECT ends_at FROM analytics_event_partitions() ORDER BY 1")]
    assert all((end.weekday(), end.hour) == (0, 0) for end in ends)
    assert (ends[-1] - datetime.now(UTC)).days >= 30
    # And once more: all is there.
    names = partitions(database)
    convert(database.dsn, SEARCH_PATH, "week")
    assert partitions(database) == names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("CREATE VIEW dependent AS SELECT id FROM analytics_event", "dependent depends on analytics_event"),
        ("CREATE TABLE note (event text REFERENCES analytics_event)", "The foreign key note_event_fkey of note"),
        ("CREATE UNIQUE INDEX ON analytics_event (event_id)", "The unique index analytics_event_event_id_idx1"),
        ("CREATE PUBLICATION everything FOR TABLE analytics_event", "The publication of analytics_event"),
        (
            (
                "CREATE TRIGGER note BEFORE UPDATE ON analytics_event FOR EACH ROW "
                "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            "The trigger note: drop it first",
        ),
    ],
)
def test_what_cannot_be_kept_is_named_and_nothing_is_done(database: Database, change: str, problem: str) -> None:
    database.connection.execute(change.encode())
    before = shape(database, "analytics_event")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=problem):
        convert(database.dsn, SEARCH_PATH, "week")
    assert shape(database, "analytics_event") == before


def test_an_event_of_the_far_future_stops_it_and_no_event_is_refused_then(database: Database) -> None:
    database.event("2999-01-01T00:00Z")
    command = [sys.executable, str(ROOT / "dags/web_analytics/partition.py"), database.dsn]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        f'analytics_event was not partitioned: check constraint "{CHECK}" of relation "analytics_event" is violated'
        in (result.stderr)
    )
    database.event("2998-01-01T00:00Z")


@pytest.mark.parametrize("every", ["day", "week", "month"])
def test_the_next_partitions_are_made_by_the_aggregation(database: Database, every: str) -> None:
    convert(database.dsn, SEARCH_PATH, every)
    database.connection.execute("UPDATE analytics_partitioning SET ahead = 90")
    database.run("aggregate_daily_analytics/add_partitions.sql")
    names = partitions(database)
    query = "SELECT max(ends_at) FROM analytics_event_partitions()"
    newest = database.value(query)
    last = max(names, key=lambda name: database.value("SELECT %s::regclass::oid", name))
    database.connection.execute(f"DROP TABLE {last}".encode())
    [row] = database.run("aggregate_daily_analytics/add_partitions.sql")
    assert row["log"].startswith("[Analytics Job] Made the partitions public.analytics_event_2")
    assert (partitions(database), database.value(query)) == (names, newest)
    [row] = database.run("aggregate_daily_analytics/add_partitions.sql")
    assert row["log"] is None
    assert database.value("SELECT relowner::regrole::text FROM pg_class WHERE oid = %s::regclass", last) == "postgres"
    # Somebody else's way.
    database.connection.execute("DELETE FROM analytics_partitioning")
    database.connection.execute(f"DROP TABLE {last}".encode())
    assert database.run("aggregate_daily_analytics/add_partitions.sql") == [{"log": None}]


def test_an_alert_says_that_partitions_end(database: Database) -> None:
    assert database.run("alerts/partitions_end.sql") == []
    convert(database.dsn, SEARCH_PATH, "week")
    assert database.run("alerts/partitions_end.sql") == []
    for name in partitions(database):
        if "before" not in name:
            database.connection.execute(f"DROP TABLE {name}".encode())
    database.connection.execute(
        "ALTER TABLE analytics_event DETACH PARTITION "
        + next(iter(partitions(database)))
        + f"; CREATE TABLE soon PARTITION OF analytics_event FOR VALUES FROM (MINVALUE) TO ('{datetime.now(UTC)}')"
    )
    [alert] = database.run("alerts/partitions_end.sql")
    assert "The newest partition of analytics_event ends on" in alert["message"]
    database.connection.execute("CREATE TABLE rest PARTITION OF analytics_event DEFAULT")
    assert database.run("alerts/partitions_end.sql") == []
