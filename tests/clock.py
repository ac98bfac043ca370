"""A clock that tests set: the SQL files say now(), and search_path decides whose."""

from datetime import datetime
from typing import Any

import psycopg

SEARCH_PATH = "clock,analytics,public,pg_catalog"


def install(connection: psycopg.Connection[Any], now: datetime | str | None = None) -> None:
    """Make the clock of a database: for sessions with SEARCH_PATH it is `now`, or the moment of the setting clock.now."""
    moment = "current_setting('clock.now')" if now is None else f"'{now}'"
    connection.execute(
        f"""
        CREATE SCHEMA IF NOT EXISTS clock;
        GRANT USAGE ON SCHEMA clock TO public;
        CREATE OR REPLACE FUNCTION clock.now() RETURNS timestamptz STABLE RETURN {moment}::timestamptz;
        GRANT EXECUTE ON FUNCTION clock.now() TO public
        """.encode()
    )


def set_now(connection: psycopg.Connection[Any], now: datetime | str) -> None:
    """Set the moment of a session."""
    connection.execute("SELECT set_config('clock.now', %s, false)", [str(now)])
