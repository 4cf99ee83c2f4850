"""Taking files in: whatever is delivered comes to its place once, or into quarantine; nothing is lost."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.integration.products.conftest import Ask, Scene
from workers import paths
from workers.errors import NothingToDo
from workers.messages import IngestIncoming
from workers.products import api, ingesting, store

FIRST = "demo_L0_20200101_v1.0.0.dat"
SECOND = "demo_L0_20200102_v1.0.0.dat"
WHOLE = b"data\nEND\n"


def places(sql: Ask) -> dict[str, str]:
    """Where the present files are, by their names."""
    return dict(sql("SELECT filename, place FROM headrace.product_file WHERE state = 'present'"))


def left(scene: Scene) -> list[str]:
    """What still lies in the incoming folder."""
    return sorted(os.listdir(scene.incoming))


def kept(scene: Scene) -> list[str]:
    """What lies in quarantine."""
    return sorted(os.listdir(scene.root / "quarantine"))


def test_a_file_comes_to_its_place_with_its_hash(loaded: Scene, sql: Ask) -> None:
    """The folder is made of the product's fields; row, bytes and hash agree; nothing else is left on disk."""
    loaded.drop(FIRST, b"abc")
    assert loaded.ingest() == []
    assert sql("SELECT place, sha256, bytes, state, is_newest, source, temporary FROM headrace.product_file") == [
        (f"L0/2020/{FIRST}", hashlib.sha256(b"abc").hexdigest(), 3, "present", True, None, None)
    ]
    assert [one.name for one in (loaded.root / "L0/2020").iterdir()] == [FIRST]
    assert left(loaded) == [] and sql("SELECT 1 FROM headrace.product_arrival") == []


def test_a_file_that_still_changes_is_not_touched(loaded: Scene, sql: Ask) -> None:
    """What changed less than the quiet period ago stays, whatever time its owner gave it; later it comes in whole."""
    path = loaded.drop(FIRST, b"half")
    os.utime(path, (1, 1))  # as a copy that keeps the time of the original
    assert loaded.ingest(settle_seconds=3600.0) == []
    assert loaded.files() == [] and left(loaded) == [FIRST]
    loaded.drop(FIRST, WHOLE)
    assert loaded.ingest() == []
    assert sql("SELECT bytes FROM headrace.product_file") == [(len(WHOLE),)]


def test_a_clock_that_was_set_back(loaded: Scene) -> None:
    """A file of the future is taken in once it has been seen unchanged for so long, by the database's clock."""
    path = loaded.drop(FIRST)
    ahead = time.time() + 86_400
    os.utime(path, (ahead, ahead))
    loaded.ingest(settle_seconds=0.3)
    assert loaded.files() == []
    deadline = time.monotonic() + 20
    while not loaded.files() and time.monotonic() < deadline:
        loaded.ingest(settle_seconds=0.3)
    assert loaded.files() == [FIRST]


@pytest.mark.parametrize(
    ("rule", "bad"), [({"min_bytes": 5}, b""), ({"min_bytes": 5}, b"1234"), ({"trailer": "END\n"}, b"data\nEN")],
    ids=["empty", "short", "cut off"],
)  # fmt: skip
def test_a_truncated_file_is_kept_aside_until_it_comes_whole(scene: Scene, rule: dict[str, Any], bad: bytes) -> None:
    """A file below its product's size, or without its end, is quarantined; delivered whole, it comes in."""
    scene.document["products"]["L0"] |= rule
    scene.load()
    scene.drop(FIRST, bad)
    scene.drop(SECOND, WHOLE)
    scene.ingest()
    assert scene.files() == [SECOND] and scene.quarantined() == [(FIRST, "truncated")]
    [problem] = scene.why()
    assert (scene.root / "quarantine" / FIRST).read_bytes() == bad
    assert "deliver it again whole" in problem
    scene.drop(FIRST, WHOLE)
    assert scene.settle() == []
    assert sorted(scene.files("L1")) == ["demo_L1_20200101_v1.0.0.dat", "demo_L1_20200102_v1.0.0.dat"]


def test_an_empty_file_is_a_file(loaded: Scene) -> None:
    """A product that asks for no size takes an empty file, as dbprocessing does."""
    loaded.drop(FIRST, b"")
    assert loaded.ingest() == [] and loaded.files() == [FIRST]


def test_folders_and_dangling_links_stop_nobody(loaded: Scene) -> None:
    """A folder stays where it is, a link to nothing goes into quarantine, hidden files are not looked at."""
    (loaded.incoming / "demo_L0_20200103_v1.0.0.dat").mkdir()
    (loaded.incoming / ".demo_L0_20200104_v1.0.0.dat.part").write_text("half")
    (loaded.incoming / SECOND).symlink_to("/nowhere/at/all")
    loaded.drop(FIRST)
    loaded.ingest()
    assert loaded.files() == [FIRST] and loaded.quarantined() == [(SECOND, "dangling")]
    assert left(loaded) == [".demo_L0_20200104_v1.0.0.dat.part", "demo_L0_20200103_v1.0.0.dat"]
    assert os.readlink(loaded.root / "quarantine" / SECOND) == "/nowhere/at/all"


@pytest.mark.parametrize("place", [f"L0/2020/{FIRST}", f"old archive/{FIRST}"])
def test_a_link_to_a_file_below_the_root_adopts_it_where_it_is(loaded: Scene, sql: Ask, place: str) -> None:
    """Such a file is registered in its place, is not written, and the link is gone."""
    path = loaded.root / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"as it was")
    before = path.stat()
    (loaded.incoming / FIRST).symlink_to(path)
    assert loaded.ingest() == []
    assert places(sql) == {FIRST: place} and left(loaded) == []
    after = path.stat()
    assert path.read_bytes() == b"as it was" and not path.is_symlink()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)


def test_a_link_to_a_file_elsewhere_takes_a_copy(loaded: Scene, tmp_path: Path, sql: Ask) -> None:
    """The original stays with its owner; ours is a file of its own."""
    original = tmp_path / "delivery.bin"
    original.write_bytes(b"theirs")
    (loaded.incoming / FIRST).symlink_to(original)
    assert loaded.ingest() == []
    copy = loaded.root / places(sql)[FIRST]
    assert original.read_bytes() == copy.read_bytes() == b"theirs"
    assert not copy.is_symlink() and not copy.samefile(original) and left(loaded) == []


@pytest.mark.parametrize(
    "word", [b"it's \"two words\"", b"line\nbreak", b"\xff\xfe", b"-rf $HOME;ls 100%"],
    ids=["quotes", "newline", "no UTF-8", "shell"],
)  # fmt: skip
def test_any_name(scene: Scene, sql: Ask, word: bytes) -> None:
    """A name may hold whatever a file system allows: it comes to its place and is built from."""
    for name in ("L0", "L1"):
        scene.document["products"][name]["format"] = paths.to_text(word) + f"_{name}_{{DATE}}_v{{VERSION}}.dat"
    scene.load()
    scene.drop(word + b"_L0_20200101_v1.0.0.dat", b"content\n")
    scene.drop(word, b"junk")
    assert scene.settle() == []
    assert scene.quarantined() == [(paths.to_text(word), "no_product")]
    made = os.fsencode(scene.root) + b"/L1/2020/" + word + b"_L1_20200101_v1.0.0.dat"
    with open(made, "rb") as file:
        assert file.read() == b"content\n"
    assert sql("SELECT count(*) FROM headrace.product_file WHERE state = 'present'") == [(3,)]


def test_the_same_file_again_is_dropped(loaded: Scene, sql: Ask) -> None:
    """Equal name and bytes: one row, nothing in quarantine, nothing is built again."""
    loaded.drop(FIRST, b"abc")
    loaded.settle()
    before = loaded.builds()
    loaded.drop(FIRST, b"abc")
    assert loaded.settle() == []
    assert (loaded.files("L0"), loaded.quarantined(), left(loaded), loaded.builds()) == ([FIRST], [], [], before)


def test_the_same_name_with_other_bytes_is_a_conflict(loaded: Scene, sql: Ask) -> None:
    """The file that is there stays as it is; the message has both hashes."""
    loaded.drop(FIRST, b"abc")
    loaded.ingest()
    loaded.drop(FIRST, b"other")
    loaded.ingest()
    [problem] = loaded.why()
    assert loaded.quarantined() == [(FIRST, "content_conflict")]
    assert hashlib.sha256(b"abc").hexdigest() in problem and hashlib.sha256(b"other").hexdigest() in problem
    assert (loaded.root / places(sql)[FIRST]).read_bytes() == b"abc"
    assert (loaded.root / "quarantine" / FIRST).read_bytes() == b"other"


@pytest.mark.parametrize("at_once", [True, False])
def test_the_same_version_under_another_name_is_a_conflict(scene: Scene, at_once: bool) -> None:
    """A product has one file of a day and version, whether the second one comes along or later."""
    scene.document["products"]["L0"]["format"] = "{??}_L0_{DATE}_v{VERSION}.dat"
    scene.load()
    scene.drop("aa_L0_20200101_v1.0.0.dat", b"a")
    if not at_once:
        scene.ingest()
    scene.drop("bb_L0_20200101_v1.0.0.dat", b"b")
    scene.ingest()
    [problem] = scene.why()
    assert scene.files("L0") == ["aa_L0_20200101_v1.0.0.dat"]
    assert scene.quarantined() == [("bb_L0_20200101_v1.0.0.dat", "version_conflict")]
    assert "aa_L0_20200101_v1.0.0.dat" in problem and "give it a higher version" in problem


def test_what_was_missing_is_put_back_when_it_is_delivered_again(loaded: Scene, sql: Ask) -> None:
    """A lost file takes its place again, and its outputs, which are of these very bytes, stay."""
    loaded.drop(FIRST, b"abc")
    loaded.settle()
    before, path = loaded.builds(), loaded.root / f"L0/2020/{FIRST}"
    path.unlink()
    sql("UPDATE headrace.product_file SET state = 'missing' WHERE filename = %s", FIRST)
    loaded.drop(FIRST, b"abc")
    assert loaded.settle() == []
    assert path.read_bytes() == b"abc" and loaded.files("L0") == [FIRST] and loaded.builds() == before


def test_a_marker_says_that_a_file_is_whole(scene: Scene) -> None:
    """Without its marker a file waits, and is no trouble; with it, the file comes in and the marker goes."""
    scene.document["products"]["L0"]["marker"] = ".done"
    scene.load()
    scene.drop(FIRST)
    assert scene.ingest() == [] and left(scene) == [FIRST]
    scene.drop(f"{FIRST}.done", b"")
    assert scene.ingest() == []
    assert scene.files() == [FIRST] and left(scene) == [] and scene.quarantined() == []


def test_a_misnamed_file_is_kept_with_a_hint(loaded: Scene) -> None:
    """A file of no product goes into quarantine as it is, and people are told what it may have been meant to be."""
    loaded.drop("demo_L0_20200101_v1.0.dat", b"junk")
    loaded.ingest()
    [problem] = loaded.why()
    assert loaded.quarantined() == [("demo_L0_20200101_v1.0.dat", "no_product")]
    assert FIRST in problem
    assert (loaded.root / "quarantine/demo_L0_20200101_v1.0.dat").read_bytes() == b"junk"


def test_the_quarantine_gives_back_after_the_definition_is_right(scene: Scene, sql: Ask) -> None:
    """A file of two products is kept, both named; once their formats differ, it comes back and in."""
    scene.document["products"]["L1"]["format"] = "demo_{??}_{Y}{m}{d}_v{VERSION}.dat"
    scene.document["processes"] = {}
    scene.load()
    scene.drop(FIRST)
    scene.ingest()
    [problem] = scene.why()
    assert scene.quarantined() == [(FIRST, "ambiguous")] and "L0 or L1" in problem
    scene.document["products"]["L1"]["format"] = "demo_L1_{Y}{m}{d}_v{VERSION}.dat"
    scene.load()
    with api.connection(scene.conf, purpose="tests") as conn:
        done, problems = api.give_back(conn, None, mission="DEMO", by="test")
    assert len(done) == 1 and problems == [] and left(scene) == [FIRST]
    assert scene.ingest() == [] and scene.files("L0") == [FIRST] and kept(scene) == []
    assert sql("SELECT state, settled_by FROM headrace.product_quarantine") == [("retried", "test")]


def test_what_comes_into_quarantine_again_takes_nobodys_place(loaded: Scene) -> None:
    """Two files of one bad name are both kept."""
    for content in (b"one", b"two"):
        loaded.drop("junk.bin", content)
        loaded.ingest()
    assert [reason for _, reason in loaded.quarantined()] == ["no_product"] * 2
    assert {(loaded.root / "quarantine" / name).read_bytes() for name in kept(loaded)} == {b"one", b"two"}


@pytest.mark.parametrize(
    ("body", "word"), [("raise KeyError('calibration')", "calibration"), ("import time; time.sleep(600)", "second")],
    ids=["raises", "hangs"],
)  # fmt: skip
def test_a_bad_inspector_costs_its_own_files_only(scene: Scene, body: str, word: str) -> None:
    """A file whose inspector fails or hangs is quarantined with the reason; files of other products go on."""
    (scene.root / "inspectors/bad.py").write_text(
        "from dbprocessing import inspector\nclass Inspector(inspector.inspector):\n    code_name = 'bad.py'\n"
        f"    def inspect(self, kwargs):\n        {body}\n"
    )
    scene.document["products"]["L2"]["inspector"] = {"file": "bad.py"}
    scene.load()
    scene.drop("unknown.bin", b"whose")
    scene.drop(FIRST)
    scene.ingest(inspector_seconds=1.0)
    [problem] = scene.why()
    assert scene.files() == [FIRST] and scene.quarantined() == [("unknown.bin", "inspector")]
    assert "L2" in problem and word in problem


def test_missing_folders_are_made(loaded: Scene) -> None:
    """Neither a missing incoming folder nor a missing quarantine is trouble."""
    loaded.incoming.rmdir()
    assert not (loaded.root / "quarantine").exists()
    assert loaded.ingest() == []
    loaded.drop("junk.bin", b"junk")
    loaded.ingest()
    assert kept(loaded) == ["junk.bin"]


def test_an_unknown_file_in_the_place_is_not_overwritten(loaded: Scene) -> None:
    """Whatever lies where a file belongs stays; the new one is kept aside with the reason."""
    taken = loaded.root / f"L0/2020/{FIRST}"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"whose?")
    loaded.drop(FIRST, b"new")
    loaded.ingest()
    assert taken.read_bytes() == b"whose?" and loaded.quarantined() == [(FIRST, "place_taken")]


def test_one_at_a_time(loaded: Scene, dsn: str) -> None:
    """While somebody takes files in from a folder, another one leaves it alone; after that, it goes on."""
    loaded.drop(FIRST)
    message = IngestIncoming(host="here", mission="DEMO")
    with closing(psycopg2.connect(dsn)) as other, store.folder(other, str(loaded.incoming)) as is_ours:
        assert is_ours
        with pytest.raises(NothingToDo, match="another process"):
            ingesting.ingest(message, loaded.conf)
        assert left(loaded) == [FIRST]
    assert loaded.ingest() == [] and loaded.files() == [FIRST]


def test_two_at_once_take_each_file_once(loaded: Scene) -> None:
    """Two ingests that begin together leave every file present, once, and no trouble."""
    names = [f"demo_L0_202001{day:02d}_v1.0.{number}.dat" for day in range(1, 11) for number in range(2)]
    for name in names:
        loaded.drop(name, name)
    begin, bugs = threading.Barrier(2), []

    def take() -> None:
        begin.wait(20)
        try:
            ingesting.ingest(IngestIncoming(host="here", mission="DEMO", then_build=False), loaded.conf)
        except NothingToDo:
            pass  # the other one was faster
        except Exception as bug:
            bugs.append(bug)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert bugs == []
    assert sorted(loaded.files("L0")) == names and left(loaded) == [] and loaded.quarantined() == []
    assert set(loaded.newest("L0").values()) == {"1.0.1"}
