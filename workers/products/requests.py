"""Requests: outputs to be built anew, days to be filled in, failures to be tried again; asked, followed, taken back.

A request is written down with the slots it is about, so that it survives every worker: after a crash there is nothing
to resume. What is built from its outputs follows by itself, and is no part of it. Nothing here builds: whoever asks
wakes a host's lanes once the transaction is committed (`lanes.wake`, or a message PlanProducts).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from workers import logs
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.products import plan_store, planning, request_store
from workers.products.plan_store import Mission, Pending, Process, Slot
from workers.products.planning import Step
from workers.products.request_store import Asked, CodeName, Idle
from workers.products.versions import Part
from workers.settings import did_you_mean

__all__ = [
    "Idle", "Progress", "Request", "Requested", "backfill", "cancel", "first_day", "idle", "listing", "progress",
    "reprocess", "retry", "settle",
]  # fmt: skip

log = logs.get(__name__)

BACKFILL_PRIORITY = -10  # live data has 0, so it is built first


@dataclass(frozen=True, slots=True)
class Requested:
    """What became of a request. `id` is None when there was nothing to write down: no output that could be built.

    `slots` are its outputs; of these `due` are built now, `waiting` after others that are built before them, and
    `up_to_date` count as done at once. Beyond them there are outputs that cannot be built now: an input is not there
    (`incomplete`), or no code holds for their day (`without_code`).
    """

    id: int | None
    slots: int
    due: int
    waiting: int
    up_to_date: int
    incomplete: int
    without_code: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How many outputs a request has, and of these: how many are done, failed for good, in work, to come, cancelled."""

    total: int
    done: int
    failed: int
    running: int
    waiting: int
    cancelled: int

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is to come."""
        return self.running == 0 and self.waiting == 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was made; `what` has products, code, since, until, force and priority."""

    id: int
    mission: str
    kind: Literal["backfill", "reprocess"]
    what: dict[str, Any]
    requested_by: str
    requested_at: datetime
    cancelled_at: datetime | None
    cancelled_by: str | None
    progress: Progress


def reprocess(
    conn: Connection, mission: Mission, *, products: Collection[str] | None = None, code: str | None = None,
    since: date | None = None, until: date | None = None, force: Part | None = None, priority: int = 0, by: str,
) -> Requested:  # fmt: skip
    """Have outputs built anew: those of `products` (None: all), of days that touch since...until, made by `code`.

    With `force` whether they need it or not, as a new version with that part bumped; without it those that are stale,
    with what they wait for, and those that were given up begin anew. `products` are names of outputs, or of processes
    that have none; `code` is the name of its file, its process, or `PROCESS 1.0.0`. A `priority` above 0 goes first,
    below 0 last. Raises PermanentFailure for a name that nothing has.
    """
    what = _what(products, code, since, until, force, priority)
    chosen = _chosen(conn, mission, products, code)
    return _request(conn, mission, "reprocess", what, chosen, since, until, force, priority, by)


def backfill(
    conn: Connection, mission: Mission, *, products: Collection[str], since: date, until: date,
    force: Part | None = None, priority: int = BACKFILL_PRIORITY, by: str,
) -> Requested:  # fmt: skip
    """Have everything of `products` built that is missing or stale in since...until, after whatever is more urgent.

    A process that reads nothing gets an output for each of its periods: hours, days, weeks, orbits. Otherwise it is
    `reprocess`. Raises PermanentFailure for a name that nothing has and for a range that ends before it begins.
    """
    if until < since:
        raise PermanentFailure(f"{since} to {until} is no range of days: it ends before it begins")
    what = _what(products, None, since, until, force, priority)
    chosen = _chosen(conn, mission, products, None)
    for process in chosen.processes:
        if not process.inputs:
            request_store.want(conn, process, since, until)
    return _request(conn, mission, "backfill", what, chosen, since, until, force, priority, by)


def retry(
    conn: Connection, mission: Mission, *, process: str | None = None, product: str | None = None,
    day: date | None = None, key: str | None = None,
) -> int:  # fmt: skip
    """Have what failed or was given up tried again now; how many outputs. None means any.

    A build that is running is left alone, and so is what failed for a process that is retired. Raises PermanentFailure
    for a name that nothing has.
    """
    processes: list[int] | None = None
    if process is not None or product is not None:
        known = plan_store.processes(conn, mission.id)
        if process is not None:
            _must_know("process", process, [one.name for one in known])
        if product is not None:
            _must_know("output", product, [one.product for one in known if one.product is not None])
        processes = [
            one.id for one in known if process in (None, one.name) and (product is None or product == one.product)
        ]
    count = request_store.retry(conn, mission.id, processes=processes, day=day, key=key)
    log.info("products.retry", mission=mission.name, process=process, product=product, day=day, count=count)
    return count


def cancel(conn: Connection, request_id: int, by: str) -> int:
    """Take back what a request still waits for; how many outputs that were. Builds that run finish.

    An output that another request waits for stays as it is; one that is stale anyway loses its force and priority
    only. Raises PermanentFailure for a request that does not exist.
    """
    mission_id = request_store.mission_of(conn, request_id)
    if mission_id is None:
        raise PermanentFailure(_no_request(request_id))
    # Only under these locks it is certain which of them are being built.
    at = request_store.cancel(conn, request_id, by) if request_store.lock_open(conn, request_id) else None
    if at is None:
        return 0
    dropped = request_store.drop_open(conn, request_id, at)
    freed = request_store.free(conn, dropped)
    processes = {one.id: one for one in plan_store.processes(conn, mission_id)}
    needless: list[int] = []
    for process_id in {process for _, process, _, _ in freed}:
        mine = {(day, key): slot for slot, process, day, key in freed if process == process_id}
        if (one := processes.get(process_id)) is not None:
            days = [day for day, _ in mine]
            for stale in plan_store.stale(conn, one, since=min(days), until=max(days)):
                mine.pop((stale.day, stale.key), None)
        needless += mine.values()
    request_store.undue(conn, needless)
    log.info("products.request_cancelled", request=request_id, by=by, outputs=len(dropped))
    return len(dropped)


def progress(conn: Connection, request_id: int) -> Progress:
    """How far a request is. Raises PermanentFailure for one that does not exist."""
    found = request_store.requests(conn, request=request_id, limit=1)
    if not found:
        raise PermanentFailure(_no_request(request_id))
    return _read(found[0]).progress


def listing(conn: Connection, *, mission: str | None = None, limit: int = 100) -> list[Request]:
    """Requests and how far they are, newest first."""
    return [_read(row) for row in request_store.requests(conn, mission=mission, limit=limit)]


def idle(conn: Connection, mission: Mission) -> list[Idle]:
    """What requests wait for though nothing has it in hand: to be asked before a plan that `settle` is then given."""
    return request_store.idle(conn, mission.id)


def settle(conn: Connection, waiting: Sequence[Idle], steps: Collection[Step]) -> int:
    """Count as done what requests waited for and a later plan of the mission does not have; how many outputs.

    So a request ends although an output that waited for others turned out to need no build, or cannot be built.
    """
    planned = {(step.process.id, step.slot.day, step.slot.key) for step in steps}
    return request_store.settle(conn, [one for one in waiting if (one.process, one.day, one.key) not in planned])


def first_day(timebase: str, day: date) -> date:
    """The day that the output has in whose period a day lies: a month's is its first."""
    if timebase == "WEEKLY":
        return day - timedelta(days=day.weekday())
    if timebase == "MONTHLY":
        return day.replace(day=1)
    return day.replace(month=1, day=1) if timebase == "YEARLY" else day


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Processes in the order of their graph; `codes` None: whatever made their outputs."""

    every: list[Process]
    processes: list[Process]
    codes: frozenset[int] | None


def _request(
    conn: Connection, mission: Mission, kind: str, what: dict[str, Any], chosen: _Chosen, since: date | None,
    until: date | None, force: Part | None, priority: int, by: str,
) -> Requested:  # fmt: skip
    if force is not None:
        found = _forced(conn, chosen, since, until, force, priority)
    else:
        found = _stale(conn, mission, chosen, since, until, priority)
    request_store.ask(conn, found.before, None)
    waiting = request_store.ask(conn, found.asked, force)
    done = request_store.keep(conn, found.current)
    count = len(waiting) + len(done)
    request = request_store.new_request(conn, mission.id, kind, what, by, waiting=waiting, done=done) if count else None
    due = sum(one.is_due for one in found.asked)
    log.info("products.request", request=request, kind=kind, mission=mission.name, by=by, outputs=count, due=due)
    return Requested(request, count, due, len(waiting) - due, len(done), found.incomplete, found.without_code)


@dataclass(slots=True)
class _Found:
    """Outputs to ask for, those to be built `before` them, those that are `current`, and those that cannot be built."""

    asked: list[Asked]
    before: list[Asked]
    current: list[tuple[Process, Slot]]
    incomplete: int = 0
    without_code: int = 0

    def buildable(self, process: Process, slots: Iterable[Slot], codes: frozenset[int] | None) -> list[Slot]:
        """The slots that can be built and that a code of `codes` has made; the others are counted."""
        found = []
        for slot in slots:
            made_by = slot.ran_by if process.output_product is None else slot.had_code
            if codes is not None and made_by not in codes:
                continue
            if not slot.is_complete:
                self.incomplete += 1
            elif slot.code_id is None:
                self.without_code += 1
            else:
                found.append(slot)
        return found


def _forced(
    conn: Connection, chosen: _Chosen, since: date | None, until: date | None, force: Part, priority: int
) -> _Found:
    found, pending = _Found([], [], []), list[Pending]()
    mine = {one.id for one in chosen.processes}
    plan_store.for_many_slots(conn, many=_is_long(since, until))
    for process in chosen.every:
        first = first_day(process.timebase, since) if since else None
        if process.id in mine:
            slots = plan_store.stale(
                conn, process, since=first, until=until, pending=pending, from_due=True, everything=True
            )
            slots = found.buildable(process, slots, chosen.codes)
            for slot in slots:
                urgency, detail = _urgency(process, priority), f"{force} bump asked for"
                found.asked.append(Asked(process, slot, not slot.has_pending, "FORCED", detail, urgency))
        elif any(one.product in process.inputs for one in pending):
            # Built anew in between: what is asked for further down waits for it, and is built once.
            slots = plan_store.stale(conn, process, since=first, until=until, pending=pending)
            slots = [slot for slot in slots if slot.has_pending]
        else:
            continue
        product = process.output_product
        if product is not None:
            pending += [Pending(product, one.day, one.key, one.start_at, one.stop_at) for one in slots]
    plan_store.for_many_slots(conn, many=False)
    return found


def _stale(
    conn: Connection, mission: Mission, chosen: _Chosen, since: date | None, until: date | None, priority: int
) -> _Found:
    found = _Found([], [], [])
    names = [one.product for one in chosen.processes]
    first = min((first_day(one.timebase, since) for one in chosen.processes), default=since) if since else None
    # A process without an output is in the plan of everything only.
    products = None if None in names else [name for name in names if name is not None]
    steps = planning.plan(conn, mission, since=first, until=until, products=products)
    mine = {one.id for one in chosen.processes}
    plan_store.for_many_slots(conn, many=_is_long(since, until))
    for process in chosen.processes:
        begin = first_day(process.timebase, since) if since is not None else date.min
        stale = {
            (step.slot.day, step.slot.key): step
            for step in steps
            if step.process.id == process.id and step.slot.day >= begin
        }
        every = plan_store.stale(conn, process, since=begin if since else None, until=until, everything=True)
        # What there will be only once other stale outputs are built is known to the plan alone.
        slots = {(one.day, one.key): one for one in every} | {key: step.slot for key, step in stale.items()}
        for slot in found.buildable(process, slots.values(), chosen.codes):
            step = stale.get((slot.day, slot.key))
            if step is None:
                found.current.append((process, slot))
            else:
                found.asked.append(_asked(step, priority))
    plan_store.for_many_slots(conn, many=False)
    wanted = _ancestry(chosen.every, mine)
    found.before = [
        _asked(step, priority)
        for step in steps
        if step.process.id in wanted - mine and not step.waits and not step.is_given_up
    ]
    return found


def _asked(step: Step, priority: int) -> Asked:
    urgency = _urgency(step.process, priority)
    return Asked(step.process, step.slot, not step.waits, step.verdict.reason, step.verdict.detail, urgency)


def _ancestry(every: list[Process], ids: set[int]) -> set[int]:
    """These processes and those whose outputs they are made from."""
    needed: set[int] = set()
    kept = set(ids)
    for process in reversed(every):
        if process.id in kept or process.output_product in needed:
            kept.add(process.id)
            needed |= set(process.inputs)
    return kept


def _urgency(process: Process, priority: int) -> int:
    """A slot's priority: a request may hurry what its process has it be, or put it off, never by accident."""
    return priority if priority < 0 else max(process.priority, priority)


def _is_long(since: date | None, until: date | None) -> bool:
    return since is None or until is None or until - since > timedelta(days=31)


def _chosen(conn: Connection, mission: Mission, products: Collection[str] | None, code: str | None) -> _Chosen:
    every = plan_store.processes(conn, mission.id)
    chosen = every
    if products is not None:
        for name in products:
            _must_know("output", name, [one.product or one.name for one in every])
        chosen = [one for one in every if (one.product or one.name) in products]
    if code is None:
        return _Chosen(every, chosen, None)
    known = request_store.codes(conn, mission.id)
    meant = [one for one in known if code in _names(one)]
    if not meant:
        _must_know("code", code, [name for one in known for name in _names(one)])
    of = {one.process_id for one in meant}
    return _Chosen(every, [one for one in chosen if one.id in of], frozenset(one.id for one in meant))


def _names(code: CodeName) -> tuple[str, str, str]:
    return (code.filename, code.process, f"{code.process} {code.version}")


def _must_know(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise PermanentFailure(f"no {what} is called {name!r}{did_you_mean(name, sorted(set(known)))}")


def _no_request(request_id: int) -> str:
    return f"there is no request {request_id}; `headrace products requests` lists them"


def _what(
    products: Collection[str] | None, code: str | None, since: date | None, until: date | None, force: Part | None,
    priority: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "products": sorted(products) if products is not None else None, "code": code,
        "since": since.isoformat() if since else None, "until": until.isoformat() if until else None,
        "force": force, "priority": priority,
    }  # fmt: skip


def _read(row: dict[str, Any]) -> Request:
    facts = dict(row)
    counts = {name: int(facts.pop(name)) for name in ("total", "done", "failed", "running", "waiting", "cancelled")}
    return Request(**facts, progress=Progress(**counts))
