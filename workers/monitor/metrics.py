"""Headrace's own Prometheus metrics, computed from one look; a server that is down leaves its metrics out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from workers.monitor import archive_metrics, consumer_metrics, job_metrics, rewrite_metrics
from workers.monitor.board import Snapshot
from workers.monitor.families import gauge


def exposition(snapshot: Snapshot) -> bytes:
    """The text format of Prometheus, UTF-8."""
    return generate_latest(_Fixed(list(families(snapshot))))


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Every metric that this look can tell."""
    yield gauge(
        "headrace_up",
        "Whether the server answers: the control database, the telemetry database, the broker.",
        ["server"],
        (((name,), float(error is None)) for name, error in snapshot.servers().items()),
    )
    if snapshot.queues.value is not None:
        yield gauge(
            "headrace_queue_messages",
            "Messages that wait in a queue; those in a worker's hands do not count.",
            ["queue"],
            (((name,), depth) for name, depth in snapshot.queues.value.items()),
        )
    if snapshot.control.value is not None:
        yield from _control(snapshot)
    if snapshot.telemetry.value is not None and snapshot.telemetry.value["set_up"]:
        yield from _telemetry(snapshot)
    yield from job_metrics.families(snapshot.postprocessing)
    yield from consumer_metrics.families(snapshot.dispatch)
    yield from rewrite_metrics.families(snapshot.repack)
    yield from archive_metrics.families(snapshot.products)


def _control(snapshot: Snapshot) -> Iterator[Metric]:
    found = snapshot.control.value or {}
    yield gauge(
        "headrace_host_silent_seconds",
        "Time since a worker or watcher of the host announced itself; more than 60 means that it is away.",
        ["host"],
        (((host["name"],), host["silent_seconds"]) for host in found["hosts"]),
    )
    yield gauge(
        "headrace_runs",
        "Live runs, and as failing the keys whose newest run of the last days did not end well.",
        ["room", "state"],
        (((room["room"], state), room[state]) for room in found["rooms"] for state in ("queued", "running", "failing")),
    )
    yield gauge(
        "headrace_paused",
        "1 for each pause in force; an asterisk stands for every room or host.",
        ["room", "host"],
        (((pause["room"], pause["host"]), 1.0) for pause in found["pauses"]),
    )
    yield gauge(
        "headrace_beat_leader",
        "Whether a beat holds the lock and sends ticks; 0 means that nothing is swept or scheduled.",
        [],
        [((), float(found["beat"]))],
    )


def _telemetry(snapshot: Snapshot) -> Iterator[Metric]:
    found = snapshot.telemetry.value or {}
    yield gauge(
        "headrace_telemetry_files",
        "Telemetry files by what became of them.",
        ["host", "state"],
        (((row["host"], row["state"]), row["files"]) for row in found["files"]),
    )
    waiting = {row["host"]: 0.0 for row in found["files"]}
    waiting |= {row["host"]: max(0.0, row["lag_seconds"] or 0.0) for row in found["pending"]}
    yield gauge(
        "headrace_telemetry_oldest_pending_seconds",
        "How long the oldest unread change of the host's files has been waiting; 0 when none waits.",
        ["host"],
        (((host,), seconds) for host, seconds in waiting.items()),
    )
    yield gauge(
        "headrace_telemetry_device_lag_seconds",
        "From the last change of the device's newest file to the commit of its records.",
        ["device"],
        (((row["device"],), row["lag_seconds"]) for row in found["devices"] if row["lag_seconds"] is not None),
    )
    yield gauge(
        "headrace_dead_letters",
        "Stretches of telemetry files that were no record.",
        [],
        [((), found["dead_letter_count"])],
    )


class _Fixed(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
