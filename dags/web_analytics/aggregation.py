"""The task that aggregates days. Retention has it as well, since it never deletes a day that was not aggregated."""

from typing import Any

from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.definitions.mappedoperator import MappedOperator

from web_analytics.postgres import REPEATABLE_READ, PostgresOperator

DAILY_STATS = Asset("analytics_daily_stats")
"""The daily statistics. A DAG of one's own may have it as its schedule: it runs when rows were written or have changed.
The ``extra`` of each event says which: ``{"days": {"2026-01-31": [website, ...], ...}}``."""

# Through an alias, an event is emitted only where there is something to tell.
WRITTEN = AssetAlias("analytics_daily_stats_written")


class AggregateDay(PostgresOperator):
    """Runs aggregate_day.sql, and emits an event of DAILY_STATS if it has written something."""

    def work(self, context: Context) -> Any:
        """Aggregate the days; return the websites that were written, by day."""
        days = super().work(context)
        if days:
            context["outlet_events"][WRITTEN].add(DAILY_STATS, extra={"days": days})
        return days


def aggregate_day(days: Any) -> MappedOperator:
    """Return the task that aggregates days, mapped over `days`: parameters of aggregate_day.sql."""
    return AggregateDay.partial(
        task_id="aggregate_day",
        sql="aggregate_daily_analytics/aggregate_day.sql",
        outlets=[WRITTEN],
        # Each may use work_mem several times over, and the database has an application to serve.
        session_settings=REPEATABLE_READ | {"work_mem": "256MB"},
        max_active_tis_per_dag=4,
        map_index_template="{{ task.parameters['label'] }}",
    ).expand(parameters=days)
