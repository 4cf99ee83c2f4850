"""PgQ at the source, as typed functions: batches, registrations, events, and what the source knows of its tables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from psycopg2 import sql

from workers.database import Connection
from workers.dispatch.names import Table
from workers.sql_files import Query, queries

SQL = queries("dispatch_source")

# The first column's text is the same for all versions of a row if it is of the key. Not so a time, whose text depends
# on the producer's time zone: it has a colon.
_ELIGIBLE = sql.SQL(
    "(split_part(ev_data, '=', 1) = ANY (string_to_array(substr(ev_type, 3), ','))"
    " AND position(chr(37) || '3a' IN split_part(ev_data, '&', 1)) = 0)"
)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Batch:
    """An open batch, from one tick to another. `events` is a hint of PgQ's, and may be far too high."""

    id: int
    queue: str
    consumer: str
    prev_tick: int
    tick: int
    start: datetime
    end: datetime
    events: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A consumer as pgq.get_consumer_info tells it."""

    lag: timedelta
    last_seen: timedelta
    last_tick: int
    current_batch: int | None
    next_tick: int | None
    pending_events: int


@dataclass(frozen=True, slots=True)
class QueueTable:
    """A source table whose trigger writes into the queue."""

    table: Table
    is_partitioned: bool
    key: tuple[str, ...]


class Pgq:
    """PgQ's functions in one schema, over one connection. The caller commits."""

    def __init__(self, conn: Connection, schema: str) -> None:
        self.conn, self.schema = conn, schema

    def next_batch(self, queue: str, consumer: str, *, merge_events: int | None = None) -> Batch | None:
        """The open batch, or the next one opened; with `merge_events` out of several ticks, when so many wait.

        None when there is no new tick, or another process is asking for this consumer.
        """
        if not SQL["take_pump"].value(self.conn, {"queue": queue, "consumer": consumer}):
            return None
        facts = {"queue": queue, "consumer": consumer, "events": merge_events}
        number = None
        if merge_events is not None:
            standing = self.registration(queue, consumer)
            if standing is not None and standing.current_batch is None and standing.pending_events >= merge_events:
                number = self._("next_batch_custom").value(self.conn, facts)
        if number is None:
            number = self._("next_batch").value(self.conn, facts)
        return None if number is None else self.batch(number)

    def batch(self, number: int) -> Batch | None:
        """An open batch; None when it is finished or never was."""
        row = self._("batch").row(self.conn, {"batch": number})
        return None if row is None else Batch(number, *row)

    def finish(self, batch: int) -> bool:
        """Finish a batch; False when PgQ does not know it, which is harmless."""
        return bool(self._("finish_batch").value(self.conn, {"batch": batch}))

    def registration(self, queue: str, consumer: str) -> Registration | None:
        """How a consumer stands; None when it is not registered."""
        row = self._("registration").row(self.conn, {"queue": queue, "consumer": consumer})
        return None if row is None else Registration(*row)

    def queue(self, queue: str) -> dict[str, Any] | None:
        """Ticker and rotation of a queue; None when there is none of that name."""
        if not self.queue_exists(queue):
            return None
        rows = self._("queue_facts").records(self.conn, {"queue": queue})
        return rows[0] if rows else None

    def queue_exists(self, queue: str) -> bool:
        """Whether there is such a queue."""
        return bool(self._("queue_exists").value(self.conn, {"queue": queue}))

    def is_installed(self) -> bool:
        """Whether PgQ is in the schema."""
        return bool(SQL["schema_exists"].value(self.conn, {"schema": self.schema}))

    def tick_time(self, queue: str, tick: int) -> datetime | None:
        """When a tick was made; None when it is gone or never was."""
        found: datetime | None = self._("tick_time").value(self.conn, {"queue": queue, "tick": tick})
        return found

    def create_queue(self, queue: str) -> bool:
        """Make a queue; False when it was there."""
        return bool(self._("create_queue").value(self.conn, {"queue": queue}))

    def register(self, queue: str, consumer: str) -> bool:
        """Register a consumer at the newest tick; False when it was registered."""
        return bool(self._("register_consumer").value(self.conn, {"queue": queue, "consumer": consumer}))

    def register_at(self, queue: str, consumer: str, tick: int) -> None:
        """Move a consumer to a tick, which must exist; its open batch is dropped."""
        self._("register_consumer_at").run(self.conn, {"queue": queue, "consumer": consumer, "tick": tick})

    def unregister(self, queue: str, consumer: str) -> None:
        """Forget a consumer."""
        self._("unregister_consumer").run(self.conn, {"queue": queue, "consumer": consumer})

    def tables(self, queue: str) -> list[QueueTable]:
        """The tables whose triggers write into a queue."""
        rows = SQL["tables_of_queue"].rows(self.conn, {"schema": self.schema, "queue": queue})
        return [QueueTable(Table(row[0], row[1]), row[2], tuple(row[3] or ())) for row in rows]

    def tick(self, queue: str) -> int | None:
        """Make a tick if one is due and nobody else is at it."""
        if not SQL["take_ticker"].value(self.conn, {"queue": queue}):
            return None
        made: int | None = self._("ticker").value(self.conn, {"queue": queue})
        return made

    def maintenance(self) -> list[tuple[str, str | None]]:
        """What PgQ wants done: (function or `vacuum`, its argument)."""
        return [(row[0], row[1]) for row in self._("maintenance").rows(self.conn)]

    def maintain(self, function: str, argument: str | None) -> bool:
        """Do one of them; whether it wants to be called again. `vacuum` needs autocommit."""
        if function.lower().startswith("vacuum"):
            table = sql.Identifier(*str(argument).split(".", 1))
            SQL["vacuum"].with_slots(table=table).run(self.conn)
            return False
        name = sql.Identifier(*function.split(".", 1))
        if argument is None:
            return bool(SQL["maintain_all"].with_slots(function=name).value(self.conn))
        return bool(SQL["maintain"].with_slots(function=name).value(self.conn, {"argument": argument}))

    def read(
        self,
        batch: int,
        sink: Callable[[list[str]], None],
        *,
        chunk_bytes: int,
        with_time: bool = False,
        slice_of: tuple[int, int] | None = None,
    ) -> None:
        """Stream a batch's events in the order of their numbers, as lines for `fields`, so many bytes at a time.

        `slice_of` is (this slice, slices): the events whose first column, where that is of the key, hashes to it; all
        others are of slice 0. An error in `sink` leaves the connection closed.
        """
        events = sql.SQL(self._("batch_event_sql").value(self.conn, {"batch": batch}))
        part: sql.Composable = sql.SQL("true")
        if slice_of is not None:
            part = _slice(*slice_of)
        time = sql.SQL("ev_time" if with_time else "NULL")
        query = SQL["copy_events"].with_slots(events=events, time=time, slice=part)
        stream = _Stream(sink, chunk_bytes)
        try:
            with self.conn.cursor() as cursor:
                cursor.copy_expert(query.statement(), stream)  # type: ignore[arg-type]
            stream.flush_lines()
        except psycopg2.Error as error:
            # The driver says this of a server that went away in mid-COPY, with no SQLSTATE and no better class.
            lost = self.conn.closed and error.pgcode is None
            self.conn.close()
            if lost:
                raise psycopg2.OperationalError(f"the server went away in the middle of a batch: {error}") from error
            raise
        except BaseException:
            self.conn.close()  # in the middle of COPY it is of no use any more
            raise

    def forms(self, batch: int) -> list[tuple[str, str | None, bool]]:
        """Of a batch's events: table, column that slices go by (None: they are of slice 0), whether some truncate."""
        events = sql.SQL(self._("batch_event_sql").value(self.conn, {"batch": batch}))
        rows = SQL["forms"].with_slots(events=events, eligible=_ELIGIBLE).rows(self.conn)
        return [(row[0], row[1], row[2]) for row in rows]

    def whole(self, batch: int, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Some events of a batch with all their columns."""
        events = sql.SQL(self._("batch_event_sql").value(self.conn, {"batch": batch}))
        return SQL["whole_events"].with_slots(events=events).records(self.conn, {"ids": list(ids)})

    def _(self, name: str) -> Query:
        return SQL[name].with_slots(pgq=sql.Identifier(self.schema))


def source_facts(conn: Connection) -> tuple[str, str]:
    """The time zone that a session of this login has by default, and the database's encoding."""
    row = SQL["source_facts"].row(conn)
    assert row is not None
    return row[0], row[1]


def tables_named(conn: Connection, name: str) -> list[Table]:
    """The tables that `schema.table` may mean, where names have dots."""
    return [Table(*row) for row in SQL["table_named"].rows(conn, {"name": name})]


def root_of(conn: Connection, leaf: Table) -> Table | None:
    """The partitioned table that a leaf belongs to; None for any other table, or one that is gone."""
    row = SQL["root_of"].row(conn, {"schema": leaf.schema, "name": leaf.name})
    return None if row is None else Table(*row)


def table_exists(conn: Connection, table: Table) -> bool:
    """Whether the source has this table."""
    return bool(SQL["table_exists"].value(conn, {"schema": table.schema, "name": table.name}))


def leaves_of_queue(conn: Connection, schema: str, queue: str) -> list[tuple[Table, Table]]:
    """(leaf, root) of partitioned tables whose triggers write into a queue; `schema` is PgQ's."""
    rows = SQL["leaves_of_queue"].rows(conn, {"schema": schema, "queue": queue})
    return [(Table(row[0], row[1]), Table(row[2], row[3])) for row in rows]


def column_type(conn: Connection, table: Table, column: str) -> str | None:
    """A source column's type as SQL; None where it is gone."""
    found: str | None = SQL["column_type"].value(conn, {"schema": table.schema, "name": table.name, "column": column})
    return found


def fields(line: str) -> list[str]:
    """The columns of one line of `Pgq.read`."""
    parts = line[:-1].split("\t")
    if "\\" in line:
        return [_ESCAPE.sub(lambda found: _ESCAPED.get(found.group(1), found.group(1)), part) for part in parts]
    return parts


def time_text(moment: datetime | None) -> str:
    """A moment as COPY gives it in a session whose time zone is UTC."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")


def _slice(number: int, slices: int) -> sql.Composable:
    part = "CASE WHEN {eligible} THEN abs(hashtext(split_part(ev_data, '&', 1))::bigint) % {slices} ELSE 0 END"
    return sql.SQL(part + " = {number}").format(
        eligible=_ELIGIBLE, slices=sql.Literal(slices), number=sql.Literal(number)
    )


class _Stream(io.TextIOBase):
    """What COPY writes to: one call per line (text, as psycopg2 finds the base class); whole chunks go to the sink."""

    def __init__(self, sink: Callable[[list[str]], None], chunk_bytes: int) -> None:
        self._sink, self._limit = sink, chunk_bytes
        self._lines: list[str] = []
        self._size = 0

    def write(self, line: str) -> int:
        """One event's line."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= self._limit:
            self.flush_lines()
        return len(line)

    def flush_lines(self) -> None:
        """Pass on what is left."""
        if self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._sink(lines)
