"""`headrace repack status`, candidates and connections, and the room's part of `headrace status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from producers.cli.context import DONE, SOME_FAILED, UNREACHABLE, State, asked_at_once, json_option, pass_state
from producers.cli.repack_options import given, places_options, plan_option, scope, tell_notes
from workers.errors import HeadraceError, ServerUnavailable
from workers.repack import api
from workers.settings import Settings

_CANDIDATES = ("database", "table", "size", "bloat", "bloat [%]", "verdict", "looked at [UTC]", "note")
_HISTORY = ("database", "table", "size", "estimated gain", "real gain", "repack", "looked at [UTC]")


@click.command()
@places_options
@plan_option
@json_option
@pass_state
def status(state: State) -> int:
    """How every rewrite stands: step, rows, rate, time left, changes that wait; exit 1 if any needs somebody.

    It only reads, and waits for nobody.
    """
    found = scope(state, everywhere=True)
    documents = statuses(state.settings, found.databases)
    needs = needs_of(documents)
    if state.json:
        state.emit({"databases": documents, "needs_a_person": needs})
    else:
        print_status(state, documents)
        if not any(document.get("requests") for document in documents):
            state.out("nothing was rewritten in the last days")
        for need in needs:
            state.out(f"  - {need}")
    if documents and all("unreachable" in document for document in documents):
        return UNREACHABLE
    return SOME_FAILED if needs else DONE


@click.command()
@click.argument("name", metavar="[DB]", required=False)
@places_options
@plan_option
@click.option("--refresh", is_flag=True, help="Look at the tables now, and remember what was found.")
@click.option("--history", is_flag=True, help="Estimates of tables that were rewritten, beside what that gained.")
@json_option
@pass_state
def candidates(state: State, name: str | None, refresh: bool, history: bool) -> int:
    """Tables, how much of each is bloat by estimate, and what a plan would do with them, the most wasteful first."""
    found = scope(state, database_name=name)
    conf = state.settings
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    away = 0
    for db in found.databases:
        try:
            if history:
                looked = api.history(conf, db)
            else:
                plans: Sequence[str | None] = found.plans.get(db) or _plans_of(conf, db) or [None]
                looked = [row for plan in plans for row in api.candidates_of(conf, db, plan, refresh=refresh)]
        except ServerUnavailable as error:
            away += 1
            problems.append(str(error))
            continue
        except HeadraceError as error:
            problems.append(str(error))
            continue
        rows += [{"database": db, **row} for row in looked]
    if state.json:
        state.emit({"history" if history else "candidates": rows, "problems": problems})
    elif history:
        state.table("What rewrites gained", _HISTORY, [_gained(row) for row in rows])
    else:
        state.table("Candidates", _CANDIDATES, [_cells(row) for row in rows])
    for problem in problems:
        state.say(problem)
    return UNREACHABLE if away and away == len(found.databases) else SOME_FAILED if problems else DONE


@click.command()
@places_options
@json_option
@pass_state
def connections(state: State) -> int:
    """The databases that are meant: whether each can be reached, and has our tables."""
    found = scope(state, everywhere=True)
    tell_notes(state, found)
    rows = [api.connection(state.settings, name) for name in found.databases]
    if state.json:
        state.emit({"connections": rows})
    else:
        columns = ("database", "reachable", "tables of ours", "being rewritten", "connection")
        shown = [
            (
                row["database"], "yes" if row["reachable"] else "no",
                {True: "there", False: "not there", None: None}[row["set_up"]], row["active"], row["connection"],
            )
            for row in rows
        ]  # fmt: skip
        state.table("Connections", columns, shown)
    for row in rows:
        if row["problem"]:
            state.say(row["problem"])
    if rows and not any(row["reachable"] for row in rows):
        return UNREACHABLE
    return DONE if all(row["reachable"] for row in rows) else SOME_FAILED


def statuses(conf: Settings, names: Sequence[str]) -> list[dict[str, Any]]:
    """How every database's rewrites stand, asked at the same time; one that cannot be reached says so."""

    def one(name: str) -> dict[str, Any]:
        try:
            return api.status_of(conf, name)
        except HeadraceError as error:
            return {"database": name, "unreachable": str(error)}

    return asked_at_once(names, one)


def needs_of(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Every reason to wake somebody up because of rewrites, with what to do."""
    needs: list[str] = []
    for document in documents:
        needs += [document["unreachable"]] if "unreachable" in document else document["needs"]
    return needs


def tells_of(documents: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether a failed run of this key is history: the requests' own rows say what matters still."""
    for document in documents:
        if "requests" in document:
            for one in document["requests"]:
                name = f"{document['database']}:{one['schema']}.{one['table']}"
                if key == name or key.startswith(f"{name} index "):
                    return True
    return False


def print_status(state: State, documents: Sequence[dict[str, Any]]) -> None:
    """A line per request."""
    rows = [_line(document["database"], one) for document in documents for one in document.get("requests", [])]
    if rows:
        columns = (
            "database", "table", "repack", "is", "step", "in it [s]", "done [%]", "rows", "rows/s", "left [s]",
            "changes wait", "size", "copy", "log", "of",
        )  # fmt: skip
        state.table("Repack", columns, rows)


def _line(database_name: str, one: dict[str, Any]) -> tuple[Any, ...]:
    is_active = one["state"] == "active"
    before, after = _size(one["bytes_before"]), _size(one["bytes_after"])
    return (
        database_name, f"{one['schema']}.{one['table']}", one["id"],
        f"paused by {one['paused_by']}" if one["is"] == "paused" else one["is"],
        one["step"] if is_active else None, one["step_seconds"] if is_active else None,
        one["percent"] if is_active else None, f"{one['rows_copied']:,}", one["rows_per_second"], one["eta_seconds"],
        one["backlog_rows"] if is_active else None, before if is_active or after is None else f"{before} -> {after}",
        _size(one["copy_bytes"]) if is_active else None, _size(one["log_bytes"]) if is_active else None,
        one["plan"] or one["requested_by"],
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["database"], f"{row['schema']}.{row['table']}", _size(row["bytes"]), _size(row["bloat_bytes"]),
        row["bloat_percent"], row["verdict"], row["looked_at"], row.get("note") or None,
    )  # fmt: skip


def _gained(row: dict[str, Any]) -> tuple[Any, ...]:
    gained = row["gained_bytes"]
    real = None if gained is None else _size(gained) if gained >= 0 else f"-{_size(-gained)}"
    return (
        row["database"], f"{row['schema']}.{row['table']}", _size(row["bytes"]), _size(row["bloat_bytes"]), real,
        row["repack"], row["looked_at"],
    )  # fmt: skip


def _size(count: int | None) -> str | None:
    return api.size(count) if count is not None else None


def _plans_of(conf: Settings, name: str) -> list[str]:
    if given("legacy") is not None:
        return []
    return [key for key, plan in conf.repack.plans.items() if name in plan.databases and plan.enabled]
