"""`headrace products status` and `builds`, and the room's part of `headrace status`."""

from __future__ import annotations

from typing import Any

import click

from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from producers.cli.products_options import mission_option
from workers.errors import HeadraceError
from workers.products import api
from workers.settings import Settings

_MISSIONS = ("mission", "products", "processes", "due", "retrying", "building", "failed", "quarantined", "broken")
_RUNNING = ("build", "product", "day", "key", "host", "reason", "running [s]")
_BUILDS = ("build", "product", "day", "key", "state", "reason", "code", "host", "took [s]", "problem")


@click.command()
@json_option
@pass_state
def status(state: State) -> int:
    """How every mission stands: due, building, failed, in quarantine; exit 1 if something needs a person."""
    document = api.status_of(state.prepare())
    if state.json:
        state.emit({**document, "needs_a_person": document["needs"]})
    else:
        print_status(state, document)
        if not document["missions"]:
            state.out("no mission is loaded; `headrace products load FILE` loads one")
        for need in document["needs"]:
            state.out(f"  - {need}")
    return SOME_FAILED if document["needs"] else DONE


@click.command()
@click.argument("build", metavar="[BUILD]", required=False, type=int)
@mission_option
@click.option("--product", help="Of this product or process alone.")
@click.option("--failed", is_flag=True, help="Only those that failed, or lost their worker.")
@click.option("--limit", type=int, default=30, show_default=True)
@json_option
@pass_state
def builds(state: State, build: int | None, mission: str | None, product: str | None, failed: bool, limit: int) -> int:
    """The history of builds, newest first; BUILD shows one with its command and what it wrote."""
    with api.connection(state.prepare(), purpose="cli") as conn:
        rows = api.builds(conn, mission=mission, product=product, build=build, failed=failed, limit=limit)
    if state.json:
        state.emit({"builds": rows})
    elif build is not None and rows:
        for name, value in rows[0].items():
            if value not in (None, "", []):
                state.out(f"{name}: {' '.join(value) if name == 'command' else value}")
    else:
        shown = [
            (
                row["build"], row["product"] or row["process"], row["day"], row["key"], row["state"], row["reason"],
                row["code"], row["host"], row["seconds"], row["problem"],
            )
            for row in rows
        ]  # fmt: skip
        state.table("Builds", _BUILDS, shown)
    return DONE if rows or build is None else SOME_FAILED


def of(conf: Settings) -> dict[str, Any]:
    """The room's document for `headrace status`; one whose database cannot be reached says so."""
    try:
        return api.status_of(conf)
    except HeadraceError as error:
        return {"set_up": False, "missions": [], "running": [], "troubles": [], "needs": [str(error)]}


def print_status(state: State, document: dict[str, Any]) -> None:
    """The room's tables; nothing where no mission is loaded."""
    if document["missions"]:
        shown = [
            (
                row["mission"], row["products"], row["processes"], row["due"], row["retrying"], row["building"],
                row["given_up"], row["quarantined"], row["broken"],
            )
            for row in document["missions"]
        ]  # fmt: skip
        state.table("Products", _MISSIONS, shown)
    if document["running"]:
        running = [
            (row["build"], row["product"], row["day"], row["key"], row["host"], row["reason"], row["seconds"])
            for row in document["running"]
        ]
        state.table("Builds in hand", _RUNNING, running)
