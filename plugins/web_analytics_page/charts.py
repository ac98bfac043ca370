"""What page.js draws: labels, series of numbers, and the signs that they need beside colours."""

from datetime import date
from typing import Any

from web_analytics_page.formats import job_link, long, plural, short, took, weeks_old
from web_analytics_page.view import JOBS, View

Row = dict[str, Any]
ARCHIVE = list(JOBS)[-1]


def durations(job: str, runs: list[Row]) -> Row:
    """The last runs of a job."""
    numbers = list(enumerate(runs))
    failed = [number for number, run in numbers if run["outcome"] == "failed"]
    return {
        "label": f"Durations of the last {plural(len(runs), 'run')}, {len(failed)} failed",
        "bare": True,
        "labels": [f"{run['started_at']:%d %b %Y %H:%M} UTC" for run in runs],
        "tips": [f"{run['outcome']}, {took(run['seconds'])}" for run in runs],
        "links": [job_link(job, run["run_id"]) for run in runs],
        "series": [
            {
                "data": [run["seconds"] or 0 for run in runs],
                "bad": failed,
                "hatched": [number for number, run in numbers if run["outcome"] == "running"],
            }
        ],
    }


def traffic(days: list[Row], last_day: date, view: View) -> Row:
    """Pageviews as bars, sessions and visitors as lines, which end at the last day that is over."""

    def line(measure: str) -> list[int | None]:
        # Down to the day that has only begun, it would look like a loss.
        return [day[measure] if day["date"] <= last_day else None for day in days]

    return {
        "label": f"Pageviews, sessions and visitors of {plural(len(days), 'day')}; the numbers are in the table below",
        "legend": True,
        "labels": [short(day["date"]) for day in days],
        "titles": [long(day["date"]) for day in days],
        "links": [view.link(day=day["date"]) for day in days] if view.website else [],
        "series": [
            {"label": "Sessions", "line": "solid", "data": line("sessions")},
            {"label": "Visitors", "line": "dashed", "data": line("visitors")},
            {
                "label": "Pageviews",
                "data": [day["pageviews"] for day in days],
                "hatched": [number for number, day in enumerate(days) if day["is_live"]],
            },
        ],
    }


def raw_events(rows: list[Row]) -> Row:
    """Raw events by their age, in front of those that are past the cutoff."""
    return {
        "label": "Raw events by age; the numbers are in the table below",
        "stacked": True,
        "axis": "weeks old",
        "labels": [row["weeks"] for row in rows],
        "titles": [weeks_old(row["weeks"]) for row in rows],
        "series": [
            {"label": "Kept", "data": [row["events"] - row["expired"] for row in rows]},
            {"label": "Past the cutoff", "data": [row["expired"] for row in rows], "bad": list(range(len(rows)))},
        ],
    }


def database_size(rows: list[Row]) -> Row:
    """The size of the database in megabytes or gigabytes, and its forecast."""
    most = max((row["bytes"] or row["forecast"] or 0 for row in rows), default=0)
    unit, length = ("GB", 1024**3) if most >= 1024**3 else ("MB", 1024**2)

    def points(column: str) -> list[Row]:
        return [{"x": str(row["day"]), "y": row[column] / length} for row in rows if row[column] is not None]

    return {
        "label": "Size of the database; the numbers are in the table below",
        "time": True,
        "unit": unit,
        "series": [
            {"label": "Size", "line": "solid", "data": points("bytes")},
            {"label": "Forecast", "line": "dashed", "data": points("forecast")},
        ],
    }


def deleted_rows(rows: list[Row]) -> Row:
    """What retention deleted in each week."""
    return {
        "label": "Rows deleted per week; the numbers are in the table below",
        "labels": [short(row["monday"]) for row in rows],
        "links": [job_link(ARCHIVE, row["run_ids"][-1]) if row["run_ids"] else None for row in rows],
        "series": [{"label": "Rows deleted", "data": [row["rows_deleted"] for row in rows]}],
    }
