"""Which days an aggregation run is asked for."""

from datetime import UTC, date, datetime, timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException

from web_analytics.days import MAX_TASKS, days_to_aggregate, tasks_for

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
NONE = {"stat_date": None, "from": None, "to": None}


@pytest.mark.parametrize(
    ("moment", "timezone", "day"),
    [
        (datetime(2026, 3, 10, 1, tzinfo=UTC), "UTC", date(2026, 3, 9)),
        (datetime(2026, 3, 10, 0, tzinfo=UTC), "UTC", date(2026, 3, 9)),
        (datetime(2026, 3, 9, 23, 59, 59, tzinfo=UTC), "UTC", date(2026, 3, 8)),
        # 01:00 UTC is still the day before in New York, and long past midnight in Auckland.
        (datetime(2026, 3, 10, 1, tzinfo=UTC), "America/New_York", date(2026, 3, 8)),
        (datetime(2026, 3, 10, 1, tzinfo=UTC), "Pacific/Auckland", date(2026, 3, 9)),
        # The night on which the clocks go forward in Berlin.
        (datetime(2025, 3, 30, 1, tzinfo=UTC), "Europe/Berlin", date(2025, 3, 29)),
    ],
)
def test_default_is_the_day_before_in_the_time_zone(moment: datetime, timezone: str, day: date) -> None:
    assert days_to_aggregate(NONE, moment, NOW, timezone) == [day]


def test_stat_date_and_range() -> None:
    assert days_to_aggregate(NONE | {"stat_date": "2026-02-03"}, NOW, NOW, "UTC") == [date(2026, 2, 3)]
    assert days_to_aggregate(NONE | {"from": "2026-02-27", "to": "2026-03-01"}, NOW, NOW, "UTC") == [
        date(2026, 2, 27),
        date(2026, 2, 28),
        date(2026, 3, 1),
    ]


def test_yesterday_is_over_and_today_is_not() -> None:
    assert days_to_aggregate(NONE | {"stat_date": "2026-03-09"}, NOW, NOW, "UTC") == [date(2026, 3, 9)]
    with pytest.raises(AirflowFailException, match="2026-03-10 is not over yet in UTC"):
        days_to_aggregate(NONE | {"stat_date": "2026-03-10"}, NOW, NOW, "UTC")
    # At noon UTC on the 10th, it is the 11th in Kiritimati.
    assert days_to_aggregate(NONE | {"stat_date": "2026-03-10"}, NOW, NOW, "Pacific/Kiritimati") == [date(2026, 3, 10)]


def test_days_that_are_due_are_added_to_the_default_only() -> None:
    old = [date(2026, 1, 1), date(2026, 3, 9)]
    assert days_to_aggregate(NONE, NOW, NOW, "UTC", old) == [date(2026, 1, 1), date(2026, 3, 9)]
    assert days_to_aggregate(NONE | {"stat_date": "2026-02-03"}, NOW, NOW, "UTC", old) == [date(2026, 2, 3)]
    many = [date(2020, 1, 1) + timedelta(days=offset) for offset in range(2001)]
    assert days_to_aggregate(NONE, NOW, NOW, "UTC", many) == [*many, date(2026, 3, 9)]


def test_a_range_may_be_of_any_length() -> None:
    days = days_to_aggregate(NONE | {"from": "2000-01-01", "to": "2026-03-09"}, NOW, NOW, "UTC")
    assert (len(days), days[0], days[-1]) == (9565, date(2000, 1, 1), date(2026, 3, 9))


@pytest.mark.parametrize(
    ("days", "tasks", "most"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (MAX_TASKS, MAX_TASKS, 1),
        (MAX_TASKS + 1, 501, 2),
        (2 * MAX_TASKS, MAX_TASKS, 2),
        (2 * MAX_TASKS + 1, 667, 3),
    ],
)
def test_a_task_takes_one_day_and_several_where_there_would_be_too_many_tasks(days: int, tasks: int, most: int) -> None:
    names = [str(date(2000, 1, 1) + timedelta(days=offset)) for offset in range(days)]
    planned = tasks_for(names, recount=True)
    assert len(planned) == tasks <= MAX_TASKS
    assert [day for task in planned for day in task["days"]] == names
    assert max((len(task["days"]) for task in planned), default=0) == most
    assert all(task["recount"] for task in planned)


def test_a_task_is_named_by_its_days() -> None:
    assert tasks_for([date(2024, 1, 15)]) == [{"days": ["2024-01-15"], "label": "2024-01-15", "recount": False}]
    planned = tasks_for([date(2000, 1, 1) + timedelta(days=offset) for offset in range(MAX_TASKS + 1)])
    assert planned[0]["label"] == "2000-01-01 to 2000-01-02"
    assert planned[-1]["label"] == "2002-09-27"


def test_the_first_and_the_last_day_of_the_calendar_have_names_like_any_other() -> None:
    due = [date.min, date(1900, 1, 1)]
    assert days_to_aggregate(NONE, NOW, NOW, "Pacific/Kiritimati", due) == [*due, date(2026, 3, 10)]
    assert tasks_for([date.min, date.max]) == [
        {"days": ["0001-01-01"], "label": "0001-01-01", "recount": False},
        {"days": ["9999-12-31"], "label": "9999-12-31", "recount": False},
    ]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"from": "2026-01-01"}, "Give both from and to"),
        ({"to": "2026-01-01"}, "Give both from and to"),
        ({"stat_date": "2026-01-01", "to": "2026-01-01"}, "not both"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "is after to"),
    ],
)
def test_contradictions(params: dict[str, str], sentence: str) -> None:
    with pytest.raises(AirflowFailException, match=sentence):
        days_to_aggregate(NONE | params, NOW, NOW, "UTC")
