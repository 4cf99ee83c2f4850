"""File names of telemetry: which device wrote the file, and the time of its first record."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

# `NAME_20240415223050997960288.bintel`, as MagAO-X programs name their files, or
# `NAME_2024-04-15T223050.ndjson.gz`, as its Python devices do. Both mean UTC.
_STAMPED = re.compile(
    r"(.*)_(?:(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d{6})(\d{3})|(\d{4})-(\d\d)-(\d\d)T(\d\d)(\d\d)(\d\d))(?:\..*)?",
    re.ASCII | re.DOTALL,
)
_SUFFIX = re.compile(r"\.(?:bintel|binlog|ndjson)(?:\.|$)")


class FileName(NamedTuple):
    """What a name says: `stamp` is aware UTC to the microsecond, `ns` the nanoseconds below it (0-999).

    Without a stamp that exists as a time, `stamp` is None and `device` the name up to its first known suffix.
    """

    device: str
    stamp: datetime | None
    ns: int


def parse_name(name: str) -> FileName:
    """Device and first instant from a file's name (no folders). Any string is an answer; nothing is raised."""
    match = _STAMPED.fullmatch(name)
    if match is not None:
        device, *parts = match.groups()
        try:
            if parts[0] is not None:
                year, month, day, hour, minute, second, microsecond, ns = map(int, parts[:8])
                return FileName(device, datetime(year, month, day, hour, minute, second, microsecond, tzinfo=UTC), ns)
            year, month, day, hour, minute, second = map(int, parts[8:])
            return FileName(device, datetime(year, month, day, hour, minute, second, tzinfo=UTC), 0)
        except ValueError:
            pass  # month 13 and the like: no stamp
    suffix = _SUFFIX.search(name)
    return FileName(name[: suffix.start()] if suffix else name, None, 0)
