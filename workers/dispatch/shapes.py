"""The shape of a row: which of an event's values go into which columns of its destination, and which are its key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from workers import database
from workers.database import Connection, DatabaseError
from workers.dispatch import catalog
from workers.dispatch.catalog import Relation
from workers.dispatch.names import Table
from workers.dispatch.rules import EXTRA, Rules

META_TYPES = {"_op": "text", "_ev_id": "bigint", "_ev_time": "timestamp with time zone", "_tick": "bigint"}
FALLBACK_TYPE = "text"


# Types whose equal values have one text each, in whatever way a session prints them; times are made UTC first.
_ONE_TEXT = re.compile(
    r"(numeric|smallint|integer|bigint|oid|uuid|text|name|date|boolean|character varying|timestamp.*)(\(\d+\).*)?\Z"
)


def has_one_text(type_: str) -> bool:
    """Whether equal values of this type have the same text, whoever printed them."""
    return _ONE_TEXT.match(type_) is not None and not type_.startswith("numeric")


class Unfit(Exception):
    """Rows of this form cannot go there; the text is for the person on call."""


@dataclass(eq=False, slots=True)
class Place:
    """One relation that rows go into; `identity` is what a row's key is unique in, the partition or all of them.

    `fill` is the range key's column that we fill, with its type.
    """

    relation: Relation
    parent: Table
    identity: Table
    fill: tuple[str, str] | None = None
    # By names and key of the events; what adds a column makes them anew.
    shapes: dict[object, Shape] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The relation's name."""
        return self.relation.table


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """How values with certain names become a row of a place. Numbers are positions in the event.

    `width` is how many values are taken; `take` is None where every value is taken in order. `replaces` says that no
    two rows of the place share a key, so that an insert needs nothing taken away before it. `instants` are the places
    in the key of times with a zone, whose text depends on who wrote it. `is_exact`: two texts are
    never the same key.
    """

    place: Place
    columns: tuple[str, ...]
    width: int
    take: tuple[int, ...] | None
    times: tuple[int, ...]
    extra: tuple[tuple[int, str], ...]
    key: tuple[int, ...]
    key_columns: tuple[tuple[str, str], ...]
    instants: tuple[int, ...]
    is_exact: bool
    replaces: bool
    numerics: tuple[int, ...]
    meta: tuple[str, ...]
    has_more: bool


def shape(
    conn: Connection,
    place: Place,
    rules: Rules,
    *,
    names: Sequence[str],
    key: Sequence[str],
    only_key: bool,
    type_of: Callable[[str], str | None],
) -> Shape:
    """Work out the shape of events with these column names, and add columns where the rules say so.

    `only_key` for a delete, which needs nothing else; `type_of` is a function from a source column to its type.
    Raises Unfit; psycopg2's errors of locks and lost servers go through.
    """
    wanted = _wanted(place, rules, names)
    missing = [target for source, target in wanted.items() if target not in place.relation.columns]
    if missing and not only_key:
        if rules.on_new_column == "error":
            raise Unfit(
                f"{place.table} has no column {', '.join(map(repr, missing))}; add it there and `headrace dispatch"
                " replay`, or set on_new_column"
            )
        if rules.on_new_column == "add":
            types = {target: type_of(source) for source, target in wanted.items() if target in missing}
            _add(conn, place, types)
        elif rules.on_new_column == "extra" and EXTRA not in place.relation.columns:
            _add(conn, place, {EXTRA: "jsonb"})
    needed = {name: META_TYPES[name] for name in rules.meta if name not in place.relation.columns}
    if needed and not only_key:
        _add(conn, place, needed)
    return _shape(place, rules, list(names), key, wanted, only_key)


def _wanted(place: Place, rules: Rules, names: Sequence[str]) -> dict[str, str]:
    """Source column -> destination column, without what is left out, generated there, or filled by us."""
    ours = {*rules.meta, place.fill[0] if place.fill else None}
    found = {name: target for name in names if (target := rules.renamed(name)) is not None and target not in ours}
    generated = {column.name for column in place.relation.columns.values() if column.is_generated}
    return {name: target for name, target in found.items() if target not in generated}


def _shape(
    place: Place, rules: Rules, names: list[str], key: Sequence[str], wanted: dict[str, str], only_key: bool
) -> Shape:
    there = place.relation.columns
    taken = [
        (position, wanted[name]) for position, name in enumerate(names) if name in wanted and wanted[name] in there
    ]
    columns = [column for _position, column in taken]
    if len(set(columns)) < len(columns):
        raise Unfit(f"two columns of the event go into one of {place.table}; check `columns` in its settings")
    extra: tuple[tuple[int, str], ...] = ()
    if rules.on_new_column == "extra" and EXTRA in there and EXTRA not in columns:
        extra = tuple((names.index(name), target) for name, target in wanted.items() if target not in there)
    key_columns = []
    for name in key:
        target = rules.renamed(name) or name
        if name not in names:
            raise Unfit(f"the event has no value for the key column {name!r}")
        if target not in there:
            raise Unfit(f"{place.table} has no column {target!r}, which is of the key; add it, or set `key`")
        key_columns.append((target, there[target].type))
    positions = tuple(position for position, _column in taken)
    meta = tuple(name for name in rules.meta if place.fill is None or name != place.fill[0])
    if not only_key:
        columns += [EXTRA] if extra else []
        columns += [place.fill[0]] if place.fill else []
        columns += meta
    is_unique = frozenset(column for column, _type in key_columns) in place.relation.unique
    return Shape(
        place=place,
        columns=tuple(columns),
        width=len(positions),
        take=None if positions == tuple(range(len(names))) else positions,
        times=tuple(position for position, column in taken if there[column].is_time),
        extra=extra,
        key=tuple(names.index(name) for name in key),
        key_columns=tuple(key_columns),
        instants=tuple(p for p, (_name, type_) in enumerate(key_columns) if type_.endswith("with time zone")),
        numerics=tuple(p for p, (_name, type_) in enumerate(key_columns) if type_.startswith("numeric")),
        replaces=is_unique,
        is_exact=all(_ONE_TEXT.match(type_) for _name, type_ in key_columns),
        meta=meta,
        has_more=bool(place.fill or meta or extra),
    )


def _add(conn: Connection, place: Place, types: Mapping[str, str | None]) -> None:
    """Add nullable columns to the place, and to its parent, so that tomorrow's partition has them."""
    for column, type_ in types.items():
        for wanted in dict.fromkeys((type_ or FALLBACK_TYPE, FALLBACK_TYPE)):
            catalog.savepoint(conn)
            try:
                for table in dict.fromkeys((place.parent, place.table)):
                    # PostgreSQL's own partitions have it from their parent then.
                    there = catalog.relation(conn, table)
                    if there is not None and column not in there.columns:
                        catalog.add_column(conn, table, column, wanted)
            except DatabaseError as error:
                if (database.sqlstate(error) or "")[:2] not in ("42", "0A"):
                    raise
                catalog.roll_back(conn)
                problem = error
            else:
                catalog.release(conn)
                break
        else:
            raise Unfit(f"column {column!r} cannot be added to {place.table}: {database.first_line(problem)}")
    again = catalog.relation(conn, place.table)
    assert again is not None
    if lost := [column for column in types if column not in again.columns]:
        raise Unfit(f"{place.table} has no column {lost[0]!r} even now: is the name longer than 63 bytes?")
    place.relation = again
    place.shapes.clear()
