"""Bloat estimated on real tables, against what VACUUM FULL really gains."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from tests.conftest import Servers
from workers import database, migrations
from workers.database import Connection
from workers.repack import bloat_catalog
from workers.repack.choice import Estimate, choose
from workers.repack_settings import Thresholds
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer
from workers.settings import Settings
from workers.targets import Target

Ask = Callable[..., list[tuple[Any, ...]]]

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
EXTENSION = "Stat Tools"  # a schema whose name needs quotes
STILL = "WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false)"
# Heap, TOAST, and btree indexes of every temper: unique, of few values, of an expression, of part, with nulls.
TABLES = f"""
CREATE TABLE app.plain (id integer PRIMARY KEY, device text, at timestamptz, value float8, word text) {STILL};
CREATE INDEX few ON app.plain (device);
CREATE INDEX expression ON app.plain (lower(word), at);
CREATE INDEX part ON app.plain (value) WHERE id % 4 = 0;
INSERT INTO app.plain SELECT g, 'device' || g % 50, '2027-01-01'::timestamptz + g * interval '1 minute',
       CASE WHEN g % 3 > 0 THEN g END, md5(g::text) FROM generate_series(1, 40000) g;
CREATE TABLE app."Wide" (id integer PRIMARY KEY, "The Text" text, number integer) {STILL};
ALTER TABLE app."Wide" ALTER "The Text" SET STORAGE EXTERNAL;
INSERT INTO app."Wide" SELECT g, repeat('x', 3000 + 7 * (g % 1000)), g FROM generate_series(1, 3000) g;
CREATE TABLE app.narrow (a integer, b integer) {STILL};
INSERT INTO app.narrow SELECT g, g FROM generate_series(1, 40000) g;
CREATE TABLE app.half (id integer PRIMARY KEY WITH (fillfactor = 50), word text)
  WITH (fillfactor = 50, autovacuum_enabled = false);
INSERT INTO app.half SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
"""
# Bloat by changed and by deleted rows, and by nothing but longer rows that went to other pages.
CHANGES = """
UPDATE app.plain SET id = -id WHERE id % 3 = 0;
DELETE FROM app.plain WHERE abs(id) % 5 = 0;
UPDATE app."Wide" SET "The Text" = 'y' || substr("The Text", 2) WHERE id % 2 = 0;
DELETE FROM app."Wide" WHERE id % 3 = 0;
DELETE FROM app.narrow WHERE a % 10 > 0;
UPDATE app.half SET word = md5(word), id = -id;
"""
PARTS = {"table": "table_bloat_bytes", "indexes": "index_bloat_bytes", "toast": "toast_bloat_bytes"}


def ask_at(dsn: str) -> Iterator[Ask]:
    """Ask a database; what was counted of rows is reported before each statement."""
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    with closing(conn), conn.cursor() as cursor:

        def ask(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute(statement, parameters or None)
            found = list(cursor.fetchall()) if cursor.description else []
            cursor.execute("SELECT pg_stat_force_next_flush()")
            return found

        yield ask


@pytest.fixture
def ask(empty_dsn: str) -> Iterator[Ask]:
    """Ask a database of this test's own as its owner, who is no superuser."""
    yield from ask_at(empty_dsn)


@pytest.fixture
def conn(empty_dsn: str) -> Iterator[Connection]:
    """A session as the room has it, which commits each statement."""
    with database.connection(target(empty_dsn), purpose="tests", autocommit=True) as borrowed:
        yield borrowed


@pytest.fixture(scope="module")
def server_15() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15."""
    if not DEBIAN_15.is_dir():
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL 15 is missing in CI: apt-get install postgresql-15")
        pytest.skip("PostgreSQL 15 is not here")
    with tempfile.TemporaryDirectory(prefix="headrace-bloat-") as folder, pytest.MonkeyPatch.context() as patch:
        server = PostgresServer(Path(folder))
        patch.setenv(POSTGRES_VARIABLE, str(DEBIAN_15))
        server.start()
        patch.undo()
        try:
            yield server
        finally:
            server.stop()


def target(dsn: str) -> Target:
    """A database as the settings name it."""
    return Settings(control={"dsn": dsn}).target()


def make(ask: Ask, statements: str) -> None:
    """Run statements one by one, so that each has its own statistics."""
    for statement in statements.split(";\n"):
        if statement.strip():
            ask(statement)


def by_name(found: list[Estimate]) -> dict[str, Estimate]:
    """Estimates by the tables' names."""
    return {one.table: one for one in found}


def bytes_of(ask: Ask) -> dict[tuple[str, str], int]:
    """What each table of `app` has now, part by part."""
    rows = ask(
        "SELECT relname, pg_relation_size(oid), pg_indexes_size(oid),"
        " coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0)"
        " FROM pg_class WHERE relkind = 'r' AND relnamespace = 'app'::regnamespace"
    )
    return {(name, part): size for name, *sizes in rows for part, size in zip(PARTS, sizes, strict=True)}


def wrong(before: dict[tuple[str, str], int], after: dict[tuple[str, str], int], found: list[Estimate]) -> list[str]:
    """Where an estimate is more than 15 points off of what was gained."""
    problems, names = [], by_name(found)
    for (table, part), there in before.items():
        if there < 300_000:
            continue  # a page more or less is too much of it
        estimated = 100 * getattr(names[table], PARTS[part]) / there
        real = 100 * (there - after[table, part]) / there
        if abs(estimated - real) > 15:
            problems.append(f"{table}, {part}: {estimated:.0f} % estimated, {real:.0f} % gained of {there}")
    return problems


def churned(ask: Ask) -> None:
    """Tables of which much was changed and deleted, analyzed before that."""
    ask("CREATE SCHEMA app")
    make(ask, TABLES)
    ask("ANALYZE")
    make(ask, CHANGES)


def pgstattuple(servers: Servers, dsn: str, *, may: str) -> None:
    """Install the extension; the plain role may call it if `may` is GRANT, not if it is REVOKE."""
    name = parse_dsn(dsn)["dbname"]
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(name))) as conn, conn.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA IF NOT EXISTS "{EXTENSION}"')
        cursor.execute(f'GRANT USAGE ON SCHEMA "{EXTENSION}" TO PUBLIC')
        cursor.execute(f'CREATE EXTENSION IF NOT EXISTS pgstattuple SCHEMA "{EXTENSION}"')
        for function in ("pgstattuple_approx", "pgstatindex"):
            to = "TO" if may == "GRANT" else "FROM"
            cursor.execute(f'{may} EXECUTE ON FUNCTION "{EXTENSION}".{function}(regclass) {to} headrace')
        conn.commit()


def test_estimates_are_near_what_a_rewrite_gains(servers: Servers, empty_dsn: str, ask: Ask, conn: Connection) -> None:
    """Heap, indexes and TOAST within 15 points: by statistics, without reading tables, by pgstattuple, vacuumed."""
    churned(ask)
    before = bytes_of(ask)
    pgstattuple(servers, empty_dsn, may="REVOKE")
    statistics = bloat_catalog.estimates(conn, ["app"], [])
    quick = bloat_catalog.estimates(conn, ["app"], [], exact=False)
    pgstattuple(servers, empty_dsn, may="GRANT")
    measured = bloat_catalog.estimates(conn, ["app"], [])
    ask("VACUUM")
    vacuumed = bytes_of(ask)
    measured_again = bloat_catalog.estimates(conn, ["app"], [])
    from_catalogs = bloat_catalog.estimates(conn, ["app"], [], exact=False)
    ask("VACUUM FULL")
    after = bytes_of(ask)

    assert wrong(before, after, statistics) == []
    assert wrong(before, after, quick) == []
    assert wrong(before, after, measured) == []
    assert wrong(vacuumed, after, measured_again) == []
    assert wrong(vacuumed, after, from_catalogs) == []
    methods = [{one.method for one in found} for found in (statistics, quick, measured, measured_again, from_catalogs)]
    assert methods == [{"statistics"}] * 2 + [{"pgstattuple"}] * 2 + [{"statistics"}]
    assert by_name(measured)["plain"].rows == by_name(statistics)["plain"].rows == 32_000
    assert "rows changed since the last ANALYZE" in by_name(statistics)["narrow"].note


def test_fresh_tables_have_no_bloat(servers: Servers, empty_dsn: str, ask: Ask, conn: Connection) -> None:
    """Below 5 % of table, TOAST and indexes, whichever way it is looked at, and a fillfactor is no bloat."""
    ask("CREATE SCHEMA app")
    make(ask, TABLES)
    ask("REINDEX SCHEMA app")
    ask("ANALYZE")
    looks = [bloat_catalog.estimates(conn, ["app"], [], exact=exact) for exact in (True, False)]
    pgstattuple(servers, empty_dsn, may="GRANT")
    looks.append(bloat_catalog.estimates(conn, ["app"], []))
    found = [
        (one.method, one.table, part, getattr(one, f"{part}_bloat_bytes") / size)
        for look in looks
        for one in look
        for part, size in (("table", one.table_bytes), ("index", one.index_bytes), ("toast", one.toast_bytes))
        if size > 300_000
    ]
    assert len(found) == 3 * 6
    assert [row for row in found if row[3] >= 0.05] == []
    assert [one.note for one in looks[0]] == [""] * 4


def test_the_same_holds_on_postgresql_15(server_15: PostgresServer) -> None:
    """The catalog queries, the statistics' way and the sample are right there, too."""
    for ask in ask_at(server_15.dsn()):
        churned(ask)
        before = bytes_of(ask)
        with database.connection(target(server_15.dsn()), purpose="tests", autocommit=True) as conn:
            found = bloat_catalog.estimates(conn, ["app"], [])
            with closing(psycopg2.connect(server_15.superuser_dsn("headrace"))) as superuser:
                superuser.cursor().execute("CREATE EXTENSION pgstattuple")
                superuser.cursor().execute(
                    "GRANT EXECUTE ON FUNCTION public.pgstattuple_approx(regclass), public.pgstatindex(regclass)"
                    " TO headrace"
                )
                superuser.commit()
            measured = bloat_catalog.estimates(conn, ["app"], [])
        ask("VACUUM FULL")
        after = bytes_of(ask)
        assert wrong(before, after, found) == []
        assert wrong(before, after, measured) == []
        assert {one.method for one in measured} == {"pgstattuple"}
    database.close_all()


def test_nothing_is_guessed_of_a_table_that_was_never_analyzed(
    servers: Servers, empty_dsn: str, ask: Ask, conn: Connection
) -> None:
    """Its bloat is 0 with the reason; pgstattuple needs no statistics."""
    ask(f"CREATE TABLE public.t (id integer PRIMARY KEY, word text) {STILL}")
    ask("INSERT INTO public.t SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
    ask("DELETE FROM public.t WHERE id % 10 > 0")
    [found] = bloat_catalog.estimates(conn, [], ["public.t"])
    assert (found.bloat_bytes, found.unknown, found.note) == (0, "not analyzed", "no statistics: run ANALYZE")
    assert found.bytes == ask("SELECT pg_total_relation_size('public.t')")[0][0]
    assert found.last_analyze is None
    ask("ANALYZE public.t")
    ask("ALTER TABLE public.t ADD more text DEFAULT 'some'")
    [found] = bloat_catalog.estimates(conn, [], ["public.t"])
    assert (found.bloat_bytes, found.note) == (0, "no statistics of more: run ANALYZE")
    assert found.last_analyze is not None and found.last_analyze.utcoffset() == timedelta(0)
    pgstattuple(servers, empty_dsn, may="GRANT")
    [found] = bloat_catalog.estimates(conn, [], ["public.t"])
    assert (found.method, found.unknown, found.rows) == ("pgstattuple", "", 2000)
    assert found.bloat_percent > 60


def test_counters_that_began_anew_are_not_believed(
    servers: Servers, empty_dsn: str, ask: Ask, conn: Connection
) -> None:
    """After a crash the server has counted nothing: what VACUUM and ANALYZE noted is scaled, or nothing is said."""
    churned(ask)
    ask("ANALYZE app.plain")
    ask('VACUUM ANALYZE app."Wide"')
    ask("CREATE TABLE app.never (a integer PRIMARY KEY, b text)" + STILL)
    ask("ALTER TABLE app.never ALTER b SET STORAGE EXTERNAL")
    ask("INSERT INTO app.never SELECT g, repeat('x', 20000) FROM generate_series(1, 100) g")
    ask("ANALYZE app.never")
    counted = by_name(bloat_catalog.estimates(conn, ["app"], []))
    name = parse_dsn(empty_dsn)["dbname"]
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(name))) as superuser:
        superuser.cursor().execute("SELECT pg_stat_reset()")
        superuser.commit()
    found = by_name(bloat_catalog.estimates(conn, ["app"], []))
    for table in ("plain", "Wide"):
        assert counted[table].bloat_percent > 30
        assert found[table].bloat_percent == pytest.approx(counted[table].bloat_percent, abs=3)
    assert (found["never"].toast_bloat_bytes, found["never"].note) == (0, "TOAST not estimated: VACUUM counts it")


def test_hidden_statistics_are_named(servers: Servers, empty_dsn: str, ask: Ask, conn: Connection) -> None:
    """A table of somebody else, and one with forced row security: the sizes are known, and why no more is."""
    ask("CREATE SCHEMA app")
    make(ask, TABLES)
    ask("ANALYZE")
    ask("ALTER TABLE app.plain ENABLE ROW LEVEL SECURITY")
    ask("ALTER TABLE app.plain FORCE ROW LEVEL SECURITY")
    name = parse_dsn(empty_dsn)["dbname"]
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(name))) as superuser:
        superuser.cursor().execute('ALTER TABLE app."Wide" OWNER TO CURRENT_USER')
        superuser.commit()
    found = by_name(bloat_catalog.estimates(conn, ["app"], []))
    assert {table for table, one in found.items() if one.unknown == "statistics not visible"} == {"plain", "Wide"}
    assert found["Wide"].toast_bytes > 0 and "hidden from this login" in found["Wide"].note


def test_a_locked_table_is_noted_and_nobody_is_waited_for(empty_dsn: str, ask: Ask, conn: Connection) -> None:
    """Its sizes are those that were noted last, since asking would wait; the others are looked at."""
    churned(ask)
    ask("VACUUM")  # which notes the sizes of indexes and TOAST, too
    sizes = by_name(bloat_catalog.estimates(conn, ["app"], []))["plain"]
    with closing(psycopg2.connect(empty_dsn)) as holder:
        holder.cursor().execute("LOCK TABLE app.plain")
        found = by_name(bloat_catalog.estimates(conn, ["app"], []))
        assert (found["plain"].unknown, found["plain"].note) == ("locked", "locked by somebody: not looked at")
        assert found["plain"].bytes == pytest.approx(sizes.bytes, rel=0.05)
        assert found["narrow"].table_bloat_bytes > 0
        assert choose([found["plain"]], Thresholds())[0].text == "locked"


def test_names_and_patterns_choose_tables(ask: Ask, conn: Connection) -> None:
    """Schemas exactly or tables by pattern, less what is skipped; a partitioned table stands for its leaves."""
    make(
        ask,
        """
        CREATE SCHEMA hist; CREATE SCHEMA "Hist.x"; CREATE SCHEMA headrace; CREATE SCHEMA headrace_new_7;
        CREATE SCHEMA headrace_log_7; CREATE SCHEMA headrace_old_7;
        CREATE TABLE headrace.t (a int); CREATE TABLE headrace_new_7.t (a int); CREATE TABLE headrace_log_7.t (a int);
        CREATE TABLE headrace_old_7.t (a int); CREATE TEMP TABLE t (a int);
        CREATE TABLE hist.a1 (a int); CREATE TABLE hist.a2 (a int); CREATE UNLOGGED TABLE hist."a[1]" (a int);
        CREATE TABLE "Hist.x"."a b" (a int); CREATE TABLE public.other (a int);
        CREATE VIEW hist.v AS SELECT 1 AS a; CREATE MATERIALIZED VIEW hist.m AS SELECT 1 AS a;
        CREATE TABLE public.events (a int) PARTITION BY LIST (a);
        CREATE TABLE public.e1 PARTITION OF public.events FOR VALUES IN (1);
        CREATE TABLE hist.e2 PARTITION OF public.events FOR VALUES IN (2) PARTITION BY LIST (a);
        CREATE TABLE hist.e3 PARTITION OF hist.e2 FOR VALUES IN (2)
        """.replace("; ", ";\n"),
    )

    def names(schemas: list[str], tables: list[str], skipped: tuple[str, ...] = ()) -> list[str]:
        found = bloat_catalog.estimates(conn, schemas, tables, skipped, exact=False)
        return [f"{one.schema}.{one.table}" for one in found]

    everything = ["Hist.x.a b", "hist.a1", "hist.a2", "hist.a[1]", "hist.e3", "public.e1", "public.other"]
    assert names([], []) == everything
    assert names(["hist"], []) == ["hist.a1", "hist.a2", "hist.a[1]", "hist.e3"]
    assert names(["his"], ["public.o*"]) == ["public.other"]
    assert names(["Hist.x"], ["hist.a?"]) == ["Hist.x.a b", "hist.a1", "hist.a2"]
    assert names([], ["hist.a[1]"]) == ["hist.a[1]"]
    assert names([], ["public.events"]) == ["hist.e3", "public.e1"]
    assert names([], [], ("hist.a*", "hist.e2")) == ["Hist.x.a b", "public.e1", "public.other"]
    assert bloat_catalog.unknown(conn, ["hist", "his"], ["public.events", "hist.v", "hist.A1", "public.o*"]) == [
        "his",
        "hist.v",
        "hist.A1",
    ]


def test_notes_say_what_is_not_in_the_numbers(ask: Ask, conn: Connection) -> None:
    """Dropped columns, and indexes that cannot be estimated; an emptied table is all bloat."""
    ask("CREATE TABLE public.t (a integer, b bigint, c text, d integer[])" + STILL)
    ask("CREATE INDEX arrays ON public.t USING gin (d)")
    ask("CREATE INDEX plain ON public.t (a)")
    ask("INSERT INTO public.t SELECT g, g, g, ARRAY[g] FROM generate_series(1, 10000) g")
    ask("ALTER TABLE public.t DROP b, DROP c")
    ask("DELETE FROM public.t")
    ask("ANALYZE public.t")
    [found] = bloat_catalog.estimates(conn, [], ["public.t"])
    assert found.note == (
        "2 dropped columns may still take 8 bytes per row, and those whose width varies; "
        "indexes not estimated: arrays (gin)"
    )
    heap, index = ask("SELECT pg_relation_size('public.t'), pg_relation_size('public.plain')")[0]
    assert (found.rows, found.table_bloat_bytes, found.index_bloat_bytes) == (0, heap, index - 8192)


def test_what_was_decided_and_gained_is_kept(dsn: str) -> None:
    """The newest look at each table, the gain of those that were rewritten, and no more than is asked to be kept."""
    with database.connection(target(dsn), purpose="tests", autocommit=False) as control:
        migrations.migrate(control, "repack")
        [(repack,)] = _run(
            control,
            "INSERT INTO headrace.repack (schema_name, table_name, table_oid, engine, goal, options)"
            " VALUES ('app', 'a', 1, 'shadow', 'swap', '{}') RETURNING id",
        )
        small = Estimate("app", "b", 2, "pgstattuple", 100, 50, 0, 80)
        large = Estimate("app", "a", 1, "statistics", 10**9, 10**8, 10**7, 10**8, 10**6, 10**5)
        first = bloat_catalog.remember(control, large, choose([large], Thresholds(min_bloat_percent=5))[0], repack)
        bloat_catalog.remember(control, small, choose([small], Thresholds())[0], None)
        assert bloat_catalog.gained(control, repack, 90_000_000)
        assert not bloat_catalog.gained(control, repack + 1, 1)
        again = bloat_catalog.remember(control, Estimate("app", "a", 1, "statistics", 9, 0, 0), "below 30 %")

        found = bloat_catalog.latest(control, 10)
        assert [(one.table, one.verdict) for one in found] == [("b", "below min_bloat_bytes"), ("a", "below 30 %")]
        assert found[1].id == again and found[1].looked_at.utcoffset() == timedelta(0)
        assert [one.table for one in bloat_catalog.latest(control, 1)] == ["b"]
        [done] = bloat_catalog.rewritten(control)
        assert (done.id, done.repack, done.verdict) == (first, repack, "chosen: 9 % of 1.1 GB")
        assert (done.toast_bloat_bytes, done.gained_bytes) == (100_000, 90_000_000)

        _run(
            control,
            "UPDATE headrace.repack_candidate SET looked_at = looked_at - interval '1 day' WHERE id = %s",
            first,
        )
        assert bloat_catalog.forget(control, timedelta(hours=25)) == 0
        assert bloat_catalog.forget(control, timedelta(hours=23)) == 1
        assert len(bloat_catalog.latest(control, 10)) == 2


def _run(conn: Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with conn.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall()) if cursor.description else []
