"""The tables of postprocessing in one database: jobs, states, runs; named queries as typed functions.

Nothing here commits; the caller's transaction does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from workers import alerts
from workers.database import Connection
from workers.postprocessing import decisions
from workers.postprocessing.jobs import Job, Plan, State, job_from_row, state_from_row
from workers.postprocessing.schedule import Schedule
from workers.sql_files import queries

SQL = queries("postprocessing")

ROOM = "postprocessing"
LOCK_SPACE = 0x4A << 56  # "J": the advisory locks of jobs, apart from everybody else's
LOOK_KEY = 0x4B << 56  # the look's own, and below it those of imports and places


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
    """A job with its state, locked for this transaction. `is_followed`: the states of its followers are locked, too."""

    job: Job
    state: State
    priority: int
    is_followed: bool = False


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
    locked_ids = [row[0] for row in SQL["lock_states"].rows(conn, {"ids": list(ids)})]
    rows = SQL["job_rows"].records(conn, {"ids": locked_ids})
    return [_listed(row, daily) for row in sorted(rows, key=lambda row: row["job_id"])]


def locked(conn: Connection, job_id: int, *, daily: Schedule) -> Listed | None:
    """One job, however long somebody else holds it; None if there is no such job."""
    # In the order in which whoever alters a job takes them: no two of us wait for each other.
    SQL["lock_job"].row(conn, {"job": job_id})
    held = SQL["lock_state"].rows(conn, {"job": job_id})
    rows = SQL["job_rows"].records(conn, {"ids": [job_id]})
    return replace(_listed(rows[0], daily), is_followed=len(held) > 1) if rows else None


def to_replan(conn: Connection, limit: int) -> list[int]:
    """Numbers of jobs whose definition changed."""
    return [row[0] for row in SQL["to_replan"].rows(conn, {"limit": limit})]


def due_ids(conn: Connection, limit: int) -> list[int]:
    """Numbers of due jobs: of the longest due, those of higher priority first."""
    rows = SQL["due_jobs"].rows(conn, {"limit": limit})
    return [row[0] for row in sorted(rows, key=lambda row: (-row[2], row[1], row[0]))]


def set_plan(conn: Connection, job_id: int, plan: Plan, *, problem: str | None = None) -> None:
    """Write down when a job is due next."""
    SQL["set_plan"].run(conn, {"job": job_id, "problem": problem} | plan_columns(plan))


def live(conn: Connection) -> Live:
    """What is queued or running, and the limits of the lock groups."""
    found = Live(limits=dict(SQL["group_limits"].rows(conn)))
    for group, count in SQL["live_counts"].rows(conn):
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


def unsent(conn: Connection, older: timedelta, limit: int, *, resend: bool) -> list[tuple[int, int]]:
    """(run, job) of queued runs without a message, or with `resend` without one young enough; they count as sent now.

    Higher priority comes first.
    """
    rows = SQL["unsent"].rows(conn, {"older": older, "limit": limit, "resend": resend})
    return [(row[0], row[1]) for row in sorted(rows, key=lambda row: (-row[2], row[0]))]


def alert(conn: Connection, database: str, event: str, job_id: int, name: str | None, **more: Any) -> None:
    """Have people told of something about a job, once this transaction commits."""
    subject = f"{database}: job {job_id}" + (f" ({name})" if name else "")
    known = {"database": database, "job_id": job_id, "job_name": name, **more}
    alerts.raise_alert(conn, room=ROOM, event=event, subject=subject, facts=known)


def now(conn: Connection) -> datetime:
    """The database's own clock, which all of its schedules follow."""
    moment: datetime = SQL["now"].value(conn)
    return moment


def _listed(row: dict[str, Any], daily: Schedule) -> Listed:
    return Listed(job_from_row(row, daily=daily), state_from_row(row), row["priority"])


def plan_columns(plan: Plan) -> dict[str, Any]:
    """A plan as the parameters of the queries that write it."""
    return {
        "next_start": plan.next_start,
        "slot": plan.slot,
        "reason": plan.reason,
        "attempt": plan.attempt,
        "catch_up_until": plan.catch_up_until,
    }
