"""Facts about a table before anything is changed, read from the catalog in one round; what they mean says preflight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.sql_files import queries

SQL = queries("repack_preflight")

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".]+?))\s*(\.|$)')
_ORDINARY = "r"


@dataclass(frozen=True, slots=True)
class Subject:
    """What stands under the name, and the login's rights. `label`, `login`, `owner`, `database` and `schema` are
    quoted as SQL needs it; `kind` and `persistence` are pg_class's."""

    oid: int
    label: str
    kind: str
    persistence: str
    is_own_temporary: bool
    is_catalog: bool
    is_ours: bool
    login: str
    owner: str
    database: str
    schema: str
    is_owner: bool
    is_superuser: bool
    owns: bool
    is_member: bool
    may_become_owner: bool
    may_create_schemas: bool
    may_create_here: bool
    owner_may_create_here: bool
    may_select: bool
    may_trigger: bool
    may_lock: bool
    has_row_security: bool
    has_plpgsql: bool
    is_standby: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `type` as PostgreSQL prints it. `is_orderable`: the type has an order of its own."""

    name: str
    type: str
    is_generated: bool
    may_use_type: bool
    is_orderable: bool


@dataclass(frozen=True, slots=True)
class Index:
    """An index; the lists are of its key columns in order, `nullable` of those that may be null. `is_plain`: every
    operator class is the type's own, every collation the column's."""

    name: str
    quoted: str
    is_valid: bool
    is_unique: bool
    is_primary: bool
    is_immediate: bool
    is_btree: bool
    is_partial: bool
    has_expressions: bool
    is_plain: bool
    columns: Sequence[str]
    quoted_columns: Sequence[str]
    types: Sequence[str]
    equals: Sequence[str]
    nullable: Sequence[str]
    tablespace: str | None
    may_create_there: bool

    @property
    def is_key(self) -> bool:
        """Whether its columns identify each row, and rows can be walked in their order."""
        is_fit = self.is_valid and self.is_unique and self.is_btree and self.is_plain
        return is_fit and not (self.is_partial or self.has_expressions or self.nullable)


@dataclass(frozen=True, slots=True)
class Key:
    """What identifies a row: index and columns as they are stored and quoted, types as PostgreSQL prints them.

    `equals` are the columns' operators, qualified: with our bare search_path a plain = does not find a type's own
    that lives in another schema, and takes text's instead (citext).
    """

    index: str
    quoted_index: str
    columns: tuple[str, ...]
    quoted: tuple[str, ...]
    types: tuple[str, ...]
    equals: tuple[str, ...]
    is_primary: bool
    is_deferrable: bool


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something in the way: its kind (a line of preflight's), what it is, and who or what else it is about."""

    kind: str
    object: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace of the server."""

    name: str
    is_global: bool
    may_create_there: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """All that preflight decides on. `subject` None: there is no such table, `near` may be what was meant.

    Whatever is not an ordinary table has no columns, indexes and obstacles here.
    """

    schema: str
    table: str
    subject: Subject | None
    near: str | None = None
    leaves: int = 0
    columns: tuple[Column, ...] = ()
    indexes: tuple[Index, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    tablespaces: tuple[Tablespace, ...] = ()

    @property
    def label(self) -> str:
        """The table's name for people, quoted where SQL needs it."""
        return self.subject.label if self.subject else f"{self.schema}.{self.table}"

    @property
    def key(self) -> Key | None:
        """The key that the copy goes by: the primary key before another, a deferrable one last; None: none is fit."""
        best = next((index for index in self.indexes if index.is_key), None)
        if best is None:
            return None
        lists = (best.columns, best.quoted_columns, best.types, best.equals)
        columns, quoted, types, equals = map(tuple, lists)
        return Key(best.name, best.quoted, columns, quoted, types, equals, best.is_primary, not best.is_immediate)


def facts(conn: Connection, schema: str, table: str) -> Facts:
    """What the catalog says of a table, named as it is stored; nothing is locked, nothing is changed."""
    name = {"schema": schema, "table": table}
    found = SQL["subject"].records(conn, name)
    if not found:
        return Facts(schema, table, None, near=_near(conn, schema, table))
    subject = Subject(**found[0])
    if subject.kind != _ORDINARY:
        return Facts(schema, table, subject, leaves=len(leaves(conn, schema, table)))
    whose = {"table": subject.oid}
    return Facts(
        schema,
        table,
        subject,
        columns=tuple(Column(**row) for row in SQL["columns"].records(conn, whose)),
        indexes=tuple(Index(**row) for row in SQL["indexes"].records(conn, whose)),
        obstacles=tuple(Obstacle(**row) for row in SQL["obstacles"].records(conn, whose)),
        tablespaces=tuple(Tablespace(**row) for row in SQL["tablespaces"].records(conn)),
    )


def find(conn: Connection, text: str) -> tuple[str, str]:
    """(schema, table) as they are stored, of a name as a person writes it: quoted or not, in any letters.

    What is not there is returned as SQL reads it: preflight then says that it is unknown.
    Raises PermanentFailure for a name without schema, one that is none, and one that fits two tables.
    """
    parts = _parts(text)
    is_quoted = any(quoted for _, quoted in parts)
    if not parts or (is_quoted and len(parts) > 2):
        raise PermanentFailure(f"{text!r} is no table's name; write schema.table, quoted as in SQL where it needs it")
    if len(parts) == 1:
        where = [row[0] for row in SQL["schemas_of"].rows(conn, {"name": parts[0][0]})]
        example = f", such as {' or '.join(where)}" if where else ""
        raise PermanentFailure(f"{text!r} does not say in which schema; write schema.table{example}")
    schema, table = (name if quoted else _folded(name) for name, quoted in parts[:2])
    wanted = {
        "schema": schema if len(parts) == 2 else None,
        "table": table if len(parts) == 2 else None,
        "text": None if is_quoted else ".".join(name for name, _ in parts),
        "is_loose": not is_quoted,
    }
    rows = SQL["named"].rows(conn, wanted)
    # As SQL reads it and as it is stored are equally good guesses; other letters count when neither is there.
    near = [row[:2] for row in rows if row[2] < 3] or [row[:2] for row in rows]
    if len(near) > 1:
        both = " or ".join(f"{_quoted(one)}.{_quoted(two)}" for one, two in near)
        raise PermanentFailure(f"{text!r} fits more than one table; write {both}")
    if near:
        return near[0][0], near[0][1]
    if len(parts) > 2:
        raise PermanentFailure(f"{text!r} has more than one dot; write schema.table and quote the part that has a dot")
    return schema, table


def leaves(conn: Connection, schema: str, table: str) -> list[tuple[str, str]]:
    """(schema, table) of a partitioned table's leaf partitions, of the whole tree; none for any other table.

    Foreign tables among them are left out: they have nothing here that could be rewritten.
    """
    rows = SQL["leaves"].rows(conn, {"schema": schema, "table": table})
    return [(one, two) for one, two in rows]


def _near(conn: Connection, schema: str, table: str) -> str | None:
    names = [row[0] for row in SQL["table_names"].rows(conn, {"schema": schema})]
    return next(iter(get_close_matches(f"{schema}.{table}", names, n=1, cutoff=0.6)), None)


def _parts(text: str) -> list[tuple[str, bool]]:
    """The parts of a dotted name, and whether each was quoted; none where it cannot be read."""
    parts: list[tuple[str, bool]] = []
    position, dot = 0, "."
    while dot and (match := _PART.match(text, position)):
        quoted, plain, dot = match.groups()
        parts.append((quoted.replace('""', '"'), True) if quoted is not None else (plain, False))
        position = match.end()
    return [] if dot else parts


def _folded(name: str) -> str:
    """As PostgreSQL reads an unquoted name: only A to Z become small."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
