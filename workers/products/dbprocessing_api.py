"""What a site's inspectors import as `dbprocessing`: ours under that name, so that they run here unchanged.

Only the inspectors' own process installs it, see inspector_child. An inspector tells what a file is from its
name, its content and its arguments; what needs dbprocessing's database says so when it is used.
Names, signatures and naive UTC times are dbprocessing's, because inspectors use them.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, total_ordering
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

_DAY = re.compile(r"[12][90]\d\d[01]\d[0-3]\d")
_MONTH = re.compile(r"[12][90]\d\d[01]\d")
_VERSION = re.compile(r"[vV](\d+)\.(\d+)\.(\d+)\.")
# A number before the first satellite, or after 2050-01-01, is no date.
_EARLIEST = datetime.datetime(1957, 10, 4, 19, 28, 34)  # noqa: DTZ001
_LATEST = datetime.datetime(2050, 1, 1)  # noqa: DTZ001
_PARAMETERS = (
    "utc_file_date", "utc_start_time", "utc_stop_time", "data_level", "check_date", "verbose_provenance",
    "quality_comment", "caveats", "file_create_date", "met_start_time", "met_stop_time", "exists_on_disk",
    "quality_checked", "product_id", "shasum", "version", "process_keywords",
)  # fmt: skip
_NOT_HERE = ("DBfile", "DBqueue", "DButils", "dbprocessing", "module", "reports", "runMe", "tables")


class NotForInspectors(RuntimeError):
    """An inspector wants something of dbprocessing that needs its database."""


def _refuse(what: str) -> NoReturn:
    raise NotForInspectors(
        f"{what} is not there for inspectors: tell what a file is from its name, its content and the arguments"
    )


class VersionError(Exception):
    """No version: the interface part counts from 1."""


@total_ordering
class Version:
    """A version that inspectors make, compare and count up."""

    def __init__(self, interface_version: Any, quality_version: Any, revision_version: Any) -> None:
        self.interface = int(interface_version)
        self.quality = int(quality_version)
        self.revision = int(revision_version)
        if self.interface == 0:
            raise VersionError("the interface part of a version counts from 1")

    @staticmethod
    def fromString(inval: str) -> Version:  # noqa: N802
        """A version out of `x.y.z`. Raises TypeError or ValueError for anything else."""
        return Version(*inval.split("."))

    def _parts(self) -> tuple[int, int, int]:
        return (self.interface, self.quality, self.revision)

    def __str__(self) -> str:
        return ".".join(str(part) for part in self._parts())

    def __repr__(self) -> str:
        return f"Version: {self}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    __hash__ = None  # type: ignore[assignment]  # It counts up: not a key.

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._parts() == other._parts()

    def __lt__(self, other: Version) -> bool:
        return self._parts() < other._parts()

    def __sub__(self, other: Version) -> list[int]:
        return [mine - its for mine, its in zip(self._parts(), other._parts(), strict=True)]

    def incInterface(self) -> None:  # noqa: N802
        """The next interface: X.0.0."""
        self.interface, self.quality, self.revision = self.interface + 1, 0, 0

    def incQuality(self) -> None:  # noqa: N802
        """The next quality: x.Y.0."""
        self.quality, self.revision = self.quality + 1, 0

    def incRevision(self) -> None:  # noqa: N802
        """The next revision: x.y.Z."""
        self.revision += 1


class Database:
    """Stands where dbprocessing gives inspectors its database: it knows the mission and the product asked about."""

    def __init__(self, mission: str, product: SimpleNamespace) -> None:
        self.mission = mission
        self._product = product

    def getEntry(self, table: str, args: object) -> SimpleNamespace:  # noqa: N802
        """The product that is asked about: product_id, product_name, level, format."""
        if (table, args) != ("Product", self._product.product_id):
            _refuse(f"dbu.getEntry({table!r}, {args!r})")
        return self._product

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f"dbu.{name}")


class Diskfile:
    """What an inspector fills: `params`."""

    def __init__(self, infile: str, dbu: Database) -> None:
        self.infile = infile
        self.path, self.filename = os.path.split(infile)
        self.params: dict[str, Any] = {"filename": self.filename, **dict.fromkeys(_PARAMETERS)}
        self.dbu = dbu
        self.mission = dbu.mission


class inspector:  # noqa: N801
    """Base of every `Inspector`. Making one inspects the file; calling it gives the Diskfile, or None: not mine.

    `answer` is what `inspect` returned.
    """

    code_name: str | None = None

    def __init__(self, filename: str, dbu: Database, product: int, **kwargs: str) -> None:
        self.dbu = dbu
        self.filename = filename
        self.dirname, self.basename = os.path.split(filename)
        self.product = product
        self.filenameformat: str = dbu.getEntry("Product", product).format
        self.diskfile: Diskfile | None = Diskfile(filename, dbu)
        self.answer = self.inspect(kwargs)
        if self.answer is None:
            self.diskfile = None

    @cached_property
    def filenameregex(self) -> str:
        """The product's name as a regular expression."""
        return _regex_of(self.filenameformat)

    def inspect(self, kwargs: dict[str, str]) -> Any:
        """Sites write this: None when the file is not of this product, anything else when it is."""
        raise NotImplementedError("an Inspector needs a method inspect(self, kwargs)")

    def __call__(self) -> Diskfile | None:
        return self.diskfile

    def extract_YYYYMMDD(self) -> datetime.datetime | None:  # noqa: N802
        """The day in this file's name."""
        return extract_YYYYMMDD(self.filename)


def _regex_of(template: str, *args: Any, **kwargs: Any) -> str:
    from workers.products.templates import Template

    return Template(template).regex


def _moment(digits: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime(int(digits[:4]), int(digits[4:6]), int(digits[6:] or 1))  # noqa: DTZ001
    except ValueError:
        return None
    return moment if _EARLIEST <= moment <= _LATEST else None


def _first_moment(pattern: re.Pattern[str], filename: str) -> datetime.datetime | None:
    # The name before its folders: a scratch folder's number that looks like a day must not win.
    for text in (os.path.basename(filename), filename):
        for digits in pattern.findall(text):
            if (moment := _moment(digits)) is not None:
                return moment
    return None


def extract_YYYYMMDD(filename: str) -> datetime.datetime | None:  # noqa: N802
    """The first day written as YYYYMMDD in a name (midnight UTC, naive), or None."""
    return _first_moment(_DAY, filename)


def extract_YYYYMM(filename: str) -> datetime.date | None:  # noqa: N802
    """The first day of the first month written as YYYYMM in a name, or None."""
    moment = _first_moment(_MONTH, filename)
    return None if moment is None else moment.date()


def valid_YYYYMMDD(inval: str) -> bool:  # noqa: N802
    """Whether a text is a day written as YYYYMMDD."""
    try:
        datetime.date(int(inval[:4]), int(inval[4:6]), int(inval[6:]))
    except ValueError:
        return False
    return len(inval) == 8


def extract_Version(filename: str, basename: bool = False) -> Any:  # noqa: N802
    """The first `vX.Y.Z.` in a name, or None; with `basename` a pair of it and of what stands before it."""
    found = _VERSION.search(filename)
    if found is None:
        return None
    version = Version(*found.groups())
    return (version, filename[: found.start()]) if basename else version


def _digest(infile: str) -> str:
    import hashlib

    with open(infile, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _to_date(dt: Any) -> Any:
    return dt.date() if isinstance(dt, datetime.datetime) else dt


def _parse_date(inval: str) -> datetime.datetime:
    return datetime.datetime.strptime(inval, "%Y-%m-%d")  # noqa: DTZ007


def _to_datetime(dt: Any, end: bool = False) -> datetime.datetime:
    if isinstance(dt, datetime.datetime):
        return dt
    day = _parse_date(dt) if isinstance(dt, str) else dt
    return datetime.datetime(day.year, day.month, day.day, *((23, 59, 59, 999999) if end else ()))  # noqa: DTZ001


def _days_between(start_time: Any, stop_time: Any) -> list[Any]:
    return [start_time + datetime.timedelta(days=number) for number in range((stop_time - start_time).days + 1)]


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            yield from _flatten(value)
        else:
            yield value


def _arguments(strargs: Any) -> dict[str, str] | None:
    if strargs is None:
        return None
    words = strargs.split() if isinstance(strargs, str) else " ".join(strargs).split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


class _Formatter:
    re = staticmethod(_regex_of)


class _Logging(ModuleType):
    # logging costs more to load than an inspector takes: only those who log pay.
    @cached_property
    def dblogger(self) -> Any:
        import logging

        return logging.getLogger("DBLogger")


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f"{self.__name__}.{name}")


def install(modules: dict[str, ModuleType]) -> None:
    """Put `dbprocessing` and its modules into `modules`, which is sys.modules, before any that is installed."""
    logging: ModuleType = _Logging("dbprocessing.DBlogging")
    version = _module("Version", Version=Version, VersionError=VersionError)
    diskfile = _module("Diskfile", Diskfile=Diskfile, calcDigest=_digest)
    strings = _module("DBstrings", DBformatter=_Formatter)
    functions: dict[str, Callable[..., Any]] = {
        "datetimeToDate": _to_date, "toDatetime": _to_datetime, "parseDate": _parse_date,
        "parseVersion": Version.fromString, "expandDates": _days_between, "flatten": _flatten,
        "daterange_to_dates": lambda daterange: _days_between(*daterange), "strargs_to_args": _arguments,
        "toBool": lambda value: value in (True, "True", "true", "Yes", "yes", "Y", "y"),
        "toNone": lambda value: None if value in (None, "", "None", "none", "NONE") else value,
        "unique": lambda seq: list(dict.fromkeys(seq)),
        "chunker": lambda seq, size: (seq[start : start + size] for start in range(0, len(seq), size)),
    }  # fmt: skip
    inspectors = _module(
        "inspector", inspector=inspector, extract_YYYYMMDD=extract_YYYYMMDD, extract_YYYYMM=extract_YYYYMM,
        valid_YYYYMMDD=valid_YYYYMMDD, extract_Version=extract_Version, DefaultFormatter=_Formatter,
        Version=version, Diskfile=diskfile, DBlogging=logging, DBstrings=strings, datetime=datetime, os=os, re=re,
    )  # fmt: skip
    package = ModuleType("dbprocessing")
    package.__path__ = []  # A package without a folder: nothing of an installed one is found below it.
    modules["dbprocessing"] = package
    utilities = _module("Utils", Version=version, **functions)
    absent = [_Absent(f"dbprocessing.{name}") for name in _NOT_HERE]
    for module in (logging, version, diskfile, strings, utilities, inspectors, *absent):
        modules[module.__name__] = module
        setattr(package, module.__name__.rpartition(".")[2], module)


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(f"dbprocessing.{name}")
    vars(module).update(contents)
    return module
