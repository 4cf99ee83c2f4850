"""The end of a run: its mark, and everything that follows from it, in one transaction.

The next due time, the counters, the jobs that follow and the alerts commit with the mark, so that no end is half
recorded. Nothing here commits; the caller's transaction does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import orjson

from workers import logs
from workers.database import Connection, DatabaseError, first_line, sqlstate
from workers.postprocessing import decisions, store
from workers.postprocessing.jobs import ENDED_BADLY, ORIGIN_HDBPP, Ended, Job, Plan
from workers.postprocessing.schedule import ScheduleError
from workers.postprocessing.scope import Scope
from workers.postprocessing.store import Listed
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

PASSING = ("08", "40", "53", "55", "57", "58")  # SQLSTATE classes: connection, rollback, resources, locks, operator
SLOW_FACTOR = 3.0
SLOW_LEAST_RUNS = 5
SLOW_LEAST = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, with what PostgreSQL said about it."""

    state: str
    message: str | None = None
    sqlstate: str | None = None
    detail: str | None = None
    hint: str | None = None
    context: str | None = None
    status_message: str = ""
    inner_transactions: int | None = None
    notices: Sequence[str] = ()
    cancelled_by: str | None = None


def with_inner(outcome: Outcome, inner_transactions: int | None) -> Outcome:
    """The outcome, with the number of transactions that the routine ended by itself."""
    return replace(outcome, inner_transactions=inner_transactions)


def finish(conn: Connection, where: Scope, run: int, outcome: Outcome, *, job: int, pid: int | None) -> bool:
    """Mark a run and everything that follows from its end; False if this backend does not own it any more.

    With `pid` None the run must be queued, else running under that backend. One transaction holds the mark, the next
    due time, the counters, the jobs that follow and the alerts, so that no end is half recorded.
    """
    # The job's row first: whoever holds it keeps this transaction waiting before it holds the run's.
    item = store.locked(conn, job, daily=where.daily)
    row = _mark(conn, run, outcome, pid)
    if row is None:
        return False
    if item is None:
        return True  # the job was deleted while it ran; its history stays
    counts = {
        "job": item.job.id,
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
        "duration": row["duration"],
        "success": outcome.state == "succeeded",
        "lost": outcome.state == "lost",
        "status": outcome.status_message,
    }
    if outcome.state in ("succeeded", "cancelled", *ENDED_BADLY) and row["started_at"] is not None:
        SQL["count_run"].run(conn, counts)
        if item.job.origin == ORIGIN_HDBPP and where.facts.has_hdbpp_stats:
            _count_as_hdbpp(conn, counts)
    if item.state.live_run == run:
        _plan_after(conn, item, row, outcome, where.name)
    if outcome.state == "succeeded":
        _warn_if_slow(conn, item.job, row, run, where.name)
    return True


def lose(conn: Connection, where: Scope, run: int, *, job: int, pid: int | None) -> bool:
    """Mark a run whose backend is gone; False if somebody else has settled it meanwhile."""
    message = "its worker died, or lost its session, and left no outcome"
    return finish(conn, where, run, Outcome("lost", message), job=job, pid=pid)


def _count_as_hdbpp(conn: Connection, counts: dict[str, Any]) -> None:
    """hdbpp's own counters; a row deleted meanwhile, or rights that are missing, must not keep the run from its end."""
    SQL["savepoint_stats"].run(conn)
    try:
        SQL["hdbpp_stats"].run(conn, counts)
    except DatabaseError as error:
        if conn.closed or (sqlstate(error) or "").startswith(PASSING):
            raise
        SQL["undo_stats"].run(conn)
        log.warning("job.hdbpp_stats_not_written", job=counts["job"], reason=first_line(error))


def _mark(conn: Connection, run: int, outcome: Outcome, pid: int | None) -> dict[str, Any] | None:
    if pid is None:
        columns = {"run": run, "state": outcome.state, "message": outcome.message, "by": outcome.cancelled_by}
        rows = SQL["close_queued"].records(conn, columns)
    else:
        columns = {
            "run": run,
            "pid": pid,
            "state": outcome.state,
            "message": outcome.message,
            "sqlstate": outcome.sqlstate,
            "detail": outcome.detail,
            "hint": outcome.hint,
            "context": outcome.context,
            "status_message": outcome.status_message,
            "inner_transactions": outcome.inner_transactions,
            "notices": orjson.dumps(list(outcome.notices)).decode() if outcome.notices else None,
            "cancelled_by": outcome.cancelled_by,
        }
        rows = SQL["finish_run"].records(conn, columns)
    return rows[0] if rows else None


def _plan_after(conn: Connection, item: Listed, row: dict[str, Any], outcome: Outcome, database: str) -> None:
    job, state = item.job, item.state
    ended = Ended(
        state=outcome.state,
        slot=row["scheduled_for"],
        reason=row["reason"],
        attempt=row["attempt"],
        finished_at=row["finished_at"],
        sqlstate=outcome.sqlstate,
    )
    is_wrong = False
    try:
        then = decisions.after(job, state, ended, jitter=random.uniform(-1, 1))
    except (ScheduleError, OverflowError, ValueError):
        is_wrong = True  # the schedule was changed to one that means nothing: the next look says so
        then = decisions.After(Plan(), state.consecutive_failures)
    if not job.scheduled:
        then = replace(then, plan=Plan(), disable=False, over=False)  # paused or gone while it ran
    facts = {"job": job.id, "failures": then.consecutive_failures, "replan": is_wrong}
    SQL["plan_after"].run(conn, facts | store.plan_columns(then.plan))
    if then.skipped:
        why = f"the run of {ended.slot:%Y-%m-%d %H:%M:%S} UTC waited, was still going or was to be tried again"
        store.skip(conn, job, then.skipped, why)
    if then.disable or then.over:
        SQL["disable_job"].run(conn, {"job": job.id})
    if item.is_followed:
        _wake_followers(conn, job, ended)
    _tell(conn, item, row, outcome, then, database)


def _wake_followers(conn: Connection, job: Job, ended: Ended) -> None:
    """Jobs that follow this one are due now, or on record as skipped."""
    success = ended.state == "succeeded"
    facts = {"job": job.id, "at": ended.finished_at, "success": success}
    SQL["busy_children"].run(conn, facts)
    SQL["due_children"].run(conn, facts)
    if not success:
        why = f"job {job.id}, which it follows, ended as {ended.state}"
        SQL["stopped_children"].run(conn, {"job": job.id, "at": ended.finished_at, "why": why})


def _tell(
    conn: Connection, item: Listed, row: dict[str, Any], outcome: Outcome, then: decisions.After, database: str
) -> None:
    """Alerts: the first failure of a row of them, the end of such a row, and a job that is given up."""
    job = item.job
    more = {
        "run_id": row["run_id"],
        "routine": ".".join(part for part in (row["proc_schema"], row["proc_name"]) if part) or None,
        "state": outcome.state,
        "message": outcome.message or outcome.state,
        "sqlstate": outcome.sqlstate,
        "detail": outcome.detail,
        "hint": outcome.hint,
        "scheduled_for": str(row["scheduled_for"]),
        "finished_at": str(row["finished_at"]),
        "consecutive_failures": then.consecutive_failures,
        "next_start": str(then.plan.next_start) if then.plan.next_start else None,
    }
    history = f"headrace postprocessing history {job.id} --database {database}"
    if then.disable:
        again = f"headrace postprocessing alter {job.id} --database {database} --scheduled"
        reason = f"disabled after {then.consecutive_failures} failures in a row: {more['message']}"
        more |= {"message": reason, "next": f"{history}; once it is mended: {again}"}
        store.alert(conn, database, "disabled", job.id, job.name, **more)
    elif outcome.state in ENDED_BADLY and item.state.consecutive_failures == 0:
        store.alert(conn, database, "failure", job.id, job.name, **more, next=history)
    elif outcome.state == "succeeded" and item.state.consecutive_failures > 0:
        more["message"] = f"runs again, after {item.state.consecutive_failures} failures"
        store.alert(conn, database, "recovery", job.id, job.name, **more, next=history)


def _warn_if_slow(conn: Connection, job: Job, row: dict[str, Any], run: int, database: str) -> None:
    if row["duration"] <= SLOW_LEAST:
        return
    median, runs = SQL["usual_seconds"].rows(conn, {"job": job.id, "run": run})[0]
    seconds = row["duration"].total_seconds()
    if runs >= SLOW_LEAST_RUNS and seconds > SLOW_FACTOR * median:
        message = f"took {seconds:.1f} s; its last {runs} runs took {median:.1f} s (median)"
        history = f"headrace postprocessing history {job.id} --database {database}"
        store.alert(conn, database, "slow", job.id, job.name, run_id=run, message=message, next=history)
