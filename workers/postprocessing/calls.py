"""The call of a job's routine: what is called, with which rights and limits, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from workers import database, logs
from workers.database import Connection, DatabaseError
from workers.errors import RetryLater
from workers.postprocessing import catalog
from workers.postprocessing.catalog import NotRunnable, Routine
from workers.postprocessing.claims import Claim
from workers.postprocessing.endings import Outcome
from workers.postprocessing.jobs import ORIGIN_HDBPP
from workers.postprocessing.scope import Scope
from workers.postprocessing.watchdog import Watchdog
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

GONE_FOR = timedelta(seconds=60)  # how long we ask for a backend whose session is lost
NOTICE_CHARACTERS = 2_000
_CANCELLED = "57014"


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


def definition(conn: Connection, claim: Claim, where: Scope) -> Call:
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


def routine_of(executor: Connection, other: Connection, call: Call, job: int) -> tuple[Routine, bool]:
    """The routine that a job names now, and whether the executing session was asked for its search path.

    A name without a schema is one of that path. Raises NotRunnable.
    """
    schema, name = call.schema, call.written
    if call.origin == ORIGIN_HDBPP or name is None:
        schema, name = catalog.parts_of(other, call.written)
    path = catalog.default_path(executor) if schema is None else []
    return catalog.resolve(other, schema, name, job_id=job, path=path), schema is None


def execute(
    conn: Connection,
    claim: Claim,
    where: Scope,
    call: Call,
    routine: Routine,
    watchdog: Watchdog,
    mark: Callable[[Connection, Outcome], bool],
) -> Outcome:
    """Call the routine, with the watchdog beside it; how it ended. Of an atomic call the mark commits with it."""
    query, arguments = routine.call(), {"job_id": claim.job, "config": call.config}
    started = time.monotonic()
    try:
        with watchdog, _rolled_back_first(conn):
            conn.autocommit = not call.atomic
            with conn.cursor() as cursor:
                cursor.execute(query.statement(), arguments)
                done = Outcome("succeeded", status_message=cursor.statusmessage or "", notices=_notices(conn))
            if call.atomic:
                SQL["reset_role"].run(conn)
                if not mark(conn, done):
                    conn.rollback()
                    return Outcome("lost", "somebody else has settled this run meanwhile; its work was rolled back")
                conn.commit()
        return done
    except DatabaseError as error:
        outcome = replace(of_error(error), notices=_notices(conn))
        if conn.closed:
            return _of_lost_session(claim, where, call, watchdog, outcome)
        conn.rollback()
        conn.autocommit = True
        if watchdog.verdict is not None:
            return _of_watchdog(watchdog, outcome)
        if outcome.sqlstate == _CANCELLED:
            return _of_cancelled(outcome, call, time.monotonic() - started, where, claim)
        return outcome


@contextmanager
def _rolled_back_first(conn: Connection) -> Iterator[None]:
    """End a transaction that failed before the watchdog is waited for: its heartbeat may wait for this very row."""
    try:
        yield
    except BaseException:
        if not conn.closed:
            conn.rollback()
        raise


def of_error(error: DatabaseError) -> Outcome:
    """A failure, with everything that PostgreSQL says of it."""
    said = database.describe_error(error)
    return Outcome(
        "failed",
        said["message"],
        said.get("sqlstate"),
        detail=said.get("detail"),
        hint=said.get("hint"),
        context=said.get("context"),
    )


def transactions_inside(conn: Connection, before: int | None, *, role: str | None, asked_path: bool) -> int | None:
    """Transactions that the routine ended by itself: beyond the call's own and those of our statements around it."""
    if conn.closed or before is None:
        return None
    try:
        after = SQL["transactions_after"].value(conn)
    except DatabaseError:
        return None  # a timeout that the routine set, for one
    # begin_call, SET ROLE, the call, and the question; and two for the search path where a name had no schema.
    ours = 3 + bool(role) + 2 * asked_path
    return max(0, after - before - ours) if after is not None else None


def _of_watchdog(watchdog: Watchdog, outcome: Outcome) -> Outcome:
    return replace(
        outcome,
        state=watchdog.verdict or outcome.state,
        message=watchdog.why,
        sqlstate=outcome.sqlstate or _CANCELLED,
        cancelled_by=watchdog.cancelled_by,
    )


def _of_cancelled(outcome: Outcome, call: Call, seconds: float, where: Scope, claim: Claim) -> Outcome:
    """57014 that the watchdog did not send: statement_timeout, a person through us, or somebody in the database."""
    try:
        with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
            by = SQL["beat"].value(conn, {"run": claim.run})
    except RetryLater:
        by = None
    if by is not None:
        return replace(outcome, state="cancelled", message=f"cancelled by {by}", cancelled_by=by)
    if call.max_seconds and seconds >= call.max_seconds * 0.99:
        return replace(outcome, state="timeout", message=f"stopped after max_runtime = {call.max_seconds:g} s")
    return replace(outcome, state="cancelled", message=f"cancelled in the database: {outcome.message}")


def _of_lost_session(claim: Claim, where: Scope, call: Call, watchdog: Watchdog, outcome: Outcome) -> Outcome:
    """E is gone: find out what became of its transaction, once it is gone for certain."""
    _await_end(where, claim)
    with database.connection(where.target, purpose="postprocessing", autocommit=True) as conn:
        row = SQL["run_state"].row(conn, {"run": claim.run})
    if call.atomic and row is not None and row[0] == "succeeded":
        return Outcome("succeeded")
    if watchdog.verdict is not None:
        return _of_watchdog(watchdog, outcome)
    if call.atomic:
        message = f"the session ended and its transaction was rolled back ({outcome.message})"
        return replace(outcome, state="failed", message=message)
    message = f"the session ended during the call; how far it came is unknown ({outcome.message})"
    return replace(outcome, state="lost", message=message)


def _await_end(where: Scope, claim: Claim) -> None:
    """Wait until the executing backend is gone, cancelling and then terminating what still runs of it."""
    who = {"pid": claim.pid, "start": claim.start}
    until = time.monotonic() + GONE_FOR.total_seconds()
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


def _notices(conn: Connection) -> Sequence[str]:
    return [str(notice).strip()[:NOTICE_CHARACTERS] for notice in conn.notices]
