"""Places: the databases whose tables are rewritten, our tables made there if they are missing."""

from __future__ import annotations

import time
from datetime import timedelta

from workers import database, migrations
from workers.database import Connection
from workers.settings import Settings
from workers.targets import CONTROL, Target

ROOMS = ("alerts", "repack")
_READY_LASTS = timedelta(minutes=5)

_ready: dict[str, float] = {}


def ensure(target: Target) -> None:
    """Make our tables if they are missing; asked again every few minutes.

    Raises PermanentFailure when the login may not, ServerUnavailable when the database cannot be reached.
    """
    if time.monotonic() < _ready.get(target.dsn, 0):
        return
    with database.connection(target, purpose="repack setup") as conn:
        migrate(conn, target)
    _ready[target.dsn] = time.monotonic() + _READY_LASTS.total_seconds()


def migrate(conn: Connection, target: Target) -> list[str]:
    """Apply what is missing of our tables; the names of what was applied."""
    return migrations.ensure(conn, target, ROOMS, room="repack")


def names(settings: Settings) -> list[str]:
    """The databases that the plans of the settings, or rules for their tables, name."""
    found = [name for plan in settings.repack.plans.values() if plan.enabled for name in plan.databases]
    return list(dict.fromkeys([*found, *settings.repack.databases]))


def databases(settings: Settings) -> list[str]:
    """Every database of the settings: a person may ask for a rewrite in any of them."""
    return [CONTROL, *(name for name in settings.databases if name != settings.control.database)]


def forget() -> None:
    """Ask every database anew."""
    _ready.clear()
