"""The destinations' tables: what columns and keys they have, and the statements that are composed with their names."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import sql

from workers.database import Connection
from workers.dispatch.names import Table
from workers.sql_files import queries

SQL = queries("dispatch")

_STRING = re.compile(r"(character varying|character|bit varying|bit)\(\d+\)")
COPY_BYTES = 1 << 20  # psycopg2's reads from our buffer


@dataclass(frozen=True, slots=True)
class Column:
    """A column that events may fill; `is_time` for date, timestamp and timestamptz."""

    name: str
    type: str
    is_time: bool
    is_generated: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table that rows go into. `unique` has the column sets that no two rows share."""

    table: Table
    columns: dict[str, Column]
    unique: frozenset[frozenset[str]]


def relation(conn: Connection, table: Table) -> Relation | None:
    """A relation with its columns; None where there is none of that name."""
    facts = {"schema": table.schema, "name": table.name}
    columns = {row[0]: Column(*row) for row in SQL["columns"].rows(conn, facts)}
    if not columns:
        return None
    unique = frozenset(frozenset(row[0]) for row in SQL["unique_keys"].rows(conn, facts))
    return Relation(table, columns, unique)


def range_key(conn: Connection, table: Table) -> tuple[str, str] | None:
    """(column, type) that a table is natively partitioned by; None for other tables."""
    row = SQL["range_key"].row(conn, {"schema": table.schema, "name": table.name})
    return None if row is None else (row[0], row[1])


def has_references(conn: Connection, table: Table) -> bool:
    """Whether a table has a foreign key, or is referred to by one."""
    return bool(SQL["has_references"].value(conn, {"schema": table.schema, "name": table.name}))


def default_with_rows(conn: Connection, parent: Table) -> Table | None:
    """The default partition of a table, if it has one with rows in it."""
    row = SQL["default_partition"].row(conn, {"schema": parent.schema, "name": parent.name})
    if row is None or not SQL["has_rows"].with_slots(table=_name(Table(*row))).value(conn):
        return None
    return Table(*row)


def like_partitions(conn: Connection, parent: Table) -> list[Table]:
    """The tables that were made like a parent."""
    return [Table(*row) for row in SQL["like_partitions"].rows(conn, {"schema": parent.schema, "name": parent.name})]


def partitions_below(conn: Connection, parent: Table) -> list[Table]:
    """All partitions of a natively partitioned table, itself among them."""
    return [Table(*row) for row in SQL["partitions_below"].rows(conn, {"schema": parent.schema, "name": parent.name})]


def identity(conn: Connection) -> str:
    """Which database of which running server this is."""
    return str(SQL["identity"].value(conn))


def check_now(conn: Connection) -> None:
    """Check the constraints that are deferred: what they refuse has events to blame here, and none at the commit."""
    SQL["check_now"].run(conn)


def add_column(conn: Connection, table: Table, column: str, type_: str) -> None:
    """Add a nullable column where it is missing. `type_` is SQL as format_type() gives it."""
    slots = {"table": _name(table), "column": sql.Identifier(column), "type": sql.SQL(_escaped(type_))}
    SQL["add_column"].with_slots(**slots).run(conn)


def copy_in(conn: Connection, table: Table, columns: Sequence[str], lines: Sequence[str]) -> int:
    """Load lines in COPY's text format, without their line ends; how many rows."""
    query = SQL["copy_in"].with_slots(table=_name(table), columns=_names(columns))
    with conn.cursor() as cursor:
        cursor.copy_expert(query.statement(), io.StringIO("\n".join(lines) + "\n"), COPY_BYTES)
        return cursor.rowcount


def delete_keys(
    conn: Connection, table: Table, columns: Sequence[tuple[str, str]], keys: Sequence[Sequence[str]]
) -> int:
    """Delete the rows with these keys. `columns` are (name, type) of the key's, `keys` rows of texts without null."""
    names = [sql.Identifier(f"k{place}") for place in range(len(columns))]
    arrays, matches = [], []
    for place, (column, type_) in enumerate(columns):
        is_array = type_.endswith("[]")  # unnest would take it apart: each key is cast for itself
        cast = sql.SQL(_escaped(_uncut(type_)))
        arrays.append(sql.SQL("{}::{}[]").format(sql.Placeholder(f"k{place}"), sql.SQL("text") if is_array else cast))
        value = sql.SQL("k.{}::{}").format(names[place], cast) if is_array else sql.SQL("k.{}").format(names[place])
        matches.append(sql.SQL("t.{} = {}").format(sql.Identifier(column), value))
    slots = {
        "table": _name(table),
        "arrays": sql.SQL(", ").join(arrays),
        "names": sql.SQL(", ").join(names),
        "match": sql.SQL(" AND ").join(matches),
    }
    facts = {f"k{place}": _array([key[place] for key in keys]) for place in range(len(columns))}
    return SQL["delete_keys"].with_slots(**slots).run(conn, facts)


def delete_all_rows(conn: Connection, table: Table) -> int:
    """Delete every row."""
    return SQL["delete_all_rows"].with_slots(table=_name(table)).run(conn)


def savepoint(conn: Connection) -> None:
    """What fails after this can be taken back alone."""
    SQL["savepoint"].run(conn)


def release(conn: Connection) -> None:
    """The savepoint went well."""
    SQL["release"].run(conn)


def roll_back(conn: Connection) -> None:
    """Take back what was done since the savepoint, and the savepoint."""
    SQL["roll_back"].run(conn)
    SQL["release"].run(conn)


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column) for column in columns)


def _escaped(type_: str) -> str:
    # A type's name comes from a catalog and is quoted there; only a per cent sign would mean something to the driver.
    return type_.replace("%", "%%")


def _uncut(type_: str) -> str:
    # A key is compared whole: cast to varchar(3) it would be cut, and find another row.
    found = _STRING.fullmatch(type_)
    return type_ if found is None else {"character": "bpchar", "bit": "bit varying"}.get(found[1], found[1])


def _array(values: Sequence[str]) -> str:
    """A PostgreSQL array literal of texts."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"
