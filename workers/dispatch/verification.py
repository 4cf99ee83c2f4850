"""Verify: the rows of source and target side by side, with what is still on its way between them.

The target's snapshot is taken first, then the source's. What the source has beyond the target's position is in the
queue by then, so that every difference is either in an event that is still to come, or real.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Literal

from workers import database
from workers.database import Connection, DatabaseError
from workers.dispatch import consumers, jsontriga, source_store, store, urlencoded
from workers.dispatch import rules as rules_of
from workers.dispatch import verify_catalog as reading
from workers.dispatch.consumers import Scope
from workers.dispatch.context import Decode, Tables
from workers.dispatch.events import UnknownEvent, kind_of
from workers.dispatch.names import Table
from workers.dispatch.rules import Rules
from workers.dispatch.source_store import Pgq
from workers.dispatch.verify_catalog import Row
from workers.dispatch.verify_sides import Group, Sides, Source, Unlike, both_sides, is_like, relation_of, tables_at
from workers.errors import PermanentFailure
from workers.settings import Settings, did_you_mean

PENDING_EVENTS = 200_000  # so many keys of events on their way are held in memory; beyond them it is not told apart
_OF_THE_TABLE = ("22", "42", "0A", "54")  # errors that say something of this table, not of the server

Verdict = Literal["equal", "pending", "different", "unknown"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One destination against its source. Keys are JSON arrays of texts, the first ones; `*_count` are all.

    `source` is the table's name (more than one where several go there), `looked_at` the tables read at the target,
    `column` what the window is by (None: whole tables), `target_rows` counts distinct keys (or rows, without a key).
    `pending_keys` differ, but events on their way are about them: they are in none of the three lists.
    `pending_events` are those of this table; None: not known. Verdicts: equal; pending: all that differs is on its
    way; different; unknown: it could not be compared, `notes` say why.
    """

    source: str
    destination: str
    looked_at: tuple[str, ...]
    mode: str
    column: str | None
    source_rows: int
    target_rows: int
    missing: tuple[str, ...]
    missing_count: int
    extra: tuple[str, ...]
    extra_count: int
    different: tuple[str, ...]
    different_count: int
    pending_keys: int
    pending_events: int | None
    failed_events: int
    verdict: Verdict
    notes: tuple[str, ...] = ()


def verify(
    settings: Settings,
    name: str,
    *,
    tables: Sequence[str] = (),
    column: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 20,
) -> list[Comparison]:
    """Compare the tables whose triggers write into a consumer's queue, or the named ones of them, with the target.

    `column` is the source's for the window [since, until), by default the one that partitions go by; a moment without
    a zone is UTC, and of a column without a zone the clock's. `limit` is how many keys of each sort are named.
    Raises PermanentFailure for an unknown consumer or table, or one that was never registered; ServerUnavailable.
    """
    scope = consumers.of(settings, name)
    with (
        database.connection(scope.target, purpose=f"dispatch verify {name}") as target,
        database.connection(scope.source, purpose=f"dispatch verify {name}") as source,
    ):
        reading.begin(target, lock_seconds=scope.room.lock_seconds)
        if not store.is_set_up(target):
            raise PermanentFailure(f"{name} was never registered at {scope.target.name}; `headrace dispatch register`")
        standing = store.position(target, scope.name)
        reading.begin(source, lock_seconds=scope.room.lock_seconds)
        zone, encoding = source_store.source_facts(source)
        known = Tables(scope.source, scope.consumer, zone, name=scope.name, memory=target, remembers=False)
        groups = _chosen(_groups(scope, source, known), tables, name)
        tick = standing["tick"] if standing is not None else None
        _note_events(scope, target, known, groups, tick, urlencoded.decoder(encoding))
        return [_compare(scope, source, target, group, (column, since, until), limit) for group in groups.values()]


def _groups(scope: Scope, conn: Connection, known: Tables) -> dict[Table, Group]:
    groups: dict[Table, Group] = {}
    schema, queue = scope.consumer.pgq_schema, scope.queue
    for one in Pgq(conn, schema).tables(queue):
        options = reading.trigger_options(conn, one.table, pgq=schema, queue=queue)
        parts = [(one.table, not one.is_partitioned)]
        if one.is_partitioned:
            leaves = reading.leaves(conn, one.table)
            # Events have the leaves' names; they are the root's unless the settings say otherwise.
            if not scope.consumer.leaf_to_root or any(str(leaf) in scope.consumer.tables for leaf in leaves):
                parts = [(leaf, True) for leaf in leaves]
        for table, only in parts:
            named, rules = _named(scope, known, table)
            if rules is not None:
                key = rules.key or options.get("pkey") or one.key
                found = Source(table, named, rules, key, frozenset(options.get("ignore", ())), only)
                groups.setdefault(rules.destination, Group(rules)).sources.append(found)
    return groups


def _named(scope: Scope, known: Tables, table: str | Table) -> tuple[Table, Rules | None]:
    """A source table under the name that the settings have for it, with its rules."""
    found, own = known.rules(table)
    return rules_of.stripped(scope.consumer, found), own


def _chosen(groups: dict[Table, Group], wanted: Sequence[str], name: str) -> dict[Table, Group]:
    names = {
        str(one): where
        for where, group in groups.items()
        for source in group.sources
        for one in (source.table, source.named)
    }
    if not names:
        raise PermanentFailure(f"no trigger of a table that {name} takes writes into its queue; `dispatch triggers`")
    for one in wanted:
        if one not in names:
            raise PermanentFailure(f"{name} has no source table {one!r} with a trigger{did_you_mean(one, names)}")
    chosen = {names[one] for one in wanted} or set(groups)
    return {where: group for where, group in groups.items() if where in chosen}


def _note_events(
    scope: Scope, target: Connection, known: Tables, groups: dict[Table, Group], tick: int | None, decode: Decode
) -> None:
    """Count the failed events of each destination, and the keys of those that are on their way to it."""

    def of(type_: str | None, extra1: str | None, extra2: str | None, data: str) -> tuple[Group, Source, str] | None:
        try:
            kind = kind_of(type_ or "", extra1 or "", extra2, data)
        except UnknownEvent:
            return None
        named, rules = _named(scope, known, kind.table)
        group = groups.get(rules.destination) if rules is not None else None
        source = next((one for one in group.sources if one.named == named), None) if group is not None else None
        return (group, source, kind.op) if group is not None and source is not None else None

    for type_, extra1, extra2, count in reading.failed_kinds(target, scope.name):
        if (found := of(type_, extra1, extra2, "")) is not None:
            found[0].failed += count
    # A connection of its own: what it locks would keep PgQ from rotating its tables for as long as we compare.
    with database.connection(scope.source, purpose="dispatch verify events") as conn:
        if tick is None or Pgq(conn, scope.consumer.pgq_schema).tick_time(scope.queue, tick) is None:
            for group in groups.values():
                group.pending = None
            return
        seen = 0
        events = reading.events_after(conn, scope.consumer.pgq_schema, scope.queue, tick, limit=PENDING_EVENTS + 1)
        for type_, extra1, extra2, data in events:
            seen += 1
            if (found := of(type_, extra1, extra2, data or "")) is None:
                continue
            group, source, op = found
            assert group.pending is not None
            group.pending += 1
            group.truncated |= op == "R"
            try:
                row = (jsontriga.decode if (type_ or "")[:1] == "{" else decode)(data or "")
            except ValueError:
                continue  # it will be a failed event
            key = [value for column in source.key if (value := row.get(column)) is not None]
            if source.key and len(key) == len(source.key):
                group.keys.add((source.table, tuple(key)))
    if seen > PENDING_EVENTS:
        for group in groups.values():
            group.pending = None


@dataclass(slots=True)
class _Tally:
    """The keys of one sort: how many, and the first."""

    limit: int
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, key: str) -> None:
        self.count += 1
        if self.count <= self.limit:
            self.first.append(key)


@dataclass(slots=True)
class _Found:
    """What the rows say."""

    missing: _Tally
    extra: _Tally
    different: _Tally
    source_rows: int = 0
    target_rows: int = 0
    pending: int = 0


def _compare(
    scope: Scope,
    source: Connection,
    target: Connection,
    group: Group,
    window: tuple[str | None, datetime | None, datetime | None],
    limit: int,
) -> Comparison:
    rules = group.rules
    found = _Found(_Tally(limit), _Tally(limit), _Tally(limit))
    looked_at: list[Table] = []
    sides: Sides | None = None
    notes: list[str] = []
    verdict: Verdict = "unknown"
    for conn in (source, target):
        reading.savepoint(conn)
    try:
        looked_at = tables_at(target, rules)
        sides = both_sides(source, target, group, looked_at, window)
        notes = sides.notes
        pending = _pending_keys(source, sides, group)
        if sides.has_key:
            _read(source, target, sides, rules, pending, group.truncated, found)
        else:
            found.source_rows = reading.count(source, sides.source)
            found.target_rows = reading.count(target, sides.target)
        verdict = _verdict(scope.name, group, sides, found, notes)
    except (DatabaseError, Unlike) as error:
        if isinstance(error, DatabaseError) and (database.sqlstate(error) or "")[:2] not in _OF_THE_TABLE:
            raise
        for conn in (source, target):
            reading.roll_back(conn)
        notes.append(database.first_line(error))
    return Comparison(
        source=", ".join(dict.fromkeys(str(one.named) for one in group.sources)),
        destination=str(rules.destination),
        looked_at=tuple(map(str, looked_at)),
        mode=rules.mode,
        column=sides.column if sides is not None else None,
        source_rows=found.source_rows,
        target_rows=found.target_rows,
        missing=tuple(found.missing.first),
        missing_count=found.missing.count,
        extra=tuple(found.extra.first),
        extra_count=found.extra.count,
        different=tuple(found.different.first),
        different_count=found.different.count,
        pending_keys=found.pending,
        pending_events=group.pending,
        failed_events=group.failed,
        verdict=verdict,
        notes=tuple(notes),
    )


def _pending_keys(source: Connection, sides: Sides, group: Group) -> set[str]:
    """The keys that events on their way are about, in the words of the source; `group.pending` None: not known."""
    found: set[str] = set()
    if not sides.has_key or group.pending is None:
        return found
    reading.savepoint(source)
    try:
        for branch in sides.source:
            relation = relation_of(source, branch.table, "source")
            types = [relation.columns[str(value.column)].type for value in branch.key]
            names = next(one.key for one in group.sources if one.table == branch.table)
            order = [names.index(str(value.column)) for value in branch.key]
            texts = [tuple(key[place] for place in order) for table, key in group.keys if table == branch.table]
            found.update(reading.as_keys(source, branch.key, types, texts))
    except DatabaseError as error:
        if (database.sqlstate(error) or "")[:2] not in _OF_THE_TABLE:
            raise
        reading.roll_back(source)
        sides.notes.append(f"the keys of events on their way cannot be read: {database.first_line(error)}")
        group.pending = None
    return found


def _read(
    source: Connection,
    target: Connection,
    sides: Sides,
    rules: Rules,
    pending: set[str],
    all_pending: bool,
    found: _Found,
) -> None:
    """Stream both sides past each other."""
    with (
        closing(reading.stream(source, sides.source, "versions")) as at_source,
        closing(reading.stream(target, sides.target, sides.how)) as at_target,
    ):
        for key, ours, theirs in _merged(at_source, at_target):
            found.source_rows += len(ours)
            found.target_rows += bool(theirs)
            if ours and theirs:
                # plain has as many rows as the source; elsewhere one of the versions that may be the newest is enough.
                if sorted(map(str, ours)) == sorted(map(str, theirs)):
                    continue
                if rules.mode != "plain" and not set(ours).isdisjoint(theirs):
                    continue
                tally = found.different
            else:
                tally = found.missing if ours else found.extra
            if all_pending or key in pending:
                found.pending += 1
            else:
                tally.add(key)


def _merged(source: Iterable[Row], target: Iterable[Row]) -> Iterator[tuple[str, list[str | None], list[str | None]]]:
    """(key, digests at the source, digests at the target); Python orders texts as UTF-8 orders their bytes."""
    left, right = _by_key(source), _by_key(target)
    ours, theirs = next(left, None), next(right, None)
    while ours is not None or theirs is not None:
        key = min(one[0] for one in (ours, theirs) if one is not None)
        of_source, of_target = list[str | None](), list[str | None]()
        if ours is not None and ours[0] == key:
            of_source, ours = ours[1], next(left, None)
        if theirs is not None and theirs[0] == key:
            of_target, theirs = theirs[1], next(right, None)
        yield key, of_source, of_target


def _by_key(rows: Iterable[Row]) -> Iterator[tuple[str, list[str | None]]]:
    for key, same in groupby(rows, key=itemgetter(0)):
        yield key, [digest for _key, digest in same]


def _verdict(name: str, group: Group, sides: Sides, found: _Found, notes: list[str]) -> Verdict:
    """Judge what was found, and say what may have led to it."""
    rules = group.rules
    wrong = found.missing.count + found.different.count
    if not sides.has_key:
        less = found.target_rows < found.source_rows
        wrong = less if rules.mode == "keep_all" else found.target_rows != found.source_rows
        if wrong and group.pending:
            return "pending"
    if found.extra.count:
        why = _why_extra(rules, is_windowed=sides.column is not None)
        if why is None:
            wrong += found.extra.count
        else:
            notes.append(f"{found.extra.count} rows only at the target: {why}")
    if found.missing.count:
        notes.append("rows that did not change since the consumer was registered have no event")
        if rules.partition.retention_days is not None:
            notes.append(f"partitions leave after {rules.partition.retention_days:g} days; give --since")
    if wrong and group.failed:
        notes.append(f"{group.failed} events of it could not be applied: `headrace dispatch failed {name}`")
    if group.pending is None:
        notes.append("what is on its way is not known, or too much to tell apart; give --until")
        return "unknown" if wrong else "equal"
    if wrong:
        return "different"
    return "pending" if found.pending else "equal"


def _why_extra(rules: Rules, *, is_windowed: bool) -> str | None:
    """Why rows may be at the target alone; None: they may not."""
    if rules.mode == "keep_all":
        return "keep_all keeps what is deleted at the source"
    if rules.on_delete == "ignore" or rules.on_truncate == "ignore":
        return "the settings ignore deletes or truncates"
    is_cut = rules.partition.kind == "native" or is_like(rules)
    if rules.mode == "keep_latest" and is_cut and (rules.on_delete == "delete" or is_windowed):
        return "versions of older days, of rows that were deleted or changed since"
    return None
