"""Tells somebody when a DAG run has failed: one message per run, by mail and Slack, where they are set up."""

import logging
from collections.abc import Callable
from html import escape
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook, conf
from airflow.sdk.exceptions import AirflowNotFoundException

from web_analytics.settings import settings

log = logging.getLogger(__name__)

SMTP_CONNECTION_ID = "smtp_default"
SLACK_CONNECTION_ID = "slack_default"


def notify_failure(context: Any) -> None:
    """Send one message about a failed DAG run to every channel whose connection is there.

    A DAG-level callback, because a task-level one is not called for a task whose process was killed, and is called
    for every mapped batch.

    :param context: what Airflow gives to ``on_failure_callback`` of a DAG.
    """
    subject, text = describe(context)
    _send(SMTP_CONNECTION_ID, _mail, subject, text, enabled=bool(settings.alert_email))
    _send(SLACK_CONNECTION_ID, _slack, subject, text)


def describe(context: Any) -> tuple[str, str]:
    """Return the subject and the text of the message about a failed run."""
    dag_id, run_id, ti = context["dag"].dag_id, context["run_id"], context.get("ti")
    # For other reasons than a failed task, such as a time-out, ti is a task that had not finished.
    if ti and context["reason"] == "task_failure":
        batch = f" (map index {ti.map_index})" if ti.map_index >= 0 else ""
        what, url = f"its task {ti.task_id}{batch} failed", ti.log_url
    else:
        what = f"{context['reason']}, with tasks that had not finished"
        url = f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag_id}/runs/{quote(run_id)}"
    text = (
        f"The run {run_id} of the job {dag_id} failed: {what}.\n"
        "What its finished tasks did stays done, and nothing was done by halves.\n"
        "Read the log and mend the cause; then clear the failed tasks, or start a new run, which does what is left:\n"
        f"{url}"
    )
    return f"[Analytics] {dag_id} failed", text


def _send(connection_id: str, send: Callable[..., None], subject: str, text: str, enabled: bool = True) -> None:
    try:
        if enabled:
            BaseHook.get_connection(connection_id)
            send(subject, text)
            log.info("Alert sent through connection %s", connection_id)
    except AirflowNotFoundException:
        log.info("No alert through %s: the connection is not defined", connection_id)
    except Exception:
        # One channel that is down must not keep the other one from being told.
        log.exception("The alert through connection %s could not be sent", connection_id)


def _mail(subject: str, text: str) -> None:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    with SmtpHook(smtp_conn_id=SMTP_CONNECTION_ID) as smtp:
        smtp.send_email_smtp(
            to=str(settings.alert_email), subject=subject, html_content=escape(text).replace("\n", "<br>")
        )


def _slack(subject: str, text: str) -> None:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    SlackWebhookHook(slack_webhook_conn_id=SLACK_CONNECTION_ID).send(text=f"*{subject}*\n{text}")
