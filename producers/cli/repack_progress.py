"""Progress of rewrites on a terminal, and their end by a signal: what is in hand is cancelled at the server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workers import database
from workers.errors import HeadraceError
from workers.repack import api
from workers.settings import Settings

_POLL_SECONDS = 0.3
_AGAIN_SECONDS = 2.0
Request = tuple[str, int, str]  # database, number, name for people


class Bar:
    """A line per request on a terminal: rows copied of those estimated, the step, the changes that wait."""

    def __init__(self, conf: Settings, requests: Sequence[Request]) -> None:
        self._conf, self._requests = conf, requests
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"))
        self._is_shown = sys.stderr.isatty()
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            disable=not self._is_shown,
        )  # fmt: skip
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        if self._is_shown:
            for name, repack, text in self._requests:
                self._tasks[name, repack] = self._progress.add_task(text, total=None, rows="")
            self._thread = threading.Thread(target=self._watch, name="repack: progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._progress.stop()

    def follow(self) -> dict[tuple[str, int], list[str]]:
        """Wait until each has ended, or waits for a person; their problems. Ctrl-C ends the waiting, not the work."""
        left = {(name, repack) for name, repack, _ in self._requests}
        ends: dict[tuple[str, int], list[str]] = {}
        while left:
            for one in sorted(left):
                try:
                    problems = api.standing(self._conf, *one)
                except HeadraceError:
                    continue  # a server that is away for a moment
                if problems is not None:
                    ends[one] = problems
            left -= set(ends)
            if left:
                time.sleep(_POLL_SECONDS)
        return ends

    def _watch(self) -> None:
        try:
            while not self._over.wait(_POLL_SECONDS):
                for (name, repack), task in self._tasks.items():
                    try:
                        row = api.outcome(self._conf, name, repack)
                    except HeadraceError:
                        continue
                    if row is not None:
                        self._show(task, row)
        finally:
            database.close_all()

    def _show(self, task: TaskID, row: dict[str, Any]) -> None:
        waiting = f", {row['backlog_rows']:,} changes wait" if row["backlog_rows"] else ""
        self._progress.update(
            task, description=f"{row['schema']}.{row['table']}: {row['step']}", completed=row["rows_copied"],
            total=max(row["rows_estimated"], row["rows_copied"]) or None, rows=f"{row['rows_copied']:,} rows{waiting}",
        )  # fmt: skip


class Ending:
    """What a signal ends: the request in hand, (database, number); `is_near` once its end has come through."""

    def __init__(self) -> None:
        self.current: tuple[str, int] | None = None
        self.is_near = threading.Event()


@contextmanager
def ends_by_signals(conf: Settings) -> Iterator[Ending]:
    """SIGTERM and ctrl-C end the block at once, although it waits for a statement: that is cancelled at the server."""
    ending = Ending()

    def end(number: int, _frame: FrameType | None) -> None:
        if not ending.is_near.is_set():
            raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    # Python runs handlers between its own instructions only, so not while libpq waits; a byte comes through always.
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    descriptor = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_cancel, args=(conf, heard, ending), name="repack: signals", daemon=True).start()
    try:
        yield ending
    finally:
        ending.is_near.set()
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        told.close()


def _cancel(conf: Settings, heard: socket.socket, ending: Ending) -> None:
    with heard:
        number = heard.recv(1)
    # Again until it came through: the first cancelling may come just before a statement, and hit nothing.
    while number and not ending.is_near.is_set():
        if (current := ending.current) is not None:
            try:
                api.interrupt(conf, *current)
            except (HeadraceError, database.DatabaseError):
                pass  # the session ends with this process then
        if not ending.is_near.wait(_AGAIN_SECONDS):
            os.kill(os.getpid(), number[0])
    database.close_all()
