"""`headrace products quarantine`: files that could not be taken in, why, and back again after a fix."""

from __future__ import annotations

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.products_options import mission_option
from workers.products import api

_COLUMNS = ("id", "mission", "file", "reason", "arrived at [UTC]", "why")


@click.group(invoke_without_command=True)
@mission_option
@click.option("--all", "everything", is_flag=True, help="Those that have left it, too.")
@json_option
@click.pass_context
def quarantine(ctx: click.Context, mission: str | None, everything: bool) -> int:
    """Files that could not be taken in, newest first, each with its reason; `retry` gives them back after a fix."""
    if ctx.invoked_subcommand is not None:
        return DONE
    state = ctx.find_object(State)
    assert state is not None
    with api.connection(state.prepare(), purpose="cli") as conn:
        rows = api.quarantined(conn, mission=mission, everything=everything)
    if state.json:
        state.emit({"quarantine": rows})
    elif rows:
        shown = [
            (row["id"], row["mission"], row["filename"], row["reason"], row["arrived_at"], row["message"])
            for row in rows
        ]
        state.table("Quarantine", _COLUMNS, shown)
    else:
        state.out("nothing is in quarantine")
    return DONE


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="Every file of the mission that is meant.")
@mission_option
@json_option
@pass_state
def retry(state: State, ids: tuple[int, ...], everything: bool, mission: str | None) -> int:
    """Give files back to their incoming folder, where the next look takes them in if it can now."""
    if bool(ids) == everything:
        raise click.UsageError("name the files by their ids, or say --all")
    conf = state.prepare()
    with api.connection(conf, purpose="cli") as conn:
        done, problems = api.give_back(conn, ids or None, mission=mission, by=follow.who())
    return _report(state, "given back", done, problems, "; `headrace products ingest` takes them in at once")


@quarantine.command()
@click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)
@json_option
@pass_state
def discard(state: State, ids: tuple[int, ...]) -> int:
    """Delete files from quarantine for good."""
    with api.connection(state.prepare(), purpose="cli") as conn:
        done, problems = api.discard(conn, ids, by=follow.who())
    return _report(state, "deleted", done, problems, "")


def _report(state: State, word: str, done: list[int], problems: list[str], advice: str) -> int:
    if state.json:
        state.emit({word.replace(" ", "_"): done, "problems": problems})
    else:
        state.out(f"{len(done)} files {word}{advice if done else ''}")
    for problem in problems:
        state.say(problem)
    return SOME_FAILED if problems else DONE
