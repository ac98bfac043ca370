"""analytics_timezone: which time zones it takes, what a new one changes, and how ANALYTICS_TIMEZONE gets into it."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest

from aggregation_steps import Connection, aggregate_due, clock, find, seal, set_zone, versions
from conftest import LOGIN, Database

START = "watch/start_run.sql"
CHAIN = ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati", "Etc/GMT+12"]
CHAINS = {
    "westwards at last": CHAIN,
    "eastwards": CHAIN[::-1],
    "a day back": ["Pacific/Kiritimati", "Etc/GMT+12", "UTC"],
    "a day forward": ["Pacific/Pago_Pago", "Pacific/Kiritimati", "UTC"],
}


def zones(database: Database) -> list[tuple[str | None, str, str]]:
    """The rows of analytics_timezone."""
    rows = database.query(
        "SELECT website_id, from_date::text, timezone FROM analytics_timezone AS zone"
        " ORDER BY website_id NULLS FIRST, zone.from_date"
    )
    return [(row["website_id"], row["from_date"], row["timezone"]) for row in rows]


def refusal(database: Database, statement: str, *arguments: Any) -> str | None:
    """With which sentence a statement is refused."""
    before = zones(database)
    with pytest.raises(psycopg.errors.InvalidParameterValue) as raised:
        database.connection.execute(statement.encode(), arguments)
    assert zones(database) == before
    return raised.value.diag.message_primary


def events_of_two_weeks(database: Database, *website_ids: str) -> None:
    """An event every half an hour from the 27th of February to the 15th of March 2024."""
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)
        SELECT website_id || moment, website_id, '/', 'visitor', 'session', moment
        FROM generate_series('2024-02-27Z'::timestamptz, '2024-03-15T22:30Z', '30 minutes') AS moment,
            unnest(%s::text[]) AS website_id
        """,
        [list(website_ids)],
    )


def assert_that_each_event_is_in_one_row(database: Database) -> None:
    """Each event is within the bounds of one row that counts any, and each row counts just the events within its bounds."""
    assert find(database, database.connection) == []
    wrong = """
        SELECT event.website_id, event.timestamp::text FROM analytics_event AS event
        LEFT JOIN analytics_daily_stats AS stats
            ON event.website_id = stats.website_id AND event.timestamp >= starts_at AND event.timestamp < ends_at
                AND total_events > 0
        GROUP BY event.website_id, event.timestamp, event.id HAVING count(stats.date) <> 1
    """
    assert database.query(wrong) == []
    assert database.value("SELECT sum(total_events) FROM analytics_daily_stats") == database.value(
        "SELECT count(*) FROM analytics_event WHERE deleted_at IS NULL"
    )


@pytest.mark.parametrize("timezone", ["CEST", "CET", "Mars/Base", "", "+02:00", "UTC-5", "europe/berlin"])
def test_a_time_zone_that_is_not_known_is_refused_with_one_sentence(database: Database, timezone: str) -> None:
    set_zone(database, "Europe/Berlin", "site")
    sentence = f'Time zone "{timezone}" is not known: write an IANA name such as Europe/Berlin'
    insert = "INSERT INTO analytics_timezone VALUES (%s, %s, %s)"
    for website_id, from_date in ((None, "-infinity"), ("site", "2024-01-01"), ("new", "2024-01-01")):
        assert refusal(database, insert, website_id, from_date, timezone) == sentence
    assert refusal(database, "UPDATE analytics_timezone SET timezone = %s", timezone) == sentence


@pytest.mark.parametrize("timezone", ["CEST", "Mars/Base"])
def test_a_time_zone_that_is_not_known_is_refused_with_the_same_sentence_where_a_day_is_sealed(
    database: Database, timezone: str
) -> None:
    database.event("2024-01-15T12:00Z")
    aggregate_due(database)
    seal(database)
    assert refusal(database, "INSERT INTO analytics_timezone VALUES (NULL, '-infinity', %s)", timezone) == (
        f'Time zone "{timezone}" is not known: write an IANA name such as Europe/Berlin'
    )


@pytest.mark.parametrize("website_id", [None, "site"], ids=["the default", "its own"])
@pytest.mark.parametrize("timezones", CHAINS.values(), ids=CHAINS)
def test_a_zone_that_changes_only_unsealed_days_makes_them_due_and_no_event_is_in_two_rows(
    database: Database, timezones: list[str], website_id: str | None
) -> None:
    events_of_two_weeks(database, "bystander", "site")
    set_zone(database, "Asia/Tokyo", "bystander")
    bystanders: list[dict[str, Any]] = []
    for timezone in timezones:
        set_zone(database, timezone, website_id)
        assert len(aggregate_due(database)) >= 17
        assert_that_each_event_is_in_one_row(database)
        bystanders = bystanders or versions(database, "bystander")
    # Of a zone from the 10th on, the 10th is the first day that ends elsewhere.
    set_zone(database, timezones[0], website_id, "2024-03-10")
    assert min(find(database)) == "2024-03-10"
    aggregate_due(database)
    assert_that_each_event_is_in_one_row(database)
    assert versions(database, "bystander") == bystanders


@pytest.mark.parametrize("timezones", CHAINS.values(), ids=CHAINS)
def test_sealed_days_stay_as_they_are_and_a_zone_from_the_next_day_on_is_taken(
    database: Database, timezones: Sequence[str]
) -> None:
    events_of_two_weeks(database, "site")
    from_date = "-infinity"
    sealed: list[dict[str, Any]] = []
    for timezone, last in zip(timezones, (2, 5, 8, 11, 14), strict=False):
        set_zone(database, timezone, from_date=from_date)
        aggregate_due(database)
        assert_that_each_event_is_in_one_row(database)
        assert [row for row in versions(database) if row["sealed_at"]] == sealed
        seal(database, *(date(2024, 3, last) - timedelta(days=n) for n in range(8)))
        sealed = [row for row in versions(database) if row["sealed_at"]]
        insert = "INSERT INTO analytics_timezone VALUES ('site', %s, 'Asia/Kathmandu')"
        assert f"change the day 2024-03-{last:02} of website site" in str(refusal(database, insert, f"2024-03-{last}"))
        from_date = f"2024-03-{last + 1:02}"
    assert len(sealed) >= 11


SEALED = {
    "a sealed day": "sealed_at = now()",
    "a kept day": "kept_at = now()",
}


@pytest.mark.parametrize("mark", SEALED.values(), ids=SEALED)
@pytest.mark.parametrize("website_id", [None, "site"], ids=["the default", "its own"])
def test_a_zone_that_would_change_a_row_that_must_not_change_is_refused(
    database: Database, mark: str, website_id: str | None
) -> None:
    set_zone(database, "Asia/Kolkata", website_id)
    set_zone(database, "Asia/Kolkata", website_id, "2024-03-08")
    for day in (9, 10, 11):
        database.event(f"2024-03-{day:02}T12:00Z")
    aggregate_due(database)
    database.connection.execute(f"UPDATE analytics_daily_stats SET {mark} WHERE date <= '2024-03-10'".encode())
    # A kept row is one of events that are not there any more.
    database.connection.execute("DELETE FROM analytics_event WHERE timestamp < '2024-03-11Z'")
    sentence = (
        "The time zone would change the day 2024-03-10 of website site, whose row in analytics_daily_stats must not change "
        "any more: choose a from_date after it"
    )
    insert = "INSERT INTO analytics_timezone VALUES (%s, %s, 'Asia/Tokyo')"
    for from_date in ("2024-03-09", "2024-03-10"):
        assert refusal(database, insert, website_id, from_date) == sentence
    since = "WHERE from_date = '2024-03-08'"
    assert refusal(database, f"UPDATE analytics_timezone SET timezone = 'Asia/Tokyo' {since}") == sentence
    # Rows that only together change nothing may go in one statement, and not one after the other.
    update = "UPDATE analytics_timezone SET timezone = CASE WHEN isfinite(from_date) THEN timezone ELSE 'UTC' END"
    database.connection.execute(update.encode())
    assert refusal(database, f"DELETE FROM analytics_timezone {since}") == sentence
    assert refusal(database, f"UPDATE analytics_timezone SET from_date = '2024-03-12' {since}") == sentence
    if website_id:
        assert refusal(database, f"UPDATE analytics_timezone SET website_id = 'other' {since}") == sentence
    before = versions(database)
    # What changes no day of these rows is taken: another website, the same zone by another name, and later days.
    set_zone(database, "Asia/Tokyo", "other")
    set_zone(database, "Asia/Calcutta", website_id, "2024-03-09")
    set_zone(database, "Asia/Tokyo", website_id, "2024-03-11")
    assert aggregate_due(database) == ["2024-03-11"]
    assert versions(database)[:2] == before[:2]


def test_a_default_is_not_refused_for_a_website_that_has_its_own(database: Database) -> None:
    set_zone(database, "Asia/Kolkata", "site")
    database.event("2024-03-10T12:00Z")
    aggregate_due(database)
    seal(database)
    set_zone(database, "Asia/Tokyo")
    assert find(database) == []
    assert refusal(database, "DELETE FROM analytics_timezone WHERE website_id = 'site'")


def test_a_day_that_is_sealed_at_this_moment_is_sealed_first(database: Database) -> None:
    database.event("2024-03-10T12:00Z")
    aggregate_due(database)
    with database.connect(LOGIN) as retention, retention.transaction():
        retention.execute("UPDATE analytics_daily_stats SET sealed_at = now()")
        operator = database.connect(options="-c search_path=analytics,public -c lock_timeout=200ms")
        with operator, pytest.raises(psycopg.errors.LockNotAvailable):
            operator.execute("INSERT INTO analytics_timezone VALUES ('site', '-infinity', 'Asia/Kolkata')")
    assert refusal(database, "INSERT INTO analytics_timezone VALUES ('site', '-infinity', 'Asia/Kolkata')")


def use(connection: Connection, timezone: str) -> str | None:
    """Make a time zone the default, as each run does with ANALYTICS_TIMEZONE."""
    row = connection.execute("SELECT analytics_use_timezone(%s) AS said", [timezone]).fetchone()
    assert row
    said: str | None = row["said"]
    return said


def test_the_first_default_holds_for_ever_and_the_same_one_changes_nothing(database: Database) -> None:
    set_zone(database, "Asia/Tokyo", "site")
    with clock(database, "2024-03-10T12:00Z") as connection:
        for _ in range(2):
            assert use(connection, "America/New_York") is None
            assert zones(database) == [(None, "-infinity", "America/New_York"), ("site", "-infinity", "Asia/Tokyo")]


@pytest.mark.parametrize(
    ("now", "old", "new", "tomorrow"),
    [
        ("2024-03-10T12:00Z", "UTC", "Europe/Berlin", "2024-03-11"),
        ("2024-03-10T23:30Z", "UTC", "Europe/Berlin", "2024-03-12"),  # the 11th has begun in Berlin
        ("2024-03-10T23:30Z", "Europe/Berlin", "UTC", "2024-03-12"),  # and has not in UTC, but it has where it counted
        ("2024-03-10T10:30Z", "Pacific/Pago_Pago", "Pacific/Kiritimati", "2024-03-12"),  # the 9th there, the 11th here
        ("2024-03-10T10:30Z", "Pacific/Kiritimati", "Pacific/Pago_Pago", "2024-03-12"),
    ],
)
def test_a_changed_default_holds_from_tomorrow_on_and_re_zones_nothing(
    database: Database, now: str, old: str, new: str, tomorrow: str
) -> None:
    with clock(database, now) as connection:
        assert use(connection, old) is None
        for n in range(60):
            database.event(str(database.value("SELECT %s::timestamptz - %s * '1 hour'::interval", now, n)))
        aggregate_due(database, connection)
        before = versions(database)
        query = "SELECT array_agg(analytics_day_start('site', day::date)) FROM generate_series(%s::date - 9, %s, '1 day') AS day"
        days = database.value(query, tomorrow, tomorrow)
        assert use(connection, new) == (
            f"ANALYTICS_TIMEZONE is {new} now: days from {tomorrow} on are of it, those before stay as they are, of {old}"
        )
        assert zones(database) == [(None, "-infinity", old), (None, tomorrow, new)]
        # Not one day that has begun, in whichever zone, is another one than before: tomorrow starts where it would have.
        assert database.value(query, tomorrow, tomorrow) == days
        assert aggregate_due(database, connection) == []
        assert versions(database) == before
        assert use(connection, new) is None


def test_a_default_that_is_changed_again_the_same_day_leaves_no_trace_of_the_one_between(database: Database) -> None:
    with clock(database, "2024-03-10T12:00Z") as connection:
        for timezone in ("UTC", "Europe/Berlin", "America/New_York"):
            use(connection, timezone)
        assert zones(database) == [(None, "-infinity", "UTC"), (None, "2024-03-11", "America/New_York")]
        # And back: tomorrow is of the zone that today is of.
        assert use(connection, "UTC")
        assert database.value("SELECT analytics_zone('site', '2024-03-11')") == "UTC"
        assert database.value("SELECT analytics_zone('site', '2030-01-01')") == "UTC"


def test_a_zone_that_is_planned_for_later_is_left_alone(database: Database) -> None:
    with clock(database, "2024-03-10T12:00Z") as connection:
        use(connection, "UTC")
        set_zone(database, "Asia/Tokyo", from_date="2024-06-01")
        set_zone(database, "Asia/Tokyo", "site", "2024-03-11")
        assert use(connection, "UTC") is None
        assert use(connection, "Europe/Berlin")
        assert use(connection, "Europe/Berlin") is None
    query = "SELECT string_agg(analytics_zone(%s, day), ' ' ORDER BY day) FROM unnest(%s::date[]) AS day"
    days = ["2024-03-10", "2024-03-11", "2024-05-31", "2024-06-01"]
    assert database.value(query, "other", days) == "UTC Europe/Berlin Europe/Berlin Asia/Tokyo"
    assert database.value(query, "site", days) == "UTC Asia/Tokyo Asia/Tokyo Asia/Tokyo"


def test_the_start_of_a_run_stores_the_setting_and_says_what_changed(database: Database) -> None:
    def start(timezone: str, connection: Connection | None = None) -> str | None:
        [row] = database.run(START, connection, job="a job", run_id=timezone, timezone=timezone, ignored_events=[])
        log: str | None = row["log"]
        return log

    events_of_two_weeks(database, "site")
    # As the jobs' own role, which owns nothing.
    assert start("Asia/Kolkata") is None
    assert zones(database) == [(None, "-infinity", "Asia/Kolkata")]
    aggregate_due(database)
    seal(database)
    before = versions(database)
    said = start("America/New_York")
    assert said
    assert said.startswith("[Analytics] ANALYTICS_TIMEZONE is America/New_York now: days from 2")
    assert start("America/New_York") is None
    assert len(zones(database)) == 2
    assert find(database) == []
    assert versions(database) == before
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        start("Mars/Base")
    assert database.value("SELECT count(*) FROM analytics_job_run") == 2


def test_two_runs_that_start_at_the_same_moment_store_the_setting_once(database: Database) -> None:
    for timezone, rows in (("Asia/Kolkata", 1), ("America/New_York", 2)):
        with database.connect(LOGIN) as first:
            with first.transaction():
                first.execute("SELECT analytics_use_timezone(%s)", [timezone])
                second = database.start(START, job="a job", run_id=timezone, timezone=timezone, ignored_events=[])
            second.result(timeout=10)
        assert len(zones(database)) == rows
