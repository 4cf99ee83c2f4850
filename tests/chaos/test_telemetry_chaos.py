"""Chaos: whatever is killed, flushed, doubled or stopped, the archive ends up equal to the quiet run's, row for row."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
import redis

from workers import database, migrations
from workers.services.postgres import PostgresServer
from workers.services.processes import wait_for_exit
from workers.services.valkey import ValkeyServer
from workers.settings import Settings
from workers.telemetry import api

if TYPE_CHECKING:
    from tests.conftest import Site

Process = subprocess.Popen[bytes]
Archive = dict[str, tuple[int, str]]  # per device: rows, and the sum of a hash over every column of each

STAMP = "20240416035000000000000"
IMPATIENT = {
    "HEADRACE_TELEMETRY__BATCH_BYTES": "10000",
    "HEADRACE_TELEMETRY__SWEEP_SECONDS": "1",
    "HEADRACE_TELEMETRY__REQUEUE_SECONDS": "1",
}
# Each batch takes a moment between its rows and its checkpoint: there the kills shall land.
SLOW_DISK = """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.03); RETURN NULL; END';
    CREATE TRIGGER slow AFTER INSERT ON public.telem EXECUTE FUNCTION slow()
"""
COPIED = ("test_five_copies_of_every_message_change_nothing", "test_all_of_it_together_changes_nothing")
ARCHIVE = "SELECT device, count(*), sum(hashtextextended(t::text, 0))::text FROM public.telem t GROUP BY device"


def lines(count: int, start: int = 0) -> bytes:
    """So many records of an instrument."""
    return b"".join(
        b'{"ts": "2024-04-16T03:%02d:%02d.%03d000007", "prio": "TELM", "ec": "telem_cooler", "msg": {"n": %d, '
        b'"x": "%s"}}\n' % (number // 60000, number // 1000 % 60, number % 1000, number, b"x" * 900)
        for number in range(start, start + count)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """Files of all kinds: small and long .ndjson, .ndjson.gz of several members, .bintel."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(50):
        (folder / f"small{number}_{STAMP}.ndjson").write_bytes(lines(40))
    for number in range(2):
        (folder / f"long{number}_{STAMP}.ndjson").write_bytes(lines(1500))
        members = b"".join(gzip.compress(lines(250, start)) for start in range(0, 1500, 250))
        (folder / f"packed{number}_{STAMP}.ndjson.gz").write_bytes(members)
    for pattern in ("edge_*.bintel", "mixed_*.bintel", "rolled_*.bintel"):
        for path in (shared / "fixtures" / "telemetry" / "bintel").glob(pattern):
            shutil.copy(path, folder)
    return folder


@dataclass(frozen=True)
class Lab:
    """Servers of this module's own, and what the quiet run gave."""

    postgres: PostgresServer
    valkey: ValkeyServer
    quiet: Archive

    def stop_postgres_at_once(self) -> None:
        """Immediate shutdown, as a power cut would be; then start it again."""
        self.postgres.send(signal.SIGQUIT)
        while self.postgres.alive():
            time.sleep(0.01)
        self.postgres.start()

    def flush(self) -> None:
        """Everything in Redis is lost."""
        redis.Redis.from_url(self.valkey.url()).flushall()


def children(worker: Process) -> list[int]:
    """The pool processes of a worker."""
    return [int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]


def archive(dsn: str) -> Archive:
    """What stands in the archive."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(ARCHIVE)
        return {device: (count, total) for device, count, total in cursor}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, files: Path, module_site: Site) -> Iterator[Lab]:
    """The servers, after the quiet run."""
    postgres, valkey = PostgresServer(tmp_path_factory.mktemp("lab")), ValkeyServer(tmp_path_factory.mktemp("lab"))
    postgres.start()
    valkey.start()
    conf = Settings(control={"dsn": postgres.dsn()})
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    api.setup(conf)
    database.close_all()
    create(postgres, "quiet", "headrace")
    quiet = module_site.run("telemetry", "ingest", str(files), "--here", HEADRACE_CONTROL__DSN=postgres.dsn("quiet"))
    assert quiet.returncode == 0, quiet
    with closing(psycopg2.connect(postgres.dsn())) as conn, conn, conn.cursor() as cursor:
        cursor.execute(SLOW_DISK)
    yield Lab(postgres, valkey, archive(postgres.dsn("quiet")))
    valkey.stop()
    postgres.stop()


def create(postgres: PostgresServer, name: str, template: str) -> None:
    """A database like another one."""
    with closing(psycopg2.connect(postgres.dsn("postgres"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


class Storm:
    """One deployment at work on the files, and what happens to it."""

    def __init__(self, site: Site, lab: Lab, copies: int) -> None:
        self.site, self.lab, self.settings = site, lab, IMPATIENT | {"COPIES": str(copies)}
        self.count = len(list(site.data.iterdir()))
        self.random = random.Random(20240416)
        site.start("beat", app="rehearsal", **self.settings)
        self.worker = site.worker(app="rehearsal", options=["-c", "2"], **self.settings)

    def done(self) -> bool:
        """Whether all files are done."""
        states = self.site.ask("SELECT state FROM headrace.telemetry_file")
        return states == [("done",)] * self.count

    def check_done_files(self) -> None:
        """No device whose files are all done lacks a row."""
        done = self.site.ask(
            "SELECT device FROM headrace.telemetry_file WHERE state = 'done' GROUP BY device HAVING count(*) = %s"
            " OR (device <> 'rolled' AND count(*) = 1)",
            len(list(self.site.data.glob("rolled_*"))),
        )
        expected = {device: self.lab.quiet[device] for (device,) in done}
        found = archive(self.site.dsn)
        assert {device: found.get(device) for device in expected} == expected

    def records(self) -> int:
        """How many records are committed."""
        return int(self.site.ask("SELECT coalesce(sum(records), 0)::bigint FROM headrace.telemetry_file")[0][0])

    def strike(self, blow: Callable[[], object]) -> None:
        """At a random moment after the next commits."""
        self.check_done_files()
        assert not self.done(), "there was too little work for so many blows"
        before = self.records()
        self.site.until(lambda: self.records() > before, "work goes on")
        time.sleep(self.random.uniform(0, 0.12))
        blow()

    def kill(self) -> None:
        """kill -9 of the pool child, or of the worker, whose child must follow by itself; then start it again."""
        pool = children(self.worker)
        if pool and self.random.random() < 0.7:
            os.kill(self.random.choice(pool), signal.SIGKILL)
            return
        self.worker.kill()
        self.worker.wait()
        assert all(wait_for_exit(pid, None, 5) for pid in pool)
        self.worker = self.site.worker(app="rehearsal", options=["-c", "2"], **self.settings)

    def end(self) -> None:
        """The sweeps bring everything to its end; the archive is the quiet run's."""
        self.site.until(self.done, "all files are done", seconds=40)
        dead = self.site.ask("SELECT * FROM headrace.dead_letter")
        assert (archive(self.site.dsn), dead) == (self.lab.quiet, [])
        for process in self.site.processes:
            process.kill()


@pytest.fixture
def storm(site: Site, lab: Lab, files: Path, request: pytest.FixtureRequest) -> Storm:
    """A deployment on the module's own servers."""
    name = request.node.name
    create(lab.postgres, name, "headrace")
    site.dsn, site.broker_url, site.data = lab.postgres.dsn(name), lab.valkey.url(), files
    lab.flush()
    return Storm(site, lab, copies=5 if request.node.name in COPIED else 1)


@dataclass(frozen=True)
class Loss:
    """A worker and its child that were killed in mid-statement: when, which file, its run, and its backend's end."""

    killed_at: datetime
    path: Path
    run: int
    backend_gone_seconds: float


@pytest.fixture(scope="module")
def loss(module_site: Site) -> Loss:
    """Kill a worker's child whose statement waits for a lock, and the worker; the next worker and beat are real."""
    site = module_site
    path = site.data / f"lost_{STAMP}.ndjson"
    worker = site.worker()
    with site.blocked():
        path.write_bytes(lines(50))
        site.script(f"from producers import enqueue; enqueue('telemetry.ingest', path={str(path)!r})")
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY public.telem%%'"
        site.until(lambda: bool(site.ask(waits)), "its statement waits")
        [(run, backend)] = site.ask("SELECT id, backend_pid FROM headrace.run WHERE state = 'running'")
        for pid in [*children(worker), worker.pid]:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        killed_at = site.ask("SELECT now()")[0][0]
        alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        site.until(lambda: not site.ask(alive, backend), "the backend is gone", seconds=20)
        gone = time.monotonic() - killed
    with redis.Redis.from_url(site.broker_url) as client:
        client.flushdb()
    site.start("beat")
    site.worker(**IMPATIENT)
    return Loss(killed_at, path, run, gone)


def test_a_killed_child_leaves_no_backend(loss: Loss) -> None:
    """Ten seconds after kill -9 of a worker's child no backend of it runs, even one that waits for a lock."""
    assert loss.backend_gone_seconds < 10


def test_a_request_survives_the_death_of_its_child(storm: Storm) -> None:
    """`ingest PATH --wait` ends well, with every row there, although the child that read the file was killed."""
    site = storm.site
    path = site.data / f"long0_{STAMP}.ndjson"
    site.processes[0].kill()  # beat: no sweep shall help
    asked = site.start("headrace", "telemetry", "ingest", str(path), "--wait")
    site.until(lambda: storm.records() > 0, "some records are there")
    for child in children(storm.worker):
        os.kill(child, signal.SIGKILL)
    assert asked.wait(30) == 0, site.log(asked)
    assert archive(site.dsn)["long0"] == storm.lab.quiet["long0"]


def test_twenty_kills_change_nothing(storm: Storm) -> None:
    """kill -9 of the worker or its child at 20 random points: the archive is the quiet run's."""
    for _blow in range(20):
        storm.strike(storm.kill)
    storm.end()


def test_three_flushes_change_nothing(storm: Storm) -> None:
    """Redis loses everything three times during the work: the archive is the quiet run's."""
    for _blow in range(3):
        storm.strike(storm.lab.flush)
    storm.end()


def test_five_copies_of_every_message_change_nothing(storm: Storm) -> None:
    """Each message comes five times: the archive is the quiet run's."""
    storm.end()


def test_an_immediate_stop_of_postgresql_changes_nothing(storm: Storm) -> None:
    """PostgreSQL is stopped at once in mid-ingest and started again: the archive is the quiet run's."""
    storm.strike(storm.lab.stop_postgres_at_once)
    storm.end()


def test_all_of_it_together_changes_nothing(storm: Storm) -> None:
    """Kills, flushes, copies and a stop of PostgreSQL in one run: the archive is the quiet run's."""
    kill, flush = storm.kill, storm.lab.flush
    for blow in (kill, flush, kill, storm.lab.stop_postgres_at_once, kill, flush, kill):
        storm.strike(blow)
    storm.end()


def test_the_run_of_a_killed_worker_is_lost_within_a_minute(loss: Loss, module_site: Site) -> None:
    """The reaper calls a dead worker's run lost within 60 seconds of the kill; the sweep has the file read again."""

    lost = "SELECT finished_at FROM headrace.run WHERE id = %s AND state = 'lost'"
    module_site.until(lambda: bool(module_site.ask(lost, loss.run)), "the run is lost", seconds=70)
    assert module_site.ask(lost, loss.run)[0][0] - loss.killed_at < timedelta(seconds=60)
    state = "SELECT state, records FROM headrace.telemetry_file WHERE path = %s"
    module_site.until(lambda: module_site.ask(state, str(loss.path)) == [("done", 50)], "the file is done")
    assert module_site.rows("lost") == 50
