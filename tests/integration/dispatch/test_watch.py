"""Ticks, lag, rotation and partitions: what is looked after while events flow."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.integration.dispatch.conftest import Queue
from workers import execution
from workers.dispatch import api, positions, pump, watch
from workers.messages import TendPartitions
from workers.settings import Settings

Conf = Callable[..., Settings]
NONE = {"kind": "none"}


def drain(conf: Settings) -> list[str]:
    """Apply every tick that exists."""
    return execution.run_here(pump.look(conf, "cube", resend=True), conf, timeout=timedelta(seconds=20))


def filled(queue: Queue, conf: Settings, *, ticks: int, each: int = 3) -> None:
    """A source of so many ticks with so many events each, and its destination."""
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.t (id int PRIMARY KEY)")
    positions.register(conf, "cube")
    for tick in range(ticks):
        for number in range(each):
            queue.insert("I:id", f"id={tick * each + number}", "public.t")
        queue.tick()


TARGET = {"public.t": {"target": "dst.t"}}


@pytest.mark.parametrize(
    ("keys", "batches"),
    [
        ({}, 4),
        ({"merge_events": 2_000_000}, 4),  # so many do not wait: nobody waits for them
        ({"merge_events": 3_000}, 2),  # force_tick makes PgQ believe in 2,000 events a tick
        ({"merge_events": 5_000}, 1),
        ({"merge_events": 1}, 4),
    ],
)
def test_ticks_are_taken_together_when_many_events_wait(
    queue: Queue, dispatch_conf: Conf, keys: dict[str, Any], batches: int
) -> None:
    """Fewer and bigger batches with merge_events, the same rows; never later than without."""
    conf = dispatch_conf(queue.dsn, partition=NONE, tables=TARGET, **keys)
    filled(queue, conf, ticks=4)
    assert drain(conf) == []
    assert queue.ask("SELECT count(*) FROM dst.t") == [(12,)]
    assert queue.ask("SELECT batches FROM headrace.dispatch_position") == [(batches,)]


def test_ticks_are_not_taken_together_where_that_would_move_rows(queue: Queue, dispatch_conf: Conf) -> None:
    """A partition by batch time gets what its own tick ended, whatever merge_events says."""
    conf = dispatch_conf(queue.dsn, tables=TARGET, merge_events=1_000)
    filled(queue, conf, ticks=3)
    assert drain(conf) == []
    assert queue.ask("SELECT batches FROM headrace.dispatch_position") == [(3,)]


def test_without_pgqd_the_queue_is_ticked_and_rotated_here(queue: Queue, dispatch_conf: Conf) -> None:
    """run_ticker makes ticks when they are due, and rotates the tables in transactions of their own."""
    conf = dispatch_conf(queue.dsn, partition=NONE, tables=TARGET, run_ticker=True)
    filled(queue, conf, ticks=0)
    queue.insert("I:id", "id=1", "public.t")
    queue.call("set_queue_config", "ticker_max_count", "1")
    assert watch.tick(conf, "cube") is not None
    assert watch.tick(conf, "cube") is None
    assert drain(conf) == []
    queue.call("set_queue_config", "rotation_period", "0 seconds")
    before = queue.ask("SELECT queue_cur_table FROM pgq.queue")
    done = watch.maintain(conf, "cube")
    assert "pgq.maint_rotate_tables_step1 q" in done and "pgq.maint_rotate_tables_step2" in done
    assert queue.ask("SELECT queue_cur_table FROM pgq.queue") != before
    assert queue.ask("SELECT queue_switch_step2 IS NOT NULL FROM pgq.queue") == [(True,)]


def test_nobody_else_s_queue_is_ticked(queue: Queue, dispatch_conf: Conf) -> None:
    """Without run_ticker, pgqd does it: two tickers on one queue would be one too many."""
    conf = dispatch_conf(queue.dsn, partition=NONE, tables=TARGET)
    filled(queue, conf, ticks=0)
    queue.call("force_tick")
    assert (watch.tick(conf, "cube"), watch.maintain(conf, "cube")) == (None, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "UPDATE pgq.tick SET tick_time = tick_time - interval '2 hours';"
            " UPDATE headrace.dispatch_position SET tick_at = tick_at - interval '2 hours'",
            "the last tick was 7",
        ),
        ("UPDATE pgq.queue SET queue_ticker_paused = true", "the ticker is paused"),
        ("UPDATE pgq.queue SET queue_switch_time = now() - interval '5 hours'", "not rotated since"),
    ],
)
def test_a_queue_that_stands_still_is_told(queue: Queue, dispatch_conf: Conf, change: str, said: str) -> None:
    """A dead or paused ticker and a blocked rotation are named; people hear once that it is late, and of its end."""
    conf = dispatch_conf(queue.dsn, partition=NONE, tables=TARGET)
    filled(queue, conf, ticks=1)
    assert drain(conf) == []
    assert (watch.watch(conf, "cube"), watch.status(conf, "cube")["needs"]) == (False, [])
    queue.ask(change)
    [need] = watch.status(conf, "cube")["needs"]
    assert said in need
    is_late = "rotated" not in said
    assert [watch.watch(conf, "cube") for _ in range(2)] == [is_late, is_late]
    events = "SELECT event FROM headrace.alert ORDER BY id"
    assert queue.ask(events) == [("late",)] * is_late
    queue.ask("UPDATE pgq.queue SET queue_ticker_paused = false, queue_switch_time = now()")
    queue.tick()
    assert drain(conf) == []
    assert watch.watch(conf, "cube") is False
    assert queue.ask(events) == [("late",), ("recovery",)] * is_late


def test_partitions_leave_only_behind_the_position(queue: Queue, dispatch_conf: Conf) -> None:
    """A consumer that is days behind keeps the days that its unfinished batches may still write into."""
    partition = {"kind": "native", "by": "field:at", "retention_days": 5, "retention": "drop", "premake": 0}
    conf = dispatch_conf(queue.dsn, partition=partition, mode="keep_all", tables=TARGET)
    queue.ask("CREATE SCHEMA dst; CREATE TABLE dst.t (id int, at timestamptz) PARTITION BY RANGE (at)")
    positions.register(conf, "cube")
    for number, days in enumerate((30, 20, 10, 1)):
        at = queue.ask("SELECT to_char(now() - make_interval(days => %s), 'YYYY-MM-DD')", days)[0][0] + "+12%3a00%2b00"
        queue.insert("I:id", f"id={number}&at={at}", "public.t")
    queue.tick()
    assert drain(conf) == []

    def left_after(days_behind: int) -> list[tuple[Any, ...]]:
        queue.ask("UPDATE headrace.dispatch_position SET tick_at = now() - make_interval(days => %s)", days_behind)
        execution.run_here([TendPartitions(consumer="cube")], conf, timeout=timedelta(seconds=20))
        return queue.ask("SELECT id FROM dst.t ORDER BY id")

    assert left_after(26) == [(0,), (1,), (2,), (3,)]
    assert left_after(16) == [(1,), (2,), (3,)]
    assert left_after(0) == [(3,)]
    assert api.partition_plan(conf, "cube") == ([], [])


def test_rows_in_a_default_partition_are_told(queue: Queue, dispatch_conf: Conf) -> None:
    """Where late rows may go there, somebody hears of it; with their partition made, and drained, no more."""
    partition = {"kind": "native", "by": "field:at", "late": "default", "premake": 0}
    conf = dispatch_conf(queue.dsn, partition=partition, mode="keep_all", tables=TARGET)
    queue.ask(
        "CREATE SCHEMA dst; CREATE TABLE dst.t (id int, at timestamptz) PARTITION BY RANGE (at);"
        " CREATE TABLE dst.rest PARTITION OF dst.t DEFAULT;"
        " CREATE TABLE dst.now PARTITION OF dst.t FOR VALUES FROM ('2026-01-01 00:00Z') TO ('infinity')"
    )
    positions.register(conf, "cube")
    queue.insert("I:id", "id=1&at=2020-01-01+00%3a00%3a00%2b00", "public.t")
    queue.tick()
    assert drain(conf) == []
    [need] = watch.status(conf, "cube")["needs"]
    assert "the default partition dst.rest has rows" in need
    queue.ask("DELETE FROM dst.rest")
    assert watch.status(conf, "cube")["needs"] == []
