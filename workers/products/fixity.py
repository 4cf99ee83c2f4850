"""Fixity: what lies on disk under a file's path, and whether it is what the database says."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Literal

from workers import paths
from workers.errors import Cancelled, RetryLater

CHUNK_BYTES = 1 << 20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A row keeps microseconds, and whoever wrote it may have rounded the other way.
TIME_TOLERANCE = timedelta(microseconds=2)

RawPath = bytes
"""A path in the file system's own form."""
Verdict = Literal["same", "gone", "differs", "unreadable", "changing"]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a path looked like; two sights are equal when nobody has touched the file in between."""

    device: int
    inode: int
    is_file: bool
    bytes: int
    modified_ns: int
    changed_ns: int

    @property
    def modified_at(self) -> datetime:
        """The time of the last change of content, in whole microseconds."""
        return EPOCH + timedelta(microseconds=self.modified_ns // 1000)


@dataclass(frozen=True, slots=True)
class Digest:
    """A file's hashes, and how it looked while it was read."""

    sha256: str
    sha1: str | None
    sight: Sight


@dataclass(frozen=True, slots=True)
class Expected:
    """What a row says of a file; None: it does not say. `sha1` counts only where there is no `sha256`."""

    path: RawPath
    bytes: int | None = None
    sha256: str | None = None
    sha1: str | None = None
    modified_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What was found, and of what is not as it should be, one sentence."""

    verdict: Verdict
    detail: str = ""
    sight: Sight | None = None
    digest: Digest | None = None


class FileChanged(RetryLater):
    """A file was written to while it was read."""


def path_of(root: str, place: str) -> RawPath:
    """Where a file lies: both in text form; an absolute place stands for itself."""
    return os.path.join(paths.to_bytes(root), paths.to_bytes(place))


def sight(path: RawPath) -> Sight | None:
    """How a path looks, links followed; None when nothing is there. Raises OSError when that cannot be told."""
    try:
        return _sight(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def digest(
    path: RawPath,
    *,
    needs_sha1: bool = False,
    stop: Event | None = None,
    sink: Callable[[memoryview], object] | None = None,
) -> Digest:
    """Read a file once; each piece also goes to `sink`.

    Raises OSError, FileChanged when somebody wrote to it meanwhile, Cancelled when `stop` is set.
    """
    # Without O_NONBLOCK a named pipe in a file's place would keep us for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = _sight(os.fstat(descriptor))
        if not before.is_file:
            raise IsADirectoryError(f"{paths.to_text(path)} is no regular file")
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, before.bytes + 1)))
        while got := os.readv(descriptor, [buffer]):
            if stop is not None and stop.is_set():
                raise Cancelled("the files are not read any further")
            piece = buffer[:got]
            sha256.update(piece)
            if needs_sha1:
                sha1.update(piece)
            if sink is not None:
                sink(piece)
        after = _sight(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    # A link to it changes only its ctime: that is no change of what it holds.
    if (before.bytes, before.modified_ns) != (after.bytes, after.modified_ns):
        raise FileChanged(f"{paths.to_text(path)} was written to while it was read; look at it again later")
    return Digest(sha256.hexdigest(), sha1.hexdigest() if needs_sha1 else None, after)


def look(expected: Expected, *, deep: bool, stop: Event | None = None) -> Look:
    """Compare a file with what is said of it: by its size and time, and by its bytes when these do not settle it.

    With `deep` its bytes are always read. Raises Cancelled when `stop` is set.
    """
    try:
        seen = sight(expected.path)
        if seen is None:
            return Look("gone", "no file is there")
        if not seen.is_file:
            return Look("differs", "it is no regular file", seen)
        if expected.bytes is not None and seen.bytes != expected.bytes:
            return Look("differs", f"it has {seen.bytes} bytes, not {expected.bytes}", seen)
        # Same size and another time: that is how a flipped byte looks, and a file that was only touched.
        if not deep and (
            expected.modified_at is None or abs(seen.modified_at - expected.modified_at) <= TIME_TOLERANCE
        ):
            return Look("same", "", seen)
        read = digest(expected.path, needs_sha1=expected.sha256 is None and expected.sha1 is not None, stop=stop)
    except FileNotFoundError:
        return Look("gone", "no file is there")
    except FileChanged as error:
        return Look("changing", str(error))
    except OSError as error:
        return Look("unreadable", f"it cannot be read: {error.strerror or error}")
    difference = differs(expected, read)
    return Look("differs" if difference else "same", difference or "", read.sight, read)


def differs(expected: Expected, read: Digest) -> str | None:
    """In what a file that was read is not what it should be; None: it is, as far as anything is known of it."""
    if expected.bytes is not None and read.sight.bytes != expected.bytes:
        return f"it has {read.sight.bytes} bytes, not {expected.bytes}"
    if expected.sha256 is not None:
        return None if read.sha256 == expected.sha256 else f"its sha256 is {read.sha256}, not {expected.sha256}"
    if expected.sha1 is not None and read.sha1 != expected.sha1:
        return f"its sha1 is {read.sha1}, not {expected.sha1}"
    return None


def is_still(path: RawPath, seen: Sight | None) -> bool:
    """Whether a path still looks as it did."""
    try:
        return sight(path) == seen
    except OSError:
        return False


def is_empty(folder: RawPath) -> bool:
    """Whether a folder is not there or holds nothing: what an unmounted disk looks like. Raises OSError.

    Hidden entries do not count: a scratch folder may have been made on the bare mount point.
    """
    try:
        with os.scandir(folder) as entries:
            return all(entry.name.startswith(b".") for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _sight(seen: os.stat_result) -> Sight:
    return Sight(seen.st_dev, seen.st_ino, stat.S_ISREG(seen.st_mode), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
