"""What the application, its operator and time do to the database in a random history."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta
from functools import wraps
from typing import Any

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import clock
from conftest import Database
from history_drafts import (
    CONTENTS,
    DRAFTS,
    MOMENTS,
    NAMES,
    SESSIONS,
    STARTS,
    VISITS,
    WEBSITES,
    ZONES,
    Content,
    Draft,
    Moment,
    SessionDraft,
)
from history_model import DAY, EVER, SITES, Event, Policy, Session
from history_retention import Model

INDEXES = st.integers(0, 99)
# On no day of the calendar: for ever there, unless the application deletes it.
ABSURD = {"absurd_1": "-infinity", "absurd_2": "4000-01-01 BC", "absurd_3": "20000-01-01", "absurd_4": "infinity"}
ANCIENT = {"absurd_1", "absurd_2"}
TABLES = ("event", "session", "daily_stats", "website_policy", "timezone", "purge_batch", "job_run", "ignored_event")
RUN = {"job": "archive_old_analytics", "run_id": "every run"}
OPERATIONS: set[str] = set()


def operation(when: Callable[[Any], Any] = bool, **arguments: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Make a method one of the operations of a history, possible whenever `when` says so, and count it."""

    def decorate(method: Callable[..., None]) -> Any:
        OPERATIONS.add(method.__name__)

        @wraps(method)
        def counted(self: "Application", **values: Any) -> None:
            method(self, **values)
            self.seen[method.__name__] += 1

        rules: Any = rule  # its types do not know of arguments in a dict
        return precondition(when)(rules(**arguments)(counted))

    return decorate


def has_events(self: "Application") -> bool:
    """Whether there is an event to choose."""
    return bool(self.model.events)


def is_free(self: "Application") -> bool:
    """Whether no statement of a job has locked our tables."""
    return not self.is_busy


class Application(RuleBasedStateMachine):
    """A history without jobs. `jobs` is the connection that has a clock; `writer` is one in a transaction."""

    def __init__(
        self,
        database: Database,
        jobs: psycopg.Connection[dict[str, Any]],
        writer: psycopg.Connection[dict[str, Any]],
        seen: Counter[str],
    ) -> None:
        super().__init__()
        self.database, self.jobs, self.writer, self.seen = database, jobs, writer, seen
        self.model = Model(STARTS[0], seen)
        self.rows_made = 0
        self.pending: list[Event] = []
        self.backup: dict[str, Event] = {}
        self.absurd: set[str] = set()
        self.is_busy = False
        # Not TRUNCATE: it makes new files, which takes longer.
        for table in TABLES:
            self.execute(f"DELETE FROM analytics_{table}")
        self.execute("INSERT INTO analytics_job_run (job, run_id, started_at) VALUES (%s, %s, now())", *RUN.values())
        self.advance_clock(hours=0)

    @initialize(
        start=st.sampled_from(STARTS),
        zones=st.dictionaries(st.sampled_from([None, *SITES]), ZONES),
        events=st.lists(DRAFTS, max_size=16),
        sessions=st.lists(SESSIONS, max_size=4),
        absurd=st.sampled_from([{}, {}, ABSURD]),
    )
    def begin(
        self,
        start: datetime,
        zones: dict[str | None, str],
        events: list[Draft],
        sessions: list[SessionDraft],
        absurd: dict[str, str],
    ) -> None:
        self.model.now = start
        self.advance_clock(hours=0)
        for website, zone in zones.items():
            self.put_zone(website, EVER, zone)
        self.insert_events(events=events)
        self.insert_sessions(sessions=sessions)
        for name, timestamp in absurd.items():
            self.database.event(timestamp, SITES[0], id=name)
            self.absurd.add(name)

    # Events.

    @operation(events=st.lists(DRAFTS, min_size=1, max_size=4))
    def insert_events(self, events: list[Draft]) -> None:
        for event in events:
            self.store(event, self.instant(event.moment), self.database.connection)

    @operation(
        website=WEBSITES,
        days_ago=st.integers(4, 20),
        number=st.integers(5, 12),
        drafts=st.lists(DRAFTS, min_size=1, max_size=3),
    )
    def import_old_events(self, website: str, days_ago: int, number: int, drafts: list[Draft]) -> None:
        for index in range(number):
            draft = drafts[index % len(drafts)]
            moment = Moment(days_ago, index * 2, False)
            self.store(draft._replace(website=website), self.instant(moment), self.database.connection)

    @operation(has_events, index=INDEXES, draft=DRAFTS)
    def duplicate_event(self, index: int, draft: Draft) -> None:
        event = self.pick_event(index)
        self.store(draft._replace(website=event.website_id), event.timestamp, self.database.connection)

    @operation(event=DRAFTS, savepoint=st.booleans())
    def insert_in_transaction(self, event: Draft, savepoint: bool) -> None:
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

    @operation(has_events, index=INDEXES)
    def soft_delete_or_bring_back(self, index: int) -> None:
        event = self.pick_event(index)
        event.is_deleted = not event.is_deleted
        deleted_at = self.model.now if event.is_deleted else None
        self.execute("UPDATE analytics_event SET deleted_at = %s WHERE id = %s", deleted_at, event.id)

    @operation(has_events, index=INDEXES, content=CONTENTS, visit=VISITS, tells=st.booleans())
    def edit_event(self, index: int, content: Content, visit: tuple[str, str], tells: bool) -> None:
        event = self.pick_event(index)
        for name, value in content._asdict().items():
            setattr(event, name, value)
        event.visitor_id, event.session_id = visit
        self.update(event, tells)

    @operation(has_events, index=INDEXES, website=WEBSITES, moment=st.none() | MOMENTS, tells=st.booleans())
    def move_event(self, index: int, website: str, moment: Moment | None, tells: bool) -> None:
        event = self.pick_event(index)
        event.website_id = website
        event.timestamp = self.instant(moment) if moment else event.timestamp
        self.update(event, tells)

    @operation(has_events, index=INDEXES, website=WEBSITES)
    def move_day(self, index: int, website: str) -> None:
        event = self.pick_event(index)
        for other in self.model.raw_days()[event.website_id, self.model.day(event.website_id, event.timestamp)]:
            other.website_id = website
            self.update(other, tells=False)

    @operation(has_events, index=INDEXES)
    def erase_event(self, index: int) -> None:
        self.erase([self.pick_event(index)])

    @operation(has_events, index=INDEXES)
    def erase_visitor(self, index: int) -> None:
        visit = self.pick_event(index)
        whose = visit.website_id, visit.visitor_id
        self.erase([event for event in self.model.events.values() if (event.website_id, event.visitor_id) == whose])

    @operation(has_events, index=INDEXES, draft=DRAFTS)
    def replace_event(self, index: int, draft: Draft) -> None:
        event = self.pick_event(index)
        self.erase([event])
        draft = draft._replace(website=event.website_id, is_deleted=event.is_deleted)
        self.store(draft, event.timestamp, self.database.connection)

    @operation(days_ago=st.integers(2, 12), hour=st.sampled_from([0, 6]))
    def run_foreign_retention(self, days_ago: int, hour: int) -> None:
        before = self.instant(Moment(days_ago, hour, False))
        self.execute("DELETE FROM analytics_event WHERE timestamp < %s AND deleted_at IS NULL", before)
        for event in list(self.model.events.values()):
            if event.timestamp < before and not event.is_deleted:
                self.backup[event.id] = self.model.events.pop(event.id)
        self.absurd -= ANCIENT

    @operation(lambda self: self.backup)
    def restore_backup(self) -> None:
        while self.backup:
            self.insert(self.backup.popitem()[1], self.database.connection)

    # Sessions.

    @operation(sessions=st.lists(SESSIONS, min_size=1, max_size=3))
    def insert_sessions(self, sessions: list[SessionDraft]) -> None:
        for name, website, moment, minutes, is_deleted in sessions:
            same = (session for session in self.model.sessions.values() if session.session_id == name)
            if is_deleted or all(session.is_deleted for session in same):
                self.rows_made += 1
                started_at, row = self.instant(moment), f"s{self.rows_made}"
                last_activity_at = started_at + timedelta(minutes=minutes)
                columns = {"deleted_at": self.model.now if is_deleted else None, "id": row, "website_id": website}
                self.database.session(started_at, last_activity_at, session_id=name, **columns)
                self.model.sessions[row] = Session(website, name, started_at, last_activity_at, None, None, is_deleted)

    @operation(lambda self: self.model.sessions, index=INDEXES, minutes_ago=st.sampled_from([0, 29, 30, 31, 3000]))
    def touch_session(self, index: int, minutes_ago: int) -> None:
        name, session = self.pick_session(index)
        session.last_activity_at = self.model.now - timedelta(minutes=minutes_ago)
        values = session.last_activity_at, name
        self.execute("UPDATE analytics_session SET last_activity_at = %s WHERE id = %s", *values)

    @operation(lambda self: self.model.sessions, index=INDEXES)
    def close_session(self, index: int) -> None:
        name, session = self.pick_session(index)
        session.ended_at, session.duration_seconds = self.model.now, 7
        values = session.ended_at, session.duration_seconds, name
        self.execute("UPDATE analytics_session SET ended_at = %s, duration_seconds = %s WHERE id = %s", *values)

    # What the operator says, and time.

    @operation(is_free, website=st.sampled_from([None, *SITES]), days=st.none() | st.integers(-12, 3), zone=ZONES)
    def set_zone(self, website: str | None, days: int | None, zone: str) -> None:
        self.put_zone(website, EVER if days is None else self.model.now.date() + days * DAY, zone)

    @operation(lambda self: self.model.zones and is_free(self), index=INDEXES)
    def remove_zone(self, index: int) -> None:
        website, from_date = list(self.model.zones)[index % len(self.model.zones)]
        self.put_zone(website, from_date, None)

    @operation(is_free, names=st.sets(st.sampled_from(NAMES), max_size=2))
    def ignore_events(self, names: set[str]) -> None:
        self.execute("SELECT analytics_ignore_events(%s)", sorted(names))
        self.model.ignored = frozenset(names)

    @operation(website=WEBSITES, legal_hold=st.booleans())
    def set_hold(self, website: str, legal_hold: bool) -> None:
        self.set_policy(website, legal_hold=legal_hold)

    @operation(website=WEBSITES, retention_days=st.sampled_from([None, 1, 5, 40]))
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
        clock.set_now(self.jobs, self.model.now)

    @operation(is_free)
    def dump_and_restore(self) -> None:
        # Other rows of the same content, elsewhere and of another transaction; triggers are made after the rows.
        moves = (
            f"WITH gone AS (DELETE FROM analytics_{table} RETURNING *)"
            f" INSERT INTO analytics_{table} OVERRIDING SYSTEM VALUE SELECT * FROM gone ORDER BY md5(gone::text);"
            for table in TABLES
        )
        # Several statements at once are one transaction.
        self.execute(f"SET LOCAL session_replication_role = replica; {' '.join(moves)}")

    # How it is done.

    def execute(self, query: str, *arguments: Any) -> None:
        """What the application or the operator does."""
        self.database.connection.execute(query.encode(), arguments or None)

    def instant(self, moment: Moment) -> datetime:
        today = self.model.now.replace(hour=0)
        return today - moment.days_ago * DAY + timedelta(hours=moment.hour) - moment.just_before * timedelta.resolution

    def store(self, draft: Draft, timestamp: datetime, connection: psycopg.Connection[dict[str, Any]]) -> None:
        """Insert an event. One that the writer inserts is there once its transaction has ended."""
        self.rows_made += 1
        created_at = draft.created_at or self.model.now
        place = f"{draft.prefix}{self.rows_made}", draft.website, timestamp
        visitor_id, session_id = draft.visit
        event = Event(
            *place,
            **draft.content._asdict(),
            visitor_id=visitor_id,
            session_id=session_id,
            created_at=created_at,
            updated_at=created_at,
            is_deleted=draft.is_deleted,
        )
        self.insert(event, connection)

    def insert(self, event: Event, connection: psycopg.Connection[dict[str, Any]]) -> None:
        columns = self.columns(event)
        names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
        connection.execute(f"INSERT INTO analytics_event ({names}) VALUES ({places})".encode(), list(columns.values()))
        if connection is self.writer:
            self.pending.append(event)
        else:
            self.model.events[event.id] = event

    def update(self, event: Event, tells: bool) -> None:
        """Write what an event is now, with the time of the edit as the application does, or without."""
        if tells:
            event.updated_at = self.model.now
        columns = self.columns(event)
        names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
        self.execute(f"UPDATE analytics_event SET ({names}) = ({places}) WHERE id = %s", *columns.values(), event.id)

    def columns(self, event: Event) -> dict[str, Any]:
        columns = asdict(event)
        return columns | {"deleted_at": self.model.now if columns.pop("is_deleted") else None}

    def erase(self, events: list[Event]) -> None:
        names = [event.id for event in events]
        self.execute("DELETE FROM analytics_event WHERE id = ANY(%s)", names)
        for name in names:
            del self.model.events[name]

    def put_zone(self, website: str | None, from_date: date, zone: str | None) -> None:
        """Store from when on a zone holds, or no more. One that would change a day that must not change is refused."""
        before = self.model.zones
        after = {key: value for key, value in before.items() if key != (website, from_date)}
        if zone:
            after[website, from_date] = zone
        stored = "-infinity" if from_date == EVER else from_date
        is_allowed = self.model.may_have_zones(after)
        try:
            if zone:
                self.execute(
                    "INSERT INTO analytics_timezone (website_id, from_date, timezone) VALUES (%s, %s, %s)"
                    " ON CONFLICT (website_id, from_date) DO UPDATE SET timezone = excluded.timezone",
                    *(website, stored, zone),
                )
            else:
                query = "DELETE FROM analytics_timezone WHERE website_id IS NOT DISTINCT FROM %s AND from_date = %s"
                self.execute(query, website, stored)
        except psycopg.errors.InvalidParameterValue:
            assert not is_allowed, f"refused: {website} {from_date} {zone}"
            self.seen["zone refused"] += 1
        else:
            assert is_allowed, f"not refused: {website} {from_date} {zone}"
            self.model.zones = after
            self.seen["zone changed with sealed rows"] += any(row.sealed_at for row in self.model.rows.values())

    def set_policy(self, website: str, **values: Any) -> None:
        policy = self.model.policies[website] = replace(self.model.policies.get(website, Policy()), **values)
        self.execute("DELETE FROM analytics_website_policy WHERE website_id = %s", website)
        query = "INSERT INTO analytics_website_policy (website_id, retention_days, legal_hold) VALUES (%s, %s, %s)"
        self.execute(query, website, policy.retention_days, policy.legal_hold)

    def pick_event(self, index: int) -> Event:
        """Choose an event. Small numbers are drawn more often, and choose those that are listed for deletion."""
        events = sorted(self.model.events.values(), key=self.model.is_listed, reverse=True)
        return events[index % len(events)]

    def pick_session(self, index: int) -> tuple[str, Session]:
        return list(self.model.sessions.items())[index % len(self.model.sessions)]
