"""Chaos: whoever is killed, flushed or doubled while products are built, the end is the quiet one, file for file."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from psycopg2 import extensions

from tests.chaos.products_world import IMPATIENT, Ask, Newest, World
from tests.conftest import Site
from workers import database, execution, migrations
from workers import settings as settings_module
from workers.messages import BuildProducts, IngestIncoming
from workers.products import running
from workers.products_settings import Products
from workers.services.postgres import PostgresServer
from workers.settings import Settings

Process = subprocess.Popen[bytes]

DAYS = 30
OURS = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'headrace %'
"""
IN_HAND = """
    SELECT count(*) FROM headrace.product_build WHERE state = 'running' AND process_group IS NOT NULL GROUP BY host
"""
# A code's child in a session of its own, that no signal to the code's group reaches.
ESCAPE = """
setsid sh -c 'while :; do echo "$HEADRACE_BUILD"; sleep 0.01; done >> "$GATE-writes"' > /dev/null 2>&1 &
"""
# Only the first code has such a child; the second one says that it has begun.
ESCAPE_ONCE = f"""
if [ -e "$GATE-writes" ]; then echo "$HEADRACE_BUILD" >> "$GATE-writes"; else {ESCAPE.strip()} fi
"""


def children(process: Process) -> list[int]:
    """Pids of a worker's pool."""
    try:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in found.split()]


@pytest.fixture
def world(conf: Settings, sql: Ask, tmp_path: Path) -> Iterator[World]:
    """A mission whose work is done by this process and its children."""
    rules = conf.products.model_copy(update={"settle_seconds": 0.0, "retry_seconds": 0.1})
    settings = conf.model_copy(update={"products": rules})
    settings_module.use(settings)
    yield World(tmp_path / "world", settings, sql)


# Every crash window: a child does the work, and ends in front of each lasting effect in turn.


class Effects:
    """Counts what this process does that lasts: commits that wrote, changes of folders, codes begun.

    In front of the `at`-th, `deed` is done. Everything real goes on: nothing is faked.
    """

    def __init__(self, at: int, deed: Callable[[Effects], object]) -> None:
        self.at, self.deed = at, deed
        self.names: list[str] = []
        self.sessions: list[extensions.connection] = []

    def before(self, name: str) -> None:
        """The next effect is about to come."""
        self.names.append(name)
        if len(self.names) == self.at:
            self.deed(self)

    def watch(self) -> None:
        """From now on, until this process ends."""
        effects = self

        class Counted(extensions.connection):
            """A session that tells before each commit of something."""

            def commit(self) -> None:
                if self.info.transaction_status == extensions.TRANSACTION_STATUS_INTRANS:
                    with self.cursor() as cursor:
                        cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
                        if cursor.fetchone() == (True,):
                            effects.before("commit")
                super().commit()

        connect = psycopg2.connect

        def counted(*words: Any, **facts: Any) -> extensions.connection:
            conn = connect(*words, connection_factory=Counted, **facts)
            effects.sessions.append(conn)
            return conn

        psycopg2.connect = counted  # type: ignore[assignment]
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "symlink"):
            setattr(os, name, self._told(name, getattr(os, name)))
        setattr(running, "spawn", self._told("spawn", vars(running)["spawn"]))  # noqa: B010

    def _told(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def act(*words: Any, **facts: Any) -> Any:
            is_there = isinstance(words[0], (str, bytes)) and os.path.lexists(words[0])
            # What is there already is not made, what is not there is not removed: no effect.
            if name == "spawn" or "dir_fd" in facts or is_there != (name in ("mkdir", "symlink")):
                self.before(f"{name} {os.path.basename(os.fsdecode(words[0]))[:20]}")
            return real(*words, **facts)

        return act


def end_here(effects: Effects) -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def break_sessions(effects: Effects) -> None:
    """Every session of this process is ended by the server; the process lives on."""
    pids = [conn.info.backend_pid for conn in effects.sessions if not conn.closed]
    dsn = effects.sessions[0].dsn
    own = extensions.connection(settings_module.current().target().dsn)
    assert dsn
    own.autocommit = True
    with own.cursor() as cursor:
        for pid in pids:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    own.close()


def take_in_and_build(world: World) -> None:
    """What two messages ask of a worker."""
    host, name = world.settings.host, world.name
    messages = [IngestIncoming(host=host, mission=name), BuildProducts(host=host, lane=1)]
    execution.run_here(messages, world.settings, timeout=timedelta(0))


def work_in_a_child(
    world: World, at: int, deed: Callable[[Effects], object], work: Callable[[World], object] = take_in_and_build
) -> tuple[list[str], int]:
    """Work in a child process, the deed done in front of its `at`-th effect; (effects, wait status)."""
    names = world.folder / "effects"
    names.unlink(missing_ok=True)
    database.close_all()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            effects = Effects(at, deed)
            effects.watch()
            work(world)
            with names.open("w") as file:
                file.write("\n".join(effects.names))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return (names.read_text().splitlines() if names.exists() else []), status


def deliver_for(world: World, turn: int) -> int:
    """One turn's files, on a day far from the others': two that come to their places, one of no product; the day."""
    number = 10 * turn
    world.deliver(number, content="the same every time\n")
    world.deliver(number, content="beside it\n", product="aux")
    (world.folder / "incoming" / f"junk{turn}").write_text("of no product\n")
    return number


def quarantined(world: World, turn: int) -> list[tuple[Any, ...]]:
    """How the junk of a turn ended."""
    return world.ask(
        "SELECT state, reason FROM headrace.product_quarantine WHERE filename = %s ORDER BY id", f"junk{turn}"
    )


@pytest.mark.parametrize(
    "deed",
    [
        end_here,
        break_sessions,
    ],
)
def test_work_cut_off_before_any_of_its_effects_is_finished_by_a_second_run(
    world: World, deed: Callable[[Effects], object]
) -> None:
    """kill -9, or the end of its sessions, before each commit, rename or start of a code: the end is the quiet one."""
    execution.load_rooms()
    day = deliver_for(world, 0)
    effects, status = work_in_a_child(world, 0, deed)
    assert status == 0
    quiet = world.newest(day, day)
    assert len(quiet) == 4
    assert world.faults(day, day) == []
    faults: list[str] = []
    at, over = 0, False
    while not over:
        at += 1
        day = deliver_for(world, at)
        done, status = work_in_a_child(world, at, deed)
        assert status in (0, signal.SIGKILL)
        over = status == 0 and len(done) < at
        problems = world.finish_here()
        found = world.faults(day, day, lost=1)
        found += [] if world.newest(day, day) == quiet else [f"not as in peace: {world.newest(day, day)}"]
        found += [] if quarantined(world, at) == quarantined(world, 0) else [f"junk: {quarantined(world, at)}"]
        found += [one for one in problems if "quarantine" not in one]
        faults += [f"{at} before {''.join(effects[at - 1 : at])}: {one}" for one in found]
    assert at > 20
    # A scratch folder whose build had ended just before is swept up when it is an hour old.
    left = list((world.root / ".headrace").iterdir())
    assert len(left) <= 4 * (deed is end_here)
    world.sweep_scratch()
    assert faults + world.litter(quarantined=at + 1) == []


def test_a_recovery_that_is_killed_is_recovered_from(world: World) -> None:
    """kill -9 of the work, then kill -9 of the run that was to finish it: the third run comes to the quiet end."""
    execution.load_rooms()
    dice = random.Random(20270101)
    quiet: Newest = {}
    faults: list[str] = []
    kills = (0, *range(4, 29, 2))
    for turn, at in enumerate(kills):
        day = deliver_for(world, turn)
        work_in_a_child(world, at, end_here)
        second = dice.randint(1, 20)
        _, status = work_in_a_child(world, second, end_here, World.finish_here)
        problems = world.finish_here()
        quiet = quiet or world.newest(day, day)
        found = world.faults(day, day, lost=2)
        found += [] if world.newest(day, day) == quiet else [f"not as in peace: {world.newest(day, day)}"]
        found += [] if quarantined(world, turn) == quarantined(world, 0) else [f"junk: {quarantined(world, turn)}"]
        found += [one for one in problems if "quarantine" not in one]
        faults += [f"{at}, then {second} ({status}): {one}" for one in found]
    assert len(quiet) == 4
    world.sweep_scratch()
    assert faults + world.litter(quarantined=len(kills)) == []


def test_no_process_of_a_build_outlives_it(world: World) -> None:
    """A code that ends well at once leaves a child in a session of its own: it is ended, too."""
    (world.folder / "codes" / "l1.sh").write_text(f'#!/bin/sh{ESCAPE}cp -- "$1" "$2"\n')
    execution.load_rooms()
    world.deliver(0)
    assert world.finish_here() == []
    left = running.survivors([row[0] for row in world.ask("SELECT token FROM headrace.product_build")])
    running.kill_survivors([row[0] for row in world.ask("SELECT token FROM headrace.product_build")])
    assert left == []


# Real workers and beat, and what happens to them


class Storm:
    """A deployment at work on a mission, and what is done to it."""

    def __init__(self, site: Site, world: World) -> None:
        self.site, self.world = site, world
        self.dice = random.Random(20270101)
        self.workers: list[Process] = []

    def worker(self, host: str = "here", *, wait: bool = True, **more: str) -> Process:
        """One more worker, with one process more than lanes; with `wait` it consumes already."""
        facts = {"HEADRACE_PRODUCTS": json.dumps(IMPATIENT), "HEADRACE_WORKER__CONCURRENCY": "3", **more}
        if wait:
            process = self.site.worker(host, app="rehearsal", **facts)
        else:
            name = f"w{len(self.site.processes)}@{host}"
            process = self.site.start("worker", "-n", name, "--without-mingle", host=host, app="rehearsal", **facts)
        self.workers.append(process)
        return process

    def beat(self, **more: str) -> Process:
        """One more beat."""
        return self.site.start("beat", app="rehearsal", HEADRACE_PRODUCTS=json.dumps(IMPATIENT), **more)

    def kill(self, worker: Process) -> None:
        """kill -9 of a worker with all of its processes."""
        for pid in [*children(worker), worker.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.wait()
        self.workers.remove(worker)

    def cut_off(self, share: float = 1) -> None:
        """End sessions of the deployment, each with this probability."""
        for (pid,) in self.site.ask(OURS):
            if self.dice.random() < share:
                self.site.ask("SELECT pg_terminate_backend(%s)", pid)

    def fall_silent(self, host: str) -> None:
        """What a minute without a word would make of a host."""
        self.site.ask("UPDATE headrace.host SET last_seen = now() - interval '1 hour' WHERE name = %s", host)

    def until_built(self, count: int) -> None:
        """Wait until so many builds have ended well."""
        self.site.until(lambda: self.world.built() >= count, f"{count} builds")

    def until_standing(self, count: int) -> list[int]:
        """Wait until so many codes have come to the gate; their pids."""
        self.site.until(lambda: len(self.world.standing()) >= count, f"{count} codes at the gate")
        return self.world.standing()

    def until_done(self, days: int, version: str = "1.0.0", seconds: float = 60) -> None:
        """Wait until all is built and nothing goes on."""
        self.site.until(lambda: self.world.is_done(range(days), version), f"{days} days are done", seconds)

    def end(self) -> None:
        """Nothing goes on any more: no process is let finish politely, which takes seconds."""
        for process in self.site.processes:
            process.kill()
            process.wait()

    def check(self, quiet: Newest, *, lost: int | None) -> None:
        """The end is that of the quiet run, and nothing lies about."""
        self.end()
        days = len(quiet) // 3
        faults = self.world.faults(0, days - 1, lost=lost) + self.world.litter()
        if (newest := self.world.newest(0, days - 1)) != quiet:
            faults += [f"{key}: {newest.get(key)}" for key, value in quiet.items() if newest.get(key) != value]
        assert faults == []
        said = "".join(self.site.log(process) for process in self.site.processes)
        assert "message.bug" not in said


MakeStorm = Callable[..., Storm]


@pytest.fixture
def make_storm(site: Site, conf: Settings, sql: Ask, tmp_path: Path) -> Iterator[MakeStorm]:
    """Make a mission, with lines that its codes have more, for real processes."""

    def make(**more: str) -> Storm:
        return Storm(site, World(tmp_path / "world", conf, sql, more=more))

    yield make
    for process in site.processes:
        process.kill()
    running.kill_survivors([row[0] for row in sql("SELECT token FROM headrace.product_build")])


@pytest.fixture(scope="module")
def quiet(module_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Newest:
    """The end of a quiet run of all days: they come at once, and this process alone builds."""
    rules = Products(settle_seconds=0)
    settings = Settings(host="here", control={"dsn": module_site.dsn}, products=rules)
    world = World(tmp_path_factory.mktemp("quiet"), settings, module_site.ask)
    for number in range(DAYS):
        world.deliver(number)
    execution.load_rooms()
    assert world.finish_here() == []
    assert world.faults(0, DAYS - 1) + world.litter() == []
    database.close_all()
    return world.newest(0, DAYS - 1)


def test_killed_workers_change_nothing(make_storm: MakeStorm, quiet: Newest) -> None:
    """kill -9 of one process, or of all of a worker, again and again while files come in: the end is the quiet one."""
    storm = make_storm()
    storm.beat()
    worker = storm.worker()
    step, blows = DAYS // 6, 0
    for number in range(DAYS):
        storm.world.deliver(number)
        if number % step != step - 1:
            continue
        before = storm.world.built()
        storm.until_built(before + 1)
        time.sleep(storm.dice.uniform(0, 0.2))  # somewhere in the middle of the next ones
        blows += 1
        if blows % 2:
            os.kill(storm.dice.choice(children(worker)), signal.SIGKILL)
        else:
            storm.kill(worker)
            worker = storm.worker(wait=False)
    storm.until_done(DAYS)
    # At each blow both lanes of the host may have had a build in hand, and a child that takes over may die with them.
    storm.world.sweep_scratch()
    storm.check(quiet, lost=2 * blows)


def test_nobody_builds_an_output_while_processes_of_its_dead_build_live(make_storm: MakeStorm) -> None:
    """A code's child left its session and writes on as its worker is killed: it is ended first, then comes the next."""
    storm = make_storm(l1=ESCAPE_ONCE)
    writes = storm.world.folder / "gate-writes"
    storm.world.gate.touch()
    storm.world.deliver(0)
    storm.beat()
    worker = storm.worker()
    storm.until_standing(1)
    storm.site.until(lambda: writes.exists() and writes.read_text().count("\n") > 3, "its child writes")
    storm.kill(worker)
    before = writes.stat().st_size
    storm.site.until(lambda: writes.stat().st_size > before, "it writes on")
    storm.worker(wait=False)
    storm.until_standing(2)
    storm.world.gate.unlink()
    storm.until_done(1)
    storm.end()
    tokens = [token for token, _ in groupby(writes.read_text().split())]
    assert len(tokens) == 2
    assert len(storm.world.newest(0, 0)) == 3
    assert storm.world.faults(0, 0, lost=1) + storm.world.litter() == []


def test_two_hosts_share_the_work_and_one_takes_over_from_a_dead_one(make_storm: MakeStorm, quiet: Newest) -> None:
    """Each output is built once, by either; what a host has in hand that falls silent is built by the other."""
    storm = make_storm()
    storm.world.gate.touch()
    for number in range(DAYS):
        storm.world.deliver(number)
    storm.beat()
    hosts = {name: storm.worker(name, wait=name == "there") for name in ("here", "there")}
    storm.until_standing(4)
    storm.world.gate.unlink()
    storm.until_built(8)
    storm.world.gate.touch()
    storm.site.until(lambda: storm.site.ask(IN_HAND) == [(2,), (2,)], "both have two builds in hand")
    storm.kill(hosts["there"])
    storm.fall_silent("there")
    storm.world.gate.unlink()
    storm.until_done(DAYS)
    storm.world.sweep_scratch()
    storm.check(quiet, lost=2)
    shares = dict(storm.site.ask(
        "SELECT host, count(*) FROM headrace.product_build WHERE state = 'succeeded' GROUP BY host"
    ))  # fmt: skip
    assert shares["there"] >= 2
    assert shares["here"] >= DAYS // 2


def test_a_host_that_comes_back_after_others_took_over_publishes_nothing(make_storm: MakeStorm) -> None:
    """A host is frozen in mid-build and cut off; as the other builds that anew, it wakes up, and leaves it alone."""
    storm = make_storm()
    storm.world.gate.touch()
    storm.world.deliver(0)
    storm.beat()
    there = storm.worker("there")
    [code] = storm.until_standing(1)
    frozen = [there.pid, *children(there)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    storm.cut_off()
    storm.fall_silent("there")
    storm.worker("here")
    storm.until_standing(2)
    [(lost, token)] = storm.site.ask("SELECT host, token FROM headrace.product_build WHERE state = 'lost'")
    assert lost == "there"
    # The frozen host's code ends well, then its worker wakes up, and all the while the other one stands at the gate.
    storm.world.let_pass(code)
    storm.site.until(lambda: running.survivors([token]) == [], "the first code has ended")
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    over = "SELECT 1 FROM headrace.run WHERE host = 'there' AND key LIKE 'there:lane %' AND state = 'failed'"
    storm.site.until(lambda: bool(storm.site.ask(over)), "the frozen one has found its session gone")
    storm.world.gate.unlink()
    storm.until_done(1)
    storm.world.sweep_scratch()
    storm.end()
    assert storm.world.faults(0, 0, lost=1) + storm.world.litter() == []
    made = "SELECT DISTINCT host FROM headrace.product_build WHERE state = 'succeeded' AND process_id = 1"
    assert storm.site.ask(made) == [("here",)]


def test_messages_lost_and_sent_five_times_change_nothing(make_storm: MakeStorm, quiet: Newest) -> None:
    """Each message five times, two workers, the broker flushed again and again: every output is built once."""
    storm = make_storm()
    storm.beat(COPIES="5")
    for wait in (False, True):
        storm.worker(wait=wait, COPIES="5")
    with redis.Redis.from_url(storm.site.broker_url) as client:
        for number in range(DAYS):
            storm.world.deliver(number)
            if number % 8 == 7:
                storm.until_built(storm.world.built() + 1)
                client.flushdb()  # this test's own database of the broker
    storm.until_done(DAYS)
    storm.check(quiet, lost=0)


def test_sessions_ended_at_random_change_nothing(make_storm: MakeStorm, quiet: Newest) -> None:
    """pg_terminate_backend of about half of all sessions, again and again: the end is the quiet one."""
    storm = make_storm()
    storm.beat()
    storm.worker()
    for number in range(DAYS):
        storm.world.deliver(number)
        if number % 3 == 2:
            storm.until_built(storm.world.built() + 1)
            storm.cut_off(0.5)
    storm.until_done(DAYS)
    storm.check(quiet, lost=None)


def test_a_server_that_is_restarted_while_codes_run_costs_at_most_one_more_run(site: Site, tmp_path: Path) -> None:
    """An immediate shutdown in mid-build, the server back before the code's end, or not: it is built all the same."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    postgres = PostgresServer(folder)
    postgres.start()
    try:
        site.dsn = postgres.dsn()
        settings = Settings(host="here", control={"dsn": site.dsn})
        with database.connection(settings.target(), purpose="tests") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        storm = Storm(site, World(tmp_path / "world", settings, site.ask))
        storm.beat()
        worker = storm.worker()
        for number, is_back in enumerate((True, False)):
            storm.world.gate.touch()
            storm.world.deliver(number)
            code = storm.until_standing(number + 1)[-1]
            postgres.send(signal.SIGQUIT)
            while postgres.alive():
                time.sleep(0.01)
            if is_back:
                postgres.start()
            storm.world.gate.unlink()
            if not is_back:
                storm.site.until_logged(worker, "build.not_ended")
                assert not running.is_alive(code, running.started_ticks(code) or 0)
                postgres.start()
                # Of a process that lives it is believed for half a minute that it will end its build by itself.
                storm.site.ask("UPDATE headrace.product_build SET started_at = started_at - interval '1 minute'")
            storm.until_done(number + 1)
        storm.end()
        storm.world.sweep_scratch()
        assert storm.world.faults(0, 1, lost=2) + storm.world.litter() == []
        database.close_all()
    finally:
        site.stop()
        postgres.stop()


def test_a_new_version_that_comes_while_the_old_one_is_built_is_what_others_are_built_from_in_the_end(
    make_storm: MakeStorm,
) -> None:
    """L0 1.0.1 comes as its L1 is being built from 1.0.0: in the end the newest of each links the newest below it."""
    storm = make_storm()
    storm.beat()
    storm.worker()
    storm.world.gate.touch()
    storm.world.deliver(0)
    storm.until_standing(1)
    storm.world.deliver(0, "1.0.1")
    came = "SELECT 1 FROM headrace.product_file WHERE filename LIKE 'l0_%_v1.0.1.dat' AND state = 'present'"
    storm.site.until(lambda: bool(storm.site.ask(came)), "the new version has come in")
    storm.world.gate.unlink()
    storm.until_done(1, "1.0.1")
    storm.end()
    assert storm.world.faults(0, 0) + storm.world.litter() == []
    lineage = {key[0]: value[2] for key, value in storm.world.newest(0, 0).items()}
    assert lineage == {"l0": [], "l1": ["l0 0 v1.0.1.dat"], "l2": ["l1 0 v1.0.1.dat"]}


# A full disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-small-"))
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode != 0:
        folder.rmdir()
        pytest.skip("a full disk is tested where this user may mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.parametrize("whose", ["file", "output"])
def test_a_full_disk_at_the_final_move_delays_a_file_and_loses_nothing(
    conf: Settings, sql: Ask, tmp_path: Path, small_disk: Path, whose: str
) -> None:
    """Nothing half stands under the final name, no row says so, the file stays; with room it completes by itself."""
    rules = conf.products.model_copy(update={"settle_seconds": 0.0, "scratch_dir": tmp_path / "scratch"})
    settings = conf.model_copy(update={"products": rules})
    settings_module.use(settings)
    world = World(tmp_path / "world", settings, sql)
    world.root.rmdir()
    world.root.symlink_to(small_disk)
    execution.load_rooms()
    ballast = small_disk / "ballast"
    content = "x" * 80_000 + "\n"
    ballast.write_bytes(bytes(200_000) if whose == "file" else bytes(110_000))
    world.deliver(0, content=content)
    problems = world.finish_here()
    if whose == "file":
        [(problem,)] = sql("SELECT problem FROM headrace.product_arrival")
        assert "no space left" in problem
        assert (world.folder / "incoming" / "l0_20270101_v1.0.0.dat").read_text() == content
        assert world.files(0, 0) == []
    else:
        assert problems == ["gave up after 20 s: an attempt is due again soon"]
        assert [row[1] for row in world.files(0, 0)] == ["l0"]
        waits = "SELECT kind, has_given_up, failures FROM headrace.product_slot"
        assert sql(waits) == [("no_space", False, 0)]
    assert [path.name for path in small_disk.rglob("*l1*")] + [path.name for path in small_disk.rglob(".*.part")] == []
    assert running.survivors([row[0] for row in sql("SELECT token FROM headrace.product_build")]) == []
    ballast.unlink()
    sql("UPDATE headrace.product_slot SET due_at = now() WHERE due_at > now()")  # instead of a minute's wait
    assert world.finish_here() == []
    assert len(world.newest(0, 0)) == 3
    assert [one for one in world.faults(0, 0) if "builds:" not in one] + world.litter() == []
    assert list((tmp_path / "scratch").iterdir()) == []
