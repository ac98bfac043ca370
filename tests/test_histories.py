"""Random histories of the database, step by step, against a model in Python: the laws hold after every step.

The application writes, the operator changes policies, the clock goes on, and the jobs' statements run in between: whole,
in part, twice, or interleaved. HISTORIES=5000 in the environment tries as many, other ones each time.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import wraps
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import history_model as model
from conftest import LOGIN, Database
from history_model import SITES, Asked, Event, EventDraft, Moment, Row, Session, SessionDraft
from web_analytics.days import days_to_aggregate, tasks_for

HISTORIES = int(os.environ.get("HISTORIES", "150"))
STEPS = 40
BATCH_SIZE = 3
AGGREGATION, CLEANUP, RETENTION = "aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics"
DAY = timedelta(days=1)
INDEXES = st.integers(0, 99)
RETENTION_DAYS = st.sampled_from([3, 7])
EVENTS = b"SELECT id FROM analytics_event"
SESSIONS = b"SELECT session_id, ended_at, duration_seconds FROM analytics_session"
STATS = b"""
    SELECT website_id, date, total_pageviews, total_custom_events, unique_visitors, unique_sessions, top_pages,
        top_referrers, total_events, deleted_events, timezone, starts_at, ends_at,
        raw_purged_at IS NOT NULL AS is_final, concat(xmin, ctid) AS version
    FROM analytics_daily_stats
"""
FACTS = {
    "row made final",
    "counted event deleted",
    "soft-deleted event deleted",
    "late event reported",
    "late event deleted",
    "session deleted",
    "time zone changed with final rows",
}
OPERATIONS: set[str] = set()
Result = TypeVar("Result")


def operation(when: Callable[[Any], Any] = bool, **arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Make a method one of the operations of a history, possible whenever `when` says so, and count it."""

    def decorate(method: Callable[..., None]) -> Any:
        OPERATIONS.add(method.__name__)

        @wraps(method)
        def counted(self: "History", **values: Any) -> None:
            method(self, **values)
            self.seen[method.__name__] += 1

        rules: Any = rule  # its types do not know of arguments in a dict
        return precondition(when)(rules(**arguments)(counted))

    return decorate


class Report(NamedTuple):
    """What a retention run tells at its end."""

    unproven: set[date]
    expired: dict[str, int]
    deleted: dict[str, int]


class History(RuleBasedStateMachine):
    """One history. At its end, every job runs once more, undisturbed."""

    def __init__(self, database: Database, jobs: Any, writer: Any, seen: Counter[str]) -> None:
        super().__init__()
        self.database, self.jobs, self.writer, self.seen = database, jobs, writer, seen
        self.model = model.Model(model.STARTS[0], "UTC")
        self.events_made = 0
        self.pending: list[Event] = []
        self.reported: set[str] = set()
        self.versions: dict[tuple[str, date], str] = {}
        self.runs: dict[int, Iterator[None]] = {}
        self.batches: list[tuple[str, dict[str, Any]]] = []

    # What the application, the operator and time do.

    @initialize(
        start=st.sampled_from(model.STARTS),
        timezone=st.sampled_from(["UTC", "America/New_York"]),
        zones=st.dictionaries(model.WEBSITES, model.ZONES),
        sessions=st.lists(model.SESSIONS, max_size=4),
        events=st.lists(model.EVENTS, max_size=16),
    )
    def begin(
        self,
        start: datetime,
        timezone: str,
        zones: dict[str, str],
        sessions: list[SessionDraft],
        events: list[EventDraft],
    ) -> None:
        # Not TRUNCATE: the old files, which stay until a checkpoint, would make pg_database_size() slow.
        for table in ("event", "session", "daily_stats", "website_policy", "purge_proof"):
            self.execute(f"DELETE FROM analytics_{table}")
        self.model = model.Model(start, timezone)
        self.advance_clock(hours=0)
        for website, zone in zones.items():
            self.set_policy(website, timezone=zone)
        for session in sessions:
            self.insert_session(session=session)
        self.insert_events(events=events)

    @operation(events=st.lists(model.EVENTS, min_size=1, max_size=4))
    def insert_events(self, events: list[EventDraft]) -> None:
        for event in events:
            self.store(event, self.instant(event.moment), self.database.connection)

    @operation(lambda self: self.model.events, index=INDEXES, draft=model.EVENTS)
    def duplicate_event(self, index: int, draft: EventDraft) -> None:
        event = self.pick_event(index)
        self.store(draft._replace(website=event.website_id), event.timestamp, self.database.connection)

    @operation(event=model.EVENTS, savepoint=st.booleans())
    def insert_in_transaction(self, event: EventDraft, savepoint: bool) -> None:
        if savepoint:
            self.writer.execute("SAVEPOINT nested")
        self.store(event, self.instant(event.moment), self.writer)

    @operation(lambda self: self.pending, commit=st.sampled_from([True, True, False]))
    def end_transaction(self, commit: bool) -> None:
        if commit:
            self.writer.commit()
            self.model.events |= {event.id: event for event in self.pending}
        else:
            self.writer.rollback()
        self.pending = []

    @operation(lambda self: self.model.events, index=INDEXES)
    def soft_delete_or_bring_back(self, index: int) -> None:
        event = self.pick_event(index)
        event.is_deleted = not event.is_deleted
        deleted_at = self.model.now if event.is_deleted else None
        self.execute("UPDATE analytics_event SET deleted_at = %s WHERE id = %s", deleted_at, event.id)

    @operation(session=model.SESSIONS)
    def insert_session(self, session: SessionDraft) -> None:
        name, website, started_at = session.name, session.website, self.instant(session.moment)
        last_activity_at = started_at + timedelta(minutes=session.minutes)
        deleted_at = self.model.now if session.is_deleted else None
        if name not in self.model.sessions:
            columns = {"website_id": website, "session_id": name, "deleted_at": deleted_at}
            self.database.session(started_at, last_activity_at, **columns)
            self.model.sessions[name] = Session(website, started_at, last_activity_at, None, None, session.is_deleted)

    @operation(lambda self: self.model.sessions, index=INDEXES, minutes_ago=st.sampled_from([0, 29, 30, 31, 3000]))
    def touch_session(self, index: int, minutes_ago: int) -> None:
        name, session = self.pick_session(index)
        session.last_activity_at = self.model.now - timedelta(minutes=minutes_ago)
        values = session.last_activity_at, name
        self.execute("UPDATE analytics_session SET last_activity_at = %s WHERE session_id = %s", *values)

    @operation(lambda self: self.model.sessions, index=INDEXES)
    def close_session(self, index: int) -> None:
        name, session = self.pick_session(index)
        session.ended_at, session.duration_seconds = self.model.now, 7
        values = session.ended_at, session.duration_seconds, name
        self.execute("UPDATE analytics_session SET ended_at = %s, duration_seconds = %s WHERE session_id = %s", *values)

    @operation(website=model.WEBSITES, zone=st.none() | model.ZONES)
    def set_zone(self, website: str, zone: str | None) -> None:
        before = self.model.timezone_of(website)
        self.set_policy(website, timezone=zone)
        if self.model.final_rows(website) and self.model.timezone_of(website) != before:
            self.seen["time zone changed with final rows"] += 1

    @operation(website=model.WEBSITES, legal_hold=st.booleans())
    def set_hold(self, website: str, legal_hold: bool) -> None:
        self.set_policy(website, legal_hold=legal_hold)

    @operation(website=model.WEBSITES, retention_days=st.sampled_from([None, 1, 5, 40]))
    def set_retention(self, website: str, retention_days: int | None) -> None:
        self.set_policy(website, retention_days=retention_days)

    @operation(lambda self: self.model.policies, index=INDEXES)
    def remove_policy(self, index: int) -> None:
        website = list(self.model.policies)[index % len(self.model.policies)]
        del self.model.policies[website]
        self.execute("DELETE FROM analytics_website_policy WHERE website_id = %s", website)

    @operation(hours=st.sampled_from([1, 5, 13, 24, 72]))
    def advance_clock(self, hours: int) -> None:
        self.model.now += timedelta(hours=hours)
        self.jobs.execute("SELECT set_config('clock.now', %s, false)", [self.model.now.isoformat()])

    # What the jobs do.

    @operation()
    def aggregate(self) -> None:
        complete(self.aggregation())
        for website in SITES:
            check_disjoint(row for (name, _), row in self.model.rows.items() if name == website and row.counted)

    @operation(days_ago=st.sets(st.integers(-1, 12), min_size=1, max_size=3))
    def aggregate_days(self, days_ago: set[int]) -> None:
        complete(self.aggregate_each(self.model.now.date() - ago * DAY for ago in days_ago))

    @operation(batch_size=st.sampled_from([2, 1000]))
    def clean_up(self, batch_size: int) -> None:
        for file in ("close_idle_sessions", "end_returned_sessions"):
            parameters = {"idle_minutes": "30", "batch_size": batch_size}
            while len(self.sql(CLEANUP, file, parameters)) == batch_size:
                pass
        self.model.close_sessions()
        self.check()

    @operation(retention_days=RETENTION_DAYS, backwards=st.booleans())
    def retain(self, retention_days: int, backwards: bool) -> None:
        complete(self.retention(retention_days, backwards))

    @operation(
        slot=st.sampled_from([0, 1]),
        steps=st.sampled_from([1, 2, 3, 5, 8]),
        retention_days=RETENTION_DAYS,
        backwards=st.booleans(),
    )
    def continue_retention(self, slot: int, steps: int, retention_days: int, backwards: bool) -> None:
        self.advance(self.runs.setdefault(slot, self.retention(retention_days, backwards)), steps)

    @operation(steps=st.sampled_from([1, 2]))
    def continue_aggregation(self, steps: int) -> None:
        self.advance(self.runs.setdefault(2, self.aggregation()), steps)

    @operation(lambda self: self.runs, index=INDEXES)
    def kill_run(self, index: int) -> None:
        del self.runs[sorted(self.runs)[index % len(self.runs)]]

    @operation(lambda self: self.batches, index=INDEXES)
    def repeat_batch(self, index: int) -> None:
        self.delete_batch(*self.batches[-1 - index % len(self.batches)])

    def advance(self, run: Iterator[None], steps: int) -> None:
        """Do some more steps of a run."""
        if any(next(run, "ended") == "ended" for _ in range(steps)):
            self.runs = {slot: other for slot, other in self.runs.items() if other is not run}

    def aggregation(self) -> Generator[None, None, None]:
        """The steps of aggregate_daily_analytics."""
        now, timezone, params = self.model.now, self.model.timezone, dict.fromkeys(("stat_date", "from", "to"))
        due = self.due_days()
        yield
        yield from self.aggregate_each(days_to_aggregate(params, now, now, timezone, due))

    def retention(self, retention_days: int, backwards: bool) -> Generator[None, None, Report]:
        """The steps of archive_old_analytics. Mapped tasks run in any order, so here forwards or backwards."""
        defaults = {"retention_days": str(retention_days), "timezone": self.model.timezone}
        frozen = self.sql(RETENTION, "freeze_cutoff", defaults)[0]
        policy = defaults | {"moment": frozen["moment"], "cutoff": frozen["cutoff"]}
        yield
        unproven = self.prove_days(policy)
        yield
        yield from self.aggregate_each(unproven)
        unproven = self.prove_days(policy)
        yield
        expired = self.sql(RETENTION, "count_expired", policy)[0]
        yield
        plan = policy | {"batch_size": str(BATCH_SIZE), "dry_run": "False"}
        batches = {}
        for table in ("event", "session"):
            batches[table] = self.sql(RETENTION, f"plan_{table}_batches", plan | {"expired": expired[f"{table}s"]})
            yield
        deleted = dict.fromkeys(expired, 0)
        for table, planned in batches.items():
            for batch in planned[::-1] if backwards else planned:
                deleted[f"{table}s"] += self.delete_batch(table, batch)
                yield
        return Report(unproven, expired, deleted)

    def aggregate_each(self, days: Iterable[date]) -> Generator[None, None, None]:
        """The mapped tasks of aggregate_day."""
        for task in tasks_for(sorted(days), self.model.timezone):
            self.sql(AGGREGATION, "aggregate_day", task)
            self.model.aggregate([date.fromisoformat(day) for day in task["days"]])
            self.check()
            yield

    def due_days(self) -> list[date]:
        rows = self.sql(AGGREGATION, "find_due_days", {"timezone": self.model.timezone})
        return [date.fromisoformat(row["day"]) for row in rows]

    def prove_days(self, policy: dict[str, Any]) -> set[date]:
        """Prove, and return the days that are not proven. What is too late for its final row must be reported."""
        rows = self.sql(RETENTION, "prove_days", policy)
        told = {(row["website_id"], row["day"]): row["late_events"] for row in rows}
        for (website, day), row in self.model.rows.items():
            if row.is_final and self.model.has_expired(website, row.interval.ends_at, asked_by(policy)):
                late = self.model.late_events(website, row)
                assert told.get((website, str(day)), 0) >= len(late), f"late and not reported: {late}"
                self.reported |= late
                self.seen["late event reported"] += len(late)
        self.check()
        return {date.fromisoformat(row["day"]) for row in rows if not row["is_proven"]}

    def delete_batch(self, table: str, batch: dict[str, Any]) -> int:
        count: int = self.sql(RETENTION, f"delete_{table}_batch", batch)
        assert count <= BATCH_SIZE
        self.batches.append((table, batch))
        self.check(asked_by(batch))
        return count

    # What must be true.

    def check(self, asked: Asked | None = None) -> None:
        """Compare the tables with the model. Only a batch may have deleted, and only what it was asked for."""
        connection = self.database.connection
        with connection.pipeline():
            events, stats, sessions = [connection.execute(query) for query in (EVENTS, STATS, SESSIONS)]
        left = {row["id"] for row in events}
        gone = [event for name, event in self.model.events.items() if name not in left]
        found = {(row.pop("website_id"), row.pop("date")): row for row in stats}
        rows = self.model.rows
        for key, row in found.items():
            version = row.pop("version")
            if row["is_final"]:
                assert self.versions.setdefault(key, version) == version, f"{key} was final, and changed"
                if not rows[key].is_final:
                    assert {event.id for event in gone} & {
                        event.id for event in self.model.events_in(key[0], rows[key].interval)
                    }
                    rows[key] = replace(rows[key], is_final=True)
                    self.seen["row made final"] += 1
        # A row that counts nothing, and is not final, is as good as none.
        assert {key: row for key, row in found.items() if row["total_events"] or row["is_final"]} == {
            key: row.columns() for key, row in rows.items() if row.counted or row.is_final
        }
        for event in gone:
            self.check_purge(event, asked)
            del self.model.events[event.id]
        for website in SITES:
            check_disjoint(self.model.final_rows(website).values())
        self.check_sessions({row.pop("session_id"): row for row in sessions}, asked)

    def check_purge(self, event: Event, asked: Asked | None) -> None:
        """An event goes when its whole day has expired and it was soft-deleted, counted, or late and reported."""
        rows = self.model.final_rows(event.website_id).values()
        row = next((row for row in rows if event.timestamp in row.interval), None)
        ends_at = row.interval.ends_at if row else event.timestamp + timedelta.resolution
        assert asked, f"deleted by others than a batch: {event}"
        assert self.model.has_expired(event.website_id, ends_at, asked), f"not expired: {event}"
        reason = "soft-deleted"
        if not event.is_deleted:
            assert row, f"deleted, and its day has no final row: {event}"
            reason = "counted" if event.id in row.counted else "late"
            assert reason == "counted" or event.id in self.reported, f"neither counted nor reported: {event}"
        self.seen[f"{reason} event deleted"] += 1

    def check_sessions(self, found: dict[str, Any], asked: Asked | None) -> None:
        """A session goes when it has expired and has no event left; the model knows which are closed, and when."""
        sessions = self.model.sessions
        for name in sessions.keys() - found.keys():
            assert asked, f"deleted by others than a batch: {name}"
            assert self.model.session_may_go(name, asked), f"not expired, or has events: {name} {sessions[name]}"
            del sessions[name]
            self.seen["session deleted"] += 1
        ends = {name: (session.ended_at, session.duration_seconds) for name, session in sessions.items()}
        assert {name: (row["ended_at"], row["duration_seconds"]) for name, row in found.items()} == ends

    def teardown(self) -> None:
        """Look at the end of the history, but not after a failure."""
        try:
            if sys.exc_info()[0] is None:
                self.check_end()
        finally:
            self.writer.rollback()

    def check_end(self) -> None:
        """Let every job run once, undisturbed: nothing is left to do, and nothing that had to stay is gone."""
        if self.pending:
            self.end_transaction(commit=True)
        self.aggregate()
        rows = {key: row.counts for key, row in self.model.rows.items() if row.counted and not row.is_final}
        assert rows == {key: row.counts for key, row in self.model.right_rows().items()}
        self.clean_up(batch_size=1000)
        asked = Asked(self.model.now, 3)
        kept = self.model.kept_events(asked)
        report = complete(self.retention(asked.retention_days, backwards=False))
        assert not report.unproven
        assert report.deleted == report.expired
        assert self.model.events.keys() == kept
        for name, session in self.model.sessions.items():
            may_go = self.model.session_may_go(name, asked) and session.started_at <= session.last_activity_at
            assert not may_go, f"left: {name} {session}"
        assert self.due_days() == []
        self.seen["histories"] += 1

    # How it is done.

    def sql(self, folder: str, file: str, parameters: dict[str, Any]) -> Any:
        """The result of one of the jobs' statements."""
        return self.database.run(f"{folder}/{file}.sql", self.jobs, **parameters)

    def execute(self, query: str, *arguments: Any) -> None:
        """What the application or the operator does."""
        self.database.connection.execute(query.encode(), arguments)

    def instant(self, moment: Moment) -> datetime:
        today = self.model.now.replace(hour=0)
        return today - moment.days_ago * DAY + timedelta(hours=moment.hour) - moment.just_before * timedelta.resolution

    def store(self, draft: EventDraft, timestamp: datetime, connection: Any) -> None:
        """Insert an event. One that the writer inserts is there once its transaction has ended."""
        self.events_made += 1
        name = f"{draft.prefix}{self.events_made}"
        event = Event(name, draft.website, timestamp, *draft.content, *draft.visit, draft.is_deleted)
        columns = {key: value for key, value in vars(event).items() if key != "is_deleted"} | {
            "created_at": draft.created_at or self.model.now,
            "deleted_at": self.model.now if draft.is_deleted else None,
        }
        names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
        connection.execute(f"INSERT INTO analytics_event ({names}) VALUES ({places})".encode(), list(columns.values()))
        if connection is self.writer:
            self.pending.append(event)
        else:
            self.model.events[name] = event

    def set_policy(self, website: str, **values: Any) -> None:
        policy = self.model.policies[website] = replace(self.model.policies.get(website, model.Policy()), **values)
        self.execute("DELETE FROM analytics_website_policy WHERE website_id = %s", website)
        self.execute("INSERT INTO analytics_website_policy VALUES (%s, %s, %s, %s)", website, *vars(policy).values())

    def pick_event(self, index: int) -> Event:
        return list(self.model.events.values())[index % len(self.model.events)]

    def pick_session(self, index: int) -> tuple[str, Session]:
        return list(self.model.sessions.items())[index % len(self.model.sessions)]


def asked_by(parameters: dict[str, Any]) -> Asked:
    """What the parameters of a step ask for."""
    return Asked(datetime.fromisoformat(str(parameters["moment"])), int(parameters["retention_days"]))


def check_disjoint(rows: Iterable[Row]) -> None:
    """No instant belongs to two of a website's days."""
    intervals = sorted((row.interval for row in rows), key=attrgetter("starts_at"))
    assert all(before.ends_at <= after.starts_at for before, after in pairwise(intervals)), f"overlap: {intervals}"


def complete(steps: Generator[None, None, Result]) -> Result:
    """Do all steps and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def test_the_laws_hold_in_every_history(database: Database) -> None:
    # The constraint reads the files of all time zones, which takes longer than a history.
    database.connection.execute(
        f"""
        ALTER TABLE analytics_website_policy DROP CONSTRAINT analytics_website_policy_timezone_check;
        CREATE SCHEMA clock;
        GRANT USAGE ON SCHEMA clock TO {LOGIN};
        CREATE FUNCTION clock.now() RETURNS timestamptz STABLE RETURN current_setting('clock.now')::timestamptz
        """.encode()
    )
    seen: Counter[str] = Counter()
    options = "-c search_path=clock,analytics,public,pg_catalog -c timezone=UTC -c lock_timeout=5s"
    with database.connect(LOGIN, options=options) as jobs, database.connect() as writer:
        writer.autocommit = False
        run: Any = run_state_machine_as_test
        run(
            lambda: History(database, jobs, writer, seen),
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
    for fact in FACTS | OPERATIONS:
        assert seen[fact] > 0, f"never happened: {fact}"
