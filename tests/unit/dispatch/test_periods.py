"""Periods: whole, without holes and overlaps, and named so that no two share a name, whatever the clocks do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.dispatch import periods
from workers.dispatch.periods import Length, Period

ZONES = [
    "UTC", "Europe/Paris", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns",
    "America/Sao_Paulo", "Pacific/Apia", "Africa/Casablanca", "Antarctica/Troll",
]  # fmt: skip
LENGTHS: list[Length] = ["hour", "day", "month"]
FIRST, LAST = datetime.fromisoformat("1985-01-01"), datetime.fromisoformat("2037-12-30")
MOMENTS = st.datetimes(FIRST, LAST).map(lambda at: at.replace(tzinfo=UTC))


def utc(text: str) -> datetime:
    """An instant, written in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock(text: str) -> datetime:
    """What a clock shows, without a zone."""
    return datetime.fromisoformat(text)


def period(moment: str, length: Length, zone: str) -> Period:
    """The period of an instant that is written in UTC."""
    return periods.period_at(utc(moment), length, ZoneInfo(zone))


@pytest.mark.parametrize(
    ("zone", "moment", "start", "end", "label"),
    [
        ("UTC", "2026-11-21 23:59:59.999999", "2026-11-21 00:00", "2026-11-22 00:00", "2026_11_21"),
        ("UTC", "2026-11-22 00:00", "2026-11-22 00:00", "2026-11-23 00:00", "2026_11_22"),
        ("Europe/Paris", "2026-03-29 12:00", "2026-03-28 23:00", "2026-03-29 22:00", "2026_03_29"),  # 23 hours
        ("Europe/Paris", "2026-10-25 22:59:59", "2026-10-24 22:00", "2026-10-25 23:00", "2026_10_25"),  # 25 hours
        ("America/New_York", "2026-03-08 12:00", "2026-03-08 05:00", "2026-03-09 04:00", "2026_03_08"),
        ("America/New_York", "2026-11-01 12:00", "2026-11-01 04:00", "2026-11-02 05:00", "2026_11_01"),
        ("Asia/Kathmandu", "2026-11-21 18:15", "2026-11-21 18:15", "2026-11-22 18:15", "2026_11_22"),
        ("America/Sao_Paulo", "2018-11-04 12:00", "2018-11-04 03:00", "2018-11-05 02:00", "2018_11_04"),  # no midnight
        ("Pacific/Apia", "2011-12-30 10:00", "2011-12-30 10:00", "2011-12-31 10:00", "2011_12_31"),  # no 30 December
    ],
)
def test_a_day_is_as_long_as_the_clock_makes_it(zone: str, moment: str, start: str, end: str, label: str) -> None:
    """From local midnight to local midnight, be it 23, 24 or 25 hours."""
    assert period(moment, "day", zone) == Period(utc(start), utc(end), label)


@pytest.mark.parametrize(
    ("zone", "moment", "start", "end", "label"),
    [
        ("UTC", "2026-11-21 14:59:59", "2026-11-21 14:00", "2026-11-21 15:00", "2026_11_21_14"),
        ("Asia/Kathmandu", "2026-11-21 02:20", "2026-11-21 02:15", "2026-11-21 03:15", "2026_11_21_08"),
        ("America/New_York", "2026-11-01 05:30", "2026-11-01 05:00", "2026-11-01 06:00", "2026_11_01_01_utc0500"),
        ("America/New_York", "2026-11-01 06:30", "2026-11-01 06:00", "2026-11-01 07:00", "2026_11_01_01_utc0600"),
        ("America/New_York", "2026-11-01 07:30", "2026-11-01 07:00", "2026-11-01 08:00", "2026_11_01_02"),
        ("America/New_York", "2026-03-08 07:30", "2026-03-08 07:00", "2026-03-08 08:00", "2026_03_08_03"),
        ("Australia/Lord_Howe", "2026-04-04 15:10", "2026-04-04 15:00", "2026-04-04 15:30", "2026_04_05_01_utc1500"),
        ("Australia/Lord_Howe", "2026-10-03 15:40", "2026-10-03 15:30", "2026-10-03 16:00", "2026_10_04_02_utc1530"),
    ],
)
def test_an_hour_that_comes_twice_has_two_names(zone: str, moment: str, start: str, end: str, label: str) -> None:
    """Hours go by the local clock, and where that is ambiguous or cut short the name has the hour in UTC, too."""
    assert period(moment, "hour", zone) == Period(utc(start), utc(end), label)


def test_a_month_begins_at_local_midnight() -> None:
    """In Paris December begins an hour before it does in UTC, and ends with the year."""
    assert period("2026-11-30 23:00", "month", "Europe/Paris") == Period(
        utc("2026-11-30 23:00"), utc("2026-12-31 23:00"), "2026_12"
    )


def test_what_a_clock_shows_never_jumps() -> None:
    """A naive moment is the column's own clock: each of its days has 24 hours, in any zone."""
    paris = ZoneInfo("Europe/Paris")
    found = periods.period_at(clock("2026-10-25 02:30"), "day", paris)
    assert found == Period(clock("2026-10-25"), clock("2026-10-26"), "2026_10_25")
    hour = periods.period_at(clock("2026-10-25 02:30"), "hour", paris)
    assert hour == Period(clock("2026-10-25 02:00"), clock("2026-10-25 03:00"), "2026_10_25_02")


@given(moment=MOMENTS, length=st.sampled_from(LENGTHS), zone=st.sampled_from(ZONES))
def test_periods_follow_each_other_without_hole_or_overlap(moment: datetime, length: Length, zone: str) -> None:
    """A moment lies in its period, any other moment of that period has the same one, and the next begins at its end."""
    place = ZoneInfo(zone)
    found = periods.period_at(moment, length, place)
    assert found.start <= moment < found.end
    assert periods.period_at(found.start, length, place) == found
    assert periods.period_at(found.end - timedelta(microseconds=1), length, place) == found
    assert periods.period_at(found.end, length, place).start == found.end


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("start", ["2026-03-01", "2026-09-20", "2011-12-25", "2011-10-25"])
def test_no_two_hours_share_a_name(zone: str, start: str) -> None:
    """Over weeks with changes of the clock, every hour's name is its own."""
    found = list(periods.periods_from(utc(start), "hour", ZoneInfo(zone), count=1100))
    assert len({each.label for each in found}) == len(found)
    assert all(one.end == following.start for one, following in pairwise(found))


def test_a_period_shrinks_to_what_is_free_around_the_moment() -> None:
    """Ranges that others have take away what lies before and behind."""
    day = Period(clock("2026-11-21"), clock("2026-11-22"), "2026_11_21")
    taken = [
        (clock("2026-11-01"), clock("2026-11-21 06:00")),
        (clock("2026-11-21 06:00"), clock("2026-11-21 08:00")),
        (clock("2026-11-21 20:00"), clock("2026-12-01")),
        (clock("2026-12-01"), clock("2027-01-01")),
    ]
    at = clock("2026-11-21 12:00")
    assert periods.gap_at(day, at, taken) == (clock("2026-11-21 08:00"), clock("2026-11-21 20:00"))
    assert periods.gap_at(day, at, []) == (day.start, day.end)


def test_a_moment_is_put_into_the_columns_terms() -> None:
    """An instant becomes UTC, or what the clock of the zone shows; a clock's time alone is no instant."""
    paris = ZoneInfo("Europe/Paris")
    moment = datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
    assert periods.in_terms_of_column(moment.astimezone(paris), paris, is_instant=True) == moment
    assert periods.in_terms_of_column(moment, paris, is_instant=False) == clock("2026-11-22 00:30")
    assert periods.instant_of(clock("2026-11-22 00:30"), paris) == moment
    with pytest.raises(TypeError, match="no time zone"):
        periods.in_terms_of_column(clock("2026-11-22"), paris, is_instant=True)


def test_the_end_of_the_calendar_is_an_error() -> None:
    """The last day that Python knows has no end, and that is said, not guessed."""
    with pytest.raises((OverflowError, ValueError)):
        periods.period_at(clock("9999-12-31 12:00"), "day", ZoneInfo("UTC"))
    with pytest.raises((OverflowError, ValueError)):
        periods.period_at(clock("9999-12-31 12:00"), "month", ZoneInfo("UTC"))
