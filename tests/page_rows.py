"""Made-up rows for the tests of the Analytics page."""

from datetime import date

from conftest import Database

DAYS_OF_RUNS = 180


def job_runs(database: Database) -> None:
    """Half a year of runs of the three jobs; of the last 30 of the cleanup, one failed and one was lost."""
    database.query(
        f"""
        WITH run AS (
            SELECT 'aggregate_daily_analytics' AS job, moment, 25 + 9 * random() AS seconds, 0 AS deleted, 1 AS written
            FROM generate_series(current_date - {DAYS_OF_RUNS} + interval '1 hour', now(), interval '1 day') AS moment
            UNION ALL
            SELECT 'cleanup_analytics_sessions', moment, 3 + random() * 1.5, 0, (random() * 40)::int
            FROM generate_series(date_bin('10 min', now() - interval '9 days', 'today'), now() - interval '2 min', '10 min')
                AS moment
            UNION ALL
            SELECT 'archive_old_analytics', moment, 8 + random() * 6, (9000 + 5000 * random())::int, 0
            FROM generate_series(date_trunc('week', now()) - interval '25 weeks' - interval '22 hours', now(), '7 days')
                AS moment
        )
        INSERT INTO analytics_job_run (
            job, run_id, started_at, finished_at, rows_written, rows_deleted, database_bytes, outcome
        )
        SELECT
            job, 'scheduled__' || to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS+00:00'), moment,
            moment + make_interval(secs => seconds), written, deleted,
            -- What is missing to today's size was less in the past, and grew ever slower since retention began.
            pg_database_size(current_database()) * (0.55 + 0.45 * sqrt(greatest(0, extract(epoch FROM moment - now()) / 86400
                / {DAYS_OF_RUNS} + 1))) * (1 + 0.006 * sin(extract(epoch FROM moment) / 345600)),
            'success'
        FROM run RETURNING 1
        """
    )
    recent = "job = 'cleanup_analytics_sessions' AND now() - started_at BETWEEN interval '{0}' AND interval '{0} 599.999999 sec'"
    database.query(
        f"""
        UPDATE analytics_job_run SET outcome = 'failed', database_bytes = NULL,
            problem = 'close_idle_sessions failed: canceling statement due to lock timeout'
        WHERE {recent.format("3 hours")} RETURNING 1
        """
    )
    database.query(
        f"""
        UPDATE analytics_job_run SET outcome = 'running', finished_at = NULL, database_bytes = NULL
        WHERE {recent.format("2 hours")} RETURNING 1
        """
    )


def alert(database: Database, condition: str, subject: str, message: str) -> None:
    """One alert that has been open for three hours."""
    database.query(
        """
        INSERT INTO analytics_alert (condition, subject, message, opened_at, claimed_at, sent_at)
        SELECT %s, %s, %s, moment, moment, moment FROM (SELECT now() - interval '3 hours' AS moment) RETURNING 1
        """,
        condition,
        subject,
        message,
    )


def daily_stats(database: Database, websites: int, days: int, until: date) -> None:
    """Stats of the days before `until`: pageviews of 100 to 600, of which 7 came late; sketches of about 50 visitors."""
    database.query(
        """
        WITH sketch AS (
            SELECT string_agg((random() < 0.001)::int::text, '')::bit(49152) AS bits
            FROM generate_series(1, 49152 * 20) AS bit (number) GROUP BY number %% 20
        )
        INSERT INTO analytics_daily_stats (
            website_id, date, total_pageviews, total_custom_events, unique_visitors, unique_sessions,
            top_pages,
            top_referrers,
            total_events, deleted_events, events_hash, visitor_sketch,
            starts_at, ends_at, aggregated_at, late_pageviews
        )
        SELECT
            'website-' || lpad(website::text, 2, '0'), day::date, 93 + 500 * random(), 10, 50, 60,
            (SELECT jsonb_agg(jsonb_build_object('item', '/products/item-' || n, 'count', 100 - n))
                FROM generate_series(1, 10) AS n),
            (SELECT jsonb_agg(jsonb_build_object('item', 'shop-' || n || '.example.org', 'count', 50 - n))
                FROM generate_series(1, 10) AS n),
            600, 0, 0, (SELECT bits FROM sketch OFFSET (website + extract(doy FROM day)) %% 20 LIMIT 1),
            day, day + interval '1 day', day + interval '1 day', 7
        FROM generate_series(1, %s) AS website,
            generate_series(%s::date - %s::int, %s::date - 1, interval '1 day') AS day
        RETURNING 1
        """,
        websites,
        until,
        days,
        until,
    )
