"""What surrounds every job: its row in analytics_job_run, the alerts that are due, and metrics.

Each job watches all of them, so that one which is paused or never started is missed by the others. These tasks are
teardown tasks: they run whatever became of the job, and do not decide about the state of its run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import TaskGroup, task
from airflow.sdk.observability import stats

from web_analytics.alerts import failures, send
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings

RUN = {"job": "{{ dag.dag_id }}", "run_id": "{{ run_id }}"}


def start_run() -> PostgresOperator:
    """Return the task that writes that the run has started."""
    return PostgresOperator(
        task_id="start_run", sql="watch/start_run.sql", parameters=RUN | {"timezone": settings.timezone}
    )


def watch(
    last: Any, target: Any = None, written: Sequence[Any] = (), deleted: Sequence[Any] = (), unsealed: Any = None
) -> None:
    """Add the tasks that follow the job's `last` task.

    :param target: what the run was for: a text, or the parameters of the tasks that aggregate days.
    :param written: outputs of tasks whose statements give the number of ``rows`` they wrote.
    :param deleted: outputs of mapped tasks whose statements give the number of ``rows`` they deleted.
    :param unsealed: the output of the task that seals days for the last time.
    """
    with TaskGroup("watch", prefix_group_id=False):
        summarize_run = summarize(target, list(written), list(deleted), unsealed).as_teardown()
        finish_run = PostgresOperator(
            task_id="finish_run", sql="watch/finish_run.sql", parameters=summarize_run
        ).as_teardown()
        find_alerts = PostgresOperator(
            task_id="find_alerts",
            sql="watch/find_alerts.sql",
            parameters={
                "retention_days": settings.retention_days,
                "idle_minutes": settings.session_timeout_minutes,
                "behind_hours": settings.alert_behind_hours,
                "database_gb": settings.alert_database_gb,
            },
        ).as_teardown()
        send_alerts = report(finish_run.output, find_alerts.output).as_teardown()
        mark_alerts_sent = PostgresOperator(
            task_id="mark_alerts_sent", sql="watch/mark_alerts_sent.sql", parameters={"ids": send_alerts}
        ).as_teardown()
        last >> summarize_run >> finish_run >> find_alerts >> send_alerts >> mark_alerts_sent


@task(task_id="summarize_run", multiple_outputs=False)
def summarize(
    target: Any, written: Any, deleted: Any, unsealed: Any, ti: Any = None, dag: Any = None, run_id: Any = None
) -> Any:
    """Return the parameters of finish_run.sql."""
    problems = failures(ti, dag, run_id)
    batches = [batch for output in deleted for mapped in (output or [])[:] for batch in mapped]
    if isinstance(target, list):
        days = [name for tasks in target for name in tasks["days"]]
        target = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}, {len(days)} days" if days else None
    return {
        "job": dag.dag_id,
        "run_id": run_id,
        "target": target,
        "rows_written": sum(result["rows"] for output in written for result in output or []),
        "rows_deleted": sum(batch["rows"] for batch in batches),
        "batches": len(batches),
        "unsealed_days": sum(step["count"] for step in unsealed or []),
        "outcome": "failed" if problems else "success",
        "problem": " ".join(problems)[:1000] or None,
    }


@task(task_id="send_alerts")
def report(run: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]], dag: Any = None) -> list[int]:
    """Send metrics, and one message about all alerts that are due; return the ids of the alerts that were sent."""
    tags = {"job": dag.dag_id}
    stats.timing("web_analytics.run_duration", run["duration_seconds"] * 1000, tags=tags)
    for name in ("rows_read", "rows_written", "rows_deleted", "batches", "database_bytes", "error_rate"):
        stats.gauge(f"web_analytics.{name}", run[name], tags=tags)
    stats.incr(f"web_analytics.run_{run['outcome']}", tags=tags)
    if not alerts:
        return []
    subject, text = alert_message(alerts)
    return [alert["id"] for alert in alerts] if send(subject, text) else []


def alert_message(alerts: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the subject and the text of the message about alerts that are due.

    :param alerts: the rows of find_alerts.sql.
    """
    lines = {
        "opened": "ALERT: {message}",
        "still open": "STILL OPEN since {since} UTC: {message}",
        "recovered": "RECOVERED, was open since {since} UTC: {message}",
    }
    first = alerts[0]
    what = f"{first['condition']} {first['subject']}".strip() + f": {first['state']}"
    more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    text = "\n\n".join(
        lines[alert["state"]].format(message=alert["message"], since=alert["opened_at"][:16]) for alert in alerts
    )
    # A website may have any name, and a subject only one line.
    return " ".join(f"[Analytics] {what}{more}".split()), text
