"""Whether everything that the loaded missions name is there on this host: folders, executables, inspectors."""

from __future__ import annotations

import os
from collections.abc import Iterator

from workers import database, paths
from workers.database import Connection
from workers.products import plan_store, room, store
from workers.products.plan_store import Mission
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("products_status")


def problems(settings: Settings) -> list[str]:
    """What is wrong with the missions that this host sees, a line each. Raises ServerUnavailable."""
    with database.connection(room.target(settings), purpose="products validate", autocommit=True) as conn:
        if not store.is_set_up(conn):
            return []
        seen = [one for one in plan_store.missions(conn) if one.is_seen_by(settings.host)]
        return [*(line for one in seen for line in _folders(one)), *_programs(conn, settings.host)]


def _folders(mission: Mission) -> Iterator[str]:
    for what, text, mode in (
        ("root", mission.root, os.R_OK | os.W_OK | os.X_OK),
        ("incoming", mission.incoming, os.R_OK | os.W_OK | os.X_OK),
        ("codes", mission.codes, os.R_OK | os.X_OK),
    ):
        path = paths.to_bytes(text)
        if not os.path.isdir(path):
            yield f"mission {mission.name}: {what}: {text}: no such folder; create it or mount its disk"
        elif not os.access(path, mode):
            yield f"mission {mission.name}: {what}: {text}: cannot be used; check its owner and mode"


def _programs(conn: Connection, host: str) -> Iterator[str]:
    for mission, sees, kind, owner, root, folder, filename in SQL["programs"].rows(conn):
        if sees and host not in sees:
            continue
        path = os.path.join(*(paths.to_bytes(part) for part in (root, folder or "", filename)))
        where = f"mission {mission}: {kind} of {owner}: {paths.to_text(path)}"
        if not os.path.isfile(path):
            yield f"{where}: no such file; put it there, or load the mission with the right name"
        elif kind == "code" and not os.access(path, os.X_OK):
            yield f"{where}: not executable; chmod +x it"
