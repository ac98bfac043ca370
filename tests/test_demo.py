"""What the demo stands on: its sample traffic, the loader of CSV files, and the embedded PostgreSQL."""

import gzip
import os
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

import embedded
import traffic
from conftest import Database

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def sample(database: Database) -> dict[str, int]:
    """The sample traffic of one moment."""
    with psycopg.connect(database.dsn) as connection:
        return traffic.sample(connection, NOW)


def load(database: Database, folder: Path) -> dict[str, int]:
    with psycopg.connect(database.dsn) as connection:
        return traffic.load(connection, folder)


def write(folder: Path, events: str, sessions: str = "id\n") -> Path:
    for name, text in (("events", events), ("sessions", sessions)):
        with gzip.open(folder / f"{name}.csv.gz", "wt") as file:
            file.write(text)
    return folder


def test_traffic_is_the_same_each_time(database: Database) -> None:
    def contents() -> list[str]:
        database.connection.execute("TRUNCATE analytics_event, analytics_session")
        database.connection.execute("SET search_path = analytics, public")
        traffic.make(database.connection, ["a", "b"], "2026-01-01T00:00Z", 3, 200, now=NOW, store_sessions=True)
        return [
            database.value(f"SELECT md5(string_agg(r::text, ' ' ORDER BY {key})) FROM {table} AS r")
            for table, key in (("(SELECT timestamp, pathname, visitor_id FROM analytics_event)", "r"),)
        ]

    assert contents() == contents()


def test_traffic_has_what_the_jobs_are_for(database: Database, sample: dict[str, int]) -> None:
    assert sample["analytics_event"] > 100_000
    row = database.query(
        """
        SELECT
            count(DISTINCT website_id) AS websites,
            count(DISTINCT date_trunc('day', timestamp, 'UTC')) AS days,
            count(*) FILTER (WHERE timestamp < %s::timestamptz - interval '90 days') AS expired,
            count(*) FILTER (WHERE timestamp > %s) AS future,
            count(*) FILTER (WHERE deleted_at IS NOT NULL) AS soft_deleted
        FROM analytics_event
        """,
        NOW,
        NOW,
    )[0]
    assert (row["websites"], row["days"], row["future"]) == (5, 101, 0)
    assert row["expired"] > 10_000
    assert row["soft_deleted"] > 0
    sessions = database.query(
        """
        SELECT
            count(*) FILTER (WHERE ended_at IS NULL AND last_activity_at < %s::timestamptz - interval '30 min') AS idle,
            count(*) FILTER (WHERE ended_at IS NULL AND last_activity_at >= %s::timestamptz - interval '30 min') AS live,
            count(*) FILTER (WHERE ended_at < last_activity_at) AS returned,
            count(*) FILTER (WHERE last_activity_at < started_at) AS impossible
        FROM analytics_session
        """,
        NOW,
        NOW,
    )[0]
    assert min(sessions["idle"], sessions["live"], sessions["returned"]) > 0
    assert sessions["impossible"] == 0


@pytest.mark.usefixtures("sample")
def test_sessions_agree_with_their_events(database: Database) -> None:
    assert (
        database.query(
            """
            SELECT session_id FROM analytics_session AS session
            LEFT JOIN (
                SELECT session_id, min(timestamp) AS first, max(timestamp) AS last FROM analytics_event GROUP BY 1
            ) AS event USING (session_id)
            WHERE (started_at, last_activity_at) IS DISTINCT FROM (first, last) LIMIT 3
            """
        )
        == []
    )


def test_loader_takes_defaults_and_null(database: Database, tmp_path: Path) -> None:
    header = "id,website_id,event_type,pathname,referrer_source,visitor_id,session_id,device_type,timestamp\n"
    folder = write(tmp_path, header + "e1,site,pageview,/,,visitor,session,desktop,2026-01-01T00:00:00+00:00\n")
    assert load(database, folder) == {"analytics_event": 1, "analytics_session": 0}
    row = database.query("SELECT referrer_source, is_404, created_at IS NOT NULL AS stored FROM analytics_event")[0]
    assert row == {"referrer_source": None, "is_404": False, "stored": True}


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ("id,colour\ne1,red\n", "analytics_event has no column colour"),
        ("", "it has no header line"),
        ("id,timestamp\ne1,yesterday-ish\n", "yesterday-ish"),
    ],
)
def test_loader_names_the_file_and_the_reason(database: Database, tmp_path: Path, events: str, sentence: str) -> None:
    with pytest.raises((ValueError, psycopg.Error), match=sentence):
        load(database, write(tmp_path, events))
    assert database.value("SELECT count(*) FROM analytics_event") == 0


def test_loader_names_a_missing_file(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"events\.csv\.gz is missing"):
        load(database, tmp_path)


def test_server_is_adopted_and_heals_after_a_kill(tmp_path: Path) -> None:
    server = embedded.start(tmp_path, "-c fsync=off")
    try:
        assert embedded.start(tmp_path) == server
        os.kill(int((server.data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        healed = embedded.start(tmp_path, "-c fsync=off")
        with psycopg.connect(healed.dsn()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        healed.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(healed.dsn(), connect_timeout=2)
    finally:
        embedded.start(tmp_path).stop("immediate")
        shutil.rmtree(server.home)
