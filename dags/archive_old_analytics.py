"""# Delete raw data past its retention

Deletes raw events and sessions older than `retention_days`; the daily statistics stay for ever.

**Reads and deletes** `analytics_event`, `analytics_session`. **Writes** `analytics_daily_stats`: `raw_purged_at`, and
missing rows.

**What goes**: events before the cutoff, which is the start of the day `retention_days` ago, and sessions whose last
activity is before it and of which no event is left. An expired day that was never aggregated is aggregated first.

**Re-run**: any time; a batch that runs twice deletes once. `dry_run` deletes nothing (missing days are aggregated).

**On failure**: finished batches stay deleted; clear the failed tasks, or let the next run do the rest.
"""

from airflow.sdk import Param, dag

from web_analytics.aggregation import aggregate_missing_days
from web_analytics.job import JOB, check_database
from web_analytics.postgres import PostgresOperator
from web_analytics.retention import delete_batch, report_result
from web_analytics.settings import settings

NONE_FAILED = {"trigger_rule": "none_failed"}  # a step with nothing to do is skipped, and the next one goes on


def sql(task_id, **kwargs):
    return PostgresOperator(task_id=task_id, sql=f"archive_old_analytics/{task_id}.sql", **kwargs)


@dag(
    **JOB | {"default_args": JOB["default_args"] | NONE_FAILED},
    doc_md=__doc__,
    schedule=settings.archive_schedule,
    is_paused_upon_creation=True,  # nobody's data goes before they say so
    params={
        "retention_days": Param(settings.retention_days, type="integer", minimum=1, maximum=36500, title="Days kept"),
        "batch_size": Param(settings.batch_size, type="integer", minimum=1, maximum=100_000, title="Rows per batch"),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Count, delete nothing"),
    },
)
def archive_old_analytics():
    count_expired = sql(
        "count_expired",
        parameters={"retention_days": "{{ params.retention_days }}", "timezone": settings.timezone},
        messages={"row": "[Analytics Archive] Found {events:,} event(s) and {sessions:,} session(s) before {cutoff}"},
        returns="row",
        multiple_outputs=True,
    )
    counted = count_expired.output
    find_unaggregated_days, check_aggregated = aggregate_missing_days(before=counted["cutoff"])
    plan = {"cutoff": counted["cutoff"], "timezone": settings.timezone, "dry_run": "{{ params.dry_run }}"}
    plan |= {"batch_size": "{{ params.batch_size }}"}
    plan_events = sql("plan_event_batches", parameters=plan | {"expired": counted["events"]}, returns="rows")
    plan_sessions = sql("plan_session_batches", parameters=plan | {"expired": counted["sessions"]}, returns="rows")
    delete_events, delete_sessions = delete_batch("event", plan_events), delete_batch("session", plan_sessions)
    measure_size = sql("measure_size", returns="row")
    report = report_result(counted, delete_events.output, delete_sessions.output, measure_size.output)

    check_database() >> count_expired >> find_unaggregated_days
    check_aggregated >> [plan_events, plan_sessions]
    plan_events >> delete_events >> delete_sessions >> measure_size >> report


archive_old_analytics()
