"""Twin: the statements that make a table's copy like it and put it in its place, as the server's catalogs dictate them.

The server quotes every name in them. Each list is complete before the first of its statements runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack.shapes import Keys, Place, Shape, expressions
from workers.repack.statements import Statement
from workers.repack_settings import TableRules
from workers.sql_files import queries

SQL = queries("repack_twin")
PARTNER_LOCK_SECONDS = 0.1


class Gone(PermanentFailure):
    """The table is no more."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A table as statements name it. `has_inherited_columns`: the copy needs stand-in parents to be like it."""

    oid: int
    schema_name: str
    table_name: str
    qualified: str
    quoted: str
    owner: str
    is_own: bool
    is_partition: bool
    has_inherited_columns: bool
    rows_estimated: int
    bytes: int
    table_bytes: int
    index_bytes: int
    toast_bytes: int


def facts(conn: Connection, oid: int) -> Facts:
    """A table by its oid. Raises Gone."""
    found = SQL["facts"].records(conn, {"oid": oid})
    if not found:
        raise Gone(f"the table with oid {oid} is gone; somebody dropped it")
    return Facts(oid=oid, **found[0])


def shape(conn: Connection, table: Facts, key_index: str, key: Keys, rules: TableRules) -> Shape:
    """What is copied, by which key, in which order. Raises PermanentFailure for an order that the table has not."""
    columns = [(row[0], row[1], row[2]) for row in SQL["columns"].rows(conn, {"oid": table.oid})]
    order, order_text, in_chunks = key, key.listed(), True
    if rules.cluster:
        found = SQL["order_columns"].records(conn, {"oid": table.oid, "index": rules.cluster})
        if not found:
            raise PermanentFailure(f"{table.qualified} has no index {rules.cluster!r} to be ordered by")
        order, order_text, in_chunks = _ordered(found[0], key)
    elif rules.order_by:
        found = SQL["named_columns"].records(conn, {"oid": table.oid, "names": list(rules.order_by)})
        if not found or len(found[0]["columns"] or ()) != len(rules.order_by):
            raise PermanentFailure(
                f"{table.qualified} has not all of the columns of order_by: {', '.join(rules.order_by)}"
            )
        order, order_text, in_chunks = _ordered(found[0], key)
    path = SQL["type_schemas"].value(conn, {"oid": table.oid})
    read = expressions(columns, cleanup_nulls=rules.cleanup_nulls, remove_keys=dict(rules.remove_keys))
    places = tuple(SQL["places"].value(conn, {"oid": table.oid, "columns": list(key.columns)}))
    role = SQL["role_for_rows"].value(conn, {"oid": table.oid})
    return Shape(
        table.qualified, key, key_index, tuple(column[0] for column in columns), tuple(read), order, order_text,
        in_chunks, f"pg_catalog, {path}pg_temp", places if sorted(places) == list(range(1, len(places) + 1)) else (),
        role or "", bool(rules.cluster or rules.order_by),
    )  # fmt: skip


def creation(
    conn: Connection, table: Facts, place: Place, *, fillfactor: int | None, tablespace: str | None
) -> list[Statement]:
    """The empty copy in its schema, and everything on it that refers to nobody else."""
    names = {
        "oid": table.oid, "src": table.qualified, "new": place.new, "new_schema": place.new_schema,
        "inherits": table.has_inherited_columns, "tablespace": tablespace, "fillfactor": fillfactor,
    }  # fmt: skip
    found = [
        Statement(f"CREATE SCHEMA {place.new_schema}", "none", "a place for the copy, under the table's own name"),
        *revokes(conn, place.new_schema),
        Statement("SET LOCAL default_tablespace = ''", "none", "tablespaces are said, not guessed"),
    ]
    if table.has_inherited_columns:
        found += _statements(conn, "twin_parents", names)
    return found + _statements(conn, "twin_create", names) + _statements(conn, "twin_dress", names)


def revokes(conn: Connection, schema: str) -> list[Statement]:
    """What keeps others out of a schema just made, whatever rights they have by default."""
    return _statements(conn, "revokes", {"schema": schema})


def indexes(conn: Connection, table: Facts, place: Place, *, key: str, tablespace: str | None) -> list[dict[str, Any]]:
    """The indexes to build, the key's first: name, is_unique, statements. Raises PermanentFailure if one cannot be."""
    names = {
        "oid": table.oid, "new": place.new, "new_schema": place.new_schema, "key": key, "tablespace": tablespace,
    }  # fmt: skip
    found = SQL["twin_indexes"].records(conn, names)
    for index in found:
        if not index["is_understood"]:
            raise PermanentFailure(
                f"{table.qualified}: the definition of index {index['name']} is not understood; please report it"
            )
    return found


def give_way(conn: Connection, names: Sequence[str], *, lock_seconds: float) -> list[Statement]:
    """What makes autovacuum leave these tables before a stronger lock is asked for; hinders no reader or writer."""
    facts = {"names": list(names), "lock_milliseconds": max(1, int(lock_seconds * 1000))}
    return _statements(conn, "give_way", facts)


def locks(conn: Connection, table: Facts, place: Place, *, lock_seconds: float) -> list[Statement]:
    """Whom the swap locks, in the order in which others lock; those after the table itself for a moment at most."""
    milliseconds = max(1, int(min(lock_seconds, PARTNER_LOCK_SECONDS) * 1000))
    names = {"oid": table.oid, "src": table.qualified, "partner_milliseconds": milliseconds}
    return [
        *give_way(conn, [table.qualified, place.new], lock_seconds=lock_seconds),
        *_statements(conn, "swap_locks", names),
    ]


def swap(conn: Connection, table: Facts, place: Place) -> list[Statement]:
    """Everything between the final replay and COMMIT: the old table leaves, the copy takes its name and place."""
    names = {
        "oid": table.oid, "src": table.qualified, "name": table.quoted, "new": place.new,
        "new_schema": place.new_schema, "old_schema": place.old_schema, "inherits": table.has_inherited_columns,
    }  # fmt: skip
    return [
        statement
        for query in ("swap_leave", "swap_enter", "swap_grants")
        for statement in _statements(conn, query, names)
    ]


def to_validate(conn: Connection, table: Facts) -> list[dict[str, Any]]:
    """Foreign keys that are valid now: schema_name, table_name, constraint_name, the fingerprint's line once not."""
    return SQL["to_validate"].records(conn, {"oid": table.oid})


def still_refer(conn: Connection, oid: int) -> list[str]:
    """What still depends on a table that nobody should need any more, in PostgreSQL's words."""
    return [row[0] for row in SQL["still_refer"].rows(conn, {"oid": oid})]


def trigger_marks(conn: Connection, oid: int, place: Place) -> str | None:
    """The log triggers as they stand."""
    found = SQL["trigger_marks"].value(conn, {"oid": oid, "prefix": place.trigger_prefix})
    return str(found) if found is not None else None


def blockers(conn: Connection, oids: Sequence[int]) -> list[dict[str, Any]]:
    """Who holds locks on these tables, longest first: pid, usename, application_name, state, open_for, query."""
    return SQL["wait_blockers"].records(conn, {"oids": list(oids)})


def resolve(conn: Connection, pid: int, *, terminate: bool) -> list[int]:
    """Cancel, or end, those who hold a lock that the session `pid` waits for; who they were."""
    return [row[0] for row in SQL["end_blockers" if terminate else "cancel_blockers"].rows(conn, {"pid": pid})]


def _statements(conn: Connection, query: str, names: Mapping[str, Any]) -> list[Statement]:
    wanted = {name: value for name, value in names.items() if f"%({name})s" in SQL[query].text}
    return [Statement(row[0], row[1], row[2]) for row in SQL[query].rows(conn, wanted)]


def _ordered(found: Mapping[str, Any], key: Keys) -> tuple[Keys, str, bool]:
    """The order columns, made total by the key's."""
    columns, types = list(found["columns"]), list(found["types"])
    more = [(name, kind) for name, kind in zip(key.columns, key.types, strict=True) if name not in columns]
    text = ", ".join(columns + [name for name, _ in more])
    keys = Keys(tuple(columns + [name for name, _ in more]), tuple(types + [kind for _, kind in more]))
    return keys, text, bool(found["in_chunks"])


def drop_index(conn: Connection, place: Place, name: str) -> None:
    """Drop an index of the copy, or the constraint that owns it."""
    for (text,) in SQL["drop_index"].rows(conn, {"new": place.new, "new_schema": place.new_schema, "name": name}):
        with conn.cursor() as cursor:
            cursor.execute(text)
