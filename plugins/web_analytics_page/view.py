"""What the address of the page says: a website, a range of days, a tab, and perhaps one day of it."""

import os
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from fastapi import Query

JOBS = {
    "aggregate_daily_analytics": "Daily statistics",
    "cleanup_analytics_sessions": "Closes idle sessions",
    "archive_old_analytics": "Deletes old raw data",
}
RANGES = {7: "7 days", 30: "30 days", 90: "90 days", 365: "1 year"}
LONGEST = 1100  # days: one bar a day is enough
Tab = Literal[
    "pages",
    "referrers",
    "countries",
    "devices",
    "browsers",
    "os",
    "utm_sources",
    "utm_mediums",
    "utm_campaigns",
    "events",
]
TABS: tuple[str, ...] = get_args(Tab)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class View:
    """What is shown: the days from `first` to `last`, of one website or of all."""

    website: str | None
    first: date
    last: date
    days: int | None
    """The range by its length, up to today; None if its days were chosen."""
    tab: str
    day: date | None

    @property
    def item_days(self) -> tuple[date, date]:
        """The days whose items are shown: one that was chosen, or the range."""
        return (self.day, self.day) if self.day else (self.first, self.last)

    @property
    def length(self) -> int:
        """How many days the range has."""
        return (self.last - self.first).days + 1

    def parameters(self) -> dict[str, Any]:
        """The parameters of the queries."""
        first_item_day, last_item_day = self.item_days
        return {
            "website": self.website,
            "from_day": self.first,
            "to_day": self.last,
            "before_day": self.first - self.length * DAY,
            "tab": self.tab,
            "first_item_day": first_item_day,
            "last_item_day": last_item_day,
        }

    def link(self, **changes: Any) -> str:
        """The address of the page with these changes; without the day, unless it is one of them."""
        days: dict[str, Any] = {"range": self.days} if self.days else {"from": self.first, "to": self.last}
        known = {"website": self.website, **({} if "range" in changes else days), "tab": self.tab} | changes
        return "?" + urlencode({name: value for name, value in known.items() if value is not None})


def view(
    website: str = "",
    days: Annotated[int, Query(alias="range")] = 30,
    first: Annotated[date | None, Query(alias="from")] = None,
    last: Annotated[date | None, Query(alias="to")] = None,
    tab: Tab = "pages",
    day: date | None = None,
) -> View:
    """The view of an address. Days of another millennium become ones that the page can count with."""
    today = _today()
    if first is None or last is None:
        days = min(max(days, 1), LONGEST)
        return View(website or None, today - (days - 1) * DAY, today, days, tab, day)
    first, last = sorted(max(date(2000, 1, 1), min(chosen, today + DAY)) for chosen in (first, last))
    return View(website or None, max(first, last - (LONGEST - 1) * DAY), last, None, tab, day)


def _today() -> date:
    """The day that it is for websites without a time zone of their own."""
    try:
        zone: Any = ZoneInfo(os.environ.get("ANALYTICS_TIMEZONE") or "UTC")
    except (KeyError, ValueError, OSError):  # the jobs complain about it
        zone = UTC
    return datetime.now(zone).date()
