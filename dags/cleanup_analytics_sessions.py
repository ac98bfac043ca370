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

from web_analytics.job import JOB, check_database, cron
from web_analytics.postgres import GUEST, BatchOperator
from web_analytics.settings import settings
from web_analytics.watch import close_run


@dag(
    **JOB | {"dagrun_timeout": timedelta(hours=1)},
    doc_md=__doc__,
    schedule=cron(settings.cleanup_schedule),
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
    close_idle_sessions = BatchOperator(
        task_id="close_idle_sessions",
        # One task, as each costs Airflow more than its statements cost the database, 52,560 times a year.
        sql=[f"cleanup_analytics_sessions/{name}.sql" for name in ("close_idle_sessions", "end_returned_sessions")],
        parameters={"idle_minutes": "{{ params.idle_minutes | int }}", "batch_size": settings.batch_size, "done": 0},
        # The planner knows nothing of how few sessions are open or come back, and would read them all.
        session_settings={"statement_timeout": "2min", "enable_seqscan": "off"},
        **GUEST,
    )

    check_database() >> close_idle_sessions
    close_run(close_idle_sessions, written=[close_idle_sessions.output])


cleanup_analytics_sessions()
