"""The migration runner: forward only, each file once, under a lock, its ledger row first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.database import Connection, DatabaseError, first_line, sqlstate
from workers.errors import PermanentFailure
from workers.sql_files import migration_files
from workers.targets import Target

FOUNDATION = "foundation"
_LOCK = 0x6865616472616365  # "headrace" in ASCII: one migrator per database at a time
_LEDGER = """
CREATE SCHEMA IF NOT EXISTS headrace;
CREATE TABLE IF NOT EXISTS headrace.migration (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file `NNNN_<room>[_what].sql`; `room` says in which databases it belongs."""

    name: str
    room: str
    checksum: str
    text: str


def known(room: str) -> list[Migration]:
    """The migrations of a room, in order."""
    found = []
    for name, text in migration_files():
        match = re.match(r"\d{4}_([a-z]+)", name)
        if match and match.group(1) == room:
            found.append(Migration(name, room, hashlib.sha256(text.encode()).hexdigest(), text))
    return found


def migrate(conn: Connection, room: str) -> list[str]:
    """Apply what is missing of a room's migrations to this database; the names of those applied.

    Two starters never apply one twice: the ledger row goes first, in the migration's own transaction.
    Raises PermanentFailure when an applied file has changed since.
    """
    if not status(conn, room)[1]:
        return []
    applied = []
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute(_LEDGER)
        for migration in status(conn, room)[1]:
            cursor.execute(
                "INSERT INTO headrace.migration (name, checksum) VALUES (%s, %s)",
                (migration.name, migration.checksum),
            )
            cursor.execute(migration.text)
            applied.append(migration.name)
    conn.commit()
    return applied


def ensure(conn: Connection, target: Target, rooms: Sequence[str], *, room: str) -> list[str]:
    """Apply what is missing of several rooms' migrations; the names of what was applied.

    Raises PermanentFailure, with what to do, when the login may not: the schema is `room`'s to set up.
    """
    try:
        return [name for one in rooms for name in migrate(conn, one)]
    except DatabaseError as error:
        if sqlstate(error) != "42501":
            raise
        conn.rollback()
        raise PermanentFailure(
            f"{target.name}: the schema headrace cannot be made: {first_line(error)}; have its owner run"
            f" GRANT CREATE ON DATABASE for this role, or run `headrace {room} setup` as one who may"
        ) from error


def status(conn: Connection, room: str) -> tuple[list[str], list[Migration]]:
    """(names applied, migrations still missing) of a room in this database."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('headrace.migration') IS NOT NULL")
        row = cursor.fetchone()
        done: dict[str, str] = {}
        if row and row[0]:
            cursor.execute("SELECT name, checksum FROM headrace.migration")
            done = dict(cursor.fetchall())
    files = known(room)
    for migration in files:
        if done.get(migration.name, migration.checksum) != migration.checksum:
            raise PermanentFailure(
                f"{migration.name} was changed after this database applied it; install the version that matches"
            )
    return [m.name for m in files if m.name in done], [m for m in files if m.name not in done]
