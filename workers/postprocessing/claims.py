"""Claiming a run: the job's lock on the executing backend E, the run's row over another connection M."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from workers import database
from workers.database import Connection, DatabaseError
from workers.errors import NothingToDo, RetryLater
from workers.messages import RunJob
from workers.postprocessing import endings, store
from workers.postprocessing.endings import Outcome
from workers.postprocessing.scope import Scope
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("postprocessing")

ASKED_FOR = ("request", "drop-in", "back-fill")  # by a person, whatever the schedule says


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that a backend has taken; `transactions` is the number of that backend's transaction when it did."""

    run: int
    job: int
    pid: int
    start: datetime
    transactions: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A run as its message finds it, and the other run of its job that is on record as running."""

    state: str
    reason: str
    lock_group: str | None
    scheduled: bool | None
    quiet: str | None
    other: int | None
    other_pid: int | None
    other_start: datetime | None


def claim(executor: Connection, other: Connection, where: Scope, message: RunJob, settings: Settings) -> Claim:
    """Take the job's lock and the run's row. Commits on `other`.

    Raises NothingToDo when the run is over or must not start, RetryLater when it has to wait for its turn.
    """
    has_lock, pid, start, transactions = SQL["enter"].rows(executor, {"key": store.job_key(message.job)})[0]
    row = SQL["queued_run"].row(other, {"run": message.job_run})
    found = Queued(*row) if row is not None else None
    if found is None or found.state != "queued":
        raise NothingToDo(f"run {message.job_run} is {found.state if found else 'gone'}")
    if not has_lock:
        _refuse(other, where, message, found)
    _check_that_it_may_start(other, where, message, found)
    if found.other is not None and not _settle_dead(other, where, message, found):
        _refuse(other, where, message, found)
    facts = {
        "run": message.job_run,
        "host": settings.host,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "pid": pid,
        "start": start,
    }
    if not _take_row(other, message, found, facts):
        raise NothingToDo(f"run {message.job_run} was taken or cancelled a moment ago")
    return Claim(message.job_run, message.job, pid, start, transactions)


def _take_row(conn: Connection, message: RunJob, found: Queued, facts: dict[str, Any]) -> bool:
    try:
        if found.lock_group is not None:
            SQL["lock_for_claim"].run(conn, {"lock_group": found.lock_group})
            if SQL["group_is_full"].value(conn, {"lock_group": found.lock_group}):
                conn.rollback()
                raise RetryLater(f"lock group {found.lock_group!r} is full", after=timedelta(seconds=1))
        taken = SQL["claim"].run(conn, facts)
        conn.commit()
    except DatabaseError as error:
        if conn.closed or database.sqlstate(error) != "23505":
            raise
        conn.rollback()
        raise RetryLater(f"job {message.job} has just been started", after=timedelta(seconds=2)) from error
    return bool(taken)


def _check_that_it_may_start(conn: Connection, where: Scope, message: RunJob, found: Queued) -> None:
    """A message may wait for hours behind long runs: meanwhile its job may have been paused."""
    if found.reason in ASKED_FOR:
        return
    if not found.scheduled:
        why = f"job {message.job} was paused before this run began"
        close(conn, where, message, Outcome("skipped", why))
        raise NothingToDo(why)
    if found.quiet is not None:
        raise RetryLater(f"job {message.job} waits: {found.quiet}", after=timedelta(seconds=5))


def _settle_dead(conn: Connection, where: Scope, message: RunJob, found: Queued) -> bool:
    """Mark as lost the run that keeps this one out, if its backend is gone; we hold the job's lock meanwhile."""
    if SQL["backend_lives"].value(conn, {"pid": found.other_pid, "start": found.other_start}):
        return False
    assert found.other is not None
    _begin_short(conn)
    settled = endings.lose(conn, where, found.other, job=message.job, pid=found.other_pid)
    conn.commit()
    return settled


def _refuse(conn: Connection, where: Scope, message: RunJob, found: Queued) -> None:
    """The job is running already: a person's run is skipped, a run of the schedule waits for its turn."""
    key = store.job_key(message.job)
    holder = SQL["job_lock_holder"].row(conn, {"high": key >> 32, "low": key & 0xFFFFFFFF})
    by = f"run {found.other}" if found.other is not None else "another session"
    why = f"job {message.job} is already running ({by}" + (f", backend {holder[0]})" if holder else ")")
    # A session of ours without a run on record is a second copy of a message, or about to close.
    is_passing = holder is not None and str(holder[1]).startswith(f"headrace postprocessing job={message.job} ")
    if found.reason in ("request", "drop-in") and (found.other is not None or not is_passing):
        close(conn, where, message, Outcome("skipped", why))
        raise NothingToDo(why)
    conn.rollback()
    raise RetryLater(why, after=timedelta(seconds=2))


def close(conn: Connection, where: Scope, message: RunJob, outcome: Outcome) -> None:
    """End a run that never begins. Commits."""
    _begin_short(conn)
    endings.finish(conn, where, message.job_run, outcome, job=message.job, pid=None)
    conn.commit()


def _begin_short(conn: Connection) -> None:
    """A new transaction that waits for a held row for two seconds only: then the message comes again."""
    conn.rollback()
    SQL["wait_little"].run(conn, {"milliseconds": "2000"})
