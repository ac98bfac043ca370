"""The jobs on an analytics_event that is partitioned by timestamp: the same tests as on an ordinary one."""

import pytest

import embedded
from aggregation_steps import aggregate
from conftest import Database
from partition_steps import add_partition, partitioned_template
from retention_steps import CUTOFF, DAY, HOUR, Retention, connect, listed
from test_purge_law import TestSeal, counted  # noqa: F401

BOUNDS = ("MINVALUE", "2024-01-15T17:00Z", "2024-02-29T00:30Z", "2024-02-29T02:00Z", "2024-03-01T00:00Z", "MAXVALUE")
"""Partitions that days, and the batches of a day, straddle."""


@pytest.fixture(scope="module")
def template(server: embedded.Server, template: str) -> str:
    """A database whose analytics_event is partitioned."""
    return partitioned_template(server, template, "template_partitioned", BOUNDS)


@pytest.mark.parametrize("partitions", [13, 100])
def test_a_batch_looks_into_the_partitions_of_its_time_alone(
    database: Database, run: Retention, partitions: int
) -> None:
    start = CUTOFF - partitions * DAY
    database.connection.execute("DROP TABLE event_0, event_1, event_2, event_3")
    for n in range(partitions):
        add_partition(database, f"day_{n}", str(start + n * DAY), str(start + (n + 1) * DAY))
    database.connection.execute(
        """
        INSERT INTO analytics_event (id, website_id, pathname, visitor_id, session_id, timestamp, deleted_at)
        SELECT md5(i::text), 'site', '/', 'v', 's', %s + i * INTERVAL '10 minutes', now()
        FROM generate_series(0, %s) AS i
        """,
        [start, partitions * 144 - 1],
    )
    database.connection.execute("ANALYZE")
    run.seal(batch_size=100)
    [task, *_] = run.plan()
    # In a session of its own, for numbers of an earlier transaction may be among those of this one.
    with connect(database) as connection, connection.transaction():
        steps = Retention(connection)
        assert steps.delete([task | {"steps": task["steps"][:1]}]) == [100]
        rows = connection.execute(
            "SELECT * FROM pg_stat_xact_user_tables WHERE relname LIKE 'day_%%' AND n_tup_del + idx_tup_fetch + seq_tup_read > 0"
        ).fetchall()
    assert [row["relname"] for row in rows] == ["day_0"]


def test_an_event_whose_id_an_event_on_the_list_has_is_not_deleted_for_it(database: Database, run: Retention) -> None:
    """Of a partitioned table, PostgreSQL keeps an id unique together with its timestamp only."""
    for n in range(3):
        database.event(CUTOFF - DAY + 2 * n * HOUR, id=str(n))
    aggregate(database, "2024-02-29")
    run.seal()
    database.event(CUTOFF - DAY + 3 * HOUR, id="1")
    assert run.delete(run.plan()) == [1, 1]
    assert "1 stay on the list: another event has the id" in run.log
    assert database.value("SELECT count(*) FROM analytics_event WHERE id = '1'") == 2
    assert listed(database) == {"event": 1}
