"""Indexes are rebuilt beside their use, within bounds, and nothing of a broken attempt stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from workers import database
from workers.errors import Cancelled, PermanentFailure, RetryLater
from workers.repack import reindex_catalog, reindexing
from workers.repack.reindexing import Bounds
from workers.targets import Target

Ask = Callable[..., list[tuple[Any, ...]]]

PATIENT = Bounds(statement_seconds=60, lock_seconds=60)
HASTY = Bounds(statement_seconds=1, lock_seconds=1, attempts=1)
OLD_SNAPSHOT = ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1")  # of nobody's table
WAITS = "SELECT 1 FROM pg_locks WHERE pid = %s AND locktype = 'virtualxid' AND NOT granted"
LONG_NAME = 'An "index" of 100 %, ' + "é" * 21  # 63 bytes: PostgreSQL cuts it to put _ccnew behind


@pytest.fixture
def conn(dsn: str) -> Iterator[database.Connection]:
    """A session as a step has it."""
    with closing(database.connect(Target("db", dsn), purpose="tests", autocommit=True)) as opened:
        yield opened


@pytest.fixture
def table(sql: Ask) -> str:
    """A table with a bloated index and one that is not."""
    sql("CREATE SCHEMA app")
    sql("CREATE TABLE app.t (id int PRIMARY KEY, v int)")
    sql("INSERT INTO app.t SELECT n, n FROM generate_series(1, 20000) n")
    sql("CREATE INDEX t_v ON app.t (v)")
    for shift in range(3):
        sql("UPDATE app.t SET v = v + 20000 + %s", shift)
    return "t"


@contextmanager
def transaction(dsn: str, *statements: str) -> Iterator[int]:
    """A transaction of somebody else that stays open; his pid."""
    with closing(psycopg2.connect(dsn, application_name="a long report")) as other, other.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        yield other.info.backend_pid


def no_call(name: str, before: int, after: int) -> None:
    """Nothing is to be done."""
    raise AssertionError(f"{name} was rebuilt")


def invalid(sql: Ask) -> list[str]:
    """Names of invalid indexes."""
    rows = sql("SELECT relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE NOT indisvalid ORDER BY 1")
    return [row[0] for row in rows]


def definitions(sql: Ask) -> list[tuple[Any, ...]]:
    """What the indexes of the schema are: definition, state, comment."""
    return sql(
        "SELECT pg_get_indexdef(indexrelid), indisvalid, indisprimary, obj_description(indexrelid, 'pg_class')"
        "  FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'app'::regnamespace ORDER BY 1"
    )


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Begin something that will fail; its error comes into the list."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, problems


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that another session does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_bloated_index_shrinks_and_stays_what_it_is(conn: database.Connection, sql: Ask, table: str) -> None:
    """Every index is rebuilt, the largest first, each reported with its sizes, and none is another one afterwards."""
    sql("COMMENT ON INDEX app.t_v IS 'by value'")
    before, called = definitions(sql), []
    notes = reindexing.run(conn, "app", table, PATIENT, done=lambda *facts: called.append(facts))
    assert (notes, definitions(sql)) == ((), before)
    assert [name for name, _, _ in called] == ["t_v", "t_pkey"]
    assert all(after < size / 2 for _, size, after in called)
    sizes = sql("SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relname = 't_v'")
    assert sizes == [("t_v", called[0][2])]
    assert sql("SHOW statement_timeout") == [("0",)]


def test_a_plan_is_what_a_run_does(conn: database.Connection, sql: Ask, table: str) -> None:
    """The plan names each statement, its lock and its reason, and runs none; only the named indexes are rebuilt."""
    nodes = "SELECT relname, relfilenode FROM pg_class WHERE relname IN ('t_v', 't_pkey') ORDER BY 1"
    [pkey, v] = sql(nodes)
    [statement] = reindexing.plan(conn, "app", table, names=["t_v"]).statements
    assert statement.text == 'REINDEX (CONCURRENTLY) INDEX "app"."t_v"'
    assert statement.lock == "SHARE UPDATE EXCLUSIVE" and "waits" in statement.why
    assert sql(nodes) == [pkey, v]
    notes = reindexing.run(conn, "app", table, PATIENT, names=["t_v", "gone"], done=lambda *facts: None)
    assert notes == ("index gone is no more",)
    [new_pkey, new_v] = sql(nodes)
    assert new_pkey == pkey and new_v != v


def test_an_old_transaction_makes_it_give_up(dsn: str, conn: database.Connection, sql: Ask, table: str) -> None:
    """Whoever is in the way is named, the attempt ends within its bound, and leaves no invalid index."""
    before = definitions(sql)
    began = time.monotonic()
    with transaction(dsn, *OLD_SNAPSHOT) as pid:
        with pytest.raises(RetryLater, match=rf"app\.t_v .* 1 attempts: .*pid {pid} \(a long report\)"):
            reindexing.run(conn, "app", table, HASTY, names=["t_v"], done=no_call)
        assert time.monotonic() - began < 20
        assert (invalid(sql), definitions(sql)) == ([], before)
    assert sql("SELECT 1") == [(1,)]


def test_a_short_lock_timeout_ends_the_wait_for_transactions(
    dsn: str, conn: database.Connection, sql: Ask, table: str
) -> None:
    """The lock timeout counts for these waits, too, and each further attempt begins without a leftover."""
    bounds = Bounds(statement_seconds=60, lock_seconds=0.1, attempts=2, pause_seconds=0.01)
    with (
        transaction(dsn, *OLD_SNAPSHOT),
        pytest.raises(RetryLater, match=r"in 2 attempts: .*lock timeout"),
    ):
        reindexing.run(conn, "app", table, bounds, names=["t_v"], done=no_call)
    assert invalid(sql) == []


def test_who_uses_the_table_is_waited_for_first(dsn: str, conn: database.Connection, sql: Ask, table: str) -> None:
    """A transaction that reads or changes the table is named before anything is built, and nothing is left."""
    bounds = Bounds(statement_seconds=60, lock_seconds=0.2, attempts=1)
    for use in ("SELECT 1 FROM app.t LIMIT 1", "INSERT INTO app.t VALUES (-1, -1)"):
        with transaction(dsn, use) as pid:
            with pytest.raises(RetryLater, match=rf"its table is in use; open all the time: pid {pid} "):
                reindexing.run(conn, "app", table, bounds, names=["t_v"], done=no_call)
            assert invalid(sql) == []


def test_a_reader_who_comes_late_only_delays_the_end(dsn: str, conn: database.Connection, sql: Ask, table: str) -> None:
    """An index whose new version is in use is done, though its old one cannot go yet; the next run drops that."""
    called: list[str] = []
    rebuilding = conn.info.backend_pid
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND starts_with(query, %s) AND %s = ANY (pg_blocking_pids(pid))"
    )
    with transaction(dsn, *OLD_SNAPSHOT) as pid:
        thread, problems = in_thread(
            lambda: reindexing.run(
                conn, "app", table, PATIENT, names=["t_v"], done=lambda name, *sizes: called.append(name)
            )
        )
        until(lambda: sql(waits, rebuilding, "REINDEX", pid), "the rebuild waits for the old snapshot")
        with transaction(dsn, "SELECT 1 FROM app.t LIMIT 1") as reader:
            sql("SELECT pg_terminate_backend(%s)", pid)
            for statement in ("REINDEX", "DROP"):
                until(lambda: sql(waits, rebuilding, statement, reader), f"{statement} waits for the reader")  # noqa: B023
                sql("SELECT pg_cancel_backend(%s)", rebuilding)  # instead of waiting for its bound
            thread.join(20)
            [problem] = problems
            assert isinstance(problem, RetryLater) and "t_v_ccold" in str(problem), problem
            assert (called, invalid(sql)) == (["t_v"], ["t_v_ccold"])
    assert "DROP INDEX CONCURRENTLY" in reindexing.plan(conn, "app", table, names=[]).statements[0].text
    assert reindexing.run(conn, "app", table, PATIENT, names=[], done=no_call) == ()
    assert invalid(sql) == []


def test_what_a_killed_attempt_left_goes_with_the_next(
    dsn: str, conn: database.Connection, sql: Ask, table: str
) -> None:
    """A backend that dies in the middle leaves an invalid index; the next run knows it even by its cut name."""
    assert len(LONG_NAME.encode()) == 63
    sql(f'ALTER INDEX app.t_v RENAME TO "{LONG_NAME.replace(chr(34), chr(34) * 2)}"'.replace("%", "%%"), None)
    before = definitions(sql)
    with transaction(dsn, *OLD_SNAPSHOT):
        other = database.connect(Target("db", dsn), purpose="tests", autocommit=True)
        thread, problems = in_thread(
            lambda: reindexing.run(other, "app", table, PATIENT, names=[LONG_NAME], done=no_call)
        )
        until(lambda: invalid(sql), "the new index appears")
        sql("SELECT pg_terminate_backend(%s)", other.info.backend_pid)
        thread.join(20)
        assert other.closed and isinstance(problems[0], database.DatabaseError)
    [left] = invalid(sql)
    assert left.endswith("_ccnew") and not left.startswith(LONG_NAME)
    called: list[str] = []
    reindexing.run(conn, "app", table, PATIENT, names=[LONG_NAME], done=lambda name, *sizes: called.append(name))
    assert (called, invalid(sql), definitions(sql)) == ([LONG_NAME], [], before)


def test_cancelling_the_statement_is_not_tried_again(dsn: str, conn: database.Connection, sql: Ask, table: str) -> None:
    """Who cancels the statement means it: no further attempt, no leftover."""
    with transaction(dsn, *OLD_SNAPSHOT):
        thread, problems = in_thread(lambda: reindexing.run(conn, "app", table, PATIENT, names=["t_v"], done=no_call))
        until(lambda: sql(WAITS, conn.info.backend_pid), "it waits for the other transaction")
        sql("SELECT pg_cancel_backend(%s)", conn.info.backend_pid)
        thread.join(20)
    assert [type(problem) for problem in problems] == [Cancelled]
    assert invalid(sql) == []


def test_other_peoples_invalid_indexes_stay(conn: database.Connection, sql: Ask, table: str) -> None:
    """An invalid index is dropped only if it is named after one of the table and defined as it is; it is told of."""
    sql("INSERT INTO app.t VALUES (-1, 1), (-2, 1)")
    for name in ("t_v_ccnew", "mine_ccnew", "mine"):
        with pytest.raises(psycopg2.errors.UniqueViolation):
            sql(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON app.t ((v / 2))")
    invalids = ["mine", "mine_ccnew", "t_v_ccnew"]
    assert invalid(sql) == invalids
    notes = reindexing.run(conn, "app", table, PATIENT, done=lambda *facts: None)
    assert invalid(sql) == invalids
    assert sorted(notes) == [f"index {name} is invalid: drop it, or REINDEX it yourself" for name in invalids]


def test_exclusion_constraints_are_left_with_a_note(conn: database.Connection, sql: Ask) -> None:
    """PostgreSQL cannot reindex them concurrently: the note says which, the others are done."""
    sql("CREATE SCHEMA app")
    sql("CREATE TABLE app.e (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&))")
    called: list[str] = []
    [note] = reindexing.run(conn, "app", "e", PATIENT, done=lambda name, *sizes: called.append(name))
    assert called == ["e_pkey"] and note.startswith("index e_during_excl belongs to an exclusion constraint")


def test_partitions_are_done_one_by_one(conn: database.Connection, sql: Ask) -> None:
    """A partition's indexes stay attached to its parent's; the parent itself is refused."""
    sql("CREATE SCHEMA app")
    sql("CREATE TABLE app.p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    sql("CREATE TABLE app.p1 PARTITION OF app.p FOR VALUES FROM (0) TO (9)")
    before = definitions(sql)
    reindexing.run(conn, "app", "p1", PATIENT, done=lambda *facts: None)
    assert definitions(sql) == before
    assert sql("SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = 'app.p1_pkey'::regclass") == [
        ("app.p_pkey",)
    ]
    with pytest.raises(PermanentFailure, match=r"app\.p is partitioned .* name its partitions"):
        reindexing.plan(conn, "app", "p")


def test_what_cannot_be_reindexed_is_refused(servers: Servers, dsn: str, conn: database.Connection, sql: Ask) -> None:
    """No table, no ordinary one, a temporary one, somebody else's: one line that names it."""
    name = dsn.rpartition("/")[2]
    sql("CREATE SCHEMA app")
    sql("CREATE VIEW app.v AS SELECT 1")
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(name))) as other:
        other.autocommit = True
        other.cursor().execute("CREATE TABLE app.theirs (id int PRIMARY KEY)")
        for table, problem in {
            "gone": r"there is no table app\.gone",
            "v": r"app\.v is no ordinary table",
            "theirs": r"app\.theirs belongs to postgres, and headrace is no member of it",
        }.items():
            with pytest.raises(PermanentFailure, match=problem):
                reindexing.plan(conn, "app", table)


def test_an_index_moves_to_another_tablespace(
    servers: Servers, conn: database.Connection, sql: Ask, table: str
) -> None:
    """With a tablespace the index is rebuilt there; one that is not there, or not granted, is refused by name."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn())) as other:
        other.autocommit = True
        cursor = other.cursor()
        cursor.execute("SET allow_in_place_tablespaces = on")
        cursor.execute("CREATE TABLESPACE \"Fast %\" LOCATION ''")
        try:
            with pytest.raises(PermanentFailure, match="headrace may not use tablespace Fast %: GRANT"):
                reindexing.plan(conn, "app", table, tablespace="Fast %")
            with pytest.raises(PermanentFailure, match="there is no tablespace slow"):
                reindexing.plan(conn, "app", table, tablespace="slow")
            cursor.execute('GRANT CREATE ON TABLESPACE "Fast %" TO headrace')
            done: list[str] = []
            reindexing.run(
                conn, "app", table, PATIENT, names=["t_v"], tablespace="Fast %",
                done=lambda name, *sizes: done.append(name),
            )  # fmt: skip
            assert done == ["t_v"]
            where = "SELECT spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = reltablespace WHERE relname = 't_v'"
            assert sql(where) == [("Fast %",)]
        finally:
            sql("DROP SCHEMA app CASCADE")
            cursor.execute('DROP TABLESPACE "Fast %"')


def test_releases_with_a_broken_reindex_are_refused() -> None:
    """PostgreSQL 14.0 to 14.3 could lose rows from an index that was rebuilt concurrently."""

    def refusal(version: int) -> str | None:
        facts = reindex_catalog.Table(1, "r", False, "me", True, "me", version)
        return reindexing.refusal(facts, "app.t")

    assert [refusal(version) is None for version in (140000, 140003, 140004, 150000, 180000)] == [
        False, False, True, True, True,
    ]  # fmt: skip
