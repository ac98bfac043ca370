"""The report of a retention run."""

from typing import Any

import pytest

from web_analytics.retention import result_lines, unproven_sentence

FROZEN: dict[str, Any] = {"cutoff": "2026-08-25 00:00:00+00", "database_size": "157 MB"}
ALL = {"events": 45234, "sessions": 1001}
PARAMS = {"dry_run": False, "batch_size": 1000}


@pytest.mark.parametrize(
    ("expired", "deleted", "params", "lines"),
    [
        (
            ALL,
            ALL,
            {},
            [
                "✅ Archived 45,234 old event(s) (kept daily aggregated stats)",
                "✅ Archived 1,001 old session(s)",
                "Database size: 157 MB before, 150 MB after",
            ],
        ),
        (
            ALL,
            {"events": 45000, "sessions": 1001},
            {},
            [
                "✅ Archived 45,000 old event(s) (kept daily aggregated stats)",
                "✅ Archived 1,001 old session(s)",
                "234 of the events counted were not deleted by these tasks: see their logs",
                "Database size: 157 MB before, 150 MB after",
            ],
        ),
        (
            ALL,
            {"events": 0, "sessions": 0},
            {"dry_run": True},
            [
                "Dry run: would delete 45,234 events in 46 batch(es)",
                "Dry run: would delete 1,001 sessions in 2 batch(es)",
            ],
        ),
        (
            {"events": 0, "sessions": 0},
            {"events": 0, "sessions": 0},
            {},
            ["Nothing to delete is older than 2026-08-25 00:00:00+00"],
        ),
    ],
)
def test_report(expired: dict[str, Any], deleted: dict[str, int], params: dict[str, Any], lines: list[str]) -> None:
    assert result_lines(FROZEN, expired, deleted, "150 MB", PARAMS | params) == lines


def test_days_that_were_left_alone_are_named() -> None:
    def problem(day: int, is_proven: bool) -> dict[str, Any]:
        return {
            "website_id": "shop",
            "day": f"2026-01-{day:02}",
            "is_proven": is_proven,
            "remark": "2 event(s), no stats",
        }

    assert unproven_sentence([problem(1, True)]) is None
    assert unproven_sentence([problem(1, True), problem(2, False)]) == (
        "1 day(s) were left alone, since their stats do not count exactly their events: "
        "shop 2026-01-02 (2 event(s), no stats); read the log of aggregate_day and run this job again."
    )
    many = unproven_sentence([problem(day, False) for day in range(1, 14)])
    assert many
    assert "shop 2026-01-10 (2 event(s), no stats) and 3 more; read" in many
