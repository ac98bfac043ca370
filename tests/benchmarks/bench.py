"""What the benchmarks share: databases full of made-up traffic, turns, and a way to report.

Milliseconds depend on the machine; ratios of things that were measured side by side, in turns, depend on it little.
"""

import contextlib
import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

import embedded
import traffic
from aggregation_steps import aggregate_days
from conftest import LOGIN, ROOT

ROUNDS = 5
SCALES = {"small": 1_000_000, "medium": 10_000_000, "large": 50_000_000}

# The traffic of a year, then a day of half of all events, one of a tenth of them, and one without any.
YEAR = 365
HUGE_DAY, LARGE_DAY = 3, 2
GIANT = "website 0001"
"""The website that has 60 percent of the traffic."""

Connection = psycopg.Connection[dict[str, Any]]
Samples = Mapping[str, list[float]]
"""What was measured, by variant, in the order of the rounds."""

# Durable, as in production: fsync stays on. Visibility and statistics are brought up to date by hand after loading, so
# that no autovacuum falls into one measurement and not into the next. Two cores: no parallel plans.
SERVER_OPTIONS = (
    "-c shared_buffers=1GB -c max_wal_size=8GB -c checkpoint_timeout=1h -c autovacuum=off -c random_page_cost=1.1"
    " -c max_parallel_workers_per_gather=0 -c maintenance_work_mem=256MB"
    # A wait for a lock of more than a millisecond goes to the log, with its holder and its length.
    " -c log_lock_waits=on -c deadlock_timeout=1ms -c 'log_line_prefix=%a|'"
)


@dataclass
class Database:
    """One analytics database."""

    server: embedded.Server
    name: str
    loaded: int = 0

    def connect(self, user: str = LOGIN, **settings: str) -> Connection:
        """Connect with the settings of the jobs' tasks, as their role."""
        from web_analytics.postgres import SESSION_SETTINGS

        settings = SESSION_SETTINGS | {"application_name": "job", "search_path": "analytics,public"} | settings
        connection = psycopg.connect(self.server.dsn(self.name, user), autocommit=True, row_factory=dict_row)
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        return connection

    def owner(self) -> Connection:
        """Connect as the owner of the tables."""
        return self.connect("postgres", statement_timeout="0", lock_timeout="0", work_mem="512MB")

    def load(self, events: int, days_ago: int, days: int = 1, websites: int = 50, sessions: bool = False) -> None:
        """Store made-up events of `days` days, the first of which is so many days ago, on two connections."""
        names = [f"website {number:04}" for number in range(1, websites + 1)]
        parts = min(-(-events // 250_000), days if days > 1 else events)
        done = itertools.count(1)

        def make(part: int) -> None:
            first, last = days * part // parts, max(days * (part + 1) // parts, days * part // parts + 1)
            size = events // 5 * (part + 1) // parts - events // 5 * part // parts
            with self.owner() as connection:
                traffic.make(
                    *(connection, names, day(days_ago - first), last - first, size),
                    steps=5,
                    salt=self.loaded + events // 5 * part // parts,
                    store_sessions=sessions,
                )
            progress(f"{self.name}: part {next(done)} of {parts} of {events:,} events")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(make, range(parts)))
        self.loaded += events

    @contextlib.contextmanager
    def bulk(self) -> Iterator[None]:
        """Load a lot: indexes are built afterwards, and everything is vacuumed."""
        with self.owner() as connection:
            indexes = connection.execute(
                "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index"
                " WHERE indrelid IN ('analytics_event'::regclass, 'analytics_session'::regclass) AND NOT indisprimary"
            ).fetchall()
            for index in indexes:
                connection.execute(f"DROP INDEX {index['name']}".encode())
            yield
            for number, index in enumerate(indexes, 1):
                progress(f"{self.name}: index {number} of {len(indexes)}")
                # Those of a partitioned table are to be built on its partitions as well.
                connection.execute(index["definition"].replace(" ON ONLY ", " ON ").encode())
            progress(f"{self.name}: VACUUM and CHECKPOINT")
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")

    def aggregate(self, first_days_ago: int, last_days_ago: int = 1) -> None:
        """Aggregate days, as the job does, in one transaction each."""
        with self.connect(work_mem="256MB") as connection:
            for ago in range(first_days_ago, last_days_ago - 1, -1):
                progress(
                    f"{self.name}: {first_days_ago - ago + 1} of {first_days_ago - last_days_ago + 1} days counted"
                )
                aggregate_days(connection, day(ago)[:10])


STARTED = time.time()


def day(days_ago: int) -> str:
    """The start of a day, in UTC. Days are counted from the one on which the benchmarks were started."""
    return time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(STARTED - days_ago * 86400))


def progress(text: str) -> None:
    """Say what is going on, where a terminal is watched, on one line that is overwritten."""
    if sys.stderr.isatty():
        print(f"\r\033[K    {text}", end="\r", file=sys.stderr, flush=True)


def execute(connection: Connection, query: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The result of a query: its rows, or how many it affected."""
    cursor = connection.execute(query.encode(), parameters)
    return cursor.fetchall() if cursor.description else cursor.rowcount


def seconds(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    function(*arguments, **keywords)
    return time.perf_counter() - began


def in_turns(variants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> Samples:
    """Measure each variant once per round, in an order that rotates."""
    names = list(variants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            progress(f"round {number + 1} of {rounds}: {name}")
            samples[name].append(variants[name]())
    return samples


@dataclass
class Bench:
    """What a benchmark is given: a server, a scale, and a way to report."""

    state: Path
    server: embedded.Server
    scale: str = "small"
    report: dict[str, Any] = field(default_factory=dict)
    """What the present section has measured: `comparisons`, `tables`, `curves` and `limits`."""
    databases: set[str] = field(default_factory=set)

    @property
    def events(self) -> int:
        """How many events the scale means."""
        return SCALES[self.scale]

    def database(self, name: str, template: str = "empty_analytics") -> Database:
        """A new database, empty or a copy of another one; one of that name is dropped. It goes after the section."""
        self.drop(name)
        progress(f"{name}: a copy of {template}")
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY".encode())
        self.databases.add(name)
        return Database(self.server, name)

    def drop(self, *names: str) -> None:
        """Drop databases that are there."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            for name in names:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def traffic(self) -> Database:
        """All events of the scale with their sessions, of 50 websites, aggregated. Made once: copy it to change it."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            made = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'traffic'").fetchone()
        if made:
            return Database(self.server, "traffic", self.events)
        began = time.monotonic()
        database = self.database("unfinished_traffic")
        with database.bulk():
            database.load(self.events * 4 // 10, days_ago=YEAR + HUGE_DAY, days=YEAR, sessions=True)
            database.load(self.events // 2, days_ago=HUGE_DAY)
            database.load(self.events // 10, days_ago=LARGE_DAY)
        database.aggregate(YEAR + HUGE_DAY)
        with database.owner() as owner:
            owner.execute("VACUUM (ANALYZE) analytics_daily_stats")
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER DATABASE unfinished_traffic RENAME TO traffic")
        self.say(f"    (loading {self.events:,} events took {time.monotonic() - began:.0f} s)")
        return Database(self.server, "traffic", self.events)

    def install(self) -> None:
        """Make the empty database and the jobs' role."""
        from web_analytics import schema

        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE empty_analytics")
        with psycopg.connect(self.server.dsn("empty_analytics")) as connection:
            connection.execute((ROOT / "dev" / "application.sql").read_bytes())
        with contextlib.redirect_stdout(io.StringIO()):
            schema.install(self.server.dsn("empty_analytics"), "analytics,public")
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE analytics_jobs".encode())

    def version(self) -> str:
        """The server's version."""
        with psycopg.connect(self.server.dsn()) as connection:
            [version] = connection.execute("SHOW server_version").fetchone() or [""]
            return str(version)

    def say(self, text: str = "") -> None:
        """Print a line now."""
        progress("")
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Print a sentence that belongs to the results."""
        self.say(f"    {text}")
        self.report.setdefault("notes", []).append(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table; its first column is text, the others numbers."""
        self.report.setdefault("tables", []).append({"title": title, "columns": columns, "rows": rows})
        widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
        self.say(f"\n  {title}")
        for row in [columns, *rows]:
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            self.say("  ".join(["   ", row[0].ljust(widths[0]), *cells]))

    def compare(
        self, title: str, samples: Samples, *bases: str, rows: int | None = None, unit: str = "ms"
    ) -> dict[str, float]:
        """Print medians and as multiples of the bases' medians; return the medians. Samples in `ms` are in seconds."""
        medians = {name: statistics.median(values) for name, values in samples.items()}
        factor = 1000 if unit == "ms" else 1
        self.report.setdefault("comparisons", []).append(
            {
                "title": title,
                "unit": unit,
                "samples": {name: [round(value * factor, 3) for value in values] for name, values in samples.items()},
            }
        )
        self.table(
            f"{title} ({len(next(iter(samples.values())))} rounds)",
            ["", f"median {unit}", "min", "max", *(["rows/s"] if rows else []), *(f"x {base}" for base in bases)],
            [
                [
                    name,
                    *(f"{value * factor:,.1f}" for value in (medians[name], min(values), max(values))),
                    *([f"{rows / medians[name]:,.0f}"] if rows else []),
                    *(f"{medians[name] / medians[base]:.2f}" for base in bases),
                ]
                for name, values in samples.items()
            ],
        )
        return medians

    def curves(self, title: str, x: str, y: str, numbers: Sequence[float], lines: Samples) -> None:
        """Keep lines for the section's plot: what each was at each of the numbers."""
        self.report.setdefault("curves", []).append(
            {"title": title, "x": x, "y": y, "numbers": list(numbers), "lines": dict(lines)}
        )

    def limit(self, what: str, value: float, at_most: float | None = None, at_least: float | None = None) -> None:
        """Print a ratio beside its target; one that is missed fails the run."""
        good = value <= at_most if at_most is not None else at_least is not None and value >= at_least
        target = f"at most {at_most:,}" if at_most is not None else f"at least {at_least:,}"
        self.say(f"    {'ok    ' if good else 'MISSED'}  {what}: {value:,.2f} ({target})")
        self.report.setdefault("limits", []).append(
            {"what": what, "value": round(value, 4), "target": target, "met": bool(good)}
        )
