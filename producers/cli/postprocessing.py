"""`headrace postprocessing`: scheduled procedures of databases: running them, and how they went."""

from __future__ import annotations

import logging.handlers
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, json_option, pass_state
from producers.cli.postprocessing_jobs import add, alter, delete, export, import_, list_
from producers.cli.postprocessing_options import database_option, legacy_option, the_database
from producers.cli.postprocessing_runs import back_fill, history, next_runs, pause, resume
from producers.cli.postprocessing_status import status
from workers import database, execution, logs, runs
from workers.errors import HeadraceError, PermanentFailure, ServerUnavailable
from workers.messages import Message, RunJob
from workers.postprocessing import api
from workers.settings import Settings
from workers.targets import redacted


@click.group()
def postprocessing() -> None:
    """Scheduled procedures of databases: who runs when, what came of it."""


for _command in (list_, add, alter, back_fill, delete, history, next_runs, pause, resume, import_, export, status):
    postprocessing.add_command(_command)


@postprocessing.command()
@database_option
@legacy_option
@click.option("--print", "dry_run", is_flag=True, help="Print the statements and run nothing.")
@click.option("--no-facade", is_flag=True, help="Without add_job, alter_job and the other SQL functions and views.")
@click.option("--no-hdbpp", is_flag=True, help="Without hdbpp's two tables.")
@click.option("--with", "procedures", multiple=True, type=click.Choice(api.PROCEDURES), help="A ready-made procedure.")
@click.option("--grant", metavar="ROLE", help="Let this role manage jobs of its own through the SQL functions.")
@json_option
@pass_state
def setup(
    state: State,
    db: str | None,
    dry_run: bool,
    no_facade: bool,
    no_hdbpp: bool,
    procedures: tuple[str, ...],
    grant: str | None,
) -> int:
    """Make what is missing: tables, SQL functions and views, hdbpp's tables. Twice is harmless.

    Without --database, in every database with jobs. The login needs CREATE on the database, no superuser.
    """
    conf = state.settings if dry_run else state.prepare()
    failed = 0
    done: list[dict[str, Any]] = []
    for chosen in [db] if db else api.names(conf):
        try:
            steps = api.set_up(
                conf, api.check_name(conf, chosen), facade=not no_facade, hdbpp=not no_hdbpp, procedures=procedures,
                grant=grant, dry_run=dry_run,
            )  # fmt: skip
        except HeadraceError as error:
            failed += 1
            state.say(f"headrace: {error}")
            continue
        done.append({"database": chosen, "steps": [step.what for step in steps], "ran": not dry_run})
        if state.json:
            continue
        if dry_run:
            for step in steps:
                state.out(f"-- {chosen}: {step.what}\n{step.statement.strip().rstrip(';')};\n")
        else:
            made = dict.fromkeys(step.what for step in steps)
            state.out(f"{chosen}: {', '.join(made) or 'all there'}")
    if state.json:
        state.emit({"databases": done})
    return (UNREACHABLE if not done else SOME_FAILED) if failed else DONE


@postprocessing.command()
@click.argument("jobs", nargs=-1, type=int)
@database_option
@legacy_option
@click.option("--here", is_flag=True, help="Run them in this process: no Redis, no worker.")
@click.option("--wait", is_flag=True, help="Follow the runs until they are done.")
@click.option("--all", "all_", is_flag=True, help="Every job once, whatever its schedule says.")
@click.option("--here-timeout", type=float, default=600.0, show_default=True, help="Seconds to wait for locks.")
@click.option("--validate", "validate_only", is_flag=True, help="Check --legacy-config and run nothing.")
@click.option("--syslog", is_flag=True, help="Send the log to the system's log, too.")
@click.option("--debug", "-d", is_flag=True, help="Log everything.")
@json_option
@pass_state
def run(
    state: State,
    jobs: tuple[int, ...],
    db: str | None,
    here: bool,
    wait: bool,
    all_: bool,
    here_timeout: float,
    validate_only: bool,
    syslog: bool,
    debug: bool,
) -> int:
    """Run jobs now: those named, or with --here everything that is due.

    With --legacy-config every job of that file's databases runs once, in the order of their numbers, as
    hdbpp-postprocessing did, whatever their schedules say; databases are done at the same time.
    """
    legacy = state.legacy
    conf = state.settings
    if validate_only:
        state.out(f"{legacy or 'the settings'}: valid; databases: {', '.join(api.names(conf))}")
        return DONE
    state.verbose = debug
    _log_as_asked(conf, syslog=syslog, debug=debug)
    conf = state.prepare()
    if jobs:
        chosen = the_database(conf, db)
        requested = [api.request(conf, chosen, job, by=follow.who()) for job in jobs]
        if here:
            code = follow.here(state, requested, timeout=timedelta(seconds=here_timeout))
            for message in requested:
                api.give_up(conf, message)
            return code
        return follow.enqueue(state, requested, wait=wait)
    if not here:
        raise click.UsageError("name the jobs to run, or use --here to run everything that is due in this process")
    every = [api.check_name(conf, db)] if db else api.names(conf)
    if legacy is not None or all_:
        return _everywhere(
            state, conf, every, lambda one: _each_once(conf, one, here_timeout, hdbpp=legacy is not None)
        )
    return _everywhere(state, conf, every, lambda one: _what_is_due(conf, one, here_timeout))


@postprocessing.command()
@click.argument("run", type=int, required=False)
@click.option("--job", type=int, help="Every live run of this job.")
@database_option
@legacy_option
@json_option
@pass_state
def cancel(state: State, run: int | None, job: int | None, db: str | None) -> int:
    """End a run (the number is the one of `history`): a queued one at once, a running one within seconds."""
    if (run is None) == (job is None):
        raise click.UsageError("name a run, or a job with --job")
    conf = state.prepare()
    chosen = the_database(conf, db)
    ended = api.cancel(conf, chosen, run=run, job=job, by=follow.who())
    if not ended:
        what = f"run {run}" if run is not None else f"job {job}"
        raise PermanentFailure(f"{chosen}: nothing of {what} is queued or running; `headrace postprocessing history`")
    if state.json:
        state.emit({"database": chosen, "runs": ended})
    else:
        state.out(f"{chosen}: asked to end: run {', '.join(map(str, ended))}")
    return DONE


def _everywhere(state: State, conf: Settings, names: Sequence[str], work: Callable[[str], list[str]]) -> int:
    """Do the work in every database at the same time, one thread each; report all of it together."""
    logs.configure(conf.logs.model_copy(update={"level": conf.logs.level if state.verbose else "WARNING"}))
    seen: list[int] = []
    token = runs.recorded.set(seen)
    problems: dict[str, list[str]] = {name: [] for name in names}
    unreachable: set[str] = set()

    def one(name: str) -> None:
        try:
            problems[name] += work(name)
        except ServerUnavailable as error:
            unreachable.add(name)
            problems[name].append(str(error))
        except HeadraceError as error:
            problems[name].append(str(error))
        except Exception as bug:  # one database must not cost the others their jobs
            problems[name].append(redacted(f"{name}: {bug!r}; please report this"))
        finally:
            database.close_all()

    try:
        threads = [threading.Thread(target=copy_context().run, args=(one, name), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        runs.recorded.reset(token)
    code = follow.report(state, sorted(set(seen)), [problem for name in names for problem in problems[name]])
    return UNREACHABLE if names and unreachable == set(names) else code


def _each_once(conf: Settings, name: str, timeout: float, *, hdbpp: bool) -> list[str]:
    """Run every job of a database once, one after the other."""
    problems = []
    for job in api.drop_in_jobs(conf, name) if hdbpp else [row["job_id"] for row in api.jobs(conf, name)]:
        # Written down one at a time: what a killed drop-in has not begun is not left waiting for a worker.
        message = api.request(conf, name, job, by=follow.who(), reason="drop-in" if hdbpp else "request")
        problems += _run_here(conf, [message], timeout)
        api.give_up(conf, message)
    return problems


def _what_is_due(conf: Settings, name: str, timeout: float) -> list[str]:
    """Run what is due in a database, until nothing is."""
    problems: list[str] = []
    done: set[int] = set()
    while messages := [m for m in api.look(conf, name) if isinstance(m, RunJob) and m.job_run not in done]:
        done |= {message.job_run for message in messages}
        problems += _run_here(conf, messages, timeout)
    return problems


def _run_here(conf: Settings, messages: Sequence[Message], timeout: float) -> list[str]:
    return execution.run_here(follow.written_down(conf, messages), conf, timeout=timedelta(seconds=timeout))


def _log_as_asked(conf: Settings, *, syslog: bool, debug: bool) -> None:
    if debug:
        logs.configure(conf.logs.model_copy(update={"level": "DEBUG"}))
    if syslog:
        if not Path("/dev/log").exists():
            raise PermanentFailure("--syslog: this machine has no /dev/log; leave the option away")
        logging.getLogger().addHandler(logging.handlers.SysLogHandler("/dev/log"))
