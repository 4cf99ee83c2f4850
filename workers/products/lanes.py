"""Lanes: how many builds a host has in hand at once, a message each; an idle one is woken when something is due."""

from __future__ import annotations

from datetime import timedelta

from workers.database import Connection
from workers.messages import BuildProducts, Message
from workers.settings import Settings
from workers.sql_files import queries

SQL = queries("products")


def announce(conn: Connection, settings: Settings) -> None:
    """Say how many lanes this host has; it commits."""
    # One process stays free for what is short: files of all rooms, and the ticks.
    lanes = settings.products.lanes or max(1, settings.worker.concurrency - 1)
    SQL["has_lanes"].run(conn, {"host": settings.host, "lanes": lanes})
    conn.commit()


def wake(conn: Connection, settings: Settings, host: str | None = None) -> list[Message]:
    """Messages for idle lanes of a host (this one by default), no more than there are outputs to build. It commits."""
    host = host or settings.host
    if host == settings.host:
        announce(conn, settings)
    facts = {"host": host, "again": timedelta(seconds=settings.products.requeue_seconds)}
    rows = SQL["wake_lanes"].rows(conn, facts)
    conn.commit()
    return [BuildProducts(host=host, lane=row[0]) for row in sorted(rows)]


def enter(conn: Connection, host: str, lane: int) -> bool:
    """Have a lane for this session alone; False when another message has it. It commits."""
    SQL["lane_is_here"].run(conn, {"host": host, "lane": lane})
    entered = bool(SQL["try_lane"].value(conn, {"host": host, "lane": lane}))
    conn.commit()
    return entered


def leave(conn: Connection, host: str, lane: int) -> None:
    """Let another message have it. It commits."""
    SQL["leave_lane"].run(conn, {"host": host, "lane": lane})
    conn.commit()
