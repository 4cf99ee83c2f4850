"""`headrace telemetry`: files of this host into the archive's database."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import yaml

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, here_options, json_option, pass_state
from workers import paths
from workers.errors import NothingToDo
from workers.messages import IngestFile, Message, TakeInventory
from workers.telemetry import api


def legacy_options(command: Any) -> Any:
    """`--legacy-config xtelemdb.toml` and `key.key=value` words, as xtelemdb's own command line has them."""
    command = click.option(
        "--legacy-config",
        "-c",
        "legacy",
        type=click.Path(path_type=Path),
        multiple=True,
        help="An xtelemdb TOML file; several are merged, the last wins. Words like database.port=5433 override it.",
    )(command)
    return command


@click.group()
def telemetry() -> None:
    """File inventory, and telemetry files into PostgreSQL."""


def _apply_legacy(state: State, legacy: tuple[Path, ...], words: tuple[str, ...]) -> list[str]:
    """Take `a.b=c` words out of the arguments; with a legacy file, make it the settings of this invocation."""
    overrides = [word for word in words if legacy and _is_override(word)]
    if legacy:
        state.overrides = api.settings_from_xtelemdb(list(legacy), overrides)
    return [word for word in words if word not in overrides]


def _is_override(word: str) -> bool:
    key = word.split("=", 1)[0]
    return "=" in word and not Path(word).exists() and all(part.isidentifier() for part in key.split("."))


@telemetry.command()
@click.argument("words", nargs=-1)
@legacy_options
@click.option("--print", "dry_run", is_flag=True, help="Print the statements and run nothing.")
@click.option("--here", is_flag=True, hidden=True)
@json_option
@pass_state
def setup(state: State, words: tuple[str, ...], legacy: tuple[Path, ...], dry_run: bool, here: bool) -> int:
    """Make the tables, or widen those of xtelemdb. Twice is harmless.

    Programs that write xtelemdb's tables (xtelemdb, dbIngest) must be stopped first: their inserts do not
    know the new primary key.
    """
    _refuse(_apply_legacy(state, legacy, words))
    if not dry_run:
        state.prepare()
    statements = api.setup(state.settings, dry_run=dry_run)
    target = state.settings.target(state.settings.telemetry.database)
    if state.json:
        state.emit({"database": target.name, "statements": statements, "ran": not dry_run})
    elif dry_run:
        state.out(";\n\n".join(statements) + (";" if statements else "-- nothing to do"))
    else:
        state.out(f"{target}: {len(statements)} statements run" if statements else f"{target}: all there")
    return DONE


@telemetry.command()
@click.argument("words", nargs=-1)
@legacy_options
@json_option
@pass_state
def adopt(state: State, words: tuple[str, ...], legacy: tuple[Path, ...]) -> int:
    """Count files of this host as read that xtelemdb has read to their end, so that they are not read again.

    Run it once on each host after `setup`, with xtelemdb and dbIngest stopped there for good.
    """
    _refuse(_apply_legacy(state, legacy, words))
    state.prepare()
    counts = api.adopt(state.settings)
    if state.json:
        state.emit(counts)
    else:
        state.out(", ".join(f"{number} {word}" for word, number in counts.items()))
    return DONE


@telemetry.command()
@click.argument("words", nargs=-1)
@legacy_options
@here_options
@json_option
@pass_state
def inventory(
    state: State,
    words: tuple[str, ...],
    legacy: tuple[Path, ...],
    here: bool,
    wait: bool,
    here_timeout: float,
) -> int:
    """Bring the inventory of this host up to date with its data folders; reads no file's content."""
    _refuse(_apply_legacy(state, legacy, words))
    conf = state.prepare()
    message = TakeInventory(host=conf.host, then_ingest=False)
    return _work(state, [message], here, wait, here_timeout, [])


@telemetry.command()
@click.argument("words", metavar="[PATH]...", nargs=-1)
@legacy_options
@here_options
@click.option("--force", is_flag=True, help="Read the files anew from their start.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be read.")
@json_option
@pass_state
def ingest(
    state: State,
    words: tuple[str, ...],
    legacy: tuple[Path, ...],
    here: bool,
    wait: bool,
    here_timeout: float,
    force: bool,
    dry_run: bool,
) -> int:
    """Bring telemetry files into the database: PATHs (files or folders), or whatever the inventory has due.

    Without a PATH the data folders are looked at first, and what is new or changed in them is read.
    """
    arguments = _apply_legacy(state, legacy, words)
    conf = state.prepare()
    problems: list[str] = []
    if not arguments:
        messages: list[Message] = [TakeInventory(host=conf.host)]
    else:
        found, problems = api.find_files(arguments)
        messages = [IngestFile(host=conf.host, path=path, force=force) for path in found]
        if (here or wait) and not force:
            # A file that stands as damaged stays a failure until somebody repairs it or takes it away.
            problems += [text for path in found if (text := api.standing_trouble(conf, path))]
    if dry_run:
        names = [message.path for message in messages if isinstance(message, IngestFile)]
        if state.json:
            state.emit({"files": names, "problems": problems})
        else:
            state.out("\n".join(names))
        for problem in problems:
            state.say(problem)
        return int(bool(problems))
    return _work(state, messages, here, wait, here_timeout, problems)


@telemetry.command(name="status")
@legacy_options
@json_option
@pass_state
def status_(state: State, legacy: tuple[Path, ...]) -> int:
    """What waits, how late each device is, and what a person has to look at. Exit 1 if there is such a thing."""
    _apply_legacy(state, legacy, ())
    document = api.status(state.settings)
    trouble = bool(document.get("troubles")) or not document["set_up"]
    if state.json:
        state.emit(document)
        return int(trouble)
    if not document["set_up"]:
        state.say("the tables are not there yet: run `headrace telemetry setup`")
        return 1
    state.table("Files", ("host", "state", "files"), [tuple(row.values()) for row in document["files"]])
    if document["pending"]:
        state.table("Waiting", ("host", "files", "oldest [s]"), [tuple(row.values()) for row in document["pending"]])
    state.table(
        "Devices",
        ("device", "newest file", "state", "records", "read at", "lag [s]"),
        [
            (
                row["device"],
                row["path"].rsplit("/", 1)[-1],
                row["state"],
                row["records"],
                row["ingested_at"],
                row["lag_seconds"],
            )
            for row in document["devices"]
        ],
    )
    if document["troubles"]:
        state.table(
            "Needs a person",
            ("host", "path", "state", "why", "dead letters"),
            [tuple(row.values()) for row in document["troubles"]],
        )
    return int(trouble)


@telemetry.command(name="dead-letters")
@click.option("--limit", default=20, show_default=True)
@json_option
@pass_state
def dead_letters(state: State, limit: int) -> int:
    """What could not be read: file, bytes, reason, newest first."""
    rows = api.dead_letters(state.settings, limit)
    if state.json:
        state.emit({"dead_letters": rows})
    else:
        state.table(
            "Dead letters",
            ("id", "host", "path", "from byte", "to byte", "reason", "seen"),
            [tuple(row.values()) for row in rows],
        )
    return DONE


@telemetry.command()
@click.argument("paths_", metavar="PATH...", nargs=-1, required=True)
@click.option("--reason", help="Why nothing more is to be done, for whoever looks next.")
@pass_state
def accept(state: State, paths_: tuple[str, ...], reason: str | None) -> int:
    """Settle damaged or failed files of this host: what could not be read stays as dead letters, and nobody is
    told about it any more. New damage is told again."""
    code = DONE
    for argument in paths_:
        path = paths.to_text(os.path.abspath(argument))
        letters = api.accept(state.settings, path, follow.who(), reason)
        if letters is None:
            state.say(f"{path} is neither damaged nor failed; `headrace telemetry status` lists those that are")
            code = SOME_FAILED
        else:
            state.out(f"{path}: accepted with {letters} dead letters")
    return code


@telemetry.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1)
@pass_state
def import_(state: State, file: Path, words: tuple[str, ...]) -> int:
    """Print the settings that say the same as an xtelemdb TOML file."""
    document = api.settings_from_xtelemdb([file], list(words), secrets=False)
    state.out(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip())
    return DONE


@telemetry.command()
@pass_state
def watch(state: State) -> int:
    """Watch the data folders and enqueue what changes; runs until it is stopped."""
    from producers.telemetry import watch_forever
    from workers import hosts, logs, reload
    from workers.app import send

    conf = state.prepare()
    logs.configure(conf.logs)
    if not conf.telemetry.data_dirs:
        raise click.UsageError("telemetry.data_dirs is empty: name the folders to watch in the settings")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reload.on_hangup()
    hosts.Presence(conf.target(), conf.host, f"watch@{conf.host}", []).start()
    watch_forever(conf, lambda messages: send(messages, slot=api.new_slot()), stop)
    return DONE


def _work(
    state: State, messages: list[Message], here: bool, wait: bool, here_timeout: float, problems: list[str]
) -> int:
    if not here:
        return follow.enqueue(state, messages, wait=wait, problems=problems)
    work = state.settings.target(state.settings.telemetry.database)
    api.check_reachable(work)
    try:
        return follow.here(state, messages, timeout=timedelta(seconds=here_timeout), problems=problems)
    except NothingToDo as reason:
        state.say(str(reason))
        return DONE


def _refuse(words: list[str]) -> None:
    if words:
        raise click.UsageError(f"unexpected argument {words[0]!r}")


telemetry.add_command(ingest, name="backfill")
