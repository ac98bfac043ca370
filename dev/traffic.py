"""Sample traffic for the demo, and the loader that fills the application's tables from CSV files.

`write` makes up a hundred days of a few web shops; `load` copies a folder's `events.csv.gz` and
`sessions.csv.gz` into `analytics_event` and `analytics_session`. The header line names the columns; columns left
out take their default; an empty field is NULL.
"""

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

Row = tuple[Any, ...]

FILES = {"analytics_event": "events.csv.gz", "analytics_session": "sessions.csv.gz"}

DAYS = 100
DAY = 24 * 3600  # seconds, as all times here
IDLE = 30 * 60  # a visitor who does nothing for so long has left
LAST_CLEANUP = 16 * 3600  # sessions that ended since so long ago are still open

# Websites by their share of the sessions: one big shop, then ever smaller ones.
WEBSITES = {
    "shop.example": 300,
    "outlet.example": 90,
    "blog.example": 36,
    "b2b.example": 11,
    "atelier.example": 3,
}
HOURS = (8, 5, 3, 2, 2, 3, 6, 12, 20, 27, 31, 33, 34, 33, 32, 31, 31, 32, 35, 40, 43, 38, 26, 15)
WEEKDAYS = (1.0, 1.04, 1.02, 1.0, 0.95, 0.8, 0.88)

REFERRERS = (
    (None, "direct"),
    ("https://www.google.com/", "google"),
    (None, None),  # stripped by the browser
    ("https://www.instagram.com/", "instagram"),
    ("https://www.facebook.com/", "facebook"),
    ("https://www.bing.com/", "bing"),
    ("https://duckduckgo.com/", "duckduckgo"),
    ("https://t.co/", "twitter"),
    ("https://www.youtube.com/", "youtube"),
    ("https://www.pinterest.com/", "pinterest"),
    ("https://old.reddit.com/", "old.reddit.com"),
    ("https://news.ycombinator.com/", "news.ycombinator.com"),
    ("https://blog.example.org/best-shops", "blog.example.org"),
)
DEVICES = (
    ("mobile", "Safari", "iOS", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) Safari/604.1"),
    ("desktop", "Chrome", "Windows", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/140.0.0.0"),
    ("mobile", "Chrome", "Android", "Mozilla/5.0 (Linux; Android 15; K) Chrome/140.0.0.0 Mobile"),
    ("desktop", "Safari", "macOS", "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Safari/605.1.15"),
    ("desktop", "Firefox", "Linux", "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Firefox/142.0"),
    ("tablet", "Safari", "iOS", "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) Safari/604.1"),
    ("unknown", None, None, None),
)
COUNTRIES = ("US", "DE", "GB", "FR", "IN", "NL", "BR", "CA", "JP", None)
CUSTOM_EVENTS = ("product_viewed", "add_to_cart", "search", "newsletter", "checkout_started", "order_placed")
PAGES = (
    "/",
    "/products",
    "/sale",
    "/cart",
    "/about",
    "/checkout",
    "/contact",
    *(f"/categories/{name}" for name in ("shoes", "shirts", "bags", "home", "garden", "toys")),
    *(f"/products/item-{number}" for number in range(1, 240)),
)

CAMPAIGNS = (("newsletter", "email", "weekly"), ("google", "cpc", "brand"), ("instagram", "social", "launch"))

# What the events of a session have in common with it.
SHARED_COLUMNS = "website_id session_id visitor_id device_type browser os country utm_source utm_medium utm_campaign"
EVENT_COLUMNS = (
    "id event_type event_name pathname referrer referrer_source query_string is_404 metadata"
    f" timestamp created_at updated_at deleted_at user_agent {SHARED_COLUMNS}"
).split()
SESSION_COLUMNS = (
    "id entry_page exit_page pageviews is_bounce duration_seconds referrer referrer_source"
    f" started_at ended_at last_activity_at created_at updated_at {SHARED_COLUMNS}"
).split()

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DIGIT_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]


class Ranked:
    """Draws from a sequence by rank: the n-th element comes n times less often than the first."""

    def __init__(self, choices: Sequence[Any]) -> None:
        self.choices = choices
        self.weights = list(accumulate(1 / rank for rank in range(1, len(choices) + 1)))

    def draw(self, rng: random.Random) -> Any:
        """One of the choices."""
        return rng.choices(self.choices, cum_weights=self.weights)[0]


DEVICE, COUNTRY, REFERRER, CUSTOM_EVENT = (Ranked(c) for c in (DEVICES, COUNTRIES, REFERRERS, CUSTOM_EVENTS))


def write(folder: Path, now: datetime, seed: int = 1) -> None:
    """Write the traffic of the hundred days before `now` (with a time zone) and of today as CSV files.

    The same `now` and `seed` give the same rows.
    """
    rng, end = random.Random(seed), int(now.timestamp())
    events: list[Row] = []
    sessions: list[Row] = []
    for website_id, sessions_per_day in WEBSITES.items():
        regulars = Ranked([_visitor(rng) for _ in range(sessions_per_day * 8)])
        pages = Ranked(rng.sample(PAGES, min(len(PAGES), sessions_per_day + 4)))
        for start in _starts(rng, sessions_per_day, end):
            visitor = regulars.draw(rng) if rng.random() < 0.55 else _visitor(rng)
            session, its_events = _session(rng, website_id, visitor, pages, start, end)
            sessions.append(session)
            events += its_events
    folder.mkdir(parents=True, exist_ok=True)
    for table, columns, rows in (
        ("analytics_event", EVENT_COLUMNS, events),
        ("analytics_session", SESSION_COLUMNS, sessions),
    ):
        with gzip.open(folder / FILES[table], "wt", compresslevel=1, encoding="utf-8", newline="") as file:
            output = csv.writer(file)
            output.writerow(columns)
            output.writerows(sorted(rows))  # ids come first and begin with the time: the order of arrival


def load(connection: psycopg.Connection, folder: Path) -> dict[str, int]:
    """Copy the folder's CSV files into the application's tables, without a commit; return the rows per table.

    ValueError says in one sentence which file is missing or unreadable, or which column the table lacks.
    """
    loaded = {}
    for table, name in FILES.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: the folder must hold {' and '.join(FILES.values())}")
        try:
            with gzip.open(path, "rb") as file:
                loaded[table] = _copy(connection, table, file)
        except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from error
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
    return loaded


def _copy(connection: psycopg.Connection, table: str, file: gzip.GzipFile) -> int:
    columns = next(csv.reader([file.readline().decode()]), [])
    known = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [table],
    )
    if not columns:
        raise ValueError("it has no header line")
    if unknown := sorted(set(columns) - {name for (name,) in known}):
        raise ValueError(f"{table} has no column {', '.join(unknown)}")
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            while chunk := file.read(1 << 20):
                copy.write(chunk)
        return cursor.rowcount


def _visitor(rng: random.Random) -> Row:
    """Who it is, what they use, where they are: the same at each return."""
    return (f"{rng.getrandbits(128):032x}", DEVICE.draw(rng), COUNTRY.draw(rng))


def _starts(rng: random.Random, sessions_per_day: int, end: int) -> Iterator[int]:
    """When the sessions of one website begin, in seconds since 1970."""
    today = end - end % DAY
    for day in range(DAYS + 1):
        midnight = today - (DAYS - day) * DAY
        weekday = WEEKDAYS[datetime.fromtimestamp(midnight, UTC).weekday()]
        count = round(sessions_per_day * weekday * rng.uniform(0.85, 1.15))
        for hour in rng.choices(range(24), HOURS, k=count):
            if (start := midnight + hour * 3600 + rng.randrange(3600)) < end:
                yield start
    for _ in range(1 + sessions_per_day // 40):  # some are on the website right now, whatever the hour
        yield end - rng.randrange(60, IDLE - 60)


def _session(
    rng: random.Random, website_id: str, visitor: Row, pages: Ranked, start: int, end: int
) -> tuple[Row, list[Row]]:
    """One session that begins at `start`, and what happened in it up to `end`."""
    gaps = [3 + min(int(rng.expovariate(1 / 60)), IDLE - 60) for _ in range(int(rng.expovariate(1 / 2.9)))]
    # A few visitors came back to a session that was closed already.
    recent = end - 4 * DAY < start < end - LAST_CLEANUP - DAY
    returned = recent and len(gaps) > 1 and rng.random() < 0.02
    if returned:
        gaps[-1] += rng.randrange(2 * IDLE, 5 * IDLE)
    times = [moment for moment in accumulate(gaps, initial=start) if moment <= end]
    last = times[-1]
    ended = times[-2] if returned else last if last < end - LAST_CLEANUP else None

    visitor_id, (device_type, browser, system, user_agent), country = visitor
    session_id = f"sess_{rng.getrandbits(96):024x}"
    campaign = rng.choice(CAMPAIGNS) if rng.random() < 0.04 else (None, None, None)
    shared = (website_id, session_id, visitor_id, device_type, browser, system, country, *campaign)

    referrer, source = landing = REFERRER.draw(rng)
    query = campaign[0] and f"utm_source={campaign[0]}&utm_medium={campaign[1]}&utm_campaign={campaign[2]}"
    entry = page = pages.draw(rng)
    pageviews = 0
    events: list[Row] = []
    for moment in times:
        name = metadata = None
        missing = False
        if events and rng.random() < 0.25:
            name = CUSTOM_EVENT.draw(rng)
            metadata = f'{{"value": {rng.randrange(1, 200)}}}'
        else:
            pageviews += 1
            missing = rng.random() < 0.004
            if events:
                page = "/old-catalogue" if missing else pages.draw(rng)
                referrer = source = query = None
        at = _iso(moment)
        deleted = _iso(min(moment + 3600, end)) if rng.random() < 0.0015 else None
        what = (
            "custom_event" if name else "pageview",
            name,
            page,
            referrer,
            source,
            query,
            missing,
            metadata,
        )
        when = (at, at, deleted or at, deleted)
        events.append((_ulid(rng, "anevt", moment), *what, *when, user_agent, *shared))

    duration, ended_at = (None, None) if ended is None else (ended - start, _iso(ended))
    visit = (entry, page, pageviews, len(times) == 1, duration, *landing)
    span = (_iso(start), ended_at, _iso(last), _iso(start), _iso(last))
    return (_ulid(rng, "anses", start), *visit, *span, *shared), events


def _ulid(rng: random.Random, prefix: str, moment: int) -> str:
    """An id like the application's: 48 bits of milliseconds, then 80 random bits, in base 32."""
    number = (moment * 1000 + rng.randrange(1000)) << 80 | rng.getrandbits(80)
    return f"{prefix}_{''.join([DIGIT_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])}"


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
