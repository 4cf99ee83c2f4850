"""What can go wrong with the services of one machine; every message says what, which and what to do next."""

from __future__ import annotations


class ServiceError(Exception):
    """A service of this machine cannot be found, started or stopped."""


class BinaryMissingError(ServiceError):
    """No program for a server was found on this machine."""


class StartFailedError(ServiceError):
    """A server or child process did not come up; the message carries the last lines of its log."""


class AlreadyRunningError(ServiceError):
    """Another supervisor holds the data folder.

    `pid` is its process, `since` the UTC time (ISO 8601) at which it took the folder.
    """

    def __init__(self, data_dir: str, pid: int, since: str) -> None:
        super().__init__(
            f"Headrace already runs on {data_dir}: supervisor pid {pid}, since {since}. "
            f"Stop it with `headrace down --data-dir '{data_dir}'`, or choose another --data-dir."
        )
        self.pid = pid
        self.since = since
