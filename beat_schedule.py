"""The timetable: which tick fires when, and why that often. Data only; `producers.ticks` has the tasks.

Every tick expires before the next one is due: a worker that was away comes back to one of each, not to a pile.
"""

from __future__ import annotations

from typing import Any


def _every(task: str, seconds: float) -> dict[str, Any]:
    return {"task": task, "schedule": seconds, "options": {"queue": "ticks", "expires": seconds * 0.9}}


beat_schedule: dict[str, dict[str, Any]] = {
    # A dead worker's run is `lost` 45 s after its last heartbeat; 10 s more keeps that under a minute.
    "reap": _every("ticks.reap", 10.0),
    # The safe foot of ingest: what no watcher saw is found by walking the folders. The tick itself obeys
    # `telemetry.sweep_seconds`; it fires more often so that small values work.
    "telemetry-sweep": _every("ticks.telemetry_sweep", 10.0),
    # The safe foot of products: wakes idle builders, ends what dead workers left, and once per `products.sweep_seconds`
    # has folders looked at and everything compared. A build whose message got lost starts at most this much later.
    "products": _every("ticks.products", 2.0),
    # A job starts at most this long after it is due, and an edit of a job is seen as soon. A look costs a handful of
    # index reads per database.
    "postprocessing": _every("ticks.postprocessing", 1.0),
    # From a tick of PgQ to its batch's message; in between the pump polls by itself (`dispatch.poll_seconds`).
    "dispatch": _every("ticks.dispatch", 1.0),
    # Partitions are made days ahead; a quarter of an hour finds a database that was away in good time.
    "partitions": _every("ticks.partitions", 900.0),
    # Steps of a rewrite follow each other by messages; this finds those whose message got lost, those that wait longer
    # than half a minute, and plans whose window has opened.
    "repack": _every("ticks.repack", 5.0),
    # History beyond its retention goes in small portions.
    "forget-old-runs": _every("ticks.forget_old_runs", 3600.0),
}
