"""What every job watches for: what opens an alert, when it is sent, when it recovers."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

import clock
from aggregation_steps import aggregate, aggregate_due, seal, set_zone
from alert_steps import CONDITIONS, LIMITS, find_alerts, keep_alerts
from conftest import LOGIN, SQL, Database
from web_analytics.watch import alert_message

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
CLEANUP = "cleanup_analytics_sessions"
MISSING = "alerts/cleanup_missing.sql"
KEEP = "watch/keep_alerts.sql"


class Watch:
    """The alerts at a moment that the test sets."""

    def __init__(self, database: Database) -> None:
        self.database = database
        clock.install(database.connection)
        self.connection = self.connect()

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """A connection whose now() is the test's."""
        return self.database.connect(LOGIN, options=f"-c search_path={clock.SEARCH_PATH}")

    def find(self, now: datetime = NOW, **settings: Any) -> list[dict[str, Any]]:
        """The alerts that are to be sent."""
        return find_alerts(self.database, self.at(now), **settings)

    def at(self, now: datetime) -> psycopg.Connection[dict[str, Any]]:
        """The connection, at a moment."""
        clock.set_now(self.connection, now)
        return self.connection

    def names(self, now: datetime = NOW, **settings: Any) -> list[str]:
        """The same, as condition, subject and state."""
        found = self.find(now, **settings)
        self.sent(found, now)
        return [f"{row['condition']} {row['subject']} {row['state']}".replace("  ", " ") for row in found]

    def sent(self, rows: list[dict[str, Any]], now: datetime) -> None:
        """Mark alerts as sent."""
        self.database.run("watch/mark_alerts_sent.sql", self.at(now), ids=[row["id"] for row in rows])

    def run(self, job: str, finished_at: datetime | None, outcome: str = "success", **columns: Any) -> None:
        """A row of the ledger."""
        values = {"job": job, "run_id": str(finished_at), "started_at": finished_at or NOW, "finished_at": finished_at}
        values |= {"outcome": outcome} | columns
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        statement = f"INSERT INTO analytics_job_run ({names}) VALUES ({places})"
        self.database.connection.execute(statement.encode(), list(values.values()))


@pytest.fixture
def watch(database: Database) -> Iterator[Watch]:
    """The alerts of an empty database."""
    watch = Watch(database)
    yield watch
    watch.connection.close()


def test_nothing_is_wrong_with_an_empty_database(watch: Watch) -> None:
    assert watch.find() == []


class TestConditions:
    @pytest.mark.parametrize(("timezone", "ended"), [("UTC", 0), ("America/New_York", 5), ("Asia/Kolkata", -5.5)])
    def test_an_aggregation_that_is_behind(self, watch: Watch, timezone: str, ended: float) -> None:
        set_zone(watch.database, timezone, "site")
        watch.database.event(datetime(2026, 1, 5, 12, tzinfo=UTC))
        watch.database.event(datetime(2026, 1, 5, 12, tzinfo=UTC), website_id="counted")
        aggregate(watch.database, "2026-01-05")
        watch.database.connection.execute("DELETE FROM analytics_daily_stats WHERE website_id = 'site'")
        due = datetime(2026, 1, 6, tzinfo=UTC) + ended * HOUR + 36 * HOUR
        assert watch.names(due) == []
        [alert] = watch.find(due + MINUTE)
        assert (alert["condition"], alert["subject"]) == ("aggregation_behind", "site")
        assert "Website site: its day 2026-01-05 ended 36 hours ago and has no daily stats" in alert["message"]
        watch.sent([alert], due)
        aggregate_due(watch.database)
        assert watch.names(due + HOUR) == ["aggregation_behind site recovered"]

    def test_the_first_aggregation_is_given_its_time(self, watch: Watch) -> None:
        watch.database.event(NOW - 9 * DAY)
        watch.run("aggregate_daily_analytics", None, outcome="running", started_at=NOW - HOUR)
        assert watch.names(NOW) == []
        assert watch.names(NOW + 11 * HOUR) == ["aggregation_behind site opened"]
        watch.run("aggregate_daily_analytics", NOW - DAY)
        assert watch.names(NOW) == []  # it is told already, and it is not over because there is another run

    def test_the_threshold_of_the_lag_is_a_setting(self, watch: Watch) -> None:
        watch.database.event(NOW - 2 * DAY)
        assert watch.names(behind_hours=37) == []
        assert watch.names(behind_hours=35) == ["aggregation_behind site opened"]

    def test_a_database_that_is_large(self, watch: Watch) -> None:
        watch.database.connection.execute(
            "INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp)"
            " SELECT i, 'site', '/', i, i, now() FROM generate_series(1, 2000) AS i;"
            "ANALYZE analytics_event, analytics_session"
        )
        for days in range(8):
            watch.run("x", NOW - days * DAY, database_bytes=10_000_000 - days * 1_000_000)
        size = watch.database.value("SELECT pg_database_size(current_database())") / 1024**3
        assert watch.names(database_gb=size * 1.1) == []
        [alert] = watch.find(database_gb=size * 0.9)
        assert alert["condition"] == "database_size"
        for text in (
            "are live rows and",
            "are free for new ones, growing by 6836 kB a week;",
            "VACUUM FULL or pg_repack",
        ):
            assert text in alert["message"]

    def test_what_is_not_known_about_the_size_is_left_out(self, watch: Watch) -> None:
        [alert] = watch.find(database_gb=0.001)
        assert " kB, more than 0.001 GB; a shorter retention" in alert["message"]

    def test_a_retention_that_is_behind(self, watch: Watch) -> None:
        cutoff = datetime(2025, 12, 10, tzinfo=UTC)
        watch.database.connection.execute(
            "INSERT INTO analytics_website_policy (website_id, legal_hold, retention_days)"
            " VALUES ('held', TRUE, NULL), ('long', FALSE, 200), ('short', FALSE, 30)"
        )
        for website_id in ("held", "long", "site"):
            watch.database.event(cutoff - 8 * DAY, website_id=website_id)
        aggregate_due(watch.database)
        assert watch.names() == []
        watch.database.event(cutoff - 8 * DAY - HOUR)
        watch.database.event(cutoff, website_id="short")
        aggregate_due(watch.database)
        [alert] = watch.find()
        assert "Raw events of 2 website(s) should have been deleted up to 60 days ago (short, site)" in alert["message"]

    def test_days_that_could_not_be_sealed(self, watch: Watch) -> None:
        problem = "report_result: 1 day(s) were left alone, since their stats do not count exactly their events: site x"
        archive = "archive_old_analytics"
        watch.run(archive, NOW - 9 * DAY, "failed", unsealed_days=0, problem="check_database: no schema")
        assert watch.names() == [], "it was told about when it failed"
        watch.run(archive, NOW - 8 * DAY, "failed", unsealed_days=1, problem=problem)
        [alert] = watch.find()
        assert alert["condition"] == "unsealed_days"
        assert alert["message"] == f"The last run of archive_old_analytics failed: {problem}"
        watch.sent([alert], NOW)
        watch.run(archive, NOW - HOUR, "running", started_at=NOW - HOUR)
        assert watch.names(NOW + MINUTE) == []
        watch.run(archive, NOW - MINUTE)
        assert watch.names(NOW + 2 * MINUTE) == ["unsealed_days recovered"]

    def test_rows_that_are_kept_since_others_deleted(self, watch: Watch) -> None:
        """What happened once is told once, and is not over some day."""
        websites = [f"site {n:02}" for n in range(12)]
        for website_id in websites:
            for hour in range(20):
                watch.database.event(NOW - 12 * DAY - hour * MINUTE, website_id=website_id)
        aggregate_due(watch.database)
        watch.database.connection.execute("DELETE FROM analytics_event WHERE timestamp < %s", [NOW - 12 * DAY])
        watch.run(CLEANUP, NOW + 30 * DAY)
        assert watch.names() == []
        aggregate_due(watch.database, watch.at(NOW))
        [alert] = watch.find(NOW + MINUTE)
        assert (alert["condition"], alert["subject"], alert["state"]) == ("rows_kept", "", "opened")
        assert alert["message"].startswith("Raw events that were counted are missing at the old end of 12 website(s)")
        assert f"({', '.join(websites[:10])}, ...)" in alert["message"]
        assert "12 row(s) are kept as they were counted" in alert["message"]
        watch.sent([alert], NOW + MINUTE)
        for hours in (1, 22, 24, 25, 100):
            assert watch.names(NOW + hours * HOUR) == []
        [row] = watch.database.query("SELECT recovered_at > opened_at AS is_over FROM analytics_alert")
        assert row["is_over"]

    def test_rows_that_were_kept_and_are_sealed_are_no_alert(self, watch: Watch) -> None:
        for _ in range(2):
            event = watch.database.event(NOW - 12 * DAY)
        aggregate_due(watch.database)
        watch.database.connection.execute("DELETE FROM analytics_event WHERE id = %s", [event])
        aggregate_due(watch.database, watch.at(NOW))
        seal(watch.database)
        assert watch.names() == []
        watch.database.connection.execute("UPDATE analytics_daily_stats SET sealed_at = NULL")
        assert watch.names() == ["rows_kept opened"]

    def test_late_events_that_are_more_than_a_few(self, watch: Watch) -> None:
        watch.run("archive_old_analytics", NOW - 24 * HOUR, late_events=6000)
        watch.run("archive_old_analytics", NOW - 2 * HOUR, late_events=10)
        assert watch.names() == []
        watch.run("archive_old_analytics", NOW - HOUR, late_events=11)
        [alert] = watch.find()
        assert (alert["condition"], alert["state"]) == ("late_events", "opened")
        assert alert["message"].startswith(
            "11 event(s) came for days that were sealed already; they are counted as late"
        )
        watch.sent([alert], NOW)
        for hours in (1, 21, 23, 24, 100):
            assert watch.names(NOW + hours * HOUR) == []
        watch.run("archive_old_analytics", NOW + 200 * HOUR, late_events=12)
        assert watch.names(NOW + 200 * HOUR) == ["late_events opened"]

    @pytest.mark.parametrize("timezone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
    def test_a_time_that_no_calendar_has_is_no_alert(self, watch: Watch, timezone: str) -> None:
        set_zone(watch.database, timezone, "site")
        for moment in ("-infinity", "4713-01-01 BC", "0001-12-31 BC", "10000-01-02", "infinity"):
            watch.database.event(moment)
        assert watch.names() == []
        watch.database.event("0001-01-02")
        assert watch.names() == ["aggregation_behind site opened", "retention_backlog opened"]

    def test_no_cleanup_for_an_hour(self, watch: Watch) -> None:
        watch.run(CLEANUP, NOW - 2 * HOUR)
        watch.run(CLEANUP, NOW - HOUR - MINUTE)
        watch.run(CLEANUP, NOW - MINUTE, "failed")
        [alert] = watch.find()
        assert "No run of cleanup_analytics_sessions has succeeded for 61 minutes" in alert["message"]
        watch.sent([alert], NOW)
        watch.run(CLEANUP, NOW - HOUR)
        assert watch.names() == ["cleanup_missing recovered"]

    def test_a_cleanup_that_was_never_started(self, watch: Watch) -> None:
        watch.database.session(NOW - 3 * HOUR, NOW - 90 * MINUTE)
        assert watch.names() == []
        watch.database.session(NOW - 3 * HOUR, NOW - 91 * MINUTE)
        [alert] = watch.find()
        assert "at least an hour, and idle sessions are open" in alert["message"]

    def test_traffic_that_dropped_to_nothing(self, watch: Watch) -> None:
        for website_id, events, days in (("site", 20, 8), ("quiet", 19, 14), ("new", 20, 6)):
            for day in range(1, days + 1):
                for n in range(events):
                    watch.database.event(NOW - day * DAY - n * MINUTE, website_id=website_id)
        aggregate_due(watch.database)
        watch.run(CLEANUP, NOW + DAY)
        # All but the newest day has a row; the last event is a day old.
        assert watch.names(NOW) == []
        [alert] = watch.find(NOW + MINUTE)
        assert alert["message"].startswith(
            "Website site: no event since 2026-03-09 12:00 UTC, where a day has 20 as a rule; look at its tracking script"
        )
        watch.sent([alert], NOW)
        watch.database.event(NOW + HOUR)
        assert watch.names(NOW + 2 * HOUR) == ["traffic_missing site recovered"]

    @pytest.mark.parametrize(
        ("job", "limit", "said"),
        [(CLEANUP, timedelta(minutes=30), "31 minutes"), ("archive_old_analytics", 12 * HOUR, "12 hours")],
    )
    def test_a_run_that_does_not_end(self, watch: Watch, job: str, limit: timedelta, said: str) -> None:
        watch.run(CLEANUP, NOW + DAY)
        watch.run(job, None, "running", run_id="run 1", started_at=NOW - limit)
        assert watch.names() == []
        [alert] = watch.find(NOW + MINUTE)
        assert (alert["condition"], alert["subject"]) == ("run_late", job)
        assert alert["message"].startswith(f"The run run 1 of {job} began {said} ago and has not ended; look whether")
        watch.sent([alert], NOW)
        # One that failed is told about as that.
        watch.database.connection.execute("UPDATE analytics_job_run SET outcome = 'failed' WHERE outcome = 'running'")
        assert watch.names(NOW + 2 * MINUTE) == [f"run_late {job} recovered"]

    def test_many_websites_that_are_behind_are_one_alert_each_and_the_worst_come_first(self, watch: Watch) -> None:
        for n in range(12):
            watch.database.event(NOW - (3 + n) * DAY, website_id=f"site {n}")
        watch.run(CLEANUP, NOW)
        assert [alert["subject"] for alert in watch.find()] == [f"site {n}" for n in range(11, -1, -1)]

    def test_an_event_from_the_future_is_no_traffic(self, watch: Watch) -> None:
        for day in range(1, 9):
            for _ in range(20):
                watch.database.event(NOW - day * DAY)
        aggregate_due(watch.database)
        watch.database.event(NOW + DAY)
        watch.run(CLEANUP, NOW)
        assert watch.names(NOW + MINUTE) == ["traffic_missing site opened"]


class TestSending:
    @pytest.fixture(autouse=True)
    def _alert(self, watch: Watch) -> None:
        """Something that is wrong as long as its row is there."""
        watch.run(CLEANUP, NOW - 2 * HOUR)

    def mend(self, watch: Watch) -> None:
        watch.run(CLEANUP, NOW + 30 * DAY)

    def test_once_when_it_opens_again_daily_and_once_when_it_recovers(self, watch: Watch) -> None:
        assert watch.names(NOW) == ["cleanup_missing opened"]
        assert watch.names(NOW + 10 * MINUTE) == []
        assert watch.names(NOW + DAY - MINUTE) == []
        assert watch.names(NOW + DAY) == ["cleanup_missing still open"]
        assert watch.names(NOW + DAY + 10 * MINUTE) == []
        self.mend(watch)
        assert watch.names(NOW + 2 * DAY) == ["cleanup_missing recovered"]
        assert watch.names(NOW + 2 * DAY + 10 * MINUTE) == []
        [row] = watch.database.query("SELECT * FROM analytics_alert")
        times = [row[name] for name in ("opened_at", "sent_at", "recovered_at", "recovery_sent_at")]
        assert times == [NOW, NOW + DAY, NOW + 2 * DAY, NOW + 2 * DAY]

    def test_an_alert_that_opens_again_is_another_one(self, watch: Watch) -> None:
        watch.names(NOW)
        self.mend(watch)
        watch.names(NOW + HOUR)
        watch.database.connection.execute("DELETE FROM analytics_job_run WHERE finished_at > %s", [NOW])
        assert watch.names(NOW + 2 * HOUR) == ["cleanup_missing opened"]
        assert watch.database.value("SELECT count(*) FROM analytics_alert") == 2

    def test_its_message_is_kept_up_to_date(self, watch: Watch) -> None:
        watch.names(NOW)
        watch.names(NOW + HOUR)
        assert "for 180 minutes" in watch.database.value("SELECT message FROM analytics_alert")

    @pytest.mark.parametrize("recovered", [False, True])
    def test_one_that_could_not_be_sent_is_due_again(self, watch: Watch, recovered: bool) -> None:
        if recovered:
            watch.names(NOW - 30 * MINUTE)
            self.mend(watch)
        state = "cleanup_missing recovered" if recovered else "cleanup_missing opened"
        assert len(watch.find(NOW)) == 1
        assert watch.find(NOW + 4 * MINUTE) == []
        assert watch.names(NOW + 5 * MINUTE) == [state]
        assert watch.find(NOW + 20 * MINUTE) == []

    def test_nobody_hears_of_the_recovery_of_what_they_were_not_told(self, watch: Watch) -> None:
        assert len(watch.find(NOW)) == 1
        self.mend(watch)
        assert watch.find(NOW + MINUTE) == []
        assert watch.find(NOW + HOUR) == []

    def test_of_two_runs_at_the_same_moment_one_sends_it(self, watch: Watch) -> None:
        with watch.connect() as other:
            clock.set_now(other, NOW)
            with other.transaction():
                assert len(find_alerts(watch.database, other)) == 1
                own = watch.connect()
                clock.set_now(own, NOW + timedelta(seconds=1))
                found = [{"condition": "cleanup_missing"} | row for row in watch.database.run(MISSING, own, **LIMITS)]
                second = watch.database.start(KEEP, own, found=json.dumps(found), unknown="[]")
            assert second.result(timeout=10)[0]["result"] == []


def test_a_condition_that_could_not_be_asked_leaves_its_alerts_open(watch: Watch) -> None:
    row = {"condition": "database_size", "subject": "", "message": "It is large."}
    opened = keep_alerts(watch.database, watch.at(NOW), [row])
    watch.sent(opened, NOW)
    assert keep_alerts(watch.database, watch.at(NOW + HOUR), [], ("database_size",)) == []
    [recovered] = keep_alerts(watch.database, watch.at(NOW + 2 * HOUR), [], ("run_late",))
    assert recovered["state"] == "recovered"


def test_each_condition_is_a_file_that_says_what_it_finds() -> None:
    for name in CONDITIONS:
        sql = (SQL / "alerts" / f"{name}.sql").read_text()
        assert sql.startswith("-- ")
        assert "-- Result: subject" in sql
        assert set(re.findall(r"%\((\w+)\)s", sql)) <= LIMITS.keys()


def test_a_message_names_ten_of_a_kind() -> None:
    alert = {"state": "opened", "condition": "traffic_missing", "opened_at": "2026-03-10 12:00"}
    alerts = [alert | {"subject": str(n), "message": f"Website {n}: no event."} for n in range(12)]
    alerts += [alert | {"state": "recovered", "subject": "x", "message": "Website x: no event."}]
    subject, text = alert_message(alerts)
    assert subject == "[Analytics] traffic_missing 0: opened and 12 more"
    assert text.split("\n\n")[9:] == [
        "ALERT: Website 9: no event.",
        "... and 2 more of traffic_missing: the page Analytics names them.",
        "RECOVERED, was open since 2026-03-10 12:00 UTC: Website x: no event.",
    ]


def test_messages_of_one_and_of_several_alerts() -> None:
    def alert(state: str, subject: str) -> dict[str, Any]:
        return {
            "state": state,
            "condition": "traffic_missing",
            "subject": subject,
            "message": f"Website {subject}: no event.",
            "opened_at": "2026-03-10 12:00",
        }

    assert alert_message([alert("opened", "a")]) == (
        "[Analytics] traffic_missing a: opened",
        "ALERT: Website a: no event.",
    )
    assert alert_message([alert("recovered", "a"), alert("still open", "b")]) == (
        "[Analytics] traffic_missing a: recovered and 1 more",
        (
            "RECOVERED, was open since 2026-03-10 12:00 UTC: Website a: no event.\n\n"
            "STILL OPEN since 2026-03-10 12:00 UTC: Website b: no event."
        ),
    )
