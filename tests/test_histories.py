"""Random histories of the database, step by step, against a model in Python: the laws hold after every step.

The application writes, edits and deletes, the operator changes policies and zones, other people's jobs delete, the clock
goes on, and the jobs' statements run in between: whole, in part, twice, interleaved, or slowly.
HISTORIES=5000 in the environment tries as many, other ones each time.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, wait
from datetime import date
from typing import Any, TypeVar

import psycopg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import clock
from conftest import BACKGROUND, LOGIN, Database
from day_oracle import count_day
from history_application import INDEXES, OPERATIONS, RUN, Application, is_free, operation
from history_drafts import ZONE_NAMES
from history_model import DAY, LATE, Event
from history_retention import Batch, Model, Purge, Sealing
from web_analytics.days import days_to_aggregate, tasks_for

HISTORIES = int(os.environ.get("HISTORIES", "80"))
STEPS = 50
BATCH_SIZE = 3
SLOW = "slow_jobs"
AGGREGATION, CLEANUP, RETENTION = "aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"
RETENTION_DAYS = st.sampled_from([3, 7])
EVENTS = b"SELECT id FROM analytics_event"
SESSIONS = b"SELECT id, ended_at, duration_seconds FROM analytics_session"
BATCHES = b"SELECT number, kind, rows, first_at, last_at, ids, deleted_ids FROM analytics_purge_batch ORDER BY number"
LATE_IN_LEDGER = b"SELECT late_events FROM analytics_job_run"
COUNTED = ", ".join(count_day([]))
STATS = f"""
    SELECT website_id, date, {COUNTED}, deleted_events, starts_at, ends_at, aggregated_at, kept_at, sealed_at,
        {", ".join(LATE)}
    FROM analytics_daily_stats
""".encode()
TRAFFIC = """
    SELECT coalesce(sum(total_pageviews), 0) AS pageviews, coalesce(sum(total_custom_events), 0) AS custom_events,
        coalesce(sum(total_events), 0) AS events, coalesce(sum(bounced_sessions), 0) AS bounced_sessions
    FROM analytics_traffic_daily
"""
FACTS = {
    "row kept",
    "kept row counted again",
    "fewer events counted",
    "row sealed",
    "row sealed as it is",
    "edited without a sign, and counted before it was sealed",
    "counted event deleted",
    "soft-deleted event deleted",
    "late event deleted",
    "late event ignored",
    "moved or restored event left",
    "held event left",
    "session deleted",
    "session left",
    "zone refused",
    "zone changed with sealed rows",
    "sealed slowly",
    "day left to another run",
    "counted slowly",
    "slow count refused",
}
Result = TypeVar("Result")


class History(Application):
    """One history. At its end, every job runs once more, undisturbed."""

    def __init__(self, database: Database, jobs: Any, slow: Any, writer: Any, seen: Counter[str]) -> None:
        super().__init__(database, jobs, writer, seen)
        self.slow = slow
        self.runs: dict[int, Generator[None, None, Any]] = {}
        self.numbers: list[tuple[str, int]] = []
        self.result: Future[Any] | None = None
        self.finish: Callable[[], None] = lambda: None

    # What the jobs do.

    @operation()
    def aggregate(self) -> None:
        complete(self.aggregation())
        assert self.due_days() == []

    @operation(
        days_ago=st.sets(st.integers(-1, 12), min_size=1, max_size=3), recount=st.booleans(), at_once=st.booleans()
    )
    def aggregate_days(self, days_ago: set[int], recount: bool, at_once: bool) -> None:
        days = [self.model.now.date() - ago * DAY for ago in days_ago]
        for task in [days] if at_once else [[day] for day in days]:
            self.count_days(task, recount)

    @operation(batch_size=st.sampled_from([2, 1000]))
    def clean_up(self, batch_size: int) -> None:
        for file in ("close_idle_sessions", "end_returned_sessions"):
            again: Any = {"done": 0}
            while again:
                again = self.sql(CLEANUP, file, {"idle_minutes": 30, "batch_size": batch_size} | again)["again"]
        self.model.close_sessions()
        self.check()

    @operation(retention_days=RETENTION_DAYS, by_day=st.booleans(), backwards=st.booleans())
    def retain(self, retention_days: int, by_day: bool, backwards: bool) -> None:
        """An undisturbed run: all that has expired goes, and nothing else."""
        model = self.model
        expired = {event.id for events in model.expired_days(retention_days).values() for event in events}
        left = model.events.keys() - expired
        assert complete(self.retention(retention_days, by_day, backwards)) == []
        assert model.events.keys() == left
        for name, session in model.sessions.items():
            assert not model.session_may_go(session, retention_days), f"left: {name} {session}"
        for batch in model.batches.values():
            assert not any(model.may_go(model.events[name], retention_days) for name in batch.names), f"left: {batch}"

    @operation(retention_days=RETENTION_DAYS)
    def try_retention(self, retention_days: int) -> None:
        complete(self.retention(retention_days, dry_run=True))

    @operation(
        slot=st.sampled_from([0, 1]),
        steps=st.sampled_from([1, 2, 3, 5, 8, 13, 21]),
        retention_days=RETENTION_DAYS,
        by_day=st.booleans(),
        backwards=st.booleans(),
    )
    def continue_retention(self, slot: int, steps: int, retention_days: int, by_day: bool, backwards: bool) -> None:
        self.advance(self.runs.setdefault(slot, self.retention(retention_days, by_day, backwards)), steps)

    @operation(steps=st.sampled_from([1, 2]))
    def continue_aggregation(self, steps: int) -> None:
        self.advance(self.runs.setdefault(2, self.aggregation()), steps)

    @operation(lambda self: self.runs, index=INDEXES)
    def kill_run(self, index: int) -> None:
        del self.runs[sorted(self.runs)[index % len(self.runs)]]

    @operation(lambda self: self.numbers, index=INDEXES, retention_days=RETENTION_DAYS)
    def repeat_batch(self, index: int, retention_days: int) -> None:
        self.delete_batch(*self.numbers[-1 - index % len(self.numbers)], retention_days)

    @operation(is_free, seals=st.booleans(), retention_days=RETENTION_DAYS)
    def start_slow_statement(self, seals: bool, retention_days: int) -> None:
        """Start a statement that sees what is there now, and writes later."""
        shown = self.model.snapshot()
        days = sorted({day for _, day in shown.expired_days(retention_days)}) or [self.model.now.date() - DAY]
        file, parameters = "seal_days", self.step(days[0], days[-1], retention_days)
        if not seals:
            file, parameters = "aggregate_day", {"days": days, "label": "days", "recount": False}
        clock.set_now(self.slow, self.model.now)
        self.slow.execute(
            f"SET default_transaction_isolation = '{'read committed' if seals else 'repeatable read'}'".encode()
        )
        self.execute("SELECT pg_advisory_lock(1)")
        folder = RETENTION if seals else AGGREGATION
        result = self.result = BACKGROUND.submit(self.database.run, f"{folder}/{file}.sql", self.slow, **parameters)
        waits = "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' AS it FROM pg_stat_activity WHERE pid = %s"
        while not result.done() and not self.database.value(waits, self.slow.info.backend_pid):
            pass

        def finish() -> None:
            self.is_busy = False
            self.execute("SELECT pg_advisory_unlock(1)")
            if seals:
                step = days[0], days[-1], retention_days, BATCH_SIZE
                sealing = shown.seal(*step, self.model)
                self.check_sealed(result.result()[-1]["result"], sealing, shown)
                self.seen["day left to another run"] += len(sealing.inexact - shown.seal(*step).inexact)
                self.seen["sealed slowly"] += 1
                return
            try:
                result.result()
            except psycopg.errors.SerializationFailure:
                # A row that was written and written back is another version as well.
                self.seen["slow count refused"] += 1
            else:
                self.model.write(shown.recounts(days, recount=False))
                self.seen["counted slowly"] += 1
            self.check()

        self.is_busy, self.finish = True, finish
        if result.done():  # there was no event to wait at
            finish()

    @operation(lambda self: self.is_busy)
    def finish_slow_statement(self) -> None:
        self.finish()

    def advance(self, run: Generator[None, None, Any], steps: int) -> None:
        """Do some more steps of a run."""
        if any(next(run, "ended") == "ended" for _ in range(steps)):
            self.runs = {slot: other for slot, other in self.runs.items() if other is not run}

    def aggregation(self) -> Generator[None, None, None]:
        """The steps of aggregate_daily_analytics."""
        now, params = self.model.now, dict.fromkeys(("stat_date", "from", "to"))
        due = self.due_days()
        yield
        for task in tasks_for(days_to_aggregate(params, now, now, "UTC", due)):
            self.count_days(map(date.fromisoformat, task["days"]), task["recount"])
            yield

    def retention(
        self, retention_days: int, by_day: bool = False, backwards: bool = False, dry_run: bool = False
    ) -> Generator[None, None, list[str]]:
        """The steps of archive_old_analytics. Mapped tasks run in any order, so here forwards or backwards."""
        steps = self.expired_steps(retention_days, by_day)
        yield
        problems = []
        for step in steps:
            problems.append(self.seal(*step, retention_days, dry_run))
            yield
        for problem in filter(None, problems):
            self.count_days(map(date.fromisoformat, problem["days"]), problem["recount"])
            yield
        inexact: list[str] = []
        for problem in filter(None, problems):
            step = date.fromisoformat(problem["first_day"]), date.fromisoformat(problem["last_day"])
            again = self.seal(*step, retention_days, dry_run)
            inexact += again["days"] if again else []
            yield
        for kind in ("event", "session"):
            if kind == "session":
                self.list_sessions(retention_days, dry_run)
                yield
            numbers = self.plan_batches(kind, retention_days, dry_run)
            yield
            for number in numbers[::-1] if backwards else numbers:
                self.delete_batch(kind, number, retention_days)
                yield
        return inexact

    # The jobs' statements, each with what it must do.

    def due_days(self) -> list[date]:
        due = [date.fromisoformat(day) for day in self.sql(AGGREGATION, "find_due_days", {})["result"]]
        assert due == self.model.due_days()
        return due

    def count_days(self, days: Iterable[date], recount: bool) -> None:
        days = list(days)
        changed = self.model.recounts(days, recount)
        self.sql(
            AGGREGATION, "aggregate_day", {"days": [str(day) for day in days], "label": "days", "recount": recount}
        )
        self.model.write(changed)
        self.check()

    def expired_steps(self, retention_days: int, by_day: bool) -> list[tuple[date, date]]:
        """The steps in which expired days are sealed: all at once, or each on its own."""
        parameters = RUN | {
            "retention_days": retention_days,
            "batch_size": BATCH_SIZE,
            "dry_run": False,
            "has_archive": False,
            "confirm": True,
        }
        found = self.sql(RETENTION, "find_expired_days", parameters)["result"]
        expired = self.model.expired_days(retention_days)
        days = sorted({day for _, day in expired})
        assert found["events"] == sum(map(len, expired.values()))
        assert found["left_days"] == 0
        steps = [
            (date.fromisoformat(step["first_day"]), date.fromisoformat(step["last_day"])) for step in found["steps"]
        ]
        assert steps == ([(days[0], days[-1])] if days else [])
        return [(day, day) for day in days] if by_day else steps

    @staticmethod
    def step(first_day: date, last_day: date, retention_days: int, dry_run: bool = False) -> dict[str, Any]:
        days = {"first_day": str(first_day), "last_day": str(last_day), "dry_run": dry_run, "has_archive": False}
        return days | {"retention_days": retention_days, "batch_size": BATCH_SIZE} | RUN

    def seal(self, first_day: date, last_day: date, retention_days: int, dry_run: bool = False) -> Any:
        """Seal days and list their events; return what is said about days that are counted wrongly."""
        step = self.step(first_day, last_day, retention_days, dry_run)
        problem = self.sql(RETENTION, "seal_days", step)["result"]
        sealing = self.model.seal(first_day, last_day, retention_days, BATCH_SIZE)
        self.check_sealed(problem, sealing, self.model, dry_run)
        return problem

    def check_sealed(self, problem: Any, sealing: Sealing, shown: Model, dry_run: bool = False) -> None:
        """Check what a statement has said, sealed and listed to which `shown` was shown."""
        told = (problem["count"], problem["days"]) if problem else (0, [])
        assert told == (len(sealing.inexact), sorted({str(day) for _, day in sealing.inexact}))
        for key in sealing.inexact & shown.rows.keys():
            is_silent = shown.rows[key].signs() == shown.count(*key).signs()
            self.seen["edited without a sign, and counted before it was sealed"] += is_silent
        if not dry_run:
            self.model.apply(sealing, shown)
        self.check([] if dry_run else sealing.batches)

    def plan_batches(self, kind: str, retention_days: int, dry_run: bool) -> list[int]:
        """The numbers of the batches of all tasks."""
        parameters = {"kind": kind, "retention_days": retention_days, "dry_run": dry_run}
        tasks = self.sql(RETENTION, "plan_batches", parameters)["result"]
        assert all(task["retention_days"] == retention_days for task in tasks)
        listed = {number: batch for number, batch in self.model.batches.items() if batch.kind == kind and not dry_run}
        steps = [step for task in tasks for step in task["steps"]]
        assert [step["number"] for step in steps] == list(listed)
        sizes = [batch.size for batch in listed.values()]
        assert [step["done"] for step in steps] == [sum(sizes[: place + 1]) for place in range(len(sizes))]
        return list(listed)

    def list_sessions(self, retention_days: int, dry_run: bool) -> None:
        batches = [] if dry_run else self.model.list_sessions(retention_days, BATCH_SIZE)
        again: Any = {"after": None}
        while again:
            parameters = {
                "retention_days": retention_days,
                "batch_size": BATCH_SIZE,
                "dry_run": dry_run,
                "has_archive": False,
            }
            again = self.sql(RETENTION, "list_sessions", parameters | again)["again"]
        self.check(batches)

    def delete_batch(self, kind: str, number: int, retention_days: int) -> None:
        """Delete a batch: once, and what it lists as far as that is the same and no one holds it."""
        batch = self.model.batches.pop(number, None)
        purge = Purge(set(), [])
        if batch:
            decide = self.model.purge_events if kind == "event" else self.model.purge_sessions
            purge = decide(batch, retention_days)
        parameters = {"number": number, "retention_days": retention_days, "done": 0, "total": 0, "retried": False}
        row = self.sql(RETENTION, f"delete_{kind}_batch", parameters)
        assert (row["result"], row["again"]) == ({"rows": len(purge.gone), "left": 0}, None)
        for name in purge.gone:
            if kind == "event":
                self.check_purge(self.model.events.pop(name))
            else:
                del self.model.sessions[name]
                self.seen["session deleted"] += 1
        self.numbers.append((kind, number))
        self.check(purge.held)

    # What must be true.

    def check_purge(self, event: Event) -> None:
        """An event goes if it was soft-deleted, counted before its row was sealed, or counted as late."""
        reason = self.model.reasons.pop(event.id, ("soft-deleted event",))[0]
        assert event.is_deleted or reason != "soft-deleted event", f"deleted and not counted: {event}"
        self.seen[f"{reason} deleted"] += 1

    def check(self, listed: Iterable[Batch] = ()) -> None:
        """Compare the tables with the model, which has done what a statement must do, and listed these batches."""
        connection = self.database.connection
        with connection.pipeline():
            queries = EVENTS, SESSIONS, STATS, BATCHES, LATE_IN_LEDGER
            events, sessions, stats, batches, late = [connection.execute(query) for query in queries]
        assert {row["id"] for row in events} == self.model.events.keys() | self.absurd
        assert {row.pop("id"): row for row in sessions} == {
            name: {"ended_at": session.ended_at, "duration_seconds": session.duration_seconds}
            for name, session in self.model.sessions.items()
        }
        assert {(row.pop("website_id"), row.pop("date")): row for row in stats} == {
            key: row.columns() for key, row in self.model.rows.items()
        }
        self.check_list(batches, list(listed))
        assert [row["late_events"] for row in late] == [self.model.late_events]

    def check_list(self, rows: Iterable[dict[str, Any]], listed: list[Batch]) -> None:
        """The list is as it was, and has these batches too. Their numbers are told, and higher than those before."""
        found = {}
        for row in rows:
            number, size = row.pop("number"), row.pop("rows")
            found[number] = Batch(**row | {name: frozenset(row[name]) for name in ("ids", "deleted_ids")})
            assert size == found[number].size
        before = self.model.batches
        assert {number: batch for number, batch in found.items() if number in before} == before
        assert [batch for number, batch in found.items() if number not in before] == listed
        self.model.batches = dict(zip(found, [*before.values(), *listed], strict=True))

    def teardown(self) -> None:
        """Look at the end of the history, but not after a failure."""
        try:
            if sys.exc_info()[0] is None:
                self.check_end()
        finally:
            self.writer.rollback()
            self.execute("SELECT pg_advisory_unlock_all()")
            wait([self.result] if self.result else [])

    def check_end(self) -> None:
        """Let every job run once, undisturbed: nothing is left to do, and nothing that had to stay is gone."""
        if self.pending:
            self.end_transaction(commit=True)
        if self.is_busy:
            self.finish()
        self.aggregate()
        self.clean_up(batch_size=1000)
        self.retain(retention_days=3, by_day=False, backwards=False)
        assert self.due_days() == []
        # What people ask for: the days that have no row as well.
        rows = [*self.model.rows.values()]
        rows += [self.model.count(*key) for key in self.model.raw_days().keys() - self.model.rows.keys()]
        assert self.database.query(TRAFFIC) == [
            {
                "pageviews": sum(row.counts["total_pageviews"] + row.late_pageviews for row in rows),
                "custom_events": sum(row.counts["total_custom_events"] + row.late_custom_events for row in rows),
                "events": sum(row.total + row.late_events for row in rows),
                "bounced_sessions": sum(row.counts["bounced_sessions"] for row in rows),
            }
        ]
        self.seen["histories"] += 1

    # How it is done.

    def sql(self, folder: str, file: str, parameters: dict[str, Any]) -> Any:
        """The last row that one of the jobs' statements returns."""
        return self.database.run(f"{folder}/{file}.sql", self.jobs, **parameters)[-1]


def complete(steps: Generator[None, None, Result]) -> Result:
    """Do all steps and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def test_the_laws_hold_in_every_history(database: Database) -> None:
    # The zones' files take longer to read than a history.
    zones = f"(SELECT unnest(ARRAY{ZONE_NAMES}) AS name)"
    check = database.value("SELECT pg_get_functiondef('analytics_check_zones'::regproc)")
    assert "pg_catalog.pg_timezone_names AS" in check
    database.connection.execute(check.replace("pg_catalog.pg_timezone_names", zones).encode())
    clock.install(database.connection)
    # SLOW waits at its first event, with its snapshot taken, while somebody holds the lock.
    database.connection.execute(
        f"""
        CREATE FUNCTION clock.wait() RETURNS boolean LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1); RETURN true; END';
        CREATE ROLE {SLOW} LOGIN IN ROLE analytics_jobs;
        ALTER TABLE analytics_event ENABLE ROW LEVEL SECURITY;
        CREATE POLICY at_once ON analytics_event TO {LOGIN} USING (true);
        CREATE POLICY slowly ON analytics_event TO {SLOW} USING (clock.wait())
        """.encode()
    )
    seen: Counter[str] = Counter()
    path = f"-c search_path={clock.SEARCH_PATH} -c timezone=UTC"
    with (
        database.connect(LOGIN, options=f"{path} -c lock_timeout=5s") as jobs,
        database.connect(SLOW, options=path) as slow,
        database.connect() as writer,
    ):
        writer.autocommit = False
        run: Any = run_state_machine_as_test
        run(
            lambda: History(database, jobs, slow, writer, seen),
            settings=settings(
                max_examples=HISTORIES,
                stateful_step_count=STEPS,
                derandomize="HISTORIES" not in os.environ,
                deadline=None,
                report_multiple_bugs=False,
                phases=set(Phase) - {Phase.explain},
                suppress_health_check=list(HealthCheck),
            ),
        )
    # Had the histories been too tame, the laws would hold without a reason.
    assert seen["histories"] >= HISTORIES
    for fact in FACTS | OPERATIONS if HISTORIES >= 250 else OPERATIONS:
        assert seen[fact] > 0, f"never happened: {fact}"
