"""A year of the three DAGs in Airflow's metadata database: copies of the newest run that each has there."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

RUNS = {
    "cleanup_analytics_sessions": (52_560, timedelta(minutes=10)),
    "aggregate_daily_analytics": (365, timedelta(days=1)),
    "archive_old_analytics": (52, timedelta(weeks=1)),
}
"""How many runs a DAG has in a year, and how far they are apart."""

TABLES = ("dag_run", "task_instance", "task_map", "xcom", "log", "rendered_task_instance_fields")
"""The tables that a run writes to."""

RENDERED = 30
"""Runs of which Airflow keeps the rendered fields ([core] max_num_rendered_ti_fields_per_task)."""

Connection = psycopg.Connection[Any]

PLAN = """
    CREATE TEMP TABLE year_run AS
    SELECT seed.dag_id, seed.id AS seed_id, seed.run_id AS seed_run_id, made.number, made.at,
        made.at - seed.run_after AS shift, nextval('dag_run_id_seq') AS id, 'scheduled__' || made.at AS run_id
    FROM (
        SELECT DISTINCT ON (dag_id) dag_id, id, run_id, run_after FROM dag_run
        WHERE state = 'success' ORDER BY dag_id, run_after DESC
    ) AS seed
    JOIN unnest(%s::text[], %s::int[], %s::interval[]) AS job (dag_id, runs, apart) USING (dag_id)
    CROSS JOIN LATERAL (
        SELECT number, %s - number * job.apart AS at FROM generate_series(1, job.runs) AS number
    ) AS made
"""


def add_year(connection: Connection, until: datetime, wanted: Mapping[str, tuple[int, timedelta]] | None = None) -> int:
    """Add the runs of the year before `until`, or others, and return their number; each DAG needs one that succeeded."""
    wanted = wanted or RUNS
    with connection.transaction():
        counts, intervals = zip(*wanted.values(), strict=True)
        runs = connection.execute(PLAN, [list(wanted), list(counts), list(intervals), until]).rowcount
        connection.execute("CREATE INDEX ON year_run (dag_id); ANALYZE year_run")
        for table in TABLES:
            connection.execute(_copy(connection, table))
            # Each row is looked up in the table before, which has grown a thousandfold since its statistics were made.
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
        connection.execute("DROP TABLE year_run")
    return runs


def _copy(connection: Connection, table: str) -> sql.Composed:
    query = "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
    with connection.cursor(row_factory=tuple_row) as cursor:
        columns: dict[str, str] = dict(cursor.execute(query + " AND NOT attisdropped", [table]).fetchall())
    values: dict[str, Any] = {name: sql.SQL("seed.{}").format(sql.Identifier(name)) for name in columns}
    for name, kind in columns.items():
        if kind == "timestamp with time zone":
            values[name] += sql.SQL(" + year_run.shift")
    values["run_id"] = sql.SQL("year_run.run_id")
    if table == "dag_run":
        at = ("logical_date", "run_after", "data_interval_start", "data_interval_end")
        values |= dict.fromkeys(at, sql.SQL("year_run.at"))
        values |= {"id": sql.SQL("year_run.id"), "run_type": sql.SQL("'scheduled'")}
    elif table == "task_instance":
        values["id"] = sql.SQL("gen_random_uuid()")
    elif table == "log":
        values["id"] = sql.SQL("nextval('log_id_seq')")
    elif table == "xcom":
        values["dag_run_id"] = sql.SQL("year_run.id")
    return sql.SQL(
        "INSERT INTO {} ({}) SELECT {} FROM year_run JOIN {} AS seed"
        " ON (seed.dag_id, seed.run_id) = (year_run.dag_id, year_run.seed_run_id) WHERE {} ORDER BY year_run.at"
    ).format(
        sql.Identifier(table),
        sql.SQL(", ").join([sql.Identifier(name) for name in columns]),
        sql.SQL(", ").join(values.values()),
        sql.Identifier(table),
        sql.SQL(f"year_run.number <= {RENDERED}" if table.startswith("rendered") else "true"),
    )


def sizes(connection: Connection) -> dict[str, tuple[int, int]]:
    """The rows and the bytes, indexes included, of each table that a run writes to."""
    found = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        for table in TABLES:
            query = sql.SQL("SELECT count(*), pg_total_relation_size({}) FROM {}")
            cursor.execute(query.format(sql.Literal(table), sql.Identifier(table)))
            found[table] = cursor.fetchall()[0]
    return found
