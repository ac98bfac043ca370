"""What the retention must do, in plain Python: which days it seals, what it lists, and what it deletes."""

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

from history_model import DAY, LATE, Event, Key, Policy, Row, Session, Statistics


@dataclass(frozen=True)
class Batch:
    """Rows that are listed for deletion, those that were soft-deleted when they were listed apart."""

    kind: str
    first_at: datetime
    last_at: datetime
    ids: frozenset[str]
    deleted_ids: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All rows that it lists."""
        return self.ids | self.deleted_ids

    @property
    def size(self) -> int:
        """How many rows it lists."""
        return len(self.names)

    def takes(self, event: Event) -> bool:
        """Whether an event that it lists is still the one that was listed: not moved, and not restored."""
        is_listed = event.id in self.ids or (event.id in self.deleted_ids and event.is_deleted)
        return is_listed and self.first_at <= event.timestamp <= self.last_at


class Sealing(NamedTuple):
    """What one statement seals, counts as late, lists, and leaves because it is counted wrongly."""

    sealed: set[Key]
    late: dict[Key, list[Event]]
    batches: list[Batch]
    inexact: set[Key]


class Purge(NamedTuple):
    """What becomes of a batch."""

    gone: set[str]
    held: list[Batch]


@dataclass
class Model(Statistics):
    """The whole database."""

    batches: dict[int, Batch] = field(default_factory=dict)
    reasons: dict[str, tuple[str, str, datetime]] = field(default_factory=dict)
    """Why a live event may be deleted that is on the list, and where it was then."""
    late_events: int = 0

    def snapshot(self) -> "Model":
        """What a statement sees that starts now."""
        return deepcopy(self)

    def has_expired(self, website: str, ends_at: datetime, retention_days: int) -> bool:
        """Whether raw data of what ended then may be deleted: it was before the oldest day that stays."""
        policy = self.policies.get(website, Policy())
        oldest = self.day(website, self.now) - (policy.retention_days or retention_days) * DAY
        return not policy.legal_hold and ends_at <= self.interval(website, oldest).starts_at

    def expired_days(self, retention_days: int) -> dict[Key, list[Event]]:
        """The days that have raw events which may be deleted."""
        days = self.raw_days().items()
        return {key: found for key, found in days if self.has_expired(key[0], self.end(*key), retention_days)}

    def seal(
        self, first_day: date, last_day: date, retention_days: int, batch_size: int, present: "Model | None" = None
    ) -> Sealing:
        """What a statement does that seals expired days and lists their raw events, where this is what it sees.

        It leaves a day if at `present`, when it writes, another run has sealed it, counted it or found late events of it.
        """
        sealing, listed = Sealing(set(), {}, [], set()), []
        for key, events in self.expired_days(retention_days).items():
            if not first_day <= key[1] <= last_day:
                continue
            row = self.rows.get(key)
            new = [event for event in events if not self.is_listed(event)]
            live = {event.id: event.content() for event in events if not event.is_deleted}
            is_left = present is not None and row is not None and row.state() != present.rows[key].state()
            if row and row.sealed_at:
                late = [event for event in new if event.id in live]
                if late and is_left:
                    continue
                sealing.late[key] = late
            elif not is_left and row and ((row.kept_at and len(live) < row.total) or self.is_exact(key, row)):
                sealing.sealed.add(key)
            elif row or live:
                sealing.inexact.add(key)
                continue
            listed += new
        listed.sort(key=lambda event: (event.timestamp, event.id))
        for batch in [listed[start : start + batch_size] for start in range(0, len(listed), batch_size)]:
            live_ids = frozenset(event.id for event in batch if not event.is_deleted)
            deleted_ids = frozenset(event.id for event in batch if event.is_deleted)
            sealing.batches.append(Batch("event", batch[0].timestamp, batch[-1].timestamp, live_ids, deleted_ids))
        return sealing

    def is_exact(self, key: Key, row: Row) -> bool:
        """Whether a row counts just what is there."""
        found = self.count(*key)
        names = "ignored_events"
        return (row.interval, row.counted, row.counts[names]) == (found.interval, found.counted, found.counts[names])

    def is_listed(self, event: Event) -> bool:
        """Whether a batch will delete this event, as it is now."""
        return any(batch.kind == "event" and batch.takes(event) for batch in self.batches.values())

    def apply(self, sealing: Sealing, shown: "Model") -> None:
        """Do what a statement seals and counts to which `shown` was shown. Its batches get their numbers elsewhere."""
        for key in sealing.sealed:
            row, live = self.rows[key], [event for event in shown.raw_days()[key] if not event.is_deleted]
            assert row.interval == self.interval(*key), f"sealed with the bounds of another zone: {key}"
            is_exact = row.counted.keys() == {event.id for event in live}
            self.seen["row sealed" if is_exact else "row sealed as it is"] += 1
            self.rows[key] = replace(row, sealed_at=shown.now)
            self.tell("counted event" if is_exact else "event of a kept row", live)
        for key, events in sealing.late.items():
            row = self.rows[key]
            kinds = Counter(
                "late_pageviews"
                if event.event_type == "pageview"
                else "late_ignored_events"
                if event.event_name in shown.ignored
                else "late_custom_events"
                for event in events
            )
            self.rows[key] = replace(row, **{name: getattr(row, name) + kinds[name] for name in LATE})
            self.seen["late event ignored"] += kinds["late_ignored_events"]
            self.late_events += len(events)
            self.tell("late event", events)

    def tell(self, reason: str, events: Iterable[Event]) -> None:
        """Remember why events may be deleted. None is counted twice where it is."""
        for event in events:
            before = self.reasons.get(event.id)
            assert before is None or before[1:] != (event.website_id, event.timestamp), f"again a {reason}: {event}"
            self.reasons[event.id] = reason, event.website_id, event.timestamp

    def purge_events(self, batch: Batch, retention_days: int) -> Purge:
        """What becomes of a batch of events: held ones stay listed; moved and restored ones stay, and are not."""
        found = {name: self.events[name] for name in batch.names if name in self.events}
        taken = {name for name, event in found.items() if batch.takes(event)}
        gone = {name for name in taken if self.may_go(found[name], retention_days)}
        held = taken - gone
        self.seen["moved or restored event left"] += len(found) - len(taken)
        self.seen["held event left"] += len(held)
        for name in batch.ids - taken:
            if name not in found or not self.is_listed(found[name]):
                self.reasons.pop(name, None)
        again = replace(batch, ids=batch.ids & held, deleted_ids=batch.deleted_ids & held)
        return Purge(gone, [again] if held else [])

    def may_go(self, event: Event, retention_days: int) -> bool:
        """Whether an event has expired."""
        return self.has_expired(event.website_id, event.timestamp + timedelta.resolution, retention_days)

    def session_may_go(self, session: Session, retention_days: int) -> bool:
        """Whether a session has expired and no event of it is left."""
        has_event = any(event.session_id == session.session_id for event in self.events.values())
        after = session.last_activity_at + timedelta.resolution
        return not has_event and self.has_expired(session.website_id, after, retention_days)

    def list_sessions(self, retention_days: int, batch_size: int) -> list[Batch]:
        """The sessions that are listed for deletion, in the order of their ids."""
        listed = {name for batch in self.batches.values() if batch.kind == "session" for name in batch.ids}
        sessions = self.sessions
        names = sorted(name for name in sessions.keys() - listed if self.session_may_go(sessions[name], retention_days))
        batches = []
        for batch in [names[start : start + batch_size] for start in range(0, len(names), batch_size)]:
            times = [self.sessions[name].last_activity_at for name in batch]
            batches.append(Batch("session", min(times), max(times), frozenset(batch)))
        return batches

    def purge_sessions(self, batch: Batch, retention_days: int) -> Purge:
        """What becomes of a batch of sessions: one that came back, has events or is held stays, and is not listed."""
        found = batch.ids & self.sessions.keys()
        taken = {name for name in found if self.sessions[name].last_activity_at <= batch.last_at}
        gone = {name for name in taken if self.session_may_go(self.sessions[name], retention_days)}
        self.seen["session left"] += len(found - gone)
        return Purge(gone, [])
