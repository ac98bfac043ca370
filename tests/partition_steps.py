"""An analytics_event that is partitioned by timestamp, as an application that began so would have it."""

from conftest import Database

PARTITIONED = """
ALTER TABLE analytics_event RENAME TO former;
CREATE TABLE public.analytics_event (LIKE former INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (id, timestamp))
PARTITION BY RANGE (timestamp);
DROP TABLE former;
CREATE INDEX ON public.analytics_event (website_id, timestamp) WHERE deleted_at IS NULL;
CREATE INDEX ON public.analytics_event (session_id) WHERE deleted_at IS NULL;
"""


def partition(database: Database, *bounds: str) -> None:
    """Make analytics_event a partitioned table, with partitions that begin and end at `bounds`, and install on it."""
    from web_analytics import schema

    database.connection.execute(PARTITIONED.encode())
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        add_partition(database, f"event_{number}", start, end)
    schema.install(database.dsn, "analytics,public")


def add_partition(database: Database, name: str, start: str, end: str) -> None:
    """Add one partition; MINVALUE and MAXVALUE are bounds as well."""
    limits = ["MINVALUE" if start == "MINVALUE" else f"'{start}'", "MAXVALUE" if end == "MAXVALUE" else f"'{end}'"]
    database.connection.execute(
        f"CREATE TABLE public.{name} PARTITION OF analytics_event FOR VALUES FROM ({limits[0]}) TO ({limits[1]})".encode()
    )
