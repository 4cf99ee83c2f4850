"""What the telemetry room asks of its database and writes into it, as typed functions over named queries."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg2
from psycopg2 import sql

from workers import database, migrations
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.sql_files import Query, queries
from workers.telemetry.checkpoint import Checkpoint, Print, Sight
from workers.telemetry.records import DeadLetter
from workers.telemetry.schema import Facts, Step, plan
from workers.telemetry.streams import Position

SQL = queries("telemetry")
SETUP = queries("telemetry_setup")

RefusedRows = psycopg2.DataError
DuplicateRow = psycopg2.errors.UniqueViolation
StatementCancelled = psycopg2.errors.QueryCanceled

_ready: set[str] = set()


def ensure_schema(conn: Connection, dsn: str) -> None:
    """Make sure that the tables are there; looked at once per process and database.

    Raises PermanentFailure where tables of xtelemdb stand: widening them is a person's decision.
    """
    if dsn in _ready:
        return
    migrations.migrate(conn, "telemetry")
    facts = read_facts(conn)
    if facts.is_xtelemdb:
        raise PermanentFailure(
            "the tables in this database are xtelemdb's; stop its writers (xtelemdb, dbIngest), then run "
            "`headrace telemetry setup`, which widens them and keeps every row"
        )
    if not facts.is_complete:
        run_steps(conn)
    conn.commit()
    _ready.add(dsn)


def read_facts(conn: Connection) -> Facts:
    """What stands in schema public."""
    return Facts(**SETUP["facts"].records(conn)[0])


def statements(conn: Connection, steps: Iterable[Step]) -> list[str]:
    """The SQL of the steps, as a person would type it."""
    texts = []
    for step in steps:
        statement = _composed(step).statement()
        texts.append(statement if isinstance(statement, str) else statement.as_string(conn))
    return texts


def run_steps(conn: Connection) -> None:
    """Run the missing steps in the transaction at hand. The lock timeout is the first of them."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('headrace telemetry setup'))")
        cursor.execute("SET LOCAL lock_timeout = '10s'")
        for step in plan(read_facts(conn)):  # read behind the lock: somebody else may have just done it
            cursor.execute(_composed(step).statement())


def _composed(step: Step) -> Query:
    query = SETUP[step.query]
    if step.definition is not None:
        return query.with_slots(definition=sql.SQL(step.definition.replace("{", "{{").replace("}", "}}")))
    if step.role is not None:
        return query.with_slots(role=sql.Identifier(step.role))
    return query


def lock_file(conn: Connection, host: str, path: str) -> bool:
    """Become this file's only reader, until `unlock_file` or the end of the session; False if there is one."""
    taken = bool(SQL["lock_file"].value(conn, {"key": _lock_key(host, path)}))
    conn.commit()
    return taken


def unlock_file(conn: Connection, host: str, path: str) -> None:
    """Let the next reader in."""
    if conn.closed:
        return
    try:
        conn.rollback()
        SQL["unlock_file"].value(conn, {"key": _lock_key(host, path)})
        conn.commit()
    except BaseException:
        conn.close()  # else the lock would stay with an idle connection of the pool
        raise


def _lock_key(host: str, path: str) -> int:
    digest = hashlib.blake2b(f"telemetry\0{host}\0{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def checkpoint(conn: Connection, host: str, path: str) -> Checkpoint | None:
    """How far this file was read, if it ever was."""
    rows = SQL["checkpoint"].records(conn, {"host": host, "path": path})
    return _checkpoint(rows[0]) if rows else None


def _checkpoint(row: dict[str, Any]) -> Checkpoint:
    prints = None
    if row["head_hash"] is not None:
        prints = Print(row["head_bytes"], bytes(row["head_hash"]), row["tail_bytes"], bytes(row["tail_hash"]))
    return Checkpoint(
        device=row["device"],
        stamp=row["stamp"],
        state=row["state"],
        volume=int(row["volume"]) if row["volume"] is not None else None,
        inode=int(row["inode"]) if row["inode"] is not None else None,
        size=row["size_bytes"],
        mtime_ns=row["mtime_ns"],
        position=Position(row["raw_offset"], row["skip_bytes"], row["stream_offset"]),
        prints=prints,
        records=row["records"],
        dead_letters=row["dead_letters"],
        accepted_letters=row["accepted_letters"],
        error=row["error"],
    )


def save_checkpoint(conn: Connection, host: str, path: str, point: Checkpoint) -> None:
    """Write how far the file was read; commits with the rows."""
    prints = point.prints
    SQL["save_checkpoint"].run(
        conn,
        {
            "host": host,
            "path": path,
            "device": point.device,
            "stamp": point.stamp,
            "state": point.state,
            "volume": point.volume,
            "inode": point.inode,
            "size_bytes": point.size,
            "mtime_ns": point.mtime_ns,
            "raw_offset": point.position.raw,
            "skip_bytes": point.position.skip,
            "stream_offset": point.position.stream,
            "head_bytes": prints.head_bytes if prints else 0,
            "head_hash": prints.head if prints else None,
            "tail_bytes": prints.tail_bytes if prints else 0,
            "tail_hash": prints.tail if prints else None,
            "records": point.records,
            "dead_letters": point.dead_letters,
            "accepted_letters": point.accepted_letters,
            "error": point.error,
        },
    )


def fail_file(
    conn: Connection,
    host: str,
    path: str,
    device: str,
    stamp: datetime | None,
    reason: str,
    due: timedelta | None,
) -> None:
    """A file that cannot be read: seen by `status`, tried again when due or changed."""
    facts = {
        "host": host,
        "path": path,
        "device": device,
        "stamp": stamp,
        "error": reason,
        "due_at": datetime.now(UTC) + due if due else None,
    }
    SQL["fail_file"].run(conn, facts)
    conn.commit()


def forget_pending(conn: Connection, host: str, path: str) -> None:
    """The file vanished before it could be read."""
    SQL["forget_pending"].run(conn, {"host": host, "path": path})
    SQL["forget_folder_of"].run(conn, {"host": host, "path": path})
    conn.commit()


def same_inode(conn: Connection, host: str, path: str, sight: Sight) -> list[tuple[str, Print, int]]:
    """(path, prints, raw offset) of other names under which this inode was read before."""
    rows = SQL["same_inode"].rows(conn, {"host": host, "path": path, "volume": sight.volume, "inode": sight.inode})
    return [(row[0], Print(row[1], bytes(row[2]), row[3], bytes(row[4])), row[5]) for row in rows]


def move(conn: Connection, host: str, old_path: str, path: str) -> None:
    """A renamed file keeps its checkpoint, its place in the inventory and its ingest time."""
    names = {"host": host, "path": path, "old_path": old_path}
    for query in (
        "clear_new_name",
        "move_checkpoint",
        "clear_letters",
        "move_letters",
        "clear_origin",
        "rename_origin",
    ):
        SQL[query].run(conn, names)
    record_event(conn, host, path, "moved", {"from": old_path})
    conn.commit()


def link(conn: Connection, host: str, old_path: str, path: str) -> None:
    """A second name of a file starts where the first one stands."""
    SQL["copy_checkpoint"].run(conn, {"host": host, "path": path, "old_path": old_path})
    record_event(conn, host, path, "linked", {"to": old_path})
    conn.commit()


def twins(conn: Connection, host: str, device: str, stamp: datetime | None) -> list[tuple[str, str, int, bytes]]:
    """(host, path, head bytes, head hash) of files of the same name on other hosts."""
    if stamp is None:
        return []
    rows = SQL["twins"].rows(conn, {"host": host, "device": device, "stamp": stamp})
    return [(row[0], row[1], row[2], bytes(row[3])) for row in rows]


def record_event(conn: Connection, host: str, path: str, event: str, detail: dict[str, Any]) -> None:
    """Write down what happened to a file."""
    facts = {"host": host, "path": path, "event": event, "detail": orjson.dumps(detail, default=str).decode()}
    SQL["record_event"].run(conn, facts)


def insert(conn: Connection, lines: bytes, count: int, *, fresh: bool) -> int:
    """Copy lines into telem inside a savepoint; how many rows are new.

    `fresh` rows go straight into the table, others through a staging table that leaves duplicates out.
    Raises RefusedRows when PostgreSQL does not accept a line, DuplicateRow when a fresh one is there already;
    the transaction is then as it was before.
    """
    with conn.cursor() as cursor:
        cursor.execute("SAVEPOINT portion")
        try:
            if fresh:
                cursor.copy_expert(SQL["copy_telem"].text, io.BytesIO(lines), 1 << 20)
                copied = new = cursor.rowcount
            else:
                cursor.execute(SQL["create_stage"].text)
                cursor.execute(SQL["clear_stage"].text)
                cursor.copy_expert(SQL["copy_stage"].text, io.BytesIO(lines), 1 << 20)
                copied = cursor.rowcount
                cursor.execute(SQL["merge_stage"].text)
                new = cursor.rowcount
            if copied != count:
                # Only a quote byte inside a line can do this: it would have swallowed its neighbours.
                raise RefusedRows(f"{count} lines became {copied} rows")
        except psycopg2.Error as error:
            if conn.closed:
                raise
            cursor.execute("ROLLBACK TO SAVEPOINT portion")
            if (error.pgcode or "").startswith("54"):
                raise RefusedRows(database.first_line(error)) from error  # too deep, too long, too big
            raise
        cursor.execute("RELEASE SAVEPOINT portion")
        return new


def bury(conn: Connection, host: str, path: str, letters: Sequence[DeadLetter]) -> None:
    """Keep what is no record, with its place and reason."""
    for letter in letters:
        facts = {
            "host": host,
            "path": path,
            "start": letter.start,
            "end": letter.end,
            "reason": letter.reason,
            "raw": letter.raw,
        }
        SQL["bury"].run(conn, facts)


def read_by_xtelemdb(conn: Connection, host: str) -> list[tuple[str, datetime]]:
    """(path, time of reading) of files that xtelemdb has read to their end and we have not."""
    return [(row[0], row[1]) for row in SQL["read_by_xtelemdb"].rows(conn, {"host": host})]


def keep_letters(conn: Connection, host: str, path: str, *, before: int) -> int:
    """Drop the letters of what is now read again, from a byte of the content on; how many others remain."""
    facts = {"host": host, "path": path, "before": before}
    SQL["exhume_from"].run(conn, facts)
    return int(SQL["count_letters"].value(conn, facts))


def accept(conn: Connection, host: str, path: str, by: str, reason: str | None) -> int | None:
    """A damaged or failed file counts as done from now on; its dead letters, or None if it was neither."""
    letters: int | None = SQL["accept_file"].value(conn, {"host": host, "path": path})
    if letters is not None:
        record_event(conn, host, path, "accepted", {"by": by, "reason": reason, "dead_letters": letters})
    conn.commit()
    return letters


def exhume(conn: Connection, host: str, path: str) -> None:
    """Drop a file's dead letters, because it is read anew."""
    SQL["exhume"].run(conn, {"host": host, "path": path})


def finish_file(
    conn: Connection, host: str, path: str, raw_path: bytes | None, point: Checkpoint, created: datetime
) -> None:
    """The file's row in the inventory, and the time at which it was read to its end."""
    assert point.size is not None and point.mtime_ns is not None
    facts = {
        "host": host,
        "path": path,
        "modified": from_ns(point.mtime_ns),
        "created": created,
        "size_bytes": point.size,
        "path_bytes": raw_path,
        "stamp": point.stamp,
        "device": point.device,
    }
    SQL["upsert_origin"].run(conn, facts)
    if point.stamp is not None:
        SQL["upsert_ingest_time"].run(conn, facts)


def from_ns(nanoseconds: int) -> datetime:
    """Nanoseconds since 1970 as an aware time, to the microsecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
