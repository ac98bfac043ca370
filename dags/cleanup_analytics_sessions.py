"""# Close idle sessions

Ends every session that has been idle for longer than the session timeout, at its last activity.

**Reads** `analytics_session`, `analytics_event`. **Writes** `analytics_session`: `ended_at`, `duration_seconds`,
`updated_at`.

**Which sessions**: open ones whose last activity is older than `idle_minutes`, and ones that came back after they were
closed and have been idle since. A session with activity within `idle_minutes` is never closed.

**Re-run**: any time. **On failure**: batches that were committed stay; the next run, ten minutes later, does the rest.
"""

from datetime import timedelta

from airflow.sdk import Param, dag

from web_analytics.job import JOB, check_database
from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings

PARAMETERS = {"idle_minutes": "{{ params.idle_minutes }}", "batch_size": settings.batch_size}


def close_sessions(task_id, **messages):
    return PostgresOperator(
        task_id=task_id,
        sql=f"cleanup_analytics_sessions/{task_id}.sql",
        parameters=PARAMETERS,
        session_settings={"statement_timeout": "2min"},
        repeat=True,
        pause=settings.batch_pause_seconds,
        messages={"row": "[Analytics Cleanup] ✅ Closed session {session_id} (duration: {duration_seconds}s)"}
        | messages,
    )


@dag(
    **JOB | {"dagrun_timeout": timedelta(hours=1)},
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
    close_idle_sessions = close_sessions(
        "close_idle_sessions",
        batch="[Analytics Cleanup] Found {count} stale session(s) to close",
        end="[Analytics Cleanup] ✅ Closed {total:,} stale session(s)",
        none="[Analytics Cleanup] No stale sessions",
    )
    end_returned_sessions = close_sessions(
        "end_returned_sessions",
        batch="[Analytics Cleanup] Found {count} closed session(s) that had come back",
        end="[Analytics Cleanup] ✅ Ended {total:,} session(s) again that had come back",
        none="[Analytics Cleanup] No closed session had come back",
    )
    count_active_visitors = PostgresOperator(
        task_id="count_active_visitors",
        sql="cleanup_analytics_sessions/count_active_visitors.sql",
        parameters=PARAMETERS,
        messages={"row": "[Analytics Cleanup] {active_visitors:,} visitor(s) active now"},
        returns="row",
    )

    check_database() >> close_idle_sessions >> end_returned_sessions >> count_active_visitors


cleanup_analytics_sessions()
