"""Batches give way: they wait while the application waits for locks, or a standby lags."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import embedded
from aggregation_steps import Connection
from conftest import LOGIN, ROOT, SQL, Database
from operator_steps import execute_batches
from web_analytics import schema
from web_analytics.postgres import GUEST

FILE = "give_way.sql"
LOCK = "LOCK TABLE analytics_session IN ACCESS EXCLUSIVE MODE"


def reasons(database: Database, connection: Connection | None = None, standby_lag_mb: int = 100) -> list[str]:
    return [row["reason"] for row in database.run(FILE, connection, standby_lag_mb=standby_lag_mb)]


def wait_for_lock(database: Database, application_name: str, query: str) -> tuple[Connection, threading.Thread]:
    """Let a statement wait for a lock; return the connection that holds it, and the thread that ends after it."""
    holder = database.connect()
    holder.execute("BEGIN")
    holder.execute(LOCK)
    waiting = database.connect(application_name=application_name)
    thread = threading.Thread(target=waiting.execute, args=[query])
    thread.start()
    database.wait_until(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", waiting.info.backend_pid
    )
    return holder, thread


def test_batches_wait_for_as_long_as_the_application_waits_for_a_lock(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reasons(database) == []
    holder, thread = wait_for_lock(database, "shop", "SELECT count(*) FROM analytics_session")
    assert reasons(database) == ["1 statement(s) of the application wait for locks"]
    database.connection.execute("CREATE TABLE done (at timestamptz); GRANT ALL ON done TO analytics_jobs")

    def release() -> None:
        time.sleep(1.5)
        assert database.value("SELECT count(*) FROM done") == 0
        holder.execute("COMMIT")

    releases = threading.Thread(target=release)
    releases.start()
    guest = GUEST | {"give_way": (SQL / FILE).read_text()}
    sql = "WITH made AS (INSERT INTO done VALUES (now())) SELECT 1 AS result"
    assert execute_batches(sql, parameters={"steps": [{}, {}]}, **guest) == [1, 1]
    for ended in (thread, releases):
        ended.join()
    assert capsys.readouterr().out.count("Waiting: 1 statement(s) of the application wait for locks") == 1
    assert reasons(database) == []


def test_the_jobs_do_not_wait_for_each_other(database: Database) -> None:
    holder, thread = wait_for_lock(database, "airflow:dag.task", "SELECT count(*) FROM analytics_session")
    assert reasons(database) == []
    holder.execute("COMMIT")
    thread.join()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[tuple[Database, embedded.Server]]:
    """An installed database, and a standby of its server that has stopped replaying."""
    server = embedded.start(tmp_path / "primary", "-c fsync=off -c wal_level=replica")
    standby = embedded.Server(Path(f"{server.home}-standby"), server.programs, embedded.free_port())
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE analytics")
        standby.home.mkdir(mode=0o755)
        standby.log.touch()
        for path in (standby.home, standby.log) if os.geteuid() == 0 else ():
            shutil.chown(path, "nobody")
        address = ("-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres")
        standby._run("pg_basebackup", *address, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        standby._run("pg_ctl", "start", "-w", "-l", str(standby.log), "-o", f"-h 127.0.0.1 -p {standby.port} -k ''")
        database = Database(server.dsn("analytics"))
        database.wait_until("SELECT count(*) = 1 FROM pg_stat_replication WHERE replay_lsn IS NOT NULL")
        with psycopg.connect(standby.dsn(), autocommit=True) as admin:
            admin.execute("SELECT pg_wal_replay_pause()")
        yield database, server
    finally:
        for running in (standby, server):
            running.stop("immediate")
            shutil.rmtree(running.home, ignore_errors=True)


def test_batches_wait_while_a_standby_lags(primary: tuple[Database, embedded.Server]) -> None:
    database, server = primary
    database.connection.execute((ROOT / "dev" / "application.sql").read_bytes())
    schema.install(server.dsn("analytics"), "analytics,public")
    database.connection.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE analytics_jobs".encode())
    database.connection.execute(
        "CREATE TABLE big AS SELECT repeat(md5(n::text), 50) FROM generate_series(1, 5000) AS n"
    )
    [reason] = reasons(database, standby_lag_mb=1)
    assert reason.startswith("a standby lags by ")
    assert reasons(database, standby_lag_mb=1000) == []

    def look() -> Any:
        return database.query("SELECT standbys, unseen FROM analytics_standbys()")[0]

    assert look() == {"standbys": 1, "unseen": 0}
    # An owner who is not let look at standbys.
    database.connection.execute("CREATE ROLE owner; ALTER FUNCTION analytics_standbys OWNER TO owner")
    assert look() == {"standbys": 1, "unseen": 1}
    assert reasons(database, standby_lag_mb=1) == []
    database.close_connections()
