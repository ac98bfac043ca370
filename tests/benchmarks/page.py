"""What the Analytics page asks the database."""

from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from typing import Any

import conftest
import page_rows
from benchmarks.bench import YEAR, Bench, day, in_turns, seconds

LARGEST = "website-01"


def page(bench: Bench) -> None:
    """The questions of the Analytics page about ranges that end today, with a year of daily statistics of 50 websites:
    about all of them, and about the one with the most traffic. First what is aggregated, then (live) also the raw events of
    today. Beside them, what the next run of the retention would delete, which counts raw events of 100 days."""
    database = bench.database("page")
    today = date.fromisoformat(day(0)[:10])
    rows = conftest.Database(bench.server.dsn(database.name))
    page_rows.daily_stats(rows, websites=50, days=YEAR, until=today)
    page_rows.raw_events(rows, websites=50, events=bench.events // 10, days=100)
    rows.close_connections()
    with database.owner() as owner, database.connect(max_parallel_workers_per_gather="0") as reader:
        owner.execute("UPDATE analytics_daily_stats SET sealed_at = ends_at WHERE date < current_date - 90")
        owner.execute("VACUUM (ANALYZE)")

        def ask(query: str, days: int, website: str | None = None, live: bool = False, tab: str = "pages") -> float:
            first = today - timedelta(days - 1)
            parameters: dict[str, Any] = {"from_day": first, "to_day": today, "website": website, "live": live}
            parameters |= {"before_day": first - timedelta(days), "last_day": today - timedelta(1)}
            parameters |= {"first_item_day": first, "last_item_day": today, "tab": tab, "retention_days": 90}
            return seconds(conftest.run_file, reader, conftest.QUERIES / f"{query}.sql", **parameters)

        ranges: dict[str, Callable[[], float]] = {
            f"{query}, {days} days, {'one website' if website else 'all websites'}{', live' if live else ''}": partial(
                ask, query, days, website, live
            )
            for query, websites in (("traffic", (None, LARGEST)), ("visitors", (LARGEST,)), ("items", (LARGEST,)))
            for days in (30, YEAR // 2, YEAR)
            for website in websites
            for live in (False, True)
        }
        ranges |= {
            f"items, {YEAR} days, {tab}": partial(ask, "items", YEAR, LARGEST, tab=tab) for tab in ("os", "countries")
        }
        samples = in_turns(ranges | {"expired": partial(ask, "expired", 1)})
    medians = bench.compare("A year of 50 websites", samples)
    for kind, most, names in (
        ("aggregated", 50, [name for name in ranges if "live" not in name]),
        ("live", 50, [name for name in ranges if "live" in name]),
    ):
        slowest = max(names, key=lambda name: medians[name])
        bench.limit(f"ms of the slowest {kind} question ({slowest})", 1000 * medians[slowest], at_most=most)
