"""One long-lived process that can be launched, asked whether it is ready, signalled and reaped."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from workers.services.processes import is_alive, process_state, send_signal


class Service(ABC):
    """What the supervisor needs to know about a server or a child process.

    `stop_steps` are tried in order: a signal, and how many seconds to give it. `requires` names the
    services that must be ready before this one is launched, and that end after it. `hasten_step` is the
    step that a second Ctrl-C goes to, `restarts` whether an exit is followed by a new launch, `rechecks`
    whether `ready` is cheap and may turn False again.
    """

    name: str
    log_path: Path
    stop_steps: tuple[tuple[signal.Signals, float], ...]
    hasten_step: int = 1
    requires: tuple[str, ...] = ()
    restarts: bool = True
    rechecks: bool = False

    def __init__(self) -> None:
        self.pid: int | None = None
        self.start_ticks: int | None = None
        self.exit_code: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def launch(self) -> None:
        """Start the process without waiting until it is ready. Raises ServiceError or OSError."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether the process does its work."""

    def alive(self) -> bool:
        """Tell whether the process still runs; when not, it is reaped and `exit_code` is set.

        A negative exit code is the number of the signal that ended it.
        """
        if self.pid is None:
            return False
        if self._process is None:
            return self._forget_unless(is_alive(self.pid, self.start_ticks))
        if not _has_ended(self._process):
            return True
        # The group before the reaping: as long as the leader is a zombie its number cannot be anybody else's.
        self.signal_group(signal.SIGKILL)
        self.exit_code = self._process.wait()
        return self._forget_unless(False)

    def send(self, number: signal.Signals) -> None:
        """Signal the process, and for SIGKILL everything it started in its session's group."""
        if self.pid is None:
            return
        if number == signal.SIGKILL and self._process is not None:
            self.signal_group(number)
        else:
            send_signal(self.pid, self.start_ticks, number)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process group that `spawn` made; only while its leader is not reaped."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _now_runs(self, process: subprocess.Popen[bytes]) -> None:
        state = process_state(process.pid)
        self._process, self.pid, self.exit_code = process, process.pid, None
        self.start_ticks = state.start if state is not None else None

    def _adopts(self, pid: int, start_ticks: int) -> None:
        self._process, self.pid, self.start_ticks, self.exit_code = None, pid, start_ticks, None

    def _forget_unless(self, lives: bool) -> bool:
        if not lives:
            self._process, self.pid, self.start_ticks = None, None, None
        return lives


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
