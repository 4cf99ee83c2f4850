"""Run rows: who works on what since when, how it ended and why. The log for people, kept by a heartbeat.

A run row is never asked whether something was done: it is written around the effect, and when its writer
dies the reaper (`workers.reaper`) closes it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import orjson
import structlog
from billiard.exceptions import SoftTimeLimitExceeded

from workers import database, logs
from workers.database import Connection
from workers.errors import Cancelled, NothingToDo, RetryLater
from workers.messages import Message
from workers.sql_files import queries
from workers.targets import Target

log = logs.get(__name__)
SQL = queries("foundation")

HEARTBEAT = timedelta(seconds=10)
STALE = timedelta(seconds=45)  # four heartbeats missed: the reaper looks for the backend

recorded: ContextVar[list[int] | None] = ContextVar("recorded", default=None)


@dataclass(slots=True, eq=False)
class Run:
    """One live run. `counters` are numbers for people; `problems` make a run that goes on end as failed."""

    id: int
    room: str
    key: str
    counters: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cancelled_by: str | None = None
    goes_on: bool = False  # the request is not done: a follow-up message continues this very run
    outcome: tuple[str, dict[str, str] | None] | None = None  # state and error of an effect that knows its own end

    def count(self, **amounts: float) -> None:
        """Add to the counters."""
        for name, amount in amounts.items():
            self.counters[name] = self.counters.get(name, 0) + amount

    def check(self) -> None:
        """Raise Cancelled once a person has asked for the end; call it between steps."""
        if self.cancelled_by is not None:
            raise Cancelled(f"cancelled by {self.cancelled_by}")


@contextmanager
def running(
    message: Message,
    *,
    control: Target,
    work: Target,
    conn: Connection,
    host: str,
    same_run: timedelta = timedelta(0),
    backend: tuple[int, datetime] | None = None,
) -> Iterator[Run]:
    """Claim a run for a message, keep its heartbeat, and write down how the block ended.

    `conn` is the connection to `work` that holds the effect: its backend is what the reaper looks for, `backend` its
    pid and start where they are known already.
    A success of the same key not older than `same_run` goes on in its row, counters included: a file that
    is written all night is one line of history, not thousands.
    Raises NothingToDo when the request was cancelled or taken by somebody else meanwhile.
    """
    run = _claim(message, control, work, backend or _own_backend(conn), host, same_run)
    if (rows := recorded.get()) is not None:
        rows.append(run.id)
    with structlog.contextvars.bound_contextvars(run=run.id, room=run.room):
        _heart.add(control, run)
        state, error = "failed", None
        try:
            with database.translated(work, conn):
                yield run
            state = "queued" if run.goes_on else "failed" if run.problems else "succeeded"
            error = {"message": "; ".join(run.problems[:5])} if run.problems else None
            if run.outcome is not None:
                state, error = run.outcome
        except Cancelled as reason:
            state, error = "cancelled", {"message": str(reason)}
            raise
        except RetryLater as reason:
            state, error = ("queued" if message.run else "failed"), database.describe_error(reason)
            raise
        except SoftTimeLimitExceeded:
            state, error = "timeout", {"message": "the time limit of this task was reached"}
            raise
        except BaseException as reason:
            error = database.describe_error(reason)
            raise
        finally:
            _heart.remove(run)
            _finish(control, run.id, state, error, run.counters)


def request(conn: Connection, messages: list[Message], *, by: str) -> list[Message]:
    """Write a queued row for each message of a person's request; the messages with their run ids.

    The caller commits, then sends. A message that gets lost is sent again by the reaper tick.
    """
    requested = []
    for message in messages:
        run = SQL["queue_run"].value(
            conn,
            {
                "room": message.room,
                "key": message.key(),
                "attempt": 1,
                "host": getattr(message, "host", None),
                "by": by,
                "task": message.task,
                "message": orjson.dumps(message.fields()).decode(),
            },
        )
        requested.append(message.model_copy(update={"run": run}))
    return requested


def close_request(control: Target, run: int, state: str, reason: str) -> None:
    """End a row that is still queued, because its message needed no run of its own or could not start one.

    A row that runs is left alone: it may be another worker's.
    """
    facts = {"id": run, "state": state, "error": orjson.dumps({"message": reason}).decode()}
    with database.connection(control, purpose="runs") as conn:
        SQL["close_queued_run"].run(conn, facts)
        conn.commit()
    if (rows := recorded.get()) is not None:
        rows.append(run)


def cancelled_by(control: Target, run: int) -> str | None:
    """Who asked for the end of a run; None if nobody did."""
    with database.connection(control, purpose="runs", autocommit=True) as conn:
        found = SQL["who_cancelled"].value(conn, {"id": run})
    return str(found) if found is not None else None


def _own_backend(conn: Connection) -> tuple[int, datetime]:
    row = SQL["own_backend"].row(conn)
    assert row is not None
    return row[0], row[1]


def _claim(
    message: Message, control: Target, work: Target, backend: tuple[int, datetime], host: str, same_run: timedelta
) -> Run:
    facts: dict[str, Any] = {
        "id": message.run,
        "room": message.room,
        "key": message.key(),
        "same_run": same_run,
        "host": host,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "database": work.name,
        "backend_pid": backend[0],
        "backend_start": backend[1],
        "task": message.task,
        "message": orjson.dumps(message.fields()).decode(),
    }
    with database.connection(control, purpose="runs") as log_conn:
        if message.run is not None:
            row = SQL["claim_run"].row(log_conn, facts)
            if row is None:
                raise NothingToDo(f"run {message.run} is over or was cancelled")
        else:
            row = (SQL["continue_run"].row(log_conn, facts) if same_run else None) or SQL["start_run"].row(
                log_conn, facts
            )
        log_conn.commit()
    assert row is not None
    return Run(row[0], message.room, message.key(), counters=dict(row[1]))


def _finish(control: Target, run: int, state: str, error: dict[str, str] | None, counters: dict[str, float]) -> None:
    facts = {
        "id": run,
        "state": state,
        "error": orjson.dumps(error).decode() if error else None,
        "counters": orjson.dumps(counters).decode(),
    }
    query = SQL["requeue_run"] if state == "queued" else SQL["finish_run"]
    for _attempt in range(2):  # the first one may meet an idle connection that a server restart broke
        try:
            with database.connection(control, purpose="runs") as conn:
                query.run(conn, facts)
                conn.commit()
            return
        except RetryLater as reason:
            # The effect has its own mark; the reaper closes the row.
            log.warning("run.not_closed", run=run, state=state, reason=str(reason))


class _Heart:
    """One thread per process that beats for its live runs, and sleeps while there are none."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._runs: dict[Run, Target] = {}
        self._pid = 0

    def add(self, control: Target, run: Run) -> None:
        with self._wake:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._runs = {}
                threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
            self._runs[run] = control
            self._wake.notify()

    def remove(self, run: Run) -> None:
        with self._wake:
            self._runs.pop(run, None)

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            with self._wake:
                while not self._runs:
                    self._wake.wait()
            pause.wait(HEARTBEAT.total_seconds())
            with self._wake:
                live = dict(self._runs)
            for control in set(live.values()):
                try:
                    self._beat_once(control, [run for run, target in live.items() if target == control])
                except Exception as error:  # the next beat tries again; the work itself must not suffer
                    log.warning("heartbeat.missed", reason=database.first_line(error))

    def _beat_once(self, control: Target, runs: list[Run]) -> None:
        counters = orjson.dumps({str(run.id): dict(run.counters) for run in runs}).decode()
        with database.connection(control, purpose="heartbeat", autocommit=True) as conn:
            rows = SQL["heartbeat"].rows(conn, {"ids": [run.id for run in runs], "counters": counters})
        wanted = {row[0]: row[1] for row in rows}
        for run in runs:
            run.cancelled_by = wanted.get(run.id) or run.cancelled_by


_heart = _Heart()
