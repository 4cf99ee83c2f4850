"""Files whose way into their place was cut off: finished or undone, as their hash says."""

from __future__ import annotations

import os

from workers import logs, paths
from workers.database import Connection
from workers.products import placing, planning, store
from workers.products.plan_store import Mission, Pending
from workers.products.store import HalfPlaced

log = logs.get(__name__)


def recover(conn: Connection, mission: Mission, host: str) -> int:
    """Settle what an ingest of this host left; how many files. The caller holds the incoming folder; commits."""
    count = 0
    for half in store.half_placed(conn, mission.id, host):
        if half.build is None:
            if settle(conn, mission, half):
                conn.commit()
                planning.mark_after(conn, mission, [pending(half)])
            conn.commit()
            count += 1
    return count


def settle(conn: Connection, mission: Mission, half: HalfPlaced) -> bool:
    """Finish a file's way into its place, or take its row back; whether it is present now.

    The caller commits, then marks what is built from it, and knows that nobody else is at this file.
    """
    final = mission.path(half.place)
    source = paths.to_bytes(half.source) if half.source is not None else None
    placing.remove(placing.temporary_of(final))
    if not _is(final, half.sha256) and half.build is not None and source is not None and _is(source, half.sha256):
        # An output that is whole in its scratch folder needs not be built again.
        placing.make_folder(os.path.dirname(final))
        placing.move(source, placing.temporary_of(final), final, replace=True)
    if not _is(final, half.sha256):
        if half.build is None and source is not None and os.path.isfile(final) and not os.path.lexists(source):
            # It was replaced between its hashing and its move: it is looked at anew as what it is now.
            placing.move(final, placing.temporary_of(final), source)
            placing.sync_folders([os.path.dirname(source), os.path.dirname(final)])
        store.not_placed(conn, half.id)
        log.warning("file.not_placed", file=half.filename, source=half.source)
        return False
    placing.sync(final)
    if source is not None and source != final and (os.path.islink(source) or _is(source, half.sha256)):
        placing.remove(source)
    store.placed(conn, [half.id])
    log.info("file.recovered", file=half.filename)
    return True


def pending(half: HalfPlaced) -> Pending:
    """The file as what others may wait for."""
    return Pending(half.product, half.day, half.key, half.start_at, half.stop_at)


def _is(path: bytes, sha256: str) -> bool:
    try:
        return os.path.isfile(path) and placing.read_content(path).sha256 == sha256
    except (OSError, placing.Changed):
        return False
