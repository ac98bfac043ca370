"""What can happen to the analytics database, and what it must say then, in plain Python.

Knows nothing of the SQL: calendar days, sets of event ids, and rules in words.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

SITES = ("anna", "ben")
DAY = timedelta(days=1)
SESSION_TIMEOUT = timedelta(minutes=30)


class Moment(NamedTuple):
    """A moment of a day before the present one, in UTC."""

    days_ago: int
    hour: float
    just_before: bool


class EventDraft(NamedTuple):
    """An event that the application stores."""

    website: str
    moment: Moment
    content: tuple[str, str, str | None]
    visit: tuple[str, str]
    is_deleted: bool = False
    created_at: datetime | None = None
    prefix: str = "a"


class SessionDraft(NamedTuple):
    """A session that the application stores."""

    name: str
    website: str
    moment: Moment
    minutes: int
    is_deleted: bool


WEBSITES = st.sampled_from(SITES)
ZONES = st.sampled_from(
    [
        "UTC",
        "America/New_York",
        "Australia/Lord_Howe",  # half an hour of daylight saving time
        "Asia/Kolkata",
        "Pacific/Kiritimati",
        "Pacific/Pago_Pago",  # 25 hours behind Kiritimati
    ]
)
# In the days before each, the clocks of New York or of Lord Howe change.
STARTS = [datetime(2024, month, day, 6, tzinfo=UTC) for month, day in ((3, 14), (4, 12), (10, 10), (11, 7))]
# Hours of UTC at which days begin in these zones.
MOMENTS = st.builds(
    Moment, st.integers(0, 11), st.sampled_from([0, 4, 5, 10, 11, 13, 13.5, 18.5]), st.sampled_from([False, True])
)
DELETED = st.sampled_from([False, False, True])
PREFIXES = st.sampled_from("aZ_")
EVENTS = st.builds(
    EventDraft,
    website=WEBSITES,
    moment=MOMENTS,
    content=st.sampled_from(
        [
            ("pageview", "/", None),
            ("pageview", "/ä", "direct"),
            ("pageview", "/Z", "google"),
            ("pageview", "/a", ""),
            ("custom_event", "/a", "google"),
        ]
    ),
    visit=st.sampled_from([(f"visitor_{number % 3}", f"session_{number}") for number in range(5)]),
    is_deleted=DELETED,
    created_at=st.sampled_from([None, datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)]),
    prefix=PREFIXES,
)
SESSIONS = st.builds(
    SessionDraft,
    name=st.sampled_from([f"session_{number}" for number in range(6)]),
    website=WEBSITES,
    moment=MOMENTS,
    minutes=st.sampled_from([-1, 0, 45, 3000]),
    is_deleted=DELETED,
)


@dataclass
class Event:
    """A raw event."""

    id: str
    website_id: str
    timestamp: datetime
    event_type: str
    pathname: str
    referrer_source: str | None
    visitor_id: str
    session_id: str
    is_deleted: bool


@dataclass
class Session:
    """A session."""

    website_id: str
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None
    duration_seconds: int | None
    is_deleted: bool


@dataclass
class Policy:
    """What the operator said about a website."""

    timezone: str | None = None
    retention_days: int | None = None
    legal_hold: bool = False


@dataclass(frozen=True)
class Interval:
    """A half-open interval of time."""

    starts_at: datetime
    ends_at: datetime

    def __contains__(self, instant: datetime) -> bool:
        return self.starts_at <= instant < self.ends_at


@dataclass(frozen=True)
class Row:
    """The statistics of a website's day, and which events they count."""

    interval: Interval
    timezone: str
    counts: dict[str, object]
    counted: frozenset[str]
    is_final: bool = False

    def columns(self) -> dict[str, object]:
        """The columns of the table."""
        return self.counts | {"timezone": self.timezone, "is_final": self.is_final} | vars(self.interval)


class Asked(NamedTuple):
    """What a retention run is asked for: the moment it stands for, and the days kept where a website says nothing."""

    moment: datetime
    retention_days: int


@dataclass
class Model:
    """The whole database, and the present moment."""

    now: datetime
    timezone: str
    events: dict[str, Event] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    rows: dict[tuple[str, date], Row] = field(default_factory=dict)

    def timezone_of(self, website: str) -> str:
        """The time zone of a website's days."""
        return self.policies.get(website, Policy()).timezone or self.timezone

    def has_expired(self, website: str, ends_at: datetime, asked: Asked) -> bool:
        """Whether raw data of what ended then may be deleted."""
        policy = self.policies.get(website, Policy())
        today = asked.moment.astimezone(ZoneInfo(self.timezone_of(website))).date()
        oldest_kept = today - DAY * (policy.retention_days or asked.retention_days)
        return not policy.legal_hold and ends_at <= midnight(oldest_kept, self.timezone_of(website))

    def final_rows(self, website: str) -> dict[date, Row]:
        """The final rows of a website."""
        return {day: row for (name, day), row in self.rows.items() if name == website and row.is_final}

    def day_of(self, website: str, instant: datetime) -> date:
        """The day that an instant belongs to.

        That of the final row that has it; else the calendar day in the website's time zone, but never one on the other
        side of a final row.
        """
        day = instant.astimezone(ZoneInfo(self.timezone_of(website))).date()
        earliest, latest = date.min, date.max
        for final_day, row in self.final_rows(website).items():
            if instant in row.interval:
                return final_day
            if row.interval.ends_at <= instant:
                earliest = max(earliest, final_day + DAY)
            else:
                latest = min(latest, final_day - DAY)
        assert earliest <= latest, f"{website}: {instant} is between the final rows of days that follow each other"
        return min(max(day, earliest), latest)

    def interval_of(self, website: str, day: date) -> Interval:
        """All the instants that belong to a day. A day may have none where the time zone was changed."""
        intervals = [row.interval for row in self.final_rows(website).values()]
        edges = [edge for interval in intervals for edge in (interval.starts_at, interval.ends_at)]

        def start(of: date) -> datetime:
            first = midnight(of, self.timezone_of(website))
            return min(edge for edge in [first, *edges] if self.day_of(website, edge) >= of)

        return Interval(start(day), start(day + DAY))

    def events_in(self, website: str, interval: Interval) -> list[Event]:
        """A website's events in an interval."""
        return [event for event in self.events.values() if event.website_id == website and event.timestamp in interval]

    def count(self, website: str, day: date) -> Row:
        """The row that a day should have."""
        interval = self.interval_of(website, day)
        events = self.events_in(website, interval)
        counted = [event for event in events if not event.is_deleted]
        pageviews = [event for event in counted if event.event_type == "pageview"]
        counts = {
            "total_pageviews": len(pageviews),
            "total_custom_events": len(counted) - len(pageviews),
            "unique_visitors": len({event.visitor_id for event in counted}),
            "unique_sessions": len({event.session_id for event in counted}),
            "top_pages": ranked(event.pathname for event in pageviews),
            "top_referrers": ranked(event.referrer_source for event in pageviews if event.referrer_source),
            "total_events": len(counted),
            "deleted_events": len(events) - len(counted),
        }
        return Row(interval, self.timezone_of(website), counts, frozenset(event.id for event in counted))

    def aggregate(self, days: Iterable[date]) -> None:
        """Count days that are over and have events, and whatever has a row that is not final."""
        for website, day in [(website, day) for day in days for website in SITES]:
            row, found = self.rows.get((website, day)), self.count(website, day)
            if not row.is_final if row else found.counted and found.interval.ends_at <= self.now:
                self.rows[website, day] = found

    def right_rows(self) -> dict[tuple[str, date], Row]:
        """The rows that count something and are not final, once every day that is due was aggregated."""
        live = [event for event in self.events.values() if not event.is_deleted]
        days = {(event.website_id, self.day_of(event.website_id, event.timestamp)) for event in live}
        rows = {key: self.count(*key) for key in days if key not in self.rows or not self.rows[key].is_final}
        return {key: row for key, row in rows.items() if row.interval.ends_at <= self.now or key in self.rows}

    def late_events(self, website: str, row: Row) -> set[str]:
        """The events of a final row that it does not count and nobody deleted."""
        events = self.events_in(website, row.interval)
        return {event.id for event in events if not event.is_deleted} - row.counted

    def kept_events(self, asked: Asked) -> set[str]:
        """The events that an undisturbed retention leaves: those of days that have not expired."""
        days = {name: (event.website_id, event.timestamp) for name, event in self.events.items()}
        ends = {
            name: self.interval_of(site, self.day_of(site, instant)).ends_at for name, (site, instant) in days.items()
        }
        return {name for name, ends_at in ends.items() if not self.has_expired(days[name][0], ends_at, asked)}

    def session_may_go(self, name: str, asked: Asked) -> bool:
        """Whether a session has expired and no event of it is left to count."""
        session, live = self.sessions[name], [event for event in self.events.values() if not event.is_deleted]
        after = session.last_activity_at + timedelta.resolution
        has_event = any(event.session_id == name for event in live)
        return not has_event and self.has_expired(session.website_id, after, asked)

    def close_sessions(self) -> None:
        """End the sessions that are idle, those which came back after their end as well, at their last activity."""
        for session in self.sessions.values():
            has_ended = session.ended_at is not None and session.ended_at >= session.last_activity_at
            is_idle = session.last_activity_at < self.now - SESSION_TIMEOUT
            if is_idle and not has_ended and not session.is_deleted:
                session.ended_at = session.last_activity_at
                duration = session.last_activity_at - session.started_at
                session.duration_seconds = max(0, duration // timedelta(seconds=1))


def midnight(day: date, timezone: str) -> datetime:
    """The first instant of a calendar day."""
    return datetime.combine(day, time(), ZoneInfo(timezone)).astimezone(UTC)


def ranked(items: Iterable[str]) -> list[dict[str, object]]:
    """The ten most frequent items, those of the same count in byte order."""
    order = sorted(Counter(items).items(), key=lambda item: (-item[1], item[0].encode()))
    return [{"item": item, "count": count} for item, count in order[:10]]
