"""Dark files: those that lie in the folders of a mission's products without the database knowing them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from workers import paths
from workers.database import Connection
from workers.products import keep_store
from workers.products.fixity import RawPath

BATCH = 1000


def dark_files(conn: Connection, folders: keep_store.Folders) -> Iterator[tuple[RawPath, str]]:
    """Each dark file with one sentence on it. No transaction is open while the disk is read.

    Only the fixed beginnings of product folders are walked, links to folders included, and never an incoming folder,
    the quarantine, scratch, codes or inspectors. Hidden files, and links to files that are known, are not dark.
    """
    templates = keep_store.product_folders(conn, folders.id)
    others = keep_store.other_folders(conn)
    conn.commit()
    root = paths.to_bytes(folders.root)
    tops = sorted({os.path.join(root, paths.to_bytes(fixed_part(template))) for template in templates})
    # A folder is told by its device and inode: however many links lead to it, it is walked once, or never.
    seen = {one for one in map(_identity, others) if one is not None}
    batch: list[RawPath] = []
    for path in (path for top in tops if os.path.normpath(top) != b"/" for path in _files(top, seen)):
        batch.append(path)
        if len(batch) == BATCH:
            yield from _unknown(conn, batch)
            batch = []
    yield from _unknown(conn, batch)


def fixed_part(folder: str) -> str:
    """The beginning of a folder template that is the same for each file: `L1/{Y}/{m}` -> `L1`."""
    words = folder.split("/")
    fixed = next((number for number, word in enumerate(words) if "{" in word or "}" in word), len(words))
    return "/".join(words[:fixed]) or ("/" if folder.startswith("/") else "")


def _files(top: RawPath, seen: set[tuple[int, int]]) -> Iterator[RawPath]:
    open_folders = [top]
    while open_folders:
        folder = open_folders.pop()
        identity = _identity(folder)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(folder) as entries:
                here = sorted((entry for entry in entries if not entry.name.startswith(b".")), key=lambda one: one.name)
        except OSError:
            continue  # the files that should be in it are reported one by one
        for entry in here:
            if _is(entry.is_dir):
                open_folders.append(entry.path)
            elif _is(entry.is_file):
                yield entry.path


def _is(question: object) -> bool:
    try:
        return bool(question())  # type: ignore[operator]
    except OSError:
        return False


def _identity(folder: RawPath) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unknown(conn: Connection, batch: list[RawPath]) -> Iterator[tuple[RawPath, str]]:
    if not batch:
        return
    names = {path: paths.to_text(os.path.basename(path)) for path in batch}
    known = keep_store.known_paths(conn, set(names.values()))
    temporary = keep_store.temporary_names(conn)
    conn.commit()
    for path, name in names.items():
        places = known.get(name, [])
        if any(_is_same(path, place) for place in places) or os.path.basename(path) in temporary:
            continue
        # What was being moved when we saw it is at its place by now.
        if os.path.exists(path):
            told = paths.to_text(places[0]) if places else ""
            yield path, f"the database has {name} at {told}" if told else "the database does not know it"


def _is_same(path: RawPath, place: RawPath) -> bool:
    return os.path.normpath(path) == os.path.normpath(place) or os.path.realpath(path) == os.path.realpath(place)
