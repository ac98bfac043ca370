"""Measures the jobs' SQL on an own PostgreSQL, beside what people use instead: ``make bench``.

``ONLY=aggregate,sessions`` runs some sections, ``SCALE=medium`` all on more events. What was measured goes to docs/.
"""

import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import embedded
from benchmarks import report
from benchmarks.airflow import airflow
from benchmarks.archive import archive
from benchmarks.backlog import backlog
from benchmarks.bench import SCALES, SERVER_OPTIONS, Bench
from benchmarks.days import aggregate, catch_up, due
from benchmarks.ingest import ingest
from benchmarks.memory import memory
from benchmarks.page import page
from benchmarks.partitions import partitions
from benchmarks.retention import retention
from benchmarks.sessions import cleanup, sessions
from benchmarks.sketch import sketch
from benchmarks.statements import statements
from benchmarks.umami import umami
from benchmarks.year import history, storage

BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function
    for function in (
        *(aggregate, catch_up, due, retention, partitions, archive, backlog, sessions, cleanup, ingest),
        *(history, storage, sketch, memory, statements, airflow, page, umami),
    )
}


def main(names: list[str], scale: str) -> int:
    """Run the named benchmarks, all without names; return 1 if one failed or missed a target."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"There is no benchmark {' '.join(unknown)}: name some of {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    if scale not in SCALES:
        print(f"There is no SCALE {scale}: write one of {', '.join(SCALES)}.", file=sys.stderr)
        return 2
    for name in [name for name in os.environ if name.startswith(("AIRFLOW", "ANALYTICS_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="web-analytics-bench-") as folder:
        os.environ |= {"AIRFLOW_HOME": f"{folder}/airflow", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        server = embedded.start(Path(folder), SERVER_OPTIONS)
        try:
            bench = Bench(Path(folder), server, scale)
            bench.install()
            wrong = [sentence for name in names or BENCHMARKS for sentence in measure(bench, name)]
        finally:
            server.stop("immediate")
            shutil.rmtree(server.home, ignore_errors=True)
    print(f"\nIt took {time.monotonic() - began:.0f} s. The figures are in {report.PAGE}.")
    for sentence in wrong:
        print(f"  {sentence}")
    return 1 if wrong else 0


def measure(bench: Bench, name: str) -> list[str]:
    """Run a benchmark, saying what it measures; return what went wrong. Others are run even if it fails."""
    began = time.monotonic()
    what = " ".join((BENCHMARKS[name].__doc__ or "").split())
    bench.say(f"\n{textwrap.fill(f'{name}: {what}', 120)}")
    bench.report = {
        "section": name,
        "place": list(BENCHMARKS).index(name),
        "what": what,
        "where": (
            f"SCALE={bench.scale}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before it,"
            f" PostgreSQL {bench.version()}."
        ),
    }
    wrong = attempt(name, lambda: BENCHMARKS[name](bench))
    if wrong:
        bench.report["error"] = wrong[0]
    bench.drop(*bench.databases)
    bench.databases.clear()
    bench.report["seconds"] = round(time.monotonic() - began)
    bench.say(f"\n    ({name} took {bench.report['seconds']} s)")
    wrong += attempt(f"the report of {name}", lambda: report.write(bench.report))
    missed = [limit for limit in bench.report.get("limits", []) if not limit["met"]]
    return wrong + [
        f"{name} missed a target: {each['what']}: {each['value']:,.2f}, {each['target']}" for each in missed
    ]


def attempt(what: str, work: Callable[[], None]) -> list[str]:
    """Do something, without which the rest can go on; return a sentence if it failed."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is, what the others measure is not lost
        traceback.print_exc()
        return [f"{what} failed: {type(error).__name__}: {error}"]
    return []


if __name__ == "__main__":
    sys.exit(main(os.environ.get("ONLY", "").replace(",", " ").split(), os.environ.get("SCALE") or "small"))
