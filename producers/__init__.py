"""Producers decide that something is due and say so; they never do the work.

from producers import enqueue
enqueue("telemetry.ingest", path="/data/telem/cooler_20240416035000000000000.bintel")
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from workers import paths
from workers.messages import Message, parse

__all__ = ["enqueue"]


def enqueue(task: str | Message, /, **fields: Any) -> str:
    """Put one message on its queue; its id. For any script on any host that can reach broker and database.

    `task` is a name such as `telemetry.ingest` with the message's fields, or a message. `host` is this
    host where it is left out; a `path` may be a Path or an odd name, and becomes absolute.
    Raises ServerUnavailable when the broker or database cannot be reached, PermanentFailure for an
    unknown task or host, pydantic's ValidationError for wrong fields.
    """
    from workers.app import send
    from workers.settings import current

    if isinstance(task, str):
        if "path" in fields:
            fields["path"] = paths.to_text(Path(fields["path"]).absolute().__fspath__())
        fields.setdefault("host", current().host)
        task = parse(task, fields)
    return send([task], slot=str(time.time_ns()))[0]
