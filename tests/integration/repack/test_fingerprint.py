"""The fingerprint: a twin has the same lines, and each kind of change shows, in the lines of what was changed alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from tests.integration.repack.dumps import DEBIAN_15, debian_server
from workers.database import Connection
from workers.repack import fingerprint_catalog

ROLES = """
CREATE ROLE fp_owner; CREATE ROLE fp_reader; CREATE ROLE fp_writer; GRANT fp_owner TO CURRENT_USER;
"""

# A table app.t with something of every kind; a plain owner's, so that a NULL ACL is the usual one.
EVERYTHING = """
CREATE SCHEMA app AUTHORIZATION fp_owner;
CREATE SCHEMA elsewhere AUTHORIZATION fp_owner;
SET ROLE fp_owner;
CREATE TYPE app.typ AS (a integer, b text);
CREATE TABLE app.above (id integer, at timestamptz DEFAULT now());
CREATE TABLE app.aside (note text);
CREATE TABLE app.ref (id integer PRIMARY KEY);
CREATE TABLE app.t (
    %s
    id serial CONSTRAINT t_key PRIMARY KEY,
    num bigint GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 2 CACHE 3),
    txt text COLLATE "C" DEFAULT 'x',
    twice integer GENERATED ALWAYS AS (ref_id * 2) STORED,
    ref_id integer CONSTRAINT t_ref REFERENCES app.ref DEFERRABLE,
    big text,
    span int4range,
    u1 integer, u2 integer, at timestamptz,
    CONSTRAINT t_unique UNIQUE NULLS NOT DISTINCT (u1) INCLUDE (u2) DEFERRABLE,
    CONSTRAINT t_no_overlap EXCLUDE USING gist (span WITH &&),
    CONSTRAINT t_check CHECK (u1 > 0) NO INHERIT
) WITH (fillfactor = 80, autovacuum_enabled = false, toast.autovacuum_enabled = false);
%s
ALTER TABLE app.t ALTER big SET STORAGE EXTERNAL, ALTER big SET COMPRESSION pglz, ALTER txt SET STATISTICS 77,
    ALTER txt SET (n_distinct = 5);
ALTER TABLE app.t ADD CONSTRAINT txt_long CHECK (length(txt) < 1000) NOT VALID;
ALTER TABLE app.t ADD CONSTRAINT t_ref_not_valid FOREIGN KEY (u2) REFERENCES app.ref NOT VALID;
CREATE INDEX t_expression ON app.t (lower(txt), big) WITH (fillfactor = 70) WHERE u1 > 3;
ALTER INDEX app.t_expression ALTER COLUMN 1 SET STATISTICS 400;
CREATE UNIQUE INDEX t_replica ON app.t (num);
ALTER TABLE app.t REPLICA IDENTITY USING INDEX t_replica;
ALTER TABLE app.t CLUSTER ON t_key;
CREATE STATISTICS elsewhere.t_stats (ndistinct, mcv) ON u1, u2 FROM app.t;
ALTER STATISTICS elsewhere.t_stats SET STATISTICS 60;
CREATE FUNCTION app.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t_before BEFORE UPDATE OF txt ON app.t FOR EACH ROW WHEN (OLD.txt <> NEW.txt)
    EXECUTE FUNCTION app.nothing();
CREATE CONSTRAINT TRIGGER t_later AFTER INSERT ON app.t DEFERRABLE FOR EACH ROW EXECUTE FUNCTION app.nothing();
CREATE RULE t_rule AS ON DELETE TO app.t WHERE old.id < 0 DO INSTEAD NOTHING;
ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY t_policy ON app.t FOR SELECT TO fp_reader, fp_writer USING (u1 > 5);
CREATE POLICY other_policy ON app.ref USING (EXISTS (SELECT FROM app.t WHERE t.ref_id = ref.id));
CREATE RULE other_rule AS ON INSERT TO app.ref DO ALSO INSERT INTO app.t (ref_id) VALUES (new.id);
CREATE VIEW elsewhere.v WITH (security_barrier) AS SELECT id, t AS whole FROM app.t WHERE u1 > 1;
CREATE MATERIALIZED VIEW elsewhere.m AS SELECT count(*) FROM app.t;
CREATE TABLE elsewhere.child (t integer CONSTRAINT child_t REFERENCES app.t ON DELETE CASCADE);
CREATE FUNCTION app.how_many() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM app.t; END;
CREATE TABLE app.heir () INHERITS (app.aside, app.t);
CREATE TABLE app.uses_sequence (id integer DEFAULT nextval('app.t_id_seq'));
GRANT SELECT ON app.t TO fp_reader; GRANT UPDATE (txt) ON app.t TO fp_writer;
GRANT USAGE ON SEQUENCE app.t_num_seq TO fp_writer;
COMMENT ON TABLE app.t IS 'the table'; COMMENT ON COLUMN app.t.txt IS 'a column';
COMMENT ON CONSTRAINT t_check ON app.t IS 'a check'; COMMENT ON INDEX app.t_expression IS 'an index';
COMMENT ON TRIGGER t_before ON app.t IS 'a trigger'; COMMENT ON RULE t_rule ON app.t IS 'a rule';
COMMENT ON POLICY t_policy ON app.t IS 'a policy'; COMMENT ON STATISTICS elsewhere.t_stats IS 'statistics';
COMMENT ON SEQUENCE app.t_id_seq IS 'a sequence';
RESET ROLE;
CREATE PUBLICATION chosen FOR TABLE app.t (id, num, txt) WHERE (id > 5);
"""
DROPPED = ("gone_1 text,", "ALTER TABLE app.t DROP gone_1, ADD gone_2 integer; ALTER TABLE app.t DROP gone_2;")

# kind: (what is changed, what every line begins with that shows it)
CHANGES = {
    "owner": ("ALTER TABLE app.t OWNER TO fp_writer", "table:|column 3 txt: UPDATE|row type:|sequence app."),
    "persistence": (
        "DROP PUBLICATION chosen; ALTER TABLE elsewhere.child DROP CONSTRAINT child_t;"
        " DROP TABLE app.heir; ALTER TABLE app.t SET UNLOGGED",
        "table: persistence|table: parent 2 of app.heir|table: used by|publication chosen: |"
        "foreign key child_t|sequence app.",
    ),
    "reloption": ("ALTER TABLE app.t SET (fillfactor = 81)", "table: option fillfactor"),
    "reloption reset": ("ALTER TABLE app.t RESET (autovacuum_enabled)", "table: option autovacuum_enabled"),
    "toast option": ("ALTER TABLE app.t SET (toast.autovacuum_enabled = true)", "table: toast option"),
    "replica identity": ("ALTER TABLE app.t REPLICA IDENTITY FULL", "table: replica|index t_replica: replica"),
    "replica identity index": (
        "CREATE UNIQUE INDEX other ON app.t (id); ALTER TABLE app.t REPLICA IDENTITY USING INDEX other",
        "index t_replica: replica|index other:",
    ),
    "row security off": ("ALTER TABLE app.t DISABLE ROW LEVEL SECURITY", "table: row level security"),
    "row security forced": ("ALTER TABLE app.t FORCE ROW LEVEL SECURITY", "table: row level security also"),
    "another parent": (
        "CREATE TABLE app.p2 (u1 integer); ALTER TABLE app.t INHERIT app.p2",
        "table: parent 1|column 8 u1: inherited",
    ),
    "child gone": (
        "ALTER TABLE app.heir NO INHERIT app.t",
        "table: parent 2 of app.heir|table: used by table app.heir",
    ),
    "column added": ("ALTER TABLE app.t ADD extra date", "column 11 extra: "),
    "column renamed": ("ALTER TABLE app.t RENAME at TO moment", "column 10 at: |column 10 moment: "),
    "column dropped": ("ALTER TABLE app.t DROP at", "column 10 at: "),
    "column type": ("ALTER TABLE app.t ALTER at TYPE timestamptz(3)", "column 10 at: type"),
    "column collation": (
        'DROP INDEX app.t_expression; ALTER TABLE app.t ALTER big TYPE text COLLATE "C"',
        "column 6 big: |index t_expression:",
    ),
    "not null": ("ALTER TABLE app.t ALTER u2 SET NOT NULL", "column 9 u2: not null|constraint t_u2_not_null: "),
    "default": ("ALTER TABLE app.t ALTER txt SET DEFAULT 'y'", "column 3 txt: default"),
    "generated": ("ALTER TABLE app.t ALTER twice DROP EXPRESSION", "column 4 twice: "),
    "identity": ("ALTER TABLE app.t ALTER num SET GENERATED BY DEFAULT", "column 2 num: identity"),
    "storage": ("ALTER TABLE app.t ALTER big SET STORAGE MAIN", "column 6 big: storage"),
    "compression": ("ALTER TABLE app.t ALTER big SET COMPRESSION default", "column 6 big: compression"),
    "statistics target": ("ALTER TABLE app.t ALTER txt SET STATISTICS 78", "column 3 txt: statistics target"),
    "column option": ("ALTER TABLE app.t ALTER txt SET (n_distinct = 6)", "column 3 txt: option n_distinct"),
    "column ACL": ("REVOKE UPDATE (txt) ON app.t FROM fp_writer", "column 3 txt: UPDATE granted"),
    "column comment": ("COMMENT ON COLUMN app.t.txt IS NULL", "column 3 txt: comment"),
    "constraint gone": ("ALTER TABLE app.t DROP CONSTRAINT t_check", "constraint t_check: "),
    "constraint validated": ("ALTER TABLE app.t VALIDATE CONSTRAINT txt_long", "constraint txt_long: not valid"),
    "foreign key validated": (
        "ALTER TABLE app.t VALIDATE CONSTRAINT t_ref_not_valid",
        "constraint t_ref_not_valid: not valid",
    ),
    "deferrable": ("ALTER TABLE app.t ALTER CONSTRAINT t_ref NOT DEFERRABLE", "constraint t_ref: FOREIGN KEY"),
    "constraint comment": ("COMMENT ON CONSTRAINT t_check ON app.t IS 'c'", "constraint t_check: comment"),
    "constraint renamed": (
        "ALTER TABLE app.t RENAME CONSTRAINT t_unique TO t_one",
        "constraint t_unique|constraint t_one|index t_unique|index t_one",
    ),
    "foreign key triggers off": (
        "ALTER TABLE app.ref DISABLE TRIGGER ALL",
        "constraint t_ref: trigger|constraint t_ref_not_valid: trigger",
    ),
    "inbound key gone": (
        "ALTER TABLE elsewhere.child DROP CONSTRAINT child_t",
        "foreign key child_t of elsewhere.child: ",
    ),
    "inbound key not valid": (
        "ALTER TABLE elsewhere.child DROP CONSTRAINT child_t,"
        " ADD CONSTRAINT child_t FOREIGN KEY (t) REFERENCES app.t ON DELETE CASCADE NOT VALID",
        "foreign key child_t of elsewhere.child: not valid",
    ),
    "index gone": ("DROP INDEX app.t_expression", "index t_expression: "),
    "index option": ("ALTER INDEX app.t_expression SET (fillfactor = 71)", "index t_expression: CREATE"),
    "index renamed": ('ALTER INDEX app.t_expression RENAME TO "E%1"', 'index t_expression: |index "E%1": '),
    "index comment": ("COMMENT ON INDEX app.t_expression IS 'other'", "index t_expression: comment"),
    "index statistics target": (
        "ALTER INDEX app.t_expression ALTER COLUMN 1 SET STATISTICS 401",
        "index t_expression: statistics target",
    ),
    "index invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'app.t_expression'::regclass",
        "index t_expression: invalid",
    ),
    "cluster mark": ("ALTER TABLE app.t SET WITHOUT CLUSTER", "index t_key: clustered"),
    "index depends on extension": (
        "ALTER INDEX app.t_expression DEPENDS ON EXTENSION plpgsql",
        "index t_expression: of extension",
    ),
    "trigger gone": ("DROP TRIGGER t_before ON app.t", "trigger t_before: "),
    "trigger disabled": ("ALTER TABLE app.t DISABLE TRIGGER t_before", "trigger t_before: enabled"),
    "trigger always": ("ALTER TABLE app.t ENABLE ALWAYS TRIGGER t_later", "trigger t_later: enabled"),
    "trigger comment": ("COMMENT ON TRIGGER t_before ON app.t IS NULL", "trigger t_before: comment"),
    "trigger of another table from this": (
        "CREATE CONSTRAINT TRIGGER far AFTER INSERT ON app.ref FROM app.t FOR EACH ROW EXECUTE FUNCTION app.nothing()",
        "table: used by trigger far on app.ref",
    ),
    "rule disabled": ("ALTER TABLE app.t DISABLE RULE t_rule", "rule t_rule: enabled"),
    "rule comment": ("COMMENT ON RULE t_rule ON app.t IS NULL", "rule t_rule: comment"),
    "rule gone": ("DROP RULE t_rule ON app.t", "rule t_rule: "),
    "rule of another table": ("DROP RULE other_rule ON app.ref", "rule other_rule on app.ref: "),
    "rule of another table disabled": (
        "ALTER TABLE app.ref DISABLE RULE other_rule",
        "rule other_rule on app.ref: enabled",
    ),
    "policy expression": ("ALTER POLICY t_policy ON app.t USING (u1 > 6)", "policy t_policy: using"),
    "policy roles": ("ALTER POLICY t_policy ON app.t TO fp_reader", "policy t_policy: roles"),
    "policy comment": ("COMMENT ON POLICY t_policy ON app.t IS NULL", "policy t_policy: comment"),
    "policy restrictive": ("CREATE POLICY more ON app.t AS RESTRICTIVE WITH CHECK (u1 > 0)", "policy more: "),
    "policy of another table": ("DROP POLICY other_policy ON app.ref", "policy other_policy on app.ref: "),
    "table ACL": ("GRANT INSERT ON app.t TO PUBLIC", "table: INSERT granted to PUBLIC"),
    "table ACL empty": ("REVOKE ALL ON app.t FROM fp_owner", "table: "),
    "grant option": ("GRANT SELECT ON app.t TO fp_reader WITH GRANT OPTION", "table: SELECT granted to fp_reader"),
    "table comment": ("COMMENT ON TABLE app.t IS 'another'", "table: comment"),
    "row type ACL": ("GRANT USAGE ON TYPE app.t TO fp_reader", "row type: USAGE granted to fp_reader"),
    "statistics kinds": (
        "DROP STATISTICS elsewhere.t_stats; CREATE STATISTICS app.t_stats ON u1, u2 FROM app.t",
        "statistics elsewhere.t_stats: |statistics app.t_stats: ",
    ),
    "statistics target of statistics": (
        "ALTER STATISTICS elsewhere.t_stats SET STATISTICS 61",
        "statistics elsewhere.t_stats: target",
    ),
    "statistics owner": (
        "ALTER STATISTICS elsewhere.t_stats OWNER TO fp_writer",
        "statistics elsewhere.t_stats: owner",
    ),
    "statistics comment": ("COMMENT ON STATISTICS elsewhere.t_stats IS NULL", "statistics elsewhere.t_stats: comment"),
    "statistics schema": ("ALTER STATISTICS elsewhere.t_stats SET SCHEMA app", "statistics "),
    "sequence option": ("ALTER SEQUENCE app.t_id_seq INCREMENT 3", "sequence app.t_id_seq: increment"),
    "sequence unowned": ("ALTER SEQUENCE app.t_id_seq OWNED BY NONE", "sequence app.t_id_seq: "),
    "sequence ACL": ("REVOKE USAGE ON SEQUENCE app.t_num_seq FROM fp_writer", "sequence app.t_num_seq: USAGE"),
    "sequence comment": ("COMMENT ON SEQUENCE app.t_id_seq IS NULL", "sequence app.t_id_seq: comment"),
    "sequence renamed": ("ALTER SEQUENCE app.t_num_seq RENAME TO n", "sequence app.t_num_seq: |sequence app.n: "),
    "sequence of another table": (
        "ALTER TABLE app.uses_sequence ALTER id DROP DEFAULT",
        "sequence app.t_id_seq: used by default value",
    ),
    "publication gone": ("DROP PUBLICATION chosen", "publication chosen: "),
    "publication columns": (
        "ALTER PUBLICATION chosen SET TABLE app.t (id, num) WHERE (id > 5)",
        "publication chosen: columns",
    ),
    "publication where": (
        "ALTER PUBLICATION chosen SET TABLE app.t (id, num, txt) WHERE (id > 6)",
        "publication chosen: where",
    ),
    "publication of every table": ("CREATE PUBLICATION every FOR ALL TABLES", "publication every: "),
    "publication of the schema": ("CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA app", "publication of_schema: "),
    "view gone": ("DROP VIEW elsewhere.v", 'view elsewhere.v: |rule "_RETURN" on elsewhere.v: '),
    "view definition": (
        "CREATE OR REPLACE VIEW elsewhere.v WITH (security_barrier) AS SELECT id, t AS whole FROM app.t WHERE u1 > 2",
        "view elsewhere.v:  SELECT",
    ),
    "view option": ("ALTER VIEW elsewhere.v RESET (security_barrier)", "view elsewhere.v: option"),
    "view ACL": ("GRANT SELECT ON elsewhere.v TO fp_reader", "view elsewhere.v: SELECT granted to fp_reader"),
    "view owner": ("ALTER VIEW elsewhere.v OWNER TO fp_writer", "view elsewhere.v: "),
    "materialized view": ("ALTER MATERIALIZED VIEW elsewhere.m SET (fillfactor = 50)", "view elsewhere.m: option"),
    "function with a body": (
        "CREATE OR REPLACE FUNCTION app.how_many() RETURNS bigint LANGUAGE sql STRICT"
        " BEGIN ATOMIC SELECT count(*) FROM app.t; END",
        "function app.how_many(): CREATE",
    ),
    "function with a body gone": ("DROP FUNCTION app.how_many()", "function app.how_many(): "),
    "function of the row type": (
        "CREATE FUNCTION app.takes(app.t) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "row type: used by function app.takes",
    ),
    "column of the row type": ("CREATE TABLE app.holds (t app.t[])", "array type: used by table column app.holds.t"),
}


@contextmanager
def _server(version: str, servers: Servers) -> Iterator[Any]:
    if version == "18":
        yield servers.postgres
        return
    if not DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 of Debian is not here")
    with tempfile.TemporaryDirectory(prefix="headrace-15-") as folder, debian_server(Path(folder)) as postgres:
        yield postgres


@pytest.fixture(scope="module", params=["18", "15"])
def admin(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Connection]:
    """A superuser's transaction with app.t in it, on one version after the other."""
    with (
        _server(request.param, servers) as postgres,
        closing(psycopg2.connect(postgres.superuser_dsn("headrace"))) as conn,
    ):
        ask(conn, ROLES + EVERYTHING % DROPPED)
        yield conn
        conn.rollback()


@pytest.fixture
def table(admin: Connection) -> Iterator[Connection]:
    """The same, as it was after the test."""
    ask(admin, "SAVEPOINT as_made")
    yield admin
    ask(admin, "ROLLBACK TO as_made")


def ask(conn: Connection, statement: str) -> None:
    """Run statements as they are."""
    with conn.cursor() as cursor:
        cursor.execute(statement)


def lines(conn: Connection) -> list[str]:
    """The fingerprint of app.t."""
    return fingerprint_catalog.lines(conn, "app", "t")


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_shows_in_the_lines_of_what_was_changed(table: Connection, kind: str) -> None:
    """Lines differ after a change of any kind, and only those that begin with what was changed."""
    change, expected = CHANGES[kind]
    before = lines(table)
    ask(table, change)
    found = fingerprint_catalog.differences(before, lines(table))
    assert found, kind
    assert [line for line in found if not line[2:].startswith(tuple(expected.split("|")))] == []


def test_a_twin_has_the_same_lines(table: Connection) -> None:
    """A table that was dropped and made again, without the columns that the first one had lost, has equal lines."""
    before = lines(table)
    ask(table, "DROP PUBLICATION chosen; DROP SCHEMA app, elsewhere CASCADE")
    assert lines(table) == []
    ask(table, EVERYTHING % ("", ""))
    assert fingerprint_catalog.differences(before, lines(table)) == []


def test_rights_that_nobody_has_changed_are_the_usual_ones(table: Connection) -> None:
    """A right that was given and taken again leaves no mark, although PostgreSQL now writes the list out."""
    ask(table, "CREATE TABLE app.untouched (id integer PRIMARY KEY)")
    before = fingerprint_catalog.lines(table, "app", "untouched")
    ask(table, "GRANT SELECT ON app.untouched TO fp_reader; REVOKE SELECT ON app.untouched FROM fp_reader")
    assert fingerprint_catalog.lines(table, "app", "untouched") == before


def test_what_a_request_makes_is_left_out(table: Connection) -> None:
    """Log triggers, a copy that takes its default from the table's sequence, and new rows do not show."""
    before = lines(table)
    ask(
        table,
        """CREATE TRIGGER headrace_repack_7_insert AFTER INSERT ON app.t FOR EACH ROW EXECUTE FUNCTION app.nothing();
           CREATE SCHEMA headrace_new_7;
           CREATE TABLE headrace_new_7.t (id integer DEFAULT nextval('app.t_id_seq'));
           SELECT nextval('app.t_id_seq')""",
    )
    assert lines(table) == before


def test_partitions_show_their_parent_and_what_comes_from_it(table: Connection) -> None:
    """A partition has its bound, and its index, constraint and trigger say of what they are a part."""
    ask(
        table,
        """CREATE TABLE app.whole (id integer PRIMARY KEY, r integer REFERENCES app.ref) PARTITION BY RANGE (id);
           CREATE INDEX whole_r ON app.whole (r);
           CREATE TABLE app.part PARTITION OF app.whole FOR VALUES FROM (1) TO (10);
           CREATE TRIGGER whole_rows AFTER INSERT ON app.whole FOR EACH ROW EXECUTE FUNCTION app.nothing();""",
    )
    before = fingerprint_catalog.lines(table, "app", "part")
    parents = {line for line in before if "part of" in line or "parent 1" in line or "bound" in line}
    assert parents == {
        "table: bound FOR VALUES FROM (1) TO (10)",
        "table: parent 1: app.whole",
        "constraint part_pkey: partition's part of whole_pkey",
        "constraint whole_r_fkey: partition's part of whole_r_fkey",
        "index part_pkey: part of app.whole_pkey",
        "index part_r_idx: part of app.whole_r",
        "trigger whole_rows: part of whole_rows on app.whole",
    }
    ask(table, "ALTER TABLE app.whole DETACH PARTITION app.part; DROP TRIGGER IF EXISTS whole_rows ON app.part")
    ask(table, "ALTER TABLE app.whole ATTACH PARTITION app.part FOR VALUES FROM (1) TO (10)")
    assert fingerprint_catalog.differences(before, fingerprint_catalog.lines(table, "app", "part")) == []


def test_names_of_any_kind_are_read(table: Connection) -> None:
    """Names with capitals, quotes, percent signs and 63 bytes are found, and stand in the lines as they are written."""
    name = 'Wait "%s" for % it' + "é" * 22
    quoted = '"' + name.replace('"', '""') + '"'
    ask(table, f"CREATE TABLE app.{quoted} ({quoted} integer PRIMARY KEY)")
    found = fingerprint_catalog.lines(table, "app", name)
    assert f"column 1 {quoted}: type integer" in found
