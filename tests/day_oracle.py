"""What the statistics of a day are, in plain Python, from its events alone.

Knows nothing of the SQL: what events hold, and rules in words.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

DIMENSIONS = {
    "top_countries": "country",
    "top_devices": "device_type",
    "top_browsers": "browser",
    "top_os": "os",
    "top_utm_sources": "utm_source",
    "top_utm_mediums": "utm_medium",
    "top_utm_campaigns": "utm_campaign",
}
"""The columns that divide the pageviews of a day, and what of an event each of them is about."""
ATTRIBUTES = (
    "event_type",
    "event_name",
    "pathname",
    "referrer_source",
    *DIMENSIONS.values(),
    "visitor_id",
    "session_id",
)
"""All of an event that is counted, but its time."""


class Event(NamedTuple):
    """A raw event."""

    event_type: str
    event_name: str | None
    pathname: str
    referrer_source: str | None
    visitor_id: str
    session_id: str
    country: str | None
    device_type: str
    browser: str | None
    os: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    timestamp: datetime
    website_id: str
    deleted_at: datetime | None


def count_day(events: Collection[Any], ignored: Collection[str] = ()) -> dict[str, Any]:
    """The counts of the live events of a day, where custom events of some names are ignored."""
    pageviews = [event for event in events if event.event_type == "pageview"]
    customs = [event for event in events if event.event_type == "custom_event" and event.event_name not in ignored]
    sessions: dict[str, list[Any]] = {}
    for event in events:
        sessions.setdefault(event.session_id, []).append(event)
    return {
        "total_pageviews": len(pageviews),
        "total_custom_events": len(customs),
        "unique_visitors": len({event.visitor_id for event in events}),
        "unique_sessions": len(sessions),
        # The empty path is a page like any other; the empty referrer is none.
        "top_pages": ranked(event.pathname for event in pageviews),
        "top_referrers": ranked(event.referrer_source for event in pageviews if event.referrer_source),
        "bounced_sessions": sum(is_bounced(session, customs) for session in sessions.values()),
        "session_seconds": sum(map(duration, sessions.values()), timedelta()) // timedelta(seconds=1),
        **{column: divided(pageviews, attribute) for column, attribute in DIMENSIONS.items()},
        "top_events": divided(customs, "event_name"),
        "ignored_events": sorted(ignored, key=str.encode),
        "total_events": len(events),
    }


def duration(session: Collection[Any]) -> timedelta:
    """From the first to the last event, whatever they are."""
    times = [event.timestamp for event in session]
    length: timedelta = max(times) - min(times)
    return length


def is_bounced(session: Collection[Any], customs: Collection[Any]) -> bool:
    """One pageview, and nothing else that counts."""
    pageviews = sum(event.event_type == "pageview" for event in session)
    return pageviews == 1 and not any(event in customs for event in session)


def ranked(items: Iterable[str]) -> list[dict[str, Any]]:
    """The ten most frequent items, those of the same count in byte order."""
    order = sorted(Counter(items).items(), key=lambda item: (-item[1], item[0].encode()))
    return [{"item": item, "count": count} for item, count in order[:10]]


def divided(events: Iterable[Any], attribute: str) -> list[dict[str, Any]]:
    """All events by an attribute: ten items, the most frequent first, and the others as one.

    A visitor is one of the item of most of its events, of several the first in byte order.
    """
    counts: Counter[str] = Counter()
    visits: dict[str, Counter[str]] = {}
    for event in events:
        item = getattr(event, attribute) or "(none)"
        counts[item] += 1
        visits.setdefault(event.visitor_id, Counter())[item] += 1
    visitors = Counter(min(visit, key=lambda item: (-visit[item], item.encode())) for visit in visits.values())
    # What an application calls so is one of the others.
    names = sorted(counts.keys() - {"(other)"}, key=lambda item: (-counts[item], item.encode()))[:10]
    entries = [{"item": item, "count": counts[item], "visitors": visitors[item]} for item in names]
    others = counts.keys() - set(names)
    if others:
        entries.append(
            {
                "item": "(other)",
                "count": sum(counts[item] for item in others),
                "visitors": sum(visitors[item] for item in others),
            }
        )
    return entries
