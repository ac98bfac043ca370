"""What the Analytics page asks the database."""

from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from typing import Any

from benchmarks.bench import GIANT, HUGE_DAY, YEAR, Bench, day, in_turns, seconds
from conftest import run_file

MOST = 50  # ms of a question about a range


def page(bench: Bench) -> None:
    """The questions of the Analytics page about ranges that end today, of 50 websites with a year of daily statistics and
    with all their raw events: about all of them, and about the one that has 60 percent of the traffic. First what is
    aggregated, then (live) also a day of the usual size that is not. Beside them what the next retention would delete,
    which counts raw events: not of a range."""
    database = bench.database("page", bench.traffic().name)
    today = date.fromisoformat(day(0)[:10])
    with database.owner() as owner, database.connect(max_parallel_workers_per_gather="0") as reader:
        owner.execute("DELETE FROM analytics_daily_stats WHERE date = %s", [today - timedelta(HUGE_DAY + 1)])
        owner.execute("VACUUM (ANALYZE) analytics_daily_stats")

        def ask(query: str, days: int, website: str | None = None, live: bool = False, tab: str = "pages") -> float:
            first = today - timedelta(days - 1)
            parameters: dict[str, Any] = {"from_day": first, "to_day": today, "website": website, "live": live}
            parameters |= {"before_day": first - timedelta(days), "last_day": today - timedelta(1)}
            parameters |= {"first_item_day": first, "last_item_day": today, "tab": tab, "retention_days": 90}
            return seconds(run_file, reader, f"page/{query}.sql", **parameters)

        ranges: dict[str, Callable[[], float]] = {
            f"{query}, {days} days, {'one website' if website else 'all websites'}{', live' if live else ''}": partial(
                ask, query, days, website, live
            )
            for query, websites in (("traffic", (None, GIANT)), ("visitors", (GIANT,)), ("items", (GIANT,)))
            for days in (30, YEAR)
            for website in websites
            for live in (False, True)
        }
        ranges |= {
            f"items, {YEAR} days, {tab}": partial(ask, "items", YEAR, GIANT, tab=tab) for tab in ("os", "countries")
        }
        samples = in_turns(ranges | {"expired": partial(ask, "expired", 1)})
    medians = bench.compare(f"A year of 50 websites, {bench.events:,} events", samples)
    slowest = max(ranges, key=lambda name: medians[name])
    bench.limit(f"ms of the page's slowest question about a range ({slowest})", 1000 * medians[slowest], at_most=MOST)
