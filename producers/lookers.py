"""Looking at many databases side by side: one thread per thing that is looked at.

What is dead or cannot be routed to keeps only its own thread waiting; the others are looked at in time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from workers import database, logs
from workers.app import queue_depths, send
from workers.errors import HeadraceError, RetryLater
from workers.messages import Message
from workers.settings import Settings

log = logs.get(__name__)

Look = Callable[[Settings, str, bool], Sequence[Message]]

WAIT_SECONDS = 0.7  # a tick goes on to the next thing after this; slower looks end behind its back
_FIRST_BACK_OFF_SECONDS, _MOST_BACK_OFF_SECONDS = 2.0, 30.0
_TICK_SECONDS = 1.0


class _Looker:
    """The thread of one name: sleeps until it is kicked, looks (until the next tick again and again), sends."""

    def __init__(self, room: str, name: str, look: Look) -> None:
        self.room, self.name = room, name
        self.idle = threading.Event()
        self.idle.set()
        self._look_at = look
        self._kick = threading.Event()
        self._settings: Settings | None = None
        self._every: float | None = None
        self._not_before = 0.0
        self._failures = 0
        self._problem: str | None = None
        threading.Thread(target=self._loop, name=f"{room}: look at {name}", daemon=True).start()

    def kick(self, settings: Settings, every: float | None) -> bool:
        """Have it look now, unless it still does or waits after a failure."""
        if not self.idle.is_set() or time.monotonic() < self._not_before:
            return False
        self._settings, self._every = settings, every
        self.idle.clear()
        self._kick.set()
        return True

    def _loop(self) -> None:
        pause = threading.Event()
        while True:
            self._kick.wait()
            self._kick.clear()
            assert self._settings is not None
            until = time.monotonic() + _TICK_SECONDS
            try:
                self._look(self._settings, with_resend=True)
                # Looked at more often than beat ticks; without ticks (no beat leads, a pause) it ends by itself.
                while self._every is not None and self._failures == 0 and time.monotonic() + self._every < until:
                    self.idle.set()
                    pause.wait(self._every)
                    self._look(self._settings, with_resend=False)
            finally:
                self.idle.set()

    def _look(self, settings: Settings, *, with_resend: bool) -> None:
        try:
            # A message that is in the queue is not lost, however long it waits there behind long runs.
            resend = with_resend and queue_depths([self.room])[self.room] == 0
            send(self._look_at(settings, self.name, resend), slot=str(int(time.time() // 60)))
        except RetryLater as reason:
            self._fail(str(reason), reason.after.total_seconds())
        except HeadraceError as reason:
            self._fail(str(reason), _MOST_BACK_OFF_SECONDS)
        except Exception as bug:  # one of them must not cost the others their look
            log.exception("look.bug", room=self.room, name=self.name)
            self._fail(database.first_line(bug), _MOST_BACK_OFF_SECONDS)
        else:
            if self._problem is not None:
                log.info("look.works_again", room=self.room, name=self.name, after_failures=self._failures)
            self._failures, self._problem = 0, None

    def _fail(self, problem: str, least_seconds: float) -> None:
        database.close_all()  # a session may remember that its server was read-only
        self._failures += 1
        back_off = _FIRST_BACK_OFF_SECONDS * 2.0 ** min(self._failures - 1, 10)
        self._not_before = time.monotonic() + min(_MOST_BACK_OFF_SECONDS, max(back_off, min(least_seconds, 10)))
        if problem != self._problem:
            # Said once, not at every try.
            self._problem = problem
            log.warning("look.failed", room=self.room, name=self.name, reason=problem)


_lookers: dict[tuple[int, str, str], _Looker] = {}


def look_at(
    settings: Settings, room: str, names: Sequence[str], look: Look, *, every_seconds: float | None = None
) -> None:
    """Look at every name; returns when all have answered, or after a moment without the slow ones.

    With `every_seconds` each thread goes on looking so often until the next tick.
    """
    kicked = []
    for name in names:
        key = (os.getpid(), room, name)  # threads do not survive a fork
        looker = _lookers.get(key) or _lookers.setdefault(key, _Looker(room, name, look))
        if looker.kick(settings, every_seconds):
            kicked.append(looker)
    until = time.monotonic() + WAIT_SECONDS
    for looker in kicked:
        looker.idle.wait(max(0.0, until - time.monotonic()))
