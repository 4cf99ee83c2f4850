"""What the events of a row come to: its newest version, in its place, whatever its key, its texts and its table."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus

import pytest

from tests.conftest import Servers, _admin, _drop
from tests.integration.dispatch.conftest import (
    NONE,
    Ask,
    Conf,
    Queue,
    Start,
    drain,
    external,
    failures,
    migrate,
    position,
    replay,
    run,
    states,
    tick_at,
)
from workers import database
from workers.dispatch import positions

KINDS = {"native": "PARTITION BY RANGE (d)", "like": ""}
REFUSE = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = TG_ARGV[1]; END $$
"""


def pair(queue: Queue, sql: Ask, columns: str, there: str | None = None) -> None:
    """A source table whose changes are logged, and its destination; `there`: with these columns."""
    queue.logged("public.t", columns)
    sql(f"CREATE TABLE public.t ({there or columns})")


# Several places


def by_day(queue: Queue, sql: Ask, columns: str) -> dict[str, Any]:
    """Two tables, `native` and `like`, whose destinations are cut by their day `d`; the settings of both."""
    tables = {}
    for kind in KINDS:
        queue.logged(f"public.{kind}", columns)
        sql(f"CREATE TABLE public.{kind} ({columns.replace('PRIMARY KEY', '')}) {KINDS[kind]}")
        tables[f"public.{kind}"] = {"partition": {"kind": kind, "by": "field:d", "premake": 0}}
    return tables


def days(sql: Ask, columns: str) -> dict[str, list[list[tuple[Any, ...]]]]:
    """What is there of 20 and 21 November, by kind of partition."""
    names = {kind: f"public.{kind}_{'p' if kind == 'native' else ''}2026_11_" for kind in KINDS}
    return {
        kind: [sql(f"SELECT {columns} FROM {name}{day} ORDER BY 1") for day in (20, 21)] for kind, name in names.items()
    }


def test_a_row_that_is_deleted_everywhere_may_come_back_elsewhere(start: Start, queue: Queue, sql: Ask) -> None:
    """delete_all: a row that comes back within the batch, on another day, is there, and on that day only."""
    conf = start(on_delete="delete_all", tables=by_day(queue, sql, "id int PRIMARY KEY, d date"))
    for kind in KINDS:
        queue.ask(f"INSERT INTO public.{kind} VALUES (9, '2026-11-21'), (1, '2026-11-20')")
        queue.ask(f"DELETE FROM public.{kind} WHERE id = 1; INSERT INTO public.{kind} VALUES (1, '2026-11-21')")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert days(sql, "id") == {kind: [[], [(1,), (9,)]] for kind in KINDS}


def test_each_day_keeps_the_latest_of_its_own_versions(start: Start, queue: Queue, sql: Ask) -> None:
    """keep_latest by a field: a row that goes to another day and back within a batch leaves a version on each."""
    conf = start(tables=by_day(queue, sql, "id int PRIMARY KEY, d date, v text"))
    for kind in KINDS:
        queue.ask(f"INSERT INTO public.{kind} VALUES (1, '2026-11-20', 'a'), (2, '2026-11-20', 'a')")
        queue.ask(f"UPDATE public.{kind} SET d = '2026-11-21', v = 'b'")
        queue.ask(f"UPDATE public.{kind} SET d = '2026-11-20', v = 'c'; DELETE FROM public.{kind} WHERE id = 2")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert days(sql, "id, v") == {kind: [[(1, "c")], [(1, "b"), (2, "b")]] for kind in KINDS}


def test_an_insert_and_its_delete_take_an_older_row_away(start: Start, queue: Queue, sql: Ask) -> None:
    """A row that the target began with is gone, too, once its source's has come and gone within one batch."""
    tables = {"public.keep_latest": {"mode": "keep_latest"}, "public.plain": {"mode": "plain"}}
    conf = start(partition=NONE, tables=tables)
    for table in tables:
        queue.logged(table, "id int PRIMARY KEY, v text")
        sql(f"CREATE TABLE {table} (id int PRIMARY KEY, v text)")
        sql(f"INSERT INTO {table} VALUES (1, 'from before'), (2, 'from before')")
        queue.ask(f"INSERT INTO {table} VALUES (1, 'a'); DELETE FROM {table}")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    left = {table: sql(f"SELECT * FROM {table}") for table in tables}
    assert left == {table: [(2, "from before")] for table in tables}


# Keys


KEYS = {
    "public.citext": ("A", "a"),
    "numeric": ("1.0", "1"),
    "bytea": ("\\001", "\\x01"),
    "int[]": ("{1,2}", "{1, 2}"),
    "char(3)": ("a", "a  "),
    "jsonb": ('{"a":1,"b":2}', '{"b": 2, "a": 1}'),
}


@pytest.mark.parametrize("ticks", [1, 3])
def test_a_key_of_many_texts_is_one_row(start: Start, queue: Queue, sql: Ask, ticks: int) -> None:
    """Inserted, updated and deleted under texts that the server finds equal, a row is one row, and gone at the end."""
    conf = start(partition=NONE)
    sql("CREATE EXTENSION citext SCHEMA public")
    for number, type_ in enumerate(KEYS):
        sql(f"CREATE TABLE public.t{number} (k {type_} PRIMARY KEY, v text)")
    for kind, which, left in (("I", 0, [("I",)]), ("U", 1, [("U",)]), ("D", 0, [])):
        for number, texts in enumerate(KEYS.values()):
            queue.insert(f"{kind}:k", f"k={quote_plus(texts[which])}&v={kind}", f"public.t{number}")
        if ticks == 3 or kind == "D":
            queue.tick()
            assert drain(conf) == failures(sql) == []
            found = {type_: sql(f"SELECT v FROM public.t{number}") for number, type_ in enumerate(KEYS)}
            assert found == dict.fromkeys(KEYS, left)


CUT = {"varchar(3)": ("abc", "abcdef"), "char(3)": ("abc", "abcdef"), "bit(3)": ("101", "10111")}


def test_a_key_that_is_too_long_is_not_cut(start: Start, queue: Queue, sql: Ask) -> None:
    """A row whose key does not fit fails alone, and its update and delete leave the row of the shorter key alone."""
    conf = start(partition=NONE)
    for number, (type_, (short, long)) in enumerate(CUT.items()):
        table = f"public.t{number}"
        sql(f"CREATE TABLE {table} (k {type_} PRIMARY KEY, v text)")
        queue.insert("I:k", f"k={short}&v=a", table)
        queue.insert("I:k", f"k={long}&v=b", table)
        queue.insert("U:k", f"k={long}&v=c", table)
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["waiting"] * 6
    for number, (_short, long) in enumerate(CUT.values()):
        queue.insert("D:k", f"k={long}&v=c", f"public.t{number}")
    queue.tick()
    assert drain(conf) == []
    found = {type_: sql(f"SELECT k::text, v FROM public.t{number}") for number, type_ in enumerate(CUT)}
    assert found == {type_: [(short, "a")] for type_, (short, _long) in CUT.items()}
    assert states(sql) == ["superseded"] * 6


def test_a_null_in_a_key_of_the_settings_fails_by_name(start: Start, queue: Queue, sql: Ask) -> None:
    """An insert, and a delete whose policy is `error`, of a row without its key fail alone; the batch goes on."""
    conf = start(partition=NONE, on_delete="error", tables={"public.t": {"key": ["k"]}})
    pair(queue, sql, "id int PRIMARY KEY, k int", there="id int, k int")
    queue.ask("INSERT INTO public.t VALUES (1, NULL), (2, 2); DELETE FROM public.t WHERE id = 1")
    queue.tick()
    assert drain(conf) == []
    null, policy = failures(sql)
    assert null == "the key column 'k' is NULL"
    assert policy.startswith("public.t: on_delete is `error`")
    assert sql("SELECT * FROM public.t") == [(2, 2)]


# Texts


def test_bare_backslashes_tabs_and_line_ends_arrive(start: Start, queue: Queue, sql: Ask) -> None:
    """What a producer may leave unescaped is text: `C:\\new` has no line end, and `\\N` is no NULL."""
    conf = start(partition=NONE)
    sql("CREATE TABLE public.t (k text PRIMARY KEY, v text, n int)")
    texts = ["C:\\new", "\\N", "a\n4\tb", "\\", "\\.", "plain"]
    for number in (1, 2):
        for text in texts:
            queue.insert("U:k", f"k={text}&v={text}&n={number}", "public.t")
        queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sorted(sql("SELECT * FROM public.t")) == sorted((text, text, 2) for text in texts)


def test_a_target_in_latin1(
    pgq_dsn: str, queue: Queue, sql: Ask, dsn: str, servers: Servers, dispatch_conf: Conf
) -> None:
    """What its encoding lacks fails alone and is kept as it came, or as a code; the rest arrives."""
    with _admin(servers) as cursor:
        cursor.execute(
            "CREATE DATABASE latin_target ENCODING 'LATIN1' TEMPLATE template0 LOCALE_PROVIDER libc"
            " LOCALE 'C' OWNER headrace"
        )
    target = servers.postgres.dsn("latin_target")
    try:
        migrate(target)
        conf = dispatch_conf(dsn, source_dsn=pgq_dsn, target_dsn=target, partition=NONE)
        positions.register(conf, "cube")
        queue.logged("public.t", "id text PRIMARY KEY, v text")
        run(target, "CREATE TABLE public.t (id text PRIMARY KEY, v text)")
        queue.ask("INSERT INTO public.t VALUES ('é', 'ü'), ('€', 'x'), ('a', '€'), ('b', 'x')")
        queue.insert("U:id", "id=c&v=€", "public.t")
        tick = queue.tick()
        assert drain(conf) == []
        assert run(target, "SELECT * FROM public.t ORDER BY v DESC") == [("é", "ü"), ("b", "x")]
        assert run(target, "SELECT ev_data, state FROM headrace.failed_event ORDER BY id") == [
            ("id=%e2%82%ac&v=x", "waiting"),
            ("id=a&v=%e2%82%ac", "waiting"),
            ("id=c&v=\\u20ac", "waiting"),
        ]
        assert run(target, "SELECT tick, state FROM headrace.dispatch_position") == [(tick, "active")]
    finally:
        database.close_all()
        _drop(servers, "latin_target")


# Dates at the end of the calendar


def test_a_key_at_the_end_of_the_calendar(start: Start, queue: Queue, sql: Ask) -> None:
    """9999-12-31 in New York is year 10000 in UTC: the row arrives, is updated and deleted like any other."""
    conf = start(partition=NONE)
    pair(queue, sql, "id int, until timestamptz, v text, PRIMARY KEY (id, until)")
    queue.ask("SET timezone = 'America/New_York'")
    queue.ask("INSERT INTO public.t SELECT n, '9999-12-31 23:59:59', 'a' FROM generate_series(1, 2) n")
    queue.tick()
    queue.ask("UPDATE public.t SET v = 'b'; DELETE FROM public.t WHERE id = 2")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT id, until = '9999-12-31 23:59:59-05', v FROM public.t") == [(1, True, "b")]


ENDS = {"native_instant": "timestamptz", "native": "timestamp", "like": "timestamp"}


def at_the_end(start: Start, queue: Queue, sql: Ask) -> list[str]:
    """Rows of 9999-12-31 and of today in tables cut by New York's days; why the former fail."""
    zone = {"by": "field:at", "timezone": "America/New_York", "premake": 0}
    conf = start(tables={f"public.{name}": {"partition": {"kind": name[:6], **zone}} for name in ENDS})
    queue.ask("SET timezone = 'America/New_York'")
    for name, type_ in ENDS.items():
        queue.logged(f"public.{name}", f"id int PRIMARY KEY, at {type_}")
        sql(f"CREATE TABLE public.{name} (id int, at {type_}) {KINDS[name[:6]].replace('(d)', '(at)')}")
        queue.ask(f"INSERT INTO public.{name} VALUES (1, '9999-12-31 23:59:59'), (2, '2026-11-22 12:00')")
    tick = queue.tick()
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    return failures(sql)


def test_a_partition_at_the_end_of_the_calendar(start: Start, queue: Queue, sql: Ask) -> None:
    """A day of 9999-12-31, the sentinel of many sites, costs its own event, and not the batch."""
    assert len(at_the_end(start, queue, sql)) == 3
    for name in ENDS:
        assert sql(f"SELECT id FROM public.{name}_{'p' if name[0] == 'n' else ''}2026_11_22") == [(2,)]


def test_the_end_of_the_calendar_is_named(start: Start, queue: Queue, sql: Ask) -> None:
    """The failed events' reason says which moment no partition can hold."""
    assert all("9999-12-31" in error for error in at_the_end(start, queue, sql))


# What the destination refuses


RAISED = {
    "P0001": "no",
    "ZX001": "a code of the site's own",
    "02000": "a code that is no error's",
    "XX000": "no",
    "23505": "not a duplicate",
    "23514": "looks like a partition constraint",
    "23503": "not a foreign key",
    "42P01": "not a missing table",
    "42703": "not a missing column",
    "0A000": "no",
}


def test_whatever_a_trigger_raises_costs_its_own_event(start: Start, queue: Queue, sql: Ask) -> None:
    """An error of the destination's trigger, also one that looks like another, fails its event; the others arrive."""
    conf = start(partition=NONE)
    sql(REFUSE)
    for code, message in RAISED.items():
        table = f'public."{code}"'
        queue.logged(table, "id int PRIMARY KEY, v int")
        sql(f"CREATE TABLE {table} (id int PRIMARY KEY, v int)")
        sql(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW WHEN (NEW.v < 0)"
            " EXECUTE FUNCTION public.refuse(%s, %s)", message, code,
        )  # fmt: skip
        queue.ask(f"INSERT INTO {table} VALUES (1, 1), (2, -1), (3, 1)")
    tick = queue.tick()
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    failed = sql("SELECT sqlstate, error FROM headrace.failed_event WHERE key = '[\"2\"]' AND state = 'waiting'")
    assert dict(failed) == RAISED
    assert len(failed) == len(states(sql)) == len(RAISED)
    left = {code: sql(f'SELECT id FROM public."{code}" ORDER BY 1') for code in RAISED}
    assert left == {code: [(1,), (3,)] for code in RAISED}


def test_a_constraint_checked_at_the_commit_fails_its_event_before(start: Start, queue: Queue, sql: Ask) -> None:
    """A deferrable constraint trigger's refusal, however it begins, is one event's and not the commit's."""
    conf = start(partition=NONE)
    sql(REFUSE)
    for initially in ("deferred", "immediate"):
        queue.logged(f"public.{initially}", "id int PRIMARY KEY, v int")
        sql(f"CREATE TABLE public.{initially} (id int PRIMARY KEY, v int)")
        sql(
            f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON public.{initially} DEFERRABLE INITIALLY {initially}"
            " FOR EACH ROW WHEN (NEW.v < 0) EXECUTE FUNCTION public.refuse('no', 'P0001')"
        )
        queue.ask(f"INSERT INTO public.{initially} VALUES (1, 1), (2, -1), (3, 1)")
    tick = queue.tick()
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    assert failures(sql) == ["no", "no"]
    for initially in ("deferred", "immediate"):
        assert sql(f"SELECT id FROM public.{initially} ORDER BY 1") == [(1,), (3,)]
        sql(f"DROP TRIGGER refuse ON public.{initially}")
    assert replay(conf) == []
    assert sql("SELECT id FROM public.deferred ORDER BY 1") == [(1,), (2,), (3,)]


def test_rows_may_exchange_a_unique_value(start: Start, queue: Queue, sql: Ask) -> None:
    """Two rows that change places in a deferrable index arrive; a deferrable key does not let a row be there twice."""
    conf = start(partition=NONE)
    for table, deferred in (("t", ""), ("u", "DEFERRABLE INITIALLY DEFERRED")):
        queue.logged(f"public.{table}", "id int PRIMARY KEY, place int UNIQUE DEFERRABLE")
        sql(f"CREATE TABLE public.{table} (id int PRIMARY KEY {deferred}, place int UNIQUE DEFERRABLE)")
        queue.ask(f"INSERT INTO public.{table} VALUES (1, 1), (2, 2)")
    queue.tick()
    for table in "tu":
        queue.ask(f"UPDATE public.{table} SET place = 3 - place")
        queue.ask(f"DELETE FROM public.{table} WHERE id = 1; INSERT INTO public.{table} VALUES (1, 5)")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    for table in "tu":
        assert sql(f"SELECT * FROM public.{table} ORDER BY 1") == [(1, 5), (2, 1)]


# Rows that refer to others


REFERENCES = ("", " DEFERRABLE INITIALLY DEFERRED")


def family(queue: Queue, sql: Ask, references: str) -> None:
    """Parents and children, the destinations' with a foreign key."""
    for table, columns in (("parent", "id int PRIMARY KEY, v int"), ("child", "id int PRIMARY KEY, p int, v int")):
        queue.logged(f"public.{table}", columns)
    sql("CREATE TABLE public.parent (id int PRIMARY KEY, v int)")
    sql(
        f"CREATE TABLE public.child (id int PRIMARY KEY, p int REFERENCES public.parent{references},"
        " v int CHECK (v > 0))"
    )


@pytest.mark.parametrize("references", REFERENCES)
def test_a_child_may_come_before_its_parent(start: Start, queue: Queue, sql: Ask, references: str) -> None:
    """Within a batch a foreign key counts at the end: children of parents that come, or were, there arrive."""
    conf = start(partition=NONE)
    family(queue, sql, references)
    queue.ask("INSERT INTO public.child VALUES (1, 1, 1), (2, 9, 1); INSERT INTO public.parent VALUES (1, 1)")
    tick = queue.tick()
    assert drain(conf) == []
    assert position(sql) == (tick, "active")
    assert sql("SELECT id FROM public.child") == [(1,)]
    assert sql("SELECT sqlstate, key, state FROM headrace.failed_event") == [("23503", '["2"]', "waiting")]
    queue.ask("INSERT INTO public.parent VALUES (9, 1)")
    queue.tick()
    assert drain(conf) == replay(conf) == []
    assert sql("SELECT id FROM public.child ORDER BY 1") == [(1,), (2,)]


def test_a_child_that_is_tried_again_supersedes_nothing_newer(start: Start, queue: Queue, sql: Ask) -> None:
    """Its first version arrives once the parent is there; a newer one that failed for itself still waits."""
    conf = start(partition=NONE)
    family(queue, sql, "")
    first = queue.insert("I:id", "id=1&p=1&v=1", "public.child")
    newer = queue.insert("U:id", "id=1&p=1&v=-1", "public.child")
    assert first < newer
    queue.ask("INSERT INTO public.parent VALUES (1, 1)")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT ev_id, sqlstate, state FROM headrace.failed_event") == [(newer, "23514", "waiting")]
    assert sql("SELECT v FROM public.child") == [(1,)]


def test_an_update_of_a_childs_older_version_does_not_bring_it_back(start: Start, queue: Queue, sql: Ask) -> None:
    """A version whose parent was not there is not tried again once a newer one is applied, in the batch or after."""
    conf = start(partition=NONE)
    family(queue, sql, "")
    sql("INSERT INTO public.parent VALUES (2, 2)")
    queue.insert("I:id", "id=1&p=1&v=1", "public.child")
    queue.insert("I:id", "id=1&p=1&v=-1", "public.child")
    queue.insert("U:id", "id=1&p=2&v=2", "public.child")
    queue.ask("INSERT INTO public.parent VALUES (1, 1)")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT p, v FROM public.child") == [(2, 2)]
    assert replay(conf) == []
    assert sql("SELECT p, v FROM public.child") == [(2, 2)]


def test_a_parent_may_go_before_its_children(start: Start, queue: Queue, sql: Ask) -> None:
    """Deleted in one batch, whichever the loader comes to first, both are gone."""
    conf = start(partition=NONE)
    family(queue, sql, "")
    queue.ask("INSERT INTO public.parent VALUES (1, 1), (2, 2); INSERT INTO public.child VALUES (1, 1, 1)")
    queue.tick()
    assert drain(conf) == []
    queue.ask("INSERT INTO public.parent VALUES (3, 3); DELETE FROM public.child; DELETE FROM public.parent")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT count(*) FROM public.child") == sql("SELECT count(*) FROM public.parent") == [(0,)]


def test_three_generations_backwards(start: Start, queue: Queue, sql: Ask) -> None:
    """A source that defers its foreign keys may insert the youngest first: all of them arrive."""
    conf = start(partition=NONE)
    for number in (3, 2, 1):
        queue.logged(f"public.g{number}", "id int PRIMARY KEY, p int")
    sql("CREATE TABLE public.g1 (id int PRIMARY KEY, p int)")
    for number in (2, 3):
        sql(f"CREATE TABLE public.g{number} (id int PRIMARY KEY, p int REFERENCES public.g{number - 1})")
    for number in (3, 2, 1):
        queue.ask(f"INSERT INTO public.g{number} VALUES (1, 1)")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert [sql(f"SELECT id FROM public.g{number}") for number in (1, 2, 3)] == [[(1,)]] * 3


def test_a_parent_with_a_deferred_reference_may_change(start: Start, queue: Queue, sql: Ask) -> None:
    """The new version of a row that others refer to takes its place, where their constraint can wait."""
    conf = start(partition=NONE)
    family(queue, sql, " DEFERRABLE INITIALLY IMMEDIATE")
    queue.ask("INSERT INTO public.parent VALUES (1, 1); INSERT INTO public.child VALUES (1, 1, 1)")
    queue.tick()
    queue.ask("UPDATE public.parent SET v = 2")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v, (SELECT count(*) FROM public.child) FROM public.parent") == [(2, 1)]


# Truncates


def test_a_truncate_supersedes_what_failed_before_it(start: Start, queue: Queue, sql: Ask) -> None:
    """Failed events older than a TRUNCATE, of its batch or earlier, stay away; those after it wait."""
    conf = start(partition=NONE, on_truncate="delete_all")
    queue.logged("public.t", "id int PRIMARY KEY, v int", truncate=True)
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int CONSTRAINT positive CHECK (v > 0))")
    queue.ask("INSERT INTO public.t VALUES (1, -1)")
    queue.tick()
    queue.ask("INSERT INTO public.t VALUES (2, -2)")
    queue.ask("TRUNCATE public.t")
    queue.ask("INSERT INTO public.t VALUES (3, -3)")
    queue.tick()
    assert drain(conf) == []
    assert states(sql) == ["superseded", "superseded", "waiting"]
    sql("ALTER TABLE public.t DROP CONSTRAINT positive")
    assert replay(conf) == []
    assert sql("SELECT * FROM public.t") == [(3, -3)]


def test_a_truncate_of_one_leaf_fails_by_name(start: Start, queue: Queue, sql: Ask) -> None:
    """It says nothing of the other leaves' rows, which are in the same destination: nothing is emptied."""
    conf = start(partition=NONE, on_truncate="delete_all")
    queue.ask("CREATE TABLE public.t (id int, r int, PRIMARY KEY (id, r)) PARTITION BY LIST (r)")
    for number in (1, 2):
        queue.ask(f"CREATE TABLE public.t_{number} PARTITION OF public.t FOR VALUES IN ({number})")
    queue.trigger("public.t")
    queue.ask(
        "CREATE TRIGGER log_truncate AFTER TRUNCATE ON public.t_1 FOR EACH STATEMENT"
        " EXECUTE FUNCTION pgq.logutriga('q')"
    )
    sql("CREATE TABLE public.t (id int, r int, PRIMARY KEY (id, r))")
    queue.ask("INSERT INTO public.t VALUES (1, 1), (2, 2)")
    queue.ask("TRUNCATE public.t_1")
    queue.tick()
    assert drain(conf) == []
    [error] = failures(sql)
    assert error.startswith("public.t_1: a truncate of one part")
    assert sql("SELECT id FROM public.t ORDER BY 1") == [(1,), (2,)]


# Tables that are not what they were


def test_a_leaf_that_is_dropped_before_its_events_are_read(start: Start, queue: Queue, sql: Ask) -> None:
    """A leaf that `register` or a batch saw finds its root; of one that nobody saw the events fail by its name."""
    queue.ask("CREATE TABLE public.t (id int, r int, PRIMARY KEY (id, r)) PARTITION BY LIST (r)")
    queue.trigger("public.t")
    sql("CREATE TABLE public.t (id int, r int, PRIMARY KEY (id, r))")
    leaf = "CREATE TABLE public.leaf_{0} PARTITION OF public.t FOR VALUES IN ({0})"
    queue.ask(leaf.format(1))
    conf = start(partition=NONE)
    queue.ask(leaf.format(2))
    queue.ask("INSERT INTO public.t VALUES (1, 2)")
    queue.tick()
    assert drain(conf) == []
    queue.ask(leaf.format(3))
    for number in (1, 2, 3):
        queue.ask("INSERT INTO public.t VALUES (2, %s)", number)
        queue.ask(f"DROP TABLE public.leaf_{number}")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT * FROM public.t ORDER BY 1, 2") == [(1, 2), (2, 1), (2, 2)]
    [(destination, error)] = sql("SELECT destination, error FROM headrace.failed_event")
    assert destination == "public.leaf_3"
    assert "public.leaf_3" in error


def test_a_column_whose_new_name_is_too_long_fails_its_events(start: Start, queue: Queue, sql: Ask) -> None:
    """PostgreSQL would cut the name: the value is not lost without a word."""
    conf = start(partition=NONE, tables={"public.t": {"columns": {"v": "w" * 70}}})
    pair(queue, sql, "id int PRIMARY KEY, v int", there="id int PRIMARY KEY")
    queue.ask("INSERT INTO public.t VALUES (1, 5)")
    queue.tick()
    assert drain(conf) == []
    [error] = failures(sql)
    assert "is the name longer than 63 bytes?" in error
    assert sql("SELECT count(*) FROM public.t") == [(0,)]


def test_another_mode_on_the_same_day(start: Start, queue: Queue, sql: Ask) -> None:
    """From keep_latest to keep_all: versions that the day's primary key refuses wait, and arrive once it is gone."""
    conf = start()
    external(queue)
    pair(queue, sql, "id int PRIMARY KEY, v int", there="id int, v int")
    queue.ask("INSERT INTO public.t VALUES (1, 5)")
    tick_at(queue, "2026-11-21 12:00+00")
    assert drain(conf) == []
    conf = start(mode="keep_all")
    queue.ask("UPDATE public.t SET v = 6; INSERT INTO public.t VALUES (2, 6)")
    tick_at(queue, "2026-11-21 13:00+00")
    assert drain(conf) == []
    assert sql("SELECT sqlstate, state FROM headrace.failed_event") == [("23505", "waiting")]
    assert sql("SELECT * FROM public.t_2026_11_21 ORDER BY 1") == [(1, 5), (2, 6)]
    sql("ALTER TABLE public.t_2026_11_21 DROP CONSTRAINT t_2026_11_21_pkey")
    assert replay(conf) == []
    assert sql("SELECT * FROM public.t_2026_11_21 ORDER BY 1, 2") == [(1, 5), (1, 6), (2, 6)]
