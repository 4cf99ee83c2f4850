"""Builds that did not end well: written down, tried again a bounded number of times, told to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from workers import alerts, logs
from workers.database import Connection, DatabaseError, sqlstate
from workers.errors import HeadraceError
from workers.products import build_store
from workers.products.build_store import Code, Highest, Input, SlotRow
from workers.products.plan_store import Mission, Process
from workers.products.planning import Step
from workers.products.running import Outcome
from workers.products.store import Product
from workers.products.versions import Version
from workers.products_settings import Products

log = logs.get(__name__)

NO_SPACE_WAIT = timedelta(seconds=60)
_NOT_THE_CODES_FAULT = ("no_space", "scratch")  # tried again for ever: it completes by itself once there is room


@dataclass(frozen=True, slots=True)
class Making:
    """A build in hand: everything that was decided when it began."""

    build: int
    mission: Mission
    graph: tuple[Process, ...]
    process: Process
    product: Product | None
    step: Step
    slot: SlotRow
    code: Code
    inputs: tuple[Input, ...]
    top: Highest | None
    version: Version
    name: str | None
    keywords: Mapping[str, str]
    token: str
    scratch: bytes
    argv: tuple[bytes, ...]
    memory_bytes: int | None
    code_sha256: str | None

    @property
    def title(self) -> str:
        """What is built, for people."""
        return title(self.process, self.slot)

    @property
    def is_forced(self) -> bool:
        """Whether a person asked for a new version, of this output or of an input that is new to it."""
        had = set(self.step.slot.had_inputs or ())
        return self.step.slot.force is not None or any(one.is_forced and one.id not in had for one in self.inputs)


def title(process: Process, slot: SlotRow) -> str:
    """`l1 2020-01-02` for people; the process where there is no product."""
    return " ".join(word for word in (process.product or process.name, str(slot.day), slot.key) if word)


def facts_of(outcome: Outcome) -> dict[str, Any]:
    """What a build's row keeps of its run."""
    return {
        "exit_status": outcome.exit_status, "signal": outcome.signal, "stdout": outcome.stdout,
        "stderr": outcome.stderr, "cpu_seconds": outcome.cpu_seconds, "peak_bytes": outcome.peak_bytes,
    }  # fmt: skip


def failed(
    conn: Connection, rules: Products, making: Making, *, kind: str, problem: str, outcome: Outcome | None
) -> bool:
    """Write a failed attempt down; whether it was the last one. The caller commits."""
    state = "cancelled" if kind == "cancelled" else "failed"
    facts = facts_of(outcome) if outcome is not None else {}
    if not build_store.end_build(conn, making.build, state, kind=kind, problem=problem, **facts):
        log.warning("build.ended_by_others", build=making.build)
        return False
    wait = NO_SPACE_WAIT if kind in _NOT_THE_CODES_FAULT else timedelta(
        seconds=rules.retry_seconds * 5 ** (making.slot.failures if making.step.slot.has_failed_so else 0)
    )  # fmt: skip
    failures = build_store.slot_failed(
        conn, making.slot.id, inputs=making.step.slot.inputs, code=making.code.id, kind=kind, problem=problem,
        build=making.build, wait=wait, counts=kind not in _NOT_THE_CODES_FAULT, seen=making.slot.updated_at,
    )  # fmt: skip
    if failures is None:
        log.warning("build.failed", build=making.build, what=making.title, kind=kind, problem=problem, attempt=None)
        return False
    log.warning("build.failed", build=making.build, what=making.title, kind=kind, problem=problem, attempt=failures)
    if kind != "cancelled" and failures < making.process.attempts:
        return False
    build_store.slot_given_up(conn, making.slot.id, making.build)
    if kind != "cancelled":
        tell(conn, making, "failure", problem, attempts=failures, kind=kind)
    return True


def give_up(
    conn: Connection, mission: Mission, process: Process, slot: SlotRow, step: Step, *, kind: str, problem: str
) -> None:
    """What cannot even be begun stays as it is until the definition changes. The caller commits."""
    assert step.slot.code_id is not None
    build_store.slot_failed(
        conn, slot.id, inputs=step.slot.inputs, code=step.slot.code_id, kind=kind, problem=problem, build=None,
        wait=timedelta(0), counts=True,
    )  # fmt: skip
    build_store.slot_given_up(conn, slot.id, None)
    log.warning("build.refused", mission=mission.name, what=title(process, slot), problem=problem)


def is_bug(error: BaseException) -> bool:
    """Whether the program is at fault, and not the world: a bug counts as an attempt, it would come again at once."""
    if isinstance(error, DatabaseError):
        # Of a session that has ended the server says nothing.
        return (sqlstate(error) or "08")[:2] not in ("08", "40", "53", "55", "57")
    return isinstance(error, Exception) and not isinstance(error, (HeadraceError, SoftTimeLimitExceeded))


def tell(conn: Connection, making: Making, event: str, message: str, **facts: Any) -> None:
    """Put an alert about a build into the outbox."""
    known = {
        "message": message, "mission": making.mission.name, "process": making.process.name, "day": str(making.slot.day),
        "key": making.slot.key or None, "build": making.build, "code": str(making.code.version), **facts,
    }  # fmt: skip
    alerts.raise_alert(conn, room="products", event=event, subject=f"{making.mission.name} {making.title}", facts=known)
