"""Where the services of one data folder listen: a 0600 file for clients that have no other settings."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, cast

from workers.services.private_files import read_json, write_private_json

FILE_NAME = "endpoints.json"


class Endpoints(TypedDict):
    """What a client must know.

    `supervisor_start` is the start time of process `supervisor_pid` as `processes.process_state` counts it.
    """

    control_dsn: str
    broker_url: str
    flower_url: str
    flower_user: str
    flower_password: str
    supervisor_pid: int
    supervisor_start: int


def write_endpoints(data_dir: Path, endpoints: Endpoints) -> None:
    """Replace `<data_dir>/endpoints.json` atomically, mode 0600."""
    write_private_json(data_dir / FILE_NAME, endpoints)


def read_endpoints(data_dir: Path) -> Endpoints | None:
    """Return what `<data_dir>/endpoints.json` says, or None when it is absent.

    It is absent after a clean stop; after a kill -9 of the supervisor it may name servers that are gone.
    Raises ValueError when the file is damaged, PermissionError when it belongs to another user.
    """
    document = read_json(data_dir / FILE_NAME)
    return None if document is None else cast(Endpoints, document)


def remove_endpoints(data_dir: Path) -> None:
    """Forget the endpoints after a stop, so that a client reports `not configured` instead of `refused`."""
    (data_dir / FILE_NAME).unlink(missing_ok=True)
