"""Who does what when: slices, replays, the pump, parking and holding back, and what a session keeps for the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import pytest

from tests.integration.dispatch.conftest import (
    NONE,
    Ask,
    Conf,
    Queue,
    Start,
    drain,
    failures,
    position,
    replay,
    states,
)
from tests.integration.dispatch.test_positions import PGQ_EXT
from workers import database, execution, runs
from workers.dispatch import positions, pump, watch
from workers.errors import NothingToDo, PermanentFailure
from workers.messages import DispatchSlice, Message
from workers.settings import Settings

SLICED: dict[str, Any] = {"partition": NONE, "slices": 2, "slice_events": 1}


def table(queue: Queue, sql: Ask, columns: str = "id int PRIMARY KEY, v int", there: str | None = None) -> None:
    """A source table whose changes are logged, and its destination; `there`: with these columns."""
    queue.logged("public.t", columns)
    sql(f"CREATE TABLE public.t ({there or columns})")


def slices(sql: Ask) -> int:
    """In how many slices batches were applied; 0: all of them whole."""
    [(found,)] = sql("SELECT count(DISTINCT key) FROM headrace.run WHERE key LIKE 'cube:slice%%'")
    return int(found)


def ids_of_slice(queue: Queue, number: int) -> list[int]:
    """The rows of 1 to 20 that are of this slice of two."""
    text = "SELECT n FROM generate_series(1, 20) n WHERE abs(hashtext('id=' || n)::bigint) %% 2 = %s ORDER BY n"
    return [row[0] for row in queue.ask(text, number)]


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens within 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.01)


def execute(message: Message, conf: Settings) -> list[Message]:
    """Do what one message says."""
    execution.load_rooms()
    return execution.execute(message, conf)


# Slices


def test_a_slice_that_comes_twice_is_applied_once(start: Start, queue: Queue, sql: Ask) -> None:
    """Three slices in any order, each delivered twice: every event once, and one step of the position at the end."""
    conf = start(mode="keep_all", partition=NONE, slices=3, slice_events=1)
    before = position(sql)
    table(queue, sql, there="id int, v int")
    queue.ask("INSERT INTO public.t SELECT n, n FROM generate_series(1, 100) n")
    tick = queue.tick()
    [whole] = pump.look(conf, "cube")
    parts = execute(whole, conf)
    assert sorted(part.slice for part in parts if isinstance(part, DispatchSlice)) == [0, 1, 2]
    for part in (parts[2], parts[2], parts[0], parts[0]):
        assert execute(part, conf) == []
        assert position(sql) == before
    assert execute(whole, conf) == [parts[1]]
    assert execute(parts[1], conf) == []
    assert position(sql) == (tick, "active")
    for late in (whole, parts[1]):
        with pytest.raises(NothingToDo):
            execute(late, conf)
    assert sql("SELECT count(*), count(DISTINCT id) FROM public.t") == [(100, 100)]
    assert sql("SELECT batches, events FROM headrace.dispatch_position") == [(1, 100)]
    assert sql("SELECT count(*) FROM headrace.dispatch_slice") == [(0,)]


def test_a_key_of_the_settings_keeps_its_order(start: Start, queue: Queue, sql: Ask) -> None:
    """Where the events' first column is not of the key, slices would change the order: the batch is applied whole."""
    conf = start(**SLICED, tables={"public.t": {"key": ["dev"], "skip_columns": ["id"]}})
    table(queue, sql, "id int PRIMARY KEY, dev int, v int", there="dev int PRIMARY KEY, v int")
    for number, part in enumerate((1, 0, 1)):
        queue.ask("INSERT INTO public.t VALUES (%s, 7, %s)", ids_of_slice(queue, part)[number], number)
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v FROM public.t") == [(2,)]
    assert slices(sql) == 0


def test_leaves_whose_columns_stand_in_another_order(start: Start, queue: Queue, sql: Ask) -> None:
    """A batch with events of both is applied whole, so that rows that move arrive as they are; others in slices."""
    conf = start(**SLICED)
    queue.ask("CREATE TABLE public.t (id int, r int, v int, PRIMARY KEY (id, r)) PARTITION BY LIST (r)")
    queue.ask("CREATE TABLE public.a (id int NOT NULL, r int NOT NULL, v int)")
    queue.ask("CREATE TABLE public.b (v int, r int NOT NULL, id int NOT NULL)")
    for number, leaf in enumerate("ab"):
        queue.ask(f"ALTER TABLE public.t ATTACH PARTITION public.{leaf} FOR VALUES IN ({number})")
    queue.trigger("public.t", "pkey=id")
    sql("CREATE TABLE public.t (id int PRIMARY KEY, r int, v int)")
    queue.ask("INSERT INTO public.t SELECT n, 0, n FROM generate_series(1, 20) n")
    queue.ask("UPDATE public.t SET r = 1; UPDATE public.t SET r = 0 WHERE id > 10")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert slices(sql) == 0
    assert sql("SELECT id, r, v FROM public.t ORDER BY 1") == queue.ask("SELECT id, r, v FROM public.t ORDER BY 1")
    queue.ask("UPDATE public.t SET v = -1 WHERE r = 0")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert slices(sql) == 2
    assert sql("SELECT id, r, v FROM public.t ORDER BY 1") == queue.ask("SELECT id, r, v FROM public.t ORDER BY 1")


def test_a_batch_with_a_truncate_is_not_sliced(start: Start, queue: Queue, sql: Ask) -> None:
    """What came before TRUNCATE is gone and what came after it is there, whatever its slice had been."""
    conf = start(**SLICED, on_truncate="delete_all")
    queue.logged("public.t", "id int PRIMARY KEY, v int", truncate=True)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    queue.ask("INSERT INTO public.t SELECT n, 1 FROM generate_series(1, 10) n")
    queue.ask("TRUNCATE public.t")
    queue.ask("INSERT INTO public.t SELECT n, 2 FROM generate_series(5, 14) n")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert slices(sql) == 0
    assert sql("SELECT count(*), min(id), min(v) FROM public.t") == [(10, 5, 2)]


def test_a_key_that_is_an_instant_keeps_its_order(start: Start, queue: Queue, sql: Ask) -> None:
    """Its text depends on the producer's zone, and so would its slice: versions of a row stay together."""
    conf = start(partition=NONE, slices=8, slice_events=1)
    table(queue, sql, "at timestamptz PRIMARY KEY, v int")
    queue.ask("INSERT INTO public.t VALUES ('2026-11-22 12:00+00', 0)")
    for number, zone in enumerate(("Asia/Kolkata", "America/New_York", "Asia/Tokyo", "UTC"), 1):
        queue.ask(f"SET timezone = '{zone}'; UPDATE public.t SET v = {number}")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v FROM public.t") == [(4,)]
    assert slices(sql) == 8


def halfway(start: Start, queue: Queue, sql: Ask) -> tuple[int, int]:
    """A batch of 20 events in two slices, the first one applied, the second one refused; its start and end ticks."""
    conf = start(mode="keep_all", **SLICED, max_failed=0)
    before, _state = position(sql)
    table(queue, sql, there="id int, v int")
    sql(f"ALTER TABLE public.t ADD CONSTRAINT refused CHECK (id <> {ids_of_slice(queue, 1)[0]})")
    queue.ask("INSERT INTO public.t SELECT n, n FROM generate_series(1, 20) n")
    tick = queue.tick()
    assert len(drain(conf)) == 1
    assert position(sql) == (before, "parked")
    assert sql("SELECT slice FROM headrace.dispatch_slice") == [(0,)]
    assert sql("SELECT id FROM public.t ORDER BY 1") == [(number,) for number in ids_of_slice(queue, 0)]
    sql("ALTER TABLE public.t DROP CONSTRAINT refused")
    return before, tick


WAYS: dict[str, Callable[[Settings, int], Any]] = {
    "rewind": lambda conf, _tick: positions.rewind(conf, "cube"),
    "resume": lambda conf, _tick: positions.resume(conf, "cube"),
    "to_tick": lambda conf, tick: positions.rewind(conf, "cube", to_tick=tick),
}


@pytest.mark.parametrize(
    ("way", "keys"), [("rewind", {}), ("resume", {"slices": 5, "slice_events": 1}), ("to_tick", SLICED)]
)
def test_a_batch_begun_in_slices_goes_on(start: Start, queue: Queue, sql: Ask, way: str, keys: dict[str, Any]) -> None:
    """Repaired, with other settings even, it goes on in its slices; `--to-tick` begins anew, with all of them."""
    before, tick = halfway(start, queue, sql)
    if way == "to_tick":
        sql("TRUNCATE public.t")  # a person who reloads clears what is there
    conf = start(**{"mode": "keep_all", "partition": NONE, **keys})
    WAYS[way](conf, before)
    assert drain(conf) == failures(sql) == []
    assert position(sql) == (tick, "active")
    assert sql("SELECT count(*), count(DISTINCT id) FROM public.t") == [(20, 20)]
    assert slices(sql) == 2


def test_slices_of_a_batch_that_is_gone_are_not_guessed_about(start: Start, queue: Queue, sql: Ask) -> None:
    """Somebody moved the registration: `rewind` says that slices are applied, and that a person must choose."""
    before, tick = halfway(start, queue, sql)
    queue.call("register_consumer_at", "cube", before)
    conf = start(mode="keep_all", partition=NONE)
    with pytest.raises(PermanentFailure, match=f"some slices of the batch up to tick {tick} are applied"):
        positions.rewind(conf, "cube")
    assert position(sql) == (before, "parked")


# Positions


def test_a_start_tick_of_the_same_number_is_not_taken_for_the_old_one(start: Start, queue: Queue, sql: Ask) -> None:
    """A queue made anew has come to the position's tick: what its number was has another time, and it parks."""
    conf = start(mode="keep_all", partition=NONE)
    sql("CREATE TABLE public.t (id int)")
    queue.insert("I:id", "id=1", "public.t")
    tick = queue.tick()
    assert drain(conf) == []
    queue.call("drop_queue", True)
    queue.call("create_queue")
    while queue.tick() < tick:
        pass
    queue.call("register_consumer_at", "cube", tick)
    queue.insert("I:id", "id=2", "public.t")
    queue.tick()
    [problem] = drain(conf)
    assert "the source made its tick of that number at" in problem
    assert position(sql) == (tick, "parked")
    assert sql("SELECT id FROM public.t") == [(1,)]


def test_cube_dispatcher_may_run_between_two_drop_in_runs(
    pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf
) -> None:
    """It applied the open batch and died before finish_batch: the next run finishes that batch, and doubles nothing."""
    sql(PGQ_EXT)
    sql("CREATE TABLE public.t (id int)")
    conf = dispatch_conf(dsn, source_dsn=pgq_dsn, mode="keep_all", partition=NONE, sync_pgq_ext=True)
    assert positions.begin_drop_in(conf, "cube") is not None
    queue.insert("I:id", "id=1", "public.t")
    queue.tick()
    assert drain(conf) == []
    queue.insert("I:id", "id=2", "public.t")
    tick = queue.tick()
    queue.ask("SELECT pgq.next_batch('q', 'cube')")
    sql("INSERT INTO public.t VALUES (2)")
    sql("SELECT pgq_ext.set_last_tick('cube', %s)", tick)
    placed = positions.begin_drop_in(conf, "cube")
    assert placed is not None
    assert placed.tick == tick
    queue.insert("I:id", "id=3", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT id FROM public.t ORDER BY 1") == [(1,), (2,), (3,)]


# Replays


def test_events_that_had_no_table_are_superseded(start: Start, queue: Queue, sql: Ask) -> None:
    """The table is made, a newer version arrives: a replay of the older one brings nothing back, whatever the key."""
    keys = {"number": "int", "instant": "timestamptz", "dated": "int"}
    conf = start(tables={f"public.{name}": {"partition": NONE} for name in ("number", "instant")})
    queue.ask("SET timezone = 'Europe/Berlin'")
    for name, type_ in keys.items():
        queue.logged(f"public.{name}", f"k {type_} PRIMARY KEY, v int")
        queue.ask(f"INSERT INTO public.{name} VALUES ({'now()' if name == 'instant' else 1}, 1)")
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["waiting"] * 3
    queue.ask("SET timezone = 'Asia/Tokyo'")
    for name, type_ in keys.items():
        sql(f"CREATE TABLE public.{name} (k {type_}, v int)")
        queue.ask(f"UPDATE public.{name} SET v = 2")
    queue.tick()
    assert drain(conf) == replay(conf) == []
    assert states(sql) == ["superseded"] * 3
    [(dated,)] = sql("SELECT table_name FROM headrace.dispatch_partition")
    assert [sql(f"SELECT v FROM public.{name}") for name in ("number", "instant", dated)] == [[(2,)]] * 3


def test_a_delete_that_is_ignored_supersedes_nothing(start: Start, queue: Queue, sql: Ask) -> None:
    """A version that failed still waits, for itself or by the server: the row is to stay, and this is its newest."""
    conf = start(partition=NONE, on_delete="ignore")
    columns = "id int PRIMARY KEY, v int, at date"
    table(queue, sql, columns, there=f"{columns}, CHECK (v > 0)")
    queue.ask("INSERT INTO public.t VALUES (1, 1, '2026-11-03'); UPDATE public.t SET v = -1; DELETE FROM public.t")
    queue.tick()
    queue.ask("INSERT INTO public.t VALUES (2, 1, '2026-11-03')")
    queue.ask("SET datestyle = 'German'; UPDATE public.t SET v = 2; RESET datestyle; DELETE FROM public.t")
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["waiting", "waiting"]
    assert sql("SELECT id, v FROM public.t ORDER BY 1") == [(1, 1), (2, 1)]


def test_events_of_a_queue_made_anew_are_kept_beside_the_old_ones(start: Start, queue: Queue, sql: Ask) -> None:
    """Failed events whose ticks and numbers are the same, but not their queue's, are two events."""
    conf = start(partition=NONE)
    table(queue, sql, there="id int PRIMARY KEY, v int CHECK (v > 0)")
    queue.ask("INSERT INTO public.t VALUES (1, -1)")
    queue.tick()
    assert drain(conf) == []
    queue.call("drop_queue", True)
    queue.call("create_queue")
    queue.call("register_consumer", "cube")
    positions.rewind(conf, "cube", reset=True)
    queue.ask("INSERT INTO public.t VALUES (2, -2)")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT ev_data FROM headrace.failed_event WHERE state = 'waiting' ORDER BY id") == [
        ("id=1&v=-1",),
        ("id=2&v=-2",),
    ]
    assert sql("SELECT count(DISTINCT (tick, ev_id)) FROM headrace.failed_event") == [(1,)]


def test_an_event_that_fails_again_after_a_rewind_waits_again(start: Start, queue: Queue, sql: Ask) -> None:
    """Replayed once, it fails when its batch is applied anew: it is not lost as one that was settled."""
    conf = start(partition=NONE)
    before, _state = position(sql)
    table(queue, sql, there="id int PRIMARY KEY, v int CONSTRAINT positive CHECK (v > 0)")
    queue.ask("INSERT INTO public.t VALUES (1, -1)")
    queue.tick()
    assert drain(conf) == []
    sql("ALTER TABLE public.t DROP CONSTRAINT positive")
    assert replay(conf) == []
    assert states(sql) == ["replayed"]
    sql("TRUNCATE public.t; ALTER TABLE public.t ADD CONSTRAINT positive CHECK (v > 0)")
    positions.rewind(conf, "cube", to_tick=before)
    assert drain(conf) == []
    assert sql("SELECT state, settled_at FROM headrace.failed_event") == [("waiting", None)]


# The pump


def test_a_batch_s_message_goes_out_once_until_it_may_be_lost(start: Start, queue: Queue, sql: Ask, dsn: str) -> None:
    """Again after requeue_seconds if the room's queue is empty, much later if not; never while a worker is at it."""
    conf = start(partition=NONE, room={})
    queue.tick()

    def sent(ago: str, *, resend: bool) -> int:
        sql("UPDATE headrace.dispatch_position SET sent_at = clock_timestamp() - %s::interval", ago)
        return len(pump.look(conf, "cube", resend=resend))

    assert len(pump.look(conf, "cube")) == 1
    assert (sent("4 s", resend=True), sent("4 s", resend=False)) == (0, 0)
    assert (sent("6 s", resend=True), sent("6 s", resend=False)) == (1, 0)
    assert sent("301 s", resend=False) == 1
    with closing(psycopg2.connect(dsn)) as worker, worker.cursor() as cursor:
        sql("UPDATE headrace.dispatch_position SET sent_at = clock_timestamp() - interval '1 day'")
        cursor.execute("SELECT FROM headrace.dispatch_position FOR UPDATE")
        assert pump.look(conf, "cube", resend=True) == []
    assert len(pump.look(conf, "cube", resend=True)) == 1


def test_without_a_position_nothing_is_sent_and_one_alert_raised(
    pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf
) -> None:
    """However often the pump looks, a consumer that nobody registered here makes no messages."""
    conf = dispatch_conf(dsn, source_dsn=pgq_dsn, partition=NONE)
    queue.call("register_consumer", "cube")
    queue.tick()
    assert [pump.look(conf, "cube", resend=True) for _ in range(5)] == [[]] * 5
    assert position(sql) == (None, "parked")
    assert sql("SELECT event, subject FROM headrace.alert") == [("parked", "consumer cube")]


def test_a_disabled_consumer_ends_its_batch_and_goes_no_further(start: Start, queue: Queue, sql: Ask) -> None:
    """The message that is on its way is the last one; enabled again, it goes on."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id int)")
    ticks = []
    for number in range(3):
        queue.insert("I:id", f"id={number}", "public.t")
        ticks.append(queue.tick())
    [message] = pump.look(conf, "cube")
    off = start(partition=NONE, enabled=False)
    assert execute(message, off) == pump.look(off, "cube", resend=True) == []
    assert position(sql) == (ticks[0], "active")
    assert sql("SELECT count(*) FROM public.t") == [(1,)]
    assert drain(start(partition=NONE)) == []
    assert position(sql) == (ticks[2], "active")


def test_what_pgq_lacks_is_said_with_what_to_do(pgq_dsn: str, dsn: str, queue: Queue, dispatch_conf: Conf) -> None:
    """No PgQ, no queue, no registration: the pump, the ticker and `register` name what is missing, and a command."""
    conf = dispatch_conf(dsn, partition=NONE, run_ticker=True)
    for ask in (pump.look, watch.tick, positions.register):
        with pytest.raises(PermanentFailure, match=r"has no PgQ in schema 'pgq'.*headrace dispatch install-pgq"):
            ask(conf, "cube")
    conf = dispatch_conf(dsn, "other", source_dsn=pgq_dsn, partition=NONE, run_ticker=True)
    for ask in (pump.look, watch.tick):
        with pytest.raises(PermanentFailure, match="headrace dispatch register cube"):
            ask(conf, "cube")
    conf = dispatch_conf(dsn, source_dsn=pgq_dsn, partition=NONE)
    with pytest.raises(PermanentFailure, match="headrace dispatch register cube"):
        pump.look(conf, "cube")


# Parking, holding back, alerts


def test_a_cancelled_batch_parks_its_consumer(
    start: Start, queue: Queue, sql: Ask, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays, its message comes to nothing, and `resume` applies it: once."""
    monkeypatch.setattr(runs, "HEARTBEAT", timedelta(milliseconds=20))
    monkeypatch.setattr(runs, "_heart", runs._Heart())  # the process's own one may sleep for its ten seconds
    conf = start(mode="keep_all", partition=NONE, room={"chunk_bytes": 10_000})
    before, _state = position(sql)
    sql("CREATE TABLE public.t (id int, v text)")
    sql(
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$"
    )
    sql("CREATE TRIGGER wait BEFORE INSERT ON public.t FOR EACH STATEMENT EXECUTE FUNCTION public.wait()")
    for number in range(4):
        queue.insert("I:id", f"id={number}&v={'x' * 10_000}", "public.t")
    tick = queue.tick()
    [message] = pump.look(conf, "cube")
    problems: list[str] = []

    def apply() -> None:
        problems.extend(execution.run_here([message], conf, timeout=timedelta(seconds=20)))
        database.close_all()

    with closing(psycopg2.connect(dsn)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1)")
        worker = threading.Thread(target=apply)
        worker.start()
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: sql(waits) == [(True,)], "the batch is loaded")
        [(asked,)] = sql(
            "UPDATE headrace.run SET cancel_requested_at = clock_timestamp(), cancel_requested_by = 'a person'"
            " WHERE state = 'running' RETURNING clock_timestamp()"
        )
        # When the second heartbeat is written, the worker has the answer to the first one.
        for _ in range(2):
            until_beat(sql, asked)
            [(asked,)] = sql("SELECT clock_timestamp()")
    worker.join(20)
    assert problems == ["cancelled by a person"]
    assert position(sql) == (before, "parked")
    assert "`headrace dispatch resume cube` goes on" in sql("SELECT problem FROM headrace.dispatch_position")[0][0]
    assert sql("SELECT state FROM headrace.run") == [("cancelled",)]
    with pytest.raises(PermanentFailure, match="cube is parked: cancelled by a person"):
        execute(message, conf)
    assert pump.look(conf, "cube", resend=True) == []
    assert sql("SELECT count(*) FROM public.t") == [(0,)]
    assert positions.resume(conf, "cube")
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    assert sql("SELECT count(*), count(DISTINCT id) FROM public.t") == [(4, 4)]


def until_beat(sql: Ask, moment: datetime) -> None:
    """Wait for a heartbeat of the run that is later than this."""
    until(lambda: sql("SELECT max(heartbeat) > %s FROM headrace.run", moment) == [(True,)], "a heartbeat")


REFUSALS = {
    "a right": ("REVOKE INSERT ON public.t FROM headrace", "GRANT INSERT ON public.t TO headrace", "permission denied"),
    "a policy": (
        "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; ALTER TABLE public.t FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY all_rows ON public.t USING (true)",
        "ALTER TABLE public.t DISABLE ROW LEVEL SECURITY",
        "row-level security",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_refusal_that_no_event_is_to_blame_for_holds_the_batch_back(
    start: Start, queue: Queue, sql: Ask, why: str
) -> None:
    """No event fails for it: the batch waits a minute, says why, and is applied once that is mended."""
    refuse, mend, said = REFUSALS[why]
    conf = start(partition=NONE)
    before, _state = position(sql)
    table(queue, sql)
    sql(refuse)
    queue.ask("INSERT INTO public.t VALUES (1, 1), (2, 2)")
    tick = queue.tick()
    [problem] = drain(conf)
    assert said in problem
    assert "nothing of it is applied, and it is tried again every minute" in problem
    assert sql("SELECT tick, state, problem FROM headrace.dispatch_position") == [(before, "active", problem)]
    assert sql("SELECT count(*) FROM headrace.failed_event") == [(0,)]
    assert problem in watch.status(conf, "cube")["needs"]
    assert pump.look(conf, "cube", resend=True) == []
    sql(mend)
    sql("UPDATE headrace.dispatch_position SET sent_at = sent_at - interval '1 hour'")
    assert drain(conf) == []
    assert sql("SELECT tick, problem FROM headrace.dispatch_position") == [(tick, None)]
    assert sql("SELECT count(*) FROM public.t") == [(2,)]


def test_a_late_consumer_is_told_of_while_its_batch_is_loaded(start: Start, queue: Queue, sql: Ask, dsn: str) -> None:
    """The alert does not wait for the position's row, which the batch has locked."""
    conf = start(partition=NONE, max_lag_seconds=0.001)
    queue.tick()
    with closing(psycopg2.connect(dsn)) as worker, worker.cursor() as cursor:
        cursor.execute("SELECT FROM headrace.dispatch_position FOR UPDATE")
        watcher = threading.Thread(target=watch.watch, args=(conf, "cube"), daemon=True)
        watcher.start()
        watcher.join(20)
        assert not watcher.is_alive()
        assert sql("SELECT event, subject FROM headrace.alert") == [("late", "consumer cube")]


# Sessions


KEPT = ("search_path", "DateStyle", "TimeZone", "lock_timeout", "synchronous_commit", "role")


def test_a_session_keeps_nothing_of_a_batch(start: Start, queue: Queue, sql: Ask) -> None:
    """After batches, made partitions, failures and replays the next one who borrows it finds a fresh one's settings."""
    layout = {"kind": "native", "by": "field:d", "late": "default", "premake": 0, "timezone": "Asia/Tokyo"}
    conf = start(mode="plain", partition=layout, tables={"public.u": {"partition": {"dateformat": "YYYY_MM"}}})
    queue.logged("public.t", "id int PRIMARY KEY, d timestamptz")
    sql("CREATE TABLE public.t (id int, d timestamptz) PARTITION BY RANGE (d)")
    sql("CREATE TABLE public.rest PARTITION OF public.t DEFAULT")
    sql("CREATE TABLE public.u (id int, v int)")
    for day in (1, 20):
        queue.ask("INSERT INTO public.t VALUES (%s, %s)", day, f"2026-11-{day} 10:00+00")
        queue.insert("I:id", f"id={day}&v={day}", "public.u")
        queue.insert("I:id", "id=x&v=1", "public.u")
        queue.tick()
        assert drain(conf) == []
    assert replay(conf) == []
    assert states(sql) == ["waiting"] * 2
    fresh = database.connect(conf.target("dst"), purpose="tests")
    with closing(fresh), ExitStack() as stack:
        sessions = [stack.enter_context(database.connection(conf.target("dst"), purpose="tests")) for _ in range(4)]
        assert [settings_of(session) for session in sessions] == [settings_of(fresh)] * 4


def settings_of(session: database.Connection) -> list[str]:
    """What a session has set."""
    with session.cursor() as cursor:
        cursor.execute("SELECT array_agg(pg_catalog.current_setting(name)) FROM unnest(%s) AS name", (list(KEPT),))
        [(found,)] = cursor.fetchall()
        return list(found)
