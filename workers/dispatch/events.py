"""What a PgQ event says: the operation, the table and the key in its type, whichever trigger wrote it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from workers.dispatch import jsontriga
from workers.dispatch.names import Table

Format = Literal["logutriga", "jsontriga"]
OPERATIONS = ("I", "U", "D", "R")
_URLENCODED = re.compile(r"[0-9A-Za-z_.%+=&~-]*")


class Event(NamedTuple):
    """One event as it is read; ev_time is ISO in UTC, None where nobody needs it."""

    id: int
    type: str
    data: str
    extra1: str
    extra2: str | None
    time: str | None


@dataclass(frozen=True, slots=True)
class Kind:
    """What events of one type and table have in common. `keys` is still joined by commas (logutriga)."""

    format: Format
    op: str
    table: str | Table
    keys: str | tuple[str, ...]


class UnknownEvent(ValueError):
    """No event of logutriga or jsontriga; the text says what it looks like."""


def kind_of(type_: str, extra1: str, extra2: str | None, data: str) -> Kind:
    """What sort of event it is. Raises UnknownEvent for those of other producers.

    A type without a colon has the operation alone, and the key in ev_extra2: PgQ's oldest form. sqltriga's and
    logtriga's look the same, but for their data, which is SQL.
    """
    if type_[:1] == "{":
        try:
            op, (schema, name), keys = jsontriga.decode_type(type_)
        except ValueError as error:
            raise UnknownEvent(f"ev_type is JSON, but not jsontriga's: {error}") from error
        return Kind("jsontriga", op, Table(schema, name), tuple(keys))
    op, colon, joined = type_.partition(":")
    if op not in OPERATIONS:
        raise UnknownEvent(f"ev_type {type_[:100]!r} is neither logutriga's nor jsontriga's")
    if not extra1:
        raise UnknownEvent("ev_extra1 is empty, where the triggers write the table's name")
    if not colon and op != "R":
        if not _URLENCODED.fullmatch(data):
            raise UnknownEvent(f"{extra1}: {op!r} with SQL in it, as sqltriga and logtriga write; that is not run")
        if not extra2:
            raise UnknownEvent(f"ev_type {op!r} without a key, neither behind it nor in ev_extra2")
        joined = extra2
    return Kind("logutriga", op, extra1, joined)


def key_columns(keys: str | tuple[str, ...], columns: Collection[str]) -> tuple[str, ...]:
    """The key's columns. logutriga joins them by unescaped commas, so that the row's own columns must tell them apart.

    Raises ValueError when they cannot be told apart.
    """
    if isinstance(keys, tuple):
        return keys
    if not keys:
        return ()
    parts = keys.split(",")
    if all(part in columns for part in parts):
        return tuple(parts)
    ways = _ways(parts, columns)
    if len(ways) != 1:
        raise ValueError(f"the key {keys!r} does not fit the row's columns {', '.join(columns)}")
    return ways[0]


def _ways(parts: list[str], columns: Collection[str]) -> list[tuple[str, ...]]:
    """Every way to join neighbours with commas so that each piece is a column."""
    if not parts:
        return [()]
    found = []
    for end in range(1, len(parts) + 1):
        if ",".join(parts[:end]) in columns:
            found += [(",".join(parts[:end]), *rest) for rest in _ways(parts[end:], columns)]
    return found
