"""The tasks that delete expired rows, and their report."""

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context, task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowFailException

from web_analytics.archive import ArchiveOperator
from web_analytics.job import RUN
from web_analytics.postgres import GUEST, BatchOperator, PostgresOperator
from web_analytics.settings import settings

# A client may send a whole number as 90.0; true and false are 1 and 0.
PARAMETERS = RUN | {
    name: f"{{{{ params.{name} | int }}}}" for name in ("retention_days", "batch_size", "dry_run", "confirm")
}
PARAMETERS |= {"has_archive": str(settings.archive_uri is not None)}


def sql(task_id: str, file: str = "", operator: Any = PostgresOperator, **kwargs: Any) -> Any:
    """Return the task that runs an SQL file, by default that of its name, with the run's Params and others."""
    return operator(
        task_id=task_id,
        sql=f"archive_old_analytics/{file or task_id}.sql",
        parameters=PARAMETERS | kwargs.pop("parameters", {}),
        **kwargs,
    )


def seal(task_id: str, steps: Any, **kwargs: Any) -> Any:
    """Return a task that seals the days of some steps, and gives those of which days are left."""
    memory = {"work_mem": "64MB"}
    return sql(task_id, "seal_days", BatchOperator, parameters={"steps": steps}, session_settings=memory, **kwargs)


def archive(kind: str) -> PostgresOperator:
    """Return the task that writes listed rows of a kind (event or session) to the archive, if there is one."""
    # A step's 100,000 rows are sorted in memory.
    return ArchiveOperator(task_id=f"archive_{kind}s", kind=kind, session_settings={"work_mem": "256MB"})


def delete_batch(table: str, plan: PostgresOperator) -> MappedOperator:
    """Return the task that deletes batches of `table` (event or session), mapped over those of `plan`."""
    return BatchOperator.partial(
        task_id=f"delete_{table}_batch",
        sql=f"archive_old_analytics/delete_{table}_batch.sql",
        max_active_tis_per_dag=settings.archive_parallelism,
        session_settings={"statement_timeout": "1min"},
        map_index_template="{{ task.parameters['label'] }}",
        **GUEST,
    ).expand(parameters=plan.output)


class DropPartition(PostgresOperator):
    """Drops a partition of analytics_event whose every event may go, by three statements, each in a transaction of its own:
    what asks for that and remembers the partition, what detaches it, and what asks again and drops it or attaches it again.
    The next try, or the next run, goes on where one was stopped.
    """

    def work(self, context: Context) -> list[Any]:
        """Detach and drop the partition, or leave it to the batches."""
        begin_detach, drop_detached = list(self.sql)
        parameters = dict(self.parameters or {})
        [begun] = self.run_statement(begin_detach, parameters, "begin_detach")
        if begun["statement"]:
            self.run_statement(begun["statement"], {}, "detach")
        [dropped] = self.run_statement(drop_detached, parameters, "drop_detached")
        return [dropped["result"]]


def drop_partition(plan: PostgresOperator) -> MappedOperator:
    """Return the task that drops partitions of analytics_event, mapped over those of `plan`."""
    return DropPartition.partial(
        task_id="drop_partition",
        sql=[f"archive_old_analytics/{file}.sql" for file in ("begin_detach", "drop_detached")],
        max_active_tis_per_dag=1,
        # A partition can be detached when the transactions that began before have ended. Nobody waits behind that.
        session_settings={"lock_timeout": "10min", "work_mem": "256MB"},
        map_index_template="{{ task.parameters['label'] }}",
    ).expand(parameters=plan.output)


@task
def report_result(
    expired: Any, unsealed: Any, unarchived: Any, listed: Any, deleted: Any, params: Any = None
) -> list[dict[str, Any]]:
    """Print what the run deleted, or on a dry run would delete; fail if something was left that should have gone.

    Returns the Params of the next run, where this one has not taken all days that have expired.
    """
    batches = {name: [batch for output in outputs[:] for batch in output] for name, outputs in deleted.items()}
    for line in result_lines(expired, listed, batches, params):
        print(f"[Analytics Archive] {line}")
    if problem := left_sentence(
        unsealed or [], batches, [problem for problems in unarchived for problem in problems or []]
    ):
        raise AirflowFailException(problem)
    return [dict(params)] if expired["left_days"] and not params["dry_run"] else []


def left_sentence(
    unsealed: Sequence[Mapping[str, Any]],
    batches: Mapping[str, Sequence[Mapping[str, int]]],
    unarchived: Sequence[str] = (),
) -> str | None:
    """Return a sentence about what was left that should have gone, if there is anything.

    :param unsealed: the results of seal_days.sql: steps with days whose row does not count exactly their events.
    :param batches: the results of the batches of ``events`` and ``sessions``.
    :param unarchived: which files of the archive could not be written, and why.
    """
    sentences = []
    if unarchived:
        sentences.append(
            f"{len(unarchived):,} file(s) of the archive could not be written and verified, and their rows were kept: "
            f"{'; '.join(unarchived[:3])}{' and more' if len(unarchived) > 3 else ''}; "
            "see to ANALYTICS_ARCHIVE_URI and its connection, and run this job again."
        )
    if days := sum(step["count"] for step in unsealed):
        sentences.append(
            f"{days:,} day(s) were left alone, since their stats do not count exactly their events: "
            f"{unsealed[0]['named']}{' and more' if days > 10 else ''}; "
            "read the log of aggregate_day and run this job again."
        )
    for name, results in batches.items():
        if left := sum(batch["left"] for batch in results):
            sentences.append(
                f"{left:,} {name} did not go, though no policy and no change keeps them: look for a trigger or a rule of "
                "the application on the table, or in the log for ids that several events have, or run this job again."
            )
    return " ".join(sentences) or None


def result_lines(
    expired: Mapping[str, Any],
    listed: Sequence[Mapping[str, int]],
    batches: Mapping[str, Sequence[Mapping[str, int]]],
    params: Mapping[str, Any],
) -> list[str]:
    """Return the report of a run, line by line.

    :param expired: the result of find_expired_days.sql.
    :param listed: the results of list_sessions.sql.
    :param batches: the results of the batches of ``events`` and ``sessions``, and of dropped ``partitions`` of events.
    :param params: the run's Params ``dry_run`` and ``batch_size``.
    """
    if params["dry_run"]:
        would = {"events": expired["events"], "sessions": sum(step["rows"] for step in listed)}
        return [
            f"Dry run: would delete {rows:,} {name} in {-(-rows // params['batch_size']):,} batch(es)"
            for name, rows in would.items()
        ]
    deleted = {name: sum(batch["rows"] for batch in results) for name, results in batches.items()}
    return [
        f"✅ Archived {deleted['events'] + deleted['partitions']:,} old event(s) (kept daily aggregated stats)",
        f"✅ Archived {deleted['sessions']:,} old session(s)",
    ]
