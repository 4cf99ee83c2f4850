"""The swap's lock: who stands in its way keeps it off, nobody waits long for it, and nothing is ever half-way."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from tests.integration.repack.test_states import IMPATIENT, LEFT, Walk, until
from workers import database
from workers.errors import PermanentFailure
from workers.repack import store
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]

LOCK_SECONDS = 0.3
NOISE_SECONDS = 0.5  # of a machine that has other things to do
SMALL = """
    CREATE SCHEMA app;
    CREATE TABLE app.t (id integer PRIMARY KEY, v integer NOT NULL, word text);
    CREATE INDEX by_v ON app.t (v);
    INSERT INTO app.t SELECT n, n, 'word ' || n FROM generate_series(1, 2000) n;
"""


@pytest.fixture
def walk(conf: Settings, sql: Ask) -> Walk:
    """A small table, and a request that is not asked for yet."""
    sql(SMALL)
    return Walk(
        conf.model_copy(update={"repack": IMPATIENT}), sql, {"lock_timeout_seconds": LOCK_SECONDS, "slice_seconds": 10}
    )


@contextmanager
def held(dsn: str, statement: str = "SELECT FROM app.t LIMIT 1") -> Iterator[Any]:
    """A session whose transaction is open, with whatever lock this statement takes."""
    with closing(psycopg2.connect(dsn)) as conn:
        with conn.cursor() as cursor:
            cursor.execute(statement)
        yield conn


class Client(threading.Thread):
    """Somebody who reads and changes rows, one short transaction after the other; how long each took."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn = dsn
        self.over = threading.Event()
        self.seconds: list[float] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until it is over."""
        try:
            with closing(psycopg2.connect(self.dsn)) as conn, conn.cursor() as cursor:
                conn.autocommit = True
                number = 0
                while not self.over.is_set():
                    number += 1
                    began = time.monotonic()
                    cursor.execute("UPDATE app.t SET v = v + 1 WHERE id = %s", (number % 2000 + 1,))
                    cursor.execute("INSERT INTO app.t VALUES (%s, 0, 'new')", (10_000 + number,))
                    cursor.execute("SELECT v FROM app.t WHERE id = %s", (number % 2000 + 1,))
                    self.seconds.append(time.monotonic() - began)
                    self.over.wait(0.005)
        except BaseException as error:
            self.failure = error


@contextmanager
def client(dsn: str) -> Iterator[Client]:
    """A client that must not meet an error."""
    one = Client(dsn)
    one.start()
    try:
        yield one
    finally:
        one.over.set()
        one.join(20)
    assert one.failure is None and not one.is_alive()


def whole(walk: Walk, inserted: int, updated: int) -> None:
    """Every change of the client is in the table."""
    assert walk.sql("SELECT count(*) - 2000, sum(v - id) FILTER (WHERE id <= 2000) FROM app.t") == [(inserted, updated)]


def test_a_reader_delays_the_swap_and_nobody_else(walk: Walk, dsn: str) -> None:
    """While a reader is in the way the swap tries again and again, with pauses; others never wait for long."""
    walk.begin()
    walk.to("swap")
    oid = walk.row("table_oid")[0]
    with client(dsn) as busy, held(dsn) as reader, walk.at_work():
        walk.until("lock_attempts >= 4", (True,))
        pid, problem = reader.info.backend_pid, walk.row("problem")[0]
        assert walk.sql("SELECT 'app.t'::regclass::oid") == [(oid,)]
        with reader.cursor() as cursor:  # nobody has touched it
            cursor.execute("SELECT count(*) > 0 FROM app.t")
            assert cursor.fetchone() == (True,)
        reader.rollback()
        walk.until("swapped_at IS NOT NULL", (True,))
    assert walk.row("state") == ("done",)
    assert f"pid {pid} (headrace, idle in transaction" in problem
    assert max(busy.seconds) <= LOCK_SECONDS + NOISE_SECONDS
    assert walk.sql("SELECT 'app.t'::regclass::oid") != [(oid,)]
    whole(walk, len(busy.seconds), len(busy.seconds))
    assert walk.sql(LEFT) == []


def test_the_pauses_grow_and_are_never_the_same(walk: Walk, dsn: str) -> None:
    """The pause after a failed attempt is longer each time up to lock_pause_seconds, and has a part of chance."""
    walk.limits |= {"lock_timeout_seconds": 0.02, "lock_pause_seconds": 1}
    walk.begin()
    walk.to("swap")
    pauses = []
    with held(dsn):
        for _ in range(6):
            [again] = walk.step()
            pauses.append(again.wait_seconds)
    assert 0.2 <= pauses[0] <= 0.4 and 0.4 <= pauses[1] <= 0.8
    assert all(0.5 <= pause <= 1 for pause in pauses[2:])
    assert len(set(pauses)) == len(pauses)


def test_a_lock_that_is_never_to_be_had_leaves_a_copy_kept_in_step(walk: Walk, dsn: str) -> None:
    """After lock_attempts the swap is given up, the table is as it was, the copy stays; a person's `swap` works."""
    walk.limits |= {"lock_attempts": 3, "lock_timeout_seconds": 0.05}
    walk.begin()
    walk.to("swap")
    oid = walk.row("table_oid")[0]
    with client(dsn) as busy:
        with held(dsn) as reader:
            with pytest.raises(PermanentFailure, match=r"not to be had in 3 attempts.*headrace repack swap app\.t"):
                for _ in range(3):
                    walk.step()
            assert walk.row("state", "step", "goal", "lock_attempts") == ("active", "replay", "ready", 0)
            assert walk.sql("SELECT 'app.t'::regclass::oid") == [(oid,)]
            assert not reader.closed
        assert walk.sql("SELECT room, event, subject FROM headrace.alert") == [("repack", "failure", "table app.t")]
        assert walk.finish() == []  # kept in step, no more: nobody said swap
        assert walk.row("step", "goal", "backlog_rows <= 10") == ("replay", "ready", True)
        assert walk.store(store.want_swap)
        assert walk.finish() == []
    assert walk.row("state") == ("done",)
    whole(walk, len(busy.seconds), len(busy.seconds))
    assert walk.sql(LEFT) == []


@pytest.mark.parametrize(
    "step",
    ["prepare", "copy", "swap", "verify", "drop"],
)  # fmt: skip
def test_what_cannot_be_locked_now_is_taken_away_later(walk: Walk, dsn: str, step: str) -> None:
    """`abort` while somebody holds the table: tried again until it is free; then nothing is left."""
    walk.limits |= {"lock_timeout_seconds": 0.05, "keep_old_hours": 1}
    walk.begin()
    walk.to(step)
    table = f"headrace_old_{walk.id}.t" if step == "drop" else "app.t"
    with held(dsn, f"SELECT FROM {table} LIMIT 1") as reader, walk.at_work():
        if step != "prepare":
            walk.store(store.abandon, None, None)
            walk.until("lock_attempts > 1", (True,), 5)
            assert walk.row("state", "goal") == ("active", "abort")
        else:
            walk.until("lock_attempts > 0 OR step <> 'prepare'", (True,))
            walk.store(store.abandon, None, None)
        reader.rollback()
    assert walk.row("state") == ("aborted",)
    assert walk.sql("SELECT count(*) FROM app.t") == [(2000,)]
    assert walk.sql(LEFT) == []


def test_what_failed_and_is_held_is_taken_away_by_a_later_message(walk: Walk, dsn: str) -> None:
    """A request fails for good while a reader holds its table: it is cleaned as soon as it may be, and stays failed."""
    walk.limits |= {"lock_timeout_seconds": 0.02, "lock_pause_seconds": 0.05}
    walk.begin()
    walk.to("replay")
    with held(dsn):
        walk.sql("UPDATE app.t SET v = -1 WHERE id <= 100")
        walk.sql("ALTER TABLE app.t DISABLE TRIGGER ALL; ALTER TABLE app.t ENABLE TRIGGER ALL")
        with pytest.raises(PermanentFailure, match="cannot be trusted"):
            walk.step()
        assert walk.row("state", "goal", "reason") == ("active", "abort", "log_broken")
        assert walk.sql(LEFT) != []
    problems = walk.finish()
    assert walk.row("state", "reason", "problem") == ("failed", "log_broken", problems[0])
    assert walk.sql(LEFT) == []


# How long the lock is held


GATE = """
    CREATE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WHILE NOT pg_try_advisory_xact_lock_shared(77, 1) LOOP PERFORM pg_sleep(0.01); END LOOP;
        RETURN NULL;
    END $$;
    CREATE TRIGGER gate AFTER UPDATE ON headrace.repack FOR EACH ROW
      WHEN (OLD.swapped_at IS NULL AND NEW.swapped_at IS NOT NULL) EXECUTE FUNCTION public.gate();
"""


def test_a_swap_beyond_its_budget_is_rolled_back_whole(walk: Walk, dsn: str) -> None:
    """A swap whose last statement takes longer than hold_seconds: all of it is undone, and tried again later."""
    walk.limits |= {"hold_seconds": 0.4, "lock_attempts": 1000}
    walk.sql(GATE)
    walk.begin()
    walk.to("swap")
    oid = walk.row("table_oid")[0]
    with client(dsn) as busy, walk.at_work():
        with held(dsn, "SELECT pg_advisory_lock(77, 1)"):
            walk.until("lock_attempts >= 2", (True,))
            walk.until("problem LIKE '%%longer than the budget%%'", (True,))
            assert walk.row("step", "swapped_at", "hold_seconds") == ("swap", None, None)
            assert walk.sql("SELECT 'app.t'::regclass::oid") == [(oid,)]
            assert walk.sql("SELECT 1 FROM pg_namespace WHERE nspname ~ '^headrace_old'") == []
        walk.until("swapped_at IS NOT NULL", (True,))
    assert walk.row("state") == ("done",)
    assert max(busy.seconds) <= LOCK_SECONDS + 0.4 + NOISE_SECONDS
    whole(walk, len(busy.seconds), len(busy.seconds))


def test_no_budget_is_too_small_to_be_kept(walk: Walk) -> None:
    """With a hold_seconds that no swap can keep, each attempt leaves the table as it was, and the last one says why."""
    walk.limits |= {"hold_seconds": 0.0005, "lock_attempts": 4}
    walk.begin()
    walk.to("swap")
    before = walk.contents(), walk.row("table_oid")
    with pytest.raises(PermanentFailure, match="not to be had in 4 attempts"):
        for _ in range(4):
            walk.step()
    assert (walk.contents(), walk.sql("SELECT 'app.t'::regclass::oid")[0]) == before
    assert "budget" in walk.row("problem")[0] or "hold_seconds" in walk.row("problem")[0]
    walk.abort()
    assert walk.finish() == []
    assert walk.sql(LEFT) == []


# Who stands in the way and may be ended


@pytest.fixture
def roles(servers: Servers, dsn: str, sql: Ask) -> Iterator[Callable[[str], str]]:
    """Logins of this test's own, by what they are: the database's URL for each."""
    name, _, made = dsn.rpartition("/")[2], None, []
    admin = psycopg2.connect(servers.postgres.superuser_dsn(name))
    admin.autocommit = True

    def run(statement: str) -> None:
        with admin.cursor() as cursor:
            cursor.execute(statement)

    def make(kind: str) -> str:
        role, password = f"{kind}_{secrets.token_hex(4)}", secrets.token_hex(8)
        run(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        made.append(role)
        if kind == "reader":
            run(f"GRANT USAGE ON SCHEMA app TO {role}; GRANT SELECT ON app.t TO {role}")
        else:
            run(f"GRANT headrace TO {role}")
        if kind == "mighty":
            run(f"GRANT pg_signal_backend TO {role}")
        where = dsn.partition("@")[2]
        return f"postgresql://{role}:{password}@{where}"

    yield make
    database.close_all()
    for role in made:
        run("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = " + f"'{role}'")
        run(f"REASSIGN OWNED BY {role} TO headrace; DROP OWNED BY {role}; DROP ROLE {role}")
    admin.close()


def as_role(walk: Walk, dsn: str) -> None:
    """The request's worker logs in as somebody else."""
    walk.conf = walk.conf.model_copy(update={"control": walk.conf.control.model_copy(update={"dsn": dsn})})


@pytest.mark.parametrize("how", ["cancel_query", "kill_query"])
def test_who_stands_in_the_way_is_ended_if_the_settings_say_so(
    walk: Walk, roles: Callable[[str], str], how: str
) -> None:
    """deadlock_resolution with the right to do so: the holder's query is cancelled, or its session ended; one swap."""
    walk.limits |= {"deadlock_resolution": how, "lock_timeout_seconds": 2}
    reader = roles("reader")
    as_role(walk, roles("mighty"))
    walk.begin()
    walk.to("swap")
    with closing(psycopg2.connect(reader)) as conn, conn.cursor() as cursor:
        ended: list[BaseException] = []

        def read() -> None:
            try:
                cursor.execute("SELECT pg_sleep(60) FROM app.t LIMIT 1")
            except psycopg2.Error as error:
                ended.append(error)
                if not conn.closed:
                    conn.rollback()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        until(
            lambda: walk.sql("SELECT count(*) FROM pg_locks WHERE relation = 'app.t'::regclass") == [(1,)], "it reads"
        )
        assert walk.finish() == []
        thread.join(10)
        assert len(ended) == 1 and bool(conn.closed) == (how == "kill_query")
    assert walk.row("state", "lock_attempts") == ("done", 0)


def test_without_the_right_nobody_is_ended_and_the_log_says_what_is_missing(
    walk: Walk, roles: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """deadlock_resolution without pg_signal_backend: one clear line, the holder goes on, the swap is tried again."""
    walk.limits |= {"deadlock_resolution": "kill_query", "lock_timeout_seconds": 0.4}
    reader = roles("reader")
    as_role(walk, roles("plain"))
    walk.begin()
    walk.to("swap")
    with held(reader) as holder:
        capsys.readouterr()
        walk.step()
        said = capsys.readouterr().out
        with holder.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM app.t")
            assert cursor.fetchone() == (2000,)
    assert said.count("repack.blocker_stays") == 1
    assert "deadlock_resolution needs GRANT pg_signal_backend" in said
    assert walk.row("state", "lock_attempts") == ("active", 1)
    assert walk.finish() == []


def test_nobody_is_ended_when_the_settings_do_not_say_so(walk: Walk, roles: Callable[[str], str], dsn: str) -> None:
    """By default a holder is left alone even by a login that could end it."""
    reader = roles("reader")
    as_role(walk, roles("mighty"))
    walk.begin()
    walk.to("swap")
    with held(reader) as holder, held(dsn) as other:
        for _ in range(2):
            walk.step()
        for conn in (holder, other):
            with conn.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM app.t")
    assert walk.finish() == []
    assert walk.row("state") == ("done",)
