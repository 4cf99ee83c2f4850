"""Releases: a tagged set never changes, is exported whole or told to be incomplete, and is verified by its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Literal

import psycopg2
import pytest

from tests.integration.products.rows import DAY, Rows
from workers import database
from workers.errors import Cancelled, PermanentFailure
from workers.products import releases
from workers.products.release_export import export
from workers.products.releases import Release
from workers.settings import Settings

ODD = 'odd "1"\nx\\xff.dat'  # quotes, a newline, and a byte that is not UTF-8


@pytest.fixture
def rows(conf: Settings, tmp_path: Path) -> Iterator[Rows]:
    """A mission with a product `l0` of two versions and a product `l1`."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        made = Rows(conn)
        made.mission(tmp_path / "data")
        l0, l1 = made.product("l0"), made.product("l1", level=1)
        made.file(l0)
        made.file(l0, version="1.1.0", content=b"better\n")
        made.file(l0, day=DAY + timedelta(days=1))
        made.file(l1, filename=ODD, place=f"l1/{ODD}", content=b"odd\n")
        conn.commit()
        yield made


def tag(rows: Rows, name: str = "r1", **choice: object) -> Release:
    """Tag and commit."""
    made = releases.tag(rows.conn, rows.mission_id, name, by="me", **choice)  # type: ignore[arg-type]
    rows.conn.commit()
    return made


def names(rows: Rows, release: Release) -> list[str]:
    """The files of a release."""
    return [one.filename for one in releases.files(rows.conn, release)]


def test_a_release_is_the_newest_files_and_its_manifest_is_their_hash(rows: Rows) -> None:
    """Without a choice the newest of all are tagged; the manifest is what sha256sum would have written, sorted."""
    made = tag(rows, comment="first")
    assert names(rows, made) == ["l0_20270301_v1.1.0.dat", "l0_20270302_v1.0.0.dat", ODD]
    hashes = [hashlib.sha256(text).hexdigest() for text in (b"better\n", b"one line\n", b"odd\n")]
    lines = [
        f"{hashes[0]}  l0_20270301_v1.1.0.dat\n".encode(),
        f"{hashes[1]}  l0_20270302_v1.0.0.dat\n".encode(),
        f"\\{hashes[2]}  ".encode() + b'odd "1"\\nx\xff.dat\n',
    ]
    assert made.manifest_sha256 == hashlib.sha256(b"".join(sorted(lines))).hexdigest()
    assert (made.files, made.bytes, made.comment, made.tagged_by) == (3, 20, "first", "me")
    assert releases.listing(rows.conn, rows.mission_id) == [made]


def test_products_days_and_files_choose(rows: Rows) -> None:
    """Products and days narrow the newest; ids take older versions, too."""
    assert names(rows, tag(rows, "a", products=["l0"])) == ["l0_20270301_v1.1.0.dat", "l0_20270302_v1.0.0.dat"]
    assert names(rows, tag(rows, "b", since=DAY + timedelta(days=1))) == ["l0_20270302_v1.0.0.dat"]
    assert names(rows, tag(rows, "c", until=DAY, products=["l0"])) == ["l0_20270301_v1.1.0.dat"]
    assert names(rows, tag(rows, "d", files=[1])) == ["l0_20270301_v1.0.0.dat"]


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("r1", {}, "there is a release r1 already"),
        ("x", {"since": DAY + timedelta(days=9)}, "no present file matches"),
        ("x", {"files": []}, "no present file matches"),
        ("x", {"files": [1, 77]}, "has the id 77"),
        ("x", {"files": [1], "products": ["l1"]}, "has the id 1"),
        ("x", {"products": ["l0", "l7"]}, "no such product: l7"),
        (" ", {}, "is no name for a release"),
        ("a/b", {}, "is no name for a release"),
    ],
)
def test_what_cannot_be_tagged_is_refused_and_leaves_nothing(
    rows: Rows, name: str, choice: dict[str, object], message: str
) -> None:
    """An existing name, an empty choice and an absent file are refused, also when the caller commits nonetheless."""
    tag(rows)
    with pytest.raises(PermanentFailure, match=message):
        tag(rows, name, **choice)
    rows.conn.commit()
    assert rows.ask("SELECT count(*) FROM headrace.product_release") == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE headrace.product_release SET name = 'other'",
        "DELETE FROM headrace.product_release_file",
        "UPDATE headrace.product_release_file SET sha256 = ''",
        "DELETE FROM headrace.product_file",
    ],
)
def test_nobody_changes_a_release(rows: Rows, statement: str) -> None:
    """The database itself refuses to change or delete a release, its list and its files' rows."""
    tag(rows)
    with pytest.raises(psycopg2.errors.IntegrityError):
        rows.ask(statement)


@pytest.mark.parametrize("how", ["copy", "link", "symlink"])
def test_an_export_holds_exactly_the_files_and_proves_itself(
    rows: Rows, tmp_path: Path, how: Literal["copy", "link", "symlink"]
) -> None:
    """Each way of exporting gives all files, a manifest that sha256sum accepts, and the release's own hash."""
    made, out = tag(rows), tmp_path / "out"
    done = export(rows.conn, made, out, how=how)
    assert (done.folder, done.files, done.bytes, done.problems) == (out, 3, 20, [])
    assert sorted(os.listdir(os.fsencode(out))) == [
        b"MANIFEST.sha256", b"l0_20270301_v1.1.0.dat", b"l0_20270302_v1.0.0.dat", b"manifest.json",
        b'odd "1"\nx\xff.dat',
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "MANIFEST.sha256"], cwd=out, check=True, capture_output=True)
    assert hashlib.sha256((out / "MANIFEST.sha256").read_bytes()).hexdigest() == made.manifest_sha256
    told = json.loads((out / "manifest.json").read_text())
    assert [one["product"] for one in told["files"]] == ["l0", "l0", "l1"]
    exported, source = out / "l0_20270301_v1.1.0.dat", rows.root / "l0" / "l0_20270301_v1.1.0.dat"
    assert (exported.is_symlink(), exported.samefile(source)) == (how == "symlink", how != "copy")
    assert exported.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_export_with_problems_is_called_incomplete(rows: Rows, tmp_path: Path) -> None:
    """A missing and a changed file are told; the folder with the rest never has the name that was asked for."""
    made, out = tag(rows), tmp_path / "out"
    (rows.root / "l0" / "l0_20270302_v1.0.0.dat").unlink()
    (rows.root / "l0" / "l0_20270301_v1.1.0.dat").write_bytes(b"Better\n")
    done = export(rows.conn, made, out, how="link")
    assert (done.folder, done.files, out.exists()) == (tmp_path / "out.incomplete", 1, False)
    assert len(done.problems) == 2
    assert "not there" in done.problems[1]
    assert "its sha256 is" in done.problems[0]
    assert sorted(path.name for path in done.folder.iterdir())[:2] == ["MANIFEST.sha256", "manifest.json"]
    with pytest.raises(PermanentFailure, match="is there already"):
        export(rows.conn, made, out)


def test_an_export_given_up_or_refused_leaves_nothing(rows: Rows, tmp_path: Path) -> None:
    """After a cancellation, or where the folder is taken, no half export lies about."""
    made, out = tag(rows), tmp_path / "out"

    def cancel(done: int, total: int) -> None:
        raise Cancelled("enough")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(Cancelled):
        export(rows.conn, made, out, progress=cancel)
    assert sorted(tmp_path.iterdir()) == before
    out.mkdir()
    with pytest.raises(PermanentFailure, match="is there already"):
        export(rows.conn, made, out)


def test_a_release_is_verified_by_its_bytes(rows: Rows) -> None:
    """Verifying reads every file: a rotten byte that left size and time alone is told with its path."""
    made = tag(rows)
    assert (releases.verify(rows.conn, made).good, releases.verify(rows.conn, made).problems) == (3, [])
    path = rows.root / "l0" / "l0_20270301_v1.1.0.dat"
    at = path.stat().st_mtime_ns
    path.write_bytes(b"Better\n")
    os.utime(path, ns=(at, at))
    verdict = releases.verify(rows.conn, made)
    assert verdict.good == 2
    assert [problem.split(": ")[0] for problem in verdict.problems] == [str(path)]


def test_imported_files_are_tagged_and_verified_by_sha1(rows: Rows, tmp_path: Path) -> None:
    """A file of which only the sha1 is known is held to that, before and after its sha256 becomes known."""
    sha1 = hashlib.sha1(b"old\n").hexdigest()
    l2 = rows.product("l2")
    file = rows.file(l2, filename="old.dat", content=b"old\n", sha256=None, sha1=sha1)
    made = tag(rows, products=["l2"])
    assert made.manifest_sha256 == hashlib.sha256(f"{sha1}  old.dat\n".encode()).hexdigest()
    rows.ask("UPDATE headrace.product_file SET sha256 = 'known by now' WHERE id = %s", file)
    assert releases.verify(rows.conn, made).problems == []
    export(rows.conn, made, tmp_path / "out")
    subprocess.run(["sha256sum", "-c", "MANIFEST.sha256"], cwd=tmp_path / "out", check=True, capture_output=True)
    rows.path(file).write_bytes(b"new\n")
    assert len(releases.verify(rows.conn, made).problems) == 1
