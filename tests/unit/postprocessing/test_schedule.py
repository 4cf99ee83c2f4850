"""Slots: when a job is due, across clock changes, month ends and years of absence."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.postprocessing.schedule import (
    Interval,
    Schedule,
    ScheduleError,
    check,
    first_slot,
    next_slot,
    slots_between,
)

PARIS = "Europe/Paris"
ZONES = (PARIS, "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo", "Pacific/Apia")
TICK = timedelta(microseconds=1)
SECOND = 1_000_000
HOUR = 3600 * SECOND

# Until 2019 Brazil changed its clocks, in 2011 Samoa left out a day, and in 2028 there is a 29 February.
moments = st.timedeltas(timedelta(0), timedelta(days=20 * 365)).map(
    lambda since: datetime(2010, 1, 1, tzinfo=UTC) + since
)
zones = st.sampled_from([None, "Asia/Kathmandu", *ZONES])


def moment(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def following(schedule: Schedule, after: str, count: int) -> list[datetime]:
    """So many slots, each asked for with the one before."""
    slots, last = [], moment(after)
    for _ in range(count):
        slot = next_slot(schedule, last)
        assert slot is not None
        slots.append(slot)
        last = slot
    return slots


def local_day(day: date, zone: str) -> tuple[datetime, datetime]:
    """What slots_between takes for all of a local calendar day."""
    begin = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    after = day + timedelta(days=1)
    return begin - TICK, datetime(after.year, after.month, after.day, tzinfo=ZoneInfo(zone)).astimezone(UTC) - TICK


@pytest.mark.parametrize(
    ("cron", "zone", "after", "slots"),
    [
        ("30 2 * * *", PARIS, "2027-03-26 12:00", ["2027-03-27 01:30", "2027-03-28 01:30", "2027-03-29 00:30"]),
        ("30 2 * * *", PARIS, "2027-10-29 12:00", ["2027-10-30 00:30", "2027-10-31 00:30", "2027-11-01 01:30"]),
        # Two slots that meet in one moment are one.
        ("0 2,3 * * *", PARIS, "2027-03-28 00:00", ["2027-03-28 01:00", "2027-03-29 00:00", "2027-03-29 01:00"]),
        ("30 2 * * *", None, "2027-03-27 12:00", ["2027-03-28 02:30", "2027-03-29 02:30"]),
        # The shifted slots of the hour left out come between those of the next hour.
        ("*/30 2,3 * * *", PARIS, "2027-03-28 00:59", ["2027-03-28 01:00", "2027-03-28 01:30", "2027-03-29 00:00"]),
        ("45 2,3 * * *", PARIS, "2027-03-28 01:44", ["2027-03-28 01:45", "2027-03-29 00:45"]),
        ("45 2 * * *", PARIS, "2027-03-28 01:20", ["2027-03-28 01:45", "2027-03-29 00:45"]),
        # Three hours left out, from 04:00 to 07:00: 04:00 is 07:00, 06:00 is 09:00, and 08:00 lies between the two.
        (
            "0 4,6,8 * * *",
            "Antarctica/Casey",
            "2018-10-06 12:00",
            ["2018-10-06 20:00", "2018-10-06 21:00", "2018-10-06 22:00", "2018-10-07 17:00"],
        ),
        ("*/30 2 * * *", PARIS, "2027-10-31 00:00", ["2027-10-31 00:30", "2027-11-01 01:00"]),
        # A step of hours is real time: no 02:00 in spring, two in autumn.
        ("0 */2 * * *", PARIS, "2027-03-27 22:59", ["2027-03-27 23:00", "2027-03-28 02:00", "2027-03-28 04:00"]),
        ("0 */2 * * *", PARIS, "2027-10-30 22:01", ["2027-10-31 00:00", "2027-10-31 01:00", "2027-10-31 03:00"]),
        # Half an hour is left out (02:00 to 02:30) or repeated (01:30 to 02:00).
        ("15 2 * * *", "Australia/Lord_Howe", "2027-10-02 00:00", ["2027-10-02 15:45", "2027-10-03 15:15"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2027-04-03 00:00", ["2027-04-03 14:45", "2027-04-04 15:15"]),
        (
            "*/15 * * * *",
            "Australia/Lord_Howe",
            "2027-04-03 14:30",
            ["2027-04-03 14:45", "2027-04-03 15:00", "2027-04-03 15:15", "2027-04-03 15:30"],
        ),
        ("0 6 * * *", "Asia/Kathmandu", "2027-01-01 00:00", ["2027-01-01 00:15", "2027-01-02 00:15"]),
        # There was no 30 December 2011 in Apia: its slot meets that of the 31st.
        ("0 9 * * *", "Pacific/Apia", "2011-12-28 20:00", ["2011-12-29 19:00", "2011-12-30 19:00", "2011-12-31 19:00"]),
        ("0 9 30 12 *", "Pacific/Apia", "2011-01-01 00:00", ["2011-12-30 19:00", "2012-12-29 19:00"]),
        # 30 September 1969 came twice on Kwajalein, from 01:00 on.
        (
            "0 */12 * * *",
            "Pacific/Kwajalein",
            "1969-09-29 12:00",
            ["1969-09-29 13:00", "1969-09-30 01:00", "1969-10-01 00:00", "1969-10-01 12:00"],
        ),
        ("0 */6 * * *", "Pacific/Kwajalein", "1969-09-29 23:00", ["1969-09-30 01:00", "1969-09-30 07:00"]),
        # No midnight: the clocks went from 24:00 to 01:00.
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03 03:00", ["2018-11-04 03:00", "2018-11-05 02:00"]),
        ("30 0 * * *", "Africa/Cairo", "2027-04-29 00:00", ["2027-04-29 22:30", "2027-04-30 21:30"]),
        ("30 23 * * *", "Africa/Cairo", "2027-10-28 00:00", ["2027-10-28 20:30", "2027-10-29 21:30"]),
        # Syntax.
        ("@hourly", None, "2027-01-01 00:00", ["2027-01-01 01:00"]),
        ("@daily", PARIS, "2027-01-01 00:00", ["2027-01-01 23:00"]),
        ("@midnight", None, "2027-01-01 00:00", ["2027-01-02 00:00"]),
        ("@weekly", None, "2027-01-01 00:00", ["2027-01-03 00:00", "2027-01-10 00:00"]),
        ("@monthly", None, "2027-01-01 00:00", ["2027-02-01 00:00"]),
        ("@Yearly", None, "2027-01-01 00:00", ["2028-01-01 00:00"]),
        ("@annually", None, "2027-01-01 00:00", ["2028-01-01 00:00"]),
        (
            "*/20 30 4 * * *",
            None,
            "2027-01-01 04:30",
            ["2027-01-01 04:30:20", "2027-01-01 04:30:40", "2027-01-02 04:30"],
        ),
        ("0 4 L * *", None, "2027-01-31 04:00", ["2027-02-28 04:00", "2027-03-31 04:00"]),
        ("0 4 $ * *", None, "2028-01-31 04:00", ["2028-02-29 04:00", "2028-03-31 04:00"]),
        ("0 4 15,$ feb *", None, "2027-01-31 04:00", ["2027-02-15 04:00", "2027-02-28 04:00", "2028-02-15 04:00"]),
        ("0 4 * JAN-MAR mon", None, "2027-03-22 04:00", ["2027-03-29 04:00", "2028-01-03 04:00"]),
        ("0 4 * * 6-7", None, "2027-01-01 00:00", ["2027-01-02 04:00", "2027-01-03 04:00", "2027-01-09 04:00"]),
        ("0 4 * * Fri-Mon", None, "2027-01-01 05:00", ["2027-01-02 04:00", "2027-01-03 04:00", "2027-01-04 04:00"]),
        ("0 4 * * MON#1", None, "2027-01-01 00:00", ["2027-01-04 04:00", "2027-02-01 04:00"]),
        ("0 4 * * MON#1", None, "2027-05-31 12:00", ["2027-06-07 04:00", "2027-07-05 04:00"]),
        ("0 4 * * L5", None, "2027-01-01 00:00", ["2027-01-29 04:00", "2027-02-26 04:00"]),
        ("0 4 * * L5", None, "2027-04-01 00:00", ["2027-04-30 04:00", "2027-05-28 04:00"]),
        ("0 2-2 * * *", None, "2027-01-01 00:00", ["2027-01-01 02:00", "2027-01-02 02:00"]),
        ("0 22-2/2 * * *", None, "2027-01-01 01:00", ["2027-01-01 02:00", "2027-01-01 22:00", "2027-01-02 00:00"]),
        # Day of month and weekday: either, unless one begins with a star.
        ("0 4 13 * FRI", None, "2027-01-07 00:00", ["2027-01-08 04:00", "2027-01-13 04:00", "2027-01-15 04:00"]),
        ("0 4 */2 * FRI", None, "2027-01-07 00:00", ["2027-01-15 04:00", "2027-01-29 04:00", "2027-02-05 04:00"]),
        ("0 4 29 2 */7", None, "2027-01-01 00:00", ["2032-02-29 04:00", "2060-02-29 04:00"]),
    ],
)
def test_cron(cron: str, zone: str | None, after: str, slots: list[str]) -> None:
    """Each slot follows the one before it, and all of them are found backwards as well."""
    schedule = Schedule(cron=cron, zone=zone)
    expected = [moment(slot) for slot in slots]
    assert following(schedule, after, len(slots)) == expected
    assert slots_between(schedule, moment(after), expected[-1], 100) == expected


@pytest.mark.parametrize(("day", "runs"), [(date(2027, 3, 28), 46), (date(2027, 10, 31), 50), (date(2027, 6, 1), 48)])
def test_a_wildcard_hour_follows_real_time(day: date, runs: int) -> None:
    """Every half hour is every half hour, on a day of 23 hours and on one of 25."""
    after, until = local_day(day, PARIS)
    slots = slots_between(Schedule(cron="*/30 * * * *", zone=PARIS), after, until, 100)
    assert len(slots) == runs
    assert {later - earlier for earlier, later in pairwise(slots)} == {timedelta(minutes=30)}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("clock", ["30 0", "15 1", "30 2", "0 3", "30 23"])
def test_a_daily_cron_runs_once_on_every_local_day(clock: str, zone: str) -> None:
    """On each calendar day of three years there is one slot, at the hour asked for or where the clocks moved it."""
    first, last = date(2026, 1, 1), date(2028, 12, 31)
    schedule = Schedule(cron=f"{clock} * * *", zone=zone)
    slots = slots_between(schedule, local_day(first, zone)[0], local_day(last, zone)[1], 10_000)
    days = [slot.astimezone(ZoneInfo(zone)).date() for slot in slots]
    assert days == [first + timedelta(days=number) for number in range((last - first).days + 1)]


def test_a_day_left_out_of_the_calendar_has_no_slot() -> None:
    """Apia went from 29 to 31 December 2011: ten days, nine slots."""
    schedule = Schedule(cron="30 2 * * *", zone="Pacific/Apia")
    after, until = local_day(date(2011, 12, 25), "Pacific/Apia")[0], local_day(date(2012, 1, 3), "Pacific/Apia")[1]
    days = [slot.astimezone(ZoneInfo("Pacific/Apia")).day for slot in slots_between(schedule, after, until, 100)]
    assert days == [25, 26, 27, 28, 29, 31, 1, 2, 3]


fields_of_days = st.tuples(
    st.sampled_from(["*", "1", "29-31", "*/10", "L", "13,L", "5-20/5"]),
    st.sampled_from(["*", "2", "JAN-MAR", "*/5", "11-2"]),
    st.sampled_from(["*", "MON", "1-5", "FRI-MON", "0", "7", "*/3", "TUE#2", "L6"]),
)


@settings(deadline=None)
@given(days=fields_of_days, at=moments)
def test_days_are_croniters_days(days: tuple[str, str, str], at: datetime) -> None:
    """In UTC, croniter's own search agrees, with its switch for the rule of Vixie cron."""
    if "#" in days[2] or days[2].startswith("L"):
        days = ("*", *days[1:])  # croniter has no "either" for these
    line = f"30 4 {' '.join(days)}"
    expected = croniter(line, at, implement_cron_bug=True).get_next(datetime)
    assert next_slot(Schedule(cron=line), at) == expected


EVERY_HOUR = set(range(24))


@settings(deadline=None)
@given(
    minutes=st.sampled_from([("0", {0}), ("*/30", {0, 30}), ("7,52", {7, 52}), ("5-25/10", {5, 15, 25})]),
    hours=st.sampled_from(
        [
            ("*", EVERY_HOUR),
            ("*/2", set(range(0, 24, 2))),
            ("2", {2}),
            ("0-3", {0, 1, 2, 3}),
            ("1,2,3,23", {1, 2, 3, 23}),
            ("0", {0}),
            ("0-23", EVERY_HOUR),
        ]
    ),
    zone=st.sampled_from([*ZONES, "Antarctica/Casey"]),
    change=st.sampled_from(
        ["2027-03-28", "2018-10-07", "2027-10-31", "2027-10-03", "2018-11-04", "2018-02-18", "2011-12-30"]
    ),
    at=st.timedeltas(timedelta(days=-2), timedelta(days=2)),
)
def test_clock_changes_minute_by_minute(
    minutes: tuple[str, set[int]], hours: tuple[str, set[int]], zone: str, change: str, at: timedelta
) -> None:
    """The rule of cron.py, spelt out over every minute of eight days, gives the same slots forward and backward."""

    def matches(wall: datetime) -> bool:
        return wall.minute in minutes[1] and wall.hour in hours[1]

    middle, place = moment(change), ZoneInfo(zone)
    every_minute = [middle + timedelta(minutes=number) for number in range(-4 * 1440, 4 * 1440)]
    if "*" in hours[0]:
        slots = {at for at in every_minute if matches(at.astimezone(place))}
    else:
        slots = {wall.replace(tzinfo=place).astimezone(UTC) for wall in every_minute if matches(wall)}
    begin = middle + at
    end = begin + timedelta(hours=20)
    schedule = Schedule(cron=f"{minutes[0]} {hours[0]} * * *", zone=zone)
    expected = sorted(slot for slot in slots if begin < slot <= end)
    assert slots_between(schedule, begin, end, 10_000) == expected
    last = begin
    for slot in expected:
        assert next_slot(schedule, last) == slot
        last = slot


@pytest.mark.parametrize(
    ("interval", "zone", "start", "after", "slots"),
    [
        (Interval(microseconds=HOUR), None, "2027-01-01 00:20", "2027-01-01 00:20", ["2027-01-01 01:20"]),
        (Interval(microseconds=HOUR), None, "2027-01-01 00:20", "2026-01-01 00:00", ["2027-01-01 00:20"]),
        (Interval(microseconds=HOUR), PARIS, "2027-03-28 00:30", "2027-03-28 00:30", ["2027-03-28 01:30"]),
        (Interval(microseconds=24 * HOUR), PARIS, "2027-03-27 08:00", "2027-03-27 08:00", ["2027-03-28 08:00"]),
        (Interval(days=1), None, "2027-03-27 08:00", "2027-03-27 08:00", ["2027-03-28 08:00"]),
        (Interval(days=1), PARIS, "2027-03-27 08:00", "2027-03-27 08:00", ["2027-03-28 07:00", "2027-03-29 07:00"]),
        (Interval(days=1), PARIS, "2027-03-27 01:30", "2027-03-27 01:30", ["2027-03-28 01:30", "2027-03-29 00:30"]),
        (Interval(days=1), PARIS, "2027-10-30 00:30", "2027-10-30 00:30", ["2027-10-31 00:30", "2027-11-01 01:30"]),
        (Interval(days=7), "Europe/Berlin", "2027-03-22 08:00", "2027-03-22 08:00", ["2027-03-29 07:00"]),
        (Interval(days=1, microseconds=12 * HOUR), PARIS, "2027-03-27 11:00", "2027-03-27 11:00", ["2027-03-28 22:00"]),
        (Interval(months=1), None, "2027-01-31 06:00", "2027-01-31 06:00", ["2027-02-28 06:00", "2027-03-31 06:00"]),
        (Interval(months=1), PARIS, "2027-01-31 06:00", "2027-03-01 00:00", ["2027-03-31 05:00", "2027-04-30 05:00"]),
        (Interval(months=12), None, "2024-02-29 00:00", "2026-12-01 00:00", ["2027-02-28 00:00", "2028-02-29 00:00"]),
        # From the first years of the calendar, without walking there; its local mean time was 9 min 21 s off UTC.
        (
            Interval(days=1),
            PARIS,
            "0001-01-02 00:00",
            "2027-01-01 12:00",
            ["2027-01-01 23:09:21", "2027-01-02 23:09:21"],
        ),
        (
            Interval(days=1),
            "Pacific/Apia",
            "1900-01-01 12:00",
            "2027-01-01 00:00",
            ["2027-01-01 11:33:04", "2027-01-02 11:33:04"],
        ),
        (Interval(microseconds=7 * SECOND), None, "1000-01-01 00:00", "2027-01-01 00:00", ["2027-01-01 00:00:02"]),
        (Interval(months=1), None, "1000-01-31 00:00", "2027-02-01 00:00", ["2027-02-28 00:00", "2027-03-31 00:00"]),
        # The day that Apia left out is no slot of its own.
        (
            Interval(days=1),
            "Pacific/Apia",
            "2011-12-28 19:00",
            "2011-12-28 19:00",
            ["2011-12-29 19:00", "2011-12-30 19:00"],
        ),
    ],
)
def test_a_fixed_interval_is_a_grid(
    interval: Interval, zone: str | None, start: str, after: str, slots: list[str]
) -> None:
    """start + k * interval: by the clock of the zone for days and months, as elapsed time for the rest."""
    schedule = Schedule(interval=interval, zone=zone, start=moment(start))
    expected = [moment(slot) for slot in slots]
    assert following(schedule, after, len(slots)) == expected
    assert slots_between(schedule, moment(after), expected[-1], 100) == expected


@given(days=st.integers(1, 40), zone=st.sampled_from(ZONES), start=moments, later=st.timedeltas(timedelta(0)))
@settings(deadline=None)
def test_a_grid_of_days_holds_local_time(days: int, zone: str, start: datetime, later: timedelta) -> None:
    """Every slot shows the start's clock, but where the clocks left it out."""
    place = ZoneInfo(zone)
    after = start + later % timedelta(days=20_000)
    slot = next_slot(Schedule(interval=Interval(days=days), zone=zone, start=start), after)
    assert slot is not None
    wall, shown = start.astimezone(place).replace(tzinfo=None, fold=0), slot.astimezone(place).replace(tzinfo=None)
    left_out = any(
        around.replace(tzinfo=place).astimezone(UTC).astimezone(place).replace(tzinfo=None, fold=0) != around
        for around in (datetime.combine(shown.date() - timedelta(days=back), wall.time()) for back in (0, 1))
    )
    assert shown.time() == wall.time() or left_out


def test_a_drifting_interval_counts_from_the_last_end() -> None:
    """Last end + interval, even if that has passed; a day is a day of its clock; before the first run, at once."""
    after, finish = moment("2027-03-28 12:00"), moment("2027-03-27 12:00")
    drifting = Schedule(interval=Interval(days=1), fixed=False)
    assert next_slot(drifting, after, last_finish=finish) == moment("2027-03-28 12:00")
    assert next_slot(replace(drifting, zone=PARIS), after, last_finish=finish) == moment("2027-03-28 11:00")
    mixed = replace(drifting, interval=Interval(1, 1, HOUR))
    assert next_slot(mixed, after, last_finish=moment("2027-01-31 12:00")) == moment("2027-03-01 13:00")
    assert next_slot(drifting, after) == after
    assert next_slot(replace(drifting, start=finish), after) == finish
    assert slots_between(drifting, finish, after, 10) == []


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        (Schedule(interval=Interval(microseconds=HOUR)), "2027-06-01 12:30"),
        (Schedule(interval=Interval(microseconds=HOUR), start=moment("2027-06-01 12:30")), "2027-06-01 12:30"),
        (Schedule(interval=Interval(microseconds=HOUR), start=moment("2027-06-01 12:31")), "2027-06-01 12:31"),
        (Schedule(interval=Interval(microseconds=HOUR), start=moment("1027-06-01 12:31")), "2027-06-01 11:31"),
        (Schedule(interval=Interval(months=1), start=moment("2027-01-31 12:31")), "2027-05-31 12:31"),
        (Schedule(interval=Interval(days=1), fixed=False), "2027-06-01 12:30"),
        (Schedule(interval=Interval(days=1), fixed=False, start=moment("2027-05-01")), "2027-06-01 12:30"),
        (Schedule(interval=Interval(days=1), fixed=False, start=moment("2027-07-01")), "2027-07-01"),
        (Schedule(cron="30 12 * * *"), "2027-06-01 12:30"),
        (Schedule(cron="29 12 * * *"), "2027-06-02 12:29"),
        (Schedule(cron="30 12 * * *", start=moment("2027-07-01 12:30")), "2027-07-01 12:30"),
        (Schedule(cron="30 12 * * *", start=moment("2027-07-01 12:31")), "2027-07-02 12:30"),
        (Schedule(at=moment("2027-01-01")), "2027-01-01"),
        (Schedule(at=moment("2028-01-01")), "2028-01-01"),
        (Schedule(), None),
    ],
)
def test_the_first_slot(schedule: Schedule, first: str | None) -> None:
    """A grid that has begun is due at once, with its last slot; what begins later waits for it."""
    assert first_slot(schedule, now=moment("2027-06-01 12:30")) == (moment(first) if first else None)


def test_a_single_moment_is_one_slot() -> None:
    """It follows what comes before it, and nothing follows it."""
    schedule, at = Schedule(at=moment("2027-06-01")), moment("2027-06-01")
    assert next_slot(schedule, at - TICK) == at
    assert next_slot(schedule, at) is None
    assert slots_between(schedule, at - TICK, at, 10) == [at]
    assert slots_between(schedule, at, at + TICK, 10) == []


def test_no_slot_lies_before_the_start() -> None:
    """The start itself may be one."""
    start = moment("2027-06-05 04:00")
    cron = Schedule(cron="0 4 * * *", start=start)
    assert next_slot(cron, moment("2027-01-01")) == start
    assert slots_between(cron, moment("2027-01-01"), start + timedelta(days=1), 10) == [
        start,
        start + timedelta(days=1),
    ]
    grid = Schedule(interval=Interval(days=1), start=start)
    assert slots_between(grid, moment("2027-01-01"), start + timedelta(days=1), 10) == [
        start,
        start + timedelta(days=1),
    ]
    assert slots_between(grid, moment("2027-01-01"), start - TICK, 10) == []


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(cron="30 2 * * *", zone=PARIS),
        Schedule(interval=Interval(days=1), zone=PARIS, start=moment("2027-01-01")),
        Schedule(interval=Interval(months=1), start=moment("2027-01-31")),
        Schedule(interval=Interval(microseconds=HOUR), start=moment("2027-01-01")),
        Schedule(interval=Interval(months=2**31 - 1), start=moment("2027-01-01")),
        Schedule(interval=Interval(days=2**31 - 1), start=moment("2027-01-01")),
        Schedule(at=moment("2027-01-01")),
        Schedule(),
    ],
)
def test_the_calendar_has_an_end(schedule: Schedule) -> None:
    """After its last day there is no further slot, and asking is no error."""
    assert next_slot(schedule, moment("9999-12-31 23:59:59.999999")) is None
    assert slots_between(schedule, moment("0001-01-01"), moment("0001-01-03"), 10) in (
        [],
        [moment("0001-01-02 02:20:39")],
    )


def test_the_last_days_of_the_calendar_have_slots() -> None:
    """A look back from the end of the calendar finds them."""
    after, until = moment("9999-12-29 12:00"), moment("9999-12-31 23:59:59.999999")
    daily = Schedule(interval=Interval(days=1), start=moment("2027-01-01"))
    assert slots_between(daily, after, until, 10) == [moment("9999-12-30"), moment("9999-12-31")]
    assert slots_between(Schedule(cron="@daily"), after, until, 10) == [moment("9999-12-30"), moment("9999-12-31")]
    assert following(Schedule(cron="@daily"), "9999-12-29 12:00", 2) == [moment("9999-12-30"), moment("9999-12-31")]


schedules = st.one_of(
    st.builds(
        Schedule,
        cron=st.builds(
            "{} {} {} * {}".format,
            st.sampled_from(["0", "*/20", "*", "59", "10-50/7"]),
            st.sampled_from(["*", "*/3", "2", "0", "23", "1-4"]),
            st.sampled_from(["*", "*", "31", "L", "*/9"]),
            st.sampled_from(["*", "*", "SUN", "1-5"]),
        ),
        zone=zones,
        start=st.none() | moments,
    ),
    st.builds(
        Schedule,
        interval=st.one_of(
            st.builds(Interval, months=st.integers(1, 30)),
            st.builds(Interval, days=st.integers(1, 40), microseconds=st.integers(0, 30 * HOUR)),
            st.builds(Interval, microseconds=st.integers(1, 90 * 24 * HOUR)),
        ),
        zone=zones,
        start=moments,
    ),
)


@settings(deadline=None)
@given(schedule=schedules, after=moments, limit=st.integers(1, 12))
def test_slots_follow_one_another(schedule: Schedule, after: datetime, limit: int) -> None:
    """Each slot is later than the one before, and a look back finds the same ones, the newest if there are many."""
    slots: list[datetime] = []
    last = after
    for _ in range(10):
        slot = next_slot(schedule, last)
        assert slot is not None and slot > last and slot.tzinfo is UTC
        slots.append(slot)
        last = slot
    assert slots_between(schedule, after, last, limit) == slots[-limit:]
    assert slots_between(schedule, after, last - TICK, limit) == slots[:-1][-limit:]
    assert slots_between(schedule, last, after, limit) == []
    assert slots_between(schedule, after, last, 0) == []


@settings(deadline=None)
@given(schedule=schedules, now=moments)
def test_the_first_slot_is_a_slot(schedule: Schedule, now: datetime) -> None:
    """It is the slot that follows the moment before it; no other one lies between it and now."""
    first = first_slot(schedule, now=now)
    assert first is not None
    assert next_slot(schedule, first - TICK) == first
    if first <= now:
        assert slots_between(schedule, first, now, 1) == []


def test_moments_may_come_in_any_zone() -> None:
    """Moments are compared as moments, not by what the clocks show: 02:10 comes twice, the second after 02:40."""
    paris = ZoneInfo(PARIS)
    second = datetime(2027, 10, 31, 2, 10, tzinfo=paris, fold=1)
    first = datetime(2027, 10, 31, 2, 40, tzinfo=paris)
    assert next_slot(Schedule(at=first), second) is None
    assert next_slot(Schedule(at=second), first) == second.astimezone(UTC)
    assert slots_between(Schedule(cron="*/10 * * * *"), first, second, 10)[-1] == second.astimezone(UTC)
    with pytest.raises(TypeError, match="aware"):
        next_slot(Schedule(cron="@daily"), second.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(cron="* * * *"), "cron '* * * *' has 4 fields: write five"),
        (Schedule(cron="0 0 0 1 1 * 2027"), "has 7 fields"),
        (Schedule(cron=""), "cron '' has 0 fields"),
        (Schedule(cron="10 seconds"), "cron '10 seconds' has 2 fields"),
        (Schedule(cron="@reboot"), "cron '@reboot' is not known: use one of @hourly"),
        (Schedule(cron="61 * * * *"), "the minute '61' is not understood; it takes 0-59"),
        (Schedule(cron="0 24 * * *"), "the hour '24' is not understood; it takes 0-23"),
        (Schedule(cron="60 0 0 * * *"), "the second '60'"),
        (Schedule(cron="0 0 0 * *"), "the day of month '0'"),
        (Schedule(cron="0 0 15W * *"), "the day of month '15W'"),
        (Schedule(cron="0 0 * 13 *"), "the month '13'"),
        (Schedule(cron="0 0 * * MOO"), "the weekday 'MOO'"),
        (Schedule(cron="0 0 * * 8"), "the weekday '8'"),
        (Schedule(cron="0 0 * * MON#6"), "the weekday 'MON#6'"),
        (Schedule(cron="H * * * *"), "the minute 'H'"),
        (Schedule(cron="R R * * *"), "the minute 'R'"),
        (Schedule(cron="0 R(0-5) * * *"), "the hour 'R(0-5)'"),
        (Schedule(cron="0 H/3 * * *"), "the hour 'H/3'"),
        (Schedule(cron="*/0 * * * *"), "the minute '*/0'"),
        (Schedule(cron="*/5-5 * * * *"), "the minute '*/5-5'"),
        (Schedule(cron="$ * * * *"), "the minute '$'"),
        (Schedule(cron="0 0 30 2 *"), "cron '0 0 30 2 *' never comes"),
        (Schedule(cron="0 0 31 4,6 *"), "never comes"),
        (Schedule(cron="0 0 * 2 MON#5", zone="UTC"), None),
        (Schedule(cron="@daily", zone="EuRoPe/AmEriCa"), "no time zone 'EuRoPe/AmEriCa'"),
        (Schedule(cron="@daily", zone="europe/paris"), "did you mean 'Europe/Paris'"),
        (Schedule(cron="@daily", zone=""), "no time zone ''"),
        (Schedule(cron="@daily", zone="../Europe/Paris"), "no time zone"),
        (Schedule(cron="@daily", zone="localtime"), "no time zone 'localtime'"),
        (Schedule(zone="Mars/Olympus"), "no time zone 'Mars/Olympus'"),
        (Schedule(interval=Interval(1, 1)), "month intervals cannot have day or time component"),
        (Schedule(interval=Interval(1, 0, SECOND)), "month intervals cannot have day or time component"),
        (Schedule(interval=Interval(1, 1), fixed=False), None),
        (Schedule(interval=Interval(0, 1, -HOUR)), "write '1 day -01:00' as '23:00'"),
        (Schedule(interval=Interval(0, 1, -HOUR), fixed=False), None),
        (Schedule(interval=Interval()), "longer than zero"),
        (Schedule(interval=Interval(0, -1), fixed=False), "longer than zero"),
        (Schedule(interval=Interval(0, 1, -24 * HOUR), fixed=False), "longer than zero"),
        (Schedule(interval=Interval(0, 1), cron="@daily"), "one of interval, cron and a single moment"),
        (Schedule(cron="@daily", start=datetime(2027, 1, 1)), "start 2027-01-01 00:00:00 has no UTC offset"),  # noqa: DTZ001
        (Schedule(), None),
    ],
)
def test_a_wrong_schedule_is_refused(schedule: Schedule, reason: str | None) -> None:
    """The refusal is one line that says what and which; a schedule without reason is in order."""
    if reason is None:
        check(schedule)
        return
    with pytest.raises(ScheduleError, match=re.escape(reason)) as caught:
        check(schedule)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScheduleError, match=re.escape(reason)):
        next_slot(schedule, moment("2027-01-01"))


@settings(deadline=None)
@given(st.lists(st.text("0123456789*/,-#LWHR$?()@ abMONJAN.\u00a0", min_size=1, max_size=6), min_size=4, max_size=7))
def test_any_text_is_a_cron_or_refused(values: list[str]) -> None:
    """Whatever croniter makes of it, only a ScheduleError comes out, and what is accepted has slots."""
    schedule = Schedule(cron=" ".join(values))
    try:
        check(schedule)
    except ScheduleError:
        return
    assert next_slot(schedule, moment("2027-01-01")) is not None


def test_the_length_of_an_interval_counts_months_as_thirty_days() -> None:
    """Good enough for caps; an absurd one is as long as can be."""
    assert Interval(1, 2, 3 * HOUR).seconds() == timedelta(days=32, hours=3)
    assert Interval(2**31 - 1).seconds() == timedelta.max
