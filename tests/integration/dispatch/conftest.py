"""Real PgQ: its PL-only SQL on the embedded PostgreSQL, its C extension on Debian's, a cloned database per test."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import psycopg2
import pytest
from psycopg2 import sql

from tests.conftest import Servers, _admin, _clone
from workers import database, execution, migrations
from workers import settings as settings_module
from workers.dispatch import pgq_install, positions, pump
from workers.errors import PermanentFailure
from workers.messages import ReplayEvents
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer
from workers.settings import Settings

DEBIAN = Path("/usr/lib/postgresql")
ROOMS = (migrations.FOUNDATION, "alerts", "dispatch")
NONE = {"kind": "none"}  # a consumer's `partition` for tables that are not cut

Ask = Callable[..., list[tuple[Any, ...]]]
Conf = Callable[..., Settings]
Start = Callable[..., Settings]


def run(dsn: str, statement: str | sql.Composed, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask a server on a connection of its own."""
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []


def migrate(dsn: str) -> None:
    """Our tables for events that end in this database."""
    with database.connection(Settings(control={"dsn": dsn}).target(), purpose="tests") as conn:
        for room in ROOMS:
            migrations.migrate(conn, room)
    database.close_all()  # nobody may be connected to a database that is cloned


def missing(reason: str, allowed: str | None = None) -> NoReturn:
    """What a test needs is not here: a failure in CI (unless this variable allows it there), else a skip."""
    if os.environ.get("CI") and not (allowed and os.environ.get(allowed)):
        pytest.fail(reason)
    pytest.skip(reason)


# PgQ in PL/pgSQL, on the embedded PostgreSQL


@pytest.fixture(scope="session")
def pl_only_sql(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PgQ's own SQL that needs no C: from this system, else out of Debian's package."""
    try:
        return pgq_install.find_source(tmp_path_factory.mktemp("pgq"))
    except PermanentFailure as error:
        missing(str(error))


def _with_pgq(servers: Servers, name: str, text: str) -> str:
    with _admin(servers) as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
        if cursor.fetchone() is not None:
            return name  # other test folders that borrow these fixtures have fixtures of their own
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template_headrace")
    run(servers.postgres.dsn(name), text)  # as an ordinary role, who owns the database
    migrate(servers.postgres.dsn(name))
    return name


@pytest.fixture(scope="session")
def pgq_template(servers: Servers, template: str, pl_only_sql: Path) -> str:
    """A migrated database with PgQ in PL/pgSQL, to clone."""
    return _with_pgq(servers, "template_pgq", pl_only_sql.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def pgque_template(servers: Servers, template: str, pl_only_sql: Path) -> str:
    """A migrated database with the same PgQ in a schema called pgque; the roles keep their names."""
    text = re.sub(r"\bpgq\b", "pgque", pl_only_sql.read_text(encoding="utf-8"))
    return _with_pgq(servers, "template_pgque", text)


@pytest.fixture
def pgq_dsn(servers: Servers, pgq_template: str) -> Iterator[str]:
    """A database of this test's own, with PgQ in PL/pgSQL and our tables."""
    with _clone(servers, pgq_template) as cloned:
        yield cloned


@pytest.fixture
def pgque_dsn(servers: Servers, pgque_template: str) -> Iterator[str]:
    """A database of this test's own, with PgQ in the schema pgque and our tables."""
    with _clone(servers, pgque_template) as cloned:
        yield cloned


# PgQ as Debian's extension in C


@pytest.fixture(scope="session")
def c_servers(servers: Servers) -> Iterator[Servers]:
    """Debian's PostgreSQL with the extension at hand (its superuser: `c_servers.postgres.superuser_dsn(name)`)."""
    libraries = sorted(DEBIAN.glob("*/lib/pgq_triggers.so"), key=lambda path: int(path.parents[1].name))
    if not libraries:
        missing("PgQ's extension is tested on Debian's: apt-get install postgresql-15-pgq3", "WITHOUT_PGQ_C")
    with tempfile.TemporaryDirectory(prefix="headrace-pgq-") as folder, pytest.MonkeyPatch.context() as patch:
        postgres = PostgresServer(Path(folder))
        patch.setenv(POSTGRES_VARIABLE, str(libraries[-1].parents[1] / "bin"))
        postgres.start()
        patch.undo()  # the embedded server is not to be started with these programs
        try:
            yield Servers(postgres, servers.valkey)
        finally:
            postgres.stop()


@pytest.fixture(scope="session")
def c_pgq_template(c_servers: Servers) -> str:
    """A migrated database with the extension, to clone; the login headrace is no superuser, but pgq_admin."""
    with _admin(c_servers) as cursor:
        cursor.execute("CREATE DATABASE template_pgq")
    superuser = c_servers.postgres.superuser_dsn("template_pgq")
    run(superuser, "CREATE EXTENSION pgq")
    run(superuser, "GRANT pgq_admin TO headrace")
    migrate(c_servers.postgres.dsn("template_pgq"))
    return "template_pgq"


@pytest.fixture
def c_pgq_dsn(c_servers: Servers, c_pgq_template: str) -> Iterator[str]:
    """A database of this test's own, with the C extension and our tables."""
    with _clone(c_servers, c_pgq_template) as cloned:
        yield cloned


# A queue, and settings of a consumer


@dataclass
class Queue:
    """One PgQ queue that a test fills and ticks; it is made if it is not there."""

    dsn: str
    schema: str = "pgq"
    name: str = "q"
    _conn: Any = field(default=None, repr=False)

    def ask(self, statement: str | sql.Composed, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the queue's database; each statement is a transaction."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg2.connect(self.dsn, options="-c timezone=UTC")
            self._conn.autocommit = True
        with self._conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of PgQ's answers when it is given the queue's name and these arguments."""
        places = sql.SQL(", ").join([sql.Placeholder()] * (len(arguments) + 1))
        statement = sql.SQL("SELECT {}({})").format(sql.Identifier(self.schema, function), places)
        return self.ask(statement, self.name, *arguments)[0][0]

    def insert(
        self, type: str, data: str, extra1: str | None = None, extra2: str | None = None,
        extra3: str | None = None, extra4: str | None = None,
    ) -> int:  # fmt: skip
        """Put an event in as a producer does; its number."""
        return int(self.call("insert_event", type, data, extra1, extra2, extra3, extra4))

    def logged(self, table: str, columns: str, *options: str, kind: str = "logutriga", truncate: bool = False) -> None:
        """Make a source table, name and columns as SQL, whose changes the trigger puts into the queue."""
        self.ask(f"CREATE TABLE {table} ({columns})")
        self.trigger(table, *options, kind=kind, truncate=truncate)

    def trigger(self, table: str, *options: str, kind: str = "logutriga", truncate: bool = False) -> None:
        """Let a table's changes go into the queue; `truncate`: TRUNCATE, too."""
        called = sql.SQL("EXECUTE FUNCTION {}({})").format(
            sql.Identifier(self.schema, kind), sql.SQL(", ").join(map(sql.Literal, (self.name, *options)))
        )
        events = [("log_rows", "INSERT OR UPDATE OR DELETE", "ROW")]
        if truncate:
            events.append(("log_truncate", "TRUNCATE", "STATEMENT"))
        for name, event, each in events:
            head = f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH {each} "
            self.ask(sql.Composed([sql.SQL(head), called]))

    def tick(self) -> int:
        """End what is pending with a tick that exists when this returns; its number."""
        self.call("force_tick")
        made = self.call("ticker")
        assert made is not None, f"no tick of {self.name} was made"
        return int(made)

    def consumer_info(self, consumer: str | None = None) -> list[dict[str, Any]]:
        """PgQ's own account of the queue's consumers, by column name."""
        function = sql.Identifier(self.schema, "get_consumer_info")
        rows = self.ask(sql.SQL("SELECT to_jsonb(c) FROM {}(%s) c").format(function), self.name)
        return [row[0] for row in rows if consumer in (None, row[0]["consumer_name"])]

    def events(self) -> list[dict[str, Any]]:
        """Every event that is still in the queue's tables, oldest number first, by column name."""
        table = self.call("current_event_table").rpartition("_")[0]
        return [row[0] for row in self.ask(f"SELECT to_jsonb(e) FROM {table} e ORDER BY ev_id")]

    def close(self) -> None:
        """Let go of the connection."""
        if self._conn is not None:
            self._conn.close()


@pytest.fixture
def make_queue() -> Iterator[Callable[..., Queue]]:
    """Make a queue somewhere: `make_queue(dsn, schema="pgq", name="q")`."""
    made: list[Queue] = []

    def make(dsn: str, schema: str = "pgq", name: str = "q") -> Queue:
        queue = Queue(dsn, schema, name)
        made.append(queue)
        queue.call("create_queue")
        return queue

    yield make
    for queue in made:
        queue.close()


@pytest.fixture
def queue(pgq_dsn: str, make_queue: Callable[..., Queue]) -> Queue:
    """The queue `q` of the PL/pgSQL PgQ."""
    return make_queue(pgq_dsn)


@pytest.fixture
def dispatch_conf(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Settings with one consumer, in force for this process: `dispatch_conf(dsn, queue="q", **consumer_keys)`.

    `dsn` is the control database; `src` and `dst` are it, too, or where `source_dsn` and `target_dsn` point.
    """

    def make(
        dsn: str, queue: str = "q", *, source_dsn: str | None = None, target_dsn: str | None = None,
        name: str = "cube", room: dict[str, Any] | None = None, **consumer_keys: Any,
    ) -> Settings:  # fmt: skip
        consumer = {"source": "src", "target": "dst", "queue": queue, **consumer_keys}
        settings = Settings(
            host="here",
            data_dir=tmp_path / "state",
            control={"dsn": dsn},
            databases={
                "src": {"connection": {"dsn": source_dsn or dsn}},
                "dst": {"connection": {"dsn": target_dsn or dsn}},
            },
            dispatch={"consumers": {name: consumer}, **(room or {})},
        )
        return settings_module.use(settings)

    yield make
    settings_module._current = None


@pytest.fixture
def start(pgq_dsn: str, dsn: str, queue: Queue, dispatch_conf: Conf) -> Callable[..., Settings]:
    """A consumer whose source is PgQ's database and whose target is another one: `start(**consumer_keys)`."""

    def make(**keys: Any) -> Settings:
        conf = dispatch_conf(dsn, source_dsn=pgq_dsn, **keys)
        positions.register(conf, "cube")
        return conf

    return make


# Draining in this process, and what came of it


def drain(conf: Settings, *names: str) -> list[str]:
    """Apply every tick that is there; the problems that remain."""
    execution.load_rooms()
    messages = [message for name in names or ("cube",) for message in pump.look(conf, name)]
    dispatch = [message for message in messages if message.room == "dispatch"]
    return execution.run_here(dispatch, conf, timeout=timedelta(seconds=20))


def replay(conf: Settings, *events: int) -> list[str]:
    """Try failed events again: these, or all; the problems that remain."""
    return execution.run_here([ReplayEvents(consumer="cube", events=events)], conf, timeout=timedelta(seconds=20))


def failures(sql: Ask) -> list[str]:
    """Why events wait in failed_event, oldest first."""
    return [row[0] for row in sql("SELECT error FROM headrace.failed_event WHERE state = 'waiting' ORDER BY id")]


def states(sql: Ask) -> list[str]:
    """What became of the failed events, oldest first."""
    return [row[0] for row in sql("SELECT state FROM headrace.failed_event ORDER BY id")]


def position(sql: Ask) -> tuple[Any, ...]:
    """(tick, state) of the consumer."""
    [row] = sql("SELECT tick, state FROM headrace.dispatch_position")
    return row


# Ticks and events of a time of their own


def external(queue: Queue) -> None:
    """Let the test say when a tick was, as another ticker may."""
    queue.call("set_queue_config", "external_ticker", "true")


def tick_at(queue: Queue, moment: str) -> None:
    """A tick of this moment, after everything that was inserted."""
    [(number, events)] = queue.ask(
        "SELECT max(tick_id) + 1, max(tick_event_seq) FROM pgq.tick JOIN pgq.queue ON tick_queue = queue_id"
        " WHERE queue_name = %s", queue.name,
    )  # fmt: skip
    queue.call("ticker", number, moment, events + 100)


def event_at(queue: Queue, moment: str, type_: str, data: str, table: str = "public.t") -> int:
    """An event with a time of its own."""
    [(number,)] = queue.ask(
        "SELECT pgq.insert_event_raw(%s, NULL, %s, NULL, NULL, %s, %s, %s, NULL, NULL, NULL)",
        queue.name, moment, type_, data, table,
    )  # fmt: skip
    return int(number)
