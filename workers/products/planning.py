"""The plan: which outputs are stale, why, and in which order they are built; a question that writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from workers.database import Connection
from workers.products import plan_store
from workers.products.plan_store import Mark, Mission, Pending, Process, Slot
from workers.products.reasons import Verdict, verdict


@dataclass(frozen=True, slots=True)
class Step:
    """One output to be built. It `waits` while one of its inputs is to be built before it."""

    process: Process
    slot: Slot
    verdict: Verdict
    waits: bool

    @property
    def is_given_up(self) -> bool:
        """Whether it failed so often with these inputs that it stays as it is."""
        return self.slot.is_given_up and not self.waits

    def mark(self, priority: int | None = None) -> Mark:
        """What the slot's row is to say. A slot that is due keeps its priority, unless this one is higher."""
        slot = self.slot
        if priority is None:
            is_due = slot.due_at is not None and slot.slot_priority is not None
            priority = slot.slot_priority if is_due else self.process.priority
        return Mark(
            self.process.id, slot.day, slot.key, slot.start_at, slot.stop_at, self.verdict.reason, self.verdict.detail,
            self.process.rank, priority or 0,
        )  # fmt: skip


def plan(
    conn: Connection, mission: Mission, *, since: date | None = None, until: date | None = None,
    products: Collection[str] | None = None,
) -> list[Step]:  # fmt: skip
    """Everything that is stale, in the order of its building; what follows from other steps included.

    `since` and `until` are days of outputs; `products` are names, and what they are built from comes along.
    """
    processes = _ancestry(plan_store.processes(conn, mission.id), products)
    plan_store.for_many_slots(conn, many=since is None or until is None or until - since > timedelta(days=31))
    pending: list[Pending] = []
    found: list[tuple[Process, Slot]] = []
    for process in processes:
        slots = plan_store.stale(conn, process, since=since, until=until, pending=pending)
        found += [(process, slot) for slot in slots]
        pending += _pending(process, slots)
    plan_store.for_many_slots(conn, many=False)
    return _steps(conn, found)


def due_after(
    conn: Connection, mission: Mission, changed: Iterable[Pending], *, with_producers: bool = False,
    processes: Iterable[Process] | None = None,
) -> list[Step]:  # fmt: skip
    """The steps that can be taken at once because these files came, changed or went.

    Only descendants of their products are looked at, and only the periods that they touch; `with_producers` also what
    these files themselves are built by. `processes`: all of the mission in their order, where they are known.
    """
    changed = list(changed)
    made = {one.product for one in changed} if with_producers else set()
    spans: dict[int, tuple[date, date]] = {}
    for one in changed:
        _widen(spans, one.product, one.start_at.date(), one.stop_at.date(), one.day)
    for product, first, last in plan_store.displaced(conn, changed):
        _widen(spans, product, first, last)
    pending: list[Pending] = []
    found: list[tuple[Process, Slot]] = []
    for process in processes if processes is not None else plan_store.processes(conn, mission.id):
        touched = [spans[product] for product in process.inputs if product in spans]
        if process.output_product in made and process.output_product is not None:
            touched.append(spans[process.output_product])
        if not touched:
            continue
        since, until = window(process, min(first for first, _ in touched), max(last for _, last in touched))
        slots = plan_store.stale(conn, process, since=since, until=until, pending=pending, from_due=True)
        found += [(process, slot) for slot in slots]
        for one in _pending(process, slots):
            pending.append(one)
            _widen(spans, one.product, one.start_at.date(), one.stop_at.date(), one.day)
    return [step for step in _steps(conn, found) if not step.waits]


def mark_after(
    conn: Connection, mission: Mission, changed: Iterable[Pending], *, with_producers: bool = False,
    processes: Iterable[Process] | None = None, priority: int | None = None,
) -> None:  # fmt: skip
    """Mark what these files make due; call it after the commit of the change itself, it commits on its own.

    Two builds that end at once each see the other's output as unfinished until that is committed. Looked at after
    the commit, the later of the two sees both; looked at before it, neither would mark what needs both.
    """
    mark(conn, due_after(conn, mission, changed, with_producers=with_producers, processes=processes), priority)


def mark(conn: Connection, steps: Sequence[Step], priority: int | None = None) -> int:
    """Have the steps built that can be taken at once; how many. It commits."""
    marks = to_mark(steps, priority)
    if marks:
        plan_store.lazily(conn)  # a mark is what the query says, and the query can be asked again
        plan_store.mark_due(conn, marks)
    conn.commit()
    return len(marks)


def of_slot(conn: Connection, process: Process, day: date, key: str, *, from_due: bool = False) -> Step | None:
    """What is to be done about one output now; None if it is as it should be, or cannot be built.

    With `from_due` it `waits` while an input of it is due or being built.
    """
    slots = plan_store.stale(conn, process, since=day, until=day, key=key, from_due=from_due)
    steps = _steps(conn, [(process, slot) for slot in slots])
    return steps[0] if steps else None


def to_mark(steps: Sequence[Step], priority: int | None = None) -> list[Mark]:
    """The marks of steps that can be taken at once, and are not marked already; None: with their processes' priorities.

    What follows from a build that a person put off or hurried has that `priority`, too: else a month would be built
    anew after each of its days.
    """
    return [
        step.mark(priority)
        for step in steps
        if not step.waits and not step.is_given_up and not (step.slot.has_failed_so and step.slot.due_at is not None)
    ]


def settle_imported(conn: Connection, mission_id: int, *, but: Collection[int] = ()) -> int:
    """Take imported outputs as up to date with the files that there are, but those named; how many that changed.

    dbprocessing counts inputs and compares versions, where ours compares which they are: without this an import would
    have everything built again that it held for current.
    """
    plan_store.for_many_slots(conn, many=True)
    changed = sum(
        plan_store.settle_imported(conn, process, but=but) for process in plan_store.processes(conn, mission_id)
    )
    plan_store.for_many_slots(conn, many=False)
    return changed


def window(process: Process, first: date, last: date) -> tuple[date, date]:
    """The days of a process' slots that files of these days can have to do with."""
    since, until = first - timedelta(days=process.tomorrow), last + timedelta(days=process.yesterday)
    if process.timebase == "WEEKLY":
        return since - timedelta(days=since.weekday()), until
    if process.timebase == "MONTHLY":
        return since.replace(day=1), until
    if process.timebase == "YEARLY":
        return since.replace(month=1, day=1), until
    if process.timebase == "ORBIT":
        # An orbit has the day on which it begins. Longer ones are found by the sweep.
        return since - timedelta(days=32), until
    return since, until


def _pending(process: Process, slots: Iterable[Slot]) -> list[Pending]:
    if process.output_product is None:
        return []
    return [
        Pending(process.output_product, slot.day, slot.key, slot.start_at, slot.stop_at)
        for slot in slots
        if slot.has_pending or not slot.is_given_up
    ]


def _steps(conn: Connection, found: Sequence[tuple[Process, Slot]]) -> list[Step]:
    ids: set[int] = set()
    codes: set[int] = set()
    for process, slot in found:
        had = slot.ran_on if process.output_product is None else slot.had_inputs
        ids.update(slot.inputs, had or ())
        codes.update(code for code in (slot.code_id, slot.had_code, slot.ran_by) if code is not None)
    files = plan_store.facts_of_files(conn, ids)
    versions = plan_store.facts_of_codes(conn, codes)
    steps = []
    for process, slot in found:
        why = verdict(process, slot, files, versions)
        if slot.has_pending and (why is None or why.reason in ("NEWER_INPUT", "INPUT_SET_CHANGED")):
            # Which files these will be is not known before they are built.
            why = Verdict("NEWER_INPUT", "an input is built anew", "quality")
        if why is not None:
            steps.append(Step(process, slot, why, slot.has_pending))
    return steps


def _widen(spans: dict[int, tuple[date, date]], product: int, *days: date) -> None:
    first, last = spans.get(product, (days[0], days[0]))
    spans[product] = (min(first, *days), max(last, *days))


def _ancestry(processes: list[Process], products: Collection[str] | None) -> list[Process]:
    if products is None:
        return processes
    wanted = {process.output_product for process in processes if process.product in products}
    kept = []
    for process in reversed(processes):
        if process.output_product in wanted and process.output_product is not None:
            kept.append(process)
            wanted |= set(process.inputs)
    return kept[::-1]
