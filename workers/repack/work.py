"""Work: one request in one worker's hands: its session, its limits, and the ways in which a step can end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from workers import database, logs
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack import store, twin_catalog
from workers.repack.pacing import Pace, window_hold
from workers.repack.shapes import Place, Shape
from workers.repack.store import Request
from workers.repack_settings import DatabaseRules, Limits, TableRules
from workers.runs import Run
from workers.settings import Settings
from workers.targets import Target

log = logs.get(__name__)

LOOK_SECONDS = 1.0  # how often people's wishes are looked at between chunks

_BUSY = {
    "55P03": "a lock was not to be had within lock_timeout",
    "40P01": "a deadlock was broken here",
    "57014": "it took longer than the budget of the lock",
    "40001": "a concurrent change interfered",
}


class GiveUp(PermanentFailure):
    """The request cannot come to its end: what it made is taken away. `reason` is one word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Busy(Exception):
    """Others hold locks that are needed: everything was rolled back; try again after a pause."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Stopped(Exception):
    """A person stopped the request, or wants it gone; what is committed stays, and this message ends."""


@dataclass(frozen=True, slots=True)
class Later:
    """How a step ends that is not done: go on after so many seconds (0: at once), and why it waits."""

    seconds: float = 0
    problem: str | None = None


@dataclass(slots=True)
class Work:
    """One request in hand. `conn` is a session of its own, in autocommit; its advisory lock lives as long as it."""

    settings: Settings
    name: str
    target: Target
    conn: Connection
    request: Request
    limits: Limits
    rules: TableRules
    run: Run
    pace: Pace
    deadline: float
    looked: float = 0.0
    oid: int = field(init=False)
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.oid = self.request.oid
        self.place = Place(self.request.id, self.request.quoted)

    @property
    def shape(self) -> Shape:
        """What is copied. Only after prepare."""
        assert self.request.shape is not None
        return self.request.shape

    @property
    def disk_rules(self) -> DatabaseRules:
        """How much disk may be used."""
        return self.settings.repack.databases.get(self.name, DatabaseRules())

    def check(self) -> None:
        """Raise Cancelled or Stopped once a person, or the end of the plan's window, says so; call it between steps."""
        self.run.check()
        if time.monotonic() < self.looked + LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        wishes = store.wishes(self.conn, self.request.id)
        if wishes is None or (wishes[0] == "abort" and self.request.goal != "abort"):
            raise Stopped("a person wants it gone")
        if wishes[1]:
            raise Stopped(f"paused by {wishes[2]}")
        if self.request.step != "replay" and (opens := self.window()) is not None:
            raise Stopped(f"outside its windows until {opens:%Y-%m-%d %H:%M} UTC")

    def window(self) -> datetime | None:
        """When the windows of the request's plan open again; None: now, or it has none."""
        plan = self.settings.repack.plans.get(self.request.plan or "")
        if plan is None or self.request.goal == "abort":
            return None
        return window_hold(plan.windows, plan.timezone, datetime.now(UTC))

    @property
    def is_over(self) -> bool:
        """Whether this message has worked long enough, and the next one shall go on."""
        return time.monotonic() > self.deadline


def settings_of(conn: Connection) -> None:
    """What every session of ours has: no row hidden, no index or table in a tablespace that nobody named."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT set_config(name, '0', false) FROM pg_settings"
            " WHERE name IN ('transaction_timeout', 'idle_session_timeout')"
        )
        cursor.execute(
            "SET row_security = off; SET default_tablespace = ''; SET synchronize_seqscans = off; SET jit = off"
        )


@contextmanager
def transaction(
    conn: Connection, *, lock_seconds: float, repeatable: bool = False, durable: bool = True
) -> Iterator[None]:
    """One transaction: committed at the end of the block, else rolled back.

    Not `durable`: its COMMIT does not wait for the disk. A server that crashes may forget it, with its mark: then it is
    done again. Raises Busy when locks were not to be had in `lock_seconds`.
    """
    level = "REPEATABLE READ" if repeatable else "READ COMMITTED"
    execute(conn, f"BEGIN ISOLATION LEVEL {level} READ WRITE; SET LOCAL lock_timeout = {int(lock_seconds * 1000)}")
    try:
        if not durable:
            execute(conn, "SET LOCAL synchronous_commit = off")
        yield
        execute(conn, "COMMIT")
    except BaseException as error:
        if not conn.closed:
            execute(conn, "ROLLBACK")
        code = database.sqlstate(error) if isinstance(error, database.DatabaseError) else None
        if code in _BUSY and not conn.closed:
            raise Busy(f"{_BUSY[code]} ({database.first_line(error)})", code) from error
        raise


def execute(conn: Connection, text: str, parameters: list[object] | None = None) -> int:
    """Run one complete statement; how many rows it touched. Without parameters a % is a %."""
    with conn.cursor() as cursor:
        cursor.execute(text, parameters)
        return cursor.rowcount


def hold(work: Work, source: str, oid: int) -> None:
    """Keep the table from being truncated, rewritten or renamed until the end of this transaction.

    The first thing in it: to a snapshot that is older than TRUNCATE or some forms of ALTER TABLE, the table is empty.
    Raises GiveUp when another table has its name.
    """
    execute(work.conn, f"LOCK TABLE ONLY {source} IN ACCESS SHARE MODE")
    found = twin_catalog.facts(work.conn, oid)
    if found.qualified != source:
        raise GiveUp("schema_changed", f"{work.request.name} is called {found.qualified} now; ask for that one")


@contextmanager
def as_owner(conn: Connection, shape: Shape) -> Iterator[None]:
    """Within a transaction, with the rights of the table's owner if it is somebody else."""
    if not shape.role:
        yield
        return
    execute(conn, f"SET LOCAL ROLE {shape.role}")
    yield
    execute(conn, "RESET ROLE")  # not after an error: the transaction is over then, and its role with it


def row(conn: Connection, text: str, parameters: list[object] | None = None) -> tuple[object, ...] | None:
    """Run one complete statement; its first row."""
    with conn.cursor() as cursor:
        cursor.execute(text, parameters)
        found: tuple[object, ...] | None = cursor.fetchone()
        return found


def jitter(limits: Limits, attempt: int) -> timedelta:
    """The pause before the next attempt: longer each time, never the same for two who fight for one lock."""
    most = min(limits.lock_pause_seconds, 0.2 * 2.0 ** min(attempt, 10))
    return timedelta(seconds=most * random.uniform(0.5, 1))


def who_holds(conn: Connection, oids: list[int]) -> str:
    """Who stood in the way, for a person; empty when nobody does any more."""
    found = twin_catalog.blockers(conn, oids)
    return "; ".join(
        f"pid {one['pid']}" + (f" ({one['usename']}, {one['state']}, {one['open_for']})" if one["usename"] else "")
        for one in found
    )


@contextmanager
def resolving(work: Work) -> Iterator[None]:
    """While the block waits for its locks, cancel or end who holds them, if the settings say so; nobody else."""
    how = work.limits.deadlock_resolution
    if how == "nothing":
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_resolve,
        args=(work.target, work.conn.info.backend_pid, how, work.limits.lock_timeout_seconds / 2, over),
        name="repack: deadlock_resolution", daemon=True,
    )  # fmt: skip
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _resolve(target: Target, pid: int, how: str, patience: float, over: threading.Event) -> None:
    if over.wait(patience):
        return
    try:
        with database.connection(target, purpose="repack blockers", autocommit=True) as conn:
            while not over.is_set():
                for blocker in twin_catalog.resolve(conn, pid, terminate=how == "kill_query"):
                    log.warning("repack.blocker", how=how, pid=blocker)
                over.wait(0.05)
    except database.DatabaseError as error:
        log.warning(
            "repack.blocker_stays", reason=database.first_line(error),
            next="deadlock_resolution needs GRANT pg_signal_backend for this login",
        )  # fmt: skip
    finally:
        database.close_all()
