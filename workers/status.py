"""The state of a deployment, asked of its own tables and queues: what runs, waits, is late and has failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from workers import database, hosts
from workers.sql_files import queries
from workers.targets import Target

SQL = queries("foundation")
WINDOW = timedelta(days=7)  # failures older than this have been seen or do not matter any more
BEAT_LOCK = 0x6865616462656174  # "headbeat": the advisory lock of the beat that sends


def beat_leads(control: Target) -> bool:
    """Whether some beat holds the lock, so that ticks are sent."""
    with database.connection(control, purpose="status", autocommit=True) as conn:
        return bool(SQL["beat_leads"].value(conn, {"high": BEAT_LOCK >> 32, "low": BEAT_LOCK & 0xFFFFFFFF}))


def control_status(control: Target) -> dict[str, Any]:
    """Hosts, pauses, rooms and newest failures, as the control database knows them."""
    with database.connection(control, purpose="status", autocommit=True) as conn:
        return {
            "rooms": SQL["room_summary"].records(conn, {"window": WINDOW}),
            "failing": SQL["failing_runs"].records(conn, {"window": WINDOW, "limit": 20}),
            "pauses": SQL["pauses"].records(conn),
            "hosts": [
                {
                    "name": host.name,
                    "alive": host.alive,
                    "silent_seconds": round(host.silent_seconds, 1),
                    "draining": host.draining,
                    "running": host.running,
                    "queues": host.queues,
                    "version": host.version,
                }
                for host in hosts.listing(control)
            ],
            "beat": beat_leads(control),
        }
