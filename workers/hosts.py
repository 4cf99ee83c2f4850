"""Hosts: who has a worker or a watcher, announced every few seconds, so that senders know the queues."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata

from workers import database, logs, migrations
from workers.errors import HeadraceError, PermanentFailure
from workers.settings import did_you_mean
from workers.sql_files import queries
from workers.targets import Target

log = logs.get(__name__)
SQL = queries("foundation")

ANNOUNCE_SECONDS = 15.0
SILENT_SECONDS = 60.0  # four announcements missed: sweeps stop sending to this host
_CACHE_SECONDS = 30.0

_known: dict[str, tuple[float, frozenset[str]]] = {}


@dataclass(frozen=True, slots=True)
class Host:
    """One row of `headrace hosts`."""

    name: str
    queues: list[str]
    version: str
    last_seen: datetime
    silent_seconds: float
    draining: bool
    running: int

    @property
    def alive(self) -> bool:
        """Whether a sweep may send to it."""
        return self.silent_seconds < SILENT_SECONDS


def announce(control: Target, name: str, worker: str, queue_names: list[str]) -> None:
    """Write that a worker of this host lives, and what it consumes; the first one makes the host known to senders."""
    facts = {"name": name, "worker": worker, "queues": queue_names, "version": metadata.version("headrace")}
    # A short connection: the caller is often a thread of a process that forks.
    conn = database.connect(control, purpose="hosts", autocommit=True)
    try:
        for query in ("announce_host", "announce_worker", "forget_workers"):
            SQL[query].run(conn, facts)
    finally:
        conn.close()


def listing(control: Target) -> list[Host]:
    """Every host known, by name."""
    with database.connection(control, purpose="hosts", autocommit=True) as conn:
        return [Host(*row) for row in SQL["hosts"].rows(conn)]


def worker_is_up(control: Target, host: str, name: str, since: datetime) -> bool:
    """Whether a worker of this host has announced itself since then."""
    with database.connection(control, purpose="hosts", autocommit=True) as conn:
        return bool(SQL["worker_is_up"].value(conn, {"host": host, "name": name, "since": since}))


def require(control: Target, name: str) -> None:
    """Raise PermanentFailure unless a worker or watcher of this host has ever announced itself.

    The answer is kept for half a minute, a "no" never: a host that joined a moment ago is found at once.
    """
    seen, names = _known.get(control.dsn, (0.0, frozenset[str]()))
    if name in names and time.monotonic() - seen < _CACHE_SECONDS:
        return
    with database.connection(control, purpose="hosts", autocommit=True) as conn:
        names = frozenset(row[0] for row in SQL["host_names"].rows(conn))
    _known[control.dsn] = (time.monotonic(), names)
    if name not in names:
        hint = did_you_mean(name, names) if names else "; none has so far"
        raise PermanentFailure(
            f"no worker of host {name!r} has ever announced itself{hint}. Start `headrace worker` there first, "
            "or work in this process with --here"
        )


def _migrate(control: Target) -> None:
    # A worker may be the very first to use a control database.
    conn = database.connect(control, purpose="hosts")
    try:
        migrations.migrate(conn, migrations.FOUNDATION)
    finally:
        conn.close()


class Presence:
    """A thread that announces a host until it is told to stop; a database that is down only makes it wait."""

    def __init__(self, control: Target, name: str, worker: str, queue_names: list[str]) -> None:
        self._facts = (control, name, worker, queue_names)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._announce, name="presence", daemon=True)

    def start(self) -> None:
        """Announce at once, then every 15 seconds."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the host's row stays and ages."""
        self._stop.set()

    def _announce(self) -> None:
        wait = 0.0
        migrated = False
        while not self._stop.wait(wait):
            try:
                if not migrated:
                    _migrate(self._facts[0])
                    migrated = True
                announce(*self._facts)
                wait = ANNOUNCE_SECONDS
            except HeadraceError as error:
                log.warning("host.not_announced", reason=str(error))
                wait = 5.0
