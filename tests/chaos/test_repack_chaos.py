"""Chaos: whatever is killed, doubled or lost in a rewrite, clients go on writing, and the end is as in a quiet one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from tests.conftest import Site
from tests.integration.repack import dumps
from workers import database, migrations
from workers.repack import places, requests
from workers.repack.requests import Wish
from workers.repack_settings import Limits
from workers.services.postgres import PostgresServer
from workers.settings import Settings
from workers.telemetry import api as telemetry

Process = subprocess.Popen[bytes]
MakeStorm = Callable[[str], "Storm"]

ROWS = 24_000
# The mirror gets every change in the same transaction; nobody rewrites it.
TABLES = f"""
    CREATE SCHEMA app;
    CREATE TABLE app.t (id integer PRIMARY KEY, v integer NOT NULL, word text);
    CREATE INDEX by_v ON app.t (v);
    CREATE INDEX by_word ON app.t (word);
    INSERT INTO app.t SELECT n, n, 'word ' || n FROM generate_series(1, {ROWS}) n;
    UPDATE app.t SET v = v + 1;
    CREATE TABLE app.mirror (LIKE app.t INCLUDING ALL);
    INSERT INTO app.mirror SELECT * FROM app.t;
"""
# Where a step stands still: everything of it is done, its COMMIT is being executed, and does not come to its end.
GATES = ("copy", "index", "replay", "swap", "verify", "drop")
GATE = """
    CREATE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WHILE NOT pg_try_advisory_xact_lock_shared(77, TG_ARGV[0]::integer) LOOP
            PERFORM pg_advisory_xact_lock_shared(78, TG_ARGV[0]::integer), pg_sleep(0.01);
        END LOOP;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER copy AFTER UPDATE ON headrace.repack DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.rows_copied > OLD.rows_copied AND OLD.rows_copied > 0) EXECUTE FUNCTION public.gate(0);
    CREATE CONSTRAINT TRIGGER index AFTER UPDATE ON headrace.repack_index DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.built_at IS NOT NULL AND NOT NEW.is_key) EXECUTE FUNCTION public.gate(1);
    CREATE CONSTRAINT TRIGGER replay AFTER UPDATE ON headrace.repack DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.replay_rounds > OLD.replay_rounds AND NEW.step = 'replay') EXECUTE FUNCTION public.gate(2);
    CREATE CONSTRAINT TRIGGER swap AFTER UPDATE ON headrace.repack DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.swapped_at IS NOT NULL AND OLD.swapped_at IS NULL) EXECUTE FUNCTION public.gate(3);
    CREATE CONSTRAINT TRIGGER verify AFTER UPDATE ON headrace.repack DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.rows_verified > OLD.rows_verified) EXECUTE FUNCTION public.gate(4);
    CREATE CONSTRAINT TRIGGER drop AFTER UPDATE ON headrace.repack DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.state = 'done') EXECUTE FUNCTION public.gate(5);
"""
STANDING = """
    SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
     WHERE l.locktype = 'advisory' AND l.classid = 78 AND l.objid = %s AND d.datname = current_database()
"""
LEFT = """
    SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname ~ '^headrace_'
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname ~ 'headrace'
    UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE proname ~ 'headrace'
"""


class Writer(threading.Thread):
    """Somebody who changes the table all the time, and its mirror in the same transaction."""

    def __init__(self, dsn: str, seed: int, *, may_fail: bool = False) -> None:
        super().__init__(daemon=True)
        self.dsn, self.may_fail = dsn, may_fail
        self.dice = random.Random(seed)
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self.longest = 0.0
        self.inserted = 0
        self.next = 100_000 * (seed + 1)

    def run(self) -> None:
        """Until it is over; with `may_fail` a server that is gone is waited for."""
        while not self.over.is_set():
            try:
                self._write()
            except psycopg2.OperationalError as error:
                if not self.may_fail:
                    self.failure = error
                    return
                self.over.wait(0.1)
            except BaseException as error:
                self.failure = error
                return

    def _write(self) -> None:
        with closing(psycopg2.connect(self.dsn)) as conn, conn.cursor() as cursor:
            while not self.over.is_set():
                began = time.monotonic()
                for _ in range(self.dice.randint(1, 3)):
                    self._change(cursor)
                conn.commit()
                self.longest = max(self.longest, time.monotonic() - began)
                self.over.wait(0.005)

    def _change(self, cursor: Any) -> None:
        # One writer's rows are its own: two of them never wait for each other.
        first = self.dice.randrange(1, ROWS)
        deed = self.dice.choice(("update", "update", "delete", "insert", "key"))
        self.next += 1
        for table in ("app.t", "app.mirror"):
            if deed == "update":
                cursor.execute(f"UPDATE {table} SET v = v + 1 WHERE id BETWEEN %s AND %s", (first, first + 5))
            elif deed == "delete":
                cursor.execute(f"DELETE FROM {table} WHERE id = %s", (first,))
            elif deed == "insert":
                cursor.execute(f"INSERT INTO {table} VALUES (%s, 0, 'new')", (self.next,))
            else:
                cursor.execute(f"UPDATE {table} SET id = %s, word = 'moved' WHERE id = %s", (self.next, first))
        self.inserted += deed in ("insert", "key")


@dataclass
class Storm:
    """Real processes that rewrite app.t while somebody writes into it."""

    site: Site
    room: dict[str, Any] = field(default_factory=dict)
    workers: list[Process] = field(default_factory=list)
    id: int = 0
    before: str = ""

    def begin(self, **limits: Any) -> None:
        """The tables, the gates, and a request; a first chunk is not the whole of it, nor a first range."""
        for statement in (TABLES, GATE):
            self.site.ask(statement)
        self.before = dumps.schema(self.site.dsn)
        self.ask_for("t", **limits)

    def ask_for(self, table: str, **limits: Any) -> None:
        """A person's request."""
        chosen = {"lock_timeout_seconds": 1, "lock_pause_seconds": 0.3, "hold_seconds": 5, "swap_below_rows": 1}
        wish = Wish(limits=Limits(**{**chosen, "rehearse": False, "max_failures": 100, **limits}))
        self.id = requests.request(self.conf, "control", "app", table, wish)
        database.close_all()

    @property
    def conf(self) -> Settings:
        """For this process."""
        return Settings(host="here", control={"dsn": self.site.dsn}, repack=self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Impatient ones."""
        return {"requeue_seconds": 1, **self.room}

    def worker(self, *options: str, wait: bool = True, **more: str) -> Process:
        """One more worker; with `wait` it consumes already."""
        facts = {"HEADRACE_REPACK": json.dumps(self.settings), "HEADRACE_WORKER__CONCURRENCY": "2", **more}
        if wait:
            process = self.site.worker(options=options, app="rehearsal", **facts)
        else:
            name = f"w{len(self.site.processes)}@here"
            process = self.site.start("worker", "-n", name, "--without-mingle", app="rehearsal", **facts)
        self.workers.append(process)
        return process

    def beat(self) -> Process:
        """One more beat."""
        return self.site.start("beat", app="rehearsal", HEADRACE_REPACK=json.dumps(self.settings))

    def row(self, *columns: str) -> tuple[Any, ...]:
        """Columns of the request."""
        return self.site.ask(f"SELECT {', '.join(columns)} FROM headrace.repack WHERE id = %s", self.id)[0]

    @contextmanager
    def closed(self, gate: str) -> Iterator[None]:
        """Nothing comes through this gate meanwhile."""
        with closing(psycopg2.connect(self.site.dsn)) as conn:
            with conn.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock(77, %s)", (GATES.index(gate),))
            conn.commit()
            yield
            with suppress(psycopg2.Error):  # of a server that is gone, the lock is, too
                conn.cursor().execute("SELECT pg_advisory_unlock_all()")

    def standing(self, gate: str) -> int:
        """Wait until a session stands at the gate; its pid."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [row[0] for row in self.site.ask(STANDING, GATES.index(gate))]
            return bool(found)

        self.site.until(look, f"somebody stands before the COMMIT of {gate}")
        return found[0]

    def kill_who_has(self, backend: int, *, whole: bool) -> None:
        """kill -9 the process that has this session, or its whole worker: another one takes its place."""
        query = "SELECT worker FROM headrace.run WHERE backend_pid = %s AND state = 'running' ORDER BY id DESC"
        self.site.until(lambda: bool(self.site.ask(query, backend)), f"a run has the backend {backend}")
        pid = int(self.site.ask(query, backend)[0][0].rpartition(":")[2])
        if not whole:
            os.kill(pid, signal.SIGKILL)
            return
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        [victim] = [worker for worker in self.workers if worker.pid in (pid, parent)]
        self.workers.remove(victim)
        self.worker(wait=False)
        victim.kill()
        victim.wait()

    def end_session(self, backend: int) -> None:
        """pg_terminate_backend; returns when it is gone."""
        self.site.ask("SELECT pg_terminate_backend(%s, 10000)", backend)

    def die_in_the_swap(self, backend: int) -> None:
        """With the lock held first the session dies, then a worker; nothing is half-way, and the server frees it."""
        oid = self.row("table_oid")[0]
        self.end_session(backend)
        backend = self.standing("swap")
        killed = time.monotonic()
        self.kill_who_has(backend, whole=True)
        gone = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        self.site.until(lambda: self.site.ask(gone, backend) == [], "the server notices by itself")
        assert time.monotonic() - killed < 10
        assert self.row("step", "swapped_at") == ("swap", None)
        named = "SELECT relnamespace::regnamespace::text, relname FROM pg_class WHERE oid = %s"
        assert self.site.ask(named, oid) == [("app", "t")]

    @contextmanager
    def writing(self, *, may_fail: bool = False) -> Iterator[Writer]:
        """Somebody writes meanwhile, and meets no error."""
        writer = Writer(self.site.dsn, 1, may_fail=may_fail)
        writer.start()
        try:
            yield writer
        finally:
            writer.over.set()
            writer.join(30)
        assert writer.failure is None and not writer.is_alive()

    def until_done(self, seconds: float = 40) -> None:
        """Wait until the request is over, and well."""
        self.site.until(lambda: self.row("state") != ("active",), "the request is over", seconds)
        assert self.row("state", "reason", "problem") == ("done", None, None)

    def check(self, writer: Writer) -> None:
        """Table and mirror are the same, no row was copied twice, the schema is as before, nothing is left."""
        for one, two in (("t", "mirror"), ("mirror", "t")):
            assert self.site.ask(f"TABLE app.{one} EXCEPT ALL TABLE app.{two}") == []
        assert self.row("rows_copied")[0] <= ROWS + writer.inserted
        assert self.site.ask(LEFT) == []
        assert dumps.schema(self.site.dsn) == self.before


@pytest.fixture
def make_storm(broker_url: str, tmp_path: Path) -> Iterator[MakeStorm]:
    """Make a deployment; its processes end with the test."""
    made: list[Site] = []

    def make(dsn: str) -> Storm:
        site = Site(tmp_path / "site", dsn, broker_url, tmp_path / "telem")
        made.append(site)
        return Storm(site)

    yield make
    for site in made:
        site.stop()
    database.close_all()
    places.forget()


@pytest.fixture
def storm(dsn: str, make_storm: MakeStorm) -> Iterator[Storm]:
    """A deployment on a database of its own."""
    made = make_storm(dsn)
    yield made
    made.site.stop()


@pytest.mark.parametrize("when", ["before its commit", "after its commit"])
def test_a_worker_killed_in_every_step_is_followed_by_another(storm: Storm, when: str) -> None:
    """kill -9 in each step in turn, with its COMMIT to come or just done: it goes on where it was, and all is there."""
    storm.begin()
    storm.worker()
    storm.beat()
    copied = 0
    with storm.writing() as writer:
        for gate in GATES:
            with storm.closed(gate):
                backend = storm.standing(gate)
                now = storm.row("rows_copied")[0]
                assert now >= copied
                copied = now
                if gate == "swap" and when == "before its commit":
                    storm.die_in_the_swap(backend)
                    continue
                storm.kill_who_has(backend, whole=gate == "copy")
                if when == "before its commit":
                    # Within five seconds the server would notice by itself (client_connection_check_interval).
                    storm.end_session(backend)
        storm.until_done()
    storm.check(writer)
    assert storm.row("chunks >= 3", "replay_rounds > 1", "rows_verified > 0") == (True, True, True)


def test_a_server_that_crashes_in_every_step_loses_nothing(make_storm: MakeStorm, tmp_path: Path) -> None:
    """An immediate shutdown in each step in turn, just before its COMMIT: afterwards it goes on, and all is there."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    postgres = PostgresServer(folder)
    postgres.start()
    try:
        conf = Settings(control={"dsn": postgres.dsn()})
        with database.connection(conf.target(), purpose="tests") as conn:
            migrations.migrate(conn, migrations.FOUNDATION)
        telemetry.setup(conf)
        storm = make_storm(postgres.dsn())
        places.ensure(conf.target())
        storm.begin()
        storm.worker()
        storm.beat()
        with storm.writing(may_fail=True) as writer:
            for gate in GATES:
                with storm.closed(gate):
                    storm.standing(gate)
                    postgres.send(signal.SIGQUIT)
                    while postgres.alive():
                        time.sleep(0.01)
                postgres.start()
            storm.until_done(60)
        storm.check(writer)
        storm.site.stop()
        database.close_all()
    finally:
        postgres.stop()


def test_messages_lost_and_tripled_and_a_killed_beat_change_nothing(storm: Storm) -> None:
    """Each message three times, two workers, the broker flushed in every step, the leading beat killed: as in peace."""
    storm.begin(slice_seconds=0.05)
    looker = storm.worker("-Q", "ticks")
    leader = storm.beat()
    storm.site.until_logged(leader, "beat.leading")
    storm.beat()
    with storm.writing() as writer, redis.Redis.from_url(storm.site.broker_url) as client:
        storm.site.until(lambda: client.llen("headrace:repack") > 0, "the first message waits in its queue")
        looker.kill()
        client.flushdb()  # and nobody has it any more
        for wait in (False, True):
            storm.worker(wait=wait, COPIES="3")
        for gate in GATES:
            with storm.closed(gate):
                storm.standing(gate)
                client.flushdb()  # this test's own database of the broker
                if gate == "index":
                    leader.kill()
                    leader.wait()
        storm.until_done()
    storm.check(writer)
    said = "".join(storm.site.log(worker) for worker in storm.workers)
    assert "is being worked on" in said
    assert "Traceback" not in said


def test_a_plan_rewrites_its_tables_one_after_the_other(storm: Storm) -> None:
    """A plan without thresholds and at_once 1: every table of its schema is rewritten, by beat and worker alone."""
    names = ("one", "three", "two")
    for name in names:
        storm.site.ask(
            f"""
            CREATE SCHEMA IF NOT EXISTS mine;
            CREATE TABLE mine.{name} (id integer PRIMARY KEY, word text) WITH (autovacuum_enabled = false);
            INSERT INTO mine.{name} SELECT n, repeat('x', 100) FROM generate_series(1, 3000) n;
            DELETE FROM mine.{name} WHERE id %% 3 > 0;
            ANALYZE mine.{name};
        """.replace("%%", "%")
        )
    plan = {
        "schemas": ["mine"], "at_once": 1,
        "thresholds": {"min_bloat_percent": 0, "min_bloat_bytes": 0, "top": None},
    }  # fmt: skip
    storm.room = {"plans": {"all": plan}, "choose_minutes": 0.02}
    storm.worker()
    storm.beat()
    done = "SELECT table_name, min(finished_at) FROM headrace.repack WHERE state = 'done' GROUP BY 1 ORDER BY 1"
    storm.site.until(lambda: [row[0] for row in storm.site.ask(done)] == list(names), "every table is rewritten")
    spans = storm.site.ask("""
        SELECT DISTINCT ON (table_name) table_name, requested_at, finished_at, requested_by, plan, state
          FROM headrace.repack ORDER BY table_name, id
    """)
    assert [row[0] for row in spans] == list(names)
    in_order = sorted(spans, key=lambda row: row[1])
    assert all(one[2] <= two[1] for one, two in pairwise(in_order))
    assert {row[3:] for row in spans} == {("plan all", "all", "done")}
    gains = storm.site.ask("""
        SELECT DISTINCT ON (c.table_name) c.table_name, c.gained_bytes > 0,
               c.gained_bytes = r.bytes_before - r.bytes_after
          FROM headrace.repack_candidate c JOIN headrace.repack r ON r.id = c.repack
         WHERE r.state = 'done' ORDER BY c.table_name, c.id
    """)
    assert gains == [(name, True, True) for name in names]
