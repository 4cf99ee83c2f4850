"""Records on their way into `telem`: one COPY line each, and the dead letters of what is no record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Any

DELIMITER = b"\x02"
QUOTE = b"\x01"
EMPTY_FIELD = QUOTE + QUOTE  # an empty text; nothing at all is NULL
RAW_LIMIT = 65_536  # bytes of a dead letter that are kept
_SPECIAL = re.compile(rb"[\x01\x02\r\n]")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})|000)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Bytes `start` to `end` of a file (of its decompressed content for a .gz) that are no record, and why."""

    start: int
    end: int
    reason: str
    raw: bytes


@dataclass(slots=True)
class Parsed:
    """COPY lines with the byte range that each came from, the dead letters between them, and how many
    NaN or infinite numbers became null."""

    lines: list[bytes] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    nulled: int = 0


def dead_letter(start: int, end: int, reason: str, raw: bytes) -> DeadLetter:
    """A dead letter that keeps at most the first 64 KiB."""
    return DeadLetter(start, end, reason, bytes(raw[:RAW_LIMIT]))


def copy_field(value: bytes) -> bytes:
    """A value as a field of our COPY dialect; only bytes that the dialect itself uses need quotes."""
    if not _SPECIAL.search(value):
        return value
    return QUOTE + value.replace(QUOTE, QUOTE + QUOTE) + QUOTE


def copy_line(device: bytes, stamp: bytes, nanoseconds: bytes, prio: bytes, event: bytes, message: bytes) -> bytes:
    """One line for `copy_telem`: fields are ready for COPY, `nanoseconds` is below the microsecond (0-999)."""
    return DELIMITER.join((device, stamp, nanoseconds, prio, event, message))


def split_timestamp(text: str) -> tuple[str, int]:
    """(timestamp to the microsecond as PostgreSQL reads it, nanoseconds below it 0-999).

    Naive means UTC. Truncates, as xtelemdb did: PostgreSQL itself would round. `...:59000` is what an
    instrument writes at microsecond 0: second 59 and no fraction. Raises ValueError for anything else.
    """
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"the timestamp {text[:40]!r} is not of the form YYYY-MM-DDTHH:MM:SS.fraction")
    day, clock, fraction, zone = match.groups()
    digits = (fraction or "").ljust(9, "0")
    date.fromisoformat(day)
    if not (clock[:2] < "24" and clock[3:5] < "60" and clock[6:] < "61"):
        raise ValueError(f"the time of day {clock!r} does not exist")
    return f"{day}T{clock}.{digits[:6]}{'' if zone in (None, 'Z') else zone}", int(digits[6:])


def holds_nul(value: Any) -> bool:
    """Whether a decoded JSON value has U+0000 in a string or a key: jsonb cannot hold it."""
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or holds_nul(item) for key, item in value.items())
    if isinstance(value, list):
        return any(holds_nul(item) for item in value)
    return False


def count_unreal(value: Any) -> int:
    """How many NaN or infinite numbers a decoded value holds."""
    if isinstance(value, float):
        return int(value != value or value in (float("inf"), float("-inf")))
    if isinstance(value, dict):
        return sum(count_unreal(item) for item in value.values())
    if isinstance(value, list):
        return sum(count_unreal(item) for item in value)
    return 0
