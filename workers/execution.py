"""Executing one message: the body that Celery's task and `--here` share, and the loop of `--here`."""

from __future__ import annotations

import heapq
import importlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from typing import TypeVar

from workers import logs, pauses, runs
from workers.errors import Cancelled, NothingToDo, Paused, PermanentFailure, RetryLater
from workers.messages import Message
from workers.settings import Settings

log = logs.get(__name__)

M = TypeVar("M", bound=Message)
Verb = Callable[[M, Settings], Sequence[Message]]
TASK_MODULES = (
    "workers.telemetry.tasks",
    "workers.products.tasks",
    "workers.postprocessing.tasks",
    "workers.dispatch.tasks",
    "workers.repack.tasks",
)

_bodies: dict[str, Verb[Message]] = {}


def register(kind: type[M], verb: Verb[M]) -> None:
    """Make `verb` the body of a message kind; a room's `tasks` module does so on import."""
    _bodies[kind.task] = verb  # type: ignore[assignment]


def load_rooms() -> None:
    """Import every room's tasks, so that their bodies are registered."""
    for module in TASK_MODULES:
        importlib.import_module(module)


def execute(message: Message, settings: Settings) -> list[Message]:
    """Do what one message asks, and return the messages that follow from it.

    Raises the body's errors; of a person's request the queued row is closed when no run was started for it,
    unless the room is paused: then it stays queued, and is sent again once the pause is over.
    """
    pauses.check(settings.target(), message.room, getattr(message, "host", settings.host))
    try:
        return list(_bodies[message.task](message, settings))
    except NothingToDo as reason:
        _close(message, settings, "skipped", str(reason))
        raise
    except (PermanentFailure, Cancelled) as reason:
        _close(message, settings, "failed", str(reason))
        raise


def run_here(messages: Sequence[Message], settings: Settings, *, timeout: timedelta) -> list[str]:
    """Execute messages and everything that follows from them in this process, until nothing is due.

    A RetryLater waits, up to `timeout` in all; the problems that remain then are returned, one line each.
    """
    load_rooms()
    problems: list[str] = []
    tie = count()
    started = time.monotonic()
    due = [(0.0, next(tie), message) for message in messages]
    while due:
        at, _order, message = heapq.heappop(due)
        time.sleep(max(0.0, at - time.monotonic()))
        try:
            follow_ups = execute(message, settings)
        except Paused as reason:
            log.warning("message.paused", key=message.key(), reason=str(reason))
            _close(message, settings, "skipped", str(reason))
        except NothingToDo as reason:
            log.info("message.nothing_to_do", key=message.key(), reason=str(reason))
        except RetryLater as reason:
            again = time.monotonic() + reason.after.total_seconds()
            if again - started > timeout.total_seconds():
                _close(message, settings, "failed", str(reason))
                problems.append(f"gave up after {timeout.total_seconds():.0f} s: {reason}")
            else:
                log.warning("message.waits", key=message.key(), reason=str(reason))
                heapq.heappush(due, (again, next(tie), message))
        except (PermanentFailure, Cancelled) as reason:
            problems.append(str(reason))
        except Exception as bug:  # one message must not cost the others their work
            log.exception("message.bug", key=message.key())
            _close(message, settings, "failed", repr(bug))
            problems.append(f"{message.key()}: {bug!r}; please report this, with the traceback in the log")
        else:
            started = time.monotonic()  # what is given up is trouble that lasts, not work that does
            for follow_up in (message for message in follow_ups if not message.wait_seconds):
                heapq.heappush(due, (0.0, next(tie), follow_up))
    return problems


def _close(message: Message, settings: Settings, state: str, reason: str) -> None:
    # A run that did start has closed its row already; this touches only one that is still queued.
    if message.run is not None:
        runs.close_request(settings.target(), message.run, state, reason)
