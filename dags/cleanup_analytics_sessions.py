"""# Close idle sessions

Ends every session that has been idle for longer than the session timeout, at its last activity.

**Reads** `analytics_session`, `analytics_event`. **Writes** `analytics_session`: `ended_at`, `duration_seconds`,
`updated_at`.

**Which sessions**: open ones whose last activity is older than `idle_minutes`, and ones that came back after they were
closed and have been idle since. A session with activity within `idle_minutes` is never closed. Where a clock was wrong
and the last activity is before the start, the duration is 0; one in the future is left until it has passed.

**Re-run**: any time. **On failure**: batches that were committed stay; the next run, ten minutes later, does the rest.
"""

from datetime import timedelta

from airflow.sdk import Param, dag

from web_analytics.job import check_database, job
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings
from web_analytics.watch import start_run, watch


def sql(task_id, messages, **kwargs):
    return PostgresOperator(
        task_id=task_id,
        sql=f"cleanup_analytics_sessions/{task_id}.sql",
        parameters={"idle_minutes": "{{ params.idle_minutes }}", "batch_size": settings.batch_size},
        messages={key: f"[Analytics Cleanup] {text}" for key, text in messages.items()},
        **kwargs,
    )


def count(task_id, row):
    return sql(task_id, {"row": row}, returns="row")


def close_sessions(task_id, found, end, none):
    row = "✅ Closed session {session_id} (duration: {duration_seconds}s)"
    messages = {"batch": f"Found {{count}} {found}", "row": row, "end": f"✅ {end}", "none": none}
    timeout = {"statement_timeout": "2min"}
    return sql(task_id, messages, session_settings=timeout, repeat=True, pause=settings.batch_pause_seconds)


@dag(
    **job(deadline=timedelta(minutes=30), dagrun_timeout=timedelta(hours=1)),
    doc_md=__doc__,
    schedule=settings.cleanup_schedule,
    params={
        "idle_minutes": Param(
            settings.session_timeout_minutes,
            type="integer",
            minimum=1,
            maximum=1440,
            title="Session timeout",
            description="Minutes without activity after which a session is closed",
        ),
    },
)
def cleanup_analytics_sessions():
    count_anomalies = count(
        "count_anomalies",
        "Clock skew: {before_start:,} open session(s) with activity before their start, {in_future:,} in the future",
    )
    close_idle_sessions = close_sessions(
        "close_idle_sessions", "stale session(s) to close", "Closed {total:,} stale session(s)", "No stale sessions"
    )
    end_returned_sessions = close_sessions(
        "end_returned_sessions",
        "closed session(s) that had come back",
        "Ended {total:,} session(s) again that had come back",
        "No closed session had come back",
    )
    count_active_visitors = count(
        "count_active_visitors",
        "{active_visitors:,} visitor(s) active now; {left_open:,} idle session(s) left, since they were being written",
    )

    check_database() >> start_run() >> count_anomalies >> close_idle_sessions
    close_idle_sessions >> end_returned_sessions >> count_active_visitors
    watch(count_active_visitors, target=None, written=[close_idle_sessions.output, end_returned_sessions.output])


cleanup_analytics_sessions()
