"""One service under watch: when it is started, restarted, declared ready, and stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from workers.services.errors import ServiceError
from workers.services.service import Service
from workers.services.status import ChildStatus, utc_now

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before a restart: doubled at each crash, forgotten after a good while up."""

    first_seconds: float = 1.0
    last_seconds: float = 30.0
    reset_after_seconds: float = 60.0

    def delay_seconds(self, crashes: int) -> float:
        """Return the wait before restart number `crashes` (from 1) of a series."""
        return min(self.last_seconds, self.first_seconds * 2.0 ** min(crashes - 1, 30))


class Watched:
    """The state of one service: waiting, starting, running, backoff, stopping, stopped or finished.

    `now` is always seconds of the monotonic clock, given by the caller.
    """

    def __init__(self, service: Service, back_off: BackOff) -> None:
        self.service = service
        self.state = "waiting"
        self.restarts = 0
        self.last_exit: int | None = None
        self.started_at: str | None = None
        self.due = 0.0  # when the next thing happens by itself: the restart, or the next step of the stop
        self._back_off = back_off
        self._crashes = 0
        self._started = 0.0
        self._step = -1

    @property
    def over(self) -> bool:
        return self.state in ("stopped", "finished")

    @property
    def healthy(self) -> bool:
        return self.state == "running" or (self.state == "finished" and self.last_exit == 0)

    def advance(self, now: float, required: Callable[[], bool]) -> None:
        """Do what is due while the deployment is up; `required` tells whether it may be started."""
        if self.state in ("starting", "running"):
            if not self.service.alive():
                self._ended(now)
            else:
                self._look(now)
        if self.state in ("waiting", "backoff") and now >= self.due and required():
            self._launch(now)

    def took_over(self, now: float) -> None:
        """Begin with a service that was started and found ready before the watch began."""
        self.state, self._started, self.started_at = "running", now, utc_now()

    def begin_stop(self, now: float) -> None:
        """Send the first signal, or note that there is nothing to stop."""
        if self.over or self.state == "stopping":
            return
        if not self.service.alive():
            self.state = "stopped"
            return
        self.state = "stopping"
        self._send_step(now, 0)

    def advance_stop(self, now: float) -> None:
        """Notice the end, or send the next harder signal when the time of the last one is over."""
        if self.state != "stopping":
            return
        if not self.service.alive():
            self.state, self.last_exit = "stopped", self.service.exit_code
            log.info("child.stopped name=%s exit=%s", self.service.name, self.last_exit)
        elif now >= self.due:
            self._send_step(now, self._step + 1)

    def hasten(self, now: float) -> None:
        """Go on to the harder signal at once."""
        if self.state == "stopping":
            self._send_step(now, max(self._step + 1, self.service.hasten_step))

    def status(self) -> ChildStatus:
        return ChildStatus(
            name=self.service.name, state=self.state, pid=self.service.pid, start=self.service.start_ticks,
            restarts=self.restarts, last_exit=self.last_exit, started_at=self.started_at,
            log_path=str(self.service.log_path),
        )  # fmt: skip

    def _launch(self, now: float) -> None:
        if self.started_at is not None:
            self.restarts += 1
        self.started_at, self._started = utc_now(), now
        try:
            self.service.launch()
        except (OSError, ServiceError) as error:
            log.error("child.launch_failed name=%s error=%s", self.service.name, error)
            self._back(now)
            return
        self.state = "starting"
        log.info("child.started name=%s pid=%s", self.service.name, self.service.pid)

    def _look(self, now: float) -> None:
        ready = False
        with suppress(ServiceError):
            # A server that answered once is believed until it ends; a child's health may come and go.
            ready = (self.state == "running" and not self.service.rechecks) or self.service.ready()
        if ready and now - self._started > self._back_off.reset_after_seconds:
            self._crashes = 0
        if ready != (self.state == "running"):
            self.state = "running" if ready else "starting"
            log.info("child.%s name=%s", "ready" if ready else "unhealthy", self.service.name)

    def _ended(self, now: float) -> None:
        self.last_exit = self.service.exit_code
        if not self.service.restarts:
            self.state = "finished"
            log.info("child.finished name=%s exit=%s", self.service.name, self.last_exit)
            return
        log.warning("child.exited name=%s exit=%s", self.service.name, self.last_exit)
        self._back(now)

    def _back(self, now: float) -> None:
        if now - self._started > self._back_off.reset_after_seconds:
            self._crashes = 0
        self._crashes += 1
        self.state, self.due = "backoff", now + self._back_off.delay_seconds(self._crashes)

    def _send_step(self, now: float, step: int) -> None:
        steps = self.service.stop_steps
        self._step = min(step, len(steps) - 1)
        number, seconds = steps[self._step]
        self.due = now + seconds
        log.info("child.signalled name=%s signal=%s", self.service.name, number.name)
        self.service.send(number)
