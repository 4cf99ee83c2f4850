"""The table that rows of a moment belong into: found in the catalog, made where it is missing, gone when it is old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from workers import database, logs
from workers.database import Connection
from workers.dispatch import partition_catalog as catalog
from workers.dispatch import periods
from workers.dispatch.names import Table
from workers.dispatch.partition_catalog import PartitionRow, Step
from workers.dispatch.partition_kinds import NoPlace, axis, default_of, like, native, parent_facts
from workers.dispatch_settings import Partition
from workers.errors import RetryLater, ServerUnavailable
from workers.sql_files import queries
from workers.targets import Target

__all__ = ["NoPlace", "PartitionRow", "Result", "Step", "listing", "place", "premake", "retention", "run"]

SQL = queries("dispatch_partitions")
log = logs.get(__name__)

LOCK = timedelta(seconds=10)
# The other session waits less: it may be our own transaction that it waits for, which goes on only afterwards.
SIDE_LOCK = timedelta(seconds=2)
_LOCKED = "55P03"
# Others make tables, too, and know nothing of our lock: the name or the range is taken, or there is a default now.
_OVERTAKEN = ("42P07", "23505", "42710", "42P17", "23514")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a step; `problem` is None where it is done, or somebody else did it."""

    step: Step
    problem: str | None


class _Missing(Protocol):
    """A place that may have to be made: looked for, and made under the lock of its parent."""

    def look(self, conn: Connection) -> Table | None: ...
    def make(self, conn: Connection) -> Table: ...


def place(
    main: Connection,
    target: Target,
    layout: Partition,
    parent: Table,
    *,
    moment: datetime,
    suffix: str | None,
    key: Sequence[str],
    mode: str,
    lock: timedelta = LOCK,
) -> Table:
    """The table for rows of a moment. `main` is the transaction that will write them, and is not committed here.

    `layout` has a real time zone; `moment` is aware, or naive where it is a value of a date or timestamp column;
    `suffix` is what tables of kind like are named by. A new table is made on a connection of its own and committed at
    once (an empty one does no harm), or within `main` where its own locks are in the way. A partition that is
    partitioned itself is returned as it is: PostgreSQL knows where its rows go.
    Raises NoPlace for what a person must mend, RetryLater for locks and lost servers.
    """
    with database.translated(target, main):
        facts = parent_facts(main, parent, target)
        if layout.kind == "none" or (layout.kind == "like" and not suffix):
            return parent
        missing: _Missing
        if layout.kind == "like":
            missing = like(layout, parent, facts, moment, suffix or "", key, mode)
        else:
            missing = native(layout, parent, facts, moment, target)
        found = missing.look(main)
        if found is not None:
            return found
        modes = catalog.BLOCKS_LIKE if layout.kind == "like" else catalog.BLOCKS_ATTACH
        is_in_the_way = catalog.holds_locks(main, parent, facts, modes)
    if not is_in_the_way:
        try:
            with database.connection(target, purpose="dispatch partition") as side:
                table = _made(side, parent, missing, min(lock, SIDE_LOCK))
                side.commit()
                return table
        except RetryLater as error:
            if database.sqlstate(error) != _LOCKED:
                raise
        log.info("dispatch.partition.locked", parent=str(parent))
    with database.translated(target, main):
        return _made(main, parent, missing, lock)


def premake(conn: Connection, layout: Partition, parent: Table, *, now: datetime, lock: timedelta = LOCK) -> list[Step]:
    """The plan that fills what is missing of native partitions from now through the next `layout.premake` periods.

    Nothing to do is an empty list. Raises NoPlace where the parent is not partitioned by time.
    """
    if layout.kind != "native":
        return []
    facts = parent_facts(conn, parent, None)
    found = native(layout, parent, facts, now, None)
    known = catalog.children(conn, facts)
    taken = [(child.lower, child.upper) for child in known if child.lower and child.upper]
    steps, planned = [], list[Table]()
    for period in periods.periods_from(found.moment, layout.period, found.zone, count=layout.premake + 1):
        at = max(period.start, found.moment)
        while at < period.end:
            covering = next((upper for lower, upper in taken if lower <= axis(at) < upper), None)
            if covering is None:
                new = found.plan(conn, period, at, taken, planned)
                steps.append(catalog.native_step(conn, parent, facts, default_of(known), new))
                taken.append((axis(new.lower), axis(new.upper)))
                planned.append(new.table)
                covering = axis(new.upper)
            at = covering.replace(tzinfo=at.tzinfo)
    return [*catalog.opening(conn, parent, lock), *steps] if steps else []


def retention(
    conn: Connection, layout: Partition, parent: Table, *, now: datetime, cutoff: datetime, lock: timedelta = LOCK
) -> list[Step]:
    """The plan by which partitions of ours that end at or before the cutoff leave; never the newest one.

    The caller sees to it that no unfinished batch is older than the cutoff. What others made is not touched.
    """
    if layout.retention_days is None:
        return []
    cutoff = min(cutoff, now)
    old = [
        row
        for row in catalog.registered(conn, parent)
        if row.ends is not None and row.ends <= cutoff and not row.is_newest
    ]
    steps = [catalog.leaving(conn, parent, row, layout.retention) for row in old]
    return [*catalog.opening(conn, parent, lock), *steps] if steps else []


def run(target: Target, steps: Sequence[Step]) -> list[Result]:
    """Do a plan, each step in a transaction of its own; what is locked or refused is reported, and the rest goes on.

    Raises ServerUnavailable when the server goes away.
    """
    opening = [step for step in steps if step.table is None]
    return [Result(step, _problem(target, opening, step)) for step in steps if step.table is not None]


def listing(conn: Connection, parent: Table) -> list[PartitionRow]:
    """A parent's partitions with bounds and sizes, the default partition's with whether it has rows."""
    return catalog.listing(conn, parent)


def _problem(target: Target, opening: Sequence[Step], step: Step) -> str | None:
    try:
        with database.connection(target, purpose="dispatch partitions") as conn:
            for first in opening:
                catalog.execute(conn, first.statement)
            assert step.table is not None
            is_there = catalog.relation(conn, step.table) is not None
            # The plan may be old by now: another session may have done it before this one had the lock.
            if not (is_there if step.makes else not catalog.is_registered(conn, step.table)):
                catalog.execute(conn, step.statement)
            conn.commit()
    except ServerUnavailable:
        raise
    except (RetryLater, database.DatabaseError) as error:
        return f"{step.table}: {database.first_line(error)}"
    return None


def _made(conn: Connection, parent: Table, missing: _Missing, lock: timedelta) -> Table:
    """Make a place under its parent's lock, unless somebody did meanwhile; the rest of the transaction is untouched."""
    kept = SQL["settings"].records(conn)[0]
    for attempt in (1, 2):
        SQL["savepoint"].run(conn)
        try:
            for step in catalog.opening(conn, parent, lock):
                catalog.execute(conn, step.statement)
            table = missing.look(conn) or missing.make(conn)
            SQL["restore_settings"].run(conn, kept)
            SQL["release"].run(conn)
            return table
        except NoPlace:
            SQL["undo"].run(conn)
            raise
        except database.DatabaseError as error:
            code = database.sqlstate(error)
            if conn.closed or code is None:
                raise
            SQL["undo"].run(conn)
            if code in _OVERTAKEN and attempt == 1:
                continue
            if code.startswith(("40", "42501", "53", "55P", "57", "25006")):
                raise  # no event's fault, a missing right included
            raise NoPlace(f"{parent}: no table can be made for its rows: {database.first_line(error)}") from error
    raise AssertionError("a second attempt returns or raises")
