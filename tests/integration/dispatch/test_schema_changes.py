"""Source tables that change while their events are on their way: nothing stops, and every outcome is a known one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Servers
from tests.integration.dispatch.conftest import (
    NONE,
    Ask,
    Queue,
    Start,
    drain,
    failures,
    replay,
    run,
    states,
)

COLUMNS = """
SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def between(queue: Queue, ticks: int) -> None:
    """A tick, where the change is not to come in the middle of a batch."""
    if ticks == 2:
        queue.tick()


def prepared(queue: Queue, sql: Ask, columns: str = "id int PRIMARY KEY, v text") -> None:
    """A source table with two rows in the queue, and a destination."""
    queue.logged("public.t", columns)
    sql(f"CREATE TABLE public.t ({columns})")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'), (2, 'a')")


@pytest.mark.parametrize("ticks", [1, 2])
def test_added_columns_are_added(start: Start, queue: Queue, sql: Ask, ticks: int) -> None:
    """`add`: with the source's type and precision, nullable; rows from before have none."""
    conf = start(partition=NONE)
    prepared(queue, sql)
    between(queue, ticks)
    queue.ask('ALTER TABLE public.t ADD n numeric(10,2), ADD "At é" timestamptz NOT NULL DEFAULT now(), ADD a int[]')
    queue.ask("UPDATE public.t SET n = 1.5, a = '{1,NULL}' WHERE id = 1")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql(COLUMNS, "public.t") == queue.ask(COLUMNS, "public.t")
    assert sql("SELECT * FROM public.t WHERE id = 1") == queue.ask("SELECT * FROM public.t WHERE id = 1")
    assert sql("SELECT * FROM public.t WHERE id = 2") == [(2, "a", None, None, None)]


def test_a_type_that_is_not_there_becomes_text(start: Start, queue: Queue, sql: Ask) -> None:
    """A column of the source's own type arrives as text; so does one that the source has dropped meanwhile."""
    conf = start(partition=NONE)
    prepared(queue, sql)
    queue.ask("CREATE TYPE public.mood AS ENUM ('so so', 'fine')")
    queue.ask("ALTER TABLE public.t ADD m public.mood, ADD short int")
    queue.ask("UPDATE public.t SET m = 'so so', short = 5")
    queue.ask("ALTER TABLE public.t DROP short")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql(COLUMNS, "public.t") == [("id", "integer"), ("v", "text"), ("m", "text"), ("short", "text")]
    assert sql("SELECT DISTINCT m, short FROM public.t") == [("so so", "5")]


@pytest.mark.parametrize("ticks", [1, 2])
@pytest.mark.parametrize("policy", ["add", "extra", "ignore", "error"])
def test_new_columns_by_policy(start: Start, queue: Queue, sql: Ask, policy: str, ticks: int) -> None:
    """A new column is added, goes into the jsonb column `extra`, is left out, or its events fail until it is there."""
    conf = start(partition=NONE, on_new_column=policy)
    prepared(queue, sql)
    between(queue, ticks)
    queue.ask("ALTER TABLE public.t ADD n int; UPDATE public.t SET v = 'b', n = 5 WHERE id = 1")
    queue.ask("UPDATE public.t SET v = 'b' WHERE id = 2")
    queue.tick()
    assert drain(conf) == []
    rows: dict[str, list[Any]] = {
        "add": [(1, "b", 5), (2, "b", None)],
        "extra": [(1, "b", {"n": "5"}), (2, "b", None)],
        "ignore": [(1, "b"), (2, "b")],
        "error": [(1, "a"), (2, "a")],
    }
    assert sql("SELECT * FROM public.t ORDER BY 1") == rows[policy]
    assert states(sql) == (["waiting"] * 2 if policy == "error" else [])
    if policy == "error":
        assert all("public.t has no column 'n'; add it there" in error for error in failures(sql))
        sql("ALTER TABLE public.t ADD n int")
        assert replay(conf) == []
        assert sql("SELECT * FROM public.t ORDER BY 1") == rows["add"]


@pytest.mark.parametrize("ticks", [1, 2])
def test_dropped_and_renamed_columns(start: Start, queue: Queue, sql: Ask, ticks: int) -> None:
    """A dropped column stays, with its default in new versions; a renamed one is a new one beside the old one."""
    conf = start(mode="keep_all", partition=NONE, meta_columns=["_ev_id"])
    prepared(queue, sql, "id int PRIMARY KEY, v text, gone int DEFAULT 7, old text DEFAULT 'o'")
    sql("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
    between(queue, ticks)
    queue.ask("ALTER TABLE public.t DROP gone; UPDATE public.t SET v = 'b' WHERE id = 1")
    between(queue, ticks)
    queue.ask("ALTER TABLE public.t RENAME old TO new; UPDATE public.t SET v = 'c' WHERE id = 1")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT v, gone, old, new FROM public.t WHERE id = 1 ORDER BY _ev_id") == [
        ("a", 7, "o", None),
        # What an event does not say is PostgreSQL's to fill in.
        ("b", 7, "o", None),
        ("c", 7, "o", "o"),
    ]


@pytest.mark.parametrize("ticks", [1, 2])
def test_a_changed_type(start: Start, queue: Queue, sql: Ask, ticks: int) -> None:
    """Values that still fit arrive; the others fail alone, until the column has the new type, too."""
    conf = start(partition=NONE)
    queue.logged("public.t", "id int PRIMARY KEY, v int")
    sql("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    queue.ask("INSERT INTO public.t VALUES (1, 1), (2, 2)")
    between(queue, ticks)
    queue.ask("ALTER TABLE public.t ALTER v TYPE text")
    queue.ask("UPDATE public.t SET v = 'words' WHERE id = 1; UPDATE public.t SET v = '22' WHERE id = 2")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT id, v::text FROM public.t WHERE id = 2") == [(2, "22")]
    assert states(sql) == ["waiting"]
    sql("ALTER TABLE public.t ALTER v TYPE text")
    assert replay(conf) == []
    assert sql("SELECT * FROM public.t ORDER BY 1") == [(1, "words"), (2, "22")]


@pytest.mark.parametrize("kind", ["native", "like"])
def test_new_columns_reach_the_parent_and_tomorrow(start: Start, queue: Queue, sql: Ask, kind: str) -> None:
    """A column that comes in the middle of a day is in that day's partition, and in those made later."""
    conf = start(partition={"kind": kind, "by": "field:d", "premake": 0})
    queue.logged("public.t", "id int PRIMARY KEY, d date")
    sql(f"CREATE TABLE public.t (id int, d date) {'PARTITION BY RANGE (d)' if kind == 'native' else ''}")
    queue.ask("INSERT INTO public.t VALUES (1, '2026-11-21')")
    queue.tick()
    assert drain(conf) == []
    queue.ask("ALTER TABLE public.t ADD n int")
    queue.ask("INSERT INTO public.t VALUES (2, '2026-11-21', 2), (3, '2026-11-22', 3), (4, '2026-11-21', 4)")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    names = [f"public.t_{'p' if kind == 'native' else ''}2026_11_{day}" for day in (21, 22)]
    assert [sql(f"SELECT id, n FROM {name} ORDER BY 1") for name in names] == [[(1, None), (2, 2), (4, 4)], [(3, 3)]]
    assert ("n", "integer") in sql(COLUMNS, "public.t")


def test_a_login_that_does_not_own_the_destination(
    start: Start,
    servers: Servers,
    dsn: str,
    queue: Queue,
    sql: Ask,
) -> None:
    """It may not add the column: those events fail and say so, the others go on; a replay works once it is there."""
    conf = start(mode="keep_all", partition=NONE)
    prepared(queue, sql)
    superuser = servers.postgres.superuser_dsn(dsn.rpartition("/")[2])
    run(superuser, "ALTER TABLE public.t DROP CONSTRAINT t_pkey; ALTER TABLE public.t OWNER TO postgres")
    run(superuser, "GRANT SELECT, INSERT, DELETE ON public.t TO headrace")
    queue.ask("ALTER TABLE public.t ADD n int; UPDATE public.t SET n = 5 WHERE id = 1; ALTER TABLE public.t DROP n")
    queue.ask("UPDATE public.t SET v = 'b' WHERE id = 2")
    queue.tick()
    assert drain(conf) == []
    assert sql("SELECT * FROM public.t ORDER BY 1, 2") == [(1, "a"), (2, "a"), (2, "b")]
    [error] = failures(sql)
    assert "column 'n' cannot be added to public.t: must be owner" in error
    run(superuser, "ALTER TABLE public.t ADD n int")
    assert replay(conf) == []
    assert sql("SELECT v, n FROM public.t WHERE id = 1 ORDER BY n NULLS FIRST") == [("a", None), ("a", 5)]


@pytest.mark.parametrize("ticks", [2, 1])
@pytest.mark.parametrize(("old", "new"), [("id, n", "id"), ("id", "id, n")])
def test_a_changed_key(start: Start, queue: Queue, sql: Ask, old: str, new: str, ticks: int) -> None:
    """Events with the old key and with the new one are applied to the same rows, in one batch or in two."""
    conf = start(partition=NONE)
    queue.logged("public.t", f"id int, v text, n int, PRIMARY KEY ({old})")
    sql("CREATE TABLE public.t (id int, v text, n int)")
    queue.ask("INSERT INTO public.t VALUES (1, 'a', 1), (2, 'a', 1)")
    queue.tick()
    assert drain(conf) == []
    queue.ask("UPDATE public.t SET v = 'b'")
    between(queue, ticks)
    queue.ask(f"ALTER TABLE public.t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY ({new})")
    queue.ask("UPDATE public.t SET v = 'c'")
    queue.tick()
    assert drain(conf) == failures(sql) == []
    assert sql("SELECT * FROM public.t ORDER BY 1") == queue.ask("SELECT * FROM public.t ORDER BY 1")
