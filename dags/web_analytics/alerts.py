"""Tells people: one message per failed run, and one about each alert, by mail and Slack, where they are set up."""

import logging
import re
from collections import Counter
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
    send(*describe(context))


def notify_late(context: Any = None, **_: Any) -> None:
    """Send one message about a run that has not ended within its deadline; it may still end well.

    :param context: what Airflow gives to the callback of a ``DeadlineAlert``.
    """
    run = (context or {}).get("dag_run") or {}
    dag_id, run_id = run.get("dag_id", "a job"), run.get("dag_run_id", "")
    send(
        f"[Analytics] {dag_id} takes long",
        f"The run {run_id} of the job {dag_id} has not ended within its deadline, and goes on.\n"
        "Look whether the scheduler is up, whether the pool analytics_archive exists, and what its tasks wait for:\n"
        f"{_run_url(dag_id, run_id)}",
    )


def describe(context: Any) -> tuple[str, str]:
    """Return the subject and the text of the message about a failed run."""
    dag, run_id, ti = context["dag"], context["run_id"], context.get("ti")
    try:
        said, finished = failures(ti, dag, run_id), done(ti, dag, run_id)
    except Exception:
        log.exception("What the tasks of run %s did cannot be read", run_id)
        said, finished = [], "what its finished tasks did"
    if ti and context["reason"] == "task_failure":
        what, url = " ".join(said) or f"{ti.task_id} failed.", ti.log_url
    else:
        # For other reasons, ti is a task that had not finished.
        what, url = f"It ended ({context['reason']}) before all its tasks had.", _run_url(dag.dag_id, run_id)
    text = (
        f"The run {run_id} of the job {dag.dag_id} failed.\n"
        f"What happened: {what}\n"
        f"What was done: {finished}. It stays done, and nothing was done by halves.\n"
        "What to do: mend the cause; then clear the failed tasks, or start a new run, which does what is left.\n"
        f"Log: {url}"
    )
    return f"[Analytics] {dag.dag_id} failed", text


def failures(ti: Any, dag: Any, run_id: str) -> list[str]:
    """Return one sentence per task of a run that failed, the watching ones aside."""
    sentences = []
    for task_id, states in _states(ti, dag, run_id).items():
        if failed := states["failed"]:
            which = f"{task_id} ({failed} of {states.total()})" if states.total() > 1 else task_id
            said = [text for text in _said(ti, dag, run_id, task_id) if text]
            # The operator leaves a sentence; a process that was killed could not.
            sentences.append(f"{which}: {said[0] if said else 'it failed without a word, as a killed process does.'}")
    return sentences


def done(ti: Any, dag: Any, run_id: str) -> str:
    """Return which tasks of a run have succeeded, the watching ones aside."""
    states = _states(ti, dag, run_id)
    parts = [
        f"{task_id} ({count['success']} of {count.total()})" if count.total() > 1 else task_id
        for task_id, count in states.items()
        if count["success"]
    ]
    return ", ".join(parts) or "nothing"


def _states(ti: Any, dag: Any, run_id: str) -> dict[str, Counter[str]]:
    """How many instances of each task are in which state, in the order of the DAG."""
    # A mapped task is named with its map index; a state of None is one that has not been scheduled.
    states = ti.get_task_states(dag_id=dag.dag_id, run_ids=[run_id]).get(run_id, {})
    counts: dict[str, Counter[str]] = {}
    for task in dag.topological_sort():
        if not task.is_teardown and task.task_id != "start_run":
            mapped = [state for name, state in states.items() if re.fullmatch(rf"{task.task_id}_\d+", name)]
            own = mapped or [states.get(task.task_id)]
            counts[task.task_id] = Counter(str(getattr(state, "value", state)) for state in own)
    return counts


def _said(ti: Any, dag: Any, run_id: str, task_id: str) -> list[str]:
    """The sentences that failed instances of a task left."""
    try:
        said = ti.xcom_pull(task_ids=task_id, key="problem", dag_id=dag.dag_id, run_id=run_id)
    except Exception:
        log.exception("What task %s said cannot be read", task_id)
        return []
    return [said] if isinstance(said, str) else list(said or [])


def _run_url(dag_id: str, run_id: str) -> str:
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/dags/{dag_id}/runs/{quote(run_id)}"


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
            channel(subject, text)
            log.info("Message sent through connection %s: %s", connection_id, subject)
            return True
    except AirflowNotFoundException:
        log.info("No message through %s: the connection is not defined", connection_id)
    except Exception:
        # One channel that is down must not keep the other one from being told.
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

    SlackWebhookHook(slack_webhook_conn_id=SLACK_CONNECTION_ID).send(text=f"*{subject}*\n{text}")
