"""Missions, their processes, and the query for outputs that are not as they should be, as typed functions."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from workers import paths
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products.versions import Part, Version
from workers.settings import did_you_mean
from workers.sql_files import queries

SQL = queries("products_plan")


@dataclass(frozen=True, slots=True)
class Mission:
    """A mission's folders as text forms of absolute paths, and its rules."""

    id: int
    name: str
    root: str
    incoming: str
    codes: str
    inspectors: str
    quarantine: str
    scratch: str
    hosts: tuple[str, ...]
    cut_off: bool
    neighbours: bool
    is_legacy: bool

    def path(self, place: str) -> bytes:
        """The path of a file on disk; `place` is below the root unless it is absolute."""
        return os.path.join(paths.to_bytes(self.root), paths.to_bytes(place))

    def is_seen_by(self, host: str) -> bool:
        """Whether a host sees the mission's files."""
        return not self.hosts or host in self.hosts


@dataclass(frozen=True, slots=True)
class Process:
    """An active process; `required` has a bit per input position that needs a file."""

    id: int
    name: str
    output_product: int | None
    product: str | None
    timebase: str
    rank: int
    priority: int
    attempts: int
    neighbours: bool
    cut_off: bool
    extra_params: tuple[str, ...]
    format: str | None
    folder: str | None
    level: float | None
    inputs: tuple[int, ...]
    required: int
    yesterday: int
    tomorrow: int


@dataclass(frozen=True, slots=True)
class Pending:
    """An output that is about to be built anew; what needs it waits."""

    product: int
    day: date
    key: str
    start_at: datetime
    stop_at: datetime


@dataclass(frozen=True, slots=True)
class Slot:
    """One output as it is and as it should be; `had` means what is there now."""

    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    inputs: list[int]
    own: list[int]
    has_pending: bool
    is_complete: bool
    found: int
    code_id: int | None
    output_id: int | None
    had_inputs: list[int] | None
    had_code: int | None
    broken_id: int | None
    broken_state: str | None
    slot_id: int | None
    force: Part | None
    due_at: datetime | None
    slot_priority: int | None
    ran_on: list[int] | None
    ran_by: int | None
    is_given_up: bool
    has_failed_so: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What tells one input from another."""

    id: int
    product: int
    day: date
    key: str
    version: Version
    filename: str
    is_forced: bool

    @property
    def series(self) -> tuple[int, date, str]:
        """What its versions have in common."""
        return (self.product, self.day, self.key)


@dataclass(frozen=True, slots=True)
class Mark:
    """A slot that is to be built, and why."""

    process: int
    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    reason: str
    detail: str
    rank: int
    priority: int


def missions(conn: Connection) -> list[Mission]:
    """Every mission, by name."""
    return [_mission(row) for row in SQL["missions"].records(conn)]


def mission(conn: Connection, name: str) -> Mission:
    """A mission by its name. Raises PermanentFailure for an unknown one."""
    found = SQL["mission"].records(conn, {"name": name})
    if not found:
        known = [one.name for one in missions(conn)]
        hint = did_you_mean(name, known) if known else "; none is loaded: `headrace products load FILE`"
        raise PermanentFailure(f"no mission is called {name!r}{hint}")
    return _mission(found[0])


def mission_of(conn: Connection, mission_id: int) -> Mission:
    """A mission by its id."""
    return _mission(SQL["mission_of"].records(conn, {"id": mission_id})[0])


def processes(conn: Connection, mission_id: int) -> list[Process]:
    """A mission's active processes, inputs before what is made of them."""
    return [
        Process(**{**row, "inputs": tuple(row["inputs"]), "extra_params": tuple(row["extra_params"])})
        for row in SQL["processes"].records(conn, {"mission": mission_id})
    ]


def for_many_slots(conn: Connection, *, many: bool) -> None:
    """Have the server plan for thousands of slots, or for a handful, until the transaction ends."""
    SQL["without_nested_loops" if many else "with_nested_loops"].run(conn)


def stale(
    conn: Connection,
    process: Process,
    *,
    since: date | None = None,
    until: date | None = None,
    key: str | None = None,
    pending: Collection[Pending] = (),
    from_due: bool = False,
    everything: bool = False,
) -> list[Slot]:
    """The outputs of a process that are not as they should be, `pending` ones upstream taken as about to change.

    With `everything` also those that are in order, that wait for an input, and that have no code.
    """
    mine = [one for one in pending if one.product in process.inputs]
    facts = {
        "process": process.id,
        "output": process.output_product,
        "required": process.required,
        "neighbours": process.neighbours,
        "since": since,
        "until": until,
        "key": key,
        "from_due": from_due,
        "everything": everything,
        "products": [one.product for one in mine],
        "days": [one.day for one in mine],
        "keys": [one.key for one in mine],
        "starts": [one.start_at for one in mine],
        "stops": [one.stop_at for one in mine],
    }
    return [Slot(*row) for row in SQL["stale"].rows(conn, facts)]


def displaced(conn: Connection, changed: Collection[Pending]) -> list[tuple[int, date, date]]:
    """Product, first and last day of files that give way to these, or come back, where one of several is taken."""
    facts = {"products": [one.product for one in changed], "days": [one.day for one in changed]}
    return [(row[0], row[1], row[2]) for row in SQL["displaced"].rows(conn, facts)]


def facts_of_files(conn: Connection, ids: Iterable[int]) -> dict[int, FileFacts]:
    """What tells inputs apart, by their ids."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    return {
        row[0]: FileFacts(row[0], row[1], row[2], row[3], Version(row[4], row[5], row[6]), row[7], row[8])
        for row in SQL["facts_of_files"].rows(conn, {"ids": wanted})
    }


def facts_of_codes(conn: Connection, ids: Iterable[int]) -> dict[int, Version]:
    """The versions of codes, by their ids."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    return {row[0]: Version(*row[2:5]) for row in SQL["facts_of_codes"].rows(conn, {"ids": wanted})}


def lazily(conn: Connection) -> None:
    """What this transaction writes may be lost with the server."""
    SQL["lazily"].run(conn)


def mark_due(conn: Connection, marks: Sequence[Mark]) -> None:
    """Have slots built."""
    if not marks:
        return
    SQL["mark_due"].run(
        conn,
        {
            "processes": [one.process for one in marks],
            "days": [one.day for one in marks],
            "keys": [one.key for one in marks],
            "starts": [one.start_at for one in marks],
            "stops": [one.stop_at for one in marks],
            "reasons": [one.reason for one in marks],
            "details": [one.detail for one in marks],
            "ranks": [one.rank for one in marks],
            "priorities": [one.priority for one in marks],
        },
    )


def settle_imported(conn: Connection, process: Process, *, but: Collection[int] = ()) -> int:
    """Take the imported outputs of a process as up to date, but those named; how many that changed."""
    if process.output_product is None:
        return 0
    facts = {"process": process.id, "output": process.output_product, "but": list(but)}
    return SQL["settle_imported"].run(conn, facts)


def _mission(row: dict[str, Any]) -> Mission:
    return Mission(**{**row, "hosts": tuple(row["hosts"])})
