"""The log file of a child process: opened for appending, bounded in size, its last lines read back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_LOG_BYTES = 16 * 1024 * 1024


def open_log(path: Path) -> int:
    """Open `path` for appending, mode 0600, and return the descriptor (the caller closes it)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def bound_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """When `path` is larger than `max_bytes`, move its content to `<path>.1` and begin anew; True if so.

    The writer keeps its descriptor, so the file is copied and truncated in place: lines written between the
    two are lost. Two files of at most about `max_bytes` each remain.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
        shutil.copy(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except OSError:
        # A full disk must not take the supervisor down with it; truncating alone gives space back.
        path.with_name(path.name + ".1").unlink(missing_ok=True)
        if path.exists():
            os.truncate(path, 0)
    return True


def log_size(path: Path) -> int:
    """Return the size of the log in bytes, 0 when it is absent: a mark for `last_lines`."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_lines(path: Path, count: int = 12, *, since_bytes: int = 0) -> str:
    """Return the last `count` lines of the log that were written after the mark `since_bytes`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = since_bytes if since_bytes <= size else 0
            file.seek(max(start, size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])
