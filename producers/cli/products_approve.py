"""`headrace products approve`: a code that is held is used from now on, once a person has seen what that rebuilds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from producers.cli import follow
from producers.cli import products_choice as choice
from producers.cli import products_following as following
from producers.cli.context import DONE, State, json_option, pass_state
from workers.products import api

_IMPACT = ("process", "product", "outputs", "cpu [h]", "time [h]", "because")
_HELD = ("mission", "process", "version", "loaded at [UTC]")


@click.command()
@click.argument("process", required=False)
@click.argument("version", required=False)
@choice.mission_choice
@click.option("--yes", is_flag=True, help="Without asking.")
@json_option
@pass_state
def approve(state: State, process: str | None, version: str | None, mission: str | None, yes: bool) -> int:
    """Let the held code VERSION of PROCESS be used, after showing what it rebuilds.

    Without arguments: which codes are held.
    """
    if process is None or version is None:
        if process is not None:
            raise click.UsageError("name PROCESS and VERSION; without both, the held codes are listed")
        return _list_held(state, mission)
    try:
        wanted = api.parse_version(version)
    except ValueError as error:
        raise click.UsageError(f"{version} is no version; write it as 1.2.0") from error
    with choice.changing(state) as conn:
        one = choice.only(conn, mission, [process])
        impact = api.impact(conn, one, (process, wanted))
        conn.rollback()
        document: dict[str, Any] = {"impact": asdict(impact), "approved": False}
        if impact.state == "held":
            _show_impact(state, impact)
            if state.json and not yes:
                state.emit(document)
            choice.confirmed(state, "use it from now on?", yes=yes, or_else="nothing was approved: add --yes to do so")
        changes = api.approve(conn, process, wanted, follow.who(), mission=one.name)
        conn.commit()
    following.wake(state, [one])
    if state.json:
        state.emit(document | {"approved": True, "changes": [asdict(change) for change in changes]})
    else:
        for change in changes:
            state.out(str(change))
    return DONE


def _list_held(state: State, mission: str | None) -> int:
    with choice.asking(state) as conn:
        names = [api.mission(conn, mission).name] if mission else [one.name for one in api.missions(conn)]
        held = api.held_codes(conn, names)
    if state.json:
        state.emit({"held": held})
    elif held:
        state.table("Held codes", _HELD, [tuple(row.values()) for row in held])
        state.out("`headrace products approve PROCESS VERSION` shows what one would rebuild")
    else:
        state.out("no code is held")
    return DONE


def _show_impact(state: State, impact: api.Impact) -> None:
    if state.json:
        return
    rows = [
        (one.process, one.product, one.outputs, _hours(one.cpu_seconds), _hours(one.wall_seconds),
         "its code" if one.is_direct else "its inputs") for one in impact.rebuilt
    ]  # fmt: skip
    if rows:
        state.table(f"{impact.process} {impact.version} would rebuild", _IMPACT, rows)
    unknown = f"; how long {', '.join(impact.unknown)} takes is not known" if impact.unknown else ""
    state.out(f"{impact.outputs:,} outputs, about {impact.cpu_hours:.2g} hours of cpu{unknown}")


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600
