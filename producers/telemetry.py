"""The file watcher: what changes below a host's data folders is enqueued within a second of the change.

It is only the fast foot. What it misses (an overflow of the kernel's queue, a file made before its new
folder was watched, its own death) is found by the sweep, which looks at every folder once a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import Change, watch

from workers import logs, paths
from workers.errors import HeadraceError
from workers.messages import IngestFile, Message, TakeInventory
from workers.settings import Settings

log = logs.get(__name__)

QUIET_MS = 100  # changes that come closer than this are one batch
COALESCE_MS = 500  # at the latest after this a batch is sent
PER_FILE_SECONDS = 1.0  # a file that is being written is enqueued no more often than this
BURST = 20_000  # changes in one batch: the kernel's queue (16,384 events) may have overflowed
LOOK_FOR_FOLDERS_SECONDS = 5.0

Send = Callable[[list[Message]], object]


def watch_forever(settings: Settings, send: Send, stop: threading.Event) -> None:
    """Watch `telemetry.data_dirs` until `stop`; folders that are not there yet are waited for.

    `send` may raise a HeadraceError (broker or database away): then the sweep has these files.
    """
    folders = settings.telemetry.data_dirs
    watcher = _Watcher(settings, send)
    while not stop.is_set():
        present = [folder for folder in folders if folder.is_dir()]
        if not present:
            stop.wait(LOOK_FOR_FOLDERS_SECONDS)
            continue
        log.info("watch.started", folders=[str(folder) for folder in present])
        watcher.sweep()
        absent = set(folders) - set(present)
        checked = time.monotonic()
        try:
            for changes in watch(
                *present,
                debounce=COALESCE_MS,
                step=QUIET_MS,
                stop_event=stop,
                rust_timeout=1000,
                yield_on_timeout=True,
                raise_interrupt=False,
                recursive=True,
                watch_filter=None,
                ignore_permission_denied=True,
            ):
                watcher.take(changes)
                if time.monotonic() - checked > LOOK_FOR_FOLDERS_SECONDS:
                    checked = time.monotonic()
                    if any(folder.is_dir() for folder in absent) or not all(f.is_dir() for f in present):
                        break
        except (OSError, RuntimeError) as error:
            log.warning(
                "watch.broken",
                reason=str(error),
                advice="raise fs.inotify.max_user_watches; the sweep goes on",
            )
            stop.wait(LOOK_FOR_FOLDERS_SECONDS)


class _Watcher:
    """Turns changes into messages, each file at most once a second."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.host = settings.host
        self.suffixes = settings.telemetry.suffixes
        self.send = send
        self.sent: dict[str, float] = {}  # when each file was enqueued last
        self.waiting: set[str] = set()  # changed again since, and too soon

    def sweep(self) -> None:
        """Ask for a look at every folder."""
        self._send([TakeInventory(host=self.host)])

    def take(self, changes: Iterable[tuple[Change, str]]) -> None:
        """Enqueue what changed and what has waited long enough."""
        changed = set(self.waiting)
        count = 0
        for change, path in changes:
            count += 1
            if change is not Change.deleted and path.endswith(self.suffixes):
                changed.add(path)
            elif change is Change.added and os.path.isdir(path):
                # Its files may have come before the watch on it.
                changed.update(self._files_below(path))
        now = time.monotonic()
        due = {path for path in changed if now - self.sent.get(path, -PER_FILE_SECONDS) >= PER_FILE_SECONDS}
        self.waiting = changed - due
        self.sent = {path: at for path, at in self.sent.items() if now - at < PER_FILE_SECONDS} | dict.fromkeys(
            due, now
        )
        if due:
            self._send([IngestFile(host=self.host, path=paths.to_text(path)) for path in sorted(due)])
        if count >= BURST:
            log.warning("watch.burst", changes=count)
            self.sweep()

    def _files_below(self, folder: str) -> Iterable[str]:
        for base, _folders, names in os.walk(folder):
            yield from (str(Path(base, name)) for name in names if name.endswith(self.suffixes))

    def _send(self, messages: list[Message]) -> None:
        try:
            self.send(messages)
        except HeadraceError as error:
            log.warning("watch.not_sent", files=len(messages), reason=str(error))
