"""Questions about the postprocessing room that others may ask, and requests that they may make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from workers import alerts, database
from workers.database import Connection
from workers.errors import PermanentFailure, RetryLater
from workers.hdbpp_file import databases_of
from workers.messages import RunJob
from workers.postprocessing import definitions, endings, export, interchange, scope, setup, store
from workers.postprocessing.definitions import preview
from workers.postprocessing.look import look
from workers.postprocessing.schedule import Schedule, ScheduleError
from workers.postprocessing.scope import Scope
from workers.postprocessing.settling import settle_silent_runs
from workers.postprocessing.setup import PROCEDURES, Step
from workers.settings import Settings
from workers.sql_files import queries

__all__ = ["PROCEDURES", "Schedule", "ScheduleError", "Step", "look", "preview"]

SQL = queries("postprocessing")
MANAGE = queries("postprocessing_manage")

SOURCES = interchange.SOURCES
names = scope.names
set_up = setup.run


def settings_from_hdbpp(file: Path) -> dict[str, Any]:
    """hdbpp-postprocessing's file as a settings document: its databases, and no others, have jobs.

    Raises SettingsError with every problem of the file at once.
    """
    databases = databases_of(file)
    return {"databases": databases, "postprocessing": {"databases": list(databases)}}


def is_set_up(settings: Settings, name: str) -> bool:
    """Whether a database has our tables, or hdbpp's."""
    facts = scope.read(settings, name)
    return facts.is_set_up or facts.has_hdbpp


def migrations_of(settings: Settings, name: str) -> tuple[str, ...]:
    """The sets of migrations that a database has, so that a new version can bring them up to date."""
    facts = scope.read(settings, name)
    if not facts.is_set_up or facts.is_read_only:
        return ()
    return (*scope.ROOMS, setup.FACADE) if facts.has_facade else scope.ROOMS


def check_name(settings: Settings, name: str) -> str:
    """The name, if it is one of a database with jobs. Raises PermanentFailure otherwise."""
    known = scope.names(settings)
    if name not in known:
        raise PermanentFailure(f"no database named {name!r} has jobs; there are {', '.join(known)}")
    return name


@contextmanager
def _opened(settings: Settings, name: str, *, autocommit: bool = True) -> Iterator[tuple[Connection, Scope]]:
    where = scope.of(settings, check_name(settings, name))
    with database.connection(where.target, purpose="postprocessing", autocommit=autocommit) as conn:
        yield conn, where


def drop_in_jobs(settings: Settings, name: str) -> list[int]:
    """The jobs that hdbpp-postprocessing would run now, in the order of their numbers.

    Raises PermanentFailure when the database has no such table or cannot be written.
    """
    where = scope.of(settings, name, fresh=True)
    if where.facts.is_read_only:
        raise RetryLater(f"{name} is read-only (a standby?); its jobs were not run", after=timedelta(hours=1))
    if not where.facts.has_hdbpp:
        raise PermanentFailure(f"{name} has no table postprocessing_jobs; `headrace postprocessing setup` makes it")
    with database.connection(where.target, purpose="postprocessing") as conn:
        SQL["wait_little"].run(conn, {"milliseconds": "5000"})
        store.mirror(conn)
        settle_silent_runs(conn, where)  # of a drop-in that was killed: no scheduler may be here to do it
        conn.commit()
        return [row[0] for row in MANAGE["hdbpp_jobs"].rows(conn)]


def jobs(settings: Settings, name: str, job: int | None = None) -> list[dict[str, Any]]:
    """Jobs of a database with schedule and state."""
    with _opened(settings, name, autocommit=False) as (conn, where):
        if where.facts.has_hdbpp and not where.facts.is_read_only:
            store.mirror(conn)
            conn.commit()
        return definitions.listing(conn, where, job)


def request(settings: Settings, name: str, job: int, *, by: str, reason: str = "request") -> RunJob:
    """Write down that somebody wants this job run now; the message to send. Raises PermanentFailure for no such job."""
    with _opened(settings, name, autocommit=False) as (conn, where):
        if where.facts.has_hdbpp:
            store.mirror(conn)
        run = SQL["request_run"].value(conn, {"job": job, "reason": reason, "by": by})
        if run is None:
            raise PermanentFailure(f"{name} has no job {job}; `headrace postprocessing list` shows them")
        conn.commit()
    return RunJob(database=name, job=job, job_run=run)


def give_up(settings: Settings, message: RunJob) -> None:
    """End a run that was asked for here and did not begin here: no worker is to start it behind the person's back."""
    with _opened(settings, message.database, autocommit=False) as (conn, where):
        outcome = endings.Outcome("cancelled", "the command that asked for it gave up before it began")
        endings.finish(conn, where, message.job_run, outcome, job=message.job, pid=None)
        conn.commit()


def back_fill(settings: Settings, name: str, job: int, *, start: datetime, end: datetime, by: str) -> list[datetime]:
    """Queue the slots of a job's schedule in (start, end] that never had a run; those slots."""
    with _opened(settings, name, autocommit=False) as (conn, where):
        slots = definitions.slots_in(conn, where, job, start, end)
        queued = [s for s in slots if SQL["request_slot"].value(conn, {"job": job, "slot": s, "by": by}) is not None]
        conn.commit()
    return queued


def outcomes(settings: Settings, name: str, runs: Sequence[int]) -> dict[int, tuple[str, str | None]]:
    """Run -> (state, message)."""
    with _opened(settings, name) as (conn, _where):
        return {row[0]: (row[1], row[2]) for row in MANAGE["run_outcomes"].rows(conn, {"ids": list(runs)})}


def history(
    settings: Settings, name: str, *, job: int | None, run: int | None, failed: bool, limit: int
) -> list[dict[str, Any]]:
    """Runs of a database, newest first."""
    with _opened(settings, name) as (conn, _where):
        return MANAGE["history"].records(conn, {"job": job, "run": run, "failed": failed, "limit": limit})


def next_runs(settings: Settings, name: str, job: int, *, count: int, start: datetime | None) -> list[datetime]:
    """When a job starts next, in UTC; nothing is written."""
    with _opened(settings, name, autocommit=False) as (conn, where):
        if where.facts.has_hdbpp and not where.facts.is_read_only:
            store.mirror(conn)
        try:
            return definitions.next_runs(conn, where, job, count=count, start=start)
        finally:
            conn.rollback()


def add(settings: Settings, name: str, procedure: str, columns: Mapping[str, Any]) -> int:
    """A new job; its number."""
    with _opened(settings, name) as (conn, where):
        return definitions.add(conn, where, procedure, columns)


def alter(settings: Settings, name: str, job: int, columns: Mapping[str, Any], next_start: datetime | None) -> None:
    """Change a job; `next_start` makes it due then."""
    with _opened(settings, name) as (conn, where):
        if columns or next_start is None:
            definitions.alter(conn, where, job, columns)
        if next_start is not None and not MANAGE["start_at"].run(conn, {"job": job, "at": next_start}):
            raise PermanentFailure(
                f"{name}: job {job} is not there, paused, or running now; `headrace postprocessing list` shows which"
            )


def delete(settings: Settings, name: str, job: int, *, by: str) -> None:
    """A job goes; what runs of it is cancelled, its history stays."""
    with _opened(settings, name) as (conn, where):
        definitions.delete(conn, where, job)
    cancel(settings, name, job=job, by=by)


def cancel(settings: Settings, name: str, *, run: int | None = None, job: int | None = None, by: str) -> list[int]:
    """Have a run, or all live runs of a job, end; the runs that this concerns."""
    ended = []
    with _opened(settings, name, autocommit=False) as (conn, where):
        for row in MANAGE["cancel_runs"].rows(conn, {"run": run, "job": job, "by": by}):
            ended.append(row[0])
            if row[2] == "queued":
                outcome = endings.Outcome("cancelled", f"cancelled by {by} before it started", cancelled_by=by)
                endings.finish(conn, where, row[0], outcome, job=row[1], pid=None)
            else:
                SQL["cancel_backend"].run(conn, {"pid": row[3], "start": row[4]})
        conn.commit()
    return ended


def pause(
    settings: Settings,
    name: str,
    *,
    job: int | None,
    span: tuple[datetime | None, datetime | None],
    by: str,
    reason: str | None,
) -> None:
    """Nothing of a database, or of one of its jobs, starts in that span; None stands for now and for no end."""
    facts = {"job": job, "starts": span[0], "ends": span[1], "by": by, "reason": reason}
    with _opened(settings, name) as (conn, _where):
        MANAGE["pause"].run(conn, facts)


def resume(settings: Settings, name: str, *, job: int | None) -> int:
    """Take pauses back; how many."""
    with _opened(settings, name) as (conn, _where):
        return MANAGE["resume"].run(conn, {"job": job})


def status(settings: Settings, name: str) -> dict[str, Any]:
    """What a database's jobs do, what holds them back, and which need somebody.

    Raises ServerUnavailable when it cannot be reached; changes nothing there.
    """
    facts = scope.read(settings, name)
    if not facts.is_set_up:
        return {"database": name, "set_up": False}
    with database.connection(settings.target(name), purpose="postprocessing", autocommit=True) as conn:
        document = MANAGE["summary"].records(conn)[0]
        document |= {
            "database": name,
            "set_up": True,
            "read_only": facts.is_read_only,
            "troubles": MANAGE["troubles"].records(conn, {"limit": 50}),
            "pauses": MANAGE["pauses"].records(conn),
        }
    return document


def forget_old_runs(settings: Settings, name: str) -> int:
    """Delete history beyond its retention; how many runs went."""
    facts = scope.read(settings, name)
    if not facts.is_set_up or facts.is_read_only:
        return 0
    room = settings.postprocessing
    older = {"older": timedelta(days=room.history_days), "most": room.history_runs}
    with database.connection(settings.target(name), purpose="postprocessing", autocommit=True) as conn:
        alerts.forget_old(conn, timedelta(days=room.history_days))
        return MANAGE["forget_runs"].run(conn, older)


def problems(settings: Settings, name: str) -> list[str]:
    """Why jobs of a database would fail or never run, a line each; nothing is changed."""
    facts = scope.read(settings, name)
    if not facts.is_set_up or facts.is_read_only:
        return []
    with _opened(settings, name) as (conn, where):
        return definitions.problems(conn, where)


def import_jobs(
    settings: Settings, name: str, source: str, *, only: Sequence[int], apply: bool, switch_off: bool
) -> list[dict[str, Any]]:
    """Jobs of hdbpp, TimescaleDB or pg_cron in a database, and with `apply` taken over, each in its own transaction.

    The job is switched off at its source in the same transaction, so that it never runs twice.
    """
    with _opened(settings, name, autocommit=False) as (conn, where):
        daily = (str(where.daily.cron), str(where.daily.zone))
        found = [job for job in interchange.read(conn, source, daily=daily) if not only or job.source_id in only]
        conn.rollback()
        return [_imported(conn, job, apply=apply, switch_off=switch_off) for job in found]


def _imported(conn: Connection, job: interchange.Found, *, apply: bool, switch_off: bool) -> dict[str, Any]:
    taken = None
    problems = list(job.problems)
    if apply and not problems:
        try:
            taken = interchange.take(conn, job)
            if switch_off:
                interchange.disable(conn, job)
            conn.commit()
        except PermanentFailure as reason:
            conn.rollback()
            problems.append(str(reason))
    return {
        "source_id": job.source_id,
        "what": str(job),
        "job_id": taken,
        "columns": job.columns,
        "problems": problems,
        "notes": job.notes,
        "switch_off": None if taken is not None and switch_off else interchange.disable_statement(job),
    }


def export_jobs(
    settings: Settings, name: str, *, job: int | None, dialect: Literal["headrace", "timescaledb"]
) -> list[str]:
    """Jobs as SQL statements."""
    with _opened(settings, name, autocommit=False) as (conn, where):
        daily = (str(where.daily.cron), str(where.daily.zone))
        return export.export_sql(export.exportable(conn, job=job, daily=daily), dialect=dialect)


def overview(settings: Settings, name: str, *, shown: int, measured: int, failures: int) -> dict[str, Any]:
    """A database's status, its jobs for a page and a scraper (`lines`), and its newest failed runs; changes nothing.

    `lines` has the `shown` most urgent jobs, and `measured` ones (`is_measured`) that change only with trouble.
    Raises ServerUnavailable when the database cannot be reached.
    """
    document = status(settings, name)
    if not document["set_up"]:
        return document
    facts = scope.read(settings, name)
    asked = {"read_only": facts.is_read_only, "shown": shown, "measured": measured}
    with database.connection(settings.target(name), purpose="postprocessing", autocommit=True) as conn:
        lines = MANAGE["job_lines"].records(conn, asked)
        theirs = [line["job_id"] for line in lines if line["origin"] == "hdbpp"]
        if theirs and facts.has_hdbpp:
            routines = dict(MANAGE["hdbpp_routines"].rows(conn, {"ids": theirs}))
            for line in lines:
                line["procedure"] = routines.get(line["job_id"], line["procedure"])
        document |= {
            "lines": lines,
            "counts": MANAGE["count_troubles"].records(conn)[0],
            "failures": MANAGE["newest_failures"].records(conn, {"limit": failures}),
        }
    return document
