"""Named queries: `sql/queries/<room>.sql` read into objects that execute.

    -- name: pending_files
    -- Files in the inventory never ingested, oldest first.
    SELECT ...

A query that is composed with identifiers declares them in its header (`-- slots: table, columns`);
only then are its braces slots. Parameters are psycopg2's `%(name)s`, so a literal `%` is doubled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

_HEADER = re.compile(r"^-- name: *(\w+)\s*$", re.MULTILINE)
_SLOTS = re.compile(r"^-- slots: *(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Query:
    """One named statement; `doc` is its sentence, `slots` the identifiers that it must be composed with."""

    room: str
    name: str
    doc: str
    text: str
    slots: tuple[str, ...] = ()
    composed: sql.Composed | None = None

    def with_slots(self, **identifiers: sql.Composable) -> Query:
        """The query with its declared slots filled; every slot must be given, and no other."""
        if set(identifiers) != set(self.slots):
            raise TypeError(f"{self.room}.{self.name} has the slots {self.slots}, not {tuple(identifiers)}")
        return replace(self, slots=(), composed=sql.SQL(self.text).format(**identifiers))

    def statement(self) -> str | sql.Composed:
        """What psycopg2 executes. Raises TypeError while slots are open."""
        if self.slots:
            raise TypeError(f"{self.room}.{self.name} needs its slots {self.slots} first")
        return self.composed if self.composed is not None else self.text

    def _executable(self, conn: Connection) -> str | sql.Composable:
        """The statement for execution with parameters: there a % in an identifier or literal must be doubled, too."""
        statement = self.statement()
        return statement if isinstance(statement, str) else _doubled(statement, conn)

    def run(self, conn: Connection, parameters: Mapping[str, Any] | None = None) -> int:
        """Execute; the number of rows that it touched."""
        with conn.cursor() as cursor:
            cursor.execute(self._executable(conn), parameters or {})
            return cursor.rowcount

    def rows(self, conn: Connection, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Execute and fetch every row."""
        with conn.cursor() as cursor:
            cursor.execute(self._executable(conn), parameters or {})
            return list(cursor.fetchall())

    def row(self, conn: Connection, parameters: Mapping[str, Any] | None = None) -> tuple[Any, ...] | None:
        """Execute and fetch the first row, or None."""
        with conn.cursor() as cursor:
            cursor.execute(self._executable(conn), parameters or {})
            return cursor.fetchone()

    def value(self, conn: Connection, parameters: Mapping[str, Any] | None = None) -> Any:
        """Execute and fetch the first column of the first row, or None."""
        row = self.row(conn, parameters)
        return row[0] if row else None

    def records(self, conn: Connection, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Execute and fetch every row as a dictionary by column name."""
        with conn.cursor() as cursor:
            cursor.execute(self._executable(conn), parameters or {})
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _doubled(part: sql.Composable, conn: Connection) -> sql.Composable:
    if isinstance(part, sql.Composed):
        return sql.Composed([_doubled(inner, conn) for inner in part.seq])
    if isinstance(part, (sql.SQL, sql.Placeholder)):
        return part
    return sql.SQL(part.as_string(conn).replace("%", "%%"))


@cache
def queries(room: str) -> dict[str, Query]:
    """Every query of a room by name. Raises ValueError for a double name or a query without a sentence."""
    text = resources.files("sql").joinpath("queries", f"{room}.sql").read_text(encoding="utf-8")
    found: dict[str, Query] = {}
    headers = list(_HEADER.finditer(text))
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        name = header.group(1)
        body = text[header.end() : following.start() if following else len(text)].strip()
        comment = re.match(r"(?:--.*\n?)*", body)
        head = comment.group(0) if comment else ""
        slots = _SLOTS.search(head)
        doc = " ".join(line[2:].strip() for line in head.splitlines() if not line.startswith("-- slots:"))
        if name in found or not doc:
            raise ValueError(f"sql/queries/{room}.sql: {name} is there twice or has no sentence")
        names = tuple(part.strip() for part in slots.group(1).split(",")) if slots else ()
        found[name] = Query(room, name, doc, body[len(head) :].strip().rstrip(";"), names)
    return found


@cache
def migration_files() -> tuple[tuple[str, str], ...]:
    """(file name, text) of every migration, in order of their numbers."""
    folder = resources.files("sql").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple((name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names)
