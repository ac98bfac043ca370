"""What every job's DAG has in common."""

import difflib
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Context, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowFailException

from web_analytics import schema
from web_analytics.alerts import notify_failure
from web_analytics.postgres import RETRIES, PostgresOperator, leave_problem
from web_analytics.settings import settings

RUN = {"job": "{{ dag.dag_id }}", "run_id": "{{ run_id }}"}
"""Parameters of a statement: the run in the ledger, analytics_job_run."""

JOB: dict[str, Any] = {
    # From this file, so that SQL and code are of one version wherever the bundle is checked out.
    "template_searchpath": [str(Path(__file__).resolve().parents[2] / "include" / "sql")],
    "catchup": False,
    # A second run at the same moment would be harmless, and would only wait for the first one's locks.
    "max_active_runs": 1,
    "dagrun_timeout": timedelta(hours=24),
    "default_args": {"owner": "analytics", "on_failure_callback": leave_problem, **RETRIES},
    "on_failure_callback": notify_failure,
    "tags": ["analytics"],
}


def cron(expression: str) -> CronTriggerTimetable:
    """Return a schedule in UTC: that of a mere expression would be in Airflow's ``default_timezone``."""
    return CronTriggerTimetable(expression, timezone="UTC")


class CheckDatabase(PostgresOperator):
    """Fails with one sentence for each thing that the database lacks, and for a Param in the run's ``conf`` that the DAG
    does not have: Airflow would pass over it without a word. Then it writes that the run has started.

    :raises AirflowFailException: names the Param, and the one that was meant; or what the database lacks.
    """

    def work(self, context: Context) -> None:
        """Check the run's Params, then the database."""
        dag: Any = context["dag"]
        known = list(dag.params)
        for name in sorted((getattr(context["dag_run"], "conf", None) or {}).keys() - set(known)):
            meant = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1)
            problem = (
                f'"{name}" is not a Param of {dag.dag_id}: '
                + (f"write {meant[0]}." if meant else f"its Params are {', '.join(known)}.")
                + " Nothing was done."
            )
            self.log.error("%s", problem)
            raise AirflowFailException(problem)
        super().work(context)


def check_database() -> PostgresOperator:
    """Return the first task of every job."""
    return CheckDatabase(
        task_id="check_database",
        sql=["check_database.sql", "watch/start_run.sql"],
        parameters=RUN
        | {
            "version": schema.version(),
            "timezone": settings.timezone,
            "ignored_events": settings.ignored_events,
        },
    )
