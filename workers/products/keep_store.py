"""The rows that keeping asks and changes: files against the disk, releases, what is cleaned or forgotten.

The caller commits.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products.fixity import Digest, Expected, RawPath, path_of
from workers.sql_files import queries

SQL = queries("products_keep")


@dataclass(frozen=True, slots=True)
class Folders:
    """A mission with where its files are; text form."""

    id: int
    name: str
    root: str
    incoming: str
    has_files: bool


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file as its row says; `vanished` are the ids of inputs that have no row any more."""

    id: int
    mission_id: int
    root: str
    product: str
    filename: str
    place: str
    day: date
    state: str
    sha256: str | None
    sha1: str | None
    bytes: int | None
    modified_at: datetime | None
    build_id: int | None
    host: str | None
    is_built: bool
    is_superseded: bool
    is_half_placed: bool
    vanished: list[int]

    @property
    def path(self) -> RawPath:
        """Where it lies."""
        return path_of(self.root, self.place)

    @property
    def expected(self) -> Expected:
        """What its place has to hold."""
        return Expected(self.path, self.bytes, self.sha256, self.sha1, self.modified_at)


def mission(conn: Connection, mission_id: int) -> Folders:
    """A mission's folders. Raises PermanentFailure when there is none of this id."""
    found = SQL["mission"].records(conn, {"mission": mission_id})
    if not found:
        raise PermanentFailure(f"there is no mission {mission_id}; `headrace products load FILE` makes one")
    return Folders(**found[0])


def other_folders(conn: Connection) -> list[bytes]:
    """Folders of missions that hold no files of products: incoming, codes, quarantine and the like."""
    return [paths.to_bytes(row[0]) for row in SQL["other_folders"].rows(conn)]


def product_folders(conn: Connection, mission_id: int) -> list[str]:
    """Where a mission's files lie, as templates in text form."""
    return [row[0] for row in SQL["product_folders"].rows(conn, {"mission": mission_id})]


def require_products(conn: Connection, mission_id: int, names: Collection[str] | None) -> None:
    """Raise PermanentFailure when a mission has no product of one of these names."""
    if names is None:
        return
    unknown = SQL["unknown_products"].rows(conn, {"mission": mission_id, "names": list(names)})
    if unknown:
        told = ", ".join(row[0] for row in unknown)
        raise PermanentFailure(f"no such product: {told}; `headrace products show` lists them")


def count_files(conn: Connection, mission_id: int, since: date | None, until: date | None) -> int:
    """How many files a mission has in these days, both included."""
    return int(SQL["count_files"].value(conn, {"mission": mission_id, "since": since, "until": until}))


def files_after(
    conn: Connection, mission_id: int, after: int, *, since: date | None, until: date | None, limit: int
) -> list[FileRow]:
    """The next files in the order of their ids."""
    asked = {"mission": mission_id, "after": after, "since": since, "until": until, "limit": limit}
    return [FileRow(**row) for row in SQL["files_after"].records(conn, asked)]


def files_by_id(conn: Connection, ids: Collection[int]) -> list[FileRow]:
    """Some files, in the order of their ids; those that have no row are left out."""
    return [FileRow(**row) for row in SQL["files_by_id"].records(conn, {"ids": list(ids)})]


def known_paths(conn: Connection, names: Collection[str]) -> dict[str, list[bytes]]:
    """Where files of some names lie, of whichever mission and in whatever state."""
    found: dict[str, list[bytes]] = {}
    for name, root, place in SQL["known_places"].rows(conn, {"names": list(names)}):
        found.setdefault(name, []).append(path_of(root, place))
    return found


def temporary_names(conn: Connection) -> set[bytes]:
    """What files are called while they are being placed."""
    return {os.path.basename(paths.to_bytes(row[0])) for row in SQL["temporaries"].rows(conn)}


def unchanged(conn: Connection, rows: Sequence[FileRow], *, lock: bool) -> set[int]:
    """Those whose rows still say what they said.

    With `lock` they stay so until the transaction ends, and those that somebody else has in hand are left out.
    """
    if lock:
        free = lock_groups(conn, [row.id for row in rows])
        rows = [row for row in rows if row.id in free]
    asked = {
        "ids": [row.id for row in rows], "states": [row.state for row in rows],
        "hashes": [row.sha256 for row in rows], "builds": [row.build_id for row in rows],
    }  # fmt: skip
    return {row[0] for row in SQL["lock_unchanged" if lock else "unchanged"].rows(conn, asked)}


def lock_groups(conn: Connection, ids: Collection[int]) -> set[int]:
    """Those whose product, day and key nobody else is changing, nor can until the transaction ends."""
    return {row[0] for row in SQL["lock_groups"].rows(conn, {"ids": list(ids)})}


def set_states(conn: Connection, states: Iterable[tuple[int, str]]) -> None:
    """Say of files, by id, what the disk says."""
    pairs = list(states)
    SQL["set_states"].run(conn, {"ids": [pair[0] for pair in pairs], "states": [pair[1] for pair in pairs]})


def verified(conn: Connection, read: Sequence[tuple[FileRow, Digest]]) -> int:
    """Keep what files were found to be that had the right bytes; how many rows it was kept in."""
    return SQL["verified"].run(conn, {
        "ids": [row.id for row, _ in read], "states": [row.state for row, _ in read],
        "builds": [row.build_id for row, _ in read], "hashes": [digest.sha256 for _, digest in read],
        "sizes": [digest.sight.bytes for _, digest in read],
        "times": [digest.sight.modified_at for _, digest in read],
    })  # fmt: skip


def candidates(
    conn: Connection, mission_id: int, older_than: timedelta, products: Collection[str] | None
) -> list[dict[str, Any]]:
    """Superseded files that are registered for longer than an age."""
    names = list(products) if products is not None else None
    return SQL["candidates"].records(conn, {"mission": mission_id, "older_than": older_than, "products": names})


def kept_although_superseded(conn: Connection, mission_id: int) -> set[int]:
    """The files that are not newest and that something of a mission needs, with all that these were built from."""
    kept = {row[0] for row in SQL["kept_although_superseded"].rows(conn, {"mission": mission_id})}
    generation = kept
    while generation:
        found = SQL["parents"].rows(conn, {"ids": list(generation)})
        generation = {row[0] for row in found} - kept
        kept = kept | generation
    return kept


def superseded(conn: Connection, ids: Collection[int]) -> set[int]:
    """Those that may be there and of which a higher version is present."""
    return {row[0] for row in SQL["superseded"].rows(conn, {"ids": list(ids)})}


def lock_removed(conn: Connection, ids: Collection[int]) -> set[int]:
    """Those whose row says removed, and will until the transaction ends."""
    return {row[0] for row in SQL["lock_removed"].rows(conn, {"ids": list(ids)})}


def descendants(conn: Connection, ids: Collection[int]) -> dict[int, set[int]]:
    """Everything built from some files: each id with those it was built from that are among them or theirs.

    One question for each generation, not for each file.
    """
    SQL["without_jit"].run(conn)
    parents: dict[int, set[int]] = {id_: set() for id_ in ids}
    generation = list(parents)
    while generation:
        found = SQL["children"].rows(conn, {"ids": generation})
        generation = sorted({child for _, child in found if child not in parents})
        for parent, child in found:
            parents.setdefault(child, set()).add(parent)
    return parents


def needed(conn: Connection, ids: Collection[int]) -> set[int]:
    """Those that are newest, released or in use, or of whose descendants one is."""
    parents = descendants(conn, ids)
    kept = {row[0] for row in SQL["marked"].rows(conn, {"ids": list(parents)})}
    open_ids = list(kept)
    while open_ids:
        above = parents.get(open_ids.pop(), set()) - kept
        kept |= above
        open_ids.extend(above)
    return kept & set(ids)


def refusals(conn: Connection, ids: Collection[int]) -> list[str]:
    """Why some files may not be forgotten, a line each."""
    return [f"{name} {reason}" for _, name, reason in SQL["refusals"].rows(conn, {"ids": list(ids)})]


def forget(conn: Connection, ids: Collection[int]) -> int:
    """Delete the rows of some files and what hangs on them; how many files that were."""
    asked = {"ids": list(ids)}
    for name in ("unname_outputs", "reset_slots", "forget_arrivals"):
        SQL[name].run(conn, asked)
    return SQL["forget_files"].run(conn, asked)


def forget_parents(conn: Connection, ids: Collection[int]) -> int:
    """Let some files count as delivered; how many there were that did not."""
    SQL["forget_parents"].run(conn, {"ids": list(ids)})
    return SQL["count_as_delivered"].run(conn, {"ids": list(ids)})


def ask_for_a_plan(conn: Connection, missions: Collection[int]) -> None:
    """Have the stale outputs of some missions looked for again."""
    SQL["ask_for_a_plan"].run(conn, {"missions": list(missions)})


def newest_paths(conn: Connection, mission_id: int) -> dict[bytes, bytes]:
    """The newest files of a mission: file name on disk -> where it lies."""
    found = SQL["newest_places"].rows(conn, {"mission": mission_id})
    return {paths.to_bytes(name): path_of(root, place) for root, place, name in found}
