"""File names of telemetry."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.telemetry.names import FileName, parse_name

INSTANT = datetime(2024, 4, 15, 22, 30, 50, 997960, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("camwfs_20240415223050997960288.bintel", FileName("camwfs", INSTANT, 288)),
        ("tcs_i_20240415223050997960288.binlog", FileName("tcs_i", INSTANT, 288)),
        ("camwfs_20240415223050997960288.ndjson.gz", FileName("camwfs", INSTANT, 288)),
        ("camwfs_20240415223050997960288.ndjson", FileName("camwfs", INSTANT, 288)),
        ("visx_ctrl_2024-04-15T223050.ndjson.gz", FileName("visx_ctrl", INSTANT.replace(microsecond=0), 0)),
        ("visx_2024-04-15T223050.ndjson", FileName("visx", INSTANT.replace(microsecond=0), 0)),
        ("camwfs_20240415223050997960288.xrif", FileName("camwfs", INSTANT, 288)),
        ("a.b_20240415223050997960288.bintel", FileName("a.b", INSTANT, 288)),
        ("héé_日本_20240415223050997960288.bintel", FileName("héé_日本", INSTANT, 288)),
        ("camwfs.bintel", FileName("camwfs", None, 0)),
        ("my_cam.ndjson.gz", FileName("my_cam", None, 0)),
        ("cam.ndjson.bintel.gz", FileName("cam", None, 0)),
        ("camwfs_20241315223050997960288.bintel", FileName("camwfs_20241315223050997960288", None, 0)),
        ("camwfs_00000415223050997960288.bintel", FileName("camwfs_00000415223050997960288", None, 0)),
        ("camwfs_2024041522305099796028.bintel", FileName("camwfs_2024041522305099796028", None, 0)),
        ("camwfs_202404152230509979602880.bintel", FileName("camwfs_202404152230509979602880", None, 0)),
        ("20240415223050997960288.bintel", FileName("20240415223050997960288", None, 0)),
        ("_20240415223050997960288.bintel", FileName("", INSTANT, 288)),
        ("README", FileName("README", None, 0)),
        ("", FileName("", None, 0)),
    ],
)
def test_a_name_gives_device_and_first_instant(name: str, expected: FileName) -> None:
    """The device is what stands before the stamp, and the stamp is UTC; a name without one is the device."""
    assert parse_name(name) == expected


@given(st.text(alphabet=st.one_of(st.sampled_from("_.-T0123456789٣"), st.characters()), max_size=80))
def test_any_string_is_answered(name: str) -> None:
    """No name raises."""
    assert isinstance(parse_name(name), FileName)


@given(
    st.text(alphabet=st.characters(exclude_characters="/\0"), min_size=1, max_size=30),
    st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)),  # noqa: DTZ001  # digits only
    st.integers(0, 999),
    st.sampled_from([".bintel", ".binlog", ".ndjson", ".ndjson.gz"]),
)
def test_every_name_that_a_program_writes_is_read_back(device: str, at: datetime, ns: int, suffix: str) -> None:
    """Device, microseconds and nanoseconds survive the way through a file name."""
    digits = f"{at.year:04}{at:%m%d%H%M%S%f}{ns:03}"
    assert parse_name(f"{device}_{digits}{suffix}") == FileName(device, at.replace(tzinfo=UTC), ns)
