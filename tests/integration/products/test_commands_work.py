"""Asking for work by command: what `headrace products` builds anew, tries again, explains and imports."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.integration.products.conftest import Scene, conf_text
from tests.integration.products.desk import Desk, at_desk
from tests.integration.products.legacy_fixture import demo
from tests.integration.products.rows import COPY
from workers.settings import Settings

FAILING = "#!/bin/sh\necho 'no calibration' >&2\nexit 3\n"


@pytest.fixture
def desk(
    conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """A person at it, and no mission."""
    with at_desk(conf, tmp_path, monkeypatch, capsys, with_mission=False) as desk:
        yield desk


@pytest.fixture
def built(loaded: Scene) -> Scene:
    """Two days of L0, and all that is made of them."""
    for day in (1, 2):
        loaded.drop(f"demo_L0_2027030{day}_v1.0.0.dat", f"day {day}\n")
    assert loaded.settle() == []
    return loaded


def test_reprocess_writes_a_request_down_and_shows_how_far_it_is(desk: Desk, built: Scene) -> None:
    """Without a broker it is found by later looks; `requests` follows it, and `cancel` takes back what is not built."""
    assert desk.run("requests").out == "nobody has asked for anything\n"
    said = desk.run("reprocess", "--product", "L1", "--until", "2027-03-01", "--force", "1")
    assert said.out.startswith("request 1: 1 outputs: 1 due now, 0 after others, 0 up to date; ")
    assert "no worker was told" in said.err and "build --here" in said.err
    [listed] = desk.json("requests")["requests"]
    assert (listed["kind"], listed["what"]["force"], listed["progress"]["waiting"]) == ("reprocess", "quality", 1)
    assert desk.run("requests", "1").out == "request 1: 1 outputs: 1 waiting\n"
    assert built.build() == []
    assert desk.json("requests", "1")["progress"]["done"] == 1
    assert built.newest("L1") == {"03-01": "1.1.0", "03-02": "1.0.0"}
    asked = desk.json("reprocess", "--code", "to_l2 1.0.0", "--force", "revision")
    assert (asked["request"], asked["due"], asked["up_to_date"]) == (2, 2, 0)
    assert desk.run("requests", "cancel", "2").out.startswith("request 2: 2 outputs are not built")
    assert "2 cancelled" in desk.run("requests", "2").out and "cancelled" in desk.run("requests").out
    assert "there is no request 9" in desk.run("requests", "9", code=1).err
    assert "no output is called 'L9'" in desk.run("reprocess", "--product", "L9", code=1).err
    assert "say what to build" in desk.run("reprocess", "--force", "1", code=2).err


def test_here_and_wait_end_when_the_request_is_done(built: Scene, site: Site) -> None:
    """--here is one document; --wait ends with the last build that others did; Ctrl-C stops the waiting only."""
    words = ("products", "reprocess", "--force", "quality", "--product")
    done = site.run(*words, "L1", "--here", "--json", HEADRACE_PRODUCTS__SETTLE_SECONDS="0")
    document = json.loads(done.stdout)
    assert (done.returncode, document["progress"]["done"], document["problems"]) == (0, 2, []), done.stderr
    assert built.newest("L2") == {"03-01": "1.1.0", "03-02": "1.1.0"}
    first, second = site.start("headrace", *words, "L1", "--wait"), site.start("headrace", *words, "L2", "--wait")
    for process in (first, second):
        site.until_logged(process, "outputs: ")
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    site.until_logged(first, "goes on; `headrace products requests ")
    assert built.build() == [] and second.wait(30) == 0
    site.until_logged(second, "2 outputs: 2 done")
    counted = "SELECT count(*) FROM headrace.product_request_slot WHERE done_at IS NOT NULL GROUP BY request_id"
    assert site.ask(counted) == [(2,), (2,), (2,)]


def test_backfill_is_for_a_range_of_days(desk: Desk, loaded: Scene) -> None:
    """A process is as good as its output; what it is made of is built before; that there is nothing is told."""
    loaded.drop("demo_L0_20270301_v1.0.0.dat")
    loaded.ingest()
    days = ("--since", "2027-03-01", "--until", "2027-03-09")
    asked = desk.json("backfill", "--process", "to_l2", *days)
    assert (asked["slots"], asked["due"], asked["waiting"]) == (1, 0, 1)
    nothing = desk.run("backfill", "--product", "L2", "--since", "2027-04-01", "--until", "2027-04-02")
    assert nothing.out.startswith("no output of these days can be built")
    assert "no active process 'to_l9'" in desk.run("backfill", "--process", "to_l9", *days, code=1).err
    assert "ends before it begins" in desk.run(
        "backfill", "--product", "L2", "--since", "2027-03-02", "--until", "2027-03-01", code=2
    ).err  # fmt: skip
    assert "--product, or --process" in desk.run("backfill", *days, code=2).err


def test_a_failure_is_explained_and_tried_again(desk: Desk, loaded: Scene) -> None:
    """explain leads to the root cause with the end of stderr; retry has it built once that is mended."""
    loaded.document["processes"]["to_l1"]["attempts"] = 1
    loaded.load()
    loaded.script("copy.sh", FAILING)
    loaded.drop("demo_L0_20270301_v1.0.0.dat")
    loaded.settle()
    assert [step["state"] for step in desk.json("plan")["steps"]] == ["failed"]
    said = desk.run("explain", "L2", "2027-03-01").out.splitlines()
    assert said[0].startswith("L2 2027-03-01 is waiting: L1") and said[1].startswith("  L1 2027-03-01 was given up")
    assert said[2] == "    | no calibration"
    [waits] = desk.json("explain", "L2", "2027-03-01")["explanations"]
    assert (waits["state"], waits["causes"][0]["state"]) == ("waiting", "failed")
    assert "was delivered" in desk.run("explain", "demo_L0_20270301_v1.0.0.dat").out
    assert "'L9'" in desk.run("explain", "L9", "2027-03-01", code=1).err
    assert "is no day" in desk.run("explain", "L2", "today", code=2).err
    loaded.script("copy.sh")
    assert desk.run("retry", "L1", "--day", "2027-03-02").out == "nothing of the kind has failed\n"
    assert desk.json("retry", "L1", "--day", "2027-03-01")["retried"] == 1
    assert loaded.build() == [] and loaded.newest("L2") == {"03-01": "1.0.0"}
    assert "nothing of the kind" in desk.run("retry", "--all").out
    assert "no process is called 'L9'" in desk.run("retry", "L9", code=1).err
    assert "or say --all" in desk.run("retry", code=2).err


def test_plan_names_what_waits_for_an_input(desk: Desk, loaded: Scene) -> None:
    """--waiting tells outputs that lack a required input, which a plan has not."""
    products, processes = loaded.document["products"], loaded.document["processes"]
    products["cal"] = products["L0"] | {"format": "cal_{Y}{m}{d}_v{VERSION}.dat"}
    processes["to_l1"]["inputs"] = ["L0", "cal"]
    loaded.load()
    loaded.drop("demo_L0_20270301_v1.0.0.dat")
    loaded.settle()
    assert "L1 2027-03-01 is waiting: cal 2027-03-01" in desk.run("plan", "--waiting").out
    [one] = desk.json("plan", "--waiting", "--product", "L1")["waiting"]
    assert one["facts"]["missing"] == ["cal"]
    assert desk.json("plan", "--waiting", "--since", "2027-03-02")["waiting"] == []


def test_a_held_code_is_approved_after_its_impact_is_shown(desk: Desk, built: Scene) -> None:
    """Without a terminal --yes is needed; from then on the code is used, and approving it again is refused."""
    assert desk.run("approve").out == "no code is held\n"
    process = built.document["processes"]["to_l1"]
    process |= {"on_code_change": "hold", "codes": [built.code("1.1.0", file="copy2.sh")]}
    built.script("copy2.sh", COPY + "# faster\n")
    built.load()
    [held] = desk.json("approve")["held"]
    assert (held["process"], held["version"]) == ("to_l1", "1.1.0")
    asked = desk.run("approve", "to_l1", "1.1.0", code=2)
    assert "to_l1 1.1.0 would rebuild" in asked.out and "4 outputs, about" in asked.out and "add --yes" in asked.err
    document = desk.json("approve", "to_l1", "1.1.0", "--yes")
    assert document["approved"] and [one["outputs"] for one in document["impact"]["rebuilt"]] == [2, 2]
    assert built.sql("SELECT state FROM headrace.code WHERE interface = 1 AND quality = 1") == [("active",)]
    assert "is active, not held" in desk.run("approve", "to_l1", "1.1.0", code=1).err
    assert "is no version" in desk.run("approve", "to_l1", "new", code=2).err


def test_a_loaded_mission_is_shown_as_a_file_that_loads(desk: Desk, loaded: Scene, tmp_path: Path) -> None:
    """What show prints changes nothing when it is loaded."""
    shown = tmp_path / "shown.yaml"
    shown.write_text(desk.run("show").out)
    assert loaded.load(shown) == []
    assert desk.json("show", "DEMO")["yaml"] == shown.read_text()
    assert "no mission is called 'DEM'" in desk.run("show", "DEM", code=1).err


def test_dbprocessing_is_imported_in_place(desk: Desk, tmp_path: Path) -> None:
    """A database is looked at first, then imported, then here already; a .conf becomes YAML without any server."""
    site = demo(tmp_path / "legacy")
    source = site.sqlite(tmp_path / "legacy.sqlite")
    assert desk.run("import", source, "--dry-run").out.splitlines()[-1] == "nothing was changed (--dry-run)"
    assert desk.rows.ask("SELECT count(*) FROM headrace.mission") == [(0,)]
    document = desk.json("import", source)
    assert (document["missions"], document["releases"], document["dry_run"]) == (1, 1, False)
    assert desk.run("import", source).out.endswith("added nothing: everything is here already\n")
    with closing(sqlite3.connect(tmp_path / "empty.sqlite")) as other:
        other.execute("CREATE TABLE t (a integer)")
    desk.run("import", str(tmp_path / "empty.sqlite"), code=1)
    desk.monkeypatch.setenv("HEADRACE_CONTROL__DSN", "host=127.0.0.1 port=1 dbname=x")
    (tmp_path / "demo.conf").write_text(conf_text(tmp_path / "demo"))
    assert desk.run("import", "demo.conf").out.startswith("mission: DEMO\n")
    assert desk.json("import", "demo.conf")["mission"] == "DEMO"
    assert "is for databases" in desk.run("import", "demo.conf", "--root", ".", code=2).err
