"""What dbprocessing's users know: which outputs a file leads to, from what, in which version; where ours differs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.products.conftest import Ask, Scene
from workers.products.versions import Version, bump_of, output_version, parse

Days = dict[str, str]


def deliver(scene: Scene, *words: str) -> None:
    """Deliver files of L0, each `MM-DD x.y.z`, at once, and settle."""
    for word in words:
        day, version = word.split()
        scene.drop(f"demo_L0_2020{day.replace('-', '')}_v{version}.dat", f"{word}\n")
    assert scene.settle() == []


def made_of(sql: Ask, product: str) -> dict[str, list[str]]:
    """Days and versions of the newest L0 files that the newest file of each day was made of, by day."""
    rows = sql(
        "SELECT to_char(f.day, 'MM-DD'), array_agg(to_char(i.day, 'MM-DD') || ' ' ||"
        " concat_ws('.', i.interface, i.quality, i.revision) ORDER BY i.day)"
        " FROM headrace.product_file f JOIN headrace.product p ON p.id = f.product_id"
        " JOIN headrace.product_file i ON i.id = ANY(f.inputs)"
        " WHERE f.is_newest AND p.name = %s GROUP BY f.id, f.day ORDER BY f.day", product,
    )  # fmt: skip
    return dict(rows)


YESTERDAY = {"l1": 'required_input1 = ("product_L0", 1, 0)', "timebases": ("DAILY", "DAILY")}
TOMORROW = {"l1": 'required_input1 = ("product_L0", 0, 1)', "timebases": ("DAILY", "DAILY")}
BOTH = {"l2": 'required_input1 = ("product_L1", 1, 1)'}

# Rules of the definition, whether neighbours are rebuilt, what is delivered at once, the newest L1 and L2 in the end.
CASES: dict[str, tuple[dict[str, Any], bool, list[str], Days, Days]] = {
    "one file": ({}, True, ["01-01 1.0.0"], {"01-01": "1.0.0"}, {"01-01": "1.0.0"}),
    "revision": ({}, True, ["01-01 1.0.0", "01-01 1.0.1"], {"01-01": "1.0.1"}, {"01-01": "1.0.1"}),
    "quality": ({}, True, ["01-01 1.0.0", "01-01 1.1.0"], {"01-01": "1.1.0"}, {"01-01": "1.1.0"}),
    "an interface of the input is a quality of the output": (
        {}, True, ["01-01 1.0.0", "01-01 2.0.0"], {"01-01": "1.1.0"}, {"01-01": "1.1.0"},
    ),
    "revision, quality, interface": (
        {}, True, ["01-01 1.0.0,01-02 1.0.0", "01-01 1.0.1", "01-01 1.1.0", "01-01 2.0.0"],
        {"01-01": "1.2.0", "01-02": "1.0.0"}, {"01-01": "1.2.0", "01-02": "1.0.0"},
    ),
    "two versions at once": ({}, True, ["01-01 1.0.0,01-01 1.1.0"], {"01-01": "1.0.0"}, {"01-01": "1.0.0"}),
    "an older version late": ({}, True, ["01-01 1.1.0", "01-01 1.0.5"], {"01-01": "1.0.0"}, {"01-01": "1.0.0"}),
    "interface of outputs": ({"interface": 3}, True, ["01-01 1.0.0"], {"01-01": "3.0.0"}, {"01-01": "1.0.0"}),
    "yesterday alone makes no output": (YESTERDAY, True, ["01-01 1.0.0"], {"01-01": "1.0.0"}, {"01-01": "1.0.0"}),
    "yesterday is updated": (
        YESTERDAY, True, ["01-01 1.0.0", "01-02 1.0.0", "01-01 1.0.1"], {"01-01": "1.0.1", "01-02": "1.0.1"},
        {"01-01": "1.0.1", "01-02": "1.0.1"},
    ),
    "yesterday is updated, old rule": (
        YESTERDAY, False, ["01-01 1.0.0", "01-02 1.0.0", "01-01 1.0.1"], {"01-01": "1.0.1", "01-02": "1.0.0"},
        {"01-01": "1.0.1", "01-02": "1.0.0"},
    ),
    "tomorrow comes": (
        TOMORROW, True, ["01-01 1.0.0", "01-02 1.0.0"], {"01-01": "1.1.0", "01-02": "1.0.0"},
        {"01-01": "1.1.0", "01-02": "1.0.0"},
    ),
    "tomorrow comes, old rule": (
        TOMORROW, False, ["01-01 1.0.0", "01-02 1.0.0"], {"01-01": "1.0.0", "01-02": "1.0.0"},
        {"01-01": "1.0.0", "01-02": "1.0.0"},
    ),
    "three days, each with its neighbours": (
        BOTH, True, ["01-01 1.0.0", "01-02 1.0.0", "01-03 1.0.0"],
        {"01-01": "1.0.0", "01-02": "1.0.0", "01-03": "1.0.0"}, {"01-01": "1.1.0", "01-02": "1.1.0", "01-03": "1.0.0"},
    ),
    "a new day 2 among three": (
        BOTH, True, ["01-01 1.0.0,01-02 1.0.0,01-03 1.0.0,01-04 1.0.0", "01-02 1.0.1"],
        {"01-01": "1.0.0", "01-02": "1.0.1", "01-03": "1.0.0", "01-04": "1.0.0"},
        {"01-01": "1.0.1", "01-02": "1.0.1", "01-03": "1.0.1", "01-04": "1.0.0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_versions_that_follow(scene: Scene, case: tuple[dict[str, Any], bool, list[str], Days, Days]) -> None:
    """What is delivered, one after the other, leads to these newest versions of L1 and L2."""
    rules, neighbours, deliveries, l1, l2 = case
    scene.load(scene.conf_file(**rules), neighbours=neighbours)
    for delivery in deliveries:
        deliver(scene, *delivery.split(","))
    assert (scene.newest("DEMO_L1"), scene.newest("DEMO_L2")) == (l1, l2)


# Version and output interface of the second code of L0 -> L1; the versions that L1 and L2 have then.
CODES = {
    "revision": ("1.0.1", 1, "1.0.1", "1.0.1"),
    "quality": ("1.1.0", 1, "1.1.0", "1.1.0"),
    "interface": ("2.0.0", 1, "1.1.0", "1.1.0"),
    "interface, of outputs too": ("2.0.0", 2, "2.0.0", "1.1.0"),
}


@pytest.mark.parametrize(("version", "interface", "l1", "l2"), CODES.values(), ids=CODES)
def test_a_new_code(scene: Scene, sql: Ask, version: str, interface: int, l1: str, l2: str) -> None:
    """A new version of a code has its outputs built again without anybody's asking, and what is made of them."""
    scene.load(scene.conf_file())
    deliver(scene, "01-01 1.0.0")
    scene.script(f"bin/copy_v{version}.sh")
    scene.load(scene.conf_file(first=version, interface=interface))
    assert scene.build() == []
    assert (scene.newest("DEMO_L1"), scene.newest("DEMO_L2")) == ({"01-01": l1}, {"01-01": l2})
    assert sql("SELECT reason FROM headrace.product_build ORDER BY id")[2:] == [("CODE_CHANGED",), ("NEWER_INPUT",)]


@pytest.mark.parametrize(
    ("force", "l1", "l2"),
    [("interface", "2.0.0", "1.1.0"), ("quality", "1.1.0", "1.1.0"), ("revision", "1.0.1", "1.0.1")],
)  # fmt: skip
def test_forced(scene: Scene, sql: Ask, force: str, l1: str, l2: str) -> None:
    """A forced bump of L1 goes on to L2 as a newer input of it: an interface as a quality."""
    scene.load(scene.conf_file())
    deliver(scene, "01-01 1.0.0")
    sql("UPDATE headrace.product_slot SET force = %s WHERE process_id = (SELECT id FROM headrace.process"
        " WHERE name = 'to_l1')", force)  # fmt: skip
    assert scene.build() == []
    assert (scene.newest("DEMO_L1"), scene.newest("DEMO_L2")) == ({"01-01": l1}, {"01-01": l2})


def test_the_command_line(scene: Scene, sql: Ask) -> None:
    """Code, extra parameters, arguments, inputs, output, as dbprocessing has them; a piece with a blank is one word."""
    path = scene.conf_file()
    text = path.read_text().replace("extra_params =", "extra_params = --calib|{ROOTDIR}/a b.txt|{DATE}", 1)
    path.write_text(text.replace("code_arguments =", "code_arguments = -q {CODEDIR} {CODEVERSION}", 1))
    scene.load(path)
    scene.script("bin/copy_v1.0.0.sh", '#!/bin/sh\nfor out; do :; done\nprintf "%s\\n" "$@" > "$out"\n')
    deliver(scene, "01-01 1.0.0")
    words = (scene.root / "L1/2020/demo_L1_20200101_v1.0.0.dat").read_text().splitlines()
    assert words[:-1] == [
        "--calib", f"{scene.root}/a b.txt", "20200101", "-q", f"{scene.root}/codes", "1.0.0",
        f"{scene.root}/L0/2020/demo_L0_20200101_v1.0.0.dat",
    ]  # fmt: skip
    assert words[-1].endswith("/demo_L1_20200101_v1.0.0.dat")
    command = sql("SELECT command FROM headrace.product_build ORDER BY id LIMIT 1")[0][0]
    assert command == [f"{scene.root}/codes/bin/copy_v1.0.0.sh", *words]


def test_a_newest_version_that_is_not_there_is_no_input(scene: Scene, sql: Ask) -> None:
    """Inputs are files that are there: without the newest version, the older one is taken, and told."""
    scene.load(scene.conf_file(**YESTERDAY))
    deliver(scene, "01-01 1.0.0", "01-01 1.1.0")
    sql("UPDATE headrace.product_file SET state = 'missing' WHERE filename = 'demo_L0_20200101_v1.1.0.dat'")
    deliver(scene, "01-02 1.0.0")
    assert made_of(sql, "DEMO_L1")["01-02"] == ["01-01 1.0.0", "01-02 1.0.0"]


def test_a_code_is_used_for_the_days_for_which_it_holds(scene: Scene) -> None:
    """The last day of a code is its own; a day without a code leads to nothing, silently, until one is given."""
    first = scene.code("1.0.0", until="2020-01-01")
    scene.document["processes"]["to_l1"]["codes"] = [first]
    scene.load()
    deliver(scene, "01-01 1.0.0", "01-02 1.0.0")
    assert scene.newest("L1") == {"01-01": "1.0.0"}
    second = scene.code("2.0.0", output_interface=2, **{"from": "2020-01-02"})
    scene.document["processes"]["to_l1"]["codes"] = [first, second]
    scene.load()
    assert scene.build() == []
    assert scene.newest("L1") == {"01-01": "1.0.0", "01-02": "2.0.0"}


def test_a_process_without_inputs(scene: Scene, sql: Ask) -> None:
    """Asked for, its output is made once; a second look makes nothing; a new code makes the next version."""
    scene.script("make.sh", '#!/bin/sh\nfor out; do :; done\necho "$0" > "$out"\n')
    scene.script("make2.sh", '#!/bin/sh\nfor out; do :; done\necho "$0" > "$out"\n')
    scene.document["processes"] = {"make": {"output": "L1", "timebase": "DAILY", "codes": [scene.code(file="make.sh")]}}
    scene.load()
    sql("INSERT INTO headrace.product_slot (process_id, day, start_at, stop_at, is_wanted)"
        " SELECT id, '2020-01-01', '2020-01-01', '2020-01-01 23:59:59.999999', true FROM headrace.process")  # fmt: skip
    assert scene.build() == [] and scene.build() == []
    assert scene.newest("L1") == {"01-01": "1.0.0"} and scene.builds() == 1
    scene.document["processes"]["make"]["codes"] = [scene.code("1.1.0", file="make2.sh")]
    scene.load()
    assert scene.build() == []
    assert scene.newest("L1") == {"01-01": "1.1.0"}


@pytest.mark.parametrize(
    ("l1", "files", "expected"),
    [
        ("required_input1 = product_L0\noptional_input1 = product_B", ["L0"], ["L0"]),
        ("required_input1 = product_L0\noptional_input1 = product_B", ["L0", "B"], ["B", "L0"]),
        ("required_input1 = product_L0\noptional_input1 = product_B", ["B"], []),
        ("required_input1 = product_L0\nrequired_input2 = product_B", ["L0"], []),
        ("optional_input1 = product_L0\noptional_input2 = product_B", ["B"], ["B"]),
        ("optional_input1 = product_L0\noptional_input2 = product_B", [], []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("timebase", ["DAILY", "FILE"])
def test_required_and_optional(
    scene: Scene, sql: Ask, timebase: str, l1: str, files: list[str], expected: list[str]
) -> None:
    """A required input that lacks stops an output; of optional ones, any is enough."""
    scene.load(scene.conf_file(products=("L0", "L1", "L2", "B"), l1=l1, timebases=(timebase, "DAILY")))
    for name in files:
        scene.drop(f"demo_{name}_20200101_v1.0.0.dat", name)
    assert scene.settle() == []
    inputs = sql(
        "SELECT q.name FROM headrace.product_link l JOIN headrace.product_file c ON c.id = l.child"
        " JOIN headrace.product p ON p.id = c.product_id JOIN headrace.product_file f ON f.id = l.parent"
        " JOIN headrace.product q ON q.id = f.product_id WHERE p.name = 'DEMO_L1' ORDER BY 1"
    )
    assert [row[0] for row in inputs] == [f"DEMO_{name}" for name in expected]


def test_versions_count() -> None:
    """Parts are numbers, not letters; a bump begins the lower parts anew; an output never takes more than a quality."""
    assert parse("1.9.0") < parse("1.10.0") < parse("2.0.0")
    assert [parse("1.2.3").bumped(part) for part in ("interface", "quality", "revision")] == [
        Version(2, 0, 0), Version(1, 3, 0), Version(1, 2, 4),
    ]  # fmt: skip
    assert [bump_of(Version(1, 0, 0).differs_in(parse(other))) for other in ("2.0.0", "1.1.0", "1.0.1")] == [
        "quality", "quality", "revision",
    ]  # fmt: skip
    assert output_version(Version(1, 4, 2), interface=1, bump="revision") == Version(1, 4, 3)
    assert output_version(Version(1, 4, 2), interface=2, bump="revision") == Version(2, 0, 0)
