"""What each timebase has to keep up to date, and from which files: the query against plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.integration.products.rows import Rows
from workers import database
from workers.database import Connection
from workers.products import plan_store, planning
from workers.products.plan_store import Pending, Process, Slot
from workers.products.versions import Version
from workers.settings import Settings

CALENDAR = ("HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY")
TIMEBASES = (*CALENDAR, "ORBIT", "FILE", "RUN")
KEYS = ("", "A=1", "A=2")
TICK = timedelta(microseconds=1)
FIRST = Version(1, 0, 0)
# The day before the last of February, of a leap February, of December: every kind of border is near.
CHOICES = 2  # products at a position of a chain
STARTS = (date(2027, 2, 27), date(2028, 2, 28), date(2027, 12, 30))


@dataclass(frozen=True)
class File:
    """A file of the product with this number; `id` None: it is about to be built anew."""

    product: int
    day: date
    start: datetime
    stop: datetime
    key: str = ""
    version: Version = FIRST
    state: str = "present"
    id: int | None = 0

    @property
    def series(self) -> tuple[int, date, str]:
        """What its versions have in common."""
        return (self.product, self.day, self.key)


@dataclass(frozen=True)
class Input:
    """An input position: products, the preferred one first."""

    products: tuple[int, ...]
    is_required: bool = True
    yesterday: int = 0
    tomorrow: int = 0


@dataclass(frozen=True)
class Case:
    """A process with what there is for it."""

    timebase: str
    inputs: tuple[Input, ...]
    files: tuple[File, ...]
    pending: tuple[File, ...] = ()
    orbits: tuple[tuple[datetime, datetime], ...] = ()


@dataclass(frozen=True)
class Expected:
    """A slot by the rules; `found` has the positions that have a file."""

    day: date
    key: str
    start: datetime
    stop: datetime
    inputs: tuple[int, ...]
    own: tuple[int, ...]
    waits: bool
    found: frozenset[int]


def midnight(day: date) -> datetime:
    """The first moment of a day."""
    return datetime.combine(day, time(), UTC)


def chosen(case: Case) -> list[tuple[int, File]]:
    """Each position's files: the newest ones, what is built anew as such, and per day of the preferred product only."""
    newest: dict[tuple[int, date, str], File] = {}
    for file in case.files:
        best = newest.get(file.series)
        if file.state == "present" and (best is None or file.version > best.version):
            newest[file.series] = file
    there = list({**newest, **{one.series: one for one in case.pending}}.values())
    kept = []
    for position, one in enumerate(case.inputs):
        for file in there:
            if file.product in one.products:
                better = one.products[: one.products.index(file.product)]
                if not any(other.product in better and other.day == file.day for other in there):
                    kept.append((position, file))
    return kept


def periods(case: Case, files: Iterable[File]) -> Iterator[tuple[date, str, datetime, datetime]]:
    """Every period that any of the files could touch, tried one by one: day, key, start, last moment."""
    if case.timebase == "ORBIT":
        for number, (start, stop) in enumerate(case.orbits):
            yield start.date(), f"ORBIT={number}", start, stop - TICK
        return
    starts, stops = [one.start for one in files], [one.stop for one in files]
    if not starts:
        return
    day, last = min(starts).date() - timedelta(days=366), max(stops).date()
    borders: list[datetime] = []
    while day <= last + timedelta(days=366):
        if (
            case.timebase in ("HOURLY", "DAILY")
            or (case.timebase == "WEEKLY" and day.isoweekday() == 1)
            or (case.timebase == "MONTHLY" and day.day == 1)
            or (case.timebase == "YEARLY" and (day.month, day.day) == (1, 1))
        ):
            hours = range(24) if case.timebase == "HOURLY" else (0,)
            borders += [midnight(day) + timedelta(hours=hour) for hour in hours]
        day += timedelta(days=1)
    for start, following in pairwise(borders):
        if start <= max(stops) and following > min(starts):
            yield start.date(), f"H={start:%H}" if case.timebase == "HOURLY" else "", start, following - TICK


def reference(case: Case) -> list[Expected]:
    """The slots of a process, by the letter of the rules and without any cleverness."""
    files = chosen(case)
    slots = []
    if case.timebase in ("FILE", "RUN"):
        driving = next((number for number, one in enumerate(case.inputs) if one.is_required), 0)
        any_drives = not any(one.is_required for one in case.inputs)
        spans: dict[tuple[date, str], list[File]] = {}
        for position, file in files:
            if case.timebase == "RUN":
                spans.setdefault((file.day, ""), []).append(file)
            elif position == driving or any_drives:
                spans.setdefault((file.day, file.key), []).append(file)
        for (day, key), those in spans.items():
            taken = [
                (position, file)
                for position, file in files
                if -case.inputs[position].yesterday <= (file.day - day).days <= case.inputs[position].tomorrow
                and (case.timebase == "RUN" or file.key == key or (file.key == "" and position != driving))
            ]
            own = [file for _, file in taken if file.day == day]
            start, stop = min(one.start for one in those), max(one.stop for one in those)
            slots.append(_slot(day, key, start, stop, taken, own))
    else:
        for day, key, start, stop in periods(case, [file for _, file in files]):
            taken = [
                (position, file)
                for position, file in files
                if file.start <= stop + timedelta(days=case.inputs[position].tomorrow)
                and file.stop >= start - timedelta(days=case.inputs[position].yesterday)
            ]
            own = [file for _, file in taken if file.start <= stop and file.stop >= start]
            if own:
                slots.append(_slot(day, key, start, stop, taken, own))
    return sorted(slots, key=lambda one: (one.day, one.key))


def _slot(
    day: date, key: str, start: datetime, stop: datetime, taken: list[tuple[int, File]], own: list[File]
) -> Expected:
    return Expected(
        day, key, start, stop, tuple(sorted({one.id for _, one in taken if one.id is not None})),
        tuple(sorted({one.id for one in own if one.id is not None})), any(one.id is None for _, one in taken),
        frozenset(position for position, _ in taken),
    )  # fmt: skip


def is_complete(case: Case, slot: Expected) -> bool:
    """Whether every input that must be there is."""
    return all(not one.is_required or position in slot.found for position, one in enumerate(case.inputs))


class World:
    """Cases as rows of a real database; what one inserts is rolled back."""

    def __init__(self, conn: Connection, folder: Path) -> None:
        self.conn, self.folder = conn, folder

    def begin(self, orbits: Iterable[tuple[datetime, datetime]]) -> tuple[Rows, dict[int, int]]:
        """An empty mission: the rows, and the products' ids by their numbers."""
        self.conn.rollback()
        rows = Rows(self.conn)
        rows.mission(self.folder / "root")
        for number, (start, stop) in enumerate(orbits):
            rows.ask("INSERT INTO headrace.orbit SELECT id, %s, %s, %s FROM headrace.satellite", number, start, stop)
        return rows, {number: rows.product(f"p{number}") for number in range(3)}

    def put(self, case: Case) -> tuple[Case, Rows, Process, dict[int, int]]:
        """Insert a case: with its files' ids, the rows, the process, and the products' ids by their numbers."""
        rows, products = self.begin(case.orbits)
        output = None if case.timebase == "RUN" else rows.product("out", level=1)
        insert_process(rows, case, "make", output, products)
        files = tuple(
            replace(one, id=insert_file(rows, one, products, f"f{number}")) for number, one in enumerate(case.files)
        )
        return replace(case, files=files), rows, plan_store.processes(self.conn, rows.mission_id)[0], products

    def slots(
        self,
        case: Case,
        process: Process,
        products: dict[int, int],
        since: date | None = None,
        until: date | None = None,
    ) -> list[Slot]:
        """What the query says of everything."""
        pending = [Pending(products[one.product], one.day, one.key, one.start, one.stop) for one in case.pending]
        return plan_store.stale(self.conn, process, pending=pending, everything=True, since=since, until=until)


def insert_process(
    rows: Rows, case: Case, name: str, output: int | None, products: dict[int, int], rank: int = 0
) -> int:
    """A process with the timebase and the inputs of a case; its id."""
    inputs: list[int | dict[str, Any]] = [
        {"position": position, "preference": preference, "product_id": products[product],
         "is_required": one.is_required, "yesterday": one.yesterday, "tomorrow": one.tomorrow}
        for position, one in enumerate(case.inputs) for preference, product in enumerate(one.products)
    ]  # fmt: skip
    satellite = rows.ask("SELECT id FROM headrace.satellite")[0][0]
    return rows.process(name, output, inputs, timebase=case.timebase, satellite_id=satellite, rank=rank)


def insert_file(rows: Rows, one: File, products: dict[int, int], name: str) -> int:
    """A file as a row, without bytes; its id."""
    return rows.file(
        products[one.product], one.day, one.version, key=one.key, start_at=one.start, stop_at=one.stop, state=one.state,
        content=None, filename=name,
    )  # fmt: skip


def shape(case: Case, slots: Iterable[Slot]) -> list[tuple[Expected, bool]]:
    """The query's answer in the reference's words."""
    return [
        (
            Expected(
                one.day, one.key, one.start_at, one.stop_at, tuple(one.inputs), tuple(one.own), one.has_pending,
                frozenset(number for number in range(len(case.inputs)) if one.found >> number & 1),
            ),
            one.is_complete,
        )
        for one in slots
    ]  # fmt: skip


def told(case: Case, slots: Iterable[Expected]) -> list[tuple[Expected, bool]]:
    """The reference's answer, likewise."""
    return [(one, is_complete(case, one)) for one in slots]


@pytest.fixture
def world(conf: Settings, tmp_path: Path) -> Iterator[World]:
    """A database that many cases use one after the other."""
    with database.connection(conf.target(conf.products.database), purpose="tests") as conn:
        yield World(conn, tmp_path)
        conn.rollback()


@st.composite
def files(draw: st.DrawFn, base: date, *, state: str | None = None, made: bool = True) -> File:
    """A file near a border; its day is mostly, but not always, the day on which it begins."""
    start = midnight(base) + draw(
        st.sampled_from([timedelta(days=number) for number in range(5)])
    ) + draw(st.sampled_from([timedelta(), -TICK, timedelta(hours=23), timedelta(hours=1, minutes=30)]))  # fmt: skip
    length = draw(st.sampled_from([
        timedelta(days=1) - TICK, timedelta(0), timedelta(hours=2), timedelta(days=1), timedelta(days=2),
        *([timedelta(days=9)] if made else []),
    ]))  # fmt: skip
    day = start.date() + draw(st.sampled_from([timedelta(0)] * 3 + [timedelta(days=1), timedelta(days=-1)]))
    return File(
        draw(st.integers(0, 2 if made else 1)), day, start, start + length, draw(st.sampled_from(KEYS)),
        Version(1, draw(st.integers(0, 2)), draw(st.integers(0, 1))),
        state or draw(st.sampled_from(["present"] * 5 + ["missing", "corrupt", "placing"])),
        None if state and made else 0,
    )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A small graph with whatever files."""
    timebase, base = draw(st.sampled_from(TIMEBASES)), draw(st.sampled_from(STARTS))
    there = draw(st.lists(files(base), max_size=8, unique_by=lambda one: (one.series, one.version)))
    anew = draw(st.lists(files(base, state="present"), max_size=2, unique_by=lambda one: one.series))
    orbits = draw(some_orbits(base)) if timebase == "ORBIT" else ()
    return Case(timebase, draw(some_inputs((0, 1, 2))), tuple(there), tuple(anew), orbits)


@st.composite
def some_inputs(draw: st.DrawFn, products: tuple[int, ...], most: int = 2) -> tuple[Input, ...]:
    """One to three positions, some with an alternative, a window, or optional."""
    windows, one = st.sampled_from([0, 0, 1, 2]), st.sampled_from(products)
    lists = draw(st.lists(st.lists(one, min_size=1, max_size=most, unique=True), min_size=1, max_size=3))
    return tuple(Input(tuple(those), draw(st.booleans()), draw(windows), draw(windows)) for those in lists)


@st.composite
def some_orbits(draw: st.DrawFn, base: date) -> tuple[tuple[datetime, datetime], ...]:
    """Intervals of hours or days, with gaps and overlaps."""
    start, orbits = midnight(base), []
    for _ in range(draw(st.integers(0, 5))):
        start += timedelta(hours=draw(st.sampled_from([0, 0, 10, -1])))
        stop = start + timedelta(hours=draw(st.sampled_from([7, 24, 61])))
        orbits.append((start, stop))
        start = stop
    return tuple(orbits)


HARD = settings(
    max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@HARD
@given(case=cases())
def test_the_query_agrees_with_plain_python(world: World, case: Case) -> None:
    """Slots, their files, what waits and what lacks: whatever graph and files, the query says what the rules say."""
    case, _, process, products = world.put(case)
    assert shape(case, world.slots(case, process, products)) == told(case, reference(case))


@HARD
@given(
    case=cases(), first=st.integers(-3, 8), length=st.integers(-1, 3), sides=st.sampled_from(["both", "since", "until"])
)
def test_a_range_of_days_says_the_same_of_them(world: World, case: Case, first: int, length: int, sides: str) -> None:
    """Asked about some days only, the query says of them what it says when it is asked about all."""
    case, _, process, products = world.put(case)
    base = min((one.day for one in case.files), default=STARTS[0])
    since = base + timedelta(days=first) if sides != "until" else None
    until = base + timedelta(days=first + length) if sides != "since" else None
    inside = [
        one for one in reference(case) if (since is None or one.day >= since) and (until is None or one.day <= until)
    ]
    found = world.slots(case, process, products, since=since, until=until)
    assert shape(case, found) == told(case, inside)


MOODS = (
    "none",
    "built",
    "built",
    "other code",
    "fewer",
    "more",
    "delivered",
    "missing",
    "corrupt",
    "newer lost",
    "forced",
)


@HARD
@given(
    case=cases(), moods=st.lists(st.sampled_from(MOODS), min_size=7, max_size=7), neighbours=st.booleans(),
    from_day=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_what_is_stale_agrees_with_plain_python(
    world: World, case: Case, moods: list[str], neighbours: bool, from_day: int | None
) -> None:
    """Stale: no output, other inputs, another code, lost, corrupt, forced; if a code and all it needs are there."""
    case, rows, process, products = world.put(case)
    process = replace(process, neighbours=neighbours)
    valid_from = (
        date.min
        if from_day is None
        else min((one.day for one in case.files), default=date.min) + timedelta(days=from_day)
    )
    old = rows.code(process.id, "1.0.0", script=None, state="retired")
    code = rows.code(process.id, "1.1.0", script=None, valid_from=valid_from)
    stale = []
    for number, slot in enumerate(reference(case)):
        mood = moods[number % len(moods)] if number < 30 else "none"
        is_stale = _make_so(rows, case, process, slot, mood, code=code, old=old)
        if slot.day >= valid_from and is_complete(case, slot) and (slot.waits or is_stale):
            stale.append((slot.day, slot.key))
    pending = [Pending(products[one.product], one.day, one.key, one.start, one.stop) for one in case.pending]
    found = plan_store.stale(world.conn, process, pending=pending)
    assert [(one.day, one.key) for one in found] == stale


def _make_so(rows: Rows, case: Case, process: Process, slot: Expected, mood: str, *, code: int, old: int) -> bool:
    """Bring a slot into a state; whether that makes it stale."""
    had = list(slot.inputs)
    if mood == "fewer" and had:
        had = had[1:]
    if mood == "more":
        had = sorted({*had, *(one.id for one in case.files if one.id is not None)})
    by = old if mood == "other code" else code
    is_other = set(had) != set(slot.inputs) if process.neighbours else not set(slot.own) <= set(had)
    row: dict[str, Any] = {
        "process_id": process.id,
        "day": slot.day,
        "key": slot.key,
        "start_at": slot.start,
        "stop_at": slot.stop,
    }
    if process.output_product is None:
        if mood == "none":
            return True
        rows.insert("product_slot", **row, inputs=had, code_id=by, force="quality" if mood == "forced" else None)
        return mood == "forced" or by == old or set(had) != set(slot.inputs)
    if mood == "none":
        return True
    if mood == "forced":
        rows.insert("product_slot", **row, force="quality")
    output = process.output_product
    facts: dict[str, Any] = {"key": slot.key, "start_at": slot.start, "stop_at": slot.stop, "content": None}
    name = f"out {slot.day} {slot.key}"
    state = mood if mood in ("missing", "corrupt") else "present"
    inputs = None if mood == "delivered" else had
    rows.file(output, slot.day, inputs=inputs, code=None if inputs is None else by, filename=name, state=state, **facts)
    if mood == "newer lost":
        rows.file(output, slot.day, "1.1.0", inputs=had, code=by, filename=f"{name} 2", state="missing", **facts)
    if mood == "delivered":
        return False  # it came after all that it could be made of
    return mood in ("forced", "missing", "corrupt", "newer lost") or by == old or is_other


@st.composite
def chains(draw: st.DrawFn) -> tuple[Case, Case]:
    """Two processes: product 2 is made of 0 and 1, and what the second makes of all three has it among its inputs."""
    base, others = draw(st.sampled_from(STARTS)), tuple(one for one in TIMEBASES if one not in ("RUN", "HOURLY"))
    some = files(base, state="present", made=False)
    there = draw(st.lists(some, min_size=1, max_size=4, unique_by=lambda one: (one.series, one.version)))
    own = Input((2,), draw(st.booleans()), draw(st.integers(0, 1)), draw(st.integers(0, 1)))
    orbits = draw(some_orbits(base))
    return (
        Case(draw(st.sampled_from((*others, "HOURLY"))), draw(some_inputs((0, 1), CHOICES)), tuple(there), (), orbits),
        Case(draw(st.sampled_from(others)), (own, *draw(some_inputs((0, 1, 2), CHOICES))), ()),
    )


class Chain:
    """Two processes, the second fed by the first; a build is a row, made in the order in which events mark them."""

    def __init__(self, world: World, first: Case, second: Case) -> None:
        self.conn = world.conn
        self.rows, self.products = world.begin(first.orbits)
        outputs = (self.products[2], self.rows.product("last", level=2))
        for rank, (case, output) in enumerate(zip((first, second), outputs, strict=True)):
            self.rows.code(insert_process(self.rows, case, f"make{rank}", output, self.products, rank), script=None)
        self.mission = plan_store.mission_of(self.conn, self.rows.mission_id)
        self.processes = {one.id: one for one in plan_store.processes(self.conn, self.rows.mission_id)}
        self.built: list[tuple[str, date, str]] = []
        self.versions = count()

    def deliver(self, file: File, number: int, *, is_told: bool) -> None:
        """A file comes in; if somebody is told, what can be built of it is marked."""
        insert_file(self.rows, file, self.products, f"f{number}")
        if is_told:
            self._changed(Pending(self.products[file.product], file.day, file.key, file.start, file.stop))

    def sweep(self) -> None:
        """Mark what the plan says can be built at once."""
        plan_store.mark_due(self.conn, planning.to_mark(planning.plan(self.conn, self.mission)))

    def settle(self) -> None:
        """Build what is marked until nothing is, inputs first, as a lane does."""
        marked = "SELECT process_id, day, key, start_at, stop_at FROM headrace.product_slot WHERE due_at IS NOT NULL"
        while due := self.rows.ask(f"{marked} ORDER BY rank, day, id LIMIT 1"):
            number, day, key, start, stop = due[0]
            process = self.processes[number]
            step = planning.of_slot(self.conn, process, day, key)
            self.rows.ask("UPDATE headrace.product_slot SET due_at = NULL WHERE (process_id, day, key) = (%s, %s, %s)",
                          number, day, key)  # fmt: skip
            output = process.output_product
            assert output is not None
            if step is not None:
                version = Version(1, next(self.versions), 0)
                self.rows.file(
                    output, day, version, key=key, start_at=step.slot.start_at, stop_at=step.slot.stop_at, content=None,
                    inputs=step.slot.inputs, code=step.slot.code_id, filename=f"{process.name} {version}",
                )  # fmt: skip
                self.built.append((process.name, day, key))
            self._changed(Pending(output, day, key, start, stop))

    def planned(self) -> list[tuple[str, date, str]]:
        """What the plan says will be built."""
        return [(one.process.name, one.slot.day, one.slot.key) for one in planning.plan(self.conn, self.mission)]

    def _changed(self, changed: Pending) -> None:
        plan_store.mark_due(self.conn, planning.to_mark(planning.due_after(self.conn, self.mission, [changed])))


@settings(HARD, max_examples=30)
@given(chain=chains(), told_first=st.integers(0, 4))
def test_the_plan_says_beforehand_what_will_be_built_and_events_leave_nothing_out(
    world: World, chain: tuple[Case, Case], told_first: int
) -> None:
    """Files that are told of leave nothing stale; of others, the plan names each build, and each is done once."""
    first, _ = chain
    assume(len(reference(first)) <= 30)
    scene = Chain(world, *chain)
    for number, file in enumerate(first.files):
        scene.deliver(file, number, is_told=number < told_first)
        if number < told_first:
            scene.settle()
            assert scene.planned() == []
    planned, scene.built = scene.planned(), []
    scene.sweep()
    scene.settle()
    assert sorted(scene.built) == sorted(planned)
    assert scene.planned() == []


LAST = date(2027, 2, 28)  # a Sunday
OVER = File(0, LAST, midnight(LAST) + timedelta(hours=23), midnight(LAST) + timedelta(hours=25))
NEXT = midnight(date(2027, 3, 1))
WORKED = {
    "HOURLY": [("2027-02-28", "H=23"), ("2027-03-01", "H=00"), ("2027-03-01", "H=01")],
    "DAILY": [("2027-02-28", ""), ("2027-03-01", "")],
    "WEEKLY": [("2027-02-22", ""), ("2027-03-01", "")],
    "MONTHLY": [("2027-02-01", ""), ("2027-03-01", "")],
    "YEARLY": [("2027-01-01", "")],
    "ORBIT": [("2027-02-28", "ORBIT=1"), ("2027-03-01", "ORBIT=2")],
    "FILE": [("2027-02-28", "")],
    "RUN": [("2027-02-28", "")],
}


@pytest.mark.parametrize("timebase", TIMEBASES)
def test_a_file_over_midnight_of_a_week_and_a_month(world: World, timebase: str) -> None:
    """A file of 23:00 to 01:00 on a Sunday that ends a month belongs to both sides; as FILE to its day."""
    orbits = (
        (NEXT - timedelta(hours=5), NEXT - timedelta(hours=1)),  # ends as the file begins
        (NEXT - timedelta(hours=1), NEXT),
        (NEXT, NEXT + timedelta(hours=9)),
        (NEXT + timedelta(hours=9), NEXT + timedelta(hours=18)),
    )
    case, _, process, products = world.put(Case(timebase, (Input((0,)),), (OVER,), orbits=orbits))
    slots = world.slots(case, process, products)
    assert [(str(one.day), one.key) for one in slots] == WORKED[timebase]
    assert all(one.inputs == one.own == [case.files[0].id] for one in slots)


@pytest.mark.parametrize(
    ("stop", "days"), [(NEXT - TICK, ["2027-02-28"]), (NEXT, ["2027-02-28", "2027-03-01"])], ids=["before", "at"]
)
def test_the_edge_of_a_day(world: World, stop: datetime, days: list[str]) -> None:
    """A file until 23:59:59.999999 is of one day; one until 00:00:00 has a record of the next."""
    case, _, process, products = world.put(Case("DAILY", (Input((0,)),), (replace(OVER, stop=stop),)))
    assert [str(one.day) for one in world.slots(case, process, products)] == days


def test_without_inputs_a_person_names_the_days(world: World) -> None:
    """A process that reads nothing has the outputs that somebody asked for, and those days only."""
    rows, _ = world.begin(())
    process = rows.process("make", rows.product("out"), timebase="DAILY")
    rows.code(process, script=None)
    start, stop = NEXT, NEXT + timedelta(days=1) - TICK
    for number, is_wanted in enumerate((True, False)):
        rows.insert("product_slot", process_id=process, day=LAST + timedelta(days=number), key="", start_at=start,
                    stop_at=stop, is_wanted=is_wanted)  # fmt: skip
    found = plan_store.stale(world.conn, plan_store.processes(world.conn, rows.mission_id)[0])
    assert [(one.day, one.inputs, one.is_complete) for one in found] == [(LAST, [], True)]


def test_a_delivered_output_stands_until_an_input_comes_after_it(world: World) -> None:
    """A file that was delivered where one would be built is newer than its inputs; a later input makes it stale."""
    case, rows, process, products = world.put(Case("DAILY", (Input((0,)),), (replace(OVER, stop=NEXT - TICK),)))
    rows.code(process.id, script=None)
    assert process.output_product is not None
    rows.file(process.output_product, LAST, content=None)
    assert plan_store.stale(world.conn, process) == []
    insert_file(rows, replace(case.files[0], version=Version(1, 0, 1)), products, "later")
    assert [one.day for one in plan_store.stale(world.conn, process)] == [LAST]


def test_a_preferred_file_counts_for_its_day_whatever_days_are_asked_about(world: World) -> None:
    """Of a day's two files the preferred one ends at midnight, the other goes beyond: the other is no input, ever."""
    preferred = File(1, LAST, midnight(LAST), NEXT - TICK)
    case, _, process, products = world.put(Case("DAILY", (Input((1, 0)),), (OVER, preferred)))
    assert [one.day for one in world.slots(case, process, products)] == [LAST]
    assert world.slots(case, process, products, since=NEXT.date()) == []


def test_an_orbit_that_ends_long_after_the_last_day(world: World) -> None:
    """An orbit that begins on the last day asked about has its inputs of days later, with a first day and without."""
    late = File(0, LAST + timedelta(days=4), NEXT + timedelta(days=3), NEXT + timedelta(days=3, hours=2))
    case, _, process, products = world.put(
        Case("ORBIT", (Input((0,)),), (OVER, late), orbits=((NEXT - timedelta(hours=2), NEXT + timedelta(days=9)),))
    )
    ids = [one.id for one in case.files]
    assert [one.inputs for one in world.slots(case, process, products, since=LAST, until=LAST)] == [ids]
    assert [one.inputs for one in world.slots(case, process, products, until=LAST)] == [ids]


def test_a_preferred_file_that_displaces_a_longer_one(world: World) -> None:
    """A preferred file of a day displaces one that goes on into the next: what that was an input of is due, too."""
    preferred = File(1, LAST, midnight(LAST), NEXT - TICK)
    beside = File(0, NEXT.date(), NEXT, NEXT + timedelta(hours=1))
    scene = Chain(world, Case("DAILY", (Input((1, 0)),), ()), Case("DAILY", (Input((2,)),), ()))
    for number, file in enumerate((OVER, beside, preferred)):
        scene.deliver(file, number, is_told=True)
        scene.settle()
        assert scene.planned() == []
