"""Running one job once: a session of its own, the job's lock, the claim, the call, the mark.

What may happen where, and what it leaves (E is the executing backend, M any other connection):

- before the claim: nothing has happened; the row is queued, its message comes again.
- after the claim, before the call: the row is `running`, E is gone: the look finds it silent and marks it `lost`.
- worker killed during the call: E ends within seconds (client_connection_check_interval) or is ended by the look;
  until E is gone it holds the job's lock, and the row's unique index `running`: nobody else can start the job.
- E terminated, or the server stopped, during the call: M waits until E is gone, and marks `lost`.
- after the call, before the mark: `lost`, unless `atomic`: then call and mark commit in one transaction on E.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from workers import database, logs, runs
from workers.database import Connection, DatabaseError
from workers.errors import HeadraceError, NothingToDo, RetryLater, ServerUnavailable
from workers.messages import Message, RunJob
from workers.postprocessing import calls, catalog, endings, scope, store
from workers.postprocessing.calls import Call, Claim
from workers.postprocessing.catalog import NotRunnable, Routine
from workers.postprocessing.endings import Outcome
from workers.postprocessing.scope import Scope
from workers.postprocessing.watchdog import Limits, Watchdog
from workers.settings import Settings
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

BACKSTOP = timedelta(hours=23, minutes=50)  # before the worker's hard limit: `timeout`, not `lost`
MARK_FOR = timedelta(seconds=60)  # how long a result is held while the database does not take its mark
NOTICES = 100
ASKED_FOR = ("request", "drop-in", "back-fill")  # by a person, whatever the schedule says
_LOCK_WAIT_MILLISECONDS = "2000"


def run_job(message: RunJob, settings: Settings) -> list[Message]:
    """Run one queued run of a job, and mark it. Its failure is on record, not raised.

    Raises NothingToDo when the run is over, was cancelled, or its job is running already; RetryLater while the
    database, the job's lock or a limit keeps it waiting.
    """
    target = settings.target(message.database)
    scope.check_not_down(target)
    try:
        where = scope.of(settings, message.database)
    except ServerUnavailable as reason:
        scope.note_down(target, reason)
        raise
    with _session(where, message) as conn, _place(settings):
        taken = _Taken(where, _claim(conn, message, settings))
        try:
            with runs.running(
                message, control=settings.target(), work=where.target, conn=conn, host=settings.host
            ) as run:
                outcome = taken.run(conn, run, settings)
                run.outcome = (outcome.state, _told(outcome))
        except RetryLater as reason:
            taken.give_back(reason)
            raise
        except NothingToDo as reason:
            taken.finish(Outcome("cancelled", str(reason)))
            raise
        except BaseException as bug:
            if not taken.is_marked:
                state = "lost" if taken.has_begun else "failed"
                taken.finish(Outcome(state, f"{type(bug).__name__}: {bug}"))
            raise
    return []


class _Taken:
    """A claimed run on its way: whether its call has begun, and whether its end is on record."""

    def __init__(self, where: Scope, claim: Claim) -> None:
        self.where, self.claim = where, claim
        self.has_begun = False
        self.is_marked = False

    def run(self, conn: Connection, run: runs.Run, settings: Settings) -> Outcome:
        """Call the routine and mark the run; how it ended."""
        try:
            call = calls.definition(conn, self.claim, self.where)
            routine = calls.routine_of(conn, call, self.claim.job)
            self._note(call, routine, run.id)
            limits = _limits(call, settings)
            SQL["set_timeout"].run(conn, {"milliseconds": str(min(int(limits.first() * 1000), 2**31 - 1))})
            before = None if call.atomic else calls.transactions_before(conn)
            SQL["begin_call"].run(conn)
            if call.run_as:
                catalog.set_role(conn, call.run_as)
        except NotRunnable as reason:
            return self.finish(Outcome("failed", str(reason), reason.sqlstate, hint=reason.hint))
        except DatabaseError as error:
            if conn.closed:
                raise
            return self.finish(calls.of_error(error))
        watchdog = Watchdog(
            self.where.target, self.claim.run, pid=self.claim.pid, start=self.claim.start, limits=limits,
            wanted=lambda: run.cancelled_by,
        )  # fmt: skip
        self.has_begun = True
        outcome = calls.execute(conn, self.claim, self.where, call, routine, watchdog, self._mark)
        if call.atomic and outcome.state == "succeeded":
            self.is_marked = True  # in its own transaction
            self._log(outcome)
            return outcome
        inside = None if call.atomic else calls.transactions_inside(conn, before, role=call.run_as)
        return self.finish(endings.with_inner(outcome, inside))

    def finish(self, outcome: Outcome) -> Outcome:
        """Mark the run over another connection, for a while again if the database is away; E keeps the job's lock.

        Somebody who holds the job's row, a person's open psql perhaps, is waited for as long as it takes.
        """
        until = time.monotonic() + MARK_FOR.total_seconds()
        while True:
            try:
                with database.connection(self.where.target, purpose="postprocessing") as conn:
                    SQL["wait_little"].run(conn, {"milliseconds": _LOCK_WAIT_MILLISECONDS})
                    owned = self._mark(conn, outcome)
                    conn.commit()
                break
            except (RetryLater, DatabaseError) as reason:
                if database.sqlstate(reason) == "55P03":
                    self._beat()
                elif time.monotonic() > until:
                    raise RetryLater(f"run {self.claim.run} cannot be marked: {reason}") from reason
                log.warning(
                    "run.mark_waits", run=self.claim.run, state=outcome.state, reason=database.first_line(reason)
                )
                time.sleep(1)
        self.is_marked = True
        if not owned:
            log.warning("run.not_ours", run=self.claim.run, state=outcome.state)
        self._log(outcome)
        return outcome

    def give_back(self, reason: RetryLater) -> None:
        """Let the message come again, unless the call has begun: then the look settles the run."""
        if self.is_marked or self.has_begun:
            log.warning("run.left_to_the_look", run=self.claim.run, reason=str(reason))
            return
        try:
            with database.connection(self.where.target, purpose="postprocessing", autocommit=True) as conn:
                facts = {"run": self.claim.run, "pid": self.claim.pid, "start": self.claim.start}
                back = SQL["unclaim"].run(conn, facts)
            if not back:
                self.finish(Outcome("cancelled", "cancelled before it began"))
        except HeadraceError as error:
            log.warning("run.not_unclaimed", run=self.claim.run, reason=str(error))  # the look finds it silent

    def _mark(self, conn: Connection, outcome: Outcome) -> bool:
        return endings.finish(
            conn, self.claim.run, outcome, job=self.claim.job, database=self.where.name, pid=self.claim.pid,
            daily=self.where.daily, hdbpp_stats=self.where.facts.has_hdbpp_stats,
        )  # fmt: skip

    def _note(self, call: Call, routine: Routine, control_run: int) -> None:
        facts = {
            "run": self.claim.run,
            "schema": routine.schema,
            "name": routine.name,
            "run_as": call.run_as,
            "config": call.config,
            "body_hash": routine.body_hash,
            "control_run": control_run,
        }
        with database.connection(self.where.target, purpose="postprocessing", autocommit=True) as conn:
            SQL["note_call"].run(conn, facts)

    def _beat(self) -> None:
        try:
            with database.connection(self.where.target, purpose="postprocessing", autocommit=True) as conn:
                SQL["beat"].run(conn, {"run": self.claim.run})
        except RetryLater as reason:
            log.warning("run.no_heartbeat", run=self.claim.run, reason=str(reason))

    def _log(self, outcome: Outcome) -> None:
        log.info(
            "job.run", job=self.claim.job, job_run=self.claim.run, state=outcome.state, sqlstate=outcome.sqlstate,
            database=self.where.name,
        )  # fmt: skip


def _limits(call: Call, settings: Settings) -> Limits:
    return Limits(
        max_seconds=call.max_seconds,
        grace_seconds=settings.postprocessing.grace_seconds,
        blocked_seconds=settings.postprocessing.blocked_minutes * 60,
        backstop_seconds=BACKSTOP.total_seconds(),
    )


def _told(outcome: Outcome) -> dict[str, str] | None:
    """What the control database's log says of it."""
    if outcome.state == "succeeded":
        return None
    words = {name: getattr(outcome, name) for name in ("message", "sqlstate", "detail", "hint", "context")}
    return {name: str(value) for name, value in words.items() if value}


@contextmanager
def _session(where: Scope, message: RunJob) -> Iterator[Connection]:
    """A fresh session with the role's own defaults; closed, never reused, so that nothing leaks from job to job."""
    purpose = f"postprocessing job={message.job}"
    try:
        conn = database.connect(where.target, purpose=purpose, run=message.job_run, autocommit=True)
    except ServerUnavailable as reason:
        scope.note_down(where.target, reason)
        raise
    try:
        conn.notices = deque(maxlen=NOTICES)  # type: ignore[assignment]
        yield conn
    finally:
        conn.close()


@contextmanager
def _place(settings: Settings) -> Iterator[None]:
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
    _check_that_it_may_start(conn, message, settings)
    row = _try_claim(conn, message, settings)
    if row is None and _settle_dead(conn, message, settings):
        row = _try_claim(conn, message, settings)
    if row is None:
        _refuse(conn, message, settings)
    assert row is not None
    return Claim(message.job_run, *row)


def _try_claim(conn: Connection, message: RunJob, settings: Settings) -> tuple[Any, ...] | None:
    """The claimed row; None while another run of the job is on record as running. RetryLater for a full group."""
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
        if conn.closed or database.sqlstate(error) != "23505":
            raise
        return None
    finally:
        if not conn.closed:
            conn.rollback()
            conn.autocommit = True
    if row is None:
        state = SQL["run_state"].row(conn, {"run": message.job_run})
        raise NothingToDo(f"run {message.job_run} is {state[0] if state else 'gone'}")
    return row


def _check_that_it_may_start(conn: Connection, message: RunJob, settings: Settings) -> None:
    """A message may wait for hours behind long runs: meanwhile its job may have been paused."""
    state = SQL["run_state"].row(conn, {"run": message.job_run})
    if state is None or state[0] != "queued" or state[2] in ASKED_FOR:
        return
    scheduled, quiet = SQL["may_start"].row(conn, {"job": message.job}) or (False, None)
    if not scheduled:
        why = f"job {message.job} was paused before this run began"
        _close(message, settings, Outcome("skipped", why))
        raise NothingToDo(why)
    if quiet is not None:
        raise RetryLater(f"job {message.job} waits: {quiet}", after=timedelta(seconds=5))


def _settle_dead(conn: Connection, message: RunJob, settings: Settings) -> bool:
    """Mark as lost the run that keeps this one out, if its backend is gone; we hold the job's lock meanwhile."""
    row = SQL["run_state"].row(conn, {"run": message.job_run})
    if row is None or row[4] is None or SQL["backend_lives"].value(conn, {"pid": row[5], "start": row[6]}):
        return False
    where = scope.of(settings, message.database)
    with database.connection(where.target, purpose="postprocessing") as other:
        outcome = Outcome("lost", "its worker died, or lost its session, and left no outcome")
        settled = endings.finish(
            other, row[4], outcome, job=message.job, database=where.name, pid=row[5], daily=where.daily,
            hdbpp_stats=where.facts.has_hdbpp_stats,
        )  # fmt: skip
        other.commit()
    return settled


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
        _close(message, settings, Outcome("skipped", why))
        raise NothingToDo(why)
    raise RetryLater(why, after=timedelta(seconds=2))


def _close(message: RunJob, settings: Settings, outcome: Outcome) -> None:
    """End a run that never begins."""
    where = scope.of(settings, message.database)
    with database.connection(where.target, purpose="postprocessing") as conn:
        endings.finish(
            conn, message.job_run, outcome, job=message.job, database=where.name, pid=None, daily=where.daily,
            hdbpp_stats=False,
        )  # fmt: skip
        conn.commit()
