"""The tasks that delete expired rows, and their report."""

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import task
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowFailException

from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings

POOL = "analytics_archive"
"""The pool of the batches: its slots are the number of batches that the database may bear at a time."""

MESSAGES = {
    "freeze_cutoff": "[Analytics Archive] Raw data before {cutoff} has expired{remark}",
    "count_expired": "[Analytics Archive] Found {events:,} event(s) and {sessions:,} session(s) before {cutoff}",
}
"""What the log says about the result of a task."""


def sql(task_id: str, parameters: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """Return the task that runs the SQL file of its name."""
    messages = {"row": MESSAGES[task_id]} if task_id in MESSAGES else {}
    defaults = {"sql": f"archive_old_analytics/{task_id}.sql", "messages": messages}
    return PostgresOperator(task_id=task_id, parameters=parameters, **defaults | kwargs)


def prove(task_id: str, policy: Mapping[str, Any], **kwargs: Any) -> Any:
    """Return a task that proves the expired days and gives those that are not proven, or have late events."""
    return sql(
        task_id,
        policy,
        sql="archive_old_analytics/prove_days.sql",
        # The proofs are written before anything is deleted, and must outlive a crash of the server.
        session_settings={"synchronous_commit": "on", "work_mem": "64MB"},
        messages={
            "row": "[Analytics Archive] Website {website_id}, {day}: {remark}",
            "none": "[Analytics Archive] The stats of every expired day are proven to count exactly its events",
        },
        returns="rows",
        **kwargs,
    )


def delete_batch(table: str, plan: PostgresOperator) -> MappedOperator:
    """Return the task that deletes one batch of `table` (event or session), mapped over the batches of `plan`."""
    return PostgresOperator.partial(
        task_id=f"delete_{table}_batch",
        sql=f"archive_old_analytics/delete_{table}_batch.sql",
        messages={"batch": f"[Analytics Archive] Deleted batch of {{count}} {table}s ({{total}}/{{expired}})"},
        pool=POOL,
        repeat=True,
        pause=settings.batch_pause_seconds,
        session_settings={"statement_timeout": "1min"},
        map_index_template="{{ task.parameters['label'] }}",
    ).expand(parameters=plan.output)


@task
def report_result(
    frozen: Any, problems: Any, expired: Any, deleted: Any, after: Any, params: Any = None, ti: Any = None
) -> None:
    """Print what the run deleted, or on a dry run would delete; fail if it had to leave days alone."""
    rows = {name: sum(batches[:]) for name, batches in deleted.items()}
    for line in result_lines(frozen, expired, rows, after["database_size"], params):
        print(f"[Analytics Archive] {line}")
    if sentence := unproven_sentence(problems):
        ti.xcom_push(key="problem", value=sentence)
        raise AirflowFailException(sentence)


def unproven_sentence(problems: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one sentence about the days that could not be proven, if there are any.

    :param problems: the rows of prove_days.sql.
    """
    unproven = [row for row in problems if not row["is_proven"]]
    if not unproven:
        return None
    named = ", ".join(f"{row['website_id']} {row['day']} ({row['remark']})" for row in unproven[:10])
    more = f" and {len(unproven) - 10:,} more" if len(unproven) > 10 else ""
    return (
        f"{len(unproven):,} day(s) were left alone, since their stats do not count exactly their events: {named}{more}; "
        "read the log of aggregate_day and run this job again."
    )


def result_lines(
    frozen: Mapping[str, Any],
    expired: Mapping[str, Any],
    deleted: Mapping[str, int],
    size: str,
    params: Mapping[str, Any],
) -> list[str]:
    """Return the report of a run, line by line.

    :param frozen: what freeze_cutoff.sql gave: the cutoff and the database's size before the run.
    :param expired: what count_expired.sql found.
    :param deleted: rows deleted, of ``events`` and ``sessions``.
    :param size: the database's size after the run.
    :param params: the run's Params ``dry_run`` and ``batch_size``.
    """
    if params["dry_run"]:
        return [
            f"Dry run: would delete {expired[rows]:,} {rows} in {-(-expired[rows] // params['batch_size']):,} batch(es)"
            for rows in deleted
        ]
    if not expired["events"] and not expired["sessions"]:
        return [f"Nothing to delete is older than {frozen['cutoff']}"]
    return [
        f"✅ Archived {deleted['events']:,} old event(s) (kept daily aggregated stats)",
        f"✅ Archived {deleted['sessions']:,} old session(s)",
        *(
            f"{expired[rows] - deleted[rows]:,} of the {rows} counted were not deleted by these tasks: see their logs"
            for rows in deleted
            if deleted[rows] != expired[rows]
        ),
        f"Database size: {frozen['database_size']} before, {size} after",
    ]
