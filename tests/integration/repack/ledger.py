"""Writers that note each of their changes in a ledger, in the same transaction; what a table must hold by that ledger.

A row's changes are noted after its lock was taken, so that the ledger's ids of one key are in the order of its changes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import psycopg2

from workers import database
from workers.repack import requests, store
from workers.repack.requests import Wish
from workers.repack_settings import Limits
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]
Writer = Callable[[Any, random.Random], None]

# Everything small, so that the rewrite of a few hundred rows has many chunks, batches and messages.
SMALL = Limits(
    chunk_seconds=0.01, max_replay_rows=200, slice_seconds=0.1, swap_below_rows=200, lock_timeout_seconds=0.3,
    lock_pause_seconds=0.2, hold_seconds=5, catch_up_seconds=60,
)  # fmt: skip

SETUP = """
CREATE SCHEMA app;
CREATE TABLE app.item (k int PRIMARY KEY, code bigint NOT NULL UNIQUE, version int NOT NULL, note text);
CREATE INDEX item_version ON app.item (version);
CREATE SEQUENCE app.code;
INSERT INTO app.item SELECT k, nextval('app.code'), 0, repeat('x', k % 50) FROM generate_series(1, {rows}) k;
CREATE TABLE app.other (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now());
CREATE TABLE app.ledger (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    k int, code bigint, version int, note text, is_gone boolean NOT NULL DEFAULT false
);
INSERT INTO app.ledger (k, code, version, note) SELECT k, code, version, note FROM app.item
"""
REPLAY = """
SELECT k, code, version, note
  FROM (SELECT DISTINCT ON (k) k, code, version, note, is_gone FROM app.ledger ORDER BY k, id DESC) last
 WHERE NOT is_gone
"""
NOTE = "INSERT INTO app.ledger (k, code, version, note, is_gone)"
UPDATE = f"""
WITH c AS (UPDATE app.item SET version = version + 1, note = %(note)s WHERE k = %(k)s RETURNING k, code, version, note)
{NOTE} SELECT k, code, version, note, false FROM c
"""
INSERT = f"""
WITH c AS (INSERT INTO app.item VALUES (%(k)s, nextval('app.code'), 1, %(note)s) ON CONFLICT DO NOTHING
           RETURNING k, code, version, note)
{NOTE} SELECT k, code, version, note, false FROM c
"""
DELETE = f"""
WITH c AS (DELETE FROM app.item WHERE k = %(k)s RETURNING k, code, version, note)
{NOTE} SELECT k, code, version, note, true FROM c
"""
CHANGE_KEY = f"""
WITH c AS (UPDATE app.item SET k = %(other)s, version = version + 1 WHERE k = %(k)s RETURNING code, version, note)
{NOTE} SELECT %(k)s, code, version, note, true FROM c
 UNION ALL SELECT %(other)s, code, version, note, false FROM c
"""
CHANGES = (UPDATE, UPDATE, UPDATE, INSERT, DELETE, CHANGE_KEY)


def change(conn: Any, chance: random.Random, *, keys: int = 400, longest: float = 0.03) -> None:
    """One transaction of one to three changes; it has its transaction id long before the first of them."""
    with conn.cursor() as cursor:
        try:
            cursor.execute("INSERT INTO app.other DEFAULT VALUES")
            time.sleep(chance.random() * longest)
            for number in range(chance.randint(1, 3)):
                values = {
                    "k": chance.randint(1, keys), "other": chance.randint(1, keys),
                    "note": "y" * chance.randint(0, 60),
                }  # fmt: skip
                cursor.execute("SAVEPOINT change")
                cursor.execute(chance.choice(CHANGES), values)
                if number and chance.random() < 0.2:
                    cursor.execute("ROLLBACK TO SAVEPOINT change")
            conn.rollback() if chance.random() < 0.1 else conn.commit()
        except (psycopg2.errors.UniqueViolation, psycopg2.errors.DeadlockDetected):
            conn.rollback()  # of the writers among each other: that happens without us, too
        except psycopg2.errors.SerializationFailure:
            conn.rollback()


@contextmanager
def writers(dsn: str, write: Writer, *, count: int = 8, options: str = "") -> Iterator[list[int]]:
    """So many sessions that write until the block ends; how many transactions each did. Their errors fail the test."""
    over, problems, done = threading.Event(), list[BaseException](), [0] * count

    def loop(number: int) -> None:
        chance = random.Random(number)
        try:
            with closing(psycopg2.connect(dsn, options=options)) as conn:
                while not over.is_set():
                    write(conn, chance)
                    done[number] += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=loop, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert problems == [], problems
    assert not any(thread.is_alive() for thread in threads)


def asking(conn: Any) -> Ask:
    """Ask on this connection."""

    def ask(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    return ask


def until(condition: Callable[[], object], what: str, *, seconds: float = 20) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def until_waits(ask: Ask, pid: int) -> None:
    """Wait until a session stands before a lock."""
    question = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
    until(lambda: ask(question, pid), f"session {pid} waits for a lock")


def repack(conf: Settings, table: str, limits: Limits = SMALL, *, seconds: float = 60, **wish: Any) -> list[str]:
    """Rewrite a table of schema app, or prepare it (goal="ready"), here and now; the problems."""
    number = requests.request(conf, "control", "app", table, Wish(limits=limits, **wish))
    return finish(conf, number, table, seconds=seconds)


def swap(conf: Settings, ask: Ask, table: str, *, seconds: float = 60) -> list[str]:
    """Have a prepared copy take its table's place; the problems."""
    number = ask("SELECT id FROM headrace.repack WHERE table_name = %s AND state = 'active'", table)[0][0]
    with database.connection(conf.target(), purpose="tests", autocommit=True) as conn:
        assert store.want_swap(conn, number)
    return finish(conf, number, table, seconds=seconds)


def finish(conf: Settings, number: int, table: str, *, seconds: float = 60) -> list[str]:
    """Do a request to its end; the problems."""
    message = requests.message("control", number, "app", table)
    return requests.finish(conf, [message], timeout=timedelta(seconds=seconds))


def differences(ask: Ask, left: str, right: str) -> list[tuple[Any, ...]]:
    """Rows that one of two queries has more often than the other."""
    return ask(
        f"(SELECT '-' AS side, l.* FROM ({left}) l EXCEPT ALL SELECT '-', r.* FROM ({right}) r)"
        f" UNION ALL (SELECT '+', r.* FROM ({right}) r EXCEPT ALL SELECT '+', l.* FROM ({left}) l)"
    )


def leftovers(ask: Ask) -> list[tuple[Any, ...]]:
    """Schemas and triggers of requests that are there still."""
    return ask(
        r"SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace_(new|old|log)_\d+$'"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname LIKE 'headrace_repack_%'"
    )
