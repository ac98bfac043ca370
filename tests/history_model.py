"""What the analytics database must say, whatever happens to it, in plain Python.

Knows nothing of the SQL: calendar days, what events hold, and rules in words.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from day_oracle import ATTRIBUTES, count_day

SITES = ("anna", "ben")
DAY = timedelta(days=1)
SESSION_TIMEOUT = timedelta(minutes=30)
EVER = date.min
"""The day from which a time zone holds that has always held."""

LATE = ("late_pageviews", "late_custom_events", "late_ignored_events")

Key = tuple[str, date]
"""A website and a day of it."""


@dataclass
class Event:
    """A raw event."""

    id: str
    website_id: str
    timestamp: datetime
    event_type: str
    pathname: str
    referrer_source: str | None
    event_name: str | None
    country: str | None
    device_type: str
    browser: str | None
    os: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    visitor_id: str
    session_id: str
    created_at: datetime
    updated_at: datetime
    is_deleted: bool

    def content(self) -> tuple[object, ...]:
        """All that is counted of it."""
        return self.timestamp, *(getattr(self, name) for name in ATTRIBUTES)


@dataclass
class Session:
    """A session."""

    website_id: str
    session_id: str
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None
    duration_seconds: int | None
    is_deleted: bool


@dataclass(frozen=True)
class Policy:
    """What the operator said about a website."""

    retention_days: int | None = None
    legal_hold: bool = False


class Interval(NamedTuple):
    """A half-open interval of time."""

    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True)
class Row:
    """The statistics of a website's day, and what they count."""

    interval: Interval
    counts: dict[str, Any]
    counted: dict[str, tuple[object, ...]]
    edits: frozenset[tuple[str, datetime]]
    aggregated_at: datetime
    kept_at: datetime | None = None
    sealed_at: datetime | None = None
    late_pageviews: int = 0
    late_custom_events: int = 0
    late_ignored_events: int = 0

    @property
    def total(self) -> int:
        """The number of events that it counts."""
        return len(self.counted)

    def signs(self) -> tuple[object, ...]:
        """What tells cheaply that the events of the day are not the counted ones any more."""
        return self.interval, self.total, self.counts["deleted_events"], self.counts["ignored_events"], self.edits

    @property
    def late_events(self) -> int:
        """The number of events that came after it was sealed."""
        return self.late_pageviews + self.late_custom_events + self.late_ignored_events

    def state(self) -> tuple[object, ...]:
        """What another run changes that seals the row, counts it again, or finds late events."""
        return self.sealed_at, self.counted, self.late_events

    def columns(self) -> dict[str, Any]:
        """The columns of the table."""
        names = ("aggregated_at", "kept_at", "sealed_at", *LATE)
        return self.counts | self.interval._asdict() | {name: getattr(self, name) for name in names}


@dataclass
class Statistics:
    """The database as the application and the daily statistics see it, and the present moment."""

    now: datetime
    seen: Counter[str]
    zones: dict[tuple[str | None, date], str] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    # Days.

    def timezone(self, website: str, day: date) -> str:
        """The time zone of a website's day: its own that holds, else that of all websites, else UTC."""
        for name in (website, None):
            if held := [since for owner, since in self.zones if owner == name and since <= day]:
                return self.zones[name, max(held)]
        return "UTC"

    def end(self, website: str, day: date) -> datetime:
        """A day ends at the next midnight of its zone; where that was before the end of a day before it, it is empty."""
        days = [day - ago * DAY for ago in range(4)]
        return max(midnight(past + DAY, self.timezone(website, past)) for past in days)

    def interval(self, website: str, day: date) -> Interval:
        """All the instants of a day: it starts where the day before ends."""
        return Interval(self.end(website, day - DAY), self.end(website, day))

    def day(self, website: str, instant: datetime) -> date:
        """The day that an instant belongs to."""
        day = instant.date() - 3 * DAY
        while self.end(website, day) <= instant:
            day += DAY
        return day

    def may_have_zones(self, zones: dict[tuple[str | None, date], str]) -> bool:
        """Whether these zones leave the bounds of every day as they are whose row must not change any more."""
        changed = replace(self, zones=zones)
        return all(
            self.interval(*key) == changed.interval(*key)
            for key, row in self.rows.items()
            if row.sealed_at or row.kept_at
        )

    # Statistics.

    def raw_days(self) -> dict[Key, list[Event]]:
        """The days that have raw events, soft-deleted ones as well."""
        days: dict[Key, list[Event]] = {}
        for event in self.events.values():
            days.setdefault((event.website_id, self.day(event.website_id, event.timestamp)), []).append(event)
        return days

    def events_in(self, website: str, interval: Interval) -> list[Event]:
        """A website's events in an interval."""
        starts_at, ends_at = interval
        events = (event for event in self.events.values() if event.website_id == website)
        return [event for event in events if starts_at <= event.timestamp < ends_at]

    def count(self, website: str, day: date) -> Row:
        """The row that a day should have."""
        interval = self.interval(website, day)
        events = self.events_in(website, interval)
        counted = [event for event in events if not event.is_deleted]
        counts = count_day(counted, self.ignored) | {"deleted_events": len(events) - len(counted)}
        edits = frozenset((event.id, event.updated_at) for event in counted if event.updated_at != event.created_at)
        return Row(interval, counts, {event.id: event.content() for event in counted}, edits, self.now)

    def live(self, website: str, row: Row) -> int:
        """How many events are there to count in the bounds of a row."""
        return sum(not event.is_deleted for event in self.events_in(website, row.interval))

    def due_days(self) -> list[date]:
        """The days that have no row, and are over, and those whose row shows that it is not right any more."""
        due, days = set(), self.raw_days()
        for key in days.keys() | self.rows.keys():
            row, found = self.rows.get(key), self.count(*key)
            # What is yet to come is not looked at.
            has_events = any(event.timestamp < self.now for event in days.get(key, []))
            if row is None:
                is_due = found.total > 0 and found.interval.ends_at <= self.now
            elif row.sealed_at:
                is_due = False
            elif row.kept_at:
                is_due = has_events and self.live(key[0], row) >= row.total
            elif has_events:
                is_due = row.signs() != found.signs()
            else:
                is_due = row.total > 0 and row.interval.ends_at <= self.now
            if is_due:
                due.add(key[1])
        return sorted(due)

    def must_keep(self, website: str, day: date, row: Row) -> bool:
        """Whether events of a row are gone, and not by a correction, as other events of the time before are there."""
        if row.interval != self.interval(website, day):
            return False
        events = self.events_in(website, row.interval)
        live = sum(not event.is_deleted for event in events)
        if row.kept_at:
            return live < row.total
        soft_deleted = max(len(events) - live - row.counts["deleted_events"], 0)
        if row.total - live <= soft_deleted:
            return False
        older = [other for (name, past), other in self.rows.items() if name == website and past < day and other.total]
        if older:
            # Where events were deleted before, those that came later may be more.
            shares = [(other, 2 if other.sealed_at or other.kept_at else 10) for other in older]
            return not any(self.live(website, other) * share >= other.total for other, share in shares)
        starts_at = self.interval(website, day).starts_at
        return not any(
            event.website_id == website and event.timestamp < starts_at and not event.is_deleted
            for event in self.events.values()
        )

    def recounts(self, days: Iterable[date], recount: bool) -> dict[Key, Row]:
        """The rows that an aggregation of these days changes."""
        changed = {}
        for key in [(website, day) for website in SITES for day in days]:
            row, found = self.rows.get(key), self.count(*key)
            if row is None:
                if found.total and found.interval.ends_at <= self.now:
                    changed[key] = found
            elif row.sealed_at:
                continue
            elif not recount and self.must_keep(*key, row):
                if not row.kept_at:
                    changed[key] = replace(row, kept_at=self.now)
            elif replace(found, aggregated_at=row.aggregated_at) != row:
                changed[key] = found
        return changed

    def write(self, changed: dict[Key, Row]) -> None:
        """Write what an aggregation changes."""
        for key, row in changed.items():
            before = self.rows.get(key)
            self.seen["row kept"] += row.kept_at is not None
            if before and not row.kept_at:
                self.seen["kept row counted again"] += before.kept_at is not None
                self.seen["fewer events counted"] += row.total < before.total
            self.rows[key] = row

    def close_sessions(self) -> None:
        """End the sessions that are idle, those which came back after their end as well, at their last activity."""
        for session in self.sessions.values():
            has_ended = session.ended_at is not None and session.ended_at >= session.last_activity_at
            is_idle = session.last_activity_at < self.now - SESSION_TIMEOUT
            if is_idle and not has_ended and not session.is_deleted:
                session.ended_at = session.last_activity_at
                duration = session.last_activity_at - session.started_at
                session.duration_seconds = max(0, duration // timedelta(seconds=1))


@cache
def midnight(day: date, timezone: str) -> datetime:
    """The first instant of a calendar day."""
    return datetime.combine(day, time(), ZoneInfo(timezone)).astimezone(UTC)
