"""How derived products read on the page: missions, builds in hand, what failed, the quarantine, the newest builds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flower.utils.template import format_duration

from workers.monitor.answers import Answer
from workers.monitor.consumers import shortened
from workers.monitor.jobs import moment

BUILDS = 30  # the newest ones
QUARANTINED = 20  # the newest ones
RUNNING = 100  # those that run longest
LONGEST_TEXT = 4000  # characters of a problem that are asked for; what a page has room for is less
_NOTHING = "—"
_BAD_ENDS = ("failed", "lost")

Row = Mapping[str, Any]  # as the room's status and the monitor's queries have it


@dataclass(frozen=True, slots=True)
class Mission:
    """How one mission stands, in words; `picture` is its name as a part of an address."""

    name: str
    picture: str
    hosts: str
    graph: str
    due: str
    is_due: bool
    building: int
    retrying: int
    failed: int
    quarantined: int
    broken: int
    planned: str


@dataclass(frozen=True, slots=True)
class Running:
    """One build in hand, in words."""

    number: int
    what: str
    mission: str
    host: str
    reason: str
    time: str


@dataclass(frozen=True, slots=True)
class Failed:
    """One output that is not tried again by itself, and what to do, in words."""

    what: str
    mission: str
    kind: str
    attempts: int
    failed_at: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One file that could not be taken in, in words."""

    number: int
    filename: str
    mission: str
    host: str
    reason: str
    message: str
    suggestion: str
    arrived_at: str


@dataclass(frozen=True, slots=True)
class Built:
    """One run of a code, in words; `needs` when it did not end well."""

    number: int
    what: str
    mission: str
    state: str
    needs: bool
    reason: str
    code: str
    host: str
    started_at: str
    took: str
    problem: str


@dataclass(frozen=True, slots=True)
class Held:
    """One code that waits for a person, and what approves it, in words."""

    process: str
    version: str
    mission: str
    loaded_at: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Left:
    """One file in an incoming folder that cannot be taken in for a reason that may pass, in words."""

    path: str
    host: str
    problem: str
    seen_at: str


@dataclass(frozen=True, slots=True)
class Overview:
    """What the page shows; `trouble` is why it shows nothing, `more_running` how many builds in hand have no line."""

    trouble: str = ""
    needs: tuple[str, ...] = ()
    missions: tuple[Mission, ...] = ()
    running: tuple[Running, ...] = ()
    more_running: int = 0
    failed: tuple[Failed, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    built: tuple[Built, ...] = ()
    held: tuple[Held, ...] = ()
    left: tuple[Left, ...] = ()


def overview(answer: Answer[dict[str, Any]]) -> Overview:
    """What the page shows of every mission."""
    if answer.value is None:
        return Overview(trouble=trouble(answer.error or "nobody asked yet"))
    known = answer.value
    if not known["set_up"]:
        return Overview()
    return Overview(
        needs=tuple(dict.fromkeys(shortened(need) for need in known["needs"])),
        missions=tuple(_mission(row) for row in known["missions"]),
        running=tuple(_running(row) for row in known["running"][:RUNNING]),
        more_running=max(0, len(known["running"]) - RUNNING),
        failed=tuple(_failed(row) for row in known["troubles"]),
        quarantined=tuple(_quarantined(row) for row in known["quarantine"]),
        built=tuple(_built(row) for row in known["builds"]),
        held=tuple(_held(row) for row in known["held_codes"]),
        left=tuple(
            Left(shortened(row["path"]), shortened(row["host"]), shortened(row["problem"]), moment(row["seen_at"]))
            for row in known["left_in_incoming"]
        ),
    )


def trouble(error: str) -> str:
    """Why nothing can be shown."""
    return shortened(f"products cannot be seen: {error}")


def oldest_due_seconds(row: Row) -> float:
    """How long the oldest output of a mission has been due; 0 when none is."""
    return max(0.0, row["oldest_due_seconds"] or 0.0) if row["due"] else 0.0


def _mission(row: Row) -> Mission:
    since = f", for {_duration(oldest_due_seconds(row))}" if row["due"] else ""
    return Mission(
        name=shortened(row["mission"]),
        # A slash in a name is no folder of the address.
        picture=quote(row["mission"], safe=""),
        hosts=shortened(", ".join(row["hosts"])) or "every host",
        graph=f"{row['products']:,} products, {row['processes']:,} processes",
        due=f"{row['due']:,}{since}",
        is_due=bool(row["due"]),
        building=row["building"],
        retrying=row["retrying"],
        failed=row["given_up"],
        quarantined=row["quarantined"],
        broken=row["broken"],
        planned=f"{moment(row['planned_at'])}, took {_duration(row['plan_seconds'])}" if row["planned_at"] else "never",
    )


def _running(row: Row) -> Running:
    return Running(
        number=row["build"],
        what=_what(row),
        mission=shortened(row["mission"]),
        host=shortened(row["host"] or _NOTHING),
        reason=row["reason"],
        time=_duration(row["seconds"]),
    )


def _failed(row: Row) -> Failed:
    seen = f"`headrace products builds {row['build']}` shows what it wrote; " if row["build"] is not None else ""
    key = f" --key {shlex.quote(row['key'])}" if row["key"] else ""
    retry = f"headrace products retry {shlex.quote(row['product'])} --day {row['day']}{key}"
    return Failed(
        what=_what(row),
        mission=shortened(row["mission"]),
        kind=row["kind"] or _NOTHING,
        attempts=row["failures"],
        failed_at=moment(row["updated_at"]),
        problem=shortened(row["problem"] or _NOTHING),
        remedy=shortened(f"{seen}mend it, then `{retry} --mission {shlex.quote(row['mission'])}`"),
    )


def _quarantined(row: Row) -> Quarantined:
    return Quarantined(
        number=row["id"],
        filename=shortened(row["filename"]),
        mission=shortened(row["mission"]),
        host=shortened(row["host"]),
        reason=shortened(row["reason"]),
        message=shortened(row["message"]),
        suggestion=shortened(row["suggestion"] or _NOTHING),
        arrived_at=moment(row["arrived_at"]),
    )


def _built(row: Row) -> Built:
    return Built(
        number=row["build"],
        what=_what(row),
        mission=shortened(row["mission"]),
        state=f"{row['state']}: {row['kind']}" if row["kind"] else row["state"],
        needs=row["state"] in _BAD_ENDS,
        reason=shortened(f"{row['reason']}: {row['detail']}" if row["detail"] else row["reason"]),
        code=row["code"] or _NOTHING,
        host=shortened(row["host"] or _NOTHING),
        started_at=moment(row["started_at"]),
        took=_duration(row["seconds"]),
        problem=shortened(row["problem"] or ""),
    )


def _held(row: Row) -> Held:
    words = f"{shlex.quote(row['process'])} {row['version']} --mission {shlex.quote(row['mission'])}"
    return Held(
        process=shortened(row["process"]),
        version=row["version"],
        mission=shortened(row["mission"]),
        loaded_at=moment(row["loaded_at"]),
        remedy=shortened(f"headrace products approve {words}"),
    )


def _what(row: Row) -> str:
    return shortened(" ".join(str(word) for word in (row["product"], row["day"], row["key"]) if word))


def _duration(seconds: float | None) -> str:
    return _NOTHING if seconds is None else str(format_duration(max(0.0, seconds)))
