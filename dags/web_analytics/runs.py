"""What became of a run, as Airflow knows it. A task may ask for the states of the tasks of any run, and for their XComs."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any

log = logging.getLogger(__name__)

CLOSE_RUN = "close_run"
"""The task that ends every run, whatever became of the others."""

MAY_BE_SKIPPED = {
    "aggregate_day",
    "seal_again",
    "delete_event_batch",
    "drop_partition",
    "delete_session_batch",
    "continue_backlog",
}
"""Tasks without work where a list of days or batches is empty. All others are skipped by people, or a time limit."""


class RunTasks:
    """The tasks of a run, the closing one aside.

    :param ti: a task instance as Airflow gives it to tasks and callbacks.
    :param order: the ids of the tasks in the order in which they are to be named.
    """

    def __init__(self, ti: Any, dag_id: str, run_id: str, order: Iterable[str] = ()) -> None:
        self.ti, self.dag_id, self.run_id = ti, dag_id, run_id
        states = ti.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
        places = {task_id: place for place, task_id in enumerate(order)}
        self.instances: list[tuple[int, str, int, str]] = []
        """Of each task instance: its task's place and id, its map index (-1: not mapped), its state."""
        self.was_closed = True
        """Whether the closing task ran: a time limit of the whole run skips it."""
        for name, state in states.items():
            # A mapped one is named with its map index; a state of None is one that has not been scheduled.
            task_id, index = re.fullmatch(r"(.+?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
            state_name = str(getattr(state, "value", state))
            if task_id == CLOSE_RUN:
                self.was_closed = state_name != "skipped"
            else:
                self.instances.append((places.get(task_id, len(places)), task_id, int(index or -1), state_name))
        self.instances.sort()

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """How many instances of each task are in which state."""
        counts: dict[str, Counter[str]] = {}
        for _, task_id, _, state in self.instances:
            counts.setdefault(task_id, Counter())[state] += 1
        return counts

    @property
    def failed(self) -> tuple[str, int] | None:
        """The id and the map index of the first task that failed."""
        return next(((task_id, index) for _, task_id, index, state in self.instances if state == "failed"), None)

    @property
    def skipped(self) -> list[str]:
        """The ids of the tasks that did not run, though they had work to do and nothing before them had failed."""
        return sorted(
            {
                task_id
                for _, task_id, index, state in self.instances
                if state == "skipped" and (index >= 0 or task_id not in MAY_BE_SKIPPED)
            }
        )

    def named(self, state: str) -> list[tuple[str, str]]:
        """The ids of the tasks that have instances in a state, and the same with their number if there are several."""
        return [
            (task_id, f"{task_id} ({count[state]} of {count.total()})" if count.total() > 1 else task_id)
            for task_id, count in self.counts.items()
            if count[state]
        ]

    @cached_property
    def problems(self) -> list[str]:
        """One sentence per task that failed, and one if tasks were skipped that had work to do."""
        sentences = []
        for task_id, name in self.named("failed"):
            said = [text for text in self._said(task_id) if text]
            wordless = "it failed without a word, as when its process was killed, or somebody marked it as failed."
            sentences.append(f"{name}: {said[0] if said else wordless}")
        if self.skipped and not self.was_closed:
            sentences.append(
                f"The run hit its time limit (dagrun_timeout) before these had ended: {', '.join(self.skipped)}."
            )
        elif self.skipped:
            sentences.append(
                f"These did not run, since somebody marked them or the run by hand (Airflow's audit log says who): "
                f"{', '.join(self.skipped)}."
            )
        return sentences

    def outcome(self, state: str) -> tuple[str, str | None]:
        """Return what the ledger says of the run, its outcome and its problem.

        :param state: the state of the run in Airflow, which has ended: success or failed.
        """
        problem = " ".join(self.problems)
        if state == "success" and not self.skipped:
            return "success", f"Marked as success by hand, though it had failed: {problem}" if problem else None
        return "failed", problem or "It was marked as failed by hand (Airflow's audit log says by whom)."

    def _said(self, task_id: str) -> list[str]:
        """The sentences that failed instances of a task left."""
        try:
            said = self.ti.xcom_pull(task_ids=task_id, key="problem", dag_id=self.dag_id, run_id=self.run_id)
        except Exception:
            log.exception("What task %s said cannot be read", task_id)
            return []
        return [said] if isinstance(said, str) else list(said or [])
