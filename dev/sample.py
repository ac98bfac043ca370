"""Fills the sample database of docker-compose.yaml: the application's tables with made-up traffic, what the jobs need, and
the logins of Airflow's connections. What is there already stays.

Environment: SAMPLE_DSN is the database as its owner; AIRFLOW_CONN_ANALYTICS_DB and AIRFLOW_CONN_ANALYTICS_READER.
"""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

import traffic

HERE = Path(__file__).resolve().parent
ROLES = {"AIRFLOW_CONN_ANALYTICS_DB": "analytics_jobs", "AIRFLOW_CONN_ANALYTICS_READER": "analytics_readers"}


def create_login(database: psycopg.Connection[Any], login: str, role: str) -> None:
    """Create a role that may log in, and is a member of another one, unless it is there."""
    if database.execute("SELECT FROM pg_roles WHERE rolname = %s", [login]).fetchone() is None:
        names = (sql.Identifier(login), sql.Identifier(role))
        database.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(*names))


def main() -> int:
    """Fill the database; return the exit code."""
    sys.path.append(str(HERE.parent / "dags"))
    from web_analytics import schema

    dsn = os.environ["SAMPLE_DSN"]
    host = psycopg.conninfo.conninfo_to_dict(dsn)["host"]
    logins = {}
    for variable, role in ROLES.items():
        connection = json.loads(os.environ.get(variable, "{}"))
        if connection.get("host") != host:
            print(
                f"{variable} does not lead to {host}: leave the profile sample out, or run dev/env.sh without it in .env."
            )
            return 1
        logins[role] = connection
    with psycopg.connect(dsn) as database:
        if not database.execute("SELECT to_regclass('public.analytics_event')").fetchone()[0]:  # type: ignore[index]
            database.execute((HERE / "application.sql").read_bytes())
            rows = traffic.sample(database, datetime.now(UTC))
            print(f"Sample traffic: {rows['analytics_event']:,} events in {rows['analytics_session']:,} sessions")
    schema.install(dsn, "analytics,public")
    with psycopg.connect(dsn) as database:
        for role, connection in logins.items():
            create_login(database, connection["login"], role)
            login, password = sql.Identifier(connection["login"]), sql.Literal(connection["password"])
            database.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(login, password))
    return 0


if __name__ == "__main__":
    sys.exit(main())
