"""The commands of `headrace dispatch` that set databases up: our tables, PgQ, triggers; and the old file as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, json_option, pass_state
from producers.cli.dispatch_options import legacy_option, split
from workers.dispatch import api
from workers.errors import HeadraceError
from workers.targets import CONTROL, redacted


@click.command()
@legacy_option
@click.option("--print", "dry_run", is_flag=True, help="Print the statements and run nothing.")
@json_option
@pass_state
def setup(state: State, dry_run: bool) -> int:
    """Make our tables in every database that events go into. Twice is harmless.

    The login needs CREATE on the database, no superuser.
    """
    conf = state.settings
    failed = 0
    done: list[dict[str, Any]] = []
    for target, name in {conf.dispatch.consumers[name].target: name for name in reversed(api.names(conf))}.items():
        try:
            applied = api.set_up(conf, name, dry_run=dry_run)
        except HeadraceError as error:
            failed += 1
            state.say(f"headrace: {error}")
            continue
        done.append({"database": target, "migrations": [name for name, _text in applied], "ran": not dry_run})
        if state.json:
            continue
        if dry_run:
            for name, text in applied:
                state.out(f"-- {target}: {name}\n{text.strip()}\n")
        if not dry_run or not applied:
            made = ", ".join(name for name, _text in applied)
            state.out(f"{'-- ' if dry_run else ''}{target}: {made or 'all there'}")
    if state.json:
        state.emit({"databases": done})
    return (UNREACHABLE if not done else SOME_FAILED) if failed else DONE


@click.command(name="install-pgq")
@click.option("--database", "-D", "db", help="A database of the settings (default: those that consumers read from).")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="PgQ's SQL file.")
@click.option("--print", "dry_run", is_flag=True, help="Print what would be run, and run nothing.")
@legacy_option
@json_option
@pass_state
def install_pgq(state: State, db: str | None, source: Path | None, dry_run: bool) -> int:
    """Install PgQ: the extension where the server has it and the login may, else its own SQL without C."""
    conf = state.settings
    done: list[dict[str, Any]] = []
    for name in [db] if db else api.source_names(conf) or [CONTROL]:
        steps = api.install_pgq(conf, name, source=source, dry_run=dry_run)
        done.append({"database": name, "steps": [step.what for step in steps], "ran": not dry_run})
        if not state.json:
            for step in steps:
                state.out(step.script() if dry_run else f"{name}: {step.what}")
    if state.json:
        state.emit({"databases": done})
    return DONE


@click.command()
@click.argument("words", metavar="[CONSUMER] [TABLE]...", nargs=-1)
@click.option("--apply", is_flag=True, help="Run the statements, in one transaction.")
@click.option("--print", "dry_run", is_flag=True, help="Only print them (the default).")
@click.option("--kind", type=click.Choice(["logutriga", "jsontriga"]), default="logutriga", show_default=True)
@click.option("--no-truncate", is_flag=True, help="Without the trigger that tells of TRUNCATE.")
@click.option("--no-pin", is_flag=True, help="Leave the form in which PgQ's function writes values as it is.")
@click.option("--option", "options", multiple=True, metavar="TEXT", help="The trigger's own: pkey=a,b, ignore=c ...")
@click.option("--insert-only", is_flag=True, help="Tell of inserts only: also for a table without a key.")
@legacy_option
@json_option
@pass_state
def triggers(
    state: State,
    words: tuple[str, ...],
    apply: bool,
    dry_run: bool,
    kind: Literal["logutriga", "jsontriga"],
    no_truncate: bool,
    no_pin: bool,
    options: tuple[str, ...],
    insert_only: bool,
) -> int:
    """Let changes of tables at the source go into a consumer's queue, their values always in the same form.

    Without a TABLE: of those that the settings name below `tables:`.
    """
    if apply and dry_run:
        raise click.UsageError("--print and --apply are two different things; choose one")
    conf = state.settings
    name, tables = split(conf, words)
    if not tables:
        tables = [table for table, rules in conf.dispatch.consumers[name].tables.items() if not rules.ignore]
    steps = api.trigger_plan(
        conf, name, tables, kind=kind, truncate=not no_truncate, pin=not no_pin, options=options,
        insert_only=insert_only,
    )  # fmt: skip
    if apply:
        api.apply_triggers(conf, name, steps)
    if state.json:
        shown = [{"what": step.what, "statement": step.statement or None} for step in steps]
        state.emit({"consumer": name, "steps": shown, "ran": apply})
    elif not apply:
        state.out(api.trigger_script(steps) or "-- nothing to do")
    else:
        for step in steps:
            state.out(f"{name}: {step.what}")
        if not steps:
            state.out(f"{name}: all there")
    return _told(state, name, tables) if apply else DONE


def _told(state: State, name: str, tables: Sequence[str]) -> int:
    """Exit code 1 if a table still tells the queue nothing; the notes above say why."""
    heard = {str(table) for table, _key in api.tables_of(state.settings, name)}
    deaf = [table for table in tables if (table if "." in table else f"public.{table}") not in heard]
    if deaf:
        state.say(f"without a trigger into the queue: {', '.join(deaf)}")
    return SOME_FAILED if deaf else DONE


@click.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@pass_state
def import_(state: State, file: Path) -> int:
    """Print what cube_dispatcher's INI file says as settings of ours (with --json: without passwords)."""
    cube = api.read_cube(file)
    if state.json:
        state.emit({"settings": _hidden(cube.overrides), "notes": cube.notes})
    else:
        state.out(api.cube_as_yaml(cube).rstrip())
    return DONE


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: redacted(text) if key == "dsn" else _hidden(text) for key, text in value.items()}
    return value
