"""The watchdog of one run: a thread that keeps its heartbeat, and ends it when its time is up or a person wants so.

PostgreSQL's statement_timeout is the first limit of a call; the watchdog is the second, for routines that change it or
swallow the cancellation: cancel, wait for the grace period, terminate the backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from workers import database, logs
from workers.database import Connection
from workers.runs import HEARTBEAT
from workers.sql_files import queries
from workers.targets import Target

log = logs.get(__name__)
SQL = queries("postprocessing")

_LOOK_SECONDS = 1.0
_MARGIN_SECONDS = 1.0  # statement_timeout fires first; this is for routines that defeat it


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a call may take, in seconds. `max_seconds` 0 or None: only the backstop."""

    max_seconds: float | None
    grace_seconds: float
    blocked_seconds: float
    backstop_seconds: float

    def first(self) -> float:
        """The limit that counts."""
        return min(self.max_seconds or self.backstop_seconds, self.backstop_seconds)


class Watchdog:
    """Watches the backend of one run from `__enter__` to `__exit__`.

    Afterwards `verdict` is None, "timeout" or "cancelled", and `why` says it in words.
    """

    def __init__(
        self, target: Target, run: int, *, pid: int, start: datetime, limits: Limits, wanted: Callable[[], str | None]
    ) -> None:
        self._target, self._run, self._pid, self._start = target, run, pid, start
        self._limits = limits
        self._wanted = wanted
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watchdog of run {run}", daemon=True)
        self._began = 0.0
        self._blocked_since: float | None = None
        self._blocked_by: list[int] = []
        self._first_cancel: float | None = None
        self.verdict: str | None = None
        self.why: str | None = None
        self.cancelled_by: str | None = None

    def __enter__(self) -> Watchdog:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        next_beat = self._began + HEARTBEAT.total_seconds()
        try:
            # A short run never gets here: no connection is opened for it.
            while not self._over.wait(_LOOK_SECONDS):
                now = time.monotonic()
                self._judge(now)
                if now >= next_beat or self.verdict is not None:
                    next_beat = now + HEARTBEAT.total_seconds()
                    self._act(now)
        finally:
            database.close_all()

    def _judge(self, now: float) -> None:
        if self.verdict is not None:
            return
        if (by := self._wanted()) is not None:
            self._decide("cancelled", f"cancelled by {by}", by)
        elif now - self._began > self._limits.first() + _MARGIN_SECONDS:
            self._decide("timeout", f"stopped after {now - self._began:.0f} s, its limit is {self._limits.first():g} s")

    def _decide(self, verdict: str, why: str, by: str | None = None) -> None:
        self.verdict, self.why, self.cancelled_by = verdict, why, by

    def _act(self, now: float) -> None:
        try:
            with database.connection(self._target, purpose="watchdog", run=self._run, autocommit=True) as conn:
                wanted_by = SQL["beat"].value(conn, {"run": self._run})
                if self.verdict is None and wanted_by is not None:
                    self._decide("cancelled", f"cancelled by {wanted_by}", wanted_by)
                if self.verdict is None:
                    self._look_for_blockers(conn, now)
                if self.verdict is not None and not self._over.is_set():
                    self._end(conn, now)
        except Exception as error:  # the next look tries again; the call must not suffer
            log.warning("watchdog.no_connection", run=self._run, reason=database.first_line(error))

    def _look_for_blockers(self, conn: Connection, now: float) -> None:
        row = SQL["activity"].row(conn, {"pid": self._pid, "start": self._start})
        blocked = row is not None and row[0] == "Lock"
        self._blocked_by = list(row[2]) if row is not None and blocked else []
        self._blocked_since = (self._blocked_since or now) if blocked else None
        if self._blocked_since is not None and now - self._blocked_since > self._limits.blocked_seconds:
            by = ", ".join(str(pid) for pid in self._blocked_by) or "nobody known"
            minutes = (now - self._blocked_since) / 60
            self._decide(
                "timeout", f"no progress: waited {minutes:.0f} min for a lock held by backend {by}; end that one"
            )

    def _end(self, conn: Connection, now: float) -> None:
        who = {"pid": self._pid, "start": self._start}
        if self._first_cancel is None:
            self._first_cancel = now
        if now - self._first_cancel < self._limits.grace_seconds:
            SQL["cancel_backend"].run(conn, who)
        else:
            self.why = f"{self.why}; it did not end within {self._limits.grace_seconds:g} s and was terminated"
            log.warning("run.terminated", run=self._run, pid=self._pid)
            SQL["terminate_backend"].run(conn, who)
            self._first_cancel = now + 60  # once is enough; a backend that is stuck in the kernel takes its time
