"""PostgresOperator, as a task process runs it."""

from types import SimpleNamespace
from typing import Any

from web_analytics.postgres import PostgresOperator


def prepare(
    sql: str, map_index: int = -1, left: dict[str, str] | None = None, **kwargs: Any
) -> tuple[PostgresOperator, Any]:
    """Return the operator as a task process has it, with its fields rendered, and the context to execute it in.

    :param left: gets the XComs that the operator leaves beside its result.
    """
    operator = PostgresOperator(task_id="task", sql=sql, **kwargs)
    xcoms = {} if left is None else left
    ti = SimpleNamespace(
        dag_id="dag", task_id="task", map_index=map_index, xcom_push=lambda key, value: xcoms.update({key: value})
    )
    context: Any = {"ti": ti, "params": {}}
    operator.render_template_fields(context)
    return operator, context


def execute(sql: str, **kwargs: Any) -> Any:
    """Run the operator as a task process does."""
    operator, context = prepare(sql, **kwargs)
    return operator.execute(context)
