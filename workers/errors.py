"""Errors whose type is the retry policy and whose message is for the person on call."""

from __future__ import annotations

from datetime import timedelta


class HeadraceError(Exception):
    """Base of every error that Headrace raises on purpose; its text says what, which and what to do."""


class RetryLater(HeadraceError):
    """The world is not ready (a lock, a growing file, a lost connection): try the same message again.

    `after` is how long to wait. Up to 30 seconds the message itself is retried; anything longer belongs
    into PostgreSQL as a due time, because a message that waits is redelivered by the visibility timeout.
    """

    def __init__(self, message: str, *, after: timedelta = timedelta(seconds=2)) -> None:
        super().__init__(message)
        self.after = after


class ServerUnavailable(RetryLater):
    """A server cannot be reached, refuses the login, or went away: wait with back-off, lose nothing."""


class PermanentFailure(HeadraceError):
    """It will never work as asked (unknown file kind, missing table): recorded, not retried."""


class NothingToDo(HeadraceError):
    """Somebody else did it, is doing it, or it is not due: no run row, no retry."""


class Paused(NothingToDo):
    """A person has paused this room or host: the work stays due, and is found again afterwards."""


class Cancelled(HeadraceError):
    """A person asked for this run to end."""


class SettingsError(HeadraceError):
    """The settings are wrong; `problems` has every one of them, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
