"""The quarantine: files that could not be taken in are kept with their reason, and given back after a fix."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from workers import logs, paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import placing, plan_store, store
from workers.products.identifying import Refusal
from workers.products.plan_store import Mission

log = logs.get(__name__)


def put(
    conn: Connection, mission: Mission, host: str, path: bytes, refusal: Refusal, content: placing.Content | None
) -> int:
    """Move a file into quarantine: its row first, then the file; commits. Its id. `finish` ends what was cut off."""
    name = os.path.basename(path)
    folder = paths.to_bytes(mission.quarantine)
    placing.make_folder(folder)
    quarantined = store.quarantine(
        conn,
        {
            "mission": mission.id, "host": host, "filename": paths.to_text(name), "arrived_as": paths.to_text(path),
            "kept_as": paths.to_text(_free(folder, name)), "reason": refusal.reason,
            "message": refusal.message.replace("\0", ""),
            "candidates": list(refusal.candidates), "suggestion": refusal.suggestion,
            "sha256": content.sha256 if content else None, "bytes": content.bytes if content else None,
        },
    )  # fmt: skip
    conn.commit()
    try:
        _move(conn, quarantined, path, _free(folder, name))
    except (placing.NoRoom, PermanentFailure, OSError):
        if os.path.lexists(path):
            store.not_quarantined(conn, quarantined)
            conn.commit()
        raise
    log.warning("file.quarantined", file=paths.to_text(path), reason=refusal.reason, message=refusal.message)
    return quarantined


def finish(conn: Connection, mission: Mission, host: str) -> int:
    """Finish the moves that were cut off; how many. The caller holds the incoming folder; commits."""
    moves = store.being_quarantined(conn, mission.id, host)
    for quarantined, arrived_as, kept_as in moves:
        path, kept = paths.to_bytes(arrived_as), paths.to_bytes(kept_as)
        if os.path.lexists(path) and not os.path.lexists(kept):
            try:
                _move(conn, quarantined, path, kept)
            except (placing.NoRoom, PermanentFailure, OSError) as error:
                log.warning("quarantine.not_moved", file=arrived_as, reason=str(error))
        else:
            store.kept_aside(conn, quarantined, kept_as)
            conn.commit()
    return len(moves)


def retry(
    conn: Connection, ids: Collection[int] | None, *, mission: str | None, by: str
) -> tuple[list[int], list[str]]:
    """Give files back to their incoming folders: (those given back, a problem for each that was not); commits."""
    done: list[int] = []
    problems: list[str] = []
    for one in _chosen(conn, ids, mission, problems):
        kept, back = paths.to_bytes(one["kept_as"]), paths.to_bytes(one["arrived_as"])
        if not os.path.lexists(kept):
            problems.append(f"quarantine {one['id']}: {one['kept_as']} is not there; is this host {one['host']}?")
        elif os.path.lexists(back):
            problems.append(f"quarantine {one['id']}: {one['arrived_as']} is there again; move that one away first")
        else:
            # The file first: killed in between, it is in the incoming folder and is taken in, or comes back here.
            placing.move(kept, placing.temporary_of(back), back)
            store.leave_quarantine(conn, one["id"], state="retried", by=by)
            conn.commit()
            done.append(one["id"])
    return done, problems


def discard(conn: Connection, ids: Collection[int], *, by: str) -> tuple[list[int], list[str]]:
    """Delete files from quarantine for good: (those deleted, a problem for each that was not); commits."""
    done: list[int] = []
    problems: list[str] = []
    for one in _chosen(conn, ids, None, problems):
        placing.remove(paths.to_bytes(one["kept_as"]))
        store.leave_quarantine(conn, one["id"], state="discarded", by=by)
        conn.commit()
        done.append(one["id"])
    return done, problems


def _chosen(
    conn: Connection, ids: Collection[int] | None, mission: str | None, problems: list[str]
) -> list[dict[str, Any]]:
    if mission is not None:
        plan_store.mission(conn, mission)
    found = store.quarantined(conn, ids=ids, mission=mission)
    problems += [
        f"quarantine {one}: no file waits there under this number; `headrace products quarantine` lists them"
        for one in sorted(set(ids or ()) - {row["id"] for row in found})
    ]
    return found


def _move(conn: Connection, quarantined: int, path: bytes, kept: bytes) -> None:
    for _ in range(1000):
        try:
            placing.move(path, placing.temporary_of(kept), kept)
            break
        except FileExistsError:
            kept = _free(os.path.dirname(kept), os.path.basename(path))
    else:
        raise PermanentFailure(f"{paths.to_text(path)}: no free name for it in quarantine; clear that folder")
    placing.sync_folders([os.path.dirname(kept)])
    store.kept_aside(conn, quarantined, paths.to_text(kept))
    conn.commit()


def _free(folder: bytes, name: bytes) -> bytes:
    """A path that is not taken: files of one name come again and again."""
    path, number = os.path.join(folder, name), 1
    while os.path.lexists(path):
        number += 1
        path = os.path.join(folder, name[:240] + f".{number}".encode())
    return path
