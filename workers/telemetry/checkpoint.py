"""Checkpoints: how far a file was read, and what a new look at it means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Literal

from workers.telemetry.streams import Position

PRINT_BYTES = 4096  # of the head and of the tail: enough to tell an appended file from a rewritten one


@dataclass(frozen=True, slots=True)
class Sight:
    """A file as the file system shows it; `mtime_ns` is nanoseconds since 1970."""

    volume: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Print:
    """A hash of a file's first bytes, and one of the last bytes before the checkpoint."""

    head_bytes: int
    head: bytes
    tail_bytes: int
    tail: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of headrace.telemetry_file; `size` and `mtime_ns` are those that the last reader saw."""

    device: str
    stamp: datetime | None
    state: str
    volume: int | None
    inode: int | None
    size: int | None
    mtime_ns: int | None
    position: Position
    prints: Print | None
    records: int
    dead_letters: int
    accepted_letters: int
    error: str | None


Verdict = Literal["unchanged", "new", "grown", "rewritten"]


def judge(known: Checkpoint | None, sight: Sight, take_print: Callable[[Print, int], Print | None]) -> Verdict:
    """What to do with a file: nothing, read it from the start, go on at the position, or start over.

    `take_print(shape, end)` hashes the same stretches of the file as it is now; None if it is shorter.
    A file of the same size but another time may have changed anywhere, so it is read anew: that is harmless.
    """
    if known is None or known.prints is None:
        return "new"
    same = (known.size, known.mtime_ns) == (sight.size, sight.mtime_ns)
    if same and known.state in ("done", "open", "damaged", "cancelled"):
        return "unchanged"
    if take_print(known.prints, known.position.raw) != known.prints:
        return "rewritten"
    # The same size again: a reader that ended half-way goes on.
    return "grown" if same or known.size is None or sight.size > known.size else "rewritten"


def take_print(file: BinaryIO, shape: Print | None, end: int, size: int) -> Print | None:
    """Hash the head and the bytes before `end`; with `shape`, exactly the stretches that it describes.

    Leaves the file's position alone: a reader may be in the middle of it.
    """
    head_bytes = shape.head_bytes if shape else min(PRINT_BYTES, size)
    tail_bytes = shape.tail_bytes if shape else min(PRINT_BYTES, end)
    if size < max(head_bytes, end):
        return None
    descriptor = file.fileno()
    head = hashlib.blake2b(os.pread(descriptor, head_bytes, 0), digest_size=16).digest()
    tail = hashlib.blake2b(os.pread(descriptor, tail_bytes, end - tail_bytes), digest_size=16).digest()
    return Print(head_bytes, head, tail_bytes, tail)
