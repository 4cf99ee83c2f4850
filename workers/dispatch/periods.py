"""Periods of time that partitions hold: hours, days and months of a time zone's clock, without a hole or an overlap.

A datetime that is aware is an instant, and its period has 23 or 25 hours where the zone's clock jumps; a naive one is
what a clock shows (columns of type date and timestamp), and clocks of that sort never jump.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

Length = Literal["hour", "day", "month"]

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` until just before `end`; `label` is what distinguishes it in a table's name."""

    start: datetime
    end: datetime
    label: str


def period_at(moment: datetime, length: Length, zone: tzinfo) -> Period:
    """The period that a moment falls into: instants in UTC for an aware one, clock times for a naive one.

    Raises OverflowError or ValueError at the ends of the calendar.
    """
    if moment.tzinfo is None:
        start = _floor(moment, length)
        return Period(start, _next(start, length), _label(start, length))
    if length == "hour":
        return _hour_at(moment.astimezone(UTC), zone)
    start = _floor(moment.astimezone(zone).replace(tzinfo=None, fold=0), length)
    # A clock that is set back over midnight shows yesterday again, and one that is set forward may leave a day out.
    while _instant(start, zone) > moment:
        start = _floor(start - SECOND, length)
    while _instant(_next(start, length), zone) <= moment:
        start = _next(start, length)
    return Period(_instant(start, zone), _instant(_next(start, length), zone), _label(start, length))


def periods_from(moment: datetime, length: Length, zone: tzinfo, *, count: int) -> Iterator[Period]:
    """The period of a moment, and those that follow it; `count` in all."""
    for _ in range(count):
        period = period_at(moment, length, zone)
        yield period
        moment = period.end


def gap_at(period: Period, moment: datetime, taken: Iterable[tuple[datetime, datetime]]) -> tuple[datetime, datetime]:
    """The part of a period around a moment that no range of `taken` covers; none of them may cover the moment."""
    start, end = period.start, period.end
    for lower, upper in taken:
        if upper <= moment:
            start = max(start, upper)
        else:
            end = min(end, lower)
    return start, end


def in_terms_of_column(moment: datetime, zone: tzinfo, *, is_instant: bool) -> datetime:
    """A moment as a column has it: an instant in UTC for timestamptz, else what the zone's clock shows, naive.

    Raises TypeError for a naive moment where an instant is wanted.
    """
    if is_instant:
        if moment.tzinfo is None:
            raise TypeError(f"{moment.isoformat()} has no time zone, and the partitions go by instants")
        return moment.astimezone(UTC)
    return moment if moment.tzinfo is None else moment.astimezone(zone).replace(tzinfo=None, fold=0)


def instant_of(moment: datetime, zone: tzinfo) -> datetime:
    """The instant (UTC) of a moment in a column's terms."""
    return _instant(moment, zone) if moment.tzinfo is None else moment.astimezone(UTC)


def _hour_at(moment: datetime, zone: tzinfo) -> Period:
    """An hour as the clock shows it, cut where the clock jumps in between (as on Lord Howe Island, by half an hour)."""
    offset = _offset(moment, zone)
    shown = _floor(moment.replace(tzinfo=None) + offset, "hour")
    whole = (shown - offset).replace(tzinfo=UTC)
    start, end = whole, whole + HOUR
    second = moment.replace(microsecond=0)
    if _offset(start, zone) != offset:
        start = _jump(start, second, zone)
    if _offset(end - SECOND, zone) != offset:
        end = _jump(second, end - SECOND, zone)
    label = _label(shown, "hour")
    if end - start != HOUR or _comes_twice(shown, zone) or _comes_twice(shown + HOUR - SECOND, zone):
        label += f"_utc{start:%H%M}"
    return Period(start, end, label)


def _jump(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The instant, to the second, at which the zone's offset changes from what it is before; it changes once."""
    offset = _offset(before, zone)
    while after - before > SECOND:
        middle = before + timedelta(seconds=(after - before) // SECOND // 2)
        before, after = (middle, after) if _offset(middle, zone) == offset else (before, middle)
    return after


def _comes_twice(shown: datetime, zone: tzinfo) -> bool:
    first = shown.replace(tzinfo=zone, fold=0).utcoffset() or timedelta()
    return first > (shown.replace(tzinfo=zone, fold=1).utcoffset() or timedelta())


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _instant(shown: datetime, zone: tzinfo) -> datetime:
    # fold=0: the first of two; for a time that is left out, the instant at which the clock jumps over it.
    return shown.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _floor(moment: datetime, length: Length) -> datetime:
    moment = moment.replace(minute=0, second=0, microsecond=0)
    if length != "hour":
        moment = moment.replace(hour=0)
    return moment.replace(day=1) if length == "month" else moment


def _next(start: datetime, length: Length) -> datetime:
    if length == "month":
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start + (HOUR if length == "hour" else timedelta(days=1))


def _label(start: datetime, length: Length) -> str:
    label = f"{start.year:04}_{start.month:02}"
    if length != "month":
        label += f"_{start.day:02}"
    return f"{label}_{start.hour:02}" if length == "hour" else label
