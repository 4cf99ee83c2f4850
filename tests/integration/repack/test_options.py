"""What a table may get its own way: fillfactor, order, tablespaces, json columns, disk, how long the old one stays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers
from tests.integration.alerts.test_alerts import PostOffice, post  # noqa: F401
from workers import execution
from workers.errors import PermanentFailure
from workers.repack import requests
from workers.repack.requests import Wish
from workers.repack_settings import DatabaseRules, Limits, SchemaRules, TableRules
from workers.room_settings import Alerts
from workers.settings import Settings

Ask = Callable[..., list[tuple[Any, ...]]]

TABLE = """
CREATE SCHEMA app;
CREATE TABLE app.t (id integer PRIMARY KEY, day date NOT NULL, v text, j jsonb, k json)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
INSERT INTO app.t
SELECT g, date '2026-01-01' + (g * 7919) %% 100, repeat('x', 50), '{"a": 1, "b": null, "c": {"d": null}}',
       '{"a": null, "b": 2}'
  FROM generate_series(1, 2000) g;
""".replace("%%", "%")


@pytest.fixture
def app(sql: Ask) -> Ask:
    """A table with a bit of everything."""
    sql(TABLE)
    return sql


def repack(conf: Settings, wish: Wish | None = None, table: str = "t") -> list[str]:
    """Rewrite app.t; the problems."""
    repack = requests.request(conf, "control", "app", table, wish or Wish())
    return requests.finish(conf, [requests.message("control", repack, "app", table)], timeout=timedelta(seconds=60))


def options(sql: Ask, table: str = "app.t") -> list[str]:
    """A table's storage options."""
    return sorted(row[0] for row in sql("SELECT unnest(reloptions) FROM pg_class WHERE oid = %s::regclass", table))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (DatabaseRules(fillfactor=61), 61),
        (DatabaseRules(schemas={"app": SchemaRules(fillfactor=62)}), 62),
        (DatabaseRules(tables={"app.t": TableRules(fillfactor=63)}), 63),
        (DatabaseRules(fillfactor=61, schemas={"app": SchemaRules(fillfactor=62)}), 62),
        (DatabaseRules(fillfactor=61, tables={"app.t": TableRules(fillfactor=63)}), 63),
        (DatabaseRules(schemas={"app": SchemaRules(fillfactor=62)}, tables={"app.t": TableRules(fillfactor=63)}), 63),
    ],
)
def test_a_fillfactor_is_the_tables_before_its_schemas_before_the_databases(
    rules: DatabaseRules, expected: int, conf: Settings
) -> None:
    """Each level counts alone, and the nearest one wins."""
    settings = conf.model_copy(update={"repack": conf.repack.model_copy(update={"databases": {"control": rules}})})
    assert requests.rules_of(settings, "control", "app", "t").fillfactor == expected


def test_a_fillfactor_comes_on_top_of_the_other_options(app: Ask, conf: Settings) -> None:
    """The options that a table has stay; sizes before and after are those that PostgreSQL gives."""
    before = app("SELECT pg_total_relation_size('app.t')")[0][0]
    assert repack(conf, Wish(rules=TableRules(fillfactor=50))) == []
    assert options(app) == ["autovacuum_enabled=false", "fillfactor=50"]
    toast = (
        "SELECT t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = 'app.t'::regclass"
    )
    assert app(toast) == [(["autovacuum_enabled=false"],)]
    after = app("SELECT pg_total_relation_size('app.t')")[0][0]
    assert app("SELECT bytes_before, bytes_after FROM headrace.repack") == [(before, after)]


def test_json_columns_lose_nulls_and_keys_in_copy_and_replay(app: Ask, conf: Settings) -> None:
    """cleanup_nulls and remove_keys hold for rows that were copied and for those that were changed after it."""
    rules = TableRules(cleanup_nulls=("k",), remove_keys={"j": ("b", "it's")})
    number = requests.request(conf, "control", "app", "t", Wish(goal="ready", rules=rules))
    message = requests.message("control", number, "app", "t")
    assert requests.finish(conf, [message], timeout=timedelta(seconds=60)) == []
    app("""UPDATE app.t SET k = '{"x": null, "y": 1}', j = '{"b": 1, "it''s": 2, "z": null}' WHERE id = 7""")
    app("UPDATE headrace.repack SET goal = 'swap', due_at = now()")
    assert requests.finish(conf, [message], timeout=timedelta(seconds=60)) == []
    assert app("SELECT j::text, k::text FROM app.t WHERE id IN (7, 8) ORDER BY id") == [
        ('{"z": null}', '{"y":1}'),
        ('{"a": 1, "c": {"d": null}}', '{"b":2}'),
    ]
    assert app("SELECT count(*), min(v) = max(v) FROM app.t") == [(2000, True)]


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (TableRules(cleanup_nulls=("v",)), "v"),
        (TableRules(remove_keys={"k": ("a",)}), "k"),
        (TableRules(cleanup_nulls=("nope",)), "nope"),
        (TableRules(order_by=("nope",)), "nope"),
        (TableRules(cluster="nope"), "nope"),
        (TableRules(tablespace="nope"), "nope"),
    ],
)
def test_what_does_not_fit_the_table_is_refused_before_the_start(
    rules: TableRules, named: str, app: Ask, conf: Settings
) -> None:
    """A column of another type, or one that is not there, is named; nothing is made."""
    with pytest.raises(PermanentFailure, match=named):
        repack(conf, Wish(rules=rules))
    assert app("SELECT count(*) FROM headrace.repack") == [(0,)]


@pytest.mark.parametrize("how", ["order_by", "cluster", "unserved"])
def test_rows_lie_in_the_order_that_was_asked_for(
    how: str, app: Ask, conf: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By columns or like an index; in chunks where an index serves it, else at once."""
    monkeypatch.setattr("workers.repack.copying.FIRST_CHUNK_ROWS", 100)
    if how != "unserved":
        app("CREATE INDEX t_day ON app.t (day)")
    rules = TableRules(cluster="t_day") if how == "cluster" else TableRules(order_by=("day",))
    assert repack(conf, Wish(rules=rules)) == []
    assert app("SELECT day FROM app.t ORDER BY ctid") == app("SELECT day FROM app.t ORDER BY day")
    chunks = app("SELECT chunks FROM headrace.repack")[0][0]
    assert (chunks == 1) is (how == "unserved")


def test_chunks_are_of_the_rows_that_follow_each_other(
    app: Ask, conf: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a chunk is found in the order of the key's type, not in that of its text: 20 comes after 3."""
    monkeypatch.setattr("workers.repack.copying.FIRST_CHUNK_ROWS", 20)
    number = requests.request(conf, "control", "app", "t", Wish(limits=Limits(slice_seconds=0.001)))
    message = requests.message("control", number, "app", "t")
    execution.load_rooms()
    execution.execute(message, conf)
    execution.execute(message, conf)
    assert app("SELECT step, position, rows_copied FROM headrace.repack") == [("copy", ["20"], 20)]


def test_a_dropped_columns_room_is_given_back(app: Ask, conf: Settings) -> None:
    """The copy has no trace of columns that were dropped."""
    app("ALTER TABLE app.t DROP COLUMN v")
    before = app("SELECT pg_relation_size('app.t')")[0][0]
    assert repack(conf) == []
    assert app("SELECT count(*) FROM pg_attribute WHERE attrelid = 'app.t'::regclass AND attisdropped") == [(0,)]
    assert app("SELECT pg_relation_size('app.t')")[0][0] < 0.8 * before


def test_the_old_table_stays_as_long_as_it_shall(app: Ask, conf: Settings) -> None:
    """With keep_old_hours it waits in a schema of its own, and goes when its time is over."""
    assert repack(conf, Wish(limits=Limits(keep_old_hours=1))) == []
    assert app("SELECT step, state, keep_until > now() + interval '50 minutes' FROM headrace.repack") == [
        ("drop", "active", True)
    ]
    number = app("SELECT id FROM headrace.repack")[0][0]
    assert app(f"SELECT count(*) FROM headrace_old_{number}.t") == [(2000,)]
    app("UPDATE headrace.repack SET keep_until = now(), due_at = now()")
    message = requests.message("control", number, "app", "t")
    assert requests.finish(conf, [message], timeout=timedelta(seconds=60)) == []
    assert app("SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace_'") == []


def test_a_budget_that_is_too_small_refuses_before_the_start(app: Ask, conf: Settings) -> None:
    """What a copy needs at most must fit into disk_budget_bytes; else nothing is made."""
    rules = DatabaseRules(disk_budget_bytes=10_000)
    settings = conf.model_copy(update={"repack": conf.repack.model_copy(update={"databases": {"control": rules}})})
    problems = repack(settings)
    assert len(problems) == 1 and "disk_budget_bytes" in problems[0] and "app.t" in problems[0]
    assert app("SELECT state, reason FROM headrace.repack") == [("failed", "refused")]
    assert app("SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace_'") == []


@pytest.fixture
def small_disk(servers: Servers) -> Iterator[tuple[str, Path]]:
    """A tablespace that the plain role may use."""
    with tempfile.TemporaryDirectory(prefix="headrace-space-") as folder:
        Path(folder).chmod(0o700)
        conn = psycopg2.connect(servers.postgres.superuser_dsn("headrace"))
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(f"CREATE TABLESPACE repack_space LOCATION '{folder}'")
            cursor.execute("GRANT CREATE ON TABLESPACE repack_space TO PUBLIC")
        yield "repack_space", Path(folder)
        conn.close()


def test_table_and_indexes_move_to_other_tablespaces(
    app: Ask, conf: Settings, small_disk: tuple[str, Path], servers: Servers
) -> None:
    """The table goes to `tablespace`, its indexes to `index_tablespace`; what is not named stays where it was."""
    app("CREATE INDEX t_day ON app.t (day)")
    assert repack(conf, Wish(rules=TableRules(tablespace="repack_space", index_tablespace="repack_space"))) == []
    places = """SELECT c.relname, coalesce(t.spcname, '')
                  FROM pg_class c LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
                 WHERE c.relname IN ('t', 't_pkey', 't_day') AND c.relnamespace = 'app'::regnamespace ORDER BY 1"""
    assert app(places) == [("t", "repack_space"), ("t_day", "repack_space"), ("t_pkey", "repack_space")]
    assert repack(conf) == []
    assert app(places) == [("t", "repack_space"), ("t_day", "repack_space"), ("t_pkey", "repack_space")]
    app("DROP TABLE app.t")
    conn = psycopg2.connect(servers.postgres.superuser_dsn("headrace"))
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("DROP TABLESPACE repack_space")
    conn.close()


def test_people_hear_of_success_and_of_failure_by_mail(
    app: Ask,
    conf: Settings,
    post: PostOffice,  # noqa: F811
) -> None:
    """A rewrite in this process tells by itself, also of what it gained, or of why it was given up."""
    mail = {"host": "127.0.0.1", "port": post.port, "to": ["night@obs.example"]}
    alerts = Alerts.model_validate({"mail": mail, "on": ["success", "failure"]})
    settings = conf.model_copy(update={"alerts": alerts})
    assert repack(settings) == []
    small = DatabaseRules(disk_budget_bytes=10)
    repack(settings.model_copy(update={"repack": conf.repack.model_copy(update={"databases": {"control": small}})}))
    subjects = [str(mail["Subject"]) for mail in post.mails]
    assert subjects == ["[headrace] success: table app.t", "[headrace] failure: table app.t"]
    assert "disk_budget_bytes" in post.mails[1].get_content()
