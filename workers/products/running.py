"""One run of a code: started with limits, watched until it ends or must end, and nothing of it left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from workers.errors import PermanentFailure, RetryLater
from workers.paths import to_text
from workers.products.disk_use import blocks
from workers.products.endings import size, verdict
from workers.products.launching import (
    BLOCK_BYTES,
    CannotStart,
    environment_of,
    executable_of,
    file_blocks,
    launcher_of,
    spawn,
)
from workers.products.processes_of import (
    KILL_SECONDS,
    is_alive,
    kill_rest,
    kill_survivors,
    memory,
    own_memory,
    started_ticks,
    survivors,
)
from workers.products.streams import Streams, last

__all__ = ["Order", "Outcome", "environment_of", "is_alive", "kill_survivors", "run", "started_ticks", "survivors"]

GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
_ASK_SECONDS = 1.0
_KEPT_BYTES = 4096  # of each stream at least: its end tells why, even where nothing of it is to be recorded
_LOOK_SECONDS = (0.02, 0.5)  # between two looks at its memory: a tenth of its age, within these


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. `folder` is its scratch: working directory and TMPDIR; `log_bytes` are kept of each stream's end."""

    argv: tuple[str | bytes, ...]
    folder: Path
    environment: Mapping[str, str]
    token: str
    timeout_seconds: float | None
    memory_bytes: int | None
    output_bytes: int | None
    log_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `kind` is None for exit 0, else what `problem` says in a sentence for the person on call.

    Kinds: exit, signal, timeout, memory, output_limit, missing (it cannot be started), cancelled. `peak_bytes` is
    None of a code that ended before anyone could look; `cpu_seconds` are those of processes that it waited for.
    """

    exit_status: int | None
    signal: int | None
    kind: str | None
    problem: str | None
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None


def run(order: Order, *, started: Callable[[int, int], None], cancelled: Callable[[], str | None]) -> Outcome:
    """Run a code to its end, however that comes, and leave no process of it behind.

    `started` gets its process group and the leader's start in clock ticks; `cancelled` is asked once a second and
    gives the reason to end it. Whatever these two raise, or a signal handler of this process, ends the code first and
    is passed on. RetryLater: no process can be started here, or one does not end though it was killed.
    """
    environment = environment_of(order.folder, order.token, order.environment)
    streams = Streams(max(order.log_bytes, _KEPT_BYTES))
    running: _Running | None = None
    try:
        executable = executable_of(order.argv[0], environment["PATH"])
        process = spawn(
            executable, order.argv[1:], folder=order.folder, environment=environment, output_bytes=order.output_bytes,
            memory_bytes=order.memory_bytes, stdout=streams.stdout, stderr=streams.stderr,
        )  # fmt: skip
        running = _Running(order, process, streams)
        started(process.pid, started_ticks(process.pid) or 0)
        stopped = running.watch(cancelled)
        return running.outcome(stopped)
    except CannotStart as problem:
        return Outcome(None, None, "missing", str(problem), "", "", 0.0, 0.0, None)
    except BaseException:
        try:
            if running is not None:
                running.end()
        finally:
            # Between a fork and its return there is no pid yet that anybody could kill: the token finds it.
            kill_survivors([order.token])
        raise
    finally:
        streams.close()
        if running is not None:
            running.close()


class _Running:
    """A code that has been started: its leader's pid is its process group and its session."""

    def __init__(self, order: Order, process: subprocess.Popen[bytes], streams: Streams) -> None:
        self.began = time.monotonic()
        self.order, self.process, self.streams = order, process, streams
        self.usage: resource.struct_rusage | None = None
        self.peak = 0
        # A new process' peak begins at that of the one it was forked from: only more than this is its own.
        self.inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            self.handle = os.pidfd_open(process.pid)
        except ProcessLookupError as error:
            raise self._unknown_end() from error
        self.streams.listen(self.handle)

    def watch(self, cancelled: Callable[[], str | None]) -> tuple[str, str] | None:
        """Wait for its end. The kind and the problem if it had to be stopped."""
        order = self.order
        end_at = self.began + order.timeout_seconds if order.timeout_seconds is not None else float("inf")
        look_at, ask_at = self.began + _LOOK_SECONDS[0], self.began + _ASK_SECONDS
        measure_at = ask_at if order.output_bytes is not None else float("inf")
        while not self.streams.until(min(end_at, look_at, ask_at, measure_at)):
            now = time.monotonic()
            if now >= end_at:
                self.stop()
                return "timeout", f"ran longer than the {order.timeout_seconds:g} s it may"
            if now >= look_at:
                if (used := self.used()) is not None:
                    return "memory", f"used {size(used)} of memory, and may use {size(order.memory_bytes or 0)}"
                look_at = now + self._pause(now)
            if now >= measure_at:
                if (problem := self.written()) is not None:
                    return "output_limit", problem
                # A walk through very many files must not become the main thing that happens.
                measure_at = now + max(_ASK_SECONDS, 20 * (time.monotonic() - now))
            if now >= ask_at:
                if (reason := cancelled()) is not None:
                    self.stop()
                    return "cancelled", reason
                ask_at = time.monotonic() + _ASK_SECONDS
        return None

    def _pause(self, looked_at: float) -> float:
        shortest, longest = _LOOK_SECONDS
        cost = time.monotonic() - looked_at  # grows with the number of processes of this host
        return max(shortest, min(longest, (looked_at - self.began) / 10), 20 * cost)

    def used(self) -> int | None:
        """Its memory, if that is more than it may have."""
        allowed, (used, pids) = self.order.memory_bytes, memory(self.process.pid)
        if allowed is not None and used > allowed:
            # Forks share their pages, and those of a mapped file are not needed: now count exactly.
            used = own_memory(pids)
        self.peak = max(self.peak, used)
        return used if allowed is not None and used > allowed else None

    def written(self) -> str | None:
        """What is wrong with the amount of files in its folder, if something is."""
        if self.order.output_bytes is None:
            return None
        allowed = file_blocks(self.order.output_bytes)
        if (found := blocks(self.order.folder, allowed)) <= allowed:
            return None
        return f"wrote at least {size(found * BLOCK_BYTES)}, and may write {size(self.order.output_bytes)}"

    def stop(self) -> None:
        """Ask it to end; in vain, if it still runs afterwards."""
        self._signal(signal.SIGTERM)
        self.streams.until(time.monotonic() + GRACE_SECONDS)

    def end(self) -> bool:
        """Kill the whole group and collect its leader; whether others of it were not gone yet."""
        if self.process.returncode is not None:
            return False
        pid = self.process.pid
        # One signal reaches all of a group: a fork that happens meanwhile is refused by the kernel.
        self._signal(signal.SIGKILL)
        if not self.streams.until(time.monotonic() + KILL_SECONDS):
            raise RetryLater(
                f"process {pid} ({_name(self.order)}) does not end, though it was killed: if `ps` shows state D, it "
                "waits for a file system that hangs",
                after=timedelta(seconds=60),
            )
        try:
            _, status, self.usage = os.wait4(pid, 0)
        except ChildProcessError as error:
            self.process.returncode = -signal.SIGKILL
            raise self._unknown_end() from error
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self._signal(0)

    def _unknown_end(self) -> PermanentFailure:
        return PermanentFailure(
            f"how {_name(self.order)} ended is not known: another part of this process collects its children, or it "
            "was started with SIGCHLD ignored"
        )

    def _signal(self, number: int) -> bool:
        """Send it to the group; False if there is none. Until its leader is collected, its number is nobody else's."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def outcome(self, stopped: tuple[str, str] | None) -> Outcome:
        """End what is left of it, and say how it went."""
        seconds = time.monotonic() - self.began
        self.end()
        status = self.process.returncode
        # However short and well it ran: a child that left the session would be known to nobody from now on.
        kill_rest(self.process.pid, self.order.token)
        stdout, stderr = self.streams.ends()
        order, usage = self.order, self.usage
        if usage is not None and usage.ru_maxrss > max(self.inherited, self.peak // 1024):
            self.peak = usage.ru_maxrss * 1024
        found = stopped or verdict(
            status, last(stderr, _KEPT_BYTES), launcher=launcher_of(order.token), written=self.written(),
            peak_bytes=self.peak, memory_bytes=order.memory_bytes, output_bytes=order.output_bytes,
        )  # fmt: skip
        kind, problem = found or (None, None)
        if kind not in (None, "cancelled"):
            problem = f"{_name(order)} {problem}"
        return Outcome(
            exit_status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            kind=kind, problem=problem, stdout=last(stdout, order.log_bytes), stderr=last(stderr, order.log_bytes),
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime if usage is not None else 0.0,
            peak_bytes=self.peak or None,
        )  # fmt: skip

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.handle)


def _name(order: Order) -> str:
    return to_text(os.path.basename(order.argv[0]))
