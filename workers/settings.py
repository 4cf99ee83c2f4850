"""One frozen Settings from a YAML file and the HEADRACE_* environment, a nested model per room."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvironmentProblem

from workers.dispatch_settings import Dispatch
from workers.errors import SettingsError
from workers.hdbpp_file import databases_of
from workers.products_settings import Products
from workers.repack_settings import Repack
from workers.room_settings import Alerts, DatabaseJobs, Model, Postprocessing, Telemetry
from workers.targets import CONTROL, Connection, Target, with_password
from workers.yaml_files import read_yaml

ROOMS = ("telemetry", "products", "dispatch", "postprocessing", "repack")
SEARCH_PATH = (Path("headrace.yaml"), Path("/etc/headrace/headrace.yaml"))
ENDPOINTS_FILE = "endpoints.json"
DEFAULT_BROKER = "redis://127.0.0.1:6379/0"


class Control(Model):
    """The database that holds hosts, runs and pauses. `dsn` is a libpq string or URL."""

    dsn: str | None = None
    password_file: Path | None = None
    database: str | None = Field(default=None, description="a name out of `databases:` instead of a dsn")


class Broker(Model):
    """Redis >= 6.2 or Valkey >= 7.2."""

    url: str | None = None
    password_file: Path | None = None


class Database(Model):
    """One named connection; `connection:` has the keys of hdbpp-postprocessing's file, and a few more."""

    connection: Connection
    postprocessing: DatabaseJobs = DatabaseJobs()


class Worker(Model):
    """What `celery -A workers worker` does here when it is started without options."""

    concurrency: int = Field(default=2, ge=1, le=256)
    rooms: tuple[str, ...] = ROOMS
    ticks: bool = True

    @field_validator("rooms")
    @classmethod
    def _known_rooms(cls, rooms: tuple[str, ...]) -> tuple[str, ...]:
        for room in rooms:
            if room not in ROOMS:
                raise ValueError(f"unknown room {room!r}{did_you_mean(room, ROOMS)}")
        return rooms


class Queues(Model):
    """A room pinned to a host runs only there; by default any worker takes it."""

    dispatch: str | None = None
    postprocessing: str | None = None
    repack: str | None = None


class Logs(Model):
    """Standard error always; a file too when `file` is named, rotated by size across processes."""

    level: str = "INFO"
    file: Path | None = None
    max_bytes: int = Field(default=20_000_000, ge=100_000)
    keep: int = Field(default=5, ge=1)

    @field_validator("level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        levels = ("DEBUG", "INFO", "WARNING", "ERROR")
        if level.upper() not in levels:
            raise ValueError(f"unknown level {level!r}; one of {', '.join(levels)}")
        return level.upper()


class Flower(Model):
    """Where Flower listens, and who may look. Without a user a login is generated in the data folder."""

    address: str = "127.0.0.1"
    port: int = Field(default=5555, ge=0, le=65535)
    user: str | None = None
    password_file: Path | None = None
    metrics_token_file: Path | None = None


class Retention(Model):
    """How long history is kept, in days."""

    runs_days: int = Field(default=90, ge=1)


class Settings(BaseSettings):
    """Everything that a site decides; see README for the keys and their defaults."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="HEADRACE_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
    )
    _yaml: ClassVar[dict[str, Any]] = {}

    host: str = Field(default_factory=socket.gethostname, min_length=1, max_length=60)
    data_dir: Path = Field(default_factory=lambda: default_data_dir())
    control: Control = Control()
    broker: Broker = Broker()
    databases: dict[str, Database] = {}
    worker: Worker = Worker()
    queues: Queues = Queues()
    logs: Logs = Logs()
    flower: Flower = Flower()
    retention: Retention = Retention()
    alerts: Alerts = Alerts()
    telemetry: Telemetry = Telemetry()
    products: Products = Products()
    postprocessing: Postprocessing = Postprocessing()
    dispatch: Dispatch = Dispatch()
    repack: Repack = Repack()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which arrives as init arguments."""
        return (env_settings, init_settings)

    @model_validator(mode="after")
    def _names_exist(self) -> Settings:
        for where, name in (
            ("control.database", self.control.database),
            ("telemetry.database", self.telemetry.database),
            ("products.database", self.products.database),
            *(("postprocessing.databases", name) for name in self.postprocessing.databases or ()),
            *((f"dispatch.consumers.{key}.source", one.source) for key, one in self.dispatch.consumers.items()),
            *((f"dispatch.consumers.{key}.target", one.target) for key, one in self.dispatch.consumers.items()),
            *((f"repack.databases.{name}", name) for name in self.repack.databases),
            *(
                (f"repack.plans.{key}.databases", name)
                for key, one in self.repack.plans.items()
                for name in one.databases
            ),
        ):
            if name is not None and name != CONTROL and name not in self.databases:
                known = [CONTROL, *self.databases]
                raise ValueError(f"{where}: no database named {name!r}{did_you_mean(name, known)}")
        if CONTROL in self.databases:
            raise ValueError(f"databases.{CONTROL}: the name is taken by the control database; choose another")
        return self

    def target(self, name: str = CONTROL) -> Target:
        """The named database as something to connect to. Raises SettingsError where none is configured."""
        if name != CONTROL:
            return self.databases[name].connection.target(name)
        if self.control.dsn:
            return Target(CONTROL, with_password(self.control.dsn, self.control.password_file))
        if self.control.database:
            return self.databases[self.control.database].connection.target(CONTROL)
        dsn = self.endpoint("control_dsn")
        if dsn is None:
            raise SettingsError(
                [
                    "control.dsn: no control database is configured; set HEADRACE_CONTROL__DSN or `control:` in "
                    "headrace.yaml, or start an embedded one with `headrace up`"
                ]
            )
        return Target(CONTROL, dsn)

    def broker_url(self) -> str:
        """The broker's URL, password included: the configured one, else the embedded server's."""
        if self.broker.url:
            return with_password(self.broker.url, self.broker.password_file)
        return self.endpoint("broker_url") or DEFAULT_BROKER

    def endpoint(self, key: str) -> str | None:
        """A value that `headrace up` left in the data folder for clients on this machine, if it did."""
        value = _endpoints(self.data_dir).get(key)
        return str(value) if value is not None else None


def default_data_dir() -> Path:
    """/var/lib/headrace for root, the user's data folder (XDG) for everybody else."""
    if os.geteuid() == 0:
        return Path("/var/lib/headrace")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "headrace"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known word is near, else the list of known words."""
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(choices)}"


def find_file(explicit: Path | None = None) -> Path | None:
    """The settings file in force: --config, $HEADRACE_CONFIG, ./headrace.yaml, /etc/headrace/headrace.yaml."""
    named = explicit or (Path(value) if (value := os.environ.get("HEADRACE_CONFIG")) else None)
    if named is not None:
        if not named.is_file():
            raise SettingsError([f"{named}: no such settings file; check --config or HEADRACE_CONFIG"])
        return named
    return next((path for path in SEARCH_PATH if path.is_file()), None)


def load(explicit: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge and check the settings. Raises SettingsError with every problem at once."""
    path = find_file(explicit)
    document = _merged(read_yaml(path) if path else {}, overrides or {})
    problems = list(_unknown_environment())
    try:
        settings = _settings(document)
        legacy = settings.postprocessing.legacy_config
        if legacy is not None and legacy.is_file():
            # The databases of hdbpp-postprocessing's own file, where it has always been; ours win.
            databases = {**databases_of(legacy), **document.get("databases", {})}
            settings = _settings({**document, "databases": databases})
    except SettingsError as error:
        problems = error.problems + problems
    except EnvironmentProblem as error:
        problems.append(f"the environment: {error}; lists and tables are JSON there, as in '[\"/data\"]'")
    except ValidationError as error:
        problems = [_sentence(path, item) for item in error.errors()] + problems
    if problems:
        raise SettingsError(problems)
    return settings


_current: Settings | None = None


def current() -> Settings:
    """The settings of this process, read on first use; a worker reads them anew on SIGHUP."""
    return _current or use(load())


def use(settings: Settings) -> Settings:
    """Make these the settings of this process."""
    global _current
    _current = settings
    return settings


def _settings(document: Mapping[str, Any]) -> Settings:
    return Settings(**{str(key): value for key, value in document.items()})


def _merged(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _endpoints(data_dir: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load((data_dir / ENDPOINTS_FILE).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return document if isinstance(document, dict) else {}


def _unknown_environment() -> Iterator[str]:
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG", "POSTGRES_BIN", "VALKEY_BIN"}
    for name in os.environ:
        if name.startswith("HEADRACE_"):
            first = name.removeprefix("HEADRACE_").split("__", 1)[0].upper()
            if first not in known:
                yield f"{name}: unknown variable{did_you_mean(first, known)}"


def _sentence(path: Path | None, item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    source = f"{path}: " if path else ""
    if item["type"] == "extra_forbidden":
        return f"{source}{where}: unknown key{did_you_mean(str(item['loc'][-1]), _keys_at(item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{source}{where}: {message}" if where else f"{source}{message}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys that the model at this place of the document knows."""
    model: Any = Settings
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            choices = [choice for choice in getattr(field.annotation, "__args__", ()) if choice is not type(None)]
            model = choices[0] if len(choices) == 1 else field.annotation
        if getattr(model, "__origin__", None) is dict:
            model = model.__args__[1]
    return list(getattr(model, "model_fields", {}))
