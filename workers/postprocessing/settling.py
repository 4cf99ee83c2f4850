"""Runs that will not end by themselves: of dead workers, with backends that nobody watches, cancelled in SQL."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from workers import logs
from workers.database import Connection
from workers.postprocessing import endings
from workers.postprocessing.endings import Outcome
from workers.postprocessing.savepoints import alone
from workers.postprocessing.scope import Scope
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

SILENT = timedelta(seconds=20)  # two heartbeats: the backend is looked for
ORPHAN = timedelta(seconds=45)  # four: a backend without a living worker is ended
PATIENCE_SECONDS = 15.0

# (database, run) -> heartbeat, since when this process has seen it stand still, when it cancelled the backend
_orphans: dict[tuple[str, int], tuple[datetime | None, float, float | None]] = {}


def settle_silent_runs(conn: Connection, where: Scope) -> None:
    """Mark runs as lost that have neither heartbeat nor backend; end backends that nobody watches any more."""
    rows = SQL["silent_runs"].rows(conn, {"older": SILENT})
    for run, job, pid, silent_seconds, lives, heartbeat in rows:
        if not lives:
            with alone(conn, where):
                if endings.lose(conn, where, run, job=job, pid=pid):
                    log.warning("job.lost", database=where.name, job=job, job_run=run)
        elif silent_seconds > ORPHAN.total_seconds():
            _end_orphan(conn, where, run, job, heartbeat)
    for key in [key for key in _orphans if key[0] == where.target.dsn and key[1] not in {row[0] for row in rows}]:
        del _orphans[key]


def end_unwanted(conn: Connection, where: Scope) -> None:
    """End queued runs that somebody cancelled in SQL, with all that follows from an end."""
    for run, job, by in SQL["unwanted"].rows(conn):
        with alone(conn, where):
            outcome = Outcome("cancelled", f"cancelled by {by} before it started", cancelled_by=by)
            endings.finish(conn, where, run, outcome, job=job, pid=None)


def _end_orphan(conn: Connection, where: Scope, run: int, job: int, heartbeat: datetime) -> None:
    """Cancel a backend that nobody watches, later terminate it; only what this process has seen silent for a while.

    After a frozen machine all runs look silent for a moment, until their watchdogs wake up, too.
    """
    key = (where.target.dsn, run)
    last, since, cancelled = _orphans.get(key, (None, 0.0, None))
    now = time.monotonic()
    if last != heartbeat:
        _orphans[key] = (heartbeat, now, None)
        return
    if now - since < PATIENCE_SECONDS or (cancelled is not None and now - cancelled < PATIENCE_SECONDS):
        return
    SQL["end_orphan"].run(conn, {"run": run, "terminate": cancelled is not None})
    _orphans[key] = (heartbeat, since, cancelled if cancelled is not None else now)
    log.warning("job.orphan", database=where.name, job=job, job_run=run, terminated=cancelled is not None)
