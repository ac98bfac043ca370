"""An analytics_event that is partitioned by timestamp, as an application that began so would have it."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import psycopg

import embedded
from conftest import Database, run_file
from retention_steps import Retention

PARTITIONED = """
ALTER TABLE analytics_event RENAME TO former;
CREATE TABLE public.analytics_event (LIKE former INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (id, timestamp))
PARTITION BY RANGE (timestamp);
DROP TABLE former;
CREATE INDEX ON public.analytics_event (website_id, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (session_id) WHERE deleted_at IS NULL;
"""


def partition(database: Database, *bounds: str, owner: str = "postgres") -> None:
    """Make analytics_event a partitioned, empty table of `owner`, with partitions that begin and end at `bounds`."""
    from web_analytics import schema

    database.connection.execute(PARTITIONED.encode())
    for number, (start, end) in enumerate(pairwise(bounds)):
        add_partition(database, f"event_{number}", start, end)
        database.connection.execute(f"ALTER TABLE event_{number} OWNER TO {owner}".encode())
    database.connection.execute(f"ALTER TABLE analytics_event OWNER TO {owner}".encode())
    schema.install(database.dsn, "analytics,public")


def partitioned_template(
    server: embedded.Server, template: str, name: str, bounds: Iterable[str], owner: str = "postgres"
) -> str:
    """Make a database from a template, with an analytics_event that is partitioned, and owned by `owner`."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    database = Database(server.dsn(name))
    partition(database, *bounds, owner=owner)
    database.close_connections()
    return name


def add_partition(database: Database, name: str, start: str, end: str) -> None:
    """Add one partition; MINVALUE and MAXVALUE are bounds as well."""
    limits = ["MINVALUE" if start == "MINVALUE" else f"'{start}'", "MAXVALUE" if end == "MAXVALUE" else f"'{end}'"]
    database.connection.execute(
        f"CREATE TABLE public.{name} PARTITION OF analytics_event FOR VALUES FROM ({limits[0]}) TO ({limits[1]})".encode()
    )


def find(run: Retention, **policy: Any) -> list[dict[str, Any]]:
    """The parameters of the tasks that drop partitions."""
    tasks: list[dict[str, Any]] = run.run("find_partitions", **policy)
    return tasks


def detach(run: Retention, task: dict[str, Any]) -> bool:
    """The first two statements of such a task: whether the partition was detached."""
    [begun] = run_file(run.connection, "archive_old_analytics/begin_detach.sql", **task)
    run.log = begun["log"]
    if begun["statement"]:
        run.connection.execute(begun["statement"])
    return bool(begun["statement"])


def drop(run: Retention, task: dict[str, Any]) -> int:
    """Its last statement: how many events it dropped."""
    rows: int = run.run("drop_detached", **task)["rows"]
    return rows


def partitions(database: Database) -> list[str]:
    """The names of the partitions, in the order of their names."""
    rows = database.query("SELECT partition::text FROM analytics_event_partitions() ORDER BY 1")
    return [row["partition"] for row in rows]
