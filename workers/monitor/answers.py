"""Questions to servers that may be down or slow: asked in a thread, one at a time, answered in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers import database, logs
from workers.errors import HeadraceError
from workers.targets import redacted

log = logs.get(__name__)

FRESH_SECONDS = 2.0  # scrapers and open pages that ask within this share one answer
PATIENCE_SECONDS = 3.0  # two of them in a row stay below Prometheus' scrape timeout of 10 s
STALE_SECONDS = 30.0  # while a slow question is still out, an answer up to this old is given
_NO_SCHEMA = ("3F000", "42P01")  # SQLSTATE: no such schema, no such table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A value, or why there is none."""

    value: T | None = None
    error: str | None = None


class Question(Generic[T]):
    """One question with its own thread, so that a server that hangs delays no other; used by one event loop."""

    def __init__(self, name: str, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ask-{name}")
        self._last: Answer[T] = Answer(error="not asked yet")
        self._last_at = float("-inf")
        self._flight: asyncio.Future[None] | None = None

    async def answer(self) -> Answer[T]:
        """The answer, at most three seconds from now; never raises for a server's trouble."""
        if time.monotonic() - self._last_at < FRESH_SECONDS:
            return self._last
        if self._flight is None:
            self._flight = asyncio.ensure_future(self._fly())
        flight = self._flight
        await asyncio.wait({flight}, timeout=PATIENCE_SECONDS)
        stale = time.monotonic() - self._last_at > STALE_SECONDS
        if flight.done() or (self._last.value is not None and not stale):
            return self._last
        return Answer(error=f"no answer within {PATIENCE_SECONDS:.0f} s; it is still being waited for")

    async def _fly(self) -> None:
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
            self._last = Answer(value)
        except Exception as error:
            self._last = Answer(error=_reason(error))
        finally:
            self._last_at = time.monotonic()
            self._flight = None


def _reason(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return redacted(str(error))
    reason = f"{type(error).__name__}: {database.first_line(error)}"
    if getattr(error, "pgcode", None) in _NO_SCHEMA:
        return f"{reason}; run `headrace db migrate`"
    log.warning("monitor.question_failed", reason=reason, exc_info=error)
    return reason
