"""The reaper: closes the runs of dead workers, and sends requests again whose message got lost."""

from __future__ import annotations

from datetime import timedelta

import orjson

from workers import database, logs
from workers.errors import ServerUnavailable
from workers.messages import Message, parse
from workers.runs import STALE
from workers.settings import Settings
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("foundation")

RESEND = timedelta(seconds=60)
RESEND_AT_ONCE = 1000


def reap(settings: Settings) -> int:
    """Mark as lost every run without heartbeat for 45 s whose backend is gone; how many there were.

    A run whose database cannot be reached is unknown, not lost: its backend may be finishing the work.
    """
    lost = 0
    with database.connection(settings.target(), purpose="reaper", autocommit=True) as control:
        for run, room, key, name, pid, start in SQL["stale_runs"].rows(control, {"older": STALE}):
            if _backend_lives(settings, name, pid, start):
                continue
            error = orjson.dumps({"message": "its worker died: no heartbeat and no backend; the sweep does it again"})
            if SQL["lose_run"].value(control, {"id": run, "older": STALE, "error": error.decode()}):
                log.warning("run.lost", run=run, room=room, key=key)
                lost += 1
    return lost


def requests_to_resend(settings: Settings) -> list[Message]:
    """People's requests that wait without a message young enough to be on its way; they count as sent now."""
    with database.connection(settings.target(), purpose="reaper") as control:
        rows = SQL["unsent_runs"].rows(control, {"older": RESEND, "limit": RESEND_AT_ONCE})
        if rows:
            SQL["mark_sent"].run(control, {"ids": [row[0] for row in rows]})
            control.commit()
    return [parse(task, {**fields, "run": run}) for run, task, fields in rows]


def forget_old_runs(settings: Settings) -> int:
    """Delete history beyond `retention.runs_days`; how many rows went."""
    older = timedelta(days=settings.retention.runs_days)
    with database.connection(settings.target(), purpose="reaper", autocommit=True) as control:
        return SQL["delete_old_runs"].run(control, {"older": older})


def _backend_lives(settings: Settings, name: str | None, pid: int | None, start: object) -> bool:
    if name is None or pid is None:
        return False
    try:
        with database.connection(settings.target(name), purpose="reaper", autocommit=True) as conn:
            return bool(SQL["backend_lives"].value(conn, {"pid": pid, "start": start}))
    except (ServerUnavailable, KeyError):
        return True
