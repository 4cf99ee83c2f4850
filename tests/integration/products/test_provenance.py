"""Where a file comes from: as a tree, as PROV-JSON that another program reads, and proven by building it anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prov.constants import PROV
from prov.model import (
    ProvActivity,
    ProvAgent,
    ProvAssociation,
    ProvDerivation,
    ProvDocument,
    ProvEntity,
    ProvGeneration,
    ProvUsage,
)

from tests.integration.products.rows import COPY, DAY, Rows
from workers import database, paths
from workers.errors import PermanentFailure
from workers.products import bundle, prov_json, provenance
from workers.products.proof import Limits, Verdict
from workers.settings import Settings

ODD = 'raw "1"\n\\xff v1.0.0.dat'  # quotes, a newline, and in text form a byte that is not UTF-8
LATER = DAY + timedelta(days=1)


@dataclass
class Lineage:
    """Two delivered files, a level 1 file of each, and a level 2 file of both, the later day first."""

    rows: Rows
    raw: tuple[int, int]
    middle: tuple[int, int]
    top: int
    codes: tuple[int, int]

    @property
    def conn(self) -> database.Connection:
        """The connection, with all of it committed."""
        self.rows.conn.commit()
        return self.rows.conn


@pytest.fixture
def rows(conf: Settings) -> Iterator[Rows]:
    """A builder of rows on a connection as the room opens it."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        yield Rows(conn)


@pytest.fixture
def lineage(rows: Rows, tmp_path: Path) -> Lineage:
    """What the codes would have made, with the rows that they would have left behind."""
    return build_lineage(rows, tmp_path)


def build_lineage(rows: Rows, tmp_path: Path) -> Lineage:
    """Insert it, and write the files."""
    rows.mission(tmp_path / "demo root")
    l0, l1, l2 = (rows.product(f"L{level}", level=level) for level in range(3))
    one, two = rows.process("one", l1, [l0], rank=1), rows.process("two", l2, [l1], rank=2)
    codes = rows.code(one), rows.code(two, "2.1.0", filename="sum up.sh", script=COPY + "# two\n")
    raw = rows.file(l0, content=b"first\n", filename=ODD), rows.file(l0, LATER, content=b"second\n")
    middle = (
        made(rows, one, codes[0], l1, [raw[0]], b"first\n"),
        made(rows, one, codes[0], l1, [raw[1]], b"second\n", later=True),
    )
    top = made(rows, two, codes[1], l2, [middle[1], middle[0]], b"second\nfirst\n")
    return Lineage(rows, raw, middle, top, codes)


def made(
    rows: Rows, process: int, code: int, product: int, inputs: list[int], content: bytes, *, later: bool = False
) -> int:
    """A file that a code made, with the build of it as the room records one: full paths, and its scratch folder."""
    day, scratch = LATER if later else DAY, f"{rows.root}/.headrace/build {process}"
    name = f"made{product}_{day:%Y%m%d}_v1.0.0.dat"
    filename, sha256 = rows.ask("SELECT filename, sha256 FROM headrace.code WHERE id = %s", code)[0]
    command = [f"{rows.codes()}/{filename}"]
    command += [paths.to_text(os.fsencode(rows.path(one))) for one in inputs] + [f"{scratch}/{name}"]
    build = rows.build(
        process, day, code=code, inputs=inputs, command=command, scratch=scratch, code_sha256=sha256, output_name=name
    )
    return rows.file(product, day, content=content, inputs=inputs, code=code, build=build, filename=name)


def problem_of(verdict: Verdict, file: int) -> tuple[str, str]:
    """(result, problem) of the link of a file."""
    step = next(step for step in verdict.steps if step.file == file)
    return step.result, step.problem or ""


def test_a_tree_leads_from_a_file_to_what_was_delivered(lineage: Lineage) -> None:
    """Every ancestor is there once, with its build and code, and inputs stand as the code read them."""
    tree = provenance.tree(lineage.conn, lineage.top)
    assert set(tree.nodes) == {*lineage.raw, *lineage.middle, lineage.top}
    assert tree.links[lineage.top] == (lineage.middle[1], lineage.middle[0])
    top, raw = tree.nodes[lineage.top], tree.nodes[lineage.raw[0]]
    assert top.build is not None and top.code is not None
    assert (top.product, str(top.code.version), top.build.host, top.build.exit_status) == ("L2", "2.1.0", "here", 0)
    assert top.code.path == str(lineage.rows.codes() / "sum up.sh") == top.build.command[0]
    assert (raw.filename, raw.build, raw.code, tree.links[raw.id]) == (ODD, None, None, ())
    assert [(line.depth, line.id, line.is_repeated) for line in tree.lines()] == [
        (0, lineage.top, False), (1, lineage.middle[1], False), (2, lineage.raw[1], False),
        (1, lineage.middle[0], False), (2, lineage.raw[0], False),
    ]  # fmt: skip


def test_descendants_are_all_that_was_made_of_a_file(lineage: Lineage) -> None:
    """Down from a delivered file: the level 1 file of its day and the level 2 file, not the other day's."""
    tree = provenance.descendants(lineage.conn, lineage.raw[0])
    assert [(line.depth, line.id) for line in tree.lines()] == [
        (0, lineage.raw[0]),
        (1, lineage.middle[0]),
        (2, lineage.top),
    ]


def test_a_shared_ancestor_is_printed_with_its_inputs_once(lineage: Lineage) -> None:
    """A file that two others were made from is named both times, and followed the first time."""
    rows, (first, second) = lineage.rows, lineage.middle
    third = rows.file(rows.product("L3"), inputs=[first, lineage.top])
    lines = list(provenance.tree(lineage.conn, third).lines())
    assert [line.is_repeated for line in lines if line.id == first] == [False, True]
    assert sum(line.id == lineage.raw[0] for line in lines) == 1
    assert [line.id for line in lines][-1] == first and sum(line.id == second for line in lines) == 1


def test_a_circle_ends(lineage: Lineage) -> None:
    """Lineage rows that somebody closed to a circle are followed once around, by both questions."""
    rows, (first, second) = lineage.rows, lineage.raw
    rows.ask("INSERT INTO headrace.product_link VALUES (%s, %s), (%s, %s)", first, second, second, first)
    for question in (provenance.tree, provenance.descendants):
        tree = question(lineage.conn, first)
        assert {first, second} <= set(tree.inputs_first()) == set(tree.links)
        assert len(list(tree.lines())) <= 2 * len(tree.links)


def test_a_lineage_of_thousands_in_a_row_is_followed(lineage: Lineage) -> None:
    """A product that each day is made from its yesterday has a lineage as deep as its days."""
    rows = lineage.rows
    product = rows.product("chain")
    rows.ask(
        "WITH made AS (INSERT INTO headrace.product_file (mission_id, product_id, filename, place, day, start_at, "
        "stop_at, interface, quality, revision, state) SELECT %s, %s, 'c' || g, 'c' || g, '2000-01-01'::date + g, "
        "'2000-01-01', '2000-01-01', 1, 0, 0, 'present' FROM generate_series(1, 3000) g RETURNING id) "
        "INSERT INTO headrace.product_link SELECT id - 1, id FROM made WHERE id > (SELECT min(id) FROM made)",
        rows.mission_id, product,
    )  # fmt: skip
    last = int(rows.ask("SELECT max(id) FROM headrace.product_file")[0][0])
    tree = provenance.tree(lineage.conn, last)
    assert tree.inputs_first() == list(range(last - 2999, last + 1))
    assert [line.depth for line in tree.lines()] == list(range(3000))


def test_a_file_is_found_by_its_name_path_or_id(lineage: Lineage) -> None:
    """Name, path from the top or from the root, and id lead to the same file; another folder's path does not."""
    conn, root, (odd, plain) = lineage.conn, lineage.rows.root, lineage.raw
    for text in (ODD, f"L0/{ODD}", f"{root}/L0/{ODD}", str(odd)):
        assert provenance.find(conn, text) == [odd], text
    for text in (f"/elsewhere/{ODD}", "nothing", "", "0", "9" * 30, "²"):
        assert provenance.find(conn, text) == [], text
    name = str(plain)
    named = lineage.rows.file(lineage.rows.product("numbers"), filename=name)
    assert provenance.find(conn, name) == [plain, named]


def test_an_unknown_id_is_refused(lineage: Lineage) -> None:
    """There is no tree of a file that is not there."""
    with pytest.raises(PermanentFailure, match="no file with the id 12345"):
        provenance.tree(lineage.conn, 12345)


def test_another_program_reads_the_prov_document(lineage: Lineage) -> None:
    """The `prov` package finds every ancestor, each code with its hash, each run with its times, and the relations."""
    rows = lineage.rows
    better = rows.file(rows.ask("SELECT product_id FROM headrace.product_file WHERE id = %s", lineage.top)[0][0], DAY,
                       "1.1.0", inputs=[lineage.middle[0]])  # fmt: skip
    tree = provenance.tree(lineage.conn, lineage.top)
    read = ProvDocument.deserialize(content=json.dumps(prov_json.document(tree)), format="json")
    assert {str(one.identifier) for one in read.get_records(ProvEntity)} == {
        *(f"file:{one}" for one in tree.nodes),
        *(f"code:{code}-{sha[:16]}" for code, sha in rows.ask("SELECT id, sha256 FROM headrace.code")),
    }
    found = [one for one in read.get_records() if isinstance(one, ProvActivity)]
    runs = {str(run.identifier): (run.get_startTime(), run.get_endTime()) for run in found}
    told = rows.ask("SELECT 'build:' || id, started_at, finished_at FROM headrace.product_build")
    assert runs == {build: (began, ended) for build, began, ended in told}
    agents = {str(one.identifier).partition(":")[0] for one in read.get_records(ProvAgent)}
    assert agents == {"software", "host"}
    counts = {
        kind: len(list(read.get_records(kind))) for kind in (ProvGeneration, ProvUsage, ProvDerivation, ProvAssociation)
    }
    assert counts == {ProvGeneration: 3, ProvUsage: 4, ProvDerivation: 4, ProvAssociation: 6}
    plans = {str(value) for one in read.get_records(ProvAssociation) for name, value in one.attributes
             if name.localpart == "plan"}  # fmt: skip
    assert all(plan.startswith("code:") for plan in plans) and len(plans) == 2

    revised = ProvDocument.deserialize(
        content=json.dumps(prov_json.document(provenance.tree(lineage.conn, better))), format="json"
    )
    revisions = [
        one.args for one in revised.get_records(ProvDerivation) if PROV["Revision"] in one.get_asserted_types()
    ]
    assert [tuple(map(str, ends[:2])) for ends in revisions] == [(f"file:{better}", f"file:{lineage.top}")]


@pytest.mark.parametrize("suffix", ["", "proof.tar.gz"])
def test_a_bundle_proves_a_file_where_nothing_else_is(lineage: Lineage, tmp_path: Path, suffix: str) -> None:
    """With the mission's folders gone, the archive alone is enough to make every file again, byte for byte."""
    written = bundle.write(lineage.conn, lineage.top, tmp_path / suffix if suffix else tmp_path)
    assert written.name == (suffix or "made3_20270301_v1.0.0.dat.bundle.tar")
    for folder in (lineage.rows.root, lineage.rows.codes()):
        shutil.rmtree(folder)
    verdict = bundle.verify(written, tmp_path / "scratch", limits=Limits(timeout_seconds=60))
    assert verdict.is_proven, verdict.problems
    assert [step.kind for step in verdict.steps] == ["raw", "build", "raw", "build", "build"]
    assert verdict.folder is None and list((tmp_path / "scratch").iterdir()) == []
    with tarfile.open(written) as tar:
        manifest = json.load(tar.extractfile("manifest.json") or pytest.fail("no manifest"))
        names = [os.fsencode(name) for name in tar.getnames()]
    assert f"files/{lineage.raw[0]}/".encode() + paths.to_bytes(ODD) in names
    assert names.count(f"codes/{lineage.codes[0]}/copy.sh".encode()) == 1
    assert manifest["lineage"]["nodes"][str(lineage.top)]["build"]["command"][1].endswith("made2_20270302_v1.0.0.dat")


def test_a_file_is_proven_in_place(lineage: Lineage, tmp_path: Path) -> None:
    """Without an archive the same is done with what lies here; nothing of the mission is touched."""
    before = {path: path.stat().st_mtime_ns for path in lineage.rows.root.rglob("*")}
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert verdict.is_proven, verdict.problems
    assert before == {path: path.stat().st_mtime_ns for path in lineage.rows.root.rglob("*")}


def test_a_mission_that_moved_can_still_be_proven(lineage: Lineage, tmp_path: Path) -> None:
    """Commands name old paths; files are known by their names then."""
    moved = tmp_path / "moved"
    lineage.rows.root.rename(moved)
    lineage.rows.ask("UPDATE headrace.mission SET root = %s", str(moved))
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert verdict.is_proven, verdict.problems


def test_a_build_that_changed_nothing_can_be_repeated(lineage: Lineage, tmp_path: Path) -> None:
    """It wrote under the name of a version that was never made, and paths may stand within its words."""
    rows = lineage.rows
    first, second = (rows.path(one) for one in lineage.middle)
    scratch, executable = f"{rows.root}/.headrace/again", rows.codes() / "sum up.sh"
    executable.write_text('#!/bin/sh\nfor one in ${1#--in=}; do cat "$one"; done > "${2#-o}"\n')
    command = [str(executable), f"--in={second} {first}", f"-o{scratch}/made3_20270301_v1.1.0.dat"]
    rows.ask(
        "UPDATE headrace.product_build SET state = 'unchanged', command = %s, scratch = %s, code_sha256 = %s "
        "WHERE output_id = %s",
        command, scratch, hashlib.sha256(executable.read_bytes()).hexdigest(), lineage.top,
    )  # fmt: skip
    # Where they were is not where they are read from.
    rows.path(lineage.middle[0]).unlink()
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert verdict.is_proven, verdict.problems


def test_a_purged_ancestor_is_named(lineage: Lineage, tmp_path: Path) -> None:
    """When a delivered file was cleaned away, exactly that link is gone; the other branch is still proven."""
    lineage.rows.path(lineage.raw[1]).unlink()
    lineage.rows.ask("UPDATE headrace.product_file SET state = 'removed' WHERE id = %s", lineage.raw[1])
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert problem_of(verdict, lineage.raw[1])[0] == "gone"
    assert "says removed" in problem_of(verdict, lineage.raw[1])[1] and len(verdict.problems) == 1
    assert [problem_of(verdict, one)[0] for one in (*lineage.middle, lineage.top)] == ["equal", "untried", "untried"]
    assert verdict.folder is not None and verdict.folder.is_dir()
    with pytest.raises(PermanentFailure, match=r"there is no .*L0_20270302_v1\.0\.0\.dat.*removed"):
        bundle.write(lineage.conn, lineage.top, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists() and list(tmp_path.glob(".bundle-*")) == []


def test_a_forgotten_ancestor_is_named(lineage: Lineage, tmp_path: Path) -> None:
    """When even its row is gone, the build that read it still says that it was there."""
    lineage.rows.ask("DELETE FROM headrace.product_file WHERE id = %s", lineage.raw[1])
    tree = provenance.tree(lineage.conn, lineage.top)
    assert tree.forgotten == (lineage.raw[1],)
    assert [line.node for line in tree.lines() if line.id == lineage.raw[1]] == [None]
    assert prov_json.document(tree)["entity"][f"file:{lineage.raw[1]}"]["headrace:state"] == "forgotten"
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert problem_of(verdict, lineage.raw[1])[0] == "gone" and not verdict.is_proven


def test_a_removed_file_in_between_is_built_again(lineage: Lineage, tmp_path: Path) -> None:
    """What lies between delivered files and the proven one need not be on disk: its recorded hash is enough."""
    lineage.rows.path(lineage.middle[0]).unlink()
    assert bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch").is_proven


def test_each_difference_is_told(lineage: Lineage, tmp_path: Path) -> None:
    """A changed input, a changed code, a code that fails or writes something else: the link says which it is."""
    rows, conn = lineage.rows, lineage.conn
    executable = rows.codes() / "sum up.sh"

    def outcome(file: int) -> tuple[str, str]:
        return problem_of(bundle.verify_file(conn, lineage.top, tmp_path / "scratch"), file)

    executable.write_text("#!/bin/sh\nexit 3\n")
    assert outcome(lineage.top)[0] == "differs" and "sum up.sh 2.1.0 with sha256" in outcome(lineage.top)[1]
    with pytest.raises(PermanentFailure, match=r"was made by sum up\.sh 2\.1\.0"):
        bundle.write(conn, lineage.top, tmp_path)

    rows.ask("UPDATE headrace.product_build SET code_sha256 = NULL")
    rows.ask("UPDATE headrace.code SET sha256 = NULL")
    conn.commit()
    assert outcome(lineage.top)[0] == "failed" and "3" in outcome(lineage.top)[1]
    executable.write_text("#!/bin/sh\n")
    assert outcome(lineage.top)[0] == "failed" and "wrote no" in outcome(lineage.top)[1]
    executable.write_text(COPY + 'echo more >> "$out"\n')
    assert outcome(lineage.top)[0] == "differs" and "but recorded is" in outcome(lineage.top)[1]
    executable.unlink()
    assert outcome(lineage.top) == ("gone", f"made3_20270301_v1.0.0.dat: there is no {executable}")

    rows.path(lineage.raw[0]).write_bytes(b"forged\n")
    assert outcome(lineage.raw[0])[0] == "differs"
    with pytest.raises(PermanentFailure, match="but recorded is"):
        bundle.write(conn, lineage.middle[0], tmp_path)


def test_what_was_imported_is_taken_as_it_is(lineage: Lineage, tmp_path: Path) -> None:
    """Of an imported build only a command's text is known: its file is compared, not made, and by sha1 if need be."""
    rows = lineage.rows
    rows.ask("UPDATE headrace.product_build SET state = 'imported', inputs = '{}' WHERE output_id = ANY (%s)",
             list(lineage.middle))  # fmt: skip
    for file, content in zip(lineage.middle, (b"first\n", b"something else\n"), strict=True):
        sha1 = hashlib.sha1(content).hexdigest()
        rows.ask("UPDATE headrace.product_file SET sha1 = %s, sha256 = NULL WHERE id = %s", sha1, file)
    tree = provenance.tree(lineage.conn, lineage.top)
    assert tree.links[lineage.middle[0]] == (lineage.raw[0],)
    verdict = bundle.verify_file(lineage.conn, lineage.top, tmp_path / "scratch")
    assert [step.kind for step in verdict.steps] == ["raw", "raw", "build"]
    assert [problem_of(verdict, one)[0] for one in lineage.middle] == ["equal", "differs"]


def test_what_is_no_bundle_is_refused(lineage: Lineage, tmp_path: Path) -> None:
    """Another file, an archive of something else, and half an archive are told apart from one that can be proven."""
    whole = bundle.write(lineage.conn, lineage.top, tmp_path)
    (tmp_path / "text").write_text("no archive")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "text", "manifest.json")
    (tmp_path / "half.tar").write_bytes(whole.read_bytes()[:2000])
    for name in ("text", "other.tar", "half.tar"):
        with pytest.raises(PermanentFailure, match=name.replace(".", r"\.")):
            bundle.verify(tmp_path / name, tmp_path / "scratch")
