"""Preflight on real databases: each obstacle is refused by name, and harmless things are let be."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers, _admin, _drop
from workers import database
from workers.database import Connection
from workers.errors import PermanentFailure
from workers.repack import preflight, preflight_catalog
from workers.repack_settings import TableRules
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer
from workers.targets import Target

DEBIAN = Path("/usr/lib/postgresql/15/bin")
PLAIN = "SET SESSION AUTHORIZATION headrace"
SUPER = "RESET SESSION AUTHORIZATION"
OTHER = f"{SUPER}; CREATE ROLE other; GRANT ALL ON SCHEMA app TO other; SET SESSION AUTHORIZATION other"
TABLE = "CREATE TABLE app.t (id int PRIMARY KEY, a text, j jsonb)"


@dataclass(frozen=True)
class Case:
    """SQL of a plain role that owns schema app, and what the one line about app.t must say."""

    setup: str
    says: tuple[str, ...]
    rules: TableRules = field(default_factory=TableRules)
    table: str = "app.t"
    reasons: int = 1


@pytest.fixture(scope="module")
def names(servers: Servers) -> Iterator[tuple[str, str]]:
    """A database of the plain role: its dsn for that role and for the superuser."""
    name = f"preflight_{os.getpid()}"
    with _admin(servers) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    yield servers.postgres.dsn(name), servers.postgres.superuser_dsn(name)
    database.close_all()
    _drop(servers, name)


def run(conn: Connection, statements: str) -> None:
    """Execute statements, none of which has parameters."""
    with conn.cursor() as cursor:
        cursor.execute(statements)


@contextmanager
def undone(dsn: str) -> Iterator[Connection]:
    """A transaction in which the superuser became the plain role, owner of schema app; nothing of it stays."""
    with closing(database.connect(Target("here", dsn), purpose="tests")) as conn:
        run(conn, f"{PLAIN}; CREATE SCHEMA app")
        yield conn
        conn.rollback()


def lines(conn: Connection, rules: TableRules | None = None, table: str = "app.t") -> list[str]:
    """What preflight refuses of a table."""
    facts = preflight_catalog.facts(conn, *preflight_catalog.find(conn, table))
    return preflight.refusals(facts, rules or TableRules())


KINDS = {
    "unknown": Case("CREATE TABLE app.things (id int PRIMARY KEY)", ("app.thing:", "no such table", "mean app.things"),
                    table="app.thing"),
    "view": Case("CREATE VIEW app.t AS SELECT 1 AS id", ("is a view",)),
    "matview": Case("CREATE MATERIALIZED VIEW app.t AS SELECT 1 AS id", ("is a materialized view",)),
    "sequence": Case("CREATE SEQUENCE app.t", ("is a sequence",)),
    "index": Case("CREATE TABLE app.o (id int); CREATE INDEX t ON app.o (id)", ("is an index",)),
    "foreign": Case(f"{SUPER}; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
                    f"GRANT USAGE ON FOREIGN SERVER s TO headrace; {PLAIN};"
                    "CREATE FOREIGN TABLE app.t (id int) SERVER s", ("is a foreign table",)),
    "partitioned": Case("CREATE TABLE app.t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
                        "CREATE TABLE app.t1 PARTITION OF app.t DEFAULT", ("is partitioned", "1 leaf")),
    "catalog": Case("", ("pg_catalog.pg_class:", "PostgreSQL's own"), table="pg_catalog.pg_class"),
    "information_schema": Case("", ("PostgreSQL's own",), table="information_schema.sql_features"),
    "own temporary": Case("CREATE TEMPORARY TABLE t (id int PRIMARY KEY)", ("temporary table of this session",),
                          table="pg_temp.t"),
    "own schema": Case("CREATE SCHEMA headrace_log_7; CREATE TABLE headrace_log_7.log (id int PRIMARY KEY)",
                       ("headrace_log_7.log:", "Headrace's own"), table="headrace_log_7.log"),
}  # fmt: skip

RIGHTS = {
    "not owner": Case(f"{OTHER}; {TABLE}; GRANT ALL ON app.t TO headrace; {PLAIN}",
                      ("belongs to other", "GRANT other TO headrace")),
    "no inherit": Case(f"{OTHER}; {TABLE}; {SUPER}; GRANT other TO headrace WITH INHERIT FALSE; {PLAIN}",
                       ("belongs to other", "does not inherit")),
    "no set": Case(f"{OTHER}; {TABLE}; {SUPER}; GRANT other TO headrace WITH INHERIT TRUE, SET FALSE; {PLAIN}",
                   ("may not give tables to other",)),
    "owner may not create": Case(f"{OTHER}; {TABLE}; {SUPER}; GRANT other TO headrace WITH INHERIT TRUE;"
                                 f"REVOKE CREATE ON SCHEMA app FROM other; {PLAIN}",
                                 ("owner other may not create in schema app",)),
    "no create in database": Case(f"{TABLE}; {SUPER}; CREATE ROLE plain; ALTER TABLE app.t OWNER TO plain;"
                                  "GRANT ALL ON SCHEMA app TO plain; SET SESSION AUTHORIZATION plain",
                                  ("plain may not create schemas", "GRANT CREATE ON DATABASE")),
    "no create in schema": Case(f"{TABLE}; REVOKE CREATE ON SCHEMA app FROM headrace",
                                ("may not create in schema app",)),
    "no select": Case(f"{TABLE}; REVOKE SELECT ON app.t FROM headrace", ("has no SELECT",)),
    "no trigger": Case(f"{TABLE}; REVOKE TRIGGER ON app.t FROM headrace", ("has no TRIGGER",)),
    "no lock": Case(f"{TABLE}; REVOKE UPDATE, DELETE, TRUNCATE ON app.t FROM headrace", ("has no UPDATE",)),
    "no plpgsql": Case(f"{TABLE}; {SUPER}; REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; {PLAIN}", ("plpgsql",)),
    "forced row security": Case(f"{TABLE}; ALTER TABLE app.t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
                                ("row level security", "BYPASSRLS")),
    "no type": Case(f"{SUPER}; CREATE TYPE app.mood AS ENUM ('so'); {PLAIN}; {TABLE};"
                    f"ALTER TABLE app.t ADD m app.mood; {SUPER}; REVOKE USAGE ON TYPE app.mood FROM PUBLIC; {PLAIN}",
                    ("may not use the type app.mood of column m",)),
    "no execute": Case(f"{OTHER}; CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                       f"{PLAIN}; {TABLE}; CREATE TRIGGER tr AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION"
                       f" app.f(); {SUPER}; REVOKE EXECUTE ON FUNCTION app.f() FROM PUBLIC; {PLAIN}",
                       ("trigger tr calls function app.f()", "may not execute")),
    "no execute in a check": Case(f"{OTHER}; CREATE FUNCTION app.f(int) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
                                  f"{PLAIN}; CREATE TABLE app.t (id int PRIMARY KEY CONSTRAINT fine CHECK (app.f(id)));"
                                  f"{SUPER}; REVOKE EXECUTE ON FUNCTION app.f(int) FROM PUBLIC; {PLAIN}",
                                  ("check fine calls function app.f(integer)",)),
    "no references": Case(f"{OTHER}; CREATE TABLE app.o (id int PRIMARY KEY); GRANT REFERENCES ON app.o TO headrace;"
                          f"{PLAIN}; {TABLE}; ALTER TABLE app.t ADD CONSTRAINT to_o FOREIGN KEY (id)"
                          f" REFERENCES app.o; {SUPER}; REVOKE REFERENCES ON app.o FROM headrace; {PLAIN}",
                          ("foreign key to_o of app.t", "GRANT REFERENCES ON app.o")),
    "foreign grant": Case(f"{TABLE}; {SUPER}; CREATE ROLE one; CREATE ROLE two; {PLAIN};"
                          "GRANT SELECT ON app.t TO one WITH GRANT OPTION;"
                          f"{SUPER}; GRANT USAGE ON SCHEMA app TO one; SET SESSION AUTHORIZATION one;"
                          f"GRANT SELECT ON app.t TO two; {PLAIN}", ("granted by one",)),
}  # fmt: skip

KEYS = {
    "no key": Case("CREATE TABLE app.t (id int)", ("app.t:", "no usable key", "add a primary key")),
    "nullable": Case("CREATE TABLE app.t (id int CONSTRAINT by_id UNIQUE)", ("by_id allows nulls in id",)),
    "partial": Case("CREATE TABLE app.t (id int NOT NULL); CREATE UNIQUE INDEX x ON app.t (id) WHERE id > 0",
                    ("x is partial",)),
    "expression": Case("CREATE TABLE app.t (id int NOT NULL); CREATE UNIQUE INDEX x ON app.t (abs(id))",
                       ("x is over an expression",)),
    "operator class": Case("CREATE TABLE app.t (id text NOT NULL); CREATE UNIQUE INDEX x ON app.t"
                           " (id text_pattern_ops)", ("x has an operator class",)),
    "collation": Case('CREATE TABLE app.t (id text NOT NULL); CREATE UNIQUE INDEX x ON app.t (id COLLATE "POSIX")',
                      ("x has an operator class or collation",)),
    "never validated": Case("CREATE TABLE app.t (id int UNIQUE);"
                            "ALTER TABLE app.t ADD CONSTRAINT n NOT NULL id NOT VALID", ("allows nulls in id",)),
    "no scalar": Case("CREATE TABLE app.t (a int4range, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS))",
                      ("t_pkey is no btree index",)),
}  # fmt: skip

OBJECTS = {
    "function argument": Case(f"{TABLE}; CREATE FUNCTION app.f(app.t) RETURNS int LANGUAGE sql AS 'SELECT 1'",
                              ("function app.f(app.t) uses its row type",)),
    "function array": Case(f"{TABLE}; CREATE FUNCTION app.f(app.t[]) RETURNS int LANGUAGE sql AS 'SELECT 1'",
                           ("function app.f(app.t[]) uses its row type",)),
    "function result": Case(f"{TABLE}; CREATE FUNCTION app.f() RETURNS SETOF app.t LANGUAGE sql AS"
                            " 'SELECT * FROM app.t'", ("function app.f() uses its row type",)),
    "column of the row type": Case(f"{TABLE}; CREATE TABLE app.o (was app.t)", ("column was of table app.o",)),
    "domain": Case(f"{TABLE}; CREATE DOMAIN app.d AS app.t", ("type app.d uses its row type",)),
    "composite type": Case(f"{TABLE}; CREATE TYPE app.c AS (was app.t[])", ("column was of composite type app.c",)),
    "view of rows": Case(f"{TABLE}; CREATE VIEW app.v AS SELECT t FROM app.t", ("column t of view app.v",)),
    "aggregate": Case(f"{TABLE}; CREATE FUNCTION app.s(int, app.t) RETURNS int LANGUAGE sql AS 'SELECT 1';"
                      "CREATE AGGREGATE app.g(app.t) (SFUNC = app.s, STYPE = int)", ("function app.g(app.t)",),
                      reasons=2),
    "cast": Case(f"{TABLE}; CREATE FUNCTION app.s(app.t) RETURNS int LANGUAGE sql AS 'SELECT 1';"
                 "CREATE CAST (app.t AS int) WITH FUNCTION app.s(app.t)", ("cast from app.t to integer",), reasons=2),
    "operator": Case(f"{TABLE}; CREATE FUNCTION app.s(app.t, int) RETURNS int LANGUAGE sql AS 'SELECT 1';"
                     "CREATE OPERATOR app.+ (LEFTARG = app.t, RIGHTARG = int, FUNCTION = app.s)",
                     ("operator app.+(app.t,integer)",), reasons=2),
    "materialized view": Case(f"{TABLE}; CREATE MATERIALIZED VIEW app.m AS SELECT id FROM app.t",
                              ("materialized view app.m reads it",)),
    "constant elsewhere": Case(f"{TABLE}; CREATE TABLE app.o (whose regclass DEFAULT 'app.t'::regclass)",
                               ("default value for column whose of table app.o refers to it",)),
    "constant in itself": Case(f"{TABLE}; ALTER TABLE app.t ADD whose regclass DEFAULT 'app.t'::regclass",
                               ("default value for column whose of table app.t names the table itself",)),
    "check of itself": Case(f"{TABLE}; ALTER TABLE app.t ADD CONSTRAINT me CHECK ('app.t'::regclass::text <> a)",
                            ("constraint me on table app.t names the table itself",)),
    "trigger from elsewhere": Case(f"{TABLE}; CREATE TABLE app.o (id int); CREATE FUNCTION app.f() RETURNS trigger"
                                   " LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE CONSTRAINT TRIGGER tr"
                                   " AFTER INSERT ON app.o FROM app.t FOR EACH ROW EXECUTE FUNCTION app.f()",
                                   ("trigger tr on table app.o refers to it",)),
    "invalid index": Case(f"{TABLE}; CREATE INDEX half ON app.t (a); {SUPER}; UPDATE pg_index SET indisvalid = false"
                          f" WHERE indexrelid = 'app.half'::regclass; {PLAIN}", ("index half is invalid",)),
    "temporary view": Case(f"{TABLE}; CREATE TEMPORARY VIEW v AS SELECT id FROM app.t", ("is temporary",)),
    "temporary child": Case(f"{TABLE}; CREATE TEMPORARY TABLE c () INHERITS (app.t)", ("child c is temporary",)),
    "security label": Case(f"{TABLE}; {SUPER}; INSERT INTO pg_seclabel VALUES ('app.t'::regclass, 'pg_class'::regclass,"
                           f" 0, 'dummy', 'secret'); {PLAIN}", ("table app.t has a security label of dummy",)),
    "extension": Case(f"{TABLE}; {SUPER}; ALTER EXTENSION plpgsql ADD TABLE app.t; {PLAIN}", ("extension plpgsql",)),
    "depends on extension": Case(f"{TABLE}; CREATE INDEX x ON app.t (a);"
                                 "ALTER INDEX app.x DEPENDS ON EXTENSION plpgsql", ("index app.x", "plpgsql")),
    "function depends on extension": Case(f"{TABLE}; CREATE FUNCTION app.f() RETURNS bigint BEGIN ATOMIC"
                                          " SELECT count(*) FROM app.t; END;"
                                          "ALTER FUNCTION app.f() DEPENDS ON EXTENSION plpgsql",
                                          ("function app.f() is marked",)),
    "all tables": Case(f"{TABLE}; {SUPER}; CREATE PUBLICATION everything FOR ALL TABLES; {PLAIN}",
                       ("publication everything is FOR ALL TABLES",)),
    "subscription": Case(f"{TABLE}; {SUPER}; CREATE SUBSCRIPTION feed CONNECTION 'dbname=none' PUBLICATION p"
                         " WITH (connect = false); INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
                         f" SELECT oid, 'app.t'::regclass, 'r' FROM pg_subscription; {PLAIN}",
                         ("subscription feed fills it",)),
}  # fmt: skip

KIN = {
    "inbound from partitioned": Case(f"{TABLE}; CREATE TABLE app.o (id int CONSTRAINT to_t REFERENCES app.t)"
                                     " PARTITION BY RANGE (id); CREATE TABLE app.o1 PARTITION OF app.o DEFAULT",
                                     ("foreign key to_t of app.o: app.o is partitioned",)),
    "to partitioned": Case("CREATE TABLE app.o (id int PRIMARY KEY) PARTITION BY RANGE (id);"
                           f"CREATE TABLE app.o1 PARTITION OF app.o DEFAULT; {TABLE};"
                           "ALTER TABLE app.t ADD CONSTRAINT to_o FOREIGN KEY (id) REFERENCES app.o",
                           ("foreign key to_o of app.t: app.o is partitioned",)),
    "parent is referenced": Case("CREATE TABLE app.p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
                                 "CREATE TABLE app.t PARTITION OF app.p DEFAULT;"
                                 "CREATE TABLE app.o (id int CONSTRAINT to_p REFERENCES app.p)",
                                 ("foreign key to_p of app.o refers to app.p",)),
    "parent refers": Case("CREATE TABLE app.o (id int PRIMARY KEY);"
                          "CREATE TABLE app.p (id int PRIMARY KEY CONSTRAINT to_o REFERENCES app.o)"
                          " PARTITION BY RANGE (id); CREATE TABLE app.t PARTITION OF app.p DEFAULT",
                          ("foreign key to_o of app.p refers to app.o",)),
    "several parents": Case(f"{TABLE}; CREATE TABLE app.second (b int); CREATE TABLE app.c () INHERITS"
                            " (app.t, app.second)", ("child app.c inherits", "app.second comes after")),
    "disabled constraint": Case(f"{TABLE}; CREATE TABLE app.o (id int CONSTRAINT to_t REFERENCES app.t); {SUPER};"
                                f"ALTER TABLE app.o DISABLE TRIGGER ALL; {PLAIN}",
                                ("constraint to_t of app.o is switched off",)),
}  # fmt: skip

FOREIGN = {
    "view": ("CREATE VIEW app.v AS SELECT id FROM app.t", "view app.v"),
    "function": ("CREATE FUNCTION app.f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM app.t; END",
                 "function app.f()"),
    "rule": ("CREATE TABLE app.o (id int); CREATE RULE r AS ON INSERT TO app.o DO ALSO DELETE FROM app.t",
             "rule r on app.o"),
    "policy": ("CREATE TABLE app.o (id int); CREATE POLICY p ON app.o USING (id IN (SELECT id FROM app.t))",
               "policy p on app.o"),
    "foreign key": ("CREATE TABLE app.o (id int CONSTRAINT to_t REFERENCES app.t)", "foreign key to_t of app.o"),
}  # fmt: skip

TRANSFORMS = {
    "nulls of no json": Case(TABLE, ("cleanup_nulls: column a is of type text, not json or jsonb",),
                             TableRules(cleanup_nulls=("a",))),
    "no such column": Case(TABLE, ("cleanup_nulls: it has no column k",), TableRules(cleanup_nulls=("k",))),
    "keys of json": Case(f"{TABLE}; ALTER TABLE app.t ADD old json", ("remove_keys: column old is of type json",),
                         TableRules(remove_keys={"old": ("x",)})),
    "of the key": Case("CREATE TABLE app.t (j jsonb PRIMARY KEY)", ("column j is part of the key",),
                       TableRules(remove_keys={"j": ("x",)})),
    "generated": Case("CREATE TABLE app.t (id int PRIMARY KEY, j jsonb GENERATED ALWAYS AS (jsonb '{}') STORED)",
                      ("column j is generated",), TableRules(cleanup_nulls=("j",))),
    "order by nothing": Case(TABLE, ("order_by: it has no column identity",), TableRules(order_by=("identity",))),
    "no order": Case(f"{TABLE}; ALTER TABLE app.t ADD old json", ("column old", "no order"),
                     TableRules(order_by=("old",))),
    "no cluster index": Case(TABLE, ("cluster: it has no index t_pk; did you mean t_pkey?",),
                             TableRules(cluster="t_pk")),
    "cluster by gin": Case(f"{TABLE}; CREATE INDEX g ON app.t USING gin (j)", ("cluster: index g",),
                           TableRules(cluster="g")),
    "no tablespace": Case(TABLE, ("tablespace: there is no tablespace fast",), TableRules(tablespace="fast")),
    "shared tablespace": Case(TABLE, ("index_tablespace: there is no tablespace pg_global",),
                              TableRules(index_tablespace="pg_global")),
}  # fmt: skip

CASES = {
    f"{group}: {name}": case
    for group, cases in [
        ("kind", KINDS), ("rights", RIGHTS), ("key", KEYS), ("object", OBJECTS), ("kin", KIN), ("rules", TRANSFORMS),
    ]
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_obstacle_is_refused_by_name(names: tuple[str, str], case: Case) -> None:
    """A line names the table and what is in the way."""
    with undone(names[1]) as conn:
        if case.setup:
            run(conn, case.setup)
        said = lines(conn, case.rules, case.table)
        assert any(all(words in line for words in case.says) for line in said), said
        assert len(said) == case.reasons, said
        assert all(line.startswith(f"{case.table}: ") or case.table == "pg_temp.t" for line in said)


@pytest.mark.parametrize(("setup", "named"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_others_own_is_refused_until_the_role_is_granted(names: tuple[str, str], setup: str, named: str) -> None:
    """An object that must be bound to the new table, but is another role's, is named with its owner."""
    with undone(names[1]) as conn:
        run(conn, f"{TABLE}; {OTHER}; {SUPER}; GRANT ALL ON app.t TO other; SET SESSION AUTHORIZATION other")
        run(conn, f"{setup}; {PLAIN}")
        [line] = lines(conn)
        assert f"{named} belongs to other" in line
        assert "GRANT other TO headrace" in line
        run(conn, f"{SUPER}; GRANT other TO headrace WITH INHERIT TRUE; {PLAIN}")
        assert lines(conn) == []


@pytest.mark.parametrize("kind", ["publication", "statistics", "child", "parent", "view elsewhere"])
def test_what_others_own_beside_the_queries_is_refused(names: tuple[str, str], kind: str) -> None:
    """So are publications, statistics, relatives by inheritance, and views where the login may not create."""
    superuser = {
        "publication": "CREATE PUBLICATION p FOR TABLE app.t",
        "statistics": "CREATE STATISTICS app.s ON id, a FROM app.t; ALTER STATISTICS app.s OWNER TO other",
        "child": "CREATE TABLE app.c () INHERITS (app.t); ALTER TABLE app.c OWNER TO other",
        "parent": "CREATE TABLE app.p (a text); ALTER TABLE app.t INHERIT app.p; ALTER TABLE app.p OWNER TO other",
        "view elsewhere": "CREATE SCHEMA far; CREATE VIEW far.v AS SELECT id FROM app.t;"
        "ALTER VIEW far.v OWNER TO headrace; GRANT USAGE ON SCHEMA far TO headrace",
    }[kind]
    says = {
        "publication": "publication p belongs to postgres",
        "statistics": "statistics app.s belongs to other",
        "child": "child app.c belongs to other",
        "parent": "parent app.p belongs to other",
        "view elsewhere": "GRANT USAGE, CREATE ON SCHEMA far TO headrace",
    }[kind]
    with undone(names[1]) as conn:
        run(conn, f"{TABLE}; {SUPER}; CREATE ROLE other; {superuser}; {PLAIN}")
        [line] = lines(conn)
        assert says in line


HARMLESS = """
CREATE TYPE app.mood AS ENUM ('so', 'la');
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE TYPE app.pair AS (one int, two text);
CREATE TABLE app.ref (id int PRIMARY KEY, code text UNIQUE);
CREATE FUNCTION app.is_fine(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE TABLE app.grand (created timestamptz);
CREATE TABLE app.t (
    id bigint GENERATED BY DEFAULT AS IDENTITY (INCREMENT 3) PRIMARY KEY,
    n serial, n2 bigserial, "Mixed" text COLLATE "C" DEFAULT 'x', "select" int CHECK (app.is_fine("select")),
    parent bigint REFERENCES app.t DEFERRABLE INITIALLY DEFERRED,
    ref int REFERENCES app.ref ON DELETE CASCADE, code text REFERENCES app.ref (code),
    gone text, mood app.mood, small app.positive, pair app.pair, j jsonb, tags text[], span int4range,
    twice int GENERATED ALWAYS AS ("select" * 2) STORED,
    UNIQUE (n) DEFERRABLE, UNIQUE (n2) INCLUDE ("Mixed"), EXCLUDE USING gist (span WITH &&),
    CONSTRAINT once CHECK (n > 0) NO INHERIT, LIKE app.grand
) WITH (fillfactor = 70, autovacuum_enabled = false);
ALTER TABLE app.t DROP COLUMN gone;
ALTER TABLE app.t INHERIT app.grand;
ALTER TABLE app.t ADD CONSTRAINT later CHECK (n < 9) NOT VALID;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS
    'DECLARE was app.t; BEGIN SELECT * INTO was FROM app.t LIMIT 1; RETURN NEW; END';
CREATE INDEX ON app.t ("Mixed") WHERE "Mixed" > '';
CREATE INDEX ON app.t (lower("Mixed") text_pattern_ops);
CREATE INDEX ON app.t USING gin (j);
CREATE INDEX ON app.t USING brin (n);
CREATE UNIQUE INDEX for_replica ON app.t (n, n2);
ALTER TABLE app.t REPLICA IDENTITY USING INDEX for_replica;
ALTER TABLE app.t CLUSTER ON for_replica;
CREATE TABLE app.inbound (t bigint REFERENCES app.t, t2 bigint REFERENCES app.t (n2));
CREATE SCHEMA far;
CREATE TABLE far.inbound (t bigint);
ALTER TABLE far.inbound ADD FOREIGN KEY (t) REFERENCES app.t NOT VALID;
CREATE TABLE far.shares (n int DEFAULT nextval('app.t_n_seq'));
CREATE TABLE far.second (b int);
CREATE TABLE far.child () INHERITS (app.t);
CREATE TABLE far.middle () INHERITS (far.second, app.t);
CREATE VIEW app.v AS SELECT id, n, "Mixed" FROM app.t WHERE n > 1 WITH CHECK OPTION;
CREATE VIEW app.left_side WITH (security_barrier) AS SELECT id FROM app.v;
CREATE VIEW app.diamond AS SELECT l.id, count(*) FROM app.left_side l JOIN app.v USING (id) GROUP BY l.id;
CREATE VIEW app.grouped AS SELECT id, n, count(*) FROM app.t GROUP BY id;
CREATE VIEW app.as_json AS SELECT to_jsonb(t.*) AS row FROM app.t;
CREATE MATERIALIZED VIEW app.over_view AS SELECT id FROM app.v;
CREATE FUNCTION app.how_many() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM app.t; END;
CREATE FUNCTION app.of(r regclass DEFAULT 'app.t') RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE app.clean() BEGIN ATOMIC DELETE FROM app.t WHERE n < 0; END;
CREATE RULE own AS ON DELETE TO app.t WHERE OLD.n = 5 DO INSTEAD NOTHING;
CREATE RULE elsewhere AS ON INSERT TO app.ref DO ALSO UPDATE app.t SET n = n;
CREATE TRIGGER one BEFORE UPDATE ON app.t FOR EACH ROW WHEN (OLD.n IS DISTINCT FROM NEW.n) EXECUTE FUNCTION app.touch();
CREATE TRIGGER two AFTER INSERT ON app.t FOR EACH STATEMENT EXECUTE FUNCTION app.touch();
CREATE CONSTRAINT TRIGGER three AFTER INSERT ON app.t FROM app.ref DEFERRABLE FOR EACH ROW EXECUTE FUNCTION app.touch();
ALTER TABLE app.t DISABLE TRIGGER two;
ALTER TABLE app.t ENABLE ALWAYS TRIGGER one;
ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON app.t USING (id IN (SELECT parent FROM app.t));
CREATE POLICY elsewhere ON app.ref USING (id IN (SELECT ref FROM app.t));
CREATE STATISTICS app.s (dependencies) ON n, n2 FROM app.t;
CREATE PUBLICATION a_few FOR TABLE app.t (id, n, n2) WHERE (n > 0);
GRANT SELECT ON app.t TO PUBLIC;
GRANT UPDATE (n) ON app.t TO pg_monitor WITH GRANT OPTION;
GRANT USAGE ON SEQUENCE app.t_n_seq TO pg_monitor;
COMMENT ON TABLE app.t IS 'of no harm';
COMMENT ON COLUMN app.t.n IS 'neither';
ALTER TABLE app.t ALTER j SET STORAGE EXTERNAL, ALTER n SET STATISTICS 7, ALTER n SET (n_distinct = 5);
"""


def test_dozens_of_harmless_things_are_let_be(names: tuple[str, str]) -> None:
    """Whatever can be carried over is no reason to refuse, on a plain role's own connection."""
    with undone(names[0]) as conn:
        run(conn, HARMLESS)
        rules = TableRules(
            fillfactor=90, order_by=("n", "Mixed", "mood", "tags", "small", "pair"), cleanup_nulls=("j",),
            tablespace="pg_default",
        )  # fmt: skip
        assert lines(conn, rules) == []
        assert lines(conn, TableRules(cluster="for_replica", remove_keys={"j": ("x",)})) == []
        facts = preflight_catalog.facts(conn, "app", "t")
        assert preflight.warnings(facts) == []
        assert facts.key == preflight_catalog.Key(
            "t_pkey", "t_pkey", ("id",), ("id",), ("bigint",), ("OPERATOR(pg_catalog.=)",), True, False
        )


def test_a_partition_beside_a_default_one_is_let_be(names: tuple[str, str]) -> None:
    """Partitions are rewritten one by one, with their parent's triggers and indexes."""
    with undone(names[0]) as conn:
        run(conn, "CREATE TABLE app.p (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);"
                  "CREATE TABLE app.t PARTITION OF app.p FOR VALUES FROM (0) TO (9);"
                  "CREATE TABLE app.rest PARTITION OF app.p DEFAULT; CREATE INDEX ON app.p (a);"
                  "CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
                  "CREATE TRIGGER tr BEFORE INSERT ON app.p FOR EACH ROW EXECUTE FUNCTION app.f()")  # fmt: skip
        assert lines(conn) == []
        assert lines(conn, table="app.rest") == []


def test_the_key_is_the_best_that_there_is(names: tuple[str, str]) -> None:
    """The primary key goes first, then unique keys that hold at once, then deferrable ones; names come quoted."""
    with undone(names[0]) as conn:
        run(conn, 'CREATE TABLE app.t ("Id" varchar(20) NOT NULL, at timestamptz(3) NOT NULL, b int NOT NULL,'
                  ' CONSTRAINT late UNIQUE (b) DEFERRABLE)')  # fmt: skip
        late = preflight_catalog.facts(conn, "app", "t")
        assert (late.key and late.key.index, late.key and late.key.is_deferrable) == ("late", True)
        assert preflight.refusals(late, TableRules()) == []
        assert [line for line in preflight.warnings(late) if "late" in line and "deferrable" in line]
        run(conn, 'CREATE UNIQUE INDEX "The key" ON app.t ("Id", at) INCLUDE (b)')
        key = preflight_catalog.facts(conn, "app", "t").key
        assert key is not None
        assert (key.quoted_index, key.columns, key.quoted) == ('"The key"', ("Id", "at"), ('"Id"', "at"))
        assert key.types == ("character varying(20)", "timestamp(3) with time zone")
        run(conn, "ALTER TABLE app.t ADD CONSTRAINT first PRIMARY KEY (b, at)")
        assert [key.index for key in [preflight_catalog.facts(conn, "app", "t").key] if key] == ["first"]


def test_a_key_of_a_type_that_lives_elsewhere_comes_with_its_operators(names: tuple[str, str]) -> None:
    """A plain = would be text's there: two spellings of one citext key would be two rows."""
    with undone(names[1]) as conn:
        run(conn, f"{SUPER}; CREATE EXTENSION citext SCHEMA app; {PLAIN}")
        run(
            conn,
            "CREATE TABLE app.t (id app.citext PRIMARY KEY)",
        )
        key = preflight_catalog.facts(conn, "app", "t").key
        assert key is not None
        assert (key.types, key.equals) == (("app.citext",), ("OPERATOR(app.=)",))


def test_event_triggers_are_only_warned_of(names: tuple[str, str]) -> None:
    """An event trigger that runs at our statements is named; a disabled one is not."""
    with undone(names[1]) as conn:
        run(conn, f"{TABLE}; {SUPER}; CREATE FUNCTION app.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
                  "CREATE EVENT TRIGGER watch ON sql_drop EXECUTE FUNCTION app.e();"
                  "CREATE EVENT TRIGGER off ON ddl_command_end EXECUTE FUNCTION app.e();"
                  f"ALTER EVENT TRIGGER off DISABLE; {PLAIN}")  # fmt: skip
        assert lines(conn) == []
        [line] = preflight.warnings(preflight_catalog.facts(conn, "app", "t"))
        assert line.startswith("app.t: event trigger watch (sql_drop)")


def test_another_sessions_temporary_table_is_refused(names: tuple[str, str]) -> None:
    """Its rows are where no other session can read them."""
    with undone(names[0]) as conn, closing(psycopg2.connect(names[0])) as other:
        run(other, "CREATE TEMPORARY TABLE mine (id int PRIMARY KEY)")
        other.commit()
        with other.cursor() as cursor:
            cursor.execute("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()")
            [schema] = cursor.fetchone() or ()
        assert ["temporary table of another session" in line for line in lines(conn, table=f"{schema}.mine")] == [True]


NAMED = [
    ("app.t", ("app", "t")),
    (" App . T ", ("app", "t")),
    ('"app"."t"', ("app", "t")),
    ("app.MyTable", ("app", "MyTable")),
    ("app.mytable", ("app", "MyTable")),
    ('app."My.Table"', ("app", "My.Table")),
    ("app.My.Table", ("app", "My.Table")),
    ('APP."say ""hi"" now"', ("app", 'say "hi" now')),
    ("app.Ärger", ("app", "Ärger")),
    ("app.gone", ("app", "gone")),
    ('app."Gone"', ("app", "Gone")),
]


def test_names_are_found_as_a_person_writes_them(names: tuple[str, str]) -> None:
    """Quoted or not, in any letters, with dots in them; what is not there is read as SQL reads it."""
    with undone(names[0]) as conn:
        for table in ("t", '"MyTable"', '"My.Table"', '"say ""hi"" now"', '"Ärger"'):
            run(conn, f"CREATE TABLE app.{table} (id int PRIMARY KEY)")
        assert [preflight_catalog.find(conn, text) for text, _ in NAMED] == [found for _, found in NAMED]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t", "such as app.t"), ("", "no table's name"), ("app.", "no table's name"), ('app."t', "no table's name"),
        ("nothing", "does not say in which schema"), ("here.app.t", "more than one dot"),
        ('"here".app.t', "no table's name"), ("app.TWIN", 'write "app"."Twin" or "app"."tWin"'),
        ("app.Both", 'write "app"."both" or "app"."Both"'),
    ],
)  # fmt: skip
def test_a_name_that_says_too_little_is_refused(names: tuple[str, str], text: str, says: str) -> None:
    """Without schema, unreadable or of two tables: the message says how to write it."""
    with undone(names[0]) as conn:
        for table in ("t", '"Twin"', '"tWin"', "both", '"Both"'):
            run(conn, f"CREATE TABLE app.{table} (id int PRIMARY KEY)")
        with pytest.raises(PermanentFailure) as caught:
            preflight_catalog.find(conn, text)
        assert says in str(caught.value)


def test_leaves_are_those_of_the_whole_tree(names: tuple[str, str]) -> None:
    """Partitions of partitions are found, in other schemas too; an ordinary table has none."""
    with undone(names[0]) as conn:
        run(conn, "CREATE SCHEMA far; CREATE TABLE app.p (id int, d int) PARTITION BY RANGE (id);"
                  'CREATE TABLE app."P 1" PARTITION OF app.p FOR VALUES FROM (0) TO (9);'
                  "CREATE TABLE app.p2 PARTITION OF app.p FOR VALUES FROM (9) TO (99) PARTITION BY LIST (d);"
                  "CREATE TABLE far.p2a PARTITION OF app.p2 FOR VALUES IN (1);"
                  "CREATE TABLE far.p2b PARTITION OF app.p2 DEFAULT")  # fmt: skip
        assert preflight_catalog.leaves(conn, "app", "p") == [("app", "P 1"), ("far", "p2a"), ("far", "p2b")]
        assert preflight_catalog.leaves(conn, "app", "P 1") == []
        assert preflight_catalog.leaves(conn, "app", "none") == []


# A server of our own: what concerns all of it, on the oldest PostgreSQL that is here


@pytest.fixture(scope="module")
def old_server() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15, with prepared transactions and an autovacuum that looks each second."""
    if not DEBIAN.is_dir():
        reason = "preflight is tested on an older PostgreSQL, too: apt-get install postgresql-15"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="headrace-preflight-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(POSTGRES_VARIABLE, str(DEBIAN))
        server = PostgresServer(Path(folder))
        server.start()
        try:
            for setting in ("max_prepared_transactions = 5", "autovacuum_naptime = '1s'", "fsync = off"):
                ask(server.superuser_dsn(), f"ALTER SYSTEM SET {setting}")
            server.stop()
            server.start()
            ask(server.dsn(), "CREATE SCHEMA app")
            yield server
        finally:
            server.stop()


def ask(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own, committed."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def refused(server: PostgresServer, table: str, rules: TableRules | None = None) -> list[str]:
    """What preflight refuses of a table, on a plain role's own connection."""
    with closing(database.connect(Target("here", server.dsn()), purpose="tests")) as conn:
        return lines(conn, rules, table)


def test_the_older_server_is_asked_alike(old_server: PostgresServer) -> None:
    """Harmless things are let be there, and an obstacle is found."""
    with closing(database.connect(Target("here", old_server.dsn()), purpose="tests")) as conn:
        run(conn, HARMLESS)
        assert lines(conn) == []
        run(conn, "CREATE FUNCTION app.uses(app.t) RETURNS int LANGUAGE sql AS 'SELECT 1'")
        assert ["function app.uses(app.t)" in line for line in lines(conn)] == [True]
        conn.rollback()


def test_a_prepared_transaction_is_refused_by_name(old_server: PostgresServer) -> None:
    """Its lock may stay for days; one that holds nothing of this table is let be."""
    ask(old_server.dsn(), "CREATE TABLE app.kept (id int PRIMARY KEY); CREATE TABLE app.free (id int PRIMARY KEY)")
    ask(old_server.dsn(), "BEGIN; INSERT INTO app.kept VALUES (1); PREPARE TRANSACTION 'half done'")
    [line] = refused(old_server, "app.kept")
    assert line.startswith("app.kept: prepared transaction 'half done' of headrace")
    assert refused(old_server, "app.free") == []
    ask(old_server.dsn(), "ROLLBACK PREPARED 'half done'")
    assert refused(old_server, "app.kept") == []


def test_tablespaces_need_the_right_to_create_there(old_server: PostgresServer) -> None:
    """Asked for or in use, by the table or an index: the tablespace is named."""
    root = old_server.superuser_dsn("headrace")
    with closing(psycopg2.connect(root)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute("SET allow_in_place_tablespaces = on")
        cursor.execute("CREATE TABLESPACE fast LOCATION ''")
        cursor.execute("GRANT CREATE ON TABLESPACE fast TO headrace")
    ask(old_server.dsn(), "CREATE TABLE app.moved (id int PRIMARY KEY, a int) TABLESPACE fast;"
                          "CREATE INDEX moved_a ON app.moved (a) TABLESPACE fast")  # fmt: skip
    fast = TableRules(tablespace="fast", index_tablespace="fast")
    assert refused(old_server, "app.moved", fast) == []
    ask(root, "REVOKE CREATE ON TABLESPACE fast FROM headrace")
    [one, two] = refused(old_server, "app.moved", fast)
    assert "tablespace: headrace may not create in tablespace fast" in one
    assert "index_tablespace: headrace may not create in tablespace fast" in two
    [one, two] = refused(old_server, "app.moved")
    assert "it is in tablespace fast" in one
    assert "index moved_a is in tablespace fast" in two
    assert refused(old_server, "app.moved", TableRules(tablespace="pg_default", index_tablespace="pg_default")) == []
    ask(old_server.dsn(), "DROP TABLE app.moved")
    ask(root, "DROP TABLESPACE fast")


def test_a_vacuum_against_wraparound_is_refused(old_server: PostgresServer) -> None:
    """It does not give way to anybody; a login that may not see other sessions cannot know."""
    # Switched off, autovacuum comes for nothing but the wraparound; slowed down, it stays until it is asked for.
    ask(
        old_server.dsn(),
        "CREATE TABLE app.ancient (id int PRIMARY KEY) WITH (autovacuum_enabled = off,"
        " autovacuum_freeze_max_age = 100000, autovacuum_vacuum_cost_delay = 100,"
        " autovacuum_vacuum_cost_limit = 1); INSERT INTO app.ancient SELECT generate_series(1, 50000)",
    )
    ask(old_server.dsn(), "CREATE TEMPORARY TABLE burnt (id int); DO $$ BEGIN FOR i IN 1..100100 LOOP"
                          " BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END;"
                          " END LOOP; END $$")  # fmt: skip
    running = (
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'autovacuum: VACUUM%app.ancient (to prevent wraparound)'"
    )
    until(lambda: ask(old_server.superuser_dsn("headrace"), running), "autovacuum begins")
    assert refused(old_server, "app.ancient") == []
    ask(old_server.superuser_dsn("headrace"), "GRANT pg_read_all_stats TO headrace")
    [line] = refused(old_server, "app.ancient")
    assert "wraparound" in line
    assert "(pid " in line


def test_a_standby_is_refused(old_server: PostgresServer) -> None:
    """Nothing can be changed there; its primary is the place."""
    ask(old_server.dsn(), "CREATE TABLE app.copied (id int PRIMARY KEY)")
    old_server.stop()
    [signal] = [path.with_name("standby.signal") for path in old_server.folder.root.rglob("PG_VERSION")
                if (path.parent / "postgresql.conf").exists()]  # fmt: skip
    signal.touch()
    os.chown(signal, signal.parent.stat().st_uid, signal.parent.stat().st_gid)
    try:
        old_server.start()
        [line] = refused(old_server, "app.copied")
        assert "standby in recovery" in line
    finally:
        old_server.stop()
        signal.unlink()
        old_server.start()
