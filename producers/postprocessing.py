"""Rows whose time has come: a look at each database with jobs, every one in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from producers import lookers
from workers.messages import Message
from workers.postprocessing import api
from workers.settings import Settings


def look_everywhere(settings: Settings) -> None:
    """Look at every database with jobs; returns when all have answered, or after a moment without the slow ones."""
    lookers.look_at(settings, "postprocessing", api.names(settings), _look)


def _look(settings: Settings, name: str, resend: bool) -> Sequence[Message]:
    return api.look(settings, name, resend=resend)
