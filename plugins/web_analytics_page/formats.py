"""The templates of the page, and how they write numbers, days and moments."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from web_analytics_page.view import RANGES, TABS

NOTHING = "–"  # noqa: RUF001


def count(number: float | None) -> str:
    """1234.5 as 1,234."""
    return NOTHING if number is None else f"{number:,.0f}"


def plural(number: int, word: str) -> str:
    """1 day, 2 days."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def percent(share: float | None) -> str:
    """0.1234 as 12.3 %."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def took(seconds: float | None) -> str:
    """A duration in its best unit."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def size(number: float) -> str:
    """A number of bytes in its best unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TB"


def long(day: date) -> str:
    """5 November 2026."""
    return f"{day.day} {day:%B %Y}"


def short(day: date) -> str:
    """5 Nov."""
    return f"{day.day} {day:%b}"


def span(first: date, last: date) -> str:
    """30 Oct to 5 Nov 2026."""
    start = "" if first == last else f"{short(first)}{'' if first.year == last.year else f' {first.year}'} to "
    return f"{start}{short(last)} {last.year}"


def ago(moment: datetime) -> Markup:
    """How long ago a moment was, or how soon it is, with the moment itself as the title."""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    units = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
    unit = next((unit for unit, length in units.items() if abs(seconds) >= length), "second")
    text = plural(round(abs(seconds) / units[unit]), unit)
    return Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{}</time>').format(
        moment.isoformat(), moment.astimezone(UTC), f"in {text}" if seconds > 0 else f"{text} ago"
    )


def weeks_old(weeks: int) -> str:
    """The age of raw events, of which the oldest ones are together."""
    return "2 years or more" if weeks >= 104 else f"{weeks} to {weeks + 1} weeks"


def job_link(job: str, run: str | None = None) -> str:
    """Where Airflow shows a job, or a run of it."""
    return f"../dags/{quote(job, safe='')}" + (f"/runs/{quote(run, safe='')}" if run else "")


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
FILTERS: tuple[Any, ...] = (count, plural, percent, took, size, long, short, ago, weeks_old, job_link)
ENVIRONMENT.filters |= {function.__name__: function for function in FILTERS}
TITLES = {tab: tab.capitalize().replace("Utm_", "UTM ") for tab in TABS} | {"os": "Operating systems"}
ENVIRONMENT.globals |= {"span": span, "ranges": RANGES, "tabs": TABS, "titles": TITLES}
