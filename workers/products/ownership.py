"""Who is responsible for a build: a process of this machine, told apart from later ones with the same pid."""

from __future__ import annotations

import os
from functools import cache

from workers.products.running import started_ticks


def own() -> str:
    """This process: boot, namespace of pids, pid, and start in clock ticks."""
    return _name(os.getpid())


def is_here(worker: str | None) -> bool:
    """Whether a process was of this machine since it was started last."""
    return worker is not None and worker.split(":")[0] == _boot()


def can_be_seen(worker: str | None) -> bool:
    """Whether a process of this machine would be seen from here: one in another container would not."""
    return worker is not None and worker.split(":")[1] == _namespace()


def is_alive(worker: str | None) -> bool:
    """Whether a process that can be seen still runs."""
    if worker is None or not is_here(worker):
        return False
    _, _, pid, ticks = worker.split(":")
    return started_ticks(int(pid)) == int(ticks)


@cache  # by the pid: a fork is another process
def _name(pid: int) -> str:
    return f"{_boot()}:{_namespace()}:{pid}:{started_ticks(pid)}"


@cache
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@cache
def _namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)
