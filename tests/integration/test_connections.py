"""Borrowed connections on a real server: kept, renamed, and replaced when they broke while nobody used them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers import database
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
SESSIONS = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'headrace test%'"


def borrow(conf: Settings, purpose: str) -> int:
    """Borrow a session for a moment; its backend."""
    with database.connection(conf.target(), purpose=purpose, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def test_a_session_is_kept_and_named_after_its_borrower(conf: Settings, sql: Ask) -> None:
    """The second borrower gets the same session, under the name of its own purpose."""
    first = borrow(conf, "test one")
    assert sql(SESSIONS) == [(first, "headrace test one")]
    assert borrow(conf, "test one") == first
    assert borrow(conf, "test two") == first
    assert sql(SESSIONS) == [(first, "headrace test two")]


def test_a_session_that_broke_while_idle_is_replaced(conf: Settings, sql: Ask) -> None:
    """A terminated backend, or a server that was restarted, costs the next borrower nothing."""
    first = borrow(conf, "test one")
    assert sql("SELECT pg_terminate_backend(%s, 5000)", first) == [(True,)]
    assert borrow(conf, "test one") != first
