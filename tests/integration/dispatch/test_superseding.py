"""Histories after which the target does not hold what it must: each is the shortest that was found."""

from __future__ import annotations

import pytest

from tests.integration.dispatch.conftest import NONE, Ask, Queue, Start, drain, failures, position, replay, states
from workers.dispatch import positions

T = "public.t"


@pytest.mark.parametrize(("type_", "first", "second"), [("numeric", ("I", "D"), "I"), ("public.citext", ("I",), "U")])
def test_texts_of_one_key_stay_in_order_in_slices(
    start: Start, queue: Queue, sql: Ask, type_: str, first: tuple[str, ...], second: str
) -> None:
    """A row whose key is written in two ways within a batch ends as its last event says, also in slices."""
    conf = start(partition=NONE, slices=4, slice_events=1)
    if type_ == "public.citext":
        sql("CREATE EXTENSION citext SCHEMA public")
    sql(f"CREATE TABLE public.t (k {type_} PRIMARY KEY, v text)")
    pairs = [(f"{n}.0", f"{n}") for n in range(1, 9)] if type_ == "numeric" else [(c.upper(), c) for c in "abcdefgh"]
    for one, other in pairs:
        for kind in first:
            queue.insert(f"{kind}:k", f"k={one}&v=old", T)
        queue.insert(f"{second}:k", f"k={other}&v=new", T)
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v FROM public.t") == [("new",)] * 8


def test_another_text_of_the_key_supersedes(start: Start, queue: Queue, sql: Ask) -> None:
    """A failed version of row 1.0 does not come back once row 1.00 was applied."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (k numeric PRIMARY KEY, v text CONSTRAINT c CHECK (v <> 'bad'))")
    for event in (("I:k", "k=1.0&v=bad"), ("U:k", "k=1.00&v=good")):
        queue.insert(*event, T)
        queue.tick()
        drain(conf)
    sql("ALTER TABLE public.t DROP CONSTRAINT c")
    assert replay(conf) == []
    assert sql("SELECT v FROM public.t") == [("good",)]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_a_row_deleted_everywhere_does_not_come_back(start: Start, queue: Queue, sql: Ask, kind: str) -> None:
    """delete_all supersedes the row's failed versions on every day, as it takes its rows from every day."""
    conf = start(on_delete="delete_all", on_new_column="error", partition={"kind": kind, "by": "field:d", "premake": 0})
    sql(f"CREATE TABLE public.t (id int, d date) {'PARTITION BY RANGE (d)' if kind == 'native' else ''}")
    for event in (("I:id", "id=1&d=2026-11-20&x=1"), ("D:id", "id=1&d=2026-11-21")):
        queue.insert(*event, T)
        queue.tick()
        drain(conf)
    assert states(sql) == ["superseded"]


def test_a_refused_delete_with_a_new_column_is_superseded(start: Start, queue: Queue, sql: Ask) -> None:
    """A delete that waits is over once the row was born again, whatever columns it had."""
    conf = start(partition=NONE, on_delete="error", on_new_column="error")
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    for event in (("D:id", "id=1&v=a&x=1"), ("I:id", "id=1&v=b")):
        queue.insert(*event, T)
        queue.tick()
        drain(conf)
    assert states(sql) == ["superseded"]


def test_a_replayed_truncate_leaves_newer_rows(start: Start, queue: Queue, sql: Ask) -> None:
    """A TRUNCATE that waited takes no row away that was inserted after it."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id int PRIMARY KEY)")
    for event in (("R", ""), ("I:id", "id=2")):
        queue.insert(*event, T)
        queue.tick()
        drain(conf)
    conf.dispatch.consumers["cube"].__dict__["on_truncate"] = "delete_all"
    replay(conf)
    assert sql("SELECT id FROM public.t") == [(2,)]


def test_what_comes_again_is_not_replayed_as_well(start: Start, queue: Queue, sql: Ask) -> None:
    """keep_all, back to an earlier tick with the cause mended: the event is there once, also after a replay."""
    conf = start(partition=NONE, mode="keep_all")
    sql("CREATE TABLE public.t (id int, v text CONSTRAINT c CHECK (v <> 'bad'))")
    tick = position(sql)[0]
    queue.insert("I:id", "id=1&v=bad", T)
    queue.tick()
    drain(conf)
    sql("ALTER TABLE public.t DROP CONSTRAINT c")
    positions.rewind(conf, "cube", to_tick=tick)
    assert drain(conf) == replay(conf) == []
    assert sql("SELECT id FROM public.t") == [(1,)]


def test_an_instant_whose_column_comes_later(start: Start, queue: Queue, sql: Ask) -> None:
    """A row keyed by an instant is superseded by a text of another zone, though its column was not there at first."""
    conf = start(partition=NONE, on_new_column="error")
    sql("CREATE TABLE public.t (v text)")
    queue.insert("I:ts", "ts=2026-11-20+10:00:00%2b01&v=old", T)
    queue.tick()
    drain(conf)
    sql("ALTER TABLE public.t ADD COLUMN ts timestamptz")
    queue.insert("U:ts", "ts=2026-11-20+09:00:00%2b00&v=new", T)
    queue.tick()
    drain(conf)
    assert states(sql) == ["superseded"]


def test_a_child_in_another_slice_than_its_parent(start: Start, queue: Queue, sql: Ask) -> None:
    """Sliced batches of tables with a foreign key arrive whole, as they do without slices."""
    conf = start(partition=NONE, slices=4, slice_events=1)
    sql("CREATE TABLE public.p (id int PRIMARY KEY)")
    sql("CREATE TABLE public.t (id int PRIMARY KEY, p int REFERENCES public.p)")
    for number in range(1, 17):
        queue.insert("I:id", f"id={number}", "public.p")
        queue.insert("I:id", f"id={number + 50}&p={number}", T)
    queue.tick()
    drain(conf)
    assert failures(sql) == []
