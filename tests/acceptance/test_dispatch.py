"""Dispatch from outside: what real triggers write into real PgQ is, at the target, what the source had."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql as composed

from tests.conftest import SHARED, Servers
from tests.integration.dispatch import conftest as pgq
from tests.integration.dispatch.conftest import Queue, drain, run
from workers.dispatch import positions
from workers.settings import Settings

c_pgq_dsn, c_pgq_template, c_servers = pgq.c_pgq_dsn, pgq.c_pgq_template, pgq.c_servers
pgq_dsn, pgq_template, pl_only_sql = pgq.pgq_dsn, pgq.pgq_template, pgq.pl_only_sql
pgque_dsn, pgque_template = pgq.pgque_dsn, pgq.pgque_template
dispatch_conf, make_queue = pgq.dispatch_conf, pgq.make_queue

VECTORS = SHARED / "fixtures/pgq/logutriga_vectors.json"
NAMES = [one["name"] for one in json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]] if VECTORS.exists() else []
# The recorded truth is the rows as a session with other settings reads them, or a table's without its trigger.
UNTRUE = {
    "12_session_gucs": "its sessions write dates in other styles",
    "29_magic_columns": "the columns _pgq_ev_* are no part of its events",
    "31_replication_role": "its changes in role replica and local make no events",
}
NONE = {"kind": "none"}
KEPT = {"mode": "keep_all", "on_delete": "tombstone", "on_truncate": "ignore", "meta_columns": ["_op", "_ev_id"]}
LATEST = {"mode": "keep_latest", "on_truncate": "delete"}


# Scenario 1: what the trigger wrote comes out as the row was


@dataclass(frozen=True)
class Flavour:
    """PgQ in one form: a superuser's database, and its schema."""

    dsn: str
    schema: str
    is_c: bool


@pytest.fixture
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """PgQ as the parameter says: c, plpgsql or pgque."""
    fixtures = {"c": ("c_pgq_dsn", "pgq"), "plpgsql": ("pgq_dsn", "pgq"), "pgque": ("pgque_dsn", "pgque")}
    name, schema = fixtures[request.param]
    servers: Servers = request.getfixturevalue("c_servers" if request.param == "c" else "servers")
    database = request.getfixturevalue(name).rpartition("/")[2]
    # Vectors make domains and schemas of their own, and the copies must be the login's.
    return Flavour(servers.postgres.superuser_dsn(database), schema, request.param == "c")


def texts(queue: Queue, table: composed.Composable, *, order: str | None = None) -> list[dict[str, str | None]]:
    """A table's rows, every value as text."""
    found = queue.ask(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        table.as_string(queue._conn),
    )
    names = [row[0] for row in found]
    # A cast of char(n) takes its padding away; concat() has what its output function gives.
    columns = composed.SQL(", ").join(
        composed.SQL("CASE WHEN num_nonnulls({0}) = 1 THEN concat({0}) END").format(composed.Identifier(name))
        for name in names
    )
    statement = composed.SQL("SELECT {} FROM {}").format(columns, table)
    if order is not None:
        statement += composed.SQL(" ORDER BY {}").format(composed.Identifier(order))
    return [dict(zip(names, row, strict=True)) for row in queue.ask(statement)]


def sorted_rows(rows: list[dict[str, str | None]]) -> list[str]:
    """Rows in an order of their own."""
    return sorted(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)


CASES = [("c", name) for name in NAMES] + [(kind, name) for kind in ("plpgsql", "pgque") for name in NAMES[:4]]


@pytest.mark.parametrize(("flavour", "name"), CASES, indirect=["flavour"])
def test_vector(
    flavour: Flavour,
    name: str,
    shared: Path,
    make_queue: Callable[..., Queue],
    dispatch_conf: Callable[..., Settings],
) -> None:
    """After every step of a recorded vector, keep_latest has the truth, and keep_all one row more for each event."""
    if name in UNTRUE:
        pytest.skip(UNTRUE[name])
    text = (shared / "fixtures/pgq/logutriga_vectors.json").read_text(encoding="utf-8")
    [vector] = [one for one in json.loads(text)["vectors"] if one["name"] == name]
    queue = make_queue(flavour.dsn, flavour.schema, "v")
    queue.ask("CREATE SCHEMA v; CREATE SCHEMA kept; CREATE SCHEMA latest")
    for statement in vector["ddl"]:
        queue.ask(statement.replace("pgq.", f"{flavour.schema}."))
    renamed = {event["ev_extra1"] for step in vector["steps"] for event in step["events"]}
    triggered = queue.ask(
        "SELECT DISTINCT n.nspname, c.relname, c.oid FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE NOT tgisinternal AND n.nspname <> 'headrace' AND n.nspname NOT LIKE 'pgq%%' AND NOT c.relispartition"
        " ORDER BY 2 DESC"
    )
    tables: dict[str, dict[str, dict[str, Any]]] = {"kept": {}, "latest": {}}
    for schema, table, _oid in triggered:
        # A table may be called otherwise later.
        names = {f"{schema}.{table}", *(renamed if len(triggered) == 1 else ())}
        for copy, more in (("kept", ""), ("latest", "INCLUDING INDEXES")):
            queue.ask(
                composed.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS " + more + ")").format(
                    composed.Identifier(copy, table), composed.Identifier(schema, table)
                )
            )
            tables[copy] |= {one: {"target": f"{copy}.{table}"} for one in names}
        queue.ask(
            composed.SQL("ALTER TABLE {} ADD _op text, ADD _ev_id bigint").format(composed.Identifier("kept", table))
        )
    common = {
        "queue": "v", "source": "src", "target": "dst", "pgq_schema": flavour.schema, "partition": NONE, "max_failed": 0
    }  # fmt: skip
    consumers = {"kept": {**common, **KEPT, "tables": tables["kept"]}, "latest": {**common, **LATEST}}
    consumers["latest"]["tables"] = tables["latest"]
    conf = dispatch_conf(flavour.dsn, room={"consumers": consumers})
    for consumer in consumers:
        positions.register(conf, consumer)
    # The recorded truth of two tables is the second one's.
    _schema, table, oid = min(triggered, key=lambda row: str(row[1]) != "chi")
    before: list[dict[str, str | None]] = []
    count = 0
    for step in vector["steps"]:
        queue.ask(step["sql"])
        queue.tick()
        assert drain(conf, "kept", "latest") == []
        if not step["events"]:
            continue
        source = texts(queue, composed.SQL(queue.ask("SELECT %s::regclass::text", oid)[0][0]))
        # Of a table that is emptied by DELETE the recording has the rows that were there.
        assert not source or not flavour.is_c or sorted_rows(source) == sorted_rows(step["truth"]), step["sql"]
        latest = texts(queue, composed.Identifier("latest", table))
        latest = [{key: row[key] for key in row if not source or key in source[0]} for row in latest]
        assert sorted_rows(latest) == sorted_rows(source), step["sql"]
        kept = texts(queue, composed.Identifier("kept", table), order="_ev_id")
        for row in kept[count:]:
            there = before if row["_op"] == "D" else source
            assert {key: row[key] for key in there[0]} in there, step["sql"]
        count, before = len(kept), source
    written = [event for step in vector["steps"] for event in step["events"]]
    own = [one for one in written if one["ev_type"] != "R" and (table != "chi" or one["ev_extra1"] == "v.chi")]
    assert count == len(own)


# Scenario 2: many versions, one truth


def test_five_versions_over_three_ticks_are_one_row(
    dsn: str,
    c_pgq_dsn: str,
    make_queue: Callable[..., Queue],
    dispatch_conf: Callable[..., Settings],
) -> None:
    """Inserted, updated twice, deleted and inserted again, over three ticks: one row, as the source has it."""
    queue = make_queue(c_pgq_dsn)
    conf = dispatch_conf(dsn, source_dsn=c_pgq_dsn, partition=NONE)
    positions.register(conf, "cube")
    queue.logged("public.t", "id int PRIMARY KEY, v text")
    run(dsn, "CREATE TABLE public.t (id int PRIMARY KEY, v text)")
    queue.ask("INSERT INTO public.t VALUES (1, 'a'); UPDATE public.t SET v = 'b'")
    queue.tick()
    queue.ask("UPDATE public.t SET v = 'c'; DELETE FROM public.t")
    queue.tick()
    queue.ask("INSERT INTO public.t VALUES (1, 'd')")
    queue.tick()
    assert drain(conf) == []
    assert run(dsn, "SELECT * FROM public.t") == queue.ask("SELECT * FROM public.t") == [(1, "d")]
    assert run(dsn, "SELECT batches, events FROM headrace.dispatch_position") == [(3, 5)]


HOSTILE = (
    "",
    "NULL",
    "null",
    "\\N",
    "\\.",
    "a\tb\nc\rd",
    "a&b=c%d+e f",
    "%00%zz",
    "é😀\u2028",
    "'; --",
    '{"x",y}',
    "\x01\x7f",
)
ZONES = ("UTC", "America/New_York", "Asia/Kolkata")
TABLES = {
    "a": ("id int PRIMARY KEY, v text, at timestamptz", ("id",)),
    "b": ("v text, k1 text, k2 int, at timestamptz, PRIMARY KEY (k2, k1)", ("k2", "k1")),
    "c": ("k timestamptz PRIMARY KEY, v text, at timestamptz", ("k",)),
}
INSTANTS = ("2026-03-28 23:30:00+00", "2026-11-01 05:30:00.5+00", "infinity")
DAYS = ("2026-03-28 23:59:59.999999+00", "2026-03-29 00:00:00+00", "2026-03-30 12:00:00+00")

texts_of_rows = st.one_of(st.none(), st.sampled_from(HOSTILE))
keys = {
    "a": st.tuples(st.integers(0, 3).map(str)),
    "b": st.tuples(st.integers(0, 1).map(str), st.sampled_from((HOSTILE[0], HOSTILE[5], HOSTILE[6], HOSTILE[10]))),
    "c": st.tuples(st.sampled_from(INSTANTS)),
}
changes = st.sampled_from(sorted(TABLES)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        keys[name],
        st.sampled_from(("put", "put", "delete")),
        texts_of_rows,
        st.sampled_from(DAYS),
        st.sampled_from(ZONES),
    )
)
histories = st.lists(st.lists(changes, min_size=1, max_size=12), min_size=1, max_size=3)

BY_DAY = {"by": "field:at"}
CONSUMERS: dict[str, dict[str, Any]] = {
    "latest": {"partition": NONE},
    "everything": {"partition": NONE, **KEPT},
    "plain": {"mode": "plain", "partition": NONE},
    "daily": {"partition": {"kind": "like", **BY_DAY}},
    "native": {"partition": {"kind": "native", **BY_DAY}},
    "moving": {"mode": "plain", "partition": {"kind": "native", **BY_DAY}},
    "hopping": {"mode": "plain", "partition": {"kind": "like", **BY_DAY}},
}


@dataclass
class Histories:
    """A source with three tables, and consumers of one queue, each with copies in a schema of its own."""

    queue: Queue
    target: str
    conf: Settings

    def change(self, changes: list[tuple[Any, ...]]) -> list[tuple[str, tuple[str, ...], str, str | None]]:
        """Make changes at the source, each in a session of its zone; the versions that they come to."""
        made = []
        for name, key, what, value, at, zone in changes:
            columns = TABLES[name][1]
            match = composed.SQL(" AND ").join(
                composed.SQL("{} = %s").format(composed.Identifier(one)) for one in columns
            )
            table = composed.Identifier("public", name)
            self.queue.ask("SELECT set_config('TimeZone', %s, false)", zone)
            found = self.queue.ask(composed.SQL("SELECT v FROM {} WHERE {}").format(table, match), *key)
            if what == "delete":
                self.queue.ask(composed.SQL("DELETE FROM {} WHERE {}").format(table, match), *key)
                made += [(name, key, "D", row[0]) for row in found]
            elif found:
                statement = composed.SQL("UPDATE {} SET v = %s, at = %s WHERE {}").format(table, match)
                self.queue.ask(statement, value, at, *key)
                made.append((name, key, "U", value))
            else:
                statement = composed.SQL("INSERT INTO {} ({}, v, at) VALUES ({})").format(
                    table,
                    composed.SQL(", ").join(map(composed.Identifier, columns)),
                    composed.SQL(", ").join([composed.Placeholder()] * (len(columns) + 2)),
                )
                self.queue.ask(statement, *key, value, at)
                made.append((name, key, "I", value))
        return made

    def empty(self) -> None:
        """Begin anew, without an event."""
        self.queue.ask("TRUNCATE public.a, public.b, public.c")
        for consumer in CONSUMERS:
            for table in self.copies(consumer):
                run(self.target, composed.SQL("TRUNCATE {}").format(composed.Identifier(consumer, table)))

    def copies(self, consumer: str) -> list[str]:
        """The tables in a consumer's schema, but for PostgreSQL's own partitions."""
        statement = """
            SELECT relname::text FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p')
               AND NOT relispartition ORDER BY 1
        """
        return [row[0] for row in run(self.target, statement, consumer)]


@pytest.fixture
def histories_world(
    dsn: str,
    c_pgq_dsn: str,
    make_queue: Callable[..., Queue],
    dispatch_conf: Callable[..., Settings],
) -> Histories:
    """Every mode, fed by one queue."""
    queue = make_queue(c_pgq_dsn)
    consumers = {}
    for name, layout in CONSUMERS.items():
        tables = {f"public.{table}": {"target": f"{name}.{table}"} for table in TABLES}
        consumers[name] = {"source": "src", "target": "dst", "queue": "q", "max_failed": 0, "tables": tables, **layout}
        run(dsn, f"CREATE SCHEMA {name}")
        for table, (columns, key) in TABLES.items():
            native = layout["partition"]["kind"] == "native"
            # Only `latest` has the server watch over its keys; the others must keep them by themselves.
            own = (
                columns
                if name == "latest"
                else columns.replace(f", PRIMARY KEY ({', '.join(key)})", "").replace(" PRIMARY KEY", "")
            )
            run(dsn, f"CREATE TABLE {name}.{table} ({own}) {'PARTITION BY RANGE (at)' if native else ''}")
    for table in TABLES:
        run(dsn, f"ALTER TABLE everything.{table} ADD _op text, ADD _ev_id bigint")
    conf = dispatch_conf(dsn, source_dsn=c_pgq_dsn, room={"consumers": consumers})
    for table, (columns, _key) in TABLES.items():
        queue.logged(f"public.{table}", columns)
    for name in CONSUMERS:
        positions.register(conf, name)
    return Histories(queue, dsn, conf)


def happened(
    world: Histories, history: list[list[tuple[Any, ...]]], *consumers: str, one_by_one: bool = False
) -> list[tuple[str, tuple[str, ...], str, str | None]]:
    """Let a history happen, each list of changes before a tick of its own, and apply it; the versions of the rows."""
    world.empty()
    versions: list[tuple[str, tuple[str, ...], str, str | None]] = []
    for changes_of_tick in history:
        versions += world.change(changes_of_tick)
        world.queue.tick()
    conf = world.conf
    if one_by_one:
        # Below what settings allow: each event is loaded alone.
        conf = conf.model_copy(update={"dispatch": conf.dispatch.model_copy(update={"chunk_bytes": 1})})
    assert drain(conf, *consumers) == []
    return versions


MOVING = ("moving", "hopping")
QUIET = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=12)
@given(history=histories, one_by_one=st.booleans())
def test_any_history(histories_world: Histories, history: list[list[tuple[Any, ...]]], one_by_one: bool) -> None:
    """However rows change: keep_latest and plain equal the source, keep_all has every version, each day its last."""
    world = histories_world
    consumers = [name for name in CONSUMERS if name not in MOVING]
    versions = happened(world, history, *consumers, one_by_one=one_by_one)
    for table, (_columns, key) in TABLES.items():
        own = ", ".join((*key, "v", "at"))
        source = sorted(world.queue.ask(f"SELECT {own} FROM public.{table}"), key=repr)
        for consumer in ("latest", "plain"):
            assert sorted(run(world.target, f"SELECT {own} FROM {consumer}.{table}"), key=repr) == source, consumer
        everything = run(world.target, f"SELECT _op, v FROM everything.{table} ORDER BY _ev_id")
        assert everything == [(op, value) for name, _key, op, value in versions if name == table]
        days = world.copies("daily")
        by_day = run(
            world.target,
            f"""
            SELECT * FROM (
                SELECT DISTINCT ON ({", ".join(key)}, at::date) to_char(at, 'YYYY_MM_DD') AS day, {own}, _op
                  FROM everything.{table} ORDER BY {", ".join(key)}, at::date, _ev_id DESC) AS last
             WHERE _op <> 'D'
        """,
        )
        expected = sorted((row[:-1] for row in by_day), key=repr)
        daily = [
            (one.removeprefix(f"{table}_"), *row)
            for one in days
            if one.startswith(f"{table}_")
            for row in run(world.target, f"SELECT {own} FROM daily.{one}")
        ]
        assert sorted(daily, key=repr) == expected
        natives = run(world.target, f"SELECT to_char(at, 'YYYY_MM_DD'), {own} FROM native.{table}")
        assert sorted(natives, key=repr) == expected


THERE_AND_BACK = [[("a", ("0",), "put", None, DAYS[day], "UTC") for day in (1, 0, 1)]]


@settings(QUIET, max_examples=6, phases=(Phase.explicit, Phase.generate))
@given(history=histories)
@example(history=THERE_AND_BACK)
def test_rows_that_move(histories_world: Histories, history: list[list[tuple[Any, ...]]]) -> None:
    """plain, cut by a field that changes: each row is in one partition, that of its last version."""
    world = histories_world
    happened(world, history, *MOVING)
    for table, (_columns, key) in TABLES.items():
        own = ", ".join((*key, "v", "at"))
        source = sorted(world.queue.ask(f"SELECT {own} FROM public.{table}"), key=repr)
        assert sorted(run(world.target, f"SELECT {own} FROM moving.{table}"), key=repr) == source
        copies = [one for one in world.copies("hopping") if one[0] == table]
        found = [row for one in copies for row in run(world.target, f"SELECT {own} FROM hopping.{one}")]
        assert sorted(found, key=repr) == source
