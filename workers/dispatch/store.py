"""Dispatch's own tables at the target, as typed functions: positions, slices, failed events. The caller commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg2 import sql

from workers.database import Connection
from workers.dispatch.names import Table
from workers.sql_files import queries

SQL = queries("dispatch")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a consumer stands. `sliced_tick` and `slices` are those of a batch that is being applied in slices."""

    queue: str
    registered_as: str
    tick: int | None
    tick_at: datetime | None
    state: str
    problem: str | None
    sliced_tick: int | None
    slices: int | None


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event that could not be applied, as it is read again for a replay."""

    id: int
    tick: int
    batch_end: datetime
    ev_id: int
    ev_time: datetime | None
    ev_type: str | None
    ev_data: str | None
    ev_extra1: str | None
    ev_extra2: str | None


def begin(conn: Connection, *, lock_seconds: float) -> None:
    """Open the transaction of a batch: how long locks are waited for, and how values are read."""
    SQL["begin_batch"].run(conn, {"milliseconds": str(int(lock_seconds * 1000))})


def wait_for_locks(conn: Connection, seconds: float) -> None:
    """How long locks are waited for until the transaction ends."""
    SQL["wait_for_locks"].run(conn, {"milliseconds": str(int(seconds * 1000))})


def lock(conn: Connection, consumer: str) -> Position | None:
    """The position, locked for this transaction alone; None where there is none."""
    row = SQL["lock_position"].row(conn, {"consumer": consumer})
    return None if row is None else Position(*row)


def share(conn: Connection, consumer: str) -> Position | None:
    """The position, shared with other slices of its batch."""
    row = SQL["share_position"].row(conn, {"consumer": consumer})
    return None if row is None else Position(*row)


def position(conn: Connection, consumer: str) -> dict[str, Any] | None:
    """Where a consumer stands, for people."""
    rows = SQL["position"].records(conn, {"consumer": consumer})
    return rows[0] if rows else None


def is_parked(conn: Connection, consumer: str) -> bool | None:
    """Whether a consumer waits for a person; None where it has no position."""
    row = SQL["is_parked"].row(conn, {"consumer": consumer})
    return None if row is None else bool(row[0])


def insert(conn: Connection, consumer: str, queue: str, registered_as: str, tick: int, at: datetime | None) -> bool:
    """Give a consumer its first position; False when it has one."""
    facts = {"consumer": consumer, "queue": queue, "registered_as": registered_as, "tick": tick, "tick_at": at}
    return bool(SQL["insert_position"].run(conn, facts))


def set_to(conn: Connection, consumer: str, queue: str, registered_as: str, tick: int, at: datetime | None) -> None:
    """Move a position by hand; the consumer is active again."""
    facts = {"consumer": consumer, "queue": queue, "registered_as": registered_as, "tick": tick, "tick_at": at}
    SQL["set_position"].run(conn, facts)
    SQL["forget_slices"].run(conn, {"consumer": consumer, "tick": 2**62})


def move(conn: Connection, consumer: str, *, tick: int, at: datetime, events: int, failed: int) -> None:
    """A batch is applied up to this tick."""
    facts = {"consumer": consumer, "tick": tick, "tick_at": at, "events": events, "failed": failed}
    SQL["move_position"].run(conn, facts)
    SQL["forget_slices"].run(conn, {"consumer": consumer, "tick": tick})


def park(conn: Connection, consumer: str, queue: str, registered_as: str, problem: str) -> bool:
    """Stop a consumer until a person has looked; False when it was parked.

    One without a row gets one; if somebody registers it at this moment, it is left as it is then.
    """
    facts = {"consumer": consumer, "queue": queue, "registered_as": registered_as, "problem": problem}
    return bool(SQL["park" if exists(conn, consumer) else "insert_parked"].run(conn, facts))


def forget(conn: Connection, consumer: str) -> bool:
    """Take a consumer's position away, with its slices; False when it had none."""
    return bool(SQL["forget_position"].run(conn, {"consumer": consumer}))


def resume(conn: Connection, consumer: str) -> bool:
    """Let a parked consumer go on from where it stands; False when it was not parked or has no position."""
    return bool(SQL["resume"].run(conn, {"consumer": consumer}))


def mark_sent(conn: Connection, consumer: str, tick: int, *, again_after: float) -> bool:
    """Whether the message of this batch is to go out now: not when it did so a moment ago, or a worker is at it."""
    return bool(SQL["mark_sent"].run(conn, {"consumer": consumer, "tick": tick, "seconds": again_after}))


def is_set_up(conn: Connection) -> bool:
    """Whether our tables are here."""
    return bool(SQL["is_set_up"].value(conn))


def hold_back(conn: Connection, consumer: str, seconds: float, problem: str) -> None:
    """An attempt failed for good, and why: the message of its batch is not sent again for so long."""
    SQL["hold_back"].run(conn, {"consumer": consumer, "seconds": seconds, "problem": problem})


def was_told_lately(conn: Connection, event: str, subject: str) -> bool:
    """Whether people have had an alert of this within the last hour."""
    return bool(SQL["was_told_lately"].value(conn, {"event": event, "subject": subject}))


def exists(conn: Connection, consumer: str) -> bool:
    """Whether a consumer has a position."""
    return bool(SQL["position_exists"].value(conn, {"consumer": consumer}))


def note_late(conn: Connection, consumer: str, *, is_late: bool) -> bool:
    """Note that a consumer is late, or in time again; whether that is news."""
    return bool(SQL["late" if is_late else "in_time"].run(conn, {"consumer": consumer}))


def plan_slices(conn: Connection, consumer: str, tick: int, slices: int) -> None:
    """The batch in hand is applied in this many slices."""
    SQL["plan_slices"].run(conn, {"consumer": consumer, "tick": tick, "slices": slices})


def take_slice(conn: Connection, consumer: str, tick: int, number: int) -> bool:
    """Make a slice this transaction's; False when it is applied already."""
    return bool(SQL["take_slice"].run(conn, {"consumer": consumer, "tick": tick, "slice": number}))


def count_slice(conn: Connection, consumer: str, tick: int, number: int, *, events: int, failed: int) -> None:
    """What a slice came to."""
    facts = {"consumer": consumer, "tick": tick, "slice": number, "events": events, "failed": failed}
    SQL["count_slice"].run(conn, facts)


def slices_done(conn: Connection, consumer: str, tick: int) -> dict[int, tuple[int, int]]:
    """Slice -> (events, failed) of those that are applied."""
    rows = SQL["slices_done"].rows(conn, {"consumer": consumer, "tick": tick})
    return {row[0]: (row[1], row[2]) for row in rows}


def keep_failed(conn: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep events that could not be applied."""
    for row in rows:
        SQL["insert_failed"].run(conn, row)


def waiting_keys(conn: Connection, consumer: str) -> dict[str, set[str]]:
    """Destination -> keys of the rows that failed events are about."""
    found: dict[str, set[str]] = {}
    for destination, key in SQL["waiting_keys"].rows(conn, {"consumer": consumer}):
        found.setdefault(destination, set()).add(key)
    return found


def supersede(
    conn: Connection, consumer: str, destination: str, keys: Sequence[str], *, below: int | None = None
) -> int:
    """Failed events of these rows must not come back: later ones were applied. `below`: only those with lower ids."""
    facts = {"consumer": consumer, "destination": destination, "keys": list(keys), "below": below}
    return SQL["supersede"].run(conn, facts)


def supersede_all(conn: Connection, consumer: str, destinations: Sequence[str], *, below: int | None = None) -> int:
    """No failed event of these destinations must come back: they were truncated. `below`: only those with lower ids."""
    facts = {"consumer": consumer, "destinations": list(destinations), "below": below}
    return SQL["supersede_all"].run(conn, facts)


def remember_leaf(conn: Connection, consumer: str, leaf: Table, root: Table) -> None:
    """Which partitioned table a leaf at the source belongs to."""
    facts = {"consumer": consumer, "leaf_schema": leaf.schema, "leaf_name": leaf.name}
    SQL["remember_leaf"].run(conn, facts | {"root_schema": root.schema, "root_name": root.name})


def remembered_root(conn: Connection, consumer: str, leaf: Table) -> Table | None:
    """Where a leaf belonged that the source does not have any more; None for an unknown one."""
    facts = {"consumer": consumer, "leaf_schema": leaf.schema, "leaf_name": leaf.name}
    row = SQL["remembered_root"].row(conn, facts)
    return None if row is None else Table(*row)


def failed_to_replay(
    conn: Connection, consumer: str, ids: Sequence[int] | None, *, after: int, limit: int
) -> list[FailedEvent]:
    """The next failed events to try again, locked, in their order."""
    facts = {"consumer": consumer, "ids": list(ids) if ids else None, "after": after, "limit": limit}
    return [FailedEvent(*row) for row in SQL["failed_to_replay"].rows(conn, facts)]


def settle_failed(conn: Connection, consumer: str, ids: Sequence[int], state: str) -> int:
    """Failed events that are over: replayed, superseded or dropped."""
    return SQL["settle_failed"].run(conn, {"consumer": consumer, "ids": list(ids), "state": state})


def wait_again(conn: Connection, event: int, error: str, sqlstate: str | None) -> None:
    """A failed event still cannot be applied, and why."""
    SQL["wait_again"].run(conn, {"id": event, "error": error, "sqlstate": sqlstate})


def failed_events(conn: Connection, consumer: str, *, every: bool, limit: int) -> list[dict[str, Any]]:
    """Failed events for people, newest first."""
    return SQL["failed_events"].records(conn, {"consumer": consumer, "every": every, "limit": limit})


def count_failed(conn: Connection, consumer: str) -> tuple[int, datetime | None, str | None]:
    """How many failed events wait, since when, and the newest one's reason."""
    row = SQL["count_failed"].row(conn, {"consumer": consumer})
    assert row is not None
    return row[0], row[1], row[2]


def come_again(conn: Connection, consumer: str, tick: int) -> int:
    """Failed events after this tick come again with their batches, and fail again then, or do not."""
    return SQL["come_again"].run(conn, {"consumer": consumer, "tick": tick})


def drop_failed(conn: Connection, consumer: str, ids: Sequence[int] | None) -> int:
    """Give failed events up; how many."""
    return SQL["drop_failed"].run(conn, {"consumer": consumer, "ids": list(ids) if ids else None})


def forget_settled(conn: Connection, older: timedelta) -> int:
    """Delete failed events that were settled longer ago than this."""
    return SQL["forget_settled"].run(conn, {"older": older})


def suffix(conn: Connection, moment: datetime, dateformat: str, zone: str) -> str:
    """A moment in a to_char() format; an aware one in the zone, a naive one as it is."""
    facts = {"moment": moment, "format": dateformat}
    if moment.tzinfo is None:
        return str(SQL["local_suffix"].value(conn, facts))
    SQL["set_zone"].run(conn, {"zone": zone})
    try:
        return str(SQL["suffix"].value(conn, facts))
    finally:
        SQL["set_zone"].run(conn, {"zone": "UTC"})


def has_pgq_ext(conn: Connection) -> bool:
    """Whether cube_dispatcher's bookkeeping is at this target."""
    return bool(SQL["has_pgq_ext"].value(conn))


def completed_tick(conn: Connection, registered_as: str) -> int | None:
    """How far cube_dispatcher has come; None when it has no mark here."""
    function = sql.Identifier("pgq_ext", "get_last_tick")
    found: int | None = SQL["completed_tick"].with_slots(function=function).value(conn, {"consumer": registered_as})
    return found


def set_completed_tick(conn: Connection, registered_as: str, tick: int) -> None:
    """Keep cube_dispatcher's mark in step."""
    function = sql.Identifier("pgq_ext", "set_last_tick")
    SQL["set_completed_tick"].with_slots(function=function).run(conn, {"consumer": registered_as, "tick": tick})
