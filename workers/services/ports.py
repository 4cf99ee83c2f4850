"""A free TCP port on loopback, and the remembering of it between runs."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from workers.services.errors import ServiceError

# Below Linux's ephemeral range (32768 and up): an outgoing connection of somebody else can then not
# take the port of a server that is being restarted.
FIRST_PORT, LAST_PORT = 20_000, 29_999


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Tell whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The servers set it too: without it a port in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose_port(preferred: int | None = None, *, taken: Iterable[int] = ()) -> int:
    """Return `preferred` when it is free, else some free port; never one of `taken`. Raises ServiceError."""
    avoid = set(taken)
    if preferred is not None and preferred not in avoid and is_free(preferred):
        return preferred
    for _ in range(200):
        port = random.randint(FIRST_PORT, LAST_PORT)
        if port not in avoid and is_free(port):
            return port
    raise ServiceError(
        f"No free TCP port between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1: is the loopback interface up?"
    )
