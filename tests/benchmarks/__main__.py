"""Measures the jobs' SQL on an own PostgreSQL: ``make bench``, or one part with ``make bench ONLY=retention``."""

import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import embedded
from benchmarks.backlog import backlog
from benchmarks.bench import ROUNDS, SERVER_OPTIONS, Bench
from benchmarks.days import aggregate, due
from benchmarks.ingest import ingest
from benchmarks.memory import memory
from benchmarks.partitions import partitions
from benchmarks.retention import retention
from benchmarks.sessions import sessions
from benchmarks.sketch import sketch

BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function
    for function in (due, aggregate, retention, partitions, backlog, sessions, ingest, sketch, memory)
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, all without names; return 1 if a limit was exceeded."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"There is no benchmark {' '.join(unknown)}: name one of {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    for name in [name for name in os.environ if name.startswith(("AIRFLOW", "ANALYTICS_"))]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="web-analytics-bench-") as folder:
        os.environ |= {"AIRFLOW_HOME": f"{folder}/airflow", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        server = embedded.start(Path(folder), SERVER_OPTIONS)
        try:
            bench = Bench(Path(folder), server)
            bench.install()
            measure(bench, names or list(BENCHMARKS))
        finally:
            server.stop("immediate")
            shutil.rmtree(server.home, ignore_errors=True)
    return 1 if bench.exceeded else 0


def measure(bench: Bench, names: list[str]) -> None:
    """Run benchmarks, saying what each measures."""
    bench.say(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}. PostgreSQL {bench.version()} with {SERVER_OPTIONS}"
    )
    bench.say(
        f"What is compared is measured in turns; figures are medians of {ROUNDS} rounds unless they say otherwise."
    )
    for name in names:
        began = time.monotonic()
        bench.say()
        for line in textwrap.wrap(f"{name}: {' '.join((BENCHMARKS[name].__doc__ or '').split())}", 120):
            bench.say(line)
        BENCHMARKS[name](bench)
        bench.say(f"\n    ({name} took {time.monotonic() - began:.0f} s)")
    for line in bench.exceeded:
        bench.say(f"Over its limit: {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
