"""The operators, as a task process runs them."""

from types import SimpleNamespace
from typing import Any

from web_analytics.postgres import BatchOperator, PostgresOperator, leave_problem


def prepare(
    sql: str | list[str],
    operator: type[PostgresOperator] = PostgresOperator,
    map_index: int = -1,
    left: dict[str, str] | None = None,
    **kwargs: Any,
) -> tuple[PostgresOperator, Any]:
    """Return the operator as a task process has it, with its fields rendered, and the context to execute it in.

    :param left: gets the XComs that the task leaves beside its result.
    """
    task = operator(task_id="task", sql=sql, **kwargs)
    xcoms = {} if left is None else left
    ti = SimpleNamespace(
        dag_id="dag",
        task_id="task",
        task=task,
        map_index=map_index,
        xcom_push=lambda key, value: xcoms.update({key: value}),
    )
    context: Any = {"ti": ti, "params": {}}
    task.render_template_fields(context)
    return task, context


def execute(sql: str | list[str], **kwargs: Any) -> Any:
    """Run the operator as a task process does that is not tried again."""
    task, context = prepare(sql, **kwargs)
    try:
        return task.execute(context)
    except Exception as error:
        leave_problem(context | {"exception": error})
        raise


def execute_batches(sql: str, **kwargs: Any) -> Any:
    """Run the operator that goes on, likewise."""
    return execute(sql, operator=BatchOperator, **kwargs)
