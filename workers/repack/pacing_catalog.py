"""What pacing reads of the server: the standbys' positions, the WAL written so far, the disk that our schemas take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from workers.database import Connection
from workers.sql_files import queries

SQL = queries("repack_pacing")


@dataclass(frozen=True, slots=True)
class Standby:
    """A standby. `position` is what it has replayed, in bytes of WAL ever written; None: the login may not know.

    `lag_seconds` is PostgreSQL's own, None while nothing is to be replayed; of a standby that stopped replaying it is
    the last that was measured.
    """

    name: str | None
    position: int | None
    lag_seconds: float | None


def sight(conn: Connection) -> tuple[bool, str]:
    """Whether the login may see how far the standbys are, and its name as SQL writes it."""
    with _no_transaction_left(conn):
        [(may_see, login)] = SQL["replication"].rows(conn)
    return may_see, login


def wal_position(conn: Connection) -> int:
    """Bytes of WAL that the server has written, ever."""
    with _no_transaction_left(conn):
        return int(SQL["wal_position"].value(conn))


def standbys(conn: Connection) -> list[Standby]:
    """The standbys that are connected now; a login that may not know more sees that there are some."""
    with _no_transaction_left(conn):
        return [Standby(**row) for row in SQL["standbys"].records(conn)]


def used_bytes(conn: Connection) -> int:
    """Disk that the copies, logs and old tables of this database's requests take."""
    with _no_transaction_left(conn):
        return int(SQL["used_bytes"].value(conn))


@contextmanager
def _no_transaction_left(conn: Connection) -> Iterator[None]:
    # We are asked between chunks, and a pause follows: a transaction that we began must not stay open meanwhile.
    was_idle = conn.info.transaction_status == TRANSACTION_STATUS_IDLE
    yield
    if was_idle and not conn.autocommit:
        conn.rollback()
