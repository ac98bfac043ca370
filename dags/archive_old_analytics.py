"""# Delete raw data past its retention

Deletes raw events and sessions older than `retention_days`; the daily statistics stay for ever.

**Reads and deletes** `analytics_event`, `analytics_session`. **Reads** `analytics_website_policy`: a website's own time
zone, retention and legal hold. **Writes** `analytics_daily_stats`: missing or outdated rows, `raw_purged_at`;
`analytics_purge_proof`.

**What goes**: events of days that ended before the cutoff, which is the start of the day `retention_days` ago, and
sessions whose last activity is before it and of which no event is left. A day goes only if its row is proven to
count exactly its raw events. Other days are aggregated first; one that is still not proven is left alone.

**Re-run**: any time; a batch that runs twice deletes once. `dry_run` deletes nothing (days are aggregated).

**On failure**: finished batches stay deleted; clear the failed tasks, or let the next run do the rest. If
`report_result` failed, days were left alone: its log names them, and `aggregate_day`'s why they could not be aggregated.
"""

from airflow.sdk import Param, dag, task

from web_analytics.aggregation import aggregate_day
from web_analytics.days import tasks_for
from web_analytics.job import JOB, check_database, job
from web_analytics.retention import delete_batch, prove, report_result, sql
from web_analytics.settings import settings
from web_analytics.watch import start_run, watch

NONE_FAILED = {"trigger_rule": "none_failed"}  # a step with nothing to do is skipped, and the next one goes on


@task
def plan_days(problems):
    return tasks_for(sorted({row["day"] for row in problems if not row["is_proven"]}), settings.timezone)


@dag(
    **job(default_args=JOB["default_args"] | NONE_FAILED),
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
    defaults = {"retention_days": "{{ params.retention_days }}", "timezone": settings.timezone}
    freeze_cutoff = sql("freeze_cutoff", defaults, returns="row", multiple_outputs=True)
    frozen = freeze_cutoff.output
    policy = defaults | {"moment": frozen["moment"], "cutoff": frozen["cutoff"]}
    prove_days = prove("prove_days", policy)
    days = plan_days(prove_days.output)
    # What could not be aggregated is left alone; everything else goes.
    prove_again = prove("prove_again", policy, trigger_rule="all_done")
    count_expired = sql("count_expired", policy, returns="row", multiple_outputs=True)
    expired = count_expired.output
    plan = policy | {"batch_size": "{{ params.batch_size }}", "dry_run": "{{ params.dry_run }}"}
    plan_events = sql("plan_event_batches", plan | {"expired": expired["events"]}, returns="rows")
    plan_sessions = sql("plan_session_batches", plan | {"expired": expired["sessions"]}, returns="rows")
    delete_events, delete_sessions = delete_batch("event", plan_events), delete_batch("session", plan_sessions)
    deleted = {"events": delete_events.output, "sessions": delete_sessions.output}
    measure_size = sql("measure_size", returns="row")
    report = report_result(frozen, prove_again.output, expired, deleted, measure_size.output)

    (
        check_database()
        >> start_run()
        >> freeze_cutoff
        >> prove_days
        >> days
        >> aggregate_day(days)
        >> prove_again
        >> count_expired
    )
    count_expired >> [plan_events, plan_sessions]
    plan_events >> delete_events >> delete_sessions >> measure_size >> report
    watch(report, target=frozen["cutoff"], deleted=list(deleted.values()))


archive_old_analytics()
