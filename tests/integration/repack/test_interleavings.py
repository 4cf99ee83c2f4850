"""Whatever happens between the steps of a rewrite, and while one is under way, its table has it in the end, once."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Servers, _clone
from tests.integration.repack import dumps, ledger
from tests.integration.repack.ledger import SMALL, Ask, differences, leftovers, repack, swap, writers
from workers import database, execution, migrations
from workers import settings as settings_module
from workers.errors import NothingToDo, PermanentFailure, RetryLater
from workers.messages import Message, RepackStep
from workers.repack import copying, requests
from workers.repack.requests import Wish
from workers.repack_settings import Limits, TableRules
from workers.settings import Settings

# One chunk, one batch, one range per message, and no pause that would have to be waited for.
TINY = SMALL.model_copy(update={
    "slice_seconds": 0.001, "chunk_seconds": 0.001, "max_replay_rows": 1, "swap_below_rows": 1,
    "lock_timeout_seconds": 0.05, "lock_attempts": 100_000, "rehearse": False, "check_seconds": 30.0,
})  # fmt: skip


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy has many chunks."""
    monkeypatch.setattr(copying, "FIRST_CHUNK_ROWS", 4)


@pytest.fixture
def superuser(servers: Servers, dsn: str) -> Iterator[Ask]:
    """Ask this test's database as its superuser."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn(dsn.rpartition("/")[2]))) as conn:
        conn.autocommit = True

        yield ledger.asking(conn)


@dataclass(frozen=True)
class Place:
    """A database that many cases use one after the other."""

    conf: Settings
    ask: Ask
    superuser: Ask

    def clear(self) -> None:
        """Nothing of an earlier case is there."""
        gone = r"nspname IN ('app', 'far') OR nspname ~ '^headrace_(new|old|log)_'"
        for (schema,) in self.ask(f"SELECT nspname FROM pg_namespace WHERE {gone}"):
            self.ask(f"DROP SCHEMA {schema} CASCADE")
        self.ask("TRUNCATE headrace.repack RESTART IDENTITY CASCADE")


@pytest.fixture(scope="module")
def module_place(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Its database and sessions."""
    with (
        _clone(servers, template) as dsn,
        closing(psycopg2.connect(dsn)) as conn,
        closing(psycopg2.connect(servers.postgres.superuser_dsn(dsn.rpartition("/")[2]))) as admin,
    ):
        conn.autocommit = admin.autocommit = True
        conf = Settings(host="here", data_dir=tmp_path_factory.mktemp("state"), control={"dsn": dsn})
        yield Place(conf, ledger.asking(conn), ledger.asking(admin))


@pytest.fixture
def place(module_place: Place) -> Iterator[Place]:
    """That database, cleared."""
    module_place.clear()
    settings_module.use(module_place.conf)
    yield module_place
    settings_module._current = None


@dataclass
class Stepper:
    """One request, taken further a message at a time."""

    conf: Settings
    ask: Ask
    table: str
    limits: Limits = TINY
    rules: TableRules | None = None
    number: int = field(init=False)
    waiting: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        execution.load_rooms()
        wish = Wish(limits=self.limits, rules=self.rules)
        self.number = requests.request(self.conf, "control", "app", self.table, wish)

    @property
    def at(self) -> str:
        """Its step, or its state once it is over."""
        found = self.ask("SELECT CASE state WHEN 'active' THEN step ELSE state END FROM headrace.repack WHERE id = %s",
                         self.number)  # fmt: skip
        return str(found[0][0])

    def step(self) -> None:
        """Do the next message, pauses left out."""
        self.ask("UPDATE headrace.repack SET due_at = clock_timestamp() WHERE id = %s", self.number)
        again = requests.message("control", self.number, "app", self.table)
        message = self.waiting.pop(0) if self.waiting else again
        try:
            followed = execution.execute(message, self.conf)
        except NothingToDo:
            return  # an index whose message came twice
        self.waiting += [one for one in followed if not isinstance(one, RepackStep)]

    def until(self, *steps: str) -> None:
        """Go on until it stands before one of these steps, or is over."""
        for _ in range(1000):
            if self.at in (*steps, "done", "failed", "aborted"):
                return
            self.step()
        raise AssertionError(f"{self.table} is still at {self.at}")

    def finish(self) -> None:
        """Go on to the end."""
        self.until()
        assert self.ask("SELECT state, problem FROM headrace.repack WHERE id = %s", self.number) == [("done", None)]


def table(ask: Ask, rows: int = 20, *, unique: str = "") -> None:
    """A table app.t with a few rows."""
    ask("CREATE SCHEMA app")
    ask(f"CREATE TABLE app.t (k int PRIMARY KEY, code int NOT NULL UNIQUE {unique}, note text, last text)")
    ask("INSERT INTO app.t SELECT k, k, 'n' || k, 'l' || k FROM generate_series(1, %s) k", rows)


# Order


def test_the_last_commit_wins_whoever_began_first(conf: Settings, dsn: str, sql: Ask) -> None:
    """H1: a transaction that began first and changes a row last has the last word, and the other way round."""
    table(sql)
    sql("CREATE TABLE app.other (id int)")
    assert repack(conf, "t", goal="ready") == []
    with (
        closing(psycopg2.connect(dsn)) as first, closing(psycopg2.connect(dsn)) as second,
        first.cursor() as a, second.cursor() as b,
    ):  # fmt: skip
        a.execute("INSERT INTO app.other VALUES (1)")  # its transaction id is the older one
        b.execute("UPDATE app.t SET note = 'B first' WHERE k = 3; DELETE FROM app.t WHERE k = 4")
        second.commit()
        a.execute("UPDATE app.t SET note = 'A last' WHERE k = 3")
        a.execute("INSERT INTO app.t VALUES (4, 4, 'A again', NULL)")
        first.commit()
        a.execute("INSERT INTO app.other VALUES (2)")
        b.execute("INSERT INTO app.other VALUES (3); UPDATE app.t SET note = 'B' WHERE k = 5")
        a.execute("UPDATE app.t SET note = 'A' WHERE k = 6")
        first.commit()
        b.execute("UPDATE app.t SET note = note || ', then B' WHERE k = 6")
        second.commit()
    assert swap(conf, sql, "t") == []
    assert sql("SELECT k, note FROM app.t WHERE k BETWEEN 3 AND 6 ORDER BY k") == [
        (3, "A last"), (4, "A again"), (5, "B"), (6, "A, then B"),
    ]  # fmt: skip
    assert sql("SELECT count(*) FROM app.t") == [(20,)]


# Keys and unique values (A6)


@pytest.mark.parametrize("unique", ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
def test_values_that_change_hands_are_there_once(conf: Settings, sql: Ask, unique: str) -> None:
    """Keys and unique values are exchanged between rows of copied and uncopied chunks, then of a copy with indexes."""
    table(sql, 40, unique=unique)
    sql("CREATE TABLE app.expected AS SELECT k, code, note, last FROM app.t")
    exchange = """
        UPDATE {0} SET code = -{1} WHERE k = {1}; UPDATE {0} SET code = {1} WHERE k = {2};
        UPDATE {0} SET code = {2} WHERE k = {1};
        UPDATE {0} SET k = -{3} WHERE k = {3}; UPDATE {0} SET k = {3} WHERE k = {4};
        UPDATE {0} SET k = {4} WHERE k = -{3}
    """

    def both(*keys: int) -> None:
        for name in ("app.t", "app.expected"):
            sql(exchange.format(name, *keys))

    request = Stepper(conf, sql, "t")
    request.until("copy")
    request.step()
    assert request.at == "copy"
    both(1, 40, 2, 39)  # the copied rows have their old values, those that are copied later have the same ones
    request.until("index")
    both(3, 38, 4, 37)
    request.until("replay")
    both(5, 36, 6, 35)  # each batch of the replay is one row: half of an exchange
    request.finish()
    assert differences(sql, "SELECT * FROM app.t", "SELECT * FROM app.expected") == []
    assert leftovers(sql) == []


@pytest.mark.parametrize(
    "rules",
    [TableRules(order_by=("note",)), TableRules(order_by=("code",)), TableRules(cluster="t_code_key"),
     TableRules(cluster="by_last")],
    ids=["order, in one", "order, in chunks", "cluster, in chunks", "cluster, in one"],
)  # fmt: skip
def test_rows_that_move_within_the_order_are_there_once(conf: Settings, sql: Ask, rules: TableRules) -> None:
    """Rows whose place in the wanted order changes while it is copied are neither left out nor there twice."""
    table(sql, 40)
    sql("CREATE INDEX by_last ON app.t (last DESC)")
    sql("CREATE TABLE app.expected AS SELECT k, code, note, last FROM app.t")

    def both(statements: str) -> None:
        for name in ("app.t", "app.expected"):
            sql(statements.format(name))

    request = Stepper(conf, sql, "t", rules=rules)
    request.until("copy")
    request.step()
    both("UPDATE {0} SET code = code + 100, note = 'z' || note, last = 'z' || last WHERE k IN (1, 2, 3)")
    both("UPDATE {0} SET code = -code, note = 'a' || note, last = 'a' || last WHERE k IN (38, 39, 40)")
    request.until("index")
    both("UPDATE {0} SET code = code + 200, note = 'zz' || note WHERE k < 6; DELETE FROM {0} WHERE k = 7")
    request.finish()
    assert differences(sql, "SELECT * FROM app.t", "SELECT * FROM app.expected") == []


KEYS = {
    "two columns": "a int, b text COLLATE \"C\"; SELECT k % 7, 'b' || k",
    "two columns, one down": "a int, b int; SELECT k % 7, k; UNIQUE INDEX a, b DESC",
    "text": "a text; SELECT chr(65 + k % 26) || CASE k % 3 WHEN 0 THEN 'é' WHEN 1 THEN 'E' ELSE 'e' END || k",
    "citext": "a public.citext; SELECT chr(97 + k % 26 - 32 * (k % 2)) || k",
    "uuid": "a uuid; SELECT md5(k::text)::uuid",
    "timestamptz": "a timestamptz; SELECT '2024-03-31 00:00+00'::timestamptz + k * interval '7.000001 minutes'",
    "interval": "a interval; SELECT k * interval '1 day 3 hours' - interval '20 days'",
    "numeric": "a numeric; SELECT CASE k WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' ELSE (k - 20) / 7.0 END::numeric",
    "float8": "a float8; SELECT CASE k WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE (k - 20) / 7.0 END::float8",
    "bytea": "a bytea; SELECT decode(lpad(to_hex(k * 37 % 256), 2, '0') || '00ff', 'hex')",
    "enum": "a app.mood, b int; SELECT (ARRAY['sad', 'ok', 'a %', 'it''s'])[k % 4 + 1]::app.mood, k",
    "domain": "a app.positive; SELECT k",
    "char": 'a "char"; SELECT (k + 40)::"char"',
    "padded": "a char(6); SELECT lpad(k::text, 1 + k % 3, 'x') || repeat(' ', k % 2) || chr(64 + k)",
    "array": "a int[]; SELECT ARRAY[k % 5, NULL, k]",
}


ICU_KEYS = {
    "text of a language": 'a text COLLATE "und-x-icu"; SELECT chr(97 + k % 26 - 32 * (k % 2)) || k',
    "text of no case": "a text COLLATE app.no_case; SELECT chr(97 + k % 26) || k",
}


def test_every_kind_of_key_finds_its_rows(conf: Settings, sql: Ask, superuser: Ask) -> None:
    """Keys of many types are copied in chunks, changed, replayed and compared; each row is there as it is."""
    superuser("CREATE EXTENSION citext SCHEMA public")
    sql("CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'a %', 'it''s')")
    sql("CREATE DOMAIN app.positive AS bigint CHECK (VALUE > 0)")
    assert rewritten(conf, sql, KEYS) == {}


def test_text_in_the_order_of_a_language_finds_its_rows(servers: Servers, tmp_path: Path) -> None:
    """Keys of ICU's collations are found as well; of one that knows no case, also rows whose case alone was changed."""
    if not dumps.DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 of Debian, with ICU, is not here")
    with (
        tempfile.TemporaryDirectory(prefix="headrace-15-") as folder,
        dumps.debian_server(Path(folder)) as postgres,
        _clone(Servers(postgres, servers.valkey), "template1") as dsn,
        closing(psycopg2.connect(dsn)) as conn,
    ):
        conf = settings_module.use(Settings(host="here", data_dir=tmp_path, control={"dsn": dsn}))
        with database.connection(conf.target(), purpose="tests") as migrated:
            for room in (migrations.FOUNDATION, "alerts", "repack"):
                migrations.migrate(migrated, room)
        conn.autocommit = True
        ask = ledger.asking(conn)
        ask("CREATE SCHEMA app")
        ask("CREATE COLLATION app.no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        try:
            assert rewritten(conf, ask, ICU_KEYS) == {}
        finally:
            conn.close()
            settings_module._current = None


def rewritten(conf: Settings, kinds: Ask, keys_of: dict[str, str]) -> dict[str, object]:
    """Rewrite a table for each of these keys, and change rows meanwhile; where problems or differences are."""
    wrong: dict[str, object] = {}
    for number, (kind, told) in enumerate(keys_of.items()):
        columns, values, *index = told.split("; ")
        keys = ", ".join(column.split()[0] for column in columns.split(", "))
        name = f"t{number}"
        more = "" if index else f", PRIMARY KEY ({keys})"
        kinds(f"CREATE TABLE app.{name} ({columns}, n int NOT NULL{more})")
        if index:
            kinds("".join(f"ALTER TABLE app.{name} ALTER COLUMN {one} SET NOT NULL;" for one in keys.split(", ")))
            kinds(f"CREATE {index[0].replace('INDEX ', f'INDEX i{number} ON app.{name} (')})")
        fill = values.removeprefix("SELECT ")
        kinds(f"INSERT INTO app.{name} SELECT {fill}, k FROM generate_series(1, 30) k")
        problems = repack(conf, name, SMALL.model_copy(update={"rehearse": number % 4 == 0}), goal="ready")
        kinds(f"CREATE TABLE app.expected{number} AS SELECT * FROM app.{name}")
        for one in (name, f"expected{number}"):
            kinds(f"DELETE FROM app.{one} WHERE n % 5 = 0; UPDATE app.{one} SET n = -n WHERE n % 3 = 0")
            kinds(f"INSERT INTO app.{one} SELECT {fill}, k FROM generate_series(31, 36) k")
            kinds(f"DELETE FROM app.{one} WHERE n = 31; UPDATE app.{one} SET n = 1000 WHERE n = 32")
            if keys == "a" and "text" in columns:
                kinds(f"UPDATE app.{one} SET a = upper(a) WHERE n % 2 = 0")
        problems = problems or swap(conf, kinds, name)
        differ = differences(kinds, f"SELECT t::text FROM app.{name} t", f"SELECT t::text FROM app.expected{number} t")
        if problems or differ:
            wrong[kind] = (problems, differ)
    return wrong


DOLLARS = "a$$b"


@pytest.mark.parametrize("odd", ['a "b', "100 % %s", "it's", "Größe", "select", "a\\b", DOLLARS])
def test_names_that_need_quotes_are_no_trouble(place: Place, odd: str) -> None:
    """Schema, table, key and other columns may have names that need quotes, or a % in them."""
    name = '"' + odd.replace('"', '""') + '"'
    ask = place.ask
    ask("CREATE SCHEMA app")
    ask(f'CREATE TABLE app.{name} ({name} int, {name[:-1]}2" text UNIQUE, PRIMARY KEY ({name}))')
    ask(f"INSERT INTO app.{name} SELECT k, 'x' || k FROM generate_series(1, 20) k")
    assert repack(place.conf, odd, goal="ready") == []
    ask(f"UPDATE app.{name} SET {name} = {name} + 100 WHERE {name} < 5; DELETE FROM app.{name} WHERE {name} = 6")
    assert swap(place.conf, ask, odd) == []
    assert ask(f'SELECT count(*), sum({name}), count(DISTINCT {name[:-1]}2") FROM app.{name}') == [(19, 604, 19)]


# What people do to the table meanwhile (A15)


@dataclass(frozen=True)
class Ddl:
    """What is done between prepare and swap, how it ends, and a question whose answer is true if it was not lost."""

    statements: str
    probe: str
    outcome: str
    by: str = "owner"


DDL = {
    "add column": Ddl(
        "ALTER TABLE app.t ADD COLUMN extra int DEFAULT 7", "SELECT bool_and(extra = 7) FROM app.t", "failed"
    ),
    "drop column": Ddl(
        "ALTER TABLE app.t DROP COLUMN note",
        "SELECT count(*) = 3 FROM pg_attribute WHERE attrelid = 'app.t'::regclass AND attnum > 0 AND NOT attisdropped",
        "failed",
    ),
    "rename column": Ddl("ALTER TABLE app.t RENAME note TO memo", "SELECT count(memo) > 0 FROM app.t", "failed"),
    "exchange columns": Ddl(
        "ALTER TABLE app.t RENAME note TO x; ALTER TABLE app.t RENAME last TO note; ALTER TABLE app.t RENAME x TO last",
        "SELECT bool_and(note LIKE 'l%') FROM app.t WHERE k > 2",
        "failed",
    ),
    "widen column": Ddl("ALTER TABLE app.t ALTER note TYPE varchar(80)", "SELECT count(note) > 0 FROM app.t", "failed"),
    "set not null": Ddl(
        "ALTER TABLE app.t ALTER last SET NOT NULL",
        "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'app.t'::regclass AND attname = 'last'",
        "failed",
    ),
    "set default": Ddl(
        "ALTER TABLE app.t ALTER note SET DEFAULT 'fresh'",
        "SELECT count(*) = 1 FROM pg_attrdef WHERE adrelid = 'app.t'::regclass",
        "failed",
    ),
    "add check": Ddl(
        "ALTER TABLE app.t ADD CONSTRAINT sane CHECK (code < 1000)",
        "SELECT count(*) = 1 FROM pg_constraint WHERE conrelid = 'app.t'::regclass AND conname = 'sane'",
        "failed",
    ),
    "create index": Ddl("CREATE INDEX fresh ON app.t (note)", "SELECT 'app.fresh'::regclass IS NOT NULL", "done"),
    "create unique index": Ddl(
        "UPDATE app.t SET note = note || k; CREATE UNIQUE INDEX fresh ON app.t (note)",
        "SELECT indisunique FROM pg_index WHERE indexrelid = 'app.fresh'::regclass",
        "done",
    ),
    "index of the same name": Ddl(
        "DROP INDEX app.by_note; CREATE INDEX by_note ON app.t (last, note)",
        "SELECT pg_get_indexdef('app.by_note'::regclass) LIKE '%(last, note)'",
        "done",
    ),
    "drop index": Ddl("DROP INDEX app.by_note", "SELECT to_regclass('app.by_note') IS NULL", "done"),
    "drop unique constraint": Ddl(
        "ALTER TABLE app.t DROP CONSTRAINT t_code_key; UPDATE app.t SET code = 1",
        "SELECT to_regclass('app.t_code_key') IS NULL AND bool_and(code = 1) FROM app.t",
        "done",
    ),
    "drop primary key": Ddl(
        "ALTER TABLE app.t DROP CONSTRAINT t_pkey; UPDATE app.t SET k = 7",
        "SELECT to_regclass('app.t_pkey') IS NULL AND bool_and(k = 7) FROM app.t",
        "failed",
    ),
    "another primary key": Ddl(
        "ALTER TABLE app.t DROP CONSTRAINT t_pkey; ALTER TABLE app.t ADD CONSTRAINT t_pkey PRIMARY KEY (code)",
        "SELECT pg_get_constraintdef(oid) = 'PRIMARY KEY (code)' FROM pg_constraint WHERE conname = 't_pkey'"
        " AND conrelid = 'app.t'::regclass",
        "failed",
    ),
    "grant": Ddl(
        "GRANT SELECT ON app.t TO PUBLIC",
        "SELECT relacl::text LIKE '%{=r/%' OR relacl::text LIKE '%,=r/%' FROM pg_class WHERE oid = 'app.t'::regclass",
        "done",
    ),
    "grant on a column": Ddl(
        "GRANT UPDATE (note) ON app.t TO PUBLIC",
        "SELECT attacl IS NOT NULL FROM pg_attribute WHERE attrelid = 'app.t'::regclass AND attname = 'note'",
        "done",
    ),
    "comment": Ddl(
        "COMMENT ON TABLE app.t IS 'fresh'", "SELECT obj_description('app.t'::regclass) = 'fresh'", "failed"
    ),
    "trigger": Ddl(
        "CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW;END';"
        " CREATE TRIGGER fresh BEFORE INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.f()",
        "SELECT count(*) = 1 FROM pg_trigger WHERE tgrelid = 'app.t'::regclass AND tgname = 'fresh'",
        "done",
    ),
    "row-level security": Ddl(
        "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON app.t USING (k > 0)",
        "SELECT relrowsecurity FROM pg_class WHERE oid = 'app.t'::regclass",
        "done",
    ),
    "view": Ddl(
        "CREATE VIEW app.v AS SELECT k FROM app.t", "SELECT count(*) = (SELECT count(*) FROM app.t) FROM app.v", "done"
    ),
    "rule": Ddl(
        "CREATE RULE r AS ON DELETE TO app.t WHERE OLD.k = 1 DO INSTEAD NOTHING",
        "SELECT count(*) = 1 FROM pg_rules WHERE schemaname = 'app' AND rulename = 'r'",
        "done",
    ),
    "statistics": Ddl(
        "CREATE STATISTICS app.s ON note, last FROM app.t",
        "SELECT stxrelid = 'app.t'::regclass FROM pg_statistic_ext WHERE stxname = 's'",
        "failed",
    ),
    "storage option": Ddl(
        "ALTER TABLE app.t SET (fillfactor = 50)",
        "SELECT reloptions = '{fillfactor=50}' FROM pg_class WHERE oid = 'app.t'::regclass",
        "failed",
    ),
    "foreign key to it": Ddl(
        "CREATE TABLE app.child (k int REFERENCES app.t); INSERT INTO app.child VALUES (1)",
        "SELECT confrelid = 'app.t'::regclass AND convalidated FROM pg_constraint"
        " WHERE conrelid = 'app.child'::regclass AND contype = 'f'",
        "done",
    ),
    "foreign key of it": Ddl(
        "CREATE TABLE app.father AS SELECT k FROM app.t; ALTER TABLE app.father ADD PRIMARY KEY (k);"
        " ALTER TABLE app.t ADD CONSTRAINT fk FOREIGN KEY (k) REFERENCES app.father",
        "SELECT convalidated FROM pg_constraint WHERE conname = 'fk' AND conrelid = 'app.t'::regclass",
        "done",
    ),
    "child": Ddl(
        "CREATE TABLE app.child () INHERITS (app.t); INSERT INTO app.child VALUES (99, 99)",
        "SELECT count(*) = 1 FROM app.t WHERE k = 99",
        "failed",
    ),
    "user triggers off": Ddl(
        "ALTER TABLE app.t DISABLE TRIGGER USER; UPDATE app.t SET note = 'unseen' WHERE k = 3",
        "SELECT note = 'unseen' FROM app.t WHERE k = 3",
        "failed",
    ),
    "a log trigger off and on": Ddl(
        "ALTER TABLE app.t DISABLE TRIGGER headrace_repack_1_update; UPDATE app.t SET note = 'unseen' WHERE k = 3;"
        " ALTER TABLE app.t ENABLE ALWAYS TRIGGER headrace_repack_1_update",
        "SELECT note = 'unseen' FROM app.t WHERE k = 3",
        "failed",
    ),
    "all triggers off": Ddl(
        "ALTER TABLE app.t DISABLE TRIGGER ALL; UPDATE app.t SET note = 'unseen' WHERE k = 3",
        "SELECT note = 'unseen' FROM app.t WHERE k = 3",
        "failed",
        by="superuser",
    ),
    "truncate": Ddl("TRUNCATE app.t", "SELECT count(*) = 0 FROM app.t", "done"),
    "truncate and fill": Ddl(
        "UPDATE app.t SET note = 'x'; TRUNCATE app.t; INSERT INTO app.t VALUES (1, 2, 'only', NULL), (9, 1, 'two', '')",
        "SELECT string_agg(note, ',' ORDER BY k) = 'only,two' FROM app.t",
        "done",
    ),
    "vacuum full": Ddl("VACUUM FULL app.t", "SELECT count(*) = 19 FROM app.t", "done"),
    "drop": Ddl("DROP TABLE app.t", "SELECT to_regclass('app.t') IS NULL", "failed"),
    "rename": Ddl("ALTER TABLE app.t RENAME TO u", "SELECT count(*) = 19 FROM app.u", "failed"),
    "another schema": Ddl(
        "CREATE SCHEMA far; ALTER TABLE app.t SET SCHEMA far", "SELECT count(*) = 19 FROM far.t", "failed"
    ),
    "another table of that name": Ddl(
        "ALTER TABLE app.t RENAME TO u; CREATE TABLE app.t (LIKE app.u INCLUDING ALL); INSERT INTO app.t VALUES (5, 5)",
        "SELECT count(*) = 19 AND (SELECT count(*) = 1 FROM app.t) FROM app.u",
        "failed",
    ),
    "rewritten with other values": Ddl(
        "ALTER TABLE app.t ALTER note TYPE text USING upper(note)",
        "SELECT bool_and(note = upper(note)) FROM app.t",
        "failed",
    ),
    "column gone and back": Ddl(
        "ALTER TABLE app.t DROP COLUMN last; ALTER TABLE app.t ADD COLUMN last text",
        "SELECT count(last) = 0 FROM app.t",
        "failed",
    ),
}


@pytest.mark.parametrize("name", DDL)
def test_ddl_before_the_swap_is_never_lost(place: Place, name: str) -> None:
    """What is done to a table whose copy is ready is in the new table, or the copy is given up and the table stays."""
    case, conf, sql = DDL[name], place.conf, place.ask
    table(sql)
    sql("CREATE INDEX by_note ON app.t (note); DELETE FROM app.t WHERE k = 20")
    assert repack(conf, "t", SMALL.model_copy(update={"rehearse": False}), goal="ready") == []
    ask = place.superuser if case.by == "superuser" else sql
    ask("UPDATE app.t SET note = note || '!' WHERE k < 3")
    for statement in case.statements.split("; "):
        ask(statement)
    problems = swap(conf, sql, "t", seconds=10)
    assert sql(case.probe) == [(True,)]
    assert sql("SELECT state FROM headrace.repack") == [(case.outcome,)], problems
    assert bool(problems) == (case.outcome == "failed")
    assert leftovers(sql) == []


def test_a_right_that_is_being_given_is_not_lost(conf: Settings, dsn: str, sql: Ask) -> None:
    """A GRANT, which locks no table, makes the swap wait, or fail and be tried again, until its transaction ends."""
    table(sql)
    request = Stepper(conf, sql, "t", TINY.model_copy(update={"hold_seconds": 0.5}))
    request.until("swap")
    with closing(psycopg2.connect(dsn)) as conn:
        conn.cursor().execute("GRANT SELECT ON app.t TO PUBLIC")
        request.step()
        assert request.at == "swap"
        conn.commit()
    request.finish()
    assert sql(DDL["grant"].probe) == [(True,)]


# What happens while a step is under way


@contextmanager
def under_way(request: Stepper) -> Iterator[threading.Thread]:
    """A step that is being done, and stands before a lock of the block's; it goes on when the block ends."""
    problems: list[BaseException] = []

    def step() -> None:
        try:
            request.step()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    ledger.until(lambda: request.ask("SELECT 1 FROM pg_locks WHERE NOT granted"), "the step waits for a lock")
    yield thread
    thread.join(30)
    assert not thread.is_alive()
    assert problems == []


@pytest.mark.parametrize("at", ["copy", "index", "replay", "verify"])  # fmt: skip
def test_truncate_while_a_step_waits_for_it(conf: Settings, dsn: str, sql: Ask, at: str) -> None:
    """A step that began before the end of a TRUNCATE goes on with what came after it, and with nothing else."""
    table(sql)
    request = Stepper(conf, sql, "t")
    request.until("index" if at == "replay" else at)
    sql("UPDATE app.t SET note = 'x' WHERE k <= 10")
    request.until(at)
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("TRUNCATE app.t; INSERT INTO app.t VALUES (3, 3, 'new', NULL), (99, 99, 'new', NULL)")
        with under_way(request):
            conn.commit()
    sql("UPDATE app.t SET note = 'newer' WHERE k = 3")
    request.finish()
    assert sql("SELECT k, note FROM app.t ORDER BY k") == [(3, "newer"), (99, "new")]


def test_truncate_after_the_swap_is_nothing_to_complain_of(conf: Settings, sql: Ask) -> None:
    """A new table that was truncated before it could be compared is not compared: it is empty, and that is right."""
    table(sql)
    request = Stepper(conf, sql, "t")
    request.until("verify")
    sql("TRUNCATE app.t")
    request.finish()
    assert sql("SELECT count(*) FROM app.t") == [(0,)]


@pytest.mark.parametrize("statement", ["DROP TABLE app.t", "ALTER TABLE app.t RENAME TO u"])
def test_a_new_table_that_is_gone_ends_its_request(conf: Settings, sql: Ask, statement: str) -> None:
    """When the new table is dropped or renamed before it is verified, the request ends, and leaves nothing behind."""
    table(sql)
    request = Stepper(conf, sql, "t", TINY.model_copy(update={"max_failures": 2}))
    request.until("verify")
    sql(statement)
    for _ in range(6):
        with suppress(PermanentFailure, RetryLater, psycopg2.Error):
            request.step()
    assert request.at in ("done", "failed")
    assert leftovers(sql) == []


def test_a_pause_after_the_keys_index_costs_nothing(conf: Settings, dsn: str, sql: Ask) -> None:
    """A request that is stopped between the key's index and the replay of the log builds its unique indexes later."""
    table(sql, 40)
    request = Stepper(conf, sql, "t")
    request.until("copy")
    request.step()
    # A copied row and one that is not yet exchange their values.
    sql("UPDATE app.t SET code = -1 WHERE k = 1; UPDATE app.t SET code = 1 WHERE k = 40")
    sql("UPDATE app.t SET code = 40 WHERE k = 1")
    request.until("index")
    with closing(psycopg2.connect(dsn)) as conn:
        conn.cursor().execute(f"LOCK TABLE headrace_new_{request.number}.t IN ROW EXCLUSIVE MODE")
        with under_way(request):
            sql("UPDATE headrace.repack SET paused_at = now(), paused_by = 'a person'")
            conn.commit()
    sql("UPDATE headrace.repack SET paused_at = NULL, paused_by = NULL")
    request.finish()
    assert sql("SELECT k, code FROM app.t WHERE k IN (1, 40) ORDER BY k") == [(1, 40), (40, 1)]


def test_a_hot_table_is_given_up_before_its_indexes(conf: Settings, dsn: str, sql: Ask) -> None:
    """A11: also while the log is replayed for the first time, one that does not shrink ends the request."""
    table(sql)

    def write(conn: Any, chance: random.Random) -> None:
        conn.cursor().execute("UPDATE app.t SET note = 'x' WHERE k = %s", (chance.randint(1, 20),))
        conn.commit()

    def give_up() -> None:
        with suppress(PermanentFailure):
            while request.at == "index" and not sql("SELECT 1 FROM headrace.repack WHERE paused_at IS NOT NULL"):
                request.step()

    limits = {"check_seconds": 0.2, "catch_up_seconds": 1.0, "lock_attempts": 30, "slice_seconds": 0.1}
    request = Stepper(conf, sql, "t", TINY.model_copy(update=limits))
    request.until("index")
    with writers(dsn, write, count=4) as done:
        ledger.until(lambda: sum(done) > 100, "the writers write")
        thread = threading.Thread(target=give_up, daemon=True)
        thread.start()
        thread.join(3)
        is_bounded = not thread.is_alive()
        sql("UPDATE headrace.repack SET paused_at = now() WHERE state = 'active'")
    thread.join(30)
    assert is_bounded
    assert sql("SELECT state, reason FROM headrace.repack") == [("failed", "cannot_catch_up")]


def test_rows_of_another_table_of_that_name_are_not_taken(conf: Settings, sql: Ask) -> None:
    """While another table has the name for a moment, its rows are not taken for the table's own."""
    table(sql)
    request = Stepper(conf, sql, "t")
    request.until("replay")
    sql("UPDATE app.t SET note = 'mine' WHERE k = 1; UPDATE app.t SET note = 'mine' WHERE k = 2")
    sql("ALTER TABLE app.t RENAME TO mine; CREATE TABLE app.t (LIKE app.mine INCLUDING ALL)")
    sql("INSERT INTO app.t VALUES (1, 1, 'another', NULL)")
    with suppress(PermanentFailure):
        request.step()
    sql("DROP TABLE app.t; ALTER TABLE app.mine RENAME TO t")
    with suppress(PermanentFailure):
        request.until()
    assert leftovers(sql) == []
    assert sql("SELECT count(*), count(*) FILTER (WHERE note = 'mine') FROM app.t") == [(20, 2)]


# Other isolation levels


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_writer_with_an_old_snapshot_is_not_lost(conf: Settings, dsn: str, sql: Ask, level: str) -> None:
    """What a transaction writes whose snapshot is older than the log is in the new table."""
    table(sql)
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        cursor.execute("SELECT count(*) FROM headrace.repack")
        assert repack(conf, "t", goal="ready") == []
        cursor.execute("UPDATE app.t SET note = 'late' WHERE k IN (1, 20); DELETE FROM app.t WHERE k = 2")
        cursor.execute("INSERT INTO app.t VALUES (21, 21, 'late', NULL)")
        conn.commit()
    assert swap(conf, sql, "t") == []
    assert sql("SELECT count(*), count(*) FILTER (WHERE note = 'late') FROM app.t") == [(20, 3)]


# Any order of anything


SESSIONS = 3
TABLES = {
    "plain": ("k int PRIMARY KEY, code int NOT NULL UNIQUE, note text", TableRules()),
    "deferred": (
        "k int PRIMARY KEY DEFERRABLE, code int NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED, note text", TableRules(),
    ),
    "composite": ("k int, code int UNIQUE, note text, PRIMARY KEY (code, k)", TableRules()),
    "ordered": ("k int PRIMARY KEY, code int NOT NULL UNIQUE, note text", TableRules(order_by=("code",))),
    "sorted": ("k int PRIMARY KEY, code int NOT NULL UNIQUE, note text", TableRules(order_by=("note",))),
    "no primary key": ("k int UNIQUE NOT NULL, code int NOT NULL UNIQUE, note text, w text DEFAULT repeat('w', 3000)",
                 TableRules()),
}  # fmt: skip
CHANGES = {
    "insert": "INSERT INTO {t} VALUES ({a}, {b}, 'i')",
    "update": "UPDATE {t} SET note = note || 'u' WHERE k = {a}",
    "code": "UPDATE {t} SET code = {b} WHERE k = {a}",
    "key": "UPDATE {t} SET k = {b} WHERE k = {a}",
    "delete": "DELETE FROM {t} WHERE k = {a}",
    "many": "UPDATE {t} SET note = 'm' || k WHERE k BETWEEN {a} AND {b}",
    "keys exchanged": "UPDATE {t} SET k = -1 WHERE k = {a}; UPDATE {t} SET k = {a} WHERE k = {b};"
                      " UPDATE {t} SET k = {b} WHERE k = -1",
    "codes exchanged": "UPDATE {t} SET code = -k WHERE k IN ({a}, {b});"
                       " UPDATE {t} SET code = {a} + {b} + code WHERE k IN ({a}, {b}) AND code < 0",
    "undone": "UPDATE {t} SET note = 'undone', k = k + 1000 WHERE k = {a}; SAVEPOINT inner_one; DELETE FROM {t};"
              " ROLLBACK TO SAVEPOINT inner_one",
    "truncate": "TRUNCATE {t}",
}  # fmt: skip
NUMBER = st.integers(1, 14)
ACTION = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["commit", "commit", "rollback"]), st.integers(0, SESSIONS - 1)),
    st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, SESSIONS - 1), NUMBER, NUMBER),
    st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, SESSIONS - 1), NUMBER, NUMBER),
)
LITTLE = TINY.model_copy(update={"max_replay_rows": 4, "swap_below_rows": 4})
_numbers = itertools.count(1)


@dataclass
class History:
    """A table and its shadow, which has the same changes in the same transactions but is never rewritten."""

    request: Stepper
    ask: Ask
    sessions: list[Any]
    truncating: set[int] = field(default_factory=set)

    def do(self, action: tuple[Any, ...]) -> None:
        """One action of a history."""
        kind, *arguments = action
        if kind == "step":
            for _ in range(arguments[0]):
                self.step()
        elif kind in ("commit", "rollback"):
            self.end(kind, arguments[0])
        else:
            self.change(kind, *arguments)

    def step(self) -> None:
        """One message; who truncates commits while it waits, as it does in the end anyway."""
        if not self.truncating:
            return self.request.step()
        if self.request.at == "verify":
            return None  # see test_truncate_while_a_step_waits_for_it
        thread = threading.Thread(target=self.request.step, daemon=True)
        thread.start()
        thread.join(0.3)
        if thread.is_alive():
            for number in list(self.truncating):
                self.end("commit", number)
        thread.join(30)
        assert not thread.is_alive()
        return None

    def end(self, how: str, number: int) -> None:
        """End a session's transaction; with a deferred constraint COMMIT may roll it back."""
        with suppress(psycopg2.errors.UniqueViolation):
            getattr(self.sessions[number], how)()
        self.truncating.discard(number)

    def change(self, kind: str, number: int, a: int, b: int) -> None:
        """Change both tables, or none when another session's lock or row is in the way."""
        with self.sessions[number].cursor() as cursor:
            cursor.execute("SAVEPOINT change")
            try:
                for name in (self.request.table, f"{self.request.table}_shadow"):
                    cursor.execute(CHANGES[kind].format(t=f"app.{name}", a=a, b=b))
            except (psycopg2.errors.LockNotAvailable, psycopg2.errors.UniqueViolation):
                cursor.execute("ROLLBACK TO SAVEPOINT change")
            else:
                if kind == "truncate":
                    self.truncating.add(number)


@pytest.mark.parametrize("kind", TABLES)
@settings(
    deadline=None, suppress_health_check=list(HealthCheck), derandomize="HISTORIES" not in os.environ,
    max_examples=int(os.environ.get("HISTORIES", "2")), database=None,
)  # fmt: skip
@given(history=st.lists(ACTION, min_size=15, max_size=40), rows=st.integers(0, 14))
def test_any_history_leaves_the_table_like_its_shadow(
    conf: Settings, dsn: str, sql: Ask, kind: str, history: list[tuple[Any, ...]], rows: int
) -> None:
    """However changes, ends of transactions and steps follow each other, the table is as if it was never rewritten."""
    sql("CREATE SCHEMA IF NOT EXISTS app")
    columns, rules = TABLES[kind]
    name = f"t{next(_numbers)}"
    for one in (name, f"{name}_shadow"):
        sql(f"CREATE TABLE app.{one} ({columns})")
        sql(f"INSERT INTO app.{one} (k, code, note) SELECT k, k, 'n' || -k FROM generate_series(1, {rows}) k")
    sessions = [psycopg2.connect(dsn, options="-c lock_timeout=20ms") for _ in range(SESSIONS)]
    try:
        story = History(Stepper(conf, sql, name, LITTLE, rules), sql, sessions)
        for action in history:
            story.do(action)
        for number in range(SESSIONS):
            story.end("commit", number)
        story.request.finish()
    finally:
        for session in sessions:
            session.close()
    assert differences(sql, f"SELECT * FROM app.{name}", f"SELECT * FROM app.{name}_shadow") == []
    assert leftovers(sql) == []
    sql(f"DROP TABLE app.{name}, app.{name}_shadow")
