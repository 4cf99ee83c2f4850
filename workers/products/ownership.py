"""Who is responsible for a build: a process of this machine, told apart from later ones with the same pid."""

from __future__ import annotations

import os
from functools import cache

from workers.products.running import started_ticks


def own() -> str:
    """This process: boot, pid and start in clock ticks."""
    return _name(os.getpid())


def is_here(worker: str | None) -> bool:
    """Whether a process was of this machine since it was started last."""
    return worker is not None and worker.split(":")[0] == _boot()


def is_alive(worker: str | None) -> bool:
    """Whether a process of this machine still runs."""
    if worker is None or not is_here(worker):
        return False
    _, pid, ticks = worker.split(":")
    return started_ticks(int(pid)) == int(ticks)


@cache  # by the pid: a fork is another process
def _name(pid: int) -> str:
    return f"{_boot()}:{pid}:{started_ticks(pid)}"


@cache
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
