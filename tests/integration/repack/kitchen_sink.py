"""The kitchen sink: one table of each kind with something attached to it, what becomes of it, and what works after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Roles and a tablespace are the whole server's: a superuser makes them, once. The tables' owner is its ordinary login,
# or ks_owner, of which it is a member.
PREPARATION = (
    "CREATE ROLE ks_owner",
    "CREATE ROLE ks_reader",
    "CREATE ROLE ks_writer",
    "CREATE ROLE ks_stranger",
    'CREATE ROLE "ks % Role"',
    "GRANT ks_owner, ks_reader, ks_writer TO headrace",
    "SET allow_in_place_tablespaces = on",
    "CREATE TABLESPACE ks_space LOCATION ''",
    "GRANT CREATE ON TABLESPACE ks_space TO headrace, ks_owner",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """Tables of one kind. In SQL `app` and `far` are two schemas of its own, `pub` and `pub2` publications.

    `admin` is run by a superuser after `setup`. `same` is asked before and after, `works` afterwards, with its answer
    (a list of rows; None: any); `problem`: what the refusal must name. `since`: the first PostgreSQL that has this.
    """

    setup: str
    expected: Literal["repacked", "refused"] = "repacked"
    problem: str = ""
    tables: tuple[str, ...] = ("app.t",)
    admin: str = ""
    same: tuple[str, ...] = ()
    works: Mapping[str, Any] = field(default_factory=dict)
    since: int = 14

    def own(self, number: int) -> Kind:
        """The same with names of its own, so that all kinds fit into one database."""

        def named(text: str) -> str:
            return re.sub(r"\b(app|far|pub|pub2)\b", rf"\1_{number}", text)

        return Kind(
            named(self.setup), self.expected, named(self.problem), tuple(map(named, self.tables)), named(self.admin),
            tuple(map(named, self.same)), {named(query): rows for query, rows in self.works.items()}, self.since,
        )  # fmt: skip


# The usual table: a key, rows, and holes where rows were.
BODY = "id integer PRIMARY KEY, v text, n integer"
ROWS = """
INSERT INTO app.t (id, v, n) SELECT i, 'row ' || i, i % 7 FROM generate_series(1, 120) i;
DELETE FROM app.t WHERE id % 3 = 0;
"""
TABLE = f"CREATE TABLE app.t ({BODY}); {ROWS}"
NOTHING = "CREATE FUNCTION app.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
LONG = "a_name_as_long_as_postgresql_allows_any_name_to_be_which_is_63b"
SIGNS = r'''"100 % ""%s"" {x} $1 it's \ ;--"'''
LINES = '"two\nlines"'

KINDS: dict[str, Kind] = {
    "plain": Kind(TABLE),
    "types": Kind(
        """CREATE TYPE app.mood AS ENUM ('bad', 'good'); CREATE DOMAIN app.year AS integer CHECK (VALUE > 1900);
        CREATE TYPE app.pair AS (a integer, b text);
        CREATE TABLE app.t (id uuid PRIMARY KEY, m app.mood, y app.year, p app.pair, ps app.pair[], a integer[][],
            n numeric(10, 2), c char(4), vc varchar(9), b bit(3), vb bit varying(9), ts timestamp(3), tz timestamptz,
            ti interval day to second(2), j json, jb jsonb, x xml, by bytea, r int4range, mr int4multirange,
            i inet, tsv tsvector, f real, d double precision, mo money, pt point, o oid, q "char", nm name);
        INSERT INTO app.t SELECT md5(i::text)::uuid, 'good', 2000 + i, ROW(i, 'b')::app.pair, ARRAY[ROW(i,
            NULL)::app.pair],
            ARRAY[[i, 2], [3, 4]], i, 'c', 'vc', '101', '11', '2020-01-01 10:00:00.123', '2020-01-01 10:00:00+03',
            '1 day 02:03:04.56', '{"b": 1, "a": null}', '{"b": null}', NULL, '\\x00ff', '[1,5)', '{[1,2),[4,9)}',
            '10.0.0.1', 'a fat cat', 1.1 / i, 1.0 / i, 5, '(1,2)', 77, 'q', 'name' FROM generate_series(1, 50) i"""
    ),
    "defaults": Kind(
        """CREATE FUNCTION app.two() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2';
        CREATE SEQUENCE app.free;
        CREATE TABLE app.t (id integer PRIMARY KEY DEFAULT nextval('app.free'), two integer DEFAULT app.two(),
            at timestamptz DEFAULT now(), who name DEFAULT CURRENT_USER, quote text DEFAULT E'it''s % \\n "x"',
            later integer DEFAULT 5);
        INSERT INTO app.t (who) SELECT 'x' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.t DEFAULT VALUES RETURNING id, two": [(31, 2)]},
    ),
    "dropped columns": Kind(
        f"""CREATE TABLE app.t (g1 text, id integer PRIMARY KEY, g2 text, v text, g3 integer, n integer, u integer);
        {ROWS} ALTER TABLE app.t DROP g1, DROP g2, DROP g3, ADD g4 integer DEFAULT 7; ALTER TABLE app.t DROP g4;
        ALTER TABLE app.t ADD late text DEFAULT 'late';
        UPDATE app.t SET u = id; ALTER TABLE app.t ALTER u SET NOT NULL;
        CREATE UNIQUE INDEX t_u ON app.t (u); ALTER TABLE app.t REPLICA IDENTITY USING INDEX t_u;
        CREATE STATISTICS app.s ON v, n FROM app.t; GRANT UPDATE (n, late) ON app.t TO ks_writer;
        CREATE PUBLICATION pub FOR TABLE app.t (id, u, late) WHERE (u > 3);
        CREATE VIEW app.v AS SELECT * FROM app.t; COMMENT ON COLUMN app.t.late IS 'late';
        {NOTHING} CREATE TRIGGER tr AFTER UPDATE OF n, late ON app.t FOR EACH ROW WHEN (OLD.n <> NEW.n)
            EXECUTE FUNCTION app.nothing(); ALTER TABLE app.t ADD CHECK (n < 100)""",
        same=("SELECT * FROM app.v ORDER BY id",),
    ),
    "column added with a default": Kind(f"{TABLE} ALTER TABLE app.t ADD x integer NOT NULL DEFAULT 9"),
    "long names": Kind(
        f"""CREATE TABLE app.{LONG} ({LONG} integer CONSTRAINT {LONG[:-1]}k PRIMARY KEY, b text);
        CREATE INDEX {LONG[:-1]}i ON app.{LONG} (b); {NOTHING}
        CREATE TRIGGER {LONG} AFTER INSERT ON app.{LONG} FOR EACH ROW EXECUTE FUNCTION app.nothing();
        INSERT INTO app.{LONG} SELECT i, 'b' FROM generate_series(1, 30) i""",
        tables=(f"app.{LONG}",),
    ),
    "identity always": Kind(
        """CREATE TABLE app.t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
        INSERT INTO app.t (v) SELECT 'v' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.t (v) VALUES ('w') RETURNING id": [(31,)]},
    ),
    "identity with options and grants": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, num bigint GENERATED BY DEFAULT AS IDENTITY
            (SEQUENCE NAME app.numbers START 7 INCREMENT 5 MINVALUE 2 MAXVALUE 9999 CACHE 3 CYCLE), s smallint
            GENERATED ALWAYS AS IDENTITY (INCREMENT -1));
        GRANT SELECT ON SEQUENCE app.numbers TO ks_reader; REVOKE USAGE ON SEQUENCE app.numbers FROM headrace;
        GRANT USAGE ON SEQUENCE app.numbers TO headrace; COMMENT ON SEQUENCE app.numbers IS 'the numbers';
        INSERT INTO app.t (id) SELECT i FROM generate_series(1, 30) i""",
        works={"INSERT INTO app.t (id) VALUES (99) RETURNING num > 147 AND (num - 7) % 5 = 0, s": [(True, -31)]},
    ),
    "identity never used": Kind(
        "CREATE TABLE app.t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
        works={"INSERT INTO app.t (v) VALUES ('w') RETURNING id": [(1,)]},
    ),
    "serial": Kind(
        """CREATE TABLE app.t (id smallserial PRIMARY KEY, v text);
        ALTER SEQUENCE app.t_id_seq INCREMENT 3 MAXVALUE 3000 CYCLE CACHE 2;
        GRANT USAGE ON SEQUENCE app.t_id_seq TO ks_writer; COMMENT ON SEQUENCE app.t_id_seq IS 'counts';
        INSERT INTO app.t (v) SELECT 'v' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.t (v) VALUES ('w') RETURNING id > 88": [(True,)]},
    ),
    "several serials": Kind(
        """CREATE TABLE app.t (id serial PRIMARY KEY, a bigserial, b serial, c text);
        ALTER SEQUENCE app.t_b_seq RENAME TO other;
        INSERT INTO app.t (c) SELECT 'v' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.t (c) VALUES ('w') RETURNING id, a, b": [(31, 31, 31)]},
    ),
    "serial of another owner": Kind(
        """GRANT CREATE, USAGE ON SCHEMA app TO ks_owner; SET ROLE ks_owner;
        CREATE TABLE app.t (id serial PRIMARY KEY, i integer GENERATED ALWAYS AS IDENTITY, v text);
        INSERT INTO app.t (v) SELECT 'v' FROM generate_series(1, 30); RESET ROLE""",
        works={"INSERT INTO app.t (v) VALUES ('w') RETURNING id, i": [(31, 31)]},
    ),
    "sequence shared with another table": Kind(
        """CREATE TABLE app.t (id serial PRIMARY KEY, v text);
        CREATE TABLE far.also (id integer DEFAULT nextval('app.t_id_seq'), v text);
        CREATE VIEW far.v AS SELECT last_value FROM app.t_id_seq;
        INSERT INTO app.t (v) SELECT 'v' FROM generate_series(1, 30)""",
        works={
            "INSERT INTO far.also (v) VALUES ('w') RETURNING id": [(31,)],
            "INSERT INTO app.t (v) VALUES ('w') RETURNING id": [(32,)],
        },
    ),
    "sequence that is owned but not used": Kind(
        f"""{TABLE} CREATE SEQUENCE app.own OWNED BY app.t.n; CREATE SEQUENCE app.own2 OWNED BY app.t.n;
        SELECT nextval('app.own')""",
        same=("SELECT last_value FROM app.own",),
    ),
    "sequence of another table": Kind(
        """CREATE TABLE far.owns (id serial PRIMARY KEY);
        CREATE TABLE app.t (id integer PRIMARY KEY DEFAULT nextval('far.owns_id_seq'), v text);
        INSERT INTO app.t (v) SELECT 'v' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.t (v) VALUES ('w') RETURNING id": [(31,)]},
    ),
    "generated stored": Kind(
        f"""CREATE TABLE app.t ({BODY}, g integer GENERATED ALWAYS AS (n * 2) STORED, h text GENERATED ALWAYS AS
        (upper(v)) STORED NOT NULL); {ROWS} CREATE INDEX ON app.t (g)""",
        works={"INSERT INTO app.t VALUES (9999, 'w', 4) RETURNING g, h": [(8, "W")]},
    ),
    "generated virtual": Kind(
        f"CREATE TABLE app.t ({BODY}, g integer GENERATED ALWAYS AS (n * 2) VIRTUAL); {ROWS}",
        works={"INSERT INTO app.t VALUES (9999, 'w', 4) RETURNING g": [(8,)]},
        since=18,
    ),
    "rights": Kind(
        f"""{TABLE} GRANT SELECT, INSERT ON app.t TO ks_reader WITH GRANT OPTION; GRANT ALL ON app.t TO ks_writer;
        REVOKE TRUNCATE, TRIGGER ON app.t FROM headrace; GRANT SELECT ON app.t TO PUBLIC, "ks % Role" """,
    ),
    "rights by a grantee": Kind(
        f"""{TABLE} GRANT USAGE ON SCHEMA app TO ks_reader; GRANT SELECT ON app.t TO ks_reader WITH GRANT OPTION;
        SET ROLE ks_reader; GRANT SELECT ON app.t TO ks_stranger""",
        "refused", "ks_reader",
    ),
    "rights revoked": Kind(
        f"""GRANT CREATE, USAGE ON SCHEMA app TO ks_owner; SET ROLE ks_owner; {TABLE}
        REVOKE INSERT, UPDATE, DELETE ON app.t FROM ks_owner; RESET ROLE""",
    ),
    "column rights": Kind(
        f"""{TABLE} GRANT SELECT (id, v), UPDATE (n) ON app.t TO ks_reader WITH GRANT OPTION;
        GRANT USAGE ON SCHEMA app TO ks_reader; GRANT SELECT (v), INSERT (v, n) ON app.t TO PUBLIC""",
        works={"SET ROLE ks_reader; SELECT count(v) FROM app.t": [(80,)]},
    ),
    "owned by a role of the login": Kind(
        f"""GRANT CREATE, USAGE ON SCHEMA app TO ks_owner; SET ROLE ks_owner; {TABLE}
        CREATE INDEX ON app.t (v); CREATE STATISTICS app.s ON v, n FROM app.t; CREATE VIEW app.v AS SELECT * FROM app.t;
        RESET ROLE; GRANT SELECT ON app.t TO headrace"""
    ),
    "rights by default": Kind(
        f"""GRANT CREATE, USAGE ON SCHEMA app TO ks_owner; SET ROLE ks_owner; {TABLE}
        CREATE TABLE app.with_identity (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
        ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO ks_reader;
        ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO ks_reader""",
        tables=("app.t", "app.with_identity"),
    ),
    "comments": Kind(
        f"""{TABLE} CREATE INDEX t_v ON app.t (v); ALTER TABLE app.t ADD CONSTRAINT t_n CHECK (n >= 0);
        {NOTHING} CREATE TRIGGER tr AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE RULE ru AS ON UPDATE TO app.t WHERE old.id < 0 DO INSTEAD NOTHING;
        ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; CREATE POLICY po ON app.t;
        CREATE STATISTICS app.st ON v, n FROM app.t;
        COMMENT ON TABLE app.t IS E'it''s a % table\\nof two lines'; COMMENT ON COLUMN app.t.v IS 'a "column"';
        COMMENT ON CONSTRAINT t_n ON app.t IS 'a check'; COMMENT ON CONSTRAINT t_pkey ON app.t IS 'a key';
        COMMENT ON INDEX app.t_v IS 'an index'; COMMENT ON INDEX app.t_pkey IS 'a key''s index';
        COMMENT ON TRIGGER tr ON app.t IS 'a trigger'; COMMENT ON RULE ru ON app.t IS 'a rule';
        COMMENT ON POLICY po ON app.t IS 'a policy'; COMMENT ON STATISTICS app.st IS 'statistics'"""
    ),
    "row level security": Kind(
        f"""{TABLE} ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; GRANT SELECT, UPDATE ON app.t TO ks_reader, ks_writer;
        GRANT USAGE ON SCHEMA app TO ks_reader;
        CREATE TABLE app.allowed (who name, n integer); INSERT INTO app.allowed VALUES ('ks_reader', 3);
        GRANT SELECT ON app.allowed TO ks_reader;
        CREATE POLICY one ON app.t FOR SELECT TO ks_reader USING (n IN (SELECT a.n FROM app.allowed a WHERE a.who =
            CURRENT_USER)); CREATE POLICY two ON app.t FOR UPDATE USING (n > 1) WITH CHECK (n < 5);
        CREATE POLICY three ON app.t AS RESTRICTIVE TO ks_writer, ks_reader USING (id > 10);
        CREATE POLICY self ON app.t FOR DELETE TO "ks % Role", ks_writer
            USING (EXISTS (SELECT FROM app.t x WHERE x.id = t.n));
        CREATE POLICY "% four" ON app.t FOR INSERT WITH CHECK (v <> '%s')""",
        works={"SET ROLE ks_reader; SELECT count(*), min(n), max(n) FROM app.t": [(10, 3, 3)]},
    ),
    "row level security without policies": Kind(
        f"""{TABLE} ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; GRANT USAGE ON SCHEMA app TO ks_reader;
        GRANT SELECT ON app.t TO ks_reader""",
        works={"SET ROLE ks_reader; SELECT count(*) FROM app.t": [(0,)]},
    ),
    "row level security forced": Kind(
        f"{TABLE} ALTER TABLE app.t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON app.t",
        "refused", "ROW LEVEL SECURITY",
    ),
    "row level security forced but off": Kind(f"{TABLE} ALTER TABLE app.t FORCE ROW LEVEL SECURITY"),
    "policies of other tables": Kind(
        f"""{TABLE} CREATE TABLE far.o (id integer); ALTER TABLE far.o ENABLE ROW LEVEL SECURITY;
        INSERT INTO far.o SELECT i FROM generate_series(1, 9) i; GRANT USAGE ON SCHEMA app, far TO ks_reader;
        GRANT SELECT ON far.o, app.t TO ks_reader;
        CREATE POLICY a ON far.o FOR SELECT TO ks_reader USING (EXISTS (SELECT FROM app.t WHERE t.id = o.id));
        CREATE POLICY b ON far.o FOR INSERT WITH CHECK (id IN (SELECT t.id FROM app.t));
        CREATE POLICY c ON far.o AS RESTRICTIVE USING ((SELECT count(t) FROM app.t) > 0)
            WITH CHECK ((SELECT max(x.n) FROM app.t AS x) > 0)""",
        works={"SET ROLE ks_reader; SELECT array_agg(id ORDER BY id) FROM far.o": [([1, 2, 4, 5, 7, 8],)]},
    ),
    "triggers": Kind(
        f"""{TABLE} {NOTHING}
        CREATE FUNCTION far.fn() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER a BEFORE INSERT OR UPDATE OF v, n ON app.t FOR EACH ROW WHEN (NEW.v IS DISTINCT FROM '%x''')
            EXECUTE FUNCTION app.nothing('arg % one', 'it''s', '"');
        CREATE TRIGGER b AFTER DELETE ON app.t FOR EACH ROW EXECUTE FUNCTION far.fn();
        CREATE TRIGGER c AFTER UPDATE ON app.t REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT
            EXECUTE FUNCTION far.fn();
        CREATE TRIGGER d BEFORE TRUNCATE ON app.t FOR EACH STATEMENT EXECUTE FUNCTION far.fn();
        CREATE CONSTRAINT TRIGGER e AFTER INSERT ON app.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.id > 0) EXECUTE FUNCTION app.nothing();
        CREATE CONSTRAINT TRIGGER f AFTER UPDATE ON app.t FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE TRIGGER "Über % g" AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE TRIGGER h BEFORE INSERT OR DELETE OR UPDATE ON app.t FOR EACH STATEMENT EXECUTE FUNCTION far.fn();
        CREATE TRIGGER i AFTER UPDATE ON app.t FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
            EXECUTE FUNCTION app.nothing();
        ALTER TABLE app.t DISABLE TRIGGER b; ALTER TABLE app.t ENABLE REPLICA TRIGGER c;
        ALTER TABLE app.t ENABLE ALWAYS TRIGGER d; ALTER TABLE app.t DISABLE TRIGGER f;
        COMMENT ON TRIGGER e ON app.t IS 'e'"""
    ),
    "trigger of another table from it": Kind(
        f"""{TABLE} {NOTHING} CREATE TABLE far.o (id integer); CREATE CONSTRAINT TRIGGER from_t AFTER INSERT ON far.o
            FROM app.t FOR EACH ROW EXECUTE FUNCTION app.nothing()""",
        "refused", "from_t",
    ),
    "trigger that writes": Kind(
        f"""CREATE TABLE app.audit (id integer); CREATE TABLE app.t ({BODY});
        CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO app.audit VALUES (NEW.id); RETURN NEW; END';
        CREATE TRIGGER a AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.note();
        ALTER TABLE app.t ENABLE ALWAYS TRIGGER a; {ROWS}""",
        same=("SELECT count(*) FROM app.audit",),
    ),
    "rules": Kind(
        f"""{TABLE} CREATE TABLE app.log (id integer, v text);
        CREATE RULE a AS ON INSERT TO app.t DO ALSO INSERT INTO app.log VALUES (new.id, new.v);
        CREATE RULE b AS ON UPDATE TO app.t WHERE new.v = '%' DO INSTEAD (UPDATE app.t SET n = 0 WHERE t.id = old.id AND
            new.v <> '%'; DELETE FROM app.log);
        CREATE RULE "C c" AS ON DELETE TO app.t WHERE old.id < 0 DO INSTEAD NOTHING;
        CREATE RULE d AS ON DELETE TO app.t DO ALSO NOTIFY gone;
        ALTER TABLE app.t DISABLE RULE b; ALTER TABLE app.t ENABLE ALWAYS RULE "C c";
        COMMENT ON RULE a ON app.t IS 'r'"""
    ),
    "rules of other tables": Kind(
        f"""{TABLE} CREATE TABLE far.o (id integer, v text); CREATE VIEW far.v AS SELECT id, v FROM far.o;
        CREATE RULE a AS ON INSERT TO far.o DO ALSO INSERT INTO app.t (id, v) VALUES (new.id, new.v);
        CREATE RULE b AS ON DELETE TO far.v DO INSTEAD DELETE FROM app.t USING far.o WHERE o.id = t.id AND t.id =
            old.id;
        CREATE RULE c AS ON UPDATE TO far.o WHERE (SELECT count(*) FROM app.t) > 3 DO INSTEAD NOTHING;
        ALTER TABLE far.o DISABLE RULE c; COMMENT ON RULE a ON far.o IS 'r'""",
        works={"INSERT INTO far.o VALUES (7777, 'x'); SELECT v FROM app.t WHERE id = 7777": [("x",)]},
    ),
    "checks": Kind(
        f"""CREATE FUNCTION app.ok(integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 1000';
        CREATE TABLE app.t ({BODY} CONSTRAINT of_a_column CHECK (app.ok(n)), CONSTRAINT two CHECK (id > 0 AND v <> '%'),
            CHECK (t IS NOT NULL OR true), CONSTRAINT alone CHECK (n > -1) NO INHERIT); {ROWS}"""
    ),
    "check not valid": Kind(f"{TABLE} ALTER TABLE app.t ADD CONSTRAINT nv CHECK (n > 3) NOT VALID"),
    "check not enforced": Kind(
        f"{TABLE} ALTER TABLE app.t ADD CONSTRAINT ne CHECK (n > 3) NOT ENFORCED", since=18
    ),
    "not null with names": Kind(
        f"""CREATE TABLE app.t ({BODY}, a integer CONSTRAINT "A %" NOT NULL DEFAULT 1,
            b integer CONSTRAINT alone NOT NULL NO INHERIT DEFAULT 2); {ROWS}
        COMMENT ON CONSTRAINT alone ON app.t IS 'c'""",
        since=18,
    ),
    "not null not valid": Kind(
        f"""{TABLE} INSERT INTO app.t VALUES (4444); ALTER TABLE app.t ADD CONSTRAINT later NOT NULL v NOT VALID;
        COMMENT ON CONSTRAINT later ON app.t IS 'c'""",
        since=18,
    ),
    "unique, not null not valid": Kind(
        """CREATE TABLE app.t (id integer CONSTRAINT half UNIQUE, v text); INSERT INTO app.t VALUES (1), (NULL), (NULL);
        ALTER TABLE app.t ADD CONSTRAINT later NOT NULL id NOT VALID""",
        "refused", "primary key", since=18,
    ),
    "unique constraints": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, a integer, b text, c integer, d integer, e integer,
            CONSTRAINT plain UNIQUE (a, b), CONSTRAINT "Later" UNIQUE (c) DEFERRABLE INITIALLY DEFERRED,
            CONSTRAINT wide UNIQUE (d) INCLUDE (e, b) WITH (fillfactor = 60));
        INSERT INTO app.t SELECT i, i, 'b', -i, i, i FROM generate_series(1, 50) i"""
    ),
    "unique nulls not distinct": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, a integer CONSTRAINT nnd UNIQUE NULLS NOT DISTINCT, b integer);
        CREATE UNIQUE INDEX ON app.t (b, a) NULLS NOT DISTINCT WHERE id > 3;
        INSERT INTO app.t SELECT i, nullif(i, 7), i FROM generate_series(1, 50) i""",
        since=15,
    ),
    "primary key deferrable": Kind(
        f"CREATE TABLE app.t (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text, n integer); {ROWS}"
    ),
    "primary key with more": Kind(
        f"""CREATE TABLE app.t (id integer, v text, n integer,
            CONSTRAINT "T key" PRIMARY KEY (id) INCLUDE (n, v) WITH (fillfactor = 55)); {ROWS}"""
    ),
    "primary key of several columns": Kind(
        """CREATE TABLE app.t (a text COLLATE "C", b date, "Order" numeric, v text, PRIMARY KEY ("Order", a, b));
        INSERT INTO app.t SELECT 'a' || i % 3, '2020-01-01'::date + i, i / 10.0, 'v' FROM generate_series(1, 80) i"""
    ),
    "no key": Kind("CREATE TABLE app.t (id integer, v text)", "refused", "primary key"),
    "unique not null, no primary key": Kind(
        f"CREATE TABLE app.t (id integer NOT NULL, v text, n integer); CREATE UNIQUE INDEX t_id ON app.t (id); {ROWS}"
    ),
    "unique nullable": Kind("CREATE TABLE app.t (id integer CONSTRAINT half UNIQUE, v text)", "refused", "half"),
    "unique partial": Kind(
        "CREATE TABLE app.t (id integer NOT NULL, v text); CREATE UNIQUE INDEX part ON app.t (id) WHERE id > 5",
        "refused", "primary key",
    ),
    "exclusion": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, r int4range, h integer,
            CONSTRAINT apart EXCLUDE USING gist (r WITH &&) WHERE (id > 0) DEFERRABLE,
            EXCLUDE USING btree ((h + 1) WITH =), EXCLUDE USING hash (h WITH =));
        INSERT INTO app.t SELECT i, int4range(i * 2, i * 2 + 2), i FROM generate_series(1, 50) i"""
    ),
    "key without overlaps beside another": Kind(
        """CREATE EXTENSION IF NOT EXISTS btree_gist;
        CREATE TABLE app.t (id integer PRIMARY KEY, k integer, during daterange,
            CONSTRAINT once UNIQUE (k, during WITHOUT OVERLAPS));
        INSERT INTO app.t SELECT i, i % 5, daterange('2020-01-01'::date + i, '2020-01-02'::date + i)
            FROM generate_series(1, 50) i""",
        since=18,
    ),
    "foreign keys": Kind(
        f"""CREATE TABLE app.a (id integer PRIMARY KEY); CREATE TABLE far.b (x integer, y text, UNIQUE (x, y));
        INSERT INTO app.a SELECT i FROM generate_series(0, 9) i;
        INSERT INTO far.b SELECT i, 'y' FROM generate_series(0, 9) i;
        CREATE TABLE app.t ({BODY} REFERENCES app.a ON DELETE CASCADE ON UPDATE SET DEFAULT DEFERRABLE INITIALLY
            DEFERRED,
            x integer, y text, CONSTRAINT "two % cols" FOREIGN KEY (x, y) REFERENCES far.b (x, y) MATCH FULL
            ON DELETE SET NULL ON UPDATE RESTRICT); {ROWS} UPDATE app.t SET x = n, y = 'y';
        COMMENT ON CONSTRAINT "two % cols" ON app.t IS 'fk'""",
        works={"DELETE FROM app.a WHERE id = 3; SELECT count(*) FROM app.t WHERE n = 3": [(0,)]},
    ),
    "foreign key that nulls some columns": Kind(
        f"""CREATE TABLE far.b (x integer, y text, PRIMARY KEY (x, y)); INSERT INTO far.b VALUES (1, 'y');
        CREATE TABLE app.t ({BODY}, x integer DEFAULT 1, y text DEFAULT 'y', FOREIGN KEY (x, y) REFERENCES far.b
            ON DELETE SET NULL (y)); {ROWS}""",
        since=15,
    ),
    "foreign key not valid": Kind(
        f"""{TABLE} CREATE TABLE far.a (id integer PRIMARY KEY);
        ALTER TABLE app.t ADD FOREIGN KEY (n) REFERENCES far.a NOT VALID"""
    ),
    "foreign key not enforced": Kind(
        f"""{TABLE} CREATE TABLE far.a (id integer PRIMARY KEY);
        ALTER TABLE app.t ADD FOREIGN KEY (n) REFERENCES far.a NOT ENFORCED""",
        since=18,
    ),
    "foreign key not valid elsewhere": Kind(
        f"""{TABLE} CREATE TABLE far.a (id integer PRIMARY KEY); CREATE TABLE far.b (a integer);
        INSERT INTO far.b VALUES (1);
        ALTER TABLE far.b ADD FOREIGN KEY (a) REFERENCES far.a NOT VALID"""
    ),
    "foreign key to itself": Kind(
        f"""{TABLE} ALTER TABLE app.t ADD up integer CONSTRAINT up REFERENCES app.t ON DELETE SET NULL;
        UPDATE app.t SET up = 7 WHERE id > 7;
        ALTER TABLE app.t ADD CONSTRAINT nv FOREIGN KEY (n) REFERENCES app.t NOT VALID""",
        works={"DELETE FROM app.t WHERE id = 7; SELECT count(up) FROM app.t": [(0,)]},
    ),
    "referenced": Kind(
        f"""{TABLE} CREATE TABLE app.c (t integer CONSTRAINT a REFERENCES app.t ON DELETE CASCADE ON UPDATE CASCADE,
            u integer CONSTRAINT b REFERENCES app.t DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO app.c SELECT id, id FROM app.t WHERE id < 50; COMMENT ON CONSTRAINT a ON app.c IS 'fk'""",
        works={"UPDATE app.t SET id = 10001 WHERE id = 1; SELECT count(*) FROM app.c WHERE t = 10001": None},
    ),
    "referenced from another schema": Kind(
        f"""{TABLE} CREATE TABLE far.c (t integer,
            CONSTRAINT "F k" FOREIGN KEY (t) REFERENCES app.t ON DELETE SET NULL);
        INSERT INTO far.c SELECT id FROM app.t""",
        works={"DELETE FROM app.t WHERE id = 1; SELECT count(*) FROM far.c WHERE t IS NULL": [(1,)]},
    ),
    "referenced at a unique key": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, a integer, b text, CONSTRAINT t_ba UNIQUE (b, a));
        CREATE UNIQUE INDEX t_ab ON app.t (a, b);
        INSERT INTO app.t SELECT i, i, 'b' FROM generate_series(1, 50) i;
        CREATE TABLE far.c (a integer, b text, FOREIGN KEY (a, b) REFERENCES app.t (a, b) MATCH FULL);
        INSERT INTO far.c SELECT a, b FROM app.t""",
    ),
    "referenced, not valid": Kind(
        f"""{TABLE} CREATE TABLE far.c (t integer); INSERT INTO far.c VALUES (-5);
        ALTER TABLE far.c ADD CONSTRAINT nv FOREIGN KEY (t) REFERENCES app.t NOT VALID"""
    ),
    "referencing each other": Kind(
        f"""{TABLE} CREATE TABLE far.c (id integer PRIMARY KEY, t integer REFERENCES app.t);
        INSERT INTO far.c SELECT id, id FROM app.t; ALTER TABLE app.t ADD c integer REFERENCES far.c;
        UPDATE app.t SET c = id""",
    ),
    "referenced by a partitioned table": Kind(
        f"""{TABLE} CREATE TABLE far.whole (id integer, t integer CONSTRAINT from_whole REFERENCES app.t)
            PARTITION BY LIST (id); CREATE TABLE far.part PARTITION OF far.whole FOR VALUES IN (1)""",
        "refused", "far.whole",
    ),
    "views": Kind(
        f"""{TABLE} CREATE VIEW app.v WITH (security_barrier, check_option = cascaded) AS SELECT id, v AS "V",
            n + 1 AS m
            FROM app.t AS x WHERE n > 1; GRANT SELECT ON app.v TO ks_reader WITH GRANT OPTION;
        GRANT UPDATE ("V") ON app.v TO ks_writer; COMMENT ON VIEW app.v IS 'it''s a view';
        COMMENT ON COLUMN app.v.m IS 'm';
        ALTER VIEW app.v ALTER "V" SET DEFAULT 'dv';
        CREATE VIEW far.w WITH (check_option = local) AS SELECT t.id, t.v FROM app.t WHERE t.n > 1;
        CREATE VIEW far.joined AS SELECT a.id, b.v FROM app.t a LEFT JOIN app.t b USING (id) ORDER BY a.n DESC LIMIT 20;
        CREATE VIEW far.renamed (one, two) AS TABLE app.t; CREATE VIEW far.star AS SELECT t.*, 1 AS one FROM app.t;
        CREATE RECURSIVE VIEW far.down (id) AS SELECT 1 UNION ALL SELECT t.id FROM app.t JOIN down ON t.id = down.id
            + 1;
        CREATE VIEW far.grouped AS SELECT t.id, t.v, count(*) FROM app.t GROUP BY t.id;
        CREATE VIEW far.percent AS SELECT id FROM app.t WHERE v LIKE '%5' AND v <> '%(x)s'""",
        same=(
            "SELECT count(*), sum(m) FROM app.v", "SELECT * FROM far.joined ORDER BY 1",
            "SELECT count(*) FROM far.grouped",
        ),
    ),
    "view by its caller's rights": Kind(
        f"{TABLE} CREATE VIEW app.v WITH (security_invoker = true) AS SELECT * FROM app.t", since=15
    ),
    "views nested": Kind(
        f"""{TABLE} CREATE VIEW app.v1 AS SELECT id, v FROM app.t; CREATE VIEW far.v2 AS SELECT id FROM app.v1;
        CREATE VIEW far.v3 AS SELECT v2.id, t.n FROM far.v2 JOIN app.t USING (id); COMMENT ON VIEW far.v3 IS 'third'""",
        same=("SELECT count(*), sum(n) FROM far.v3",),
    ),
    "views in a diamond": Kind(
        f"""{TABLE} CREATE VIEW app.l AS SELECT id, v FROM app.t; CREATE VIEW app.r AS SELECT id, n FROM app.t;
        CREATE VIEW far.top AS SELECT l.id, l.v, r.n,
            t.n AS m FROM app.l JOIN app.r USING (id) JOIN app.t USING (id)""",
        same=("SELECT count(*), sum(n), sum(m) FROM far.top",),
    ),
    "view with rules and triggers": Kind(
        f"""{TABLE} {NOTHING} CREATE VIEW app.v AS SELECT id, v FROM app.t;
        CREATE TRIGGER instead INSTEAD OF INSERT ON app.v FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE RULE upd AS ON UPDATE TO app.v DO INSTEAD UPDATE app.t SET v = new.v WHERE id = old.id""",
        works={"UPDATE app.v SET v = 'changed' WHERE id = 1; SELECT v FROM app.t WHERE id = 1": [("changed",)]},
    ),
    "view with whole rows inside": Kind(
        f"""{TABLE} CREATE VIEW app.v AS SELECT t.id, t::text AS whole, row_to_json(t) AS j FROM app.t;
        CREATE VIEW app.w AS SELECT count(DISTINCT t) FROM app.t""",
        same=("SELECT * FROM app.v ORDER BY id", "SELECT * FROM app.w"),
    ),
    "view with a column of the row type": Kind(
        f"{TABLE} CREATE VIEW app.whole AS SELECT t AS it FROM app.t", "refused", "app.whole"
    ),
    "view of somebody else": Kind(
        f"""{TABLE} GRANT CREATE, USAGE ON SCHEMA far, app TO ks_stranger; GRANT SELECT ON app.t TO ks_stranger""",
        "refused", "far.v", admin="SET ROLE ks_stranger; CREATE VIEW far.v AS SELECT id FROM app.t; RESET ROLE",
    ),
    "materialized view": Kind(
        f"{TABLE} CREATE MATERIALIZED VIEW app.m AS SELECT count(*) FROM app.t", "refused", "app.m"
    ),
    "materialized view of a view": Kind(
        f"""{TABLE} CREATE VIEW app.v AS SELECT id, n FROM app.t;
        CREATE MATERIALIZED VIEW far.m AS SELECT n, count(*) FROM
            app.v GROUP BY n; CREATE UNIQUE INDEX ON far.m (n)""",
        works={"REFRESH MATERIALIZED VIEW CONCURRENTLY far.m; SELECT count(*) FROM far.m": [(7,)]},
    ),
    "replica identity by index": Kind(
        f"{TABLE} CREATE UNIQUE INDEX ri ON app.t (id) INCLUDE (n); ALTER TABLE app.t REPLICA IDENTITY USING INDEX ri"
    ),
    "replica identity full": Kind(f"{TABLE} ALTER TABLE app.t REPLICA IDENTITY FULL"),
    "replica identity nothing": Kind(f"{TABLE} ALTER TABLE app.t REPLICA IDENTITY NOTHING"),
    "publications": Kind(
        f"""{TABLE} CREATE TABLE app.o (id integer PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE app.t, app.o;
        CREATE PUBLICATION pub2 FOR TABLE ONLY app.t WITH (publish = 'insert')"""
    ),
    "publication of columns and rows": Kind(
        f"""{TABLE} CREATE PUBLICATION pub FOR TABLE app.t (id, v) WHERE (id > 7 AND v <> '%');
        ALTER TABLE app.t ADD z integer""",
        since=15,
    ),
    "publication of the schema": Kind(
        TABLE, admin="CREATE PUBLICATION pub FOR TABLES IN SCHEMA app", since=15
    ),
    "extended statistics": Kind(
        f"""{TABLE} CREATE STATISTICS app.s1 (ndistinct, dependencies) ON v, n FROM app.t;
        CREATE STATISTICS far."S 2" (mcv) ON v, n, (n % 2) FROM app.t;
        CREATE STATISTICS far.s3 ON (lower(v)) FROM app.t;
        ALTER STATISTICS app.s1 SET STATISTICS 33; COMMENT ON STATISTICS far.s3 IS 'three';
        ALTER STATISTICS far.s3 SET STATISTICS 0;
        GRANT CREATE ON SCHEMA far TO ks_owner; ALTER STATISTICS far."S 2" OWNER TO ks_owner; ANALYZE app.t"""
    ),
    "column properties": Kind(
        f"""CREATE TABLE app.t ({BODY}, a text, b text, c text, d text, e bytea); {ROWS}
        ALTER TABLE app.t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE MAIN, ALTER c SET STORAGE PLAIN,
            ALTER d SET COMPRESSION pglz, ALTER v SET STATISTICS 500, ALTER n SET STATISTICS 0,
            ALTER a SET (n_distinct = -0.5, n_distinct_inherited = 9), ALTER e SET STORAGE EXTENDED;
        UPDATE app.t SET d = repeat('d', 5000), a = repeat('a', 5000), e = decode(repeat('00ff', 3000), 'hex')"""
    ),
    "table options": Kind(
        f"""CREATE TABLE app.t ({BODY}) WITH (fillfactor = 66, autovacuum_enabled = false, parallel_workers = 3,
            autovacuum_vacuum_scale_factor = 0.05, toast_tuple_target = 200, toast.autovacuum_enabled = false,
            toast.autovacuum_vacuum_threshold = 99); {ROWS}"""
    ),
    "tablespaces": Kind(
        f"""CREATE TABLE app.t (id integer, v text, n integer, PRIMARY KEY (id) USING INDEX TABLESPACE ks_space)
        TABLESPACE ks_space; {ROWS} CREATE INDEX near ON app.t (v); CREATE INDEX far ON app.t (n) TABLESPACE ks_space"""
    ),
    "tablespace of an index": Kind(f"{TABLE} CREATE INDEX away ON app.t (v) TABLESPACE ks_space"),
    "unlogged": Kind(
        """CREATE UNLOGGED TABLE app.t (id serial PRIMARY KEY, i integer GENERATED ALWAYS AS IDENTITY, v text);
        INSERT INTO app.t (v) SELECT repeat('v', 3000) FROM generate_series(1, 40)"""
    ),
    "cluster mark": Kind(f"{TABLE} CREATE INDEX t_n ON app.t (n); ALTER TABLE app.t CLUSTER ON t_n"),
    "cluster mark at the key": Kind(f"{TABLE} ALTER TABLE app.t CLUSTER ON t_pkey"),
    "indexes": Kind(
        f"""CREATE TABLE app.t ({BODY}, j jsonb, ts tsvector, p point, at timestamptz DEFAULT '2020-01-01'); {ROWS}
        CREATE FUNCTION app.f(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
        CREATE INDEX part ON app.t (v) WHERE n > 2 AND v <> '%';
        CREATE INDEX expr ON app.t (app.f(v), (n + 1) DESC NULLS LAST);
        ALTER INDEX app.expr ALTER COLUMN 2 SET STATISTICS 300; CREATE INDEX incl ON app.t (n) INCLUDE (v, at);
        CREATE INDEX gin ON app.t USING gin (j jsonb_path_ops) WITH (fastupdate = off);
        CREATE INDEX ON app.t USING gin (ts);
        CREATE INDEX brin ON app.t USING brin (id int4_minmax_multi_ops (values_per_range = 16),
            at) WITH (pages_per_range = 8);
        CREATE INDEX hash ON app.t USING hash (v); CREATE INDEX gist ON app.t USING gist (p);
        CREATE INDEX spg ON app.t USING spgist (p); CREATE INDEX pat ON app.t (v text_pattern_ops, v COLLATE "C" DESC);
        CREATE INDEX "Mixed ""case"" x" ON app.t (n) WITH (fillfactor = 70, deduplicate_items = off);
        CREATE UNIQUE INDEX uniq ON app.t (id, (n * 0));
        CREATE INDEX tg ON app.t USING gist (ts tsvector_ops (siglen = 100));
        CREATE INDEX twice ON app.t (v) WHERE n > 2 AND v <> '%'"""
    ),
    "index of an extension": Kind(
        f"{TABLE} CREATE INDEX t_v ON app.t (v); ALTER INDEX app.t_v DEPENDS ON EXTENSION plpgsql", "refused", "plpgsql"
    ),
    "function with a body": Kind(
        f"""{TABLE} CREATE FUNCTION app.f(x integer DEFAULT 5,
            OUT total bigint) LANGUAGE sql STABLE SECURITY DEFINER COST 7
            SET work_mem = '5MB' BEGIN ATOMIC SELECT count(*) FROM app.t WHERE id > x; END;
        CREATE PROCEDURE far.p(i integer) LANGUAGE sql BEGIN ATOMIC INSERT INTO app.t VALUES (i, '%', 3);
            UPDATE app.t SET v = 'x' WHERE id = i; END;
        GRANT EXECUTE ON FUNCTION app.f TO ks_reader; REVOKE EXECUTE ON FUNCTION app.f FROM PUBLIC;
        COMMENT ON FUNCTION app.f IS 'f'; CREATE VIEW far.v AS SELECT app.f(3) AS total""",
        same=("SELECT * FROM far.v",),
        works={"CALL far.p(5555); SELECT v FROM app.t WHERE id = 5555": [("x",)]},
    ),
    "function with whole rows inside": Kind(
        f"""{TABLE} CREATE FUNCTION app.f() RETURNS TABLE (j json) LANGUAGE sql
            BEGIN ATOMIC SELECT row_to_json(t) FROM app.t WHERE t IS DISTINCT FROM NULL ORDER BY id; END""",
        same=("SELECT j::text FROM app.f()",),
    ),
    "functions of functions and views": Kind(
        f"""{TABLE} CREATE FUNCTION app.f() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM app.t; END;
        CREATE VIEW app.v AS SELECT id, app.f() AS total FROM app.t;
        CREATE FUNCTION far.g() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT sum(total) FROM app.v, app.t; END;
        CREATE TABLE far.o (total bigint DEFAULT app.f())""",
        same=("SELECT far.g()",),
    ),
    "function of a text": Kind(
        f"{TABLE} CREATE FUNCTION app.f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM app.t'",
        same=("SELECT app.f()",),
    ),
    "function on the row type": Kind(
        f"{TABLE} CREATE FUNCTION app.takes(app.t) RETURNS integer LANGUAGE sql AS 'SELECT 1'", "refused", "app.takes"
    ),
    "function with rows as its result": Kind(
        f"{TABLE} CREATE FUNCTION app.gives() RETURNS SETOF app.t LANGUAGE sql AS 'TABLE app.t'", "refused", "app.gives"
    ),
    "column of the row type": Kind(f"{TABLE} CREATE TABLE far.holds (it app.t)", "refused", "far.holds"),
    "column of rows": Kind(f"{TABLE} CREATE TABLE far.holds (they app.t[])", "refused", "far.holds"),
    "type of the row type": Kind(f"{TABLE} CREATE TYPE far.holds AS (it app.t)", "refused", "far.holds"),
    "domain of the row type": Kind(f"{TABLE} CREATE DOMAIN far.over AS app.t", "refused", "far.over"),
    "mixed case": Kind(
        """CREATE TABLE app."Wait List" ("Id" integer GENERATED ALWAYS AS IDENTITY CONSTRAINT "P K" PRIMARY KEY,
            "User" text,
            "a.b" integer, CONSTRAINT "Check It" CHECK ("a.b" > -1)); CREATE INDEX "In Dex" ON app."Wait List" ("User");
        INSERT INTO app."Wait List" ("User", "a.b") SELECT 'u' || i, i FROM generate_series(1, 40) i;
        CREATE VIEW app."V" AS SELECT "Id", "a.b" FROM app."Wait List";
        CREATE TABLE far."C" ("T" integer REFERENCES app."Wait List" ("Id"))""",
        tables=('app."Wait List"',),
        works={"""INSERT INTO app."Wait List" ("User") VALUES ('x') RETURNING "Id" """: [(41,)]},
    ),
    "reserved words": Kind(
        """CREATE TABLE app."user" ("select" serial PRIMARY KEY, "table" text DEFAULT 'x', "order" integer,
            "all" integer);
        CREATE INDEX "index" ON app."user" ("order", "all"); CREATE UNIQUE INDEX "unique" ON app."user" ("select",
            "table");
        INSERT INTO app."user" ("order") SELECT i FROM generate_series(1, 40) i;
        CREATE VIEW app."view" AS TABLE app."user";
        CREATE STATISTICS app."from" ON "table", "order" FROM app."user";
        CREATE TABLE far."where" ("group" integer REFERENCES app."user")""",
        tables=('app."user"',),
    ),
    "names full of signs": Kind(
        f"""CREATE TABLE app.{SIGNS} ("%(key)s" serial CONSTRAINT "c%" PRIMARY KEY, {LINES} text,
            "é{{}}" integer DEFAULT 3,
            "'" text CONSTRAINT "%d'" CHECK ("'" <> '%')); CREATE INDEX "i % "" '" ON app.{SIGNS} ({LINES}, "'");
        INSERT INTO app.{SIGNS} ({LINES}) SELECT E'%s \\n' || i FROM generate_series(1, 40) i; {NOTHING}
        CREATE TRIGGER "t %s '" AFTER INSERT ON app.{SIGNS} FOR EACH ROW EXECUTE FUNCTION app.nothing('%s');
        CREATE VIEW app."v %s '" AS TABLE app.{SIGNS}; COMMENT ON COLUMN app.{SIGNS}."%(key)s" IS '%s';
        CREATE STATISTICS app."s %" ON {LINES}, "'" FROM app.{SIGNS};
        GRANT SELECT ({LINES}) ON app.{SIGNS} TO ks_reader;
        ALTER TABLE app.{SIGNS} ADD CONSTRAINT {LINES} UNIQUE ("%(key)s", "é{{}}")""",
        tables=("app." + SIGNS,),
    ),
    "names that statements of ours use": Kind(
        """CREATE TABLE app.log (s integer, c integer, b integer, l text, n integer, o integer, old integer,
            new integer,
            taken integer, kept integer, at timestamptz, key text, PRIMARY KEY (s, b, l));
        INSERT INTO app.log SELECT i, i, i, 'l', 1, 2, 3, 4, 5, 6, now(), 'k' FROM generate_series(1, 40) i;
        CREATE TABLE app.s (s integer PRIMARY KEY); INSERT INTO app.s VALUES (1);
        CREATE TABLE app.batch (log integer PRIMARY KEY, batch integer); INSERT INTO app.batch VALUES (1, 2)""",
        tables=("app.log", "app.s", "app.batch"),
    ),
    "keys of many types": Kind(
        """CREATE TYPE app.e AS ENUM ('z', 'y', 'x'); CREATE DOMAIN app.d AS text COLLATE "C" CHECK (VALUE <> '');
        CREATE TABLE app.t1 (k float8 PRIMARY KEY);
        INSERT INTO app.t1 VALUES ('NaN'), ('-Infinity'), (0.1::float8 + 0.2), (-0.0);
        CREATE TABLE app.t2 (k numeric PRIMARY KEY);
        INSERT INTO app.t2 VALUES (1.00), ('NaN'), (1e50), (-0.5), ('Infinity');
        CREATE TABLE app.t3 (k app.e PRIMARY KEY); INSERT INTO app.t3 VALUES ('z'), ('x');
        CREATE TABLE app.t4 (k app.d PRIMARY KEY); INSERT INTO app.t4 VALUES ('ä'), (E'\\n'), (' '), ('%');
        CREATE TABLE app.t5 (k char(5) PRIMARY KEY); INSERT INTO app.t5 VALUES ('a'), ('b ');
        CREATE TABLE app.t6 (k interval PRIMARY KEY);
        INSERT INTO app.t6 VALUES ('1 mon'), ('31 days'), ('-1 year 3 days');
        CREATE TABLE app.t7 (k timestamptz, d date, PRIMARY KEY (k, d));
        INSERT INTO app.t7 VALUES ('infinity', '-infinity'), ('2020-03-29 02:30+01', '0044-03-15 BC');
        CREATE TABLE app.t8 (k bytea, b boolean, PRIMARY KEY (b, k));
        INSERT INTO app.t8 VALUES ('\\x00', true), ('', false);
        CREATE TABLE app.t9 (k int4range, a text[], PRIMARY KEY (k, a));
        INSERT INTO app.t9 VALUES ('empty', '{"a,b",NULL}');
        CREATE TABLE app.t10 (k inet, o oid, c "char", n name, PRIMARY KEY (n, k, o, c));
        INSERT INTO app.t10 VALUES ('::1/64', 4000000000, 'x', 'n');
        CREATE EXTENSION IF NOT EXISTS citext; CREATE TABLE app.t11 (k public.citext PRIMARY KEY, v text);
        INSERT INTO app.t11 VALUES ('a'), ('B'), ('c')""",
        tables=tuple(f"app.t{number}" for number in range(1, 12)),
    ),
    "many columns": Kind(
        """DO $$ BEGIN EXECUTE 'CREATE TABLE app.t (id integer PRIMARY KEY, ' || (
            SELECT string_agg(format('c%s text DEFAULT %s', i, i), ', ') FROM generate_series(1, 400) i) || ')'; END $$;
        INSERT INTO app.t SELECT i FROM generate_series(1, 9) i"""
    ),
    "typed table": Kind(
        """CREATE TYPE app.shape AS (id integer, v text, n integer);
        CREATE TABLE app.t OF app.shape (id WITH OPTIONS PRIMARY KEY, n DEFAULT 5);""" + ROWS
    ),
    "inheritance parent": Kind(
        f"""{TABLE} ALTER TABLE app.t ADD CONSTRAINT t_n CHECK (n < 100);
        CREATE TABLE app.c1 (extra text) INHERITS (app.t); CREATE TABLE far.c2 (n integer) INHERITS (app.t);
        CREATE TABLE far.c3 () INHERITS (app.c1);
        INSERT INTO app.c1 VALUES (1000, 'c1', 1, 'x'); INSERT INTO far.c2 VALUES (2000, 'c2', 2);
        INSERT INTO far.c3 VALUES (3000, 'c3', 3, 'y')""",
        same=("SELECT tableoid = 'app.t'::regclass, id, v, n FROM app.t ORDER BY id",),
    ),
    "inheritance child": Kind(
        f"""CREATE TABLE app.p (id integer NOT NULL, v text DEFAULT 'p', CONSTRAINT p_v CHECK (v <> '%'));
        CREATE TABLE app.t (n integer, PRIMARY KEY (id)) INHERITS (app.p); {ROWS} INSERT INTO app.p VALUES (-1)""",
        same=("SELECT * FROM app.p ORDER BY id",),
    ),
    "inheritance child of two": Kind(
        f"""CREATE TABLE app.p1 (id integer, a integer, CHECK (id > -5)); CREATE TABLE far.p2 (id integer, v text);
        CREATE TABLE app.t (id integer NOT NULL PRIMARY KEY, n integer) INHERITS (app.p1, far.p2); {ROWS}
        ALTER TABLE app.t ALTER v SET DEFAULT 'own', ALTER a SET STATISTICS 5""",
        same=("SELECT count(*) FROM app.p1", "SELECT count(*) FROM far.p2"),
    ),
    "inheritance in the middle": Kind(
        f"""CREATE TABLE app.p (id integer, v text); CREATE TABLE app.t (n integer,
            PRIMARY KEY (id)) INHERITS (app.p); {ROWS}
        CREATE TABLE app.c (x integer) INHERITS (app.t); INSERT INTO app.c VALUES (500, 'c', 1, 2)""",
        same=("SELECT count(*) FROM app.p", "SELECT count(*) FROM app.t"),
    ),
    "inheritance child that joined later": Kind(
        f"{TABLE} CREATE TABLE app.p (v text, id integer); ALTER TABLE app.t INHERIT app.p",
        same=("SELECT count(*) FROM app.p",),
    ),
    "partition": Kind(
        f"""CREATE TABLE app.whole ({BODY}, CHECK (n < 500)) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (5000);
        CREATE TABLE app.rest PARTITION OF app.whole DEFAULT; INSERT INTO app.rest VALUES (9000, 'rest', 1);
        CREATE INDEX whole_n ON app.whole (n); CREATE INDEX own ON app.t (v); {NOTHING}
        CREATE TRIGGER rows AFTER INSERT ON app.whole FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE TRIGGER own AFTER UPDATE ON app.t FOR EACH ROW EXECUTE FUNCTION app.nothing();
        ALTER TABLE app.t ALTER v SET DEFAULT 'part', ALTER n SET STATISTICS 9; GRANT SELECT ON app.t TO ks_reader;
        {ROWS}""",
        same=("SELECT * FROM app.whole ORDER BY id",),
        works={"INSERT INTO app.whole VALUES (4999, 'new', 1); SELECT v FROM app.t WHERE id = 4999": [("new",)]},
    ),
    "partition made before": Kind(
        f"""{TABLE} ALTER TABLE app.t ADD gone text; ALTER TABLE app.t DROP gone;
        ALTER TABLE app.t ALTER id SET NOT NULL;
        CREATE TABLE app.whole (n integer, v text, x integer, id integer NOT NULL, UNIQUE (id)) PARTITION BY RANGE (id);
        ALTER TABLE app.whole DROP x; ALTER TABLE app.whole ATTACH PARTITION app.t FOR VALUES FROM (0) TO (5000)""",
        same=("SELECT id, v, n FROM app.whole ORDER BY id",),
    ),
    "partition with a disabled trigger": Kind(
        f"""CREATE TABLE app.whole ({BODY}) PARTITION BY LIST (id); {NOTHING}
        CREATE TRIGGER rows AFTER INSERT ON app.whole FOR EACH ROW EXECUTE FUNCTION app.nothing();
        CREATE TABLE app.t PARTITION OF app.whole DEFAULT; {ROWS} ALTER TABLE app.t DISABLE TRIGGER rows""",
    ),
    "partitions of a whole tree": Kind(
        """CREATE TABLE app.whole (id integer, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE app.y1 PARTITION OF app.whole FOR VALUES FROM ('2020-01-01') TO ('2021-01-01') PARTITION BY HASH
            (id);
        CREATE TABLE app.y1a PARTITION OF app.y1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE app.y1b PARTITION OF app.y1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE far.y2 PARTITION OF app.whole FOR VALUES FROM ('2021-01-01') TO (MAXVALUE);
        CREATE TABLE app.old PARTITION OF app.whole DEFAULT; CREATE INDEX ON app.whole (v);
        CREATE VIEW app.v AS SELECT count(*) FROM app.whole; CREATE PUBLICATION pub FOR TABLE app.whole;
        INSERT INTO app.whole SELECT i, '2019-12-01'::date + i * 7, 'v' || i FROM generate_series(1, 150) i""",
        tables=("app.whole",),
        same=("SELECT tableoid::regclass::text, * FROM app.whole ORDER BY id", "SELECT * FROM app.v"),
    ),
    "partition by expressions": Kind(
        """CREATE TABLE app.whole (id integer, v text COLLATE "C", n integer) PARTITION BY RANGE (lower(v), (n % 10));
        CREATE TABLE app.t PARTITION OF app.whole (PRIMARY KEY (id)) FOR VALUES FROM ('a', MINVALUE) TO ('s%', 5);"""
        + ROWS,
        same=("SELECT * FROM app.whole ORDER BY id",),
    ),
    "partition of a list with null": Kind(
        """CREATE TABLE app.whole (id integer NOT NULL, v text, n integer) PARTITION BY LIST (v);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES IN ('it''s %', NULL);
        CREATE UNIQUE INDEX t_id ON app.t (id);
        INSERT INTO app.t SELECT i, nullif('it''s %', CASE WHEN i % 2 = 0 THEN 'it''s %' END) FROM generate_series(1,
            30) i""",
        same=("SELECT * FROM app.whole ORDER BY id",),
    ),
    "partition with identity": Kind(
        """CREATE TABLE app.whole (id integer GENERATED ALWAYS AS IDENTITY, v text,
            PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (5000);
        INSERT INTO app.whole (v) SELECT 'v' FROM generate_series(1, 30)""",
        works={"INSERT INTO app.whole (v) VALUES ('w') RETURNING id": [(31,)]},
        since=17,
    ),
    "partition with a foreign key of its own": Kind(
        f"""CREATE TABLE far.a (id integer PRIMARY KEY); INSERT INTO far.a SELECT i FROM generate_series(0, 9) i;
        CREATE TABLE app.whole ({BODY}) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (5000); {ROWS}
        ALTER TABLE app.t ADD FOREIGN KEY (n) REFERENCES far.a; CREATE TABLE far.c (t integer REFERENCES app.t)""",
    ),
    "partition whose parent has a foreign key": Kind(
        f"""CREATE TABLE far.a (id integer PRIMARY KEY); INSERT INTO far.a SELECT i FROM generate_series(0, 9) i;
        CREATE TABLE app.whole ({BODY} CONSTRAINT of_whole REFERENCES far.a) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (5000); {ROWS}""",
        "refused", "of_whole",
    ),
    "partition that is referenced": Kind(
        f"""CREATE TABLE app.whole ({BODY}) PARTITION BY RANGE (id);
        CREATE TABLE app.t PARTITION OF app.whole FOR VALUES FROM (0) TO (5000); {ROWS}
        CREATE TABLE far.c (id integer CONSTRAINT to_whole REFERENCES app.whole); INSERT INTO far.c VALUES (1)""",
        "refused", "to_whole",
    ),
    "invalid index": Kind(
        f"{TABLE} CREATE INDEX broken ON app.t (v)", "refused", "broken",
        admin="UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'app.broken'::regclass",
    ),
    "foreign key triggers switched off": Kind(
        f"{TABLE} CREATE TABLE far.a (id integer PRIMARY KEY); ALTER TABLE app.t ADD CONSTRAINT off FOREIGN KEY (n)"
        " REFERENCES far.a NOT VALID",
        "refused", "off", admin="ALTER TABLE app.t DISABLE TRIGGER ALL",
    ),
    "large values": Kind(
        """CREATE TABLE app.t (id integer PRIMARY KEY, big text, e text);
        ALTER TABLE app.t ALTER e SET STORAGE EXTERNAL;
        INSERT INTO app.t SELECT i, (SELECT string_agg(md5(i::text || k), '') FROM generate_series(1, 300) k),
            repeat('e', 20000)
            FROM generate_series(1, 40) i; UPDATE app.t SET id = id + 1000 WHERE id < 20"""
    ),
    "empty": Kind(f"CREATE TABLE app.t ({BODY}); CREATE INDEX ON app.t (v)"),
    "only a key": Kind(
        "CREATE TABLE app.t (id integer PRIMARY KEY); INSERT INTO app.t SELECT i FROM generate_series(1, 9) i"
    ),
}  # fmt: skip
