"""Both sides of a comparison as streams of (key, digest), ordered by key, each out of one snapshot."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from psycopg2 import sql

from workers.database import Connection
from workers.dispatch.names import Table
from workers.sql_files import Query, queries

SQL = queries("dispatch_verify")

KEYS_AT_ONCE = 5000  # a key and a digest each
EVENTS_AT_ONCE = 100  # whole rows, which may have a megabyte each
_NOWHERE = sql.SQL("false")
_GONE = ("D", "R")  # what _op says of a row that is a tombstone

Reading = Literal["versions", "kinds_of_versions", "newest"]
Row = tuple[str, "str | None"]


class Value(NamedTuple):
    """A column to be printed; None: NULL. `as_type`: its text is read as this type first, as if it came in an event."""

    column: str | None
    as_type: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The rows whose column is in [since, until); bounds are texts that the type reads."""

    column: str
    type: str
    since: str | None
    until: str | None


@dataclass(frozen=True, slots=True)
class Branch:
    """One relation that rows of a side are in. `values` None: only keys are compared.

    `only` leaves its children out; `op` and `version` name the columns with the operation and the event's number, and
    of those without numbers the highest `rank`, then the latest `at`, is the newest version of a row.
    """

    table: Table
    key: tuple[Value, ...]
    values: tuple[Value, ...] | None
    window: Window | None = None
    only: bool = False
    op: str | None = None
    version: str | None = None
    rank: int = 0
    at: str | None = None


def begin(conn: Connection, *, lock_seconds: float) -> None:
    """Open the transaction of a comparison; its snapshot is taken with this."""
    SQL["one_snapshot"].run(conn)
    SQL["pin"].run(conn, {"milliseconds": str(max(1, int(lock_seconds * 1000)))})


def trigger_options(conn: Connection, table: Table, *, pgq: str, queue: str) -> dict[str, tuple[str, ...]]:
    """What the table's triggers were told by name (`pkey`, `ignore`), cut at commas."""
    facts = {"pgq": pgq, "queue": queue, "schema": table.schema, "name": table.name}
    found: dict[str, tuple[str, ...]] = {}
    for (packed,) in SQL["trigger_arguments"].rows(conn, facts):
        for argument in bytes(packed).split(b"\0")[1:]:
            # PostgreSQL's other encodings are ASCII's supersets, too: at worst such a name is no column then.
            name, equals, value = argument.decode(errors="replace").partition("=")
            if equals:
                found.setdefault(name, tuple(part.strip() for part in value.split(",")))
    return found


def leaves(conn: Connection, root: Table) -> list[Table]:
    """The partitions that a partitioned table's rows are in."""
    return [Table(*row) for row in SQL["leaves"].rows(conn, {"schema": root.schema, "name": root.name})]


def events_after(conn: Connection, pgq: str, queue: str, tick: int, *, limit: int) -> Iterator[tuple[str | None, ...]]:
    """(ev_type, ev_extra1, ev_extra2 or None, ev_data) of the events that no batch up to this tick has, in no order."""
    schema = sql.Identifier(pgq)
    prefix = SQL["event_table"].with_slots(pgq=schema).value(conn, {"queue": queue})
    query = SQL["events_after"].with_slots(
        pgq=schema, events=sql.Identifier(*prefix.split(".", 1)), queue=sql.Literal(queue), tick=sql.Literal(tick),
        limit=sql.Literal(limit),
    )  # fmt: skip
    yield from _stream(conn, query, EVENTS_AT_ONCE)


def failed_kinds(conn: Connection, consumer: str) -> list[tuple[str | None, str | None, str | None, int]]:
    """(ev_type, ev_extra1, ev_extra2, how many) of the failed events that wait."""
    return [(row[0], row[1], row[2], row[3]) for row in SQL["failed_kinds"].rows(conn, {"consumer": consumer})]


def stream(conn: Connection, branches: Sequence[Branch], reading: Reading) -> Generator[Row, None, None]:
    """(key as a JSON array of texts, digest) by the bytes of the keys, some thousands at a time."""
    if not branches:
        return
    query = SQL[reading].with_slots(rows=_rows(branches))
    for key, digest in _stream(conn, query, KEYS_AT_ONCE):
        yield str(key), digest


def count(conn: Connection, branches: Sequence[Branch]) -> int:
    """How many rows there are in all."""
    if not branches:
        return 0
    query = SQL["count_rows"].with_slots(rows=_rows(branches))
    with conn.cursor() as cursor:
        cursor.execute(query.statement())
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def as_keys(
    conn: Connection, key: Sequence[Value], types: Sequence[str], texts: Collection[tuple[str, ...]]
) -> Iterator[str]:
    """Keys out of events as `stream` has the source's. `types` are the key columns' at the source."""
    names = [sql.Identifier(str(value.column)) for value in key]
    casts = [
        sql.SQL("{}::{} AS {}").format(name, sql.SQL(type_), name) for name, type_ in zip(names, types, strict=True)
    ]
    waiting = iter(texts)
    while portion := list(islice(waiting, KEYS_AT_ONCE)):
        arrays = [sql.SQL("{}::text[]").format(sql.Literal(list(column))) for column in zip(*portion, strict=True)]
        query = SQL["as_keys"].with_slots(
            key=_key(key), casts=sql.SQL(", ").join(casts), arrays=sql.SQL(", ").join(arrays),
            names=sql.SQL(", ").join(names),
        )  # fmt: skip
        with conn.cursor() as cursor:
            cursor.execute(query.statement())
            yield from (row[0] for row in cursor.fetchall())


def savepoint(conn: Connection) -> None:
    """What fails after this leaves the snapshot as it is."""
    SQL["savepoint"].run(conn)


def roll_back(conn: Connection) -> None:
    """Forget what failed since the savepoint."""
    SQL["roll_back"].run(conn)


def _stream(conn: Connection, query: Query, portion: int) -> Iterator[tuple[str | None, ...]]:
    with conn.cursor(name="headrace_verify") as cursor:
        cursor.itersize = portion
        # No parameters: with them the driver takes a per cent sign in a column's name for a place.
        cursor.execute(query.statement())
        yield from cursor


def _rows(branches: Sequence[Branch]) -> sql.Composed:
    return sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(_branch(branch)) for branch in branches)


def _branch(branch: Branch) -> sql.Composable:
    name = sql.Identifier(branch.table.schema, branch.table.name)
    digest: sql.Composable = sql.SQL("NULL::text")
    if branch.values is not None:
        row = sql.SQL(", ").join(map(_value, branch.values))
        # The text of a row tells NULL from '', and is made by the types' own output functions, as events are.
        digest = sql.SQL("encode(sha256(convert_to(ROW({})::text, 'UTF8')), 'hex')").format(row)
    gone: sql.Composable = _NOWHERE
    if branch.op is not None:
        gone = sql.SQL("coalesce({} IN ({}), false)").format(
            _column(branch.op), sql.SQL(", ").join(map(sql.Literal, _GONE))
        )
    statement = (
        SQL["branch"]
        .with_slots(
            key=_key(branch.key),
            digest=digest,
            gone=gone,
            version=_column(branch.version) if branch.version else sql.SQL("NULL::bigint"),
            rank=sql.Literal(branch.rank),
            at=_column(branch.at) if branch.at else sql.SQL("NULL::timestamptz"),
            table=sql.SQL("ONLY {}").format(name) if branch.only else name,
            window=_window(branch.window),
        )
        .statement()
    )
    assert isinstance(statement, sql.Composable)
    return statement


def _key(key: Sequence[Value]) -> sql.Composable:
    return sql.SQL("to_json(ARRAY[{}]::text[])::text").format(sql.SQL(", ").join(map(_printed, key)))


def _printed(value: Value) -> sql.Composable:
    """A value by its type's output function, NULL as NULL; a cast to text would print some types otherwise."""
    # IS NULL would be true of a composite value whose parts are all NULL.
    itself = _value(value)
    return sql.SQL("CASE WHEN {0} IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', {0}) END").format(itself)


def _value(value: Value) -> sql.Composable:
    if value.column is None:
        return sql.SQL("NULL::text")
    itself = _column(value.column)
    if value.as_type is None:
        return itself
    return sql.SQL("CASE WHEN {0} IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', {0})::{1} END").format(
        itself, sql.SQL(value.as_type)
    )


def _column(name: str) -> sql.Composable:
    return sql.SQL("t.{}").format(sql.Identifier(name))


def _window(window: Window | None) -> sql.Composable:
    if window is None:
        return sql.SQL("true")
    parts = [
        sql.SQL("{} {} {}::{}").format(
            _column(window.column), sql.SQL(operator), sql.Literal(bound), sql.SQL(window.type)
        )
        for operator, bound in ((">=", window.since), ("<", window.until))
        if bound is not None
    ]
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")
