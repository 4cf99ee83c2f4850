"""The state machine: one message takes one request a step further, and says what comes next.

The request's row says which step is due. A session of this message's own holds the request's advisory lock meanwhile:
a doubled message finds it taken, and a killed worker's is free within seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

from workers import database, logs, runs
from workers.database import Connection
from workers.errors import Cancelled, NothingToDo, PermanentFailure
from workers.messages import BuildIndex, Message, RepackStep
from workers.repack import (
    copying,
    ending,
    index_only,
    indexing,
    places,
    prepare,
    replaying,
    store,
    swapping,
    twin_catalog,
    verifying,
)
from workers.repack.pacing import Pace
from workers.repack.store import Request
from workers.repack.twin_catalog import Gone
from workers.repack.verifying import Different
from workers.repack.work import Busy, GiveUp, Later, Stopped, Work, jitter, settings_of
from workers.repack_settings import Limits, TableRules
from workers.settings import Settings

log = logs.get(__name__)

SAME_RUN = timedelta(minutes=10)
LOOK_AT_WINDOWS = timedelta(minutes=5)  # somebody may have given the plan others
LONGEST_WAIT_SECONDS = 30.0  # a longer one is left to the sweep, which asks PostgreSQL
# What no other attempt can mend: a row that the copy cannot hold, a table that is gone, a right that is missing.
_HOPELESS = ("22", "23", "42", "0A", "3F", "2B", "55006")
_DISK_FULL = "53100"


def step(message: RepackStep, settings: Settings) -> list[Message]:
    """Take a request a step further. Raises NothingToDo, PermanentFailure, ServerUnavailable."""
    target = settings.target(message.database)
    places.ensure(target)
    purpose = f"repack {message.table or message.repack}"
    with closing(database.connect(target, purpose=purpose, run=message.run, autocommit=True)) as conn:
        with database.translated(target, conn):
            settings_of(conn)
            request = _claimed(conn, message.repack)
        try:
            with runs.running(
                message, control=settings.target(), work=target, conn=conn, host=settings.host,
                same_run=SAME_RUN if message.run is None else timedelta(0),
            ) as run:  # fmt: skip
                work = _work(settings, message.database, conn, request, run)
                return _one(work, message)
        except NothingToDo:
            if message.run is not None and request.run == message.run and not conn.closed:
                if (by := runs.cancelled_by(settings.target(), message.run)) is not None:
                    store.pause(conn, request.id, f"{by}, who cancelled its run")
                store.set_run(conn, request.id, None)  # that run is over; the sweep goes on without it
            raise


def build_index(message: BuildIndex, settings: Settings) -> list[Message]:
    """Build one index of a copy; the last one to be ready sends the request on."""
    target = settings.target(message.database)
    places.ensure(target)
    with closing(database.connect(target, purpose=f"repack index {message.table}", autocommit=True)) as conn:
        settings_of(conn)
        one = indexing.claim(conn, message.repack, message.number)
        with runs.running(message, control=settings.target(), work=target, conn=conn, host=settings.host) as run:
            try:
                is_last = indexing.build_claimed(conn, message.repack, one)
            except Stopped as reason:
                run.outcome = ("cancelled", {"message": str(reason)})
                return []
        request = store.read(conn, message.repack)
        if is_last:
            store.put_off(conn, message.repack, timedelta(0), None)
    if not is_last or request is None:
        return []
    return [RepackStep(database=message.database, repack=message.repack, table=message.table, run=request.run)]


def _claimed(conn: Connection, repack: int) -> Request:
    """The request, this session's alone. Raises NothingToDo when there is nothing to do now, or somebody does it."""
    if not store.try_lock(conn, repack):
        raise NothingToDo(f"repack {repack} is being worked on")
    request = store.read(conn, repack)
    if request is None or request.state != "active":
        raise NothingToDo(f"repack {repack} is over")
    if request.is_paused:
        raise NothingToDo(f"{request.name} is paused by {request.paused_by}; `headrace repack resume {request.name}`")
    if request.is_early:
        raise NothingToDo(f"{request.name} is not due before {request.due_at:%Y-%m-%d %H:%M:%S} UTC")
    return request


def _work(settings: Settings, name: str, conn: Connection, request: Request, run: runs.Run) -> Work:
    limits = Limits.model_validate(request.options["limits"])
    return Work(
        settings=settings, name=name, target=settings.target(name), conn=conn, request=request, limits=limits,
        rules=TableRules.model_validate(request.options["rules"]), run=run, pace=Pace(conn, limits),
        deadline=time.monotonic() + limits.slice_seconds,
    )  # fmt: skip


def _one(work: Work, message: RepackStep) -> list[Message]:
    request, conn = work.request, work.conn
    again = message.model_copy(update={"run": message.run, "table": request.name})
    try:
        if (opens := work.window()) is not None and request.step != "replay":
            raise Stopped(f"outside its windows until {opens:%Y-%m-%d %H:%M} UTC")
        later, follow_ups = _do(work)
    except Busy as reason:
        if reason.sqlstate == "57014" and (by := runs.cancelled_by(work.settings.target(), work.run.id)) is not None:
            store.pause(conn, request.id, f"{by}, who cancelled its run")
            store.set_run(conn, request.id, None)
            raise Cancelled(f"cancelled by {by}") from reason
        later, follow_ups = _try_again(work, reason), []
    except Stopped as reason:
        return _stopped(work, again, str(reason))
    except Cancelled as reason:
        store.pause(conn, request.id, f"somebody, who cancelled its run ({reason})")
        store.set_run(conn, request.id, None)
        raise
    except Different as reason:
        _keep(work, str(reason), "different")
        raise PermanentFailure(str(reason)) from reason
    except GiveUp as reason:
        store.abandon(conn, request.id, reason.reason, str(reason))
        _clean_now(work)
        raise
    except Gone as reason:
        store.abandon(conn, request.id, "gone", f"{request.name} was dropped meanwhile")
        _clean_now(work)
        raise PermanentFailure(f"{request.name} was dropped meanwhile") from reason
    except PermanentFailure as reason:
        if request.is_swapped:
            store.put_off(conn, request.id, timedelta(seconds=30), str(reason))
        else:
            store.abandon(conn, request.id, "error", str(reason))
            _clean_now(work)
        raise
    except database.DatabaseError as error:
        if conn.closed:
            raise
        try:
            _failed(work, error)
        except Gone as reason:
            store.abandon(conn, request.id, "gone", f"{request.name} was dropped meanwhile")
            _clean_now(work)
            raise PermanentFailure(f"{request.name} was dropped meanwhile") from reason
        raise
    now = store.read(conn, request.id)
    store.unlock(conn, request.id)
    if now is None or now.state != "active":
        if now is not None and now.state == "failed":
            raise PermanentFailure(now.problem or f"{request.name} failed")
        if now is not None and now.problem:
            work.run.problems.append(now.problem)
        return []
    if later is None:
        later = Later()
    if later.seconds > 0:
        store.put_off(conn, request.id, timedelta(seconds=later.seconds), later.problem)
    work.run.goes_on = message.run is not None and not is_ready(now)
    if later.seconds > LONGEST_WAIT_SECONDS or is_ready(now):
        return list(follow_ups)
    return [*follow_ups, again.model_copy(update={"wait_seconds": later.seconds})]


def is_ready(request: Request) -> bool:
    """Whether a copy is prepared and waits for a person to say swap."""
    is_little = (
        request.backlog_rows is not None and request.backlog_rows <= request.options["limits"]["swap_below_rows"]
    )
    return request.step == "replay" and request.goal == "ready" and is_little


def _do(work: Work) -> tuple[Later | None, Sequence[Message]]:
    request = work.request
    if request.goal == "abort":
        ending.clean(work)
        return None, []
    if request.engine == "reindex":
        return index_only.step(work), []
    if request.step == "prepare":
        return prepare.prepare(work), []
    if request.step == "copy":
        return copying.copy(work), []
    if request.step == "index":
        return indexing.index(work)
    if request.step == "replay":
        return _replay(work), []
    if request.step == "swap":
        later = replaying.catch_up(work)
        if later is None and indexing.carry_over(work):
            if replaying.replay_all(work):
                store.next_step(work.conn, work.request.id, "index")
            return None, []
        if later is None:
            swapping.swap(work)
        return later, []
    if request.step == "verify":
        return verifying.verify(work), []
    return ending.drop(work), []


def _replay(work: Work) -> Later | None:
    later = replaying.catch_up(work)
    if later is not None:
        return later
    if indexing.carry_over(work):
        if replaying.replay_all(work):  # one state again, for unique indexes
            store.next_step(work.conn, work.request.id, "index")
        return None
    if work.request.goal == "ready":
        replaying.replay_once(work)  # to the last change: a copy that waits is as good as the table
        replaying.look(work)
        return Later(work.settings.repack.replay_seconds)
    store.next_step(work.conn, work.request.id, "swap")
    return None


def _try_again(work: Work, reason: Busy) -> Later:
    """A lock was not to be had: after a while again, until it was tried often enough."""
    request, limits = work.request, work.limits
    attempts = store.attempted(work.conn, request.id, str(reason))
    if attempts < limits.lock_attempts or request.goal == "abort" or request.is_swapped:
        wait = jitter(limits, attempts).total_seconds()
        log.info("repack.busy", table=request.name, step=request.step, attempt=attempts, reason=str(reason))
        return Later(wait, f"attempt {attempts}: {reason}")
    problem = f"{request.name}: the lock was not to be had in {attempts} attempts: {reason}"
    if request.step == "prepare" or request.engine == "reindex":  # there is no copy to be kept in step
        raise_after_clean(work, GiveUp("lock", problem))
    problem += f"; the copy is kept in step: end who holds it, then `headrace repack swap {request.name}`, or `abort`"
    store.wait_for_person(work.conn, request.id, problem, timedelta(seconds=work.settings.repack.replay_seconds))
    ending.tell(work.conn, request, "failure", problem, {"reason": "lock"})
    store.unlock(work.conn, request.id)
    raise PermanentFailure(problem) from reason


def _keep(work: Work, problem: str, why: str) -> None:
    """End a request after its swap with the old table kept; what is locked now is left to the sweep."""
    try:
        ending.keep(work, problem, why)
    except Busy:
        store.put_off(work.conn, work.request.id, timedelta(seconds=work.limits.lock_pause_seconds), problem)


def raise_after_clean(work: Work, reason: GiveUp) -> None:
    """Have the request taken away, then raise."""
    store.abandon(work.conn, work.request.id, reason.reason, str(reason))
    _clean_now(work)
    raise reason


def _clean_now(work: Work) -> None:
    """Take away what was made, with a few attempts; what is still locked then is left to the sweep."""
    request = store.read(work.conn, work.request.id)
    if request is None:
        return
    work.request = request
    for attempt in range(5):
        try:
            ending.clean(work)
            return
        except Busy as busy:
            log.warning("repack.clean_waits", table=request.name, reason=str(busy))
            time.sleep(jitter(work.limits, attempt).total_seconds())
    store.put_off(work.conn, request.id, timedelta(seconds=work.limits.lock_pause_seconds), request.problem)


def _stopped(work: Work, again: RepackStep, reason: str) -> list[Message]:
    request, conn = work.request, work.conn
    log.info("repack.stopped", table=request.name, reason=reason)
    now = store.read(conn, request.id)
    store.unlock(conn, request.id)
    if now is None or now.state != "active":
        return []
    if now.goal == "abort":
        return [again]
    if now.is_paused:
        work.run.outcome = ("cancelled", {"message": reason})
        return []
    opens = work.window()
    if opens is not None:
        wait = min(max(opens - datetime.now(UTC), timedelta(seconds=1)), LOOK_AT_WINDOWS)
        store.put_off(conn, request.id, wait, reason)
    return []


def _failed(work: Work, error: database.DatabaseError) -> None:
    """Count a step's failure; a request that cannot go on is taken away."""
    conn, request = work.conn, work.request
    problem = f"{request.name}: {request.step}: {database.first_line(error)}"
    code = database.sqlstate(error) or ""
    failures = store.failed_once(conn, request.id, problem)
    if request.is_swapped and request.step == "verify" and code.startswith(_HOPELESS):
        twin_catalog.facts(conn, request.new_oid or 0)
        _keep(work, f"{problem}; not compared", "not_compared")
        return
    if code == _DISK_FULL and not request.is_swapped:
        raise_after_clean(work, GiveUp("disk", f"{problem}; make room on the server's disk"))
    if request.is_swapped:
        store.put_off(conn, request.id, timedelta(seconds=30), problem)
        return
    if code.startswith(_HOPELESS) or failures >= work.limits.max_failures:
        raise_after_clean(work, GiveUp("error", problem))
