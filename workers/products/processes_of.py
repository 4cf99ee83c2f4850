"""The processes of a build, as /proc shows them: which there are, how much memory they have, and how they are ended.

A build is known by its session, whose number is its leader's pid, and by its token, which stands in the environment
of every process that it started: so one that left the session is found too. Linux 5.3 or newer (pidfd).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from enum import Enum

from workers.errors import RetryLater
from workers.services import processes

TOKEN = "HEADRACE_BUILD"
# SIGKILL is obeyed at once, except by a process that the kernel itself keeps waiting, as for a file server that hangs.
KILL_SECONDS = 10.0
_SETTLE_SECONDS = 1.0
_AT_ONCE = 256  # each takes a descriptor, of which there may be no more than 1024
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, among the flags of a process
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Look(Enum):
    """What one look at a process tells."""

    OURS = 1
    FOREIGN = 2
    ENDED = 3  # it is gone or a zombie; but it may have had a child after the pids were listed
    BEGINNING = 4  # it is becoming another program, and has no environment at this moment


_Looker = Callable[[int], _Look]


def started_ticks(pid: int) -> int | None:
    """When process `pid` began, in clock ticks after boot; None when there is none. With the pid it is never reused."""
    state = processes.process_state(pid)
    return None if state is None else state.start


def is_alive(pgid: int, started: int) -> bool:
    """Tell whether the leader of that process group runs and is still the one that began at `started` ticks.

    Its children may outlive it: `survivors` knows them.
    """
    return processes.is_alive(pgid, started)


def survivors(tokens: Collection[str]) -> list[int]:
    """Pids of all processes of this host, zombies excepted, that were started under one of these tokens."""
    return _look_at_all(_by_token(tokens))[_Look.OURS]


def kill_survivors(tokens: Collection[str]) -> int:
    """Kill all that was started under one of these tokens, return when none is left; how many processes there were.

    Raises RetryLater when one of them does not end, though it was killed.
    """
    return _end(_by_token(tokens))


def kill_rest(leader: int, token: str) -> int:
    """Kill what is left of a session whose leader has ended, and of its token; how many processes there were."""
    by_token = _by_token([token])
    return _end(lambda pid: _Look.OURS if leader in _groups(pid) else by_token(pid))


def memory(leader: int) -> tuple[int, list[int]]:
    """Resident bytes of a session and of its members' descendants, and their pids. Shared pages count repeatedly."""
    total, members = 0, {leader}
    # By pid: a child's number is mostly higher than its parent's. Where it is not, the session still tells.
    for pid in sorted(_pids()):
        values = _stat(pid)
        if values and (pid == leader or int(values[3]) == leader or int(values[1]) in members):
            members.add(pid)
            total += int(values[21]) * _PAGE_BYTES
    return total, sorted(members)


def own_memory(pids: Collection[int]) -> int:
    """Bytes that would become free if all these ended: a shared page counts once, one that a file backs not at all.

    Costs the kernel about 1 ms per 100 MB, so it is asked only when `memory` looks too much. Of a process that may
    not be read so closely, all resident memory counts.
    """
    total = 0
    for pid in pids:
        fields = (line.partition(b":") for line in _read(pid, "smaps_rollup").splitlines())
        own = [int(value.split()[0]) * 1024 for name, _, value in fields if name in (b"Pss_Anon", b"Pss_Shmem")]
        if own:
            total += sum(own)
        elif values := _stat(pid):
            total += int(values[21]) * _PAGE_BYTES
    return total


def _by_token(tokens: Collection[str]) -> _Looker:
    words = [b"\0%s=%s\0" % (TOKEN.encode(), token.encode()) for token in tokens]

    def look(pid: int) -> _Look:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as stream:
                environment = b"\0" + stream.readall()
        except PermissionError:
            return _Look.FOREIGN
        except OSError:
            return _Look.ENDED
        if len(environment) == 1:
            return _without_environment(pid)
        return _Look.OURS if any(word in environment for word in words) else _Look.FOREIGN

    return look


def _without_environment(pid: int) -> _Look:
    values = _stat(pid)
    if values and int(values[6]) & _KERNEL_THREAD:
        return _Look.FOREIGN
    if not values or values[0] in (b"Z", b"X") or int(values[20]) == 0:  # without memory it is about to be a zombie
        return _Look.ENDED
    return _Look.BEGINNING if int(values[48]) == 0 else _Look.FOREIGN  # 0: where its environment will end


def _end(look: _Looker) -> int:
    """SIGKILL all processes that are ours, until a look finds none and has overlooked none."""
    ended, forbidden, known, start = 0, set[int](), set[int](), time.monotonic()
    settled_at = start + _SETTLE_SECONDS
    while True:
        seen = _look_at_all(look)
        gone = set(seen[_Look.ENDED])
        if found := [pid for pid in seen[_Look.OURS] if pid not in forbidden]:
            if time.monotonic() > start + KILL_SECONDS:
                raise RetryLater(
                    f"processes {found} of a build do not end, though they were killed: if `ps` shows state D, they "
                    "wait for a file system that hangs",
                    after=timedelta(seconds=60),
                )
            ended += _kill(found[:_AT_ONCE], look, forbidden, start + KILL_SECONDS)
            settled_at = time.monotonic() + _SETTLE_SECONDS
        # One that ended during the look may have left a child that the look did not list: look again. Processes of
        # others end at all times too, so not for ever.
        elif (gone <= known and not seen[_Look.BEGINNING]) or time.monotonic() > settled_at:
            return ended
        elif seen[_Look.BEGINNING]:
            time.sleep(0.001)  # the kernel is loading a program: there is no event to wait for
        known = gone


def _kill(pids: list[int], look: _Looker, forbidden: set[int], deadline: float) -> int:
    """SIGKILL these, and wait for their end; those that may not be killed become `forbidden`."""
    held: list[int] = []
    dying: list[int] = []
    try:
        for pid in pids:
            try:
                held.append(os.pidfd_open(pid))
                # Looked at again: now that it is held, the number cannot change hands unnoticed.
                if look(pid) is _Look.OURS:
                    signal.pidfd_send_signal(held[-1], signal.SIGKILL)
                    dying.append(held[-1])
            except ProcessLookupError:
                continue
            except PermissionError:  # it has become another account's, as by sudo
                forbidden.add(pid)
        for handle in dying:
            waiter = select.poll()
            waiter.register(handle, select.POLLIN)
            waiter.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        for handle in held:
            os.close(handle)
    return len(dying)


def _look_at_all(look: _Looker) -> dict[_Look, list[int]]:
    seen: dict[_Look, list[int]] = {kind: [] for kind in _Look}
    own = os.getpid()
    for pid in _pids():
        if pid != own:
            seen[look(pid)].append(pid)
    return seen


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _groups(pid: int) -> tuple[int, int] | tuple[()]:
    """Process group and session of a process; nothing of one that has ended."""
    values = _stat(pid)
    return (int(values[2]), int(values[3])) if values and values[0] != b"Z" else ()


def _stat(pid: int) -> list[bytes]:
    """State, parent, group, session ... of /proc/<pid>/stat. The name before them may hold blanks and brackets."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as stream:
            return stream.readall()
    except OSError:  # it has ended, or is another account's
        return b""
