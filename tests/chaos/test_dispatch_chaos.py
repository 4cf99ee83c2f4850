"""Chaos: whatever is killed, doubled, lost or moved, every event is applied exactly once, as in a quiet run."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from tests.chaos.dispatch_storm import EVERY, LATEST, Storm
from tests.conftest import Servers, Site, _admin, _clone
from tests.integration.dispatch.conftest import (  # noqa: F401
    Queue,
    _with_pgq,
    c_pgq_dsn,
    c_pgq_template,
    c_servers,
    make_queue,
    migrate,
    pl_only_sql,
    run,
)
from workers import database, execution
from workers.dispatch import api, positions, pump
from workers.dispatch.source_store import Pgq
from workers.errors import NothingToDo, PermanentFailure, ServerUnavailable
from workers.messages import DispatchBatch, Message
from workers.services.postgres import PostgresServer

MakeStorm = Callable[[str], Storm]
FINISHING = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%%finish_batch(%%'
"""
READING = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND query LIKE 'COPY (SELECT ev_id%%' AND wait_event = 'ClientWrite'
"""
LOCKING = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%%dispatch_position%%FOR UPDATE%%'
"""
BIG = """
    SELECT pgq.insert_event('q', 'I:id', 'id=' || n || '&name=' || repeat('x', 100000), 'public.part', NULL, NULL, NULL)
      FROM generate_series(100001, 100120) n
"""


@pytest.fixture(scope="session")
def storm_template(servers: Servers, template: str, pl_only_sql: Path) -> str:  # noqa: F811
    """A migrated database with PgQ in PL/pgSQL, under a name of its own: other folders' tests may use the server."""
    return _with_pgq(servers, "template_storm", pl_only_sql.read_text(encoding="utf-8"))


@pytest.fixture
def make_storm(broker_url: str, tmp_path: Path, make_queue: Callable[..., Queue]) -> Iterator[MakeStorm]:  # noqa: F811
    """Make a deployment around a database with PgQ; its processes end with the test."""
    made: list[Site] = []

    def make(dsn: str) -> Storm:
        site = Site(tmp_path / "site", dsn, broker_url, tmp_path / "telem")
        made.append(site)
        return Storm(site, make_queue(dsn))

    yield make
    for site in made:
        site.stop()
    database.close_all()


@pytest.fixture
def storm(servers: Servers, storm_template: str, make_storm: MakeStorm) -> Iterator[Storm]:
    """A deployment on a database of its own, with PgQ in PL/pgSQL."""
    with _clone(servers, storm_template) as dsn:
        made = make_storm(dsn)
        yield made
        made.site.stop()
        made.queue.close()


@pytest.fixture(params=["pl", "c"])
def either_storm(request: pytest.FixtureRequest, make_storm: MakeStorm) -> Storm:
    """The same with PgQ in PL/pgSQL, and with the extension in C."""
    if request.param == "pl":
        found: Storm = request.getfixturevalue("storm")
        return found
    return make_storm(request.getfixturevalue("c_pgq_dsn"))


@pytest.fixture
def far_dsn(servers: Servers, template: str) -> Iterator[str]:
    """A second migrated database: a target that is not the source."""
    with _clone(servers, template) as cloned:
        migrate(cloned)
        yield cloned


def poison(storm: Storm) -> None:
    """Events in the middle of the others that nobody can apply."""
    storm.queue.insert("I:id", "id=77&amount=much", "public.part")
    storm.queue.insert("whatever", "nothing of ours")


# What the pump and the broker may lose or double


def test_a_batch_that_a_dead_pump_opened_is_applied(storm: Storm) -> None:
    """The pump died after next_batch, before it sent the message: the next look sends the same batch."""
    storm.begin({"every": EVERY})
    storm.change()
    opened = storm.queue.call("next_batch", "every")
    storm.worker()
    storm.beat()
    storm.until_drained()
    storm.change()
    storm.until_drained()
    assert storm.standing("every")["batches"] == 2
    assert storm.queue.call("next_batch", "every") is None
    assert opened is not None
    storm.check()


def test_a_lost_message_is_sent_again_within_seconds(storm: Storm) -> None:
    """FLUSHALL with an open batch, by a site's default settings: drained within a few seconds."""
    storm.begin({"every": EVERY}, room={})
    looker = storm.worker("-Q", "ticks")
    storm.beat()
    storm.change()
    with redis.Redis.from_url(storm.site.broker_url) as client:
        storm.site.until(lambda: client.llen("headrace:dispatch") > 0, "the message waits in its queue")
        storm.kill(looker)
        client.flushdb()  # this test's own database of the broker: all that its workers and beats know of
    flushed = time.monotonic()
    storm.worker()
    storm.until_drained()
    # Five seconds for the message to count as lost; thirty (`requeue_seconds`) where nobody saw the empty queue.
    assert time.monotonic() - flushed < 20
    storm.check()


def test_a_flushed_broker_in_mid_load_doubles_nothing(storm: Storm) -> None:
    """FLUSHALL while the message is being worked on: the load goes on, and the next ticks follow."""
    storm.begin({"every": EVERY, "latest": LATEST})
    storm.worker()
    storm.beat()
    with storm.held_in_mid_load("every"):
        storm.change()
        storm.waiting("every")
        with redis.Redis.from_url(storm.site.broker_url) as client:
            client.flushdb()
        storm.change()
    storm.until_drained()
    assert storm.standing("every")["batches"] == 2
    assert storm.contents("latest") == storm.source()
    storm.check()


def test_five_copies_of_every_message_change_nothing(storm: Storm) -> None:
    """Every message five times, four processes: rows once, and one step of the position per tick."""
    storm.begin({"every": EVERY, "latest": LATEST, "cut": {**LATEST, "slices": 2, "slice_events": 1}})
    worker = storm.worker(COPIES="5", HEADRACE_WORKER__CONCURRENCY="4")
    storm.beat()
    with storm.held_in_mid_load("every"):
        storm.change()
        storm.waiting("every")
        storm.site.until_logged(worker, "another worker is at the batch of every")
    for _ in range(5):
        storm.change()
    storm.until_drained()
    assert [storm.standing(name)["batches"] for name in ("every", "latest", "cut")] == [6, 6, 6]
    assert storm.contents("latest") == storm.contents("cut") == storm.source()
    storm.check()


# Deaths of processes


def test_a_worker_killed_in_mid_load_leaves_nothing_of_the_attempt(either_storm: Storm) -> None:
    """kill -9 during the load: none of its rows is there; afterwards all are, once, and the odd ones failed once."""
    storm = either_storm
    storm.begin({"every": EVERY, "latest": LATEST})
    worker = storm.worker()
    storm.beat()
    before = {name: storm.standing(name) for name in storm.stormy()}
    with storm.held_in_mid_load("every"), storm.held_in_mid_load("latest"):
        poison(storm)
        storm.change(20)
        for name in storm.stormy():
            storm.waiting(name)
        storm.kill(worker)
    storm.until_orphans_are_gone()
    for name in storm.stormy():
        assert storm.contents(name) == {"item": [], "part": []}
        assert storm.standing(name) == before[name]
        assert storm.queue.consumer_info(name)[0]["current_batch"] is not None
    storm.worker()
    storm.until_drained()
    assert [storm.standing(name)["failed"] for name in storm.stormy()] == [2, 2]
    assert storm.contents("latest") == storm.source()
    storm.check()


def test_a_worker_killed_before_it_finished_doubles_nothing(either_storm: Storm) -> None:
    """kill -9 between the target's commit and finish_batch: the batch is finished by the next one, not applied."""
    storm = either_storm
    storm.begin({"every": EVERY})
    worker = storm.worker()
    storm.beat()
    with storm.held_in_mid_load("every"):
        tick = storm.change()
        storm.waiting("every")
        finishing = storm.held("SELECT FROM pgq.subscription FOR UPDATE")
        finishing.__enter__()
    storm.site.until(lambda: bool(storm.queue.ask(FINISHING)), "it waits in finish_batch")
    assert storm.standing("every")["tick"] == tick  # committed
    rows = storm.contents("every")
    storm.kill(worker)
    finishing.__exit__(None, None, None)
    storm.until_orphans_are_gone()
    assert storm.queue.consumer_info("every")[0]["current_batch"] is not None  # not finished
    storm.worker()
    storm.until_drained()
    assert storm.contents("every") == rows
    assert storm.standing("every")["batches"] == 1
    storm.change()
    storm.until_drained()
    storm.check()


def test_a_killed_beat_costs_a_moment(storm: Storm) -> None:
    """kill -9 of the beat that leads, with a batch in hand: the other one leads, and the ticks go on."""
    storm.begin({"every": EVERY, "latest": LATEST})
    leader = storm.beat()
    storm.site.until_logged(leader, "beat.leading")
    storm.worker()
    storm.beat()
    with storm.held_in_mid_load("every"):
        storm.change()
        storm.waiting("every")
        storm.kill(leader)
        storm.change()
    storm.until_drained()
    storm.change()
    storm.until_drained()
    storm.check()


def test_a_killed_process_of_one_slice_leaves_the_others_theirs(storm: Storm) -> None:
    """kill -9 of the process of one slice: the others stay applied, it is done again alone; order and rows as ever."""
    slices = 4
    cut = {"slices": slices, "slice_events": 1}
    storm.begin({"every": {**EVERY, **cut}, "latest": {**LATEST, **cut}})
    for name in storm.stormy():
        run(storm.site.dsn, f"""
            CREATE FUNCTION {name}.wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock_shared(''{name}.part''::regclass::oid::bigint); RETURN NEW; END';
            CREATE TRIGGER wait BEFORE INSERT ON {name}.part FOR EACH ROW WHEN (NEW.id = 1002)
            EXECUTE FUNCTION {name}.wait()
        """)  # fmt: skip
    storm.worker(HEADRACE_WORKER__CONCURRENCY="4")
    storm.beat()
    blocked = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s::regclass AND NOT granted"
    done = "SELECT slice, committed_at FROM headrace.dispatch_slice WHERE consumer = %s ORDER BY slice"
    committed = {}
    with storm.held("SELECT pg_advisory_lock('every.part'::regclass::oid::bigint)"), storm.held(
        "SELECT pg_advisory_lock('latest.part'::regclass::oid::bigint)"
    ):  # fmt: skip
        storm.change(40)
        for name in storm.stormy():
            storm.site.until(lambda one=name: len(run(storm.site.dsn, done, one)) == slices - 1, "the others are done")  # type: ignore[misc]
            storm.site.until(lambda one=name: bool(run(storm.site.dsn, blocked, f"{one}.part")), "one stands still")  # type: ignore[misc]
            committed[name] = run(storm.site.dsn, done, name)
            storm.kill_who_has(run(storm.site.dsn, blocked, f"{name}.part")[0][0])
        for name in storm.stormy():
            assert run(storm.site.dsn, done, name) == committed[name]
        storm.change(40)
    storm.until_drained()
    assert [storm.standing(name)["batches"] for name in storm.stormy()] == [2, 2]
    assert storm.contents("latest") == storm.source()
    storm.check()


# Deaths of sessions and servers


@pytest.mark.parametrize("which", ["target", "source"])
def test_a_session_ended_in_mid_load_costs_only_a_retry(storm: Storm, which: str) -> None:
    """pg_terminate_backend of the target's, or the source's, session in mid-load: tried again, all rows once."""
    storm.begin(
        {"every": EVERY, "latest": LATEST}, room={"lock_seconds": 60, "requeue_seconds": 1, "chunk_bytes": 10_000}
    )
    storm.worker()
    storm.beat()
    with storm.held_in_mid_load("every"):
        storm.queue.ask(BIG)  # more than what the sockets' buffers hold
        storm.change()
        victim = storm.waiting("every")
        if which == "source":
            storm.site.until(lambda: len(storm.queue.ask(READING)) == 1, "the source waits for its reader")
            victim = storm.queue.ask(READING)[0][0]
        storm.queue.ask("SELECT pg_terminate_backend(%s)", victim)
    storm.until_drained()
    lost = (
        "SELECT count(*) > 0 FROM headrace.run WHERE state = 'failed' AND error ->> 'message' LIKE '%connection lost%'"
    )
    assert run(storm.site.dsn, lost) == [(True,)]
    assert storm.standing("every")["batches"] == 1
    storm.check()


def test_a_source_that_goes_away_in_mid_copy_is_a_lost_connection(storm: Storm) -> None:
    """The source's session ends while its events stream: the server is unavailable, so that it is tried again soon."""
    storm.begin({"every": EVERY})
    storm.queue.ask(BIG)
    storm.change()
    number = storm.queue.call("next_batch", "every")

    def sink(_lines: list[str]) -> None:
        for (pid,) in storm.queue.ask(READING):
            storm.queue.ask("SELECT pg_terminate_backend(%s, 5000)", pid)

    target = storm.conf.target()
    with (
        database.connection(target, purpose="tests") as source,
        pytest.raises(ServerUnavailable),
        database.translated(target, source),
    ):
        Pgq(source, "pgq").read(number, sink, chunk_bytes=10_000)
    database.close_all()


def test_a_server_that_crashes_in_mid_load_comes_back_to_the_same_batch(
    make_storm: MakeStorm,
    pl_only_sql: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """An immediate shutdown in mid-load, of source and target at once: afterwards all rows once."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    postgres = PostgresServer(folder)
    postgres.start()
    try:
        run(postgres.dsn(), pl_only_sql.read_text(encoding="utf-8"))
        migrate(postgres.dsn())
        storm = make_storm(postgres.dsn())
        storm.begin({"every": EVERY, "latest": LATEST})
        storm.worker()
        storm.beat()
        with suppress(psycopg2.Error), storm.held_in_mid_load("every"):
            storm.change()
            storm.waiting("every")
            postgres.send(signal.SIGQUIT)
            while postgres.alive():
                time.sleep(0.01)
        database.close_all()
        postgres.start()
        storm.queue.close()
        assert storm.standing("every")["batches"] == 0
        storm.change()
        storm.until_drained(seconds=60)
        assert storm.contents("latest") == storm.source()
        storm.check()
        storm.site.stop()
        database.close_all()
    finally:
        postgres.stop()


def test_a_dead_target_delays_no_other_consumer(storm: Storm, far_dsn: str, servers: Servers) -> None:
    """Two consumers of one queue into two targets, one of them down: the other goes on; it follows when it is back."""
    storm.targets["far"] = far_dsn
    storm.begin({"every": EVERY, "far": EVERY})
    storm.worker()
    storm.beat()
    storm.change()
    storm.until_drained()
    database.close_all()
    name = far_dsn.rpartition("/")[2]
    with _admin(servers) as cursor:
        cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    for _ in range(3):
        storm.change()
        storm.until_drained("every", seconds=15)
    storm.check("every")
    with _admin(servers) as cursor:
        cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    storm.until_drained("far", seconds=60)
    storm.check("far")


# What people move meanwhile


def test_a_registration_moved_in_mid_load_doubles_nothing(storm: Storm) -> None:
    """register_consumer_at drops the open batch while a worker loads it: its tick stays applied, once."""
    storm.begin({"every": EVERY})
    worker = storm.worker()
    storm.beat()
    began = storm.standing("every")["tick"]
    with storm.held_in_mid_load("every"):
        storm.change()
        storm.waiting("every")
        number = storm.queue.consumer_info("every")[0]["current_batch"]
        storm.queue.call("register_consumer_at", "every", began)
        storm.change()
    storm.until_drained()
    assert storm.standing("every")["batches"] == 2
    stale = DispatchBatch(consumer="every", queue_name="q", registered_as="every", batch_id=number, prev_tick=0, tick=0)
    execution.load_rooms()
    with pytest.raises(NothingToDo, match="it is finished, or was moved"):
        execution.execute(stale, storm.conf)
    assert "Traceback" not in storm.site.log(worker)
    storm.check()


@pytest.mark.parametrize("restored", ["target", "source"])
def test_a_restored_server_parks_the_consumer_until_a_person_rewinds(
    storm: Storm, far_dsn: str, servers: Servers, restored: str
) -> None:
    """Target or source come back from a backup with an older tick: parked, told, and no row changed; then repaired."""
    storm.targets["far"] = far_dsn
    storm.begin({"far": EVERY})
    worker = storm.worker()
    storm.beat()
    storm.change()
    storm.until_drained()
    worker.terminate()  # nobody may be connected to a database that is copied
    worker.wait()
    victim = far_dsn if restored == "target" else storm.site.dsn
    storm.site.stop()
    storm.queue.close()
    database.close_all()
    name = victim.rpartition("/")[2]
    _copy(servers, name, f"{name}_backup")
    storm.worker()
    storm.beat()
    for _ in range(3):
        storm.change()
    storm.until_drained()
    storm.site.stop()
    storm.queue.close()
    database.close_all()
    _copy(servers, f"{name}_backup", name)
    with _admin(servers) as cursor:
        cursor.execute(f"DROP DATABASE {name}_backup")
    rows = storm.contents("far")
    storm.worker()
    storm.beat()
    storm.change()
    parked = "SELECT state FROM headrace.dispatch_position WHERE consumer = 'far'"
    storm.site.until(lambda: run(far_dsn, parked) == [("parked",)], "it is parked")
    assert storm.contents("far") == rows
    assert run(far_dsn, "SELECT event, subject FROM headrace.alert WHERE room = 'dispatch'") == [
        ("parked", "consumer far")
    ]
    assert "lost its place" in storm.standing("far")["problem"]
    positions.rewind(storm.conf, "far", reset=restored == "source")
    database.close_all()
    storm.until_drained()
    if restored == "target":
        storm.check()


def _copy(servers: Servers, old: str, new: str) -> None:
    with _admin(servers) as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {new} WITH (FORCE)")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND backend_type = %s",
            (old, "client backend"),
        )
        cursor.execute(f"CREATE DATABASE {new} TEMPLATE {old}")


def test_a_tick_made_anew_under_an_old_number_is_not_taken_for_the_old_one(storm: Storm, servers: Servers) -> None:
    """The source lost its last tick, and gave its number to other events: parked, since they are not applied."""
    storm.begin({"every": EVERY})
    storm.change()
    storm.do(pump.look(storm.conf, "every"))
    storm.change()
    storm.do(pump.look(storm.conf, "every"))
    tick = storm.standing("every")["tick"]
    # What a restore would do: the tick, its batch and its number are forgotten, other events take their place.
    storm.queue.ask("UPDATE pgq.subscription SET sub_last_tick = sub_last_tick - 1")
    storm.queue.ask("DELETE FROM pgq.tick WHERE tick_id = %s", tick)
    storm.queue.ask("SELECT setval(queue_tick_seq, %s) FROM pgq.queue", tick - 1)
    assert storm.change() == tick
    execution.load_rooms()
    with pytest.raises(PermanentFailure, match="lost its place"):
        execution.execute(api.pump_until_dry(storm.conf, "every")[0], storm.conf)
    database.close_all()


def test_a_copy_that_waited_for_the_lock_does_not_park_the_consumer(storm: Storm) -> None:
    """A doubled message that waited while its batch, and the next one, were applied comes to nothing."""
    storm.begin({"every": EVERY})
    storm.change()
    storm.change()
    execution.load_rooms()
    conf = storm.conf
    first = pump.look(conf, "every")[0]

    def copy() -> None:
        try:
            execution.execute(first, conf)
        finally:
            database.close_all()

    with ThreadPoolExecutor(1) as pool:
        with storm.held("SELECT FROM headrace.dispatch_position WHERE consumer = 'every' FOR UPDATE") as position:
            waiting = pool.submit(copy)
            storm.site.until(lambda: bool(storm.queue.ask(LOCKING)), "the copy waits for the position")
            # The other worker: both batches are applied and finished, and only then the lock is let go of.
            with position.cursor() as cursor:
                cursor.execute("UPDATE headrace.dispatch_position SET tick = tick + 2 WHERE consumer = 'every'")
            for _ in range(2):
                storm.queue.ask("SELECT pgq.finish_batch(pgq.next_batch('q', 'every'))")
            storm.change()
            storm.queue.call("next_batch", "every")
            position.commit()
        with pytest.raises(NothingToDo):
            waiting.result(20)
    database.close_all()
    assert storm.standing("every")["state"] == "active"


# Two who need the same partition


@pytest.mark.parametrize("kind", ["like", "native"])
@pytest.mark.parametrize("who", ["consumers", "slices"])
def test_two_who_meet_a_missing_partition_make_it_once(storm: Storm, kind: str, who: str) -> None:
    """Fifty times two dispatchers, or two slices, miss the same partition at once: made once, no error, no deadlock."""
    rounds = 50
    layout = {"kind": kind, "by": "field:at", "period": "hour", "dateformat": "YYYYMMDDHH24", "premake": 0}
    facts: dict[str, Any] = {"queue": "q", "mode": "keep_all", "meta_columns": ["_ev_id"], "partition": layout}
    facts["tables"] = {"public.event": {"target": "far.event"}}
    if who == "slices":
        facts |= {"slices": 2, "slice_events": 1}
    names = ["one", "two"] if who == "consumers" else ["one"]
    storm.consumers = dict.fromkeys(names, facts)
    columns = "id int NOT NULL, at timestamp NOT NULL"
    storm.queue.logged("public.event", "id int PRIMARY KEY, at timestamp NOT NULL")
    cut = "PARTITION BY RANGE (at)" if kind == "native" else ""
    run(storm.site.dsn, f"CREATE SCHEMA far; CREATE TABLE far.event ({columns}, _ev_id bigint) {cut}")
    storm.register()
    execution.load_rooms()
    conf = storm.conf
    barrier = threading.Barrier(2)

    def apply(message: Message) -> list[Message]:
        barrier.wait(20)
        try:
            return execution.execute(message, conf)
        except NothingToDo:  # the other slice was the last one, and has concluded
            return []

    def close() -> None:
        barrier.wait(20)
        database.close_all()

    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
            storm.queue.ask(
                "INSERT INTO public.event SELECT n, %s FROM generate_series(%s, %s) n",
                at.replace(tzinfo=None), 10 * number, 10 * number + 9,
            )  # fmt: skip
            storm.queue.tick()
            messages = [message for name in names for message in pump.look(conf, name)]
            if who == "slices":
                messages = execution.execute(messages[0], conf)
            assert len(messages) == 2
            for done in [pool.submit(apply, message) for message in messages]:
                assert done.result(30) == []
        for done_with in [pool.submit(close) for _ in range(2)]:
            done_with.result(30)
    database.close_all()
    tables = run(storm.site.dsn, "SELECT tablename FROM pg_tables WHERE schemaname = 'far' AND tablename <> 'event'")
    assert len(tables) == rounds
    rows = [row for (name,) in tables for row in run(storm.site.dsn, f"SELECT id FROM far.{name}")]
    assert sorted(rows) == sorted([(n,) for n in range(10 * rounds)] * len(names))
    assert run(storm.site.dsn, "SELECT count(*) FROM headrace.failed_event") == [(0,)]
    assert run(storm.site.dsn, "SELECT DISTINCT state FROM headrace.run") == [("succeeded",)]
    assert storm.queue.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


# All of it together


class Producer(threading.Thread):
    """Somebody who writes all the time; the history of what was done is kept by a trigger that knows no queue."""

    def __init__(self, storm: Storm, seed: int) -> None:
        super().__init__(daemon=True)
        self.queue = Queue(storm.site.dsn)
        self.dice = random.Random(seed)
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self.ticks = 0

    def run(self) -> None:
        """Change rows and tick until it is over; one tick more at the end."""
        try:
            version = 0
            while not self.over.is_set():
                for _ in range(self.dice.randint(1, 6)):
                    version += 1
                    self._change(self.dice.choice(("item", "part")), version)
                self.queue.tick()
                self.ticks += 1
                self.over.wait(0.2 + self.dice.random() * 0.6)
        except BaseException as error:
            self.failure = error
        finally:
            self.queue.close()

    def _change(self, table: str, version: int) -> None:
        first, last = sorted(self.dice.sample(range(60), 2))
        if self.dice.random() < 0.2:
            self.queue.ask(f"DELETE FROM public.{table} WHERE id BETWEEN %s AND %s", first, min(last, first + 5))
            return
        self.queue.ask(
            f"INSERT INTO public.{table} SELECT n, %s, 'row ' || n, random() FROM generate_series(%s, %s) n"
            " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, amount = EXCLUDED.amount",
            version, first, min(last, first + 8),
        )  # fmt: skip


HISTORY = """
    CREATE TABLE public.history (tab text, op text, id int, version int);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'DELETE' THEN INSERT INTO public.history VALUES (TG_TABLE_NAME, 'D', OLD.id, OLD.version);
        ELSE INSERT INTO public.history VALUES (TG_TABLE_NAME, left(TG_OP, 1), NEW.id, NEW.version); END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON public.item FOR EACH ROW EXECUTE FUNCTION public.note();
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON public.part FOR EACH ROW EXECUTE FUNCTION public.note();
"""
OURS = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'headrace %%' ORDER BY pid
"""


@pytest.mark.parametrize("seed", [int(os.environ.get("CHAOS_SEED", "4"))])
def test_all_of_it_together_changes_nothing(storm: Storm, seed: int) -> None:
    """Random changes; workers, beats, sessions killed, messages doubled and lost: every event once, tables equal."""
    cut = {"slices": 3, "slice_events": 1}
    storm.begin({"every": EVERY, "latest": LATEST, "cut": {**EVERY, **cut}, "mirror": {**LATEST, **cut}})
    run(storm.site.dsn, HISTORY)
    dice = random.Random(seed)
    workers = [storm.worker(COPIES="2"), storm.worker(wait=False, COPIES="2")]
    beats = [storm.beat(), storm.beat()]
    producer = Producer(storm, seed)
    producer.start()
    done: list[str] = []
    until = time.monotonic() + 16
    deeds = ("worker", "beat", "session", "broker")
    while time.monotonic() < until or len(done) < len(deeds):
        # Each kind once, then as the dice say.
        deed = dice.choice([one for one in deeds if one not in done] or deeds)
        if deed == "worker":
            storm.kill(workers.pop(0))
            workers.append(storm.worker(wait=False, COPIES="2"))
        elif deed == "beat":
            storm.kill(beats.pop(0))
            beats.append(storm.beat())
        elif deed == "session":
            for (pid,) in storm.site.ask(OURS):
                if dice.random() < 0.3:
                    storm.site.ask("SELECT pg_terminate_backend(%s)", pid)
        else:
            with redis.Redis.from_url(storm.site.broker_url) as client:
                client.flushdb()
        done.append(deed)
        producer.over.wait(0.5 + dice.random())  # the pace of the storm: between blows something must go on
    producer.over.set()
    producer.join(20)
    assert producer.failure is None and not producer.is_alive()
    storm.queue.tick()
    storm.until_drained()
    moved = {storm.standing(name)["batches"] for name in storm.stormy()}
    assert moved == {producer.ticks + 1}
    assert storm.contents("latest") == storm.contents("mirror") == storm.source()
    events = storm.queue.ask("SELECT tab, op, id, version FROM public.history ORDER BY 1, 2, 3, 4")
    assert len(events) > 200
    for name in ("every", "cut"):
        seen = [
            (table, *row)
            for table in ("item", "part")
            for row in run(storm.site.dsn, f"SELECT _op, id, version FROM {name}.{table}")
        ]
        assert sorted(seen) == sorted(events)
        assert run(storm.site.dsn, f"""
            SELECT count(*) - count(DISTINCT _ev_id) FROM
            (SELECT _ev_id FROM {name}.item UNION ALL SELECT _ev_id FROM {name}.part) AS e
        """) == [(0,)]  # fmt: skip
    assert run(storm.site.dsn, "SELECT count(*) FROM headrace.failed_event") == [(0,)]
    storm.check()
