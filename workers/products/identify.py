"""What a file is, as its name tells: of which product, which day, which version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any, Literal

from workers.products import versions
from workers.products.templates import DAY_FIELDS, MONTHS, Template, TemplateError, date_fields, key_text
from workers.products.versions import Version

Covers = Literal["hour", "day", "month", "year"]

_COARSEST_FIRST: tuple[Covers, ...] = ("year", "month", "day", "hour")
_NOTED = frozenset({"QACODE", "mday"})
# A two-digit year below this is of the 21st century.
_FIRST_OF_1900S = 70
_MICROSECOND = timedelta(microseconds=1)
_ANY_DAY = date(2000, 1, 1)
# How much of two names' letters has to be the same before one is said to be meant by the other.
_ALIKE = 0.75
_SOME_DATE = re.compile(r"(?<![0-9])((?:19|2[0-9])[0-9]{2})[-_. ]?([01][0-9])[-_. ]?([0-3][0-9])(?![0-9])")
_SOME_VERSION = re.compile(r"[vV]([0-9]{1,9})(?:[._-]([0-9]{1,9}))?(?:[._-]([0-9]{1,9}))?(?![0-9])")


@dataclass(frozen=True, slots=True)
class Known:
    """A product as far as names go: `format` is its files' name with {fields}, `covers` the period of one file."""

    product_id: int
    name: str
    format: str
    covers: Covers | None = None
    has_inspector: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's place in the inventory. It holds data of [start_at, stop_at], both aware UTC."""

    product_id: int
    product: str
    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    version: Version
    keywords: str = ""
    notes: dict[str, Any] | None = None


class Names:
    """The names of a mission's products. Raises TemplateError for a format that cannot be read.

    Worth keeping until the definition changes: each format is compiled when the first name comes that it may fit.
    """

    def __init__(self, products: Iterable[Known]) -> None:
        self._readers: list[_Reader] = []
        for product in products:
            try:
                self._readers.append(_Reader(product))
            except TemplateError:
                # What an inspector makes of its format is its own affair; here it is only good for suggestions.
                if not product.has_inspector:
                    raise
        # Formats by their first letters, whatever number of them: a look-up for each number, not a try of each format.
        self._by_start: dict[int, dict[str, list[_Reader]]] = {}
        for reader in self._readers:
            if not reader.known.has_inspector:
                same_length = self._by_start.setdefault(len(reader.start), {})
                same_length.setdefault(reader.start, []).append(reader)
        self._by_shape: dict[str, list[_Reader]] = {}
        for reader in self._readers:
            self._by_shape.setdefault(reader.shape(), []).append(reader)
        # Misnamed files come in series, and comparing one with hundreds of shapes takes tens of milliseconds.
        self._near_shapes = lru_cache(maxsize=1000)(self._compare_shapes)

    def candidates(self, filename: str) -> list[Identity]:
        """What a file (its name, in text form) may be. Products with an inspector are left out: that one tells."""
        found = []
        for length, readers in self._by_start.items():
            for reader in readers.get(filename[:length], ()):
                if reader.longest in filename and (values := reader.template.match(filename)) is not None:
                    try:
                        found.append(reader.identity(values))
                    except ValueError:
                        continue
        return found

    def suggest(self, filename: str) -> str | None:
        """What a file without candidates was probably meant to be, for a person; None: no idea."""
        if self.candidates(filename):
            return None
        near = [reader for shape in self._near_shapes(_shape(filename)) for reader in self._by_shape[shape]]
        for reader in near:
            problem = reader.problem(filename)
            if problem is not None:
                return problem
        guesses = [(reader, reader.name_for(reader.template.guess(filename))) for reader in near]
        proposals = [(_likeness(filename, name), reader, name) for reader, name in guesses if name is not None]
        if not proposals:
            told = _date_and_version(filename)
            guesses = [(reader, reader.name_for(told)) for reader in near]
            proposals = [(_likeness(filename, name), reader, name) for reader, name in guesses if name is not None]
            proposals = [one for one in proposals if _is_alike(filename, one[2])]
        if proposals:
            _, reader, name = max(proposals, key=lambda one: one[0])
            return f"did you mean product {reader.known.name}, as in {name}?"
        if near and _is_alike(filename, near[0].shape()):
            return f"did you mean product {near[0].known.name}, whose files are named {near[0].known.format}?"
        return None

    def _compare_shapes(self, shape: str) -> list[str]:
        return get_close_matches(shape, self._by_shape, n=5, cutoff=0.6)


class _Reader:
    """One product's format, and what its fields say of a file."""

    __slots__ = ("_covers", "_date_fields", "_in_key", "_noted", "known", "longest", "start", "template")

    def __init__(self, known: Known) -> None:
        self.known = known
        self.template = Template(known.format, of=f"product {known.name}")
        fields = frozenset(self.template.fields)
        literals = [*(literal for literal, _ in self.template.parts), self.template.tail]
        self.start = literals[0]
        self.longest = max(literals, key=len)
        self._date_fields = sorted(fields & DAY_FIELDS)
        others = fields - DAY_FIELDS - _NOTED - {"VERSION"}
        self._in_key = sorted(name for name in others if name.strip("?") != "")
        self._noted = sorted(fields & _NOTED)
        # What is declared, but never finer than what the name tells.
        told: Covers = "year"
        if fields & {"d", "j", "DATE", "datetime"}:
            told = "hour" if "H" in fields else "day"
        elif fields & {"m", "b"}:
            told = "month"
        self._covers = min(known.covers or told, told, key=_COARSEST_FIRST.index)

    def identity(self, values: Mapping[str, str]) -> Identity:
        """What a file with these values is. Raises ValueError if they are no day or no version."""
        if "VERSION" not in values:
            raise ValueError("a name of its format tells no version")
        version = versions.parse(values["VERSION"])
        day = _day(values)
        facts = date_fields(day)
        for name in self._date_fields:
            if values[name] != facts[name]:
                raise ValueError(f"its {{{name}}} is {values[name]}, but {day} has {facts[name]}")
        start_at, stop_at = _period(self._covers, day, int(values.get("H", 0)))
        keywords = {name: values[name] for name in self._in_key}
        if "ORBIT" in keywords:
            # As the table of orbits has it, however the name pads it.
            keywords["ORBIT"] = str(int(keywords["ORBIT"]))
        key = key_text(keywords)
        notes = {name: values[name] for name in self._noted} or None
        return Identity(self.known.product_id, self.known.name, day, key, start_at, stop_at, version, key, notes)

    def problem(self, filename: str) -> str | None:
        """Why a file that is named like this product is none of it; None: it is not named so."""
        values = self.template.match(filename)
        if values is None:
            return None
        if self.known.has_inspector:
            return f"it is named like product {self.known.name}, whose inspector did not take it"
        try:
            self.identity(values)
        except ValueError as error:
            return f"it is named like product {self.known.name}, but {error}"
        return None

    def shape(self) -> str:
        """A name of this product, for comparison with the shape of another one."""
        examples = date_fields(_ANY_DAY, datetime.combine(_ANY_DAY, time(), UTC)) | {"VERSION": "1.0.0", "mday": "0000"}
        pairs = [(literal, examples.get(name) or name.replace("n", "0")) for literal, name in self.template.parts]
        return _shape("".join(literal + example for literal, example in pairs) + self.template.tail)

    def name_for(self, values: Mapping[str, str] | None) -> str | None:
        """The name with these values, if a file of it would be one of this product."""
        if values is None:
            return None
        try:
            name = self.template.fill(values)
            if not self.known.has_inspector:
                self.identity(values)
        except (TemplateError, ValueError):
            return None
        return name


def _day(values: Mapping[str, str]) -> date:
    """The day of the date fields; a month or a year without one begins on its first."""
    whole = values.get("DATE") or values.get("datetime")
    if whole is not None:
        year, month, day = int(whole[:4]), int(whole[4:6]), int(whole[6:])
    else:
        if "Y" in values:
            year = int(values["Y"])
        elif "y" in values:
            year = int(values["y"]) + (2000 if int(values["y"]) < _FIRST_OF_1900S else 1900)
        else:
            raise ValueError("a name of its format tells no year")
        if "j" in values:
            of_year = date(year, 1, 1) + timedelta(days=int(values["j"]) - 1)
            if of_year.year != year:
                raise ValueError(f"{year} has no day {values['j']}")
            return of_year
        month = int(values.get("m", 1)) if "b" not in values else MONTHS.index(values["b"]) + 1
        if "d" in values and not values.keys() & {"m", "b"}:
            raise ValueError("a name of its format tells no month")
        day = int(values.get("d", 1))
    try:
        return date(year, month, day)
    except ValueError:
        raise ValueError(f"{year:04d}-{month:02d}-{day:02d} is no date") from None


def _period(covers: Covers, day: date, hour: int) -> tuple[datetime, datetime]:
    """The first and last microsecond of the hour, day, month or year of a day."""
    start = datetime(day.year, day.month, day.day, hour if covers == "hour" else 0, tzinfo=UTC)
    if covers == "hour":
        return start, start + timedelta(hours=1) - _MICROSECOND
    if covers == "day":
        return start, start + timedelta(days=1) - _MICROSECOND
    if covers == "month":
        start = start.replace(day=1)
        return start, (start + timedelta(days=31)).replace(day=1) - _MICROSECOND
    start = start.replace(month=1, day=1)
    return start, start.replace(year=start.year + 1) - _MICROSECOND


def _shape(name: str) -> str:
    """A name without what differs from file to file, or by mistake: digits, letter case, which separator."""
    return re.sub("[-. ]", "_", re.sub("[0-9]", "0", name.casefold()))


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _is_alike(one: str, other: str) -> bool:
    """Whether the letters agree: digits and separators would make every name with a date a near one."""
    return _likeness(*("".join(filter(str.isalpha, name.casefold())) for name in (one, other))) >= _ALIKE


def _date_and_version(filename: str) -> dict[str, str] | None:
    """What a name tells whatever its format, if it tells that much."""
    found, version = _SOME_DATE.search(filename), _SOME_VERSION.search(filename)
    if found is None or version is None:
        return None
    try:
        day = date(*map(int, found.groups()))
    except ValueError:
        return None
    return date_fields(day) | {"VERSION": ".".join(version[part] or "0" for part in (1, 2, 3))}
