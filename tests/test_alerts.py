"""A failed run tells somebody: a real SMTP server and an HTTP server in Slack's place receive what Airflow sends."""

import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.message import EmailMessage
from types import SimpleNamespace
from typing import Any

import pytest

from aggregation_steps import aggregate
from conftest import Database
from dag_runs import run_dag
from embedded import free_port
from sinks import ADDRESS, SECRET, mail_server, slack_server, text_of
from web_analytics import alerts
from web_analytics.alerts import describe
from web_analytics.settings import settings

pytestmark = pytest.mark.usefixtures("airflow_metadata")


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EmailMessage]]:
    """The mails sent through the connection smtp_default."""
    with mail_server() as (mails, connection):
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", connection)
        monkeypatch.setattr(settings, "alert_email", ADDRESS)
        yield mails


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The messages sent through the connection slack_default."""
    with slack_server() as (messages, connection):
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", connection)
        yield messages


def break_batches(database: Database, midnight: datetime) -> None:
    """Let every batch of a retention run fail: three expired events, none of which can be deleted."""
    for hour in (3, 2, 1):
        database.event(midnight - timedelta(hours=hour))
    aggregate(database, (midnight - timedelta(days=1)).date())
    database.connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON analytics_event EXECUTE FUNCTION refuse()"
    )


def test_one_message_per_channel_for_a_run_with_many_failed_batches(
    database: Database,
    midnight: datetime,
    mails: list[EmailMessage],
    slack: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_batches(database, midnight)
    run = run_dag("archive_old_analytics", capsys, conf={"batch_size": 1})
    assert run.tasks["delete_event_batch"] == ["failed"] * 3
    assert run.state == "failed"

    [mail] = mails
    assert mail["Subject"] == "[Analytics] archive_old_analytics failed"
    assert (mail["From"], mail["To"]) == ("airflow@example.org", ADDRESS)
    [message] = slack
    for channel in (text_of(mail), message["text"]):
        assert "of the job archive_old_analytics failed.\n" in channel
        assert "What happened: what its tasks say could not be read; see their logs." in channel
        assert "What was done: what its finished tasks did. It stays done" in channel
        assert "/dags/archive_old_analytics/runs/manual__" in channel
    assert SECRET not in run.log


def test_no_message_for_a_run_that_succeeds(
    database: Database, mails: list[EmailMessage], slack: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_dag("cleanup_analytics_sessions", capsys).state == "success"
    assert not mails
    assert not slack


def test_quietly_off_without_connections(
    database: Database, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    database.connection.execute("DROP TABLE analytics_daily_stats CASCADE")
    run = run_dag("cleanup_analytics_sessions", capsys)
    assert run.state == "failed"
    assert "No message through slack_default: the connection is not defined" in caplog.text
    assert "could not be sent" not in caplog.text


def test_a_channel_that_is_down_says_so_and_does_not_keep_the_other_from_being_told(
    database: Database,
    slack: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": free_port(), "extra": {"disable_ssl": True}}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    monkeypatch.setattr(settings, "alert_email", ADDRESS)
    database.connection.execute("DROP TABLE analytics_daily_stats CASCADE")
    run = run_dag("cleanup_analytics_sessions", capsys)
    assert run.state == "failed"
    assert "The message through connection smtp_default could not be sent" in caplog.text
    assert len(slack) == 1


def test_a_channel_that_accepts_and_hangs_does_not_keep_the_other_from_being_told(
    slack: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": hanging.getsockname()[1]}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection | {"extra": {"disable_ssl": True}}))
        monkeypatch.setattr(settings, "alert_email", ADDRESS)
        assert alerts.CHANNEL_SECONDS * 2 < 50, "what Airflow gives to all of a callback"
        monkeypatch.setattr(alerts, "CHANNEL_SECONDS", 1)
        started = time.monotonic()
        assert alerts.send("subject", "text")
    assert time.monotonic() - started < 5
    assert [message["text"] for message in slack] == ["*subject*\ntext"]
    assert "The message through connection smtp_default could not be sent" in caplog.text


def test_names_call_nobody_and_are_no_links_in_slack_and_mail(
    mails: list[EmailMessage], slack: list[dict[str, Any]]
) -> None:
    text = "Website <!channel>: <https://evil.example|Airflow> & <b>bold</b> has no daily stats"
    assert alerts.send("[Analytics] <!here>", text)
    [message] = slack
    assert message["text"] == (
        "*[Analytics] &lt;!here&gt;*\n"
        "Website &lt;!channel&gt;: &lt;https://evil.example|Airflow&gt; &amp; &lt;b&gt;bold&lt;/b&gt; has no daily stats"
    )
    [mail] = mails
    assert "&lt;https://evil.example|Airflow&gt; &amp; &lt;b&gt;" in mail.get_body().get_content()  # type: ignore[union-attr]
    assert text_of(mail).strip() == text


def test_a_run_that_timed_out_is_not_blamed_on_the_task_that_had_not_finished() -> None:
    ti = SimpleNamespace(task_id="delete_event_batch", map_index=3, log_url="http://airflow/log")
    dag = SimpleNamespace(dag_id="archive", dagrun_timeout=timedelta(hours=24))
    context = {"dag": dag, "run_id": "manual__1", "ti": ti, "reason": "timed_out"}
    _, text = describe(context)
    assert "What happened: It hit its time limit (1 day, 0:00:00) before all its tasks had ended." in text
    assert "delete_event_batch" not in text
    assert "/dags/archive/runs/manual__1" in text


def test_a_database_that_is_down_reads_as_a_sentence() -> None:
    said = "connection refused (no connection)."
    states = {"check_database": "failed", "find": "upstream_failed", "close_run": "failed"}
    ti = SimpleNamespace(
        get_task_states=lambda dag_id, run_ids: {run_ids[0]: states},
        xcom_pull=lambda task_ids, **_: said if task_ids == "check_database" else None,
    )
    tasks = [SimpleNamespace(task_id=name) for name in states]
    dag = SimpleNamespace(dag_id="cleanup", topological_sort=lambda: tasks)
    subject, text = describe({"dag": dag, "run_id": "manual__1+00", "ti": ti, "reason": "task_failure"})
    assert subject == "[Analytics] cleanup failed"
    assert text.splitlines() == [
        "The run manual__1+00 of the job cleanup failed.",
        f"What happened: check_database: {said}",
        "Nothing was done.",
        "What to do: mend the cause; then clear the failed tasks, or start a new run, which does what is left.",
        text.splitlines()[-1],
    ]
    assert text.endswith("/dags/cleanup/runs/manual__1%2B00/tasks/check_database")
