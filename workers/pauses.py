"""Pauses: "we are observing tonight", for a room, a host, or one room on one host."""

from __future__ import annotations

from workers import database
from workers.errors import Paused
from workers.sql_files import queries
from workers.targets import Target

SQL = queries("foundation")
ALL = "*"


def check(control: Target, room: str, host: str) -> None:
    """Raise Paused while the room is paused on this host. What waits is found again by the sweep."""
    with database.connection(control, purpose="runs", autocommit=True) as conn:
        row = SQL["pause_in_force"].row(conn, {"room": room, "host": host})
    if row is not None:
        by, since, reason = row
        why = f" ({reason})" if reason else ""
        raise Paused(
            f"{room} is paused on {host} by {by} since {since:%Y-%m-%d %H:%M} UTC{why}; `headrace resume` ends it"
        )
