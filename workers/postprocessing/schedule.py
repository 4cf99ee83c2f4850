"""When a job is due: the slots of an interval, a cron expression or one moment, computed from parameters alone."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from workers.postprocessing import cron
from workers.zones import ScheduleError as ScheduleError
from workers.zones import find, to_utc, to_wall

MICROSECOND = timedelta(microseconds=1)
_DAYS_A_MONTH = 30
_MICROSECONDS_A_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval in the three parts that PostgreSQL keeps; a month and a day have no fixed length."""

    months: int = 0
    days: int = 0
    microseconds: int = 0

    def seconds(self) -> timedelta:
        """About how long it is, for caps and limits: a month is 30 days, a day 24 hours."""
        try:
            return timedelta(days=self.months * _DAYS_A_MONTH + self.days, microseconds=self.microseconds)
        except OverflowError:
            return timedelta.max


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job runs: at most one of `interval`, `cron` and `at`; none of them: only on request or after another.

    A `fixed` interval is the grid start + k * interval; one that is not counts from the end of the last run.
    `zone` names the clock that days, months and cron fields are read on; None is UTC. No slot lies before `start`.
    A fixed interval should have a `start`: without one, each question takes its own moment for the origin.
    """

    interval: Interval | None = None
    cron: str | None = None
    at: datetime | None = None
    fixed: bool = True
    zone: str | None = None
    start: datetime | None = None


def check(schedule: Schedule) -> None:
    """Raise ScheduleError, in one line for a person, if the schedule is wrong. The other functions check it too."""
    _zone(schedule)


@lru_cache(maxsize=4096)
def _zone(schedule: Schedule) -> tzinfo:
    """The time zone of a schedule that is in order."""
    if sum(part is not None for part in (schedule.interval, schedule.cron, schedule.at)) > 1:
        raise ScheduleError("a job has one of interval, cron and a single moment: drop the others")
    for name, moment in (("at", schedule.at), ("start", schedule.start)):
        if moment is not None and moment.tzinfo is None:
            raise ScheduleError(f"{name} {moment.isoformat(' ')} has no UTC offset: add one, such as +00:00")
    zone = find(schedule.zone)
    if schedule.cron is not None:
        cron.parse(schedule.cron)
    if schedule.interval is not None:
        _check_interval(schedule.interval, fixed=schedule.fixed)
    return zone


def _check_interval(interval: Interval, *, fixed: bool) -> None:
    parts = (interval.months, interval.days, interval.microseconds)
    if (parts[0] * _DAYS_A_MONTH + parts[1]) * _MICROSECONDS_A_DAY + parts[2] <= 0:
        raise ScheduleError("the interval must be longer than zero")
    if fixed and interval.months and (interval.days or interval.microseconds):
        raise ScheduleError(
            "month intervals cannot have day or time component: use whole months, or a schedule that is not fixed"
        )
    if fixed and min(parts) < 0:
        raise ScheduleError("a fixed interval cannot add days and take time off: write '1 day -01:00' as '23:00'")


def _utc(moment: datetime) -> datetime:
    """The moment in UTC: two datetimes of one ZoneInfo would be compared by their wall clocks."""
    return to_wall(moment, UTC).replace(tzinfo=UTC)


def next_slot(schedule: Schedule, after: datetime, *, last_finish: datetime | None = None) -> datetime | None:
    """The first slot strictly after `after`, in UTC; None if there is none. Raises ScheduleError.

    An interval that is not fixed: `last_finish` + interval, even when that has passed (then it is due now); of a job
    that never ended, `start`, or else `after` itself.
    """
    zone = _zone(schedule)
    after, start = _utc(after), schedule.start and _utc(schedule.start)
    if schedule.at is not None:
        return _utc(schedule.at) if _utc(schedule.at) > after else None
    if schedule.cron is not None:
        if start is not None:
            after = max(after, start - MICROSECOND)
        return cron.next_after(cron.parse(schedule.cron), zone, after)
    if schedule.interval is None:
        return None
    if not schedule.fixed:
        if last_finish is None:
            return start or after
        return _step(_utc(last_finish), schedule.interval, 1, zone)
    return next((slot for slot in _grid(start or after, schedule.interval, zone, after, 1) if slot > after), None)


def first_slot(schedule: Schedule, *, now: datetime) -> datetime | None:
    """The slot of a job that was never planned, in UTC; a slot that has passed is due now. Raises ScheduleError.

    A fixed interval: `start` if it is to come, else the last slot of the grid up to `now`. An interval without
    `start`, or not fixed: `now`, or a `start` to come. Cron: the first slot from `start` and `now` on. Else: `at`.
    """
    _zone(schedule)
    now, start = _utc(now), schedule.start and _utc(schedule.start)
    if schedule.at is not None:
        return _utc(schedule.at)
    if schedule.cron is not None:
        return next_slot(schedule, now - MICROSECOND)
    if schedule.interval is None:
        return None
    if start is None or start > now or not schedule.fixed:
        return max(start or now, now)
    return slots_between(schedule, start - MICROSECOND, now, 1)[0]


def slots_between(schedule: Schedule, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The slots with after < slot <= until, oldest first, in UTC; of more than `limit`, the newest.

    As fast for years as for minutes. An interval that is not fixed has no slots of its own, so none were missed.
    Raises ScheduleError.
    """
    zone = _zone(schedule)
    after, until, start = _utc(after), _utc(until), schedule.start and _utc(schedule.start)
    slots: list[datetime] = []
    if schedule.at is not None:
        slots = [_utc(schedule.at)] if after < _utc(schedule.at) <= until else []
    elif schedule.cron is not None:
        if start is not None:
            after = max(after, start - MICROSECOND)
        expression = cron.parse(schedule.cron)
        slot = cron.last_until(expression, zone, until) if after < until else None
        while slot is not None and slot > after and len(slots) < limit:
            slots.append(slot)
            slot = cron.last_until(expression, zone, slot - MICROSECOND)
    elif schedule.interval is not None and schedule.fixed:
        for slot in _grid(start or after, schedule.interval, zone, until, -1):
            if slot <= after or len(slots) >= limit:
                break
            if slot <= until and (not slots or slot < slots[-1]):
                slots.append(slot)
    return sorted(slots)[-limit:] if limit > 0 else []


def _grid(origin: datetime, interval: Interval, zone: tzinfo, near: datetime, direction: int) -> Iterator[datetime]:
    """Slots of the grid from one just before (direction 1) or just after (-1) `near`, onward; ends with the calendar.

    Two may be the same moment, where a day is left out of the calendar.
    """
    k = max(_estimate(origin, interval, near) - 2 * direction, 0)
    while k >= 0:
        slot = _step(origin, interval, k, zone)
        if slot is not None:
            yield slot
        elif direction > 0:
            return
        k += direction


def _estimate(origin: datetime, interval: Interval, near: datetime) -> int:
    """How many steps lie between the two moments, to within one or two: a clock is at most a day off another."""
    if interval.months:
        return ((near.year - origin.year) * 12 + near.month - origin.month) // interval.months
    return (near - origin) // interval.seconds()


def _step(origin: datetime, interval: Interval, k: int, zone: tzinfo) -> datetime | None:
    """`origin` + k * interval, in UTC; None beyond the calendar. The 31st becomes the last day of a shorter month.

    Months and days are counted on the clock of the zone; an interval of hours, minutes and seconds is elapsed time.
    """
    try:
        if k == 0:
            return origin
        if not interval.months and not interval.days:
            return origin + k * timedelta(microseconds=interval.microseconds)
        wall = to_wall(origin, zone)
        year, month = divmod(wall.year * 12 + wall.month - 1 + k * interval.months, 12)
        if not 1 <= year <= 9999:
            return None
        wall = wall.replace(year=year, month=month + 1, day=min(wall.day, monthrange(year, month + 1)[1]))
        return to_utc(wall + k * timedelta(days=interval.days, microseconds=interval.microseconds), zone)
    except OverflowError:
        return None
