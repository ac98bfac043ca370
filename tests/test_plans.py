"""How the hot statements go through their tables: by indexes, by hashes, and without compiling."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import plans
import traffic as made
from aggregation_steps import AGGREGATE, DUE, Connection, aggregate, aggregate_due
from conftest import LOGIN, Database
from retention_steps import DELETE_EVENTS, POLICY, SEAL, Retention, policy

DAY = "2024-01-15"
NOON = datetime(2024, 1, 15, 12, tzinfo=UTC)
PARAMETERS = {"days": [DAY], "label": DAY, "recount": False}


@pytest.fixture
def traffic(database: Database) -> None:
    """50,000 events of seven websites in 23 days."""
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, referrer_source, visitor_id, session_id, timestamp)
        SELECT
            'anevt_' || i, 'site ' || i % 7, '/' || i % 900, 'host ' || i % 90, 'visitor ' || i % 20000,
            'session ' || i / 3, '2024-01-01T00:00Z'::timestamptz + i * INTERVAL '40 seconds'
        FROM GENERATE_SERIES(1, 50000) AS i
        """
    )
    database.connection.execute("ANALYZE analytics_event")


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("large", [0, 2])
def test_a_day_is_read_through_an_index_and_hashed(database: Database, large: int) -> None:
    for number in range(large):
        database.connection.execute(
            """
            INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
            SELECT 'large ' || %(number)s || i, 'site ' || %(number)s, '/', 'visitor ' || i, 'session', '2024-01-15T12:00Z'
            FROM generate_series(1, 2000) AS i
            """,
            {"number": number},
        )
    wrong, text = plans.run(database.connection, AGGREGATE, **PARAMETERS)
    assert wrong == []
    # Large days one by one, the others of the seven together.
    assert text.count("CTE grouped\n") == 1 + large


@pytest.fixture
def sample(database: Database) -> Database:
    """50,000 events of ten websites in 23 days, with their sessions, aggregated."""
    names = [f"website {number:02}" for number in range(10)]
    made.make(database.connection, names, "2024-01-01T00:00Z", 23, 10_000, steps=5, store_sessions=True)
    database.connection.execute("VACUUM (ANALYZE)")
    aggregate_due(database)
    database.connection.execute("VACUUM (ANALYZE)")
    return database


def test_what_is_due_is_read_from_indexes_alone(sample: Database) -> None:
    wrong, text = plans.run(sample.connection, DUE)
    assert wrong == []
    assert set(re.findall(r"->  (.* )using \w+ on analytics_event", text)) == {"Index Only Scan "}


def test_days_are_sealed_and_their_events_deleted_without_looking_at_others(sample: Database) -> None:
    retention = Retention(sample.connection, sample)
    for step in retention.find()["steps"]:
        assert plans.run(sample.connection, SEAL, **POLICY | step)[0] == []
    first, second, *_ = retention.batches(retention.plan())
    assert plans.run(sample.connection, DELETE_EVENTS, **first)[0] == []
    policy(sample, "legal_hold = TRUE", "website 03")  # each event is looked at
    assert plans.run(sample.connection, DELETE_EVENTS, **second)[0] == []


def test_the_cutoff_of_a_website_is_not_asked_for_each_day_or_session(sample: Database) -> None:
    with sample.connection.transaction():
        sample.connection.execute("SET LOCAL track_functions = 'pl'")
        retention = Retention(sample.connection, sample)
        steps = retention.find()["steps"]
        retention.seal()
        query = "SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = 'analytics_cutoff'"
        assert 10 <= sample.value(query) <= 10 * (6 + 2 * len(steps))


def test_idle_sessions_are_found_among_the_open_ones(sample: Database) -> None:
    sample.connection.execute("UPDATE analytics_session SET ended_at = NULL WHERE started_at >= '2024-01-22T00:00Z'")
    sample.connection.execute("ANALYZE analytics_session")
    for file in (plans.CLOSE, plans.RETURNED):
        assert plans.run(sample.connection, file, idle_minutes=30, batch_size=100, done=0)[0] == []


@pytest.mark.usefixtures("traffic")
def test_a_row_that_has_lost_its_events_reads_no_others_than_those_of_its_website(database: Database) -> None:
    aggregate_due(database)
    database.connection.execute("DELETE FROM analytics_event WHERE timestamp < '2024-01-02T00:00Z'")
    read = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = 'analytics_event'::regclass"
    with database.connection.transaction():
        before = database.value(read)
        log = aggregate(database, "2024-01-01", connection=database.connection)
        assert ["kept its row" in line for line in log] == [True] * 7
        assert database.value(read) == before


@pytest.fixture
def reader(database: Database) -> Iterator[Connection]:
    """A reader with no settings of its own, of a database that compiles every query it can."""
    database.connection.execute(
        f"""
        ALTER DATABASE {database.connection.info.dbname} SET jit = on;
        ALTER DATABASE {database.connection.info.dbname} SET jit_above_cost = 0;
        -- A server without LLVM shows all the same who would have compiled: no event is there for a query that may.
        ALTER TABLE analytics_event ENABLE ROW LEVEL SECURITY;
        CREATE POLICY no_jit ON analytics_event TO {LOGIN} USING (current_setting('jit') = 'off')
        """.encode()
    )
    with database.connect(LOGIN) as connection:
        yield connection


def rows(connection: Connection, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in connection.execute(query.encode(), arguments).fetchall()]


def test_traffic_is_counted_without_compiling(database: Database, reader: Connection) -> None:
    for website_id in ("other", "site"):
        for n in range(7):
            database.event(NOON + timedelta(hours=6 * n), website_id, visitor_id=str(n), pathname=f"/{n}")
    database.event("-infinity")
    aggregate(database, DAY, connection=database.connection)
    late = database.event(NOON + timedelta(hours=20), deleted_at=NOON)
    assert rows(reader, "SHOW jit") == [("on",)]
    assert rows(reader, "SELECT count(*) FROM analytics_event") == [(0,)]  # the policy works
    query = (
        "SELECT date::text, total_pageviews, unique_visitors, total_events, jsonb_array_length(top_pages),"
        " aggregated_at IS NULL FROM analytics_traffic_daily WHERE website_id = %s ORDER BY date"
    )
    expected = [("2024-01-15", 2, 2, 2, 2, False), ("2024-01-16", 4, 4, 4, 4, True), ("2024-01-17", 1, 1, 1, 1, True)]
    for website_id in ("other", "site"):
        assert rows(reader, query, website_id) == expected
    assert rows(reader, "SELECT analytics_unique_visitors('site', '2024-01-15', '2024-01-17')") == [(7,)]
    assert rows(reader, "SELECT website_id, events FROM analytics_anomalies()") == [("site", 1)]
    database.connection.execute("UPDATE analytics_event SET deleted_at = NULL WHERE id = %s", [late])
    assert rows(reader, query, "site")[1] == ("2024-01-16", 5, 5, 5, 5, True)


def test_no_function_that_reads_raw_events_for_a_reader_may_be_compiled(database: Database) -> None:
    functions = database.query(
        """
        SELECT proname, 'jit=off' = ANY(coalesce(proconfig, '{}')) AS is_off FROM pg_proc
        WHERE prosrc ~ 'FROM analytics_(event|session|websites|event_days|live_days|count_days)\\M' AND pronamespace = 'analytics'::regnamespace
            -- Only the jobs call these, and they compile nothing.
            AND proname NOT IN ('analytics_has_events', 'analytics_signs', 'analytics_why_kept')
        """
    )
    assert {row["proname"] for row in functions} >= {"analytics_count_days", "analytics_event_days"}
    assert [row["proname"] for row in functions if not row["is_off"]] == []
