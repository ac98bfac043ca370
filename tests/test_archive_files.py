"""The archive: rows are in verified files before they go, and come back from there as they were."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import psycopg
import pyarrow
import pyarrow.parquet
import pytest
from airflow.sdk.exceptions import AirflowException

from aggregation_steps import aggregate_due
from conftest import BACKGROUND, Database
from dag_runs import run_dag
from retention_steps import CUTOFF, DAY, HOUR, Retention, ids, listed, policy
from web_analytics import archive, restore, session
from web_analytics.settings import settings

HARD = ["\\.\n\\.", "\\.", "", "'quoted' \"twice\"", "line\nfeed\r\n,comma;", "naïve 🦊", "\\N", "NULL", "\\x41\ttab"]


def rewrite(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """A damage that leaves a Parquet file with other rows."""

    def damage(file: Path) -> None:
        # Not what the folders are called: that looks like columns.
        pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(file, partitioning=None)), file)

    return damage


def other_path(rows: Any) -> Any:
    """Rows that have another path."""
    index = rows.schema.get_field_index("pathname")
    return rows.set_column(index, rows.schema.field(index), [["/other"] * rows.num_rows])


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "it is gone": Path.unlink,
    "it is empty": lambda file: file.write_bytes(b""),
    "its end is missing": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "it has other bytes": lambda file: file.write_bytes(file.read_bytes()[:4] + b"x" * 200 + file.read_bytes()[204:]),
    "it has another value": rewrite(other_path),
    "it has a row less": rewrite(lambda rows: rows.slice(1)),
    "it has a row twice": rewrite(lambda rows: pyarrow.concat_tables([rows, rows])),
    "it lacks a column": rewrite(lambda rows: rows.drop_columns(["country"])),
}


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

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
    def test_a_file_that_is_not_right_keeps_its_day_and_no_other(
        self, database: Database, run: Retention, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any]
    ) -> None:
        verify = archive.Archive.verify

        def damaged(self: archive.Archive, files: Sequence[archive.File]) -> None:
            for file in files:
                if file.website_id == "bad":
                    damage(Path(file.uri.removeprefix("file://")))
            verify(self, files)

        with monkeypatch.context() as patch:
            patch.setattr(archive.Archive, "verify", damaged)
            with pytest.raises(AirflowException, match=r"1 file.* such as bad 2024-02-29 "):
                write(last_try=False)
            [problem] = write()
        assert problem.startswith("bad 2024-02-29 (file://")
        assert run.delete(run.plan()) == [1]
        assert ids(database) == {"bad"}
        assert write() == []
        assert run.delete(run.plan()) == [1]

    def test_restore_refuses_a_file_that_was_changed_since(
        self, database: Database, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write()
        [file] = (folder / "event" / "website=bad").rglob("*.parquet")
        content = file.read_bytes()
        for damage in DAMAGES.values():
            file.write_bytes(content)
            damage(file)
            assert brought_back(database, website="bad") == 1
            assert f"Nothing was restored: file 1 of 2024-02-29, file://{file}, " in capsys.readouterr().err
            assert database.value("SELECT to_regclass('back') IS NULL")
        file.write_bytes(content)
        assert brought_back(database, website="bad") == 0

    def test_a_store_that_cannot_be_written_keeps_everything(
        self, database: Database, run: Retention, folder: Path
    ) -> None:
        folder.write_text("a file where the folder should be")
        for _ in range(2):
            assert len(write()) == 2
            assert run.delete(run.plan()) == [0]
        assert ids(database) == {"good", "bad"}
        folder.unlink()
        assert write() == []
        assert run.delete(run.plan()) == [2]
        assert database.value("SELECT count(*) FROM analytics_archive_file WHERE verified_at IS NULL") == 0

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

    def test_restore_says_what_is_wrong(self, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        write()
        database.connection.execute("CREATE TABLE of_mine (id text, mine text NOT NULL)")
        for options, reason in (
            ({"website": "none"}, "the archive has no events of website none in these days"),
            ({"into": "analytics_event"}, "is the application's own table, where the jobs would"),
            ({"into": "public.analytics_session"}, "is the application's own table, where the jobs would"),
            ({"into": "of_mine"}, 'column "website_id" of relation "of_mine" does not exist'),
            ({"into": "nowhere.back"}, 'schema "nowhere" does not exist'),
        ):
            assert brought_back(database, **{"website": "good", "into": "back"} | options) == 1
            assert reason in capsys.readouterr().err
        assert database.value("SELECT to_regclass('back') IS NULL")

    def test_a_partition_of_the_application_is_its_own_table(
        self, database: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write()
        database.connection.execute(
            "ALTER TABLE analytics_event RENAME TO old_event;"
            "CREATE TABLE analytics_event (LIKE old_event) PARTITION BY RANGE (timestamp);"
            "CREATE TABLE event_part PARTITION OF analytics_event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')"
        )
        assert brought_back(database, website="good", into="event_part") == 1
        assert "event_part is the application's own table" in capsys.readouterr().err
        assert texts(database) == []


def test_columns_that_the_table_got_or_lost_since_then(database: Database, run: Retention, folder: Path) -> None:
    database.connection.execute(
        "ALTER TABLE analytics_event ADD COLUMN score numeric(6, 2), ADD COLUMN code character(4)"
    )
    database.event(CUTOFF - DAY, id="before", score="1.50", code="ab")
    run.aggregate(run.seal())
    run.seal()
    assert write() == []
    run.delete(run.plan())
    database.connection.execute(
        "ALTER TABLE analytics_event DROP COLUMN score, DROP COLUMN utm_term, ADD COLUMN plan text NOT NULL DEFAULT 'free'"
    )
    database.event(CUTOFF - DAY, id="after", plan="paid")
    run.seal()
    assert write() == []
    assert run.delete(run.plan()) == [1]
    assert brought_back(database) == 0
    query = "SELECT id, score::text, octet_length(code) AS length, utm_term, plan FROM back ORDER BY id"
    assert [tuple(row.values()) for row in database.query(query)] == [
        ("after", None, None, None, "paid"),
        ("before", "1.50", 4, None, "free"),
    ]


def test_what_a_file_says_of_types_is_not_believed(
    database: Database, run: Retention, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.event(CUTOFF - DAY)
    run.aggregate(run.seal())
    run.seal()
    write()
    [file] = folder.rglob("*.parquet")
    whole = pyarrow.parquet.read_table(file, partitioning=None)
    for type_name in ("text); DROP TABLE analytics_website_policy; --", "text --", "text /* */", "no_such_type", ""):
        column = pyarrow.field("country", pyarrow.string(), metadata={archive.TYPE: type_name.encode()})
        schema = whole.schema.set(whole.schema.get_field_index("country"), column)
        pyarrow.parquet.write_table(whole.cast(schema), file)
        assert brought_back(database) == 1
        assert "cannot be read: " in capsys.readouterr().err
    assert database.value("SELECT to_regclass('analytics_website_policy') IS NOT NULL")


def test_rows_that_are_larger_than_a_block(
    database: Database, run: Retention, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "BLOCKS", (1 << 16, 1 << 18, 1 << 22))
    for number in range(30):
        document = psycopg.types.json.Jsonb({"text": uuid.uuid4().hex * (60_000 if number == 17 else 100)})
        database.event(CUTOFF - DAY + number * HOUR / 2, metadata=document)
    before = texts(database)
    run.aggregate(run.seal())
    run.seal()
    assert write() == []
    assert run.delete(run.plan()) == [30]
    assert brought_back(database) == 0
    assert texts(database, "back") == before
    assert len(list(folder.rglob("*.parquet"))) == 1


def test_times_before_every_calendar_and_websites_of_any_length(
    database: Database, run: Retention, folder: Path
) -> None:
    long = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(5000))
    moved = "UPDATE analytics_session SET last_activity_at = %s WHERE id = %s"
    for number, moment in enumerate(("4714-11-24 00:00 BC", "4713-01-01 BC", "0001-01-01 BC", "-infinity")):
        database.session(CUTOFF, CUTOFF, id=str(number), website_id=long, deleted_at=CUTOFF)
        database.connection.execute(moved, [moment, str(number)])
    before = texts(database, "analytics_session")
    run.list_sessions()
    assert write("session") == []
    assert run.delete(run.plan("session"), "session") == [4]
    assert brought_back(database, "--kind", "session", website=long) == 0
    assert texts(database, "back") == before


def test_what_is_listed_while_there_is_an_archive_waits_for_its_file(
    database: Database, run: Retention, folder: Path
) -> None:
    # As by another run, between the files and the deletion of this one.
    database.event(CUTOFF - DAY)
    database.session(CUTOFF - DAY, CUTOFF - DAY)
    run.aggregate(run.seal())
    run.seal(has_archive=True)
    assert run.delete(run.plan()) == [0]
    assert len(ids(database)) == 1
    assert write() == []
    assert run.delete(run.plan()) == [1]
    assert run.list_sessions(has_archive=True) == 1
    assert run.delete(run.plan("session"), "session") == [0]
    assert run.list_sessions(has_archive=True) == 1
    assert write("session") == []
    assert run.delete(run.plan("session"), "session") == [1]


def test_two_at_the_same_moment_write_each_row_once(database: Database, run: Retention, folder: Path) -> None:
    for number in range(20):
        database.event(CUTOFF - number * DAY - HOUR, id=f"event {number}")
    run.aggregate(run.seal())
    run.seal(batch_size=3)
    both = [BACKGROUND.submit(write) for _ in range(2)]
    assert [each.result() for each in both] == [[], []]
    assert database.value("SELECT sum(rows)::int FROM analytics_archive_file WHERE verified_at IS NOT NULL") == 20
    assert len(list(folder.rglob("*.parquet"))) == database.value("SELECT count(*) FROM analytics_archive_file") == 20
    assert sum(run.delete(run.plan())) == 20


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
