"""# Delete raw data past its retention

Deletes raw events and sessions older than `retention_days`; the daily statistics stay for ever.

**Reads and deletes** `analytics_event`, `analytics_session`. **Reads** `analytics_website_policy`: a website's own
retention and legal hold. **Writes** `analytics_daily_stats`: missing or outdated rows, `sealed_at`, late events;
`analytics_purge_batch`: the list of what is to be deleted.

**What goes**: events of days that ended before the cutoff, which is the start of the day `retention_days` ago, and
sessions whose last activity is before it and of which no event is left. A day goes only if its row counts exactly its
raw events: then the row is sealed, and just these events are listed. Other days are aggregated first; one that still is
not right is left alone. Events that come for a sealed day are counted as late, and go as well.

A run that is **unusual** stops before it deletes, and says what it would delete: the first one, one that finds more than
three times the usual, one after a policy or a time zone was changed. *Confirm* lets it go on.

**Re-run**: any time; a batch that runs twice deletes once. `dry_run` deletes nothing (days are aggregated).

**On failure**: finished batches stay deleted, the others stay on the list; clear the failed tasks, or let the next run do
the rest. If `report_result` failed, its log names what was left and why.
"""

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag

from web_analytics.aggregation import aggregate_day
from web_analytics.job import JOB, check_database, cron
from web_analytics.postgres import BatchOperator
from web_analytics.retention import archive, delete_batch, drop_partition, report_result, seal, sql
from web_analytics.settings import settings
from web_analytics.watch import close_run

NONE_FAILED = {"trigger_rule": "none_failed"}  # a step with nothing to do is skipped, and the next one goes on


@dag(
    **JOB | {"default_args": JOB["default_args"] | NONE_FAILED},
    doc_md=__doc__,
    schedule=cron(settings.archive_schedule),
    is_paused_upon_creation=True,  # nobody's data goes before they say so
    params={
        "retention_days": Param(settings.retention_days, type="integer", minimum=1, maximum=36500, title="Days kept"),
        "batch_size": Param(settings.batch_size, type="integer", minimum=1, maximum=100_000, title="Rows per batch"),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Count, delete nothing"),
        "confirm": Param(False, type="boolean", title="Confirm", description="Delete even what is far more than usual"),
    },
)
def archive_old_analytics():
    find_expired_days = sql("find_expired_days", multiple_outputs=True)
    expired = find_expired_days.output
    seal_days = seal("seal_days", expired["steps"])
    aggregated = aggregate_day(seal_days.output)
    # What could not be aggregated is left alone; everything else goes.
    seal_again = seal("seal_again", seal_days.output, trigger_rule="all_done_min_one_success")
    archive_events = archive("event")
    plan_event_batches = sql("plan_event_batches", "plan_batches", parameters={"kind": "event"})
    delete_event_batch = delete_batch("event", plan_event_batches)
    list_sessions = sql("list_sessions", operator=BatchOperator, parameters={"after": None})
    archive_sessions = archive("session")
    plan_session_batches = sql("plan_session_batches", "plan_batches", parameters={"kind": "session"})
    delete_session_batch = delete_batch("session", plan_session_batches)
    measure_storage = sql("measure_storage", parameters={"bytes_before": expired["bytes"]})
    dropped = drop_partition(find_partitions := sql("find_partitions"))
    deleting = {"partitions": dropped, "events": delete_event_batch, "sessions": delete_session_batch}
    deleted = {name: task.output for name, task in deleting.items()}
    unarchived = [archive_events.output, archive_sessions.output]
    result = report_result(expired, seal_again.output, unarchived, list_sessions.output, deleted)
    # A backlog of years is shared out among runs that follow each other.
    TriggerDagRunOperator.partial(task_id="continue_backlog", trigger_dag_id="archive_old_analytics").expand(
        conf=result
    )

    check_database() >> find_expired_days >> seal_days >> aggregated >> seal_again
    seal_again >> archive_events >> find_partitions
    dropped >> plan_event_batches >> delete_event_batch >> list_sessions
    list_sessions >> archive_sessions >> plan_session_batches >> delete_session_batch >> measure_storage >> result
    close_run(
        result,
        target=expired["cutoff"],
        aggregated=aggregated.output,
        deleted=list(deleted.values()),
        unsealed=seal_again.output,
    )


archive_old_analytics()
