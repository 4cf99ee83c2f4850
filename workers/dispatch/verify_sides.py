"""The two sides of a comparison: which relations, columns and keys of source and target are read against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from workers.database import Connection
from workers.dispatch import catalog, partition_catalog
from workers.dispatch.catalog import Relation
from workers.dispatch.names import Table
from workers.dispatch.rules import Rules
from workers.dispatch.verify_catalog import Branch, Reading, Value, Window


@dataclass(slots=True)
class Source:
    """A table that is read at the source; `key` and `ignored` are its own columns."""

    table: Table
    named: Table
    rules: Rules
    key: tuple[str, ...]
    ignored: frozenset[str]
    only: bool


@dataclass(slots=True)
class Group:
    """The source tables of one destination, and the events about them that are not applied."""

    rules: Rules
    sources: list[Source] = field(default_factory=list)
    pending: int | None = 0
    failed: int = 0
    keys: set[tuple[Table, tuple[str, ...]]] = field(default_factory=set)
    truncated: bool = False


class Unlike(Exception):
    """Source and target cannot be compared; the text says why."""


@dataclass(slots=True)
class Sides:
    """What is read, and how; `column` is that of the window, at the target."""

    source: list[Branch]
    target: list[Branch]
    how: Reading
    column: str | None
    has_key: bool
    notes: list[str]


def tables_at(target: Connection, rules: Rules) -> list[Table]:
    """The tables that rows of a destination are in, the oldest first."""
    if not is_like(rules):
        return [rules.destination]
    ours = partition_catalog.registered(target, rules.destination)
    return [one.table for one in ours if one.kind == "like" and one.is_there]


def is_like(rules: Rules) -> bool:
    """Whether a destination's rows are in tables like it."""
    return rules.partition.kind == "like" and bool(rules.partition.dateformat)


def both_sides(
    source: Connection,
    target: Connection,
    group: Group,
    tables: Sequence[Table],
    window: tuple[str | None, datetime | None, datetime | None],
) -> Sides:
    """Work out which columns of which relations are compared. Raises Unlike."""
    rules, notes = group.rules, list[str]()
    here = [(one, relation_of(source, one.table, "source")) for one in group.sources]
    there = [relation_of(target, table, "target") for table in tables]
    if not there:
        notes.append(f"no table like {rules.destination} was made here yet")
        there = [relation_of(target, rules.destination, "target")]
    columns = {name: column for relation in there for name, column in relation.columns.items()}
    cut_by = catalog.range_key(target, rules.destination) if rules.partition.kind == "native" else None
    ours = {*rules.meta, cut_by[0] if cut_by and rules.partition.field is None else None}
    pairs = [
        {
            to: name
            for name in relation.columns
            if (to := rules.renamed(name)) in columns and to is not None and to not in ours
            and not columns[to].is_generated and name not in one.ignored
        }
        for one, relation in here
    ]  # fmt: skip
    keys = [{rules.renamed(name) or name: name for name in one.key} for one, relation in here]
    key = tuple(keys[0])
    has_key = bool(key) and all(
        set(names) == set(key) and set(names.values()) <= set(relation.columns)
        for names, (_one, relation) in zip(keys, here, strict=True)
    ) and set(key) <= set(columns)  # fmt: skip
    if not has_key:
        notes.append("rows are only counted: they have no key that source and target share")
    version = "_ev_id" if "_ev_id" in rules.meta and "_ev_id" in columns else None
    op = "_op" if "_op" in rules.meta and "_op" in columns else None
    has_values = has_key and (rules.mode != "keep_all" or version is not None)
    if has_key and not has_values:
        notes.append("only keys are compared: without _ev_id nobody knows a row's newest version in keep_all")
    compared = sorted({to for pair in pairs for to in pair} - set(key)) if has_values else []
    how: Reading = "newest"
    if rules.mode == "plain":
        how = "versions"
    elif version is None and (rules.mode == "keep_all" or rules.partition.field is not None):
        how = "kinds_of_versions"

    def at_source(relation: Relation, name: str | None, to: str) -> Value:
        if name is None:
            return Value(None)
        type_ = columns[to].type
        # A type that is not PostgreSQL's own has its schema before it, and need not be there at the source.
        is_cast = relation.columns[name].type != type_ and "." not in type_
        return Value(name, type_ if is_cast else None)

    by, bounds = _window_column(rules, columns, window, notes)
    branches = []
    for (one, relation), pair, names in zip(here, pairs, keys, strict=True):
        name = None
        if by is not None:
            name = next((name for name in relation.columns if rules.renamed(name) == by), None)
            if name is None or not relation.columns[name].is_time:
                raise Unlike(f"{one.table} has no date or time {name or by!r}; give another --column")
        branches.append(
            Branch(
                table=one.table, only=one.only,
                key=tuple(at_source(relation, names[to], to) for to in key) if has_key else (),
                values=tuple(at_source(relation, pair.get(to), to) for to in compared) if has_values else None,
                window=_window(relation, name, bounds),
            )
        )  # fmt: skip
    at_target = [
        Branch(
            table=relation.table,
            key=tuple(_if_there(relation, to) for to in key) if has_key else (),
            values=tuple(_if_there(relation, to) for to in compared) if has_values else None,
            window=_window(relation, by, bounds),
            op=op if op in relation.columns else None,
            version=version if version in relation.columns else None,
            rank=rank,
            at=cut_by[0] if cut_by else None,
        )
        for rank, relation in enumerate(there)
    ]
    return Sides(branches, at_target if tables else [], how, by, has_key, notes)


def relation_of(conn: Connection, table: Table, where: str) -> Relation:
    """What is under a name on one side. Raises Unlike where there is nothing."""
    found = catalog.relation(conn, table)
    if found is None:
        raise Unlike(f"{table} is not there at the {where}")
    return found


def _if_there(relation: Relation, column: str) -> Value:
    return Value(column if column in relation.columns else None)


def _window_column(
    rules: Rules,
    columns: dict[str, catalog.Column],
    window: tuple[str | None, datetime | None, datetime | None],
    notes: list[str],
) -> tuple[str | None, tuple[str | None, str | None]]:
    """The target's column for the window, None without one, and the bounds as texts in UTC."""
    wanted, since, until = window
    if since is None and until is None:
        return None, (None, None)
    by = rules.renamed(wanted) if wanted is not None else rules.partition.field
    if wanted is None and by is None:
        notes.append("whole tables are compared: no column says where a row belongs; give --column")
        return None, (None, None)
    if by not in columns or not columns[by].is_time:
        raise Unlike(f"{rules.destination} has no date or time {by or wanted!r}; give another --column")
    return by, (_text(since), _text(until))


def _text(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).replace(tzinfo=None).isoformat(sep=" ")


def _window(relation: Relation, column: str | None, bounds: tuple[str | None, str | None]) -> Window | None:
    if column is None:
        return None
    if column not in relation.columns:
        raise Unlike(f"{relation.table} has no column {column!r}; give another --column")
    is_instant = relation.columns[column].type.endswith("with time zone")
    return Window(column, "timestamptz" if is_instant else "timestamp", *bounds)
