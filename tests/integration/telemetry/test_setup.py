"""`telemetry setup`: idempotent, and it takes over tables of xtelemdb with every row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from workers import database, execution, migrations
from workers import settings as settings_module
from workers.errors import PermanentFailure
from workers.messages import IngestFile
from workers.settings import Settings
from workers.telemetry import api

OLD_TABLES = """
CREATE TABLE telem (
    ts timestamptz NOT NULL, device varchar(50) NOT NULL, msg jsonb, prio varchar(8), ec varchar(20),
    CONSTRAINT telem_pkey PRIMARY KEY (ts, device));
CREATE INDEX telem_device_ts ON telem (device, ts);
CREATE INDEX observation_spans_fixup ON telem (ts, (msg ->> 'obsName'))
    WHERE device = 'observers' AND msg ->> 'obsName' <> '';
CREATE TABLE file_origins (
    origin_host varchar(50), origin_path varchar(1024), modification_time timestamptz, creation_time timestamptz,
    size_bytes bigint, PRIMARY KEY (origin_host, origin_path));
CREATE TABLE file_ingest_times (
    ts timestamptz, device varchar(50), ingested_at timestamptz, origin_host varchar(50), origin_path varchar(1024),
    UNIQUE (ts, device), FOREIGN KEY (origin_host, origin_path) REFERENCES file_origins);
CREATE TABLE file_replicas (
    hostname varchar(50), replica_path varchar(1024), origin_modification_time timestamptz, size_bytes bigint,
    origin_host varchar(50), origin_path varchar(1024),
    FOREIGN KEY (origin_host, origin_path) REFERENCES file_origins);
CREATE VIEW observations AS SELECT ts AS start_ts, ts AS end_ts, msg ->> 'email' AS email, msg ->> 'obsName' AS obsname
    FROM telem WHERE device = 'observers';
INSERT INTO telem SELECT '2024-01-01'::timestamptz + n * interval '1 s', 'dev', jsonb_build_object('n', n), NULL, 'old'
    FROM generate_series(1, 100) n;
INSERT INTO file_origins VALUES ('h', '/p/dev_20240101000000000000000.bintel', now(), now(), 5);
INSERT INTO file_ingest_times VALUES ('2024-01-01', 'dev', now(), 'h', '/p/dev_20240101000000000000000.bintel');
"""


@pytest.fixture
def fresh(empty_dsn: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings for an empty database."""
    conf = Settings(host="here", data_dir=tmp_path, control={"dsn": empty_dsn})
    settings_module.use(conf)
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    yield conf
    settings_module._current = None


def ask(conf: Settings, statement: str) -> list[tuple[Any, ...]]:
    """Rows of a statement."""
    conn = psycopg2.connect(conf.target().dsn, options="-c timezone=UTC")
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute(statement)
        rows = list(cursor.fetchall()) if cursor.description else []
    conn.close()
    return rows


def columns(conf: Settings, table: str) -> list[tuple[Any, ...]]:
    """Names and types of a table's columns, in order."""
    return ask(
        conf,
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
        f" WHERE attrelid = 'public.{table}'::regclass AND attnum > 0 ORDER BY attnum",
    )


def test_setup_twice_is_the_same_as_once(fresh: Settings) -> None:
    """The second setup runs no statement; a dry run before it would have told all of the first."""
    told = api.setup(fresh, dry_run=True)
    assert ask(fresh, "SELECT to_regclass('telem') IS NULL") == [(True,)]
    assert api.setup(fresh) == told and len(told) == 7
    assert api.setup(fresh) == []


def test_the_old_columns_keep_name_order_and_meaning(fresh: Settings) -> None:
    """The first columns of each table are xtelemdb's; ours come after them."""
    api.setup(fresh)
    assert [name for name, _type in columns(fresh, "telem")] == ["ts", "device", "msg", "prio", "ec", "ts_ns", "digest"]
    assert [name for name, _type in columns(fresh, "file_origins")][:5] == [
        "origin_host", "origin_path", "modification_time", "creation_time", "size_bytes",
    ]  # fmt: skip
    assert [name for name, _type in columns(fresh, "observations")] == ["start_ts", "end_ts", "email", "obsname"]


def test_xtelemdbs_tables_are_taken_over_with_every_row(fresh: Settings, tmp_path: Path) -> None:
    """Old rows stay and have a digest, old SQL and the site's own view work, long names and codes fit."""
    ask(fresh, OLD_TABLES)
    before = ask(fresh, "SELECT ts, device, msg, prio, ec FROM telem ORDER BY ts")
    view = ask(fresh, "SELECT pg_get_viewdef('observations')")
    path = tmp_path / "dev_20240101000000000000000.ndjson"
    record = '{"ts": "2024-01-01T00:00:01", "prio": "TELM", '
    path.write_text(
        record + '"ec": "old", "msg": {"n": 1}}\n' + record + '"ec": "a_code_of_23_characters", "msg": {}}\n'
    )
    with database.connection(fresh.target(), purpose="tests"), pytest.raises(PermanentFailure, match="telemetry setup"):
        execution.load_rooms()
        execution.execute(IngestFile(host="here", path=str(path)), fresh)
    api.setup(fresh)
    assert ask(fresh, "SELECT ts, device, msg, prio, ec FROM telem ORDER BY ts") == before
    now = ask(fresh, "SELECT pg_get_viewdef('observations')")
    assert now[0][0] == view[0][0].replace("(device)::text", "device")
    assert columns(fresh, "telem")[:5] == [
        ("ts", "timestamp with time zone"), ("device", "text"), ("msg", "jsonb"), ("prio", "text"), ("ec", "text"),
    ]  # fmt: skip
    assert execution.execute(IngestFile(host="here", path=str(path)), fresh) == []
    assert ask(fresh, "SELECT count(*) FROM telem") == [(101,)]
    assert api.setup(fresh) == []


def test_what_xtelemdb_has_read_is_not_read_again(fresh: Settings, tmp_path: Path) -> None:
    """After `adopt` an unchanged old file is done, one that grew is read on, and one that is gone is told."""
    fresh = fresh.model_copy(update={"host": "h"})
    ask(fresh, OLD_TABLES)
    for name in ("same", "grown"):
        path = tmp_path / f"{name}_20240101000000000000000.ndjson"
        path.write_text('{"ts": "2024-01-01T00:00:01", "msg": {}}\n')
        ask(
            fresh,
            f"INSERT INTO file_origins VALUES ('h', '{path}', now(), now());"
            f"INSERT INTO file_ingest_times VALUES ('2024-01-01', '{name}', now() + interval '1 s', 'h', '{path}')",
        )
    api.setup(fresh)
    assert api.adopt(fresh) == {"adopted": 2, "changed": 0, "absent": 1}
    with (tmp_path / "grown_20240101000000000000000.ndjson").open("a") as file:
        file.write('{"ts": "2024-01-01T00:00:02", "msg": {}}\n')
    found = [IngestFile(host="h", path=str(path)) for path in sorted(tmp_path.glob("*.ndjson"))]
    execution.run_here(found, fresh, timeout=timedelta(seconds=5))
    assert ask(fresh, "SELECT device, count(*) FROM telem WHERE device <> 'dev' GROUP BY 1") == [("grown", 1)]


def test_observations_are_the_spans_in_which_somebody_observed(fresh: Settings) -> None:
    """The view gives one row from "observing" on to off, and an open end while it is on."""
    api.setup(fresh)
    marks = [(1, "a", False), (2, "a", True), (3, "a", True), (4, "a", False), (6, "b", True)]
    for second, name, on in marks:
        message = f'{{"email": "{name}@x", "obsName": "{name}", "observing": {str(on).lower()}}}'
        ask(
            fresh,
            "INSERT INTO telem (ts, device, ec, msg) VALUES"
            f" ('2024-01-01 00:00:0{second}', 'observers', 'telem_observer', '{message}')",
        )
    found = ask(fresh, "SELECT extract(second FROM start_ts)::int, extract(second FROM end_ts)::int, email, obsname"
                       " FROM observations ORDER BY 1")  # fmt: skip
    assert found == [(2, 4, "a@x", "a"), (6, None, "b@x", "b")]


def test_the_sites_reader_may_see_everything_and_change_nothing(fresh: Settings) -> None:
    """Where the role `xsup` exists, setup lets it SELECT every table and the view, and no more."""
    tables = "telem, file_origins, file_ingest_times, file_replicas, observations"
    ask(fresh, "CREATE ROLE xsup")
    try:
        api.setup(fresh)
        rights = ask(
            fresh,
            "SELECT bool_and(has_table_privilege('xsup', name, 'SELECT')),"
            " bool_or(has_table_privilege('xsup', name, 'INSERT, UPDATE, DELETE, TRUNCATE'))"
            f" FROM unnest(string_to_array('{tables}', ', ')) AS name",
        )
        assert rights == [(True, False)]
        assert api.setup(fresh) == []
    finally:
        # Roles are shared by all databases of the tests' server.
        ask(fresh, f"REVOKE ALL ON {tables} FROM xsup; DROP ROLE xsup")
