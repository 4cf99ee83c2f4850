"""The two kinds of partitions, each looked for and made in its own way: tables like a parent, and PostgreSQL's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from workers import database
from workers.database import Connection
from workers.dispatch import partition_catalog as catalog
from workers.dispatch import periods
from workers.dispatch.names import Table
from workers.dispatch.partition_catalog import Child, NewPartition, Relation
from workers.dispatch.periods import Period
from workers.dispatch_settings import Partition
from workers.errors import PermanentFailure
from workers.sql_files import queries
from workers.targets import Target

SQL = queries("dispatch_partitions")


class NoPlace(PermanentFailure):
    """A destination that cannot take rows as the settings ask; the text says what a person has to do."""


def parent_facts(conn: Connection, parent: Table, target: Target | None) -> Relation:
    """What stands under a parent's name. Raises NoPlace where that is no table."""
    facts = catalog.relation(conn, parent)
    if facts is None or facts.kind not in "rpfv":
        where = f" in {target.name}" if target else ""
        what = "does not exist" if facts is None else "is no table"
        raise NoPlace(f"{parent} {what}{where}; create the table, or give its events another one by `target`")
    return facts


def default_of(children: Sequence[Child]) -> Table | None:
    """The default partition among these, if there is one."""
    return next((child.table for child in children if child.is_default), None)


def axis(moment: datetime) -> datetime:
    """A moment in a column's terms as the catalog's bounds are: naive."""
    return moment.replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Like:
    """A table like a parent, named by its suffix."""

    table: Table
    parent: Table
    layout: Partition
    covers_from: datetime
    key: Sequence[str]
    mode: str

    def look(self, conn: Connection) -> Table | None:
        """The table, if it is there."""
        facts = catalog.relation(conn, self.table)
        if facts is not None and facts.kind not in "rpf":
            raise NoPlace(f"{self.table} is no table, but has the name of one for rows of {self.parent}; rename it")
        return self.table if facts is not None else None

    def make(self, conn: Connection) -> Table:
        """Make it by the template, and register it."""
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
class Native:
    """The native partition of a moment, which is in the terms of the range key's column."""

    parent: Table
    layout: Partition
    moment: datetime
    zone: ZoneInfo

    def look(self, conn: Connection) -> Table | None:
        """The partition that covers the moment, or the default one where late rows go there."""
        known = catalog.children(conn, parent_facts(conn, self.parent, None))
        at = axis(self.moment)
        covering = next((child.table for child in known if child.covers(at)), None)
        if covering is not None or self.layout.late == "create":
            return covering
        newest = max((child.lower for child in known if child.lower), default=at)
        return default_of(known) if at < newest else None

    def make(self, conn: Connection) -> Table:
        """Make the partition of the moment's period, or of what is free of it."""
        facts = parent_facts(conn, self.parent, None)
        known = catalog.children(conn, facts)
        taken = [(child.lower, child.upper) for child in known if child.lower and child.upper]
        try:
            period = periods.period_at(self.moment, self.layout.period, self.zone)
        except (OverflowError, ValueError) as error:
            raise NoPlace(f"{self.parent}: no partition can hold {self.moment}, at the calendar's end") from error
        new = self.plan(conn, period, self.moment, taken, ())
        catalog.execute(conn, catalog.native_step(conn, self.parent, facts, default_of(known), new).statement)
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


def like(
    layout: Partition, parent: Table, facts: Relation, moment: datetime, suffix: str, key: Sequence[str], mode: str
) -> Like:
    """The table like a parent for rows of a moment. Raises NoPlace where none can be."""
    table = Table(parent.schema, f"{parent.name}_{suffix}")
    if facts.kind not in "rp" or facts.is_partition:
        what = "a partition itself" if facts.is_partition else "a view or a foreign table"
        raise NoPlace(f"{parent} is {what}; tables are made like one that stands alone: name that one by `target`")
    if len(table.name.encode()) > database.NAME_BYTES:
        raise NoPlace(f"{table} is longer than a name may be; give it a shorter `target` or `dateformat`")
    since = periods.instant_of(moment, ZoneInfo(layout.timezone))
    return Like(table, parent, layout, since.astimezone(UTC), key, mode)


def native(layout: Partition, parent: Table, facts: Relation, moment: datetime, target: Target | None) -> Native:
    """The native partition for rows of a moment. Raises NoPlace where the parent has none such."""
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
    return Native(parent, layout, at, zone)
