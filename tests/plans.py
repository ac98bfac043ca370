"""The plans of the hot statements, and what is wrong with one: for tests at a small volume, and benchmarks at others."""

import re
from typing import Any

import psycopg
import pytest

from aggregation_steps import AGGREGATE, DUE
from conftest import run_file
from retention_steps import DELETE_EVENTS, SEAL

CLOSE = "cleanup_analytics_sessions/close_idle_sessions.sql"
RETURNED = "cleanup_analytics_sessions/end_returned_sessions.sql"
LIVE = r"Index (Only )?Scan using analytics_event_website_id_timestamp_idx on analytics_event"
NEEDED = {
    AGGREGATE: [
        (
            r"CTE grouped\n +->  HashAggregate .*\n( +Hash Key: .*\n){5} +->  Nested Loop .*\n( +(Disabled|Output): .*\n)*"
            rf" +->  CTE Scan on day .*\n +->  ({LIVE}|Bitmap Heap Scan on analytics_event)"
        )
    ],
    DUE: [LIVE],
    SEAL: [
        "(->  Index Scan using|Bitmap Index Scan on) analytics_event_website_id_timestamp_idx",
        r"CTE verdict\n.*\n +->  HashAggregate",
    ],
    DELETE_EVENTS: [
        # PostgreSQL 17 prefers the index by time, which has the id as well, as long as a table is as small as the test's.
        r"Delete on analytics_event(.*\n){1,14}? +->  Index Scan using analytics_event_(pkey|timestamp_id_idx) on "
    ],
    CLOSE: ["Index Scan using analytics_session_open_idx on analytics_session idle"],
    RETURNED: ["Bitmap Index Scan on analytics_session_returned_idx"],
}
"""What must be in the plans of a file, as regular expressions."""
UNWANTED = {
    "reads a whole table": r"Seq Scan on analytics_(event|session)\b.*",
    "goes through a list for each row": r"= \(SubPlan \d+\)\.col.*",
    "compares each row with each other one": r"Nested Loop.*\n +Join Filter: .*\b(id|number) = .*",
}
SETTINGS = {
    AGGREGATE: {"work_mem": "256MB"},
    SEAL: {"work_mem": "64MB"},
    RETURNED: {"enable_seqscan": "off"},
}
"""The settings of the tasks that have some of their own."""


def run(connection: psycopg.Connection[dict[str, Any]], file: str, **parameters: Any) -> tuple[list[str], str]:
    """Run a file as its task does, as a superuser; return what is wrong with its plans, and all of them.

    Those of the functions that it calls are among them.
    """
    plans: list[str] = []
    connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    explain = {"log_nested_statements": "on", "log_level": "notice", "log_min_duration": "0"}
    settings = {"jit": "off", "work_mem": "4MB"} | SETTINGS.get(file, {})
    settings |= {f"auto_explain.{name}": value for name, value in explain.items()}
    with connection.transaction():
        try:
            connection.execute("LOAD 'auto_explain'")
        except psycopg.errors.UndefinedFile:
            pytest.skip("the server comes without auto_explain")
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        plans.clear()
        run_file(connection, file, **parameters)
    text = "\n".join(plans)
    wrong = [f"{file} lacks {pattern}" for pattern in NEEDED[file] if not re.search(pattern, text)]
    for what, pattern in UNWANTED.items():
        wrong += sorted({f"{file} {what}: {found[0]}" for found in re.finditer(pattern, text)})
    return wrong, text
