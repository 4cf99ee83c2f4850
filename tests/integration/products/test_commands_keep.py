"""Keeping by command: what `headrace products` checks, releases, cleans and forgets, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.products.desk import Desk, at_desk
from tests.integration.products.rows import DAY
from workers.settings import Settings


@pytest.fixture
def desk(
    conf: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    """A person at it."""
    with at_desk(conf, tmp_path, monkeypatch, capsys) as desk:
        yield desk


@pytest.fixture
def files(desk: Desk) -> dict[str, int]:
    """l0 -> l1 -> l2 on a day, in an old version and a new one, registered two months ago."""
    rows = desk.rows
    products = [rows.product(f"l{level}", level=level) for level in range(3)]
    made: dict[str, int] = {}
    for version in ("1.0.0", "1.1.0"):
        before: list[int] | None = None
        for level, product in enumerate(products):
            file = rows.file(product, version=version, inputs=before)
            made[f"l{level} {version}"] = file
            before = [file]
    rows.ask("UPDATE headrace.product_file SET registered_at = clock_timestamp() - interval '60 days'")
    return made


def states(desk: Desk) -> list[tuple[str, str]]:
    """(file, state) of the files that are not present."""
    return desk.rows.ask("SELECT filename, state FROM headrace.product_file WHERE state <> 'present' ORDER BY id")


def test_fsck_is_exit_1_until_all_is_well(desk: Desk, files: dict[str, int]) -> None:
    """Missing, dark and damaged files are told with what to do; --fix sets the rows; an empty disk changes nothing."""
    assert desk.run("fsck").out == "demo: 6 files: all is well\n"
    desk.rows.path(files["l1 1.1.0"]).write_bytes(b"another size\n")
    desk.rows.path(files["l0 1.1.0"]).unlink()
    (desk.rows.root / "l0" / "dark\nfile").write_bytes(b"")
    said = desk.run("fsck", code=1)
    assert [line.split()[1] for line in said.out.splitlines()[2:5]] == ["missing", "corrupt", "dark"]
    assert "dark␊file" in said.out and "deliver it again" in said.out and states(desk) == []
    [report] = desk.json("fsck", "--fix", "--deep", code=1)["missions"]
    assert (report["counts"], report["fixed"]) == (
        {"missing": 1, "corrupt": 1, "dark": 1}, {"missing": 1, "corrupt": 1},
    )  # fmt: skip
    assert [state for _, state in states(desk)] == ["missing", "corrupt"]
    assert desk.json("fsck", "--since", "2027-03-02")["missions"][0]["files"] == 0
    os.rename(desk.rows.root, f"{desk.rows.root} away")
    assert "is its disk mounted?" in desk.run("fsck", "--fix", code=1).err


def test_releases_are_tagged_listed_exported_and_verified(desk: Desk, files: dict[str, int]) -> None:
    """A release holds the newest files, is written whole or told incomplete, and is never tagged twice."""
    assert "nothing was released" in desk.run("releases", "list").out
    assert desk.json("releases", "tag", "2027.1", "--comment", "first", "--product", "l0")["files"] == 1
    assert desk.run("releases", "tag", "2027.2").out.startswith("release 2027.2: 3 files, 27 B, manifest ")
    assert "is a release 2027.1 already" in desk.run("releases", "tag", "2027.1", code=1).err
    assert "no such product: l9" in desk.run("releases", "tag", "x", "--product", "l9", code=1).err
    assert [one["name"] for one in desk.json("releases", "list")["releases"]] == ["2027.1", "2027.2"]
    assert "first" in desk.run("releases", "list").out
    name = f"l0_{DAY:%Y%m%d}_v1.1.0.dat"
    assert name in desk.run("releases", "list", "2027.2").out
    assert desk.run("releases", "export", "2027.1", "out").out == "out: 1 of 1 files, 9 B\n"
    assert Path("out", name).read_bytes() == b"one line\n"
    assert "3 of 3 files" in desk.run("releases", "verify", "2027.2").out
    desk.rows.path(files["l0 1.1.0"]).write_bytes(b"one LINE\n")
    verdict = desk.json("releases", "verify", "2027.2", code=1)
    assert verdict["good"] == 2 and len(verdict["problems"]) == 1
    assert desk.json("releases", "export", "2027.2", "more", "--how", "symlink", code=1)["files"] == 2
    assert Path("more.incomplete").is_dir()
    assert "there is no release 9" in desk.run("releases", "verify", "9", code=1).err


def test_clean_shows_first_and_removes_with_yes(desk: Desk, files: dict[str, int]) -> None:
    """Only superseded files that nothing needs go, and only after --yes."""
    words = ("clean", "--superseded", "--older-than", "30d")
    said = desk.run(*words).out
    assert "superseded by" in said and said.endswith("3 files, 27 B; nothing was removed: --yes does\n")
    assert states(desk) == []
    document = desk.json(*words, "--product", "l2", "--yes")
    assert (document["done"]["removed"], document["dry_run"]) == (1, False)
    assert not desk.rows.path(files["l2 1.0.0"]).exists()
    assert desk.run(*words, "--yes").out == "2 files are removed, 18 B\n"
    assert desk.run(*words).out == "nothing is to be cleaned\n"
    assert "say --superseded" in desk.run("clean", "--older-than", "30d", code=2).err
    assert "is no age" in desk.run("clean", "--superseded", "--older-than", "a month", code=2).err


def test_forget_shows_first_and_takes_descendants_along(desk: Desk, files: dict[str, int]) -> None:
    """Without --yes nothing goes; with it the file and what was built from it; released ones are refused."""
    name = f"l1_{DAY:%Y%m%d}_v1.0.0.dat"
    said = desk.run("forget", name).out
    assert "built from it" in said and said.endswith("2 files; nothing was forgotten: --yes does\n")
    assert desk.json("forget", name, "--no-descendants")["files"][0]["id"] == files["l1 1.0.0"]
    done = desk.json("forget", name, "--disk", "--yes")["done"]
    assert (done["rows"], done["deleted"], done["bytes"]) == (2, 2, 18)
    assert desk.rows.path(files["l0 1.0.0"]).exists()
    desk.run("releases", "tag", "kept")
    refused = desk.run("forget", str(files["l0 1.1.0"]), "--yes", code=1)
    assert "kept" in refused.err and "nothing was forgotten" in refused.out
    assert desk.rows.ask("SELECT count(*) FROM headrace.product_file") == [(4,)]
    assert "no file has the name, path or id" in desk.run("forget", name, code=1).err


def test_dependencies_are_cleared_and_the_latest_linked(desk: Desk, files: dict[str, int]) -> None:
    """After --yes a file counts as delivered; a folder of links has the newest versions, and keeps what is not ours."""
    top = files["l2 1.1.0"]
    assert "1 inputs would be forgotten" in desk.run("clear-dependencies", str(top)).out
    assert desk.json("clear-dependencies", str(top), "--yes")["cleared"] == 1
    assert desk.rows.ask("SELECT inputs FROM headrace.product_file WHERE id = %s", top) == [(None,)]
    assert desk.run("latest", "newest").out == "newest: 3 links made, 0 kept, 0 removed\n"
    link = Path("newest", f"l2_{DAY:%Y%m%d}_v1.1.0.dat")
    assert os.path.samefile(link, desk.rows.path(top))
    link.unlink()
    link.write_bytes(b"mine")
    document = desk.json("latest", "newest", code=1)
    assert (document["kept"], len(document["problems"]), link.read_bytes()) == (2, 1, b"mine")
