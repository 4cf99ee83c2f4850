"""Where a consumer stands: lost, found, adopted and moved, and never a row twice or a row less without a word."""

from __future__ import annotations

import pytest

from tests.integration.dispatch.conftest import NONE, Ask, Conf, Queue, Start, drain, position
from workers import execution
from workers.dispatch import positions, pump
from workers.errors import NothingToDo, PermanentFailure
from workers.settings import Settings

# As Skytools makes them.
PGQ_EXT = """
CREATE SCHEMA pgq_ext;
CREATE TABLE pgq_ext.completed_tick (
    consumer_id text NOT NULL, subconsumer_id text NOT NULL, last_tick_id bigint NOT NULL,
    PRIMARY KEY (consumer_id, subconsumer_id));
CREATE FUNCTION pgq_ext.get_last_tick(a_consumer text) RETURNS int8 LANGUAGE sql AS $$
    SELECT last_tick_id FROM pgq_ext.completed_tick WHERE consumer_id = a_consumer AND subconsumer_id = '' $$;
CREATE FUNCTION pgq_ext.set_last_tick(a_consumer text, a_tick_id bigint) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM pgq_ext.completed_tick WHERE consumer_id = a_consumer AND subconsumer_id = '';
    IF a_tick_id IS NOT NULL THEN
        INSERT INTO pgq_ext.completed_tick VALUES (a_consumer, '', a_tick_id);
    END IF;
    RETURN 1;
END $$
"""


def ids(sql: Ask) -> list[int]:
    """The rows at the target; keep_all would have one twice."""
    return [row[0] for row in sql("SELECT id FROM public.t ORDER BY 1")]


def batch(queue: Queue, number: int) -> int:
    """A batch of one event, a row of this number; its end tick."""
    queue.insert("I:id", f"id={number}", "public.t")
    return queue.tick()


def standing(queue: Queue) -> int:
    """The tick that the source has the consumer at."""
    [one] = queue.consumer_info("cube")
    return int(one["last_tick"])


@pytest.fixture
def conf(start: Start, sql: Ask) -> Settings:
    """A consumer of keep_all, registered, with a destination."""
    sql("CREATE TABLE public.t (id int)")
    return start(mode="keep_all", partition=NONE)


def test_register_twice(conf: Settings, queue: Queue, sql: Ask) -> None:
    """The second time says so, and neither the position nor the registration moves."""
    batch(queue, 1)
    before = position(sql), standing(queue)
    assert positions.register(conf, "cube").what == "was registered already"
    assert (position(sql), standing(queue)) == before
    assert drain(conf) == []
    assert ids(sql) == [1]


def test_register_without_a_queue(dsn: str, pgq_dsn: str, queue: Queue, dispatch_conf: Conf) -> None:
    """An absent queue is refused by name, or made where that is asked for."""
    conf = dispatch_conf(dsn, "other", source_dsn=pgq_dsn)
    with pytest.raises(PermanentFailure, match="has no queue 'other'"):
        positions.register(conf, "cube")
    assert positions.register(conf, "cube", create_queue=True).tick == 1


def test_a_target_that_lies_behind_is_parked_and_rewound(conf: Settings, queue: Queue, sql: Ask) -> None:
    """Restored from an older backup: nothing is applied until `rewind`, which brings exactly what is missing."""
    first = batch(queue, 1)
    assert drain(conf) == []
    second = batch(queue, 2)
    assert drain(conf) == []
    sql("UPDATE headrace.dispatch_position SET tick = %s", first)
    sql("DELETE FROM public.t WHERE id = 2")
    third = batch(queue, 3)
    problems = drain(conf)
    assert len(problems) == 1
    assert f"cube lost its place: the target stands at tick {first}" in problems[0]
    assert "headrace dispatch rewind cube" in problems[0]
    assert position(sql) == (first, "parked")
    assert ids(sql) == [1]
    assert sql("SELECT event, subject FROM headrace.alert") == [("parked", "consumer cube")]
    assert drain(conf) == []
    assert ids(sql) == [1]
    assert standing(queue) == second
    assert positions.rewind(conf, "cube").tick == first
    assert drain(conf) == []
    assert ids(sql) == [1, 2, 3]
    assert position(sql) == (third, "active")


def test_a_target_that_lies_ahead_is_parked_and_reset(conf: Settings, queue: Queue, sql: Ask) -> None:
    """The source was restored: nothing is applied; `rewind` says that the tick is gone, `--reset` goes on."""
    batch(queue, 1)
    assert drain(conf) == []
    sql("UPDATE headrace.dispatch_position SET tick = 1000")
    tick = batch(queue, 2)
    problems = drain(conf)
    assert len(problems) == 1
    assert "rewind cube --reset" in problems[0]
    assert position(sql) == (1000, "parked")
    assert ids(sql) == [1]
    assert sql("SELECT event, subject FROM headrace.alert") == [("parked", "consumer cube")]
    with pytest.raises(PermanentFailure, match="has no tick 1000 of queue q any more"):
        positions.rewind(conf, "cube")
    assert position(sql) == (1000, "parked")
    positions.rewind(conf, "cube", reset=True)
    assert drain(conf) == []
    assert ids(sql) == [1, 2]
    assert position(sql) == (tick, "active")


@pytest.mark.parametrize("way", ["reset", "register", "tick"])
def test_a_missing_position_parks(conf: Settings, queue: Queue, sql: Ask, way: str) -> None:
    """Without its row nobody guesses: parked, with what to do; each of the ways out leads on."""
    first = batch(queue, 1)
    assert drain(conf) == []
    sql("DELETE FROM headrace.dispatch_position")
    second = batch(queue, 2)
    if way != "register":
        assert drain(conf) == []
        assert position(sql) == (None, "parked")
        assert "cube has no position at the target" in sql("SELECT problem FROM headrace.dispatch_position")[0][0]
        assert ids(sql) == [1]
        assert not positions.resume(conf, "cube")
        with pytest.raises(PermanentFailure, match="is parked"):
            positions.register(conf, "cube")
        with pytest.raises(PermanentFailure, match="has no position"):
            positions.rewind(conf, "cube")
    if way == "register":
        assert positions.register(conf, "cube").tick == first
    elif way == "reset":
        assert positions.rewind(conf, "cube", reset=True).tick == first
    else:
        assert positions.rewind(conf, "cube", to_tick=first).tick == first
    assert drain(conf) == []
    assert ids(sql) == [1, 2]
    assert position(sql) == (second, "active")


def test_rewind_to_a_tick_moves_both_sides(conf: Settings, queue: Queue, sql: Ask) -> None:
    """Back: its batches are applied again. Forth: what lies between is left out. A tick that never was is refused."""
    ticks = [batch(queue, number) for number in (1, 2, 3)]
    assert drain(conf) == []
    assert positions.rewind(conf, "cube", to_tick=ticks[0]).tick == ticks[0]
    assert (position(sql)[0], standing(queue)) == (ticks[0], ticks[0])
    assert drain(conf) == []
    assert ids(sql) == [1, 2, 2, 3, 3]
    ticks = [batch(queue, number) for number in (4, 5)]
    positions.rewind(conf, "cube", to_tick=ticks[0])
    assert drain(conf) == []
    assert ids(sql) == [1, 2, 2, 3, 3, 5]
    with pytest.raises(PermanentFailure, match="has no tick 99999"):
        positions.rewind(conf, "cube", to_tick=99999)
    assert position(sql) == (ticks[1], "active")


def test_reset_does_not_double_a_batch_that_is_applied_but_open(conf: Settings, queue: Queue, sql: Ask) -> None:
    """The worker died before finish_batch: after `--reset` the open batch is finished, not applied again."""
    before = standing(queue)
    tick = batch(queue, 1)
    assert drain(conf) == []
    # The source never heard of it.
    queue.call("register_consumer_at", "cube", before)
    pump.look(conf, "cube", resend=True)  # opens it again
    assert [one["next_tick"] for one in queue.consumer_info("cube")] == [tick]
    assert positions.rewind(conf, "cube", reset=True).tick == tick
    batch(queue, 2)
    assert drain(conf) == []
    assert ids(sql) == [1, 2]


def test_a_registration_that_moved_makes_old_messages_harmless(conf: Settings, queue: Queue, sql: Ask) -> None:
    """A message of a batch that PgQ no longer knows does nothing; the next look goes on where things stand."""
    batch(queue, 1)
    before = standing(queue)
    stale = pump.look(conf, "cube")
    queue.call("register_consumer_at", "cube", before)
    execution.load_rooms()
    with pytest.raises(NothingToDo, match="is not an open batch of cube"):
        execution.execute(stale[0], conf)
    assert ids(sql) == []
    sql("UPDATE headrace.dispatch_position SET sent_tick = NULL")
    assert drain(conf) == []
    assert ids(sql) == [1]


def test_a_queue_that_was_made_anew(conf: Settings, queue: Queue, sql: Ask) -> None:
    """Ticks that begin again are not taken for the old ones: parked, until `--reset`."""
    for number in (1, 2, 3):
        batch(queue, number)
    assert drain(conf) == []
    queue.call("drop_queue", True)
    with pytest.raises(PermanentFailure, match="register"):
        pump.look(conf, "cube")
    queue.call("create_queue")
    with pytest.raises(PermanentFailure, match="register"):
        pump.look(conf, "cube")
    queue.call("register_consumer", "cube")
    batch(queue, 4)
    [problem] = drain(conf)
    assert "queue made anew" in problem
    assert ids(sql) == [1, 2, 3]
    positions.rewind(conf, "cube", reset=True)
    assert drain(conf) == []
    assert ids(sql) == [1, 2, 3, 4]


def test_a_new_queue_whose_tick_meets_the_position(conf: Settings, queue: Queue, sql: Ask) -> None:
    """A batch that ends with a tick of the same number, but not the same tick, is not taken for applied."""
    batch(queue, 1)
    assert drain(conf) == []
    queue.call("drop_queue", True)
    queue.call("create_queue")
    queue.call("register_consumer", "cube")
    assert batch(queue, 2) == position(sql)[0]
    sql("UPDATE headrace.dispatch_position SET sent_tick = NULL")
    assert drain(conf) != []
    assert position(sql)[1] == "parked"


def test_a_consumer_that_is_pointed_at_another_queue_parks(
    conf: Settings, pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf
) -> None:
    """The position of one queue is not used for another, though the ticks fit."""
    batch(queue, 1)
    assert drain(conf) == []
    other = Queue(pgq_dsn, name="other")
    other.call("create_queue")
    other.call("register_consumer", "cube")
    batch(other, 2)
    sql("UPDATE headrace.dispatch_position SET sent_tick = NULL")
    [problem] = drain(dispatch_conf(dsn, "other", source_dsn=pgq_dsn, mode="keep_all", partition=NONE))
    other.close()
    assert "on queue q, and the batch is of cube on other" in problem
    assert ids(sql) == [1]


@pytest.mark.parametrize("applied", [False, True])
def test_adopt_a_running_cube_dispatcher(
    pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf, applied: bool
) -> None:
    """It stopped between its batches, or after the target's commit and before finish_batch: nothing lost or doubled."""
    sql("CREATE TABLE public.t (id int)")
    sql(PGQ_EXT)
    conf = dispatch_conf(
        dsn, source_dsn=pgq_dsn, mode="keep_all", partition=NONE, registered_as="old_cube", sync_pgq_ext=True
    )
    with pytest.raises(PermanentFailure, match="is not registered on queue q"):
        positions.adopt(conf, "cube")
    queue.call("register_consumer", "old_cube")
    first = batch(queue, 1)
    [(number,)] = queue.ask("SELECT pgq.next_batch('q', 'old_cube')")
    with pytest.raises(PermanentFailure, match="nothing to adopt"):
        positions.adopt(conf, "cube")
    sql("INSERT INTO public.t VALUES (1)")
    sql("SELECT pgq_ext.set_last_tick('old_cube', %s)", first)
    if not applied:
        queue.ask("SELECT pgq.finish_batch(%s)", number)
    second = batch(queue, 2)
    with pytest.raises(PermanentFailure, match="headrace dispatch adopt cube"):
        positions.register(conf, "cube")
    assert positions.adopt(conf, "cube").tick == first
    assert positions.adopt(conf, "cube").what == "was adopted already"
    assert drain(conf) == []
    assert ids(sql) == [1, 2]
    assert position(sql) == (second, "active")
    # So that one can go back to it.
    assert sql("SELECT pgq_ext.get_last_tick('old_cube')") == [(second,)]


def test_adopt_refuses_a_mark_that_does_not_fit(
    pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf
) -> None:
    """cube_dispatcher's mark is neither of the two possible ticks: it had lost its place, and nothing is guessed."""
    sql(PGQ_EXT)
    conf = dispatch_conf(dsn, source_dsn=pgq_dsn, partition=NONE)
    queue.call("register_consumer", "cube")
    batch(queue, 1)
    sql("SELECT pgq_ext.set_last_tick('cube', 77)")
    with pytest.raises(PermanentFailure, match="mark is tick 77, and its registration stands at 1"):
        positions.adopt(conf, "cube")
    assert sql("SELECT count(*) FROM headrace.dispatch_position") == [(0,)]
