"""Telling ISO dates from others, on what a real server prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from itertools import product
from typing import Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.dispatch.iso import is_iso

ZONES = ("UTC", "America/New_York", "Asia/Kathmandu", "Europe/Amsterdam", "Africa/Monrovia")
ORDERS = ("DMY", "MDY", "YMD")
PRINT = """
SELECT (DATE '4713-01-01 BC' + day)::text,
    (TIMESTAMP '4713-01-01 BC' + day * INTERVAL '1 day' + micro * INTERVAL '1 us')::text,
    (TIMESTAMPTZ '4713-01-02 00:00:00+00 BC' + day * INTERVAL '1 day' + micro * INTERVAL '1 us')::text
FROM unnest(%(days)s, %(micros)s) AS moment (day, micro)
"""
SPECIAL = "SELECT 'infinity'::date::text, 'infinity'::timestamp::text, '-infinity'::timestamptz::text"
# From the first day that PostgreSQL has, 4713 BC, to one in the year 290,000.
days = st.integers(0, 107_000_000) | st.integers(2_300_000, 2_500_000) | st.integers(1_700_000, 1_740_000)
micros = st.just(0) | st.integers(0, 86_399_999_999)
moments = st.lists(st.tuples(days, micros), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def cursor(servers: Any) -> Iterator[Any]:
    """A session whose DateStyle a test may change."""
    with closing(psycopg2.connect(servers.postgres.dsn())) as conn:
        conn.autocommit = True
        yield conn.cursor()


def printed(cursor: Any, style: str, zone: str, drawn: list[tuple[int, int]]) -> list[str]:
    """How the server prints these moments as date, timestamp and timestamptz."""
    cursor.execute("SELECT set_config('datestyle', %s, false), set_config('timezone', %s, false)", (style, zone))
    cursor.execute(PRINT, {"days": [day for day, _ in drawn], "micros": [micro for _, micro in drawn]})
    return [text for row in cursor.fetchall() for text in row]


@given(drawn=moments, zone=st.sampled_from(ZONES), order=st.sampled_from(ORDERS))
@settings(max_examples=60, deadline=None)
def test_iso_style_is_iso(cursor: Any, drawn: list[tuple[int, int]], zone: str, order: str) -> None:
    """Whatever moment, zone and order: what the server prints in ISO style is recognised, jsontriga's T, too."""
    texts = printed(cursor, f"ISO, {order}", zone, drawn)
    assert [text for text in texts if not is_iso(text)] == []
    assert [text for text in texts if not is_iso(text.replace(" ", "T", 1) if ":" in text else text)] == []


@given(drawn=moments, zone=st.sampled_from(ZONES))
@settings(max_examples=60, deadline=None)
def test_other_styles_are_not_iso(cursor: Any, drawn: list[tuple[int, int]], zone: str) -> None:
    """What it prints in SQL, Postgres and German style, in any order, is not."""
    for style, order in product(("SQL", "Postgres", "German"), ORDERS):
        assert [text for text in printed(cursor, f"{style}, {order}", zone, drawn) if is_iso(text)] == []


def test_infinity_is_iso(cursor: Any) -> None:
    """The ends of time look the same in every style, and are never ambiguous."""
    for style in ("ISO", "SQL", "Postgres", "German"):
        cursor.execute("SELECT set_config('datestyle', %s, false)", (style,))
        cursor.execute(SPECIAL)
        assert [is_iso(text) for text in cursor.fetchone()] == [True, True, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21", True),
        ("12026-01-01", True),
        ("12026-01-01 00:00:00+00", True),
        ("294276-12-31T23:59:59.999999-03:30", True),
        ("0044-03-15 12:00:00+00 BC", True),
        ("0044-01-01T00:00:00+00:19:32 BC", True),
        ("1890-01-01 00:00:00-00:01:15", True),
        ("infinity", True),
        ("-infinity", True),
        ("", False),
        ("03/11/2026", False),
        ("03-11-2026", False),
        ("03-11-12026", False),
        ("03.11.2026 22:18:22.5 CET", False),
        ("Sat Nov 21 22:18:22 2026 -03", False),
        ("1/2-3", False),
        ("12026-01-01 noon", False),
        ("٢٠٢٦٠-01-01", False),
    ],
)
def test_known_answers(text: str, expected: bool) -> None:
    """The forms, one by one."""
    assert is_iso(text) is expected


@given(st.dates(), st.datetimes())
def test_python_s_own_dates(day: date, moment: datetime) -> None:
    """Dates written by isoformat() are ISO."""
    assert is_iso(day.isoformat())
    assert is_iso(moment.isoformat())
    assert is_iso(moment.isoformat(" "))
