"""The report of a retention run."""

from typing import Any

import pytest

from web_analytics.retention import result_lines

COUNTED: dict[str, Any] = {
    "events": 45234,
    "sessions": 1001,
    "cutoff": "2026-08-25 00:00:00+00",
    "database_size": "157 MB",
}
ALL = {"events": 45234, "sessions": 1001}
PARAMS = {"dry_run": False, "batch_size": 1000}


@pytest.mark.parametrize(
    ("counted", "deleted", "params", "lines"),
    [
        (
            {},
            ALL,
            {},
            [
                "✅ Archived 45,234 old event(s) (kept daily aggregated stats)",
                "✅ Archived 1,001 old session(s)",
                "Database size: 157 MB before, 150 MB after",
            ],
        ),
        (
            {},
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
            {},
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
            ["Nothing is older than 2026-08-25 00:00:00+00"],
        ),
    ],
)
def test_report(counted: dict[str, Any], deleted: dict[str, int], params: dict[str, Any], lines: list[str]) -> None:
    assert result_lines(COUNTED | counted, deleted, "150 MB", PARAMS | params) == lines
