"""The archive: rows are in verified files before they go, and come back from there as they were."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import psycopg
import pytest
from airflow.sdk.exceptions import AirflowException

from aggregation_steps import aggregate_due
from conftest import Database
from dag_runs import run_dag
from retention_steps import CUTOFF, DAY, HOUR, Retention, ids, listed, policy
from web_analytics import archive, restore, session
from web_analytics.settings import settings

HARD = ["", "'quoted' \"twice\"", "line\nfeed\r\n,comma;", "naïve 🦊", "\\N", "NULL", "\\x41\ttab"]


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of the file system, or a bucket of a server that speaks the S3 protocol."""
    if request.param == "file":
        uri = f"file://{tmp_path}/archive"
        monkeypatch.setattr(settings, "archive_uri", uri)
        yield uri
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        bucket = f"bucket-{uuid.uuid4().hex}"
        boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=bucket)
        connection = (
            f"aws://key:secret@/?endpoint_url={endpoint.replace(':', '%3A').replace('/', '%2F')}&region_name=us-east-1"
        )
        name = f"store_{uuid.uuid4().hex}"
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
        uri = f"s3://{name}@{bucket}/archive"
        monkeypatch.setattr(settings, "archive_uri", uri)
        yield uri
    finally:
        server.stop()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the file system in which the archive is."""
    monkeypatch.setattr(settings, "archive_uri", f"file://{tmp_path}/archive")
    return tmp_path / "archive"


@pytest.fixture(autouse=True)
def _connection(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's connection sees the clock of the tests."""
    uri = os.environ["AIRFLOW_CONN_ANALYTICS_DB"]
    monkeypatch.setenv(
        "AIRFLOW_CONN_ANALYTICS_DB", uri.replace("analytics,public", "clock,analytics,public,pg_catalog")
    )


def write(kind: str = "event", last_try: bool = True) -> list[str]:
    """Run the task that archives; return what it says of files that failed."""
    task, context = prepare_archive(kind)
    context["ti"].try_number, context["ti"].max_tries = (5, 4) if last_try else (1, 4)
    problems: list[str] = task.execute(context)
    return problems


def prepare_archive(kind: str) -> tuple[archive.ArchiveOperator, Any]:
    task = archive.ArchiveOperator(task_id="task", kind=kind)
    ti = SimpleNamespace(dag_id="dag", task_id="task", task=task, map_index=-1)
    context: Any = {"ti": ti, "params": {}}
    task.render_template_fields(context)
    return task, context


def texts(database: Database, table: str = "analytics_event", where: str = "TRUE") -> list[str]:
    """The whole of each row, as text under the settings of the jobs."""
    with database.connect() as connection:
        session.apply(connection, session.SETTINGS)
        rows = connection.execute(f"SELECT row::text AS text FROM {table} AS row WHERE {where} ORDER BY 1".encode())
        return [row["text"] for row in rows]


def brought_back(database: Database, *options: str, into: str = "back", website: str = "site") -> int:
    """Run the command; return its exit code."""
    return restore.main([database.dsn, "--website", website, "--into", into, *options])


def hard_events(database: Database) -> None:
    """Events of one day with values that are easily lost."""
    database.connection.execute(
        """
        CREATE TYPE mood AS ENUM ('good', 'bad');
        ALTER TABLE analytics_event
            ADD COLUMN price numeric, ADD COLUMN moods mood[], ADD COLUMN raw bytea, ADD COLUMN shown boolean,
            ADD COLUMN amount bigint, ADD COLUMN seen_at timestamptz, ADD COLUMN gone text;
        ALTER TABLE analytics_event DROP COLUMN gone
        """
    )
    for number, text in enumerate(HARD):
        database.event(
            CUTOFF - DAY + number * HOUR + (HOUR / 7),
            pathname=text,
            referrer=text,
            metadata=None if number == 3 else psycopg.types.json.Jsonb({"text": text, "deep": [1.50, None]}),
            price=[None, "1.500", "-0.000001", "NaN", "123456789012345678901234567890"][number % 5],
            moods=["good", None, "bad"] if number % 2 else None,
            raw=text.encode() if number else None,
            shown=[True, False, None][number % 3],
            amount=[9223372036854775807, -1, None][number % 3],
            seen_at=[
                "infinity",
                "-infinity",
                "0044-03-15 12:00 BC",
                "290000-01-01 00:00:00.000001",
                "2024-01-01 00:00:00.000001+00",
            ][number % 5],
        )
    database.event(CUTOFF - DAY, id="soft-deleted", deleted_at=CUTOFF)


def test_rows_come_back_byte_for_byte(database: Database, run: Retention, store: str) -> None:
    hard_events(database)
    database.event(CUTOFF - DAY, website_id="../..//other\n\\", id="other")
    before, other = (texts(database, where=f"website_id {sign} 'site'") for sign in ("=", "<>"))
    run.aggregate(run.seal())
    run.seal(batch_size=3)
    assert write() == []
    assert sum(run.delete(run.plan())) == len(HARD) + 2
    assert ids(database) == set()
    stats = database.query("SELECT * FROM analytics_daily_stats ORDER BY website_id")
    assert brought_back(database) == 0
    assert texts(database, "back") == before
    assert brought_back(database) == 0
    assert texts(database, "back") == before
    assert brought_back(database, website="../..//other\n\\", into="public.others") == 0
    assert texts(database, "others") == other
    assert database.query("SELECT * FROM analytics_daily_stats ORDER BY website_id") == stats
    files = database.query("SELECT * FROM analytics_archive_file WHERE website_id = 'site'")
    assert [(str(row["date"]), row["rows"]) for row in files] == [("2024-02-29", len(HARD) + 1)]


def test_sessions_come_back_as_well(database: Database, run: Retention, store: str) -> None:
    database.session(CUTOFF - DAY, CUTOFF - HOUR, entry_page="/ä\n")
    database.session(CUTOFF - DAY, CUTOFF - HOUR)
    database.connection.execute("UPDATE analytics_session SET last_activity_at = '-infinity' WHERE entry_page <> '/'")
    before = texts(database, "analytics_session")
    assert run.list_sessions() == 2
    assert write("session") == []
    assert run.delete(run.plan("session"), "session") == [2]
    assert brought_back(database, "--kind", "session") == 0
    assert texts(database, "back") == before


def test_duckdb_reads_the_files(database: Database, run: Retention, folder: Path) -> None:
    for website in ("site", "shop"):
        database.event(CUTOFF - DAY, website_id=website, pathname="/a")
    run.aggregate(run.seal())
    run.seal()
    write()
    query = f"SELECT website_id, pathname, timestamp FROM read_parquet('{folder}/event/*/*/*.parquet') ORDER BY 1"
    rows = duckdb.execute(query.replace("timestamp", "timestamp AT TIME ZONE 'UTC'")).fetchall()
    assert [(site, path, moment) for site, path, moment in rows] == [
        (site, "/a", (CUTOFF - DAY).replace(tzinfo=None)) for site in ("shop", "site")
    ]


class TestBetweenFileAndDeletion:
    @pytest.fixture(autouse=True)
    def _listed(self, database: Database, run: Retention, folder: Path) -> None:
        for number in range(4):
            database.event(CUTOFF - DAY + number * HOUR, id=f"event {number}")
        run.aggregate(run.seal())
        run.seal()

    def test_what_is_in_no_file_stays(self, database: Database, run: Retention) -> None:
        write()
        database.connection.execute("UPDATE analytics_purge_batch SET archived[2] = NULL")
        assert run.delete(run.plan()) == [3]
        assert "; 1 stay on the list: they are not in the archive, or were changed since they are" in run.log
        assert (run.left, len(ids(database)), listed(database)) == (0, 1, {"event": 1})
        assert write() == []
        assert run.delete(run.plan()) == [1]

    def test_what_is_edited_goes_once_its_new_state_is_in_a_file(self, database: Database, run: Retention) -> None:
        write()
        database.connection.execute("UPDATE analytics_event SET country = 'NZ' WHERE id = 'event 1'")
        assert run.delete(run.plan()) == [3]
        assert ids(database) == {"event 1"}
        assert run.delete(run.plan()) == [0]  # again without a new file
        assert write() == []
        assert run.delete(run.plan()) == [1]
        assert brought_back(database) == 0
        assert database.query("SELECT id, country FROM back ORDER BY id")[1] == {"id": "event 1", "country": "NZ"}
        assert len(texts(database, "back")) == 4

    def test_what_somebody_else_deletes_is_no_problem(self, database: Database, run: Retention) -> None:
        write()
        database.connection.execute("DELETE FROM analytics_event WHERE id = 'event 1'")
        assert run.delete(run.plan()) == [3]
        assert listed(database) == {}

    def test_late_events_get_a_file_of_their_own(self, database: Database, run: Retention) -> None:
        write()
        run.delete(run.plan())
        database.event(CUTOFF - DAY, id="late")
        run.seal()
        write()
        assert run.delete(run.plan()) == [1]
        assert brought_back(database, "--from", "2024-02-29", "--to", "2024-02-29") == 0
        assert len(texts(database, "back")) == 5

    def test_a_hold_keeps_what_is_archived_and_the_files_are_not_written_again(
        self, database: Database, run: Retention
    ) -> None:
        write()
        policy(database, "legal_hold = TRUE")
        assert run.delete(run.plan()) == [0]
        policy(database, "legal_hold = FALSE")
        assert write() == []
        assert database.value("SELECT count(*) FROM analytics_archive_file") == 1
        assert run.delete(run.plan()) == [4]

    def test_without_the_setting_what_was_listed_for_the_archive_goes(
        self, database: Database, run: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.connection.execute("UPDATE analytics_purge_batch SET archived = array_fill(NULL::bigint, ARRAY[rows])")
        assert run.delete(run.plan()) == [0]
        monkeypatch.setattr(settings, "archive_uri", None)
        assert write() == []
        assert run.delete(run.plan()) == [4]


class TestBrokenFiles:
    @pytest.fixture(autouse=True)
    def _listed(self, database: Database, run: Retention, folder: Path) -> None:
        for website in ("good", "bad"):
            database.event(CUTOFF - DAY, website_id=website, id=website)
        run.aggregate(run.seal())
        run.seal()

    def test_a_file_that_is_not_right_keeps_its_day_and_no_other(
        self, database: Database, run: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = archive.read_back

        def damaged(connection: Any, table: Any, uri: str) -> tuple[int, int]:
            path = Path(uri.removeprefix("file://"))
            if "bad" in uri:
                path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
            return whole(connection, table, uri)

        monkeypatch.setattr(archive, "read_back", damaged)
        with pytest.raises(AirflowException, match=r"1 file.* such as bad 2024-02-29 "):
            write(last_try=False)
        [problem] = write()
        assert problem.startswith("bad 2024-02-29 (file://")
        assert run.delete(run.plan()) == [1]
        assert ids(database) == {"bad"}
        monkeypatch.setattr(archive, "read_back", whole)
        assert write() == []
        assert run.delete(run.plan()) == [1]

    def test_a_file_with_another_value_is_found(
        self, database: Database, run: Retention, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append = archive.Archive.append

        def other(file: Any, rows: Any, schema: Any) -> None:
            append(file, rows, schema)
            file.content_hash ^= file.website_id == "bad"

        monkeypatch.setattr(archive.Archive, "append", staticmethod(other))
        [problem] = write()
        assert "it was read back with 1 row(s) of 1, or with other values" in problem
        assert run.delete(run.plan()) == [1]
        assert ids(database) == {"bad"}

    def test_a_store_that_cannot_be_written_keeps_everything(
        self, database: Database, run: Retention, folder: Path
    ) -> None:
        folder.write_text("a file where the folder should be")
        assert len(write()) == 2
        assert run.delete(run.plan()) == [0]
        assert ids(database) == {"good", "bad"}

    def test_what_a_killed_task_left_behind_is_removed(
        self, database: Database, run: Retention, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(archive.Archive, "verify", killed)
            with pytest.raises(KeyboardInterrupt):
                write()
        assert len(list(folder.rglob("*.parquet"))) == 2
        assert run.delete(run.plan()) == [0]
        assert write() == []
        assert len(list(folder.rglob("*.parquet"))) == 2
        assert run.delete(run.plan()) == [2]

    def test_restore_says_what_is_wrong_and_changes_nothing(
        self, database: Database, run: Retention, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write()
        [file] = (folder / "event" / "website=bad").rglob("*.parquet")
        content = file.read_bytes()
        file.write_bytes(content[:50])
        for options, reason in (
            ({"website": "bad"}, f"of 2024-02-29, file://{file}, cannot be read: "),
            ({"website": "none"}, "the archive has no events of website none"),
            ({"website": "good", "into": "analytics_event"}, "is the application's own table, where the jobs would"),
        ):
            assert brought_back(database, **options) == 1
            assert reason in capsys.readouterr().err
            assert database.value("SELECT to_regclass('back') IS NULL")
        file.unlink()
        assert brought_back(database, website="bad") == 1


@pytest.mark.usefixtures("airflow_metadata")
def test_a_whole_run_archives_what_it_deletes(
    database: Database, now: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.event(now - 100 * DAY, session_id="old")
    database.session(now - 100 * DAY, now - 100 * DAY, session_id="old")
    database.event(now)
    run = run_dag("archive_old_analytics", capsys)
    assert run.state == "success"
    assert "✅ Wrote and verified 1 file(s) of 1 event(s)" in run.log
    assert "✅ Wrote and verified 1 file(s) of 1 session(s)" in run.log
    assert len(ids(database)) == 1
    assert len(list(folder.rglob("*.parquet"))) == 2


@pytest.mark.usefixtures("airflow_metadata")
def test_a_run_whose_files_fail_fails_and_says_why(
    database: Database, now: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.event(now - 100 * DAY)
    folder.write_text("a file where the folder should be")
    run = run_dag("archive_old_analytics", capsys)
    assert run.state == "failed"
    assert run.tasks["archive_events"] == ["success"]
    assert run.tasks["report_result"] == ["failed"]
    assert "1 file(s) of the archive could not be written and verified, and their rows were kept: site " in run.log
    assert len(ids(database)) == 1


def test_a_dry_run_writes_no_file(database: Database, run: Retention, folder: Path) -> None:
    database.event(CUTOFF - DAY)
    aggregate_due(database, run.connection)
    run.seal(dry_run=True)
    assert write() == []
    # Nor of what an earlier run has left on the list.
    run.seal()
    task, context = prepare_archive("event")
    assert task.execute(context | {"params": {"dry_run": True}}) == []
    assert not folder.exists()
