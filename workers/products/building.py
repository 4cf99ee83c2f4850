"""Building: what is due is claimed, asked about once more, run, and published, one output after the other.

The row of a running build is the claim: a unique index lets a slot have one. It names the worker's process and the
code's process group, so that the tending of a host can tell whether anybody is still at it. Whoever ends a build
changes that row from `running`; a worker that finds it changed publishes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from workers import logs, paths, runs
from workers.database import Connection
from workers.errors import NothingToDo, PermanentFailure, RetryLater
from workers.messages import BuildProducts, Message
from workers.products import (
    build_store,
    commands,
    failing,
    identifying,
    lanes,
    ownership,
    places,
    placing,
    plan_store,
    planning,
    publishing,
    room,
    running,
    store,
    tending,
)
from workers.products.build_store import Code, Due, Input, SlotRow
from workers.products.plan_store import Mission, Pending, Process
from workers.products.planning import Step
from workers.products.publishing import Making
from workers.products.store import Product
from workers.products.templates import key_values
from workers.products.versions import output_version
from workers.runs import Run
from workers.settings import Settings

log = logs.get(__name__)

LOOK_AHEAD = 20  # due slots that a lane looks at when others are faster
WORLD_SECONDS = 5.0  # a definition that is loaded meanwhile is known to a lane so soon
SOON = timedelta(seconds=60)  # a next attempt within this is waited for when a person asked


@dataclass(frozen=True, slots=True)
class _World:
    """A mission with its graph, as it was when the message came."""

    mission: Mission
    processes: dict[int, Process]
    products: dict[int, Product]


class _Full(Exception):
    """The host has no cpu or memory left for a build now."""


def build(message: BuildProducts, settings: Settings) -> list[Message]:
    """Build what is due for this host until nothing is, or the message's time is over; messages for what comes next.

    Raises NothingToDo when nothing is due or another message has this lane; for a person's request RetryLater while
    a next attempt is due soon.
    """
    with room.connection(settings, purpose=f"lane {message.lane}") as conn:
        if not lanes.enter(conn, message.host, message.lane):
            raise NothingToDo(f"lane {message.lane} of {message.host} is taken")
        lane = _Lane(conn, settings, message)
        try:
            lane.run()
        finally:
            if not conn.closed:
                conn.rollback()
                lanes.leave(conn, message.host, message.lane)
        # After it was left: this lane goes on, too. Not on a full host, where one lane would wake the other for ever.
        return [] if lane.is_full else lanes.wake(conn, settings)


class _Lane:
    """One message's builds."""

    def __init__(self, conn: Connection, settings: Settings, message: BuildProducts) -> None:
        self.conn, self.settings, self.message = conn, settings, message
        self.rules, self.host = settings.products, settings.host
        self.worlds: dict[int, _World] = {}
        self.is_full = False

    def run(self) -> None:
        lanes.announce(self.conn, self.settings)
        if self.message.run is not None:
            tending.settle_all(self.conn, self.settings)  # a person must not wait for a sweep to see what is dead
        elif not build_store.due(self.conn, self.host, limit=1):
            raise NothingToDo(f"nothing is due for {self.host}")
        self.conn.rollback()
        began = time.monotonic()
        with runs.running(
            self.message, control=self.settings.target(), work=room.target(self.settings), conn=self.conn,
            host=self.host,
        ) as run:  # fmt: skip
            self.conn.rollback()
            looked = began
            while (making := self._next(run)) is not None:
                self._make(making, run)
                if time.monotonic() - looked > WORLD_SECONDS:
                    self.worlds.clear()
                    looked = time.monotonic()
                run.check()
                if self.message.run is None and time.monotonic() - began > self.rules.slice_seconds:
                    break
            if making is None and self.message.run is not None:
                self._wait_for_the_next()

    def _wait_for_the_next(self) -> None:
        wait = build_store.next_due(self.conn, self.host)
        self.conn.rollback()
        if wait is not None and wait < SOON:
            raise RetryLater("an attempt is due again soon", after=max(wait, timedelta(seconds=0.2)))

    def _next(self, run: Run) -> Making | None:
        """The next build, begun; None when nothing can be begun now."""
        while True:
            candidates = build_store.due(self.conn, self.host, limit=LOOK_AHEAD)
            for due in candidates:
                try:
                    making = self._begun(due, run)
                except _Full:
                    self.conn.rollback()
                    self.is_full = True
                    return None
                if making is not None:
                    return making
            self.conn.rollback()
            if len(candidates) < LOOK_AHEAD:
                return None

    def _begun(self, due: Due, run: Run) -> Making | None:
        """Begin the build of a slot, unless it needs none or somebody else has it."""
        slot = build_store.slot(self.conn, due.id)
        if slot is None or not slot.is_due:
            self.conn.rollback()
            return None
        world = self._world(due.mission)
        if due.process not in world.processes:
            del self.worlds[due.mission]  # loaded since we came
            world = self._world(due.mission)
        process = world.processes.get(due.process)
        step = planning.of_slot(self.conn, process, due.day, due.key, from_due=True) if process is not None else None
        if process is None or step is None:
            self._not_stale(world, process, slot)
            return None
        if step.waits:
            # Marked before its input became stale; the end of that one's build marks it again.
            build_store.slot_waits(self.conn, slot.id)
            self.conn.commit()
            return None
        if step.is_given_up:
            build_store.slot_given_up(self.conn, slot.id, None)
            self.conn.commit()
            return None
        try:
            making = self._prepared(world, process, step, slot, run)
        except PermanentFailure as error:
            assert step.slot.code_id is not None
            failing.give_up(self.conn, world.mission, process, slot, step, kind="definition", problem=str(error))
            self.conn.commit()
            self._mark(world, process, slot)
            run.problems.append(f"{process.name} {slot.day} {slot.key}: {error}")
            run.count(failed=1)
            return None
        self.conn.commit()
        return making

    def _not_stale(self, world: _World, process: Process | None, slot: SlotRow) -> None:
        build_store.slot_not_stale(self.conn, slot.id, seen=slot.updated_at)
        self.conn.commit()
        if process is not None:
            self._mark(world, process, slot)  # what waited for it need not wait any more

    def _prepared(self, world: _World, process: Process, step: Step, slot: SlotRow, run: Run) -> Making | None:
        """Everything about a build, and its row. Raises PermanentFailure for what the definition does not allow."""
        assert step.slot.code_id is not None
        mission = world.mission
        code = build_store.code(self.conn, step.slot.code_id)
        product = world.products[process.output_product] if process.output_product is not None else None
        inputs = build_store.inputs_in_order(self.conn, process.id, step.slot.inputs)
        top = build_store.highest(self.conn, product.id, slot.day, slot.key) if product else None
        version = output_version(top.version if top else None, interface=code.output_interface, bump=step.verdict.bump)
        keywords = _keywords(inputs) | key_values(slot.key)
        name = None
        if (
            product is not None
            and top is not None
            and step.slot.broken_id == top.id
            and (slot.force is None and code.output_interface <= top.version.interface)
        ):
            version, name = top.version, top.filename  # the same bytes take its place again
        elif product is not None:
            name = places.name_of(product, day=slot.day, start_at=slot.start_at, version=version, keywords=keywords)
        token = f"{slot.id}-{uuid.uuid4().hex[:16]}"
        scratch = os.path.join(places.scratch_root(mission, self.settings), os.fsencode(token))
        folder = os.path.join(paths.to_bytes(mission.codes), paths.to_bytes(code.folder))
        executable = os.path.join(folder, paths.to_bytes(code.filename.replace("{CODEVERSION}", str(code.version))))
        values = places.values(day=slot.day, start_at=slot.start_at, version=version, keywords=slot.key) | {
            "ROOTDIR": mission.root, "CODEDIR": mission.codes, "CODEVERSION": str(code.version),
            "MISSION": mission.name, "PROCESS": process.name, "PRODUCT": product.name if product else "",
        }  # fmt: skip
        argv = commands.command(
            executable, [*process.extra_params, *code.arguments], values=values,
            inputs=[commands.InputFile(one.id, one.product, mission.path(one.place)) for one in inputs],
            output=os.path.join(scratch, paths.to_bytes(name)) if name is not None else None,
            expand=mission.is_legacy,
        )  # fmt: skip
        memory = code.memory_bytes or self.rules.code_memory_bytes
        self._take_capacity(code, memory)
        content = _hash_of(executable)
        build = build_store.begin_build(
            self.conn,
            {
                "process": process.id, "slot": slot.id, "code": code.id, "day": slot.day, "key": slot.key,
                "reason": step.verdict.reason, "detail": step.verdict.detail, "inputs": step.slot.inputs,
                "attempt": slot.failures + 1 if step.slot.has_failed_so else 1, "host": self.host,
                "worker": ownership.own(), "lane": self.message.lane, "run": run.id, "token": token, "cpu": code.cpu,
                "memory": memory, "scratch": paths.to_text(scratch), "command": [paths.to_text(word) for word in argv],
                "environment": code.environment, "code_sha256": content, "output_name": name,
            },
        )  # fmt: skip
        if build is None:
            self.conn.rollback()
            return None
        return Making(
            build, mission, tuple(world.processes.values()), process, product, step, slot, code, tuple(inputs), top,
            version, name, keywords, token, scratch, tuple(argv), memory, content,
        )  # fmt: skip

    def _take_capacity(self, code: Code, memory: int | None) -> None:
        """Raise _Full when the host's other builds leave no room; one that is larger than the host runs alone."""
        cpus = self.rules.cpus or os.cpu_count() or 1
        most = self.rules.memory_bytes or _memory_of_host()
        if memory is not None and memory > most:
            raise PermanentFailure(
                f"the code asks for {memory} bytes of memory, this host has {most}; lower that, or take a larger host"
            )
        used_cpus, used_memory, count = build_store.in_use(self.conn, self.host)
        if count and (used_cpus + code.cpu > cpus or used_memory + (memory or 0) > most):
            raise _Full

    def _make(self, making: Making, run: Run) -> None:
        """Run a build to its end, and write that down whatever it is."""
        try:
            self._run(making, run)
        except BaseException as error:
            # The row must not stay `running` under a worker that lives: nobody else would ever end it.
            tending.abandon(self.settings, making, error)
            raise
        finally:
            shutil.rmtree(making.scratch, ignore_errors=True)

    def _run(self, making: Making, run: Run) -> None:
        if not self._inputs_are_there(making):
            return
        try:
            os.makedirs(making.scratch)
        except OSError as error:
            kind = "no_space" if isinstance(placing.refused(error, making.scratch), placing.NoRoom) else "scratch"
            self._failed(making, run, kind, f"{paths.to_text(making.scratch)}: {error.strerror}", None)
            return
        order = running.Order(
            argv=making.argv, folder=Path(os.fsdecode(making.scratch)), environment=making.code.environment,
            token=making.token, timeout_seconds=making.code.timeout_seconds or self.rules.timeout_seconds,
            memory_bytes=making.memory_bytes, output_bytes=making.code.output_bytes or self.rules.output_bytes,
            log_bytes=self.rules.log_bytes,
        )  # fmt: skip
        outcome = running.run(order, started=self._started(making), cancelled=lambda: _cancelled(run))
        if outcome.kind is not None:
            self._failed(making, run, outcome.kind, outcome.problem or outcome.kind, outcome)
            return
        try:
            state = publishing.publish(self.conn, making, outcome, self._identifier(making), self.host)
        except publishing.Refused as reason:
            self._failed(making, run, reason.kind, str(reason), outcome)
            return
        except placing.NoRoom as error:
            self._failed(making, run, "no_space", str(error), outcome)
            return
        except (PermanentFailure, OSError, placing.Changed) as error:
            # It would be so again: were it not counted, this output would be the first in the queue for ever.
            self._failed(making, run, "publish", str(error), outcome)
            return
        if state is not None:
            run.count(**{"built" if state == "succeeded" else state: 1})

    def _failed(self, making: Making, run: Run, kind: str, problem: str, outcome: running.Outcome | None) -> None:
        self.conn.rollback()
        is_final = failing.failed(self.conn, self.rules, making, kind=kind, problem=problem, outcome=outcome)
        self.conn.commit()
        if is_final:
            self._mark(self._world(making.mission.id), making.process, making.slot)
            run.problems.append(f"{making.title}: {problem}")
            run.count(failed=1)

    def _inputs_are_there(self, making: Making) -> bool:
        """Whether every input is where its row says; those that are not are missing from now on."""
        gone = [one for one in making.inputs if not os.path.isfile(making.mission.path(one.place))]
        if not gone:
            return True
        facts = plan_store.facts_of_files(self.conn, [one.id for one in gone])
        for one in gone:
            build_store.input_is_gone(self.conn, one.id)
        names = ", ".join(one.filename for one in gone)
        build_store.end_build(
            self.conn, making.build, "cancelled", kind="input_missing", problem=f"{names} is not where it was"
        )
        changed = [
            Pending(one.product, one.day, one.key, making.slot.start_at, making.slot.stop_at) for one in facts.values()
        ]
        self.conn.commit()
        planning.mark_after(self.conn, making.mission, changed, with_producers=True)
        log.warning("build.input_missing", build=making.build, files=names)
        return False

    def _started(self, making: Making) -> Callable[[int, int], None]:
        def write(group: int, started: int) -> None:
            build_store.build_runs(self.conn, making.build, group=group, started=started)
            self.conn.commit()

        return write

    def _mark(self, world: _World, process: Process, slot: SlotRow) -> None:
        """What waited for this slot's output need not wait any more."""
        if process.output_product is not None:
            changed = [Pending(process.output_product, slot.day, slot.key, slot.start_at, slot.stop_at)]
            planning.mark_after(
                self.conn, world.mission, changed, processes=world.processes.values(),
                priority=build_store.inherited(slot, process.priority),
            )  # fmt: skip

    def _identifier(self, making: Making) -> identifying.Identifier:
        products = list(self._world(making.mission.id).products.values())
        return identifying.identifier(making.mission, products, inspector_seconds=self.rules.inspector_seconds)

    def _world(self, mission_id: int) -> _World:
        if mission_id not in self.worlds:
            self.worlds[mission_id] = _World(
                plan_store.mission_of(self.conn, mission_id),
                {one.id: one for one in plan_store.processes(self.conn, mission_id)},
                {one.id: one for one in store.products(self.conn, mission_id)},
            )
        return self.worlds[mission_id]


def _keywords(inputs: Sequence[Input]) -> dict[str, str]:
    """What the inputs' keywords say, the first of them first: names of outputs may need it."""
    merged: dict[str, str] = {}
    for one in inputs:
        merged = key_values(one.keywords) | merged
    return merged


def _cancelled(run: Run) -> str | None:
    return f"cancelled by {run.cancelled_by}" if run.cancelled_by is not None else None


_hashes: dict[bytes, tuple[tuple[int, int, int], str]] = {}


def _hash_of(executable: bytes) -> str | None:
    """The content of an executable; read again only when it changed."""
    try:
        facts = os.stat(executable)
        key = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        kept = _hashes.get(executable)
        if kept is None or kept[0] != key:
            kept = _hashes[executable] = (key, placing.read_content(executable).sha256)
        return kept[1]
    except (OSError, placing.Changed):
        return None  # the run itself says what is wrong with it


@cache
def _memory_of_host() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
