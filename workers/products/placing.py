"""Bytes into their place: a file appears under its final name whole and durable, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from workers import paths
from workers.errors import PermanentFailure, RetryLater

_BLOCK = 1 << 20
_SYNCS = 8  # at once: a disk makes several files durable as fast as one
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(RetryLater):
    """A disk is full: nothing is lost, it is tried again when there may be room."""

    def __init__(self, path: bytes) -> None:
        folder = paths.to_text(os.path.dirname(path))
        super().__init__(
            f"no space left for {folder}; make room there, it goes on by itself", after=timedelta(seconds=60)
        )


class Changed(Exception):
    """A file changed while it was read: it has not settled."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, and its modification time in seconds since 1970."""

    sha256: str
    bytes: int
    modified: float
    sha1: str | None = None


def read_content(path: bytes, *, with_sha1: bool = False) -> Content:
    """Read a file once and hash it. Raises Changed when it was written meanwhile, OSError as the system does."""
    digest, old = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        while block := file.read(_BLOCK):
            digest.update(block)
            if with_sha1:
                old.update(block)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Changed(paths.to_text(path))
    return Content(digest.hexdigest(), after.st_size, after.st_mtime, old.hexdigest() if with_sha1 else None)


def make_folder(path: bytes) -> None:
    """Make a folder with its parents, each durable in its own. Raises NoRoom, or PermanentFailure without the right."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path.rstrip(b"/"))
    if parent and parent != path:
        make_folder(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise PermanentFailure(f"{paths.to_text(path)} is in the way: it is no folder") from None
        return
    except OSError as error:
        raise refused(error, path) from None
    sync_folders([parent or b"/"])


def move(source: bytes, temporary: bytes, final: bytes, *, replace: bool = False, is_durable: bool = False) -> None:
    """Bring a file's bytes to `final`: by a rename, or through `temporary` beside it from another file system.

    The bytes are durable before they appear (with `is_durable` they are already); `sync_folders` makes the name so.
    Raises FileExistsError when something is there already and `replace` is off, NoRoom when the disk is full (nothing
    is left), OSError else.
    """
    if not replace and os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, "it is there already", final)
    is_link = os.path.islink(source)
    try:
        if not is_link and not is_durable:
            _sync_file(source)
        os.rename(source, final)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise refused(error, final) from None
    if is_link:
        os.symlink(os.readlink(source), final)
    else:
        _copy(source, temporary, final)
    sync_folders([os.path.dirname(final)])
    remove(source)


def copy(source: bytes, temporary: bytes, final: bytes, *, replace: bool = False) -> None:
    """As `move`, but the source stays: it is somebody else's."""
    if not replace and os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, "it is there already", final)
    _copy(source, temporary, final)


def sync_files(paths_of: Iterable[bytes]) -> set[bytes]:
    """Make the content of many files durable; which it could be done for. `move` says why of the others."""

    def done(path: bytes) -> bool:
        try:
            _sync_file(path)
        except OSError:
            return False
        return True

    wanted = list(paths_of)
    with ThreadPoolExecutor(_SYNCS, thread_name_prefix="fsync") as pool:
        return {path for path, is_done in zip(wanted, pool.map(done, wanted), strict=True) if is_done}


def sync_folders(folders: Iterable[bytes]) -> None:
    """Make the names in these folders durable."""
    for folder in sorted(set(folders)):
        handle = os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: bytes) -> None:
    """Remove a file if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def temporary_of(final: bytes) -> bytes:
    """Where a file is written before it appears as `final`: beside it, hidden, its name never too long."""
    folder, name = os.path.split(final)
    return os.path.join(folder, b".headrace-" + hashlib.sha256(name).hexdigest()[:24].encode() + b".part")


def refused(error: OSError, path: bytes) -> Exception:
    """The error whose type says what to do about one of the system's."""
    if error.errno in _NO_ROOM:
        return NoRoom(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
        return PermanentFailure(f"{paths.to_text(path)}: {error.strerror}; check its owner, mode and file system")
    return error


def _copy(source: bytes, temporary: bytes, final: bytes) -> None:
    try:
        with open(source, "rb") as old, open(temporary, "wb") as new:
            shutil.copyfileobj(old, new, _BLOCK)
            new.flush()
            os.fsync(new.fileno())
        shutil.copystat(source, temporary)
        os.rename(temporary, final)
    except OSError as error:
        remove(temporary)
        raise refused(error, final) from None


def sync(path: bytes) -> None:
    """Make a file and its name durable."""
    _sync_file(path)
    sync_folders([os.path.dirname(path)])


def _sync_file(path: bytes) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
