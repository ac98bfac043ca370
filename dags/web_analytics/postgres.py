"""PostgresOperator: runs one SQL file on the analytics database, the way a maintenance job should."""

import itertools
import json
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

import psycopg
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Context
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
from psycopg import sql as psycopg_sql

CONNECTION_ID = "analytics_db"

# The application is the host: a job gives up rather than keeping it waiting. UTC makes every text form of a
# timestamp unambiguous. client_connection_check_interval ends the statement of a worker that was killed.
SESSION_SETTINGS = {
    "statement_timeout": "30min",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "1min",
    "client_connection_check_interval": "5s",
    "timezone": "UTC",
    "jit": "off",
    # Counting only the rows that a policy lets through would be a wrong count: fail instead.
    "row_security": "off",
    "application_name": "airflow:{{ ti.dag_id }}.{{ ti.task_id }}{{ '[%d]' % ti.map_index if ti.map_index >= 0 else '' }}",
}

# A server that is gone without a word must not keep a task waiting for hours: libpq's own limits, in seconds.
CLIENT_SETTINGS = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}

# What can pass (connection lost, lock timeout, deadlock, server restart) is retried by default; a missing table or
# privilege, bad SQL and bad data stay as they are however often one tries.
RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[
                    "psycopg.ProgrammingError",
                    "psycopg.DataError",
                    "psycopg.IntegrityError",
                    "psycopg.NotSupportedError",
                ],
                action=RetryAction.FAIL,
                reason="A retry cannot change this error.",
            )
        ]
    ),
}

HINTS: dict[type[psycopg.Error], str] = {
    psycopg.errors.UndefinedTable: 'Run "make schema" and check search_path in the connection.',
    psycopg.errors.UndefinedColumn: "Check search_path in the connection and the application's version.",
    psycopg.errors.InsufficientPrivilege: 'Run "make schema" and make the role a member of analytics_jobs.',
    psycopg.errors.LockNotAvailable: "The application holds a lock; nothing was changed.",
    psycopg.errors.QueryCanceled: "The statement was cancelled or hit its statement_timeout; nothing was changed.",
}


class SessionPostgresHook(PostgresHook):
    """A PostgresHook whose connections start with the given session settings.

    They are set after connecting, so that they win over the connection's own ``options``.

    :param session_settings: PostgreSQL settings, name to value.
    """

    def __init__(self, *args: Any, session_settings: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session_settings = session_settings

    def get_conn(self) -> Any:
        """Connect and apply the session settings in one statement."""
        self.connection.extra = json.dumps(CLIENT_SETTINGS | self.connection.extra_dejson)
        connection: Any = super().get_conn()
        calls = psycopg_sql.SQL(", ").join(
            psycopg_sql.SQL("set_config({}, {}, false)").format(name, value)
            for name, value in self.session_settings.items()
        )
        connection.execute(psycopg_sql.SQL("SELECT {}").format(calls))
        connection.commit()
        return connection


def _read(cursor: Any) -> tuple[int, list[dict[str, Any]], str]:
    """Return a finished statement's row count, its rows as dicts, and its command tag."""
    columns = [column.name for column in cursor.description or ()]
    rows = [dict(zip(columns, row, strict=True)) for row in cursor] if columns else []
    return cursor.rowcount, rows, cursor.statusmessage


class PostgresOperator(SQLExecuteQueryOperator):
    """Runs one SQL statement on the analytics database, in one transaction.

    Sets session settings and an ``application_name`` that names the task, logs what the statement reports, and
    cancels it on the server when the task is killed.

    :param session_settings: PostgreSQL settings of this task, over ``SESSION_SETTINGS`` (templated).
    :param messages: log lines, as ``str.format`` templates over the parameters, the columns of a row, ``count`` (rows
        of this statement) and ``total`` (rows of this task so far, on top of the parameter ``done``). Keys:
        ``start``; ``batch``, after each statement that had rows; ``row``, for each row up to `row_messages`;
        ``end``, at the end; ``none``, at the end in place of ``end`` when there were no rows; ``error``, for each row up
        to `row_messages`, and the task fails.
    :param row_messages: the number of rows that one task names at most.
    :param returns: what goes to XCom: ``count`` (rows affected, int), ``row`` (the first row as a dict) or ``rows``
        (all rows as a list of dicts).
    :param repeat: run the statement again, each time in a transaction of its own: as often as the parameter ``batches``
        says, or until it affects no row; without that parameter, until it affects fewer rows than ``batch_size``.
    :param pause: seconds to rest after each statement of a repeated one.
    :raises AirflowFailException: the connection is not defined, or there were rows for ``error``.
    :raises psycopg.Error: the statement failed, and nothing of it was done.
    """

    template_fields = (*SQLExecuteQueryOperator.template_fields, "session_settings")

    def __init__(
        self,
        *,
        session_settings: Mapping[str, str] | None = None,
        messages: Mapping[str, str] | None = None,
        row_messages: int = 100,
        returns: Literal["count", "row", "rows"] = "count",
        repeat: bool = False,
        pause: float = 0,
        conn_id: str = CONNECTION_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(conn_id=conn_id, **kwargs)
        self.session_settings = SESSION_SETTINGS | dict(session_settings or {})
        self.messages = messages or {}
        self.row_messages = row_messages
        self.returns = returns
        self.repeat = repeat
        self.pause = pause
        self.killed = False

    @cached_property
    def _hook(self) -> SessionPostgresHook:
        return SessionPostgresHook(
            postgres_conn_id=self.conn_id,
            database=self.database,
            log_sql=False,
            enable_log_db_messages=True,
            session_settings=self.session_settings,
            **self.hook_params,
        )

    def execute(self, context: Context) -> Any:
        """Run the statement and return what `returns` says.

        A sentence about its failure is left as the XCom ``problem``.
        """
        try:
            return self._execute()
        except psycopg.Error as error:
            reason = error.diag.message_primary or " ".join(str(error).split())
            hint = next((f" {text}" for kind, text in HINTS.items() if isinstance(error, kind)), "")
            problem = f"{reason} ({error.sqlstate or 'no connection'}).{hint}"
            self.log.error("%s failed: %s", self.task_id, problem)
            self._leave(context, problem)
            raise
        except AirflowFailException as error:
            self._leave(context, str(error))
            raise

    def _leave(self, context: Context, problem: str) -> None:
        parameters = dict(self.parameters or {})
        if what := parameters.get("label") or parameters.get("day"):
            problem = f"{what}: {problem}"
        context["ti"].xcom_push(key="problem", value=problem)

    def _execute(self) -> Any:
        parameters = dict(self.parameters or {})
        batches = int(parameters.get("batches", 0)) if self.repeat else 1
        total = int(parameters.get("done", 0))
        affected, row_messages = 0, self.row_messages
        self._say("start", parameters)
        for batch in itertools.count(1):
            count, rows = self._run(parameters)
            affected += count
            values = parameters | {"count": count, "total": total + affected}
            if count:
                self._say("batch", values)
            for row in rows[:row_messages]:
                self._say("row", values | row)
            row_messages -= len(rows[:row_messages])
            if self.repeat and count:
                time.sleep(self.pause)
            # Where the rows are not planned, a batch that is not full is the last one. Where they are, it may be that the
            # application changed some of its rows at that moment.
            if batch == batches or count < (1 if batches else int(parameters["batch_size"])):
                break
        if rows and "error" in self.messages:
            for row in rows[: self.row_messages]:
                self.log.error(self.messages["error"].format_map(row))
            raise AirflowFailException(self.messages["error"].format_map(rows[0]))
        self._say("end" if affected or "none" not in self.messages else "none", parameters | {"total": affected})
        return {"count": affected, "row": rows[0] if rows else None, "rows": rows}[self.returns]

    def on_kill(self) -> None:
        """Cancel the statement on the server, where it would run on after the task is gone, and start no other."""
        self.killed = True
        connection: Any = self._hook.conn
        if connection is not None and not connection.closed:
            connection.cancel_safe(timeout=5)

    def _run(self, parameters: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        if self.killed:
            raise AirflowException("The task was killed between two batches.")
        started = time.monotonic()
        try:
            result: Any = self._hook.run(self.sql, parameters=parameters, handler=_read)
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"Airflow has no connection {self.conn_id}: add it under Admin > Connections."
            ) from None
        count, rows, report = result
        self.log.info("PostgreSQL: %s in %.0f ms", report, (time.monotonic() - started) * 1000)
        return count, rows

    def _say(self, key: str, values: Mapping[str, Any]) -> None:
        if key in self.messages:
            self.log.info(self.messages[key].format_map(values))
