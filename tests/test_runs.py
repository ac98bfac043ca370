"""What is said of a run, from the states of its tasks and from what they left."""

from types import SimpleNamespace
from typing import Any

import pytest

from web_analytics.runs import RunTasks

WORDLESS = "it failed without a word, as when its process was killed, or somebody marked it as failed."
BY_HAND = "These did not run, since somebody marked them or the run by hand (Airflow's audit log says who): "


def tasks(states: dict[str, str | None], **said: Any) -> RunTasks:
    """The tasks of a run whose failed ones left sentences."""
    ti = SimpleNamespace(
        get_task_states=lambda dag_id, run_ids: {"run": states} if states else {},
        xcom_pull=lambda task_ids, key, dag_id, run_id: said.get(task_ids),
    )
    return RunTasks(ti, "dag", "run", ["check", "aggregate_day", "last"])


def test_tasks_are_named_in_the_order_of_the_dag_and_mapped_ones_counted() -> None:
    found = tasks(
        {
            "last": "success",
            "aggregate_day_0": "success",
            "aggregate_day_10": "failed",
            "aggregate_day_2": "failed",
            "check": "success",
            "other": None,
            "close_run": "running",
        },
        aggregate_day=[None, "day 2: oh.", "day 10: oh."],
    )
    assert [name for _, name in found.named("success")] == ["check", "aggregate_day (1 of 3)", "last"]
    assert found.failed == ("aggregate_day", 2)
    assert found.problems == ["aggregate_day (2 of 3): day 2: oh."]
    assert found.skipped == []


@pytest.mark.parametrize(
    ("states", "said", "of_success", "of_failure"),
    [
        (
            {"check": "success", "aggregate_day": "skipped", "last": "success", "close_run": "success"},
            {},
            ("success", None),
            ("failed", "It was marked as failed by hand (Airflow's audit log says by whom)."),
        ),
        (
            {"check": "failed", "last": "upstream_failed", "close_run": "success"},
            {"check": "No."},
            ("success", "Marked as success by hand, though it had failed: check: No."),
            ("failed", "check: No."),
        ),
        (
            {"check": "failed"},
            {},
            ("success", f"Marked as success by hand, though it had failed: check: {WORDLESS}"),
            ("failed", f"check: {WORDLESS}"),
        ),
        # Marked as failed while a task ran: Airflow itself forgets it.
        (
            {"check": "success", "aggregate_day": "failed", "last": "skipped", "close_run": "success"},
            {},
            ("failed", f"aggregate_day: {WORDLESS} {BY_HAND}last."),
            ("failed", f"aggregate_day: {WORDLESS} {BY_HAND}last."),
        ),
        # Marked as success.
        (
            {"check": "success", "aggregate_day_0": "success", "aggregate_day_1": "skipped", "last": "success"},
            {},
            ("failed", f"{BY_HAND}aggregate_day."),
            ("failed", f"{BY_HAND}aggregate_day."),
        ),
        (
            {"check": "success", "aggregate_day_0": "skipped", "last": "skipped", "close_run": "skipped"},
            {},
            None,
            ("failed", "The run hit its time limit (dagrun_timeout) before these had ended: aggregate_day, last."),
        ),
        ({}, {}, ("success", None), ("failed", "It was marked as failed by hand (Airflow's audit log says by whom).")),
    ],
)
def test_the_ledger_follows_the_state_of_the_run_and_says_where_the_tasks_disagree(
    states: dict[str, str | None], said: dict[str, Any], of_success: Any, of_failure: Any
) -> None:
    if of_success:
        assert tasks(states, **said).outcome("success") == of_success
    assert tasks(states, **said).outcome("failed") == of_failure
