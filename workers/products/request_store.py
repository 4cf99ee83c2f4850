"""The rows of requests: outputs that people asked for, and how far they are; typed functions. The caller commits."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from workers.database import Connection
from workers.products.plan_store import Process, Slot
from workers.products.versions import Part, Version
from workers.sql_files import queries

SQL = queries("products_requests")


@dataclass(frozen=True, slots=True)
class CodeName:
    """A code as people call it: by its file, or by its process and version."""

    id: int
    process_id: int
    process: str
    filename: str
    version: Version


@dataclass(frozen=True, slots=True)
class Asked:
    """An output that a request has: built now (`is_due`), or when what it waits for is there."""

    process: Process
    slot: Slot
    is_due: bool
    reason: str
    detail: str
    priority: int


@dataclass(frozen=True, slots=True)
class Idle:
    """An output that a request waits for, and that nothing has in hand."""

    request: int
    slot: int
    process: int
    day: date
    key: str


def codes(conn: Connection, mission_id: int) -> list[CodeName]:
    """A mission's codes, whatever their state."""
    return [
        CodeName(row[0], row[1], row[2], row[3], Version(*row[4:7]))
        for row in SQL["codes"].rows(conn, {"mission": mission_id})
    ]


def want(conn: Connection, process: Process, since: date, until: date) -> None:
    """Have a process that reads nothing make every output of a range of days."""
    periods = SQL["periods"].rows(conn, {"process": process.id, "since": since, "until": until})
    facts = {"days": [row[0] for row in periods], "keys": [row[1] for row in periods],
             "starts": [row[2] for row in periods], "stops": [row[3] for row in periods]}  # fmt: skip
    SQL["want_slots"].run(conn, {**facts, "process": process.id, "rank": process.rank})


def ask(conn: Connection, asked: Sequence[Asked], force: Part | None) -> list[int]:
    """Have outputs built; the ids of their slots."""
    if not asked:
        return []
    facts = {
        **_columns([(one.process, one.slot) for one in asked]), "force": force,
        "dues": [one.is_due for one in asked], "reasons": [one.reason for one in asked],
        "details": [one.detail for one in asked], "priorities": [one.priority for one in asked],
    }  # fmt: skip
    return [row[0] for row in SQL["ask_slots"].rows(conn, facts)]


def keep(conn: Connection, slots: Sequence[tuple[Process, Slot]]) -> list[int]:
    """The ids of slots that are as they should be; a row is made for one that has none."""
    known = [slot.slot_id for _, slot in slots if slot.slot_id is not None]
    new = [(process, slot) for process, slot in slots if slot.slot_id is None]
    if new:
        known += [row[0] for row in SQL["keep_slots"].rows(conn, _columns(new))]
    return known


def new_request(
    conn: Connection, mission_id: int, kind: str, what: Mapping[str, Any], by: str, *,
    waiting: Collection[int], done: Collection[int],
) -> int:  # fmt: skip
    """Write a request with its slots; its id."""
    facts = {"mission": mission_id, "kind": kind, "what": json.dumps(what), "by": by}
    request = int(SQL["new_request"].value(conn, facts))
    for slots, is_done in ((waiting, False), (done, True)):
        if slots:
            SQL["add_slots"].run(conn, {"request": request, "slots": list(slots), "is_done": is_done})
    return request


def retry(
    conn: Connection, mission_id: int, *, processes: Collection[int] | None, day: date | None, key: str | None
) -> int:
    """Have what failed tried again now; how many outputs."""
    facts = {"mission": mission_id, "processes": None if processes is None else list(processes), "day": day, "key": key}
    return SQL["retry"].run(conn, facts)


def mission_of(conn: Connection, request: int) -> int | None:
    """Whose request it is; None for none of this number."""
    found = SQL["request_mission"].value(conn, {"request": request})
    return None if found is None else int(found)


def lock_open(conn: Connection, request: int) -> int:
    """How many outputs a request still waits for; no build of them begins before the transaction ends."""
    return len(SQL["lock_open_slots"].rows(conn, {"request": request}))


def cancel(conn: Connection, request: int, by: str) -> datetime | None:
    """Take a request back; when, or None if it was before."""
    found = SQL["cancel_request"].value(conn, {"request": request, "by": by})
    return found if isinstance(found, datetime) else None


def drop_open(conn: Connection, request: int, at: datetime) -> list[int]:
    """The slots that a request cancelled `at` waits for no more: those that are not being built."""
    return [row[0] for row in SQL["drop_open_slots"].rows(conn, {"request": request, "at": at})]


def free(conn: Connection, slots: Collection[int]) -> list[tuple[int, int, date, str]]:
    """Take force and priority from slots that no request waits for; their (id, process, day, key)."""
    return [(row[0], row[1], row[2], row[3]) for row in SQL["free_slots"].rows(conn, {"slots": list(slots)})]


def undue(conn: Connection, slots: Collection[int]) -> int:
    """Have slots not built; how many were to be."""
    return SQL["undue"].run(conn, {"slots": list(slots)})


def idle(conn: Connection, mission_id: int) -> list[Idle]:
    """Outputs that open requests of a mission wait for, and that nothing has in hand."""
    return [Idle(*row) for row in SQL["idle_slots"].rows(conn, {"mission": mission_id})]


def settle(conn: Connection, slots: Sequence[Idle]) -> int:
    """Count these as done, unless something has them in hand by now; how many that were."""
    if not slots:
        return 0
    facts = {"requests": [one.request for one in slots], "slots": [one.slot for one in slots]}
    return SQL["settle"].run(conn, facts)


def requests(
    conn: Connection, *, request: int | None = None, mission: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Requests and how far they are, newest first."""
    return SQL["requests"].records(conn, {"request": request, "mission": mission, "limit": limit})


def _columns(slots: Sequence[tuple[Process, Slot]]) -> dict[str, list[Any]]:
    return {
        "processes": [process.id for process, _ in slots],
        "ranks": [process.rank for process, _ in slots],
        "days": [slot.day for _, slot in slots],
        "keys": [slot.key for _, slot in slots],
        "starts": [slot.start_at for _, slot in slots],
        "stops": [slot.stop_at for _, slot in slots],
    }
