"""Rewrites: those that are half-way, and plans whose tables are to be chosen; each database in a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence

from producers import lookers
from workers import pauses
from workers.errors import NothingToDo
from workers.messages import Message
from workers.repack import api
from workers.settings import Settings


def look_everywhere(settings: Settings) -> None:
    """Look at every database of the settings; returns when all have answered, or after a moment without slow ones."""
    lookers.look_at(settings, "repack", api.databases(settings), _look)


def _look(settings: Settings, name: str, resend: bool) -> Sequence[Message]:
    alerts = api.alerts_waiting(settings, name)
    try:
        pauses.check(settings.target(), "repack", settings.host)
    except NothingToDo:
        return alerts
    return [*alerts, *api.due(settings, name, resend=resend), *api.due_for_choice(settings, name)]
