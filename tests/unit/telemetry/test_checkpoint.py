"""Checkpoints: what a new look at a file means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from workers.telemetry.checkpoint import PRINT_BYTES, Checkpoint, Print, Sight, judge, take_print
from workers.telemetry.streams import Position

SEEN = Sight(volume=1, inode=2, size=100, mtime_ns=5)
KNOWN = Checkpoint(
    device="cooler",
    stamp=None,
    state="done",
    volume=1,
    inode=2,
    size=100,
    mtime_ns=5,
    position=Position(100, 0, 100),
    prints=Print(100, b"head", 100, b"tail"),
    records=3,
    dead_letters=0,
    accepted_letters=0,
    error=None,
)
OTHER = Print(100, b"other", 100, b"tail")


@pytest.mark.parametrize(
    ("known", "sight", "now", "verdict"),
    [
        (None, SEEN, KNOWN.prints, "new"),
        (replace(KNOWN, prints=None), SEEN, KNOWN.prints, "new"),
        (KNOWN, SEEN, OTHER, "unchanged"),
        (replace(KNOWN, state="open"), SEEN, KNOWN.prints, "unchanged"),
        (replace(KNOWN, state="damaged"), SEEN, KNOWN.prints, "unchanged"),
        (replace(KNOWN, state="cancelled"), SEEN, KNOWN.prints, "unchanged"),
        (replace(KNOWN, state="pending"), SEEN, KNOWN.prints, "grown"),
        (replace(KNOWN, state="failed"), SEEN, KNOWN.prints, "grown"),
        (replace(KNOWN, state="pending"), SEEN, OTHER, "rewritten"),
        (KNOWN, replace(SEEN, size=150, mtime_ns=6), KNOWN.prints, "grown"),
        (KNOWN, replace(SEEN, size=150), KNOWN.prints, "grown"),
        (KNOWN, replace(SEEN, size=150, mtime_ns=6), OTHER, "rewritten"),
        (KNOWN, replace(SEEN, size=50, mtime_ns=6), None, "rewritten"),
        (KNOWN, replace(SEEN, size=99, mtime_ns=6), KNOWN.prints, "rewritten"),
        (KNOWN, replace(SEEN, mtime_ns=6), KNOWN.prints, "rewritten"),
        (KNOWN, replace(SEEN, mtime_ns=4), KNOWN.prints, "rewritten"),
        (replace(KNOWN, size=None, mtime_ns=None, state="pending"), SEEN, KNOWN.prints, "grown"),
    ],
)
def test_a_look_at_a_file_is_judged(known: Checkpoint | None, sight: Sight, now: Print | None, verdict: str) -> None:
    """New, unchanged, grown or rewritten: decided by size, time, state, and the two prints."""
    assert judge(known, sight, lambda _shape, _end: now) == verdict


def test_an_unchanged_file_is_not_hashed() -> None:
    """Size and time are enough to leave a file alone: no byte of it is read."""

    def forbidden(_shape: Print, _end: int) -> Print:
        raise AssertionError("was hashed")

    assert judge(KNOWN, SEEN, forbidden) == "unchanged"


@pytest.fixture
def printed(tmp_path: Path) -> Callable[..., Print | None]:
    """The print of a file with this content."""

    def of(content: bytes, shape: Print | None, end: int) -> Print | None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with path.open("rb") as file:
            return take_print(file, shape, end, len(content))

    return of


@pytest.mark.parametrize(("size", "end"), [(0, 0), (10, 0), (10, 10), (4096, 5), (9000, 9000), (9000, 4097)])
def test_a_print_taken_again_is_equal_until_something_in_it_changes(
    printed: Callable[..., Print | None], size: int, end: int
) -> None:
    """Appending leaves a print as it is; a change in its head or in its tail does not."""
    content = bytes(number % 251 for number in range(size))
    first = printed(content, None, end)
    assert first is not None
    assert (first.head_bytes, first.tail_bytes) == (min(PRINT_BYTES, size), min(PRINT_BYTES, end))
    longer = content + b"more"
    assert printed(longer, first, end) == first
    for at in {min(size, PRINT_BYTES) - 1, end - 1} - {-1}:
        changed = bytearray(longer)
        changed[at] ^= 1
        assert printed(bytes(changed), first, end) != first


def test_a_file_that_became_shorter_has_no_print(printed: Callable[..., Print | None]) -> None:
    """Less than the head, or less than what was read: there is nothing to compare."""
    first = printed(bytes(5000), None, 5000)
    assert printed(bytes(4999), first, 5000) is None
    assert printed(bytes(10), first, 0) is None


@pytest.mark.parametrize("place", [0, 7, 6000])
def test_a_print_does_not_move_its_readers_place(tmp_path: Path, place: int) -> None:
    """A reader goes on after a print where it was before it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(6000))
    with path.open("rb", buffering=0) as file:
        file.seek(place)
        take_print(file, None, 5000, 6000)
        assert file.tell() == place
