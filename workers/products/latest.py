"""A folder of links to the newest file of every product, day and key."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import keep_store


@dataclass(frozen=True, slots=True)
class Links:
    """How many links were made or turned, were right already, and were taken away; and what was in the way."""

    made: int
    kept: int
    removed: int
    problems: list[str]


def latest_links(conn: Connection, mission_id: int, folder: Path) -> Links:
    """Make a folder hold exactly one link to each newest file of a mission, under the file's name.

    Only links that this made are turned or removed: those to a file of a mission with the link's own name. Everything
    else in the folder stays. Raises PermanentFailure when the folder is one that files are taken in from, or that
    cannot be written to.
    """
    folders = keep_store.mission(conn, mission_id)
    wanted = keep_store.newest_paths(conn, mission_id)
    others = keep_store.other_folders(conn)
    conn.commit()
    at = os.fsencode(folder)
    if any(os.path.realpath(at) == os.path.realpath(other) for other in others):
        raise PermanentFailure(f"{folder} is a folder of mission {folders.name}'s own; name another one for the links")
    try:
        os.makedirs(at, exist_ok=True)
        there = {entry.name: os.readlink(entry.path) if entry.is_symlink() else None for entry in os.scandir(at)}
    except OSError as error:
        raise PermanentFailure(f"{folder} cannot be used: {error.strerror}; name another folder") from error
    known = keep_store.known_paths(conn, [paths.to_text(name) for name in there])
    conn.commit()
    ours = {name for name, target in there.items() if target in known.get(paths.to_text(name), [])}
    made = kept = removed = 0
    problems: list[str] = []
    for name, target in wanted.items():
        if there.get(name) == target:
            kept += 1
        elif name in there and name not in ours:
            problems.append(f"{paths.to_text(os.path.join(at, name))} is in the way: it is no link of ours")
        else:
            _turn(os.path.join(at, name), target)
            made += 1
    for name in ours - wanted.keys():
        os.unlink(os.path.join(at, name))
        removed += 1
    return Links(made, kept, removed, problems)


def _turn(link: bytes, target: bytes) -> None:
    # Renamed into place: whoever opens the link finds the old file or the new one.
    temporary = os.path.join(os.path.dirname(link), b".headrace-" + secrets.token_hex(8).encode())
    os.symlink(target, temporary)
    os.replace(temporary, link)
