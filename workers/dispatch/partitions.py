"""The table that rows of a moment belong into: found in the catalog, made where it is missing, gone when it is old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from workers import database, logs
from workers.database import Connection
from workers.dispatch import partition_catalog as catalog
from workers.dispatch import periods
from workers.dispatch.names import Table
from workers.dispatch.partition_catalog import Child, NewPartition, PartitionRow, Relation, Step
from workers.dispatch.periods import Period
from workers.dispatch_settings import Partition
from workers.errors import PermanentFailure, RetryLater, ServerUnavailable
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


class NoPlace(PermanentFailure):
    """A destination that cannot take rows as the settings ask; the text says what a person has to do."""


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
        facts = _parent(main, parent, target)
        if layout.kind == "none" or (layout.kind == "like" and not suffix):
            return parent
        missing: _Missing
        if layout.kind == "like":
            missing = _like(layout, parent, facts, moment, suffix or "", key, mode)
        else:
            missing = _native(layout, parent, facts, moment, target)
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
    facts = _parent(conn, parent, None)
    native = _native(layout, parent, facts, now, None)
    known = catalog.children(conn, facts)
    taken = [(child.lower, child.upper) for child in known if child.lower and child.upper]
    steps, planned = [], list[Table]()
    for period in periods.periods_from(native.moment, layout.period, native.zone, count=layout.premake + 1):
        at = max(period.start, native.moment)
        while at < period.end:
            covering = next((upper for lower, upper in taken if lower <= _axis(at) < upper), None)
            if covering is None:
                new = native.plan(conn, period, at, taken, planned)
                steps.append(catalog.native_step(conn, parent, facts, _default(known), new))
                taken.append((_axis(new.lower), _axis(new.upper)))
                planned.append(new.table)
                covering = _axis(new.upper)
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
            if code.startswith(("40", "53", "55P", "57", "25006")):
                raise
            raise NoPlace(f"{parent}: no table can be made for its rows: {database.first_line(error)}") from error
    raise AssertionError("a second attempt returns or raises")


def _parent(conn: Connection, parent: Table, target: Target | None) -> Relation:
    facts = catalog.relation(conn, parent)
    if facts is None or facts.kind not in "rpfv":
        where = f" in {target.name}" if target else ""
        what = "does not exist" if facts is None else "is no table"
        raise NoPlace(f"{parent} {what}{where}; create the table, or give its events another one by `target`")
    return facts


def _default(children: Sequence[Child]) -> Table | None:
    return next((child.table for child in children if child.is_default), None)


def _axis(moment: datetime) -> datetime:
    """A moment in a column's terms as the catalog's bounds are: naive."""
    return moment.replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class _Like:
    table: Table
    parent: Table
    layout: Partition
    covers_from: datetime
    key: Sequence[str]
    mode: str

    def look(self, conn: Connection) -> Table | None:
        facts = catalog.relation(conn, self.table)
        if facts is not None and facts.kind not in "rpf":
            raise NoPlace(f"{self.table} is no table, but has the name of one for rows of {self.parent}; rename it")
        return self.table if facts is not None else None

    def make(self, conn: Connection) -> Table:
        template = self.layout.part_template
        try:
            text = catalog.like_text(conn, self.table, self.parent, template, self.key, self.mode)
        except ValueError as error:
            raise NoPlace(f"{self.parent}: {error}") from error
        safe = SQL["settings"].records(conn)[0]
        if template is not None:
            SQL["people_path"].run(conn)
        catalog.execute(conn, text)
        SQL["restore_settings"].run(conn, safe)
        if self.look(conn) is None:
            raise NoPlace(f"{self.parent}: its part_template made no table {self.table}; it must create _DEST_TABLE")
        catalog.execute(conn, catalog.registration(conn, self.table, self.parent, self.covers_from))
        return self.table


@dataclass(frozen=True, slots=True)
class _Native:
    parent: Table
    layout: Partition
    moment: datetime  # in the column's terms
    zone: ZoneInfo

    def look(self, conn: Connection) -> Table | None:
        known = catalog.children(conn, _parent(conn, self.parent, None))
        at = _axis(self.moment)
        covering = next((child.table for child in known if child.covers(at)), None)
        if covering is not None or self.layout.late == "create":
            return covering
        newest = max((child.lower for child in known if child.lower), default=at)
        return _default(known) if at < newest else None

    def make(self, conn: Connection) -> Table:
        facts = _parent(conn, self.parent, None)
        known = catalog.children(conn, facts)
        taken = [(child.lower, child.upper) for child in known if child.lower and child.upper]
        try:
            period = periods.period_at(self.moment, self.layout.period, self.zone)
        except (OverflowError, ValueError) as error:
            raise NoPlace(f"{self.parent}: no partition can hold {self.moment}, at the calendar's end") from error
        new = self.plan(conn, period, self.moment, taken, ())
        catalog.execute(conn, catalog.native_step(conn, self.parent, facts, _default(known), new).statement)
        return new.table

    def plan(
        self,
        conn: Connection,
        period: Period,
        at: datetime,
        taken: Sequence[tuple[datetime, datetime]],
        planned: Sequence[Table],
    ) -> NewPartition:
        """A partition for what is free of a period around a moment."""
        aware = [(lower.replace(tzinfo=at.tzinfo), upper.replace(tzinfo=at.tzinfo)) for lower, upper in taken]
        lower, upper = periods.gap_at(period, at, aware)
        table = catalog.free_name(conn, self.parent, period.label, planned=planned)
        if table is None:
            raise NoPlace(f"{self.parent}_p{period.label} is longer than a name may be; give it a shorter `target`")
        since, until = (periods.instant_of(moment, self.zone) for moment in (lower, upper))
        return NewPartition(table, lower, upper, since, until)


def _like(
    layout: Partition, parent: Table, facts: Relation, moment: datetime, suffix: str, key: Sequence[str], mode: str
) -> _Like:
    table = Table(parent.schema, f"{parent.name}_{suffix}")
    if facts.kind not in "rp" or facts.is_partition:
        what = "a partition itself" if facts.is_partition else "a view or a foreign table"
        raise NoPlace(f"{parent} is {what}; tables are made like one that stands alone: name that one by `target`")
    if len(table.name.encode()) > database.NAME_BYTES:
        raise NoPlace(f"{table} is longer than a name may be; give it a shorter `target` or `dateformat`")
    since = periods.instant_of(moment, ZoneInfo(layout.timezone))
    return _Like(table, parent, layout, since.astimezone(UTC), key, mode)


def _native(layout: Partition, parent: Table, facts: Relation, moment: datetime, target: Target | None) -> _Native:
    how = "create it with PARTITION BY RANGE (one column of type timestamptz, timestamp or date)"
    if facts.strategy != "r" or facts.key_columns != 1 or facts.column is None:
        what = "not partitioned" if facts.strategy is None else "not partitioned by the range of one column"
        where = f" in {target.name}" if target else ""
        raise NoPlace(f"{parent}{where} is {what}; {how}, or use kind: like")
    if facts.type not in (catalog.INSTANT, catalog.CLOCK, catalog.DATE):
        raise NoPlace(f"{parent} is partitioned by {facts.column} of type {facts.type}; {how}")
    if facts.type == catalog.DATE and layout.period == "hour":
        raise NoPlace(f"{parent} is partitioned by {facts.column}, a date, which has no hours; use period: day")
    if layout.field is not None and layout.field != facts.column:
        raise NoPlace(f"{parent} is partitioned by {facts.column}; set by: field:{facts.column} for it")
    zone = ZoneInfo(layout.timezone)
    at = periods.in_terms_of_column(moment, zone, is_instant=facts.type == catalog.INSTANT)
    return _Native(parent, layout, at, zone)
