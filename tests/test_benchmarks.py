"""What `make bench` has written below docs/ belongs together."""

import json

from benchmarks import report


def test_the_page_has_the_figures_of_the_json_files_and_no_others() -> None:
    assert report.page() == report.PAGE.read_text(), "run: PYTHONPATH=dags:dev:tests python -m benchmarks.report"


def test_every_section_has_its_plot() -> None:
    for path in report.FOLDER.glob("*.json"):
        section = json.loads(path.read_text())
        drawn = bool(section.get("comparisons") or section.get("curves"))
        assert path.with_suffix(".svg").exists() == drawn, path.name
