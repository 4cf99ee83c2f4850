"""Slots and the builds that serve them, as typed functions. The caller commits."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from workers.database import Connection
from workers.products import plan_store
from workers.products.versions import Part, Version
from workers.sql_files import queries

SQL = queries("products")


@dataclass(frozen=True, slots=True)
class Due:
    """A slot that a host can build now."""

    id: int
    process: int
    mission: int
    day: date
    key: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class SlotRow:
    """A slot as its row says."""

    id: int
    process: int
    day: date
    key: str
    start_at: datetime
    stop_at: datetime
    due_at: datetime | None
    reason: str | None
    force: Part | None
    failures: int
    failed_inputs: list[int] | None
    failed_code: int | None
    updated_at: datetime
    priority: int
    forced_at: datetime | None
    is_due: bool


@dataclass(frozen=True, slots=True)
class Code:
    """An executable as it was loaded."""

    id: int
    process: int
    filename: str
    folder: str
    version: Version
    output_interface: int
    arguments: tuple[str, ...]
    environment: dict[str, str]
    timeout_seconds: float | None
    memory_bytes: int | None
    output_bytes: int | None
    cpu: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Input:
    """An input file, in the order of the command line."""

    id: int
    place: str
    filename: str
    sha256: str | None
    bytes: int | None
    keywords: str
    key: str
    is_forced: bool
    product: str


@dataclass(frozen=True, slots=True)
class Highest:
    """The highest version of a product, day and key."""

    id: int
    filename: str
    place: str
    version: Version
    state: str
    sha256: str | None
    sha1: str | None
    bytes: int | None
    is_forced: bool
    inputs: list[int] | None


@dataclass(frozen=True, slots=True)
class RunningBuild:
    """A build that nobody has ended."""

    id: int
    slot: int
    process: int
    host: str
    worker: str | None
    lane: int | None
    token: str
    group: int | None
    group_started: int | None
    scratch: str | None
    started_at: datetime
    inputs: list[int]
    code: int | None
    day: date
    key: str
    mission: int
    output_product: int | None
    attempts: int


def due(conn: Connection, host: str, *, limit: int, mission: str | None = None) -> list[Due]:
    """Slots that this host can build now, most urgent first."""
    return [Due(*row) for row in SQL["due"].rows(conn, {"host": host, "limit": limit, "mission": mission})]


def next_due(conn: Connection, host: str) -> timedelta | None:
    """How long until something is due for this host; None if nothing is, negative if it is already."""
    seconds = SQL["next_due"].value(conn, {"host": host})
    return timedelta(seconds=seconds) if seconds is not None else None


def slot(conn: Connection, slot_id: int) -> SlotRow | None:
    """A slot, under its lock until the transaction ends; None when it is gone or another transaction has it."""
    found = SQL["slot"].row(conn, {"id": slot_id})
    return SlotRow(*found) if found is not None else None


def code(conn: Connection, code_id: int) -> Code:
    """A code by its id."""
    row = SQL["code"].records(conn, {"id": code_id})[0]
    version = Version(row["interface"], row["quality"], row["revision"])
    kept = {
        name: value for name, value in row.items() if name not in ("interface", "quality", "revision", "process_id")
    }
    return Code(**{**kept, "process": row["process_id"], "version": version, "arguments": tuple(row["arguments"])})


def code_was_read(conn: Connection, code_id: int, sha256: str) -> None:
    """Remember what an executable's content is when it is first run."""
    SQL["code_was_read"].run(conn, {"id": code_id, "sha256": sha256})


def inputs_in_order(conn: Connection, process: int, ids: Collection[int]) -> list[Input]:
    """Input files in the order of the command line."""
    return [Input(*row) for row in SQL["inputs_in_order"].rows(conn, {"process": process, "ids": list(ids)})]


def highest(conn: Connection, product: int, day: date, key: str) -> Highest | None:
    """The highest version that there is or was."""
    row = SQL["highest"].row(conn, {"product": product, "day": day, "key": key})
    if row is None:
        return None
    return Highest(row[0], row[1], row[2], Version(*row[3:6]), *row[6:])


def in_use(conn: Connection, host: str) -> tuple[int, int, int]:
    """(cpus, bytes of memory, number) of the host's running builds; it stays so until the transaction ends."""
    SQL["lock_capacity"].run(conn, {"host": host})
    row = SQL["in_use"].row(conn, {"host": host})
    assert row is not None
    return row[0], row[1], row[2]


def begin_build(conn: Connection, facts: Mapping[str, Any]) -> int | None:
    """Begin a build; its id, or None when another one has the output in hand."""
    facts = {**facts, "environment": json.dumps(facts["environment"])}
    found = SQL["begin_build"].value(conn, facts)
    return int(found) if found is not None else None


def build_runs(conn: Connection, build: int, *, group: int, started: int) -> None:
    """Write which processes to end should this worker die; were it lost, their token would tell."""
    plan_store.lazily(conn)
    SQL["build_runs"].run(conn, {"id": build, "group": group, "started": started})


def hold_build(conn: Connection, build: int) -> bool:
    """Whether nobody has ended a build; nobody does before the transaction ends."""
    return bool(SQL["hold_build"].value(conn, {"id": build}))


def end_build(conn: Connection, build: int, state: str, **facts: Any) -> bool:
    """Write how a build ended; False when somebody else has ended it."""
    known: dict[str, Any] = dict.fromkeys(
        ("kind", "problem", "exit_status", "signal", "cpu_seconds", "peak_bytes", "output", "output_name")
    )
    known |= {"stdout": "", "stderr": ""}
    return SQL["end_build"].run(conn, {**known, **facts, "id": build, "state": state}) == 1


def confirm_file(
    conn: Connection, file: int, *, inputs: Sequence[int], code: int, build: int, sha256: str, size: int
) -> None:
    """A file is, byte for byte, what its inputs and code make of it now."""
    facts = {"id": file, "inputs": list(inputs), "code": code, "build": build, "sha256": sha256, "bytes": size}
    SQL["confirm_file"].run(conn, facts)
    SQL["unlink"].run(conn, {"child": file})
    link(conn, file, inputs)


def link(conn: Connection, child: int, parents: Collection[int]) -> None:
    """Write what a file was made of."""
    if parents:
        SQL["link"].run(conn, {"child": child, "parents": list(parents)})


def inherited(slot: SlotRow, process_priority: int) -> int | None:
    """The priority of what follows from a slot's build: None unless a person gave the slot another than its process."""
    return slot.priority if slot.priority != process_priority else None


def slot_done(conn: Connection, slot: SlotRow, *, inputs: Sequence[int], code: int, build: int | None) -> None:
    """A slot is built from these; it stays due when something changed since its row was read."""
    facts = {
        "id": slot.id, "seen": slot.updated_at, "forced_at": slot.forced_at, "inputs": list(inputs), "code": code,
        "build": build,
    }  # fmt: skip
    # What somebody asked for while it was being built is not served by this build.
    if SQL["slot_done"].value(conn, facts):
        SQL["requests_served"].run(conn, {"slot": slot.id, "build": build})


def as_of(slot: SlotRow, moment: datetime) -> SlotRow:
    """A slot as a build saw it that began then: what came or was asked for later is not answered by it."""
    forced_at = slot.forced_at if slot.forced_at is None or slot.forced_at <= moment else moment
    return replace(slot, updated_at=min(slot.updated_at, moment), forced_at=forced_at)


def slot_not_stale(conn: Connection, slot_id: int, *, seen: datetime) -> None:
    """Nothing is to be done about a slot."""
    if SQL["slot_not_stale"].run(conn, {"id": slot_id, "seen": seen}):
        SQL["requests_served"].run(conn, {"slot": slot_id, "build": None})


def slot_waits(conn: Connection, slot_id: int) -> None:
    """An input of it is about to be built: then it is due again. What was asked of it stays asked."""
    SQL["slot_waits"].run(conn, {"id": slot_id})


def slot_failed(
    conn: Connection, slot_id: int, *, inputs: Sequence[int], code: int, kind: str, problem: str, build: int | None,
    wait: timedelta, counts: bool, seen: datetime | None = None,
) -> int | None:  # fmt: skip
    """An attempt failed; the next is due after `wait`. How many counted so far with these inputs and this code.

    None, and nothing is written, when the slot has changed since it was `seen`: it stays due for that.
    """
    facts = {
        "id": slot_id, "inputs": list(inputs), "code": code, "kind": kind, "problem": problem, "build": build,
        "wait": wait.total_seconds(), "counts": counts, "seen": seen,
    }  # fmt: skip
    found = SQL["slot_failed"].value(conn, facts)
    return int(found) if found is not None else None


def slot_given_up(conn: Connection, slot_id: int, build: int | None) -> None:
    """It is not tried again until something changes or a person says so."""
    SQL["slot_given_up"].run(conn, {"id": slot_id})
    SQL["requests_served"].run(conn, {"slot": slot_id, "build": build})


def settled_late(conn: Connection, file: int) -> None:
    """An output is in its place although its build counted as lost: that is put right, with its lineage."""
    found = SQL["settled_late"].row(conn, {"file": file})
    if found is None:
        return
    build, slot_id, inputs, code_id, started_at = found
    link(conn, file, inputs)
    row = slot(conn, slot_id) if slot_id is not None else None
    if row is not None and code_id is not None:
        slot_done(conn, as_of(row, started_at), inputs=inputs, code=code_id, build=build)


def running_builds(conn: Connection, host: str | None = None) -> list[RunningBuild]:
    """Builds that nobody has ended, of a host or of all."""
    return [RunningBuild(*row) for row in SQL["running_builds"].rows(conn, {"host": host})]


def lost_in_a_row(conn: Connection, slot_id: int, inputs: Sequence[int], code: int | None) -> int:
    """How often the newest builds of a slot lost their worker."""
    return int(SQL["lost_in_a_row"].value(conn, {"slot": slot_id, "inputs": list(inputs), "code": code}))


def tokens(conn: Connection) -> set[str]:
    """The tokens of builds that run."""
    return {row[0] for row in SQL["tokens"].rows(conn)}


def input_is_gone(conn: Connection, file: int) -> bool:
    """An input is not where its row says; whether that was news."""
    return SQL["input_is_gone"].run(conn, {"id": file}) == 1
