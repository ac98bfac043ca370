"""The plans of the hot statements, and what is wrong with one: for tests at a small volume, and benchmarks at others."""

import re
from typing import Any

import psycopg

from aggregation_steps import AGGREGATE, DUE
from conftest import run_file
from retention_steps import DELETE_EVENTS, SEAL

CLOSE = "cleanup_analytics_sessions/close_idle_sessions.sql"
RETURNED = "cleanup_analytics_sessions/end_returned_sessions.sql"
LIVE = r"Index (Only )?Scan using analytics_event_website_id_timestamp_idx on analytics_event"
NEEDED = {
    AGGREGATE: [
        r"CTE grouped\n +->  HashAggregate .*\n( +Hash Key: .*\n){4} +->  Nested Loop .*\n( +Output: .*\n)*"
        rf" +->  CTE Scan on day .*\n +->  ({LIVE}|Bitmap Heap Scan on analytics_event)"
    ],
    DUE: [LIVE],
    SEAL: [LIVE, r"CTE verdict\n.*\n +->  HashAggregate"],
    DELETE_EVENTS: [
        r"Delete on analytics_event(.*\n){1,9}? +->  Index Scan using analytics_event_pkey on analytics_event"
    ],
    CLOSE: ["Index Scan using analytics_session_open_idx on analytics_session idle"],
    RETURNED: [],
}
"""What must be in the plans of a file, as regular expressions."""
UNWANTED = {
    "reads a whole table": r"Seq Scan on analytics_(event|session)\b.*",
    "goes through a list for each row": r"= \(SubPlan \d+\)\.col.*",
    "compares each row with each other one": r"Nested Loop.*\n +Join Filter: .*\bid = .*",
}
MEMORY = {AGGREGATE: "256MB", SEAL: "64MB"}


def run(connection: psycopg.Connection[dict[str, Any]], file: str, **parameters: Any) -> tuple[list[str], str]:
    """Run a file as its task does, as a superuser; return what is wrong with its plans, and all of them.

    Those of the functions that it calls are among them.
    """
    plans: list[str] = []
    connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    connection.execute(
        f"""
        LOAD 'auto_explain';
        SET auto_explain.log_min_duration = 0;
        SET auto_explain.log_nested_statements = on;
        SET auto_explain.log_level = notice;
        SET jit = off;
        SET work_mem = '{MEMORY.get(file, "4MB")}'
        """.encode()
    )
    plans.clear()
    run_file(connection, file, **parameters)
    connection.execute("SET auto_explain.log_min_duration = -1")
    text = "\n".join(plans)
    wrong = [f"{file} lacks {pattern}" for pattern in NEEDED[file] if not re.search(pattern, text)]
    for what, pattern in UNWANTED.items():
        wrong += sorted({f"{file} {what}: {found[0]}" for found in re.finditer(pattern, text)})
    return wrong, text
