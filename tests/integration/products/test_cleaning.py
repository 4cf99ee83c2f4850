"""Cleaning and forgetting: what goes is what nothing needs, rows before files, and never a released file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.products.rows import DAY, Rows
from workers import database
from workers.errors import PermanentFailure, RetryLater
from workers.products import checking, cleaning, forgetting, latest, releases
from workers.settings import Settings

NONE = timedelta(0)


@pytest.fixture
def rows(conf: Settings, tmp_path: Path) -> Iterator[Rows]:
    """A mission without products."""
    with closing(database.connect(conf.target(), purpose="tests")) as conn:
        made = Rows(conn)
        made.mission(tmp_path / "data")
        conn.commit()
        yield made


def aged(rows: Rows, days: int = 60) -> None:
    """Let every file be registered so long ago; and commit."""
    rows.ask("UPDATE headrace.product_file SET registered_at = clock_timestamp() - make_interval(days => %s)", days)
    rows.conn.commit()


def victims(rows: Rows, **options: object) -> list[int]:
    """The ids that a plan names."""
    options = {"older_than": NONE} | options
    return [one.id for one in cleaning.plan(rows.conn, rows.mission_id, **options)]  # type: ignore[arg-type]


def chain(rows: Rows) -> dict[str, int]:
    """A day of l0 -> l1 -> l2 in an old version and a new one."""
    l0, l1, l2 = (rows.product(f"l{level}", level=level) for level in range(3))
    made = {}
    for version in ("1.0.0", "1.1.0"):
        made[f"l0 {version}"] = raw = rows.file(l0, version=version)
        made[f"l1 {version}"] = half = rows.file(l1, version=version, inputs=[raw])
        made[f"l2 {version}"] = rows.file(l2, version=version, inputs=[half])
    aged(rows)
    return made


def state(rows: Rows, file: int) -> str:
    """The state of a file."""
    return str(rows.ask("SELECT state FROM headrace.product_file WHERE id = %s", file)[0][0])


def test_superseded_chains_go_and_their_rows_say_removed(rows: Rows) -> None:
    """Of two versions of a chain the old one is cleaned, whole: no file, rows kept as removed, bytes counted."""
    made = chain(rows)
    old = [made[f"l{level} 1.0.0"] for level in range(3)]
    plan = cleaning.plan(rows.conn, rows.mission_id, older_than=timedelta(days=30))
    assert [(one.id, one.version, one.superseded_by) for one in plan] == [
        (old[level], "1.0.0", f"l{level}_20270301_v1.1.0.dat") for level in range(3)
    ]
    done = cleaning.clean(rows.conn, plan)
    assert (done.removed, done.deleted, done.bytes, done.skipped, done.problems) == (3, 3, 27, [], [])
    assert [state(rows, one) for one in old] == ["removed"] * 3
    assert [rows.path(one).exists() for one in made.values()] == [False] * 3 + [True] * 3
    assert checking.check(rows.conn, rows.mission_id, fix=False, deep=False).is_clean


def test_age_and_products_choose(rows: Rows) -> None:
    """Only files registered for long enough, of the named products, are named; unknown ones are refused."""
    made = chain(rows)
    assert victims(rows, older_than=timedelta(days=61)) == []
    assert victims(rows, products=["l1", "l2"]) == [made["l1 1.0.0"], made["l2 1.0.0"]]
    with pytest.raises(PermanentFailure, match="no such product: l9"):
        victims(rows, products=["l9"])


def test_ancestors_of_newest_and_released_files_stay(rows: Rows) -> None:
    """An input of a newest file stays, by its link or by `inputs` alone, and so do all ancestors of a release."""
    l0, l1, l2 = (rows.product(f"l{level}", level=level) for level in range(3))
    linked, confirmed, released, free = (rows.file(l0, version=f"1.0.{number}") for number in range(4))
    rows.file(l0, version="2.0.0")
    newest = rows.file(l1, inputs=[linked])
    rows.ask("UPDATE headrace.product_file SET inputs = %s WHERE id = %s", [confirmed], newest)
    half = rows.file(l2, version="1.0.0", inputs=[released])
    rows.file(l2, version="1.1.0")
    aged(rows)
    assert victims(rows) == [released, free, half]
    releases.tag(rows.conn, rows.mission_id, "r1", by="me", files=[half])
    assert victims(rows) == [free]


def test_inputs_of_running_builds_and_of_open_outputs_stay(rows: Rows) -> None:
    """What a build is reading, or an output that is due or has failed was tried with, is not cleaned."""
    l0, l1 = rows.product("l0"), rows.product("l1")
    read, failed, free = (rows.file(l0, version=f"1.0.{number}") for number in range(3))
    rows.file(l0, version="2.0.0")
    process = rows.process("l0_l1", l1, [l0])
    rows.build(process, inputs=[read], state="running", finished_at=None)
    rows.insert(
        "product_slot", process_id=process, day=DAY, start_at=DAY, stop_at=DAY, failures=1, failed_inputs=[failed]
    )
    aged(rows)
    assert victims(rows) == [free]


def test_what_was_released_after_the_plan_is_skipped(rows: Rows) -> None:
    """A plan is asked again under locks: what was released since stays with what it was built from, the rest goes."""
    made = chain(rows)
    plan = cleaning.plan(rows.conn, rows.mission_id, older_than=NONE)
    releases.tag(rows.conn, rows.mission_id, "r1", by="me", files=[made["l1 1.0.0"]])
    rows.conn.commit()
    done = cleaning.clean(rows.conn, plan)
    assert (done.removed, [one.id for one in done.skipped]) == (1, [made["l0 1.0.0"], made["l1 1.0.0"]])
    assert [rows.path(made[f"l{level} 1.0.0"]).exists() for level in range(3)] == [True, True, False]


def test_what_became_newest_after_the_plan_keeps_its_ancestors(rows: Rows) -> None:
    """When the new version turns out corrupt, the old one is newest again: it stays, with all it was made of."""
    made = chain(rows)
    plan = cleaning.plan(rows.conn, rows.mission_id, older_than=NONE)
    rows.ask("UPDATE headrace.product_file SET state = 'corrupt' WHERE id = %s", made["l2 1.1.0"])
    rows.conn.commit()
    done = cleaning.clean(rows.conn, plan)
    assert (done.removed, len(done.skipped)) == (0, 3)
    assert all(rows.path(one).exists() for one in made.values())


def test_a_release_being_tagged_holds_cleaning_off(rows: Rows, conf: Settings) -> None:
    """While another session tags a superseded file and has not committed yet, cleaning skips it and does not wait."""
    made = chain(rows)
    plan = cleaning.plan(rows.conn, rows.mission_id, older_than=NONE)
    rows.conn.commit()
    with closing(database.connect(conf.target(), purpose="other")) as other:
        releases.tag(other, rows.mission_id, "r1", by="me", files=[made["l1 1.0.0"]])
        done = cleaning.clean(rows.conn, plan)
        other.commit()
    assert [one.id for one in done.skipped] == [made["l1 1.0.0"]]
    assert releases.verify(rows.conn, releases.find(rows.conn, rows.mission_id, "r1")).problems == []


def test_other_bytes_under_a_victims_name_are_not_deleted(rows: Rows) -> None:
    """A file of another size than its row's stays on disk and is told; a missing one is only marked removed."""
    l0 = rows.product("l0")
    other, gone = rows.file(l0, version="1.0.0"), rows.file(l0, version="1.0.1")
    rows.file(l0, version="2.0.0")
    aged(rows)
    rows.path(other).write_bytes(b"precious and longer\n")
    rows.path(gone).unlink()
    done = cleaning.clean(rows.conn, cleaning.plan(rows.conn, rows.mission_id, older_than=NONE))
    assert (done.removed, done.deleted) == (2, 0)
    assert [problem.split(" has ")[0] for problem in done.problems] == [str(rows.path(other))]
    assert rows.path(other).read_bytes() == b"precious and longer\n"


def test_nothing_is_cleaned_while_the_disk_is_away(rows: Rows) -> None:
    """With an unmounted root no row is set to removed: the files would come back as strangers."""
    made = chain(rows)
    plan = cleaning.plan(rows.conn, rows.mission_id, older_than=NONE)
    shutil.rmtree(rows.root)
    with pytest.raises(RetryLater, match="is its disk mounted"):
        cleaning.clean(rows.conn, plan)
    rows.conn.rollback()
    assert state(rows, made["l0 1.0.0"]) == "present"


def test_forgetting_takes_the_descendants_and_nothing_else(rows: Rows) -> None:
    """Rows of a file and of all that was built from it go with links and arrivals; builds and other days stay."""
    l0, l1, l2 = (rows.product(f"l{level}", level=level) for level in range(3))
    raw, other = rows.file(l0, source="/in/x.dat"), rows.file(l0, day=DAY + timedelta(days=1))
    process = rows.process("l0_l1", l1, [l0])
    build = rows.build(process, inputs=[raw])
    half = rows.file(l1, inputs=[raw], build=build)
    top = rows.file(l2, inputs=[half, other])
    slot = rows.insert(
        "product_slot", process_id=process, day=DAY, start_at=DAY, stop_at=DAY, failures=3, failed_inputs=[raw],
        has_given_up=True, problem="exit 3",
    )  # fmt: skip
    rows.ask("INSERT INTO headrace.product_arrival (host, path, bytes, changed_ns) VALUES ('here', '/in/x.dat', 1, 1)")
    rows.conn.commit()
    plan = forgetting.plan(rows.conn, [raw])
    assert [(one.id, one.is_asked) for one in plan.files] == [(top, False), (half, False), (raw, True)]
    done = forgetting.forget(rows.conn, [raw])
    assert (done.rows, done.deleted) == (3, 0)
    assert rows.ask("SELECT id FROM headrace.product_file") == [(other,)]
    assert rows.ask("SELECT output_id, output_name FROM headrace.product_build") == [(None, "l1_20270301_v1.0.0.dat")]
    asked = "SELECT failures, failed_inputs, has_given_up, problem FROM headrace.product_slot WHERE id = %s"
    assert rows.ask(asked, slot) == [(0, None, False, None)]
    assert rows.ask("SELECT count(*) FROM headrace.product_arrival") == [(0,)]
    assert rows.ask("SELECT planned_at IS NULL AND plan_asked_at IS NULL FROM headrace.mission") == [(True,)]
    assert (rows.root / "l0" / "l0_20270301_v1.0.0.dat").exists()


def test_forgetting_one_file_leaves_its_descendants(rows: Rows) -> None:
    """Without descendants only the named row goes; what was built from it stays and knows that it had another input."""
    raw = rows.file(rows.product("l0"))
    child = rows.file(rows.product("l1"), inputs=[raw])
    rows.conn.commit()
    assert forgetting.forget(rows.conn, [raw], descendants=False).rows == 1
    assert rows.ask("SELECT id, inputs FROM headrace.product_file") == [(child, [raw])]


def test_forgetting_deletes_only_the_bytes_that_the_rows_say(rows: Rows) -> None:
    """With `disk` a file goes when it is what its row says; one that is not stays and is told."""
    l0 = rows.product("l0")
    right, wrong = rows.file(l0), rows.file(l0, version="1.1.0")
    paths = [rows.path(right), rows.path(wrong)]
    paths[1].write_bytes(b"One line\n")
    rows.conn.commit()
    done = forgetting.forget(rows.conn, [right, wrong], disk=True)
    assert (done.rows, done.deleted, done.bytes, len(done.problems)) == (2, 1, 9, 1)
    assert [path.exists() for path in paths] == [False, True]


def test_released_used_and_unknown_files_are_not_forgotten(rows: Rows) -> None:
    """A release among the descendants, a running build and an id without a row refuse it all, by name."""
    l0, l1 = rows.product("l0"), rows.product("l1")
    raw, used = rows.file(l0), rows.file(l0, day=DAY + timedelta(days=1))
    child = rows.file(l1, inputs=[raw])
    releases.tag(rows.conn, rows.mission_id, "r1", by="me", files=[child])
    rows.build(rows.process("l0_l1", l1, [l0]), inputs=[used], state="running", finished_at=None, day=DAY)
    rows.conn.commit()
    refusals = forgetting.plan(rows.conn, [raw]).refusals
    assert refusals[0] == "l1_20270301_v1.0.0.dat is part of the release r1"
    assert refusals[1].startswith("l1_20270301_v1.0.0.dat is read or written by the running build ")
    for ids, message in (([raw], "part of the release r1"), ([used], "running build"), ([raw, 99], "has the id 99")):
        with pytest.raises(PermanentFailure, match=message):
            forgetting.forget(rows.conn, ids, disk=True)
    assert rows.ask("SELECT count(*) FROM headrace.product_file") == [(3,)]
    assert all(rows.path(one).exists() for one in (raw, used, child))


def test_a_file_in_other_hands_is_not_waited_for(rows: Rows, conf: Settings) -> None:
    """While somebody changes a descendant, forgetting changes nothing and says to try again."""
    raw = rows.file(rows.product("l0"))
    child = rows.file(rows.product("l1"), inputs=[raw])
    rows.conn.commit()
    with closing(database.connect(conf.target(), purpose="other")) as other:
        Rows(other).ask("UPDATE headrace.product_file SET state = 'corrupt' WHERE id = %s", child)
        with pytest.raises(RetryLater, match=r"l1_20270301_v1\.0\.0\.dat: somebody is writing there"):
            forgetting.forget(rows.conn, [raw])
        other.rollback()  # of a session that is merely closed the server hears a moment later
    assert rows.ask("SELECT count(*) FROM headrace.product_file") == [(2,)]
    assert forgetting.forget(rows.conn, [raw]).rows == 2


def test_cleared_dependencies_make_a_file_count_as_delivered(rows: Rows) -> None:
    """Links upwards and `inputs` go, the code stays, and children keep their own lineage."""
    raw = rows.file(rows.product("l0"))
    l1 = rows.product("l1")
    code = rows.code(rows.process("l0_l1", l1, [1]))
    half = rows.file(l1, inputs=[raw], code=code)
    top = rows.file(rows.product("l2"), inputs=[half])
    assert forgetting.clear_dependencies(rows.conn, [half, raw]) == 1
    assert rows.ask("SELECT inputs, code_id FROM headrace.product_file WHERE id = %s", half) == [(None, code)]
    assert rows.ask("SELECT parent, child FROM headrace.product_link") == [(half, top)]


def test_latest_links_follow_the_newest_and_leave_others_alone(rows: Rows, tmp_path: Path) -> None:
    """The folder holds a link to each newest file; superseded links go, foreign things stay and are told."""
    l0 = rows.product("l0")
    odd = rows.file(l0, day=DAY + timedelta(days=1), filename="o\n\\xff", place="l0/o\n\\xff")
    old = rows.file(l0)
    rows.conn.commit()
    folder = tmp_path / "latest"
    first = latest.latest_links(rows.conn, rows.mission_id, folder)
    assert (first.made, first.kept, first.removed, first.problems) == (2, 0, 0, [])
    assert (folder / rows.path(odd).name).samefile(rows.path(odd))
    new = rows.file(l0, version="1.1.0")
    blocked = rows.file(l0, day=DAY + timedelta(days=2))
    (folder / rows.path(blocked).name).write_bytes(b"mine")
    (folder / "note").symlink_to(rows.path(old))
    rows.conn.commit()
    second = latest.latest_links(rows.conn, rows.mission_id, folder)
    assert (second.made, second.kept, second.removed, len(second.problems)) == (1, 1, 1, 1)
    assert {path.name for path in folder.iterdir()} == {rows.path(one).name for one in (odd, new, blocked)} | {"note"}
    assert os.readlink(folder / rows.path(new).name) == str(rows.path(new))
    with pytest.raises(PermanentFailure, match="own; name another one"):
        latest.latest_links(rows.conn, rows.mission_id, tmp_path / "data-incoming")
