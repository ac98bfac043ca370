"""PostgresOperator: runs one SQL file on the analytics database, the way a maintenance job should."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from itertools import product
from typing import Any

import psycopg
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Context
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

from web_analytics import session
from web_analytics.settings import settings

CONNECTION_ID = "analytics_db"
LOG_LINES = 100
"""Lines that one statement writes to the task's log at most, not counting its last one."""

# The application is the host: a job gives up rather than keeping it waiting. client_connection_check_interval ends the
# statement of a worker that was killed.
SESSION_SETTINGS = session.SETTINGS | {
    "statement_timeout": "30min",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "1min",
    "client_connection_check_interval": "5s",
}
# Templated, as the settings above need not be: Airflow compiles each of them as a template, in every task.
APPLICATION_NAME = "airflow:{{ ti.dag_id }}.{{ ti.task_id }}{{ '[%d]' % ti.map_index if ti.map_index >= 0 else '' }}"

# Of two statements that write the same row at the same moment, the second one fails, and is retried on what the first
# one left.
REPEATABLE_READ = {"default_transaction_isolation": "repeatable read"}

# A server that is gone without a word must not keep a task waiting for hours: libpq's own limits, in seconds.
CLIENT_SETTINGS = {"connect_timeout": 5, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}

# What can pass (connection lost, lock timeout, deadlock, server restart) is retried by default, long enough for a server
# to fail over and so that people hear within two minutes of one that is down; a missing table or privilege, bad SQL,
# bad data and a fault of the code stay as they are however often one tries.
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=20),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[
                    "psycopg.ProgrammingError",
                    "psycopg.DataError",
                    "psycopg.IntegrityError",
                    "psycopg.NotSupportedError",
                    "jinja2.TemplateError",
                    TypeError,
                    ValueError,
                    LookupError,
                    AttributeError,
                    NameError,
                    ArithmeticError,
                ],
                action=RetryAction.FAIL,
                reason="A retry cannot change this error.",
            )
        ]
    ),
}

NO_CONNECTION = "no connection"
"""What stands in place of an SQLSTATE where the server could not be asked."""

HINTS: dict[type[psycopg.Error], str] = {
    psycopg.errors.UndefinedTable: 'Run "make schema" and check search_path in the connection.',
    psycopg.errors.UndefinedColumn: "Check search_path in the connection and the application's version.",
    psycopg.errors.UndefinedFunction: 'Run "make schema" and check search_path in the connection.',
    psycopg.errors.InsufficientPrivilege: (
        'Run "make schema", make the role a member of analytics_jobs, and let no row-level security apply to it.'
    ),
    psycopg.errors.LockNotAvailable: "The application holds a lock; nothing was changed.",
    psycopg.errors.QueryCanceled: "The statement was cancelled or hit its statement_timeout; nothing was changed.",
}


class SessionPostgresHook(PostgresHook):
    """A PostgresHook with one connection for all its statements, which starts with the given session settings.

    They are set after connecting, so that they win over the connection's own ``options``.

    :param session_settings: PostgreSQL settings, name to value.
    """

    def __init__(self, *args: Any, session_settings: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session_settings = session_settings

    def get_conn(self) -> Any:
        """Connect and apply the session settings in one statement.

        :raises AirflowFailException: Airflow has no such connection, or it is not one to PostgreSQL.
        """
        self.connection.extra = json.dumps(CLIENT_SETTINGS | self._extra())
        connection: Any = super().get_conn()
        session.apply(connection, self.session_settings)
        return connection

    def _extra(self) -> dict[str, Any]:
        """Return the extra of the connection, of which Airflow itself would take what it cannot read for nothing."""
        conn_id = self.get_conn_id()
        variable, shape = f"AIRFLOW_CONN_{conn_id.upper()}", "write it as JSON, as README.md shows"
        try:
            extra = json.loads(self.connection.extra or "{}")
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"{variable} is not a connection: {shape}."
                if os.environ.get(variable)
                else f"Airflow has no connection {conn_id}: add it under Admin > Connections."
            ) from None
        except ValueError:
            extra = None
        if self.connection.conn_type != "postgres":
            raise AirflowFailException(f"Airflow's connection {conn_id} is not of the type postgres: {shape}.")
        if not isinstance(extra, dict):
            raise AirflowFailException(f"The extra of Airflow's connection {conn_id} is not a JSON object: {shape}.")
        return extra

    @contextmanager
    def _create_autocommit_connection(self, autocommit: bool = False) -> Iterator[Any]:
        """Give the connection, which stays open unless a statement fails: to connect takes longer than most of them."""
        connection: Any = self.conn
        if connection is None or connection.closed:
            connection = self.get_conn()
        self.set_autocommit(connection, autocommit)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection: Any = self.conn
        if connection is not None:
            connection.close()


def _read(cursor: Any) -> tuple[list[dict[str, Any]], str]:
    """Return a finished statement's rows as dicts, and its command tag."""
    columns = [column.name for column in cursor.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in cursor] if columns else [], cursor.statusmessage


def printable(text: str) -> str:
    """Return a text of one line that a terminal and a mail show as it is: what steers them, or turns the direction of
    writing, stands there as an escape. The names of websites and events are what visitors sent."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def sentence(error: Any) -> str:
    """Return one sentence about why a task failed, and what to do where that is known."""
    if isinstance(error, psycopg.Error):
        reason = error.diag.message_primary or " ".join(str(error).split())
        hint = next((f" {text}" for kind, text in HINTS.items() if isinstance(error, kind)), "")
        return f"{printable(reason)} ({error.sqlstate or NO_CONNECTION}).{hint}"
    if isinstance(error, AirflowFailException):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}; the task's log has more."


def leave_problem(context: Any) -> None:
    """Leave a sentence about its failure as the XCom ``problem`` of a task that has failed for good.

    :param context: what Airflow gives to ``on_failure_callback`` of a task.
    """
    ti, problem = context["ti"], sentence(context.get("exception"))
    parameters = getattr(ti.task, "parameters", None)
    label = parameters.get("label") if isinstance(parameters, dict) else None
    ti.xcom_push(key="problem", value=f"{label}: {problem}" if label else problem)


class PostgresOperator(SQLExecuteQueryOperator):
    """Runs an SQL file on the analytics database: one statement, in one transaction.

    Sets session settings and an ``application_name`` that names the task, and cancels the statement on the server when the
    task is killed. What the statement has to say, it returns in columns of these names:

    - ``log``: lines for the task's log, of which the first LOG_LINES are printed, and the last one;
    - ``problem``: a sentence for which the task fails, without a retry;
    - ``result``: what goes to XCom, from the last row.

    Of a list of files, each is run in its turn, and the result is that of the last one.

    :param session_settings: PostgreSQL settings of this task, over ``SESSION_SETTINGS`` (templated).
    :raises AirflowFailException: the connection is not defined, or the statement returned a problem.
    :raises psycopg.Error: the statement failed, and nothing of it was done.
    """

    template_fields = (*SQLExecuteQueryOperator.template_fields, "session_settings")

    def __init__(
        self, *, session_settings: Mapping[str, str] | None = None, conn_id: str = CONNECTION_ID, **kwargs: Any
    ) -> None:
        super().__init__(conn_id=conn_id, **kwargs)
        self.session_settings = {"application_name": APPLICATION_NAME} | dict(session_settings or {})
        self.killed = False

    @cached_property
    def _hook(self) -> SessionPostgresHook:
        return SessionPostgresHook(
            postgres_conn_id=self.conn_id,
            database=self.database,
            log_sql=False,
            enable_log_db_messages=True,
            session_settings=SESSION_SETTINGS | self.session_settings,
            **self.hook_params,
        )

    def execute(self, context: Context) -> Any:
        """Do the task's work on one connection."""
        try:
            return self.work(context)
        finally:
            self._hook.close()

    def work(self, context: Context) -> Any:
        """Run the statement and return its result."""
        rows: list[dict[str, Any]] = []
        for statement in self._statements():
            rows = self.run_statement(statement, dict(self.parameters or {}))
        return rows[-1].get("result") if rows else None

    def _statements(self) -> Sequence[str]:
        return [self.sql] if isinstance(self.sql, str) else self.sql

    def on_kill(self) -> None:
        """Cancel the statement on the server, where it would run on after the task is gone, and start no other."""
        self.killed = True
        connection: Any = self._hook.conn
        if connection is not None and not connection.closed:
            connection.cancel_safe(timeout=5)

    def run_statement(self, statement: str, parameters: Mapping[str, Any], name: str = "") -> Any:
        """Run a statement, log what it says, and return its rows, a list of dicts.

        :param name: names it in the log, where the task has several.
        """
        if self.killed:
            raise AirflowException("The task was killed between two statements.")
        started = time.monotonic()
        try:
            result: Any = self._hook.run(statement, autocommit=True, parameters=parameters, handler=_read)
        except AirflowFailException as error:
            self.log.error("%s", error)
            raise
        except psycopg.Error as error:
            self.log.error("%s failed: %s", name or self.task_id, sentence(error))
            raise
        rows, report = result
        self.log.info("PostgreSQL%s: %s in %.0f ms", name and f", {name}", report, (time.monotonic() - started) * 1000)
        for line in self._lines(rows, "log"):
            self.log.info("%s", line)
        if problems := self._lines(rows, "problem"):
            for line in problems:
                self.log.error("%s", line)
            raise AirflowFailException(problems[0])
        return rows

    @staticmethod
    def _lines(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
        lines = [printable(line) for row in rows for line in (row.get(column) or "").split("\n") if line]
        more = len(lines) - LOG_LINES - 1
        return lines if more <= 0 else [*lines[:LOG_LINES], f"... and {more:,} more line(s)", lines[-1]]


GUEST: dict[str, Any] = {
    "rest": settings.batch_rest,
    "pause": settings.batch_pause_seconds,
    "give_way": "give_way.sql",
}
"""How a BatchOperator behaves that changes rows of the application."""


class BatchOperator(PostgresOperator):
    """Runs an SQL file again and again, each time in a transaction of its own: once for each of the parameter ``steps``,
    and each time as long as the statement returns a column ``again`` that is not NULL.

    ``steps`` is a list of further parameters, and ``again`` has further parameters of the next time. The XCom is the list
    of all results that are not NULL. Of a list of files, each is run so in its turn.

    :param rest: rest after each statement, as a multiple of the time that it took.
    :param pause: seconds to rest at least.
    :param give_way: an SQL file to run before each statement (templated); while it returns rows, nothing else is done.
    """

    template_fields = (*PostgresOperator.template_fields, "give_way")

    def __init__(self, *, rest: float = 0, pause: float = 0, give_way: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rest, self.pause, self.give_way = rest, pause, give_way

    def work(self, context: Context) -> list[Any]:
        """Run the statements and return their results."""
        parameters = dict(self.parameters or {})
        results: list[Any] = []
        for statement, step in product(self._statements(), parameters.pop("steps", [{}])):
            again = step
            while again is not None:
                self._wait()
                started = time.monotonic()
                row = [{}, *self.run_statement(statement, parameters | again)][-1]
                results.append(row.get("result"))
                again = again | row["again"] if row.get("again") is not None else None
                time.sleep(max(self.pause, self.rest * (time.monotonic() - started)))
        return [result for result in results if result is not None]

    def _wait(self) -> None:
        """Wait while ``give_way`` returns rows, and log the first one's column ``reason``."""
        limits, reason = {"standby_lag_mb": settings.standby_lag_mb}, ""
        while self.give_way and not self.killed:
            result: Any = self._hook.run(self.give_way, autocommit=True, parameters=limits, handler=_read)
            if not result[0]:
                break
            if not reason:
                reason = result[0][0]["reason"]
                self.log.info("Waiting: %s", reason)
            time.sleep(1)
