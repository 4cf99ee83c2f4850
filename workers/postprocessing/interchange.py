"""Jobs from elsewhere: those of hdbpp, TimescaleDB and pg_cron are read, become ours, and are switched off there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.postprocessing import catalog, cron_commands, schedule, store
from workers.postprocessing.export import DEFAULT_DAILY, ROUTINE, literal, quoted
from workers.postprocessing.schedule import Schedule, ScheduleError
from workers.sql_files import queries

SQL = queries("postprocessing_interchange")
MANAGE = queries("postprocessing_manage")
ROOM = queries("postprocessing")

SOURCES = ("hdbpp", "timescaledb", "pg_cron")
MOVED = "HDB++ postprocessing (moved to headrace.job)"  # no longer what hdbpp-postprocessing and our mirror select

_IMPORT_KEY = store.LOOK_KEY - 1
_SECONDS = re.compile(r"\s*(\d+)\s+seconds?\s*", re.IGNORECASE)
_LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")
# What a row of headrace.job says about a job besides what it runs.
_SETTINGS = (
    "run_as", "scheduled", "schedule_interval", "cron", "run_at", "after_job", "fixed_schedule", "timezone",
    "initial_start", "run_window", "after_failure", "max_runtime", "max_retries", "retry_period", "atomic", "on_lost",
    "missed", "missed_cap", "start_deadline", "overlap", "lock_group", "priority", "alert_after",
)  # fmt: skip
# pg_cron neither retries nor catches up, and a slot that comes while the job runs waits for its end. A retry period
# beyond any next slot means just that: the next slot.
_AS_PG_CRON = {"retry_period": "1 year", "missed": "skip", "overlap": "queue"}


@dataclass(frozen=True, slots=True)
class Found:
    """A job somewhere else. `columns` are those of headrace.job; with `problems` it cannot be taken over as it is."""

    source: str
    source_id: int
    columns: dict[str, Any]
    next_start: datetime | None
    switch_off: str
    wrapper: str | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.source} job {self.source_id} ({self.columns.get('name')})"


def read(conn: Connection, source: str, *, daily: tuple[str, str] = DEFAULT_DAILY) -> list[Found]:
    """The jobs of a source in this database, in the order of their numbers; nothing is changed.

    `daily` is the cron expression and the time zone of hdbpp's jobs that have no schedule of their own.
    Raises PermanentFailure when the source is not in this database, or the login may not read it.
    """
    if source not in SOURCES:
        raise PermanentFailure(f"jobs cannot be imported from {source!r}; from {', '.join(SOURCES)} they can")
    try:
        if source == "timescaledb":
            found = _timescaledb(conn)
        elif source == "pg_cron":
            found = _pg_cron(conn)
        else:
            found = _hdbpp(conn, daily)
    except database.DatabaseError as error:
        if database.sqlstate(error) != "42501":
            raise
        raise PermanentFailure(
            f"the jobs of {source} cannot be read: {database.first_line(error)}; grant USAGE on its schema and SELECT, "
            "or import as one who may"
        ) from error
    for job in found:
        job.problems.extend(_schedule_problems(job.columns))
        known = existing(conn, job)
        if known is not None:
            job.notes.append(f"is job {known} here already")
    return found


def existing(conn: Connection, found: Found) -> int | None:
    """The job of our own that it has become already, however that one has been edited since."""
    number: int | None = SQL["imported_job"].value(conn, {"mark": found.columns["imported_from"]})
    return number


def take(conn: Connection, found: Found) -> int:
    """Make it a job of our own, in the caller's transaction; its number. Twice is harmless: the first one's number.

    Raises PermanentFailure for one with problems, and when the login may not make it; TypeError without a transaction.
    """
    if conn.autocommit:
        raise TypeError("take() needs a transaction, for a refusal to leave nothing behind: autocommit is on")
    if found.problems:
        raise PermanentFailure(f"{found} cannot be taken over: {'; '.join(found.problems)}")
    SQL["wait_for_imports"].row(conn, {"key": _IMPORT_KEY})
    known = existing(conn, found)
    if known is not None:
        return known
    columns = {name: value for name, value in found.columns.items() if value is not None}
    if "schedule_interval" in columns and columns.get("fixed_schedule", True):
        columns.setdefault("initial_start", store.now(conn))
    if found.source == "hdbpp" and "after_job" in columns:
        columns["after_job"] = SQL["after_job_of"].value(conn, {"job": found.source_id})
    try:
        if found.wrapper is not None:
            _make_wrapper(conn, found)
        job = catalog.insert(conn, columns)
    except database.DatabaseError as error:
        code = database.sqlstate(error) or ""
        if not code.startswith(("22", "23", "42")):
            raise
        raise PermanentFailure(f"{found} cannot be taken over: {database.first_line(error)}") from error
    _check(conn, found, job)
    if found.source == "hdbpp":
        SQL["hand_over_followers"].run(conn, {"old": found.source_id, "new": job})
    if found.next_start is not None and columns.get("scheduled", True) and found.next_start > store.now(conn):
        MANAGE["start_at"].run(conn, {"job": job, "at": found.next_start})
    return job


def disable_statement(found: Found) -> str:
    """What to run at the source so that the job does not run twice."""
    return found.switch_off


def disable(conn: Connection, found: Found) -> None:
    """Have the source run it no more, in the caller's transaction: with `take` in the same one, exactly one has it."""
    _execute(conn, found.switch_off)
    if found.source == "hdbpp":
        store.mirror(conn)


# Reading


def _timescaledb(conn: Connection) -> list[Found]:
    jobs = _relation(conn, "timescaledb_information.jobs")
    tables = ("_timescaledb_catalog.bgw_job", "_timescaledb_config.bgw_job")
    return [
        _found_in_timescaledb(conn, row)
        for row in SQL["timescaledb_jobs"].with_slots(jobs=jobs, catalog=_relation(conn, *tables)).records(conn)
    ]


def _found_in_timescaledb(conn: Connection, row: dict[str, Any]) -> Found:
    columns = {name: value for name, value in row.items() if name not in ("source_id", "next_start")}
    runs = (row["proc_schema"], row["proc_name"], row["config"])
    columns["imported_from"] = _mark("timescaledb", row["source_id"], *runs)
    # Without its time zone alter_job() would take that away from the job.
    zone = f", timezone => {literal(row['timezone'])}" if row["timezone"] else ""
    found = Found(
        source="timescaledb",
        source_id=row["source_id"],
        columns=columns,
        next_start=row["next_start"],
        switch_off=f"SELECT public.alter_job({row['source_id']}, scheduled => false{zone})",
    )
    _set_role(conn, found)
    _find_routine(conn, found)
    return found


def _pg_cron(conn: Connection) -> list[Found]:
    jobs = _relation(conn, "cron.job")
    return [_found_in_pg_cron(conn, row) for row in SQL["pg_cron_jobs"].with_slots(jobs=jobs).records(conn)]


def _found_in_pg_cron(conn: Connection, row: dict[str, Any]) -> Found:
    number = row["source_id"]
    routine = f"pg_cron_{number}"
    columns = {
        "name": row["name"] or f"pg_cron job {number}",
        "imported_from": _mark("pg_cron", number, row["command"]),
        "owner": row["owner"],
        "proc_schema": "headrace",
        "proc_name": routine,
        "scheduled": row["scheduled"],
        **_AS_PG_CRON,
    }
    seconds = _SECONDS.fullmatch(row["schedule"])
    if seconds:
        columns["schedule_interval"] = f"{seconds[1]} seconds"
    else:
        columns |= {"cron": row["schedule"], "timezone": "UTC" if row["timezone"] == "GMT" else row["timezone"]}
    wrapper, problems, notes = cron_commands.wrapper(conn, routine, row["command"])
    if not row["is_here"]:
        problems.append(
            f"it runs in the database {row['database']}, not in {row['here']}: its cron.job has to be read from there"
        )
    local = row["nodename"] in _LOCAL_HOSTS or row["nodename"].startswith("/")
    if not (local and row["is_this_port"]):
        problems.append(f"it runs on {row['nodename']}:{row['nodeport']}, which does not look like this server")
    notes.append(
        "as in pg_cron a failed run waits for its next slot, one missed while nothing was up is skipped, and one that "
        "comes while the job runs is queued; alter retry_period, missed and overlap to change that"
    )
    off = (
        f"SELECT cron.alter_job({number}, active => false)" if row["may_alter"] else f"SELECT cron.unschedule({number})"
    )
    found = Found("pg_cron", number, columns, None, off, wrapper, problems, notes)
    _set_role(conn, found)
    return found


def _hdbpp(conn: Connection, daily: tuple[str, str]) -> list[Found]:
    _relation(conn, "public.postprocessing_jobs")
    return [_found_in_hdbpp(conn, row, daily) for row in SQL["hdbpp_jobs"].records(conn)]


def _found_in_hdbpp(conn: Connection, row: dict[str, Any], daily: tuple[str, str]) -> Found:
    number, written = row["source_id"], row["proc_name"]
    settings = row["settings"] or {}
    columns = {"name": f"{row['name']} [{number}]", "config": row["config"]}
    columns["imported_from"] = _mark("hdbpp", number, written, row["config"])
    columns |= {name: settings[name] for name in _SETTINGS if name in settings}
    if not any(columns.get(kind) for kind in ("schedule_interval", "cron", "run_at", "after_job")):
        columns |= {"cron": daily[0], "timezone": columns.get("timezone") or daily[1]}
    off = f"UPDATE public.postprocessing_jobs SET application_name = {literal(MOVED)} WHERE job_id = {number}"
    found = Found("hdbpp", number, columns, row["next_start"], off)
    found.notes.append("from then on postprocessing_jobs_stats counts its runs no more; headrace.job_stats does")
    if written is None or not ROUTINE.fullmatch(written):
        found.problems.append(f"proc_name {written!r} is not the name of a routine: correct it in postprocessing_jobs")
    else:
        columns["proc_schema"], columns["proc_name"] = catalog.parts_of(conn, written)
        _find_routine(conn, found)
    return found


def _mark(source: str, number: int, *runs: str | None) -> str:
    """`imported_from`: which job it is there, and what that runs.

    The number alone would not do: a source that was made anew begins them again, and its job would be switched off
    there for one that runs something else here.
    """
    return f"{source} {number} {hashlib.sha256(repr(runs).encode()).hexdigest()[:12]}"


def _relation(conn: Connection, *names: str) -> Any:
    """The first of these tables that there is."""
    for name in names:
        if SQL["has_relation"].value(conn, {"name": name}):
            return catalog.identifier(*name.split("."))
    raise PermanentFailure(
        f"there is no {names[0]} in {conn.info.dbname}; read the database in which the extension keeps its jobs"
    )


def _set_role(conn: Connection, found: Found) -> None:
    """`run_as`: nothing if its owner is the login; otherwise that one, if the login may become it."""
    role = found.columns["owner"]
    facts = SQL["role_facts"].records(conn, {"role": role})[0]
    if facts["is_login"]:
        return
    found.columns["run_as"] = role
    if not facts["is_there"]:
        found.problems.append(f"its owner {role} is no longer a role here")
    elif not facts["may_become"] and facts["is_superuser"]:
        found.problems.append(
            f"it runs as the superuser {role}, and {facts['login']} may not: give it to an ordinary role there"
        )
    elif not facts["may_become"]:
        found.problems.append(
            f"it runs as {role}, and {facts['login']} may not: GRANT {quoted(role)} TO {quoted(facts['login'])}"
        )
    elif facts["settings"]:
        settings = ", ".join(facts["settings"])
        found.notes.append(f"what ALTER ROLE {role} SET ({settings}) does not hold here: only a login brings it about")


def _find_routine(conn: Connection, found: Found) -> None:
    """The schema of its routine, or what is wrong with that one."""
    columns = found.columns
    try:
        routine = catalog.resolve(conn, columns["proc_schema"], columns["proc_name"], job_id=catalog.INT4_MAX)
    except catalog.NotRunnable as problem:
        found.problems.append(f"{problem}{f' ({problem.hint})' if problem.hint else ''}")
    else:
        columns["proc_schema"] = routine.schema


def _schedule_problems(columns: Mapping[str, Any]) -> list[str]:
    try:
        schedule.check(Schedule(cron=columns.get("cron"), zone=columns.get("timezone")))
    except ScheduleError as problem:
        return [str(problem)]
    return []


# Taking over


def _make_wrapper(conn: Connection, found: Found) -> None:
    columns = found.columns
    routine = {name: columns[name] for name in ("proc_schema", "proc_name")}
    user = SQL["users_of_routine"].value(conn, routine)
    if user is not None:
        raise PermanentFailure(
            f"{found} cannot be taken over: job {user} runs headrace.{columns['proc_name']} already, for another one; "
            "delete that job first"
        )
    assert found.wrapper is not None
    _execute(conn, found.wrapper)
    if columns.get("run_as"):
        role = catalog.identifier(columns["run_as"])
        wrapper = catalog.identifier("headrace", columns["proc_name"])
        ROOM["grant_schema"].with_slots(role=role).run(conn)
        SQL["grant_wrapper"].with_slots(wrapper=wrapper, role=role).run(conn)


def _check(conn: Connection, found: Found, job: int) -> None:
    """Refuse, inside the transaction, an interval that means nothing."""
    stored = store.listed(conn, [job], daily=Schedule())[0].job.schedule
    try:
        if stored is not None:
            schedule.check(stored)
    except ScheduleError as problem:
        raise PermanentFailure(f"{found} cannot be taken over: {problem}") from problem


def _execute(conn: Connection, statement: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)
