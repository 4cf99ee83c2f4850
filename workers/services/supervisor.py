"""The supervisor behind `headrace up`: starts in order, restarts what crashed, stops all in reverse."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from workers.services.child_logs import bound_log
from workers.services.children import Child, ChildSpec
from workers.services.errors import ServiceError
from workers.services.folders import DataFolder
from workers.services.health import HealthWatch
from workers.services.server import Server
from workers.services.status import SupervisorLock, SupervisorStatus, utc_now, write_status
from workers.services.watched import BackOff, Watched

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LONGEST_WAIT_SECONDS = 2.0
_LOG_CHECK_SECONDS = 30.0


class Supervisor:
    """Keeps the servers and children of one data folder alive until it is told to stop.

    `servers` may be started already (they are then taken over) and are stopped last. `environment` is the
    base of every child's environment (default: this process's). Without `lock` it takes the folder's lock
    itself. Raises ServiceError when a child starts after one that does not exist.
    """

    def __init__(
        self,
        data_dir: Path,
        children: Sequence[ChildSpec],
        *,
        servers: Sequence[Server] = (),
        environment: Mapping[str, str] | None = None,
        lock: SupervisorLock | None = None,
        back_off: BackOff | None = None,
    ) -> None:
        self._folder = DataFolder.at(data_dir)
        base = os.environ if environment is None else environment
        server_names = [server.name for server in servers]
        self._children = [Child(spec, environment=base, servers=server_names) for spec in children]
        _check_order(self._children, server_names)
        policy = back_off or BackOff()
        self._servers = [Watched(server, policy) for server in servers]
        self._watched = self._servers + [Watched(child, policy) for child in self._children]
        self._lock = lock
        self._state = "starting"
        self._stops_requested = 0
        self._stops_seen = 0
        self._hangup = False
        self._has_terminal = _terminal_is_open()
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)
        self._published: SupervisorStatus | None = None
        self._moved = False
        self._logs_checked = 0.0

    def run(self, on_healthy: Callable[[], None] | None = None) -> None:
        """Run until SIGTERM, SIGINT or `request_stop`; returns when every child and server has ended.

        `on_healthy` is called once, in this thread, when all are healthy for the first time. SIGHUP goes on
        to the children. Only in the main thread: children die with the thread that started them.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ServiceError("The supervisor must run in the main thread: its children die with its thread.")
        if self._lock is None:
            self._folder.prepare()
            with SupervisorLock(self._folder.root) as self._lock:
                self.run(on_healthy)
            self._lock = None
            return
        watch = HealthWatch(self._children, self._wake)
        try:
            with self._signals():
                watch.start()
                self._take_over()
                while not self._turn(on_healthy):
                    self._wait()
        finally:
            watch.stop()
            for one in reversed(self._watched):  # only after an error of our own is anything left here
                one.service.send(signal.SIGKILL if one not in self._servers else signal.SIGINT)
            self._publish("stopped")

    def request_stop(self) -> None:
        """Ask for the stop, from any thread; a second call hastens it, as a second Ctrl-C does."""
        self._stops_requested += 1
        self._wake()

    def _take_over(self) -> None:
        for one in self._servers:
            if one.service.alive():
                one.took_over(time.monotonic())

    def _turn(self, on_healthy: Callable[[], None] | None) -> bool:
        """Do everything that is due now; True when all is over."""
        now = time.monotonic()
        if self._hangup:
            self._forward_hangup()
        if self._stops_requested:
            return self._stop_turn(now)
        for one in self._watched:
            one.advance(now, partial(self._may_start, one))
        was_starting = self._state == "starting"
        if all(one.healthy for one in self._watched):
            self._state = "healthy"
        elif not was_starting:
            self._state = "degraded"
        self._publish(self._state)
        if was_starting and self._state == "healthy":
            log.info("supervisor.healthy data_dir=%s", self._folder.root)
            if on_healthy is not None:
                on_healthy()
        self._bound_logs(now)
        return False

    def _stop_turn(self, now: float) -> bool:
        if not self._stops_seen:
            log.info("supervisor.stopping data_dir=%s", self._folder.root)
        for one in reversed(self._watched):
            if not self._dependants(one):
                one.begin_stop(now)
        if self._stops_requested > max(1, self._stops_seen):
            for one in self._watched:
                # The servers end by themselves within moments; only the third request is for them.
                if one not in self._servers or self._stops_requested > 2:
                    one.hasten(now)
        self._stops_seen = self._stops_requested
        for one in self._watched:
            one.advance_stop(now)
        self._publish("stopping")
        return all(one.over for one in self._watched)

    def _may_start(self, one: Watched) -> bool:
        return all(other.healthy for other in self._watched if other.service.name in one.service.requires)

    def _dependants(self, one: Watched) -> list[Watched]:
        name = one.service.name
        return [other for other in self._watched if name in other.service.requires and not other.over]

    def _forward_hangup(self) -> None:
        self._hangup = False
        if self._has_terminal and not _terminal_is_open():
            # Not "read your settings again" but "your terminal was closed".
            self.request_stop()
            return
        for one in self._watched:
            if one.service.alive():
                one.service.send(signal.SIGHUP)

    def _bound_logs(self, now: float) -> None:
        if now - self._logs_checked > _LOG_CHECK_SECONDS:
            self._logs_checked = now
            for one in self._watched:
                bound_log(one.service.log_path)

    def _publish(self, state: str) -> None:
        """Write the status file when something in it changed."""
        assert self._lock is not None
        holder = self._lock.holder
        status = SupervisorStatus(
            state=state, pid=holder.pid, start=holder.start, since=holder.since, error=None,
            updated_at="", children=tuple(one.status() for one in self._watched),
        )  # fmt: skip
        self._moved = status != self._published
        if not self._moved:
            return
        self._published = status
        # A full disk must not stop the supervision.
        with suppress(OSError):
            write_status(self._folder.root, replace(status, updated_at=utc_now()))

    def _wait(self) -> None:
        """Sleep until a child ends, a signal comes, a health changes, or something is due."""
        now = time.monotonic()
        # What has just changed may allow the next thing: a start, or the stop of what was needed till now.
        waits = [0.0 if self._moved else _LONGEST_WAIT_SECONDS]
        waits += [one.due - now for one in self._watched if one.state in ("backoff", "stopping")]
        if any(one.state == "starting" for one in self._servers):
            waits.append(0.05)
        select.select([self._wake_reader], [], [], max(0.0, min(waits)))
        with suppress(BlockingIOError):
            while os.read(self._wake_reader, 4096):
                pass

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._wake_writer, b"w")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stops_requested += 1
        elif number == signal.SIGHUP:
            self._hangup = True
        # SIGCHLD only has to wake the loop, which the wake-up descriptor does.

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        descriptor = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)


def _terminal_is_open() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _check_order(children: Sequence[Child], server_names: Sequence[str]) -> None:
    known = list(server_names)
    for child in children:
        if child.name in known:
            raise ServiceError(f"Two services are called {child.name!r}: give each a name of its own.")
        for name in child.requires:
            if name not in known:
                raise ServiceError(f"{child.name!r} starts after {name!r}, which does not stand before it.")
        known.append(child.name)
