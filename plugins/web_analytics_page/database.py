"""The analytics database as the page reads it: with a login that may only look, a short time-out, and one sentence for
each thing that can be wrong."""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg.rows import dict_row

log = logging.getLogger(__name__)

CONNECTION_ID = "analytics_reader"
QUERIES = Path(__file__).resolve().parent / "queries"

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
    f"Airflow has no connection {CONNECTION_ID}, or cannot read it: make a login in the analytics database (CREATE ROLE airflow_reader LOGIN "
    "PASSWORD '…' IN ROLE analytics_readers), define the connection with it, else like analytics_db, and reload this page."
)
NO_POSTGRES = (
    f"Airflow's connection {CONNECTION_ID} is not of the type postgres, or its extra is no JSON object: write it as JSON, as README.md shows, and restart "
    "the api-server if it is an environment variable."
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
    SELECT bool_or(row_security_active(oid)) AS found FROM pg_catalog.pg_class
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


class Unreachable(Exception):
    """There is no database to ask; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """The rows of a query, or the sentence that says why there are none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""


class Reader:
    """Asks the files in queries/, on one connection per request: none is left when the database restarts."""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters | {
            "retention_days": _number("ANALYTICS_RETENTION_DAYS", 90),
            "idle_minutes": _number("ANALYTICS_SESSION_TIMEOUT_MINUTES", 30),
        }

    def __enter__(self) -> Self:
        try:
            hook = PostgresHook(postgres_conn_id=CONNECTION_ID)
            if hook.connection.conn_type != "postgres":
                raise Unreachable(NO_POSTGRES)
            extra: Any = hook.connection.extra_dejson
            if not isinstance(extra, dict):
                raise Unreachable(NO_POSTGRES)
            hook.connection.extra = json.dumps({"connect_timeout": 3} | extra)
            connection: Any = hook.get_conn()
            connection.autocommit = True
            # After connecting, so that they win over the options of the connection.
            connection.execute(
                "SELECT set_config(name, value, false) FROM json_each_text(%s::json) AS setting (name, value)"
                " WHERE current_setting(name, true) IS NOT NULL",
                [json.dumps(SESSION_SETTINGS)],
            )
        except AirflowNotFoundException:
            raise Unreachable(NO_CONNECTION) from None
        except psycopg.ProgrammingError as error:  # such as an unknown option
            raise Unreachable(f"Airflow's connection {CONNECTION_ID} has a mistake: {str(error).strip()}.") from error
        except psycopg.Error as error:
            raise _unreachable(error) from error
        self.connection = connection
        self.connection.row_factory = dict_row
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(psycopg.Error):
            self.connection.close()

    def ask(self, query: str, **parameters: Any) -> Result:
        """The result of a query, which may fail alone. Unreachable if the connection is lost."""
        try:
            cursor = self.connection.execute((QUERIES / f"{query}.sql").read_bytes(), self.parameters | parameters)
            return Result(cursor.fetchall())
        except psycopg.Error as error:
            if self.connection.closed:
                raise _unreachable(error) from error
            log.warning("%s.sql failed: %s", query, error)
            # A policy and a missing privilege are the same error.
            denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
            if denied and self.connection.execute(HAS_POLICY).fetchone()["found"]:
                return Result(problem=POLICY)
            return Result(problem=next(text for kind, text in PROBLEMS.items() if isinstance(error, kind)))


def _unreachable(error: psycopg.Error) -> Unreachable:
    log.warning("The analytics database does not answer: %s", error)
    return Unreachable(NO_ANSWER)


def _number(variable: str, default: int) -> int:
    """A setting of the jobs, who complain about a bad one themselves."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else default
