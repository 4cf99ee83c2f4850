"""The commands of `headrace postprocessing` that define jobs, list them, and take them from or to elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import yaml

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.postprocessing_options import Json, Moment, database_option, legacy_option, the_database
from workers.postprocessing import api

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS: tuple[tuple[tuple[str, ...], str, Any, str], ...] = (
    (("--every", "--schedule-interval"), "schedule_interval", str, "An interval such as '1 hour' or '1 month'."),
    (("--cron",), "cron", str, "A cron expression: 5 fields, 6 with seconds first, or @daily and the like."),
    (("--at",), "run_at", Moment(), "Once, at this time."),
    (("--after",), "after_job", int, "After each success of this job."),
    (("--timezone", "--tz"), "timezone", str, "The time zone of the schedule, such as Europe/Paris."),
    (("--initial-start",), "initial_start", Moment(), "Origin of an interval's grid; no run before it."),
    (("--window",), "run_window", str, "Start only then: 'Mon-Fri 22:00-06:00'."),
    (("--after-failure",), "after_failure", click.Choice(["stop", "run"]), "With --after: run after failures, too?"),
    (("--max-runtime",), "max_runtime", str, "Cancel after this long; 0: no limit."),
    (("--max-retries",), "max_retries", int, "Failures in a row before the job is disabled; -1: never."),
    (("--retry-period",), "retry_period", str, "Wait this long, times the failures in a row."),
    (("--on-lost",), "on_lost", click.Choice(["rerun", "skip"]), "What to do when an outcome is unknown."),
    (("--missed",), "missed", click.Choice(["once", "skip", "all"]), "What to do about slots that were missed."),
    (("--missed-cap",), "missed_cap", int, "With --missed all: at most so many."),
    (("--start-deadline",), "start_deadline", str, "Skip a slot that could not start for so long."),
    (("--overlap",), "overlap", click.Choice(["skip", "queue"]), "Slots that pass while the job runs."),
    (("--lock-group",), "lock_group", str, "Jobs of one group run one at a time."),
    (("--priority",), "priority", int, "Higher ones start first."),
    (("--alert-after",), "alert_after", str, "Alert when the last success is older than this."),
    (("--run-as",), "run_as", str, "The role that it runs as."),
    (("--config",), "config", Json(), "The JSON that the procedure gets."),
    (("--name",), "name", str, "What people call it."),
)
_SWITCHES = (
    ("--scheduled/--no-scheduled", "scheduled", "Whether it runs by itself."),
    ("--fixed/--drifting", "fixed_schedule", "On a grid, or counted from the end of the last run."),
    ("--atomic/--no-atomic", "atomic", "Call and mark in one transaction, for routines that do not commit."),
)


def _column_options(command: F) -> F:
    decorated: Any = command
    for switches, column, help_ in reversed(_SWITCHES):
        decorated = click.option(switches, column, default=None, help=help_)(decorated)
    for flags, column, kind, help_ in reversed(_COLUMNS):
        decorated = click.option(*flags, column, type=kind, help=help_)(decorated)
    result: F = decorated
    return result


@click.command()
@click.argument("procedure")
@database_option
@_column_options
@legacy_option
@json_option
@pass_state
def add(state: State, /, procedure: str, db: str | None, **columns: Any) -> int:
    """A new job that calls PROCEDURE (or a function) with its number and its config."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    given = {key: value for key, value in columns.items() if value is not None}
    job = api.add(conf, chosen, procedure, given)
    if state.json:
        state.emit({"database": chosen, "job_id": job})
    else:
        state.out(f"{chosen}: job {job}")
    return DONE


@click.command()
@click.argument("job", type=int)
@database_option
@_column_options
@click.option("--next-start", type=Moment(), help="Due then, whatever its schedule says.")
@legacy_option
@json_option
@pass_state
def alter(state: State, /, job: int, db: str | None, next_start: datetime | None, **columns: Any) -> int:
    """Change a job. What is not named stays; a new kind of schedule takes the old one's place."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    given = {key: value for key, value in columns.items() if value is not None}
    api.alter(conf, chosen, job, given, next_start)
    if state.json:
        state.emit({"database": chosen, "job_id": job})
    else:
        state.out(f"{chosen}: job {job} is changed")
    return DONE


@click.command()
@click.argument("job", type=int)
@database_option
@legacy_option
@json_option
@pass_state
def delete(state: State, job: int, db: str | None) -> int:
    """A job goes: what runs of it is cancelled, its history stays."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    api.delete(conf, chosen, job, by=follow.who())
    if state.json:
        state.emit({"database": chosen, "job_id": job})
    else:
        state.out(f"{chosen}: job {job} is deleted")
    return DONE


@click.command(name="list")
@database_option
@legacy_option
@json_option
@pass_state
def list_(state: State, db: str | None) -> int:
    """Jobs, when they are due, and how they went."""
    conf = state.prepare()
    names = [api.check_name(conf, db)] if db else [one for one in api.names(conf) if api.is_set_up(conf, one)]
    rows = [{"database": one, **row} for one in names for row in api.jobs(conf, one)]
    if state.json:
        state.emit({"jobs": rows})
        return DONE
    shown = [
        (
            row["database"],
            row["job_id"],
            row["procedure"],
            _schedule_of(row),
            _state_of(row),
            row["next_start"],
            row["last_run_started_at"],
            row["last_seconds"],
            f"{row['total_successes'] or 0}/{row['total_runs'] or 0}",
        )
        for row in rows
    ]
    columns = (
        "database",
        "job",
        "procedure",
        "schedule",
        "state",
        "next start [UTC]",
        "last start [UTC]",
        "took [s]",
        "ok",
    )
    state.table("Jobs", columns, shown)
    for one in names:
        for pause in api.status(conf, one).get("pauses", []):
            what = "everything" if pause["job_id"] is None else f"job {pause['job_id']}"
            until = f" until {pause['ends_at']:%Y-%m-%d %H:%M:%S} UTC" if pause["ends_at"] else ""
            state.out(f"paused in {one}: {what}{until}, by {pause['made_by']}: {pause['reason'] or 'no reason given'}")
    return DONE


@click.command(name="import")
@click.argument("source", metavar="hdbpp|timescaledb|pg_cron|FILE")
@click.option("--apply", is_flag=True, help="Take them over; without it they are only listed.")
@click.option("--keep-source", is_flag=True, help="Do not switch them off where they come from.")
@click.option("--only", type=int, multiple=True, metavar="NUMBER", help="Only this one; may be repeated.")
@database_option
@json_option
@pass_state
def import_(state: State, source: str, apply: bool, keep_source: bool, only: tuple[int, ...], db: str | None) -> int:
    """Jobs of hdbpp, TimescaleDB or pg_cron in a database become jobs of ours; a FILE is printed as our settings.

    FILE is hdbpp-postprocessing's YAML. What is taken over is switched off where it came from, in one transaction.
    """
    if source not in api.SOURCES:
        document = api.settings_from_hdbpp(Path(source))
        if state.json:
            state.emit(document)
        else:
            state.out(yaml.safe_dump(document, sort_keys=False).rstrip())
        return DONE
    conf = state.prepare()
    chosen = the_database(conf, db)
    found = api.import_jobs(conf, chosen, source, only=only, apply=apply, switch_off=not keep_source)
    if state.json:
        state.emit({"database": chosen, "jobs": found})
    for job in () if state.json else found:
        done = f": is job {job['job_id']} now" if job["job_id"] is not None else ""
        state.out(f"{job['what']}{done}")
        for line in [*(f"cannot be taken over: {problem}" for problem in job["problems"]), *job["notes"]]:
            state.out(f"    {line}")
        if job["job_id"] is not None and job["switch_off"]:
            state.out(f"    switch it off: {job['switch_off']}")
    if not apply and found:
        state.say("nothing was changed; --apply takes them over")
    return SOME_FAILED if any(job["problems"] for job in found) else DONE


@click.command()
@click.argument("job", type=int, required=False)
@click.option("--dialect", type=click.Choice(["headrace", "timescaledb"]), default="headrace", show_default=True)
@database_option
@legacy_option
@json_option
@pass_state
def export(state: State, job: int | None, dialect: Literal["headrace", "timescaledb"], db: str | None) -> int:
    """Print jobs as add_job(...) statements, for another database or for TimescaleDB."""
    conf = state.prepare()
    chosen = the_database(conf, db)
    statements = api.export_jobs(conf, chosen, job=job, dialect=dialect)
    if state.json:
        state.emit({"database": chosen, "statements": statements})
    else:
        for statement in statements:
            state.out(statement)
    return DONE


def _schedule_of(row: dict[str, Any]) -> str:
    zone = f" {row['timezone']}" if row["timezone"] else ""
    if row["cron"]:
        return f"{row['cron']}{zone}"
    if row["schedule_interval"]:
        return f"every {row['schedule_interval']}{'' if row['fixed_schedule'] else ' after the last'}{zone}"
    if row["run_at"]:
        return f"once at {row['run_at']:%Y-%m-%d %H:%M}"
    if row["after_job"]:
        return f"after job {row['after_job']}"
    return "daily" if row["origin"] == "hdbpp" else "on request"


def _state_of(row: dict[str, Any]) -> str:
    if row["running"]:
        return f"running (run {row['running']})"
    if row["problem"]:
        return f"misconfigured: {row['problem']}"
    if not row["scheduled"]:
        return "paused"
    failing = f"failing ({row['consecutive_failures']})" if row["consecutive_failures"] else "ok"
    return f"{failing}, waits for {row['waits_for']}" if row["waits_for"] else failing
