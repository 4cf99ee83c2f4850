"""The core's protocols under faults: workers that die between any two lines, races, full disks, people in between."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg2
import pytest

from tests.integration.products.rows import COPY, DAY, Rows
from workers import paths
from workers.messages import BuildProducts, IngestIncoming, PlanProducts, TendProducts
from workers.products import (
    build_store,
    building,
    forgetting,
    ingesting,
    looking,
    ownership,
    planning,
    room,
    store,
    sweeping,
    tending,
)
from workers.settings import Settings

Work = Callable[..., list[str]]
Sql = Callable[..., list[tuple[Any, ...]]]

BUILD = BuildProducts(host="here", lane=1)
INGEST = IngestIncoming(host="here", mission="demo")
PLAN = PlanProducts(host="here", mission="demo")
TEND = TendProducts(host="here")


@pytest.fixture
def rows(dsn: str, tmp_path: Path) -> Iterator[Rows]:
    """A mission without products."""
    conn = psycopg2.connect(dsn)
    made = Rows(conn)
    made.mission(tmp_path / "root")
    conn.commit()
    yield made
    conn.close()


@pytest.fixture
def settings(conf: Settings) -> Settings:
    """Files settle at once, and one lane builds."""
    changed = {"settle_seconds": 0.0, "lanes": 1, "retry_seconds": 0.01}
    return conf.model_copy(update={"products": conf.products.model_copy(update=changed)})


@pytest.fixture
def chain(rows: Rows) -> tuple[int, int]:
    """`l1` made of `l0`, day by day: their ids."""
    l0, l1 = rows.product("l0"), rows.product("l1", level=1)
    rows.code(rows.process("l0_l1", l1, [l0]))
    rows.conn.commit()
    return l0, l1


def incoming(rows: Rows) -> Path:
    """The mission's incoming folder."""
    return rows.root.parent / "root-incoming"


def days(count: int) -> list[date]:
    """So many days from DAY on."""
    return [DAY + timedelta(days=number) for number in range(count)]


def mark(rows: Rows, process: int, day: date = DAY, **columns: Any) -> int:
    """A slot that is due; its id."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    values = {"due_at": datetime.now(UTC) - timedelta(seconds=1), "reason": "NEW_INPUT", **columns}
    return rows.insert(
        "product_slot", process_id=process, day=day, start_at=start,
        stop_at=start + timedelta(days=1, microseconds=-1), **values,
    )  # fmt: skip


def process_of(rows: Rows, name: str = "l0_l1") -> int:
    """The id of a process."""
    return int(rows.ask("SELECT id FROM headrace.process WHERE name = %s", name)[0][0])


def dies(verb: Callable[[], object], modules: tuple[str, ...], at: int) -> int:
    """Do a verb in a child that is killed before the `at`-th line that it runs in these modules; how many it ran.

    With at = 0 it lives, and the number of its lines comes back.
    """
    files = tuple(f"/workers/products/{name}.py" for name in modules)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def step(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal count
            if not frame.f_code.co_filename.endswith(files):
                return None
            if event == "line":
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return step

        try:
            sys.settrace(step)
            with suppress(Exception):
                verb()
            sys.settrace(None)
            os.write(writer, str(count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return int(said or 0)


def states(sql: Sql, product: int) -> list[tuple[Any, ...]]:
    """(day, version, state) of a product's files."""
    return sql(
        "SELECT day, interface || '.' || quality || '.' || revision, state FROM headrace.product_file"
        " WHERE product_id = %s ORDER BY day, interface, quality, revision", product,
    )  # fmt: skip


# Ingest -------------------------------------------------------------------------------------------------------------


def test_no_file_is_lost_by_an_ingest_that_dies_anywhere(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """An ingest that is killed before any of its lines leaves each file to the next one, once and whole."""
    modules = ("ingesting", "placing", "store")
    ingest = INGEST.model_copy(update={"then_build": False})

    def deliver(day: date) -> None:
        (incoming(rows) / f"l0_{day:%Y%m%d}_v1.0.0.dat").write_text(f"of {day}\n")

    deliver(DAY)
    lines = dies(lambda: ingesting.ingest(ingest, settings), modules, 0)
    assert lines > 60
    points = days(15)[1:]
    for number, day in enumerate(points):
        deliver(day)
        dies(lambda: ingesting.ingest(ingest, settings), modules, lines - 6 * number)
    assert work(ingest, settings=settings) == []
    assert states(sql, chain[0]) == [(day, "1.0.0", "present") for day in days(15)]
    there = sorted((rows.root / "l0").iterdir())
    assert [path.read_text() for path in there] == [f"of {day}\n" for day in days(15)]
    assert list(incoming(rows).iterdir()) == []
    with suppress(Exception):
        sweeping.sweep(PLAN, settings)
    assert sql("SELECT count(*) FROM headrace.product_slot WHERE due_at IS NOT NULL") == [(15,)]


def test_names_of_any_bytes_come_in_and_are_built_from(rows: Rows, settings: Settings, sql: Sql, work: Work) -> None:
    """A name with newline, quotes and bytes that are not UTF-8 is taken in and reaches the code as it is."""
    odd = b"a'b\"c\n %s \xff\\x41"
    l0 = rows.product("l0", format=paths.to_text(odd) + "_{Y}{m}{d}_v{VERSION}.dat")
    l1 = rows.product("l1", level=1)
    rows.code(rows.process("l0_l1", l1, [l0]))
    rows.conn.commit()
    name = odd + b"_20270301_v1.0.0.dat"
    Path(os.fsdecode(os.fsencode(incoming(rows)) + b"/" + name)).write_text("odd\n")
    assert work(INGEST, settings=settings) == []
    assert states(sql, l0) == [(DAY, "1.0.0", "present")]
    assert (rows.root / "l1" / "l1_20270301_v1.0.0.dat").read_text() == "odd\n"


def test_a_link_to_a_file_elsewhere_is_copied_and_a_dangling_one_is_quarantined(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work, tmp_path: Path
) -> None:
    """What a link names outside the root stays there and is copied; a link to nothing is kept with its reason."""
    (tmp_path / "elsewhere").write_text("far\n")
    (incoming(rows) / "l0_20270301_v1.0.0.dat").symlink_to(tmp_path / "elsewhere")
    (incoming(rows) / "l0_20270302_v1.0.0.dat").symlink_to("nothing")
    work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    placed = rows.root / "l0" / "l0_20270301_v1.0.0.dat"
    assert (placed.read_text(), placed.is_symlink(), (tmp_path / "elsewhere").exists()) == ("far\n", False, True)
    assert sql("SELECT filename, reason, state FROM headrace.product_quarantine") == [
        ("l0_20270302_v1.0.0.dat", "dangling", "held")
    ]


@pytest.mark.parametrize(("state", "host"), [("present", "here"), ("placing", "there"), ("removed", "here")])
def test_a_copy_is_dropped_only_if_the_first_one_is_there(
    rows: Rows, settings: Settings, chain: tuple[int, int], work: Work, state: str, host: str
) -> None:
    """A file whose row is known, but which lies nowhere else, is not deleted from the incoming folder."""
    content = b"the only one\n"
    first = rows.file(chain[0], content=content, state=state, host=host)
    os.rename(rows.path(first), incoming(rows) / rows.path(first).name)
    rows.conn.commit()
    work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    there = [path for path in rows.root.parent.rglob("l0_*") if path.is_file() and path.read_bytes() == content]
    assert len(there) == 1


def test_a_link_to_a_missed_file_in_its_place_brings_it_back(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A file that was missing and is put back by hand is adopted by a link to it, and keeps its content."""
    first = rows.file(chain[0], content=b"precious\n", state="missing")
    (incoming(rows) / rows.path(first).name).symlink_to(rows.path(first))
    rows.conn.commit()
    work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    assert (rows.path(first).is_symlink(), rows.path(first).read_bytes()) == (False, b"precious\n")
    assert states(sql, chain[0]) == [(DAY, "1.0.0", "present")]


def test_a_file_that_is_replaced_after_it_was_read_does_not_come_in_under_the_old_hash(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer who replaces a file between its hashing and its move is not believed to be the first one."""
    path = incoming(rows) / "l0_20270301_v1.0.0.dat"
    path.write_text("first\n")
    begin = store.begin_placing_all

    def begin_as_it_is_replaced(conn: Any, file: Any) -> Any:
        (path.parent / ".new").write_text("second, longer\n")
        os.rename(path.parent / ".new", path)
        return begin(conn, file)

    with monkeypatch.context() as patch:
        patch.setattr(store, "begin_placing_all", begin_as_it_is_replaced)
        work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    placed = rows.root / "l0" / path.name
    assert sql("SELECT state, bytes FROM headrace.product_file") == [("present", 15)]
    assert placed.stat().st_size == 15


def test_a_quarantine_that_takes_no_file_does_not_stop_the_good_ones(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """Where a bad file cannot be moved aside it stays, with the reason, and the others are taken in."""
    folder = rows.root.parent / "root-quarantine"
    folder.rmdir()
    folder.write_text("in the way of the folder")
    (incoming(rows) / "a file of nobody").write_text("bad\n")
    (incoming(rows) / "l0_20270301_v1.0.0.dat").write_text("good\n")
    work(INGEST.model_copy(update={"then_build": False}), settings=settings)
    assert states(sql, chain[0]) == [(DAY, "1.0.0", "present")]
    assert (incoming(rows) / "a file of nobody").exists()


def test_an_ingest_that_lost_its_connection_loses_no_file(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a worker moves after its session, and so its folder, was taken from it is not lost."""
    path = incoming(rows) / "l0_20270301_v1.0.0.dat"
    path.write_text("precious\n")
    ingest = INGEST.model_copy(update={"then_build": False})
    moved = ingesting._Ingest._moved

    def moved_late(self: Any, *arguments: Any) -> bool:
        monkeypatch.setattr(ingesting._Ingest, "_moved", moved)
        sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'headrace products ingest%%' AND datname = current_database()"
        )
        # The tending finds the row, not the file in its place, and the folder free: it takes the row back.
        with room.connection(settings, purpose="other") as conn:
            tending.settle_all(conn, settings)
        return moved(self, *arguments)

    monkeypatch.setattr(ingesting._Ingest, "_moved", moved_late)
    with suppress(Exception):
        ingesting.ingest(ingest, settings)
    work(ingest, settings=settings)
    assert states(sql, chain[0]) == [(DAY, "1.0.0", "present")]


# Builds -------------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_anywhere_in_a_build_leaves_nothing_that_a_person_must_clear(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """Whatever line a worker is killed before, its output is there once in the end, whole, as version 1.0.0."""
    modules = ("building", "publishing", "placing", "build_store", "store")
    process = process_of(rows)

    def begin(day: date) -> None:
        rows.file(chain[0], day, content=f"of {day}\n".encode())
        mark(rows, process, day)
        rows.conn.commit()

    begin(DAY)
    lines = dies(lambda: building.build(BUILD, settings), modules, 0)
    assert lines > 100
    for number, day in enumerate(days(12)[1:]):
        begin(day)
        dies(lambda: building.build(BUILD, settings), modules, lines - 16 * number)
    work(TEND, PLAN, settings=settings)
    assert states(sql, chain[1]) == [(day, "1.0.0", "present") for day in days(12)]
    assert sql("SELECT count(*) FROM headrace.product_build WHERE state = 'running'") == [(0,)]
    assert sql("SELECT count(*) FROM headrace.product_slot WHERE due_at IS NOT NULL OR has_given_up") == [(0,)]
    assert sql("SELECT count(*) FROM headrace.product_link") == [(12,)]
    contents = [path.read_text() for path in sorted((rows.root / "l1").iterdir())]
    assert contents == [f"of {day}\n" for day in days(12)]


def test_a_failing_code_is_tried_as_often_as_its_process_says(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A code that fails is run `attempts` times on the same inputs, whatever the sweeps in between say."""
    rows.code(process_of(rows), "1.0.1", script="#!/bin/sh\nexit 3\n")
    rows.ask("UPDATE headrace.code SET state = 'retired' WHERE id = (SELECT min(id) FROM headrace.code)")
    rows.file(chain[0])
    rows.conn.commit()
    for _ in range(6):
        with suppress(Exception):
            sweeping.sweep(PLAN, settings)
        sql("UPDATE headrace.product_slot SET due_at = clock_timestamp() WHERE due_at IS NOT NULL")
        with suppress(Exception):
            building.build(BUILD, settings)
    assert sql("SELECT count(*) FROM headrace.product_build") == [(3,)]
    assert sql("SELECT due_at, has_given_up FROM headrace.product_slot") == [(None, True)]


def test_a_force_is_applied_once_though_a_sweep_comes_in_between(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced build that runs while the mission is looked over is not forced again afterwards."""
    rows.file(chain[0])
    rows.conn.commit()
    work(PLAN, settings=settings)
    sql(
        "UPDATE headrace.product_slot SET force = 'interface', forced_at = clock_timestamp(),"
        " due_at = clock_timestamp(),"
        " updated_at = clock_timestamp()"
    )
    end = build_store.end_build
    sweeps = iter(range(3))

    def end_after_a_sweep(*arguments: Any, **facts: Any) -> bool:
        # The code has run for a minute, and the sweep came; three times, then we let it be.
        if next(sweeps, None) is not None:
            with suppress(Exception):
                sweeping.sweep(PLAN, settings)
        return end(*arguments, **facts)

    monkeypatch.setattr(build_store, "end_build", end_after_a_sweep)
    work(BUILD, settings=settings)
    assert [version for _, version, _ in states(sql, chain[1])] == ["1.0.0", "2.0.0"]


def test_what_needs_two_outputs_is_due_when_both_end_at_the_same_time(
    rows: Rows, settings: Settings, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two builds that end at once, one sees that the output made of both can be built."""
    l0, left, right, both = (rows.product(name, level=level) for name, level in zip("abcd", (0, 1, 1, 2), strict=True))
    first, second = rows.process("left", left, [l0], rank=1), rows.process("right", right, [l0], rank=1)
    last = rows.process("both", both, [left, right], rank=2)
    for process in (first, second, last):
        rows.code(process)
    rows.file(l0)
    mark(rows, first)
    mark(rows, second)
    rows.conn.commit()
    two = settings.model_copy(update={"products": settings.products.model_copy(update={"lanes": 2})})
    together, after = threading.Barrier(2), planning.due_after

    def after_both(conn: Any, *arguments: Any, **more: Any) -> Any:
        found = after(conn, *arguments, **more)
        with suppress(threading.BrokenBarrierError):
            together.wait(1)  # the other end has been asked, too, before one of them commits
        return found

    def lane(number: int) -> None:
        with suppress(Exception):
            building.build(BuildProducts(host="here", lane=number), two.model_copy(update={
                "products": two.products.model_copy(update={"slice_seconds": 1e-6})}))  # fmt: skip

    monkeypatch.setattr(planning, "due_after", after_both)
    threads = [threading.Thread(target=lane, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sql("SELECT count(*) FROM headrace.product_file WHERE product_id = ANY(%s)", [left, right]) == [(2,)]
    assert sql("SELECT due_at IS NOT NULL FROM headrace.product_slot WHERE process_id = %s", last) == [(True,)]


def test_a_build_that_a_living_worker_lost_is_tended(rows: Rows, settings: Settings, chain: tuple[int, int]) -> None:
    """A build in no lane and without processes is asked about even if the process that began it lives."""
    slot = mark(rows, process_of(rows))
    rows.build(
        process_of(rows), state="running", slot_id=slot, worker=ownership.own(), lane=1, token="1-ab", finished_at=None,
        started_at=datetime.now(UTC) - timedelta(hours=1),
    )  # fmt: skip
    rows.conn.commit()
    with room.connection(settings, purpose="test") as conn:
        assert [tending._is_dead(conn, settings, one) for one in build_store.running_builds(conn)] == [True]
        assert tending.needs(conn, ["here"]) == ["here"]


def test_a_lane_whose_time_is_over_goes_on_in_another_message(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """With one lane, what is due beyond a message's time is built by the next message, without waiting for a tick."""
    for day in days(3):
        rows.file(chain[0], day)
    rows.conn.commit()
    short = settings.products.model_copy(update={"slice_seconds": 1e-6})
    work(PLAN, settings=settings.model_copy(update={"products": short}))
    assert states(sql, chain[1]) == [(day, "1.0.0", "present") for day in days(3)]


def test_an_output_without_a_place_stops_no_other(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """An output whose folder asks for a field that nothing gives fails; what comes after it is built."""
    bad = rows.product("bad", level=1, folder="bad/{ORBIT}")
    rows.code(rows.process("l0_bad", bad, [chain[0]], priority=5, attempts=1))
    rows.file(chain[0])
    rows.conn.commit()
    work(PLAN, settings=settings)
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "present")]
    assert sql("SELECT has_given_up FROM headrace.product_slot WHERE reason IS NOT NULL AND failures > 0") == [(True,)]


def test_a_build_that_is_finished_for_a_dead_worker_wakes_what_follows(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql
) -> None:
    """When tending finds an output in its place and ends its build, what is built from it is due."""
    l2 = rows.product("l2", level=2)
    rows.code(rows.process("l1_l2", l2, [chain[1]], rank=1))
    parent = rows.file(chain[0])
    slot = mark(rows, process_of(rows))
    build = rows.build(
        process_of(rows), state="running", slot_id=slot, lane=1, token="1-ab",
        worker=f"{ownership._boot()}:{ownership._namespace()}:1:1", inputs=[parent], code=1, finished_at=None,
    )  # fmt: skip
    rows.file(chain[1], inputs=[parent], code=1, state="placing", build=build)
    rows.conn.commit()
    with room.connection(settings, purpose="test") as conn:
        assert tending.settle_all(conn, settings)["finished"] == 1
    asked = "SELECT p.name, due_at IS NOT NULL FROM headrace.product_slot JOIN headrace.process p ON p.id = process_id"
    assert sql(asked + " ORDER BY 1") == [("l0_l1", False), ("l1_l2", True)]


@pytest.mark.parametrize(("interface", "force"), [(2, None), (1, "interface")])
def test_an_output_that_is_rebuilt_for_being_lost_has_the_version_of_its_code(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work, interface: int, force: str | None
) -> None:
    """A lost output whose code has a new interface, or that is forced, and that comes out different, is 2.0.0."""
    parent = rows.file(chain[0], content=b"now\n")
    rows.file(chain[1], content=None, sha256="0" * 64, inputs=[parent], code=1, state="missing")
    sql("UPDATE headrace.code SET state = 'retired'")
    rows.code(process_of(rows), "1.1.0", output_interface=interface)
    mark(rows, process_of(rows), force=force)
    rows.conn.commit()
    work(BUILD, settings=settings)
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "missing"), (DAY, "2.0.0", "present")]


@pytest.mark.parametrize("script", [COPY, "#!/bin/sh\nexit 1\n"])
def test_a_force_that_comes_during_a_build_is_served_by_the_next_one(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Asked while a build runs that does not know of it, a force outlives that build, even its failure, unanswered."""
    rows.code(process_of(rows), "1.0.1", filename="other", script=script)
    sql("UPDATE headrace.code SET state = 'retired' WHERE filename <> 'other'")
    sql("UPDATE headrace.process SET attempts = 1")
    rows.file(chain[0])
    slot = mark(rows, process_of(rows))
    rows.conn.commit()
    end = build_store.end_build

    def end_after_a_request(*arguments: Any, **facts: Any) -> bool:
        sql(
            "WITH asked AS (UPDATE headrace.product_slot SET force = 'quality', forced_at = clock_timestamp(),"
            " due_at = clock_timestamp(),"
            " updated_at = clock_timestamp() RETURNING id), request AS (INSERT INTO headrace.product_request"
            " (mission_id, kind, what, requested_by) VALUES (%s, 'reprocess', '{}', 'me') RETURNING id)"
            " INSERT INTO headrace.product_request_slot (request_id, slot_id)"
            " SELECT request.id, asked.id FROM asked, request",
            rows.mission_id,
        )  # fmt: skip
        return end(*arguments, **facts)

    monkeypatch.setattr(build_store, "end_build", end_after_a_request)
    one = settings.model_copy(update={"products": settings.products.model_copy(update={"slice_seconds": 1e-6})})
    with suppress(Exception):
        building.build(BUILD, one)
    assert sql("SELECT force, due_at IS NOT NULL FROM headrace.product_slot WHERE id = %s", slot) == [("quality", True)]
    assert sql("SELECT done_at FROM headrace.product_request_slot") == [(None,)]


def test_the_sweep_of_scratch_folders_leaves_what_is_not_ours(rows: Rows, settings: Settings, tmp_path: Path) -> None:
    """In a scratch folder that others use as well, only folders with names of builds are removed."""
    for name in ("theses", "17-0123456789abcdef"):
        folder = tmp_path / "scratch" / name
        folder.mkdir(parents=True)
        (folder / "chapter").write_text("years of work")
        os.utime(folder, (1, 1))
    rules = settings.products.model_copy(update={"scratch_dir": tmp_path / "scratch"})
    with room.connection(settings, purpose="test") as conn:
        tending.settle_all(conn, settings.model_copy(update={"products": rules}))
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["theses"]


def test_equal_bytes_are_put_where_the_file_is_gone(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A rebuild that gives the bytes of a file that was deleted unnoticed brings that file back."""
    parent = rows.file(chain[0], content=b"same\n")
    output = rows.file(chain[1], content=b"same\n", inputs=[parent], code=1)
    rows.path(output).unlink()
    sql("UPDATE headrace.code SET state = 'retired'")
    rows.code(process_of(rows), "1.0.1")
    rows.conn.commit()
    work(PLAN, settings=settings)
    assert sql("SELECT state FROM headrace.product_build ORDER BY id DESC LIMIT 1") == [("unchanged",)]
    assert rows.path(output).read_bytes() == b"same\n"


def test_an_output_that_is_settled_late_has_its_lineage_and_its_force_is_over(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A worker that ended its build as lost when its output lay in its place has built it: once, with its parents."""
    parent = rows.file(chain[0])
    slot = mark(rows, process_of(rows), force="interface")
    build = rows.build(
        process_of(rows), state="lost", slot_id=slot, inputs=[parent], code=1, token="1-ab", worker=ownership.own(),
        output_name="l1_20270301_v2.0.0.dat",
    )  # fmt: skip
    rows.file(chain[1], version="2.0.0", inputs=[parent], code=1, state="placing", build=build, is_forced=True)
    rows.conn.commit()
    with room.connection(settings, purpose="test") as conn:
        tending.settle_all(conn, settings)
    work(BUILD, settings=settings)
    assert states(sql, chain[1]) == [(DAY, "2.0.0", "present")]
    assert sql("SELECT parent FROM headrace.product_link") == [(parent,)]


def test_a_half_placed_output_of_a_silent_host_is_settled_by_another(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """What a host left half-placed before it fell silent does not take the version of its output for ever."""
    parent = rows.file(chain[0])
    build = rows.build(process_of(rows), state="lost", inputs=[parent], code=1, token="1-ab", host="there")
    rows.file(
        chain[1], inputs=[parent], code=1, state="placing", build=build, content=None, sha256="0" * 64,
        host="there", registered_at=datetime.now(UTC) - timedelta(hours=1),
    )  # fmt: skip
    mark(rows, process_of(rows))
    rows.conn.commit()
    sql(
        "INSERT INTO headrace.host (name, version, last_seen) VALUES ('there', '1',"
        " clock_timestamp() - interval '1 hour')"
    )
    with room.connection(settings, purpose="test") as conn:
        assert tending.needs(conn, ["here"]) == ["here"]
    work(TEND, BUILD, settings=settings)
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "present")]


def test_a_due_output_waits_for_an_input_that_is_tried_again(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """An output that was marked before its input became stale is built once, from the new input."""
    l0, l1 = chain
    l2 = rows.product("l2", level=2)
    last = rows.process("l2", l2, [l1, l0], rank=1)
    rows.code(last)
    old = rows.file(l0)
    rows.file(l1, inputs=[old], code=1)
    rows.file(l0, version="1.1.0", content=b"newer\n")
    mark(rows, last)
    mark(rows, process_of(rows), due_at=datetime.now(UTC) + timedelta(hours=1))
    rows.conn.commit()
    work(BUILD, settings=settings)
    sql("UPDATE headrace.product_slot SET due_at = clock_timestamp() WHERE process_id <> %s", last)
    work(BUILD, PLAN, settings=settings)
    assert states(sql, l2) == [(DAY, "1.0.0", "present")]


def test_an_attempt_that_another_lane_has_put_off_is_not_begun(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that saw a slot due before another one failed at it leaves it until the next attempt is due."""
    rows.file(chain[0])
    mark(rows, process_of(rows))
    rows.conn.commit()
    due = build_store.due

    def due_before_another_failed(*arguments: Any, **more: Any) -> Any:
        found = due(*arguments, **more)
        if more["limit"] > 1:
            sql("UPDATE headrace.product_slot SET failures = 1, due_at = clock_timestamp() + interval '1 hour'")
        return found

    monkeypatch.setattr(build_store, "due", due_before_another_failed)
    with suppress(Exception):
        building.build(BUILD, settings)
    assert sql("SELECT count(*) FROM headrace.product_build") == [(0,)]


def test_what_is_made_of_a_weekly_product_is_made_for_each_of_its_days(
    rows: Rows, settings: Settings, sql: Sql, work: Work
) -> None:
    """An output covers the period of its slot: DAY is a Monday, its week ends six days later."""
    l0, weekly = rows.product("l0"), rows.product("weekly", level=1)
    rows.code(rows.process("weeks", weekly, [l0], timebase="WEEKLY"))
    rows.file(l0)
    rows.conn.commit()
    work(PLAN, settings=settings)
    assert sql("SELECT start_at::date, stop_at::date FROM headrace.product_file WHERE product_id = %s", weekly) == [
        (DAY, DAY + timedelta(days=6))
    ]


def test_forgetting_asks_for_a_plan_at_once(rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql) -> None:
    """After files were forgotten the mission is looked over by the next tick, not a sweep later."""
    parent = rows.file(chain[0])
    output = rows.file(chain[1], inputs=[parent], code=1)
    rows.conn.commit()
    sql("UPDATE headrace.mission SET planned_at = clock_timestamp() - interval '2 minutes', plan_asked_at = NULL")
    with room.connection(settings, purpose="test") as conn:
        forgetting.forget(conn, [output])
    assert PLAN in looking.due(settings, ["here"])


def test_a_process_that_is_loaded_while_a_lane_builds_is_known_to_it(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes due of a process that a mission got a moment ago is built, not taken for up to date."""
    rows.file(chain[0])
    mark(rows, process_of(rows))
    rows.conn.commit()
    end = build_store.end_build

    def end_after_a_load(*arguments: Any, **facts: Any) -> bool:
        monkeypatch.setattr(build_store, "end_build", end)
        new = rows.product("new", level=1)
        process = rows.process("l0_new", new, [chain[0]])
        rows.code(process)
        mark(rows, process)
        rows.ask("UPDATE headrace.mission SET loaded_at = clock_timestamp()")
        rows.conn.commit()
        return end(*arguments, **facts)

    monkeypatch.setattr(build_store, "end_build", end_after_a_load)
    building.build(BUILD, settings)
    assert sql("SELECT count(*) FROM headrace.product_file WHERE state = 'present'") == [(3,)]


def test_two_lanes_build_one_output_once(rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql) -> None:
    """Two workers that find the same slot due at the same time make one build and one file of it."""
    rows.file(chain[0])
    mark(rows, process_of(rows))
    rows.conn.commit()
    start = threading.Barrier(2)

    def lane(number: int) -> None:
        start.wait()
        with suppress(Exception):
            building.build(BuildProducts(host="here", lane=number), settings)

    threads = [threading.Thread(target=lane, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sql("SELECT state FROM headrace.product_build") == [("succeeded",)]
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "present")]


def test_a_build_whose_session_ends_is_built_again_once(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A server that ends a build's session while its code runs leaves no claim behind, and no second output."""
    script = f'#!/bin/sh\nif mkdir {rows.root}/first 2>/dev/null; then sleep 0.5; fi\ncat "$1" > "$2"\n'
    rows.code(process_of(rows), "1.0.1", filename="slow", script=script)
    sql("UPDATE headrace.code SET state = 'retired' WHERE filename <> 'slow'")
    rows.file(chain[0])
    mark(rows, process_of(rows))
    rows.conn.commit()
    caught: list[BaseException] = []

    def lane() -> None:
        try:
            building.build(BUILD, settings)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=lane)
    thread.start()
    while not (rows.root / "first").exists():
        assert thread.is_alive()
    sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name LIKE 'headrace products lane%%' AND datname = current_database()"
    )
    thread.join()
    assert len(caught) == 1
    work(BUILD, settings=settings)
    assert sql("SELECT state FROM headrace.product_build ORDER BY id") == [("lost",), ("succeeded",)]
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "present")]


def test_of_two_versions_that_come_at_once_the_higher_one_is_newest(
    rows: Rows, chain: tuple[int, int], dsn: str, sql: Sql
) -> None:
    """Two transactions that make versions of one file present take turns: in the end the higher one is the newest."""
    low, high = (rows.file(chain[0], version=version, state="placing") for version in ("1.0.0", "1.1.0"))
    rows.conn.commit()
    statement = "UPDATE headrace.product_file SET state = 'present' WHERE id = %s"
    rows.ask(statement, high)
    other = psycopg2.connect(dsn)

    def write() -> None:
        with other.cursor() as cursor:
            cursor.execute(statement, (low,))
        other.commit()

    thread = threading.Thread(target=write)
    thread.start()
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while sql(waits) == [(0,)]:
        assert thread.is_alive()
    rows.conn.commit()
    thread.join()
    other.close()
    assert sql("SELECT id FROM headrace.product_file WHERE is_newest") == [(high,)]


def test_a_lane_of_a_full_host_wakes_no_other(rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql) -> None:
    """While another build has all that the host has, a lane that can begin nothing sends no message."""
    rows.file(chain[0])
    mark(rows, process_of(rows))
    rows.build(process_of(rows), state="running", worker=ownership.own(), lane=3, token="1-ab", cpu=4, finished_at=None)
    rows.conn.commit()
    full = settings.products.model_copy(update={"lanes": 3, "cpus": 4})
    assert building.build(BUILD, settings.model_copy(update={"products": full})) == []


def test_what_the_definition_did_not_allow_is_built_once_it_does(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """An output given up for a wrong argument is built by itself after a load that corrects it."""
    rows.file(chain[0])
    rows.conn.commit()
    sql("UPDATE headrace.code SET arguments = ARRAY['{NOBODY}']")
    work(PLAN, settings=settings)
    assert sql("SELECT kind, has_given_up FROM headrace.product_slot") == [("definition", True)]
    sql("UPDATE headrace.code SET arguments = '{}'")
    sql("UPDATE headrace.mission SET loaded_at = clock_timestamp()")
    work(PLAN, settings=settings)
    assert states(sql, chain[1]) == [(DAY, "1.0.0", "present")]


def test_nobody_writes_to_an_output_after_it_was_published(
    rows: Rows, settings: Settings, chain: tuple[int, int], sql: Sql, work: Work
) -> None:
    """A code that leaves a process behind in a session of its own has it ended before its output is read."""
    late = f'exec 3>>"$0"; mkdir {rows.root}/open; sleep 0.7; echo late >&3; mkdir {rows.root}/late'
    script = f"""#!/bin/sh
cat "$1" > "$2"
setsid sh -c '{late}' "$2" > /dev/null 2>&1 &
while [ ! -d {rows.root}/open ]; do sleep 0.01; done
"""
    rows.code(process_of(rows), "1.0.1", filename="daemon", script=script)
    sql("UPDATE headrace.code SET state = 'retired' WHERE filename <> 'daemon'")
    rows.file(chain[0], content=b"early\n")
    rows.conn.commit()
    work(PLAN, settings=settings)
    limit = time.monotonic() + 1.2
    while not (rows.root / "late").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert (rows.root / "l1" / "l1_20270301_v1.0.0.dat").read_text() == "early\n"
