"""An incoming folder: which of its files have settled, and which are not whole yet."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from workers import paths
from workers.database import Connection
from workers.products import store

_HIDDEN = b"."  # what is still being written has such a name with most tools


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file as it was seen; `text` and `name` are text forms, `changed_ns` is the time of its last change."""

    path: bytes
    text: str
    name: str
    bytes: int
    changed_ns: int
    is_link: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Files that can be taken in, those that are still written or wait for their marker, and what else lies there."""

    settled: list[Arrival]
    growing: list[Arrival]
    ignored: list[str]


def look(conn: Connection, host: str, folder: str, *, settle: timedelta, markers: Collection[str] = ()) -> Look:
    """What lies in the folder. A file has settled when neither its content nor its name has changed for `settle`.

    The file system's clock is believed only when it is not ahead of ours: then what the database saw decides.
    `markers` are suffixes of marker files. Writes what it saw of unsettled files; the caller commits. Raises OSError
    when the folder cannot be read.
    """
    entries, ignored = _entries(folder)
    seen = store.arrivals(conn, host, folder, settle)
    now, wait = time.time_ns(), int(settle.total_seconds() * 1e9)
    settled, growing = [], []
    for one in entries:
        if any(one.name.endswith(marker) for marker in markers):
            continue
        size, changed, is_quiet = seen.get(one.text, (-1, -1, False))
        is_known = (size, changed) == (one.bytes, one.changed_ns)
        if 0 <= now - one.changed_ns >= wait or wait == 0 or (is_known and is_quiet):
            settled.append(one)
        else:
            growing.append(one)
            if not is_known:
                store.note_arrival(conn, host, one.text, size=one.bytes, changed_ns=one.changed_ns)
    present = {one.text for one in entries}
    store.forget_arrivals(conn, host, [path for path in seen if path not in present])
    return Look(settled, growing, ignored)


def is_same(arrival: Arrival) -> bool:
    """Whether a file still looks as it did."""
    try:
        facts = os.lstat(arrival.path)
    except FileNotFoundError:
        return False
    return (facts.st_size, _changed(facts)) == (arrival.bytes, arrival.changed_ns)


def _entries(folder: str) -> tuple[list[Arrival], list[str]]:
    found: list[Arrival] = []
    ignored: list[str] = []
    with os.scandir(paths.to_bytes(folder)) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.startswith(_HIDDEN):
                continue
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not (stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode)):
                ignored.append(paths.to_text(entry.name))
                continue
            found.append(
                Arrival(
                    entry.path, paths.to_text(entry.path), paths.to_text(entry.name), facts.st_size, _changed(facts),
                    stat.S_ISLNK(facts.st_mode),
                )
            )  # fmt: skip
    return found, ignored


def _changed(facts: os.stat_result) -> int:
    # A copy that keeps the modification time still shows in the time of the inode's change.
    return max(facts.st_mtime_ns, facts.st_ctime_ns)
