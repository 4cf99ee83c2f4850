"""Cron expressions: croniter reads their syntax, and which moments they mean across clock changes is decided here.

Five fields: minute, hour, day of month, month, weekday (0 and 7 are Sunday). Six fields: **seconds first**, then those
five, as Quartz and Spring have them. `@hourly @daily @midnight @weekly @monthly @yearly @annually`, names (MON, JAN),
lists, ranges, steps, `L` and pg_cron's `$` for the last day of the month, `MON#1` (first Monday), `L5` (last Friday).
If the day of month and the weekday are both given, either is enough; if one of the two begins with `*`, both must
hold (so in Vixie cron and pg_cron).

Clock changes, by the hour field:

- without `*` (`30 2 * * *`) each local slot runs exactly once: one that the clocks leave out is shifted forward by as
  much as the clocks were, one that comes twice runs at the first. Slots that meet in one moment are one slot.
- with `*` (`*/30 * * * *`, `0 */2 * * *`) real time counts: every moment whose local time matches, so none in
  an hour that is left out, and both times in an hour that comes twice.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

from croniter import croniter  # type: ignore[import-untyped]

from workers.zones import ScheduleError, to_utc, to_wall

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
# 29 February falls on each weekday within 28 years, but for a century that is no leap year.
GIVE_UP = timedelta(days=41 * 366)
# No clock was ever changed by more than a day, nor twice within two days (since 1950).
NEAR = timedelta(hours=25)
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIELDS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day of month": "1-31 or L",
    "month": "1-12 or JAN-DEC",
    "weekday": "0-7 or SUN-SAT",
}
# What may stand in a field at all. Not H and R (croniter draws lots for them) and not W.
_FIELD = re.compile(r"[0-9A-Za-z*?/,#-]+")
_LOTTERY = re.compile(r"(?:^|,)(?:[hr](?=$|[(/,])|[0-9]*w[0-9]*(?=$|,))", re.IGNORECASE)
# croniter reads 5-5 as the whole field; everybody else as 5.
_ONE_VALUE_RANGE = re.compile(r"(?<![\w/#-])(\w+)-\1(?:/\d+)?(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression, read. None stands for "all" in `days` and `weekdays` (0 = Sunday)."""

    hours: tuple[int, ...]
    within_hour: tuple[int, ...]  # seconds after the full hour, ascending
    follows_real_time: bool
    months: frozenset[int]
    days: frozenset[int] | None
    last_day: bool
    weekdays: frozenset[int] | None
    nth: tuple[tuple[int, int], ...]  # (weekday, which one in the month; 0 = the last)
    either_day: bool

    def matches(self, day: date) -> bool:
        """Whether the date fits; the hours are another matter."""
        if day.month not in self.months:
            return False
        length = monthrange(day.year, day.month)[1]
        by_day = self.days is None or day.day in self.days or (self.last_day and day.day == length)
        weekday = day.isoweekday() % 7
        by_weekday = self.weekdays is None or weekday in self.weekdays
        if by_weekday and self.nth:
            places = ((day.day + 6) // 7, 0 if day.day + 7 > length else -1)
            by_weekday = any((weekday, place) in self.nth for place in places)
        return (by_day or by_weekday) if self.either_day else (by_day and by_weekday)


@lru_cache(maxsize=4096)
def parse(text: str) -> Cron:
    """Read an expression. Raises ScheduleError, also for one that never comes, such as 30 February."""
    line = text.strip()
    if line.startswith("@"):
        if line.lower() not in ALIASES:
            raise ScheduleError(f"cron {text!r} is not known: use one of {' '.join(ALIASES)}, or five fields")
        line = ALIASES[line.lower()]
    values = line.split()
    if len(values) not in (5, 6):
        raise ScheduleError(
            f"cron {text!r} has {len(values)} field{'' if len(values) == 1 else 's'}: write five (minute, hour, "
            "day of month, month, weekday), or six with the seconds first"
        )
    second, minute, hour, day, month, weekday = values if len(values) == 6 else ["0", *values]
    days = _read(text, "day of month", day)[0]
    weekdays, nth = _read(text, "weekday", weekday)
    seconds, minutes, hours, months = (
        _numbers(_read(text, name, value)[0], span)
        for name, value, span in (
            ("second", second, range(60)),
            ("minute", minute, range(60)),
            ("hour", hour, range(24)),
            ("month", month, range(1, 13)),
        )
    )
    cron = Cron(
        hours=tuple(hours),
        within_hour=tuple(m * 60 + s for m in minutes for s in seconds),
        follows_real_time="*" in hour,
        months=frozenset(months),
        days=None if "*" in days else frozenset(_numbers(days, range(0))),
        last_day="l" in days,
        weekdays=None if "*" in weekdays else frozenset(_numbers(weekdays, range(0))),
        nth=tuple(sorted((on, 0 if place == "l" else int(place)) for on, places in nth.items() for place in places)),
        either_day=day[0] not in "*?" and weekday[0] not in "*?",
    )
    # Any 41 years have every date on every weekday that it can have: which ones are looked at makes no difference.
    if next(_days(cron, date(2000, 1, 1), 1), None) is None:
        raise ScheduleError(f"cron {text!r} never comes: no month of the year has such a day")
    return cron


def _numbers(values: Sequence[int | str], everything: range) -> list[int]:
    return list(everything) if "*" in values else sorted({value for value in values if isinstance(value, int)})


def _read(text: str, name: str, value: str) -> tuple[list[int | str], dict[int, set[int | str]]]:
    """One field by itself, through croniter, so that a mistake is told by the name of its field."""
    position = max(list(FIELDS).index(name) - 1, 0)  # croniter has minutes first; seconds read like minutes
    known = value
    if name == "day of month":
        known = ",".join("L" if part == "$" else part for part in value.split(","))
    if _FIELD.fullmatch(known) and not _LOTTERY.search(known):
        fields = ["*"] * 5
        fields[position] = _ONE_VALUE_RANGE.sub(r"\1", known)
        try:
            expanded, nth = croniter.expand(" ".join(fields))
            return expanded[position], nth
        except ValueError:
            pass  # croniter's text speaks of its own numbering of fields
    raise ScheduleError(
        f"cron {text!r}: the {name} {value!r} is not understood; it takes {FIELDS[name]}, *, and lists, ranges and "
        "steps such as 1,4-10/2"
    )


def next_after(cron: Cron, zone: tzinfo, moment: datetime) -> datetime | None:
    """The first slot after `moment`, in UTC; None if the calendar ends before."""
    try:
        wall = to_wall(moment, zone)
        found: datetime | None = None
        end: datetime | None = None
        for hour in _hours(cron, wall - _disorder(wall, zone), 1):
            if end is not None and hour > end:
                break
            base, offsets = _block(cron, zone, hour)
            place = bisect_right(offsets, (moment - base) // SECOND)
            if place < len(offsets):
                slot = base + offsets[place] * SECOND
                if found is None or slot < found:
                    found, shown = slot, to_wall(slot, zone)
                    end = shown + _disorder(shown, zone)
        return found
    except OverflowError:
        return None


def last_until(cron: Cron, zone: tzinfo, moment: datetime) -> datetime | None:
    """The last slot at or before `moment`, in UTC; None if the calendar begins after."""
    try:
        wall = to_wall(moment, zone)
        found: datetime | None = None
        end: datetime | None = None
        for hour in _hours(cron, wall + _disorder(wall, zone), -1):
            if end is not None and hour + HOUR < end:
                break
            base, offsets = _block(cron, zone, hour)
            place = bisect_right(offsets, (moment - base) // SECOND)
            if place:
                slot = base + offsets[place - 1] * SECOND
                if found is None or slot > found:
                    found, shown = slot, to_wall(slot, zone)
                    end = shown - _disorder(shown, zone)
        return found
    except OverflowError:
        return None


def _disorder(wall: datetime, zone: tzinfo) -> timedelta:
    """By how much local times around `wall` may come in another order than their moments: the clock change nearby."""
    if zone is UTC:
        return timedelta(0)
    offsets = [(wall + shift).replace(tzinfo=zone).utcoffset() or timedelta(0) for shift in (-NEAR, timedelta(0), NEAR)]
    return max(offsets) - min(offsets)


def _hours(cron: Cron, wall: datetime, step: int) -> Iterator[datetime]:
    """The starts of the local hours that match, from the hour of `wall` on, forward (step 1) or backward (-1)."""
    start = wall.replace(minute=0, second=0, microsecond=0)
    for day in _days(cron, start.date(), step):
        for hour in cron.hours[::step]:
            begin = datetime.combine(day, time(hour))
            if (begin - start) * step >= timedelta(0):
                yield begin


def _days(cron: Cron, day: date, step: int) -> Iterator[date]:
    """The dates that match, from `day` on, forward or backward; ends with the calendar, or 41 years after the last."""
    seen = day
    while abs(day - seen) < GIVE_UP:
        if cron.matches(day):
            seen = day
            yield day
        elif day.month not in cron.months:  # to the end of the month in one stride
            day = day.replace(day=monthrange(day.year, day.month)[1] if step > 0 else 1)
        if day == (date.max if step > 0 else date.min):
            return
        day += step * DAY


def _block(cron: Cron, zone: tzinfo, hour: datetime) -> tuple[datetime, Sequence[int]]:
    """The slots that the local hour means: a moment, and ascending seconds after it."""
    base, last = to_utc(hour, zone), hour + HOUR - SECOND
    if to_utc(last, zone) == to_utc(last, zone, second=True) == base + HOUR - SECOND:
        return base, cron.within_hour
    slots: set[int] = set()
    for offset in cron.within_hour:
        wall = hour + offset * SECOND
        meant = {to_utc(wall, zone)}
        if cron.follows_real_time:
            both = meant | {to_utc(wall, zone, second=True)}
            meant = {moment for moment in both if to_wall(moment, zone) == wall}
        slots.update((moment - base) // SECOND for moment in meant)
    return base, sorted(slots)
