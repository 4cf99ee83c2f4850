"""What people ask for: outputs built anew, days filled in, failures tried again; followed, and taken back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.products.rows import COPY, DAY, Rows
from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.messages import IngestIncoming, PlanProducts
from workers.products import identifying, plan_store, requests, room
from workers.products.plan_store import Mission
from workers.products.requests import Progress, Requested
from workers.products.versions import Part
from workers.settings import Settings

LAST = DAY + timedelta(days=2)


@dataclass
class World:
    """l0 delivered, l1 made of each file, l2 of each day; three days of it when it is `filled`."""

    rows: Rows
    root: Path
    settings: Settings
    work: Callable[..., list[str]]
    products: dict[str, int]
    processes: dict[str, int]

    @property
    def conn(self) -> Connection:
        """The connection on which things are asked."""
        return self.rows.conn

    @property
    def mission(self) -> Mission:
        """The mission as rows say."""
        return plan_store.mission(self.conn, "demo")

    def deliver(self, day: date, version: str = "1.0.0", text: str | None = None) -> None:
        """Put a file into the incoming folder."""
        folder = self.root.parent / "root-incoming"
        (folder / f"l0_{day:%Y%m%d}_v{version}.dat").write_text(text or f"{day} {version}\n")

    def take_in(self, *, then_build: bool = True) -> list[str]:
        """Take in what lies there, and build what follows."""
        self.conn.commit()
        return self.work(IngestIncoming(host="here", mission="demo", then_build=then_build), settings=self.settings)

    def build(self) -> list[str]:
        """Build what is stale or due."""
        self.conn.commit()
        return self.work(PlanProducts(host="here", mission="demo"), settings=self.settings)

    def fill(self) -> None:
        """Three days, all of it built."""
        for number in range(3):
            self.deliver(DAY + timedelta(days=number))
        assert self.take_in() == []

    def versions(self, product: str) -> list[str]:
        """The newest version of each day."""
        found = self.rows.ask(
            "SELECT concat_ws('.', interface, quality, revision) FROM headrace.product_file"
            " WHERE is_newest AND product_id = %s ORDER BY day",
            self.products[product],
        )
        self.conn.commit()
        return [row[0] for row in found]

    def progress(self, asked: Requested) -> Progress:
        """How far a request is."""
        assert asked.id is not None
        found = requests.progress(self.conn, asked.id)
        self.conn.commit()
        return found


@pytest.fixture
def world(conf: Settings, tmp_path: Path, work: Callable[..., list[str]]) -> Iterator[World]:
    """The mission, with nothing delivered yet."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        rows = Rows(conn)
        root = tmp_path / "root"
        rows.mission(root)
        products = {name: rows.product(name, level=level) for level, name in enumerate(("l0", "l1", "l2"))}
        processes = {
            "l0_l1": rows.process("l0_l1", products["l1"], [products["l0"]], timebase="FILE", attempts=1),
            "l1_l2": rows.process("l1_l2", products["l2"], [products["l1"]], rank=1),
        }
        for process in processes.values():
            rows.code(process)
        conn.commit()
        rules = conf.products.model_copy(update={"settle_seconds": 0.0, "lanes": 1})
        settings = conf.model_copy(update={"products": rules})
        yield World(rows, root, settings, work, products, processes)
    identifying.forget()
    room.forget()


def test_a_forced_output_and_what_is_made_of_it_get_the_bump_that_was_asked_for(world: World) -> None:
    """Two days of l1 are forced: these and their l2 are new versions; only the l1 are the request's own."""
    world.fill()
    asked = requests.reprocess(
        world.conn, world.mission, products=["l1"], until=DAY + timedelta(days=1), force="quality", by="me"
    )
    assert (asked.slots, asked.due, asked.up_to_date) == (2, 2, 0)
    assert world.progress(asked) == Progress(total=2, done=0, failed=0, running=0, waiting=2, cancelled=0)
    assert world.build() == []
    assert world.versions("l1") == ["1.1.0", "1.1.0", "1.0.0"]
    assert world.versions("l2") == ["1.1.0", "1.1.0", "1.0.0"]
    assert world.progress(asked) == Progress(total=2, done=2, failed=0, running=0, waiting=0, cancelled=0)


def test_forced_outputs_that_are_made_of_each_other_are_each_built_once(world: World) -> None:
    """l2 is forced together with l1: it waits for it, and there is one new version of each."""
    world.fill()
    asked = requests.reprocess(world.conn, world.mission, since=DAY, until=DAY, force="revision", by="me")
    assert (asked.slots, asked.due, asked.waiting) == (2, 1, 1)
    world.build()
    assert world.versions("l1")[0] == world.versions("l2")[0] == "1.0.1"
    assert world.progress(asked).done == 2
    assert world.rows.ask("SELECT count(*) FROM headrace.product_build WHERE reason = 'FORCED'") == [(2,)]


def test_without_force_only_what_is_stale_is_built(world: World) -> None:
    """What is up to date counts as done at once; what is stale is due, and what waits for it is built after it."""
    world.fill()
    world.deliver(DAY, "1.1.0")
    world.take_in(then_build=False)
    asked = requests.reprocess(world.conn, world.mission, products=["l1", "l2"], by="me")
    assert (asked.slots, asked.due, asked.waiting, asked.up_to_date) == (6, 1, 1, 4)
    assert world.progress(asked).done == 4
    world.build()
    assert world.versions("l2") == ["1.1.0", "1.0.0", "1.0.0"]
    assert world.progress(asked) == Progress(total=6, done=6, failed=0, running=0, waiting=0, cancelled=0)


def test_a_request_that_waited_in_vain_is_done_by_the_next_look(world: World) -> None:
    """The other code makes the same l1, so l2 needs no build after all: its request ends nevertheless."""
    world.fill()
    code = world.processes["l0_l1"]
    world.rows.ask("UPDATE headrace.code SET state = 'retired' WHERE process_id = %s", code)
    world.rows.code(code, "1.0.1")
    asked = requests.reprocess(world.conn, world.mission, products=["l2"], since=DAY, until=DAY, by="me")
    assert (asked.slots, asked.waiting) == (1, 1)
    world.build()
    world.build()
    assert world.versions("l2") == ["1.0.0"] * 3
    assert world.progress(asked).done == 1


def test_only_outputs_of_one_code_can_be_asked_for(world: World) -> None:
    """A code is meant by process and version, or by its file; a name that nothing has is refused with a near one."""
    world.fill()
    old = requests.reprocess(world.conn, world.mission, code="l0_l1 1.0.0", force="revision", by="me")
    assert old.slots == 3
    assert requests.reprocess(world.conn, world.mission, code="copy.sh", force="revision", by="me").slots == 6
    with pytest.raises(PermanentFailure, match=r"no code is called 'l0_l1 1.0.3'; did you mean 'l0_l1 1.0.0'"):
        requests.reprocess(world.conn, world.mission, code="l0_l1 1.0.3", by="me")
    with pytest.raises(PermanentFailure, match=r"no output is called 'l9'"):
        requests.reprocess(world.conn, world.mission, products=["l9"], by="me")


def test_an_output_that_cannot_be_built_is_told_and_not_waited_for(world: World) -> None:
    """Without a valid code, and without anything at all, there is no request to follow."""
    world.fill()
    world.rows.ask("UPDATE headrace.code SET state = 'held' WHERE process_id = %s", world.processes["l1_l2"])
    asked = requests.reprocess(world.conn, world.mission, products=["l2"], force="quality", by="me")
    assert (asked.id, asked.slots, asked.without_code) == (None, 0, 3)
    assert requests.listing(world.conn) == []


def test_failures_count_and_begin_anew_when_they_are_asked_for_again(world: World) -> None:
    """A forced build that fails is `failed`; after the fix a request without force builds what was given up."""
    script = world.rows.codes() / "copy.sh"
    script.write_text("#!/bin/sh\necho no calibration >&2\nexit 3\n")
    world.deliver(DAY)
    world.take_in()
    asked = requests.reprocess(world.conn, world.mission, products=["l1"], by="me")
    assert (asked.slots, asked.due) == (1, 1)
    world.build()
    assert world.progress(asked) == Progress(total=1, done=0, failed=1, running=0, waiting=0, cancelled=0)
    script.write_text(COPY)
    assert requests.retry(world.conn, world.mission, product="l1", day=DAY) == 1
    assert world.build() == []
    assert (world.versions("l1"), world.versions("l2")) == (["1.0.0"], ["1.0.0"])
    assert requests.retry(world.conn, world.mission) == 0


@pytest.mark.parametrize(
    ("timebase", "expected"),
    [
        ("DAILY", [("2027-03-01", ""), ("2027-03-02", ""), ("2027-03-03", "")]),
        ("WEEKLY", [("2027-03-01", "")]),
        ("MONTHLY", [("2027-03-01", "")]),
        ("YEARLY", [("2027-01-01", "")]),
        ("ORBIT", [("2027-03-01", "ORBIT=7")]),
        ("RUN", [("2027-03-01", ""), ("2027-03-02", ""), ("2027-03-03", "")]),
    ],
)
def test_a_process_that_reads_nothing_is_backfilled_period_by_period(
    world: World, timebase: str, expected: list[tuple[str, str]]
) -> None:
    """Each period that has a part in the range is due, with a low priority."""
    satellite = world.rows.ask("SELECT id FROM headrace.satellite")[0][0]
    at = datetime(2027, 3, 1, 22, tzinfo=UTC)
    world.rows.ask("INSERT INTO headrace.orbit VALUES (%s, 7, %s, %s)", satellite, at, at + timedelta(hours=5))
    output = None if timebase == "RUN" else world.rows.product("model", level=3)
    process = world.rows.process("simulate", output, timebase=timebase, satellite_id=satellite)
    world.rows.code(process)
    name = "model" if output is not None else "simulate"
    asked = requests.backfill(world.conn, world.mission, products=[name], since=DAY, until=LAST, by="me")
    assert (asked.due, asked.slots) == (len(expected), len(expected))
    found = world.rows.ask("SELECT day::text, key FROM headrace.product_slot WHERE priority = -10 ORDER BY day, key")
    assert found == expected


def test_hours_have_keys(world: World) -> None:
    """A day of an hourly process that reads nothing is 24 outputs."""
    product = world.rows.product("model", format="m_{Y}{m}{d}{H}_v{VERSION}")
    process = world.rows.process("simulate", product, timebase="HOURLY")
    world.rows.code(process)
    asked = requests.backfill(world.conn, world.mission, products=["model"], since=DAY, until=DAY, by="me")
    keys = world.rows.ask("SELECT key FROM headrace.product_slot ORDER BY start_at")
    assert (asked.due, keys[0], keys[23]) == (24, ("H=00",), ("H=23",))


def test_a_cancelled_backfill_of_a_process_without_inputs_leaves_nothing_to_build(world: World) -> None:
    """Nobody wants these days any more: the next look at the mission does not find them."""
    process = world.rows.process("simulate", world.rows.product("model", level=3))
    world.rows.code(process)
    asked = requests.backfill(world.conn, world.mission, products=["model"], since=DAY, until=LAST, by="me")
    assert asked.id is not None
    assert requests.cancel(world.conn, asked.id, "me") == 3
    assert requests.cancel(world.conn, asked.id, "me") == 0
    world.build()
    assert world.progress(asked) == Progress(total=3, done=0, failed=0, running=0, waiting=0, cancelled=3)
    assert world.rows.ask("SELECT count(*) FROM headrace.product_build") == [(0,)]


def test_live_data_overtakes_a_backfill_and_a_month_is_built_once(world: World) -> None:
    """The file that came last is built first; the month waits until all of its days are done."""
    month = world.rows.process("l2_l3", world.rows.product("l3", level=3, covers="month"), [world.products["l2"]],
                               timebase="MONTHLY", rank=2)  # fmt: skip
    world.rows.code(month)
    world.fill()
    asked = requests.backfill(
        world.conn, world.mission, products=["l1"], since=DAY, until=LAST, force="quality", by="me"
    )
    live = DAY + timedelta(days=40)
    world.deliver(live)
    world.take_in()
    built = world.rows.ask("SELECT process_id, day FROM headrace.product_build ORDER BY id OFFSET 7")
    one, two = world.processes.values()
    days = [DAY + timedelta(days=number) for number in range(3)]
    assert built == [
        (one, live), (two, live), (month, live.replace(day=1)), *((one, day) for day in days),
        *((two, day) for day in days), (month, DAY),
    ]  # fmt: skip
    assert world.progress(asked).done == 3


class Held:
    """A code that says it began, and ends when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.began, self.go = folder / "began", folder / "go"
        os.mkfifo(self.began)
        os.mkfifo(self.go)

    @property
    def script(self) -> str:
        """Its text."""
        return COPY.replace("#!/bin/sh\n", f"#!/bin/sh\necho x > '{self.began}'\nread x < '{self.go}'\n")


def test_a_cancelled_request_lets_the_running_build_finish_and_frees_the_rest(world: World, tmp_path: Path) -> None:
    """One of three forced outputs is being built: it becomes a new version, the others stay as they were."""
    world.fill()
    held = Held(tmp_path)
    (world.rows.codes() / "copy.sh").write_text(held.script)
    asked = requests.reprocess(world.conn, world.mission, products=["l1"], force="quality", by="me")
    assert asked.id is not None
    world.conn.commit()
    worker = threading.Thread(target=world.build)
    worker.start()
    held.began.read_text()
    assert world.progress(asked) == Progress(total=3, done=0, failed=0, running=1, waiting=2, cancelled=0)
    assert requests.cancel(world.conn, asked.id, "me") == 2
    world.conn.commit()
    (world.rows.codes() / "copy.sh").write_text(COPY)
    held.go.write_text("go\n")
    worker.join(30)
    assert world.versions("l1") == ["1.1.0", "1.0.0", "1.0.0"]
    assert world.versions("l2") == ["1.1.0", "1.0.0", "1.0.0"]
    assert world.progress(asked) == Progress(total=3, done=1, failed=0, running=0, waiting=0, cancelled=2)
    assert requests.listing(world.conn, mission="demo")[0].cancelled_by == "me"


def test_what_is_asked_for_during_a_build_is_served_by_the_next_one(world: World, tmp_path: Path) -> None:
    """The running build knows nothing of the force: another one follows, and the request is done by that."""
    held = Held(tmp_path)
    (world.rows.codes() / "copy.sh").write_text(held.script)
    world.deliver(DAY)
    world.conn.commit()
    worker = threading.Thread(target=world.take_in)
    worker.start()
    held.began.read_text()
    asked = requests.reprocess(world.conn, world.mission, products=["l1"], force="quality", by="me")
    world.conn.commit()
    (world.rows.codes() / "copy.sh").write_text(COPY)
    held.go.write_text("go\n")
    worker.join(30)
    assert world.versions("l1") == ["1.1.0"]
    assert world.progress(asked).done == 1
    served = world.rows.ask(
        "SELECT b.reason FROM headrace.product_build b JOIN headrace.product_request_slot q ON q.build_id = b.id"
    )
    assert served == [("FORCED",)]


def test_an_output_that_is_stale_anyway_stays_due_after_a_cancellation(world: World) -> None:
    """It loses its force only; and what another request waits for stays as that one wants it."""
    world.fill()
    world.deliver(DAY, "1.1.0")
    world.take_in(then_build=False)

    def ask(since: date, until: date, force: Part | None = None) -> Requested:
        return requests.reprocess(
            world.conn, world.mission, products=["l1"], since=since, until=until, force=force, by="me"
        )

    first = ask(DAY, DAY + timedelta(days=1), "interface")
    other, both = ask(LAST, LAST, "revision"), ask(LAST, LAST)
    assert first.id is not None and both.id is not None
    assert requests.cancel(world.conn, first.id, "me") == 2
    assert requests.cancel(world.conn, both.id, "me") == 1
    found = world.rows.ask(
        "SELECT due_at IS NOT NULL, force FROM headrace.product_slot WHERE process_id = %s ORDER BY day",
        world.processes["l0_l1"],
    )
    assert found == [(True, None), (False, None), (True, "revision")]
    assert world.progress(other).waiting == 1


def test_an_unknown_request_is_refused(world: World) -> None:
    """The message says how to find those that there are."""
    for ask in (lambda: requests.progress(world.conn, 99), lambda: requests.cancel(world.conn, 99, "me")):
        with pytest.raises(PermanentFailure, match=r"there is no request 99; `headrace products requests` lists them"):
            ask()


def test_a_range_that_ends_before_it_begins_is_refused(world: World) -> None:
    """Nothing is written for it."""
    with pytest.raises(PermanentFailure, match="ends before it begins"):
        requests.backfill(world.conn, world.mission, products=["l1"], since=LAST, until=DAY, by="me")
