"""The tables of postprocessing in one database: jobs, states, runs; named queries as typed functions.

Nothing here commits; the caller's transaction does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import orjson

from workers import alerts, logs
from workers.database import Connection, DatabaseError, first_line, sqlstate
from workers.postprocessing import decisions
from workers.postprocessing.jobs import ENDED_BADLY, ORIGIN_HDBPP, Ended, Job, Plan, State, job_from_row, state_from_row
from workers.postprocessing.schedule import Schedule, ScheduleError
from workers.sql_files import queries

log = logs.get(__name__)
SQL = queries("postprocessing")

ROOM = "postprocessing"
LOCK_SPACE = 0x4A << 56  # "J": the advisory locks of jobs, apart from everybody else's
LOOK_KEY = (0x4A << 56) - 1
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


@dataclass(frozen=True, slots=True)
class Facts:
    """What a database has."""

    is_set_up: bool
    has_hdbpp: bool
    has_hdbpp_stats: bool
    has_facade: bool
    is_read_only: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A job with its state, locked for this transaction."""

    job: Job
    state: State
    priority: int


@dataclass(slots=True)
class Live:
    """How many runs a database and its lock groups have, so that limits can be kept while queueing."""

    total: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def group_is_full(self, group: str | None) -> bool:
        """Whether one more of this lock group would be too many."""
        return group is not None and self.groups.get(group, 0) >= self.limits.get(group, 1)

    def count(self, group: str | None) -> None:
        """One more run is live."""
        self.total += 1
        if group is not None:
            self.groups[group] = self.groups.get(group, 0) + 1


def with_inner(outcome: Outcome, inner_transactions: int | None) -> Outcome:
    """The outcome, with the number of transactions that the routine ended by itself."""
    return replace(outcome, inner_transactions=inner_transactions)


def job_key(job_id: int) -> int:
    """The advisory lock of one job; the database is part of every advisory lock."""
    return LOCK_SPACE + job_id


def facts(conn: Connection) -> Facts:
    """What this database has."""
    return Facts(**SQL["facts"].records(conn)[0])


def mirror(conn: Connection) -> None:
    """Take over new, returned and vanished rows of postprocessing_jobs."""
    SQL["mirror_hdbpp"].row(conn)


def listed(conn: Connection, ids: Iterable[int], *, daily: Schedule) -> list[Listed]:
    """Jobs that nobody else holds at the moment, in the order of their numbers."""
    rows = SQL["job_rows"].records(conn, {"ids": list(ids)})
    return [_listed(row, daily) for row in sorted(rows, key=lambda row: row["job_id"])]


def to_replan(conn: Connection, limit: int) -> list[int]:
    """Numbers of jobs whose definition changed."""
    return [row[0] for row in SQL["to_replan"].rows(conn, {"limit": limit})]


def due_ids(conn: Connection, limit: int) -> list[int]:
    """Numbers of due jobs: of the longest due, those of higher priority first."""
    rows = SQL["due_jobs"].rows(conn, {"limit": limit})
    return [row[0] for row in sorted(rows, key=lambda row: (-row[2], row[1], row[0]))]


def set_plan(conn: Connection, job_id: int, plan: Plan, *, problem: str | None = None) -> None:
    """Write down when a job is due next."""
    SQL["set_plan"].run(conn, {"job": job_id, "problem": problem} | _plan_columns(plan))


def live(conn: Connection) -> Live:
    """What is queued or running, and the limits of the lock groups."""
    found = Live(limits=dict(SQL["group_limits"].rows(conn)))
    for group, count, _running in SQL["live_counts"].rows(conn):
        found.total += count
        if group:
            found.groups[group] = count
    return found


def quiet(conn: Connection) -> dict[int, tuple[datetime | None, str]]:
    """Job number (0: the whole database) -> (until when, or None for no end; why) of quiet periods in force."""
    return {row[0]: (None if row[2] else row[1], row[3]) for row in SQL["quiet_jobs"].rows(conn)}


def hold(conn: Connection, job_id: int, until: datetime, why: str) -> None:
    """A due job waits until then; its slot stays."""
    SQL["hold"].run(conn, {"job": job_id, "until": until, "why": why})


def queue_slot(conn: Connection, item: Listed, due: decisions.Due) -> int | None:
    """Write the run of a slot, and the skipped slots before it; the run's number, None if the slot has one already."""
    job = item.job
    skip(conn, job, due.skipped, due.why_skipped)
    if due.run is None:
        return None
    run: int | None = SQL["queue_slot"].value(
        conn,
        {
            "job": job.id,
            "slot": due.run,
            "attempt": due.attempt,
            "reason": due.reason,
            "name": job.name,
            "lock_group": job.lock_group,
            "priority": item.priority,
        },
    )
    if run is not None:
        # A retry has a moment of its own; what counts as the schedule's last slot is the one that it makes up for.
        slot = item.state.slot if due.reason == "retry" else due.run
        state = {"job": job.id, "run": run, "slot": slot, "attempt": due.attempt}
        SQL["set_live"].run(conn, state | {"catch_up_until": due.catch_up_until})
    return run


def skip(conn: Connection, job: Job, slots: Sequence[datetime], why: str) -> None:
    """Put slots that never run on record."""
    if slots:
        SQL["skip_slots"].run(conn, {"job": job.id, "slots": list(slots), "name": job.name, "why": why})


def unsent(conn: Connection, older: timedelta, limit: int) -> list[tuple[int, int]]:
    """(run, job) of queued runs without a message young enough; they count as sent now. Higher priority first."""
    rows = SQL["unsent"].rows(conn, {"older": older, "limit": limit})
    return [(row[0], row[1]) for row in sorted(rows, key=lambda row: (-row[2], row[0]))]


def alert(conn: Connection, database: str, event: str, job_id: int, name: str | None, **more: Any) -> None:
    """Have people told of something about a job, once this transaction commits."""
    subject = f"{database}: job {job_id}" + (f" ({name})" if name else "")
    known = {"database": database, "job_id": job_id, "job_name": name, **more}
    alerts.raise_alert(conn, room=ROOM, event=event, subject=subject, facts=known)


def finish(
    conn: Connection,
    run: int,
    outcome: Outcome,
    *,
    job: int,
    database: str,
    pid: int | None,
    daily: Schedule,
    hdbpp_stats: bool,
) -> bool:
    """Mark a run and everything that follows from its end; False if this backend does not own it any more.

    With `pid` None the run must be queued, else running under that backend. One transaction holds the mark, the next
    due time, the counters, the jobs that follow and the alerts, so that no end is half recorded.
    """
    # The job's row first: whoever holds it keeps this transaction waiting before it holds the run's.
    found = SQL["job_row_waiting"].records(conn, {"job": job})
    row = _mark(conn, run, outcome, pid)
    if row is None:
        return False
    if not found:
        return True  # the job was deleted while it ran; its history stays
    item = _listed(found[0], daily)
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
        if item.job.origin == ORIGIN_HDBPP and hdbpp_stats:
            _count_as_hdbpp(conn, counts)
    if item.state.live_run == run:
        _plan_after(conn, item, row, outcome, database)
    if outcome.state == "succeeded":
        _warn_if_slow(conn, item.job, row, run, database)
    return True


def _count_as_hdbpp(conn: Connection, counts: dict[str, Any]) -> None:
    """hdbpp's own counters; a row deleted meanwhile, or rights that are missing, must not keep the run from its end."""
    SQL["savepoint_stats"].run(conn)
    try:
        SQL["hdbpp_stats"].run(conn, counts)
    except DatabaseError as error:
        if conn.closed or not (sqlstate(error) or "").startswith(("23", "42")):
            raise
        SQL["undo_stats"].run(conn)
        log.warning("job.hdbpp_stats_not_written", job=counts["job"], reason=first_line(error))


def now(conn: Connection) -> datetime:
    """The database's own clock, which all of its schedules follow."""
    moment: datetime = SQL["now"].value(conn)
    return moment


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
    try:
        then = decisions.after(job, state, ended, jitter=random.uniform(-1, 1))
    except ScheduleError:
        then = decisions.After(Plan(), state.consecutive_failures)  # the next look says what is wrong with it
    if not job.scheduled:
        then = replace(then, plan=Plan(), disable=False, over=False)  # paused or gone while it ran
    SQL["plan_after"].run(conn, {"job": job.id, "failures": then.consecutive_failures} | _plan_columns(then.plan))
    skip(conn, job, then.skipped, f"the run of {ended.slot:%Y-%m-%d %H:%M:%S} UTC was still going")
    if then.disable or then.over:
        SQL["disable_job"].run(conn, {"job": job.id})
    success = outcome.state == "succeeded"
    children = {"job": job.id, "at": ended.finished_at, "success": success}
    SQL["due_children"].run(conn, children)
    if not success:
        why = f"job {job.id}, which it follows, ended as {outcome.state}"
        SQL["stopped_children"].run(conn, {"job": job.id, "at": ended.finished_at, "why": why})
    _tell(conn, item, row, outcome, then, database)


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
        alert(conn, database, "disabled", job.id, job.name, **more)
    elif outcome.state in ENDED_BADLY and item.state.consecutive_failures == 0:
        alert(conn, database, "failure", job.id, job.name, **more, next=history)
    elif outcome.state == "succeeded" and item.state.consecutive_failures > 0:
        more["message"] = f"runs again, after {item.state.consecutive_failures} failures"
        alert(conn, database, "recovery", job.id, job.name, **more, next=history)


def _warn_if_slow(conn: Connection, job: Job, row: dict[str, Any], run: int, database: str) -> None:
    median, runs = SQL["usual_seconds"].rows(conn, {"job": job.id, "run": run})[0]
    seconds = row["duration"].total_seconds()
    if runs >= SLOW_LEAST_RUNS and row["duration"] > SLOW_LEAST and seconds > SLOW_FACTOR * median:
        message = f"took {seconds:.1f} s; its last {runs} runs took {median:.1f} s (median)"
        history = f"headrace postprocessing history {job.id} --database {database}"
        alert(conn, database, "slow", job.id, job.name, run_id=run, message=message, next=history)


def _listed(row: dict[str, Any], daily: Schedule) -> Listed:
    return Listed(job_from_row(row, daily=daily), state_from_row(row), row["priority"])


def _plan_columns(plan: Plan) -> dict[str, Any]:
    return {
        "next_start": plan.next_start,
        "slot": plan.slot,
        "reason": plan.reason,
        "attempt": plan.attempt,
        "catch_up_until": plan.catch_up_until,
    }
