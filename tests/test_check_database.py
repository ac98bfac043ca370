"""check_database.sql: says in a clear sentence what the database lacks, and how to mend it."""

import re

import pytest

from conftest import LOGIN, Database
from web_analytics import schema

FILE = "check_database.sql"
OTHER_VERSION = 'The functions in the database are of another version of the jobs: run "make schema".'

INDEXES = {
    "analytics_event_timestamp_id_idx": r'Table analytics_event has no valid index on \("timestamp", id\): .*make schema',
    "analytics_event_website_id_timestamp_idx": (
        r'Table analytics_event has no valid index on \(website_id, "timestamp"\) where \(deleted_at IS NULL\): .*make schema'
    ),
    "analytics_event_deleted_idx": (
        r'Table analytics_event has no valid index on \(website_id, "timestamp"\) where \(deleted_at IS NOT NULL\): .*make'
    ),
    "analytics_session_started_at_id_idx": r"Table analytics_session has no valid index on \(started_at, id\): .*make schema",
    "analytics_session_open_idx": (
        r"Table analytics_session has no valid index on \(started_at\) where .*ended_at IS NULL.*: .*make schema"
    ),
}
# What the other SQL files use, column by column. Of tables that are ours alone, and that the version is about, one will do.
USED = {
    "analytics_event": "id website_id event_type pathname referrer_source visitor_id session_id timestamp deleted_at",
    "analytics_session": (
        "id website_id session_id duration_seconds started_at ended_at last_activity_at updated_at deleted_at"
    ),
    "analytics_daily_stats": (
        "website_id date total_pageviews total_custom_events unique_visitors unique_sessions top_pages top_referrers "
        "total_events deleted_events events_hash visitor_sketch timezone starts_at ends_at aggregated_at raw_purged_at "
        "purge_snapshot"
    ),
    "analytics_website_policy": "website_id timezone retention_days legal_hold",
    "analytics_purge_proof": "website_id date starts_at ends_at total_events events_hash snapshot",
    "analytics_job_run": "run_id",
    "analytics_alert": "condition",
}
COLUMNS = [(table, column) for table, columns in USED.items() for column in columns.split()]


def problems(database: Database, search_path: str = "analytics,public") -> list[str]:
    """What the file says to the jobs' role."""
    with database.connect(LOGIN, options=f"-c search_path={search_path}") as connection:
        return [row["problem"] for row in database.run(FILE, connection, version=schema.version())]


def only_problem(database: Database, *change: str) -> str:
    """The one sentence that is said after a change, nothing having been said before it."""
    assert problems(database) == []
    for statement in change:
        database.connection.execute(statement.encode())
    found = problems(database)
    assert len(found) == 1, found
    assert found[0].endswith(".")
    return found[0]


def test_nothing_is_said_when_all_is_well(database: Database) -> None:
    assert problems(database) == []


@pytest.mark.parametrize(("table", "action"), [
    ("analytics_event", "the application creates it"),
    ("analytics_session", "the application creates it"),
    ("analytics_daily_stats", 'run "make schema"'),
    ("analytics_website_policy", 'run "make schema"'),
    ("analytics_purge_proof", 'run "make schema"'),
    ("analytics_job_run", 'run "make schema"'),
    ("analytics_alert", 'run "make schema"'),
])  # fmt: skip
def test_a_missing_table(database: Database, table: str, action: str) -> None:
    [problem] = [problem for problem in problems_after(database, f"DROP TABLE {table} CASCADE") if table in problem]
    assert problem.startswith(f'Table {table} is missing from search_path "analytics,public": ')
    assert action in problem


def test_tables_outside_search_path_are_missing(database: Database) -> None:
    found = problems(database, "public")
    for table in USED.keys() - {"analytics_event", "analytics_session"}:
        sentence = (
            f'Table {table} is missing from search_path "public": run "make schema" and put its schema (analytics) '
        )
        assert [problem for problem in found if problem.startswith(sentence)]
    assert all(" is missing from search_path " in problem for problem in found)


def test_a_partitioned_table(database: Database) -> None:
    found = problems_after(
        database,
        "ALTER TABLE analytics_session RENAME TO former;"
        "CREATE TABLE analytics_session (LIKE former) PARTITION BY RANGE (started_at);"
        "GRANT ALL ON analytics_session TO analytics_jobs",
    )
    assert "Table analytics_session is partitioned, which the jobs do not know how to delete from." in found


def problems_after(database: Database, change: str) -> list[str]:
    """What the file says to the jobs' role after a change, which is undone."""
    with database.connection.transaction(force_rollback=True):
        database.connection.execute(f"{change}; SET LOCAL ROLE {LOGIN}".encode())
        return [row["problem"] for row in database.run(FILE, database.connection, version=schema.version())]


def is_consequence(problem: str) -> bool:
    """Whether a sentence is about an index or a view that a column takes with it."""
    return "has no valid index on" in problem or problem.startswith("Table analytics_proven_days is missing")


def test_each_missing_column(database: Database) -> None:
    for table, column in COLUMNS:
        found = problems_after(database, f"ALTER TABLE {table} DROP COLUMN {column} CASCADE")
        [problem] = (problem for problem in found if not is_consequence(problem))
        assert problem.startswith(f"Table {table} is not the one the jobs know (missing column(s): {column})")


def test_each_column_of_another_type(database: Database) -> None:
    query = "SELECT FORMAT_TYPE(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s"
    for table, column in COLUMNS:
        # Made anew rather than altered, for the indexes would not all bear the other type.
        change = f"DROP COLUMN {column} CASCADE, ADD COLUMN {column} varchar(9)"
        found = problems_after(database, f"ALTER TABLE {table} {change}; GRANT ALL ON {table} TO analytics_jobs")
        sentence = f"Column {column} of table {table} has type character varying(9) instead of "
        [problem] = (problem for problem in found if not is_consequence(problem))
        assert problem.startswith(f"{sentence}{database.value(query, table, column)}: ")


def test_two_missing_columns_are_one_sentence(database: Database) -> None:
    change = "ALTER TABLE analytics_event DROP COLUMN pathname, DROP COLUMN referrer_source"
    assert "(missing column(s): pathname, referrer_source)" in only_problem(database, change)


def test_another_table_with_the_name_of_ours_comes_first(database: Database) -> None:
    database.connection.execute(
        "CREATE TABLE public.analytics_daily_stats (id text, website_id text, date timestamptz, pageviews int)"
    )
    assert problems(database) == []
    [problem] = problems(database, "public,analytics")
    assert problem.startswith(
        "Table analytics_daily_stats is not the one the jobs know (missing column(s): aggregated_at, deleted_events, ends_at"
    )
    assert "put its schema (analytics) first in the connection's search_path" in problem


@pytest.mark.parametrize(("index", "sentence"), INDEXES.items())
def test_a_missing_index(database: Database, index: str, sentence: str) -> None:
    assert re.match(sentence, only_problem(database, f"DROP INDEX {index}"))


@pytest.mark.parametrize(("index", "sentence"), INDEXES.items())
def test_an_invalid_index(database: Database, index: str, sentence: str) -> None:
    change = f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"
    assert re.match(sentence, only_problem(database, change))


@pytest.mark.parametrize(
    ("index", "definition"),
    [
        # Soft-deleted events expire as well.
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp, id) WHERE deleted_at IS NULL"),
        ("analytics_event_timestamp_id_idx", "analytics_event (id, timestamp)"),
        ("analytics_event_timestamp_id_idx", "analytics_event (timestamp)"),
        ("analytics_event_deleted_idx", "analytics_event (website_id, timestamp)"),
        ("analytics_event_deleted_idx", "analytics_event (timestamp, website_id) WHERE deleted_at IS NOT NULL"),
        ("analytics_event_website_id_timestamp_idx", "analytics_event (website_id, timestamp)"),
        ("analytics_session_open_idx", "analytics_session (started_at) WHERE ended_at IS NULL"),
        ("analytics_session_open_idx", "analytics_session (started_at)"),
    ],
)
def test_an_index_that_does_not_serve(database: Database, index: str, definition: str) -> None:
    change = (f"DROP INDEX {index}", f"CREATE INDEX another ON {definition}")
    assert re.match(INDEXES[index], only_problem(database, *change))


def test_an_index_of_another_name_serves(database: Database) -> None:
    database.connection.execute(
        "DROP INDEX analytics_event_timestamp_id_idx; CREATE INDEX another ON analytics_event (timestamp, id)"
    )
    assert problems(database) == []


@pytest.mark.parametrize("comment", ["NULL", "'Version 0123456789ab'", f"'{schema.version()} and changed since'"])
def test_functions_of_another_version(database: Database, comment: str) -> None:
    assert only_problem(database, f"COMMENT ON TABLE analytics_daily_stats IS {comment}") == OTHER_VERSION


def test_jobs_of_another_version(database: Database) -> None:
    assert [row["problem"] for row in database.run(FILE, version="0123456789ab")] == [OTHER_VERSION]


def test_of_a_table_that_is_not_the_right_one_the_version_does_not_matter(database: Database) -> None:
    database.connection.execute("ALTER TABLE analytics_daily_stats DROP COLUMN events_hash CASCADE")
    [row] = database.run(FILE, version="0123456789ab")
    assert row["problem"].startswith(
        "Table analytics_daily_stats is not the one the jobs know (missing column(s): events_h"
    )


@pytest.mark.parametrize(
    ("table", "privilege"),
    [
        ("analytics_event", "SELECT"),
        ("analytics_event", "DELETE"),
        ("analytics_session", "SELECT"),
        ("analytics_session", "UPDATE (ended_at)"),
        ("analytics_session", "UPDATE (duration_seconds)"),
        ("analytics_session", "UPDATE (updated_at)"),
        ("analytics_session", "DELETE"),
        ("analytics_daily_stats", "SELECT"),
        ("analytics_daily_stats", "INSERT"),
        ("analytics_daily_stats", "UPDATE"),
        ("analytics_website_policy", "SELECT"),
        ("analytics_purge_proof", "SELECT"),
        ("analytics_purge_proof", "INSERT"),
        ("analytics_purge_proof", "UPDATE"),
        ("analytics_purge_proof", "DELETE"),
        ("analytics_proven_days", "SELECT"),
        ("analytics_job_run", "SELECT"),
        ("analytics_job_run", "INSERT"),
        ("analytics_job_run", "UPDATE"),
        ("analytics_alert", "SELECT"),
        ("analytics_alert", "INSERT"),
        ("analytics_alert", "UPDATE"),
    ],
)
def test_a_missing_privilege(database: Database, table: str, privilege: str) -> None:
    problem = only_problem(database, f"REVOKE {privilege} ON {table} FROM analytics_jobs")
    assert problem.startswith(f"Role {LOGIN} lacks {privilege.split(maxsplit=1)[0]} on table {table}: ")
    assert "make the role a member of analytics_jobs" in problem


def test_a_role_that_may_nothing(database: Database) -> None:
    database.connection.execute("CREATE ROLE stranger LOGIN")
    try:
        with database.connect("stranger") as connection:
            found = [row["problem"] for row in database.run(FILE, connection, version=schema.version())]
    finally:
        database.connection.execute("DROP ROLE stranger")
    assert found
    # It may not even look into our schema, so that our table is missing for it.
    assert any(problem.startswith("Role stranger lacks SELECT on table analytics_event: ") for problem in found)
