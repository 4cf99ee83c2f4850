"""Connections to PostgreSQL: opened lazily per process, kept alive, named, and translated into our errors."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import psycopg2
from psycopg2 import extensions

from workers import logs
from workers.errors import HeadraceError, RetryLater, ServerUnavailable
from workers.targets import Target, redacted

log = logs.get(__name__)

Connection = extensions.connection
DatabaseError = psycopg2.Error  # for those who must tell a server's errors from bugs, and may not know the driver

NAME_BYTES = 63  # PostgreSQL truncates application_name at NAMEDATALEN - 1 bytes
CONNECT_TIMEOUT_SECONDS = 10
_CLIENT: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds: an unacknowledged write gives up then
    "client_encoding": "UTF8",
}
# The server's side of the same bargain: a backend whose client died ends within seconds, also in mid-query.
_SERVER = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "client_connection_check_interval": "5s",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    # A site's defaults for people must not cut our own short questions off.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # What somebody put into a schema is never taken for one of PostgreSQL's own; our names are qualified.
    "search_path": "pg_catalog, pg_temp",
}
_AGAIN = {
    "40001": "a concurrent update interfered",
    "40P01": "a deadlock was broken here",
    "55P03": "a lock is held by somebody else",
    "53100": "the server's disk is full; make room there",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left; raise max_connections or lower worker.concurrency",
    "25006": "the server is read-only (a standby?)",
}

_local = threading.local()
_names: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()


def application_name(purpose: str, run: int | None = None) -> str:
    """`headrace <purpose> run=<id>`, cut so that the run id always fits into PostgreSQL's 63 bytes."""
    tail = f" run={run}" if run is not None else ""
    head = f"headrace {purpose}".encode()[: NAME_BYTES - len(tail)].decode(errors="ignore")
    return head + tail


def connect(target: Target, *, purpose: str, run: int | None = None, autocommit: bool = False) -> Connection:
    """A new connection with keepalives on both ends.

    Raises ServerUnavailable when the server cannot be reached or refuses the login.
    """
    try:
        conn: Connection = psycopg2.connect(target.dsn, application_name=application_name(purpose, run), **_CLIENT)
    except psycopg2.OperationalError as error:
        raise ServerUnavailable(_unreachable(target, error), after=timedelta(seconds=5)) from error
    except (psycopg2.Error, UnicodeDecodeError, TypeError) as error:
        raise ServerUnavailable(f"{target}: {first_line(error)}", after=timedelta(seconds=5)) from error
    conn.autocommit = True
    with translated(target, conn), conn.cursor() as cursor:
        # By SET, not by `options`: a pooler in session mode passes these on, and refuses unknown start-up options.
        cursor.execute("; ".join(f"SET {name} = {_literal(value)}" for name, value in _SERVER.items()))
    conn.autocommit = autocommit
    return conn


@contextmanager
def connection(
    target: Target, *, purpose: str, run: int | None = None, autocommit: bool = False
) -> Iterator[Connection]:
    """Borrow a connection of this process and thread; rolled back and kept for the next borrower on the way out.

    A connection never crosses a fork, and one that broke is thrown away.
    Raises ServerUnavailable or RetryLater instead of psycopg2's errors of a dying server or a held lock.
    """
    idle = _idle(target)
    conn = idle.pop() if idle else None
    if conn is not None and not _rename(conn, application_name(purpose, run)):
        conn = None
    if conn is None:
        conn = connect(target, purpose=purpose, run=run)
        _names[conn] = application_name(purpose, run)
    conn.autocommit = autocommit
    try:
        with translated(target, conn):
            yield conn
    finally:
        if _reset(conn):
            _idle(target).append(conn)


@contextmanager
def translated(target: Target, conn: Connection | None = None) -> Iterator[None]:
    """Turn psycopg2's errors of a dying server, a lock or a full disk into RetryLater; let bugs through."""
    try:
        yield
    except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.InternalError) as error:
        code = error.pgcode or ""
        if code in _AGAIN:
            raise RetryLater(
                f"{target.name}: {_AGAIN[code]} ({first_line(error)})", after=timedelta(seconds=2)
            ) from error
        gone = conn is not None and conn.closed
        if gone or code.startswith(("08", "57P")) or (not code and isinstance(error, psycopg2.OperationalError)):
            raise ServerUnavailable(
                f"{target}: connection lost: {first_line(error)}", after=timedelta(seconds=2)
            ) from error
        raise
    except psycopg2.errors.ReadOnlySqlTransaction as error:
        raise RetryLater(f"{target.name}: {_AGAIN['25006']}", after=timedelta(seconds=30)) from error


def close_all() -> None:
    """Close this thread's idle connections (a test's end, a worker's shutdown)."""
    for pool in getattr(_local, "pools", {}).values():
        for conn in pool:
            conn.close()
    _local.pools = {}


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error, of ours that came from one too; None where the server said none."""
    source = error if isinstance(error, psycopg2.Error) else error.__cause__
    return source.pgcode if isinstance(source, psycopg2.Error) else None


def first_line(error: BaseException) -> str:
    """The first line of a server's message, without passwords: enough for a one-line report."""
    text = str(error).strip() or type(error).__name__
    return redacted(text.splitlines()[0])


def describe_error(error: BaseException) -> dict[str, str]:
    """What a run row keeps of an error: message, and PostgreSQL's code, detail, hint and context if it has them."""
    described = {"message": first_line(error) if not isinstance(error, HeadraceError) else redacted(str(error))}
    source = error if isinstance(error, psycopg2.Error) else error.__cause__
    if isinstance(source, psycopg2.Error):
        diagnostics = source.diag
        fields = {
            "sqlstate": source.pgcode,
            "detail": diagnostics.message_detail,
            "hint": diagnostics.message_hint,
            "context": diagnostics.context,
        }
        described |= {key: redacted(value) for key, value in fields.items() if value}
    return described


def _unreachable(target: Target, error: BaseException) -> str:
    reason = first_line(error)
    if "password" in reason or "authentication" in reason:
        return f"{target}: the login was refused: {reason}; check user and password of {target.name!r}"
    return f"{target}: cannot be reached: {reason}; check host, port and that the server runs"


def _idle(target: Target) -> list[Connection]:
    # After a fork the child must not touch, nor even close, the parent's sockets: they are abandoned here.
    if getattr(_local, "pid", None) != os.getpid():
        _local.abandoned = getattr(_local, "pools", None)
        _local.pid = os.getpid()
        _local.pools = {}
    pools: dict[str, list[Connection]] = _local.pools
    return pools.setdefault(target.dsn, [])


def _rename(conn: Connection, name: str) -> bool:
    try:
        conn.autocommit = True
        # Something to read on an idle session is most likely its end: the question finds out.
        if _names.get(conn) != name or _has_something_to_say(conn):
            with conn.cursor() as cursor:
                cursor.execute("SET application_name = %s", (name,))
            _names[conn] = name
    except psycopg2.Error:
        conn.close()
        return False
    return True


def _has_something_to_say(conn: Connection) -> bool:
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _reset(conn: Connection) -> bool:
    if conn.closed:
        return False
    try:
        if conn.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE:
            conn.rollback()
    except psycopg2.Error:
        conn.close()
        return False
    return True


def _literal(value: str) -> str:
    return value if "," in value else f"'{value}'"
