"""Breaks each law in one line of a copy of the code and shows that its test fails: ``make laws``.

Prints a table in Markdown; exits with 1 if a test does not notice.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEAL = "include/sql/archive_old_analytics/seal_days.sql"
DELETE_EVENTS = "include/sql/archive_old_analytics/delete_event_batch.sql"
DELETE_SESSIONS = "include/sql/archive_old_analytics/delete_session_batch.sql"
AGGREGATE = "include/sql/aggregate_daily_analytics/aggregate_day.sql"
DUE = "include/sql/aggregate_daily_analytics/find_due_days.sql"
CLOSE = "include/sql/cleanup_analytics_sessions/close_idle_sessions.sql"
COUNT = "include/sql/schema/repeatable/20_count_days.sql"
DAYS = "include/sql/schema/repeatable/10_days.sql"
RETENTION = "include/sql/schema/repeatable/30_retention.sql"
PARTITIONS = "include/sql/schema/repeatable/55_partitions.sql"
POSTGRES = "dags/web_analytics/postgres.py"


@dataclass
class Break:
    """A change of one line of a file, `old` to `new`, and the test that must fail then."""

    law: str
    test: str
    file: str
    old: str
    new: str


BREAKS = [
    Break(
        "Purge: the counted events, not as many",
        "test_sealed_and_kept_rows.py::TestCorrections::test_a_visitor_is_erased_and_another_event_comes_in_its_place",
        SEAL,
        "(found.total_events, found.events_hash) = (found.events, found.hash)",
        "found.total_events = found.events",
    ),
    Break(
        "Purge: every counted column of them",
        "test_purge_law.py::TestSeal"
        "::test_one_that_counts_anything_else_is_left_and_aggregated_and_sealed_then[another visitor]",
        COUNT,
        "hashtextextended(coalesce(visitor_id, ''),",
        "hashtextextended('',",
    ),
    Break(
        "Purge: the listed events of a partition, not as many",
        "test_partitions.py::test_as_many_others_in_place_of_what_is_listed_keep_their_partition",
        PARTITIONS,
        "listed.events > events OR listed.hash IS DISTINCT FROM events_hash",
        "listed.events > events",
    ),
    Break(
        "Purge: what comes later is counted",
        "test_seal_races.py::TestLateEvents::test_6000_imported_events_of_sealed_days_are_counted_and_reported",
        SEAL,
        "CASE verdict.outcome WHEN 'late' THEN verdict.new_pageviews ELSE 0 END",
        "0",
    ),
    Break(
        "Purge: only what is listed",
        "test_purge_law.py::TestBetweenListAndDeletion::test_the_application_goes_on[False-moved to another day]",
        DELETE_EVENTS,
        "        batch.first_at,\n",
        "        '-infinity'::timestamptz AS first_at,\n",
    ),
    Break(
        "Purge: restored while the batch waits",
        "test_seal_races.py::TestWhileABatchWaits::test_an_event_is_changed[restored]",
        DELETE_EVENTS,
        "OR raw.id NOT IN (SELECT was_deleted.id FROM was_deleted)",
        "OR TRUE",
    ),
    Break(
        "Purge: moved while the batch waits",
        "test_seal_races.py::TestWhileABatchWaits::test_an_event_is_changed[moved past the cutoff]",
        DELETE_EVENTS,
        "        batch.last_at,\n",
        "        'infinity'::timestamptz AS last_at,\n",
    ),
    Break(
        "Purge: a legal hold",
        "test_purge_law.py::TestBetweenListAndDeletion"
        "::test_a_held_website_stays_on_the_list_until_the_hold_ends[legal_hold = TRUE-FALSE]",
        DELETE_EVENTS,
        "event.timestamp >= website.cutoff AS is_held",
        "FALSE AS is_held",
    ),
    Break(
        "Freeze: an aggregation that was slower",
        "test_seal_races.py::TestAtTheSameMoment"
        "::test_an_aggregation_that_was_slower_than_the_seal_changes_nothing[read committed]",
        COUNT,
        "WHERE stats.sealed_at IS NULL AND (",
        "WHERE (",
    ),
    Break(
        "Freeze: another time zone",
        "test_sealed_and_kept_rows.py::TestSealedRows::test_a_zone_that_would_change_its_day_is_refused[site-sealed_at]",
        DAYS,
        "AND (stats.sealed_at IS NOT NULL OR stats.kept_at IS NOT NULL)",
        "AND stats.kept_at IS NOT NULL",
    ),
    Break(
        "Freeze: what comes later has columns of its own",
        "test_seal_races.py::TestLateEvents::test_they_are_named_and_counted_once_however_often_the_step_is_run",
        SEAL,
        "WHEN found.sealed_at IS NOT NULL AND found.new_events",
        "WHEN FALSE AND found.new_events",
    ),
    Break(
        "Gap: edited events",
        "test_edits.py::test_an_event_that_is_edited_makes_its_day_due_the_next_night",
        DUE,
        "sign.deleted_events, sign.edits_hash)",
        "sign.deleted_events, stats.edits_hash)",
    ),
    Break(
        "Gap: late and soft-deleted events",
        "test_find_due_days.py::test_an_event_that_is_replaced_by_another_at_the_same_moment_makes_its_day_due",
        DUE,
        "sign.total_events, sign.deleted_events, ",
        "sign.total_events, stats.deleted_events, ",
    ),
    Break(
        "Gap: corrections",
        "test_sealed_and_kept_rows.py::TestCorrections::test_a_visitor_is_erased",
        AGGREGATE,
        "IS NULL THEN 10 ELSE 2 END",
        "IS NULL THEN 0 ELSE 0 END",
    ),
    Break(
        "Gap: what others delete from the old end lowers no row",
        "test_sealed_and_kept_rows.py::TestKeptRows::test_the_row_stays_as_it_was_counted",
        AGGREGATE,
        "        counted.has_vanished\n",
        "        FALSE\n",
    ),
    Break(
        "Gap: every instant is in one day",
        "test_website_days.py::test_the_day_that_a_zone_begins_with_starts_where_the_one_before_ends",
        DAYS,
        "RETURN greatest(analytics_midnight(day, zone), analytics_midnight(day - 1, zone_before));",
        "RETURN analytics_midnight(day, zone);",
    ),
    Break(
        "Once: a seal that runs twice",
        "test_purge_law.py::TestSeal::test_repeated_it_seals_and_lists_nothing_more",
        SEAL,
        "AND batch.last_at >= (SELECT min(day.starts_at) FROM day)",
        "AND FALSE",
    ),
    Break(
        "Once: two seals at the same moment",
        "test_seal_races.py::TestAtTheSameMoment::test_of_two_that_find_late_events_one_counts_them",
        SEAL,
        "FROM (verdict.sealed_at, verdict.late_before, ",
        "FROM (verdict.sealed_at, stats.late_pageviews + stats.late_custom_events, ",
    ),
    Break(
        "Once: a list of sessions that is made twice",
        "test_archive_sessions.py::test_listed_twice_is_listed_once",
        "include/sql/archive_old_analytics/list_sessions.sql",
        "AND step.id NOT IN (SELECT listed.id FROM listed)",
        "AND TRUE",
    ),
    Break(
        "Session: one that came back ends at its true last activity",
        "test_cleanup_sessions.py::test_a_session_that_returned_and_left_again_ends_at_its_true_last_activity",
        "include/sql/cleanup_analytics_sessions/end_returned_sessions.sql",
        "ended_at = session.last_activity_at,",
        "ended_at = session.ended_at,",
    ),
    Break(
        "Session: a duration is never negative",
        "test_cleanup_sessions.py::test_the_end_is_the_last_activity_and_the_duration_whole_seconds_never_negative",
        RETENTION,
        "WHEN last_activity_at <= started_at THEN 0",
        "WHEN last_activity_at = started_at THEN 0",
    ),
    Break(
        "Orphan: an event that is left",
        "test_archive_sessions.py::test_one_that_arrives_after_the_list_keeps_it_as_well[live]",
        RETENTION,
        "WHERE event.session_id = session AND event.timestamp >= from_instant AND event.deleted_at IS NULL",
        "WHERE FALSE",
    ),
    Break(
        "Orphan: a soft-deleted one",
        "test_archive_sessions.py::test_one_that_arrives_after_the_list_keeps_it_as_well[soft-deleted]",
        RETENTION,
        "WHERE event.session_id = session AND event.timestamp >= from_instant AND event.deleted_at IS NOT NULL",
        "WHERE FALSE",
    ),
    Break(
        "Orphan: its visitor comes back while the batch waits",
        "test_seal_races.py::TestWhileABatchWaits::test_a_session_is_changed[back]",
        DELETE_SESSIONS,
        "AND raw.last_activity_at = due.last_activity_at",
        "AND TRUE",
    ),
    Break(
        "Crash: an error that passes",
        "test_crashes.py::test_errors_that_pass",
        POSTGRES,
        '"retries": 4,',
        '"retries": 0,',
    ),
    Break(
        "Guest: a row that the application writes",
        "test_cleanup_sessions.py::test_a_row_that_the_application_writes_is_passed_over_and_does_not_fill_the_batch",
        CLOSE,
        "FOR UPDATE SKIP LOCKED",
        "FOR UPDATE",
    ),
    Break(
        "Guest: no statement waits for ever",
        "test_postgres_operator.py::test_session_settings_win_over_the_connections_own",
        POSTGRES,
        '"lock_timeout": "5s"',
        '"lock_timeout": "0"',
    ),
    Break(
        "Guest: a step reads no more than so many rows",
        "test_archive_sessions.py::test_a_step_reads_100000_sessions",
        "include/sql/archive_old_analytics/list_sessions.sql",
        "    LIMIT 100000\n",
        "    LIMIT 200000\n",
    ),
    Break(
        "Poison: a time that no calendar has",
        "test_archive.py::TestFindExpired::test_events_of_no_calendar_day_are_left_and_named",
        DAYS,
        "ends_at := greatest(from_instant, analytics_day_start(website, '0001-01-01'));",
        "ends_at := from_instant;",
    ),
    Break(
        "Poison: a duration that does not fit",
        "test_poison.py::test_sessions_of_all_times",
        RETENTION,
        "2147483647)::integer",
        "2147483648)::integer",
    ),
    Break(
        "Setting: tables that inherit",
        "test_check_database.py::test_children_by_inheritance",
        "include/sql/check_database.sql",
        "right_table.relkind = 'r' AND parent.children IS NOT NULL,",
        "FALSE,",
    ),
    Break(
        "Setting: row level security is an error and not a wrong count",
        "test_postgres_operator.py::TestErrors::test_a_row_security_policy_is_an_error_and_not_a_wrong_count",
        "dags/web_analytics/session.py",
        '"row_security": "off"',
        '"row_security": "on"',
    ),
    Break(
        "Upgrade: final rows keep their bounds",
        "test_schema.py::test_final_rows_keep_their_bounds_whatever_the_time_zones_were",
        "include/sql/schema/migrations/002_seal_and_list.sql",
        "coalesce(zone.date_before + 1, '-infinity') AS from_date",
        "coalesce(zone.date_before + 2, '-infinity') AS from_date",
    ),
]


def fails(copy: Path, *tests: str) -> bool:
    """Whether one of the tests fails; a test that cannot run at all is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *(f"tests/{test}" for test in tests)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 1


def main() -> int:
    """Try every change; return the exit code."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "docs"))
        if fails(copy, *{test.test for test in BREAKS}):
            print("The tests fail as it is: run `make test`.", file=sys.stderr)
            return 1
        print("| law | test | changed line | the test |\n|---|---|---|---|")
        for change in BREAKS:
            file = copy / change.file
            text = file.read_text()
            if text.count(change.old) < 1:
                raise SystemExit(f"{change.file} has no line {change.old!r}: mend tests/laws.py")
            file.write_text(text.replace(change.old, change.new))
            failed = fails(copy, change.test)
            file.write_text(text)
            missed += not failed
            old, new = (" ".join(line.split()).replace("|", "\\|") for line in (change.old, change.new))
            name, where = change.test.rsplit("::", 1)[1], Path(change.file).name
            outcome = "fails" if failed else "**passes**"
            print(f"| {change.law} | `{name}` | {where}: `{old}` to `{new}` | {outcome} |", flush=True)
    print(f"{len(BREAKS) - missed} passed, {missed} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
