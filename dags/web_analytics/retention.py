"""The tasks that delete expired rows, and their report."""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import task
from airflow.sdk.definitions.mappedoperator import MappedOperator

from web_analytics.postgres import PostgresOperator
from web_analytics.settings import settings

POOL = "analytics_archive"
"""The pool of the batches: its slots are the number of batches that the database may bear at a time."""


def delete_batch(table: str, plan: PostgresOperator) -> MappedOperator:
    """Return the task that deletes one batch of `table` (event or session), mapped over the batches of `plan`."""
    return PostgresOperator.partial(
        task_id=f"delete_{table}_batch",
        sql=f"archive_old_analytics/delete_{table}_batch.sql",
        messages={"batch": f"[Analytics Archive] Deleted batch of {{count}} {table}s ({{total}}/{{expired}})"},
        pool=POOL,
        repeat=True,
        pause=settings.batch_pause_seconds,
        # A batch whose commit the server loses in a crash is still due, so the commit need not wait for the disk.
        session_settings={"statement_timeout": "1min", "synchronous_commit": "off"},
        map_index_template="{{ task.parameters['label'] }}",
    ).expand(parameters=plan.output)


@task
def report_result(counted: Any, events: Any, sessions: Any, after: Any, params: Any = None) -> None:
    """Print what the run deleted, or on a dry run would delete."""
    deleted = {"events": sum(events[:]), "sessions": sum(sessions[:])}
    for line in result_lines(counted, deleted, after["database_size"], params):
        print(f"[Analytics Archive] {line}")


def result_lines(
    counted: Mapping[str, Any], deleted: Mapping[str, int], size: str, params: Mapping[str, Any]
) -> list[str]:
    """Return the report of a run, line by line.

    :param counted: what count_expired.sql found.
    :param deleted: rows deleted, of ``events`` and ``sessions``.
    :param size: the database's size after the run.
    :param params: the run's Params ``dry_run`` and ``batch_size``.
    """
    if params["dry_run"]:
        return [
            f"Dry run: would delete {counted[rows]:,} {rows} in {-(-counted[rows] // params['batch_size']):,} batch(es)"
            for rows in deleted
        ]
    if not counted["events"] and not counted["sessions"]:
        return [f"Nothing is older than {counted['cutoff']}"]
    return [
        f"✅ Archived {deleted['events']:,} old event(s) (kept daily aggregated stats)",
        f"✅ Archived {deleted['sessions']:,} old session(s)",
        *(
            f"{counted[rows] - deleted[rows]:,} of the {rows} counted were not deleted by these tasks: see their logs"
            for rows in deleted
            if deleted[rows] != counted[rows]
        ),
        f"Database size: {counted['database_size']} before, {size} after",
    ]
