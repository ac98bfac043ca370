"""Exits with 0 if an Airflow component has had a heartbeat of late: ``python healthcheck.py SchedulerJob``.

It asks Airflow's database, and takes a tenth of the time of ``airflow jobs check``.
"""

import os
import sys

import psycopg2  # type: ignore[import-untyped]

SECONDS = 60
"""Age of a heartbeat, of which there is one every five seconds."""

HEARTBEATS = """
    SELECT count(*) FROM job
    WHERE job_type = %s AND state = 'running' AND latest_heartbeat > now() - make_interval(secs => %s)
"""

if __name__ == "__main__":
    dsn = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    try:
        with psycopg2.connect(dsn, connect_timeout=4) as connection, connection.cursor() as cursor:
            cursor.execute(HEARTBEATS, [sys.argv[1], SECONDS])
            (alive,) = cursor.fetchone()
    except psycopg2.Error as error:
        sys.exit(f"Airflow's database does not answer: {' '.join(str(error).split())}")
    if not alive:
        sys.exit(f"There was no heartbeat of {sys.argv[1]} for {SECONDS} seconds.")
