"""The commands of `headrace repack` about our tables: setup, drop-schema; and repcloud's file as YAML."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, json_option, pass_state
from producers.cli.repack_options import given, places_options, scope, tell_notes, who
from workers.errors import HeadraceError
from workers.repack import api
from workers.targets import redacted


@click.command()
@click.argument("name", metavar="[DB]", required=False)
@places_options
@click.option("--print", "dry_run", is_flag=True, help="Print the statements and run nothing.")
@json_option
@pass_state
def setup(state: State, name: str | None, dry_run: bool) -> int:
    """Make our tables in the databases whose tables are rewritten. Twice is harmless.

    The login needs CREATE on the database, no superuser.
    """
    found = scope(state, database_name=name)
    tell_notes(state, found)
    done: list[dict[str, Any]] = []
    failed = 0
    for db in found.databases:
        try:
            applied = api.set_up(state.settings, db, dry_run=dry_run)
        except HeadraceError as error:
            failed += 1
            state.say(f"headrace: {error}")
            continue
        done.append({"database": db, "migrations": [one for one, _text in applied], "ran": not dry_run})
        if state.json:
            continue
        if dry_run:
            for one, text in applied:
                state.out(f"-- {db}: {one}\n{text.strip()}\n")
        if not dry_run or not applied:
            state.out(f"{'-- ' if dry_run else ''}{db}: {', '.join(one for one, _text in applied) or 'all there'}")
    if state.json:
        state.emit({"databases": done})
    return (UNREACHABLE if not done else SOME_FAILED) if failed else DONE


@click.command(name="drop-schema")
@click.argument("name", metavar="[DB]", required=False)
@places_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--here-timeout", type=float, default=600.0, show_default=True, help="Seconds to wait for locks.")
@json_option
@pass_state
def drop_schema(state: State, name: str | None, yes: bool, here_timeout: float) -> int:
    """Take everything of repack out of databases: what is half-way is given up, what failed ones left goes.

    Old tables that were kept, history and our own tables go, too. Tables of yours stay as they are.
    """
    found = scope(state, database_name=name)
    conf = state.prepare()
    named = given("db") or name or found.file is not None or len(found.databases) == 1
    if not named:
        raise click.UsageError(f"name a database: {', '.join(found.databases)}, or --database all")
    code, done, reached = DONE, [], 0
    for db in found.databases:
        try:
            lines = api.would_remove(conf, db)
            reached += 1
            if lines and not yes:
                for line in lines:
                    state.say(f"{db}: {line}")
                click.confirm(f"{db}: all of this goes; go on?", abort=True, err=True)
            gone = api.remove(conf, db, timeout=timedelta(seconds=here_timeout), by=who()) if lines else []
        except HeadraceError as error:
            state.say(f"headrace: {error}")
            code = SOME_FAILED
            continue
        done.append({"database": db, "gone": gone})
        if not state.json:
            for line in gone:
                state.out(f"{db}: {line}: gone")
            if not gone:
                state.out(f"{db}: nothing of repack is there")
    if state.json:
        state.emit({"databases": done})
    return UNREACHABLE if not reached else code


@click.command(name="import")
@click.argument("file", metavar="FILE|NAME")
@click.option("--connection", "-D", "--database", "connection", metavar="NAME|all", help="One of its connections only.")
@click.option(
    "--table-conf", multiple=True, type=click.Path(path_type=Path),
    help="A file of repcloud with tables' rules (default: those beside its configuration).",
)  # fmt: skip
@json_option
@pass_state
def import_(state: State, file: str, connection: str | None, table_conf: tuple[Path, ...]) -> int:
    """Print what repcloud's TOML file says as settings of ours (with --json: without passwords)."""
    found = api.read_repcloud(api.find_repcloud(file), connection=connection, table_conf=table_conf)
    if state.json:
        state.emit({"settings": _hidden(found.overrides), "notes": found.notes})
    else:
        state.out(api.repcloud_as_yaml(found).rstrip())
    return DONE


def _hidden(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _hidden(below, str(name)) for name, below in value.items()}
    if key == "password":
        return "•••"
    return redacted(value) if key == "dsn" else value
