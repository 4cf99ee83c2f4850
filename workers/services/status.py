"""The supervisor's status file and the lock that says whether a supervisor lives."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from workers.services.errors import AlreadyRunningError, ServiceError
from workers.services.private_files import read_json, write_private_json
from workers.services.processes import is_alive, own_start

STATUS_NAME = "supervisor.json"
LOCK_NAME = "supervisor.lock"
# A second `up` gives way only after this: a mere look at the lock holds it for microseconds.
_LOCK_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """One child or server as of the last change.

    `state`: waiting, starting, running, backoff, stopping, stopped, finished. `last_exit` is an exit code, or
    minus the number of the signal that ended it. Times are UTC, ISO 8601.
    """

    name: str
    state: str
    pid: int | None
    start: int | None
    restarts: int
    last_exit: int | None
    started_at: str | None
    log_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStatus:
    """The whole deployment; `state`: starting, healthy, degraded, stopping, stopped, failed."""

    state: str
    pid: int
    start: int
    since: str
    updated_at: str
    error: str | None
    children: tuple[ChildStatus, ...]


def utc_now() -> str:
    """Return the present time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(data_dir: Path, status: SupervisorStatus) -> None:
    """Replace `<data_dir>/supervisor.json` atomically, mode 0600."""
    write_private_json(data_dir / STATUS_NAME, asdict(status), durable=False)


def read_status(data_dir: Path) -> SupervisorStatus | None:
    """Return the last status that was written, or None when there is none that can be read.

    Its supervisor may be gone: `live_supervisor` knows.
    """
    try:
        document = read_json(data_dir / STATUS_NAME)
        if document is None:
            return None
        children = tuple(ChildStatus(**child) for child in document.pop("children"))
        return SupervisorStatus(children=children, **document)
    except (ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a data folder: pid, start time as `process_state` counts it, and since when (UTC)."""

    pid: int
    start: int
    since: str


class SupervisorLock:
    """The exclusive hold on a data folder, for as long as this process lives; a context manager."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.holder = Holder(os.getpid(), own_start(), utc_now())
        self._descriptor: int | None = None

    def __enter__(self) -> SupervisorLock:
        """Take the folder. Raises AlreadyRunningError, with pid and since when."""
        descriptor = os.open(self.data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    holder = _read_holder(self.data_dir) or Holder(0, 0, "a moment ago")
                    raise AlreadyRunningError(str(self.data_dir), holder.pid, holder.since) from None
                time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(self.holder)).encode() + b"\n", 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        # The file stays: removing it would let two supervisors hold two files of one name.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def live_supervisor(data_dir: Path) -> Holder | None:
    """Return who holds the data folder now, or None. Raises ServiceError when that cannot be told."""
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ServiceError(f"The data folder {data_dir} belongs to another user: ask again as that user.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        # Between the taking and the writing the file still names the one before.
        holder = _read_holder(data_dir)
        if holder is not None and is_alive(holder.pid, holder.start):
            return holder
        time.sleep(0.02)
    return None


def _read_holder(data_dir: Path) -> Holder | None:
    try:
        document = read_json(data_dir / LOCK_NAME)
        return None if document is None else Holder(**document)
    except (ValueError, TypeError):
        return None
