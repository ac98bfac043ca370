"""What every job's DAG has in common."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from web_analytics import schema
from web_analytics.alerts import notify_failure, notify_late
from web_analytics.postgres import RETRIES, PostgresOperator

JOB: dict[str, Any] = {
    # From this file, so that SQL and code are of one version wherever the bundle is checked out.
    "template_searchpath": [str(Path(__file__).resolve().parents[2] / "include" / "sql")],
    "catchup": False,
    # A second run at the same moment would be harmless, and would only wait for the first one's locks.
    "max_active_runs": 1,
    "dagrun_timeout": timedelta(hours=24),
    "default_args": {"owner": "analytics", **RETRIES},
    "on_failure_callback": notify_failure,
    "tags": ["analytics"],
}


def job(deadline: timedelta = timedelta(hours=12), **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a job's DAG.

    :param deadline: time after which a run that has not ended yet is told about.
    :param kwargs: arguments over those of every job.
    """
    late = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=deadline, callback=SyncCallback(notify_late), name="late"
    )
    return JOB | {"deadline": late} | kwargs


def check_database() -> PostgresOperator:
    """Return the first task of every job: it fails with one sentence for each thing that the database lacks."""
    return PostgresOperator(
        task_id="check_database",
        sql="check_database.sql",
        parameters={"version": schema.version()},
    )
