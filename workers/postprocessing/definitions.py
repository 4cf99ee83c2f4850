"""Definitions of jobs as people write them: adding, changing, deleting and listing, checked before they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from workers import windows
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.postprocessing import catalog, decisions, schedule, store
from workers.postprocessing.jobs import ORIGIN_HDBPP, Job, State
from workers.postprocessing.schedule import Schedule, ScheduleError
from workers.postprocessing.scope import Scope
from workers.sql_files import queries

SQL = queries("postprocessing_manage")

SCHEDULES = ("schedule_interval", "cron", "run_at", "after_job")
_FAR = 10_000  # next-runs asks for no more at once


def add(conn: Connection, where: Scope, procedure: str, columns: Mapping[str, Any]) -> int:
    """A new job of this routine; its number. `conn` is in autocommit mode, so that a refusal leaves nothing.

    Raises NotRunnable for a routine that cannot be called, PermanentFailure for a schedule that means nothing.
    """
    schema, name = catalog.parts_of(conn, procedure)
    routine = catalog.resolve(conn, schema, name, job_id=catalog.INT4_MAX)
    given = {key: value for key, value in columns.items() if value is not None}
    given |= {"proc_schema": routine.schema, "proc_name": routine.name}
    given.setdefault("name", str(routine))
    if "schedule_interval" in given and given.get("fixed_schedule", True):
        given.setdefault("initial_start", store.now(conn))  # the first run is at once, as with TimescaleDB
    with _all_or_nothing(conn):
        job: int = catalog.insert(conn, given)
        _check(conn, where, job)
    return job


def alter(conn: Connection, where: Scope, job: int, columns: Mapping[str, Any]) -> None:
    """Change a job; a new kind of schedule takes the old one's place. Raises PermanentFailure for no such job."""
    given = dict(columns)
    if not given:
        raise PermanentFailure("nothing to change; see `headrace postprocessing alter --help`")
    origin = SQL["origin_of"].value(conn, {"job": job})
    if origin is None:
        raise _unknown(where, job)
    own = [key for key in ("config", "proc_schema", "proc_name", "name") if key in given]
    if origin == ORIGIN_HDBPP and own:
        raise PermanentFailure(
            f"{where.name}: job {job} is a row of postprocessing_jobs: change its procedure and config there, by UPDATE"
        )
    if any(given.get(key) is not None for key in SCHEDULES):
        given = dict.fromkeys(SCHEDULES) | given
    with _all_or_nothing(conn):
        catalog.update(conn, job, given)
        _check(conn, where, job)


def delete(conn: Connection, where: Scope, job: int) -> None:
    """A job of our own goes; its history stays. Raises PermanentFailure if there is none, or if it is hdbpp's."""
    if SQL["delete_job"].value(conn, {"job": job}) is not None:
        return
    if SQL["origin_of"].value(conn, {"job": job}) == ORIGIN_HDBPP:
        raise PermanentFailure(
            f"{where.name}: job {job} is a row of postprocessing_jobs: DELETE it there, or pause it with "
            f"`headrace postprocessing alter {job} --no-scheduled`"
        )
    raise _unknown(where, job)


def listing(conn: Connection, where: Scope, job: int | None = None, *, gone: bool = False) -> list[dict[str, Any]]:
    """Jobs with schedule and state, in the order of their numbers."""
    return catalog.list_jobs(conn, hdbpp=where.facts.has_hdbpp, job=job, gone=gone)


def problems(conn: Connection, where: Scope) -> list[str]:
    """Why jobs would fail or never run, a line each: routine, rights, schedule. `conn` is in autocommit mode."""
    found = []
    for row in listing(conn, where):
        job, name = row["job_id"], f"{where.name}: job {row['job_id']}"
        try:
            schema, routine_name = catalog.parts_of(conn, row["procedure"])
            routine = catalog.resolve(conn, schema, routine_name, job_id=job)
            found += [f"{name}: {why}" for why in _rights(conn, routine.oid, str(routine), row["run_as"])]
        except catalog.NotRunnable as reason:
            found.append(f"{name}: {reason}")
        for item in store.listed(conn, [job], daily=where.daily):
            try:
                _check_schedule(item.job)
            except ScheduleError as problem:
                found.append(f"{name}: {problem}")
    return found


def _rights(conn: Connection, oid: int, routine: str, role: str | None) -> list[str]:
    if role is not None and not SQL["role_exists"].value(conn, {"role": role}):
        return [f"the role {role} of run_as does not exist; create it, or change run_as"]
    may_execute, may_become = SQL["may_execute"].rows(conn, {"role": role, "oid": oid})[0]
    found = []
    if not may_become:
        found.append(f"this login may not become {role}; GRANT {role} TO this login")
    if not may_execute:
        found.append(f"{role or 'this login'} may not execute {routine}; GRANT EXECUTE on it")
    return found


def _check_schedule(job: Job) -> None:
    if job.schedule is not None:
        schedule.check(job.schedule)
    if job.run_window is not None:
        windows.parse(job.run_window)


def next_runs(conn: Connection, where: Scope, job: int, *, count: int, start: datetime | None) -> list[datetime]:
    """When a job starts next, in UTC, if nothing is changed and everything ends well; nothing is written.

    Raises PermanentFailure if there is no such job, ScheduleError if its schedule means nothing.
    """
    found = SQL["job_exists"].value(conn, {"job": job})
    rows = store.listed(conn, [job], daily=where.daily) if found else []
    conn.rollback()
    if not rows:
        raise _unknown(where, job)
    item = rows[0]
    if item.job.schedule is None or not item.job.scheduled:
        return []
    now = start or store.now(conn)
    first = item.state.next_start if start is None else None
    return list(_slots(item.job, item.state, now, first, count))


def slots_in(conn: Connection, where: Scope, job: int, start: datetime, end: datetime) -> list[datetime]:
    """The slots of a job's schedule in (start, end], oldest first. Raises PermanentFailure for no such job."""
    rows = store.listed(conn, [job], daily=where.daily)
    if not rows:
        raise _unknown(where, job)
    plan = rows[0].job.schedule
    if plan is None:
        raise PermanentFailure(f"{where.name}: job {job} has no schedule, so no slots")
    return schedule.slots_between(plan, start, end, _FAR)


def preview(plan: Schedule, *, start: datetime, count: int) -> list[datetime]:
    """The next slots of a schedule that no job has, in UTC. Raises ScheduleError."""
    schedule.check(plan)
    return list(_slots(Job(0, "headrace", None, True, plan), State(planned_at=start), start, None, count))


def _slots(job: Job, state: State, now: datetime, first: datetime | None, count: int) -> list[datetime]:
    assert job.schedule is not None
    if job.schedule.at is not None:
        return [job.schedule.at] if job.schedule.at > now and state.last_slot is None else []
    found = [] if first is None else [first]
    moment = state.slot or first or now if first is not None else now
    while len(found) < min(count, _FAR):
        slot = schedule.next_slot(job.schedule, moment, last_finish=moment)
        if slot is None:
            break
        found.append(decisions.opening(job, slot))
        moment = slot
    return found[:count]


def _check(conn: Connection, where: Scope, job: int) -> None:
    """Refuse, inside the transaction, a schedule or window that means nothing."""
    item = store.listed(conn, [job], daily=where.daily)[0]
    try:
        _check_schedule(item.job)
    except ScheduleError as problem:
        raise PermanentFailure(f"{where.name}: {problem}") from problem
    if item.job.after_job is not None and not SQL["job_exists"].value(conn, {"job": item.job.after_job}):
        raise PermanentFailure(f"{where.name}: there is no job {item.job.after_job} to follow")
    if SQL["follows_itself"].value(conn, {"job": job}):
        raise PermanentFailure(f"{where.name}: job {job} would follow itself; break the ring of after_job")


def _unknown(where: Scope, job: int) -> PermanentFailure:
    return PermanentFailure(f"{where.name} has no job {job}; `headrace postprocessing list` shows them")


class _all_or_nothing:  # noqa: N801
    """A transaction on a connection that is otherwise in autocommit mode."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def __enter__(self) -> None:
        self._conn.autocommit = False

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        if not self._conn.closed:
            if kind is None:
                self._conn.commit()
            else:
                self._conn.rollback()
            self._conn.autocommit = True
