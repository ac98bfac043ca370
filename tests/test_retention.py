"""The report of a retention run."""

from typing import Any

import pytest

from web_analytics.retention import left_sentence, result_lines

EXPIRED: dict[str, Any] = {"cutoff": "2026-08-25 00:00 UTC", "events": 45234, "left_days": 0, "steps": []}
LISTED = [{"rows": 1000}, {"rows": 1}]


def batches(events: list[int], sessions: list[int], left: tuple[int, int] = (0, 0)) -> dict[str, list[dict[str, int]]]:
    """Results of batches: the rows that each deleted, and what the last one left."""
    return {"partitions": [{"rows": 0, "left": 0}]} | {
        name: [*({"rows": rows, "left": 0} for rows in deleted), {"rows": 0, "left": not_gone}]
        for name, deleted, not_gone in zip(("events", "sessions"), (events, sessions), left, strict=True)
    }


@pytest.mark.parametrize(
    ("deleted", "params", "lines"),
    [
        (
            batches([1000] * 45 + [234], [1000, 1]),
            {"dry_run": False, "batch_size": 1000},
            ["✅ Archived 45,234 old event(s) (kept daily aggregated stats)", "✅ Archived 1,001 old session(s)"],
        ),
        (
            {"partitions": [], "events": [], "sessions": []},
            {"dry_run": False, "batch_size": 1000},
            ["✅ Archived 0 old event(s) (kept daily aggregated stats)", "✅ Archived 0 old session(s)"],
        ),
        (
            {"partitions": [], "events": [], "sessions": []},
            {"dry_run": True, "batch_size": 1000},
            [
                "Dry run: would delete 45,234 events in 46 batch(es)",
                "Dry run: would delete 1,001 sessions in 2 batch(es)",
            ],
        ),
    ],
)
def test_report(deleted: dict[str, Any], params: dict[str, Any], lines: list[str]) -> None:
    assert result_lines(EXPIRED, LISTED, deleted, params) == lines


def test_days_that_were_left_alone_are_named() -> None:
    def step(count: int) -> dict[str, Any]:
        return {"count": count, "named": "shop 2026-01-02 (2 event(s), no stats)"}

    nothing_left = batches([1], [1])
    assert left_sentence([], nothing_left) is None
    sentence = (
        "{} day(s) were left alone, since their stats do not count exactly their events: "
        "shop 2026-01-02 (2 event(s), no stats){}; read the log of aggregate_day and run this job again."
    )
    assert left_sentence([step(1)], nothing_left) == sentence.format("1", "")
    assert left_sentence([step(600), step(401)], nothing_left) == sentence.format("1,001", " and more")


def test_rows_that_did_not_go_are_counted() -> None:
    sentence = left_sentence([], batches([1], [1], (1001, 2)))
    ending = (
        "did not go, though no policy and no change keeps them: look for a trigger or a rule of the application on the "
        "table, or in the log for ids that several events have, or run this job again."
    )
    assert sentence == f"1,001 events {ending} 2 sessions {ending}"
