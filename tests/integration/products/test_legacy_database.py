"""The import of dbprocessing databases: everything of them is here, nothing is built because of it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.integration.products.legacy_fixture import FIRST, Site, demo
from workers import database
from workers.errors import PermanentFailure, SettingsError
from workers.products import legacy_database, legacy_mission, loading, plan_store, planning, releases
from workers.products.legacy_database import COUNTED, Counts
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
Into = Callable[..., Counts]
Stale = Callable[[], dict[tuple[str, date], str]]
DAYS = [FIRST + timedelta(days=number) for number in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the mission's data lie."""
    return tmp_path / "root"


@pytest.fixture
def into(conf: Settings, tmp_path: Path) -> Into:
    """Import a site, or a database by its name, and commit."""

    def take(source: Site | str, **options: Any) -> Counts:
        name = source if isinstance(source, str) else source.sqlite(tmp_path / "legacy.sqlite")
        with database.connection(conf.target(), purpose="tests") as conn:
            counts = legacy_database.import_into(conn, legacy_database.read(name), host="here", **options)
            conn.commit()
        return counts

    return take


@pytest.fixture
def stale(conf: Settings) -> Stale:
    """What would be built at once and why, by process and day."""

    def ask() -> dict[tuple[str, date], str]:
        with database.connection(conf.target(), purpose="tests") as conn:
            steps = planning.plan(conn, plan_store.mission(conn, "DEMO"))
        return {(step.process.name, step.slot.day): step.verdict.reason for step in steps if not step.waits}

    return ask


def numbers(counts: Counts) -> dict[str, int]:
    """What was added, without zeros."""
    return {name: getattr(counts, name) for name in COUNTED if getattr(counts, name)}


WHOLE = {
    "missions": 1,
    "products": 3,
    "processes": 2,
    "codes": 2,
    "files": 20,
    "builds": 12,
    "links": 22,
    "releases": 1,
}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_everything_is_here_once(kind: str, root: Path, tmp_path: Path, empty_dsn: str, into: Into, sql: Ask) -> None:
    """Either kind of database gives the same rows, and an import that is repeated adds nothing."""
    site = demo(root)
    source = site.sqlite(tmp_path / "x.sqlite") if kind == "sqlite" else site.postgres(empty_dsn)
    first, again = into(source), into(source)

    assert (numbers(first), first.warnings) == (WHOLE, ())
    assert (numbers(again), again.warnings) == ({}, ())
    assert sql("SELECT name, is_legacy, cut_off, hosts FROM headrace.mission") == [("DEMO", True, False, ["here"])]
    newest = "SELECT filename FROM headrace.product_file WHERE is_newest AND filename LIKE %s ORDER BY 1"
    assert sql(newest, "%L1%") == [
        ("demo_L1_20200101_v1.0.0.dat",), ("demo_L1_20200102_v1.0.1.dat",), ("demo_L1_20200103_v1.1.0.dat",),
        ("demo_L1_20200104_v1.0.0.dat",),
    ]  # fmt: skip
    name = "demo_L2_20200103_v1.1.0.dat"
    assert sql(
        "SELECT f.place, f.day, f.key, f.start_at, f.stop_at, f.state, f.sha1, f.sha256, f.bytes,"
        " (SELECT array_agg(p.filename ORDER BY p.filename) FROM headrace.product_file p WHERE p.id = ANY(f.inputs)),"
        " (SELECT array_agg(p.filename ORDER BY p.filename) FROM headrace.product_link l"
        "    JOIN headrace.product_file p ON p.id = l.parent WHERE l.child = f.id),"
        " b.state, b.reason, b.command[1:2], b.inputs = f.inputs, b.started_at, c.filename, r.name"
        " FROM headrace.product_file f JOIN headrace.product_build b ON b.id = f.build_id AND b.output_id = f.id"
        " JOIN headrace.code c ON c.id = f.code_id AND c.id = b.code_id JOIN headrace.process r ON r.id = c.process_id"
        " WHERE f.filename = %s",
        name,
    ) == [(
        f"L2/2020/{name}", DAYS[2], "", datetime(2020, 1, 3, tzinfo=UTC),
        datetime(2020, 1, 3, 23, 59, 59, 999999, tzinfo=UTC), "present",
        hashlib.sha1(f"{name}\n".encode()).hexdigest(), None, len(name) + 1,
        [f"demo_L1_{day}.dat" for day in ("20200102_v1.0.1", "20200103_v1.1.0", "20200104_v1.0.0")],
        [f"demo_L1_{day}.dat" for day in ("20200102_v1.0.1", "20200103_v1.1.0", "20200104_v1.0.0")],
        "imported", "IMPORTED", ["/codes/bin/cat_v1.0.0.sh", "-q"], True,
        datetime(2020, 2, 3, 4, 5, 6, 789012).astimezone(UTC), "cat_v{CODEVERSION}.sh", "l1_l2",
    )]  # fmt: skip


def test_what_dbprocessing_held_for_current_stays(root: Path, into: Into, stale: Stale, sql: Ask) -> None:
    """No output is built again, not even where a neighbour has changed since; only what was never made is missing."""
    into(demo(root))
    assert stale() == {("l0_l1", DAYS[4]): "NEW_INPUT", ("l0_l1", DAYS[5]): "NEW_INPUT"}
    parents = (
        "SELECT array_agg(p.filename ORDER BY 1) FROM headrace.product_link l JOIN headrace.product_file p"
        " ON p.id = l.parent JOIN headrace.product_file f ON f.id = l.child WHERE f.filename = %s"
    )
    # What it was really made of is kept, too.
    made_of = ["demo_L1_20200101_v1.0.0.dat", "demo_L1_20200102_v1.0.0.dat"]
    assert sql(parents, "demo_L2_20200101_v1.0.0.dat") == [(made_of,)]


def test_what_was_queued_is_made(root: Path, into: Into, stale: Stale) -> None:
    """What dbprocessing had yet to look at is made: a newer input, and a bump that was asked for; nothing else."""
    site = demo(root)
    site.rows["file"] = [row for row in site.rows["file"] if row["utc_file_date"] < str(DAYS[4])]
    site.rows["processqueue"] = []
    site.file(30, 1, DAYS[0], "1.0.1")
    site.add("processqueue", file_id=30, version_bump=None)
    site.add("processqueue", file_id=2, version_bump=1)
    site.add("processqueue", file_id=3, version_bump=0)  # no longer the newest of its day: it does nothing
    into(site)
    assert stale() == {("l0_l1", DAYS[0]): "NEWER_INPUT", ("l0_l1", DAYS[3]): "FORCED"}


def test_a_process_without_output_does_not_run_for_the_past(root: Path, into: Into, stale: Stale) -> None:
    """RUN processes have seen every file but those in the queue."""
    site = demo(root)
    site.process(3, "notify", None, "RUN", (1, 0, 0))
    site.code(3, 3)
    into(site)
    assert [day for process, day in stale() if process == "notify"] == [DAYS[5]]


def test_places_and_states_are_those_of_the_disk(root: Path, into: Into, sql: Ask) -> None:
    """A file is where dbprocessing puts it, even outside the root; it is present only if it is really there."""
    site = demo(root)
    site.product(4, "far", relative_path="../elsewhere/{Y}")
    site.file(40, 4, DAYS[0]).relative_to(root)
    gone = site.file(41, 4, DAYS[1])
    gone.unlink()
    site.file(42, 4, DAYS[2], exists_on_disk=False)
    site.product(5, "late", relative_path="/late/{j}-{H}", format="late_{Y}{m}{d}{H}_v{VERSION}")
    (root / "late" / "001-07").mkdir(parents=True)
    (root / "late" / "001-07" / "late").write_text("x")
    site.file(43, 5, DAYS[0], filename="late", content=b"", utc_start_time="2020-01-01 07:30:00.000000")
    counts = into(site)
    found = sql(
        "SELECT place, state FROM headrace.product_file WHERE filename LIKE '%%far%%' OR filename = 'late' ORDER BY id"
    )
    assert found == [
        (f"{root.parent}/elsewhere/2020/demo_far_20200101_v1.0.0.dat", "present"),
        (f"{root.parent}/elsewhere/2020/demo_far_20200102_v1.0.0.dat", "missing"),
        (f"{root.parent}/elsewhere/2020/demo_far_20200103_v1.0.0.dat", "removed"),
        ("late/001-07/late", "present"),
    ]
    assert [line for line in counts.warnings if "not on disk" in line] == [
        f"believed to be there, yet not on disk: {root.parent}/elsewhere/2020/{gone.name}"
    ]


def test_names_are_bytes(root: Path, tmp_path: Path, into: Into, sql: Ask) -> None:
    """A name in sqlite may be any bytes: it is found on disk, and kept in text form."""
    site = demo(root)
    raw = b"\xe9t\xe9 \t'1'\n\\N.dat"
    site.file(50, 1, date(2021, 1, 1), filename="odd", content=b"")
    (root / "L0" / "2021").mkdir()
    Path(os.fsdecode(os.fsencode(root / "L0" / "2021") + b"/" + raw)).write_text("x")
    source = site.sqlite(tmp_path / "x.sqlite")
    with closing(sqlite3.connect(source)) as db:
        db.execute("UPDATE file SET filename = CAST(? AS TEXT) WHERE file_id = 50", (raw,))
        db.commit()
    into(source)
    name = "\\xe9t\\xe9 \t'1'\n\\N.dat"
    assert sql("SELECT filename, place, state FROM headrace.product_file WHERE day = '2021-01-01'") == [
        (name, f"L0/2021/{name}", "present")
    ]


def test_oddities_are_said(root: Path, into: Into, stale: Stale, sql: Ask) -> None:
    """What dbprocessing allows and we do not is brought into order, with a sentence about each; nothing runs for it."""
    site = demo(root)
    site.product(4, "L3", level=3)
    site.product(5, "L4", level=4)
    site.process(3, "l0_l1", 4, "WEEKLY", (1, 0, 0))  # the name of another
    site.process(4, "none", 5, None, (2, 0, 0))
    site.process(5, "nothing", None, "", (2, 0, 0))
    for code, process in ((3, 3), (4, 4), (5, 5)):
        site.code(code, process)
    site.code(6, 1, "1.1.0")  # active for the same days as code 1
    site.code(7, 1, "1.0.0", active_code=False)
    site.code(8, 2, "1.2.0", newest_version=False)
    site.file(60, 1, DAYS[0], filename="twin.dat")
    site.file(61, 1, DAYS[0], "3.0.0", utc_start_time=None, utc_stop_time=None, met_start_time=1.0, met_stop_time=2.0)
    site.file(62, 1, DAYS[0], "4.0.0", utc_file_date=None, utc_start_time=None, utc_stop_time=None)
    site.file(63, 3, date(2019, 1, 1), parents=[1], code=99)
    site.change("logging", -1, currently_processing=True)
    counts = into(site)
    assert set(counts.warnings) == {
        "dbprocessing is at work on it, or died there: what it makes from now on is not imported",
        "process l0_l1 is there more than once; another one is called: l0_l1_DEMO_L3",
        "dbprocessing never ran WEEKLY; its codes come as retired, load them as active to use: l0_l1_DEMO_L3",
        "no timebase is taken as FILE, with its codes retired: it never ran: none",
        "without an output no timebase is taken as RUN, with its codes retired: nothing",
        "a newer code is active for the same days, so this one is retired: l0_l1 1.0.0",
        "codes of one version are taken as one, so days may be without: l0_l1 1.0.0",
        "another file has this product, day and version, so its key tells them apart: twin.dat",
        "no times are known in UTC; taken as the whole day: demo_L0_20200101_v3.0.0.dat",
        "the code that made it is not here, so it counts as delivered: demo_L2_20190101_v1.0.0.dat",
        "no day is known, only mission elapsed time; left out: demo_L0_20200101_v4.0.0.dat",
    }
    assert sql("SELECT key FROM headrace.product_file WHERE filename = 'twin.dat'") == [("legacy=60",)]
    codes = "SELECT p.name, c.quality FROM headrace.code c JOIN headrace.process p ON p.id = c.process_id"
    assert sorted(sql(f"{codes} WHERE c.state = 'active'")) == [("l0_l1", 1), ("l1_l2", 0)]
    assert {process for process, _ in stale()} == {"l0_l1"}


def test_keys_are_those_of_slots(root: Path, into: Into, sql: Ask) -> None:
    """Where a day has several files each output of a FILE process has its input's keywords, a DAILY one has none."""
    site = Site(root)
    site.mission()
    for number, level in enumerate(("L0", "L1", "L2")):
        site.product(number + 1, level, level=number)
    site.process(1, "l0_l1", 2, "FILE", (1, 0, 0))
    site.process(2, "l1_l2", 3, "DAILY", (2, 0, 0))
    site.code(1, 1)
    site.code(2, 2)
    for number in (1, 2):
        site.file(number, 1, FIRST, filename=f"a{number}", process_keywords=f"nn=0{number}")
        site.file(number + 2, 2, FIRST, filename=f"b{number}", parents=[number], code=1)
    site.file(5, 3, FIRST, filename="c", parents=[3, 4], code=2, process_keywords="nn=02")
    counts = into(site)
    assert counts.warnings == ()
    assert sql("SELECT filename, key, is_newest FROM headrace.product_file ORDER BY filename") == [
        ("a1", "nn=01", True), ("a2", "nn=02", True), ("b1", "nn=01", True), ("b2", "nn=02", True), ("c", "", True),
    ]  # fmt: skip


def test_older_and_other_databases_are_read(root: Path, tmp_path: Path, empty_dsn: str, into: Into) -> None:
    """Tables and columns that older versions lack, and those that they have more, are no obstacle; nor is a schema."""
    lacks = ["unixtime", "logging_file", "processqueue", "mission.errordir", "file.process_keywords", "code.arguments"]
    assert numbers(into(demo(root).sqlite(tmp_path / "x.sqlite", without=lacks))) == WHOLE
    source = demo(root).postgres(empty_dsn, schema="dbp", without=lacks)
    with closing(psycopg2.connect(source)) as conn, conn.cursor() as cursor:
        cursor.execute("ALTER TABLE dbp.file ADD newest_version boolean NOT NULL DEFAULT true")
        conn.commit()
    assert numbers(into(source)) == {}


def test_a_later_import_adds_what_has_come(root: Path, into: Into, stale: Stale, sql: Ask) -> None:
    """While both are in use, an import brings what dbprocessing has made since, again without anything being built."""
    site = demo(root)
    into(site)
    site.rows["processqueue"] = []
    site.file(21, 2, DAYS[5], parents=[20], code=1)
    site.file(22, 3, DAYS[5], parents=[21], code=2)
    site.file(23, 1, DAYS[0], "1.0.1")
    site.file(24, 2, DAYS[0], "1.0.1", parents=[23], code=1)
    site.add("release", file_id=24, release_num="R1")
    site.add("release", file_id=24, release_num="R2")
    counts = into(site)
    assert numbers(counts) == {"files": 4, "builds": 3, "links": 3, "releases": 1}
    assert counts.warnings == ("has 13 files here and 14 there; it stays: release R1",)
    assert stale() == {("l0_l1", DAYS[4]): "NEW_INPUT"}
    newest = sql("SELECT filename FROM headrace.product_file WHERE is_newest AND day = '2020-01-01' ORDER BY 1")
    assert [name for (name,) in newest] == [
        "demo_L0_20200101_v1.0.1.dat", "demo_L1_20200101_v1.0.1.dat", "demo_L2_20200101_v1.0.0.dat",
    ]  # fmt: skip


def test_releases_are_final(root: Path, into: Into, conf: Settings, sql: Ask) -> None:
    """A release has the files that it had, and a manifest of their checksums, so that it never changes."""
    site = demo(root)
    into(site)
    files = {row["file_id"]: row for row in site.rows["file"]}
    lines = sorted(
        f"{files[row['file_id']]['shasum']}  {files[row['file_id']]['filename']}\n" for row in site.rows["release"]
    )
    manifest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert sql("SELECT name, manifest_sha256 FROM headrace.product_release") == [("R1", manifest)]
    assert sql("SELECT count(*) FROM headrace.product_release_file") == [(13,)]
    with database.connection(conf.target(), purpose="tests") as conn:
        mission = plan_store.mission(conn, "DEMO")
        found = releases.verify(conn, releases.find(conn, mission.id, "R1"))
        assert (found.good, found.problems) == (13, [])
    with pytest.raises(psycopg2.errors.RestrictViolation):
        sql("UPDATE headrace.product_release SET comment = 'x'")


def test_folders_are_absolute(
    root: Path, tmp_path: Path, into: Into, monkeypatch: pytest.MonkeyPatch, sql: Ask
) -> None:
    """Folders are found as dbprocessing finds them, from where one stands; if they were moved, below another root."""
    folders = "SELECT root, incoming, codes, inspectors, quarantine FROM headrace.mission"
    site = demo(root)
    site.change("mission", 0, rootdir="root", incoming_dir="~/drop", codedir=None, inspectordir="insp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ops")
    into(site)
    here = str(root)
    assert sql(folders) == [(here, "/home/ops/drop", here, f"{here}/insp", f"{here}/errors")]
    assert sql("SELECT count(*) FROM headrace.product_file WHERE state = 'present'") == [(20,)]

    site.change("mission", 0, mission_name="MOVED", rootdir="/data", incoming_dir="/data/in", codedir="/opt/codes")
    into(site, root=root)
    moved = (here, f"{here}/in", "/opt/codes", f"{here}/insp", "/opt/codes/errors")
    assert sql(f"{folders} WHERE name = 'MOVED'") == [moved]
    assert sql("SELECT count(*) FROM headrace.product_file WHERE state = 'present'") == [(40,)]


def test_several_missions_come_each_by_itself(root: Path, into: Into, sql: Ask) -> None:
    """A database with two missions makes two, each with its own products, processes and files."""
    site = demo(root)
    site.mission(2, "OTHER", incoming_dir="in2")
    site.product(4, "X0", instrument=2)
    site.product(5, "X1", instrument=2)
    site.process(3, "x", 5, "FILE", (4, 0, 0))
    site.code(3, 3)
    site.file(30, 4, FIRST)
    site.file(31, 5, FIRST, parents=[30], code=3)
    assert numbers(into(site)) == {**WHOLE, "missions": 2, "products": 5, "processes": 3, "codes": 3, "files": 22,
                                   "builds": 13, "links": 23}  # fmt: skip
    of = (
        "SELECT m.name, count(*) FROM headrace.product_file f JOIN headrace.mission m ON m.id = f.mission_id GROUP BY 1"
    )
    assert dict(sql(of)) == {"DEMO": 20, "OTHER": 2}


def test_a_definition_of_ours_is_kept(root: Path, tmp_path: Path, into: Into, conf: Settings) -> None:
    """Once a mission was loaded from a file of ours, an import brings its files but leaves its definition alone."""
    site = demo(root)
    legacy = legacy_database.read(site.sqlite(tmp_path / "x.sqlite"))
    mission = legacy_mission.named_of(legacy, legacy.missions[0], None, legacy_mission.Warnings()).mission
    ours = mission.model_copy(update={"is_legacy": False, "products": mission.products[:1], "processes": ()})
    with database.connection(conf.target(), purpose="tests") as conn:
        loading.load(conn, ours, host="here", by="me")
        conn.commit()
    counts = into(site)
    assert numbers(counts) == {"files": 8, "releases": 1}
    assert counts.warnings == (
        "this mission has been loaded from another file since, and keeps that definition: DEMO",
        "12 files are of products that this mission has no more; they are left out",
    )


def test_an_import_takes_no_lock_per_file(root: Path, tmp_path: Path, conf: Settings, sql: Ask) -> None:
    """A hundred thousand files would need more than a server has room for; each is marked as newest all the same."""
    site = Site(root)
    site.mission()
    site.product(1, "L0")
    for number in range(50):
        site.file(number + 1, 1, FIRST + timedelta(days=number))
    legacy = legacy_database.read(site.sqlite(tmp_path / "x.sqlite"))
    with database.connection(conf.target(), purpose="tests") as conn:
        legacy_database.import_into(conn, legacy, host="here")
        locks = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        assert sql(f"{locks} WHERE d.datname = current_database() AND l.locktype = 'advisory'")[0][0] < 10
        conn.commit()
    newest = "SELECT count(*) FROM headrace.product_file WHERE is_newest"
    assert sql(newest) == [(50,)]
    # The trigger is at work again.
    sql("UPDATE headrace.product_file SET state = 'missing' WHERE id = (SELECT min(id) FROM headrace.product_file)")
    assert sql(newest) == [(49,)]


@pytest.mark.parametrize("kind", ["no such file", "no database", "other tables", "no row"])
def test_what_is_no_dbprocessing_database_is_refused(kind: str, tmp_path: Path) -> None:
    """The message says what is wrong with a file that is none."""
    path, site = tmp_path / "x.sqlite", Site(tmp_path)
    site.add("release", file_id=1, release_num="R1")
    site.mission()
    if kind == "no database":
        path.write_text("hello, this is no database at all")
    elif kind == "other tables":
        site.sqlite(path, without=["file", "code"])
    elif kind == "no row":
        site.product(1, "L0", instrument=7)
        site.sqlite(path)
    said = {
        "no such file": "there is no such file", "no database": "cannot be read as a sqlite database",
        "other tables": "the tables file, code are missing", "no row": "not as dbprocessing makes it: KeyError",
    }[kind]  # fmt: skip
    with pytest.raises(PermanentFailure, match=said):
        legacy_database.read(str(path))


def test_a_server_s_other_databases_are_refused(empty_dsn: str) -> None:
    """A PostgreSQL database without the tables is told apart, and its password is not told."""
    with pytest.raises(PermanentFailure, match="no dbprocessing database") as refused:
        legacy_database.read(empty_dsn)
    assert str(urlsplit(empty_dsn).password) not in str(refused.value)


def test_a_graph_that_goes_round_is_refused_whole(root: Path, into: Into, sql: Ask) -> None:
    """What dbprocessing dies of is not imported, nor a database without a mission; not one row is written."""
    with pytest.raises(PermanentFailure, match="holds no mission"):
        into(Site(root))
    site = demo(root)
    site.process(3, "back", 1, "DAILY", (3, 0, 0))
    site.code(3, 3)
    with pytest.raises(SettingsError, match="round in a circle"):
        into(site)
    assert sql("SELECT count(*) FROM headrace.mission") == [(0,)]


CONF = """
[mission]
mission_name = DEMO
rootdir = {0}/root
incoming_dir = {0}/in
codedir = {0}/codes
inspectordir = {0}/codes
[satellite]
satellite_name = {{MISSION}}-a
[instrument]
instrument_name = cam
"""
PRODUCT = """
[product_{0}]
product_name = DEMO_{0}
relative_path = {0}/{{Y}}
level = {1}
format = demo_{0}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat
product_description =
inspector_filename = any.py
inspector_relative_path =
inspector_description = by name
inspector_version = 1.0.0
inspector_output_interface = 1
inspector_active = True
inspector_date_written = 2020-01-01
inspector_newest_version = True
inspector_arguments = tag={0}
"""
PROCESS = """
[process_{0}]
process_name = {0}
output_product = product_{2}
output_timebase = {3}
extra_params =
required_input1 = ("product_{1}", {4}, {4})
code_filename = copy.sh
code_relative_path =
code_start_date = 2000-01-01
code_stop_date = 2050-12-31
code_description = copies
code_version = 1.0.0
code_output_interface = 1
code_active = True
code_date_written = 2020-01-01
code_newest_version = True
code_arguments =
code_cpu = 1
code_ram = 1
"""
INSPECTOR = """
import datetime, re
from dbprocessing import inspector, Version
class Inspector(inspector.inspector):
    code_name = "any.py"
    def inspect(self, kwargs):
        found = re.match(r"demo_%s_(\\d{8})_v(\\d+).(\\d+).(\\d+).dat$" % kwargs["tag"], self.basename)
        if found is None:
            return None
        day = datetime.datetime.strptime(found.group(1), "%Y%m%d")
        facts = self.diskfile.params
        facts["utc_file_date"], facts["utc_start_time"] = day.date(), day
        facts["utc_stop_time"] = day + datetime.timedelta(days=1, microseconds=-1)
        facts["version"] = Version.Version(*map(int, found.groups()[1:]))
        return True
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., None]:
    """The real dbprocessing of $DBPROCESSING_SRC, run by $DBPROCESSING_PYTHON (it needs SQLAlchemy below 2)."""
    source = os.environ.get("DBPROCESSING_SRC")
    python = os.environ.get("DBPROCESSING_PYTHON", sys.executable)
    if not source or not Path(source, "scripts", "CreateDB.py").is_file():
        pytest.skip("DBPROCESSING_SRC does not name a checkout of dbprocessing")
    needs = "import sqlalchemy, dateutil, imp; assert sqlalchemy.__version__ < '2'"
    if subprocess.run([python, "-c", needs], capture_output=True).returncode:
        pytest.skip(f"{python} (DBPROCESSING_PYTHON) lacks SQLAlchemy below 2, dateutil or imp")
    (tmp_path / "site").mkdir()
    # Its fixed waits of half a second are not what is tested.
    (tmp_path / "site" / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
    environment = {
        **os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{source}", "DBPROCESSING_LOG_DIR": str(tmp_path / "logs"),
    }  # fmt: skip

    def run(script: str, *words: str) -> None:
        argv = [python, f"{source}/scripts/{script}", *words]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    return run


def test_a_database_of_the_real_program(
    program: Callable[..., None], tmp_path: Path, into: Into,
    stale: Stale, sql: Ask,
) -> None:  # fmt: skip
    """What dbprocessing itself made is taken over whole, and nothing of it is built again."""
    db, incoming = str(tmp_path / "real.sqlite"), tmp_path / "in"
    for folder in (tmp_path / "root", incoming, tmp_path / "codes" / "errors"):
        folder.mkdir(parents=True)
    (tmp_path / "codes" / "any.py").write_text(INSPECTOR)
    code = tmp_path / "codes" / "copy.sh"
    code.write_text('#!/bin/sh\nfor out; do :; done\nwhile [ $# -gt 1 ]; do cat "$1"; shift; done > "$out"\n')
    code.chmod(0o755)
    conf = CONF.format(tmp_path) + "".join(PRODUCT.format(f"L{level}", level) for level in range(3))
    conf += PROCESS.format("l0_l1", "L0", "L1", "FILE", 0) + PROCESS.format("l1_l2", "L1", "L2", "DAILY", 1)
    (tmp_path / "demo.conf").write_text(conf)
    program("CreateDB.py", "-d", "sqlite", db)
    program("addFromConfig.py", "-m", db, str(tmp_path / "demo.conf"))
    for names in (["20200101_v1.0.0", "20200102_v1.0.0", "20200103_v1.0.0"], ["20200102_v1.0.1"]):
        for name in names:
            (incoming / f"demo_L0_{name}.dat").write_text(name)
        program("ProcessQueue.py", "-i", "-m", db)
        program("ProcessQueue.py", "-p", "-m", db)
    counts = into(db)
    assert numbers(counts) == {"missions": 1, "products": 3, "processes": 2, "codes": 2, "files": 12, "builds": 8,
                               "links": 4 + 10}  # fmt: skip
    assert counts.warnings == ()
    assert stale() == {}
    assert sql("SELECT DISTINCT state FROM headrace.product_file") == [("present",)]
