"""Windows: when a job may start, across midnights, week ends and clock changes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.postprocessing.schedule import ScheduleError
from workers.windows import opens_at, parse

PARIS = "Europe/Paris"


def moment(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# 2027-06-07 is a Monday.
@pytest.mark.parametrize(
    ("windows", "zone", "at", "opens"),
    [
        ("22:00-06:00", None, "2027-06-07 21:59:59.999999", "2027-06-07 22:00"),
        ("22:00-06:00", None, "2027-06-07 22:00", "2027-06-07 22:00"),
        ("22:00-06:00", None, "2027-06-08 05:59:59.999999", "2027-06-08 05:59:59.999999"),
        ("22:00-06:00", None, "2027-06-08 06:00", "2027-06-08 22:00"),
        ("22:00-06:00", PARIS, "2027-06-07 12:00", "2027-06-07 20:00"),
        ("22:00-06:00", PARIS, "2027-12-07 12:00", "2027-12-07 21:00"),
        ("Mon-Fri 22:00-06:00, Sun 00:00-24:00", None, "2027-06-12 05:00", "2027-06-12 05:00"),
        ("Mon-Fri 22:00-06:00, Sun 00:00-24:00", None, "2027-06-12 06:00", "2027-06-13 00:00"),
        ("Mon-Fri 22:00-06:00, Sun 00:00-24:00", None, "2027-06-13 23:59", "2027-06-13 23:59"),
        ("Mon-Fri 22:00-06:00, Sun 00:00-24:00", None, "2027-06-14 00:00", "2027-06-14 22:00"),
        ("Fri-Mon 10:00-11:00", None, "2027-06-07 12:00", "2027-06-11 10:00"),
        ("Fri-Mon 10:00-11:00", None, "2027-06-12 11:00", "2027-06-13 10:00"),
        ("sunday 23:00-01:00", None, "2027-06-14 00:30", "2027-06-14 00:30"),
        ("sunday 23:00-01:00", None, "2027-06-14 01:00", "2027-06-20 23:00"),
        ("Wed 8:00-9:00", None, "2027-06-09 09:00", "2027-06-16 08:00"),
        # Spring in Paris, 28 March 2027: 02:00 to 03:00 is left out.
        ("02:30-04:00", PARIS, "2027-03-28 00:00", "2027-03-28 01:30"),
        ("02:30-03:00", PARIS, "2027-03-28 00:00", "2027-03-28 01:30"),
        ("02:00-02:30", PARIS, "2027-03-28 01:29", "2027-03-28 01:29"),
        ("01:00-03:00", PARIS, "2027-03-28 01:00", "2027-03-28 23:00"),
        # Autumn in Paris, 31 October 2027: 02:00 to 03:00 comes twice.
        ("02:30-03:00", PARIS, "2027-10-31 00:00", "2027-10-31 00:30"),
        ("02:30-03:00", PARIS, "2027-10-31 01:59", "2027-10-31 01:59"),
        ("02:30-03:00", PARIS, "2027-10-31 02:00", "2027-11-01 01:30"),
        ("01:00-02:30", PARIS, "2027-10-31 01:15", "2027-11-01 00:00"),
        # No midnight in Sao Paulo on 4 November 2018; no 30 December 2011 in Apia.
        ("Sun 00:00-00:30", "America/Sao_Paulo", "2018-11-04 00:00", "2018-11-04 03:00"),
        ("09:00-10:00", "Pacific/Apia", "2011-12-29 20:00", "2011-12-30 19:00"),
    ],
)
def test_a_window_opens_on_the_clock_of_its_zone(windows: str, zone: str | None, at: str, opens: str) -> None:
    """Inside, the moment itself; outside, the next opening; the end is outside."""
    assert opens_at(parse(windows), zone, moment(at)) == moment(opens)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not understood"),
        ("22:00", "'22:00' is not understood"),
        ("22-6", "'22-6' is not understood"),
        ("22:00-06:00,", "'' is not understood"),
        ("Mon, Wed 22:00-06:00", "'Mon' is not understood"),
        ("22:00-06:00 Mon", "is not understood"),
        ("Mon--Fri 22:00-06:00", "is not understood"),
        ("Mond-Fri 25:00-06:00", "no such time"),
        ("22:60-06:00", "no such time"),
        ("24:00-06:00", "no such time"),
        ("22:00-24:01", "no such time"),
        ("Foo 22:00-06:00", "'Foo' is no day"),
        ("M-F 22:00-06:00", "'M' is no day"),
        ("06:00-06:00", "ends where it begins"),
        ("00:00-00:00", "00:00-24:00 for whole days"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, reason: str) -> None:
    """The refusal names the part and what to write instead, in one line."""
    with pytest.raises(ScheduleError, match=re.escape(reason)) as caught:
        parse(text)
    assert str(caught.value).startswith(f"window {text!r}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_zone_is_refused() -> None:
    """A window is on some clock, and that clock must exist."""
    with pytest.raises(ScheduleError, match="did you mean 'Europe/Paris'"):
        opens_at(parse("22:00-06:00"), "europe/paris", moment("2027-06-07 12:00"))


minutes_of_a_day = st.integers(0, 24 * 60 - 1)


def clock(minutes: int) -> str:
    """Minutes after midnight as HH:MM."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


@settings(deadline=None)
@given(
    opens=minutes_of_a_day,
    closes=minutes_of_a_day,
    days=st.sampled_from(["", "Mon ", "Sat-Sun ", "Fri-Tue "]),
    zone=st.sampled_from([PARIS, "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo", "Pacific/Apia"]),
    since_2011=st.timedeltas(timedelta(0), timedelta(days=18 * 365)),
)
def test_an_opening_is_open_and_the_moment_before_is_not(
    opens: int, closes: int, days: str, zone: str, since_2011: timedelta
) -> None:
    """Whatever the clocks do: the opening is at hand within eight days, is open, and is the first such moment."""
    at = moment("2011-01-01") + since_2011
    if opens == closes:
        closes = (opens + 1) % (24 * 60)
    windows = parse(f"{days}{clock(opens)}-{clock(closes)}")
    opening = opens_at(windows, zone, at)
    assert at <= opening <= at + timedelta(days=8)
    assert opens_at(windows, zone, opening) == opening
    assert opening == at or opens_at(windows, zone, opening - timedelta(microseconds=1)) == opening
