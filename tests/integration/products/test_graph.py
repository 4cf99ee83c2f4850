"""The picture of products and processes: what stands in it, and that it can be read."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations
from operator import mul
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.integration.products.rows import Rows
from workers import database
from workers.errors import PermanentFailure
from workers.products import graph_picture
from workers.products.graph_layout import Box, layout
from workers.products.graph_picture import Graph, Input, Process, Product
from workers.settings import Settings

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'a "quoted" <b>&\\n\n\x07 product'


@pytest.fixture
def rows(conf: Settings, tmp_path: Path) -> Iterator[Rows]:
    """A builder of rows, with a mission, on a connection as the room opens it."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        rows = Rows(conn)
        rows.mission(tmp_path / "root", name="demo & more")
        yield rows


def mission_of(products: int, seed: int = 7) -> Graph:
    """A mission of so many products: each, but the first five, is made from up to four of those before it."""
    rng = random.Random(seed)
    names = [f"rbsp_instrument_L{number // 5}_product_{number}" for number in range(products)]
    processes, inputs = [], []
    for number, name in enumerate(names[5:], 5):
        processes.append(Process(f"make {name}", "DAILY", name, "1.0.0"))
        inputs += [Input(one, f"make {name}", True, 0, 0, 0) for one in rng.sample(names[:number], rng.randint(1, 4))]
    return Graph("demo", tuple(Product(name, 0) for name in names), tuple(processes), tuple(inputs))


def points(path: str) -> Iterator[tuple[float, float]]:
    """Points along an SVG path, a pixel or less apart."""
    x = y = 0.0
    for word, numbers in re.findall(r"([MLCHV])([^MLCHV]*)", path):
        values = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        to_x = values[-2] if word in "MLC" else values[0] if word == "H" else x
        to_y = values[0] if word == "V" else y if word == "H" else values[-1]
        if word != "M":
            bends = values[:4] if word == "C" else [x, y, to_x, to_y]
            steps = int(abs(to_x - x) + abs(to_y - y)) + 1
            for t in (step / steps for step in range(steps + 1)):
                shares = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t * t, t**3
                yield (
                    sum(map(mul, shares, (x, bends[0], bends[2], to_x))),
                    sum(map(mul, shares, (y, bends[1], bends[3], to_y))),
                )
        x, y = to_x, to_y


def is_inside(point: tuple[float, float], box: Box) -> bool:
    """Whether a point lies in a box, more than a hair."""
    return box.x + 1 < point[0] < box.x + box.width - 1 and box.y + 1 < point[1] < box.y + box.height - 1


@pytest.mark.parametrize("seed", range(4))
def test_no_box_lies_on_another_and_no_line_crosses_one(seed: int) -> None:
    """With 20 products, their processes and a circle, boxes are apart, lines pass between them, nothing is cut off."""
    graph = mission_of(20, seed)
    edges = [(f"<{one.product}", one.process) for one in graph.inputs]
    edges += [(one.name, f"<{one.output}") for one in graph.processes]
    edges.append((f"<{graph.products[-1].name}", graph.processes[0].name))
    nodes = [*(f"<{one.name}" for one in graph.products), *(one.name for one in graph.processes)]
    rng = random.Random(seed)
    plan = layout({node: (rng.uniform(60, 300), rng.uniform(30, 70)) for node in nodes}, edges)
    assert set(plan.paths) == set(edges) and set(plan.boxes) == set(nodes)
    for one, other in combinations(plan.boxes.values(), 2):
        apart_x = one.x + one.width < other.x or other.x + other.width < one.x
        assert apart_x or one.y + one.height + 5 < other.y or other.y + other.height + 5 < one.y
    for path in plan.paths.values():
        for point in points(path):
            assert not any(is_inside(point, box) for box in plan.boxes.values()), path
            assert 0 <= point[0] <= plan.width and 0 <= point[1] <= plan.height
    assert all(box.x >= 0 and box.x + box.width <= plan.width for box in plan.boxes.values())
    assert all(box.y >= 0 and box.y + box.height <= plan.height for box in plan.boxes.values())


def test_lines_lead_from_left_to_right() -> None:
    """What a process reads stands left of it, what it makes stands right of it."""
    edges = [("a", "p"), ("p", "b"), ("b", "q"), ("a", "q"), ("q", "c")]
    plan = layout(dict.fromkeys("apbqc", (50.0, 30.0)), edges)
    assert [plan.boxes[node].x for node in "apbqc"] == sorted(plan.boxes[node].x for node in "apbqc")


def test_an_empty_mission_has_a_picture() -> None:
    """Before anything is defined there is a picture, with nothing in it."""
    nothing = Graph("new", (), (), ())
    assert ElementTree.fromstring(graph_picture.svg(nothing)).findall(f"{SVG}g") == []
    assert graph_picture.dot(nothing).endswith("}\n")


def define(rows: Rows) -> Graph:
    """Raw and made with a hostile name, a process with an optional, a windowed and an alternative input, one RUN."""
    raw, other = rows.product("raw"), rows.product("other", level=0.5)
    made = rows.product(HOSTILE, level=1, format="x", folder="")
    gone = rows.product("gone", is_active=False)
    process = rows.process("make", made, [
        {"product_id": raw, "yesterday": 1, "tomorrow": 2}, {"product_id": other, "is_required": False},
        {"product_id": gone, "position": 1, "preference": 1},
    ])  # fmt: skip
    rows.code(process, "1.2.3")
    rows.process("publish", None, [made], timebase="RUN")
    rows.process("retired", made, [raw], is_active=False)
    return graph_picture.read(rows.conn, rows.mission_id)


def test_the_graph_is_what_is_active(rows: Rows) -> None:
    """Products, processes with their code in force, and inputs with what is special about them, as loaded."""
    graph = define(rows)
    assert [one.name for one in graph.products] == ["raw", "other", HOSTILE]
    assert graph.processes == (Process("make", "DAILY", HOSTILE, "1.2.3"), Process("publish", "RUN", None, ""))
    assert [(one.product, one.process, one.words) for one in graph.inputs] == [
        ("raw", "make", "1 days before and 2 after"), ("other", "make", "optional"), (HOSTILE, "publish", ""),
    ]  # fmt: skip
    with pytest.raises(PermanentFailure, match="no mission with the id 0"):
        graph_picture.read(rows.conn, 0)


def test_the_picture_says_how_each_process_does(rows: Rows) -> None:
    """Counts stand in a process' box with a sign and a word, and its colour is that of the worst of them."""
    graph = define(rows)
    drawn = ElementTree.fromstring(graph_picture.svg(graph, {"make": {"failed": 1200, "stale": 3, "due": 0}}))
    boxes = {}
    for group in drawn.findall(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        boxes[group.findtext(f"{SVG}title")] = ([text.text for text in group.findall(f"{SVG}text")], rect.get("stroke"))
    assert boxes["make"] == (["make", "DAILY 1.2.3", "✗ 1,200 failed  ▲ 3 stale"], "#b3261e")
    assert boxes["publish"] == (["publish", "RUN no code", "✓ up to date"], "#2b7a4b")
    assert boxes['a "quoted" <b>&\\n␊␇ product'][0][1] == "level 1"
    dashed = [one for one in drawn.findall(f"{SVG}path") if one.get("stroke-dasharray")]
    assert [one.findtext(f"{SVG}title") for one in dashed] == ["optional"]
    assert "up to date" not in graph_picture.svg(graph)


def test_the_dot_text_quotes_every_name(rows: Rows) -> None:
    """Quotes, backslashes and newlines of names do not end a string, and each product and process is one node."""
    text = graph_picture.dot(define(rows), {"make": {"due": 2}})
    assert text.count(" -> ") == 4 and "● 2 due" in text
    assert '"product a \\"quoted\\" <b>&\\\\n␊␇ product" [shape=box' in text
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "S", text)
    assert '"' not in unquoted and "\\" not in unquoted
    assert re.findall(r"^  S \[", unquoted, re.MULTILINE) == ["  S ["] * 5


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_the_dot_text(rows: Rows) -> None:
    """The program itself draws it."""
    text = graph_picture.dot(define(rows), {"make": {"due": 2}})
    drawn = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True).stdout
    assert len(ElementTree.fromstring(drawn).findall(f".//{SVG}g[@class='node']")) == 5
