"""Whether the hot statements have the same plans here as in the tests."""

from typing import Any

import plans
from aggregation_steps import AGGREGATE, DUE
from benchmarks.bench import LARGE_DAY, YEAR, Bench, day
from retention_steps import DELETE_EVENTS, POLICY, SEAL, Retention


def statements(bench: Bench) -> None:
    """The plans of the hot statements on all events of the scale, by the rules that tests/test_plans.py has for them at a
    small volume: days and batches are read through indexes, groups and lists are hashed, no other row is looked at."""
    database = bench.database("statements", bench.traffic().name)
    wrong: list[str] = []
    # Plans are shown to a superuser.
    with database.connect("postgres") as owner:
        owner.execute("UPDATE analytics_session SET ended_at = NULL WHERE started_at >= %s", [day(LARGE_DAY + 2)])
        owner.execute("VACUUM (ANALYZE) analytics_session")
        retention = Retention(owner, retention_days=YEAR - 10)
        idle = {"idle_minutes": 30, "batch_size": 1000, "done": 0}
        large: dict[str, Any] = {"days": [day(LARGE_DAY)[:10]], "label": "a day", "recount": True}
        for file, parameters in ((AGGREGATE, large), (DUE, {}), (plans.CLOSE, idle), (plans.RETURNED, idle)):
            wrong += plans.run(owner, file, **parameters)[0]
        for step in retention.find()["steps"]:
            wrong += plans.run(owner, SEAL, **POLICY | {"retention_days": YEAR - 10} | step)[0]
        wrong += plans.run(owner, DELETE_EVENTS, **Retention.batches(retention.plan())[0])[0]
    for sentence in wrong:
        bench.note(sentence)
    bench.limit("hot statements with another plan than in the tests", len(wrong), at_most=0)
