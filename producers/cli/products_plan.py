"""`headrace products plan` and `explain`: what would be built now, what is not, and why; nothing is written."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import click

from producers.cli import products_choice as choice
from producers.cli.context import DONE, State, json_option, pass_state
from producers.cli.products_options import DAY, days_options, mission_option
from workers.products import api

_COLUMNS = ("mission", "process", "product", "day", "key", "reason", "detail", "state", "inputs")
_STDERR_LINES = 5
_STATES = {"due": "can be built now", "waits": "wait for an input that is built before", "failed": "failed and stay"}


@click.command()
@mission_option
@days_options
@click.option("--product", "products", metavar="NAME", multiple=True, help="This output, with what it is built from.")
@click.option("--waiting", is_flag=True, help="Also outputs that cannot be built, because an input is not there.")
@click.option("--limit", type=int, default=200, show_default=True, help="Rows of the tables; 0 for all of them.")
@json_option
@pass_state
def plan(
    state: State, mission: str | None, since: date | None, until: date | None, products: tuple[str, ...],
    waiting: bool, limit: int,
) -> int:  # fmt: skip
    """Everything that is stale, in the order of its building, and the reason of each; nothing is written.

    What follows from other steps is in it, too. Outputs that failed for good are shown and not built.
    """
    choice.check_days(since, until)
    steps: list[dict[str, Any]] = []
    without: list[api.Explanation] = []
    with choice.asking(state) as conn:
        for one in choice.seen(conn, state.settings, mission, products):
            found = api.plan(conn, one, since=since, until=until, products=products or None)
            steps += [{"mission": one.name, **api.step_facts(step)} for step in found]
            if waiting:
                without += [
                    each for each in api.waiting(conn, one, since, until) if not products or each.product in products
                ]
    counts = Counter(step["state"] for step in steps)
    if state.json:
        document: dict[str, Any] = {"steps": steps, "counts": {name: counts[name] for name in _STATES}}
        state.emit(document | ({"waiting": [each.document() for each in without]} if waiting else {}))
        return DONE
    if steps:
        shown = steps[:limit] if limit > 0 else steps
        state.table("Plan", _COLUMNS, [[step[column] for column in _COLUMNS] for step in shown])
        if len(shown) < len(steps):
            state.out(f"... and {len(steps) - len(shown):,} more; --limit 0 shows all")
        told = ", ".join(f"{counts[name]:,} {words}" for name, words in _STATES.items() if counts[name])
        reasons = ", ".join(f"{count:,} {name}" for name, count in Counter(step["reason"] for step in steps).items())
        state.out(f"{len(steps):,} outputs: {told} ({reasons}); nothing was written")
    else:
        state.out("nothing is stale")
    shown_too = without[:limit] if limit > 0 else without
    for each in shown_too:
        state.out(api.plain(each.sentence))
    if len(shown_too) < len(without):
        state.out(f"... and {len(without) - len(shown_too):,} more wait; --limit 0 shows all")
    return DONE


@click.command()
@click.argument("words", metavar="FILE | PRODUCT DAY [KEY]", nargs=-1, required=True)
@choice.mission_choice
@json_option
@pass_state
def explain(state: State, words: tuple[str, ...], mission: str | None) -> int:
    """Why a file was built, or why an output was built or not, down to the causes, with what to do about each.

    FILE is a name, a path or an id; PRODUCT also a process that has no output.
    """
    if len(words) > 3:
        raise click.UsageError("name a FILE, or PRODUCT DAY [KEY]; a key of several words is one argument: in quotes")
    with choice.asking(state) as conn:
        if len(words) == 1:
            file = choice.file(conn, words[0], mission)
            found = [api.explain_file(conn, api.mission_of_file(conn, file), file)]
        else:
            day = DAY.convert(words[1], None, click.get_current_context())
            one = choice.only(conn, mission, words[:1])
            found = api.explain_output(conn, one, words[0], day, words[2] if len(words) == 3 else None)
    if state.json:
        state.emit({"explanations": [each.document() for each in found]})
    else:
        for each in found:
            _tell(state, each, 0)
    return DONE


def _tell(state: State, one: api.Explanation, depth: int) -> None:
    state.out("  " * depth + api.plain(one.sentence))
    for line in str(one.facts.get("stderr") or "").splitlines()[-_STDERR_LINES:]:
        state.out("  " * depth + f"  | {api.plain(line)}")
    for cause in one.causes:
        _tell(state, cause, depth + 1)
