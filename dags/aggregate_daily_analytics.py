"""# Daily statistics of every website

Counts the raw events of a day into one `analytics_daily_stats` row per website.

**Reads** `analytics_event`. **Writes** `analytics_daily_stats`.

**Which days**: the day before the run, and every earlier day whose row is missing or no longer right: after a downtime,
on first install, when events came late, were edited, moved or deleted. Trigger with `stat_date` for another day, or with
`from` and `to` for a range. One mapped task per day (beyond 1000, several).

**A day** is one of the website's time zone: that in `analytics_timezone`, else `ANALYTICS_TIMEZONE`.

**Re-run**: any time, as often as you like. A day is one statement: all websites or none, and the same rows again. A day
whose raw events the retention deletes keeps its row. So does one whose oldest raw events somebody else deleted, until
a run with `recount` counts what is left.

**On failure**: nothing of that day was written; clear the failed task.
"""

from datetime import date

import pendulum
from airflow.sdk import Param, dag, task

from web_analytics.aggregation import aggregate_day
from web_analytics.days import days_to_aggregate, tasks_for
from web_analytics.job import JOB, check_database, cron
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings
from web_analytics.watch import close_run


def date_param(title, description):
    return Param(None, type=["null", "string"], format="date", title=title, description=description)


@task
def plan_days(due, params=None, dag_run=None):
    days = days_to_aggregate(
        params,
        dag_run.data_interval_end or dag_run.run_after,
        pendulum.now("UTC"),
        settings.timezone,
        map(date.fromisoformat, due),
    )
    return tasks_for(days, params["recount"])


@dag(
    **JOB,
    doc_md=__doc__,
    schedule=cron(settings.aggregate_schedule),
    params={
        "stat_date": date_param("Day", "The day to aggregate; empty: the day before, and those missed"),
        "from": date_param("From", "First day of a range to aggregate"),
        "to": date_param("To", "Last day of a range to aggregate"),
        "recount": Param(
            False,
            type="boolean",
            title="Recount",
            description="Count what is left, also where others deleted raw events",
        ),
    },
)
def aggregate_daily_analytics():
    find_due_days = PostgresOperator(
        task_id="find_due_days",
        sql=[f"aggregate_daily_analytics/{file}.sql" for file in ("add_partitions", "find_due_days")],
    )
    days = plan_days(find_due_days.output)

    aggregated = aggregate_day(days)

    check_database() >> find_due_days >> days >> aggregated
    close_run(aggregated, target=days, aggregated=aggregated.output)


aggregate_daily_analytics()
