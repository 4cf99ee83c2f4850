"""`headrace runs`, `retry`, `cancel`: what was done, what went wrong, and doing it again."""

from __future__ import annotations

import click

from producers.cli import follow
from producers.cli.context import DONE, SOME_FAILED, State, json_option, pass_state
from workers import database
from workers.errors import HeadraceError, PermanentFailure
from workers.messages import parse
from workers.settings import ROOMS
from workers.sql_files import queries

SQL = queries("foundation")


@click.command()
@click.option("--room", type=click.Choice(ROOMS), help="Only this room.")
@click.option("--failed", is_flag=True, help="Only runs that did not end well.")
@click.option("--limit", default=20, show_default=True)
@click.argument("ids", nargs=-1, type=int)
@json_option
@pass_state
def runs(state: State, room: str | None, failed: bool, limit: int, ids: tuple[int, ...]) -> int:
    """History, newest first; with IDs just these."""
    conf = state.prepare()
    facts = {"room": room, "failed": failed, "limit": limit, "ids": list(ids) or None}
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        rows = SQL["runs"].records(conn, facts)
    if state.json:
        state.emit({"runs": rows})
        return DONE
    shown = [
        (
            row["id"],
            row["state"],
            row["key"],
            row["started_at"] or row["queued_at"],
            row["seconds"],
            row["counters"].get("records"),
            (row["error"] or {}).get("message"),
        )
        for row in rows
    ]
    state.table("Runs", ("id", "state", "what", "started", "seconds", "records", "why"), shown)
    return DONE


@click.command()
@click.argument("run", type=int)
@click.option("--wait", is_flag=True, help="Follow the work until it is done.")
@json_option
@pass_state
def retry(state: State, run: int, wait: bool) -> int:
    """Ask again for what a run was asked to do."""
    conf = state.prepare()
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        rows = SQL["run_message"].records(conn, {"id": run})
    if not rows:
        raise PermanentFailure(f"there is no run {run}; `headrace runs` lists them")
    if rows[0]["state"] in ("queued", "running"):
        raise PermanentFailure(f"run {run} is {rows[0]['state']}; cancel it first with `headrace cancel {run}`")
    message = parse(rows[0]["task"], {**rows[0]["message"], "run": None})
    again = message.model_copy(update={"force": True}) if hasattr(message, "force") else message
    return follow.enqueue(state, [again], wait=wait)


@click.command()
@click.argument("run", type=int)
@json_option
@pass_state
def cancel(state: State, run: int) -> int:
    """End a run: a queued one at once, a running one within seconds. What it has committed stays."""
    conf = state.prepare()
    with database.connection(conf.target(), purpose="cli", autocommit=True) as conn:
        row = SQL["request_cancel"].row(conn, {"id": run, "by": follow.who()})
    if row is None:
        raise PermanentFailure(f"run {run} is neither queued nor running; `headrace runs {run}` shows it")
    was, name, pid, start, host = row
    if was == "running" and pid is not None:
        _cancel_statement(state, name, pid, start)
    if state.json:
        state.emit({"run": run, "state": was, "host": host})
    else:
        state.out(
            f"run {run} was queued and is cancelled" if was == "cancelled" else f"run {run} on {host} is asked to end"
        )
    return DONE


def _cancel_statement(state: State, name: str, pid: int, start: object) -> int:
    """Cut short the statement that the run is in, if it is still that very backend."""
    try:
        with database.connection(state.settings.target(name), purpose="cancel", autocommit=True) as conn:
            SQL["cancel_backend"].run(conn, {"pid": pid, "start": start})
    except (HeadraceError, KeyError) as error:
        state.say(f"its statement could not be cancelled ({error}); it ends at its next step")
        return SOME_FAILED
    return DONE
