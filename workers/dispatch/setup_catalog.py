"""Statements that set a source database up for dispatch, and what its catalog says of PgQ, tables and triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from psycopg2 import sql

from workers.database import Connection
from workers.dispatch.names import Table
from workers.sql_files import Query, queries

SQL = queries("dispatch_setup")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, in words and as its statement; without a statement it is a note. `file`: where its text is."""

    what: str
    statement: str = ""
    file: Path | None = None

    @property
    def is_note(self) -> bool:
        """Whether there is nothing to run."""
        return not self.statement

    def script(self) -> str:
        """The step as lines for psql."""
        comment = f"-- {' '.join(self.what.split())}"
        if self.is_note:
            return comment
        quoted = str(self.file).replace("\\", "\\\\").replace("'", "\\'")
        return f"{comment}\n" + (f"\\i '{quoted}'" if self.file else self.statement.rstrip("; \n") + ";")


@dataclass(frozen=True, slots=True)
class PgqFacts:
    """What a database has of PgQ, and what the login may do about it."""

    database: str
    login: str
    has_schema: bool
    missing: Sequence[str] | None
    present: int
    installed: str | None
    available: str | None
    needs_superuser: bool | None
    is_superuser: bool
    may_create_roles: bool
    may_create_schema: bool
    missing_roles: Sequence[str]


@dataclass(frozen=True, slots=True)
class Function:
    """A trigger function of PgQ; `config` is what it has pinned, names in lower case."""

    oid: int
    config: Mapping[str, str]
    is_ours: bool
    owner: str
    insert_event: int | None


@dataclass(frozen=True, slots=True)
class Source:
    """A table to be logged; `unable` are logins whose changes would fail for want of a right on insert_event."""

    oid: int
    kind: str
    has_key: bool
    unable: Sequence[str]


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of such a table; `type` is pg_trigger.tgtype."""

    name: str
    type: int
    is_unconditional: bool
    is_same: bool
    is_of_queue: bool


def pgq_facts(conn: Connection) -> PgqFacts:
    """What this database has of PgQ in the schema pgq."""
    return PgqFacts(**SQL["pgq_facts"].records(conn)[0])


def function(conn: Connection, schema: str, kind: str) -> Function | None:
    """PgQ's trigger function of this name; None where there is none."""
    rows = SQL["trigger_function"].records(conn, {"schema": schema, "kind": kind})
    if not rows:
        return None
    config = dict(entry.split("=", 1) for entry in rows[0].pop("config"))
    return Function(**rows[0], config={name.lower(): value for name, value in config.items()})


def source(conn: Connection, table: Table, pgq: Function) -> Source | None:
    """What must be known of a table before it is logged; None where there is none of this name."""
    known = {"schema": table.schema, "name": table.name, "insert_event": pgq.insert_event}
    rows = SQL["source_table"].records(conn, known)
    return Source(**rows[0]) if rows else None


def triggers(
    conn: Connection, found: Source, pgq: Function, *, schema: str, queue: str, arguments: Sequence[str]
) -> list[Trigger]:
    """The triggers of a table, compared with the one that calls `pgq` with these arguments."""
    known: dict[str, Any] = {
        "table": found.oid, "function": pgq.oid, "schema": schema, "queue": queue, "arguments": list(arguments),
    }  # fmt: skip
    return [Trigger(**row) for row in SQL["table_triggers"].records(conn, known)]


def create_trigger(
    conn: Connection, name: str, table: Table, events: str, each: str, calls: tuple[str, str], arguments: Sequence[str]
) -> str:
    """The text that makes a trigger; `events` and `each` are keywords, `calls` is (schema, function)."""
    return _text(
        conn,
        SQL["create_trigger"].with_slots(
            trigger=sql.Identifier(name),
            events=sql.SQL(events),
            table=sql.Identifier(*table),
            each=sql.SQL(each),
            function=sql.Identifier(*calls),
            arguments=sql.SQL(", ").join(map(sql.Literal, arguments)),
        ),
    )


def pin_function(conn: Connection, schema: str, kind: str, pins: Mapping[str, str]) -> str:
    """The text that fixes settings of a trigger function; the pins are words of ours."""
    settings = sql.SQL(" ").join(sql.SQL(f"SET {name} = {value}") for name, value in pins.items())
    return _text(conn, SQL["pin_function"].with_slots(function=sql.Identifier(schema, kind), settings=settings))


def lock_timeout(conn: Connection, wait: timedelta) -> str:
    """The text that limits how long locks are waited for."""
    milliseconds = sql.Literal(round(wait.total_seconds() * 1000))
    return _text(conn, SQL["lock_timeout"].with_slots(milliseconds=milliseconds))


def _text(conn: Connection, query: Query) -> str:
    statement = query.statement()
    return statement if isinstance(statement, str) else statement.as_string(conn)
