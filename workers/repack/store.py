"""Repack's own tables as typed functions: requests, their indexes and constraints. The caller commits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from workers.database import Connection
from workers.repack.shapes import Shape
from workers.sql_files import queries

SQL = queries("repack")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its row says; `options` are the limits and rules that it began with."""

    id: int
    schema: str
    table: str
    oid: int
    new_oid: int | None
    engine: str
    goal: str
    step: str
    state: str
    problem: str | None
    options: dict[str, Any]
    plan: str | None
    run: int | None
    shape: Shape | None
    fingerprint: list[str]
    marks: str | None
    position: list[str] | None
    verify_position: list[str] | None
    chunk_rows: int | None
    rows_copied: int
    rows_estimated: int
    bytes_before: int | None
    paused_by: str | None
    is_paused: bool
    is_early: bool
    due_at: datetime
    backlog_rows: int | None
    reason: str | None
    lock_attempts: int
    keep_until: datetime | None
    is_swapped: bool
    quoted: str

    @property
    def name(self) -> str:
        """`schema.table` for people."""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a copy, and the statements that build it."""

    number: int
    name: str
    statements: tuple[str, ...]
    is_key: bool
    is_unique: bool
    is_built: bool
    is_begun: bool
    problem: str | None


def is_set_up(conn: Connection) -> bool:
    """Whether this database has our tables."""
    return bool(SQL["exists"].value(conn))


def request(conn: Connection, facts: dict[str, Any]) -> int | None:
    """Begin a request; its id, or None when the table has an active one."""
    facts = {**facts, "options": json.dumps(facts["options"])}
    found = SQL["request"].value(conn, facts)
    return int(found) if found is not None else None


def active_of(conn: Connection, schema: str, table: str) -> int | None:
    """The id of a table's active request."""
    found = SQL["active_of"].value(conn, {"schema": schema, "table": table})
    return int(found) if found is not None else None


def read(conn: Connection, repack: int) -> Request | None:
    """A request by its id."""
    found = SQL["read"].records(conn, {"id": repack})
    if not found:
        return None
    row = found[0]
    return Request(
        id=row["id"], schema=row["schema_name"], table=row["table_name"], oid=row["table_oid"], new_oid=row["new_oid"],
        engine=row["engine"], goal=row["goal"], step=row["step"], state=row["state"], problem=row["problem"],
        options=row["options"], plan=row["plan"], run=row["run"],
        shape=Shape.from_json(row["shape"]) if row["shape"] else None, fingerprint=row["fingerprint"] or [],
        marks=row["trigger_marks"], position=row["position"], verify_position=row["verify_position"],
        chunk_rows=row["chunk_rows"], rows_copied=row["rows_copied"],
        rows_estimated=row["rows_estimated"], bytes_before=row["bytes_before"],
        paused_by=row["paused_by"], is_paused=row["paused_at"] is not None, is_early=row["is_early"],
        due_at=row["due_at"],
        backlog_rows=row["backlog_rows"], reason=row["reason"], lock_attempts=row["lock_attempts"],
        keep_until=row["keep_until"],
        is_swapped=row["swapped_at"] is not None, quoted=row["quoted"],
    )  # fmt: skip


def try_lock(conn: Connection, repack: int) -> bool:
    """Be the only one who works on a request until this session ends."""
    return bool(SQL["try_lock"].value(conn, {"id": repack}))


def unlock(conn: Connection, repack: int) -> None:
    """Let others work on it."""
    SQL["unlock"].run(conn, {"id": repack})


def try_lock_index(conn: Connection, repack: int, number: int) -> bool:
    """Be the only one who builds an index until this session ends."""
    return bool(SQL["try_lock_index"].value(conn, {"id": str(repack), "number": number}))


def due(conn: Connection, again: timedelta) -> list[dict[str, Any]]:
    """Requests whose next step is due and that nobody works on; they count as sent from now on."""
    return SQL["due"].records(conn, {"again": again})


def prepared(
    conn: Connection, repack: int, *, shape: Shape, fingerprint: Sequence[str], marks: str, new_oid: int, rows: int
) -> None:
    """The copy and its log are there."""
    SQL["prepared"].run(conn, {
        "id": repack, "shape": json.dumps(shape.as_json()), "fingerprint": json.dumps(list(fingerprint)),
        "marks": marks,
        "new_oid": new_oid, "rows": rows,
    })  # fmt: skip


def copied(conn: Connection, repack: int, *, position: Sequence[str] | None, rows: int, chunk_rows: int) -> None:
    """A chunk is in the copy, up to this position."""
    facts = {"id": repack, "position": list(position) if position else None, "rows": rows, "chunk_rows": chunk_rows}
    SQL["copied"].run(conn, facts)


def next_step(conn: Connection, repack: int, step: str) -> None:
    """A step is done, this one comes next."""
    SQL["next_step"].run(conn, {"id": repack, "step": step})


def replayed(conn: Connection, repack: int, keys: int) -> None:
    """So many log rows are in the copy."""
    SQL["replayed"].run(conn, {"id": repack, "keys": keys})


def set_backlog(conn: Connection, repack: int, rows: int, *, is_little: bool, check: timedelta) -> float:
    """How long the log is; for how many seconds it has not become shorter, looked at every `check`."""
    facts = {"id": repack, "rows": rows, "is_little": is_little, "check": check}
    return float(SQL["set_backlog"].value(conn, facts))


def put_off(conn: Connection, repack: int, after: timedelta, problem: str | None) -> None:
    """Nothing more until then, and why."""
    SQL["put_off"].run(conn, {"id": repack, "after": after, "problem": problem})


def attempted(conn: Connection, repack: int, problem: str) -> int:
    """The lock was not to be had; how often by now."""
    return int(SQL["attempted"].value(conn, {"id": repack, "problem": problem}))


def wait_for_person(conn: Connection, repack: int, problem: str, after: timedelta) -> None:
    """Keep the copy in step, but do not swap it."""
    SQL["wait_for_person"].run(conn, {"id": repack, "problem": problem, "after": after})


def swapped(conn: Connection, repack: int, *, hold: float, keys: int, keep: timedelta, bytes_after: int) -> bool:
    """The copy is the table; False when the request is not active any more."""
    facts = {"id": repack, "hold": hold, "keys": keys, "keep": keep, "bytes": bytes_after}
    return SQL["swapped"].run(conn, facts) == 1


def to_be_validated(conn: Connection, repack: int, constraints: Sequence[dict[str, Any]]) -> None:
    """Constraints that the swap made NOT VALID."""
    for one in constraints:
        SQL["to_be_validated"].run(conn, {
            "id": repack, "schema": one["schema_name"], "table": one["table_name"], "name": one["constraint_name"],
        })  # fmt: skip


def not_validated(conn: Connection, repack: int) -> list[dict[str, Any]]:
    """Those that wait, with `qualified` table and `quoted` name."""
    return SQL["not_validated"].records(conn, {"id": repack})


def validated(conn: Connection, repack: int, constraint: dict[str, Any], problem: str | None) -> None:
    """One is valid again, or cannot be."""
    SQL["validated"].run(conn, {
        "id": repack, "schema": constraint["schema_name"], "table": constraint["table_name"],
        "name": constraint["constraint_name"], "problem": problem,
    })  # fmt: skip


def unvalidated_problems(conn: Connection, repack: int) -> list[str]:
    """What was wrong with those that could not be made valid again."""
    return [row[0] for row in SQL["unvalidated_problems"].rows(conn, {"id": repack})]


def verified(conn: Connection, repack: int, position: Sequence[str] | None, rows: int) -> None:
    """A range is the same in both tables."""
    SQL["verified"].run(conn, {"id": repack, "position": list(position) if position else None, "rows": rows})


def finish(
    conn: Connection,
    repack: int,
    state: str,
    *,
    reason: str | None,
    problem: str | None,
    bytes_after: int | None = None,
) -> bool:
    """The request is over; False when it was before."""
    facts = {"id": repack, "state": state, "reason": reason, "problem": problem, "bytes": bytes_after}
    return SQL["finish"].run(conn, facts) == 1


def failed_once(conn: Connection, repack: int, problem: str) -> int:
    """A step failed; how often in a row."""
    return int(SQL["failed_once"].value(conn, {"id": repack, "problem": problem}) or 0)


def set_run(conn: Connection, repack: int, run: int | None) -> None:
    """Which run people follow."""
    SQL["set_run"].run(conn, {"id": repack, "run": run})


def abandon(conn: Connection, repack: int, reason: str | None, problem: str | None) -> bool:
    """Have what it made taken away; False when it is over."""
    return SQL["abandon"].run(conn, {"id": repack, "reason": reason, "problem": problem}) == 1


def wishes(conn: Connection, repack: int) -> tuple[str, bool, str | None] | None:
    """(goal, whether it is paused, by whom); None when it is over."""
    found = SQL["wishes"].row(conn, {"id": repack})
    return (found[0], found[1], found[2]) if found else None


def want_swap(conn: Connection, repack: int) -> bool:
    """A person wants the swap."""
    return SQL["want_swap"].run(conn, {"id": repack}) == 1


def pause(conn: Connection, repack: int, by: str) -> bool:
    """A person stops it; False if it was stopped or over."""
    return SQL["pause"].run(conn, {"id": repack, "by": by}) == 1


def resume(conn: Connection, repack: int) -> bool:
    """A person lets it go on."""
    return SQL["resume"].run(conn, {"id": repack}) == 1


def add_index(conn: Connection, repack: int, number: int, index: dict[str, Any], *, is_key: bool) -> None:
    """An index that the copy shall have, as `twin_catalog.indexes` gives it."""
    SQL["add_index"].run(conn, {
        "id": repack, "number": number, "name": index["name"], "statements": list(index["statements"]),
        "is_key": is_key,
        "is_unique": index["is_unique"],
    })  # fmt: skip


def indexes(conn: Connection, repack: int) -> list[Index]:
    """The indexes of a copy, in the order in which they are built."""
    return [
        Index(
            row["number"], row["name"], tuple(row["statements"]), row["is_key"], row["is_unique"], row["is_built"],
            row["is_begun"],
            row["problem"],
        )
        for row in SQL["indexes"].records(conn, {"id": repack})
    ]  # fmt: skip


def index_built(conn: Connection, repack: int, number: int, seconds: float) -> None:
    """An index is built."""
    SQL["index_built"].run(conn, {"id": repack, "number": number, "seconds": seconds})


def index_failed(conn: Connection, repack: int, number: int, problem: str) -> None:
    """Why it could not be built."""
    SQL["index_failed"].run(conn, {"id": repack, "number": number, "problem": problem})


def index_sent(conn: Connection, repack: int, number: int, again: timedelta) -> bool:
    """Whether a message is to be sent for it now."""
    facts = {"id": repack, "number": number, "again": again}
    return SQL["index_sent"].value(conn, facts) is not None


def forget_index(conn: Connection, repack: int, number: int) -> None:
    """An index that the table has lost."""
    SQL["forget_index"].run(conn, {"id": repack, "number": number})


def listing(conn: Connection, *, since: timedelta, limit: int, sizes: bool = True) -> list[dict[str, Any]]:
    """Active requests, and those that ended within `since`, newest first; sizes wait for who moves such a table."""
    return SQL["listing"].records(conn, {"since": since, "limit": limit, "sizes": sizes})


def active(conn: Connection) -> list[tuple[int, str, str]]:
    """(id, schema, table) of every active request."""
    return [(row[0], row[1], row[2]) for row in SQL["active_ids"].rows(conn)]


def own_schemas(conn: Connection) -> list[tuple[str, int]]:
    """(schema, request id) of the schemas of requests that are there."""
    return [(row[0], row[1]) for row in SQL["own_schemas"].rows(conn)]


def relations_in(conn: Connection, schema: str) -> list[str]:
    """The tables in a schema of ours."""
    return [row[0] for row in SQL["relations_in"].rows(conn, {"schema": schema})]


def table_oid(conn: Connection, schema: str, table: str) -> int | None:
    """The oid of the table of this name now."""
    found = SQL["table_oid"].value(conn, {"schema": schema, "table": table})
    return int(found) if found is not None else None


def plan_usage(conn: Connection, plan: str, since: datetime) -> tuple[int, int]:
    """(tables being rewritten, bytes taken on since then) of a plan."""
    row = SQL["plan_usage"].row(conn, {"plan": plan, "since": since})
    assert row is not None
    return int(row[0]), int(row[1])


def forget_old(conn: Connection, older: timedelta) -> int:
    """Delete requests that ended longer ago; how many."""
    return SQL["forget_old"].run(conn, {"older": older})


def log_bytes(conn: Connection, repack: int) -> int:
    """What a request's log takes."""
    return int(SQL["log_bytes"].value(conn, {"id": repack}))


def relation_bytes(conn: Connection, oid: int) -> int:
    """What a table takes, with indexes and TOAST; 0 if it is gone."""
    return int(SQL["copy_bytes"].value(conn, {"oid": oid}) or 0)


def seconds_until_due(conn: Connection, repack: int) -> float:
    """How long a request waits still; negative when it is due."""
    return float(SQL["seconds_until_due"].value(conn, {"id": repack}) or 0)


def try_lock_choice(conn: Connection, plan: str) -> bool:
    """Be the only one who chooses a plan's tables."""
    return bool(SQL["try_lock_choice"].value(conn, {"plan": plan}))


def unlock_choice(conn: Connection, plan: str) -> None:
    """Let others choose."""
    SQL["unlock_choice"].run(conn, {"plan": plan})


def choice_is_due(conn: Connection, plan: str, *, every: timedelta, at_once: int) -> bool:
    """Whether a plan's tables are to be looked at now; they count as looked at for a minute from then on."""
    facts = {"plan": plan, "every": every, "at_once": at_once}
    return SQL["choice_is_due"].value(conn, facts) is not None


def chosen(conn: Connection, plan: str, waiting: int) -> None:
    """How many tables of a plan wait for their turn."""
    SQL["chosen"].run(conn, {"plan": plan, "waiting": waiting})


def outcome(conn: Connection, repack: int) -> dict[str, Any] | None:
    """How a request stands, for the person who asked for it."""
    found = SQL["outcome"].records(conn, {"id": repack})
    return found[0] if found else None


def go_on(conn: Connection, repack: int) -> bool:
    """A person asks again; False when it is paused or over."""
    return SQL["go_on"].run(conn, {"id": repack}) == 1


def sent(conn: Connection, repack: int, run: int | None) -> None:
    """This run follows it, and its message is on its way."""
    SQL["sent"].run(conn, {"id": repack, "run": run})


def whose(conn: Connection, repack: int) -> tuple[bool, bool, datetime] | None:
    """(whether a step is being done, whether a process does it to its end, its last mark)."""
    found = SQL["whose"].row(conn, {"id": repack})
    return (found[0], found[1], found[2]) if found else None


def try_lock_here(conn: Connection, repack: int) -> bool:
    """Be the only process that does it to its end, until this session ends."""
    return bool(SQL["try_lock_here"].value(conn, {"id": repack}))


def cancel_steps(conn: Connection, repack: int) -> list[int]:
    """Cancel the statements of those who work on it; their pids."""
    return [row[0] for row in SQL["cancel_steps"].rows(conn, {"id": repack})]


def next_id(conn: Connection) -> int:
    """The id that the next request gets, if nobody else asks before."""
    return int(SQL["next_id"].value(conn))


def left_triggers(conn: Connection, schema: str) -> list[str]:
    """The statements that drop triggers whose functions are in a schema of ours."""
    return [row[0] for row in SQL["left_triggers"].rows(conn, {"schema": schema})]


def functions_in(conn: Connection, schema: str) -> list[str]:
    """The functions in a schema of ours."""
    return [row[0] for row in SQL["functions_in"].rows(conn, {"schema": schema})]


def room_tables(conn: Connection) -> list[str]:
    """The room's own tables."""
    return [row[0] for row in SQL["room_tables"].rows(conn)]


def forget_migrations(conn: Connection, names: Sequence[str]) -> None:
    """Have the room's tables made anew when they are needed next."""
    SQL["forget_migrations"].run(conn, {"names": list(names)})


def quoted_constraint(conn: Connection, constraint: dict[str, Any]) -> tuple[str, str]:
    """(table, name) of a constraint that `twin_catalog.to_validate` gave, as they are written in a statement."""
    row = SQL["quoted_constraint"].row(conn, {
        "schema": constraint["schema_name"], "table": constraint["table_name"], "name": constraint["constraint_name"],
    })  # fmt: skip
    assert row is not None
    return row[0], row[1]


def failed_of_plan(conn: Connection, plan: str, within: timedelta) -> set[tuple[str, str]]:
    """(schema, table) of a plan's requests that failed within this time."""
    return {(row[0], row[1]) for row in SQL["failed_of_plan"].rows(conn, {"plan": plan, "within": within})}
