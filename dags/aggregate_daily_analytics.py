"""# Daily statistics of every website

Counts the raw events of a day into one `analytics_daily_stats` row per website.

**Reads** `analytics_event`. **Writes** `analytics_daily_stats`.

**Which days**: the day before the run, in the time zone of `ANALYTICS_TIMEZONE`, and every earlier day that has events
but no row, such as after a downtime or on first install. Trigger with `stat_date` for another day, or with `from` and
`to` for a range. One mapped task per day.

**Re-run**: any time, as often as you like. A day is one statement: all websites or none, and the same rows again. Days
of which raw events have been deleted keep their row.

**On failure**: nothing of that day was written; clear the failed task.
"""

from datetime import date

import pendulum
from airflow.sdk import Param, dag, task

from web_analytics.aggregation import aggregate_day, find_unaggregated_days
from web_analytics.days import days_to_aggregate
from web_analytics.job import JOB, check_database
from web_analytics.settings import settings


def date_param(title, description):
    return Param(None, type=["null", "string"], format="date", title=title, description=description)


@task
def plan_days(unaggregated, params=None, dag_run=None):
    days = days_to_aggregate(
        params,
        dag_run.data_interval_end or dag_run.run_after,
        pendulum.now("UTC"),
        settings.timezone,
        [date.fromisoformat(row["day"]) for row in unaggregated],
    )
    return [{"day": str(day), "timezone": settings.timezone} for day in days]


@dag(
    **JOB,
    doc_md=__doc__,
    schedule=settings.aggregate_schedule,
    params={
        "stat_date": date_param("Day", "The day to aggregate; empty: the day before, and those missed"),
        "from": date_param("From", "First day of a range to aggregate"),
        "to": date_param("To", "Last day of a range to aggregate"),
    },
)
def aggregate_daily_analytics():
    find_days = find_unaggregated_days()
    days = plan_days(find_days.output)

    check_database() >> find_days >> days >> aggregate_day(days)


aggregate_daily_analytics()
