"""New files of missions: what comes into an incoming folder is looked at as soon as it has settled, and by a sweep."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable

from watchfiles import Change, watch

from producers import lookers
from workers import hosts, logs, pauses
from workers.errors import HeadraceError, NothingToDo
from workers.messages import IngestIncoming, Message
from workers.products import api
from workers.settings import Settings

log = logs.get(__name__)

STEP_MS = 200
MISSIONS_SECONDS = 15.0  # a mission that is loaded while we watch is watched so soon
AFTER_SETTLING_SECONDS = 0.2
ROOM = "products"

Send = Callable[[list[Message]], object]


def look_everywhere(settings: Settings) -> None:
    """Send what is due of all missions; a database that does not answer delays no other room."""
    lookers.look_at(settings, ROOM, [settings.products.database], _look)


def _look(settings: Settings, _name: str, resend: bool) -> list[Message]:
    control = settings.target()
    awake = [
        host.name
        for host in hosts.listing(control)
        if host.alive
        and not host.draining
        and f"{ROOM}.{host.name}" in host.queues
        and not _is_paused(settings, host.name)
    ]
    return list(api.due(settings, awake))


def _is_paused(settings: Settings, host: str) -> bool:
    try:
        pauses.check(settings.target(), ROOM, host)
    except NothingToDo:
        return True
    return False


def watch_forever(settings: Settings, send: Send, stop: threading.Event) -> None:
    """Watch the incoming folders of the missions that this host sees, until `stop`; new missions join by themselves.

    `send` may raise a HeadraceError (broker or database away): then the sweep has these files.
    """
    watcher = _Watcher(settings, send)
    while not stop.is_set():
        folders = watcher.folders()
        if not folders:
            stop.wait(MISSIONS_SECONDS)
            continue
        log.info("watch.started", folders=sorted(folders))
        watcher.changed(folders.values())
        asked = time.monotonic()
        try:
            for changes in watch(
                *folders, debounce=STEP_MS, step=STEP_MS // 2, stop_event=stop, rust_timeout=STEP_MS,
                yield_on_timeout=True, raise_interrupt=False, recursive=False, watch_filter=None,
                ignore_permission_denied=True,
            ):  # fmt: skip
                watcher.take(changes, folders)
                if time.monotonic() - asked > MISSIONS_SECONDS:
                    asked = time.monotonic()
                    if watcher.folders() != folders:
                        break
        except (OSError, RuntimeError) as error:
            log.warning(
                "watch.broken", reason=str(error), advice="raise fs.inotify.max_user_watches; the sweep goes on"
            )
            stop.wait(MISSIONS_SECONDS)


class _Watcher:
    """Turns changes into one message per mission as soon as the first of them has settled."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.settings, self.send = settings, send
        self.waiting: dict[str, list[float]] = {}  # by mission: when something changed

    def folders(self) -> dict[str, str]:
        """Mission by folder, of folders that are there."""
        try:
            found = api.incoming_folders(self.settings)
        except HeadraceError as error:
            log.warning("watch.missions_unknown", reason=str(error))
            return {}
        return {folder: mission for mission, folder in found.items() if os.path.isdir(folder)}

    def changed(self, missions: Iterable[str]) -> None:
        """Something changed in these missions' folders."""
        now = time.monotonic()
        for mission in missions:
            times = self.waiting.setdefault(mission, [])
            if len(times) > 1 and times[-1] - times[-2] < 1.0:
                times[-1] = now  # a second apart is enough: a message takes in all that has settled
            else:
                times.append(now)

    def take(self, changes: Iterable[tuple[Change, str]], folders: dict[str, str]) -> None:
        """Note what changed, and send what has waited long enough."""
        touched = {folders.get(os.path.dirname(path)) for change, path in changes if change is not Change.deleted}
        self.changed(sorted(mission for mission in touched if mission is not None))
        settled = time.monotonic() - self.settings.products.settle_seconds - AFTER_SETTLING_SECONDS
        due = [mission for mission, times in self.waiting.items() if times and times[0] <= settled]
        for mission in due:
            self.waiting[mission] = [at for at in self.waiting[mission] if at > settled]
        if due:
            self._send([IngestIncoming(host=self.settings.host, mission=mission) for mission in due])

    def _send(self, messages: list[Message]) -> None:
        try:
            self.send(messages)
        except HeadraceError as error:
            log.warning("watch.not_sent", missions=len(messages), reason=str(error))
