"""`headrace db` and `headrace validate`: schemas, and whether everything that the settings name is in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import click

from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, USAGE, State, json_option, pass_state
from workers import database, migrations
from workers.checks import check_broker, check_database
from workers.dispatch import api as dispatch
from workers.errors import HeadraceError, ServerUnavailable, SettingsError
from workers.postprocessing import api as jobs
from workers.products import api as products
from workers.repack import api as repack
from workers.settings import Settings
from workers.targets import CONTROL, Target


@click.group()
def db() -> None:
    """The schemas `headrace` of the databases in use."""


@db.command()
@json_option
@pass_state
def migrate(state: State) -> int:
    """Apply what is missing, in the control database and in those of the rooms."""
    done = []
    for target, room in _schemas(state.settings):
        with database.connection(target, purpose="migrate") as conn:
            done += [{"database": target.name, "migration": name} for name in migrations.migrate(conn, room)]
    if state.json:
        state.emit({"applied": done})
    else:
        for item in done:
            state.out(f"{item['database']}: {item['migration']}")
        if not done:
            state.out("all applied")
    return DONE


@db.command(name="status")
@json_option
@pass_state
def status(state: State) -> int:
    """What is applied and what is missing; exit 1 if anything is."""
    rows: list[tuple[str, str, str]] = []
    for target, room in _schemas(state.settings):
        with database.connection(target, purpose="migrate") as conn:
            applied, missing = migrations.status(conn, room)
        rows += [(target.name, name, "applied") for name in applied]
        rows += [(target.name, migration.name, "missing") for migration in missing]
    if state.json:
        state.emit({"migrations": [dict(zip(("database", "name", "state"), row, strict=True)) for row in rows]})
    else:
        state.table("Migrations", ("database", "migration", "state"), rows)
    return SOME_FAILED if any(row[2] == "missing" for row in rows) else DONE


@click.command()
@json_option
@pass_state
def validate(state: State) -> int:
    """Check the settings and every server and folder that they name; every problem at once.

    Exit 2 for problems with the settings, 3 when a server cannot be reached.
    """
    try:
        conf = state.settings
    except SettingsError as error:
        _report(state, error.problems)
        return USAGE
    problems: list[str] = []
    unreachable = False
    for target in _targets(conf, problems):
        try:
            problems += check_database(target)
        except ServerUnavailable as error:
            unreachable = True
            problems.append(str(error))
        except HeadraceError as error:
            problems.append(str(error))
    rooms: list[tuple[list[str], Callable[[Settings, str], list[str]]]] = [
        (jobs.names(conf), jobs.problems),
        (dispatch.names(conf), dispatch.problems),
        (repack.names(conf), repack.problems),
    ]
    for names, problems_of in rooms:
        for name in names:
            try:
                problems += problems_of(conf, name)
            except HeadraceError as error:
                problems += [str(error)] if not any(str(error) in known for known in problems) else []
    try:
        problems += products.problems(conf)
    except HeadraceError as error:
        problems += [str(error)] if not any(str(error) in known for known in problems) else []
    try:
        problems += check_broker(conf.broker_url())
    except ServerUnavailable as error:
        unreachable = True
        problems.append(str(error))
    for folder in conf.telemetry.data_dirs:
        if not folder.is_dir():
            problems.append(f"telemetry.data_dirs: {folder}: no such folder; create it or mount its disk")
        elif not os.access(folder, os.R_OK | os.X_OK):
            problems.append(f"telemetry.data_dirs: {folder}: cannot be listed; check its owner and mode")
    _report(state, problems)
    return UNREACHABLE if unreachable else USAGE if problems else DONE


def _report(state: State, problems: list[str]) -> None:
    if state.json:
        state.emit({"problems": problems})
    for problem in problems:
        state.say(problem)
    if not problems and not state.json:
        state.out("settings, servers and folders are in order")


def _schemas(conf: Settings) -> list[tuple[Target, str]]:
    ours = [(conf.target(), migrations.FOUNDATION), (conf.target(conf.telemetry.database), "telemetry")]
    ours += [(conf.target(name), room) for name in jobs.names(conf) for room in jobs.migrations_of(conf, name)]
    ours += products.migrations_of(conf)
    return list(dict.fromkeys(ours + dispatch.migrations_of(conf) + repack.migrations_of(conf)))


def _targets(conf: Settings, problems: list[str]) -> Iterator[Target]:
    for name in (CONTROL, *conf.databases):
        try:
            yield conf.target(name)
        except SettingsError as error:
            problems += error.problems
