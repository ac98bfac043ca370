"""Traffic in which every job finds something to do, runs of all jobs on it, and what they leave behind."""

from datetime import UTC, datetime, timedelta
from typing import Any

from conftest import DAYS_KEPT, Database
from dag_runs import dags

ARCHIVE, AGGREGATE, CLEANUP = JOBS = (
    "archive_old_analytics",
    "aggregate_daily_analytics",
    "cleanup_analytics_sessions",
)
BATCH_SIZE = 10
NOW = datetime.now(UTC)
CUTOFF = NOW.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS_KEPT)
# Days after the cutoff, none of them near it: midnight may pass while the tests run.
FINAL, RIGHT, STALE, MISSING, KEPT = -7, -6, -5, -4, 10
MOMENTS = ["aggregated_at", "raw_purged_at", "updated_at", "purge_snapshot", "snapshot"]

EVENTS = """
INSERT INTO analytics_event (
    id, website_id, event_type, pathname, referrer_source, visitor_id, session_id, timestamp, created_at
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
    %(cutoff)s
FROM unnest(ARRAY['blog', 'shop']) AS website, unnest(%(days)s::int[]) AS day, unnest(%(numbers)s::int[]) AS number
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
    "analytics_event": "id",
    "analytics_session": "id",
    "analytics_daily_stats": "website_id, date",
    "analytics_purge_proof": "website_id, date",
}

Tables = dict[str, list[dict[str, Any]]]


def date(day: int) -> str:
    return str((CUTOFF + timedelta(days=day)).date())


def seed(database: Database) -> None:
    """Fill the tables with the same rows every time: what each job finds to do, in several batches."""

    def events(days: list[int], numbers: list[int]) -> None:
        database.connection.execute(EVENTS.encode(), {"cutoff": CUTOFF, "days": days, "numbers": numbers})

    events([FINAL, RIGHT, STALE, MISSING, KEPT], [1, 2, 3, 4])
    counted = [date(day) for day in (FINAL, RIGHT, STALE, KEPT)]
    database.run("aggregate_daily_analytics/aggregate_day.sql", days=counted, timezone="UTC")
    events([STALE], [5])
    events([KEPT], [5, 6, 7, 8])
    database.connection.execute(SESSIONS.encode(), {"cutoff": CUTOFF})
    database.session(
        NOW - timedelta(hours=1), NOW + timedelta(hours=1), session_id="active", id="active", created_at=NOW
    )
    database.query(
        """
        WITH left_over AS (DELETE FROM analytics_event WHERE id LIKE %s),
        soft_deleted AS (UPDATE analytics_event SET deleted_at = created_at WHERE id = %s),
        -- The session of an expired day that has an event which is kept.
        lasting AS (UPDATE analytics_event SET session_id = %s WHERE id = %s)
        UPDATE analytics_daily_stats SET raw_purged_at = now(), purge_snapshot = pg_current_snapshot()
        WHERE date = %s RETURNING date
        """,
        f"event_%_{FINAL}_2",
        f"event_shop_{STALE}_3",
        f"session_blog_{RIGHT}_0",
        f"event_blog_{KEPT}_4",
        date(FINAL),
    )


def tables(database: Database) -> Tables:
    """All rows, but of a moment or a transaction's number only whether there is one."""
    found = {}
    with database.connect() as connection:
        for table, key in TABLES.items():
            found[table] = connection.execute(f"SELECT * FROM {table} ORDER BY {key}".encode()).fetchall()
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
        dag.deadline = None  # test() fails on it, see run_dag
        run = dag.test()
        assert run.state == "success"
        for ti in run.get_task_instances():
            tries.setdefault(ti.task_id, []).append(ti.try_number)
        after.append(tables(database))
    return after, tries
