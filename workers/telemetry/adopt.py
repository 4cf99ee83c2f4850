"""Adoption: files that xtelemdb has read to their end count as read, so that nobody reads years of them again."""

from __future__ import annotations

import os
from dataclasses import dataclass

from workers import paths
from workers.database import Connection
from workers.telemetry import store
from workers.telemetry.checkpoint import Checkpoint, Sight, take_print
from workers.telemetry.names import parse_name
from workers.telemetry.readers import SUFFIXES
from workers.telemetry.streams import Position


@dataclass(slots=True)
class Adopted:
    """How many files count as read now, changed since xtelemdb read them (so they are read), or are not here."""

    adopted: int = 0
    changed: int = 0
    absent: int = 0


def adopt(conn: Connection, host: str) -> Adopted:
    """Give every unchanged file of this host that xtelemdb has read a checkpoint at its end; commits them.

    A file whose time is later than its reading has changed: it has no checkpoint and is read from its
    start, which the primary key makes harmless but for records that xtelemdb rounded on their way.
    """
    count = Adopted()
    for path, read_at in store.read_by_xtelemdb(conn, host):
        if not path.endswith(SUFFIXES):
            continue
        raw = paths.to_bytes(path)
        try:
            seen = os.stat(raw)
            with open(raw, "rb", buffering=0) as file:
                if seen.st_mtime > read_at.timestamp():
                    count.changed += 1
                    continue
                prints = take_print(file, None, seen.st_size, seen.st_size)
        except OSError:
            count.absent += 1
            continue
        name = parse_name(path.rsplit("/", 1)[-1])
        sight = Sight(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
        point = Checkpoint(
            device=name.device,
            stamp=name.stamp,
            state="done",
            volume=sight.volume,
            inode=sight.inode,
            size=sight.size,
            mtime_ns=sight.mtime_ns,
            position=Position(raw=sight.size),
            prints=prints,
            records=0,
            dead_letters=0,
            accepted_letters=0,
            error=None,
        )
        store.save_checkpoint(conn, host, path, point)
        count.adopted += 1
    conn.commit()
    return count
