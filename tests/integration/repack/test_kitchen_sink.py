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

# What PostgreSQL's catalogs say in another way in older versions, or what it does in another way there.
OF_OLDER = (
    "dropped columns", "identity with options and grants", "generated stored", "rights by default",
    "row level security", "triggers", "rules of other tables", "unique constraints", "views",
    "publication of columns and rows", "publication of the schema", "extended statistics", "column properties",
    "table options", "indexes", "function with a body", "names full of signs", "inheritance child of two", "partition",
    "partition made before", "partition with a disabled trigger", "partitions of a whole tree",
)  # fmt: skip


@dataclass
class Sample:
    """Tables of one kind, with names of their own; their rows before and, once they were rewritten, after."""

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
    """A database with one table of each kind, and its dump before any of them is rewritten."""

    conf: Settings
    superuser: str
    programs: Path | None
    samples: dict[str, Sample] = field(default_factory=dict)
    before: str = ""

    def ask(self, statements: str, *, dsn: str | None = None) -> list[tuple[Any, ...]]:
        """Ask as the plain login, or by `dsn`, in a transaction that is rolled back; the last answer."""
        with closing(psycopg2.connect(dsn or self.conf.target().dsn)) as conn, conn.cursor() as cursor:
            cursor.execute(statements)
            return list(cursor.fetchall()) if cursor.description else []

    def repacked(self, name: str) -> Sample:
        """The tables of a kind, which are rewritten now unless they were before."""
        sample = self.samples[name]
        if not sample.rows:
            sample.rows.append(self._rows(sample.kind))
            for table in sample.kind.tables:
                sample.problems += repack_table(self.conf, table)
            sample.rows.append(self._rows(sample.kind))
        return sample

    def changes(self) -> dict[str, list[str]]:
        """How the dump differs now, by kind; '' is what belongs to none."""
        after, found = self.dump(), {}
        for name, sample in self.samples.items():
            then, now = ("\n".join(sample.entries(dump)).splitlines() for dump in (self.before, after))
            found[name] = list(unified_diff(then, now, lineterm="", n=0))
        found[""] = [] if after == self.before or any(found.values()) else ["the order, or what no kind made"]
        return {name: lines for name, lines in found.items() if lines}

    def dump(self) -> str:
        """What pg_dump says of the schema."""
        return dumps.schema(self.superuser, self.programs)

    def _rows(self, kind: Kind) -> list[Any]:
        """Every row of its tables, and the answers that must stay the same."""
        questions = (*(f"SELECT t::text FROM ONLY {table} t ORDER BY 1" for table in kind.tables), *kind.same)
        return [self.ask(question, dsn=self.superuser) for question in questions]


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


@contextmanager
def filled(servers: Servers, kinds: dict[str, Kind], *, version: int = 18, late: str = "") -> Iterator[Sink]:
    """A database with these kinds; `late` is run by the login when they are there."""
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
        sink = Sink(conf, superuser, dumps.DEBIAN_15 if version == 15 else None)
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
        sink.before = sink.dump()
        try:
            yield sink
        finally:
            settings_module._current = None


@pytest.fixture(scope="module")
def sink(servers: Servers) -> Iterator[Sink]:
    """Every kind, as a plain login has it."""
    with filled(servers, KINDS) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_table_stays_what_it_is(sink: Sink, kind: str) -> None:
    """It is rewritten with every row and works as before, or it is refused by the name of what is in the way."""
    sample = sink.repacked(kind)
    if sample.kind.expected == "repacked":
        assert sample.problems == []
    else:
        assert len(sample.problems) == 1
        assert sample.kind.problem in sample.problems[0]
    assert sample.rows[1] == sample.rows[0]
    for statements, expected in sample.kind.works.items():
        found = sink.ask(statements)
        assert expected is None or found == expected, statements


@pytest.mark.timeout(600)  # alone, it rewrites them all
def test_the_schema_is_the_same_after_all_of_it(sink: Sink) -> None:
    """pg_dump writes the same text before and after: nothing is lost or changed, and nothing of ours is left."""
    for kind in sink.samples:
        sink.repacked(kind)
    assert sink.changes() == {}


def test_rights_by_default_do_not_come_on_top(servers: Servers) -> None:
    """The copy of a table that was made before ALTER DEFAULT PRIVILEGES has its rights, not those of new tables."""
    chosen = {name: KINDS[name] for name in ("plain", "serial", "identity with options and grants", "column rights")}
    with filled(servers, chosen, late=BY_DEFAULT) as found:
        assert [problem for name in chosen for problem in found.repacked(name).problems] == []
        assert found.changes() == {}


@pytest.mark.timeout(600)  # a server of its own, and many tables
def test_an_older_postgresql_does_the_same(servers: Servers) -> None:
    """On PostgreSQL 15 kinds come out as on the newest, above all those that its catalogs tell in another way."""
    if not dumps.DEBIAN_15.is_dir():
        pytest.skip("PostgreSQL 15 of Debian is not here")
    with (
        tempfile.TemporaryDirectory(prefix="headrace-15-") as folder,
        dumps.debian_server(Path(folder)) as postgres,
        filled(Servers(postgres, servers.valkey), {name: KINDS[name] for name in OF_OLDER}, version=15) as found,
    ):
        samples = {name: found.repacked(name) for name in found.samples}
        assert {name: sample.problems for name, sample in samples.items() if sample.problems} == {}
        assert [name for name, sample in samples.items() if sample.rows[0] != sample.rows[1]] == []
        assert found.changes() == {}
