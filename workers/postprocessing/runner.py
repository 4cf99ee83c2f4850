"""Running one job once: a session of its own, the job's lock, the claim, the call, the mark.

What may happen where, and what it leaves (E is the executing backend, M any other connection):

- before the claim: nothing has happened; the row is queued, its message comes again.
- after the claim, before the call: the row is `running`, E is gone: the look finds it silent and marks it `lost`.
- worker killed during the call: E ends within seconds (client_connection_check_interval) or is cancelled by the look;
  until E is gone it holds the job's lock, and the row's unique index `running`: nobody else can start the job.
- E terminated, or the server stopped, during the call: M waits until E is gone, and marks `lost`.
- after the call, before the mark: `lost`, unless `atomic`: then call and mark commit in one transaction on E.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from workers import database, logs, runs
from workers.database import Connection, DatabaseError
from workers.errors import HeadraceError, NothingToDo, RetryLater
from workers.messages import Message, RunJob
from workers.postprocessing import catalog, scope, store
from workers.postprocessing.catalog import NotRunnable, Routine
from workers.postprocessing.jobs import ORIGIN_HDBPP
from workers.postprocessing.scope import Scope
from workers.postprocessing.store import Outcome
from workers.postprocessing.watchdog import Limits, Watchdog
from workers.settings import Settings
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

BACKSTOP = timedelta(hours=23, minutes=50)  # before the worker's hard limit: `timeout`, not `lost`
MARK_FOR = timedelta(seconds=60)  # how long a result is held while the database does not take its mark
NOTICES = 100
NOTICE_CHARACTERS = 2_000
_CANCELLED = "57014"


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this backend has taken."""

    run: int
    job: int
    scheduled_for: datetime
    reason: str
    pid: int
    start: datetime


@dataclass(frozen=True, slots=True)
class Call:
    """What a run calls, and how."""

    origin: str
    schema: str | None
    written: str | None
    config: str | None
    run_as: str | None
    atomic: bool
    max_seconds: float


def run_job(message: RunJob, settings: Settings) -> list[Message]:
    """Run one queued run of a job, and mark it. Its failure is on record, not raised.

    Raises NothingToDo when the run is over, was cancelled, or its job is running already; RetryLater while the
    database, the job's lock or a limit keeps it waiting.
    """
    where = scope.of(settings, message.database)
    with _session(where, message) as conn, _slot(settings, where):
        claim = _claim(conn, message, settings)
        outcome = None
        try:
            with runs.running(
                message, control=settings.target(), work=where.target, conn=conn, host=settings.host
            ) as run:
                outcome = _call(conn, claim, where, run, settings)
                run.outcome = (outcome.state, _told(outcome))
        except RetryLater:
            if outcome is None:
                _unclaim(where, claim)
            raise
        except NothingToDo as reason:
            _finish(claim, where, Outcome("cancelled", str(reason)))
            raise
        except BaseException as bug:
            if outcome is None:
                _finish(claim, where, Outcome("failed", f"{type(bug).__name__}: {bug}"))
            raise
    return []


def _told(outcome: Outcome) -> dict[str, str] | None:
    """What the control database's log says of it."""
    if outcome.state == "succeeded":
        return None
    words = {name: getattr(outcome, name) for name in ("message", "sqlstate", "detail", "hint", "context")}
    return {name: str(value) for name, value in words.items() if value}


@contextmanager
def _session(where: Scope, message: RunJob) -> Iterator[Connection]:
    """A fresh session with the role's own defaults; closed, never reused, so that nothing leaks from job to job."""
    conn = database.connect(
        where.target, purpose=f"postprocessing job={message.job}", run=message.job_run, autocommit=True
    )
    try:
        conn.notices = deque(maxlen=NOTICES)  # type: ignore[assignment]
        with database.translated(where.target, conn):
            SQL["begin_session"].run(conn)
        yield conn
    finally:
        conn.close()


@contextmanager
def _slot(settings: Settings, where: Scope) -> Iterator[None]:
    """One of the places for runs of all databases together, held by a session of the control database."""
    most = settings.postprocessing.max_running_total
    if most is None:
        yield
        return
    conn = database.connect(settings.target(), purpose="postprocessing place", autocommit=True)
    try:
        for place in range(most):
            if SQL["try_job_lock"].value(conn, {"key": store.LOOK_KEY - 1 - place}):
                yield
                return
        raise RetryLater(f"max_running_total = {most} runs are under way", after=timedelta(seconds=1))
    finally:
        conn.close()


def _claim(conn: Connection, message: RunJob, settings: Settings) -> Claim:
    """Take the job's lock and the run's row. Raises NothingToDo or RetryLater when it cannot be had."""
    if not SQL["try_job_lock"].value(conn, {"key": store.job_key(message.job)}):
        _refuse(conn, message, settings)
    group = SQL["lock_group_of"].value(conn, {"run": message.job_run})
    facts = {"run": message.job_run, "host": settings.host, "worker": f"{socket.gethostname()}:{os.getpid()}"}
    conn.autocommit = False
    try:
        if group is not None:
            SQL["lock_for_claim"].run(conn, {"lock_group": group})
            if SQL["group_is_full"].value(conn, {"lock_group": group}):
                raise RetryLater(f"lock group {group!r} is full", after=timedelta(seconds=1))
        row = SQL["claim"].row(conn, facts)
        conn.commit()
    except DatabaseError as error:
        conn.rollback()
        if database.sqlstate(error) != "23505":
            raise
        _refuse(conn, message, settings)
    finally:
        if not conn.closed:
            conn.rollback()
            conn.autocommit = True
    if row is None:
        state = SQL["run_state"].row(conn, {"run": message.job_run})
        raise NothingToDo(f"run {message.job_run} is {state[0] if state else 'gone'}")
    return Claim(message.job_run, *row)


def _refuse(conn: Connection, message: RunJob, settings: Settings) -> None:
    """The job is running already: a person's run is skipped, a run of the schedule waits for its turn."""
    row = SQL["run_state"].row(conn, {"run": message.job_run})
    if row is None or row[0] != "queued":
        raise NothingToDo(f"run {message.job_run} is {row[0] if row else 'gone'}")
    key = store.job_key(message.job)
    holder = SQL["job_lock_holder"].row(conn, {"high": key >> 32, "low": key & 0xFFFFFFFF})
    by = f"run {row[4]}" if row[4] is not None else "another session"
    why = f"job {message.job} is already running ({by}" + (f", backend {holder[0]})" if holder else ")")
    if row[2] in ("request", "drop-in"):
        where = scope.of(settings, message.database)
        with database.connection(where.target, purpose="postprocessing") as other:
            store.finish(
                other, message.job_run, Outcome("skipped", why), database=where.name, pid=None, daily=where.daily,
                hdbpp_stats=False,
            )  # fmt: skip
            other.commit()
        raise NothingToDo(why)
    raise RetryLater(why, after=timedelta(seconds=2))


def _unclaim(where: Scope, claim: Claim) -> None:
    try:
        with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
            SQL["unclaim"].run(conn, {"run": claim.run, "pid": claim.pid})
    except HeadraceError as error:
        log.warning("run.not_unclaimed", run=claim.run, reason=str(error))  # the look finds it silent


def _call(conn: Connection, claim: Claim, where: Scope, run: runs.Run, settings: Settings) -> Outcome:
    """Call the routine and mark the run; how it ended."""
    try:
        call = _definition(conn, claim, where)
        routine = _routine(conn, call, claim.job)
        _note(where, claim, call, routine, run.id)
        if call.run_as:
            catalog.set_role(conn, call.run_as)
    except NotRunnable as reason:
        return _finish(claim, where, Outcome("failed", str(reason), reason.sqlstate, hint=reason.hint))
    except DatabaseError as error:
        if conn.closed:
            raise
        return _finish(claim, where, _failed(error))
    limits = Limits(
        max_seconds=call.max_seconds,
        grace_seconds=settings.postprocessing.grace_seconds,
        blocked_seconds=settings.postprocessing.blocked_minutes * 60,
        backstop_seconds=BACKSTOP.total_seconds(),
    )
    SQL["set_timeout"].run(conn, {"milliseconds": str(min(int(limits.first() * 1000), 2**31 - 1))})
    before = SQL["local_transactions"].value(conn)
    watchdog = Watchdog(
        where.target, claim.run, pid=claim.pid, start=claim.start, limits=limits, wanted=lambda: run.cancelled_by
    )
    outcome = _execute(conn, claim, where, call, routine, watchdog)
    if outcome.state == "succeeded" and call.atomic:
        return outcome  # marked in its own transaction
    if not conn.closed and not call.atomic:
        outcome = replace(outcome, inner_transactions=_inner(conn, before))
    return _finish(claim, where, outcome)


def _execute(conn: Connection, claim: Claim, where: Scope, call: Call, routine: Routine, watchdog: Watchdog) -> Outcome:
    query, arguments = routine.call(), {"job_id": claim.job, "config": call.config}
    started = time.monotonic()
    try:
        with watchdog:
            conn.autocommit = not call.atomic
            with conn.cursor() as cursor:
                cursor.execute(query.statement(), arguments)
                done = Outcome("succeeded", status_message=cursor.statusmessage or "")
        done = replace(done, notices=_notices(conn))
        if call.atomic:
            SQL["reset_role"].run(conn)
            _mark(conn, claim, where, done)
            conn.commit()
        return done
    except DatabaseError as error:
        code = database.sqlstate(error)
        failed = replace(_failed(error), notices=_notices(conn))
        if conn.closed:
            return _of_lost_session(claim, where, call, watchdog, failed)
        conn.rollback()
        conn.autocommit = True
        if watchdog.verdict is not None:
            return replace(
                failed, state=watchdog.verdict, message=watchdog.why, sqlstate=code or _CANCELLED,
                cancelled_by=watchdog.cancelled_by,
            )  # fmt: skip
        if code == _CANCELLED:
            return _of_cancelled(failed, call, time.monotonic() - started, where, claim)
        return failed


def _of_cancelled(failed: Outcome, call: Call, seconds: float, where: Scope, claim: Claim) -> Outcome:
    """57014 that the watchdog did not send: statement_timeout, a person through us, or somebody in the database."""
    with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
        by = SQL["beat"].value(conn, {"run": claim.run})
    if by is not None:
        return replace(failed, state="cancelled", message=f"cancelled by {by}", cancelled_by=by)
    if call.max_seconds and seconds >= call.max_seconds * 0.99:
        return replace(failed, state="timeout", message=f"stopped after max_runtime = {call.max_seconds:g} s")
    return replace(failed, state="cancelled", message=f"cancelled in the database: {failed.message}")


def _of_lost_session(claim: Claim, where: Scope, call: Call, watchdog: Watchdog, failed: Outcome) -> Outcome:
    """E is gone: find out what became of its transaction, once it is gone for certain."""
    _await_end(where, claim)
    if watchdog.verdict is not None:
        return replace(failed, state=watchdog.verdict, message=watchdog.why, cancelled_by=watchdog.cancelled_by)
    if not call.atomic:
        message = f"the session ended during the call; how far it came is unknown ({failed.message})"
        return replace(failed, state="lost", message=message)
    with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
        row = SQL["run_state"].row(conn, {"run": claim.run})
    if row is not None and row[0] == "succeeded":
        return Outcome("succeeded")
    return replace(
        failed, state="failed", message=f"the session ended, its transaction was rolled back ({failed.message})"
    )


def _await_end(where: Scope, claim: Claim) -> None:
    """Wait until the executing backend is gone, cancelling and then terminating what still runs of it."""
    who = {"pid": claim.pid, "start": claim.start}
    until = time.monotonic() + MARK_FOR.total_seconds()
    looks = 0
    while time.monotonic() < until:
        try:
            with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
                if not SQL["backend_lives"].value(conn, who):
                    return
                SQL["cancel_backend" if looks < 5 else "terminate_backend"].run(conn, who)
            looks += 1
        except RetryLater as reason:
            log.warning("run.waits_for_database", run=claim.run, reason=str(reason))
        time.sleep(0.2 if looks < 3 else 1)
    raise RetryLater(f"{where.name}: the backend of run {claim.run} cannot be asked for; the look settles it")


def _finish(claim: Claim, where: Scope, outcome: Outcome) -> Outcome:
    """Mark the run over another connection, for a while again if the database is away; E keeps the job's lock."""
    until = time.monotonic() + MARK_FOR.total_seconds()
    while True:
        try:
            with database.connection(where.target, purpose="postprocessing") as other:
                owned = _mark(other, claim, where, outcome)
                other.commit()
            break
        except RetryLater as reason:
            if time.monotonic() > until:
                raise
            log.warning("run.mark_waits", run=claim.run, state=outcome.state, reason=str(reason))
            time.sleep(1)
    if not owned:
        log.warning("run.not_ours", run=claim.run, state=outcome.state)
    log.info("job.run", job=claim.job, job_run=claim.run, state=outcome.state, sqlstate=outcome.sqlstate)
    return outcome


def _mark(conn: Connection, claim: Claim, where: Scope, outcome: Outcome) -> bool:
    return store.finish(
        conn, claim.run, outcome, database=where.name, pid=claim.pid, daily=where.daily,
        hdbpp_stats=where.facts.has_hdbpp_stats,
    )  # fmt: skip


def _definition(conn: Connection, claim: Claim, where: Scope) -> Call:
    """The job as it is now. Raises NotRunnable when it was deleted meanwhile."""
    row = SQL["own_job"].row(conn, {"job": claim.job})
    if row is None:
        raise NotRunnable(f"job {claim.job} was deleted before it started", "02000")
    origin, schema, written, config, run_as, atomic, max_seconds = row
    if origin == ORIGIN_HDBPP:
        found = SQL["hdbpp_job"].row(conn, {"job": claim.job})
        if found is None:
            raise NotRunnable(f"job {claim.job} was deleted from postprocessing_jobs before it started", "02000")
        written, config = found
        if config is None and where.legacy_null == "json":
            config = "null"  # what hdbpp-postprocessing passed; TimescaleDB passes SQL NULL
    return Call(origin, schema, written, config, run_as, atomic, max_seconds)


def _routine(conn: Connection, call: Call, job: int) -> Routine:
    schema, name = call.schema, call.written
    if call.origin == ORIGIN_HDBPP or name is None:
        schema, name = catalog.parts_of(conn, call.written)
    return catalog.resolve(conn, schema, name, job_id=job)


def _note(where: Scope, claim: Claim, call: Call, routine: Routine, control_run: int) -> None:
    facts: dict[str, Any] = {
        "run": claim.run,
        "schema": routine.schema,
        "name": routine.name,
        "run_as": call.run_as,
        "config": call.config,
        "body_hash": routine.body_hash,
        "control_run": control_run,
    }
    with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
        SQL["note_call"].run(conn, facts)


def _failed(error: DatabaseError) -> Outcome:
    said = database.describe_error(error)
    return Outcome(
        "failed",
        said["message"],
        said.get("sqlstate"),
        detail=said.get("detail"),
        hint=said.get("hint"),
        context=said.get("context"),
    )


def _notices(conn: Connection) -> Sequence[str]:
    return [str(notice).strip()[:NOTICE_CHARACTERS] for notice in conn.notices]


def _inner(conn: Connection, before: int | None) -> int | None:
    """Transactions that the routine ended by itself: beyond its own one and the question's."""
    try:
        SQL["reset_role"].run(conn)
        after = SQL["local_transactions"].value(conn)
    except DatabaseError:
        return None
    return max(0, after - before - 3) if before is not None and after is not None else None
