"""Whatever hangs on a table is there after its rewrite as it was before, or the table is refused and left alone."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import unified_diff
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Servers, _clone
from tests.integration.repack import dumps, kitchen_sink
from tests.integration.repack.kitchen_sink import KINDS, Kind
from workers import database, migrations
from workers import settings as settings_module
from workers.errors import PermanentFailure
from workers.repack import requests
from workers.settings import Settings

# Rights that every new table and sequence of the login gets, also its copies.
BY_DEFAULT = """
ALTER DEFAULT PRIVILEGES GRANT SELECT, UPDATE ON TABLES TO ks_reader;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO ks_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE DELETE ON TABLES FROM headrace
"""


@dataclass
class Sample:
    """Tables of one kind, with names of their own; their rows before and after."""

    number: int
    kind: Kind
    problems: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def entries(self, dump: str) -> list[str]:
        """What a dump says of it: the entries in which its schemas or publications are named, in order."""
        own = re.compile(rf"\b(app|far|pub|pub2)_{self.number}\b")
        return [entry for entry in dump.split("\n--\n-- ") if own.search(entry)]


@dataclass
class Sink:
    """A database with one table of each kind, every one of which was rewritten or refused; its dumps around that."""

    conf: Settings
    samples: dict[str, Sample] = field(default_factory=dict)
    before: str = ""
    after: str = ""

    def ask(self, statements: str) -> list[tuple[Any, ...]]:
        """Ask as the plain login, in a transaction that is rolled back; the last answer."""
        with closing(psycopg2.connect(self.conf.target().dsn)) as conn, conn.cursor() as cursor:
            cursor.execute(statements)
            return list(cursor.fetchall()) if cursor.description else []


def repack_table(conf: Settings, text: str) -> list[str]:
    """Rewrite a table of the control database, or the partitions of one, here and now; the problems."""
    try:
        with database.connection(conf.target(), purpose="tests") as conn:
            names = requests.tables(conn, text)
        messages = []
        for schema, table in names:
            number = requests.request(conf, "control", schema, table, requests.Wish())
            messages.append(requests.message("control", number, schema, table))
    except PermanentFailure as refusal:
        return [str(refusal)]
    return requests.finish(conf, messages, timeout=timedelta(seconds=30))


def rows(cursor: Any, kind: Kind) -> list[Any]:
    """Every row of its tables, and the answers that must stay the same."""
    answers = []
    for question in (*(f"SELECT t::text FROM ONLY {table} t ORDER BY 1" for table in kind.tables), *kind.same):
        cursor.execute(question)
        answers.append(cursor.fetchall())
    return answers


@contextmanager
def done(servers: Servers, kinds: dict[str, Kind], *, version: int = 18, late: str = "") -> Iterator[Sink]:
    """Make a database with these kinds, rewrite them all; `late` is run by the login before that."""
    with closing(psycopg2.connect(servers.postgres.superuser_dsn())) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        for statement in kitchen_sink.PREPARATION:
            with suppress(psycopg2.errors.DuplicateObject):
                cursor.execute(statement)
    with _clone(servers, "template1") as dsn, tempfile.TemporaryDirectory() as folder:
        superuser = servers.postgres.superuser_dsn(dsn.rpartition("/")[2])
        conf = settings_module.use(Settings(host="here", data_dir=Path(folder), control={"dsn": dsn}))
        with database.connection(conf.target(), purpose="tests") as migrated:
            for room in (migrations.FOUNDATION, "alerts", "repack"):
                migrations.migrate(migrated, room)
        sink = Sink(conf)
        with closing(psycopg2.connect(dsn)) as plain, closing(psycopg2.connect(superuser)) as admin:
            plain.autocommit = admin.autocommit = True
            as_login, as_superuser = plain.cursor(), admin.cursor()
            for number, (name, kind) in enumerate(kinds.items()):
                if kind.since <= version:
                    sample = sink.samples[name] = Sample(number, kind.own(number))
                    as_login.execute(f"CREATE SCHEMA app_{number}; CREATE SCHEMA far_{number}")
                    as_login.execute(f"{sample.kind.setup}; RESET ROLE")
                    if sample.kind.admin:
                        as_superuser.execute(sample.kind.admin)
            if late:
                as_login.execute(late)
            programs = dumps.DEBIAN_15 if version == 15 else None
            sink.before = dumps.schema(superuser, programs)
            for sample in sink.samples.values():
                sample.rows.append(rows(as_superuser, sample.kind))
                for table in sample.kind.tables:
                    sample.problems += repack_table(conf, table)
                sample.rows.append(rows(as_superuser, sample.kind))
            sink.after = dumps.schema(superuser, programs)
        try:
            yield sink
        finally:
            settings_module._current = None


@pytest.fixture(scope="module")
def sink(servers: Servers) -> Iterator[Sink]:
    """Every kind, rewritten by a plain login."""
    with done(servers, KINDS) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_table_stays_what_it_is(sink: Sink, kind: str) -> None:
    """Its definition, its rows and its use are the same after the rewrite; a refusal names what is in the way."""
    sample = sink.samples[kind]
    if sample.kind.expected == "repacked":
        assert sample.problems == []
    else:
        assert len(sample.problems) == 1
        assert sample.kind.problem in sample.problems[0]
    assert sample.entries(sink.after) == sample.entries(sink.before)
    assert sample.rows[1] == sample.rows[0]
    for statements, expected in sample.kind.works.items():
        found = sink.ask(statements)
        assert expected is None or found == expected, statements


def test_nothing_else_of_the_schema_changes(sink: Sink) -> None:
    """pg_dump writes the same text before and after all of it: nothing is lost, nothing of ours is left."""
    assert list(unified_diff(sink.before.splitlines(), sink.after.splitlines(), lineterm="", n=1)) == []


def test_rights_by_default_do_not_come_on_top(servers: Servers) -> None:
    """The copy of a table that was made before ALTER DEFAULT PRIVILEGES has its rights, not those of new tables."""
    chosen = {name: KINDS[name] for name in ("plain", "serial", "identity with options and grants", "column rights")}
    with done(servers, chosen, late=BY_DEFAULT) as found:
        assert [problem for sample in found.samples.values() for problem in sample.problems] == []
        assert found.after == found.before


def test_an_older_postgresql_does_the_same(servers: Servers) -> None:
    """On PostgreSQL 15 every kind that it knows comes out as on the newest."""
    if not dumps.DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 of Debian is not here")
    with (
        tempfile.TemporaryDirectory(prefix="headrace-15-") as folder,
        dumps.debian_server(Path(folder)) as postgres,
        done(Servers(postgres, servers.valkey), KINDS, version=15) as found,
    ):
        wrong = {
            name: sample.problems
            for name, sample in found.samples.items()
            if bool(sample.problems) != (sample.kind.expected == "refused") or sample.rows[0] != sample.rows[1]
        }
        assert wrong == {}
        assert list(unified_diff(found.before.splitlines(), found.after.splitlines(), lineterm="", n=1)) == []
