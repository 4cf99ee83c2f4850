"""Processes of this machine: start one that dies with its parent, look at one, wait for its end.

Linux only knows "die with the *thread* that forked you" (PR_SET_PDEATHSIG). So call `spawn` from the main
thread, or from a thread that lives as long as the process: a child that a pool thread started is killed when
that thread ends. On other systems a child is only ended at a normal exit of this process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.services.child_logs import open_log

LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
# Looked up once, here: between fork and exec nothing may be loaded, another thread could hold the loader.
_LIBC = ctypes.CDLL(None, use_errno=True)
_PRCTL = getattr(_LIBC, "prctl", None)
_UNSHARE = getattr(_LIBC, "unshare", None)


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the kernel says about one process; `pid` and `start` together are never used twice.

    `state` is the kernel's letter (R, S, Z, ...); `start` counts clock ticks since boot on Linux and
    seconds since 1970 elsewhere.
    """

    pid: int
    parent_pid: int
    command: str
    state: str
    start: int

    @property
    def alive(self) -> bool:
        """False for a zombie: it holds no file, port or lock any more, only its number."""
        return self.state[:1] not in ("Z", "X", "x")


def process_state(pid: int) -> ProcessState | None:
    """Return what is known about `pid`, or None when there is no such process."""
    if pid <= 0:
        return None
    return _linux_state(pid) if LINUX else _portable_state(pid)


def _linux_state(pid: int) -> ProcessState | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may itself contain blanks and brackets: the last bracket ends it.
    head, _, tail = text.rpartition(")")
    values = tail.split()
    return ProcessState(pid, int(values[1]), head.partition("(")[2], values[0], int(values[19]))


def _portable_state(pid: int) -> ProcessState | None:
    answer = subprocess.run(
        ["ps", "-o", "ppid=,stat=,lstart=,comm=", "-p", str(pid)],
        capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    values = answer.stdout.split(maxsplit=7)
    if len(values) < 8:
        return None
    started = time.mktime(time.strptime(" ".join(values[2:7]), "%a %b %d %H:%M:%S %Y"))
    return ProcessState(pid, int(values[0]), values[7].strip(), values[1], int(started))


def is_alive(pid: int, start: int | None = None) -> bool:
    """Tell whether process `pid` runs (a zombie does not) and, with `start`, is still the same one."""
    state = process_state(pid)
    return state is not None and state.alive and start in (None, state.start)


def own_start() -> int:
    """Return the start time of this process, as `process_state` counts it."""
    state = process_state(os.getpid())
    return state.start if state is not None else 0


def send_signal(pid: int, start: int | None, number: signal.Signals) -> bool:
    """Send a signal when `pid` is alive and still the process that began at `start`; True if it was sent."""
    if not is_alive(pid, start):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for_exit(pid: int, start: int | None, timeout_seconds: float) -> bool:
    """Wait until that process has ended (a zombie has); False when it still runs at the time limit."""
    deadline = time.monotonic() + timeout_seconds
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # a kernel without pidfd, or no descriptor left: poll instead
        else:
            try:
                # The descriptor first, then the look: now the number cannot change hands unnoticed.
                if not is_alive(pid, start):
                    return True
                poller = select.poll()
                poller.register(descriptor, select.POLLIN)
                return bool(poller.poll(max(0.0, timeout_seconds) * 1000))
            finally:
                os.close(descriptor)
    while is_alive(pid, start):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def die_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Ask the kernel to send `number` to this process when the thread that forked it ends (Linux only).

    `spawn` does this for its own children, but the setting is not inherited by *their* children. A Celery
    worker therefore calls `die_with_parent(signal.SIGKILL, parent_pid)` in each pool process
    (`worker_process_init`), so that kill -9 of the worker leaves no pool process behind. With `parent_pid` a
    parent that died before this call is noticed too, and the signal is sent at once.
    """
    if not LINUX or _PRCTL is None:
        return
    if _PRCTL(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log_path: Path | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    user_namespace: bool = False,
    uid: int | None = None,
    gid: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own; it gets `death_signal` when this process dies, however it dies.

    A session of its own, so that Ctrl-C on the terminal reaches only the supervisor, which then stops its
    children in order. Output goes to the end of `log_path` (None: nowhere). `user_namespace` shows root to
    the child as the account `nobody` while files stay root's; `uid`/`gid` really change the account. Call
    it from the main thread (see the module's first lines). Raises OSError or subprocess.SubprocessError.
    """
    output = subprocess.DEVNULL if log_path is None else open_log(log_path)
    try:
        process = subprocess.Popen(
            list(argv), env=None if env is None else dict(env), cwd=cwd,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, user=uid, group=gid, extra_groups=None if uid is None else [],
            pass_fds=tuple(pass_fds),
            preexec_fn=_child_setup(death_signal, user_namespace) if LINUX else None,
        )  # fmt: skip
    finally:
        if output != subprocess.DEVNULL:
            os.close(output)
    if not LINUX:
        atexit.register(_end_at_exit, process, death_signal)
    return process


def _child_setup(death_signal: signal.Signals, user_namespace: bool) -> Callable[[], None]:
    """Prepare what runs between fork and exec: system calls on ready-made values, nothing else."""
    if _PRCTL is None or _UNSHARE is None:
        raise OSError("this C library has no prctl or unshare")
    prctl, unshare = _PRCTL, _UNSHARE
    parent_pid, number = os.getpid(), int(death_signal)
    maps: tuple[tuple[str, bytes], ...] = ()
    if user_namespace:
        nobody = pwd.getpwnam("nobody")
        maps = (
            ("/proc/self/setgroups", b"deny"),
            ("/proc/self/uid_map", b"%d %d 1" % (nobody.pw_uid, os.geteuid())),
            ("/proc/self/gid_map", b"%d %d 1" % (nobody.pw_gid, os.getegid())),
        )

    def setup() -> None:
        if maps:
            if unshare(_CLONE_NEWUSER) != 0:
                raise OSError("user namespaces are refused")
            for path, content in maps:
                descriptor = os.open(path, os.O_WRONLY)
                os.write(descriptor, content)
                os.close(descriptor)
        # After the unshare: a change of credentials clears the death signal.
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            raise OSError("prctl is refused")
        if os.getppid() != parent_pid:  # it died between fork and prctl: no signal will ever come
            os._exit(1)

    return setup


def _end_at_exit(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)
