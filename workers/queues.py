"""Queue names and objects: one per room, one per room and host where the files live on that host's disks."""

from __future__ import annotations

from kombu import Exchange, Queue

from workers.messages import TICKS_QUEUE
from workers.settings import ROOMS, Settings

HOST_ROOMS = ("telemetry", "products")


def queue(name: str) -> Queue:
    """A queue reached through the broker's nameless exchange.

    No binding is stored for it in Redis, so a flushed broker cannot make later messages vanish.
    """
    return Queue(name, exchange=Exchange(""), routing_key=name, durable=True)


def names_for(settings: Settings) -> list[str]:
    """The queues that a worker of this host consumes when it is started without -Q."""
    names = [TICKS_QUEUE] if settings.worker.ticks else []
    for room in settings.worker.rooms:
        if room in HOST_ROOMS:
            names.append(f"{room}.{settings.host}")
        elif getattr(settings.queues, room) in (None, settings.host):
            names.append(room)
    return names


def all_names(hosts: list[str]) -> list[str]:
    """Every queue of a deployment with these hosts, for Flower and status."""
    shared = [TICKS_QUEUE, *(room for room in ROOMS if room not in HOST_ROOMS)]
    return shared + [f"{room}.{host}" for room in HOST_ROOMS for host in sorted(hosts)]
