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

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from workers import database, logs, runs
from workers.database import Connection, DatabaseError
from workers.errors import HeadraceError, NothingToDo, RetryLater, ServerUnavailable
from workers.messages import Message, RunJob
from workers.postprocessing import calls, catalog, claims, endings, scope, store
from workers.postprocessing.calls import Call
from workers.postprocessing.catalog import NotRunnable, Routine
from workers.postprocessing.claims import Claim
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
    # M first: a server that has no session left for our bookkeeping must not give one to the call.
    with (
        database.connection(where.target, purpose="postprocessing", run=message.job_run) as other,
        _session(where, message) as conn,
        _place(settings),
    ):
        taken = _Taken(where, claims.claim(conn, other, where, message, settings))
        backend = (taken.claim.pid, taken.claim.start)
        try:
            with runs.running(
                message, control=settings.target(), work=where.target, conn=conn, host=settings.host, backend=backend
            ) as run:
                outcome = taken.run(conn, other, run, settings)
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

    def run(self, conn: Connection, other: Connection, run: runs.Run, settings: Settings) -> Outcome:
        """Call the routine and mark the run; how it ended. `other` has our questions asked and is free afterwards."""
        other.autocommit = True
        try:
            call = calls.definition(other, self.claim, self.where)
            routine, asked_path = calls.routine_of(conn, other, call, self.claim.job)
            self._note(other, call, routine, run.id)
            limits = _limits(call, settings)
            SQL["begin_call"].run(conn, {"milliseconds": str(min(int(limits.first() * 1000), 2**31 - 1))})
            if call.run_as:
                catalog.set_role(conn, call.run_as)
        except NotRunnable as reason:
            return self.finish(Outcome("failed", str(reason), reason.sqlstate, hint=reason.hint))
        except DatabaseError as error:
            if conn.closed or other.closed:
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
        before = None if call.atomic else self.claim.transactions
        inside = calls.transactions_inside(conn, before, role=call.run_as, asked_path=asked_path)
        return self.finish(endings.with_inner(outcome, inside))

    def finish(self, outcome: Outcome) -> Outcome:
        """Mark the run over another connection, for a while again if the database is away; E keeps the job's lock.

        Somebody who holds the job's row, a person's open psql perhaps, is waited for as long as it takes.
        """
        until = time.monotonic() + MARK_FOR.total_seconds()
        while True:
            try:
                with database.connection(self.where.target, purpose="postprocessing", run=self.claim.run) as conn:
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
            outcome = self._as_settled(outcome)
        self._log(outcome)
        return outcome

    def _as_settled(self, outcome: Outcome) -> Outcome:
        """How the run ended on record: somebody else has settled it, or our own commit got through after all."""
        try:
            with database.connection(self.where.target, purpose="postprocessing", autocommit=True) as conn:
                row = SQL["run_state"].row(conn, {"run": self.claim.run})
        except RetryLater:
            return outcome
        return Outcome(row[0], row[1]) if row is not None else outcome

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
        return endings.finish(conn, self.where, self.claim.run, outcome, job=self.claim.job, pid=self.claim.pid)

    def _note(self, conn: Connection, call: Call, routine: Routine, control_run: int) -> None:
        facts = {
            "run": self.claim.run,
            "schema": routine.schema,
            "name": routine.name,
            "run_as": call.run_as,
            "config": call.config,
            "body_hash": routine.body_hash,
            "control_run": control_run,
        }
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
            if SQL["try_place"].value(conn, {"key": store.LOOK_KEY - 1 - place}):
                yield
                return
        raise RetryLater(f"max_running_total = {most} runs are under way", after=timedelta(seconds=1))
    finally:
        conn.close()
