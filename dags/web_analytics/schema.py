"""Installs what the jobs need in the database: ``python dags/web_analytics/schema.py postgresql://owner@host/database``.

Tables change by the numbered files of ``migrations/``, each applied once; functions, views and grants are replaced
whole from ``repeatable/``. Both in one transaction: whoever looks sees the old state or the new one. The application
is not kept waiting: of its tables, nothing is changed but indexes, and those concurrently.
"""

import argparse
import sys
import time
import zlib
from pathlib import Path

import psycopg
from psycopg import sql

FOLDER = Path(__file__).resolve().parents[2] / "include" / "sql" / "schema"
PATIENCE = 30
"""Seconds for which we try to get tables that jobs and readers hold."""
OBSOLETE = ("analytics_session_started_at_id_idx",)
"""Indexes on the application's tables that an earlier release made and nothing needs any more."""
PREPARED = """
    SELECT count(*) = 2 FROM pg_catalog.pg_roles
    WHERE
        rolname IN ('analytics_jobs', 'analytics_readers')
        AND has_table_privilege(oid, 'analytics_event', 'SELECT')
        AND has_table_privilege(oid, 'analytics_daily_stats', 'SELECT')
"""
"""Roles are of the server and not of the database: one that was restored elsewhere has lost its grants."""
VIEW_GRANTS = """
    SELECT
        relname,
        format(
            'GRANT %s ON %I TO %s%s', privilege_type, relname, CASE grantee WHEN 0 THEN 'public' ELSE grantee::regrole::text END,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
        )
    FROM pg_catalog.pg_class CROSS JOIN aclexplode(relacl)
    WHERE relkind = 'v' AND relnamespace = current_schema()::regnamespace AND grantee <> relowner
"""
HOLDERS = """
    SELECT string_agg(DISTINCT format('"%s" (process %s)', coalesce(nullif(application_name, ''), usename), pid), ', ')
    FROM pg_catalog.pg_locks INNER JOIN pg_catalog.pg_stat_activity USING (pid)
    INNER JOIN pg_catalog.pg_class ON pg_class.oid = relation
    WHERE relnamespace = current_schema()::regnamespace AND granted AND pid <> pg_backend_pid()
"""


def _files(kind: str) -> list[Path]:
    return sorted((FOLDER / kind).glob("*.sql"))


def _state() -> tuple[int, int]:
    """Return the number of the newest migration and the checksum of the repeatable files."""
    return int(_files("migrations")[-1].name[:3]), zlib.crc32(b"".join(f.read_bytes() for f in _files("repeatable")))


def version() -> int:
    """Return a number that is another one whenever the schema is; of a later migration, a greater one."""
    number, definitions = _state()
    return number << 32 | definitions


def _refuse(text: str) -> psycopg.Error:
    return psycopg.errors.ObjectNotInPrerequisiteState(text)


def _bring_up_to_date(connection: psycopg.Connection, schemas: list[str]) -> None:
    """Apply the migrations that were not, and replace the definitions if they are of another version."""
    with connection.transaction():
        # Less than deadlock_timeout, so that it is never a job that fails because of us.
        connection.execute("SET LOCAL lock_timeout = '500ms'")
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schemas[0])))
        for table in ("analytics_event", "analytics_session"):
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone() == (None,):
                raise _refuse(
                    f"table {table} is not in {','.join(schemas)}: create it with the application first, "
                    "or name its schema with --search-path"
                )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS analytics_schema_version (number integer PRIMARY KEY,"
            " applied_at timestamptz NOT NULL DEFAULT now(), definitions bigint)"
        )
        newest = "SELECT number, definitions FROM analytics_schema_version ORDER BY number DESC LIMIT 1"
        recorded = connection.execute(newest).fetchone() or (0, None)
        if recorded[0] > _state()[0]:
            raise _refuse(
                f"the database has migration {recorded[0]}, and these files end with {_state()[0]}: "
                "run the installer of the newest version that was installed, or of a later one"
            )
        if recorded == _state() and connection.execute(PREPARED).fetchone() == (True,):
            return
        grants = connection.execute(VIEW_GRANTS).fetchall()
        applied = [file for file in _files("migrations") if int(file.name[:3]) > recorded[0]]
        for file in applied:
            connection.execute(file.read_bytes())
            connection.execute("INSERT INTO analytics_schema_version (number) VALUES (%s)", [int(file.name[:3])])
        for file in _files("repeatable"):
            connection.execute(file.read_bytes())
        # What others were granted on a view that was dropped and created anew.
        for view, grant in grants:
            if connection.execute("SELECT to_regclass(%s)", [view]).fetchone() != (None,):
                connection.execute(sql.SQL(grant))
        connection.execute("UPDATE analytics_schema_version SET definitions = %s WHERE number = %s", _state()[::-1])
    print("\n".join([*(f"applied {file.name}" for file in applied), "replaced functions, views and grants"]))
