"""Repack from outside: whatever people write meanwhile, the rewritten table has it, once; and their work goes on."""

from __future__ import annotations

import random
import time
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from tests.integration.repack import ledger
from tests.integration.repack.ledger import SMALL, Ask, differences, leftovers, repack, writers
from workers.repack import copying
from workers.settings import Settings


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy has many chunks."""
    monkeypatch.setattr(copying, "FIRST_CHUNK_ROWS", 10)


def test_a_table_under_writers_is_its_ledger(conf: Settings, dsn: str, sql: Ask) -> None:
    """A1: eight writers and several rewrites in a row: not a change is lost or there twice."""
    sql(ledger.SETUP.format(rows=300))
    with writers(dsn, ledger.change) as done:
        problems = [repack(conf, "item") for _ in range(4)]
    assert problems == [[], [], [], []]
    assert differences(sql, "SELECT k, code, version, note FROM app.item", ledger.REPLAY) == []
    assert sql("SELECT count(*) > 0, min(chunks) > 2, min(keys_replayed) > 0 FROM headrace.repack") == [(True,) * 3]
    assert min(done) > 5
    assert leftovers(sql) == []


def test_an_older_transaction_neither_delays_nor_is_lost(conf: Settings, dsn: str, sql: Ask) -> None:
    """A2: rows of a transaction that began before the copy and writes until after it are in the new table."""
    sql("CREATE SCHEMA app; CREATE TABLE app.t (k bigserial PRIMARY KEY, note text)")
    sql("CREATE TABLE app.other (id int); INSERT INTO app.t (note) SELECT 'x' FROM generate_series(1, 300)")

    def insert(conn: Any, chance: random.Random) -> None:
        conn.cursor().execute("INSERT INTO app.t (note) SELECT 'storm' FROM generate_series(1, 3)")
        time.sleep(chance.random() / 20)
        conn.commit()

    with closing(psycopg2.connect(dsn)) as old, old.cursor() as cursor, writers(dsn, insert, count=4) as done:
        cursor.execute("INSERT INTO app.other VALUES (1)")  # its id is older than whatever the rewrite does
        assert repack(conf, "t", goal="ready") == []
        cursor.execute("INSERT INTO app.t (note) VALUES ('late')")
        old.commit()
        cursor.execute("INSERT INTO app.other VALUES (2)")  # open, idle, and on another table, to the end
        assert ledger.swap(conf, sql, "t") == []
    assert sql("SELECT note, count(*) FROM app.t WHERE note <> 'x' GROUP BY 1 ORDER BY 1") == [
        ("late", 1),
        ("storm", 3 * sum(done)),
    ]
    assert sql("SELECT state FROM headrace.repack") == [("done",)]


def test_changes_of_role_replica_are_there(conf: Settings, dsn: str, sql: Ask, servers: Servers) -> None:
    """A2, H3: what a session writes that fires no ordinary triggers is in the new table as well, TRUNCATE included."""
    sql(ledger.SETUP.format(rows=200))
    superuser = servers.postgres.superuser_dsn(dsn.rpartition("/")[2])
    with writers(superuser, ledger.change, count=3, options="-c session_replication_role=replica"):
        assert repack(conf, "item") == []
    assert differences(sql, "SELECT k, code, version, note FROM app.item", ledger.REPLAY) == []
    assert repack(conf, "item", goal="ready") == []
    with closing(psycopg2.connect(superuser, options="-c session_replication_role=replica")) as conn:
        conn.cursor().execute("TRUNCATE app.item; INSERT INTO app.item VALUES (1, 1, 1, 'only')")
        conn.commit()
    assert ledger.swap(conf, sql, "item") == []
    assert sql("SELECT k, code, version, note FROM app.item") == [(1, 1, 1, "only")]


def test_a_deadlock_with_a_foreign_keys_transactions_is_tried_again(conf: Settings, dsn: str, sql: Ask) -> None:
    """A5: transactions that take the child before the parent may be broken, or break us; nothing is lost."""
    sql("CREATE SCHEMA app; CREATE TABLE app.parent (k int PRIMARY KEY, n int NOT NULL)")
    sql("CREATE TABLE app.child (k bigserial PRIMARY KEY, parent int NOT NULL REFERENCES app.parent)")
    sql("CREATE TABLE app.ledger (parent int)")
    sql("INSERT INTO app.parent SELECT k, 0 FROM generate_series(1, 200) k")

    def write(conn: Any, chance: random.Random) -> None:
        with conn.cursor() as cursor:
            try:
                key = chance.randint(1, 200)
                cursor.execute("INSERT INTO app.child (parent) VALUES (%s)", (key,))
                time.sleep(chance.random() / 100)
                cursor.execute("UPDATE app.parent SET n = n + 1 WHERE k = %s", (key,))
                cursor.execute("INSERT INTO app.ledger VALUES (%s)", (key,))
                conn.commit()
            except psycopg2.errors.DeadlockDetected:
                conn.rollback()
        time.sleep(chance.random() / 10)

    patient = SMALL.model_copy(update={"lock_timeout_seconds": 2.0, "lock_attempts": 1000})
    with writers(dsn, write, count=3) as done:
        problems = [repack(conf, "parent", patient) for _ in range(2)]
    assert problems == [[], []]
    assert sum(done) > 20
    by_ledger = "SELECT p.k, (SELECT count(*)::int FROM app.ledger l WHERE l.parent = p.k) FROM app.parent p"
    assert differences(sql, "SELECT k, n FROM app.parent", by_ledger) == []
    assert differences(sql, "SELECT parent FROM app.child", "SELECT parent FROM app.ledger") == []
    assert sql("SELECT convalidated FROM pg_constraint WHERE contype = 'f' AND conrelid = 'app.child'::regclass") == [
        (True,)
    ]
    assert leftovers(sql) == []


def test_wide_rows_cost_the_log_nothing(conf: Settings, dsn: str, sql: Ask) -> None:
    """A7: rows of 100 kB whose other columns change keep every byte; the log has a few bytes for each change."""
    sql("CREATE SCHEMA app; CREATE TABLE app.wide (k int PRIMARY KEY, n int, wide text)")
    sql("ALTER TABLE app.wide ALTER COLUMN wide SET STORAGE EXTERNAL")
    sql("INSERT INTO app.wide SELECT k, 0, repeat(md5(k::text), 3200) FROM generate_series(1, 300) k")
    assert repack(conf, "wide", goal="ready") == []
    sql("UPDATE app.wide SET n = n + 1; UPDATE app.wide SET n = n + 1; UPDATE app.wide SET n = n + 1 WHERE k <= 100")
    number = sql("SELECT max(id) FROM headrace.repack")[0][0]
    size, logged = sql(
        f"SELECT pg_relation_size('headrace_log_{number}.log'), count(*) FROM headrace_log_{number}.log"
    )[0]
    assert logged == 700
    assert size / logged < 60
    assert ledger.swap(conf, sql, "wide") == []
    assert differences(
        sql, "SELECT k, n, md5(wide) FROM app.wide",
        "SELECT k, CASE WHEN k <= 100 THEN 3 ELSE 2 END, md5(repeat(md5(k::text), 3200))"
        " FROM generate_series(1, 300) k",
    ) == []  # fmt: skip


def test_a_table_changed_faster_than_it_can_be_followed_is_given_up(conf: Settings, dsn: str, sql: Ask) -> None:
    """A11: the request fails with `cannot_catch_up` within its time, and nothing of it is left to slow writers down."""
    sql("CREATE SCHEMA app; CREATE TABLE app.hot (k int PRIMARY KEY, n int)")
    sql("INSERT INTO app.hot SELECT k, 0 FROM generate_series(1, 50) k")
    limits = SMALL.model_copy(update={
        "max_replay_rows": 500, "swap_below_rows": 1, "check_seconds": 0.3, "catch_up_seconds": 2.0,
        "lock_attempts": 50,
    })  # fmt: skip

    def write(conn: Any, chance: random.Random) -> None:
        conn.cursor().execute("UPDATE app.hot SET n = n + 1 WHERE k = %s", (chance.randint(1, 50),))
        conn.commit()

    assert repack(conf, "hot", limits, goal="ready") == []
    # From now on each transaction of the replay has one row of the log, and four writers a row each.
    sql("UPDATE headrace.repack SET options = jsonb_set(options, '{limits,max_replay_rows}', '1')")
    with writers(dsn, write, count=4) as done:
        ledger.until(lambda: sum(done) > 50, "the writers write")
        problems = ledger.swap(conf, sql, "hot", seconds=30)
        before = sum(done)
        ledger.until(lambda: sum(done) > before + 50, "the writers go on")
    assert len(problems) == 1
    assert "its log has not become shorter" in problems[0]
    assert sql("SELECT state, reason FROM headrace.repack") == [("failed", "cannot_catch_up")]
    assert leftovers(sql) == []
    assert sql("SELECT sum(n) FROM app.hot") == [(sum(done),)]
