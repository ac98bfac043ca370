"""# Daily statistics of every website

Counts the raw events of a day into one `analytics_daily_stats` row per website.

**Reads** `analytics_event`. **Writes** `analytics_daily_stats`.

**Which day**: the day before the run, in the time zone of `ANALYTICS_TIMEZONE`. Trigger with `stat_date` for another
day, or with `from` and `to` for a range, one mapped task per day.

**Re-run**: any time, as often as you like. A day is one statement: all websites or none, and the same rows again. Days
of which raw events have been deleted keep their row.

**On failure**: nothing of that day was written; clear the failed task.
"""

import pendulum
from airflow.sdk import Param, dag, task

from web_analytics.days import requested_days
from web_analytics.job import JOB, check_database
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings


def date_param(title, description):
    return Param(None, type=["null", "string"], format="date", title=title, description=description)


@task
def plan_days(params=None, dag_run=None):
    days = requested_days(
        params, dag_run.data_interval_end or dag_run.run_after, pendulum.now("UTC"), settings.timezone
    )
    return [{"day": str(day), "timezone": settings.timezone} for day in days]


@dag(
    **JOB,
    doc_md=__doc__,
    schedule=settings.aggregate_schedule,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    params={
        "stat_date": date_param("Day", "The day to aggregate; empty: the day before"),
        "from": date_param("From", "First day of a range to aggregate"),
        "to": date_param("To", "Last day of a range to aggregate"),
    },
)
def aggregate_daily_analytics():
    days = plan_days()
    aggregate_day = PostgresOperator.partial(
        task_id="aggregate_day",
        sql="aggregate_daily_analytics/aggregate_day.sql",
        session_settings={"work_mem": "256MB"},
        map_index_template="{{ task.parameters['day'] }}",
        messages={
            "start": "[Analytics Job] Aggregating data for {day}",
            "row": "[Analytics Job] ✅ Aggregated {total_events} events for website {website_id}",
            "end": "[Analytics Job] ✅ Aggregated {total} website(s) for {day}",
            "none": "[Analytics Job] No events on {day}: no row written",
        },
    ).expand(parameters=days)

    check_database() >> days >> aggregate_day


aggregate_daily_analytics()
