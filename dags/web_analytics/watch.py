"""What ends every run: its row in the ledger, analytics_job_run, and the alerts that are due, whatever became of the job.

Each job watches all of them, so that one which is paused or never started is missed by the others.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.observability import stats

from web_analytics.alerts import send
from web_analytics.job import JOB
from web_analytics.postgres import PostgresOperator, printable, sentence
from web_analytics.runs import CLOSE_RUN, RunTasks
from web_analytics.settings import settings

CONDITIONS = sorted(path.stem for path in (Path(JOB["template_searchpath"][0]) / "alerts").glob("*.sql"))
"""What people should know, whichever job should have taken care of it: include/sql/alerts has a file for each."""

STATEMENTS = ("finish_run", "recent_runs", "correct_runs", "keep_alerts", "mark_alerts_sent")

LIMITS = {
    "retention_days": settings.retention_days,
    "idle_minutes": settings.session_timeout_minutes,
    "behind_hours": settings.alert_behind_hours,
    "database_gb": settings.alert_database_gb,
}
"""The parameters of every condition."""

NAMED = 10
"""Alerts of one condition that a message names."""

DAILY_STATS = Asset("analytics_daily_stats")
"""The daily statistics. A DAG of one's own may have it as its schedule: it runs when rows were written or have changed.
The ``extra`` of the event says which: ``{"days": {"2026-01-31": [website, ...], ...}}``, or null in place of the websites
where they would be more than TOLD in all."""

TOLD = 10_000
"""Websites, added up over the days, that one event of the asset names at most: Airflow keeps all events."""

# Through an alias, an event is emitted only where there is something to tell. One a run, since Airflow may pass over an
# event that comes in the moment in which it starts a run for another one.
WRITTEN = AssetAlias("analytics_daily_stats_written")


class CloseRun(PostgresOperator):
    """Writes how the run ended into the ledger, and how others did that could not; sends the alerts that are due.

    :param target: what the run was for: a text, or the parameters of the tasks that aggregate days.
    :param aggregated: the output of the task that aggregates days, whose changes are told as an event of DAILY_STATS.
    :param written: outputs of tasks whose statements give the number of ``rows`` they wrote.
    :param deleted: outputs of mapped tasks whose statements give the number of ``rows`` they deleted.
    :param unsealed: the output of the task that seals days for the last time.
    :raises AirflowFailException: neither the job nor this could do its work, so that a retry cannot help.
    """

    template_fields = (*PostgresOperator.template_fields, "target", "aggregated", "written", "deleted", "unsealed")

    def __init__(
        self,
        *,
        target: Any = None,
        aggregated: Any = None,
        written: Any = (),
        deleted: Any = (),
        unsealed: Any = None,
        **kwargs: Any,
    ) -> None:
        files = [*(f"watch/{name}.sql" for name in STATEMENTS), *(f"alerts/{name}.sql" for name in CONDITIONS)]
        super().__init__(task_id=CLOSE_RUN, sql=files, outlets=[WRITTEN] if aggregated is not None else [], **kwargs)
        self.target, self.aggregated, self.unsealed = target, aggregated, unsealed
        self.written, self.deleted = written, deleted

    def work(self, context: Context) -> None:
        """Close the run."""
        ti, run_id = context["ti"], context["run_id"]
        dag: Any = context["dag"]
        tasks = RunTasks(ti, dag.dag_id, run_id, [task.task_id for task in dag.topological_sort()])
        if changes := merged((self.aggregated or [])[:]):
            context["outlet_events"][WRITTEN].add(DAILY_STATS, extra={"days": changes})
        statements = dict(zip([*STATEMENTS, *CONDITIONS], self.sql, strict=True))

        def run(name: str, **parameters: Any) -> Any:
            return self.run_statement(statements[name], {"job": dag.dag_id, "run_id": run_id} | parameters, name)

        try:
            [ledger] = run("finish_run", **self.summary(tasks))
            report_metrics(dag.dag_id, ledger["result"])
            [recent] = run("recent_runs")
            if ended := list(ended_otherwise(ti, recent["result"])):
                run("correct_runs", runs=json.dumps(ended))
            found, unknown = [], []
            for condition in CONDITIONS:
                try:
                    found += [{"condition": condition} | row for row in run(condition, **LIMITS)]
                except psycopg.Error as error:
                    unknown.append(condition)  # its alerts stay as they are
                    message = f"Whether to alert about {condition} could not be found out: {sentence(error)}"
                    found.append({"condition": "not_watched", "subject": condition, "message": message})
            [due] = run("keep_alerts", found=json.dumps(found), unknown=json.dumps(unknown))
            if due["result"] and send(*alert_message(due["result"])):
                run("mark_alerts_sent", ids=[alert["id"] for alert in due["result"]])
        except psycopg.Error as error:
            if not tasks.problems:
                raise
            # What kept the job from its work keeps this from its own, and people wait for the message about it.
            raise AirflowFailException(
                f"{sentence(error)} The next run of any job writes into the ledger how this one ended."
            ) from None

    def summary(self, tasks: RunTasks) -> dict[str, Any]:
        """Return the parameters of finish_run.sql: what the run did."""
        target = self.target
        if isinstance(target, list):
            days = [name for task in target for name in task["days"]]
            target = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}, {len(days)} days" if days else None
        batches = [batch for output in self.deleted for mapped in (output or [])[:] for batch in mapped]
        return {
            "target": target,
            "rows_written": sum(result["rows"] for output in self.written for result in output or []),
            "rows_deleted": sum(batch["rows"] for batch in batches),
            "batches": len(batches),
            "unsealed_days": sum(step["count"] for step in self.unsealed or []),
            "outcome": "failed" if tasks.problems else "success",
            "problem": " ".join(tasks.problems)[:1000] or None,
        }


def close_run(last: Any, **kwargs: Any) -> None:
    """Add the task that closes the run after the job's `last` task; `kwargs` are those of CloseRun."""
    last >> CloseRun(**kwargs).as_teardown()


def ended_otherwise(ti: Any, ledger: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what the ledger should say of the runs that have ended otherwise than it says.

    :param ti: a task instance, which may ask Airflow for the states of runs.
    :param ledger: the result of recent_runs.sql.
    """
    for group in ledger:
        job, run_ids, written = group["job"], group["run_ids"], group["outcome"]

        def count(run_ids: Sequence[str], *states: str, job: str = job) -> int:
            return int(ti.get_dr_count(dag_id=job, run_ids=run_ids, states=states or None))

        others = sorted({"success", "failed"} - {written})
        # One question is enough where all is as it was.
        if written != "running" and not count(run_ids, *others):
            continue
        for run_id in run_ids:
            if state := next((state for state in others if count([run_id], state)), None):
                outcome, problem = RunTasks(ti, job, run_id).outcome(state)
            elif written == "running" and not count([run_id]):
                outcome, problem = "failed", "Airflow does not know the run any more."
            else:
                continue
            if outcome != written:
                yield {"job": job, "run_id": run_id, "outcome": outcome, "problem": problem and problem[:1000]}


def merged(changes: Iterable[Mapping[str, Sequence[str]] | None]) -> dict[str, Any]:
    """Return the websites whose statistics have changed, by day; None in place of them if they are more than TOLD.

    :param changes: the results of aggregate_day.sql.
    """
    days = {day: websites for change in changes for day, websites in (change or {}).items()}
    if sum(map(len, days.values())) > TOLD:
        return dict.fromkeys(sorted(days))
    return dict(sorted(days.items()))


def report_metrics(job: str, ledger: Mapping[str, Any]) -> None:
    """Report what a run did through Airflow's metrics.

    :param ledger: the result of finish_run.sql.
    """
    tags = {"job": job}
    stats.timing("web_analytics.run_duration", ledger["duration_seconds"] * 1000, tags=tags)
    for name in ("rows_read", "rows_written", "rows_deleted", "batches", "database_bytes", "error_rate"):
        stats.gauge(f"web_analytics.{name}", ledger[name], tags=tags)
    stats.incr(f"web_analytics.run_{ledger['outcome']}", tags=tags)


def alert_message(alerts: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the subject and the text of the message about alerts that are due.

    :param alerts: the result of keep_alerts.sql: those of one state and condition follow each other.
    """
    lines = {
        "opened": "ALERT: {message}",
        "still open": "STILL OPEN since {opened_at} UTC: {message}",
        "recovered": "RECOVERED, was open since {opened_at} UTC: {message}",
    }
    paragraphs = []
    for (state, condition), group in groupby(alerts, lambda alert: (alert["state"], alert["condition"])):
        same = list(group)
        paragraphs += [printable(lines[state].format(**alert)) for alert in same[:NAMED]]
        if len(same) > NAMED:
            paragraphs.append(f"... and {len(same) - NAMED} more of {condition}: the page Analytics names them.")
    first = alerts[0]
    what = f"{first['condition']} {first['subject']}".strip() + f": {first['state']}"
    more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    return printable(f"[Analytics] {what}{more}"), "\n\n".join(paragraphs)
