"""ANALYTICS_IGNORED_EVENTS: custom events that are proven and deleted like all, and not counted as custom events."""

from typing import Any

import pytest

from aggregation_steps import aggregate, aggregate_due, find, seal, versions
from conftest import Database
from retention_steps import CUTOFF, DAY, Retention, ids, late, listed, stats

OLD = CUTOFF - DAY


@pytest.fixture
def counted(database: Database) -> Database:
    """Two counted events of an expired day."""
    for _ in range(2):
        database.event(OLD)
    aggregate(database, "2024-02-29")
    return database


def start(database: Database, *ignored: str) -> str | None:
    """What the start of a run says, as the jobs' own role, which owns nothing."""
    run: dict[str, Any] = {"job": "a job", "run_id": "a run", "timezone": "UTC", "ignored_events": list(ignored)}
    [row] = database.run("watch/start_run.sql", **run)
    log: str | None = row["log"]
    return log


def test_the_start_of_a_run_stores_the_setting_and_says_once_what_changed(database: Database) -> None:
    assert start(database) is None
    assert start(database, "ping", "heartbeat") == (
        "[Analytics] ANALYTICS_IGNORED_EVENTS is heartbeat, ping now, and was empty: days whose rows are not sealed are "
        "counted again"
    )
    assert start(database, "heartbeat", "ping") is None
    assert str(start(database, "ping")).startswith(
        "[Analytics] ANALYTICS_IGNORED_EVENTS is ping now, and was heartbeat, "
    )
    assert str(start(database)).startswith("[Analytics] ANALYTICS_IGNORED_EVENTS is empty now, and was ping:")
    assert database.query("SELECT * FROM analytics_ignored_event") == []


def test_days_are_counted_again_where_their_rows_may_change(database: Database) -> None:
    for days in range(3):
        database.event(OLD + days * DAY, event_type="custom_event", event_name="heartbeat")
    aggregate_due(database)
    seal(database, "2024-02-29")
    sealed = versions(database)[0]
    start(database, "heartbeat")
    assert find(database) == ["2024-03-01", "2024-03-02"]
    aggregate_due(database)
    assert find(database) == []
    assert versions(database)[0] == sealed
    assert [row["total_custom_events"] for row in versions(database)] == [1, 0, 0]


def test_rows_of_before_the_columns_are_counted_again_unless_they_are_sealed(database: Database) -> None:
    for days in range(2):
        database.event(OLD + days * DAY, country="DE")
    aggregate_due(database)
    counted = versions(database)
    seal(database, "2024-02-29")
    # As the migration leaves them.
    database.connection.execute("UPDATE analytics_daily_stats SET ignored_events = NULL, top_countries = NULL")
    assert find(database) == ["2024-03-01"]
    aggregate_due(database)
    assert find(database) == []
    assert [row["top_countries"] for row in versions(database)] == [None, counted[1]["top_countries"]]


def test_a_row_that_counts_events_which_are_ignored_now_is_counted_again_before_it_is_sealed(
    counted: Database, run: Retention
) -> None:
    counted.event(OLD, event_type="custom_event", event_name="heartbeat")
    aggregate(counted, "2024-02-29")
    start(counted, "heartbeat")
    assert [step["named"] for step in run.seal()] == ["site 2024-02-29 (3 event(s), stats of 3)"]
    aggregate(counted, "2024-02-29")
    assert run.archive()["event"]
    [row] = stats(counted)
    assert (row["total_events"], row["total_custom_events"], row["ignored_events"]) == (3, 0, ["heartbeat"])
    assert (ids(counted), listed(counted)) == (set(), {})


def test_what_comes_late_is_counted_as_what_it_is_now(counted: Database, run: Retention) -> None:
    run.archive()
    start(counted, "heartbeat")
    counted.event(OLD)
    for name in ("sale", "heartbeat", "heartbeat", None):
        counted.event(OLD, event_type="custom_event", event_name=name)
    # Only custom events are ignored.
    counted.event(OLD, event_name="heartbeat")
    run.archive()
    [row] = stats(counted)
    names = ("late_pageviews", "late_custom_events", "late_ignored_events")
    assert [row[name] for name in names] == [2, 2, 2]
    assert late(counted) == {("site", "2024-02-29"): 6}
    traffic = counted.query("SELECT total_pageviews, total_custom_events, total_events FROM analytics_traffic_daily")
    assert traffic == [
        {
            "total_pageviews": row["total_pageviews"] + 2,
            "total_custom_events": row["total_custom_events"] + 2,
            "total_events": row["total_events"] + 6,
        }
    ]


@pytest.mark.parametrize("name", ["", " ", "Ä'\"%(x)s{{ 1 }}", "a" * 3000])
def test_any_name_may_be_ignored(database: Database, name: str) -> None:
    start(database, name)
    database.event(OLD, event_type="custom_event", event_name=name)
    aggregate_due(database)
    assert versions(database)[0]["total_custom_events"] == 0
