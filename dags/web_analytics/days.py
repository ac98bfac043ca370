"""Which calendar days an aggregation run is for."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk.exceptions import AirflowFailException

MAX_TASKS = 1000
"""Mapped tasks of one run. Airflow maps at most 1024 (``[core] max_map_length``)."""


def days_to_aggregate(
    params: Mapping[str, Any], moment: datetime, now: datetime, timezone: str, due: Iterable[date] = ()
) -> list[date]:
    """Return the days to aggregate, oldest first.

    :param params: ``stat_date``, or ``from`` and ``to`` (inclusive), as ISO dates. Without any: the day before `moment`,
        and the days in `due`.
    :param moment: the moment that the run stands for (its data interval's end, or when it was due).
    :param now: the present moment: a day that is not over yet cannot be aggregated.
    :param timezone: IANA name of the time zone whose calendar days are meant.
    :param due: days whose stats are missing or no longer right.
    :raises AirflowFailException: the Params contradict each other, or a day is not over yet.
    """
    zone = ZoneInfo(timezone)
    day, first, last = (date.fromisoformat(params[key]) if params[key] else None for key in ("stat_date", "from", "to"))
    if day and (first or last):
        raise AirflowFailException("Give either stat_date or from and to, not both.")
    if bool(first) != bool(last):
        raise AirflowFailException("Give both from and to: they are the first and the last day of the range.")
    asked = first or day
    first = asked or moment.astimezone(zone).date() - timedelta(days=1)
    last = last or first
    if first > last:
        raise AirflowFailException(f"from ({first}) is after to ({last}): exchange them.")
    if last >= (today := now.astimezone(zone).date()):
        raise AirflowFailException(f"{last} is not over yet in {timezone}: choose a day before {today}.")
    days = {first + timedelta(days=offset) for offset in range((last - first).days + 1)}
    return sorted(days if asked else days.union(due))


def tasks_for(days: Iterable[date | str], recount: bool = False) -> list[dict[str, Any]]:
    """Return the parameters of the mapped tasks that aggregate these days: one day each, up to MAX_TASKS, then several.

    :param days: days, oldest first.
    :param recount: whether to count what is there even if raw events seem to have been deleted by somebody else.
    """
    names = [str(day) for day in days]
    size = -(-len(names) // MAX_TASKS)
    groups = [names[start : start + size] for start in range(0, len(names), size or 1)]
    return [
        {"days": group, "label": group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}", "recount": recount}
        for group in groups
    ]
