"""Traffic in which every job finds something to do, runs of all jobs on it, and what they leave behind."""

from datetime import UTC, datetime, timedelta
from typing import Any

from aggregation_steps import aggregate
from conftest import DAYS_KEPT, Database
from dag_runs import dags, without_waiting
from retention_steps import POLICY, SEAL, policy

ARCHIVE, AGGREGATE, CLEANUP = JOBS = (
    "archive_old_analytics",
    "aggregate_daily_analytics",
    "cleanup_analytics_sessions",
)
BATCH_SIZE = 10
NOW = datetime.now(UTC)
CUTOFF = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS_KEPT)
# Days after the cutoff, none of them near it: midnight may pass while the tests run.
SEALED, RIGHT, STALE, MISSING, KEPT = -7, -6, -5, -4, 10
MOMENTS = ["aggregated_at", "sealed_at", "updated_at"]

EVENTS = """
INSERT INTO analytics_event (
    id, website_id, event_type, pathname, referrer_source, visitor_id, session_id, timestamp, created_at, updated_at
)
SELECT
    format('event_%%s_%%s_%%s', website, day, number),
    website,
    CASE WHEN number = 3 THEN 'custom_event' ELSE 'pageview' END,
    '/page/' || number,
    (ARRAY['google', 'direct', NULL])[number],
    'visitor_' || number %% 2,
    format('session_%%s_%%s_%%s', website, day, CASE WHEN day < 0 THEN number %% 2 ELSE number END),
    %(cutoff)s + make_interval(days => day, hours => number),
    %(cutoff)s,
    %(cutoff)s
FROM unnest(ARRAY['blog', 'held', 'shop']) AS website, unnest(%(days)s::int[]) AS day, unnest(%(numbers)s::int[]) AS number
"""
# Expired sessions were closed. Of the kept ones, one of four came back after its end, and the others are idle.
SESSIONS = """
INSERT INTO analytics_session (
    id, website_id, session_id, visitor_id, entry_page, started_at, last_activity_at, ended_at, created_at
)
SELECT
    'id_' || session_id, website_id, session_id, visitor_id, '/', min(timestamp), max(timestamp) + INTERVAL '9 minutes',
    CASE
        WHEN min(timestamp) < %(cutoff)s THEN max(timestamp) + INTERVAL '9 minutes'
        WHEN session_id LIKE '%%\\_1' THEN min(timestamp)
    END,
    %(cutoff)s
FROM analytics_event
GROUP BY website_id, session_id, visitor_id
"""
TABLES = {
    "analytics_event": "* FROM analytics_event ORDER BY id",
    "analytics_session": "* FROM analytics_session ORDER BY id",
    "analytics_daily_stats": "* FROM analytics_daily_stats ORDER BY website_id, date",
    # Numbers have gaps after a transaction that was rolled back, and the order of the keys is that of a plan.
    "analytics_purge_batch": """
        kind, rows, first_at, last_at,
        ARRAY(SELECT unnest(ids) ORDER BY 1) AS ids, ARRAY(SELECT unnest(deleted_ids) ORDER BY 1) AS deleted_ids
        FROM analytics_purge_batch ORDER BY kind, first_at, ids
    """,
    "analytics_timezone": "website_id, from_date::text, timezone FROM analytics_timezone ORDER BY website_id, from_date",
    # Not the rows deleted: a batch whose deletion was committed and not answered deletes nothing at its next try.
    "analytics_job_run": """
        job, bool_and(outcome = 'success') AS succeeded, sum(late_events) AS late_events, sum(unsealed_days) AS unsealed
        FROM analytics_job_run GROUP BY job ORDER BY job
    """,
}

Tables = dict[str, list[dict[str, Any]]]


def date(day: int) -> str:
    return str((CUTOFF + timedelta(days=day)).date())


def seed(database: Database) -> None:
    """Fill the tables with the same rows every time: what each job finds to do, in several batches."""

    def events(days: list[int], numbers: list[int]) -> None:
        database.connection.execute(EVENTS.encode(), {"cutoff": CUTOFF, "days": days, "numbers": numbers})

    events([SEALED, RIGHT, STALE, MISSING, KEPT], [1, 2, 3, 4])
    aggregate(database, *(date(day) for day in (SEALED, RIGHT, STALE, KEPT)))
    # A run that has sealed a day and deleted a part of it. A website was put on hold then, and events came late.
    steps = {"first_day": date(SEALED), "last_day": date(SEALED), "batch_size": 5}
    database.run(SEAL, **POLICY | steps)
    policy(database, "legal_hold = TRUE", "held")
    events([SEALED, STALE], [5])
    events([KEPT], [5, 6, 7, 8])
    database.connection.execute(SESSIONS.encode(), {"cutoff": CUTOFF})
    database.session(
        NOW - timedelta(hours=1), NOW + timedelta(hours=1), session_id="active", id="active", created_at=NOW
    )
    for query, *ids in (
        ("DELETE FROM analytics_event WHERE id IN (%s, %s)", f"event_blog_{SEALED}_2", f"event_shop_{SEALED}_2"),
        ("UPDATE analytics_event SET deleted_at = created_at WHERE id = %s", f"event_shop_{STALE}_3"),
        # The session of an expired day has an event which is kept.
        (
            "UPDATE analytics_event SET session_id = %s WHERE id = %s",
            f"session_blog_{RIGHT}_0",
            f"event_blog_{KEPT}_4",
        ),
    ):
        database.connection.execute(query.encode(), ids)


def tables(database: Database) -> Tables:
    """All rows that the jobs write, but of a moment only whether there is one."""
    with database.connect() as connection:
        found = {table: connection.execute(f"SELECT {rows}".encode()).fetchall() for table, rows in TABLES.items()}
    for row in (row for rows in found.values() for row in rows):
        row |= {name: row[name] is not None for name in MOMENTS if name in row}
        if "visitor_sketch" in row:
            row["visitor_sketch"] = hash(row["visitor_sketch"])  # a difference of 49152 digits is hard to read
    return found


def run_jobs(database: Database) -> tuple[list[Tables], dict[str, list[int]]]:
    """Run all jobs with their retries; return the tables after each, and how often the instances of each task ran."""
    after: list[Tables] = []
    tries: dict[str, list[int]] = {}
    for dag_id in JOBS:
        dag = dags()[dag_id]
        run = without_waiting(dag, run_conf={"confirm": True} if dag_id == ARCHIVE else {})
        assert run.state == "success"
        for ti in run.get_task_instances():
            tries.setdefault(ti.task_id, []).append(ti.try_number)
        after.append(tables(database))
    return after, tries
