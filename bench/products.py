"""The products room: a plan over a million files, ingest, and what a run costs above its bare fork and exec.

    python bench/products.py [plan] [ingest] [runs] [worker] [dbprocessing] [--rounds 3] [--files 300] [--profile]

Without a part: all of them, in about ten minutes. Real PostgreSQL, Valkey and worker processes, started and stopped by
this script. The floors do nothing but the work: of ingest a rename, an fsync, and a row, in one transaction per batch;
of a run `subprocess.run` of the same command.

The figures of dbprocessing were measured elsewhere, on two cores. It runs side by side where DBPROCESSING_SRC names a
checkout of it and DBPROCESSING_PYTHON a Python 3.11 or older with sqlalchemy<2, python-dateutil and networkx: as it is
shipped (20 files, as each start sleeps half a second), and with its sleeps cut to 2 ms (a control, not the product).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg2
from measure import peak_rss_bytes, private_postgres, table
from postprocessing_live import Row, ask, until

from workers import database, execution, logs, migrations
from workers import settings as settings_module
from workers.messages import BuildProducts, IngestIncoming, PlanProducts
from workers.products import identifying, loading, plan_store, planning, room
from workers.products.definition import Code, Input, Mission, Process, Product, Timebase
from workers.products.versions import Version
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Logs, Settings

PARTS = ("plan", "ingest", "runs", "worker", "dbprocessing")
DAYS = (100, 1000, 10_000)
CHAINS, KEYS = 5, 8
FILES_PER_DAY = CHAINS * (2 * (KEYS + 1) + 2)
SLOTS_PER_DAY = CHAINS * (KEYS + 2)
FIRST = date(2000, 1, 1)
BYTES = 256
SCRIPT = '#!/bin/sh\nexec cat -- "$1" > "$2"\n'
SEND = """
from workers import app, messages
app.send([messages.PlanProducts(host="bench", mission="demo")], slot="bench")
"""
# What is asked of us, and what dbprocessing did elsewhere: as shipped, and with its sleeps cut.
PLAN_SECONDS, PLAN_MEGABYTES, INGEST_PER_SECOND, RUNS_PER_SECOND, RUN_MILLISECONDS = 5, 500, 600, 60, 25
THEIR_INGEST, THEIR_RUNS = (21.5, 62.4), (1.05, 19.7)
THEIR_NOOP = 40.6  # files per second of 300 that were up to date and queued again, sleeps cut


def mission(folder: Path, products: Sequence[Product], processes: Sequence[Process]) -> Mission:
    """A mission in folders below `folder`, which are made."""
    words = ("root", "incoming", "codes", "inspectors", "quarantine")
    for word in words:
        (folder / word).mkdir(parents=True, exist_ok=True)
    return Mission(
        name="demo", satellites={"sat": ("mag",)}, products=tuple(products), processes=tuple(processes),
        **{word: folder / word for word in words},
    )  # fmt: skip


def product(name: str, level: int, fields: str = "") -> Product:
    """A product whose files are NAME_<day><fields>_v<version>.dat."""
    return Product(
        name=name, satellite="sat", instrument="mag", level=level,
        format=f"{name}_{{Y}}{{m}}{{d}}{fields}_v{{VERSION}}.dat", folder=f"{name}/{{Y}}",
    )  # fmt: skip


def process(name: str, output: str, timebase: Timebase, *inputs: Input, code: str = "copy") -> Process:
    """A process with one code."""
    return Process(
        name=name, output=output, timebase=timebase, inputs=inputs,
        codes=(Code(version=Version(1, 0, 0), filename=code),),
    )  # fmt: skip


@contextmanager
def our_settings(server: PostgresServer, folder: Path, **more: Any) -> Iterator[Settings]:
    """The settings in force for this process, and the tables."""
    conf = Settings(
        control={"dsn": server.dsn()}, host="bench", data_dir=folder / "state",
        products={"settle_seconds": 0, "lanes": 2}, **more,
    )  # fmt: skip
    settings_module.use(conf)
    logs.configure(Logs(level="WARNING"))
    try:
        with database.connection(conf.target(), purpose="bench") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        with room.connection(conf, purpose="bench"):
            pass
        yield conf
    finally:
        database.close_all()
        identifying.forget()
        room.forget()


def load(conf: Settings, wanted: Mission) -> None:
    """Load a mission."""
    with room.connection(conf, purpose="bench") as conn:
        loading.load(conn, wanted, host=conf.host)
        conn.commit()


# The plan.

# Five chains l0 -> l1 (FILE) -> l2 (DAILY; of even ones with the day before) -> l3 (DAILY, with the days around it);
# the last l3 also takes chain 1's l2, or else chain 2's. Each l0 and l1 has 8 files a day, one of them in two versions.
FILL = """
ALTER TABLE headrace.product_file DISABLE TRIGGER mark_newest;
CREATE TEMPORARY TABLE made AS
SELECT c, level, d, n, '2000-01-01'::date + d AS day,
       ((c - 1) * 20 * {days} + level_base + d * per_day + n)::bigint AS id, inputs
  FROM generate_series(1, 5) c,
       (VALUES (0, 0, 9), (1, 9 * {days}, 9), (2, 18 * {days}, 1), (3, 19 * {days}, 1))
           AS l(level, level_base, per_day),
       generate_series(0, {days} - 1) d, generate_series(1, per_day) n,
       LATERAL (SELECT (c - 1) * 20 * {days} AS base) b,
       LATERAL (SELECT CASE level
           WHEN 1 THEN ARRAY[base + d * 9 + n]
           WHEN 2 THEN ARRAY(SELECT base + 9 * {days} + e * 9 + k
                               FROM generate_series(d - (c + 1) % 2, d) e, generate_series(1, 9) k
                              WHERE e >= 0 AND k <> 8 ORDER BY 1)
           WHEN 3 THEN ARRAY(SELECT base + 18 * {days} + e + 1 FROM generate_series(d - 1, d + 1) e
                              WHERE e BETWEEN 0 AND {days} - 1
                             UNION ALL SELECT 18 * {days} + d + 1 WHERE c = 5 ORDER BY 1)
           END::bigint[] AS inputs) i;
INSERT INTO headrace.product_file (id, mission_id, product_id, filename, place, day, key, start_at, stop_at, interface,
                                   quality, revision, state, is_newest, sha256, bytes, keywords, inputs, code_id, host)
OVERRIDING SYSTEM VALUE
SELECT m.id, p.mission_id, p.id, f.name, p.name || '/' || extract(year FROM m.day) || '/' || f.name, m.day, f.key,
       m.day, m.day + interval '1 day' - interval '1 microsecond', 1, (m.n = 9)::int, 0, 'present',
       NOT (m.level < 2 AND m.n = 8), md5(m.id::text) || md5(m.id::text), 256, f.key, m.inputs, c.id, 'bench'
  FROM made m
  JOIN headrace.product p ON p.name = 'c' || m.c || '_l' || m.level
  LEFT JOIN headrace.process r ON r.output_product = p.id
  LEFT JOIN headrace.code c ON c.process_id = r.id,
       LATERAL (SELECT CASE WHEN m.level < 2 THEN 'nn=0' || least(m.n, 8) ELSE '' END AS key,
                       p.name || to_char(m.day, '_YYYYMMDD')
                       || CASE WHEN m.level < 2 THEN '_0' || least(m.n, 8) ELSE '' END
                       || CASE WHEN m.n = 9 THEN '_v1.1.0.dat' ELSE '_v1.0.0.dat' END AS name) f
 ORDER BY m.id;
INSERT INTO headrace.product_link (parent, child) SELECT unnest(m.inputs), m.id FROM made m ORDER BY 2, 1;
INSERT INTO headrace.product_slot (process_id, day, key, start_at, stop_at, rank, inputs, code_id)
SELECT r.id, f.day, f.key, f.start_at, f.stop_at, r.rank, f.inputs, f.code_id
  FROM headrace.product_file f JOIN headrace.process r ON r.output_product = f.product_id WHERE f.is_newest;
SELECT setval(pg_get_serial_sequence('headrace.product_file', 'id'), (SELECT max(id) FROM headrace.product_file));
ALTER TABLE headrace.product_file ENABLE TRIGGER mark_newest;
"""
# A new version at the bottom of chain 1, a damaged l1 in chain 2, an l2 of chain 3 that went, a force in chain 4.
DISTURB = """
INSERT INTO headrace.product_file (mission_id, product_id, filename, place, day, key, start_at, stop_at, interface,
                                   quality, revision, state, sha256, bytes, keywords, host)
SELECT mission_id, product_id, 'again_' || filename, 'again_' || place, day, key, start_at, stop_at, 1, 2, 0, 'present',
       sha256, bytes, keywords, host
  FROM headrace.product_file WHERE filename = 'c1_l0_20000210_03_v1.0.0.dat';
UPDATE headrace.product_file SET state = 'corrupt' WHERE filename = 'c2_l1_20000220_04_v1.0.0.dat';
UPDATE headrace.product_file SET state = 'missing' WHERE filename = 'c3_l2_20000301_v1.0.0.dat';
UPDATE headrace.product_slot SET force = 'quality'
 WHERE day = '2000-03-05' AND process_id = (SELECT id FROM headrace.process WHERE name = 'c4_l3')
"""
# Those four and what follows: l1, l2 and l3 of three days; of chain 5, too; l2 of two days in chain 2, l3 of four.
DISTURBED = {
    "c1_l1": 1, "c1_l2": 1, "c1_l3": 3, "c5_l3": 1, "c2_l1": 1, "c2_l2": 2, "c2_l3": 4, "c3_l2": 1, "c3_l3": 3,
    "c4_l3": 1,
}  # fmt: skip


def graph() -> tuple[list[Product], list[Process]]:
    """Twenty products, fifteen processes."""
    products, processes = [], []
    for chain in range(1, CHAINS + 1):
        names = [f"c{chain}_l{level}" for level in range(4)]
        products += [product(name, level, "_{nn}" if level < 2 else "") for level, name in enumerate(names)]
        processes += [
            process(names[1], names[1], "FILE", Input(products=(names[0],))),
            process(names[2], names[2], "DAILY", Input(products=(names[1],), yesterday=(chain + 1) % 2)),
            process(
                names[3], names[3], "DAILY", Input(products=(names[2],), yesterday=1, tomorrow=1),
                *([Input(products=("c1_l2", "c2_l2"), is_required=False)] if chain == CHAINS else []),
            ),
        ]  # fmt: skip
    return products, processes


def plan(rounds: int, profile: bool) -> list[Row]:
    """Everything up to date, then with four disturbances, over 10,000 to a million files; a process per plan."""
    rows: list[Row] = []
    with private_postgres() as server:
        for days in DAYS:
            with filled(server, days):
                found = {"up to date": [_planned(server, {}) for _ in range(rounds)]}
                _script(server, DISTURB)
                stale = f"{sum(DISTURBED.values())} stale"
                found[stale] = [_planned(server, DISTURBED, profile=profile and not n) for n in range(rounds)]
            files = days * FILES_PER_DAY
            for state, plans in found.items():
                seconds = statistics.median(one.seconds for one in plans)
                rows.append((
                    f"{files:>9,} files, {state}", f"{seconds:.2f} s", f"{seconds / files * 1e6:.1f}",
                    f"{max(one.bytes for one in plans) / 1e6:.0f} MB",
                    f"{max(one.backend for one in plans) / 1e6:.0f} MB",
                    f"{PLAN_SECONDS} s, {PLAN_MEGABYTES} MB" if days == DAYS[-1] else "",
                ))  # fmt: skip
    return rows


@dataclass(frozen=True, slots=True)
class Planned:
    """What one plan took: seconds, and the largest resident sets of the process and of its backend."""

    seconds: float
    bytes: int
    backend: int


@contextmanager
def filled(server: PostgresServer, days: int) -> Iterator[None]:
    """The database with so many days of files, all up to date, analyzed, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        with our_settings(server, Path(name)) as conf:
            load(conf, mission(Path(name), *graph()))
        _script(server, FILL.format(days=days))
        with closing(psycopg2.connect(server.dsn())) as conn:
            conn.autocommit = True
            ask(conn, "VACUUM ANALYZE")
            assert ask(conn, "SELECT count(*) FROM headrace.product_file")[0][0] == days * FILES_PER_DAY
            assert ask(conn, "SELECT count(*) FROM headrace.product_slot")[0][0] == days * SLOTS_PER_DAY
        try:
            yield
        finally:
            _script(server, "DROP SCHEMA headrace CASCADE")


def _script(server: PostgresServer, statements: str) -> None:
    # Without parameters a % is a %.
    with closing(psycopg2.connect(server.dsn(), options="-c timezone=UTC -c work_mem=64MB")) as conn:
        ask(conn, statements)
        conn.commit()


def _planned(server: PostgresServer, wanted: dict[str, int], *, profile: bool = False) -> Planned:
    """A plan in a process of its own; it must find what is wanted, and nothing else."""
    argv = [sys.executable, __file__, "--plan", server.dsn(), *(["--profile"] if profile else [])]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    *report, last = done.stdout.splitlines()
    if report:
        print("\n".join(report))
    found = json.loads(last)
    if found["steps"] != wanted:
        raise SystemExit(f"the plan has {found['steps']}, where {wanted} is right")
    return Planned(found["seconds"], found["bytes"], found["backend"])


def _be_planner(dsn: str, profile: bool) -> None:
    conf = settings_module.use(Settings(control={"dsn": dsn}, host="bench"))
    logs.configure(Logs(level="WARNING"))
    profiler = cProfile.Profile()
    with room.connection(conf, purpose="plan") as conn:
        backend = ask(conn, "SELECT pg_backend_pid()")[0][0]
        known = plan_store.mission(conn, "demo")
        conn.rollback()
        if profile:
            profiler.enable()
        began = perf_counter()
        steps = planning.plan(conn, known)
        seconds = perf_counter() - began
        profiler.disable()
        facts = Path(f"/proc/{backend}/status").read_text(encoding="ascii")
    if profile:
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(15)
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.process.name] = counts.get(step.process.name, 0) + 1
    peak = next(int(line.split()[1]) for line in facts.splitlines() if line.startswith("VmHWM"))
    found = {"seconds": seconds, "bytes": peak_rss_bytes(), "backend": peak * 1024, "steps": counts}
    print(json.dumps(found))


# Files come in, and are built from.


def small_graph(code: str) -> tuple[list[Product], list[Process]]:
    """l0 -> l1 (FILE) -> l2 (DAILY)."""
    products = [product(f"l{level}", level) for level in range(3)]
    processes = [
        process("l0_l1", "l1", "FILE", Input(products=("l0",)), code=code),
        process("l1_l2", "l2", "DAILY", Input(products=("l1",)), code=code),
    ]
    return products, processes


def _deliver(folder: Path, files: int) -> None:
    for number in range(files):
        day = FIRST + timedelta(days=number)
        content = f"{number}\n".encode().ljust(BYTES, b".")
        (folder / "incoming" / f"l0_{day:%Y%m%d}_v1.0.0.dat").write_bytes(content)
    os.sync()  # what it costs to write them down is nobody's here


@dataclass(frozen=True, slots=True)
class Site:
    """A database and the folders of a mission l0 -> l1 -> l2."""

    conf: Settings
    folder: Path
    server: PostgresServer

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with closing(psycopg2.connect(self.conf.target().dsn)) as conn:
            conn.autocommit = True
            found: list[tuple[Any, ...]] = ask(conn, statement, *parameters)
            return found

    def deliver(self, files: int) -> None:
        """A file of l0 a day."""
        _deliver(self.folder, files)

    def do(self, *messages: IngestIncoming | PlanProducts | BuildProducts) -> float:
        """Messages and all that follows from them, in this process; seconds."""
        began = perf_counter()
        problems = execution.run_here(messages, self.conf, timeout=timedelta(seconds=60))
        taken = perf_counter() - began
        if problems:
            raise SystemExit("; ".join(problems))
        return taken

    def ingest(self) -> float:
        """Take everything in, build nothing; seconds."""
        return self.do(IngestIncoming(host="bench", mission="demo", then_build=False))

    def build(self) -> float:
        """Build everything that is due; seconds."""
        return self.do(BuildProducts(host="bench", lane=1))

    def plan(self) -> float:
        """Look everything over; seconds."""
        return self.do(PlanProducts(host="bench", mission="demo"))


@contextmanager
def site(server: PostgresServer, *, code: str = "copy", **more: Any) -> Iterator[Site]:
    """A mission whose code is a /bin/sh script (`copy`) or a small program (`cp`)."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        with our_settings(server, folder, **more) as conf:
            load(conf, mission(folder, *small_graph(code)))
            (folder / "codes" / "copy").write_text(SCRIPT, encoding="ascii")
            shutil.copy("/bin/cp", folder / "codes" / "cp")
            (folder / "codes" / "copy").chmod(0o755)
            execution.load_rooms()
            try:
                yield Site(conf, folder, server)
            finally:
                database.close_all()
                _script(server, "DROP SCHEMA headrace CASCADE")


def ingest(rounds: int, profile: bool, counts: Sequence[int]) -> list[Row]:
    """Files of 256 bytes come in, nothing is built of them; in turn with the floor."""
    rows: list[Row] = []
    with private_postgres() as server:
        for files in counts:
            taken: list[float] = []
            floors: list[float] = []
            for number in range(rounds):
                with site(server) as made:
                    made.deliver(files)
                    taken.append(_profiled(made.ingest) if profile and not number else made.ingest())
                    _expect(made, {"l0": files})
                with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
                    floors.append(_floor_of_ingest(server, Path(name), files))
            rate, floor = files / statistics.median(taken), files / statistics.median(floors)
            ratio = statistics.median(one / other for one, other in zip(floors, taken, strict=False))
            rows.append((f"{files:,} files", f"{rate:,.0f}", f"{floor:,.0f}", f"{ratio:.2f}", f"{INGEST_PER_SECOND}",
                         f"{rate / THEIR_INGEST[0]:.0f} x, {rate / THEIR_INGEST[1]:.0f} x"))  # fmt: skip
    return rows


def _floor_of_ingest(server: PostgresServer, folder: Path, files: int, batch: int = 200) -> float:
    """A rename, an fsync of the file, one of the folder per batch, and a row; seconds."""
    (folder / "from").mkdir()
    (folder / "to").mkdir()
    for number in range(files):
        (folder / "from" / f"{number}").write_bytes(b"." * BYTES)
    os.sync()
    with closing(psycopg2.connect(server.dsn())) as conn:
        ask(conn, "CREATE TABLE IF NOT EXISTS public.floor (name text PRIMARY KEY, at timestamptz DEFAULT now())")
        ask(conn, "TRUNCATE public.floor")
        conn.commit()
        began = perf_counter()
        for first in range(0, files, batch):
            names = [f"{number}" for number in range(first, min(files, first + batch))]
            for name in names:
                with (folder / "from" / name).open("rb") as file:
                    os.fsync(file.fileno())
                (folder / "from" / name).rename(folder / "to" / name)
            handle = os.open(folder / "to", os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(handle)
            os.close(handle)
            ask(conn, "INSERT INTO public.floor (name) SELECT unnest(%s)", names)
            conn.commit()
        return perf_counter() - began


def runs(rounds: int, profile: bool, files: int) -> list[Row]:
    """Everything is built in this process, then planned when nothing is left to do; in turn with the floor."""
    rows: list[Row] = []
    with private_postgres() as server:
        for code in ("copy", "cp"):
            taken: list[float] = []
            floors: list[float] = []
            idle: list[float] = []
            for number in range(rounds):
                with site(server, code=code) as made:
                    made.deliver(files)
                    made.ingest()
                    floors.append(_floor_of_runs(made, code, 2 * files))
                    taken.append(_profiled(made.build) if profile and not number else made.build())
                    _expect(made, {"l0": files, "l1": files, "l2": files})
                    idle.append(made.plan())
            rows += _rates("one process, " + ("sh script" if code == "copy" else "cp"), 2 * files, taken, floors)
            noop = statistics.median(idle)
            rows.append((f"  {files} up to date, planned", f"{noop * 1000:.0f} ms", "", "", "",
                         f"{files / noop / THEIR_NOOP:,.0f} x (sleeps cut)"))  # fmt: skip
    return rows


def _rates(what: str, count: int, taken: Sequence[float], floors: Sequence[float]) -> list[Row]:
    rate, floor = count / statistics.median(taken), count / statistics.median(floors)
    above = statistics.median(one - other for one, other in zip(taken, floors, strict=False)) / count
    asked = f"{RUNS_PER_SECOND}/s or {RUN_MILLISECONDS} ms"
    theirs = f"{rate / THEIR_RUNS[0]:.0f} x, {rate / THEIR_RUNS[1]:.1f} x"
    return [(what, f"{rate:.1f} runs/s", f"{floor:.0f} runs/s", f"{above * 1000:.1f} ms", asked, theirs)]


def _floor_of_runs(made: Site, code: str, count: int) -> float:
    """The same command, bare, one after the other; seconds."""
    source = next((made.folder / "root" / "l0").rglob("*.dat"))
    argv = [made.folder / "codes" / code, source, made.folder / "output"]
    began = perf_counter()
    for _ in range(count):
        subprocess.run(argv, check=True)
    return perf_counter() - began


def _expect(made: Site, wanted: dict[str, int]) -> None:
    """Fail loudly unless exactly these files are there, as rows and on disk."""
    found = dict(made.ask(
        "SELECT p.name, count(*)::int FROM headrace.product_file f JOIN headrace.product p ON p.id = f.product_id "
        "WHERE f.is_newest GROUP BY 1"
    ))  # fmt: skip
    on_disk = {name: len(list((made.folder / "root" / name).rglob("*.dat"))) for name in wanted}
    if found != wanted or on_disk != wanted:
        raise SystemExit(f"{found} in the database and {on_disk} on disk, where {wanted} is right")


def worker(rounds: int, files: int) -> list[Row]:
    """The same by a real worker of two processes: from the first start of a code to the end of the last build."""
    rows: list[Row] = []
    with private_postgres() as server, tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        valkey = ValkeyServer(Path(name))
        valkey.start()
        try:
            for code in ("copy", "cp"):
                taken: list[float] = []
                floors: list[float] = []
                for _ in range(rounds):
                    with site(server, code=code, broker={"url": valkey.url()}, worker={"concurrency": 2}) as made:
                        made.deliver(files)
                        made.ingest()
                        floors.append(_floor_of_runs(made, code, 2 * files))
                        taken.append(_by_a_worker(made, files))
                        _expect(made, {"l0": files, "l1": files, "l2": files})
                what = "a worker of 2, " + ("sh script" if code == "copy" else "cp")
                rows += _rates(what, 2 * files, taken, floors)
        finally:
            valkey.stop()
    return rows


def _by_a_worker(made: Site, files: int) -> float:
    conf = made.conf
    document = {
        "control": {"dsn": made.server.dsn()}, "broker": {"url": conf.broker_url()}, "host": "bench",
        "data_dir": str(conf.data_dir), "logs": {"level": "WARNING"}, "worker": {"concurrency": 2},
        "products": {"settle_seconds": 0, "lanes": 2},
    }  # fmt: skip
    file = made.folder / "headrace.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment["HEADRACE_CONFIG"] = str(file)
    argv = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
    with (made.folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: bool(made.ask("SELECT 1 FROM headrace.worker WHERE cardinality(queues) > 0")))
            subprocess.run([sys.executable, "-c", SEND], env=environment, check=True)
            done = "SELECT count(*) FROM headrace.product_build WHERE state = 'succeeded'"
            until(lambda: bool(made.ask(done)[0][0] >= 2 * files), 300)
        except TimeoutError:
            print((made.folder / "log").read_text(errors="replace")[-3000:])
            raise
        finally:
            process.terminate()
            process.wait(40)
    began, ended = made.ask("SELECT min(started_at), max(finished_at) FROM headrace.product_build")[0]
    return float((ended - began).total_seconds())


# dbprocessing, where it is at hand.

THEIR_MISSION = """
[mission]
mission_name = demo
rootdir = {folder}/root
incoming_dir = {folder}/incoming
codedir = {folder}/codes
inspectordir = {folder}/inspectors
[satellite]
satellite_name = sat
[instrument]
instrument_name = mag
"""
THEIR_PRODUCT = """
[product_l{level}]
product_name = l{level}
relative_path = l{level}/{{Y}}
level = {level}
format = l{level}_{{Y}}{{m}}{{d}}_v{{VERSION}}.dat
product_description = level {level}
inspector_filename = by_name.py
inspector_relative_path =
inspector_description = by name
inspector_version = 1.0.0
inspector_output_interface = 1
inspector_active = True
inspector_date_written = 2020-01-01
inspector_newest_version = True
inspector_arguments = name=l{level}
"""
THEIR_PROCESS = """
[process_l{level}]
process_name = make_l{level}
output_product = product_l{level}
output_timebase = {timebase}
extra_params =
required_input1 = product_l{before}
code_filename = copy
code_relative_path =
code_start_date = 1970-01-01
code_stop_date = 2100-12-31
code_description = copy
code_version = 1.0.0
code_output_interface = 1
code_active = True
code_date_written = 2020-01-01
code_newest_version = True
code_arguments =
code_cpu = 1
code_ram = 1
"""
THEIR_INSPECTOR = """
import datetime, re
from dbprocessing import inspector, Version
class Inspector(inspector.inspector):
    code_name = 'by_name.py'
    def inspect(self, kwargs):
        found = re.match(kwargs['name'] + r'_([0-9]{8})_v([0-9]+)[.]([0-9]+)[.]([0-9]+)[.]dat$', self.basename)
        if not found:
            return None
        day = datetime.datetime.strptime(found.group(1), '%Y%m%d')
        self.diskfile.params.update(
            utc_file_date=day.date(), utc_start_time=day, utc_stop_time=day + datetime.timedelta(seconds=86399),
            version=Version.Version(*map(int, found.groups()[1:])))
        return 'ok'
"""
SHORT_SLEEPS = "import time\n_sleep = time.sleep\ntime.sleep = lambda seconds: _sleep(min(seconds, 0.002))\n"


def side_by_side(files: int) -> list[Row]:
    """The same files, products and code by dbprocessing as it is shipped and with its sleeps cut, and by ours."""
    source, python = os.environ.get("DBPROCESSING_SRC"), os.environ.get("DBPROCESSING_PYTHON")
    if not source or not python:
        return [("not at hand: DBPROCESSING_SRC, DBPROCESSING_PYTHON", "", "", "", "", "", "")]
    found = {
        "as shipped": (20, _theirs(Path(source), python, 20, has_sleeps=True)),
        "sleeps cut": (files, _theirs(Path(source), python, files, has_sleeps=False)),
    }
    with private_postgres() as server, site(server) as made:
        made.deliver(files)
        ours = (made.ingest(), made.build(), made.plan())
        _expect(made, {"l0": files, "l1": files, "l2": files})
    rows: list[Row] = []
    for what, (count, taken) in found.items():
        cells: list[object] = []
        for amount, here, there in zip((1, 2, 1), ours, taken, strict=True):
            rate = amount * count / there
            cells += [f"{rate:.1f}/s", f"{amount * files / here / rate:.1f} x"]
        rows.append((f"{what}, {count} files", *cells))
    rates = (f"{files / ours[0]:,.0f}/s", "", f"{2 * files / ours[1]:.1f}/s", "", f"{files / ours[2]:,.0f}/s", "")
    return [*rows, (f"ours, {files} files", *rates)]


def _theirs(source: Path, python: str, files: int, *, has_sleeps: bool) -> tuple[float, float, float]:
    """Seconds of its ingest, of its builds, and of finding that nothing is left to do when all is queued again."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        for word in ("root", "incoming", "codes/errors", "inspectors", "logs", "site"):
            (folder / word).mkdir(parents=True)
        if not has_sleeps:
            (folder / "site" / "sitecustomize.py").write_text(SHORT_SLEEPS, encoding="ascii")
        (folder / "inspectors" / "by_name.py").write_text(THEIR_INSPECTOR, encoding="ascii")
        (folder / "codes" / "copy").write_text(SCRIPT, encoding="ascii")
        (folder / "codes" / "copy").chmod(0o755)
        parts = [
            THEIR_MISSION.format(folder=folder), *(THEIR_PRODUCT.format(level=level) for level in range(3)),
            THEIR_PROCESS.format(level=1, before=0, timebase="FILE"),
            THEIR_PROCESS.format(level=2, before=1, timebase="DAILY"),
        ]  # fmt: skip
        (folder / "demo.conf").write_text("".join(parts), encoding="ascii")
        _deliver(folder, files)
        more = {"PYTHONPATH": f"{folder / 'site'}:{source}", "DBPROCESSING_LOG_DIR": str(folder / "logs")}
        rows = str(folder / "demo.sqlite")

        def run(script: str, *words: str) -> float:
            argv = [python, str(source / "scripts" / script), *words]
            began = perf_counter()
            done = subprocess.run(argv, cwd=folder, env=os.environ | more, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{script}: {done.stderr[-2000:]}")
            return perf_counter() - began

        run("CreateDB.py", "-d", "sqlite", rows)
        run("addFromConfig.py", "-m", rows, "demo.conf")
        ingested = run("ProcessQueue.py", "-i", "-m", rows)
        built = run("ProcessQueue.py", "-p", "-m", rows)
        there = [len(list((folder / "root" / f"l{level}").rglob("*.dat"))) for level in range(3)]
        if there != [files] * 3:
            raise SystemExit(f"dbprocessing made {there} files, where {files} of each are right")
        last = FIRST + timedelta(days=files)
        run("reprocessByProduct.py", "-m", rows, "-s", f"{FIRST:%Y%m%d}", "-e", f"{last:%Y%m%d}", "l0")
        return ingested, built, run("ProcessQueue.py", "-p", "-m", rows)


def _profiled(work: Callable[[], float]) -> float:
    profiler = cProfile.Profile()
    seconds = profiler.runcall(work)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    pstats.Stats(profiler).sort_stats("cumtime").print_stats(45)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement")
    parser.add_argument("--files", type=int, default=300, help="of l0 in runs and worker")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        _be_planner(options.plan, options.profile)
        return
    theirs, notes = "dbprocessing*", "*measured elsewhere, as shipped and with its sleeps cut"
    rounds, files, profile = options.rounds, options.files, options.profile
    for part in options.parts or PARTS:
        if part == "plan":
            head = ("plan, 20 products", "median", "us/file", "peak", "backend", "asked")
            table("plan of everything; a process each", head, plan(rounds, profile))
        elif part == "ingest":
            head = ("ingest", "files/s", "floor", "of it", "asked", theirs)
            table(f"ingest; {notes}", head, ingest(rounds, profile, (files, 2000)))
        elif part in ("runs", "worker"):
            head = ("runs", "ours", "floor", "above it", "asked", theirs)
            table(f"builds; {notes}", head, runs(rounds, profile, files) if part == "runs" else worker(rounds, files))
        else:
            columns = ("on sqlite", "ingest", "ours", "runs", "ours", "up to date", "ours")
            table("dbprocessing, and how much faster ours is", columns, side_by_side(files))


if __name__ == "__main__":
    main()
