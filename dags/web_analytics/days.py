"""Which calendar days an aggregation run is for."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk.exceptions import AirflowFailException

MAX_DAYS = 1000
"""Days of one run. Airflow maps at most 1024 tasks (``[core] max_map_length``)."""


def days_to_aggregate(
    params: Mapping[str, Any], moment: datetime, now: datetime, timezone: str, unaggregated: Sequence[date] = ()
) -> list[date]:
    """Return the days to aggregate, oldest first, at most MAX_DAYS.

    :param params: ``stat_date``, or ``from`` and ``to`` (inclusive), as ISO dates. Without any: the day before `moment`,
        and the days in `unaggregated`.
    :param moment: the moment that the run stands for (its data interval's end, or when it was due).
    :param now: the present moment: a day that is not over yet cannot be aggregated.
    :param timezone: IANA name of the time zone whose calendar days are meant.
    :param unaggregated: days that have events but no stats, oldest first.
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
    if (last - first).days >= MAX_DAYS:
        raise AirflowFailException(f"{first} to {last} is more than {MAX_DAYS} days: split the range.")
    days = {first + timedelta(days=offset) for offset in range((last - first).days + 1)}
    return sorted(days if asked else days.union(unaggregated[: MAX_DAYS - 1]))
