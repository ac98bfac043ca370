"""Made-up rows for the tests of the Analytics page."""

import json
from datetime import date, timedelta
from typing import Any

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


# The items of each dimension, the most counted first. Each is counted about two thirds as often as the one before.
ITEMS = {
    "pages": "/ /products /products/espresso-machine /cart /checkout /blog/grinding-beans /products/kettle /about"
    " /products/filter-papers /contact",
    "referrers": "google direct newsletter instagram duckduckgo coffee-forum.example bing reddit tiktok price-watch.example",
    "countries": "DE AT CH FR NL GB US IT PL (none)",
    "devices": "mobile desktop tablet unknown",
    "browsers": "Chrome Safari Firefox Edge Samsung_Internet Opera",
    "os": "Android iOS Windows macOS Linux (none)",
    "utm_sources": "(none) newsletter google instagram partner",
    "utm_mediums": "(none) email cpc social affiliate",
    "utm_campaigns": "(none) spring-sale new-grinder black-friday welcome",
    "events": "add_to_cart begin_checkout purchase newsletter_signup search video_play download share login filter",
}


def day_stats(database: Database, website: str, day: date, pageviews: int, **columns: Any) -> None:
    """Stats of one day, of as many sessions and half as many visitors as pageviews."""
    values: dict[str, Any] = {
        "website_id": website, "date": day, "total_pageviews": pageviews, "total_custom_events": 0,
        "unique_visitors": pageviews // 2, "unique_sessions": pageviews, "bounced_sessions": pageviews // 4,
        "session_seconds": pageviews * 90, "top_pages": "[]", "top_referrers": "[]", "total_events": pageviews,
        "deleted_events": 0, "events_hash": 0, "visitor_sketch": "0" * 49152, "starts_at": day,
        "ends_at": day + timedelta(days=1), "aggregated_at": day + timedelta(days=1),
    } | columns  # fmt: skip
    marks = ", ".join(["%s"] * len(values))
    database.query(
        f"INSERT INTO analytics_daily_stats ({', '.join(values)}) VALUES ({marks}) RETURNING 1", *values.values()
    )


def daily_stats(database: Database, websites: int, days: int, until: date) -> None:
    """Stats of the days before `until`, which differ by size of website, weekday and week.

    The largest website is the first one, with some 4,000 pageviews a day, the smallest one every fifth.
    Of the second one, 7 pageviews of the last day came late.
    """
    columns = [f"top_{name}" for name in ITEMS]
    database.query(
        f"""
        WITH shape AS MATERIALIZED (
            SELECT
                size, number,
                (8000 / 2.5 ^ size * (CASE WHEN extract(isodow FROM %s::date - 56 + number) > 5 THEN 0.6 ELSE 1 END + number / 140.0 + 0.2 * random()))::int
                    AS pageviews
            FROM generate_series(1, 5) AS size, generate_series(0, 55) AS number
        ),
        list AS MATERIALIZED (
            SELECT size, number, pageviews, {",".join(f"max(items::text) FILTER (WHERE name = '{name}')::jsonb AS top_{name}" for name in ITEMS)}
            FROM (
                SELECT size, number, pageviews, name, jsonb_agg(jsonb_build_object(
                    'item', replace(item, '_Int', ' Int'),
                    'count', ceil(CASE name WHEN 'events' THEN 0.1 ELSE 1 END * pageviews * 0.33 * 0.67 ^ (place - 1))::int,
                    'visitors', ceil(pageviews / 9.0 * 0.67 ^ (place - 1))::int
                ) ORDER BY place) AS items
                FROM shape, jsonb_each_text(%s) AS dimension (name, items),
                    string_to_table(items, ' ') WITH ORDINALITY AS item (item, place)
                GROUP BY size, number, pageviews, name
            ) AS named
            GROUP BY size, number, pageviews
        ),
        sketch AS MATERIALIZED (
            SELECT size, number, string_agg(
                (random() < 1 - exp(-8000 / 2.5 ^ size / 3 / 2048 * 0.5 ^ (bit / 2048 + 1)))::int::text, '' ORDER BY bit
            )::bit(49152) AS bits
            FROM generate_series(1, 5) AS size, generate_series(0, 3) AS number, generate_series(0, 49151) AS bit
            GROUP BY size, number
        )
        INSERT INTO analytics_daily_stats (
            website_id, date, total_pageviews, total_custom_events, unique_visitors, unique_sessions, bounced_sessions,
            session_seconds, total_events, deleted_events, events_hash, visitor_sketch, starts_at, ends_at, aggregated_at,
            late_pageviews, {", ".join(columns)}
        )
        SELECT
            'website-' || lpad(website::text, 2, '0'), day::date, pageviews, pageviews / 10, pageviews / 3,
            (pageviews / 2.6)::int, (pageviews / 6.1)::int, pageviews * 55, pageviews + pageviews / 10, 0, 0, bits,
            day, day + interval '1 day', day + interval '1 day',
            CASE WHEN website = 2 AND day = %s::date - 1 THEN 7 ELSE 0 END, {", ".join(columns)}
        FROM generate_series(1, %s) AS website
        CROSS JOIN generate_series(%s::date - %s::int, %s::date - 1, interval '1 day') AS day
        INNER JOIN list ON size = (website - 1) %% 5 + 1 AND list.number = 55 - (%s::date - 1 - day::date) %% 56
        INNER JOIN sketch USING (size)
        WHERE sketch.number = list.number %% 4
        RETURNING 1
        """,
        until,
        json.dumps(ITEMS),
        until,
        websites,
        until,
        days,
        until,
        until,
    )


def raw_events(database: Database, websites: int, events: int, days: int) -> None:
    """Pageviews of the last days, today included; the first websites have the most."""
    database.query(
        """
        INSERT INTO analytics_event (
            id, website_id, pathname, referrer_source, visitor_id, session_id, device_type, browser, country, timestamp
        )
        SELECT
            'event ' || n, 'website-' || lpad((1 + floor(%s * random() ^ 3))::text, 2, '0'), '/products', 'google',
            'visitor ' || n %% 700, 'session ' || n %% 900, 'mobile', 'Chrome', 'DE', day + random() * length
        FROM generate_series(1, %s) AS n
        CROSS JOIN LATERAL (SELECT now() - date_trunc('day', now()) AS so_far, date_trunc('day', now()) AS today) AS present
        CROSS JOIN LATERAL (
            SELECT
                today - n %% %s * interval '1 day' AS day,
                CASE WHEN n %% %s = 0 THEN so_far ELSE interval '23 hours' END AS length
        ) AS moment
        RETURNING 1
        """,
        websites,
        events,
        days,
        days,
    )
