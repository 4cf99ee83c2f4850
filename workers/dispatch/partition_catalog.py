"""Destinations as PostgreSQL's catalog has them, and the statements that make, attach, detach and drop partitions.

Nothing here commits; a plan is a list of steps, whose statements are what is run and what is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b

from psycopg2 import sql

from workers.database import NAME_BYTES, Connection
from workers.dispatch import template
from workers.dispatch.names import Table
from workers.sql_files import Query, queries

SQL = queries("dispatch_partitions")

LOCK_SPACE = 0x50 << 56  # "P": the advisory locks of parents, apart from everybody else's
INSTANT, CLOCK, DATE = "timestamp with time zone", "timestamp without time zone", "date"
# Locks of our own transaction that another session's LIKE, or its ATTACH PARTITION, would wait for.
BLOCKS_LIKE = ("AccessExclusiveLock",)
BLOCKS_ATTACH = (*BLOCKS_LIKE, "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock", "ShareUpdateExclusiveLock")


@dataclass(frozen=True, slots=True)
class Step:
    """One statement in words and as SQL. `table` is what it makes (`makes`) or takes away; None: it opens each step."""

    what: str
    statement: str
    table: Table | None = None
    makes: bool = True


@dataclass(frozen=True, slots=True)
class Relation:
    """What stands under a name: pg_class.relkind, and the key by which it is partitioned (`column` None: by none
    or an expression)."""

    oid: int
    kind: str
    is_partition: bool
    strategy: str | None
    key_columns: int | None
    column: str | None
    type: str | None


@dataclass(frozen=True, slots=True)
class Child:
    """A partition; its bounds are naive: UTC where the column is timestamptz, else what the column's clock shows."""

    table: Table
    is_default: bool
    lower: datetime | None
    upper: datetime | None

    def covers(self, at: datetime) -> bool:
        """Whether rows of that moment belong into it; the default partition covers none."""
        return self.lower is not None and self.upper is not None and self.lower <= at < self.upper


@dataclass(frozen=True, slots=True)
class Registered:
    """A partition of ours that has not left its parent; `ends` is None for the newest table of kind like."""

    table: Table
    kind: str
    is_there: bool
    is_attached: bool
    ends: datetime | None
    is_newest: bool


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """A partition for people. `rows` is PostgreSQL's estimate, `bytes` are with indexes; `has_rows` is known of the
    default partition alone; `bound` as PostgreSQL prints it, None for tables of kind like."""

    table: Table
    kind: str
    is_attached: bool
    bound: str | None
    covers_from: datetime | None
    covers_until: datetime | None
    is_registered: bool
    detached_at: datetime | None
    is_there: bool
    rows: int
    bytes: int
    has_rows: bool | None


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A native partition to be made: its bounds in the column's terms and as instants, for the register."""

    table: Table
    lower: datetime
    upper: datetime
    covers_from: datetime
    covers_until: datetime


def relation(conn: Connection, table: Table) -> Relation | None:
    """What stands under this name; None: nothing."""
    found = SQL["relation"].records(conn, {"schema": table.schema, "name": table.name})
    return Relation(**found[0]) if found else None


def children(conn: Connection, parent: Relation) -> list[Child]:
    """The partitions of a parent that is partitioned by range over time, the oldest first."""
    rows = SQL["children"].rows(conn, {"parent": parent.oid, "is_instant": parent.type == INSTANT})
    return [Child(Table(schema, name), *rest) for schema, name, *rest in rows]


def holds_locks(conn: Connection, parent: Table, facts: Relation, modes: Sequence[str]) -> bool:
    """Whether this transaction itself would be in the way of another session that makes a partition."""
    wanted = {"parent": facts.oid, "modes": list(modes), "key": _lock_key(parent)}
    return bool(SQL["own_locks"].value(conn, wanted))


def free_name(conn: Connection, parent: Table, label: str, *, planned: Sequence[Table] = ()) -> Table | None:
    """A name for a partition that nobody has: `<parent>_p<label>`, with a number if need be; None: it is too long.

    What retention detached keeps its name, and a row that comes very late needs a partition again.
    """
    names = [f"{parent.name}_p{label}{number}" for number in ("", *(f"_{n}" for n in range(2, 100)))]
    taken = {row[0] for row in SQL["names_taken"].rows(conn, {"schema": parent.schema, "names": names})}
    taken |= {table.name for table in planned}
    free = next((name for name in names if name not in taken), names[-1])
    return Table(parent.schema, free) if len(free.encode()) <= NAME_BYTES else None


def opening(conn: Connection, parent: Table, lock: timedelta) -> list[Step]:
    """What each step's transaction begins with."""
    milliseconds = max(1, int(lock / timedelta(milliseconds=1)))  # 0 would be for ever
    return [
        _step(conn, "wait no longer for a lock", SQL["wait_little"].with_slots(milliseconds=sql.Literal(milliseconds))),
        _step(conn, f"one at a time at {parent}", SQL["one_at_a_time"].with_slots(key=sql.Literal(_lock_key(parent)))),
    ]


def native_step(conn: Connection, parent: Table, facts: Relation, default: Table | None, new: NewPartition) -> Step:
    """The statements that make a partition, with the rows that the default partition has of it; one transaction."""
    tablespace, owner, columns = SQL["details"].rows(conn, {"parent": facts.oid})[0]
    itself, above = _name(new.table), _name(parent)
    bounds = {"lower": sql.Literal(_bound(new.lower, facts)), "upper": sql.Literal(_bound(new.upper, facts))}
    place = sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)) if tablespace else sql.SQL("")
    parts = [SQL["create_partition"].with_slots(partition=itself, parent=above, tablespace=place)]
    if owner is not None:
        parts.append(SQL["give"].with_slots(partition=itself, owner=sql.Identifier(owner)))
    if default is not None:
        parts.insert(0, SQL["lock_with_default"].with_slots(parent=above, default_partition=_name(default)))
        parts.append(
            SQL["move_rows"].with_slots(
                default_partition=_name(default), partition=itself, column=sql.Identifier(facts.column or ""),
                columns=sql.SQL(", ").join(map(sql.Identifier, columns)), **bounds,
            )
        )  # fmt: skip
    parts.append(SQL["attach"].with_slots(parent=above, partition=itself, **bounds))
    parts.append(_register(new.table, parent, "native", new.covers_from, new.covers_until))
    return _step(conn, f"make {new.table} from {new.covers_from} to {new.covers_until}", *parts, table=new.table)


def like_text(conn: Connection, table: Table, parent: Table, written: str | None, key: Sequence[str], mode: str) -> str:
    """The SQL that makes a table like its parent, by the site's template or the default one.

    Raises ValueError when the template has a magic word that stands for nothing here.
    """
    names = {"schema": table.schema, "name": table.name, "parent_schema": parent.schema, "parent_name": parent.name}
    quoted = SQL["quoted"].records(conn, {**names, "key": list(key)})[0]
    words = template.Words(quoted["destination"], quoted["parent"], quoted["key"] or "", template.schema_table(table))
    text = template.render(template.default(mode, has_key=bool(key)) if written is None else written, words)
    body = sql.SQL("BEGIN EXECUTE {}; END").format(sql.Literal(text)).as_string(conn)
    return _text(conn, SQL["run_template"].with_slots(body=sql.Literal(body)))


def registration(conn: Connection, table: Table, parent: Table, covers_from: datetime) -> str:
    """The statement that remembers a table of kind like, whose first row is of that instant."""
    return _text(conn, _register(table, parent, "like", covers_from, None))


def registered(conn: Connection, parent: Table) -> list[Registered]:
    """Partitions of ours that have not left this parent, the oldest first."""
    rows = SQL["registered"].rows(conn, {"schema": parent.schema, "name": parent.name})
    return [Registered(Table(schema, name), *rest) for schema, name, *rest in rows]


def is_registered(conn: Connection, table: Table) -> bool:
    """Whether a table is one of ours that has not left its parent."""
    return bool(SQL["is_registered"].value(conn, {"schema": table.schema, "name": table.name}))


def leaving(conn: Connection, parent: Table, row: Registered, how: str) -> Step:
    """How a partition goes, `detach` or `drop`; nothing that a person has taken out of its parent is ever dropped."""
    table, names = row.table, {"schema": sql.Literal(row.table.schema), "name": sql.Literal(row.table.name)}
    if not row.is_there:
        gone = SQL["forget"].with_slots(**names)
        return _step(conn, f"forget {table}, which is no more", gone, table=table, makes=False)
    marked = SQL["mark_detached"].with_slots(**names)
    if row.kind == "native" and not row.is_attached:
        return _step(conn, f"note that {table} was detached by somebody", marked, table=table, makes=False)
    if how == "drop":
        parts = [SQL["drop_table"].with_slots(partition=_name(table)), SQL["forget"].with_slots(**names)]
        return _step(conn, f"drop {table}", *parts, table=table, makes=False)
    if row.kind == "like":
        return _step(conn, f"let go of {table}, which stays as it is", marked, table=table, makes=False)
    detach = SQL["detach"].with_slots(parent=_name(parent), partition=_name(table))
    return _step(conn, f"detach {table}", detach, marked, table=table, makes=False)


def listing(conn: Connection, parent: Table) -> list[PartitionRow]:
    """A parent's partitions, whoever made them, and the tables that we made like it."""
    found = []
    for row in SQL["list_partitions"].records(conn, {"schema": parent.schema, "name": parent.name}):
        table = Table(row.pop("schema"), row.pop("name"))
        is_default = row["bound"] == "DEFAULT"
        has_rows = SQL["has_rows"].with_slots(partition=_name(table)).value(conn) if is_default else None
        found.append(PartitionRow(table=table, has_rows=has_rows, **row))
    return found


def execute(conn: Connection, statement: str) -> None:
    """Run a step's statement."""
    with conn.cursor() as cursor:
        cursor.execute(statement)


def _lock_key(parent: Table) -> int:
    return LOCK_SPACE + int.from_bytes(blake2b(f"{parent.schema}\0{parent.name}".encode(), digest_size=7).digest())


def _register(table: Table, parent: Table, kind: str, since: datetime, until: datetime | None) -> Query:
    values = {
        "schema": table.schema, "name": table.name, "parent_schema": parent.schema, "parent_name": parent.name,
        "kind": kind, "covers_from": since, "covers_until": until,
    }  # fmt: skip
    return SQL["register"].with_slots(**{slot: sql.Literal(value) for slot, value in values.items()})


def _step(conn: Connection, what: str, *parts: Query, table: Table | None = None, makes: bool = True) -> Step:
    return Step(what, ";\n".join(_text(conn, part).strip() for part in parts), table, makes)


def _text(conn: Connection, query: Query) -> str:
    statement = query.statement()
    return statement if isinstance(statement, str) else statement.as_string(conn)


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _bound(at: datetime, facts: Relation) -> str:
    text = at.isoformat(sep=" ")
    return text[:10] if facts.type == DATE else text
