"""Tells people: one message per failed run, and one about each alert, by mail and Slack, where they are set up."""

import logging
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook, conf
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout

from web_analytics.postgres import NO_CONNECTION
from web_analytics.runs import RunTasks
from web_analytics.settings import settings

log = logging.getLogger(__name__)

SMTP_CONNECTION_ID = "smtp_default"
SLACK_CONNECTION_ID = "slack_default"

CHANNEL_SECONDS = 15
"""Seconds that one channel may take: Airflow ends a callback after 50 (``[dag_processor] dag_file_processor_timeout``)."""


def notify_failure(context: Any) -> None:
    """Send one message about a failed DAG run to every channel whose connection is there, but not again on the same day
    (UTC) of a job that keeps failing in the same way: a database that is down fails it every ten minutes.

    A DAG-level callback, because a task-level one is not called for a task whose process was killed, and is called
    for every mapped batch.

    :param context: what Airflow gives to ``on_failure_callback`` of a DAG.
    """
    if _is_repeated(context):
        log.info("No message about %s: the run before failed in the same way on the same day", context["run_id"])
    else:
        send(*describe(context))


def _is_repeated(context: Any) -> bool:
    ti, this = context.get("ti"), context.get("dag_run")
    try:
        before = ti.get_previous_dagrun()
        if before is None or before.state != "failed" or before.logical_date.date() != this.logical_date.date():
            return False
        problems = [" ".join(RunTasks(ti, run.dag_id, run.run_id).problems) for run in (before, this)]
    except Exception:
        log.exception("Whether the run before failed in the same way cannot be found out")
        return False
    # A connection fails in other words when it is lost, refused and not answered.
    return problems[0] == problems[1] or all(f"({NO_CONNECTION})" in problem for problem in problems)


def describe(context: Any) -> tuple[str, str]:
    """Return the subject and the text of the message about a failed run."""
    dag, run_id, ti = context["dag"], context["run_id"], context.get("ti")
    url = f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag.dag_id}/runs/{quote(run_id)}"
    what = "what its tasks say could not be read; see their logs."
    done = "what its finished tasks did"
    try:
        tasks = RunTasks(ti, dag.dag_id, run_id, [task.task_id for task in dag.topological_sort()])
        what = " ".join(tasks.problems) or "the closing of the run failed; its log says why."
        done = ", ".join(name for _, name in tasks.named("success"))
        if failed := tasks.failed:
            task_id, index = failed
            url += f"/tasks/{task_id}" + (f"/mapped/{index}" if index >= 0 else "")
    except Exception:
        log.exception("What the tasks of run %s did cannot be read", run_id)
    if context["reason"] == "timed_out":
        what = f"It hit its time limit ({dag.dagrun_timeout}) before all its tasks had ended."
    text = (
        f"The run {run_id} of the job {dag.dag_id} failed.\n"
        f"What happened: {what}\n"
        + (
            f"What was done: {done}. It stays done, and nothing was done by halves.\n"
            if done
            else "Nothing was done.\n"
        )
        + "What to do: mend the cause; then clear the failed tasks, or start a new run, which does what is left.\n"
        f"Log: {url}"
    )
    return f"[Analytics] {dag.dag_id} failed", text


def send(subject: str, text: str) -> bool:
    """Send a message to every channel that is set up; return False if one was there and none could be reached."""
    sent = [
        _send(SMTP_CONNECTION_ID, _mail, subject, text, enabled=bool(settings.alert_email)),
        _send(SLACK_CONNECTION_ID, _slack, subject, text),
    ]
    return any(sent) or False not in sent


def _send(
    connection_id: str, channel: Callable[..., None], subject: str, text: str, enabled: bool = True
) -> bool | None:
    """Whether the message was sent; None if the channel is not set up."""
    try:
        if enabled:
            BaseHook.get_connection(connection_id)
            with timeout(CHANNEL_SECONDS):  # type: ignore[no-untyped-call]
                channel(subject, text)
            log.info("Message sent through connection %s: %s", connection_id, subject)
            return True
    except AirflowNotFoundException:
        log.info("No message through %s: the connection is not defined", connection_id)
    except (Exception, AirflowTaskTimeout):
        # One channel that is down, or does not answer, must not keep the other one from being told.
        log.exception("The message through connection %s could not be sent", connection_id)
        return False
    return None


def _mail(subject: str, text: str) -> None:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    with SmtpHook(smtp_conn_id=SMTP_CONNECTION_ID) as smtp:
        smtp.send_email_smtp(
            to=str(settings.alert_email), subject=subject, html_content=escape(text).replace("\n", "<br>")
        )


def _slack(subject: str, text: str) -> None:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    # Else a name such as <!channel> would call everybody: these three are what Slack wants escaped.
    message = escape(f"*{subject}*\n{text}", quote=False)
    SlackWebhookHook(slack_webhook_conn_id=SLACK_CONNECTION_ID).send(text=message)
