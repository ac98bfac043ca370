"""# Daily statistics of every website

Counts the raw events of a day into one `analytics_daily_stats` row per website.

**Reads** `analytics_event`. **Writes** `analytics_daily_stats`.

**Which days**: the day before the run, and every earlier day whose row is missing or no longer right: after a downtime,
on first install, when events came late or were soft-deleted, when a website's time zone was changed. Trigger with
`stat_date` for another day, or with `from` and `to` for a range. One mapped task per day (beyond 1000, several).

**A day** is one of the website's time zone: that in `analytics_website_policy`, else `ANALYTICS_TIMEZONE`.

**Re-run**: any time, as often as you like. A day is one statement: all websites or none, and the same rows again. Days
of which raw events have been deleted keep their row.

**On failure**: nothing of that day was written; clear the failed task.
"""

from datetime import date

import pendulum
from airflow.sdk import Param, dag, task

from web_analytics.aggregation import aggregate_day
from web_analytics.days import days_to_aggregate, tasks_for
from web_analytics.job import check_database, job
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings
from web_analytics.watch import start_run, watch


def date_param(title, description):
    return Param(None, type=["null", "string"], format="date", title=title, description=description)


@task
def plan_days(due, params=None, dag_run=None):
    days = days_to_aggregate(
        params,
        dag_run.data_interval_end or dag_run.run_after,
        pendulum.now("UTC"),
        settings.timezone,
        [date.fromisoformat(row["day"]) for row in due],
    )
    return tasks_for(days, settings.timezone)


@dag(
    **job(),
    doc_md=__doc__,
    schedule=settings.aggregate_schedule,
    params={
        "stat_date": date_param("Day", "The day to aggregate; empty: the day before, and those missed"),
        "from": date_param("From", "First day of a range to aggregate"),
        "to": date_param("To", "Last day of a range to aggregate"),
    },
)
def aggregate_daily_analytics():
    find_due_days = PostgresOperator(
        task_id="find_due_days",
        sql="aggregate_daily_analytics/find_due_days.sql",
        parameters={"timezone": settings.timezone},
        messages={
            "end": "[Analytics Job] Found {total:,} day(s) without right stats",
            "none": "[Analytics Job] No day is due",
        },
        returns="rows",
    )
    days = plan_days(find_due_days.output)

    aggregated = aggregate_day(days)

    check_database() >> start_run() >> find_due_days >> days >> aggregated
    watch(aggregated, target=days)


aggregate_daily_analytics()
