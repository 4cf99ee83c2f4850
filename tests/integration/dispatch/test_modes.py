"""Modes, policies, partitions and routes: what becomes of changes, on real PgQ, drained in this process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.dispatch.conftest import (
    NONE,
    Ask,
    Conf,
    Queue,
    Start,
    drain,
    event_at,
    external,
    failures,
    replay,
    tick_at,
)
from workers.dispatch import positions
from workers.dispatch_settings import Consumer

META = ["_op", "_ev_id", "_ev_time", "_tick"]

# Deletes and truncates, by policy


BOTH, ONE = [(1, "a"), (2, "b")], [(2, "b")]
DELETES: tuple[tuple[str, str | None, list[tuple[int, str]]], ...] = (
    ("keep_latest", None, ONE),
    ("keep_latest", "delete", ONE),
    ("keep_latest", "delete_all", ONE),
    ("keep_latest", "ignore", BOTH),
    ("keep_latest", "error", BOTH),
    ("plain", None, ONE),
    ("plain", "delete", ONE),
    ("plain", "delete_all", ONE),
    ("plain", "ignore", BOTH),
    ("plain", "error", BOTH),
    ("keep_all", None, BOTH),
    ("keep_all", "error", BOTH),
    ("keep_all", "ignore", BOTH),
)


@pytest.mark.parametrize("ticks", [1, 2])
def test_a_delete_goes_by_its_policy(start: Start, queue: Queue, sql: Ask, ticks: int) -> None:
    """A deleted row goes, stays, or fails, in each mode, be it deleted in the batch that brought it or later."""
    tables: dict[str, dict[str, Any]] = {}
    for mode, policy, _left in DELETES:
        tables[f"public.{mode}_{policy or 'default'}"] = {"mode": mode, **({"on_delete": policy} if policy else {})}
    conf = start(partition=NONE, tables=tables)
    for table in tables:
        queue.logged(table, "id int PRIMARY KEY, v text")
        sql(f"CREATE TABLE {table} (id int, v text)")
        queue.ask(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
    if ticks == 2:
        queue.tick()
    for table in tables:
        queue.ask(f"DELETE FROM {table} WHERE id = 1")
    queue.tick()
    assert drain(conf) == []
    left = {table: sql(f"SELECT * FROM {table} ORDER BY id") for table in tables}
    assert left == {f"public.{mode}_{policy or 'default'}": rows for mode, policy, rows in DELETES}
    what = "on_delete is `error`; set another policy, or `headrace dispatch drop` the event"
    failed = ("public.keep_latest_error", "public.plain_error", "public.keep_all_default", "public.keep_all_error")
    assert failures(sql) == [f"{table}: {what}" for table in failed]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mode": "keep_all", "on_delete": "delete"}, "keep_all keeps all of them"),
        ({"mode": "keep_all", "on_delete": "delete_all"}, "keep_all keeps all of them"),
        ({"mode": "keep_all", "tables": {"t": {"on_delete": "delete"}}}, "keep_all keeps all of them"),
        ({"tables": {"t": {"mode": "keep_all", "on_delete": "delete_all"}}}, "keep_all keeps all of them"),
        ({"on_delete": "tombstone"}, "add _op to meta_columns"),
        ({"mode": "plain", "on_truncate": "tombstone"}, "add _op to meta_columns"),
    ],
)
def test_settings_refuse_what_a_mode_cannot_do(keys: dict[str, Any], said: str) -> None:
    """keep_all takes no row away, and a tombstone needs its column."""
    with pytest.raises(ValueError, match=said):
        Consumer(queue="q", **keys)


def test_a_tombstone_says_that_a_row_is_gone(start: Start, queue: Queue, sql: Ask) -> None:
    """A delete becomes a row whose _op is D: one more in keep_all, in place of the others elsewhere."""
    modes = ("keep_all", "keep_latest", "plain")
    tables = {f"public.{mode}": {"mode": mode} for mode in modes}
    conf = start(partition=NONE, on_delete="tombstone", meta_columns=["_op"], tables=tables)
    for table in tables:
        queue.logged(table, "id int PRIMARY KEY, v text")
        sql(f"CREATE TABLE {table} (id int, v text)")
        queue.ask(f"INSERT INTO {table} VALUES (1, 'a'); UPDATE {table} SET v = 'b'")
    queue.tick()
    for table in tables:
        queue.ask(f"DELETE FROM {table}")
    queue.tick()
    assert drain(conf) == []
    rows = {mode: sql(f"SELECT id, v, _op FROM public.{mode} ORDER BY _op <> 'I', _op <> 'U'") for mode in modes}
    gone = [(1, "b", "D")]
    assert rows == {"keep_all": [(1, "a", "I"), (1, "b", "U"), *gone], "keep_latest": gone, "plain": gone}


@pytest.mark.parametrize("mode", ["keep_latest", "keep_all", "plain"])
def test_a_truncate_goes_by_its_policy(start: Start, queue: Queue, sql: Ask, mode: str) -> None:
    """TRUNCATE empties the day's table, or every day's, or nothing; rows that come after it stay."""
    expected: dict[str, tuple[list[int], list[int | None]]] = {
        "error": ([1], [1, 2, 3]),
        "ignore": ([1], [1, 2, 3]),
        "delete": ([1], [3]),
        "delete_all": ([], [3]),
        "tombstone": ([1], [1, 2, 3]),
    }
    if mode == "plain":  # a row is where it was changed last
        expected = {policy: ([], today) for policy, (_yesterday, today) in expected.items()}
    if mode == "keep_all":
        expected["tombstone"] = ([1], [1, 2, 3, None])
    tables = {f"public.{policy}": {"on_truncate": policy} for policy in expected}
    conf = start(mode=mode, meta_columns=["_op"], tables=tables)
    external(queue)
    for table in tables:
        queue.logged(table, "id int PRIMARY KEY, v text", truncate=True)
        sql(f"CREATE TABLE {table} (id int, v text)")
        queue.ask(f"INSERT INTO {table} VALUES (1, 'a')")
    tick_at(queue, "2026-11-21 12:00+00")
    for table in tables:
        queue.ask(f"UPDATE {table} SET v = 'b'; INSERT INTO {table} VALUES (2, 'b')")
        queue.ask(f"TRUNCATE {table}")
        queue.ask(f"INSERT INTO {table} VALUES (3, 'c')")
    tick_at(queue, "2026-11-22 12:00+00")
    assert drain(conf) == []
    left = {}
    for policy in expected:
        days = [sql(f"SELECT id FROM public.{policy}_2026_11_{day} ORDER BY 1") for day in (21, 22)]
        left[policy] = tuple([row[0] for row in day] for day in days)
    assert left == expected
    failed = [error.partition(":")[0] for error in failures(sql)]
    assert failed == ["public.error", *(["public.tombstone"] if mode != "keep_all" else [])]


def test_a_row_may_come_back_after_an_ignored_truncate(start: Start, queue: Queue, sql: Ask) -> None:
    """An insert of a row that is still there replaces it, though its table has a primary key."""
    conf = start(partition=NONE, on_truncate="ignore")
    queue.logged("public.t", "id int PRIMARY KEY, v text", truncate=True)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'), (2, 'a')")
    queue.ask("TRUNCATE public.t")
    queue.ask("INSERT INTO public.t VALUES (1, 'b')")
    queue.tick()
    queue.ask("TRUNCATE public.t")
    queue.ask("INSERT INTO public.t VALUES (1, 'c')")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT * FROM public.t ORDER BY 1") == [(1, "c"), (2, "a")]


def test_delete_takes_today_s_version_and_delete_all_every_day_s(start: Start, queue: Queue, sql: Ask) -> None:
    """keep_latest: by `delete` yesterday's version of a row stays, by `delete_all` it goes, too."""
    conf = start(tables={"public.u": {"on_delete": "delete_all"}})
    external(queue)
    for table in "tu":
        queue.logged(f"public.{table}", "id int PRIMARY KEY, v text")
        sql(f"CREATE TABLE public.{table} (id int, v text)")
        queue.ask(f"INSERT INTO public.{table} VALUES (1, 'a'), (2, 'a')")
    tick_at(queue, "2026-11-21 12:00+00")
    for table in "tu":
        queue.ask(f"UPDATE public.{table} SET v = 'b'; DELETE FROM public.{table} WHERE id = 1")
    tick_at(queue, "2026-11-22 12:00+00")
    assert drain(conf) == []
    assert sql("SELECT * FROM public.t_2026_11_21 ORDER BY 1") == [(1, "a"), (2, "a")]
    assert sql("SELECT * FROM public.u_2026_11_21 ORDER BY 1") == [(2, "a")]
    assert sql("SELECT * FROM public.t_2026_11_22") == sql("SELECT * FROM public.u_2026_11_22") == [(2, "b")]


def test_meta_columns_say_which_event_made_a_version(start: Start, queue: Queue, sql: Ask) -> None:
    """_op, _ev_id, _ev_time and _tick are the event's own, and are added to a table that lacks them."""
    conf = start(mode="keep_all", partition=NONE, on_delete="tombstone", meta_columns=META)
    queue.logged("public.t", "id int PRIMARY KEY, v text")
    sql("CREATE TABLE public.t (id int, v text)")
    queue.ask("INSERT INTO public.t VALUES (1, NULL); UPDATE public.t SET v = 'b'")
    first = queue.tick()
    queue.ask("DELETE FROM public.t")
    second = queue.tick()
    assert drain(conf) == []
    written = queue.ask("SELECT ev_id, ev_time, left(ev_type, 1) FROM pgq.event_template ORDER BY ev_id")
    assert sql("SELECT _ev_id, _ev_time, _op, _tick, id, v FROM public.t ORDER BY _ev_id") == [
        (*written[0], first, 1, None),
        (*written[1], first, 1, "b"),
        (*written[2], second, 1, "b"),
    ]


# Partitions


PARIS = "Europe/Paris"


@pytest.mark.parametrize(
    ("period", "by", "type_", "partitions"),
    [
        ("day", "batch_time", "timestamptz", ["2026_11_22", "2026_11_22"]),
        ("day", "event_time", "timestamptz", ["2026_11_21", "2026_11_22"]),
        ("hour", "event_time", "timestamptz", ["2026_11_21_23", "2026_11_22_00"]),
        ("hour", "batch_time", "timestamp", ["2026_11_22_00", "2026_11_22_00"]),
        ("month", "batch_time", "date", ["2026_11", "2026_11"]),
        ("day", "event_time", "date", ["2026_11_21", "2026_11_22"]),
    ],
)
def test_native_partitions_by_a_zone_s_midnight(
    start: Start, queue: Queue, sql: Ask, period: str, by: str, type_: str, partitions: list[str]
) -> None:
    """Rows go by the time of their batch or their event, on Paris' calendar, whatever zone the servers have."""
    conf = start(
        mode="keep_all", partition={"kind": "native", "by": by, "period": period, "timezone": PARIS, "premake": 0}
    )
    external(queue)
    sql(f"CREATE TABLE public.t (id int, at {type_}) PARTITION BY RANGE (at)")
    sql("SELECT set_config('TimeZone', 'Pacific/Auckland', false)")
    # Paris is an hour ahead of UTC in November.
    event_at(queue, "2026-11-21 22:59:59.999999+00", "I:id", "id=1")
    event_at(queue, "2026-11-21 23:00:00+00", "I:id", "id=2")
    tick_at(queue, "2026-11-21 23:00:01+00")
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT id, tableoid::regclass::text FROM public.t ORDER BY id") == [
        (1, f"t_p{partitions[0]}"),
        (2, f"t_p{partitions[1]}"),
    ]


@pytest.mark.parametrize(
    ("type_", "values", "partitions"),
    [
        ("timestamptz", ["2026-11-21 23:59:59.999999+01", "2026-11-22 00:00:00+01"], ["2026_11_21", "2026_11_22"]),
        ("timestamp", ["2026-11-21 23:59:59.999999", "2026-11-22 00:00:00"], ["2026_11_21", "2026_11_22"]),
        ("date", ["2026-11-21", "2026-11-22"], ["2026_11_21", "2026_11_22"]),
    ],
)
@pytest.mark.parametrize("kind", ["native", "like"])
def test_partitions_by_a_field(
    start: Start, queue: Queue, sql: Ask, kind: str, type_: str, values: list[str], partitions: list[str]
) -> None:
    """A row goes by its own field: an instant by Paris' midnight, a date or a local time as it is."""
    conf = start(partition={"kind": kind, "by": "field:at", "timezone": PARIS, "premake": 0})
    queue.logged("public.t", f"id int PRIMARY KEY, at {type_}")
    sql(f"CREATE TABLE public.t (id int, at {type_}) {'PARTITION BY RANGE (at)' if kind == 'native' else ''}")
    queue.ask("SELECT set_config('TimeZone', 'America/New_York', false)")
    queue.ask("INSERT INTO public.t VALUES (1, %s), (2, %s)", *values)
    queue.tick()
    assert drain(conf) == failures(sql) == []
    for number, partition in enumerate(partitions, 1):
        name = f"public.t_{'p' if kind == 'native' else ''}{partition}"
        assert sql(f"SELECT id, at = %s::{type_} FROM {name}", values[number - 1]) == [(number, True)]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_a_field_that_no_partition_is_for(start: Start, queue: Queue, sql: Ask, kind: str) -> None:
    """A row at the calendar's ends, or without a time, is a failed event; its neighbours are applied."""
    conf = start(partition={"kind": kind, "by": "field:at", "premake": 0})
    queue.logged("public.t", "id int PRIMARY KEY, at timestamp")
    sql(f"CREATE TABLE public.t (id int, at timestamp) {'PARTITION BY RANGE (at)' if kind == 'native' else ''}")
    values = ["2026-11-22", "infinity", "-infinity", "0044-03-15 12:00:00 BC", "12026-01-01", None, "2026-11-22"]
    for number, value in enumerate(values):
        queue.ask("INSERT INTO public.t VALUES (%s, %s)", number, value)
    queue.tick()
    assert drain(conf) == []
    keys = sql("SELECT left(ev_data, 4) FROM headrace.failed_event WHERE state = 'waiting' ORDER BY id")
    assert keys == [(f"id={number}",) for number in range(1, 6)]
    name = f"public.t_{'p' if kind == 'native' else ''}2026_11_22"
    assert sql(f"SELECT id FROM {name} ORDER BY 1") == [(0,), (6,)]


@pytest.mark.parametrize("format_", ["YYYY_MM_DD", "YYYY_MM", "YYYY_MM_DD_HH24", '"Q"Q', ""])
def test_dateformats(start: Start, queue: Queue, sql: Ask, format_: str) -> None:
    """The suffix is what to_char() makes of the tick's time in the zone; an empty format is no suffix."""
    conf = start(mode="keep_all", partition={"dateformat": format_, "timezone": PARIS})
    external(queue)
    sql("CREATE TABLE public.t (id int)")
    event_at(queue, "2026-11-21 22:59+00", "I:id", "id=1")
    tick_at(queue, "2026-11-21 23:30+00")
    assert drain(conf) == []
    suffix = {
        "YYYY_MM_DD": "_2026_11_22", "YYYY_MM": "_2026_11", "YYYY_MM_DD_HH24": "_2026_11_22_00", '"Q"Q': "_Q4", "": "",
    }[format_]  # fmt: skip
    assert sql(f'SELECT id FROM public."t{suffix}"') == [(1,)]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_redelivery_after_midnight_goes_to_the_old_day(
    start: Start, pgq_dsn: str, queue: Queue, sql: Ask, kind: str
) -> None:
    """A batch that is applied again, a day after its tick, fills the partition of its tick's day."""
    conf = start(mode="keep_all", partition={"kind": kind, "timezone": PARIS, "premake": 0})
    external(queue)
    sql(f"CREATE TABLE public.t (id int, at timestamptz) {'PARTITION BY RANGE (at)' if kind == 'native' else ''}")
    event_at(queue, "2026-11-21 22:59:58+00", "I:id", "id=1")
    tick_at(queue, "2026-11-21 22:59:59+00")
    assert drain(conf) == []
    event_at(queue, "2026-11-21 23:00:00+00", "I:id", "id=2")
    tick_at(queue, "2026-11-21 23:00:01+00")
    assert drain(conf) == []
    names = [f"public.t_{'p' if kind == 'native' else ''}2026_11_{day}" for day in (21, 22)]
    assert [sql(f"SELECT id FROM {name}") for name in names] == [[(1,)], [(2,)]]
    for name in names:
        sql(f"DROP TABLE {name}")
    sql("DELETE FROM headrace.dispatch_partition")
    positions.rewind(conf, "cube", to_tick=1)
    assert drain(conf) == []
    assert [sql(f"SELECT id FROM {name}") for name in names] == [[(1,)], [(2,)]]


@pytest.mark.parametrize("kind", ["native", "like"])
@pytest.mark.parametrize("days", ["12", "2D1", "1D2", "1D"])
def test_a_plain_row_moves_between_days(start: Start, queue: Queue, sql: Ask, kind: str, days: str) -> None:
    """plain: within one batch a row moves to the partition of its last version, and is in no other."""
    moves(start, queue, sql, kind, days)


@pytest.mark.parametrize("kind", ["native", "like"])
@pytest.mark.parametrize("days", ["121", "12D1"])
def test_a_plain_row_moves_back(start: Start, queue: Queue, sql: Ask, kind: str, days: str) -> None:
    """plain: a row that comes back to a partition within one batch is there, and in no other."""
    moves(start, queue, sql, kind, days)


def moves(start: Start, queue: Queue, sql: Ask, kind: str, days: str) -> None:
    """Insert a row for the first day of `days`, move it to the others, delete it at D; compare with the source."""
    conf = start(mode="plain", partition={"kind": kind, "by": "field:d", "premake": 0})
    queue.logged("public.t", "id int PRIMARY KEY, d date")
    sql(f"CREATE TABLE public.t (id int, d date) {'PARTITION BY RANGE (d)' if kind == 'native' else ''}")
    for day in days:
        if day == "D":
            queue.ask("DELETE FROM public.t")
        else:
            at = f"2026-01-0{day}"
            queue.ask("INSERT INTO public.t VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET d = excluded.d", at)
    queue.tick()
    assert drain(conf) == failures(sql) == []
    tables = sql("SELECT oid::regclass::text FROM pg_class WHERE relname LIKE 't\\_%%' AND relkind = 'r'")
    assert [row for (name,) in tables for row in sql(f"SELECT * FROM {name}")] == queue.ask("SELECT * FROM public.t")


# Routes


def test_tables_and_columns_are_renamed_left_out_and_filtered(start: Start, queue: Queue, sql: Ask) -> None:
    """Each table goes where its rules say, with the columns that they name, in its mode; the others go nowhere."""
    conf = start(
        partition=NONE,
        only_tables=["public.*"],
        skip_tables=["public.skipped"],
        tables={
            "public.renamed": {"target": "other.new_name", "columns": {"v": "value", "id": "number"}},
            "public.some": {"only_columns": ["id", "v"]},
            "public.fewer": {"skip_columns": ["secret"], "mode": "keep_all"},
            "public.ignored": {"ignore": True},
        },
    )
    sql("CREATE SCHEMA other")
    sql("CREATE TABLE other.new_name (number int PRIMARY KEY, value text, secret text)")
    sql("CREATE TABLE public.some (id int PRIMARY KEY, v text, secret text)")
    sql("CREATE TABLE public.fewer (id int, v text, secret text)")
    queue.ask("CREATE SCHEMA other")
    for table in ("public.renamed", "public.some", "public.fewer", "public.ignored", "public.skipped", "other.t"):
        queue.logged(table, "id int PRIMARY KEY, v text, secret text")
        queue.ask(f"INSERT INTO {table} VALUES (1, 'a', 's'), (2, 'x', 'x'); UPDATE {table} SET v = 'b' WHERE id = 1")
        queue.ask(f"DELETE FROM {table} WHERE id = 2")
    queue.tick()
    assert drain(conf) == []
    assert failures(sql) == [
        "public.fewer: on_delete is `error`; set another policy, or `headrace dispatch drop` the event"
    ]
    assert sql("SELECT * FROM other.new_name") == [(1, "b", "s")]
    assert sql("SELECT * FROM public.some") == [(1, "b", None)]
    assert sql("SELECT * FROM public.fewer ORDER BY v, id") == [(1, "a", None), (1, "b", None), (2, "x", None)]
    assert sql("SELECT count(*) FROM pg_class WHERE relname IN ('ignored', 'skipped')") == [(0,)]


@pytest.mark.parametrize("mode", ["keep_latest", "plain"])
def test_rows_of_a_partitioned_source_go_by_its_root(start: Start, queue: Queue, sql: Ask, mode: str) -> None:
    """Leaves' events go to the root's destination, and a row that moves from leaf to leaf is there once."""
    conf = start(mode=mode, partition=NONE)
    queue.ask("CREATE TABLE public.t (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d)")
    for year in (2026, 2027):
        bounds = f"FROM ('{year}-01-01') TO ('{year + 1}-01-01')"
        queue.ask(f"CREATE TABLE public.t_{year} PARTITION OF public.t FOR VALUES {bounds}")
    queue.trigger("public.t")
    sql("CREATE TABLE public.t (id int, d date, v text, PRIMARY KEY (id, d))")
    queue.ask("INSERT INTO public.t VALUES (1, '2026-05-05', 'a'), (2, '2026-05-05', 'a')")
    queue.ask("UPDATE public.t SET d = '2027-05-05' WHERE id = 1")
    queue.ask("UPDATE public.t SET v = 'b'; UPDATE public.t SET d = '2026-05-06' WHERE id = 1")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT * FROM public.t ORDER BY 1") == queue.ask("SELECT * FROM public.t ORDER BY 1")
    assert {event["ev_extra1"] for event in queue.events()} == {"public.t_2026", "public.t_2027"}


def test_leaves_may_go_apart_and_suffixes_be_cut_off(start: Start, queue: Queue, sql: Ask) -> None:
    """Without leaf_to_root each leaf has its destination; strip_suffix joins tables whose names end alike."""
    conf = start(partition=NONE, leaf_to_root=False, strip_suffix=r"_y\d{4}")
    queue.ask("CREATE TABLE public.t (id int, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    queue.ask("CREATE TABLE public.t_low PARTITION OF public.t FOR VALUES FROM (0) TO (10)")
    queue.trigger("public.t")
    for year in (2026, 2027):
        queue.logged(f"public.log_y{year}", "id int PRIMARY KEY, v text")
        queue.ask(f"INSERT INTO public.log_y{year} VALUES ({year}, 'a')")
    queue.ask("INSERT INTO public.t VALUES (1)")
    sql("CREATE TABLE public.t_low (id int)")
    sql("CREATE TABLE public.log (id int, v text)")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT id FROM public.t_low") == [(1,)]
    assert sql("SELECT id FROM public.log ORDER BY 1") == [(2026,), (2027,)]


def test_two_source_tables_share_a_destination(start: Start, queue: Queue, sql: Ask) -> None:
    """Rows of both are there, each found by its key, though their columns stand in another order."""
    conf = start(partition=NONE, tables={"public.a": {"target": "public.both"}, "public.b": {"target": "public.both"}})
    queue.logged("public.a", "id int PRIMARY KEY, v text, n int")
    queue.logged("public.b", "n int, v text, id int PRIMARY KEY")
    sql("CREATE TABLE public.both (id int, v text, n int)")
    queue.ask("INSERT INTO public.a VALUES (1, 'a', 10); INSERT INTO public.b VALUES (20, 'b', 2)")
    queue.ask("UPDATE public.a SET n = 11; UPDATE public.b SET n = 21")
    queue.tick()
    queue.ask("UPDATE public.b SET n = 22; UPDATE public.a SET n = 12")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT * FROM public.both ORDER BY id") == [(1, "a", 12), (2, "b", 22)]


def test_two_consumers_and_two_targets(pgq_dsn: str, dsn: str, queue: Queue, sql: Ask, dispatch_conf: Conf) -> None:
    """Consumers of one queue have positions of their own, in the databases that they write into."""
    consumers = {
        "here": {"source": "src", "target": "dst", "queue": "q", "partition": NONE},
        "there": {
            "source": "src", "target": "src", "queue": "q", "registered_as": "old name", "mode": "keep_all",
            "on_delete": "ignore", "partition": NONE, "tables": {"public.t": {"target": "public.history"}},
        },
    }  # fmt: skip
    conf = dispatch_conf(dsn, source_dsn=pgq_dsn, room={"consumers": consumers})
    for name in consumers:
        positions.register(conf, name)
    queue.logged("public.t", "id int PRIMARY KEY, v text")
    queue.ask("CREATE TABLE public.history (id int, v text)")
    sql("CREATE TABLE public.t (id int, v text)")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'); UPDATE public.t SET v = 'b'")
    tick = queue.tick()
    assert drain(conf, "here") == []
    assert sql("SELECT * FROM public.t") == [(1, "b")]
    assert queue.ask("SELECT count(*) FROM public.history") == [(0,)]
    assert drain(conf, "there") == []
    assert queue.ask("SELECT v FROM public.history ORDER BY 1") == [("a",), ("b",)]
    assert sql("SELECT consumer, registered_as, tick FROM headrace.dispatch_position") == [("here", "here", tick)]
    assert queue.ask("SELECT consumer, registered_as, tick FROM headrace.dispatch_position") == [
        ("there", "old name", tick)
    ]
    assert {one["consumer_name"]: one["last_tick"] for one in queue.consumer_info()} == {"here": tick, "old name": tick}


def test_a_table_without_a_key_does_not_stop_the_others(start: Start, queue: Queue, sql: Ask) -> None:
    """keep_latest: its events fail with a text that names it and what to set; with `key`, a replay applies them."""
    conf = start(partition=NONE)
    queue.logged("public.keyless", "id int, v text")
    queue.logged("public.t", "id int PRIMARY KEY, v text")
    sql("CREATE TABLE public.keyless (id int, v text)")
    sql("CREATE TABLE public.t (id int, v text)")
    queue.ask("INSERT INTO public.keyless VALUES (1, 'a'); INSERT INTO public.t VALUES (1, 'a')")
    queue.tick()
    assert drain(conf) == []
    assert failures(sql) == [
        "public.keyless has no key, and mode keep_latest needs one: set tables.public.keyless.key, or mode: keep_all"
    ]
    assert sql("SELECT * FROM public.t") == [(1, "a")]
    conf = start(partition=NONE, tables={"public.keyless": {"key": ["id"]}})
    assert replay(conf) == []
    assert sql("SELECT * FROM public.keyless") == [(1, "a")]
    queue.insert("U:", "id=1&v=b", "public.keyless")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT * FROM public.keyless") == [(1, "b")]


def test_a_table_is_not_dispatched_into_itself(pgq_dsn: str, queue: Queue, dispatch_conf: Conf) -> None:
    """With one database, no partitions and no `target`, a table's changes are refused, not applied to it for ever."""
    conf = dispatch_conf(pgq_dsn, partition=NONE)
    positions.register(conf, "cube")
    queue.logged("public.t", "id int PRIMARY KEY, v text")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'); UPDATE public.t SET v = 'b'")
    queue.tick()
    drain(conf)
    assert len(queue.events()) == 2


def test_the_events_time_may_be_the_range_key_and_a_meta_column(start: Start, queue: Queue, sql: Ask) -> None:
    """One column `_ev_time` is both what history is cut by and what says when a version was made."""
    conf = start(
        mode="keep_all",
        meta_columns=["_op", "_ev_time"],
        partition={"kind": "native", "by": "event_time", "period": "month"},
    )
    sql("CREATE TABLE public.t (id int, _ev_time timestamptz) PARTITION BY RANGE (_ev_time)")
    event_at(queue, "2026-02-28 23:59:59+00", "I:id", "id=1", "public.t")
    event_at(queue, "2026-03-01 00:00:00+00", "I:id", "id=2", "public.t")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    found = sql("SELECT tableoid::regclass::text, id, _op, _ev_time::text FROM public.t ORDER BY id")
    assert found == [
        ("t_p2026_02", 1, "I", "2026-02-28 23:59:59+00"),
        ("t_p2026_03", 2, "I", "2026-03-01 00:00:00+00"),
    ]
