"""Windows: the hours of the week in which a job may start, on the clock of its time zone.

'22:00-06:00', 'Mon-Fri 22:00-06:00, Sun 00:00-24:00'. Without days: every day. Days may run over the week end
(Fri-Mon), hours over midnight: such a window belongs to the day on which it opens. The end is no longer inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

from workers.zones import ScheduleError, find, to_utc, to_wall

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORM = re.compile(r"(?:([A-Za-z]+)(?:\s*-\s*([A-Za-z]+))?\s+)?(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)")
_EXAMPLE = "write 'HH:MM-HH:MM' or 'Mon-Fri 22:00-06:00, Sun 00:00-24:00'"
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """One window: the weekdays it opens on (0 = Monday), and minutes after their midnight; it may close a day later."""

    weekdays: frozenset[int]
    opens: int
    closes: int


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a job; they may overlap."""

    text: str
    windows: tuple[Window, ...]


@lru_cache(maxsize=1024)
def parse(text: str) -> Windows:
    """Read windows. Raises ScheduleError, in one line for a person."""
    return Windows(text, tuple(_window(text, part.strip()) for part in text.split(",")))


def _window(text: str, part: str) -> Window:
    form = _FORM.fullmatch(part)
    if form is None:
        raise ScheduleError(f"window {text!r}: {part!r} is not understood; {_EXAMPLE}")
    first, last, *numbers = form.groups()
    opening_hour, opening_minute, closing_hour, closing_minute = map(int, numbers)
    opens, closes = opening_hour * 60 + opening_minute, closing_hour * 60 + closing_minute
    if max(opening_minute, closing_minute) > 59 or opens >= 24 * 60 or closes > 24 * 60:
        raise ScheduleError(f"window {text!r}: {part!r} has no such time; use 00:00 to 23:59, for the end also 24:00")
    if opens == closes or (opens, closes) == (0, 0):
        raise ScheduleError(f"window {text!r}: {part!r} ends where it begins; write 00:00-24:00 for whole days")
    weekdays = frozenset(range(7))
    if first is not None:
        begin = _weekday(text, first)
        length = (_weekday(text, last) - begin) % 7 if last is not None else 0
        weekdays = frozenset((begin + step) % 7 for step in range(length + 1))
    return Window(weekdays, opens, closes if closes > opens else closes + 24 * 60)


def _weekday(text: str, name: str) -> int:
    known = [place for place, full in enumerate(WEEKDAYS) if len(name) >= 3 and full.startswith(name.lower())]
    if not known:
        raise ScheduleError(f"window {text!r}: {name!r} is no day of the week; use Mon Tue Wed Thu Fri Sat Sun")
    return known[0]


def opens_at(windows: Windows, zone: str | None, moment: datetime) -> datetime:
    """`moment` itself if a window is open then, else the next opening; in UTC. Raises ScheduleError for the zone.

    Where a clock change leaves out the opening, it opens as much later; where it comes twice, at the first.
    """
    where, moment = find(zone), to_wall(moment, UTC).replace(tzinfo=UTC)
    spans = list(_spans(windows, where, moment))
    if any(begin <= moment < end for begin, end in spans):
        return moment
    return min(begin for begin, _end in spans if begin > moment)


def _spans(windows: Windows, zone: tzinfo, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Every opening and closing from two days before to nine days after `moment`.

    Two and nine: a window may have opened the day before, and some zones once left out a whole day.
    """
    today = to_wall(moment, zone).date()
    for day in (today + shift * _DAY for shift in range(-2, 10)):
        for window in windows.windows:
            if day.weekday() in window.weekdays:
                yield _span(window, zone, day)


def _span(window: Window, zone: tzinfo, day: date) -> tuple[datetime, datetime]:
    midnight = datetime.combine(day, time())
    begin = to_utc(midnight + timedelta(minutes=window.opens), zone)
    end = to_utc(midnight + timedelta(minutes=window.closes), zone)
    if end <= begin:  # only its opening was left out of the day: it keeps its length, or its jobs would wait a week
        end = begin + timedelta(minutes=window.closes - window.opens)
    return begin, end
