"""Missions as their operators live with them: files come in, products follow, what goes wrong is told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.products.conftest import Ask, Scene

if TYPE_CHECKING:
    from tests.conftest import Site
    from workers.settings import Settings

RULES = {"settle_seconds": 0.0, "retry_seconds": 0.05, "inspector_seconds": 10.0}
LINES = "SELECT count(*) FROM headrace.product_link"
DAYS = ("20200101", "20200102", "20200103")


@dataclass
class Operator(Scene):
    """Somebody with a terminal: real commands, and the same work in this process where the command is not the point."""

    site: Site | None = None

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """`headrace products WORDS`, which must end with this code and without a traceback."""
        assert self.site is not None
        more = {f"HEADRACE_PRODUCTS__{name.upper()}": str(value) for name, value in RULES.items()}
        done = self.site.run("products", *words, timeout=60, **more)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        """The document of a command."""
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def deliver(self, *days: str, version: str = "1.0.0", product: str = "L0") -> None:
        """Drop a file of each day, with its name as content."""
        for day in days:
            self.drop(f"demo_{product}_{day}_v{version}.dat", f"{product} {day} {version}\n")

    def steps(self) -> list[tuple[str, str]]:
        """What the plan says would be built: product and day."""
        return sorted((one["product"], one["day"]) for one in self.json("plan")["steps"])

    def made(self, product: str, since: int = 0) -> list[str]:
        """Days of a product's builds after the first so many."""
        rows = self.sql(
            "SELECT b.day::text FROM headrace.product_build b JOIN headrace.process p ON p.id = b.process_id"
            " JOIN headrace.product q ON q.id = p.output_product WHERE q.name = %s AND b.id > %s ORDER BY 1",
            product, since,
        )  # fmt: skip
        return [row[0] for row in rows]

    def inputs(self, product: str) -> dict[str, list[str]]:
        """Names of what the newest file of each day was made of."""
        rows = self.sql(
            "SELECT f.day::text, array_agg(i.filename ORDER BY i.filename) FROM headrace.product_file f"
            " JOIN headrace.product p ON p.id = f.product_id JOIN headrace.product_link l ON l.child = f.id"
            " JOIN headrace.product_file i ON i.id = l.parent WHERE f.is_newest AND p.name = %s"
            " GROUP BY f.id ORDER BY 1",
            product,
        )  # fmt: skip
        return dict(rows)


@pytest.fixture
def operator(tmp_path: Path, conf: Settings, sql: Ask, work: Callable[..., list[str]], site: Site) -> Operator:
    """A mission folder, and somebody who runs it."""
    quick = conf.model_copy(update={"products": conf.products.model_copy(update=RULES)})
    return Operator(tmp_path / "demo", quick, sql, work, site=site)


def test_the_happy_path(operator: Operator, sql: Ask) -> None:
    """Three days of L0 make nine whole files with hashes, lineage and runs; a second look makes nothing."""
    operator.run("load", str(operator.conf_file()))
    operator.deliver(*DAYS)
    done = operator.run("ingest", "--build", "--here")
    assert "3 files" in done.stdout and "6 built" in done.stdout
    rows = sql(
        "SELECT place, sha256, bytes, interface, quality, revision FROM headrace.product_file WHERE state = 'present'"
    )
    assert len(rows) == 9
    for place, sha256, size, *version in rows:
        content = (operator.root / place).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content), version) == (sha256, size, [1, 0, 0])
    assert sql(LINES) == [(6,)]
    assert sql(
        "SELECT count(*) FROM headrace.product_build b"
        " JOIN headrace.product_file f ON f.build_id = b.id AND f.code_id = b.code_id"
        " WHERE b.state = 'succeeded' AND b.exit_status = 0 AND b.host = 'here' AND b.started_at < b.finished_at"
    ) == [(6,)]
    assert os.listdir(operator.incoming) == [] and os.listdir(operator.root / ".headrace") == []
    operator.run("build", "--here")
    assert operator.builds() == 6


def test_versions_cascade(operator: Operator, sql: Ask) -> None:
    """New versions of one day go down to L2 of that day alone; old ones stay; an older one that comes late
    leads to nothing."""
    operator.load(operator.conf_file())
    operator.deliver(*DAYS)
    operator.settle()
    for version, expected in (("1.0.1", "1.0.1"), ("1.1.0", "1.1.0"), ("2.0.0", "1.2.0"), ("1.0.5", "1.2.0")):
        operator.deliver(DAYS[1], version=version)
        operator.settle()
        for product in ("DEMO_L1", "DEMO_L2"):
            assert operator.newest(product) == {"01-01": "1.0.0", "01-02": expected, "01-03": "1.0.0"}
    assert len(operator.files()) == 9 + 4 + 3 + 3
    assert operator.newest("DEMO_L0")["01-02"] == "2.0.0"
    assert operator.steps() == []


def test_a_new_code_is_planned_held_and_used(operator: Operator, sql: Ask) -> None:
    """With `hold` a new code does nothing until it is approved; the plan then names exactly what is built, and why."""
    operator.document["processes"]["to_l1"]["on_code_change"] = "hold"
    operator.load()
    operator.deliver(*DAYS)
    operator.settle()
    operator.script("two.sh", '#!/bin/sh\nfor out; do :; done\n{ cat "$1"; echo two; } > "$out"\n')
    operator.document["processes"]["to_l1"]["codes"].append(operator.code("1.1.0", file="two.sh"))
    operator.document["processes"]["to_l1"]["codes"][0]["active"] = False
    operator.load()
    assert operator.json("plan")["steps"] == []
    operator.run("approve", "to_l1", "1.1.0", "--yes")
    steps = operator.json("plan")["steps"]
    assert [(one["product"], one["reason"]) for one in steps] == [("L1", "CODE_CHANGED")] * 3 + [
        ("L2", "NEWER_INPUT")
    ] * 3
    assert {one["detail"] for one in steps[:3]} == {"code 1.0.0 -> 1.1.0"}
    assert operator.build() == []
    assert set(operator.newest("L1").values()) == set(operator.newest("L2").values()) == {"1.1.0"}
    assert sql(
        "SELECT count(*) FROM headrace.product_file f JOIN headrace.code c ON c.id = f.code_id"
        " WHERE f.is_newest AND c.filename = 'two.sh'"
    ) == [(3,)]


@pytest.mark.parametrize("neighbours", [True, False])
def test_windows(operator: Operator, neighbours: bool) -> None:
    """An L2 of yesterday to tomorrow is built again when a neighbour comes or changes; by the old rule not."""
    operator.document["neighbours"] = neighbours
    operator.document["processes"]["to_l2"]["inputs"] = [{"product": "L1", "yesterday": 1, "tomorrow": 1}]
    operator.load()
    for day in (*DAYS, "20200104"):
        operator.deliver(day)
        operator.settle()
    first = {"01-01": "1.1.0", "01-02": "1.1.0", "01-03": "1.1.0", "01-04": "1.0.0"}
    assert operator.newest("L2") == (first if neighbours else dict.fromkeys(first, "1.0.0"))
    if neighbours:
        assert operator.inputs("L2")["2020-01-01"] == ["demo_L1_20200101_v1.0.0.dat", "demo_L1_20200102_v1.0.0.dat"]
    before = operator.builds()
    operator.deliver(DAYS[1], version="1.0.1")
    operator.settle()
    assert operator.made("L2", before) == (["2020-01-01", "2020-01-02", "2020-01-03"] if neighbours else ["2020-01-02"])


def test_required_optional_and_preferred(operator: Operator) -> None:
    """An output waits for what it needs, is built without what it may lack, and again when that comes; the better
    of two inputs takes the place of the other."""
    for name in ("B", "quick", "final"):
        operator.document["products"][name] = operator.document["products"]["L0"] | {
            "format": f"demo_{name}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat", "folder": name,
        }  # fmt: skip
    operator.document["processes"]["to_l1"] |= {
        "timebase": "DAILY",
        "inputs": ["L0", {"product": "B", "optional": True}, {"prefer": ["final", "quick"], "optional": True}],
    }
    operator.load()
    operator.deliver(DAYS[1], product="B")
    operator.settle()
    assert operator.files("L1") == []
    [waiting] = operator.json("plan", "--waiting")["waiting"]
    assert "L0" in json.dumps(waiting) and "2020-01-02" in json.dumps(waiting)
    seen = []
    for product in ("L0", "quick", "final"):
        operator.deliver(DAYS[1], product=product)
        operator.settle()
        seen.append(
            (operator.newest("L1")["01-02"], [one.split("_")[1] for one in operator.inputs("L1")["2020-01-02"]])
        )
    assert seen == [("1.0.0", ["B", "L0"]), ("1.1.0", ["B", "L0", "quick"]), ("1.2.0", ["B", "L0", "final"])]
    assert operator.made("L2") == ["2020-01-02"] * 3


def test_files_over_midnight(operator: Operator) -> None:
    """A file of 23:00 to 01:00 makes the DAILY outputs of both days; a common day has both files as its inputs."""
    (operator.root / "inspectors/spans.py").write_text(
        "import datetime, re\nfrom dbprocessing import inspector, Version\n"
        "class Inspector(inspector.inspector):\n    code_name = 'spans.py'\n    def inspect(self, kwargs):\n"
        "        found = re.match(r'orbit_(\\d{8})\\.dat$', self.basename)\n"
        "        if not found:\n            return None\n"
        "        start = datetime.datetime.strptime(found[1], '%Y%m%d') + datetime.timedelta(hours=23)\n"
        "        params = self.diskfile.params\n"
        "        params.update(utc_file_date=start.date(), utc_start_time=start)\n"
        "        params.update(utc_stop_time=start + datetime.timedelta(hours=2), version=Version.Version(1, 0, 0))\n"
        "        return True\n"
    )
    operator.document["products"]["L0"] |= {"format": "orbit_{DATE}.dat", "inspector": {"file": "spans.py"}}
    operator.document["processes"]["to_l1"]["timebase"] = "DAILY"
    operator.load()
    for day in DAYS[:2]:
        operator.drop(f"orbit_{day}.dat")
    assert operator.settle() == []
    assert operator.inputs("L1") == {
        "2020-01-01": ["orbit_20200101.dat"], "2020-01-02": ["orbit_20200101.dat", "orbit_20200102.dat"],
        "2020-01-03": ["orbit_20200102.dat"],
    }  # fmt: skip


def test_bad_deliveries(operator: Operator, sql: Ask) -> None:
    """Junk, a truncated file, a name of two products, a dangling link and another file's version are kept aside with
    their reasons and exit 1; a folder stays; what is good is built."""
    for name, word in (("one", "amb"), ("two", "{???}")):
        operator.document["products"][name] = operator.document["products"]["L0"] | {
            "format": word + "_{DATE}_v{VERSION}.dat", "folder": name,
        }  # fmt: skip
    operator.document["products"]["L0"]["min_bytes"] = 4
    operator.load()
    operator.deliver(DAYS[0])
    operator.settle()
    kept = (operator.root / "L0/2020/demo_L0_20200101_v1.0.0.dat").read_bytes()
    operator.drop("junk.bin", b"\x00\xff")
    operator.drop("demo_L0_20200102_v1.0.0.dat", b"")
    operator.drop("demo_L0_20200101_v1.0.0.dat", b"other content")
    (operator.incoming / "demo_L0_20200104_v1.0.0.dat").symlink_to("/nowhere")
    (operator.incoming / "folder").mkdir()
    operator.deliver("20200103")
    operator.drop("amb_20200105_v1.0.0.dat")
    done = operator.run("ingest", "--build", "--here", code=1)
    assert "quarantine" in done.stderr
    held = {one["filename"]: one for one in operator.json("quarantine")["quarantine"]}
    assert {name: one["reason"] for name, one in held.items()} == {
        "junk.bin": "no_product", "demo_L0_20200102_v1.0.0.dat": "truncated",
        "demo_L0_20200101_v1.0.0.dat": "content_conflict",
        "demo_L0_20200104_v1.0.0.dat": "dangling", "amb_20200105_v1.0.0.dat": "ambiguous",
    }  # fmt: skip
    assert Path(held["junk.bin"]["kept_as"]).read_bytes() == b"\x00\xff"
    assert sorted(held["amb_20200105_v1.0.0.dat"]["candidates"]) == ["one", "two"]
    assert (operator.root / "L0/2020/demo_L0_20200101_v1.0.0.dat").read_bytes() == kept
    assert os.listdir(operator.incoming) == ["folder"]
    assert operator.files("L1") == ["demo_L1_20200101_v1.0.0.dat", "demo_L1_20200103_v1.0.0.dat"]
    del operator.document["products"]["two"]
    operator.load()
    operator.run("quarantine", "retry", str(held["amb_20200105_v1.0.0.dat"]["id"]))
    operator.deliver(DAYS[1])
    operator.run("ingest", "--build", "--here")
    assert sorted(operator.newest("L2")) == ["01-01", "01-02", "01-03"] and list(operator.newest("one")) == ["01-05"]


FAILING = """#!/bin/sh
for out; do :; done
case $(cat "$1") in
  exit) echo half > "$out"; echo no calibration >&2; exit 3;;
  nothing) exit 0;;
  empty) : > "$out";;
  signal) echo half > "$out"; kill -9 $$;;
  slow) sleep 3601 & (setsid sleep 3601 &); sleep 3601;;
  memory) exec python3 -c 'held = bytearray(600_000_000); print(len(held))';;
  *) cat "$1" > "$out";;
esac
"""
KINDS = {
    "exit": "exit",
    "nothing": "no_output",
    "empty": "bad_output",
    "signal": "signal",
    "slow": "timeout",
    "memory": "memory",
}


def test_codes_that_fail(operator: Operator, sql: Ask) -> None:
    """Whatever a code does, nothing half is published, its processes are gone, other days go on, the command says so;
    once it is right, `retry` makes the first version."""
    operator.script("copy.sh", FAILING)
    operator.document["products"]["L1"]["min_bytes"] = 1
    operator.document["processes"]["to_l1"] |= {
        "attempts": 2, "codes": [operator.code(timeout=3, memory="300MB")], "inputs": ["L0"],
    }  # fmt: skip
    operator.load()
    for number, word in enumerate((*KINDS, "good"), start=1):
        operator.drop(f"demo_L0_2020010{number}_v1.0.0.dat", word)
    operator.ingest()
    done = operator.run("build", "--here", code=1)
    assert "no calibration" in done.stderr
    assert operator.files("L1") == ["demo_L1_20200107_v1.0.0.dat"] and operator.made("L2") == ["2020-01-07"]
    rows = sql("SELECT extract(day FROM day)::integer, array_agg(DISTINCT kind), max(attempt), count(*)"
               " FROM headrace.product_build WHERE state = 'failed' GROUP BY 1 ORDER BY 1")  # fmt: skip
    assert [(*kinds, attempt, count) for _, kinds, attempt, count in rows] == [(kind, 2, 2) for kind in KINDS.values()]
    assert sql("SELECT count(*) FROM headrace.product_slot WHERE has_given_up") == [(6,)]
    assert sorted(os.listdir(operator.root / "L1/2020")) == ["demo_L1_20200107_v1.0.0.dat"]
    assert os.listdir(operator.root / ".headrace") == []
    assert not any(is_running(number) for number in os.listdir("/proc") if number.isdecimal())
    operator.script("copy.sh")
    before = operator.builds()
    operator.run("build", "--here", code=1)  # without a change or a person nothing is tried again
    assert operator.builds() == before
    operator.run("retry", "L1")
    operator.run("build", "--here")
    assert operator.newest("L1") == {f"01-0{day}": "1.0.0" for day in range(1, 8)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kilobytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("a full disk is tested where this user may mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_at_the_final_move(operator: Operator, sql: Ask, small_disk: Path, tmp_path: Path) -> None:
    """No half file under the final name and no row of it, nothing is lost; with room again it completes by itself."""
    operator.document["products"]["L1"]["folder"] = str(small_disk)
    operator.document["scratch"] = str(tmp_path / "scratch")
    operator.load()
    (small_disk / "other").write_bytes(b"x" * 60_000)
    operator.drop("demo_L0_20200101_v1.0.0.dat", os.urandom(30_000))
    operator.settle()
    assert os.listdir(small_disk) == ["other"] and operator.files("L1") == []
    assert sql("SELECT state, kind FROM headrace.product_build") == [("failed", "no_space")]
    assert sql("SELECT has_given_up, kind, due_at > now() FROM headrace.product_slot") == [(False, "no_space", True)]
    (small_disk / "other").unlink()
    sql("UPDATE headrace.product_slot SET due_at = clock_timestamp()")  # a minute has passed
    assert operator.settle() == [] and operator.build() == []
    assert operator.newest("L1") == operator.newest("L2") == {"01-01": "1.0.0"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to_l1": {"inputs": ["L0", "L2"]}}, ["L1", "L2", "->"]),
        ({"to_l1": {"inputs": ["L1"]}}, ["L1"]),
        ({"to_l2": {"output": "L1", "inputs": ["L0"]}}, ["L1", "to_l1", "to_l2"]),
    ],
    ids=["cycle", "self-loop", "two producers"],
)  # fmt: skip
def test_impossible_graphs_are_refused(operator: Operator, sql: Ask, changes: dict[str, Any], words: list[str]) -> None:
    """A cycle, a product made of itself, and two makers of one product are refused by name, and nothing is changed."""
    operator.load()
    before = sql("SELECT xmin::text, definition FROM headrace.mission")
    for process, update in changes.items():
        operator.document["processes"][process] |= update
    done = operator.run("load", str(operator.definition()), code=2)
    assert all(word in done.stderr for word in words)
    assert sql("SELECT xmin::text, definition FROM headrace.mission") == before


def test_a_plan_changes_nothing_and_is_what_is_done(operator: Operator, sql: Ask) -> None:
    """Database and disk are the same after `plan` and `load --dry-run`; the build makes what the plan said."""
    operator.load(operator.conf_file())
    operator.deliver(*DAYS)
    operator.settle()
    operator.deliver(DAYS[1], version="1.0.1")
    operator.deliver("20200104")
    operator.ingest()
    sql("UPDATE headrace.product_slot SET due_at = NULL")
    (operator.root / "L1/2020/demo_L1_20200103_v1.0.0.dat").unlink()
    sql("UPDATE headrace.product_file SET state = 'missing' WHERE filename = 'demo_L1_20200103_v1.0.0.dat'")
    before = everything(operator, sql)
    steps = operator.steps()
    operator.run("load", "--dry-run", str(operator.conf_file(first="1.1.0")))
    assert everything(operator, sql) == before
    last = operator.builds()
    operator.run("build", "--here")
    made = [("DEMO_L1", day) for day in operator.made("DEMO_L1", last)]
    made += [("DEMO_L2", day) for day in operator.made("DEMO_L2", last)]
    # That the lost file comes out byte for byte as it was, so that nothing follows from it, is not known beforehand.
    assert steps == sorted([*made, ("DEMO_L2", "2020-01-03")])


def is_running(number: str) -> bool:
    """Whether a process is one of those that the slow code starts."""
    try:
        return Path("/proc", number, "cmdline").read_bytes() == b"sleep\x003601\0"
    except OSError:
        return False  # it has ended


def everything(operator: Operator, sql: Ask) -> tuple[list[tuple[Any, ...]], dict[str, tuple[int, float]]]:
    """All rows of all tables of products, and every file with its size and time."""
    tables = sql("SELECT relname FROM pg_class WHERE relnamespace = 'headrace'::regnamespace AND relkind = 'r'"
                 " AND (relname LIKE 'product%' OR relname IN ('mission', 'process', 'code')) ORDER BY 1")  # fmt: skip
    rows = [
        (name, *sql(f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM headrace.{name} t"))
        for (name,) in tables
    ]
    files = [path for path in operator.root.rglob("*") if path.is_file()]
    return rows, {str(path): (path.stat().st_size, path.stat().st_mtime) for path in files}
