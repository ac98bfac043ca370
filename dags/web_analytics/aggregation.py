"""The task that aggregates days. Retention has it as well, since it never deletes a day that was not aggregated."""

from typing import Any

from airflow.sdk.definitions.mappedoperator import MappedOperator

from web_analytics.postgres import REPEATABLE_READ, PostgresOperator


def aggregate_day(days: Any) -> MappedOperator:
    """Return the task that aggregates days, mapped over `days`: parameters of aggregate_day.sql."""
    return PostgresOperator.partial(
        task_id="aggregate_day",
        sql="aggregate_daily_analytics/aggregate_day.sql",
        # Each may use work_mem several times over, and the database has an application to serve.
        session_settings=REPEATABLE_READ | {"work_mem": "256MB"},
        max_active_tis_per_dag=4,
        map_index_template="{{ task.parameters['label'] }}",
    ).expand(parameters=days)
