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


def sql(task_id, **kwargs):
    return PostgresOperator(
        task_id=task_id,
        sql=f"cleanup_analytics_sessions/{task_id}.sql",
        parameters={"idle_minutes": "{{ params.idle_minutes | int }}", "batch_size": settings.batch_size, "done": 0},
        pause=settings.batch_pause_seconds,
        **kwargs,
    )


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
    timeout = {"statement_timeout": "2min"}
    count_anomalies = sql("count_anomalies")
    close_idle_sessions = sql("close_idle_sessions", session_settings=timeout)
    end_returned_sessions = sql("end_returned_sessions", session_settings=timeout)
    count_active_visitors = sql("count_active_visitors")

    check_database() >> start_run() >> count_anomalies >> close_idle_sessions
    close_idle_sessions >> end_returned_sessions >> count_active_visitors
    watch(count_active_visitors, written=[close_idle_sessions.output, end_returned_sessions.output])


cleanup_analytics_sessions()
