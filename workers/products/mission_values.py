"""The values of a mission's YAML file: texts, days, sizes and times, each read strictly and written shortly.

A reader raises ValueError, whose text says what was expected.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from workers.products import versions
from workers.settings import did_you_mean

_DECIMAL = {"TB": 10**12, "GB": 10**9, "MB": 10**6}
_SIZES = {**_DECIMAL, "kB": 10**3, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"(\d+)(\.\d+)?\s*({'|'.join(_SIZES)})?", re.ASCII)
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_TIMES = (86_400, 3_600, 60, 1)
_KINDS: dict[type, str] = {str: "a text", dict: "a section", list: "a list", bytes: "binary text"}


def _found(value: object) -> str:
    if isinstance(value, bool):
        return f"found {str(value).lower()}"
    shown = repr(value) if isinstance(value, str) and len(value) < 40 else None
    if isinstance(value, int | float | date):
        shown = str(value)
    return f"found {shown or _KINDS.get(type(value), 'something else')}"


def text(value: Any) -> str:
    """A text. What YAML takes for a number is refused: 007 has become seven, and 1.10 has become 1.1."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, {_found(value)}; write it in quotes")
    return value


def section(value: Any) -> dict[Any, Any]:
    """Keys and values."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a section of `key: value` lines, {_found(value)}")
    return value


def items(value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list, {_found(value)}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text(one) for one in items(value))


def words(value: Any) -> tuple[str, ...]:
    """Words of a command line: a list, or one text that is divided as a shell does it."""
    return tuple(shlex.split(value)) if isinstance(value, str) else texts(value)


def named_texts(value: Any) -> dict[str, str]:
    """A text for each key."""
    return {text(key): text(one) for key, one in section(value).items()}


def environment(value: Any) -> dict[str, str]:
    """Variables of an environment."""
    found = named_texts(value)
    for name in found:
        if not name or "=" in name:
            raise ValueError(f"{name!r} is no name of a variable")
    return found


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, {_found(value)}")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    if type(value) is not int:
        raise ValueError(f"expected a whole number, {_found(value)}")
    return value


def number(value: Any) -> float:
    """A number that is neither infinite nor none."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"expected a number, {_found(value)}")
    return float(value)


def as_number(value: float) -> float | int:
    """A number, without a point if it is whole."""
    return int(value) if value.is_integer() else value


def version(value: Any) -> versions.Version:
    """A version; 1.0 is a number to YAML, and none."""
    return versions.parse(str(value) if type(value) in (int, float) else text(value))


def day(value: Any) -> date:
    """A day."""
    if isinstance(value, str):
        value = date.fromisoformat(value.strip())
    if type(value) is not date:
        raise ValueError(f"expected a day such as 2020-01-31, {_found(value)}")
    return value


def moment(value: Any) -> datetime:
    """A time; without a zone as it is, for the definition takes it for UTC."""
    if isinstance(value, str):
        return datetime.fromisoformat(value.strip())
    return value if isinstance(value, datetime) else datetime.combine(day(value), datetime.min.time())


def size(value: Any) -> int:
    """Bytes: a number, or one with a unit."""
    match = _SIZE.fullmatch(str(value).strip()) if type(value) in (int, str) else None
    if match is None:
        raise ValueError(f"expected a size such as 2GB or 500MiB, {_found(value)}")
    unit = _SIZES[match[3] or "B"]
    return int(match[1]) * unit + round(float(match[2] or 0) * unit)


def as_size(count: int) -> int | str:
    """Bytes, with a unit if they are many and round."""
    return next((f"{count // unit}{name}" for name, unit in _DECIMAL.items() if count and count % unit == 0), count)


def seconds(value: Any) -> float:
    """Seconds: a number, or a time with units."""
    if type(value) in (int, float):
        return number(value)
    match = _TIME.fullmatch(value.replace(" ", "")) if isinstance(value, str) and value.strip() else None
    if match is None:
        raise ValueError(f"expected seconds, or a time such as 10m or 1h30m, {_found(value)}")
    return sum(float(part) * unit for part, unit in zip(match.groups("0"), _TIMES, strict=True))


def as_seconds(value: float) -> float | str:
    """Seconds, or a time in the largest unit in which it is whole."""
    units = ((unit, name) for unit, name in zip(_TIMES[1:], "hms", strict=True) if value % unit == 0)
    return next((f"{value / unit:.0f}{name}" for unit, name in units), value)


def trailer(value: Any) -> bytes:
    """The end of a file: a text, or `!!binary` where it is none."""
    return value if isinstance(value, bytes) else text(value).encode()


def as_trailer(value: bytes) -> bytes | str:
    """A text where it is one."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    """A reader of one of these words."""

    def read(value: Any) -> str:
        if text(value) not in known:
            raise ValueError(f"{value!r} is not known{did_you_mean(value, known)}")
        return str(value)

    return read
