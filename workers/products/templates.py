"""Names with {fields}: `demo_L0_{Y}{m}{d}_v{VERSION}.dat` filled with values, and read back out of a file's name.

A field that is not in FIELDS stands for any text without a slash. Of several ways to read a name the first is taken,
with such texts as short as they can be, and it is not given up again once what follows has been found: that keeps
reading linear in the name, where trying all divisions of it would take minutes for some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from string import Formatter

from workers.errors import PermanentFailure

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAY_FIELDS = frozenset({"Y", "y", "m", "b", "d", "j", "DATE", "datetime"})

_MONTH = "(?:0[1-9]|1[0-2])"
_DAY = "(?:0[1-9]|[12][0-9]|3[01])"
_DATE = f"(?:19|2[0-9])[0-9]{{2}}{_MONTH}{_DAY}"

# Not \d, which takes the digits of every script. Numbers have at most nine digits, so that they fit into an integer.
FIELDS: Mapping[str, str] = {
    "Y": "(?:19|2[0-9])[0-9]{2}",
    "y": "[0-9]{2}",
    "m": _MONTH,
    "b": f"(?:{'|'.join(MONTHS)})",
    "d": _DAY,
    "j": "(?:00[1-9]|0[1-9][0-9]|[12][0-9]{2}|3[0-5][0-9]|36[0-6])",
    "DATE": _DATE,
    "datetime": _DATE,
    "H": "(?:[01][0-9]|2[0-3])",
    "M": "[0-5][0-9]",
    "S": "(?:[0-5][0-9]|60)",
    "MILLI": "[0-9]{3}",
    "MICRO": "[0-9]{3}",
    "VERSION": r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}",
    "QACODE": "(?:ok|ignore|problem)",
    "mday": "-?[0-9]{1,9}",
    "ORBIT": "[0-9]{1,9}",
    "APID": "[0-9a-fA-F]+",
    # Of arguments, never of names: the only values that may hold a slash.
    "ROOTDIR": r"[^\0]+",
    "CODEDIR": r"[^\0]+",
}
_ANY = "[^/]"
_ANY_TEXT = f"{_ANY}+"
_NAME = re.compile(r"[^\s{}=:!/]+")
_PADDED = re.compile(r"0([1-9])d")
_OWN_SPECS = {"Y": "04d", "j": "03d", "MILLI": "03d", "MICRO": "03d", "mday": "d", "ORBIT": "d", "APID": "x"}
_OWN_SPECS |= dict.fromkeys(("y", "m", "d", "H", "M", "S"), "02d")
_SEPARATOR = "[-_. ]"
# A name that a person has mistyped: numbers that are not padded, dates with dashes, versions with a part missing.
_LOOSE: dict[str, tuple[str, int]] = dict.fromkeys(("m", "d", "H", "M", "S"), ("[0-9]{1,2}", 2)) | {
    "Y": ("[0-9]{4}", 4),
    "j": ("[0-9]{1,3}", 3),
    "DATE": (f"[0-9]{{4}}{_SEPARATOR}?[0-9]{{2}}{_SEPARATOR}?[0-9]{{2}}", 8),
    "datetime": (f"[0-9]{{4}}{_SEPARATOR}?[0-9]{{2}}{_SEPARATOR}?[0-9]{{2}}", 8),
    "VERSION": (f"[0-9]{{1,9}}(?:{_SEPARATOR}[0-9]{{1,9}}){{0,2}}", 0),
}
_KEYWORD = re.compile(r"(?:^| )([^ =]+)=(.*?)(?= [^ =]+=|\Z)", re.DOTALL)


class TemplateError(PermanentFailure):
    """A format cannot be read, or a value that it needs is not there or does not fit."""


class Template:
    """A format. `fields` are its fields in order, each once; `parts` are pairs of a literal and the field after it.

    `{ORBIT:05d}` is a number padded with zeros, `{{` and `}}` are braces. `of` tells in errors whose format it is
    ("product l1"). Raises TemplateError for unbalanced braces and fields without a usable name.
    """

    __slots__ = ("_pattern", "_whose", "_widths", "fields", "parts", "regex", "tail", "text")

    def __init__(self, text: str, *, of: str = "") -> None:
        self.text = text
        self._whose = f"format {text!r}" + (f" of {of}" if of else "")
        self._widths: dict[str, int] = {}
        parts: list[tuple[str, str]] = []
        self.tail = ""
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{self._whose}: {error}; a brace that is meant is written {{{{ or }}}}") from None
        for literal, name, spec, conversion in parsed:
            self.tail += literal
            if name is None:
                continue
            self._check(name, spec or "", conversion)
            parts.append((self.tail, name))
            self.tail = ""
        self.parts = tuple(parts)
        self.fields = tuple(dict.fromkeys(name for _, name in parts))
        #: Of a whole name; each of `fields` is a group of it.
        self.regex = self._regex()
        self._pattern: re.Pattern[str] | None = None

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def match(self, filename: str) -> dict[str, str] | None:
        """The values of the fields if the whole name fits; a field that occurs twice has to be the same twice."""
        if self._pattern is None:
            # Late: of hundreds of formats, most are told apart by their first letters.
            self._pattern = re.compile(self.regex)
        found = self._pattern.fullmatch(filename)
        return None if found is None else dict(zip(self.fields, found.groups(), strict=True))

    def guess(self, filename: str) -> dict[str, str] | None:
        """The values of a name that nearly fits: other letter case or separators, numbers not padded, `v1.0`."""
        squeezed = _squeeze(filename)
        literals = [*(literal.removesuffix("v") for literal, _ in self.parts), self.tail]
        if not all(_squeeze(literal) in squeezed for literal in literals) or sum(map(self.is_open, self.fields)) > 2:
            return None
        regex = ""
        for literal, name in self.parts:
            # Between two fields, as in {Y}{m}{d}, a separator is a mistake as well.
            regex += _loose_literal(literal) if literal else f"{_SEPARATOR}?"
            open_or_own = f"{_ANY}+?" if self.is_open(name) else self.regex_of(name)
            regex += f"({_LOOSE[name][0] if name in _LOOSE else open_or_own})"
        found = re.fullmatch(regex + _loose_literal(self.tail), filename, re.IGNORECASE)
        if found is None:
            return None
        names = (name for _, name in self.parts)
        return {name: _tidy(name, value) for name, value in zip(names, found.groups(), strict=True)}

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with these values; it may lack none of `fields`, and each has to fit its field."""
        filled = {name: self._fitting(name, values.get(name)) for name in self.fields}
        text = "".join(literal + filled[name] for literal, name in self.parts) + self.tail
        if ".." in text.split("/") and ".." not in self.text.split("/"):
            raise TemplateError(f"{self._whose} becomes {text!r}, which leads out of its folder")
        return text

    def is_open(self, name: str) -> bool:
        """Whether a field stands for any text."""
        return self.regex_of(name) == _ANY_TEXT

    def regex_of(self, name: str) -> str:
        """What a field's value looks like."""
        if name in self._widths:
            return f"[0-9]{{{self._widths[name]},}}"
        if name.strip("n") == "" and len(name) > 1:
            return f"[0-9]{{{len(name)}}}"
        if name.strip("?") == "":
            return f"{_ANY}{{{len(name)}}}"
        return FIELDS.get(name, _ANY_TEXT)

    def _check(self, name: str, spec: str, conversion: str | None) -> None:
        written = f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}"
        if not _NAME.fullmatch(name):
            raise TemplateError(f"{self._whose}: {written} is no field; a field has a name, as {{Y}} or {{VERSION}}")
        padded = _PADDED.fullmatch(spec)
        if conversion is None and spec in ("", "s", _OWN_SPECS.get(name)):
            return
        if conversion is not None or padded is None or (name in FIELDS and name not in ("ORBIT", "mday")):
            raise TemplateError(f"{self._whose}: {written} is not understood; write {{{name}}}")
        if self._widths.setdefault(name, int(padded[1])) != int(padded[1]):
            raise TemplateError(f"{self._whose} has {{{name}}} in two widths")

    def _fitting(self, name: str, value: str | None) -> str:
        if value is None:
            raise TemplateError(f"{self._whose} needs {{{name}}}, which nothing gives")
        value = value.zfill(self._widths.get(name, 0))
        if re.fullmatch(self.regex_of(name), value) is None:
            raise TemplateError(f"{self._whose}: {value!r} cannot be its {{{name}}}")
        return value

    def _regex(self) -> str:
        """Open texts and what follows up to the next one are atomic: once found, they are not tried elsewhere.

        That loses nothing, as the next open text can be longer instead; except before a field that comes again,
        which may have to be found elsewhere for both to be the same.
        """
        names = [name for _, name in self.parts]
        last_twice = max((names.index(name) for name in names if names.count(name) > 1), default=-1)
        opens = [index for index, name in enumerate(names) if self.is_open(name) and names.index(name) == index]
        regex = ""
        is_within = False
        for index, (literal, name) in enumerate(self.parts):
            regex += re.escape(literal)
            if names.index(name) < index:
                regex += f"(?:\\{self.fields.index(name) + 1})"
                continue
            if index not in opens:
                regex += f"({self.regex_of(name)})"
                continue
            if is_within:
                regex += f"(?={_ANY}))"
            is_within = index > last_twice and index != opens[-1]
            regex += f"{'(?>' if is_within else ''}({_ANY}+?)"
        return regex + re.escape(self.tail)


def _squeeze(text: str) -> str:
    return re.sub(_SEPARATOR, "", text).casefold()


def _loose_literal(literal: str) -> str:
    words = [re.escape(word) for word in re.split(f"{_SEPARATOR}+", literal)]
    if words[-1] == "v":
        words[-1] = "v?"
    return f"{_SEPARATOR}{{0,3}}".join(words)


def _tidy(name: str, value: str) -> str:
    if name == "VERSION":
        return ".".join([*re.split(_SEPARATOR, value), "0", "0"][:3])
    if name in _LOOSE:
        return re.sub(_SEPARATOR, "", value).zfill(_LOOSE[name][1])
    return {"b": value.capitalize(), "QACODE": value.lower()}.get(name, value)


def date_fields(day: date, moment: datetime | None = None) -> dict[str, str]:
    """The fields that a day gives, and with a moment (aware) the time of day as well."""
    date_text = f"{day:%Y%m%d}"
    year, month = f"{day.year:04d}", f"{day.month:02d}"
    values = {
        "Y": year,
        "y": year[2:],
        "m": month,
        "b": MONTHS[day.month - 1],
        "d": f"{day.day:02d}",
        "j": f"{day.timetuple().tm_yday:03d}",
        "DATE": date_text,
        "datetime": date_text,
    }
    if moment is not None:
        at = moment.astimezone(UTC)
        values |= {"H": f"{at.hour:02d}", "M": f"{at.minute:02d}", "S": f"{at.second:02d}"}
        values |= {"MILLI": f"{at.microsecond // 1000:03d}", "MICRO": f"{at.microsecond % 1000:03d}"}
    return values


def key_text(values: Mapping[str, str]) -> str:
    """Values as a key or keywords have them: `H=03 SIDE=b`, sorted by name."""
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


def key_values(text: str) -> dict[str, str]:
    """What `key_text` was made of. A value may hold blanks, but no blank and word with an equals sign."""
    return dict(_KEYWORD.findall(text))
