"""Files on their way in: what is known of them, their places, the quarantine; typed functions. The caller commits."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from workers import paths
from workers.database import Connection
from workers.products.versions import Version
from workers.sql_files import queries

SQL = queries("products")


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of file, as ingest and builds need it."""

    id: int
    name: str
    format: str
    folder: str
    covers: str | None
    level: float
    min_bytes: int
    trailer: bytes | None
    marker: str | None
    inspector: dict[str, Any] | None
    cut_off: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What the database has under a file name."""

    filename: str
    id: int
    sha256: str | None
    sha1: str | None
    state: str
    place: str
    product: int
    day: date
    key: str
    start_at: datetime
    stop_at: datetime


@dataclass(frozen=True, slots=True)
class NewFile:
    """A row about to be written: a file that is to come to its place."""

    mission: int
    product: int
    filename: str
    place: str
    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    version: Version
    sha256: str
    bytes: int
    modified_at: datetime
    host: str
    source: str
    temporary: str
    keywords: str = ""
    notes: Mapping[str, Any] | None = None
    inputs: list[int] | None = None
    code: int | None = None
    build: int | None = None
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class HalfPlaced:
    """A file whose way into its place was cut off."""

    id: int
    filename: str
    place: str
    source: str | None
    temporary: str | None
    sha256: str
    bytes: int
    build: int | None
    mission: int
    product: int
    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    build_state: str | None


def is_set_up(conn: Connection) -> bool:
    """Whether this database has the products' tables."""
    return bool(SQL["exists"].value(conn))


def products(conn: Connection, mission: int) -> list[Product]:
    """A mission's active products."""
    return [
        Product(**{**row, "trailer": bytes(row["trailer"]) if row["trailer"] is not None else None})
        for row in SQL["products"].records(conn, {"mission": mission})
    ]


@contextmanager
def folder(conn: Connection, path: str) -> Iterator[bool]:
    """Be the only one who takes files in from a folder; False when somebody else is.

    The server's lock holds among hosts, and ends with the session. A process may outlive its session: the lock of
    the folder itself, of which the kernel knows, holds among the processes of this host, whose files these are.
    """
    if not SQL["try_folder"].value(conn, {"folder": path}):
        yield False
        return
    handle = None
    try:
        with suppress(FileNotFoundError):
            handle = os.open(paths.to_bytes(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        is_ours = handle is None or _locked(handle)
        conn.commit()
        yield is_ours
    finally:
        if handle is not None:
            os.close(handle)
        if not conn.closed:
            conn.rollback()
            SQL["leave_folder"].run(conn, {"folder": path})
            conn.commit()


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def arrivals(conn: Connection, host: str, folder: str, settle: timedelta) -> dict[str, tuple[int, int, bool]]:
    """By path: size, time of the last change in ns, and whether that has been so for long enough."""
    below = folder.rstrip("/").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "/%"
    facts = {"host": host, "below": below, "settle": settle}
    return {row[0]: (row[1], row[2], row[3]) for row in SQL["arrivals"].rows(conn, facts)}


def note_arrival(
    conn: Connection, host: str, path: str, *, size: int, changed_ns: int, problem: str | None = None
) -> None:
    """Remember how a file looks that is not taken in yet."""
    SQL["note_arrival"].run(
        conn, {"host": host, "path": path, "bytes": size, "changed_ns": changed_ns, "problem": problem}
    )


def forget_arrivals(conn: Connection, host: str, gone: Collection[str]) -> None:
    """These files are in, or gone."""
    SQL["forget_arrivals"].run(conn, {"host": host, "paths": list(gone)})


def known_names(conn: Connection, mission: int, names: Collection[str]) -> dict[str, Known]:
    """What is known under these names."""
    rows = SQL["known_names"].rows(conn, {"mission": mission, "names": list(names)})
    return {row[0]: Known(*row) for row in rows}


def known_versions(
    conn: Connection, wanted: Sequence[tuple[int, date, str, Version]]
) -> dict[tuple[int, date, str, Version], str]:
    """Which of these (product, day, key, version) are taken, and by which file name."""
    facts = {
        "products": [one[0] for one in wanted],
        "days": [one[1] for one in wanted],
        "keys": [one[2] for one in wanted],
        "interfaces": [one[3].interface for one in wanted],
        "qualities": [one[3].quality for one in wanted],
        "revisions": [one[3].revision for one in wanted],
    }
    rows = SQL["known_versions"].rows(conn, facts)
    return {(row[0], row[1], row[2], Version(*row[3:6])): row[6] for row in rows}


def begin_placing(conn: Connection, file: NewFile) -> int:
    """Write the row of a file that is about to be moved into its place; its id."""
    return begin_placing_all(conn, [file])[0]


def begin_placing_all(conn: Connection, files: Sequence[NewFile]) -> list[int]:
    """Write the rows of files that are about to be moved into their places; their ids, in the same order."""
    facts = [
        {
            "mission_id": file.mission, "product_id": file.product, "filename": file.filename, "place": file.place,
            "day": file.day.isoformat(), "key": file.key, "start_at": file.start_at.isoformat(),
            "stop_at": file.stop_at.isoformat(), "interface": file.version.interface, "quality": file.version.quality,
            "revision": file.version.revision, "is_forced": file.is_forced, "sha256": file.sha256, "bytes": file.bytes,
            "modified_at": file.modified_at.isoformat(), "keywords": file.keywords, "notes": file.notes,
            "inputs": file.inputs, "code_id": file.code, "build_id": file.build, "host": file.host,
            "source": file.source,
            "temporary": file.temporary,
        }
        for file in files
    ]  # fmt: skip
    ids = {row[0]: int(row[1]) for row in SQL["begin_placing"].rows(conn, {"files": json.dumps(facts)})}
    return [ids[file.filename] for file in files]


def placed(conn: Connection, ids: Collection[int]) -> set[int]:
    """Files are durable in their places; the ids of those that were waiting for it."""
    return {row[0] for row in SQL["placed"].rows(conn, {"ids": list(ids)})}


def found_again(conn: Connection, file_id: int, sha256: str) -> None:
    """A missing or damaged file was delivered again."""
    SQL["found_again"].run(conn, {"id": file_id, "sha256": sha256})


def not_placed(conn: Connection, file_id: int) -> None:
    """A file did not come into its place: its row goes."""
    SQL["not_placed"].run(conn, {"id": file_id})


def half_placed(conn: Connection, mission: int, host: str) -> list[HalfPlaced]:
    """Files of a mission that a host was placing."""
    facts = {"mission": mission, "host": host}
    return [HalfPlaced(**row) for row in _renamed(SQL["half_placed"].records(conn, facts))]


def quarantine(conn: Connection, facts: Mapping[str, Any]) -> int:
    """Write why a file is about to be moved aside; the row's id."""
    return int(SQL["quarantine"].value(conn, facts))


def kept_aside(conn: Connection, quarantine_id: int, kept_as: str) -> None:
    """A quarantined file is where its row says."""
    SQL["kept_aside"].run(conn, {"id": quarantine_id, "kept_as": kept_as})


def not_quarantined(conn: Connection, quarantine_id: int) -> None:
    """A file could not be moved aside: its row goes."""
    SQL["not_quarantined"].run(conn, {"id": quarantine_id})


def being_quarantined(conn: Connection, mission: int, host: str) -> list[tuple[int, str, str]]:
    """(id, path it came as, path it is kept as) of moves that were not finished."""
    return [(row[0], row[1], row[2]) for row in SQL["being_quarantined"].rows(conn, {"mission": mission, "host": host})]


def quarantined(
    conn: Connection, *, mission: str | None = None, ids: Collection[int] | None = None, everything: bool = False
) -> list[dict[str, Any]]:
    """Files in quarantine, newest first; with `everything` those that have left it, too."""
    facts = {"mission": mission, "ids": list(ids) if ids is not None else None, "all": everything}
    return SQL["quarantined"].records(conn, facts)


def leave_quarantine(conn: Connection, quarantine_id: int, *, state: str, by: str) -> bool:
    """A file was given back or thrown away; whether it was still there."""
    return SQL["leave_quarantine"].run(conn, {"id": quarantine_id, "state": state, "by": by}) == 1


def _renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"build_id": "build", "mission_id": "mission", "product_id": "product"}
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]
