"""# Delete raw data past its retention

Deletes raw events and sessions older than `retention_days`; the daily statistics stay for ever.

**Reads and deletes** `analytics_event`, `analytics_session`. **Writes** `analytics_daily_stats.raw_purged_at`.

**What goes**: events before the cutoff, the start of the day `retention_days` ago, and sessions whose last activity is
before it and of which no event is left. If an expired day was never aggregated, nothing is deleted.

**Re-run**: any time. The cutoff and the batches are frozen by the run; a batch that runs twice deletes once. `dry_run`
counts and deletes nothing. **On failure**: finished batches stay deleted; clear the failed tasks, or let the next run do it.
"""

from airflow.sdk import Param, dag, task

from web_analytics.job import JOB, check_database
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings

FOLDER = "archive_old_analytics"
BATCH = {
    "pool": "analytics_archive",
    "repeat": True,
    "pause": settings.batch_pause_seconds,
    # A batch that the server loses in a crash is still due, so its commit need not wait for the disk.
    "session_settings": {"statement_timeout": "1min", "synchronous_commit": "off"},
    "map_index_template": "{{ task.parameters['label'] }}",
}


@task(trigger_rule="none_failed")
def report_result(counted, events, sessions, size, params=None):
    if params["dry_run"]:
        print(f"[Analytics Archive] Dry run: {counted['events']:,} event(s) and {counted['sessions']:,} session(s) stay")
        return
    print(f"[Analytics Archive] ✅ Archived {sum(events[:]):,} old event(s) (kept daily aggregated stats)")
    print(f"[Analytics Archive] ✅ Archived {sum(sessions[:]):,} old session(s)")
    print(f"[Analytics Archive] Database size: {counted['database_size']} before, {size['database_size']} after")


@dag(
    **JOB,
    doc_md=__doc__,
    schedule=settings.archive_schedule,
    is_paused_upon_creation=True,
    params={
        "retention_days": Param(settings.retention_days, type="integer", minimum=1, maximum=36500,
                                title="Retention", description="Whole days of raw data to keep"),
        "batch_size": Param(settings.batch_size, type="integer", minimum=1, maximum=100_000,
                            title="Batch size", description="Rows that one transaction deletes at most"),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Count and plan, delete nothing"),
    },
)  # fmt: skip
def archive_old_analytics():
    count_expired = PostgresOperator(
        task_id="count_expired",
        sql=f"{FOLDER}/count_expired.sql",
        parameters={"retention_days": "{{ params.retention_days }}", "timezone": settings.timezone},
        session_settings={"statement_timeout": "30min"},
        messages={"row": "[Analytics Archive] Found {events:,} event(s) and {sessions:,} session(s) before {cutoff}"},
        returns="row",
        multiple_outputs=True,
    )
    cutoff = {"cutoff": count_expired.output["cutoff"], "timezone": settings.timezone}
    check_aggregated = PostgresOperator(
        task_id="check_aggregated",
        sql=f"{FOLDER}/check_aggregated.sql",
        parameters=cutoff,
        messages={"error": "{problem}", "none": "[Analytics Archive] Every expired day has its daily stats"},
    )
    plan = {"session_settings": {"statement_timeout": "30min"}, "returns": "rows"}
    batch = cutoff | {"batch_size": "{{ params.batch_size }}", "dry_run": "{{ params.dry_run }}"}
    plan_event_batches = PostgresOperator(
        task_id="plan_event_batches",
        sql=f"{FOLDER}/plan_event_batches.sql",
        parameters=batch | {"expired": count_expired.output["events"]},
        **plan,
    )
    plan_session_batches = PostgresOperator(
        task_id="plan_session_batches",
        sql=f"{FOLDER}/plan_session_batches.sql",
        parameters=batch | {"expired": count_expired.output["sessions"]},
        **plan,
    )
    delete_event_batch = PostgresOperator.partial(
        task_id="delete_event_batch",
        sql=f"{FOLDER}/delete_event_batch.sql",
        messages={"batch": "[Analytics Archive] Deleted batch of {count} events ({total}/{expired})"},
        **BATCH,
    ).expand(parameters=plan_event_batches.output)
    delete_session_batch = PostgresOperator.partial(
        task_id="delete_session_batch",
        sql=f"{FOLDER}/delete_session_batch.sql",
        messages={"batch": "[Analytics Archive] Deleted batch of {count} sessions ({total}/{expired})"},
        trigger_rule="none_failed",
        **BATCH,
    ).expand(parameters=plan_session_batches.output)
    measure_size = PostgresOperator(
        task_id="measure_size", sql=f"{FOLDER}/measure_size.sql", returns="row", trigger_rule="none_failed"
    )
    report = report_result(
        count_expired.output, delete_event_batch.output, delete_session_batch.output, measure_size.output
    )

    check_database() >> count_expired >> check_aggregated >> [plan_event_batches, plan_session_batches]
    plan_event_batches >> delete_event_batch >> delete_session_batch >> measure_size >> report


archive_old_analytics()
