"""A mission's definition: its products, processes and codes, as its file says them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    PlainValidator,
)  # fmt: skip

from workers import paths
from workers.products import versions

Timebase = Literal["FILE", "RUN", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY", "ORBIT"]

_LARGEST = 2**31 - 1  # that an integer column holds
_YEAR_SECONDS = 366 * 86_400.0
_MANY_DAYS = 3660
_NAME = re.compile(r"\{\{|\}\}|\{(MISSION|SATELLITE|SPACECRAFT|INSTRUMENT|PRODUCT|LEVEL|ROOTDIR)\}")


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{text!r} holds a character that no database stores; take it out")
    return text


def _version(given: object) -> object:
    return versions.parse(given) if isinstance(given, str) else given


def _in_range(version: versions.Version) -> versions.Version:
    if version.interface < 1 or not all(0 <= part <= _LARGEST for part in version):
        raise ValueError(f"version {version} is out of range: interface counts from 1, no part is above {_LARGEST}")
    return version


def folder(text: str) -> Path:
    """A folder on disk, of its text form."""
    return Path(os.fsdecode(paths.to_bytes(text)))


def text_of(path: Path) -> str:
    """A folder's text form: what is stored, and written into files."""
    return paths.to_text(os.fspath(path))


def _path(given: object) -> Path:
    if isinstance(given, str):
        given = folder(given)
    if not isinstance(given, Path):
        raise ValueError(f"{given!r} is no path")
    return given


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Text = Annotated[str, AfterValidator(_storable)]
Version = Annotated[
    versions.Version, BeforeValidator(_version), AfterValidator(_in_range), PlainSerializer(str, when_used="json")
]
Folder = Annotated[
    Path,
    PlainValidator(_path),
    PlainSerializer(text_of, when_used="json"),
]
Moment = Annotated[datetime, AfterValidator(_utc)]


def with_names(text: str, names: Mapping[str, str]) -> str:
    """A text with {MISSION}, {SATELLITE} and the like filled in, those that `names` has; `{{` and `}}` stay."""
    return _NAME.sub(lambda found: names.get(found[1] or "", found[0]), text)


class Part(BaseModel):
    """An unknown key is an error: nothing that a person wrote is silently dropped."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64"
    )


class Inspector(Part):
    """A module with a class `Inspector` that tells what a file is. `arguments` are its keyword arguments."""

    file: Text = Field(min_length=1)
    folder: Text = ""
    arguments: dict[Text, Text] = {}
    version: Version = versions.Version(1, 0, 0)
    description: Text = ""
    is_active: bool = True


class Product(Part):
    """A kind of file. `format` is its name with {fields}, `folder` where it lies below the root."""

    name: Text = Field(min_length=1)
    satellite: Text
    instrument: Text
    level: FiniteFloat
    format: Text = Field(min_length=1)
    folder: Text = ""
    description: Text = ""
    covers: Literal["hour", "day", "month", "year"] | None = None
    min_bytes: int = Field(default=0, ge=0, lt=2**63)
    trailer: bytes | None = None
    marker: Text | None = None
    inspector: Inspector | None = None
    cut_off: bool | None = None


class Input(Part):
    """What a process reads: one product, or the first of several that is there for a day."""

    products: tuple[Text, ...] = Field(min_length=1)
    is_required: bool = True
    yesterday: int = Field(default=0, ge=0, le=_MANY_DAYS)
    tomorrow: int = Field(default=0, ge=0, le=_MANY_DAYS)


class Code(Part):
    """One version of a process' executable, and for which days it holds."""

    version: Version
    filename: Text = Field(min_length=1)
    folder: Text = ""
    description: Text = ""
    output_interface: int = Field(default=1, ge=1, le=_LARGEST)
    valid_from: date | None = None
    valid_until: date | None = None
    arguments: tuple[Text, ...] = ()
    environment: dict[Text, Text] = {}
    timeout_seconds: float | None = Field(default=None, gt=0, le=_YEAR_SECONDS)
    memory_bytes: int | None = Field(default=None, gt=0, lt=2**63)
    output_bytes: int | None = Field(default=None, gt=0, lt=2**63)
    cpu: int = Field(default=1, ge=1, le=_LARGEST)
    written: date | None = None
    is_active: bool = True


class Process(Part):
    """How a product is made of others. Without an output (RUN) it is run for its effects."""

    name: Text = Field(min_length=1)
    output: Text | None
    timebase: Timebase
    satellite: Text | None = None
    inputs: tuple[Input, ...] = ()
    codes: tuple[Code, ...] = ()
    extra_params: tuple[Text, ...] = ()
    neighbours: bool | None = None
    on_code_change: Literal["rebuild", "hold"] = "rebuild"
    attempts: int = Field(default=3, ge=1, le=_LARGEST)
    priority: int = Field(default=0, ge=-_LARGEST, le=_LARGEST)


class Orbit(Part):
    """One numbered interval of a satellite: [start_at, stop_at). Times without a zone are UTC."""

    satellite: Text
    number: int = Field(ge=-_LARGEST, le=_LARGEST)
    start_at: Moment
    stop_at: Moment


class Mission(Part):
    """All of it. Folders are absolute; names are unique. `scratch` None: .headrace below the root.

    `is_part`: one of several files of a mission, as dbprocessing has one per instrument: what belongs to other
    instruments stays as it is when this one is loaded.
    """

    name: Text = Field(min_length=1)
    root: Folder
    incoming: Folder
    codes: Folder
    inspectors: Folder
    quarantine: Folder
    scratch: Folder | None = None
    hosts: tuple[Text, ...] = ()
    cut_off: bool = True
    neighbours: bool = True
    is_legacy: bool = False
    is_part: bool = False
    satellites: dict[Text, tuple[Text, ...]]
    products: tuple[Product, ...]
    processes: tuple[Process, ...] = ()
    orbits: tuple[Orbit, ...] = ()

    def document(self) -> dict[str, Any]:
        """The definition as JSON has it, for the mission's row; orbits have a table that holds them whole."""
        return self.model_dump(mode="json", exclude={"orbits"})
