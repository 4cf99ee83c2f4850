"""Whether the text of a date or time is ISO's, which means the same moment under every DateStyle."""

from __future__ import annotations

import re

# What has no hyphen after four characters; only years before 4714 can be BC, and no zone of such far years has seconds.
_RARE_ISO = re.compile(r"-?infinity|\d{5,}-\d\d-\d\d(?:[ T][\d:.]+(?:[+-][\d:]+)?)?", re.ASCII)


def is_iso(value: str) -> bool:
    """Whether PostgreSQL printed this date, timestamp or timestamptz in ISO style (or jsontriga with its T).

    In the SQL, Postgres and German styles 03/11/2026, 03-11-2026 and 03.11.2026 are two days, according to an order
    that the text does not tell. Only for what PostgreSQL prints: it says nothing about whether a text is a date at all.
    """
    # No other style has a hyphen after four characters: they begin with 03/11, 03-11, 03.11 or the day's name.
    return value[4:5] == "-" or _RARE_ISO.fullmatch(value) is not None
