"""A queue whose consumers real workers dispatch, each with a quiet twin: same events, drained here, in peace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg2

from tests.conftest import Site
from tests.integration.dispatch.conftest import Queue, run
from workers import database, execution
from workers.dispatch import positions, pump
from workers.messages import Message
from workers.settings import Settings

Process = subprocess.Popen[bytes]
Contents = dict[str, list[str]]  # table -> its rows as text, sorted

TABLES = ("item", "part")  # within a batch `item` is loaded first
COLUMNS = "id int PRIMARY KEY, version int, name text, amount numeric"
META = ("_op text", "_ev_id bigint", "_ev_time timestamptz", "_tick bigint")
IMPATIENT = {"requeue_seconds": 1.0, "lock_seconds": 60.0}
LATEST: dict[str, Any] = {"mode": "keep_latest", "partition": {"dateformat": ""}}
EVERY: dict[str, Any] = {
    "mode": "keep_all",
    "on_delete": "tombstone",
    "meta_columns": [column.split()[0] for column in META],
    "partition": {"dateformat": ""},
}
STANDING = """
    SELECT tick, batches, events, failed, state, problem FROM headrace.dispatch_position WHERE consumer = %s
"""
FAILED = """
    SELECT tick, ev_id, ev_type, ev_data, ev_extra1, sqlstate, state FROM headrace.failed_event WHERE consumer = %s
     ORDER BY tick, ev_id
"""


def twin(consumer: str) -> str:
    """The quiet twin of a consumer."""
    return f"quiet_{consumer}"


@dataclass
class Storm:
    """Processes to kill, a queue, and consumers that go on; each writes into the schema of its own name."""

    site: Site
    queue: Queue
    consumers: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)  # consumer -> dsn, where it is not the source's
    room: dict[str, Any] = field(default_factory=dict)
    _round: int = 0

    def begin(self, consumers: Mapping[str, Mapping[str, Any]], *, room: Mapping[str, Any] | None = None) -> None:
        """Make the source's tables, the destinations of these consumers and of their twins, and register them all."""
        self.room = dict(IMPATIENT if room is None else room)
        for table in TABLES:
            self.queue.logged(f"public.{table}", COLUMNS)
        for name, keys in consumers.items():
            for one in (name, twin(name)):
                own = {f"public.{table}": {"target": f"{one}.{table}"} for table in TABLES}
                database_name = f"{name}_db" if name in self.targets else "control"
                facts = {"queue": self.queue.name, "target": database_name, "tables": own, **keys}
                if one != name:
                    facts.pop("slices", None)
                self.consumers[one] = facts
                self._make_tables(self.dsn_of(one), one, keys.get("meta_columns", ()))
        self.register()

    def _make_tables(self, dsn: str, schema: str, meta: Any) -> None:
        run(dsn, f"CREATE SCHEMA {schema}")
        extra = "".join(f", {column}" for column in META if column.split()[0] in meta)
        columns = COLUMNS.replace("PRIMARY KEY", "NOT NULL") + extra
        for table in TABLES:
            run(dsn, f"CREATE TABLE {schema}.{table} ({columns})")

    def dsn_of(self, consumer: str) -> str:
        """Where a consumer, or its twin, writes."""
        return self.targets.get(consumer.removeprefix("quiet_"), self.site.dsn)

    def register(self) -> None:
        """Register every consumer, its twin as well."""
        for name in self.consumers:
            positions.register(self.conf, name)
        database.close_all()

    @property
    def conf(self) -> Settings:
        """Settings with the consumers and their twins, for this process."""
        return Settings(
            host="quiet",
            control={"dsn": self.site.dsn},
            databases=self._databases(),
            dispatch={"consumers": self.consumers, **self.room},
        )

    def _databases(self) -> dict[str, Any]:
        return {f"{name}_db": {"connection": {"dsn": dsn}} for name, dsn in self.targets.items()}

    def settings(self) -> dict[str, str]:
        """What the processes are told of the consumers; not of the twins."""
        stormy = {name: keys for name, keys in self.consumers.items() if not name.startswith("quiet_")}
        return {
            "HEADRACE_DATABASES": json.dumps(self._databases()),
            "HEADRACE_DISPATCH": json.dumps({"consumers": stormy, **self.room}),
            "HEADRACE_WORKER__CONCURRENCY": "3",
        }

    # Processes

    def worker(self, *options: str, wait: bool = True, **more: str) -> Process:
        """A worker with three processes that consumes."""
        facts = self.settings() | more
        if wait:
            return self.site.worker(options=options, app="rehearsal", **facts)
        name = f"w{len(self.site.processes)}@here"
        return self.site.start("worker", "-n", name, "--without-mingle", *options, app="rehearsal", **facts)

    def beat(self) -> Process:
        """One more beat."""
        return self.site.start("beat", app="rehearsal", **self.settings())

    @staticmethod
    def kill(process: Process) -> None:
        """kill -9."""
        process.kill()
        process.wait()

    def kill_who_has(self, backend: int) -> None:
        """kill -9 the one process of a worker whose run has this backend at the target."""
        query = "SELECT worker FROM headrace.run WHERE backend_pid = %s AND state = 'running'"
        self.site.until(lambda: bool(self.site.ask(query, backend)), f"a run has the backend {backend}")
        os.kill(int(self.site.ask(query, backend)[0][0].rpartition(":")[2]), signal.SIGKILL)

    # The source

    def change(self, rows: int = 8) -> int:
        """Insert, update and delete rows of every table, and tick; the tick."""
        self._round += 1
        first, version = 1000 * self._round, self._round
        for table in TABLES:
            self.queue.ask(
                f"INSERT INTO public.{table} SELECT n, %s, 'new' || n, n / 7.0 FROM generate_series(%s, %s) n",
                version, first, first + rows,
            )  # fmt: skip
            self.queue.ask(f"UPDATE public.{table} SET version = %s, name = 'once more' WHERE id %% 3 = 0", version)
            self.queue.ask(f"DELETE FROM public.{table} WHERE id IN (%s, %s)", first, first - 998)
        return self.queue.tick()

    # Standing still in the middle

    @contextmanager
    def held(self, statement: str, dsn: str | None = None) -> Iterator[Any]:
        """What this statement locks stays so, by the session that is given; others stand still in mid-statement."""
        with closing(psycopg2.connect(dsn or self.site.dsn)) as conn:
            with conn.cursor() as cursor:
                cursor.execute(statement)
            yield conn

    @contextmanager
    def held_in_mid_load(self, consumer: str, table: str = "part") -> Iterator[None]:
        """Rows of the first table are written and not committed; those of the second cannot be, meanwhile."""
        lock = f"LOCK TABLE {consumer}.{table} IN SHARE ROW EXCLUSIVE MODE"
        with self.held(lock, self.dsn_of(consumer)):
            yield

    def waiting(self, consumer: str, table: str = "part") -> int:
        """Wait until a session at the target waits for a table's lock; its pid."""
        query = "SELECT pid FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
        found: list[int] = []

        def look() -> bool:
            found[:] = [row[0] for row in run(self.dsn_of(consumer), query, f"{consumer}.{table}")]
            return bool(found)

        self.site.until(look, f"a load of {consumer} stands still in its middle")
        return found[0]

    def until_orphans_are_gone(self) -> None:
        """Wait for the end of the sessions whose worker was killed."""
        query = """
            SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'headrace disp%'
        """
        dsns = {self.site.dsn, *self.targets.values()}
        self.site.until(lambda: not any(run(dsn, query) for dsn in dsns), "the killed worker's sessions end")

    # How it stands

    def standing(self, consumer: str) -> dict[str, Any]:
        """A consumer's position."""
        row = run(self.dsn_of(consumer), STANDING, consumer)[0]
        return dict(zip(("tick", "batches", "events", "failed", "state", "problem"), row, strict=True))

    def contents(self, schema: str, dsn: str | None = None) -> Contents:
        """Every row of every table of a schema; the tables are named without it."""
        dsn = dsn or self.dsn_of(schema)
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        return {
            name: sorted(row[0] for row in run(dsn, f'SELECT t::text FROM {schema}."{name}" t'))
            for (name,) in run(dsn, query, schema)
        }

    def stormy(self) -> list[str]:
        """The consumers that are not twins."""
        return [name for name in self.consumers if not name.startswith("quiet_")]

    def is_drained(self, consumer: str) -> bool:
        """Whether every tick that exists is applied and finished."""
        info = self.queue.consumer_info(consumer)[0]
        newest = self.queue.ask("SELECT max(tick_id) FROM pgq.tick")[0][0]
        return info["current_batch"] is None and info["last_tick"] == newest == self.standing(consumer)["tick"]

    def until_drained(self, *consumers: str, seconds: float = 40) -> None:
        """Wait until these consumers, or all of them, have come to the newest tick."""
        for name in consumers or self.stormy():
            self.site.until(lambda one=name: self.is_drained(one), f"{name} is drained", seconds)  # type: ignore[misc]

    def do(self, messages: list[Message]) -> None:
        """Do messages and what follows from them in this process."""
        assert execution.run_here(messages, self.conf, timeout=timedelta(seconds=20)) == []

    def check(self, *consumers: str) -> None:
        """Drain the quiet twins; what the storm left must equal what they have: rows, positions, failed events."""
        for name in consumers or self.stormy():
            quiet, dsn = twin(name), self.dsn_of(name)
            execution.load_rooms()
            execution.run_here(pump.look(self.conf, quiet), self.conf, timeout=timedelta(seconds=20))
            database.close_all()
            assert self.contents(name) == self.contents(quiet)
            assert self.standing(name) == self.standing(quiet)
            assert run(dsn, FAILED, name) == run(dsn, FAILED, quiet)
            assert run(dsn, "SELECT 1 FROM headrace.dispatch_slice WHERE consumer = %s", name) == []

    def source(self) -> Contents:
        """The source's tables themselves."""
        names = {name: f"SELECT t::text FROM public.{name} t" for name in TABLES}
        return {name: sorted(row[0] for row in self.queue.ask(query)) for name, query in names.items()}
