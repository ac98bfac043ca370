"""The bundle's settings: one validated place, read from ``ANALYTICS_*`` environment variables.

What may differ from run to run is a DAG Param, whose default comes from here.
"""

import difflib
import os
import re
from typing import Annotated
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _cron(value: str) -> str:
    if len(value.split()) != 5 or not croniter.is_valid(value):
        raise ValueError("is not a cron expression of five fields, such as '0 1 * * *'")
    return value


def _time_zone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (KeyError, OSError, ValueError):  # not known; a folder; not a name at all
        raise ValueError("is not an IANA time zone, such as 'UTC' or 'Europe/Berlin'") from None


def _address(value: str) -> str:
    if "@" not in value:
        raise ValueError("is not a mail address")
    return value


def _store(value: str) -> str:
    scheme, _, place = value.partition("://")
    if scheme not in ("file", "gs", "s3") or place.startswith("/") != (scheme == "file") or not place.strip("/"):
        raise ValueError("is not the address of a folder such as s3://connection_id@bucket/folder or file:///folder")
    if ":" in place.split("/")[0]:
        raise ValueError("has a password or a port in it: name an Airflow connection, as in s3://connection_id@bucket")
    return value.rstrip("/")


def _names(value: str) -> list[str]:
    return sorted({name.strip() for name in value.split(",")} - {""})


Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_time_zone)]


class Settings(BaseSettings):
    """Settings of the bundle; the environment variable is the name in capitals with the prefix ``ANALYTICS_``."""

    model_config = SettingsConfigDict(env_prefix="ANALYTICS_", env_ignore_empty=True)

    timezone: TimeZone = "UTC"
    """Time zone of the calendar day that is aggregated and of the retention cutoff (IANA name)."""
    ignored_events: Annotated[list[str], NoDecode, BeforeValidator(_names)] = Field(default=[], validate_default=False)
    """Names of custom events, separated by commas, that are not counted as such: heartbeats. They make no session
    unbounced, and are proven and deleted like all."""
    aggregate_schedule: Cron = "0 1 * * *"
    """When `aggregate_daily_analytics` runs (cron, UTC)."""
    cleanup_schedule: Cron = "*/10 * * * *"
    """When `cleanup_analytics_sessions` runs (cron, UTC)."""
    archive_schedule: Cron = "0 2 * * 0"
    """When `archive_old_analytics` runs (cron, UTC)."""
    session_timeout_minutes: int = Field(default=30, ge=1, le=1440)
    """Minutes without activity after which a session is closed. 30 is the usual session timeout of web analytics."""
    retention_days: int = Field(default=90, ge=1, le=36500)
    """Whole days for which raw events and sessions are kept."""
    batch_size: int = Field(default=1000, ge=1, le=100_000)
    """Rows that one transaction closes or deletes at most."""
    batch_rest: float = Field(default=1, ge=0, le=100)
    """Rest after each batch, as a multiple of the time that it took: with 1, a task leaves the database half the time."""
    batch_pause_seconds: float = Field(default=0, ge=0, le=3600)
    """Seconds for which a task rests after each batch at least."""
    archive_parallelism: int = Field(default=2, ge=1, le=1000)
    """Tasks that delete batches at the same time at most: what the database may bear beside its application."""
    standby_lag_mb: int = Field(default=100, ge=1)
    """Write-ahead log, in MB of 1024^2 bytes, by which a standby may lag before batches wait for it."""
    archive_uri: Annotated[str, AfterValidator(_store)] | None = None
    """Folder to which raw data is written as Parquet files before it goes (`s3://`, `gs://`, `file://`); none without."""
    alert_email: Annotated[str, AfterValidator(_address)] | None = None
    """Address that is mailed when a run fails or an alert is due; no mail is sent without it."""
    alert_behind_hours: int = Field(default=36, ge=1, le=8760)
    """Hours after its end after which a day without daily stats is an alert."""
    alert_database_gb: float = Field(default=10, gt=0)
    """Size of the database, in GB of 1024^3 bytes, above which there is an alert."""


def load() -> Settings:
    """Return the settings; raise ValueError with one sentence per bad value, naming its variable.

    A variable that is all but a setting's is refused as well, since the setting it meant would silently be the default.
    """
    known = [f"ANALYTICS_{name.upper()}" for name in Settings.model_fields]
    for name in sorted(os.environ.keys() - set(known)):
        if name.startswith("ANALYTICS_") and (meant := difflib.get_close_matches(name, known, 1, 0.9)):
            raise ValueError(f"{name} is not a setting: write {meant[0]}.")
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            # Without what stands before the host of an address, which may be a password.
            f"ANALYTICS_{str(problem['loc'][0]).upper()} is {re.sub('://.*@', '://…@', problem['input'])!r}: "
            f"{problem['msg'].removeprefix('Value error, ')}."
            for problem in error.errors()
        ]
        raise ValueError(" ".join(problems)) from None


settings = load()
