"""The settings: defaults, the environment, and one sentence for a bad value."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from web_analytics.settings import load


def test_defaults() -> None:
    assert load().model_dump() == {
        "timezone": "UTC",
        "ignored_events": [],
        "aggregate_schedule": "0 1 * * *",
        "cleanup_schedule": "*/10 * * * *",
        "archive_schedule": "0 2 * * 0",
        "session_timeout_minutes": 30,
        "retention_days": 90,
        "batch_size": 1000,
        "batch_rest": 1,
        "batch_pause_seconds": 0,
        "archive_parallelism": 2,
        "standby_lag_mb": 100,
        "archive_uri": None,
        "alert_email": None,
        "alert_behind_hours": 36,
        "alert_database_gb": 10,
    }


def test_environment_wins_and_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_RETENTION_DAYS", "30")
    monkeypatch.setenv("ANALYTICS_TIMEZONE", "Europe/Berlin")
    monkeypatch.setenv("ANALYTICS_BATCH_SIZE", "")
    settings = load()
    assert (settings.retention_days, settings.timezone, settings.batch_size) == (30, "Europe/Berlin", 1000)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ANALYTICS_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("ANALYTICS_RETENTION_DAYS", "ninety", "valid integer"),
        ("ANALYTICS_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("ANALYTICS_SESSION_TIMEOUT_MINUTES", "-1", "greater than or equal to 1"),
        ("ANALYTICS_BATCH_PAUSE_SECONDS", "-1", "greater than or equal to 0"),
        ("ANALYTICS_BATCH_REST", "-0.5", "greater than or equal to 0"),
        ("ANALYTICS_STANDBY_LAG_MB", "0", "greater than or equal to 1"),
        ("ANALYTICS_TIMEZONE", "Mars/Olympus", "is not an IANA time zone"),
        ("ANALYTICS_TIMEZONE", "../../etc/passwd", "is not an IANA time zone"),
        ("ANALYTICS_ARCHIVE_SCHEDULE", "sometimes", "is not a cron expression"),
        ("ANALYTICS_CLEANUP_SCHEDULE", "61 * * * *", "is not a cron expression"),
        ("ANALYTICS_CLEANUP_SCHEDULE", "* * * * * *", "of five fields"),
        ("ANALYTICS_CLEANUP_SCHEDULE", "@daily", "of five fields"),
        ("ANALYTICS_ARCHIVE_URI", "ftp://host/folder", "is not the address of a folder such as s3://"),
        ("ANALYTICS_ARCHIVE_URI", "s3://", "is not the address of a folder such as s3://"),
        ("ANALYTICS_ARCHIVE_URI", "file://archive/folder", "is not the address of a folder"),
        ("ANALYTICS_ARCHIVE_URI", "s3:///folder", "is not the address of a folder"),
        ("ANALYTICS_ARCHIVE_URI", "s3://bucket:9000/folder", "has a password or a port in it"),
        ("ANALYTICS_ALERT_EMAIL", "nobody", "is not a mail address"),
        ("ANALYTICS_ALERT_BEHIND_HOURS", "0", "greater than or equal to 1"),
        ("ANALYTICS_ALERT_DATABASE_GB", "0", "greater than 0"),
        ("ANALYTICS_ALERT_DATABASE_GB", "nan", "greater than 0"),
    ],
)
def test_a_bad_value_is_one_sentence_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=reason) as raised:
        load()
    assert str(raised.value).startswith(f"{name} is {value!r}: ")
    assert "\n" not in str(raised.value)


def test_a_password_in_an_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_ARCHIVE_URI", "s3://key:secret@bucket")
    with pytest.raises(ValueError, match="is 's3://…@bucket': has a password or a port in it"):
        load()


def test_a_misspelt_variable_is_refused_and_a_stranger_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_WRITE_KEY", "another program's")
    assert load().retention_days == 90
    monkeypatch.setenv("ANALYTICS_RETENTION_DAY", "365")
    with pytest.raises(ValueError, match="ANALYTICS_RETENTION_DAY is not a setting: write ANALYTICS_RETENTION_DAYS"):
        load()


def test_a_dag_file_shows_the_sentence_as_its_import_error() -> None:
    environment = os.environ | {"ANALYTICS_RETENTION_DAYS": "0", "PYTHONPATH": str(ROOT / "dags")}
    file = ROOT / "dags" / "archive_old_analytics.py"
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ValueError: ANALYTICS_RETENTION_DAYS is '0': Input should be greater than or equal to 1."
    )
