"""A table's indexes, the statements that rebuild them beside their use, and what broken attempts left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg2 import sql

from workers.database import Connection
from workers.repack.statements import Statement
from workers.sql_files import Query, queries

SQL = queries("repack_reindex")

LOCK = "SHARE UPDATE EXCLUSIVE"  # readers and writers go on; VACUUM and other DDL of this table wait


@dataclass(frozen=True, slots=True)
class Table:
    """What stands under a table's name. `kind` is pg_class.relkind, `server_version` as in server_version_num."""

    oid: int
    kind: str
    is_temporary: bool
    owner: str
    is_ours: bool
    login: str
    server_version: int


@dataclass(frozen=True, slots=True)
class Index:
    """One index of the table; it lies in the table's schema. `bytes` is None when it went while we looked."""

    name: str
    bytes: int | None
    is_valid: bool
    is_exclusion: bool


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a broken REINDEX CONCURRENTLY left of `index`: a new one that never came into use, or the old one."""

    name: str
    index: str
    is_old: bool


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction of somebody; `id` is its virtual transaction id, `pid` None for a prepared one."""

    id: str
    pid: int | None
    application: str


def table(conn: Connection, schema: str, name: str) -> Table | None:
    """What stands under this name; None: nothing."""
    found = SQL["table_facts"].records(conn, {"schema": schema, "table": name})
    return Table(**found[0]) if found else None


def may_use_tablespace(conn: Connection, name: str) -> bool | None:
    """Whether the login may put an index there; None: there is no such tablespace."""
    found: bool | None = SQL["tablespace"].value(conn, {"name": name})
    return found


def indexes(conn: Connection, table: Table) -> list[Index]:
    """The table's indexes, the largest first; leftovers are among them."""
    return [Index(**row) for row in SQL["table_indexes"].records(conn, {"table": table.oid})]


def index_bytes(conn: Connection, table: Table, name: str) -> int | None:
    """Disk that one index takes; None: it is no more."""
    found = SQL["index_bytes"].value(conn, {"table": table.oid, "name": name})
    return None if found is None else int(found)


def leftovers(conn: Connection, table: Table) -> list[Leftover]:
    """What broken attempts left at this table; one that is under way in another session looks the same."""
    return [Leftover(**row) for row in SQL["leftovers"].records(conn, {"table": table.oid})]


def open_transactions(conn: Connection) -> list[Transaction]:
    """Transactions of other sessions in this database."""
    return [Transaction(**row) for row in SQL["open_transactions"].records(conn)]


def table_users(conn: Connection, table: Table) -> list[Transaction]:
    """Transactions of other sessions that read or change the table; VACUUM and its like are not among them."""
    return [Transaction(**row) for row in SQL["table_users"].records(conn, {"table": table.oid})]


def reindex(conn: Connection, schema: str, index: Index, tablespace: str | None) -> Statement:
    """The statement that rebuilds an index, in this tablespace or where it is."""
    words: list[sql.Composable] = [sql.SQL("CONCURRENTLY")]
    if tablespace is not None:
        words.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
    query = SQL["reindex"].with_slots(options=sql.SQL(", ").join(words), index=sql.Identifier(schema, index.name))
    where = f", in tablespace {tablespace}" if tablespace is not None else ""
    why = f"rebuild index {index.name} of {index.bytes or 0:,} bytes{where}; waits for every transaction open before"
    return Statement(_text(conn, query), LOCK, why)


def drop(conn: Connection, schema: str, leftover: Leftover) -> Statement:
    """The statement that takes a leftover away."""
    # Its lock is also what keeps us from dropping the work of a session that is rebuilding right now.
    query = SQL["drop_leftover"].with_slots(index=sql.Identifier(schema, leftover.name))
    why = f"drop what a broken REINDEX left of {leftover.index}; waits for every transaction that uses the table"
    return Statement(_text(conn, query), LOCK, why)


@contextmanager
def bounded(conn: Connection, *, lock_seconds: float, statement_seconds: float) -> Iterator[None]:
    """Limit this session's waits and statements; as before afterwards, if the session still lives."""
    lock, statement = SQL["timeouts"].rows(conn)[0]
    limits = {"lock": _milliseconds(lock_seconds), "statement": _milliseconds(statement_seconds)}
    SQL["set_timeouts"].run(conn, limits)
    try:
        yield
    finally:
        if not conn.closed:
            SQL["set_timeouts"].run(conn, {"lock": lock, "statement": statement})


def _milliseconds(seconds: float) -> str:
    return str(max(round(seconds * 1000), 1))  # 0 would be no limit at all


def _text(conn: Connection, query: Query) -> str:
    statement = query.statement()
    return statement if isinstance(statement, str) else statement.as_string(conn)
