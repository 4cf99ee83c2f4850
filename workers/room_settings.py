"""What a site decides per room, and about alerts: one frozen model each, a part of `workers.settings`."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from workers.targets import CONTROL


class Model(BaseModel):
    """Settings are read once and never changed; an unknown key is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Telemetry(Model):
    """Files on this host's disks and the database they go to."""

    database: str = CONTROL
    data_dirs: tuple[Path, ...] = ()
    suffixes: tuple[str, ...] = (".ndjson", ".ndjson.gz", ".bintel")
    event_schemas: Path | None = None
    sweep_seconds: float = Field(default=60, gt=0)
    requeue_seconds: float = Field(default=120, gt=0, description="age at which a message counts as lost")
    in_flight: int = Field(default=2000, ge=1, description="messages per host queue that a sweep may have out")
    batch_bytes: int = Field(default=8_000_000, ge=10_000)
    max_record_bytes: int = Field(default=64_000_000, ge=1_000)
    slice_seconds: float = Field(default=60, gt=0, description="a longer file goes on in a new message")

    @field_validator("data_dirs")
    @classmethod
    def _absolute(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in folders:
            if not folder.is_absolute():
                raise ValueError(f"{folder} is not an absolute path")
        return folders


Event = Literal["failure", "recovery", "missed", "disabled", "parked", "late", "slow", "unreachable", "success"]


class Mail(Model):
    """Where alerts are mailed to, and by which server."""

    host: str
    port: int | None = Field(default=None, ge=1, le=65535, description="default: 25; starttls 587, tls 465")
    security: Literal["none", "starttls", "tls"] = "none"
    user: str | None = None
    password: SecretStr | None = Field(default=None, description="a password_file is better: nobody copies it along")
    password_file: Path | None = None
    sender: str = "headrace@localhost"
    to: tuple[str, ...] = Field(min_length=1)


class Webhook(Model):
    """Where alerts are posted to as JSON; `body` is a template for services with a form of their own."""

    url: str
    headers: dict[str, str] = {}
    token_file: Path | None = Field(default=None, description="sent as `Authorization: Bearer ...`")
    body: str | None = Field(default=None, description="a JSON template; values are escaped, so put them in quotes")
    proxy: str | None = Field(default=None, description="an HTTP proxy's URL; the environment's are not looked at")

    @field_validator("url", "proxy")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        # The URL itself is not in the message: with many services it is the secret.
        try:
            parts = urlsplit(url or "")
            fits = url is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError("a URL such as https://chat.example/hooks/headrace is wanted here")
        return url


class Alerts(Model):
    """Whom to tell, of what, and in which words. Templates have ${event} ${subject} ${message} ${database} and more."""

    mail: Mail | None = None
    webhook: Webhook | None = None
    sql: str | None = Field(
        default=None, description="a statement with %(event)s and the like, run in the alert's database; % is %%"
    )
    on: tuple[Event, ...] = ("failure", "recovery", "missed", "disabled", "parked", "late", "slow", "unreachable")
    title: str = "[headrace] ${event}: ${subject}"
    text: str | None = None
    timeout_seconds: float = Field(default=10, gt=0)
    give_up_hours: float = Field(default=24, gt=0)


def known_zone(name: str | None) -> str | None:
    if name is not None:
        try:
            ZoneInfo(name)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"unknown time zone {name!r}; use a name such as Europe/Paris") from error
    return name


def _clock(text: str | None) -> str | None:
    if text is not None:
        try:
            time.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is no time of day; write it as 02:00") from error
    return text


class DatabaseJobs(Model):
    """What one database has its own way; what is left out is as in `postprocessing:`."""

    enabled: bool = True
    daily_at: str | None = None
    timezone: str | None = None
    max_running: int | None = Field(default=None, ge=1)
    legacy_null: Literal["json", "sql"] | None = None

    _daily_at = field_validator("daily_at")(_clock)
    _timezone = field_validator("timezone")(known_zone)


class Postprocessing(Model):
    """Scheduled procedures: where they are, and how many may run."""

    databases: tuple[str, ...] | None = Field(default=None, description="default: the control database and all named")
    legacy_config: Path | None = Field(default=None, description="hdbpp-postprocessing's file, if it is there")
    daily_at: str = "02:00"
    timezone: str = "UTC"
    max_running: int | None = Field(default=None, ge=1, description="queued and running at once, per database")
    in_flight: int = Field(default=200, ge=1, description="messages per database that may be out at once")
    max_running_total: int | None = Field(default=None, ge=1, description="running at once, all databases together")
    legacy_null: Literal["json", "sql"] = "json"
    grace_seconds: float = Field(default=10, gt=0, description="between cancelling and terminating a backend")
    blocked_minutes: float = Field(default=60, gt=0, description="a run that waits for one lock so long is stopped")
    history_days: int = Field(default=90, ge=1)
    history_runs: int = Field(default=1000, ge=1, description="per job")
    max_active_sessions: int | None = Field(default=None, ge=1, description="load guard: nothing starts above this")
    max_replay_lag_seconds: float | None = Field(default=None, gt=0, description="load guard: worst standby")

    _daily_at = field_validator("daily_at")(_clock)
    _timezone = field_validator("timezone")(known_zone)
