"""`headrace dispatch verify`: the rows of source and target side by side."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import click

from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.dispatch_options import legacy_option, split
from producers.cli.postprocessing_options import Moment
from workers.dispatch import api

_COLUMNS = (
    "source", "goes to", "by", "rows there", "rows here", "missing", "extra", "different", "on its way", "failed", "is",
)  # fmt: skip


@click.command()
@click.argument("words", metavar="[CONSUMER] [TABLE]...", nargs=-1)
@click.option("--column", help="The source's time that the window is by (default: the one that partitions go by).")
@click.option("--since", type=Moment(), help="Only rows from this time on ...")
@click.option("--until", type=Moment(), help="... and before this one.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(0), help="How many keys of a sort are named."
)
@legacy_option
@json_option
@pass_state
def verify(
    state: State,
    words: tuple[str, ...],
    column: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> int:
    """Compare tables at the source with where their rows went: counts, and the keys that differ.

    What is still in the queue is told apart. Exit 1 if anything differs or cannot be compared.
    """
    conf = state.settings
    name, tables = split(conf, words)
    found = api.verify(conf, name, tables=tables, column=column, since=since, until=until, limit=limit)
    if state.json:
        state.emit({"consumer": name, "tables": [asdict(one) for one in found]})
    elif found:
        state.table(f"What {name} dispatches", _COLUMNS, [_cells(one) for one in found])
        for one in found:
            for line in _lines(one):
                state.out(f"  {one.destination}: {line}")
    else:
        state.out(f"{name}: no table at the source writes into its queue")
    return SOME_FAILED if any(one.verdict in ("different", "unknown") for one in found) else DONE


def _cells(one: api.Comparison) -> tuple[object, ...]:
    return (
        one.source, one.destination, one.column, one.source_rows, one.target_rows, one.missing_count, one.extra_count,
        one.different_count, one.pending_keys, one.failed_events, one.verdict,
    )  # fmt: skip


def _lines(one: api.Comparison) -> list[str]:
    sorts = (
        ("missing", one.missing, one.missing_count),
        ("extra", one.extra, one.extra_count),
        ("different", one.different, one.different_count),
    )
    lines = [
        f"{what}: {', '.join(keys)}" + (f" and {count - len(keys)} more" if count > len(keys) else "")
        for what, keys, count in sorts
        if keys
    ]
    return [*lines, *one.notes]
