"""`headrace products load`: a mission's file into the database, as a difference that is shown."""

from __future__ import annotations

from pathlib import Path

import click

from producers.cli import follow
from producers.cli.context import DONE, State, json_option, pass_state
from workers.products import api


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option(
    "--neighbours/--no-neighbours",
    default=None,
    help="Whether a late file of yesterday or tomorrow rebuilds its neighbours (default: as the file says, else yes).",
)
@click.option(
    "--cut-off/--no-cut-off",
    default=None,
    help="Whether an output that comes out byte for byte the same is no new version (default: as the file says; yes in"
    " YAML, no in dbprocessing's files).",
)
@json_option
@pass_state
def load(state: State, file: Path, dry_run: bool, neighbours: bool | None, cut_off: bool | None) -> int:
    """Load a mission from FILE: Headrace's YAML, or dbprocessing's .conf as it is.

    Loading again is harmless, and changes what the file has changed. What is not in the file any more is retired.
    """
    mission, warnings = api.read_mission(file)
    switches = {"neighbours": neighbours, "cut_off": cut_off}
    mission = mission.model_copy(update={name: value for name, value in switches.items() if value is not None})
    conf = state.prepare()
    with api.connection(conf, purpose="load") as conn:
        changes = api.load(conn, mission, host=conf.host, by=follow.who(), dry_run=dry_run)
        if dry_run:
            conn.rollback()
        else:
            conn.commit()
    if state.json:
        state.emit(
            {
                "mission": mission.name,
                "changes": [{"kind": one.kind, "what": one.what, "detail": one.detail} for one in changes],
                "warnings": warnings,
                "dry_run": dry_run,
            }
        )
    for warning in warnings:
        state.say(warning)
    if not state.json:
        for one in changes:
            state.out(f"{one.kind:<6} {one.what}{': ' + one.detail if one.detail else ''}")
        if not changes:
            state.out(f"mission {mission.name} is as {file} says")
        elif dry_run:
            state.out("nothing was changed (--dry-run)")
    return DONE
