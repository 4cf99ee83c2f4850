"""Loading missions: what changes is said and done, a second load changes nothing, and what is held waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure, SettingsError
from workers.products import loading
from workers.products.definition import Code, Input, Inspector, Mission, Orbit, Process, Product
from workers.products.versions import Version
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]

CODE = Code(
    version=Version(1, 0, 0), filename="l0l1.sh", folder="bin", valid_from=date(2000, 1, 1),
    valid_until=date(2050, 12, 31), arguments=("-q", "a b"), environment={"A": "b"}, timeout_seconds=90.5,
    memory_bytes=10**9, output_bytes=2 * 10**9, cpu=2, written=date(2020, 1, 1), description="to L1",
)  # fmt: skip
NEXT = CODE.model_copy(update={"version": Version(1, 1, 0)})
OFF = {"is_active": False}
STATES = """
    SELECT c.interface || '.' || c.quality || '.' || c.revision, c.state, extract(year FROM c.valid_until)::integer
      FROM headrace.code c JOIN headrace.process p ON p.id = c.process_id
     WHERE p.name = 'l0_l1' ORDER BY c.id
"""


@pytest.fixture
def conn(conf: Settings) -> Iterator[Connection]:
    """A session of the database that holds products."""
    with database.connection(conf.target(conf.products.database), purpose="tests") as opened:
        yield opened


def product(name: str, instrument: str = "cam", **more: Any) -> Product:
    """A product of satellite a."""
    facts: dict[str, Any] = {"level": 0, "format": name + "_{DATE}_v{VERSION}.dat", "folder": "{Y}"}
    return Product(name=name, satellite="a", instrument=instrument, **{**facts, **more})


def process(*codes: Code, **more: Any) -> Process:
    """The process l0_l1."""
    facts: dict[str, Any] = {"output": "l1", "timebase": "FILE", "inputs": (Input(products=("l0",)),)}
    return Process(name="l0_l1", codes=codes or (CODE,), **{**facts, **more})


def mission(*processes: Process, **more: Any) -> Mission:
    """A mission with everything that a definition can have."""
    root = Path("/data/demo")
    facts: dict[str, Any] = {
        "satellites": {"a": ("cam", "mag"), "b": ()},
        "products": (
            product("l0", min_bytes=10, trailer=b"\x00\xff", marker=".done", cut_off=True, description="raw",
                    inspector=Inspector(file="any.py", arguments={"tag": "007"}, version=Version(2, 0, 1))),
            product("l1", level=1.5), product("l2", covers="day"), product("att", "mag"), product("quick", "mag"),
        ),
        "processes": (*(processes or (process(),)), Process(
            name="orbits", output="l2", timebase="ORBIT", satellite="a", neighbours=False, on_code_change="hold",
            attempts=5, priority=-3, extra_params=("--calib", "{ROOTDIR}/c d"), codes=(CODE,),
            inputs=(Input(products=("l1",), yesterday=1, tomorrow=2),
                    Input(products=("att", "quick"), is_required=False)),
        ), Process(name="plot", output=None, timebase="RUN", inputs=(Input(products=("l2",)),))),
        "orbits": tuple(
            Orbit(satellite="a", number=number, start_at=datetime(2020, 1, 1, number, tzinfo=UTC),
                  stop_at=datetime(2020, 1, 1, number + 1, tzinfo=UTC)) for number in range(3)
        ),
    }  # fmt: skip
    facts |= {"hosts": ("obs1",), "inspectors": root / "i\udcff", "quarantine": Path("/q")}
    return Mission(name="DEMO", root=root, incoming=root / "in", codes=root, **{**facts, **more})


def load(conn: Connection, wanted: Mission, **options: Any) -> list[str]:
    """Load and commit; the changes as people read them."""
    changes = loading.load(conn, wanted, by="tests", **options)
    conn.commit()
    return [str(change) for change in changes]


def test_a_loaded_mission_reads_back_as_it_was(conn: Connection) -> None:
    """Nothing of a definition is lost in the tables, and each of its parts is said to be added."""
    wanted = mission()
    assert load(conn, wanted) == [
        "add mission DEMO: root /data/demo", "add instrument a/cam", "add instrument a/mag", "add product l0",
        "add product l1", "add product l2", "add product att", "add product quick", "add process l0_l1",
        "add code l0_l1 1.0.0", "add process orbits", "add code orbits 1.0.0", "add process plot",
        "add orbits of a: 3 new",
    ]  # fmt: skip
    assert loading.read_back(conn, "DEMO") == wanted


def test_a_second_load_changes_nothing(conn: Connection, sql: Ask) -> None:
    """A load of the same file writes not a row, also from another host."""
    assert load(conn, mission(hosts=()), host="here")
    before = sql("SELECT m.*, m.xmin FROM headrace.mission m"), sql("SELECT c.*, c.xmin FROM headrace.code c")
    assert load(conn, mission(hosts=()), host="there") == []
    assert (sql("SELECT m.*, m.xmin FROM headrace.mission m"), sql("SELECT c.*, c.xmin FROM headrace.code c")) == before
    assert loading.read_back(conn, "DEMO").hosts == ("here",)


def test_ranks_follow_the_graph(conn: Connection, sql: Ask) -> None:
    """What reads raw products has rank 0, and what reads its output comes after it, also when it was there before."""
    later = mission().processes[1:]
    load(conn, mission().model_copy(update={"processes": later}))
    ranks = "SELECT name, rank FROM headrace.process ORDER BY rank"
    assert sql(ranks) == [("orbits", 0), ("plot", 1)]
    load(conn, mission())
    assert sql(ranks) == [("l0_l1", 0), ("orbits", 1), ("plot", 2)]


def test_a_dry_run_says_it_and_writes_nothing(conn: Connection) -> None:
    """The changes are those of the load that follows."""
    said = load(conn, mission(), dry_run=True)
    with pytest.raises(PermanentFailure, match="no mission is called 'DEMO'"):
        loading.read_back(conn, "DEMO")
    assert load(conn, mission()) == said


def test_a_change_says_from_what_to_what(conn: Connection) -> None:
    """Each thing that changes is one line; where files have the old name or place, that is said."""
    load(conn, mission())
    changed = mission(
        process(CODE.model_copy(update={"timeout_seconds": None}), priority=7,
                inputs=(Input(products=("l0",), is_required=False),)),
        quarantine=Path("/data/demo/bad"), cut_off=False,
        products=(product("l0", folder="{Y}/{m}"), *mission().products[1:]), orbits=mission().orbits[1:],
    )  # fmt: skip
    said = load(conn, changed)
    assert said == [
        "change mission DEMO: quarantine: /q -> /data/demo/bad; cut_off: true -> false",
        "change product l0: folder: '{Y}' -> '{Y}/{m}' (files that are there keep their places); description: 'raw' -> "
        "''; min_bytes: 10 -> 0; trailer: b'\\x00\\xff' -> none; marker: '.done' -> none; "
        "inspector: {'file': 'any.py', 'arguments': {'tag': '007'}, 'version': '2.0.1'} -> none; cut_off: true -> none",
        "change process l0_l1: inputs: [l0] -> [{'product': 'l0', 'optional': True}]; priority: 0 -> 7",
        "change code l0_l1 1.0.0: timeout: 90.5 -> none",
        "change orbits of a: 1 removed",
    ]
    assert loading.read_back(conn, "DEMO") == changed
    assert load(conn, changed) == []


def test_what_vanishes_is_retired_and_may_come_back(conn: Connection, sql: Ask) -> None:
    """Rows of things that the file has no more stay, inactive, and are active again when they reappear."""
    load(conn, mission())
    ids = sql("SELECT id FROM headrace.product ORDER BY id")
    less = mission().model_copy(update={"products": mission().products[:2], "processes": (process(),), "orbits": ()})
    assert load(conn, less) == [
        "retire product l2", "retire product att", "retire product quick", "retire process orbits",
        "retire process plot", "retire orbits of a: 3 removed",
    ]  # fmt: skip
    assert loading.read_back(conn, "DEMO") == less
    assert load(conn, less) == []
    assert "change product att: was retired, is active" in load(conn, mission())
    assert sql("SELECT id FROM headrace.product ORDER BY id") == ids
    assert loading.read_back(conn, "DEMO") == mission()


def test_a_new_code_replaces_the_old_one(conn: Connection, sql: Ask) -> None:
    """With rebuild, the default, a version that the file has no more is retired, and comes back if the file says so."""
    load(conn, mission())
    assert load(conn, mission(process(NEXT))) == ["add code l0_l1 1.1.0", "retire code l0_l1 1.0.0"]
    assert load(conn, mission(process(CODE, NEXT.model_copy(update=OFF)))) == [
        "change code l0_l1 1.0.0: was retired, is active",
        "retire code l0_l1 1.1.0",
    ]
    assert sql(STATES) == [("1.0.0", "active", 2050), ("1.1.0", "retired", 2050)]


@pytest.mark.parametrize("older", [(), (CODE.model_copy(update=OFF),)], ids=["left out", "inactive"])
def test_a_held_code_waits_for_a_person(conn: Connection, sql: Ask, older: tuple[Code, ...]) -> None:
    """With hold the old version stays active until the new one is approved, by whom is kept."""
    load(conn, mission(process(on_code_change="hold")))
    wanted = mission(process(*older, NEXT, on_code_change="hold"))
    assert load(conn, wanted) == [
        "add code l0_l1 1.1.0: held until `headrace products approve l0_l1 1.1.0`; 1.0.0 stays active"
    ]
    assert load(conn, wanted) == []
    assert sql(STATES) == [("1.0.0", "active", 2050), ("1.1.0", "held", 2050)]
    assert loading.read_back(conn, "DEMO") == wanted
    said = loading.approve(conn, "l0_l1", Version(1, 1, 0), "ada")
    conn.commit()
    assert {str(one) for one in said} == {"change code l0_l1 1.1.0: was held, is active", "retire code l0_l1 1.0.0"}
    assert sql(STATES) == [("1.0.0", "retired", 2050), ("1.1.0", "active", 2050)]
    assert sql("SELECT approved_by, approved_at IS NOT NULL FROM headrace.code WHERE quality = 1") == [("ada", True)]
    assert load(conn, wanted) == []


def test_days_that_go_to_a_held_code_stay_with_the_old_one(conn: Connection, sql: Ask) -> None:
    """A file that ends the old version where the held one begins leaves no day without a code meanwhile."""
    load(conn, mission(process(on_code_change="hold")))
    ends = CODE.model_copy(update={"valid_until": date(2019, 12, 31)})
    begins = NEXT.model_copy(update={"valid_from": date(2020, 1, 1)})
    last = NEXT.model_copy(update={"version": Version(1, 2, 0), "valid_from": date(2021, 1, 1)})
    begins = begins.model_copy(update={"valid_until": date(2020, 12, 31)})
    wanted = mission(process(ends, begins, last, on_code_change="hold"))
    load(conn, wanted)
    assert sql(STATES) == [
        ("1.0.0", "active", 2050),
        ("1.1.0", "held", 2020),
        ("1.2.0", "held", 2050),
    ]
    loading.approve(conn, "l0_l1", Version(1, 1, 0), "ada")
    conn.commit()
    assert sql(STATES) == [
        ("1.0.0", "active", 2019),
        ("1.1.0", "active", 2020),
        ("1.2.0", "held", 2050),
    ]


def test_a_code_that_replaces_nothing_is_not_held(conn: Connection, sql: Ask) -> None:
    """The first code, and one for days that no active one has, need nobody's approval."""
    early = CODE.model_copy(update={"valid_until": date(2019, 12, 31)})
    late = NEXT.model_copy(update={"valid_from": date(2020, 1, 1)})
    load(conn, mission(process(early, on_code_change="hold")))
    load(conn, mission(process(early, late, on_code_change="hold")))
    assert sql(STATES) == [("1.0.0", "active", 2019), ("1.1.0", "active", 2050)]


def test_rebuild_lets_held_codes_go(conn: Connection, sql: Ask) -> None:
    """A process that does not hold any more uses what it held."""
    load(conn, mission(process(on_code_change="hold")))
    load(conn, mission(process(NEXT, on_code_change="hold")))
    load(conn, mission(process(NEXT)))
    assert [row[:2] for row in sql(STATES)] == [("1.0.0", "retired"), ("1.1.0", "active")]


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("l0_l2", Version(1, 0, 0), "no process is called 'l0_l2'"),
        ("l0_l1", Version(1, 0, 0), "code l0_l1 1.0.0 is active, not held; held: none"),
        ("l0_l1", Version(3, 0, 0), "code l0_l1 3.0.0 is not there"),
    ],
)
def test_only_what_is_held_is_approved(conn: Connection, name: str, version: Version, said: str) -> None:
    """A person who approves something else is told what there is."""
    load(conn, mission())
    with pytest.raises(PermanentFailure, match=said):
        loading.approve(conn, name, version, "ada")


def test_approval_names_the_mission_where_several_have_the_process(conn: Connection) -> None:
    """Process names are unique in a mission only."""
    load(conn, mission())
    load(conn, mission(process(on_code_change="hold")).model_copy(update={"name": "OTHER"}))
    load(conn, mission(process(NEXT, on_code_change="hold")).model_copy(update={"name": "OTHER"}))
    with pytest.raises(PermanentFailure, match="several missions have a process 'l0_l1': DEMO, OTHER"):
        loading.approve(conn, "l0_l1", Version(1, 1, 0), "ada")
    assert loading.approve(conn, "l0_l1", Version(1, 1, 0), "ada", mission="OTHER")


def test_a_mission_that_cannot_work_leaves_the_tables_alone(conn: Connection) -> None:
    """A cycle is refused before anything is written."""
    load(conn, mission())
    back = Process(name="back", output="l0", timebase="FILE", inputs=(Input(products=("l1",)),), codes=(CODE,))
    with pytest.raises(SettingsError, match="go round in a circle"):
        loading.load(conn, mission(process(), back), by="tests")
    conn.commit()
    assert loading.read_back(conn, "DEMO") == mission()


def test_a_part_of_a_mission_leaves_other_instruments_alone(conn: Connection) -> None:
    """A file of one instrument retires what it has no more itself, and nothing that other files brought."""
    facts = {"hosts": ("obs1",), "orbits": (), "is_part": True, "is_legacy": True, "cut_off": False}
    cam = mission().model_copy(update=facts | {
        "satellites": {"a": ("cam",)}, "products": (product("l0"), product("l1")), "processes": (process(),),
    })  # fmt: skip
    mag = mission().model_copy(update=facts | {
        "satellites": {"a": ("mag",)}, "products": (product("att", "mag"),), "processes": (),
    })  # fmt: skip
    load(conn, cam)
    assert load(conn, mag) == ["add instrument a/mag", "add product att"]
    assert load(conn, cam) == []
    less = cam.model_copy(update={"products": (product("l0"),), "processes": ()})
    assert load(conn, less) == ["retire product l1", "retire process l0_l1"]
    whole = loading.read_back(conn, "DEMO")
    assert {one.name for one in whole.products} == {"l0", "att"}
    assert whole.satellites == {"a": ("cam", "mag")}


def test_two_loads_at_once_take_turns(conn: Connection, conf: Settings) -> None:
    """Of two who load the same new mission one adds everything, and the other finds nothing to do."""
    changes: list[list[str]] = []
    ready = threading.Barrier(2)

    def one() -> None:
        with database.connection(conf.target(), purpose="tests") as own:
            ready.wait()
            changes.append(load(own, mission()))
        database.close_all()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, changes)) == [0, 14]
    assert loading.read_back(conn, "DEMO") == mission()


def test_the_kind_of_a_file_is_seen_in_it(tmp_path: Path) -> None:
    """A file that begins with a section is dbprocessing's, whatever it is called; all others are ours."""
    (tmp_path / "mission").write_text("# by hand\n\n[mission]\nmission_name = DEMO\n")
    with pytest.raises(SettingsError, match=r"the section \[satellite\] is missing"):
        loading.read_mission(tmp_path / "mission")
    (tmp_path / "mission").write_text("mission: DEMO\nroot: data\n")
    with pytest.raises(SettingsError, match="'data' is not absolute"):
        loading.read_mission(tmp_path / "mission")
