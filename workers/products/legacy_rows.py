"""What a dbprocessing database holds, as its tables say it; older ones have fewer tables and other columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from workers import paths
from workers.errors import PermanentFailure
from workers.products.versions import Part, Version

REQUIRED = ("mission", "satellite", "instrument", "product", "process", "productprocesslink", "file", "code")
OPTIONAL = ("filefilelink", "filecodelink", "inspector", "processqueue", "release", "logging")
BUMPS: tuple[Part, ...] = ("interface", "quality", "revision")  # processqueue.version_bump 0, 1, 2
NOTES = ("quality_comment", "caveats", "check_date", "quality_checked", "met_start_time", "met_stop_time")

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class LegacyMission:
    """Folders as they stand there: relative ones, `~` and blanks included."""

    id: int
    name: str
    root: str
    incoming: str
    codes: str | None
    inspectors: str | None
    errors: str | None
    satellites: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LegacyProduct:
    """A kind of file, with the names of its instrument and satellite."""

    id: int
    mission: int
    satellite: str
    instrument: str
    name: str
    folder: str
    level: float
    format: str
    description: str


@dataclass(frozen=True, slots=True)
class LegacyInput:
    """A product that a process reads."""

    product: int
    is_required: bool
    yesterday: int
    tomorrow: int


@dataclass(frozen=True, slots=True)
class LegacyProcess:
    """A process; `extra_params` are words divided by |."""

    id: int
    name: str
    output: int | None
    timebase: str
    extra_params: str
    inputs: tuple[LegacyInput, ...]


@dataclass(frozen=True, slots=True)
class LegacyCode:
    """A code; it is used where it is both active and newest."""

    id: int
    process: int
    version: Version
    filename: str
    folder: str
    description: str
    output_interface: int
    valid_from: date | None
    valid_until: date | None
    written: date | None
    arguments: str
    cpu: int
    is_active: bool


@dataclass(frozen=True, slots=True)
class LegacyInspector:
    """An inspector of one product."""

    product: int
    filename: str
    folder: str
    description: str
    version: Version
    arguments: str
    is_active: bool


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """A file; `name` is in the file system's own form, `created` the local time that the disk said, without a zone."""

    id: int
    product: int
    name: str
    day: date | None
    start: datetime | None
    stop: datetime | None
    version: Version
    created: datetime | None
    exists: bool
    sha1: str | None
    keywords: str
    command: str
    notes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Legacy:
    """All that counts of a dbprocessing database; files are in the order of their ids."""

    source: str
    missions: tuple[LegacyMission, ...]
    products: Mapping[int, LegacyProduct]
    processes: tuple[LegacyProcess, ...]
    codes: Mapping[int, LegacyCode]
    inspectors: tuple[LegacyInspector, ...]
    files: Mapping[int, LegacyFile]
    parents: Mapping[int, Sequence[int]]
    made_by: Mapping[int, int]
    queue: Mapping[int, Part | None]
    releases: Mapping[str, Sequence[int]]
    is_locked: bool


def legacy(source: str, tables: Tables) -> Legacy:
    """All of it out of the rows of each table. Raises PermanentFailure for what dbprocessing does not make."""
    missing = [name for name in REQUIRED if name not in tables]
    if missing:
        raise PermanentFailure(f"{source}: no dbprocessing database: the tables {', '.join(missing)} are missing")
    try:
        return _legacy(source, defaultdict(list, tables))
    except (KeyError, ValueError, TypeError) as error:
        raise PermanentFailure(f"{source}: a row is not as dbprocessing makes it: {error!r}; mend it there") from error


def _legacy(source: str, tables: Tables) -> Legacy:
    satellites = {row["satellite_id"]: row for row in tables["satellite"]}
    instruments = {row["instrument_id"]: row for row in tables["instrument"]}
    inputs: dict[int, list[LegacyInput]] = defaultdict(list)
    for row in tables["productprocesslink"]:
        days = int(row.get("yesterday") or 0), int(row.get("tomorrow") or 0)
        inputs[row["process_id"]].append(LegacyInput(row["input_product_id"], not _true(row.get("optional")), *days))
    products = {}
    for row in tables["product"]:
        instrument = instruments[row["instrument_id"]]
        satellite = satellites[instrument["satellite_id"]]
        products[row["product_id"]] = LegacyProduct(
            row["product_id"], satellite["mission_id"], _text(satellite["satellite_name"]),
            _text(instrument["instrument_name"]), _text(row["product_name"]), _text(row["relative_path"]),
            float(row["level"]), _text(row["format"]), _text(row.get("product_description")),
        )  # fmt: skip
    parents: dict[int, list[int]] = defaultdict(list)
    for row in tables["filefilelink"]:
        parents[row["resulting_file"]].append(row["source_file"])
    releases: dict[str, list[int]] = defaultdict(list)
    for row in tables["release"]:
        releases[str(row["release_num"])].append(row["file_id"])
    return Legacy(
        source=source,
        missions=tuple(_mission(row, satellites.values(), instruments.values()) for row in tables["mission"]),
        products=products,
        processes=tuple(
            LegacyProcess(
                row["process_id"], _text(row["process_name"]), row.get("output_product"),
                _text(row.get("output_timebase")).strip().upper(), _text(row.get("extra_params")),
                tuple(inputs[row["process_id"]]),
            )
            for row in tables["process"]
        ),
        codes={row["code_id"]: _code(row) for row in tables["code"]},
        inspectors=tuple(_inspector(row) for row in sorted(tables["inspector"], key=lambda row: row["inspector_id"])),
        files={row["file_id"]: _file(row) for row in sorted(tables["file"], key=lambda row: row["file_id"])},
        parents=parents,
        made_by={row["resulting_file"]: row["source_code"] for row in tables["filecodelink"]},
        queue={
            row["file_id"]: None if row.get("version_bump") is None else BUMPS[max(0, row["version_bump"])]
            for row in tables["processqueue"]
        },
        releases=releases,
        is_locked=any(_true(row.get("currently_processing")) for row in tables["logging"]),
    )  # fmt: skip


def _mission(row: Row, satellites: Iterable[Row], instruments: Iterable[Row]) -> LegacyMission:
    names: dict[int, list[str]] = defaultdict(list)
    for one in instruments:
        names[one["satellite_id"]].append(_text(one["instrument_name"]))
    return LegacyMission(
        row["mission_id"], _text(row["mission_name"]), row["rootdir"], row["incoming_dir"], row.get("codedir"),
        row.get("inspectordir"), row.get("errordir"),
        {
            _text(one["satellite_name"]): tuple(names[one["satellite_id"]])
            for one in satellites
            if one["mission_id"] == row["mission_id"]
        },
    )  # fmt: skip


def _code(row: Row) -> LegacyCode:
    return LegacyCode(
        row["code_id"], row["process_id"], _version(row), _text(row["filename"]), _text(row["relative_path"]),
        _text(row.get("code_description")), int(row.get("output_interface_version") or 1),
        _date(row.get("code_start_date")), _date(row.get("code_stop_date")), _date(row.get("date_written")),
        _text(row.get("arguments")), int(row.get("cpu") or 1),
        _true(row["active_code"]) and _true(row.get("newest_version", True)),
    )  # fmt: skip


def _inspector(row: Row) -> LegacyInspector:
    return LegacyInspector(
        row["product"], _text(row["filename"]), _text(row["relative_path"]), _text(row.get("description")),
        _version(row), _text(row.get("arguments")), _true(row["active_code"]),
    )  # fmt: skip


def _file(row: Row) -> LegacyFile:
    return LegacyFile(
        row["file_id"], row["product_id"], row["filename"], _date(row.get("utc_file_date")),
        _time(row.get("utc_start_time")), _time(row.get("utc_stop_time")), _version(row),
        _time(row.get("file_create_date")), _true(row["exists_on_disk"]), row.get("shasum") or None,
        _text(row.get("process_keywords")).strip(), _text(row.get("verbose_provenance")),
        {name: one if isinstance(one, int | float) else _text(one) for name in NOTES if (one := row.get(name))},
    )  # fmt: skip


def _version(row: Row) -> Version:
    return Version(int(row["interface_version"]), int(row["quality_version"]), int(row["revision_version"]))


def _text(value: Any) -> str:
    # sqlite holds any bytes; what is no UTF-8 is kept escaped, as names of files are.
    text = "" if value is None else str(value)
    return text if text.isascii() else paths.to_text(text)


def _true(value: Any) -> bool:
    return value in (True, "t", "true", "True", "1")  # sqlite has no booleans: 1 there


def _date(value: Any) -> date | None:
    return None if value is None else date.fromisoformat(str(value)[:10])


def _time(value: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(str(value))
