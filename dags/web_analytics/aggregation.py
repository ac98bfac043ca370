"""The tasks that aggregate days. Retention has them as well, since it never deletes a day that was not aggregated."""

from typing import Any

from airflow.sdk.definitions.mappedoperator import MappedOperator

from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings


def find_unaggregated_days(before: Any = None, **kwargs: Any) -> PostgresOperator:
    """Return the task that finds days with events but no stats; it gives one row per day, the oldest 1000.

    :param before: only days before this instant, the start of a day; None: days that are over.
    """
    return PostgresOperator(
        **{"task_id": "find_unaggregated_days"} | kwargs,
        sql="aggregate_daily_analytics/find_unaggregated_days.sql",
        parameters={"before": before, "timezone": settings.timezone},
        returns="rows",
    )


def aggregate_day(days: Any) -> MappedOperator:
    """Return the task that aggregates one day, mapped over `days`: parameters of aggregate_day.sql."""
    return PostgresOperator.partial(
        task_id="aggregate_day",
        sql="aggregate_daily_analytics/aggregate_day.sql",
        # Each may use work_mem several times over, and the database has an application to serve.
        session_settings={"work_mem": "256MB"},
        max_active_tis_per_dag=4,
        map_index_template="{{ task.parameters['day'] }}",
        messages={
            "start": "[Analytics Job] Aggregating data for {day}",
            "row": "[Analytics Job] ✅ Aggregated {total_events} events for website {website_id}{remark}",
            "end": "[Analytics Job] ✅ Aggregated {total} website(s) for {day}",
            "none": "[Analytics Job] No events on {day}: no row written",
        },
    ).expand(parameters=days)


def aggregate_missing_days(before: Any) -> tuple[PostgresOperator, PostgresOperator]:
    """Return the first and the last of the tasks that leave no day before `before` unaggregated, or fail."""
    find_days = find_unaggregated_days(before)
    check_aggregated = find_unaggregated_days(
        before,
        task_id="check_aggregated",
        messages={"error": "Nothing was deleted: the day {day} has events but no daily stats; run this job again."},
        row_messages=1,
    )
    find_days >> aggregate_day(find_days.output) >> check_aggregated
    return find_days, check_aggregated
