"""Questions of `headrace products`, asked as a person or a script asks them: what prints, and the exit code."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from psycopg2.extras import Json

from producers.cli.products import products
from tests.integration.products.desk import Desk, at_desk
from tests.integration.products.rows import COPY, DAY, Rows
from workers import paths
from workers.products import api
from workers.settings import Settings

LATER = DAY + timedelta(days=1)
ODD = 'raw "1"\n\\xff v1.0.0.dat'  # quotes, a newline, and in text form a byte that is not UTF-8


@pytest.fixture
def desk(
    conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """A person at it."""
    with at_desk(conf, tmp_path, monkeypatch, capsys) as desk:
        yield desk


def graph(rows: Rows) -> dict[str, int]:
    """l0 -> l1 -> l2 with codes; two days of l0, and the first day of l1 as it should be."""
    l0, l1, l2 = (rows.product(f"l{level}", level=level) for level in range(3))
    one, two = rows.process("one", l1, [l0], timebase="FILE", rank=1), rows.process("two", l2, [l1], rank=2)
    code = rows.code(one)
    rows.code(two, "2.1.0", filename="sum up.sh", script=COPY + "# two\n")
    raw, later = rows.file(l0, content=b"first\n", filename=ODD), rows.file(l0, LATER)
    scratch, name = f"{rows.root}/.headrace/build", f"l1_{DAY:%Y%m%d}_v1.0.0.dat"
    words = [f"{rows.codes()}/copy.sh", paths.to_text(os.fsencode(rows.path(raw))), f"{scratch}/{name}"]
    [[sha256]] = rows.ask("SELECT sha256 FROM headrace.code WHERE id = %s", code)
    build = rows.build(
        one, code=code, inputs=[raw], command=words, scratch=scratch, code_sha256=sha256, output_name=name
    )
    made = rows.file(l1, content=b"first\n", inputs=[raw], code=code, build=build)
    return {"l0": l0, "l1": l1, "l2": l2, "one": one, "two": two, "raw": raw, "later": later, "made": made}


def test_plan_says_what_would_be_built_and_why(desk: Desk) -> None:
    """What is stale and what follows from it, in order, and nothing is written; an unknown name is exit 1."""
    assert desk.run("plan").out == "nothing is stale\n"
    graph(desk.rows)
    document = desk.json("plan")
    told = [(step["product"], step["day"], step["reason"], step["state"]) for step in document["steps"]]
    assert told == [
        ("l1", str(LATER), "NEW_INPUT", "due"), ("l2", str(DAY), "NEW_INPUT", "due"),
        ("l2", str(LATER), "NEW_INPUT", "waits"),
    ]  # fmt: skip
    assert document["counts"] == {"due": 2, "waits": 1, "failed": 0}
    lines = desk.run("plan", "--product", "l2", "--until", str(DAY)).out.splitlines()
    assert len(lines) == 4 and "NEW_INPUT" in lines[2] and lines[3].startswith("1 outputs: 1 can be built now")
    assert "... and 2 more" in desk.run("plan", "--limit", "1").out
    assert desk.rows.ask("SELECT count(*) FROM headrace.product_slot") == [(0,)]
    assert "no such product: l3" in desk.run("plan", "--product", "l3", code=1).err
    assert "no mission is called 'dem'; did you mean 'demo'?" in desk.run("plan", "--mission", "dem", code=1).err
    assert "ends before" in desk.run("plan", "--since", str(LATER), "--until", str(DAY), code=2).err
    assert "is no day" in desk.run("plan", "--since", "1.3.27", code=2).err


def test_a_server_that_is_away_is_exit_3(desk: Desk) -> None:
    """Every command says in one line that it cannot be reached."""
    desk.monkeypatch.setenv("HEADRACE_CONTROL__DSN", "host=127.0.0.1 port=1 dbname=x")
    assert desk.run("plan", code=3).err.count("\n") == 1
    assert "cannot be reached" in desk.run("coverage", code=3).err


def test_provenance_is_a_tree_a_document_a_bundle_and_a_proof(desk: Desk) -> None:
    """A file is found by name, path or id; what it came from is told on lines of its own, whatever its name holds."""
    made = graph(desk.rows)
    name = f"l1_{DAY:%Y%m%d}_v1.0.0.dat"
    first, second = desk.run("provenance", name).out.splitlines()
    assert first.startswith(f"{name} (id {made['made']}: l1 {DAY}, present), by copy.sh 1.0.0 in build ")
    assert second.startswith('  raw "1"␊') and ", delivered " in second
    assert desk.run("provenance", str(desk.rows.path(made["made"]))).out.startswith(name)
    assert desk.run("provenance", f"data/l1/{name}", "--mission", "demo").out.startswith(name)
    down = desk.json("provenance", str(made["raw"]), "--down")
    assert [one["id"] for one in down["files"]] == [made["raw"], made["made"]]
    assert down["files"][0]["outputs"] == [made["made"]] and down["files"][1]["version"] == "1.0.0"
    assert f"file:{made['raw']}" in json.loads(desk.run("provenance", name, "--prov-json").out)["entity"]
    assert desk.json("provenance", name, "--verify")["is_proven"] is True
    written = desk.json("provenance", name, "--bundle", ".")["bundle"]
    desk.monkeypatch.setenv("HEADRACE_CONTROL__DSN", "host=127.0.0.1 port=1 dbname=x")
    assert "is proven" in desk.run("provenance", "--verify", written, "--scratch", "proof").out


def test_what_is_not_proven_is_exit_1(desk: Desk) -> None:
    """A delivered file that changed breaks the proof, and no bundle is written; usage errors are exit 2."""
    made = graph(desk.rows)
    desk.rows.path(made["raw"]).write_bytes(b"other\n")
    said = desk.run("provenance", "--verify", str(made["made"]), "--scratch", "proof", code=1)
    assert "differs" in said.out and "is not proven" in said.out and "/proof/proof-" in said.err
    assert "recorded is" in desk.run("provenance", str(made["made"]), "--bundle", ".", code=1).err
    assert "cannot be written" in desk.run("provenance", str(made["made"]), "--bundle", "no/x.tar", code=1).err
    assert "no file has the name, path or id nothing" in desk.run("provenance", "nothing", code=1).err
    assert "one at a time" in desk.run("provenance", "1", "--down", "--prov-json", code=2).err
    assert "name a FILE" in desk.run("provenance", code=2).err


def test_coverage_is_a_table_a_page_and_a_picture(desk: Desk) -> None:
    """Days with and without files of each product; an unknown product is exit 1, none at all says so."""
    assert desk.run("coverage").out == "mission demo has no active product\n"
    made = graph(desk.rows)
    desk.rows.file(made["l0"], DAY + timedelta(days=4))
    said = desk.run("coverage", "--html", "page.html", "--png", "picture.png")
    assert any(line.split() == ["l0", "0", str(DAY), "2027-03-05", "3", "2", "0", "0", "2027-03-03..2027-03-04"]
               for line in said.out.splitlines())  # fmt: skip
    assert said.err.splitlines() == ["wrote page.html", "wrote picture.png"]
    assert Path("page.html").read_text().startswith("<!DOCTYPE html>")
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    document = desk.json("coverage", "--product", "l2", "--since", str(DAY), "--until", str(LATER))
    assert [day["state"] for day in document["products"][0]["days"]] == ["gap", "gap"]
    assert "no active product l3" in desk.run("coverage", "--product", "l3", code=1).err
    assert "cannot be written" in desk.run("coverage", "--html", "no/page.html", code=1).err


def test_graph_counts_what_is_stale(desk: Desk) -> None:
    """DOT on stdout, or files, with the state of each process; of several missions one has to be named."""
    graph(desk.rows)
    assert "● 1 due" in desk.run("graph").out
    assert "wrote g.svg" in desk.run("graph", "--svg", "g.svg", "--dot", "g.dot").err
    assert "▲ 1 stale" in "".join(ElementTree.parse("g.svg").getroot().itertext())
    assert Path("g.dot").read_text().startswith('digraph "demo"')
    assert desk.json("graph")["counts"] == {"one": {"due": 1}, "two": {"due": 1, "stale": 1}}
    desk.rows.mission(desk.rows.root.parent / "more", name="other")
    assert "demo, other; say which with --mission" in desk.run("graph", code=2).err
    assert 'digraph "other"' in desk.run("graph", "--mission", "other").out


def test_validate_finds_what_missions_name_and_is_not_there(desk: Desk, conf: Settings) -> None:
    """A folder, a code or an inspector that is not there, or cannot be run, is told before anything is built."""
    rows = desk.rows
    process = rows.process("p", rows.product("made"), [rows.product("raw", inspector=Json({"file": "tell.py"}))])
    rows.code(process)
    code = next((rows.root.parent / f"{rows.root.name}-codes").iterdir())
    code.chmod(0o644)
    rows.conn.commit()
    found = api.problems(conf)
    assert [(line.split(": ")[1], line.rsplit(": ")[-1]) for line in found] == [
        ("code of p", "not executable; chmod +x it"),
        ("inspector of raw", "no such file; put it there, or load the mission with the right name"),
    ]
    code.unlink()
    (rows.root.parent / f"{rows.root.name}-incoming").rmdir()
    assert [line.split(": ")[1] for line in api.problems(conf)] == ["incoming", "code of p", "inspector of raw"]


def test_what_a_message_advises_is_a_command() -> None:
    """Each `headrace products ...` that a message of the room names is there to be typed."""
    root = Path(__file__).parents[3]
    sources = [*root.glob("workers/products/*.py"), *root.glob("producers/cli/products*.py")]
    advised = {word for path in sources for word in re.findall(r"headrace products ([a-z][a-z-]+)", path.read_text())}
    assert advised > {"plan", "load"} and advised <= set(products.commands)
