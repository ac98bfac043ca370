"""The routes of the Analytics page: the page, its files, and the results of the queries below include/sql/page.

Every route needs a login that may see the runs of the jobs; none changes anything.
"""

import hashlib
import importlib.util
import json
import logging
import os
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, Literal

import psycopg
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag, requires_access_view
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, HTMLResponse

log = logging.getLogger(__name__)

CONNECTION_ID = "analytics_reader"
JOBS = ("aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics")
HERE = Path(__file__).resolve().parent
QUERIES = HERE.parents[1] / "include" / "sql" / "page"

# What one request asks for. Each query may fail alone; the rest of the page is shown all the same.
GROUPS = {
    "status": ("alerts", "jobs", "runs"),
    "traffic": ("traffic", "open_sessions"),
    "visitors": ("visitors",),
    "day": ("top_items",),
    "storage": ("database_size", "deleted_rows"),
    "raw": ("raw_events", "anomalies"),
}
Group = Literal["status", "traffic", "visitors", "day", "storage", "raw"]

TIMEOUT = 5  # seconds of a statement: looking at the page must not be a burden to the application
# What a query means and returns, whatever the database or the role says, as dags/web_analytics/session.py has it.
MEANING = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "timezone_abbreviations": "Default",
    "extra_float_digits": "1",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "row_security": "off",
    "restrict_nonsystem_relation_kind": "",
    "transaction_timeout": "0",
    "jit": "off",
}
SESSION_SETTINGS = MEANING | {
    "default_transaction_read_only": "on",
    "statement_timeout": f"{TIMEOUT}s",
    "lock_timeout": "1s",
    "max_parallel_workers_per_gather": "0",
    "application_name": "airflow:analytics_page",
}

NO_CONNECTION = (
    f"Airflow has no connection {CONNECTION_ID}: make a login in the analytics database (CREATE ROLE airflow_reader LOGIN "
    "PASSWORD '…' IN ROLE analytics_readers), define the connection with it, else like analytics_db, and reload this page."
)
NO_ANSWER = (
    f"The analytics database does not answer: check that it runs and that Airflow's connection {CONNECTION_ID} leads to "
    "it, and reload this page. The log of the api-server has the reason."
)
MISSING = (
    'Something of the jobs\' schema is missing in the database: run "make schema", and put its schema (analytics) first '
    f"in the search_path of connection {CONNECTION_ID}."
)
POLICY = (
    f"Row level security would hide rows from the role of connection {CONNECTION_ID}, and the numbers would be too small: "
    'run "ALTER ROLE … BYPASSRLS" for it as a superuser, and reload this page.'
)
HAS_POLICY = """
    SELECT bool_or(row_security_active(oid)) FROM pg_catalog.pg_class
    WHERE relrowsecurity AND pg_table_is_visible(oid) AND starts_with(relname, 'analytics_')
"""
PROBLEMS: dict[type[psycopg.Error], str] = {
    psycopg.errors.QueryCanceled: f"This took longer than {TIMEOUT} seconds and was cancelled, to spare the application.",
    psycopg.errors.LockNotAvailable: "A table is locked at the moment: reload this page in a minute.",
    psycopg.errors.InsufficientPrivilege: (
        f'The role of connection {CONNECTION_ID} may not read this: run "make schema", and make the role a member of '
        "analytics_readers."
    ),
    psycopg.errors.UndefinedTable: MISSING,
    psycopg.errors.UndefinedColumn: MISSING,
    psycopg.errors.UndefinedFunction: MISSING,
    psycopg.Error: "This could not be read: the log of the api-server has the reason.",
}

FILES = {name: HERE / name for name in ("page.css", "page.js")}
if (package := importlib.util.find_spec("chartkick")) and package.origin:  # its wheel has Chart.js in it
    FILES["chart.js"] = Path(package.origin).parent / "django" / "static" / "chartkick" / "Chart.bundle.js"
# Another one whenever a file is, so that browsers may keep each for ever.
VERSION = hashlib.sha256(repr([(path.stat().st_mtime, path) for path in FILES.values()]).encode()).hexdigest()[:12]

PAGE_HEADERS = {
    "Cache-Control": "no-store",
    # Paths and referrers are what visitors sent: should one ever get into the page as markup, it stays inert.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
}

app = FastAPI(
    title="Analytics",
    # What shows the entry in the navigation, and what the page is about.
    dependencies=[
        Depends(requires_access_view(AccessView.PLUGINS)),
        *(Depends(requires_access_dag("GET", DagAccessEntity.RUN, job)) for job in JOBS),
    ],
    # They would be open to everybody.
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


@app.get("/")
def page() -> HTMLResponse:
    """The page."""
    html = (HERE / "page.html").read_text(encoding="utf-8")
    return HTMLResponse(html.replace("{version}", VERSION), headers=PAGE_HEADERS)


@app.get("/static/{name}")
def static(name: str) -> FileResponse:
    """A file of the page."""
    if name not in FILES:
        raise HTTPException(404, f"There is no file {name}.")
    return FileResponse(FILES[name], headers={"Cache-Control": "private, max-age=31536000, immutable"})


@app.get("/data/{group}")
def data(
    group: Group,
    response: Response,
    from_day: date = date.min,
    to_day: date = date.max,
    website: str | None = None,
    live: bool = False,
) -> dict[str, Any]:
    """The results of a group of queries by name: `rows` or a `problem`; a problem alone where there is no database."""
    response.headers["Cache-Control"] = "no-store"
    parameters = {
        "from_day": from_day,
        "to_day": to_day,
        "website": website,
        "live": live,
        "retention_days": _number("ANALYTICS_RETENTION_DAYS", 90),
        "idle_minutes": _number("ANALYTICS_SESSION_TIMEOUT_MINUTES", 30),
    }
    try:
        with closing(_connect()) as connection:
            return {name: _run(connection, name, parameters) for name in GROUPS[group]}
    except AirflowNotFoundException:
        problem = NO_CONNECTION
    except psycopg.Error as error:
        log.warning("The analytics database does not answer: %s", error)
        problem = NO_ANSWER
    response.status_code = 503
    return {"problem": problem}


def _number(variable: str, default: int) -> int:
    """A setting of the jobs, who complain about a bad one themselves."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else default


def _connect() -> Any:
    """A connection for one request: none is left over when the database restarts."""
    hook = PostgresHook(postgres_conn_id=CONNECTION_ID)
    hook.connection.extra = json.dumps({"connect_timeout": 3} | hook.connection.extra_dejson)
    connection: Any = hook.get_conn()
    connection.autocommit = True
    # After connecting, so that they win over the options of the connection.
    connection.execute(
        "SELECT set_config(name, value, false) FROM json_each_text(%s::json) AS setting (name, value)"
        " WHERE current_setting(name, true) IS NOT NULL",
        [json.dumps(SESSION_SETTINGS)],
    )
    return connection


def _run(connection: Any, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    try:
        cursor = connection.execute((QUERIES / f"{name}.sql").read_bytes(), parameters)
    except psycopg.Error as error:
        if connection.closed:
            raise
        log.warning("%s.sql failed: %s", name, error)
        # A policy and a missing privilege are the same error.
        denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
        if denied and connection.execute(HAS_POLICY).fetchone()[0]:
            return {"problem": POLICY}
        return {"problem": next(text for kind, text in PROBLEMS.items() if isinstance(error, kind))}
    columns = [column.name for column in cursor.description]
    return {"rows": [dict(zip(columns, row, strict=True)) for row in cursor]}
