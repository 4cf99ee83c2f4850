"""The rewrite's protocol in corners that its own steps seldom reach: what must hold there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from workers import database, execution
from workers.errors import HeadraceError
from workers.messages import BuildIndex, Message, RepackStep
from workers.repack import choosing, copying, requests, store
from workers.repack.requests import Wish
from workers.repack.work import settings_of
from workers.repack_settings import Limits, Plan, Repack, TableRules, Thresholds
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]

QUICK: dict[str, Any] = {
    "lock_timeout_seconds": 0.2, "lock_pause_seconds": 0.05, "slice_seconds": 0.001, "chunk_seconds": 0.001,
    "swap_below_rows": 100,
}  # fmt: skip
TABLE = """
    CREATE SCHEMA app;
    CREATE TABLE app.t (id integer PRIMARY KEY, n integer, v text) WITH (autovacuum_enabled = false);
    INSERT INTO app.t SELECT i, i % 7, 'row ' || i FROM generate_series(1, 60) i;
"""
LEFT = """
    SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace_'
     UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ '^headrace_'
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy has many chunks."""
    monkeypatch.setattr(copying, "FIRST_CHUNK_ROWS", 4)


@pytest.fixture
def admin(servers: Servers, dsn: str) -> Iterator[Ask]:
    """Ask this test's database as its superuser."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(dsn.rpartition("/")[2]))) as conn:
        conn.autocommit = True

        def ask(statement: str) -> list[tuple[Any, ...]]:
            with conn.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []

        yield ask


@dataclass
class Walk:
    """One request, taken further a message at a time."""

    conf: Settings
    sql: Ask
    table: str = "t"
    rules: TableRules = field(default_factory=TableRules)
    limits: dict[str, Any] = field(default_factory=dict)
    goal: str = "swap"
    engine: str = "shadow"
    plan: str | None = None
    id: int = 0

    def begin(self) -> Walk:
        """Ask for the rewrite."""
        execution.load_rooms()
        wish = Wish(
            goal=self.goal, engine=self.engine, plan=self.plan, rules=self.rules,  # type: ignore[arg-type]
            limits=Limits(**{**QUICK, **self.limits}),
        )  # fmt: skip
        self.id = requests.request(self.conf, "control", "app", self.table, wish)
        return self

    @property
    def message(self) -> RepackStep:
        """What takes it further."""
        return requests.message("control", self.id, "app", self.table)

    def row(self, *columns: str) -> tuple[Any, ...]:
        """Columns of the request."""
        return self.sql(f"SELECT {', '.join(columns)} FROM headrace.repack WHERE id = %s", self.id)[0]

    def step(self, message: Message | None = None) -> list[Message]:
        """One message, with its pause over."""
        self.sql("UPDATE headrace.repack SET due_at = clock_timestamp() WHERE id = %s", self.id)
        return execution.execute(message or self.message, self.conf)

    def until(self, *steps: str, most: int = 200) -> Walk:
        """Messages one after the other until this step is due, or the request is over."""
        for _ in range(most):
            if self.row("step")[0] in steps or self.row("state")[0] != "active":
                return self
            for message in self.step():
                if isinstance(message, BuildIndex):
                    self.step(message)
        raise AssertionError(f"it does not get beyond {self.row('step', 'problem')}")

    def end(self) -> Walk:
        """To its end."""
        return self.until("the end")

    def again(self, times: int = 3) -> None:
        """Some more messages; what they raise is not asked for here."""
        for _ in range(times):
            with suppress(HeadraceError, psycopg2.Error):
                self.step()


def walk(conf: Settings, sql: Ask, **more: Any) -> Walk:
    """A request of app.t."""
    return Walk(conf, sql, **more).begin()


@contextmanager
def session(dsn: str) -> Iterator[Any]:
    """Somebody else's session, in a transaction; rolled back at the end unless it committed."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        yield cursor


@contextmanager
def meanwhile(what: Callable[[], object]) -> Iterator[None]:
    """Do something in another thread while the block runs; its errors of ours and PostgreSQL's are let be."""

    def body() -> None:
        with suppress(HeadraceError, psycopg2.Error):
            what()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


def waiting(sql: Ask, *, sessions: int = 1, seconds: float = 10) -> int:
    """Wait until so many sessions of ours wait for a lock; the pid of one, 0 if there were not so many in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = sql(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND application_name LIKE 'headrace repack%%'"
        )
        if len(found) >= sessions:
            return int(found[0][0])
        time.sleep(0.01)
    return 0


def want_swap(sql: Ask, one: Walk) -> None:
    """A person says swap."""
    sql("UPDATE headrace.repack SET goal = 'swap', lock_attempts = 0 WHERE id = %s", one.id)


def owner(admin: Ask) -> None:
    """A role of which our login is a member."""
    with suppress(psycopg2.errors.DuplicateObject):
        admin("CREATE ROLE protocol_owner")
    admin("GRANT protocol_owner TO headrace")
    [(name,)] = admin("SELECT current_database()")
    admin(f"GRANT CREATE ON DATABASE {name} TO protocol_owner")


# Lost or wrong rows


def test_a_column_added_while_the_copy_is_made_keeps_its_values(conf: Settings, sql: Ask, dsn: str) -> None:
    """DDL between the look at the table and its locks is noticed."""
    sql(f"{TABLE} CREATE SCHEMA headrace_old_999; CREATE TABLE headrace_old_999.gate ()")
    one = walk(conf, sql, limits={"rehearse": False})
    with session(dsn) as other, meanwhile(one.step):
        other.execute("LOCK TABLE headrace_old_999.gate")  # whose size is asked between the two
        waiting(sql)
        sql("ALTER TABLE app.t ADD x integer; UPDATE app.t SET x = id")
        other.connection.rollback()
    sql("DROP SCHEMA headrace_old_999 CASCADE")
    with suppress(HeadraceError):
        one.end()
    assert sql("SELECT count(*), count(x) FROM app.t") == [(60, 60)]


def test_a_column_dropped_and_added_again_is_empty(conf: Settings, sql: Ask) -> None:
    """Two changes of the table that together look like none are noticed."""
    sql(TABLE)
    one = walk(conf, sql, goal="ready").until("replay")
    sql("ALTER TABLE app.t DROP v; ALTER TABLE app.t ADD v text")
    want_swap(sql, one)
    with suppress(HeadraceError):
        one.until("drop")
    assert sql("SELECT count(*), count(v) FROM app.t") == [(60, 0)]


def test_rows_rewritten_by_alter_table_stay_rewritten(conf: Settings, sql: Ask) -> None:
    """ALTER TYPE .. USING changes rows without any trigger."""
    sql(TABLE)
    one = walk(conf, sql, goal="ready").until("replay")
    sql("ALTER TABLE app.t ALTER n TYPE integer USING n + 1000")
    want_swap(sql, one)
    with suppress(HeadraceError):
        one.until("drop")
    assert sql("SELECT min(n) FROM app.t") == [(1000,)]


# The whole work thrown away


def test_a_copy_that_waits_for_a_lock_stays_a_copy(conf: Settings, sql: Ask, dsn: str) -> None:
    """A chunk that cannot have its lock, however often, leaves the request in its copy; it goes on when told to."""
    sql(TABLE)
    one = walk(conf, sql, limits={"lock_attempts": 1})
    one.step()
    one.step()
    assert one.row("step") == ("copy",)
    with session(dsn) as other, meanwhile(one.step):
        other.execute("LOCK TABLE app.t")
        sql("SELECT pg_cancel_backend(%s)", waiting(sql))
    want_swap(sql, one)
    one.end()
    assert one.row("state") == ("done",)


def two_indexes(conf: Settings, sql: Ask) -> tuple[Walk, Message, Message]:
    """A request whose two indexes are to be built: that of `b` waits as long as somebody holds advisory lock 7."""
    sql(f"""{TABLE}
        CREATE FUNCTION app.slow(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN IF $1 = 3 THEN PERFORM pg_advisory_xact_lock_shared(7); END IF; RETURN $1; END';
        CREATE INDEX a ON app.t (n); CREATE INDEX b ON app.t (app.slow(n))""")
    one = walk(conf, sql).until("index")
    built: list[BuildIndex] = []
    while not built:
        built = [message for message in one.step() if isinstance(message, BuildIndex)]
    names = {
        row[0]: str(row[1]) for row in sql("SELECT number, name FROM headrace.repack_index WHERE repack = %s", one.id)
    }
    fast, slow = sorted(built, key=lambda message: names[message.number])
    return one, fast, slow


def test_the_last_index_is_built_once(conf: Settings, sql: Ask, dsn: str) -> None:
    """While a message builds the last index, the request waits for it."""
    one, fast, slow = two_indexes(conf, sql)
    one.step(fast)
    with session(dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(7)")
        with meanwhile(lambda: one.step(slow)):
            waiting(sql)
            with meanwhile(one.step):
                waiting(sql, sessions=2, seconds=1)
                other.connection.rollback()
    assert one.row("state", "goal") == ("active", "swap"), one.row("problem")


def test_an_index_made_while_the_swap_waits_is_carried_over(conf: Settings, sql: Ask) -> None:
    """Attempts at the swap may take long; what was carried over before them is, too."""
    sql(TABLE)
    one = walk(conf, sql).until("swap")
    sql("CREATE INDEX late ON app.t (n)")
    with suppress(HeadraceError):
        one.end()
    assert one.row("state") == ("done",)
    assert sql("SELECT count(*) FROM pg_indexes WHERE indexname = 'late'") == [(1,)]


def test_an_index_carried_over_by_halves_is_built(conf: Settings, sql: Ask, dsn: str) -> None:
    """An index that was noted, in a message that then ended, is not forgotten."""
    sql(TABLE)
    one = walk(conf, sql, goal="ready").until("replay")
    sql("CREATE INDEX late ON app.t (n); UPDATE app.t SET n = 0 WHERE id < 5")
    with session(dsn) as other, meanwhile(one.step):
        other.execute(f"LOCK TABLE headrace_new_{one.id}.t IN SHARE MODE")
        sql("SELECT pg_cancel_backend(%s)", waiting(sql))
    want_swap(sql, one)
    with suppress(HeadraceError):
        one.end()
    assert one.row("state", "problem") == ("done", None)


def test_a_cancelled_index_is_built_again(conf: Settings, sql: Ask, dsn: str) -> None:
    """A statement that somebody cancelled is an attempt, not a bug."""
    one, _fast, slow = two_indexes(conf, sql)
    with session(dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(7)")
        problems: list[BaseException] = []

        def build() -> None:
            try:
                one.step(slow)
            except BaseException as error:
                problems.append(error)

        with meanwhile(build):
            sql("SELECT pg_cancel_backend(%s)", waiting(sql))
    assert all(isinstance(problem, HeadraceError) for problem in problems), problems


# Requests that never end


def test_the_copy_of_an_inheriting_table_can_be_taken_away(conf: Settings, sql: Ask) -> None:
    """A request of a child is given up in its copy: nothing is left."""
    sql(f"""{TABLE} CREATE TABLE app.parent (n integer); CREATE TABLE app.child (id integer PRIMARY KEY)
        INHERITS (app.parent); INSERT INTO app.child SELECT i, i FROM generate_series(1, 30) i""")
    one = walk(conf, sql, table="child", goal="ready").until("replay")
    sql("UPDATE headrace.repack SET goal = 'abort'")
    one.again()
    assert sql(LEFT) == []
    assert one.row("state") == ("aborted",)


@pytest.mark.parametrize("step", ["replay", "swap"])
def test_the_request_of_a_dropped_table_ends(conf: Settings, sql: Ask, step: str) -> None:
    """A table that is dropped while nothing of its log waits."""
    sql(TABLE)
    one = walk(conf, sql).until(step)
    sql("DROP TABLE app.t")
    one.again()
    assert one.row("state") == ("failed",)
    assert sql(LEFT) == []


def test_indexes_that_cannot_be_rebuilt_end_their_request(conf: Settings, sql: Ask) -> None:
    """What the index-only engine finds hopeless is not tried for ever."""
    sql(f"{TABLE} CREATE INDEX a ON app.t (n)")
    one = walk(conf, sql, engine="reindex")
    sql("DROP TABLE app.t")
    one.again()
    assert one.row("state") == ("failed",)


def test_a_table_changed_after_the_swap_is_not_compared_for_ever(conf: Settings, sql: Ask) -> None:
    """A column dropped before the comparison came so far: the log must not go on for good."""
    sql(TABLE)
    one = walk(conf, sql).until("verify")
    sql("ALTER TABLE app.t DROP n")
    one.again(8)
    assert one.row("state")[0] != "active", one.row("problem")
    assert sql("SELECT tgname FROM pg_trigger WHERE tgrelid = 'app.t'::regclass AND tgname ~ 'headrace'") == []


def test_giving_up_wins_over_a_last_attempt(conf: Settings, sql: Ask, dsn: str) -> None:
    """A person's abort during the attempt after which a copy would be kept is not forgotten."""
    sql(TABLE)
    one = walk(conf, sql, limits={"lock_attempts": 1, "lock_timeout_seconds": 5}).until("swap")
    with session(dsn) as other, meanwhile(one.step):
        other.execute("SELECT FROM app.t")
        pid = waiting(sql)
        sql("UPDATE headrace.repack SET goal = 'abort'")
        sql("SELECT pg_cancel_backend(%s)", pid)
    one.again()
    assert one.row("state") == ("aborted",)


def test_what_is_being_taken_away_is_not_swapped(conf: Settings, sql: Ask) -> None:
    """Nobody can want the swap of a request that was given up."""
    sql(TABLE)
    one = walk(conf, sql, goal="ready").until("replay")
    with closing(psycopg2.connect(conf.target().dsn)) as conn:
        conn.autocommit = True
        assert store.abandon(conn, one.id, "log_broken", "a trigger was switched off")
        store.put_off(conn, one.id, timedelta(hours=1), "somebody who looked before it")
        assert one.row("due_at < clock_timestamp() + interval '1 minute'") == (True,)
        assert not store.want_swap(conn, one.id)


# After the swap


def test_a_full_disk_after_the_swap_keeps_the_old_table(conf: Settings, sql: Ask, admin: Ask) -> None:
    """Old and new were not compared yet: nothing is dropped for want of room."""
    sql(f"""{TABLE} CREATE TABLE app.p (id integer PRIMARY KEY); INSERT INTO app.p SELECT generate_series(0, 6);
        ALTER TABLE app.t ADD CONSTRAINT f FOREIGN KEY (n) REFERENCES app.p""")
    one = walk(conf, sql).until("verify")
    admin("""CREATE FUNCTION app.full() RETURNS event_trigger LANGUAGE plpgsql AS
                 'BEGIN RAISE ''no room'' USING ERRCODE = ''53100''; END';
             CREATE EVENT TRIGGER full_disk ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
                 EXECUTE FUNCTION app.full()""")
    one.again(1)
    admin("DROP EVENT TRIGGER full_disk")
    assert one.row("state") == ("active",)
    assert sql(f"SELECT count(*) FROM headrace_old_{one.id}.t") == [(60,)]


def test_giving_up_after_the_swap_leaves_valid_constraints(conf: Settings, sql: Ask) -> None:
    """Foreign keys that were valid are valid again however a request ends."""
    sql(f"""{TABLE} CREATE TABLE app.p (id integer PRIMARY KEY); INSERT INTO app.p SELECT generate_series(0, 6);
        ALTER TABLE app.t ADD CONSTRAINT f FOREIGN KEY (n) REFERENCES app.p""")
    one = walk(conf, sql).until("verify")
    sql("UPDATE headrace.repack SET goal = 'abort'")
    one.again()
    assert one.row("state") == ("aborted",)
    assert sql("SELECT convalidated FROM pg_constraint WHERE conname = 'f'") == [(True,)]


def test_a_truncate_during_the_comparison_is_no_difference(conf: Settings, sql: Ask, dsn: str) -> None:
    """TRUNCATE empties a table for snapshots from before it, too."""
    sql(TABLE)
    one = walk(conf, sql).until("verify")
    with session(dsn) as other, meanwhile(one.step):
        other.execute("TRUNCATE app.t")
        waiting(sql)
        other.connection.commit()
    one.end()
    assert one.row("state", "reason") == ("done", None)


def test_tables_that_differ_are_kept_though_the_table_is_in_use(conf: Settings, sql: Ask, dsn: str) -> None:
    """What is found different while a reader keeps the log from being taken away is a failure, not a bug."""
    sql(TABLE)
    one = walk(conf, sql, limits={"lock_attempts": 100_000}).until("verify")
    sql("ALTER TABLE app.t DISABLE TRIGGER ALL; DELETE FROM app.t WHERE id = 3")
    with session(dsn) as other:
        other.execute("SELECT FROM app.t")
        with suppress(HeadraceError):
            one.step()
    one.again()
    assert one.row("state", "reason") == ("failed", "different")


# Names and types


def test_a_name_may_have_dollar_signs(conf: Settings, sql: Ask) -> None:
    """What quotes the body of a function is no part of a name."""
    sql("CREATE SCHEMA app; CREATE TABLE app.t (cost$$eur integer PRIMARY KEY); INSERT INTO app.t VALUES (1)")
    one = walk(conf, sql)
    one.end()
    assert one.row("state") == ("done",)


def test_a_key_of_an_extensions_type(conf: Settings, sql: Ask, admin: Ask) -> None:
    """A type whose operators are in its own schema can be a key."""
    admin("CREATE EXTENSION ltree SCHEMA public")
    sql("""CREATE SCHEMA app; CREATE TABLE app.t (id public.ltree PRIMARY KEY, v text);
        INSERT INTO app.t VALUES ('a.b', 'x'), ('a.c', 'y')""")
    one = walk(conf, sql, goal="ready").until("replay")
    sql("UPDATE app.t SET id = 'a.d' WHERE id = 'a.b'")
    want_swap(sql, one)
    one.end()
    assert one.row("state") == ("done",)
    assert sql("SELECT id::text, v FROM app.t ORDER BY 1") == [("a.c", "y"), ("a.d", "x")]


def test_a_renamed_key_column_does_not_stop_the_application(conf: Settings, sql: Ask) -> None:
    """DDL that the log cannot follow ends the request, not everybody's INSERTs."""
    sql(TABLE)
    walk(conf, sql, goal="ready").until("replay")
    sql("ALTER TABLE app.t RENAME id TO number")
    sql("INSERT INTO app.t (number) VALUES (777)")


# Bounds


def test_a_hold_is_within_its_budget_whatever_it_is_made_of(conf: Settings, sql: Ask, dsn: str, admin: Ask) -> None:
    """Many statements of a swap, each of which is quick enough, are together not longer than hold_seconds, about."""
    sql(f"{TABLE} CREATE VIEW app.v1 AS SELECT * FROM app.t; CREATE VIEW app.v2 AS SELECT * FROM app.t")
    one = walk(conf, sql, limits={"hold_seconds": 0.5, "lock_attempts": 1}).until("swap")
    admin("""CREATE FUNCTION app.slow() RETURNS event_trigger LANGUAGE plpgsql AS
                 'BEGIN IF current_user = ''headrace'' THEN PERFORM pg_sleep(0.15); END IF; END';
             CREATE EVENT TRIGGER slow ON ddl_command_start EXECUTE FUNCTION app.slow()""")
    longest, over = [0.0], threading.Event()

    def read() -> None:
        with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
            conn.autocommit = True
            while not over.is_set():
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM app.t")
                longest[0] = max(longest[0], time.monotonic() - began)

    with meanwhile(read):
        one.again(1)
        over.set()
    admin("DROP EVENT TRIGGER slow")
    assert longest[0] < 1.5


def test_a_swap_that_is_too_long_even_for_an_empty_copy_is_refused(conf: Settings, sql: Ask) -> None:
    """A default partition that ATTACH would read is found in the first rehearsal, not after a hundred of them."""
    sql("""CREATE SCHEMA app; CREATE TABLE app.whole (id integer PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (10);
        CREATE TABLE app.others PARTITION OF app.whole DEFAULT;
        INSERT INTO app.others SELECT generate_series(100, 300000)""")
    one = walk(conf, sql, limits={"hold_seconds": 0.02})
    one.again(4)
    assert one.row("state", "reason") == ("failed", "refused")


def test_bringing_a_copy_to_one_state_ends_its_message_in_time(conf: Settings, sql: Ask) -> None:
    """A long log before the indexes is replayed in slices, too, and not for ever when it grows faster."""
    sql(TABLE)
    one = walk(conf, sql, limits={"max_replay_rows": 1, "swap_below_rows": 1}).until("index")
    for _ in range(3):
        sql("UPDATE app.t SET n = n + 1")
    began = time.monotonic()
    one.step()
    assert time.monotonic() - began < 1


def test_a_sites_time_limits_do_not_end_our_sessions(conf: Settings, admin: Ask) -> None:
    """A default for people, newer than the others, must not cut our long statements off."""
    [(name,)] = admin("SELECT current_database()")
    admin(
        f"ALTER DATABASE {name} SET transaction_timeout = '5s'; ALTER DATABASE {name} SET idle_session_timeout = '5s'"
    )
    with closing(database.connect(conf.target(), purpose="tests", autocommit=True)) as conn, conn.cursor() as cursor:
        settings_of(conn)
        cursor.execute("SELECT current_setting('transaction_timeout'), current_setting('idle_session_timeout')")
        assert cursor.fetchone() == ("0", "0")


def test_a_step_that_came_through_is_no_failed_attempt(conf: Settings, sql: Ask) -> None:
    """Attempts are those of one step: a rewrite of weeks does not use them up one by one."""
    sql(TABLE)
    one = walk(conf, sql).until("copy")
    sql("UPDATE headrace.repack SET lock_attempts = 99")
    one.until("replay")
    assert one.row("lock_attempts") == (0,)


# Whose rights


def test_an_owners_functions_run_with_the_owners_rights(conf: Settings, sql: Ask, admin: Ask) -> None:
    """What a table's owner put into a check is no way to the rights of the login that rewrites it."""
    owner(admin)
    sql("""SET ROLE protocol_owner; CREATE SCHEMA app; CREATE TABLE app.seen (who text);
        GRANT ALL ON app.seen TO PUBLIC; GRANT ALL ON SCHEMA app TO PUBLIC;
        CREATE FUNCTION app.spy(integer) RETURNS boolean LANGUAGE plpgsql AS
            'BEGIN INSERT INTO app.seen VALUES (current_user); RETURN true; END';
        CREATE TABLE app.t (id integer PRIMARY KEY CHECK (app.spy(id)));
        INSERT INTO app.t VALUES (1), (2); RESET ROLE""")
    walk(conf, sql).end()
    assert sql("SELECT DISTINCT who FROM app.seen") == [("protocol_owner",)]


def test_nobody_reads_the_copy_by_default(conf: Settings, sql: Ask, admin: Ask) -> None:
    """Rights that new schemas and tables get do not show the copy to whom row level security hides the table."""
    owner(admin)
    sql(f"""{TABLE} ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
        ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO protocol_owner;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO protocol_owner""")
    one = walk(conf, sql, goal="ready").until("replay")
    [(may,)] = admin(
        f"SELECT has_schema_privilege('protocol_owner', 'headrace_new_{one.id}', 'USAGE')"
        f" OR has_schema_privilege('protocol_owner', 'headrace_log_{one.id}', 'USAGE')"
    )
    assert not may


# Plans


def test_a_table_that_fails_does_not_keep_a_plan_from_the_others(conf: Settings, sql: Ask) -> None:
    """The most wasteful table, which cannot be rewritten, has its turn no more often than the next one."""
    sql("""CREATE SCHEMA app;
        CREATE TABLE app.a (id integer PRIMARY KEY, v text); CREATE TABLE app.b (id integer PRIMARY KEY, v text);
        INSERT INTO app.a SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i;
        INSERT INTO app.b SELECT i, repeat('x', 500) FROM generate_series(1, 1000) i;
        DELETE FROM app.a WHERE id % 2 = 0; DELETE FROM app.b WHERE id % 2 = 0;
        CREATE VIEW app.on_index AS SELECT 'app.a_pkey'::regclass""")
    sql("VACUUM ANALYZE app.a")
    sql("VACUUM ANALYZE app.b")
    execution.load_rooms()
    thresholds = Thresholds(min_bloat_percent=5, min_bloat_bytes=1)
    plan = Plan(engine="shadow", schemas=("app",), thresholds=thresholds)
    with_plan = conf.model_copy(update={"repack": Repack(plans={"p": plan})})
    for _ in range(3):
        sql("UPDATE headrace.repack_choice SET asked_at = asked_at - interval '2 minutes'")
        for message in choosing.due(with_plan, "control"):
            for first in execution.execute(message, with_plan):
                with suppress(HeadraceError):
                    execution.execute(first, with_plan)
    assert {name for (name,) in sql("SELECT table_name FROM headrace.repack")} == {"a", "b"}


def test_indexes_that_are_always_in_use_end_their_request(conf: Settings, sql: Ask, dsn: str) -> None:
    """Rebuilding indexes leaves no copy that could wait for a person: out of attempts it fails, and all is clean."""
    sql(TABLE)
    one = walk(conf, sql, engine="reindex", limits={"reindex_wait_seconds": 0.2, "lock_attempts": 2}).until("index")
    with session(dsn) as cursor:
        cursor.execute("SELECT count(*) FROM app.t")  # in a transaction that stays open
        one.again(2)
    assert one.row("state", "reason") == ("failed", "lock")
    assert sql("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)] and sql(LEFT) == []
