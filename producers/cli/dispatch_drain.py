"""Draining consumers in this process: every tick that exists is applied, then it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

from producers.cli import follow
from producers.cli.context import UNREACHABLE, State
from workers import execution, pauses, runs
from workers.dispatch import api
from workers.errors import HeadraceError, NothingToDo, RetryLater, ServerUnavailable
from workers.messages import DispatchBatch, Message
from workers.settings import Settings

# The session of a drain that was killed may hold its batch until the server notices: client_connection_check_interval.
BUSY_SECONDS = 10.0
_POLL_SECONDS = 0.2


def drain(state: State, names: Sequence[str], *, timeout: float, drop_in: bool, quiet: bool = False) -> int:
    """Drain consumers one after the other, report, and give the exit code.

    SIGTERM and ctrl-C end it: the batch in hand is rolled back, and comes again next time.
    """
    conf = state.settings
    seen: list[int] = []
    problems: list[str] = []
    unreachable: list[str] = []
    token = runs.recorded.set(seen)
    try:
        with _ends_by_signals():
            for name in names:
                one = _Drain(state, conf, name, timeout, quiet)
                try:
                    problems += one.begin(drop_in=drop_in)
                except ServerUnavailable as error:
                    unreachable.append(name)
                    problems.append(str(error))
                except HeadraceError as error:
                    problems.append(str(error))
    finally:
        runs.recorded.reset(token)
    ids = _that_count(conf, sorted(set(seen)), problems)
    code = follow.report(state, ids, list(dict.fromkeys(problems)))
    if not quiet and not state.json and (events := _events(conf, ids)):
        state.say(events)
    return UNREACHABLE if unreachable == list(names) else code


class _Drain:
    """One consumer until nothing is left. What it raises is told as it is; ServerUnavailable only at the start."""

    def __init__(self, state: State, conf: Settings, name: str, timeout: float, quiet: bool) -> None:
        self.state, self.conf, self.name, self.timeout, self.quiet = state, conf, name, timeout, quiet

    def begin(self, *, drop_in: bool) -> list[str]:
        """Reach both servers, then drain; the problems."""
        if drop_in:
            placed = api.begin_drop_in(self.conf, self.name)
            if placed is not None and not self.quiet:
                self.state.say(f"{self.name}: {placed.what}, at tick {placed.tick}")
        elif wrong := api.problems(self.conf, self.name):
            return wrong
        api.tick(self.conf, self.name)
        problems = self._until_dry()
        if not problems:
            api.maintain(self.conf, self.name)
            if api.failed(self.conf, self.name, limit=1):
                self.state.say(f"{self.name}: events that failed wait; `headrace dispatch failed {self.name}`")
        return problems

    def _until_dry(self) -> list[str]:
        trouble_since: float | None = None
        busy_since: float | None = None
        last: Message | None = None
        while True:
            try:
                pauses.check(self.conf.target(), "dispatch", self.conf.host)
                messages = api.pump_until_dry(self.conf, self.name)
                if not messages and not api.has_ticks(self.conf, self.name):
                    return []
                problems = self._do(messages)
            except NothingToDo as reason:
                self.state.say(f"{self.name}: {reason}")
                return []
            except RetryLater as reason:
                trouble_since = trouble_since or time.monotonic()
                if time.monotonic() - trouble_since + reason.after.total_seconds() > self.timeout:
                    return [f"gave up after {self.timeout:.0f} s: {reason}"]
                time.sleep(reason.after.total_seconds())
                continue
            if problems:
                return problems
            trouble_since = None
            if messages and not _is_same(last, messages[0]):
                busy_since, last = None, messages[0]
                continue
            busy_since = busy_since or time.monotonic()
            if time.monotonic() - busy_since > BUSY_SECONDS:
                self.state.say(f"{self.name}: another one is at the same work; it is left to that one")
                return []
            time.sleep(_POLL_SECONDS)

    def _do(self, messages: Sequence[Message]) -> list[str]:
        if not messages:
            return []
        requested = follow.written_down(self.conf, messages)
        try:
            return execution.run_here(requested, self.conf, timeout=timedelta(seconds=self.timeout))
        except BaseException as reason:
            for message in requested:
                if message.run is not None:
                    runs.close_request(self.conf.target(), message.run, "cancelled", str(reason) or repr(reason))
            raise


def _is_same(one: Message | None, other: Message) -> bool:
    """Whether this is the batch again that was looked at just now, so that nothing came of it."""
    return isinstance(one, DispatchBatch) and isinstance(other, DispatchBatch) and one.batch_id == other.batch_id


def _that_count(conf: Settings, ids: Sequence[int], problems: Sequence[str]) -> list[int]:
    """The runs without those attempts that a lock or a lost server ended, if what they tried was done afterwards."""
    if problems:
        return list(ids)
    # A batch is counted once it has committed.
    kept = ("succeeded", "skipped")
    return [row["id"] for row in follow.run_rows(conf, ids) if row["state"] in kept or row["counters"].get("batches")]


def _events(conf: Settings, ids: Sequence[int]) -> str:
    rows = follow.run_rows(conf, ids)
    total = {name: sum(row["counters"].get(name, 0) for row in rows) for name in ("events", "failed", "ignored")}
    if not any(total.values()):
        return ""
    more = [f"{total[name]:,.0f} {name}" for name in ("failed", "ignored") if total[name]]
    return f"{total['events']:,.0f} events" + (f", of them {', '.join(more)}" if more else "")


@contextmanager
def _ends_by_signals() -> Iterator[None]:
    """SIGTERM ends this process as ctrl-C does: what is open is rolled back, and its run is closed."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
