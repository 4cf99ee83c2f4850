"""A thread that asks each child, again and again, whether it is healthy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from workers.services.children import Child

log = logging.getLogger(__name__)

STARTING_SECONDS = 0.5
STEADY_SECONDS = 10.0


class HealthWatch:
    """Runs the `health` callables, which may block for seconds, away from the thread that starts processes.

    `changed` is called, in the watching thread, after each answer that differs from the last one.
    """

    def __init__(self, children: Sequence[Child], changed: Callable[[], None]) -> None:
        self._children = [child for child in children if child.spec.health is not None]
        self._changed = changed
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(child,), name=f"health-{child.name}", daemon=True)
            for child in self._children
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask the threads to end; one that hangs in its check ends with the process."""
        self._end.set()

    def _watch(self, child: Child) -> None:
        while not self._end.wait(STEADY_SECONDS if child.healthy else STARTING_SECONDS):
            pid = child.pid
            answer = pid is not None and self._ask(child)
            # An answer that belongs to the process before the restart is not one.
            if pid == child.pid and answer != child.healthy:
                child.healthy = answer
                self._changed()

    @staticmethod
    def _ask(child: Child) -> bool:
        check = child.spec.health
        try:
            return check is None or bool(check())
        except Exception as error:
            log.debug("child.health_check_failed name=%s error=%r", child.name, error)
            return False
