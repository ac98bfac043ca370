"""What the parts of the page show: each function asks the database and returns what the template of its name needs.

Functions whose names end with `_table` return the columns and rows of a file, and the problem if there is one.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

from airflow.models.dag import DagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from web_analytics_page import charts
from web_analytics_page.database import Reader, Result
from web_analytics_page.formats import long, plural, span
from web_analytics_page.view import DAY, JOBS, View

AGGREGATE, CLEANUP, ARCHIVE = JOBS
JOB_OF_ALERT = {
    "aggregation_behind": AGGREGATE, "rows_kept": AGGREGATE, "cleanup_missing": CLEANUP, "retention_backlog": ARCHIVE,
    "unsealed_days": ARCHIVE, "late_events": ARCHIVE, "database_size": ARCHIVE,
}  # fmt: skip
KNOWN = ("known_sessions", "bounced_sessions", "session_seconds")
MEASURES = ("pageviews", "custom_events", "visitors", "sessions", *KNOWN, "late_events", "days")
SKETCH_ERROR = 0.04  # of a quotient of two estimates with a standard error of 1.4 %, nearly always

Row = dict[str, Any]
Table = tuple[list[str], list[Row], str]


def status(reader: Reader, _: View) -> Row:
    """The open alerts, and how the jobs are doing."""
    alerts, summaries, runs = (reader.ask(query) for query in ("alerts", "jobs", "runs"))
    dags = _dags()
    jobs = [
        {
            "id": job,
            "what": JOBS.get(job, ""),
            "runs": (own := [run for run in runs.rows if run["job"] == job]),
            "summary": next((row for row in summaries.rows if row["job"] == job), None),
            "dag": dags.get(job),
            "chart": charts.durations(job, own),
        }
        for job in dict.fromkeys([*JOBS, *(run["job"] for run in runs.rows)])
    ]
    for alert in alerts.rows:
        alert["job"] = JOB_OF_ALERT.get(alert["condition"]) or (alert["subject"] if alert["subject"] in JOBS else None)
    ended = {job["id"]: [run["outcome"] for run in job["runs"] if run["outcome"] != "running"] for job in jobs}
    wrong = list(dict.fromkeys(result.problem for result in (alerts, summaries, runs) if result.problem))
    wrong += [plural(len(alerts.rows), "open alert")] if alerts.rows else []
    wrong += [f"the last run of {job} failed" for job, outcomes in ended.items() if outcomes[-1:] == ["failed"]]
    unknown = [job["id"] for job in jobs if not job["runs"]]
    paused = [job["id"] for job in jobs if job["dag"] and job["dag"]["is_paused"]]
    silent = {"no run recorded yet": unknown, "paused": paused}
    return {
        "alerts": alerts.rows,
        "jobs": jobs,
        "now": datetime.now(UTC),
        "wrong": "; ".join(wrong),
        "silent": [
            f"{what}: {'every job' if len(found) == len(jobs) else ', '.join(found)}"
            for what, found in silent.items()
            if found
        ],
    }


def traffic(reader: Reader, view: View) -> Row:
    """The totals of the range beside those of the range before, its days, and its websites."""
    result, live_problem = _live(reader, "traffic")
    websites = _websites(result.rows)
    shown = [row for row in result.rows if row["date"] and row["period"] != "before"]
    content: Row = {
        "problem": result.problem,
        "live_problem": live_problem,
        "names": _names(reader),
        "open_sessions": reader.ask("open_sessions"),
        "has_traffic": bool(shown),
        "websites": websites,
    }
    if not shown:
        return content
    last_day = min(view.last, shown[0]["last_day"])
    before_day = view.first - view.length * DAY
    known = [website for website in websites if website["first_day"] and website["first_day"] <= before_day]
    compared = content["compared"] = _compared(view, last_day, known, websites)
    content["late"] = [website for website in websites if website["range"]["late_events"]]
    first_day = min([row["date"] for row in shown] + [site["first_day"] for site in websites if site["first_day"]])
    content["days"] = _days(view, shown, first_day)
    content["chart"] = charts.traffic(content["days"], last_day, view)

    total = content["total"] = _sum(website["range"] for website in websites)
    now, before = (_sum(website[period] for website in known) for period in ("over", "before"))
    may_compare = bool(known) and compared["is_fair"] and reader.parameters["live"] and not live_problem
    content["may_compare"] = may_compare
    for website in websites:
        fair = may_compare and website in known
        website["change"] = _change(website["over"]["pageviews"], website["before"]["pageviews"]) if fair else ""
    if view.website:
        people = reader.ask("visitors", last_day=last_day, live=reader.parameters["live"] and not live_problem)
        visitors = {row["period"]: row["visitors"] for row in people.rows}
        content["visitors"] = visitors.get("all")
        content["visitors_problem"] = people.problem
        content["visitors_change"] = _change(visitors.get("range"), visitors.get("before"), SKETCH_ERROR)
    else:
        over = [row for row in shown if row["period"] == "range"] or shown
        content["visitors"] = sum(row["visitors"] for row in over) / len(over)
        content["visitors_problem"] = ""
        content["visitors_change"] = _change(now["visitors"], before["visitors"])
    # What is known of some sessions only is another thing than the same of all.
    known_of_all = all(period["known_sessions"] == period["sessions"] > 0 for period in (now, before))
    points = 100 * (now["bounce_rate"] - before["bounce_rate"]) if known_of_all else None
    content["change"] = {
        **{measure: _change(now[measure], before[measure]) for measure in ("pageviews", "sessions", "custom_events")},
        "bounce_rate": "" if points is None else f"{_signed(points, 1)} points",
        "duration": _change(now["duration"], before["duration"]) if known_of_all else "",
    }
    content["unknown_sessions"] = total["sessions"] - total["known_sessions"]
    return content


def items(reader: Reader, view: View) -> Row:
    """The items of the chosen tab."""
    if not view.website:
        return {"rows": None}
    result, live_problem = _live(reader, "items")
    rows = [row for row in result.rows if row["item"] is not None]
    return {
        "rows": rows,
        "problem": result.problem,
        "live_problem": live_problem,
        "unknown_days": result.rows[0]["unknown_days"] if result.rows else 0,
        "hidden": max((row["hidden"] for row in rows), default=0),
        "most": max((row["count"] for row in rows), default=1) or 1,
    }


def retention(reader: Reader, _: View) -> Row:
    """What the next run of the retention would delete, and whether it would stop before."""
    result = reader.ask("expired")
    websites = sorted(result.rows[:-1], key=lambda row: -row["events"] - row["sessions"])
    total = result.rows[-1] if result.rows else None
    return {
        "problem": result.problem,
        "websites": websites,
        "total": total,
        "dag": _dags().get(ARCHIVE),
        "names": _names(reader),
    }


def storage(reader: Reader, _: View) -> Row:
    """The raw events, the size of the database, and what was deleted."""
    raw, anomalies = reader.ask("raw_events"), reader.ask("anomalies")
    size, deleted = reader.ask("database_size"), reader.ask("deleted_rows")
    sizes = [row for row in size.rows if row["bytes"] is not None]
    weeks = [row for row in deleted.rows if row["run_ids"]]
    return {
        "raw": raw,
        "events": sum(row["events"] for row in raw.rows),
        "expired": sum(row["expired"] for row in raw.rows),
        "raw_chart": charts.raw_events(raw.rows),
        "anomalies": anomalies,
        "names": _names(reader),
        "size": size,
        "sizes": sizes,
        "forecast": [row for row in size.rows if row["forecast"] is not None],
        "size_chart": charts.database_size(size.rows),
        "deleted": deleted,
        "last_week": weeks[-1] if weeks else None,
        "deleted_chart": charts.deleted_rows(deleted.rows),
    }


def days_table(reader: Reader, view: View) -> Table:
    """The traffic of each day."""
    result = reader.ask("traffic")
    columns = ["date", "pageviews", "visitors", "sessions", *KNOWN, "custom_events", "late_events"]
    return columns, [row for row in result.rows if row["date"] and row["date"] >= view.first], result.problem


def websites_table(reader: Reader, _: View) -> Table:
    """The traffic of each website in the range. Visitors are those of single days, added up."""
    result = reader.ask("traffic")
    names = _names(reader)
    rows = [
        website["range"] | {"website_id": website["id"], "name": names.get(website["id"], "")}
        | {"visitor_days": website["range"]["visitors"]}
        for website in _websites(result.rows)
    ]  # fmt: skip
    columns = ["website_id", "name", "pageviews", "visitor_days", "sessions", *KNOWN, "custom_events"]
    return [*columns, "late_events"], rows, result.problem


def items_table(reader: Reader, _: View) -> Table:
    """The items of the chosen tab, all of them."""
    result = reader.ask("items")
    rows = [row for row in result.rows if row["item"] is not None]
    return ["item", "count", "visitor_days", "hidden"], rows, result.problem


def _live(reader: Reader, query: str) -> tuple[Result, str]:
    """The result of a query; if it fails with the days that are counted now, that without, and why."""
    result = reader.ask(query)
    if result.problem and reader.parameters["live"]:
        return reader.ask(query, live=False), result.problem
    return result, ""


def _names(reader: Reader) -> dict[str, str]:
    """What websites are called that have a name; the others are called by their ids."""
    return {row["website_id"]: row["name"] for row in reader.ask("names").rows}


def _dags() -> dict[str, Row]:
    """Airflow's word on the jobs, as far as they are in Airflow."""
    columns = DagModel.dag_id, DagModel.is_paused, DagModel.next_dagrun_create_after
    with create_session() as session:
        found = session.execute(select(*columns).where(DagModel.dag_id.in_(JOBS), ~DagModel.is_stale))
        return {job: {"is_paused": paused, "next": moment} for job, paused, moment in found}


def _sum(rows: Iterable[Row]) -> Row:
    """The sums of all measures, and the rates of the sessions of which they are known."""
    found = list(rows)
    total: Row = {measure: sum(row[measure] for row in found) for measure in MEASURES}
    known = total["known_sessions"]
    total["bounce_rate"] = total["bounced_sessions"] / known if known else None
    total["duration"] = total["session_seconds"] / known if known else None
    return total


def _websites(rows: list[Row]) -> list[Row]:
    """Each website's sums: of the range, of its days that are over, and of their counterparts in the range before."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["website_id"] is not None:
            found.setdefault(row["website_id"], []).append(row)
    websites = [
        {
            "id": website,
            "first_day": own[0]["first_day"],
            "range": _sum(row for row in own if row["period"] != "before"),
            "over": _sum(row for row in own if row["period"] == "range"),
            "before": _sum(row for row in own if row["period"] == "before"),
        }
        for website, own in found.items()
    ]
    return sorted(websites, key=lambda website: (-website["range"]["pageviews"], website["id"]))


def _compared(view: View, last_day: date, known: list[Row], websites: list[Row]) -> Row:
    """Whether the range can be compared with the one before, and a sentence that says with what, or why not.

    A day that is not over would look like a loss, and so would one before the first day that is known look like a gain:
    only days that are over are compared, with as many days before, of the websites that were known all that time.
    """
    if last_day < view.first:
        return {"is_fair": False, "sentence": "A day that is not over is not compared with another one."}
    before = view.first - view.length * DAY, last_day - view.length * DAY
    if not known:
        first_days = [website["first_day"] for website in websites if website["first_day"]]
        since = f"before {long(min(first_days))}" if first_days else "of days before"
        return {
            "is_fair": False,
            "sentence": f"Not compared with {span(*before)}: nothing, or only a part, is known {since}.",
        }
    sentence = f"Changes: {span(view.first, last_day)} against {span(*before)}"
    if len(known) < len(websites):
        sentence += f", of the {len(known)} of {len(websites)} websites that are known since then"
    if last_day < view.last:
        sentence += "; what is not over is not compared"
    return {"is_fair": True, "sentence": f"{sentence}."}


def _change(now: float | None, before: float | None, error: float = 0) -> str:
    """How much more or less than before in percent: nothing where there was nothing, or what may be an error."""
    if now is None or not before:
        return ""
    part = now / before - 1
    return "about the same" if abs(part) < error else f"{_signed(100 * part)} %"


def _signed(number: float, digits: int = 0) -> str:
    """A number with its sign."""
    text = f"{abs(number):,.{digits}f}"
    return f"±{text}" if not float(text.replace(",", "")) else f"{'+' if number > 0 else '−'}{text}"  # noqa: RUF001


def _days(view: View, rows: list[Row], first_day: date) -> list[Row]:
    """All days of the range, also those without traffic; None where nothing is known yet."""
    found = {row["date"]: row for row in rows}
    measures = ("pageviews", "visitors", "sessions")
    calendar = (view.first + number * DAY for number in range(view.length))
    return [
        found.get(day) or {"date": day, "is_live": False} | dict.fromkeys(measures, 0 if day > first_day else None)
        for day in calendar
    ]
