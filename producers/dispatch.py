"""The PgQ pump: one open batch in flight per consumer; each consumer in a thread of its own.

Where no pgqd runs, the same threads make the ticks, just before they look for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from producers import lookers
from workers import logs, pauses
from workers.dispatch import api
from workers.errors import HeadraceError, NothingToDo
from workers.messages import Message
from workers.settings import Settings

log = logs.get(__name__)

MAINTENANCE_SECONDS = 60.0
WATCH_SECONDS = 10.0
ALERTS_SECONDS = 2.0
TEND_SECONDS = 600.0

_last: dict[tuple[int, str, str], float] = {}


def pump_everywhere(settings: Settings) -> None:
    """Look at every consumer; returns when all have answered, or after a moment without the slow ones."""
    names = api.names(settings)
    if names:
        lookers.look_at(settings, "dispatch", names, _pump, every_seconds=settings.dispatch.poll_seconds)


def partitions_to_tend(settings: Settings) -> list[Message]:
    """The messages that have partitions tended; none for those that this process asked for a moment ago."""
    due = {message.key(): message for message in api.due_for_tending(settings)}
    return [message for key, message in due.items() if _is_time("tend", key, TEND_SECONDS)]


def _pump(settings: Settings, name: str, resend: bool) -> Sequence[Message]:
    api.tick(settings, name)
    if _is_time("maintain", name, MAINTENANCE_SECONDS):
        api.maintain(settings, name)
    if _is_time("watch", name, WATCH_SECONDS):
        try:
            api.watch_lag(settings, name)
        except HeadraceError as error:
            log.warning("dispatch.watch", consumer=name, reason=str(error))
    messages: list[Message] = []
    if _is_time("alerts", name, ALERTS_SECONDS):
        messages += api.alerts_waiting(settings, name)
    try:
        pauses.check(settings.target(), "dispatch", settings.host)
    except NothingToDo:
        return messages
    return [*messages, *api.look(settings, name, resend=resend)]


def _is_time(what: str, name: str, seconds: float) -> bool:
    key = (os.getpid(), what, name)
    if time.monotonic() < _last.get(key, 0.0) + seconds:
        return False
    _last[key] = time.monotonic()
    return True
