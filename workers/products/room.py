"""The room's connection: to the database that holds the products, its tables made on first use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from workers import database, migrations
from workers.database import Connection
from workers.settings import Settings
from workers.targets import Target

ROOMS = ("alerts", "products")

_ready: set[tuple[int, str]] = set()


def target(settings: Settings) -> Target:
    """The database with the products' tables."""
    return settings.target(settings.products.database)


@contextmanager
def connection(settings: Settings, *, purpose: str) -> Iterator[Connection]:
    """A connection to the products' database, not in autocommit; its tables are there.

    Raises PermanentFailure when the login may not make them, ServerUnavailable when the server cannot be reached.
    """
    work = target(settings)
    with database.connection(work, purpose=f"products {purpose}") as conn:
        key = (os.getpid(), work.dsn)
        if key not in _ready:
            migrations.ensure(conn, work, ROOMS, room="products")
            conn.commit()
            _ready.add(key)
        yield conn


def forget() -> None:
    """Look again whether the tables are there (a test's end)."""
    _ready.clear()
