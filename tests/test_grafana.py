"""docs/examples/grafana.json: it has the structure that Grafana loads, and a reader may ask its queries."""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import psycopg
import pytest

from aggregation_steps import aggregate_due
from conftest import ROOT, Database

DASHBOARD = json.loads((ROOT / "docs" / "examples" / "grafana.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
DAY = timedelta(days=1)


def ask(connection: psycopg.Connection[Any], title: str, start: datetime, end: datetime) -> psycopg.Cursor[Any]:
    """The answer to a panel's query when the dashboard shows this range."""
    [target] = PANELS[title]["targets"]
    # What Grafana puts in place of this macro; it refuses those that it does not know, and an argument has no bracket.
    between = rf"\1 BETWEEN '{start:%Y-%m-%dT%H:%M:%S.%fZ}' AND '{end:%Y-%m-%dT%H:%M:%S.%fZ}'"
    query = re.sub(r"\$__timeFilter\(([^)]*)\)", between, target["rawSql"])
    assert "$" not in query
    return connection.execute(query.encode())


@pytest.fixture
def reader(database: Database, now: datetime) -> Iterator[psycopg.Connection[Any]]:
    """A connection like Grafana's, which may only look and has no search_path, to a database with something in it."""
    for days in (1, 1, 2):
        database.event(now - days * DAY)
    aggregate_due(database)
    for n, outcome in enumerate(("success", "failed", "running")):
        database.connection.execute(
            "INSERT INTO analytics_job_run"
            " (job, run_id, started_at, finished_at, outcome, rows_deleted, database_bytes)"
            " VALUES ('archive_old_analytics', %s, %s, %s, %s, 7, 8)",
            [
                str(n),
                now - DAY + n * timedelta(seconds=1),
                None if outcome == "running" else now - DAY + n * timedelta(seconds=6),
                outcome,
            ],
        )
    database.connection.execute(
        "INSERT INTO analytics_alert (condition, subject, message, opened_at, claimed_at, recovered_at)"
        " VALUES ('run_late', 'a', 'It is late.', now(), now(), NULL),"
        " ('run_late', 'b', 'It was.', now(), now(), now())"
    )
    with database.connect(options="") as connection:
        connection.execute("SET ROLE analytics_readers")
        yield connection


def test_grafana_can_load_it() -> None:
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "grafana-postgresql-datasource")
    source = {"type": variable["query"], "uid": f"${{{variable['name']}}}"}
    assert DASHBOARD["schemaVersion"] == 42
    assert "id" not in DASHBOARD
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS) == len(DASHBOARD["panels"])
    for panel in PANELS.values():
        [target] = panel["targets"]
        assert panel["datasource"] == target["datasource"] == source
        assert target["rawQuery"]
        assert (panel["type"], target["format"]) in (("table", "table"), ("timeseries", "time_series"))
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
    for one, other in combinations([panel["gridPos"] for panel in PANELS.values()], 2):
        apart = [
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart)


@pytest.mark.parametrize("title", PANELS)
def test_a_reader_gets_what_the_panel_needs(reader: psycopg.Connection[Any], now: datetime, title: str) -> None:
    cursor = ask(reader, title, now - 3 * DAY, now)
    assert cursor.description
    names = [column.name for column in cursor.description]
    types = [info.name for column in cursor.description if (info := psycopg.adapters.types.get(column.type_code))]
    rows = cursor.fetchall()
    assert rows
    assert (names[0], types[0]) == ("time", "timestamptz")
    if PANELS[title]["type"] == "timeseries":
        # A time in order; of three columns, a text named metric names the series of the number.
        assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
        assert types[-1] in ("int8", "numeric")
        assert names[1:-1] == ["metric"] * (len(names) - 2)
        assert types[1:-1] == ["text"] * (len(names) - 2)
        assert ask(reader, title, now - 300 * DAY, now - 200 * DAY).fetchall() == []


def test_the_values(reader: psycopg.Connection[Any], now: datetime) -> None:
    def values(title: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values())[1:] for row in ask(reader, title, now - 3 * DAY, now)]

    job = "archive_old_analytics"
    assert {title: values(title) for title in PANELS} == {
        "Open alerts": [("run_late", "a", "It is late.")],
        "Last run of each job": [(job, "running", None, None)],
        "Pageviews per day": [("site", 1), ("site", 2)],
        "Unique visitors per day": [("site", 1), ("site", 1)],
        "Size of the database": [(8,), (8,)],
        "Rows deleted per run": [(job, 7), (job, 7)],
        "Duration of the runs": [(job, 0), (job, 5)],
        "Failed runs per day": [(job, 1)],
    }
