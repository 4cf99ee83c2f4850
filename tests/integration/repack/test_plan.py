"""`plan` and the run are one list: what is printed is what the server then gets, and printing it changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from workers.errors import PermanentFailure
from workers.repack import api, copying, verifying
from workers.repack.requests import Wish
from workers.repack_settings import Limits, TableRules
from workers.settings import Settings

Sql = Callable[..., list[tuple[Any, ...]]]

TABLE = """
CREATE SCHEMA app;
CREATE TABLE app.kind (id integer PRIMARY KEY);
CREATE TABLE app."T%s" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind integer REFERENCES app.kind,
    number serial,
    v text NOT NULL DEFAULT 'x''y',
    CONSTRAINT short CHECK (length(v) < 100)
) WITH (fillfactor = 90);
CREATE INDEX by_v ON app."T%s" (v);
CREATE UNIQUE INDEX by_number ON app."T%s" (number);
CREATE TABLE app.child (t bigint REFERENCES app."T%s" ON DELETE CASCADE);
CREATE VIEW app.seen AS SELECT id, v FROM app."T%s";
CREATE FUNCTION app.touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON app."T%s" FOR EACH ROW EXECUTE FUNCTION app.touched();
COMMENT ON TABLE app."T%s" IS '100 % of it';
GRANT SELECT ON app."T%s" TO PUBLIC;
INSERT INTO app.kind VALUES (1);
INSERT INTO app."T%s" (kind, v) SELECT 1, 'row ' || g FROM generate_series(1, 100) g;
"""
CHANGES = re.compile(r"(CREATE|ALTER|DROP|LOCK|TRUNCATE|GRANT|REVOKE|COMMENT|ANALYZE|REINDEX)\b")


@pytest.fixture
def told(servers: Servers, dsn: str) -> Callable[[], list[str]]:
    """Have the server write down every statement; call it for those since the last call."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn())) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {dsn.rpartition('/')[2]} SET log_statement = 'all'")
    log = servers.postgres.log_path
    place = log.stat().st_size

    def statements() -> list[str]:
        nonlocal place
        text = log.read_bytes()[place:].decode()
        place = log.stat().st_size
        found = re.findall(r"statement: ((?:.*)(?:\n\t.*)*)", text)
        return [one.replace("\n\t", "\n").strip() for one in found]

    return statements


@contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    """Nobody but readers gets at the table meanwhile."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield


def done(conf: Settings, wish: Wish) -> None:
    """Rewrite the table to its end."""
    repack, _said = api.begin(conf, "control", "app", "T%s", wish)
    messages = [api.message("control", repack, "app", "T%s")]
    assert api.finish(conf, messages, timeout=timedelta(seconds=60)) == []


def _is_once(text: str) -> bool:
    """Whether it changes a schema or locks somebody out: not what is repeated per chunk."""
    return CHANGES.match(text) is not None and not text.endswith("IN ACCESS SHARE MODE")


@pytest.mark.parametrize("rules", [TableRules(), TableRules(cluster="by_v", fillfactor=70)], ids=["key", "clustered"])
def test_the_plan_is_what_is_run(
    conf: Settings, sql: Sql, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, rules: TableRules
) -> None:
    """The statements that change a schema are those of the plan, in its order; each of the others was run as well."""
    sql(TABLE)
    # Small enough for chunks and ranges with something before and after them.
    monkeypatch.setattr(copying, "FIRST_CHUNK_ROWS", 20)
    monkeypatch.setattr(verifying, "FIRST_RANGE_ROWS", 20)
    wish = Wish(rules=rules, limits=Limits(chunk_seconds=0.001))
    ready = Wish(goal="ready", rules=rules, limits=wish.limits)
    sections = api.plan_statements(conf, "control", "app", "T%s", wish)
    assert [one.step for one in sections] == [
        "rehearsal", "prepare", "copy", "index", "replay", "swap", "verify", "drop",
    ]  # fmt: skip
    planned = [one.text.strip() for section in sections for one in section.statements]
    told()
    done(conf, ready)
    ran = told()
    sql("UPDATE app.\"T%s\" SET v = v || '!' WHERE id < 50")
    told()
    done(conf, wish)
    ran += told()
    assert [text for text in ran if _is_once(text)] == [text for text in planned if _is_once(text)]
    for text in planned:
        pattern = re.compile(re.sub(r"\\\$\d+", "(?:'.*'|-?[0-9]+)", re.escape(text)), re.DOTALL)
        is_meant = not text.startswith("VACUUM")  # only after many rows
        is_meant = is_meant and "LIMIT $1))" not in text  # a batch of a log that is longer than the swap may replay
        assert not is_meant or any(pattern.search(one) for one in ran), text


def test_a_plan_changes_nothing_and_waits_for_nobody_who_writes(conf: Settings, sql: Sql) -> None:
    """It is made while somebody holds the table against everybody but readers, and leaves no trace."""
    sql(TABLE)
    look = "SELECT count(*), max(oid::bigint) FROM pg_class UNION ALL SELECT count(*), max(oid::bigint) FROM pg_trigger"
    before = sql(look), sql("SELECT last_value, is_called FROM headrace.repack_id_seq")
    with locked(conf.target().dsn, 'app."T%s", app.child, app.kind'):
        sections = api.plan_statements(conf, "control", "app", "T%s", Wish())
    assert (sql(look), sql("SELECT last_value, is_called FROM headrace.repack_id_seq")) == before
    assert sql("SELECT count(*) FROM headrace.repack") == [(0,)]
    text = api.script(sections)
    assert 'SELECT s.id, s.kind, s.number, s.v FROM ONLY app."T%s" s WHERE s.id > $1::bigint' in text
    assert "lock: ACCESS EXCLUSIVE on" in text and "repeated per chunk" in text


def test_a_plan_needs_no_tables_of_ours(conf: Settings, sql: Sql) -> None:
    """Before `setup`, too, it can be looked at."""
    sql(TABLE)
    sql("DROP SCHEMA headrace CASCADE")
    sections = api.plan_statements(conf, "control", "app", "T%s", Wish(goal="ready"))
    assert [one.step for one in sections] == ["rehearsal", "prepare", "copy", "index", "replay"]
    assert sql("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'headrace%'") == [(0,)]


def test_only_indexes_are_planned_as_reindex(conf: Settings, sql: Sql, told: Callable[[], list[str]]) -> None:
    """The other engine's list is the same, too."""
    sql(TABLE)
    wish = Wish(engine="reindex")
    planned = [one.text for one in api.plan_statements(conf, "control", "app", "T%s", wish)[0].statements]
    told()
    done(conf, wish)
    assert [text for text in told() if CHANGES.match(text)] == planned
    assert len(planned) == 3


def test_a_refusal_is_told_instead_of_a_plan(conf: Settings, sql: Sql) -> None:
    """Every reason, a line each."""
    sql("CREATE SCHEMA app; CREATE TABLE app.t (a integer)")
    sql("CREATE MATERIALIZED VIEW app.m AS SELECT * FROM app.t")
    with pytest.raises(PermanentFailure) as refused:
        api.plan_statements(conf, "control", "app", "t", Wish())
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and "no usable key" in lines[0] and "app.m" in lines[1]
