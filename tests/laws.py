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
PROVE = "include/sql/archive_old_analytics/prove_days.sql"
DELETE_EVENTS = "include/sql/archive_old_analytics/delete_event_batch.sql"
DELETE_SESSIONS = "include/sql/archive_old_analytics/delete_session_batch.sql"
AGGREGATE = "include/sql/aggregate_daily_analytics/aggregate_day.sql"
DUE = "include/sql/aggregate_daily_analytics/find_due_days.sql"
CLOSE = "include/sql/cleanup_analytics_sessions/close_idle_sessions.sql"
RETENTION = "include/sql/schema/50_retention.sql"
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
        "test_purge_law.py::TestProof::test_as_many_events_are_not_the_same_events",
        PROVE,
        "= (expired_day.starts_at, expired_day.ends_at, live.events, live.ids)",
        "= (expired_day.starts_at, expired_day.ends_at, live.events, stats.events_hash)",
    ),
    Break(
        "Purge: a late event in a planned range",
        "test_purge_law.py::TestBetweenProofAndDeletion::test_an_event_arrives_in_a_planned_range",
        DELETE_EVENTS,
        "analytics_is_visible(event.xmin, proven.newest_xid, proven.snapshot)",
        "proven.date IS NOT NULL",
    ),
    Break(
        "Purge: written before the proof, committed after it",
        "test_purge_law.py::TestBetweenProofAndDeletion::test_an_event_was_inserted_in_a_subtransaction_before_the_proof",
        RETENTION,
        "< pg_snapshot_xmin(snapshot)::text::bigint",
        "< pg_snapshot_xmax(snapshot)::text::bigint",
    ),
    Break(
        "Purge: the day is counted again meanwhile",
        "test_purge_law.py::TestBetweenProofAndDeletion::test_a_batch_waits_for_an_aggregation_and_sees_what_it_wrote",
        DELETE_EVENTS,
        "= (proven.starts_at, proven.ends_at, proven.total_events, proven.events_hash)",
        "= (stats.starts_at, stats.ends_at, stats.total_events, stats.events_hash)",
    ),
    Break(
        "Purge: a legal hold",
        "test_purge_law.py::TestProof::test_a_legal_hold_needs_no_proof_and_loses_the_one_it_has",
        RETENTION,
        "WHEN policy.legal_hold THEN '-infinity'",
        "WHEN FALSE THEN '-infinity'",
    ),
    Break(
        "Freeze: an aggregation that was slower",
        "test_purge_law.py::TestBetweenProofAndDeletion"
        "::test_an_aggregation_that_was_slower_than_the_batch_changes_nothing",
        AGGREGATE,
        "    WHERE\n    stats.raw_purged_at IS NULL",
        "    WHERE\n    TRUE",
    ),
    Break(
        "Freeze: marked in the deleting transaction",
        "test_purge_law.py::TestFinalRows::test_the_days_that_a_batch_touches_become_final_in_the_same_transaction",
        DELETE_EVENTS,
        "SET raw_purged_at = now(), purge_snapshot",
        "SET purge_snapshot",
    ),
    Break(
        "Gap: late and soft-deleted events",
        "test_find_due_days.py::test_an_event_that_is_replaced_by_another_at_the_same_moment_makes_its_day_due",
        DUE,
        "coalesce(stats.deleted_events, deleted.events))",
        "deleted.events)",
    ),
    Break(
        "Gap: the websites' own days",
        "test_website_days.py::test_every_event_stays_in_one_day_when_the_time_zone_is_changed",
        "include/sql/schema/30_days.sql",
        "max(final.ends_at) FILTER (WHERE final.date = day - 1),",
        "NULL,",
    ),
    Break(
        "Once: a batch that runs twice",
        "test_archive.py::TestDeleteEventBatch::test_repeated_it_deletes_nothing_more_and_writes_nothing",
        DELETE_EVENTS,
        "AND (event.timestamp, event.id) <= (%(hi_timestamp)s::timestamptz, %(hi_id)s)",
        "AND event.timestamp <= now()",
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
        CLOSE,
        "greatest(0, ",
        "greatest(-1000000, ",
    ),
    Break(
        "Orphan: a kept event keeps its session",
        "test_archive.py::TestDeleteSessionBatch::test_an_event_that_is_left_keeps_its_session",
        DELETE_SESSIONS,
        "event.session_id = session.session_id AND event.deleted_at IS NULL",
        "event.session_id = session.session_id AND event.deleted_at IS NOT NULL",
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
