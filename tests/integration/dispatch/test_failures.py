"""Events that cannot be applied: kept whole, replayed in order, never in the way, and never a wrong row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql as composed

from tests.conftest import Servers
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
from workers import database
from workers.dispatch import positions

NAMES = (
    "Mixed Case.My.Table",
    'q"uote',
    "_PKEY_DEST_TABLE",
    "naïve 表",
    "a,b:c",
    "%s {0} {}",
    "select",
    "ta\tb\\n",
)
HOSTILE_COLUMNS = ('"Id"', "a,b", "a=b&c", "_PARENT", "õ%+ ", "Sel.ect", "{}%s", "back\\slash", "new\nline", "table")


def put_many(queue: Queue, count: int, poison: tuple[int, ...]) -> dict[int, int]:
    """Events for rows 1 to `count`, those of `poison` with a text where a number belongs; number of row -> event."""
    rows = queue.ask(
        "SELECT n, pgq.insert_event(%s, 'I:id', format('id=%%s&v=%%s', n, CASE WHEN n = ANY (%s)"
        " THEN 'x' ELSE n::text END),"
        " 'public.t', NULL, NULL, NULL) FROM generate_series(1, %s) n",
        queue.name, list(poison), count,
    )  # fmt: skip
    return dict(rows)


# Poison


@pytest.mark.parametrize("mode", ["keep_all", "keep_latest", "plain"])
def test_one_poison_event_among_a_thousand(start: Start, queue: Queue, sql: Ask, mode: str) -> None:
    """999 rows and one failed event, whole, with the reason; after the repair a replay adds it once."""
    conf = start(mode=mode, partition=NONE)
    sql("CREATE TABLE public.t (id int, v int)")
    events = put_many(queue, 1000, (500,))
    tick = queue.tick()
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    assert sql("SELECT count(*), count(DISTINCT id), sum(v) FROM public.t") == [(999, 999, 500_500 - 500)]
    [failed] = sql(
        "SELECT ev_id, tick, ev_type, ev_data, ev_extra1, destination, sqlstate, error FROM headrace.failed_event"
    )
    assert failed[:7] == (events[500], tick, "I:id", "id=500&v=x", "public.t", "public.t", "22P02")
    assert failed[7].startswith('invalid input syntax for type integer: "x"')
    assert replay(conf) == []
    assert states(sql) == ["waiting"]
    assert sql("SELECT count(*) FROM public.t") == [(999,)]
    sql("ALTER TABLE public.t ALTER v TYPE text")
    for _ in range(2):
        assert replay(conf) == []
        assert states(sql) == ["replayed"]
        assert sql("SELECT count(*) FROM public.t WHERE v = 'x'") == [(1,)]
        assert sql("SELECT count(*) FROM public.t") == [(1000,)]


def test_several_poison_events(start: Start, queue: Queue, sql: Ask) -> None:
    """Each is found, at the ends and side by side, and alerts are raised for them."""
    conf = start(mode="keep_all", partition=NONE)
    sql("CREATE TABLE public.t (id int, v int)")
    poison = (1, 2, 100, 199, 200)
    events = put_many(queue, 200, poison)
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT ev_id FROM headrace.failed_event ORDER BY id") == [(events[number],) for number in poison]
    assert sql("SELECT count(*) FROM public.t") == [(195,)]
    assert sql("SELECT DISTINCT event, subject FROM headrace.alert") == [("failure", "consumer cube")]


def test_too_many_failures_park_the_consumer(start: Start, queue: Queue, sql: Ask) -> None:
    """Beyond max_failed nothing of the batch is applied; after the repair `resume` goes on where it stood."""
    conf = start(mode="keep_all", partition=NONE, max_failed=2)
    before = position(sql)[0]
    sql("CREATE TABLE public.t (id int, v int)")
    put_many(queue, 50, (10, 20, 30))
    tick = queue.tick()
    assert len(drain(conf)) == 1
    assert position(sql) == (before, "parked")
    assert sql("SELECT count(*) FROM public.t") == sql("SELECT count(*) FROM headrace.failed_event") == [(0,)]
    assert sql("SELECT event, subject FROM headrace.alert") == [("parked", "consumer cube")]
    put_many(queue, 1, ())
    queue.tick()
    assert drain(conf) == []  # a parked consumer is left alone
    assert position(sql) == (before, "parked")
    sql("ALTER TABLE public.t ALTER v TYPE text")
    assert positions.resume(conf, "cube")
    assert not positions.resume(conf, "cube")
    assert drain(conf) == []
    assert position(sql) == (tick + 1, "active")
    assert sql("SELECT count(*) FROM public.t") == [(51,)]


# Order


@pytest.mark.parametrize("ticks", [1, 2])
@pytest.mark.parametrize(("newer", "rows"), [("U:id", [(1, "3")]), ("D:id", [])])
def test_a_newer_version_supersedes_a_failed_one(
    start: Start,
    queue: Queue,
    sql: Ask,
    ticks: int,
    newer: str,
    rows: list[Any],
) -> None:
    """Within a batch or later: once a newer version or a delete is applied, a replay brings nothing old back."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    queue.insert("I:id", "id=1&v=1", "public.t")
    queue.insert("U:id", "id=1&v=x", "public.t")
    queue.insert("U:id", "id=2&v=y", "public.t")
    if ticks == 2:
        queue.tick()
        assert drain(conf) == []
        assert sql("SELECT * FROM public.t") == [(1, 1)]
    queue.insert(newer, "id=1&v=3", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["superseded", "waiting"]
    sql("ALTER TABLE public.t ALTER v TYPE text")
    assert replay(conf) == []
    assert states(sql) == ["superseded", "replayed"]
    assert sql("SELECT id, v FROM public.t ORDER BY 1") == [*rows, (2, "y")]


def test_replays_keep_the_order_of_a_row(start: Start, queue: Queue, sql: Ask) -> None:
    """Failed versions of a row, of several batches, are replayed oldest first; one alone supersedes its elders."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    for version in "abc":
        queue.insert("U:id", f"id=1&v={version}", "public.t")
        queue.insert("U:id", f"id=2&v={version}", "public.t")
        queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["waiting"] * 6
    ids = [row[0] for row in sql("SELECT id FROM headrace.failed_event ORDER BY id")]
    sql("ALTER TABLE public.t ALTER v TYPE text")
    assert replay(conf, ids[2]) == []  # row 1, version b
    assert sql("SELECT * FROM public.t") == [(1, "b")]
    assert states(sql) == ["superseded", "waiting", "replayed", "waiting", "waiting", "waiting"]
    assert replay(conf) == []
    assert sql("SELECT * FROM public.t ORDER BY 1") == [(1, "c"), (2, "c")]


def test_a_failed_insert_of_a_deleted_row_stays_away(start: Start, queue: Queue, sql: Ask) -> None:
    """A row that failed, then was deleted and came again, is as it came again."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    for type_, value in (("I:id", "x"), ("D:id", "x"), ("I:id", "5")):
        queue.insert(type_, f"id=1&v={value}", "public.t")
        queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["superseded"]
    assert replay(conf) == []
    assert sql("SELECT * FROM public.t") == [(1, 5)]


def test_a_failed_version_is_superseded_in_any_time_zone(start: Start, queue: Queue, sql: Ask) -> None:
    """A key that is an instant is the same one, whatever zone its producers have."""
    conf = start(partition=NONE, on_new_column="error")
    sql("CREATE TABLE public.t (k timestamptz PRIMARY KEY, v text)")
    queue.insert("U:k", "k=2026-01-01+05%3a30%3a00%2b05%3a30&v=a&new=1", "public.t")
    queue.tick()
    assert drain(conf) == []
    queue.insert("U:k", "k=2026-01-01+05%3a30%3a00%2b05%3a30&v=b", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["superseded"]


# Keys with more than one text


EQUAL_KEYS = {
    "timestamptz": ("2026-01-01 00:00:00+00", "2026-01-01 05:30:00+05:30"),
    "timestamptz(0)": ("2026-01-01 00:00:00+00", "2025-12-31 19:00:00-05"),
    "moment": ("2026-01-01 00:00:00+00", "2026-01-01 05:30:00+05:30"),
    "numeric": ("1.0", "1.00"),
    "float8": ("0", "-0"),
    "interval": ("24:00:00", "1 day"),
    "int[]": ("{1}", "{1}"),
}


@pytest.mark.parametrize("type_", EQUAL_KEYS)
def test_equal_keys_are_one_row(start: Start, queue: Queue, sql: Ask, type_: str) -> None:
    """What the server finds equal is one row, though the texts differ, in a batch and over batches."""
    conf = start(partition=NONE)
    sql("CREATE DOMAIN public.moment AS timestamptz")
    sql(f"CREATE TABLE public.t (k {type_}, v text)")
    first, second = EQUAL_KEYS[type_]
    for type_of_event, key, value in (("I:k", first, "a"), ("U:k", second, "b")):
        escaped = "".join(c if c.isalnum() else f"%{ord(c):02x}" for c in key)
        queue.insert(type_of_event, f"k={escaped}&v={value}", "public.t")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v FROM public.t") == [("b",)]


# What is no event of ours, or no good one


@pytest.mark.parametrize("policy", ["error", "ignore"])
def test_unknown_events(start: Start, queue: Queue, sql: Ask, policy: str) -> None:
    """Events of other producers fail by name, or are left out; those around them are applied."""
    conf = start(mode="keep_all", partition=NONE, on_unknown=policy)
    sql("CREATE TABLE public.t (id int)")
    queue.insert("I:id", "id=1", "public.t")
    for type_, extra1 in (
        ("my.event", "public.t"),
        ("", "public.t"),
        ("X:id", "public.t"),
        ("I:id", None),
        ("{}", None),
    ):
        queue.insert(type_, "id=9", extra1)
    queue.insert("I:id", "id=2", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT id FROM public.t ORDER BY 1") == [(1,), (2,)]
    errors = failures(sql)
    assert len(errors) == (5 if policy == "error" else 0)
    assert all(error.startswith("unknown event: ") for error in errors)


@pytest.mark.parametrize("flavour", ["c", "plpgsql"])
def test_sqltriga_s_events_are_not_run(
    request: pytest.FixtureRequest,
    dsn: str,
    sql: Ask,
    make_queue: Callable[..., Queue],
    dispatch_conf: Conf,
    flavour: str,
) -> None:
    """The SQL that the real trigger writes is named and kept, and touches nothing."""
    source = request.getfixturevalue("c_pgq_dsn" if flavour == "c" else "pgq_dsn")
    queue = make_queue(source)
    conf = dispatch_conf(dsn, source_dsn=source, partition=NONE)
    positions.register(conf, "cube")
    queue.logged("public.t", "id int PRIMARY KEY, v text", kind="sqltriga")
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'); UPDATE public.t SET v = 'b'; DELETE FROM public.t")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT count(*) FROM public.t") == [(0,)]
    errors = failures(sql)
    assert len(errors) == 3
    assert all("with SQL in it, as sqltriga and logtriga write" in error for error in errors)


@pytest.mark.parametrize("flavour", ["c", "plpgsql"])
def test_jsontriga_s_events_are_applied(
    request: pytest.FixtureRequest,
    dsn: str,
    sql: Ask,
    make_queue: Callable[..., Queue],
    dispatch_conf: Conf,
    flavour: str,
) -> None:
    """The real trigger's rows arrive as the source has them: NULL, hostile texts, instants, booleans, truncates."""
    source = request.getfixturevalue("c_pgq_dsn" if flavour == "c" else "pgq_dsn")
    queue = make_queue(source)
    conf = dispatch_conf(dsn, source_dsn=source, partition=NONE, on_truncate="delete")
    positions.register(conf, "cube")
    columns = 'id bigint PRIMARY KEY, "T v" text, b boolean, n numeric, at timestamptz, d date, j jsonb, a text[]'
    for table in ('public."Od.d"', "public.emptied"):
        queue.logged(table, columns, kind="jsontriga", truncate=True)
        sql(f"CREATE TABLE {table} ({columns})")
        queue.ask("SET timezone = 'Asia/Kolkata'; SET datestyle = 'German'")
        queue.ask(
            f"INSERT INTO {table} VALUES (9007199254740993, %s, true, 1.10, '2026-11-21 22:18:22.1+00',"
            " '2026-11-03', %s, %s),"
            " (2, NULL, NULL, 'NaN', 'infinity', '-infinity', NULL, '{}'), (3, '', false, 0, NULL, NULL, '{}', NULL)",
            'q"\\\n\té😀&%', '{"a": [null, 1.50]}', ["a,b", 'c"d'],
        )  # fmt: skip
        queue.ask(f"UPDATE {table} SET n = n + 1; DELETE FROM {table} WHERE id = 3")
    queue.ask("TRUNCATE public.emptied")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    queue.ask("SET timezone = 'UTC'; SET datestyle = 'ISO'")
    there = 'SELECT t::text FROM public."Od.d" t ORDER BY id'
    assert sql(there) == queue.ask(there)
    assert len(sql(there)) == 2
    assert sql("SELECT count(*) FROM public.emptied") == [(0,)]


@pytest.mark.parametrize("mode", ["keep_all", "keep_latest"])
def test_data_that_no_trigger_writes(start: Start, queue: Queue, sql: Ask, mode: str) -> None:
    """Wrong escapes, character 0, two values in a pair, bytes that are not UTF-8: they fail; the rest is applied."""
    conf = start(mode=mode, partition=NONE)
    sql("CREATE TABLE public.t (id int, v text)")
    bad = ("v=%zz", "v=%4", "v=%", "v=a%00b", "v=a=b=c", "v=%ff", "v=%c3", "v=%ed%a0%80", "v=\x01&=x")
    for number, text in enumerate(bad):
        queue.insert("I:id", f"id={number}&{text}", "public.t")
        queue.insert("I:id", f"id=1{number}&v=good", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT ev_data FROM headrace.failed_event ORDER BY id") == [
        (f"id={number}&{text}",) for number, text in enumerate(bad)
    ]
    assert sql("SELECT count(*) FROM public.t WHERE v = 'good'") == [(len(bad),)]
    assert sql("SELECT count(*) FROM public.t") == [(len(bad),)]


@pytest.mark.parametrize("mode", ["keep_all", "keep_latest"])
def test_keys_that_cannot_be(start: Start, queue: Queue, sql: Ask, mode: str) -> None:
    """A key that is NULL, missing, wrong for its type or has a character 0 fails alone where keys matter."""
    conf = start(mode=mode, partition=NONE, on_delete="ignore" if mode == "keep_all" else "delete")
    sql("CREATE TABLE public.t (id text, v text)")
    for type_, data in (
        ("U:id", "id&v=a"),
        ("U:id", "v=a"),
        ("U:id", "id=%00&v=a"),
        ("D:id", "id=%00"),
        ("U:id", "id=1&v=b"),
    ):
        queue.insert(type_, data, "public.t")
    queue.tick()
    assert drain(conf) == []
    assert len(failures(sql)) == (4 if mode == "keep_latest" else 2)
    assert sql("SELECT id, v FROM public.t WHERE v = 'b'") == [("1", "b")]
    assert sql("SELECT count(*) FROM public.t") == [(1 if mode == "keep_latest" else 2,)]


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "SQL, MDY", "Postgres, DMY"])
def test_dates_of_other_styles_are_never_another_day(start: Start, queue: Queue, sql: Ask, style: str) -> None:
    """3 November written by a session with another DateStyle fails, as a value, as a key and as a partition's field."""
    conf = start(
        mode="keep_latest",
        tables={"public.value": {"partition": NONE}, "public.key": {"partition": NONE}},
        partition={"by": "field:d"},
    )
    for table, key in (("value", "id"), ("key", "d"), ("field", "id")):
        columns = f"id int, d date, at timestamptz, PRIMARY KEY ({key})"
        queue.logged(f"public.{table}", columns)
        sql(f"CREATE TABLE public.{table} ({columns})")
        queue.ask(f"INSERT INTO public.{table} VALUES (1, '2026-11-05', '2026-11-05 12:00+00')")
        queue.ask("SELECT set_config('datestyle', %s, false)", style)
        queue.ask(f"INSERT INTO public.{table} VALUES (2, DATE '2026-11-03', TIMESTAMPTZ '2026-11-03 12:00+00')")
        queue.ask("RESET datestyle")
    queue.tick()
    assert drain(conf) == []
    assert len(failures(sql)) == 3
    for table in ("value", "key", "field_2026_11_05"):
        assert sql(f"SELECT id, d::text FROM public.{table}") == [(1, "2026-11-05")]
    assert sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'field\\_2%%' AND relkind = 'r'") == [(1,)]


def test_a_megabyte_in_a_value_and_in_a_key(start: Start, queue: Queue, sql: Ask) -> None:
    """Values of a megabyte arrive as they are; a key too long for its index fails alone."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (id text PRIMARY KEY, v text)")
    queue.ask(
        "SELECT pgq.insert_event('q', 'I:id', 'id=1&v=' || repeat('x%0a%c3%a9', 150000), 'public.t', NULL, NULL, NULL)"
    )
    queue.ask(
        "SELECT pgq.insert_event('q', 'I:id', 'v=k&id=' || string_agg(md5(n::text), ''), 'public.t', NULL, NULL, NULL)"
        " FROM generate_series(1, 32000) n"
    )
    queue.insert("I:id", "id=2&v=b", "public.t")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT id, v = repeat(E'x\\né', 150000) OR v = 'b' FROM public.t ORDER BY 1") == [
        ("1", True),
        ("2", True),
    ]
    assert sql("SELECT left(sqlstate, 2), length(ev_data) FROM headrace.failed_event") == [("54", 1_024_007)]


# Hostile names


@pytest.mark.parametrize("layout", [NONE, {"kind": "like"}])
def test_hostile_names(start: Start, queue: Queue, sql: Ask, layout: dict[str, str]) -> None:
    """Tables and columns of any name, with keys of several such columns, arrive under these names."""
    conf = start(partition=layout)
    schema = "Mixed Case"
    queue.ask(f'CREATE SCHEMA "{schema}"')
    sql(f'CREATE SCHEMA "{schema}"')
    columns = [composed.Identifier(name) for name in HOSTILE_COLUMNS]
    typed = composed.SQL(", ").join(composed.SQL("{} text").format(column) for column in columns)
    key = composed.SQL(", PRIMARY KEY ({}, {})").format(columns[3], columns[1])
    queue.ask("SELECT 1")
    quoted = {name: composed.Identifier(schema, name).as_string(queue._conn) for name in NAMES}
    text, bare = ((typed + part).as_string(queue._conn) for part in (key, composed.SQL("")))
    for number, (name, table) in enumerate(quoted.items()):
        queue.logged(table, text)
        sql(f"CREATE TABLE {table} ({text if layout is NONE else bare})")
        statement = composed.SQL("INSERT INTO {} VALUES {}").format(
            composed.Identifier(schema, name),
            composed.Literal(tuple(f"{number}{column}" for column in HOSTILE_COLUMNS)),
        )
        queue.ask(statement)
    queue.tick()
    assert drain(conf) == failures(sql) == []
    [(day,)] = sql("SELECT to_char(tick_at, '_YYYY_MM_DD') FROM headrace.dispatch_position")
    for number, name in enumerate(NAMES):
        place = composed.Identifier(schema, name if layout is NONE else name + day).as_string(queue._conn)
        assert sql(f"SELECT * FROM {place}") == [tuple(f"{number}{column}" for column in HOSTILE_COLUMNS)]


# Another encoding


def test_a_source_in_latin1(
    c_servers: Servers, dsn: str, sql: Ask, make_queue: Callable[..., Queue], dispatch_conf: Conf
) -> None:
    """Names, keys and values of a LATIN1 database arrive as its sessions read them, from both triggers."""
    name = "latin_source"
    with closing(psycopg2.connect(c_servers.postgres.superuser_dsn())) as admin, admin.cursor() as cursor:
        admin.autocommit = True
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        source = c_servers.postgres.superuser_dsn(name)
        try:
            with closing(psycopg2.connect(source)) as conn, conn.cursor() as at:
                at.execute("CREATE EXTENSION pgq")
                conn.commit()
            queue = make_queue(source + "?client_encoding=UTF8")
            conf = dispatch_conf(dsn, source_dsn=source, partition=NONE)
            positions.register(conf, "cube")
            for kind in ("logutriga", "jsontriga"):
                columns = '"schlüssel" text PRIMARY KEY, v text'
                queue.logged(f'public."tä_{kind}"', columns, kind=kind)
                sql(f'CREATE TABLE public."tä_{kind}" ({columns})')
                queue.ask(f"INSERT INTO public.\"tä_{kind}\" VALUES ('ÿ', 'õäöü ×'), ('ß', 'a')")
                queue.ask(f"DELETE FROM public.\"tä_{kind}\" WHERE v = 'a'")
            queue.tick()
            assert drain(conf) == failures(sql) == []
            for kind in ("logutriga", "jsontriga"):
                assert sql(f'SELECT * FROM public."tä_{kind}"') == [("ÿ", "õäöü ×")]
            queue.close()
        finally:
            database.close_all()
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
