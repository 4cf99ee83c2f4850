"""The check: what is missing, damaged, unknown or left over is told, and with `fix` put right, on a real disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.products.rows import DAY, Rows
from workers import database
from workers.errors import Cancelled, RetryLater
from workers.products import checking, dark, fixity, keep_store
from workers.products.checking import Report
from workers.settings import Settings


@pytest.fixture
def rows(conf: Settings, tmp_path: Path) -> Iterator[Rows]:
    """A mission with a delivered product `l0` and a derived one `l1`."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        made = Rows(conn)
        made.mission(tmp_path / "data")
        conn.commit()
        yield made


def check(rows: Rows, *, fix: bool = False, deep: bool = False, **options: object) -> Report:
    """Commit what the test wrote, and check."""
    rows.conn.commit()
    return checking.check(rows.conn, rows.mission_id, fix=fix, deep=deep, **options)  # type: ignore[arg-type]


def states(rows: Rows) -> dict[int, str]:
    """The state of every file."""
    return {row[0]: row[1] for row in rows.ask("SELECT id, state FROM headrace.product_file")}


def kinds(report: Report) -> list[tuple[str, int | None]]:
    """What was found, of which file."""
    return [(one.kind, one.file_id) for one in report.findings]


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Change a byte of a file, and not its size."""
    before = path.stat()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    # A second that the first write cannot have had.
    moved = before.st_mtime_ns if keep_time else before.st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(moved, moved))


def test_agreement_is_clean_and_writes_nothing(rows: Rows) -> None:
    """A mission whose files are what their rows say has no findings, also when every byte is read."""
    l0 = rows.product("l0", folder="l0/{Y}")
    rows.file(l0, place="l0/2027/a b\n\\xff.dat", filename="a b\n\\xff.dat")
    rows.file(l0, version="1.1.0", place="l0/2027/x.dat", filename="x.dat")
    report = check(rows, deep=True)
    assert (report.is_clean, report.files, report.bytes_read, report.findings) == (True, 2, 18, [])


def test_troubles_are_told_and_nothing_is_written_without_fix(rows: Rows) -> None:
    """A deleted file is missing, a flipped byte and another size are corrupt; the rows stay until fix is asked for."""
    l0, l1 = rows.product("l0"), rows.product("l1", level=1)
    raw = rows.file(l0)
    gone, flipped = rows.file(l1, inputs=[raw]), rows.file(l1, version="1.1.0", inputs=[raw])
    grown = rows.file(l0, version="1.0.1")
    rows.path(gone).unlink()
    flip(rows.path(flipped))
    rows.path(grown).write_bytes(b"more than it was\n")
    before = rows.ask("SELECT md5(array_agg(f ORDER BY id)::text) FROM headrace.product_file f")
    report = check(rows)
    assert kinds(report) == [("missing", gone), ("corrupt", flipped), ("corrupt", grown)]
    details = [one.detail for one in report.findings]
    assert details[0] == "no file is there"
    assert details[1].startswith(f"its sha256 is {hashlib.sha256(b'Xne line' + bytes([10])).hexdigest()}, not ")
    assert details[2] == "it has 17 bytes, not 9"
    assert [one.remedy for one in report.findings] == [
        "a newer version is there: nothing has to be done",
        "with --fix it is built again",
        "it cannot be rebuilt; deliver it again",
    ]
    assert rows.ask("SELECT md5(array_agg(f ORDER BY id)::text) FROM headrace.product_file f") == before


def test_fix_says_what_the_disk_says_and_a_second_fix_does_nothing(rows: Rows) -> None:
    """With fix the rows are missing or corrupt, the version below is newest again, and the next fix has no new ones."""
    l0 = rows.product("l0")
    old, gone = rows.file(l0), rows.file(l0, version="1.1.0")
    rows.path(gone).unlink()
    other = rows.product("l1")
    bad = rows.file(other)
    flip(rows.path(bad))
    first = check(rows, fix=True)
    assert (first.is_clean, first.fixed) == (True, {"missing": 1, "corrupt": 1})
    assert states(rows) == {old: "present", gone: "missing", bad: "corrupt"}
    assert rows.ask("SELECT id FROM headrace.product_file WHERE is_newest") == [(old,)]
    second = check(rows, fix=True)
    assert (kinds(second), sum(second.fixed.values())) == ([("missing", gone), ("corrupt", bad)], 0)


def test_only_deep_finds_a_byte_that_rotted(rows: Rows) -> None:
    """A byte that changed without the file's time or size is found by reading everything, and only so."""
    rotten = rows.file(rows.product("l0"))
    flip(rows.path(rotten), keep_time=True)
    assert check(rows).is_clean
    assert kinds(check(rows, deep=True)) == [("corrupt", rotten)]


def test_a_touched_file_is_read_once(rows: Rows) -> None:
    """A file with another time and the same bytes is no finding, and with fix it is not read again."""
    file = rows.file(rows.product("l0"))
    os.utime(rows.path(file), (1, 1))
    assert check(rows, fix=True).bytes_read == 9
    assert check(rows, fix=True).bytes_read == 0


def test_what_came_back_is_present_again(rows: Rows) -> None:
    """A missing or corrupt file with the right bytes on disk is found again; one with other bytes is corrupt."""
    l0 = rows.product("l0")
    back, wrong = rows.file(l0, state="missing"), rows.file(l0, version="1.1.0", state="missing")
    healed, lost = rows.file(l0, version="1.2.0", state="corrupt"), rows.file(l0, version="1.3.0", state="corrupt")
    flip(rows.path(wrong), keep_time=True)
    rows.path(lost).unlink()
    assert kinds(check(rows)) == [("found", back), ("corrupt", wrong), ("found", healed), ("missing", lost)]
    assert check(rows, fix=True).is_clean
    assert states(rows) == {back: "present", wrong: "corrupt", healed: "present", lost: "missing"}


def test_imported_files_are_compared_by_sha1_and_get_a_sha256(rows: Rows) -> None:
    """Where only a sha1 is known it decides, and a deep fix fills in the sha256 of those that are right."""
    l0 = rows.product("l0")
    right = rows.file(l0, sha256=None, sha1=hashlib.sha1(b"one line\n").hexdigest())
    wrong = rows.file(l0, version="1.1.0", sha256=None, sha1=hashlib.sha1(b"another\n").hexdigest())
    assert kinds(check(rows, deep=True)) == [("corrupt", wrong)]
    assert rows.ask("SELECT count(*) FROM headrace.product_file WHERE sha256 IS NOT NULL") == [(0,)]
    check(rows, deep=True, fix=True)
    hashes = {row[0]: row[1] for row in rows.ask("SELECT id, sha256 FROM headrace.product_file")}
    assert hashes == {right: hashlib.sha256(b"one line\n").hexdigest(), wrong: None}


def test_dark_files_are_those_nobody_knows(rows: Rows) -> None:
    """Files in product folders without a row are listed; what is hidden, being placed, linked or elsewhere is not."""
    l0 = rows.product("l0", folder="l0/{Y}/{m}")
    rows.product("away", folder=str(rows.root.parent / "away"))
    known = rows.file(l0, place="l0/2027/03/known.dat", filename="known.dat")
    rows.file(l0, version="1.1.0", state="placing", temporary="l0/new.part", content=None)
    outside = rows.root.parent / "away"
    outside.mkdir()
    for path in ("l0/it's dark.dat", "l0/2027/.hidden", "l0/.git/x", "l0/new.part", "l1/elsewhere.dat"):
        (rows.root / path).parent.mkdir(parents=True, exist_ok=True)
        (rows.root / path).write_bytes(b"")
    (outside / "known.dat").write_bytes(b"")
    (rows.root / "l0" / "again").symlink_to(rows.root / "l0" / "2027")
    (rows.root / "l0" / "known.dat").symlink_to(rows.path(known))
    (rows.root / "l0" / "loop").symlink_to(rows.root / "l0")
    report = check(rows)
    found = sorted((one.path, one.detail, one.remedy) for one in report.findings if one.kind == "dark")
    assert [one[:2] for one in found] == [
        (f"{outside}/known.dat", f"the database has known.dat at {rows.path(known)}"),
        (f"{rows.root}/l0/it's dark.dat", "the database does not know it"),
    ]
    assert found[1][2].startswith("`headrace products ingest --mission demo '")
    assert "dark" not in check(rows, since=DAY).counts


def test_folders_of_a_missions_own_are_never_dark(rows: Rows) -> None:
    """With a product that lies at the root itself, incoming, codes, scratch and quarantine below it are not walked."""
    rows.ask(
        "UPDATE headrace.mission SET incoming = root || '/in', codes = root || '/codes', "
        "inspectors = root || '/codes/i', quarantine = root || '/bad', scratch = root || '/tmp'"
    )
    rows.product("l0", folder="{Y}")
    for folder in ("in", "codes/i", "bad", "tmp", "2027"):
        (rows.root / folder).mkdir(parents=True)
        (rows.root / folder / "file").write_bytes(b"")
    assert [one.path for one in check(rows).findings] == [f"{rows.root}/2027/file"]


@pytest.mark.parametrize(
    ("folder", "fixed"),
    [("L1/{Y}/{m}", "L1"), ("a/b", "a/b"), ("{Y}/a", ""), ("", ""), ("/d/x{Y}", "/d"), ("/{Y}", "/"), ("/d/e", "/d/e")],
)
def test_the_fixed_part_of_a_folder(folder: str, fixed: str) -> None:
    """A folder template is walked from its last part without a field."""
    assert dark.fixed_part(folder) == fixed


def test_half_placed_is_told_after_a_minute_only(rows: Rows) -> None:
    """A file that is being placed is no trouble, but for over a minute it is; fix leaves it to its host."""
    l0 = rows.product("l0")
    stuck = rows.file(l0, state="placing", content=None)
    rows.file(l0, version="1.1.0", state="placing", content=None)
    rows.ask(
        "UPDATE headrace.product_file SET registered_at = clock_timestamp() - interval '61 s' * (id = %s)::int", stuck
    )
    rows.file(rows.product("l1"))
    report = check(rows, fix=True)
    assert kinds(report) == [("half_placed", stuck)]
    assert not report.is_clean
    assert set(states(rows).values()) == {"placing", "present"}


def test_leftovers_go_only_when_they_are_what_was_removed(rows: Rows) -> None:
    """Of removed files still on disk, fix deletes those with the removed bytes, and touches no other."""
    l0 = rows.product("l0")
    left, other = rows.file(l0, state="removed"), rows.file(l0, version="1.1.0", state="removed")
    rows.file(l0, version="1.2.0", state="removed", content=None)
    unhashed = rows.file(l0, version="1.3.0", state="removed", sha256=None)
    rows.path(other).write_bytes(b"precious\n")
    expected = [("leftover", left), ("leftover", other), ("leftover", unhashed)]
    assert kinds(check(rows)) == expected
    assert rows.path(left).exists()
    report = check(rows, fix=True)
    assert (kinds(report), report.fixed) == (expected, {"leftover": 1})
    assert [rows.path(one).exists() for one in (left, other, unhashed)] == [False, True, True]


def test_vanished_parents_are_told(rows: Rows) -> None:
    """A file that was built from files whose rows are gone is a lineage finding with their ids."""
    l0, l1 = rows.product("l0"), rows.product("l1")
    parent, kept = rows.file(l0), rows.file(l0, version="1.1.0")
    child = rows.file(l1, inputs=[parent, kept])
    rows.ask("DELETE FROM headrace.product_file WHERE id = %s", parent)
    rows.path_of("l0/l0_20270301_v1.0.0.dat").unlink()
    found = check(rows).findings
    assert [(one.kind, one.file_id, one.detail) for one in found] == [
        ("lineage", child, f"files that it was built from have no row any more: {parent}")
    ]


def test_an_unmounted_root_is_no_loss(rows: Rows) -> None:
    """An empty or absent root of a mission with files is taken for a missing mount: nothing is declared lost."""
    file = rows.file(rows.product("l0"))
    shutil.rmtree(rows.root)
    with pytest.raises(RetryLater, match="is its disk mounted"):
        check(rows, fix=True)
    (rows.root / ".headrace").mkdir(parents=True)
    with pytest.raises(RetryLater, match="is its disk mounted"):
        check(rows, fix=True)
    assert states(rows) == {file: "present"}


def test_a_place_outside_needs_its_folder_to_be_missed(rows: Rows) -> None:
    """A file outside the root whose folder is gone is unreadable, not missing: its disk may come back."""
    l0 = rows.product("l0")
    rows.file(l0)
    away = rows.file(l0, version="1.1.0", place=str(rows.root.parent / "disk" / "x.dat"), filename="x.dat")
    rows.path(away).unlink()
    assert kinds(check(rows)) == [("missing", away)]
    (rows.root.parent / "disk").rmdir()
    assert kinds(check(rows, fix=True)) == [("unreadable", away)]
    assert set(states(rows).values()) == {"present"}


def test_odd_things_in_a_files_place_are_corrupt_and_never_hang(rows: Rows) -> None:
    """A folder or a named pipe under a file's name is corrupt; a link that leads nowhere is a missing file."""
    l0 = rows.product("l0")
    folder, pipe, link = (rows.file(l0, version=f"1.{number}.0") for number in range(3))
    for one in (folder, pipe, link):
        rows.path(one).unlink()
    rows.path(folder).mkdir()
    os.mkfifo(rows.path(pipe))
    rows.path(link).symlink_to("nowhere")
    assert kinds(check(rows, deep=True)) == [("corrupt", folder), ("corrupt", pipe), ("missing", link)]


def test_a_file_rebuilt_during_the_check_is_left_alone(rows: Rows, conf: Settings) -> None:
    """When a build puts file and row right after we looked, neither report nor row say otherwise."""
    file = rows.file(rows.product("l1"))
    rows.path(file).unlink()
    rows.conn.commit()
    seen = keep_store.files_after(rows.conn, rows.mission_id, 0, since=None, until=None, limit=9)
    looks = [fixity.look(row.expected, deep=False) for row in seen]
    rows.conn.commit()
    assert [look.verdict for look in looks] == ["gone"]
    rows.path(file).write_bytes(b"one line\n")
    report = Report("demo")
    checking._judge(rows.conn, report, list(zip(seen, looks, strict=True)), fix=True)
    rows.path(file).unlink()
    with closing(database.connect(conf.target(), purpose="other", autocommit=True)) as other:
        Rows(other).ask("UPDATE headrace.product_file SET sha256 = 'rebuilt' WHERE id = %s", file)
    checking._judge(rows.conn, report, list(zip(seen, looks, strict=True)), fix=True)
    assert (report.findings, states(rows)) == ([], {file: "present"})


def test_a_row_in_other_hands_is_skipped_not_waited_for(rows: Rows, conf: Settings) -> None:
    """A file whose row or group somebody else has locked is not reported, and fix does not wait for it."""
    l0 = rows.product("l0")
    one, two = rows.file(l0), rows.file(l0, day=DAY.replace(day=2))
    for file in (one, two):
        rows.path(file).unlink()
    (rows.root / "l0" / "keep").write_bytes(b"")
    rows.conn.commit()
    with closing(database.connect(conf.target(), purpose="other")) as other:
        Rows(other).ask("UPDATE headrace.product_file SET bytes = bytes WHERE id = %s", one)
        report = check(rows, fix=True, since=DAY)
        assert kinds(report) == [("missing", two)]
        other.rollback()
    assert kinds(check(rows, fix=True, since=DAY)) == [("missing", one), ("missing", two)]


def test_batches_days_and_cancelling(rows: Rows) -> None:
    """Batches lose no file, days choose, progress counts, and what was put right before a cancellation stays."""
    l0 = rows.product("l0")
    files = [rows.file(l0, day=DAY.replace(day=number)) for number in range(1, 8)]
    for file in files:
        rows.path(file).unlink()
    (rows.root / "l0" / "keep").write_bytes(b"")
    told: list[tuple[int, int]] = []
    report = check(rows, batch=3, since=DAY.replace(day=2), until=DAY.replace(day=6),
                   progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert (kinds(report), told) == ([("missing", one) for one in files[1:6]], [(3, 5), (5, 5)])

    def cancel(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        check(rows, batch=3, fix=True, progress=cancel)
    rows.conn.rollback()
    assert list(states(rows).values()).count("missing") == 3


def test_no_transaction_is_open_between_two_looks_at_the_disk(rows: Rows, conf: Settings) -> None:
    """When a batch is done, and at each dark file, the session that checks is idle and holds nothing back."""
    l0 = rows.product("l0")
    for number in (1, 2):
        rows.path(rows.file(l0, version=f"1.{number}.0")).unlink()
    (rows.root / "l0" / "dark").write_bytes(b"")
    rows.conn.commit()
    with closing(database.connect(conf.target(), purpose="other", autocommit=True)) as other:

        def state() -> str:
            asked = "SELECT state FROM pg_stat_activity WHERE pid = %s"
            return str(Rows(other).ask(asked, rows.conn.info.backend_pid)[0][0])

        seen: list[str] = []
        check(rows, batch=1, progress=lambda done, total: seen.append(state()))
        folders = keep_store.mission(rows.conn, rows.mission_id)
        seen += [state() for _ in dark.dark_files(rows.conn, folders)]
    assert seen == ["idle"] * 3
