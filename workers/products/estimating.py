"""What the use of a code would cause: how many outputs are built again, and for how many hours of cpu."""

from __future__ import annotations

from dataclasses import dataclass

from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import explain_store, plan_store
from workers.products.plan_store import Mission, Pending, Process, Slot
from workers.products.versions import Version


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Outputs of a process that would be built again; seconds of all of them, None where no build tells."""

    process: str
    product: str | None
    is_direct: bool
    outputs: int
    cpu_seconds: float | None
    wall_seconds: float | None


@dataclass(frozen=True, slots=True)
class Impact:
    """What the use of a code causes, inputs before what is made of them. Equal bytes may end it earlier."""

    code_id: int
    process: str
    version: Version
    state: str
    rebuilt: tuple[Rebuilt, ...]

    @property
    def outputs(self) -> int:
        """How many outputs would be built again."""
        return sum(one.outputs for one in self.rebuilt)

    @property
    def cpu_hours(self) -> float:
        """Of cpu, as far as it is known."""
        return sum(one.cpu_seconds or 0.0 for one in self.rebuilt) / 3600

    @property
    def unknown(self) -> tuple[str, ...]:
        """Processes whose time nobody knows: none of their builds ended well so far."""
        return tuple(one.process for one in self.rebuilt if one.cpu_seconds is None)


def impact(conn: Connection, mission: Mission, code: int | tuple[str, Version]) -> Impact:
    """What would be built again if a code (its id, or its process and version) were used for the days it is for.

    Outputs that are there count, of its process and of all that are made from them; hours come from builds that ended
    well. The transaction is read-only from here. Raises PermanentFailure for an unknown code or a retired process.
    """
    explain_store.read_only(conn)
    target = (
        explain_store.code(conn, mission.id, code_id=code)
        if isinstance(code, int)
        else explain_store.code(conn, mission.id, process=code[0], version=code[1])
    )
    if target is None:
        what = code if isinstance(code, int) else f"{code[0]} {code[1]}"
        raise PermanentFailure(f"{mission.name} has no code {what}; `headrace products show` lists them")
    processes = plan_store.processes(conn, mission.id)
    if target.process_id not in {one.id for one in processes}:
        raise PermanentFailure(f"process {target.process} is retired: nothing is built by its codes")
    plan_store.for_many_slots(conn, many=True)
    pending: list[Pending] = []
    counts: list[tuple[Process, int]] = []
    for process in processes:
        slots: list[Slot] = []
        if process.id == target.process_id:
            every = plan_store.stale(
                conn, process, since=target.valid_from, until=target.valid_until, everything=True
            )  # fmt: skip
            slots = [one for one in every if one.is_complete and _made_by(process, one) not in (None, target.id)]
        elif any(one.product in process.inputs for one in pending):
            found = plan_store.stale(conn, process, pending=pending)
            slots = [one for one in found if one.has_pending and (one.output_id is not None or one.ran_on is not None)]
        if slots:
            counts.append((process, len(slots)))
            if process.output_product is not None:
                pending += [
                    Pending(process.output_product, one.day, one.key, one.start_at, one.stop_at) for one in slots
                ]
    plan_store.for_many_slots(conn, many=False)
    history = explain_store.history(conn, [process.id for process, _ in counts])
    rebuilt = [
        Rebuilt(
            process.name, process.product, process.id == target.process_id, count,
            _times(history[process.id][0], count), _times(history[process.id][1], count),
        )
        for process, count in counts
    ]  # fmt: skip
    return Impact(target.id, target.process, target.version, target.state, tuple(rebuilt))


def _made_by(process: Process, slot: Slot) -> int | None:
    """The code of what is there; None when nothing is that was built."""
    if process.output_product is None:
        return slot.ran_by
    return slot.had_code if slot.output_id is not None and slot.had_inputs is not None else None


def _times(mean: float | None, count: int) -> float | None:
    return None if mean is None else mean * count
