"""Wall clocks: time zones by their exact name, and local times mapped to UTC by one written rule.

The rule: a local time that a clock change leaves out is shifted forward by as much as the clock was (Europe/Paris,
28 March 2027: 02:30 is 03:30 CEST, 01:30 UTC); of a local time that comes twice, the first is meant.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

# What these two mean depends on the machine.
_NOT_PLACES = frozenset({"localtime", "Factory"})


class ScheduleError(ValueError):
    """A schedule, a time zone or a window that cannot be understood; one line that says what, which and what to do."""


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(available_timezones()) - _NOT_PLACES


@lru_cache(maxsize=1024)
def find(name: str | None) -> tzinfo:
    """The time zone of that name, spelt exactly as in the IANA database; None is UTC. Raises ScheduleError.

    ZoneInfo alone is not asked: on some file systems it takes 'EuRoPe/PaRiS' for Europe/Paris, and on others not.
    """
    if name is None or name == "UTC":
        return UTC
    if name not in _names():
        meant = next((known for known in sorted(_names()) if known.lower() == name.strip().lower()), None)
        advice = f"did you mean {meant!r}?" if meant else "use a name of the IANA database, such as 'Europe/Paris'"
        raise ScheduleError(f"there is no time zone {name!r}: {advice}")
    return ZoneInfo(name)


def to_utc(wall: datetime, zone: tzinfo, *, second: bool = False) -> datetime:
    """The moment at which the clocks of the zone show `wall` (naive), by the rule of this module; aware, UTC.

    With `second`, the later of the two moments where a local time comes twice. Raises OverflowError at the ends
    of the calendar.
    """
    return wall.replace(tzinfo=zone, fold=1 if second else 0).astimezone(UTC)


def to_wall(moment: datetime, zone: tzinfo) -> datetime:
    """What the clocks of the zone show at that moment, as a naive datetime. `moment` must be aware (TypeError)."""
    if moment.tzinfo is None:
        raise TypeError(f"{moment.isoformat()} has no time zone: moments are aware datetimes here")
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)
