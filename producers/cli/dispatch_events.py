"""The commands of `headrace dispatch` about what was applied, what was not, and the partitions that hold it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, here_options, json_option, pass_state
from producers.cli.dispatch_options import (
    consumer_argument,
    consumers_of,
    event_numbers,
    legacy_option,
    split,
    the_consumer,
)
from workers.dispatch import api
from workers.messages import ReplayEvents, TendPartitions
from workers.settings import Settings


@click.command()
@consumer_argument
@legacy_option
@click.option("--all", "every", is_flag=True, help="Those that are settled, too.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1))
@json_option
@pass_state
def failed(state: State, consumer: str | None, every: bool, limit: int) -> int:
    """Events that could not be applied, newest first, and why."""
    conf = state.settings
    name = the_consumer(conf, consumer)
    rows = api.failed(conf, name, every=every, limit=limit)
    if state.json:
        state.emit({"consumer": name, "events": rows})
        return DONE
    columns = ("event", "tick", "ev_id", "type", "table", "goes to", "state", "failed at [UTC]", "why")
    shown = [
        (
            row["id"],
            row["tick"],
            row["ev_id"],
            row["ev_type"],
            row["ev_extra1"],
            row["destination"],
            row["state"],
            row["failed_at"],
            " ".join(part for part in (row["sqlstate"], row["error"]) if part),
        )
        for row in rows
    ]
    if rows:
        state.table(f"Failed events of {name}", columns, shown)
    else:
        state.out(f"{name}: none")
    return DONE


@click.command()
@click.argument("words", metavar="[CONSUMER] [EVENT]...", nargs=-1)
@legacy_option
@here_options
@json_option
@pass_state
def replay(state: State, words: tuple[str, ...], here: bool, wait: bool, here_timeout: float) -> int:
    """Try failed events again: those named by their numbers (see `failed`), or all that wait.

    An event of whose row a newer one was applied since is left out: it would bring an old version back.
    """
    conf = state.prepare()
    name, rest = split(conf, words)
    message = ReplayEvents(consumer=name, events=tuple(event_numbers(rest)))
    if here:
        return follow.here(state, [message], timeout=timedelta(seconds=here_timeout))
    return follow.enqueue(state, [message], wait=wait)


@click.command()
@click.argument("words", metavar="[CONSUMER] [EVENT]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that wait.")
@legacy_option
@json_option
@pass_state
def drop(state: State, words: tuple[str, ...], every: bool) -> int:
    """Give failed events up: those named by their numbers, or all that wait."""
    conf = state.settings
    name, rest = split(conf, words)
    events = event_numbers(rest)
    if every == bool(events):
        raise click.UsageError("name the events to give up (see `headrace dispatch failed`), or all of them with --all")
    count = api.drop(conf, name, None if every else events)
    if state.json:
        state.emit({"consumer": name, "dropped": count})
    else:
        state.out(f"{name}: {count} events given up")
    return DONE if every or count == len(set(events)) else SOME_FAILED


@click.command()
@consumer_argument
@legacy_option
@click.option("--print", "dry_run", is_flag=True, help="Print the statements that tending them would run now.")
@click.option("--run", "tend", is_flag=True, help="Have a worker make partitions ahead, and let old ones go.")
@here_options
@json_option
@pass_state
def partitions(
    state: State, consumer: str | None, dry_run: bool, tend: bool, here: bool, wait: bool, here_timeout: float
) -> int:
    """List the partitions that rows go into; with --run, --wait or --here make those ahead, and let old ones go."""
    if dry_run and (tend or here or wait):
        raise click.UsageError("--print changes nothing; leave it, or --run, --wait and --here, away")
    if tend or here or wait:
        conf = state.prepare()
        messages = [TendPartitions(consumer=name) for name in consumers_of(conf, [consumer] if consumer else [])]
        if here:
            return follow.here(state, messages, timeout=timedelta(seconds=here_timeout))
        return follow.enqueue(state, messages, wait=wait)
    conf = state.settings
    names = consumers_of(conf, [consumer] if consumer else [])
    return _print(state, conf, names) if dry_run else _list(state, conf, names)


def _print(state: State, conf: Settings, names: list[str]) -> int:
    troubles: list[str] = []
    document = []
    for name in names:
        statements, problems = api.partition_plan(conf, name)
        troubles += problems
        document.append({"consumer": name, "statements": statements, "problems": problems})
        for statement in () if state.json else statements:
            state.out(f"{statement.rstrip().rstrip(';')};")
    if state.json:
        state.emit({"consumers": document})
    elif not any(one["statements"] for one in document):
        state.out("-- nothing to do")
    for trouble in troubles:
        state.say(trouble)
    return SOME_FAILED if troubles else DONE


def _list(state: State, conf: Settings, names: list[str]) -> int:
    found = {name: api.partition_listing(conf, name) for name in names}
    if state.json:
        tables = [
            {"consumer": name, "parent": parent, "partitions": [asdict(row) for row in rows]}
            for name, parents in found.items()
            for parent, rows in parents.items()
        ]
        state.emit({"tables": tables})
        return DONE
    for name, parents in found.items():
        for parent, rows in parents.items():
            if rows:
                state.table(f"{parent} ({name})", _COLUMNS, [_cells(row) for row in rows])
            else:
                state.out(f"{parent} ({name}): no partition")
        if not parents:
            state.out(f"{name}: no table is cut by time, or no table at the source writes into its queue")
    return DONE


_COLUMNS = ("partition", "kind", "from", "until", "rows", "bytes", "state")


def _cells(row: api.PartitionRow) -> tuple[object, ...]:
    there = "attached" if row.is_attached else "a table" if row.kind == "like" else "detached"
    state = there if row.is_there else "gone"
    return (
        row.table.name, row.kind, row.covers_from, row.covers_until, row.rows, row.bytes,
        f"{state}, has rows" if row.has_rows else state,
    )  # fmt: skip
