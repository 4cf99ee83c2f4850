"""The scope of one database's jobs: how it is reached, what it has, and the rules that hold there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from workers import database, migrations
from workers.database import Connection
from workers.errors import ServerUnavailable
from workers.postprocessing import store
from workers.postprocessing.jobs import daily_schedule
from workers.postprocessing.schedule import Schedule
from workers.postprocessing.store import Facts
from workers.settings import Settings
from workers.targets import CONTROL, Target

ROOMS = ("alerts", "postprocessing")
_FACTS_LAST_SECONDS = 60.0
_READ_ONLY_LASTS_SECONDS = 1.0  # a standby that was promoted goes on soon

_DOWN_LASTS_SECONDS = 8.0

_known: dict[str, tuple[float, Facts]] = {}
_down: dict[str, tuple[float, ServerUnavailable]] = {}


@dataclass(frozen=True, slots=True)
class Scope:
    """One database with jobs."""

    name: str
    target: Target
    facts: Facts
    daily: Schedule
    max_running: int | None
    legacy_null: Literal["json", "sql"]


def names(settings: Settings) -> list[str]:
    """The databases whose jobs are looked after."""
    chosen = settings.postprocessing.databases
    every = chosen if chosen is not None else (CONTROL, *settings.databases)
    return [name for name in every if name == CONTROL or settings.databases[name].postprocessing.enabled]


def of(settings: Settings, name: str, *, fresh: bool = False) -> Scope:
    """The scope of a database, its tables made if they are missing; asked again once a minute.

    Raises ServerUnavailable when it cannot be reached, PermanentFailure when our tables can neither be found nor made.
    """
    target = settings.target(name)
    when, facts = _known.get(target.dsn, (0.0, None))
    lasts = _READ_ONLY_LASTS_SECONDS if facts is not None and facts.is_read_only else _FACTS_LAST_SECONDS
    if facts is None or fresh or time.monotonic() - when > lasts:
        facts = _prepare(target)
        _known[target.dsn] = (time.monotonic(), facts)
    room = settings.postprocessing
    own = settings.databases[name].postprocessing if name in settings.databases else None
    return Scope(
        name=name,
        target=target,
        facts=facts,
        daily=daily_schedule(
            (own and own.daily_at) or room.daily_at,
            (own and own.timezone) or room.timezone,
        ),
        max_running=(own and own.max_running) or room.max_running,
        legacy_null=(own and own.legacy_null) or room.legacy_null,
    )


def check_not_down(target: Target) -> None:
    """Raise at once what the last attempt said, for a few seconds: a dead server's messages must not keep a worker."""
    until, reason = _down.get(target.dsn, (0.0, None))
    if reason is not None and time.monotonic() < until:
        raise ServerUnavailable(str(reason), after=reason.after)


def note_down(target: Target, reason: ServerUnavailable) -> None:
    """A server could not be reached."""
    _down[target.dsn] = (time.monotonic() + _DOWN_LASTS_SECONDS, reason)


def is_known(target: Target) -> bool:
    """Whether this process has asked this database a moment ago, and found or made our tables."""
    when, facts = _known.get(target.dsn, (0.0, None))
    return facts is not None and facts.is_set_up and time.monotonic() - when <= _FACTS_LAST_SECONDS


def forget(target: Target) -> None:
    """Ask this database anew."""
    _known.pop(target.dsn, None)


def read(settings: Settings, name: str) -> Facts:
    """What a database has, without changing anything there."""
    with database.connection(settings.target(name), purpose="postprocessing", autocommit=True) as conn:
        return store.facts(conn)


def _prepare(target: Target) -> Facts:
    with database.connection(target, purpose="postprocessing setup") as conn:
        facts = store.facts(conn)
        if facts.is_read_only:
            return facts
        ensure(conn, target)
        facts = store.facts(conn)
        conn.rollback()
    return facts


def ensure(conn: Connection, target: Target, rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """Apply what is missing of our tables; the migrations applied. Raises PermanentFailure when the role may not."""
    return migrations.ensure(conn, target, rooms, room="postprocessing")
