"""The alerts that are due, found as the closing task of a run finds them."""

import json
from typing import Any

import psycopg

from conftest import SQL, Database

LIMITS: dict[str, Any] = {"retention_days": 90, "idle_minutes": 30, "behind_hours": 36, "database_gb": 10.0}
CONDITIONS = sorted(path.stem for path in (SQL / "alerts").glob("*.sql"))


def find_alerts(
    database: Database, connection: psycopg.Connection[dict[str, Any]] | None = None, **limits: Any
) -> list[dict[str, Any]]:
    """What is to be sent now; each condition is asked with `limits` over LIMITS."""
    found = [
        {"condition": condition} | row
        for condition in CONDITIONS
        for row in database.run(f"alerts/{condition}.sql", connection, **LIMITS | limits)
    ]
    return keep_alerts(database, connection, found)


def keep_alerts(
    database: Database,
    connection: psycopg.Connection[dict[str, Any]] | None,
    found: list[dict[str, Any]],
    unknown: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """What is to be sent now, if just this was found, and these conditions could not be asked."""
    parameters = {"found": json.dumps(found), "unknown": json.dumps(unknown)}
    alerts: list[dict[str, Any]] = database.run("watch/keep_alerts.sql", connection, **parameters)[0]["result"]
    return alerts
