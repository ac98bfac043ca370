"""Dropping a partition beside deleting its rows."""

from typing import Any

from benchmarks.bench import Bench, day, execute, seconds
from conftest import LOGIN, Database
from partition_steps import add_partition, detach, drop, find, partition
from retention_steps import Retention

ROUNDS = 3
DAYS_KEPT = 10


def partitions(bench: Bench) -> None:
    """Getting rid of all listed events of a day: in batches of 1,000 on one connection, with the VACUUM of the
    table after it, beside the three statements that drop their partition. Neither has the listing; each batch looks for its
    events, and the partition is read twice, to count it and to compare it with the list; 3 rounds, of two partitions
    each, one for each way."""
    database, events = bench.database("partitions"), bench.events // 20
    bounds = [str(day(DAYS_KEPT + 2 * ROUNDS - n)) for n in range(2 * ROUNDS + 1)]
    tables = Database(database.server.dsn(database.name))
    partition(tables, *bounds, owner=LOGIN)
    add_partition(tables, "kept", bounds[-1], "MAXVALUE")
    tables.close_connections()
    with database.bulk():
        database.load(2 * ROUNDS * events, days_ago=DAYS_KEPT + 2 * ROUNDS, days=2 * ROUNDS)
        database.load(events, days_ago=DAYS_KEPT, days=DAYS_KEPT)
    database.aggregate(DAYS_KEPT + 2 * ROUNDS)
    with database.owner() as owner, database.connect(work_mem="64MB") as job:
        execute(owner, f"ALTER TABLE kept OWNER TO {LOGIN}")
        execute(owner, f"GRANT CREATE ON SCHEMA public TO {LOGIN}")
        execute(owner, "VACUUM (ANALYZE)")
        run = Retention(job, retention_days=DAYS_KEPT)
        run.seal()
        samples: dict[str, list[float]] = {"batches and VACUUM": [], "drop": []}
        for _ in range(ROUNDS):
            first, second, *_ = find(run)

            def batches(first: dict[str, Any] = first) -> None:
                listed = f"""
                    SELECT number FROM analytics_purge_batch, analytics_event_partitions() AS part
                    WHERE part.partition::text = '{first["label"]}'
                    AND first_at >= part.starts_at AND first_at < part.ends_at
                    ORDER BY number
                """
                steps = [{"number": row["number"], "done": 0, "total": 0} for row in execute(owner, listed)]
                run.delete([{"retention_days": DAYS_KEPT, "retried": False, "steps": steps}])
                execute(owner, f"VACUUM {first['label']}")

            samples["batches and VACUUM"].append(seconds(batches))
            samples["drop"].append(seconds(whole, run, second))
            whole(run, first)  # which is empty now, and would be found again
    medians = bench.compare("A day's events", samples, "drop", rows=events)
    bench.limit("batches and VACUUM / drop", medians["batches and VACUUM"] / medians["drop"], at_least=20)


def whole(run: Retention, task: dict[str, Any]) -> None:
    """Drop a partition."""
    assert detach(run, task)
    drop(run, task)
    assert "Dropped partition" in run.log
