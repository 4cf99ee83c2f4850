"""The commands of `headrace repack` that change tables: run, prepare, replay, swap, abort, pause, resume."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import click

from producers.cli import repack_choice as choice
from producers.cli import repack_work as work
from producers.cli.context import DONE, SOME_FAILED, State, here_options, json_option, pass_state
from producers.cli.repack_options import (
    Scope,
    check_worker_knows,
    given,
    places_options,
    plan_option,
    rules_options,
    scope,
    tables_argument,
    tell_notes,
    who,
)
from producers.cli.repack_progress import ends_by_signals
from producers.cli.repack_work import Job, Report
from workers.repack import api


@click.command()
@tables_argument
@places_options
@plan_option
@rules_options
@here_options
@json_option
@pass_state
def run(state: State, tables: tuple[str, ...], here: bool, wait: bool, here_timeout: float) -> int:
    """Rewrite tables: those named, or those that a plan, or repcloud's file, lists; the most wasteful first.

    One that is half-way goes on where it was; one that is prepared is swapped.
    """
    return _rewrite(state, tables, "swap", here=here, wait=wait, timeout=here_timeout)


@click.command()
@tables_argument
@places_options
@plan_option
@rules_options
@click.option("--start-replay", is_flag=True, help="Keep the copies in step from then on, until they are swapped.")
@here_options
@json_option
@pass_state
def prepare(
    state: State, tables: tuple[str, ...], start_replay: bool, here: bool, wait: bool, here_timeout: float
) -> int:
    """Copy tables and keep the copies in step, so that `swap` takes a moment only.

    Workers do that by themselves; with --here `replay` does, or a process of its own with --start-replay.
    """
    code = _rewrite(state, tables, "ready", here=here, wait=wait, timeout=here_timeout)
    if start_replay and here:
        _start_replay(state, tables)
    return code


@click.command()
@tables_argument
@places_options
@plan_option
@here_options
@json_option
@pass_state
def swap(state: State, tables: tuple[str, ...], here: bool, wait: bool, here_timeout: float) -> int:
    """Let prepared copies take their tables' places: of those named, or of all that are ready."""
    found = scope(state, everywhere=True)
    state.prepare()
    report, jobs = Report(), []
    for name, one in choice.requests(state, found, tables, report):
        is_ready = api.standing(state.settings, name, one.id) == []
        if not tables and not (is_ready and one.goal == "ready"):
            continue
        if one.goal == "abort" or not api.change(state.settings, name, one, "swap", who()):
            report.problems.append(f"{one.name}: repack {one.id} is being given up")
            continue
        jobs.append(Job(name, one.schema, one.table, repack=one.id))
    if here:
        return work.here(state, jobs, report, timeout=here_timeout)
    check_worker_knows(state, found)
    return work.enqueue(state, [jobs], report, wait=wait)


@click.command()
@tables_argument
@places_options
@plan_option
@click.option("--follow", "-f", is_flag=True, help="Go on until they are swapped or given up.")
@here_options
@json_option
@pass_state
def replay(state: State, tables: tuple[str, ...], follow: bool, here: bool, wait: bool, here_timeout: float) -> int:
    """Bring prepared copies up to date: of the tables named, or of all that are ready.

    --follow does so in this process until none is left.
    """
    found = scope(state, everywhere=True)
    conf = state.prepare()
    if follow:
        return _keep_in_step(state, found, tables, timeout=here_timeout)
    report, jobs = Report(), []
    for name, one in choice.requests(state, found, tables, report):
        if _is_prepared(one):
            api.go_on(conf, name, one.id)
            jobs.append(Job(name, one.schema, one.table, repack=one.id))
        elif tables:
            report.problems.append(f"{one.name}: repack {one.id} is at {one.step}: there is no copy to replay into")
    if here:
        return work.here(state, jobs, report, timeout=here_timeout, alone=False)
    check_worker_knows(state, found)
    return work.enqueue(state, [jobs], report, wait=wait)


def _is_prepared(one: api.Request) -> bool:
    return one.step == "replay" and one.goal == "ready" and not one.is_paused


def _keep_in_step(state: State, found: Scope, tables: Sequence[str], *, timeout: float) -> int:
    """Replay in this process until no copy is left that waits for its swap; a server that is away is waited for."""
    conf = state.settings
    problems: list[str] = []
    named = {(name, one.id) for name, one in choice.requests(state, found, tables, Report())} if tables else None
    away_since: float | None = None
    with ends_by_signals(conf) as ending:
        while True:
            report = Report()
            prepared = [
                (name, one)
                for name, one in choice.requests(state, found, (), report)
                if _is_prepared(one) and (named is None or (name, one.id) in named)
            ]
            if not prepared and not report.unreachable:
                break
            for name, one in prepared:
                ending.current = (name, one.id)
                api.go_on(conf, name, one.id)
                message = api.message(name, one.id, one.schema, one.table)
                problems += api.finish(conf, [message], timeout=timedelta(seconds=timeout))
            ending.current = None
            away_since = (away_since or time.monotonic()) if report.unreachable else None
            if away_since is not None and time.monotonic() - away_since > timeout:
                problems += report.problems
                break
            if problems:
                break
            time.sleep(conf.repack.replay_seconds)
    return work.finished(state, Report(problems=problems))


@click.command()
@tables_argument
@places_options
@plan_option
@click.option("--all", "every", is_flag=True, help="All that are half-way in these databases.")
@here_options
@json_option
@pass_state
def abort(state: State, tables: tuple[str, ...], every: bool, here: bool, wait: bool, here_timeout: float) -> int:
    """Give rewrites up and take away what they made; the tables stay as they are."""
    found = scope(state, everywhere=True)
    if not tables and not every and not found.plans:
        raise click.UsageError("name tables, a plan, repcloud's file, or --all")
    state.prepare()
    report, jobs = Report(), []
    for name, one in choice.requests(state, found, tables, report, all_plans=every, missing_is_well=True):
        if api.change(state.settings, name, one, "abort", who()):
            jobs.append(Job(name, one.schema, one.table, repack=one.id))
    if here:
        return work.here(state, jobs, report, timeout=here_timeout, alone=False)
    check_worker_knows(state, found)
    return work.enqueue(state, [jobs], report, wait=wait)


@click.command()
@tables_argument
@places_options
@plan_option
@json_option
@pass_state
def pause(state: State, tables: tuple[str, ...]) -> int:
    """Stop rewrites between two chunks until `resume`: of the tables named, or all. Changes go on being logged."""
    return _say(state, tables, "pause", "paused", "was paused already")


@click.command()
@tables_argument
@places_options
@plan_option
@json_option
@pass_state
def resume(state: State, tables: tuple[str, ...]) -> int:
    """Let paused rewrites go on: of the tables named, or all; beat sends them, or `run --here` goes on with them."""
    return _say(state, tables, "resume", "goes on", "is over")


def _say(state: State, tables: Sequence[str], verb: str, done: str, otherwise: str) -> int:
    found = scope(state, everywhere=True)
    conf = state.settings
    report, said = Report(), []
    for name, one in choice.requests(state, found, tables, report):
        changed = api.change(conf, name, one, verb, who())
        said.append({"database": name, "schema": one.schema, "table": one.table, "repack": one.id, verb: changed})
        if not state.json:
            state.out(f"{one.name}: repack {one.id} {done if changed else otherwise}")
    for problem in report.problems:
        state.say(problem)
    if state.json:
        state.emit({"tables": said, "problems": report.problems})
    elif not said and not report.problems:
        state.out("nothing is being rewritten")
    return SOME_FAILED if report.problems else DONE


def _rewrite(state: State, tables: Sequence[str], goal: choice.Goal, *, here: bool, wait: bool, timeout: float) -> int:
    found = scope(state)
    conf = state.prepare()
    tell_notes(state, found)
    if not here:
        check_worker_knows(state, found)
    report = Report()
    jobs = choice.gather(state, found, tables, goal, report)
    if here:
        return work.here(state, jobs, report, timeout=timeout)
    batches = choice.in_turns(conf, jobs)
    if len(batches) > 1 and not wait:
        names = ", ".join(job.name for batch in batches[1:] for job in batch)
        state.say(f"wait for their turn (at_once): {names}; beat goes on with an enabled plan, or ask with --wait")
    return work.enqueue(state, batches, report, wait=wait)


def _start_replay(state: State, tables: Sequence[str]) -> None:
    words = [sys.executable, "-m", "producers.cli"]
    words += ["--config", str(state.config.absolute())] if state.config is not None else []
    words += ["repack", "replay", "--here", "--follow", *tables]
    for option, name in (("--database", "db"), ("--legacy-config", "legacy"), ("--plan", "plan")):
        words += [option, str(given(name))] if given(name) is not None else []
    for path in given("table_conf") or ():
        words += ["--table-conf", str(path)]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    state.say(f"process {process.pid} keeps the copies in step until they are swapped or given up")
