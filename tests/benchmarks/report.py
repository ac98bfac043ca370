"""Writes what was measured below docs/: a JSON file and a plot per section, and the part of benchmarks.md between marks.

``python -m benchmarks.report`` writes that part anew from the JSON files.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # no display
from matplotlib import pyplot

from benchmarks.bench import ROUNDS, SERVER_OPTIONS
from conftest import ROOT, SQL

PAGE = ROOT / "docs" / "benchmarks.md"
FOLDER = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- `make bench` writes what follows. -->", "<!-- That was it. -->"
OURS = {path.stem for path in SQL.rglob("*.sql")}
# A middle grey, and colours that can be told from white and from black.
INK, COLOR, OTHER = "#7d8590", "#2f81f7", "#9aa4b0"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "benchmarks",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
} | {f"{part}.color": INK for part in ("text", "xtick", "ytick")}
STYLE |= {"axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlesize": 9}


def write(report: dict[str, Any]) -> None:
    """Write the files of a section, and the page."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{report['section']}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    plot(report, path.with_suffix(".svg"))
    PAGE.write_text(page())


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a section: a bar per variant with its minimum and maximum, and its curves."""
    comparisons, curves = report.get("comparisons", []), report.get("curves", [])
    heights = [0.7 + 0.22 * len(each["samples"]) for each in comparisons] + [3.0] * len(curves)
    if not heights:
        path.unlink(missing_ok=True)
        return
    with mpl.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            len(heights),
            squeeze=False,
            figsize=(8, sum(heights)),
            height_ratios=heights,
            layout="constrained",
        )
        for axes, each in zip(grid[:, 0], [*comparisons, *curves], strict=True):
            (bars if "samples" in each else lines)(axes, each)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def bars(axes: Any, comparison: dict[str, Any]) -> None:
    """Draw the variants of a comparison."""
    names, values = list(comparison["samples"]), list(comparison["samples"].values())
    medians = list(map(statistics.median, values))
    errors = [
        [median - min(each) for median, each in zip(medians, values, strict=True)],
        [max(each) - median for median, each in zip(medians, values, strict=True)],
    ]
    colors = [COLOR if name.split()[0].strip(",:") in OURS else OTHER for name in names]
    axes.barh(names, medians, xerr=errors, color=colors, height=0.7, ecolor=INK)
    for place, (median, each) in enumerate(zip(medians, values, strict=True)):
        axes.annotate(f" {median:,.1f}", (max(each), place), va="center")
    axes.set_title(f"{comparison['title']} ({comparison['unit']})", loc="left")
    axes.invert_yaxis()
    axes.margins(x=0.12)


def lines(axes: Any, curve: dict[str, Any]) -> None:
    """Draw what grew with time."""
    for (name, values), style in zip(curve["lines"].items(), ("-", "-", "--", ":"), strict=False):
        [line] = axes.plot(curve["numbers"], values, style, label=name)
        axes.annotate(f" {name}", (curve["numbers"][-1], values[-1]), color=line.get_color(), va="center")
    axes.set_title(curve["title"], loc="left")
    axes.set_xlabel(curve["x"])
    axes.set_ylabel(curve["y"])
    axes.set_ylim(bottom=0)


def page() -> str:
    """What benchmarks.md should say: what stands before and after the marks, and the results between them."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    reports = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    reports.sort(key=lambda report: report["place"])
    parts = [BEGIN, *targets(reports), *(line for report in reports for line in section(report)), END]
    return before + "\n".join(parts) + after


def targets(reports: list[dict[str, Any]]) -> list[str]:
    """All ratios that have a target, as a table."""
    rows = [
        [limit["what"], f"{limit['value']:,.2f}", limit["target"], "" if limit["met"] else "**missed**", link(report)]
        for report in reports
        for limit in report.get("limits", [])
    ]
    return [
        "",
        *table(["ratio", "measured", "target", "", "section"], rows),
        *(
            "",
            f"PostgreSQL ran with `{SERVER_OPTIONS}`. In turns, medians of {ROUNDS} rounds unless it says otherwise.",
        ),
    ]


def link(report: dict[str, Any]) -> str:
    """Where a section is."""
    return f"[{report['section']}](#{report['section']})"


def section(report: dict[str, Any]) -> list[str]:
    """A section: what it measured, and its tables."""
    lines = ["", f"## {report['section']}", "", report["what"], "", report["where"]]
    if report.get("error"):
        lines += ["", f"**It failed:** {report['error']}"]
    if report.get("comparisons") or report.get("curves"):
        lines += ["", f"![{report['section']}](benchmarks/{report['section']}.svg)"]
    for each in report.get("tables", []):
        lines += ["", f"{each['title']}:", "", *table(each["columns"], each["rows"])]
    if report.get("notes"):
        lines += ["", *(f"- {note}" for note in report["notes"])]
    return lines


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table; its first column is text, the others numbers."""
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]]


if __name__ == "__main__":
    PAGE.write_text(page())
