"""The rules of a mission's graph, each broken once, and the order in which processes come."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from workers.products.definition import Code, Input, Inspector, Mission, Process, Product
from workers.products.graph_rules import doubts, problems, ranks
from workers.products.versions import Version


def product(name: str, format: str = "{PRODUCT}_{Y}{m}{d}_v{VERSION}", **more: Any) -> Product:
    """A product of a/cam."""
    return Product(**{"name": name, "satellite": "a", "instrument": "cam", "level": 0, "format": format, **more})


def code(version: str = "1.0.0", since: int | None = None, until: int | None = None, **more: Any) -> Code:
    """A code that holds for whole years."""
    begin, end = since and date(since, 1, 1), until and date(until, 12, 31)
    return Code(version=version, filename="x", valid_from=begin, valid_until=end, **more)


def process(name: str, reads: str, output: str | None, *codes: Code, **more: Any) -> Process:
    """A process that reads products, their names divided by blanks."""
    inputs = tuple(Input(products=(one,)) for one in reads.split())
    timebase = "FILE" if output else "RUN"
    return Process(**{"name": name, "output": output, "timebase": timebase, "inputs": inputs, "codes": codes, **more})


def mission(*processes: Process, products: tuple[Product, ...] = (), **more: Any) -> Mission:
    """A mission with the products l0, l1, l2, l3, att and others."""
    known = tuple(product(name) for name in ("l0", "l1", "l2", "l3", "att"))
    return Mission(
        name="DEMO", root=Path("/d"), incoming=Path("/d/in"), codes=Path("/d"), inspectors=Path("/d"),
        quarantine=Path("/q"), satellites={"a": ("cam",)}, products=known + products, processes=processes, **more,
    )  # fmt: skip


def test_a_sound_graph_has_no_problems() -> None:
    """Windows, preferences, a product read twice, codes that follow one another and RUN are all in order."""
    found = mission(
        process("one", "l0", "l1", code(until=2019), code("1.1.0", 2020), code("1.2.0", is_active=False)),
        process("two", "l1 att l1", "l2", code()),
        process("other", "l0", "l2", code(is_active=False)),
        process("plot", "l2", None, code()),
        process("from nothing", "", "l3", code()),
    )
    assert problems(found) == []


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        ([process("p", "l0", "l9")], "process p: there is no product 'l9'; known: att, l0"),
        ([process("p", "l7", "l1")], "process p: there is no product 'l7'"),
        ([process("p", "l0", "l1"), process("p", "l0", "l2")], "process p is there 2 times"),
        ([process("p", "l0", "l1", satellite="b")], "process p: there is no satellite 'b'"),
        ([process("p", "l0", "l1", code(), code(is_active=False))], "process p: code 1.0.0 is there 2 times"),
        ([process("p", "l0", "l1", timebase="RUN")], "process p: RUN has no output; leave out 'l1'"),
        ([process("p", "l0", None, timebase="DAILY")], "process p: DAILY needs an output"),
        ([process("p", "l0 " * 61, "l1")], "process p: 61 inputs are more than 60"),
        ([process("p", "l0 l1", "l1")], "process p: reads its own output 'l1'"),
        ([process("p", "l0", "l1", timebase="ORBIT")], "process p: ORBIT goes by the orbits of a; there are none"),
        ([process("p", "l0", "l1", code(since=2021, until=2020))], "code 1.0.0 holds until 2020-12-31, before"),
        (
            [process("p", "l0", "l1", code(until=2020), code("1.1.0", since=2020))],
            "process p: codes 1.0.0 (until 2020-12-31) and 1.1.0 (from 2020-01-01) are both active for the same days",
        ),
        (
            [process("p", "l0", "l1", code()), process("q", "att", "l1", code("1.1.0", 2020, 2021))],
            "product l1 is made by two processes for the same days: p 1.0.0 (all days) and q 1.1.0 (2020-01-01 to",
        ),
        ([process("p", "l0 l2", "l1"), process("q", "l1", "l2")], "circle: l1 -> l2 -> l1 (processes q, p)"),
    ],
)
def test_each_rule_has_a_message_of_its_own(processes: list[Process], said: str) -> None:
    """What is wrong is said once, with the thing's name."""
    found = problems(mission(*processes))
    assert len(found) == 1
    assert said in found[0]


def test_every_circle_is_printed_and_nothing_else() -> None:
    """Two circles are two problems; processes that only hang on one are in none."""
    found = mission(
        process("a", "l0 l2", "l1"), process("b", "l1", "l2"), process("c", "l2", "l3"),
        process("x", "m2", "m1"), process("y", "m1", "m2"), products=(product("m1"), product("m2")),
    )  # fmt: skip
    said = problems(found)
    assert ["l1 -> l2 -> l1 (processes b, a)" in one for one in said] == [True, False]
    assert "m1 -> m2 -> m1 (processes y, x)" in said[1]
    assert ranks(found) == {}


def test_ranks_are_above_those_of_all_inputs() -> None:
    """The longest way from raw products counts, whatever the order of the file."""
    found = mission(
        process("plot", "l3", None), process("three", "l0 l2", "l3"), process("two", "l1", "l2"),
        process("one", "l0", "l1"), process("aside", "att", "att2"), products=(product("att2"),),
    )  # fmt: skip
    assert ranks(found) == {"one": 0, "aside": 0, "two": 1, "three": 2, "plot": 3}


@pytest.mark.parametrize(
    ("format", "more", "said"),
    [
        ("x_{Y}{m}{d}", {}, "needs {VERSION}, or the product an inspector that tells the version"),
        ("x_v{VERSION}", {}, "needs the day as {Y}{m}{d}, {Y}{j} or {DATE}, or the product an inspector"),
        ("x_{Y}_v{VERSION}", {}, "(or covers: year)"),
        ("x_{y}{b}_v{VERSION}", {}, "(or covers: month)"),
        ("x_{Y}_v{VERSION}", {"covers": "month"}, "needs {Y} and {m}"),
        ("x_v{VERSION}", {"covers": "year"}, "needs {Y}"),
        ("x_{DATE}_v{VERSION}", {"covers": "hour"}, "needs {H}"),
        ("x_{DATE_v{VERSION}", {}, "product x: format"),
        ("a/x_{DATE}_v{VERSION}", {}, "has a slash"),
        ("x_{DATE}_v{VERSION}", {"instrument": "can"}, "a has no instrument 'can'; did you mean 'cam'?"),
        ("x_{DATE}_v{VERSION}", {"satellite": "c"}, "there is no satellite 'c'"),
        ("x", {"inspector": Inspector(file="x.py", is_active=False)}, "needs {VERSION}, or"),
    ],
)
def test_names_must_tell_what_a_file_is(format: str, more: dict[str, Any], said: str) -> None:
    """Without an inspector a name has day and version, in any of the ways that dates are written."""
    found = problems(mission(products=(product("x", format, **more),)))
    assert found
    assert said in found[0]


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("x_{Y}{j}_v{VERSION}", {}),
        ("x_{y}{b}{d}_v{VERSION}", {}),
        ("x_{datetime}{H}_v{VERSION}", {"covers": "hour"}),
        ("x_{Y}{m}_v{VERSION}", {"covers": "month"}),
        ("x_{Y}_v{VERSION}", {"covers": "year"}),
        ("x_{nnn}", {"inspector": Inspector(file="x.py")}),
    ],
)
def test_names_that_tell_it_are_in_order(format: str, more: dict[str, Any]) -> None:
    """Each way to write a date will do, and a product with an inspector needs none."""
    assert problems(mission(products=(product("x", format, **more),))) == []


def test_what_dbprocessing_allowed_is_a_doubt_in_its_missions() -> None:
    """An output without a version in its name loads from dbprocessing, with a warning, and from no other file."""
    facts: dict[str, Any] = {"products": (product("cat", "{nnn}.cat", inspector=Inspector(file="x.py")),)}
    found = mission(process("p", "l0", "cat"), process("o", "l0", "l1", timebase="ORBIT"), **facts)
    legacy = found.model_copy(update={"is_legacy": True})
    said = [
        "product cat: its format needs {VERSION}, as p has no other name for a rebuilt file",
        "process o: ORBIT goes by the orbits of a; there are none",
    ]
    assert (problems(found), doubts(found)) == (said, [])
    assert (problems(legacy), doubts(legacy)) == ([], said)


def test_a_version_that_no_column_holds_is_refused() -> None:
    """The definition refuses what the database would, before it gets there."""
    with pytest.raises(ValueError, match="out of range"):
        Code(version=Version(1, 2**31, 0), filename="x")
