"""Rows whose time has come: a look at each database with jobs, every one in a thread of its own.

A database that is dead or cannot be routed to keeps only its own thread waiting; the others are looked at in time.
"""

from __future__ import annotations

import os
import threading
import time

from workers import database, logs
from workers.app import queue_depths, send
from workers.errors import HeadraceError, RetryLater
from workers.postprocessing import api
from workers.settings import Settings

log = logs.get(__name__)

WAIT_SECONDS = 0.7  # a tick goes on to the next thing after this; slower looks end behind its back
_FIRST_BACK_OFF_SECONDS, _MOST_BACK_OFF_SECONDS = 2.0, 30.0


class _Looker:
    """The thread of one database: sleeps until it is kicked, looks, sends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle = threading.Event()
        self.idle.set()
        self._kick = threading.Event()
        self._settings: Settings | None = None
        self._not_before = 0.0
        self._failures = 0
        self._problem: str | None = None
        threading.Thread(target=self._loop, name=f"look at {name}", daemon=True).start()

    def kick(self, settings: Settings) -> bool:
        """Have it look now, unless it still does or waits after a failure."""
        if not self.idle.is_set() or time.monotonic() < self._not_before:
            return False
        self._settings = settings
        self.idle.clear()
        self._kick.set()
        return True

    def _loop(self) -> None:
        while True:
            self._kick.wait()
            self._kick.clear()
            assert self._settings is not None
            try:
                self._look(self._settings)
            finally:
                self.idle.set()

    def _look(self, settings: Settings) -> None:
        try:
            # A message that is in the queue is not lost, however long it waits there behind long runs.
            waits = queue_depths(["postprocessing"])["postprocessing"] > 0
            send(api.look(settings, self.name, resend=not waits), slot=str(int(time.time() // 60)))
        except RetryLater as reason:
            self._fail(str(reason), reason.after.total_seconds())
        except HeadraceError as reason:
            self._fail(str(reason), _MOST_BACK_OFF_SECONDS)
        except Exception as bug:  # one database must not cost the others their look
            log.exception("look.bug", database=self.name)
            self._fail(database.first_line(bug), _MOST_BACK_OFF_SECONDS)
        else:
            if self._problem is not None:
                log.info("look.works_again", database=self.name, after_failures=self._failures)
            self._failures, self._problem = 0, None

    def _fail(self, problem: str, least_seconds: float) -> None:
        database.close_all()  # a session may remember that its server was read-only
        self._failures += 1
        back_off = _FIRST_BACK_OFF_SECONDS * 2.0 ** min(self._failures - 1, 10)
        self._not_before = time.monotonic() + min(_MOST_BACK_OFF_SECONDS, max(back_off, min(least_seconds, 10)))
        if problem != self._problem:
            # Said once, not at every try.
            self._problem = problem
            log.warning("look.failed", database=self.name, reason=problem)


_lookers: dict[tuple[int, str], _Looker] = {}


def look_everywhere(settings: Settings) -> None:
    """Look at every database with jobs; returns when all have answered, or after a moment without the slow ones."""
    kicked = []
    for name in api.names(settings):
        key = (os.getpid(), name)  # threads do not survive a fork
        looker = _lookers.get(key) or _lookers.setdefault(key, _Looker(name))
        if looker.kick(settings):
            kicked.append(looker)
    until = time.monotonic() + WAIT_SECONDS
    for looker in kicked:
        looker.idle.wait(max(0.0, until - time.monotonic()))
