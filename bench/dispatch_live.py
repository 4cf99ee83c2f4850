"""Dispatch under a live worker and beat: latency, a batch in slices, idle cost; and the site that all parts share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg2
from measure import family_cpu
from postprocessing_live import Row, ask, milliseconds, quantile, until
from psycopg2.extensions import connection as Connection  # noqa: N812

from workers import database, logs, migrations
from workers import settings as settings_module
from workers.dispatch import consumers, positions
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Logs, Settings

DEBIAN = Path("/usr/lib/postgresql")
TABLE = """
CREATE TABLE measurement (id bigint, device text, channel integer, at timestamptz, value double precision,
                          level numeric(12, 4), is_valid boolean, state text, note text, facts jsonb)
"""
# Milliseconds apart, so that no two rows are equal; each tenth has a NULL.
INSERT = """
INSERT INTO measurement
SELECT n, 'sensor-' || lpad((n %% 1000)::text, 4, '0'), n %% 64, '2026-01-01'::timestamptz + n * interval '1 ms',
       sqrt(n), n / 7.0, n %% 3 > 0, 'tracking', CASE WHEN n %% 10 > 0 THEN 'slew to field ' || n %% 977 END,
       jsonb_build_object('seq', n)
  FROM generate_series(%s::bigint, %s) AS n
"""
UPDATE = """
UPDATE measurement SET value = value + 1, state = 'idle', at = at + interval '1 h'
 WHERE id IN (SELECT 1 + (k * 7919 + %s * 104729) %% %s FROM generate_series(1::bigint, %s) AS k)
"""
# The same table as the floor's: without the index that keep_all makes where no template says otherwise.
ALL = "CREATE TABLE _DEST_TABLE (LIKE _PARENT)"
# A year, so that midnight while it runs makes no difference.
PARTITION = {"kind": "like", "dateformat": "YYYY"}

LATENCY_SECONDS = 40
PER_SECOND = 15
BIG = (200_000, 100_000)
IDLE_SECONDS = 30.0
CONSUMERS = 10


def consumer(mode: str, target: str, **more: Any) -> dict[str, Any]:
    """The settings of a consumer whose partitions are `<target>.measurement_<year>`."""
    partition = PARTITION | ({"part_template": ALL} if mode == "keep_all" else {})
    return {
        "source": "src", "target": "dst", "queue": "q", "mode": mode, "partition": partition,
        "tables": {"public.measurement": {"target": f"{target}.measurement"}}, **more,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """Debian's PostgreSQL with PgQ in C: a control database, a source and a target; one connection to each of those."""

    folder: Path
    postgres: PostgresServer
    source: Connection
    target: Connection

    @property
    def file(self) -> Path:
        """The settings."""
        return self.folder / "headrace.yaml"

    def use(self, wanted: Mapping[str, Any], **more: Any) -> Settings:
        """Put settings with these consumers in force, here and for processes; schemas and parents are made."""
        databases = {
            name: {"connection": {"dsn": self.postgres.dsn(base)}}
            for name, base in (("src", "source"), ("dst", "target"))
        }
        document = {
            "control": {"dsn": self.postgres.dsn()}, "databases": databases, "host": "bench",
            "data_dir": str(self.folder / "state"), "logs": {"level": "WARNING"}, "dispatch": {"consumers": wanted},
            **more,
        }  # fmt: skip
        self.file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        for one in wanted.values():
            for rules in one["tables"].values():
                schema = rules["target"].partition(".")[0]
                ask(self.target, f"CREATE SCHEMA IF NOT EXISTS {schema}")
                if not ask(self.target, "SELECT 1 FROM pg_tables WHERE schemaname = %s", schema):
                    ask(self.target, TABLE.replace("measurement", f"{schema}.measurement"))
        return settings_module.use(settings_module.load(self.file))

    def queue(self, name: str = "q", **settings: str) -> None:
        """Make a queue."""
        ask(self.source, "SELECT pgq.create_queue(%s)", name)
        for key, value in settings.items():
            ask(self.source, "SELECT pgq.set_queue_config(%s, %s, %s)", name, key, value)

    def logged_table(self) -> None:
        """The source table, with the trigger."""
        ask(self.source, TABLE)
        ask(self.source, "ALTER TABLE measurement ADD PRIMARY KEY (id)")
        ask(
            self.source,
            "CREATE TRIGGER q AFTER INSERT OR UPDATE ON measurement FOR EACH ROW EXECUTE FUNCTION pgq.logutriga('q')",
        )

    def tick(self) -> int:
        """A tick, whatever the ticker thinks of it."""
        ask(self.source, "SELECT pgq.force_tick('q')")
        return int(ask(self.source, "SELECT pgq.ticker('q')")[0][0])

    def fill(self, inserts: int, updates: int, ticks: int) -> tuple[int, int]:
        """Log changes, the same number before each tick; each tick's in one transaction. The ticks around them."""
        first = last = self.tick()
        each, changed = inserts // ticks, updates // ticks
        for number in range(ticks):
            with closing(psycopg2.connect(self.postgres.dsn("source"))) as conn, conn.cursor() as cursor:
                cursor.execute(INSERT, (number * each + 1, (number + 1) * each))
                cursor.execute(UPDATE, (number, (number + 1) * each, changed))
                assert cursor.rowcount == changed
                conn.commit()
            last = self.tick()
        return first, last

    def empty(self, schema: str) -> None:
        """No rows in the schema's partitions, and nothing left to write for what was done before."""
        for (name,) in ask(self.target, "SELECT tablename FROM pg_tables WHERE schemaname = %s", schema):
            ask(self.target, f"TRUNCATE {schema}.{name}")
        with closing(psycopg2.connect(self.postgres.superuser_dsn())) as conn:
            conn.autocommit = True
            ask(conn, "CHECKPOINT")

    def contents(self, schema: str) -> tuple[int, str]:
        """Rows and an md5 of all of them; of a schema's tables together."""
        rows = ask(self.target, "SELECT tablename FROM pg_tables WHERE schemaname = %s", schema)
        union = " UNION ALL ".join(f"SELECT * FROM {schema}.{name}" for (name,) in rows)
        found = ask(
            self.target,
            f"SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY id, at, value)) FROM ({union}) AS t",
        )
        return found[0][0], found[0][1]


@contextmanager
def site() -> Iterator[Site]:
    """Start the server; no autovacuum, so that it does not fall into one measurement and not into the other."""
    libraries = sorted(DEBIAN.glob("*/lib/pgq_lowlevel.so"), key=lambda path: int(path.parents[1].name))
    if not libraries:
        raise SystemExit("PgQ's extension in C is measured on Debian's: apt-get install postgresql-15-pgq3")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        with patch.dict(os.environ, {POSTGRES_VARIABLE: str(libraries[-1].parents[1] / "bin")}):
            postgres = PostgresServer(folder)
            postgres.start()
            try:
                _superuser(postgres, "postgres", "ALTER SYSTEM SET autovacuum = off")
                _superuser(postgres, "postgres", "ALTER SYSTEM SET max_wal_size = '4GB'")
                _superuser(postgres, "postgres", "ALTER SYSTEM SET track_commit_timestamp = on")
                postgres.stop()
                postgres.start()
                for base in ("source", "target"):
                    _superuser(postgres, "postgres", f"CREATE DATABASE {base} OWNER headrace")
                _superuser(postgres, "source", "CREATE EXTENSION pgq")
                _superuser(postgres, "source", "GRANT pgq_admin TO headrace")
                logs.configure(Logs(level="WARNING"))
                with database.connection(Settings(control={"dsn": postgres.dsn()}).target(), purpose="bench") as conn:
                    for room in (migrations.FOUNDATION, "alerts"):
                        migrations.migrate(conn, room)
                with (
                    closing(psycopg2.connect(postgres.dsn("source"), options="-c timezone=UTC")) as source,
                    closing(psycopg2.connect(postgres.dsn("target"), options="-c timezone=UTC")) as target,
                ):
                    source.autocommit = target.autocommit = True
                    yield Site(folder, postgres, source, target)
            finally:
                database.close_all()
                consumers.forget()
                postgres.stop()


def _superuser(postgres: PostgresServer, base: str, statement: str) -> None:
    with closing(psycopg2.connect(postgres.superuser_dsn(base))) as conn:
        conn.autocommit = True
        ask(conn, statement)


def environment(made: Site) -> dict[str, str]:
    """What a process of ours needs to know."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return kept | {"HEADRACE_CONFIG": str(made.file)}


@contextmanager
def running(made: Site, wanted: Mapping[str, Any], *, processes: int = 2) -> Iterator[dict[str, int]]:
    """A worker and a beat for these consumers, all registered; the process ids of everything by name."""
    valkey = ValkeyServer(made.folder)
    valkey.start()
    started: list[subprocess.Popen[bytes]] = []
    try:
        settings = made.use(wanted, broker={"url": valkey.url()}, worker={"concurrency": processes})
        for name in wanted:
            positions.register(settings, name)
        with (made.folder / "log").open("wb") as log:
            for word in ("worker", "beat"):
                argv = [sys.executable, "-m", "celery", "-A", "workers", word]
                started.append(subprocess.Popen(argv, env=environment(made), stdout=log, stderr=log))
        with closing(psycopg2.connect(made.postgres.dsn())) as conn:
            conn.autocommit = True
            until(lambda: bool(ask(conn, "SELECT 1 FROM headrace.worker WHERE cardinality(queues) > 0")))
            until(lambda: bool(ask(conn, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")))
        yield {
            "worker": started[0].pid, "beat": started[1].pid,
            "PostgreSQL": made.postgres.pid or 0, "Valkey": valkey.pid or 0,
        }  # fmt: skip
    except TimeoutError:
        print((made.folder / "log").read_text(errors="replace")[-3000:])
        raise
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(40)
        valkey.stop()


def latency() -> list[Row]:
    """From the commit of a row to the commit of its copy, by the server's own commit times."""
    with site() as made:
        made.queue(ticker_max_lag="1 second", ticker_idle_period="1 second")
        made.logged_table()
        with running(made, {"cube": consumer("keep_latest", "cube", run_ticker=True)}):
            until(lambda: _ticks(made) >= 3)
            count = LATENCY_SECONDS * PER_SECOND
            began = time.monotonic()
            first_tick = _newest_tick(made)
            for number in range(1, count + 1):
                time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
                ask(made.source, INSERT, number, number)
            ticks = ask(
                made.source,
                "SELECT extract(epoch FROM max(tick_time) - min(tick_time))::float8 / (count(*) - 1) FROM pgq.tick "
                "WHERE tick_id >= %s",
                first_tick,
            )[0][0]  # fmt: skip
            until(lambda: _copied(made) == count)
            commits = "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM "
            sent = dict(ask(made.source, f"{commits} measurement"))
            seen = dict(ask(made.target, f"{commits} {_partition(made, 'cube')}"))
    delays = [seen[number] - sent[number] for number in sent]
    return [
        ("commit to visible, p50", milliseconds(quantile(delays, 50)), f"{len(delays)} rows", "1,300 ms"),
        ("commit to visible, p99", milliseconds(quantile(delays, 99)), "", ""),
        ("the slowest", milliseconds(max(delays)), "", ""),
        ("mean time between ticks", milliseconds(ticks), "run_ticker, 1 s asked for", ""),
    ]


def _ticks(made: Site) -> int:
    return int(ask(made.source, "SELECT count(*) FROM pgq.tick")[0][0])


def _newest_tick(made: Site) -> int:
    return int(ask(made.source, "SELECT max(tick_id) FROM pgq.tick")[0][0])


def _partition(made: Site, schema: str) -> str | None:
    found = ask(made.target, "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename ~ '_'", schema)
    return f"{schema}.{found[0][0]}" if found else None


def _copied(made: Site) -> int:
    name = _partition(made, "cube")
    return int(ask(made.target, f"SELECT count(*) FROM {name}")[0][0]) if name else 0


def slices() -> list[Row]:
    """One batch of 300,000 events, whole and in four slices, by two worker processes, in turn."""
    wanted = {
        "whole": consumer("keep_latest", "whole"),
        "sliced": consumer("keep_latest", "sliced", slices=4),
    }
    with site() as made:
        made.queue()
        made.logged_table()
        first, last = made.fill(*BIG, ticks=1)
        ask(made.source, "SELECT pgq.set_queue_config('q', 'external_ticker', 'true')")  # no ticks any more
        with running(made, wanted):
            settings = settings_module.current()
            taken: dict[str, list[float]] = {name: [] for name in wanted}
            for _ in range(3):
                for name, seconds in taken.items():
                    made.empty(name)
                    seconds.append(_applied(made, settings, name, first, last))
            problems = ask(made.target, "SELECT count(*) FROM headrace.failed_event")[0][0]
            contents = {name: made.contents(name) for name in wanted}
        if problems or contents["whole"] != contents["sliced"] or contents["whole"][0] != BIG[0]:
            raise SystemExit(f"the slices' rows are not those of the whole batch: {contents}, {problems} events failed")
    best = {name: sorted(seconds)[1] for name, seconds in taken.items()}
    ratio = sorted(one / other for one, other in zip(taken["whole"], taken["sliced"], strict=True))[1]
    return [
        ("slices=1", f"{best['whole']:.2f} s", f"{sum(BIG):,} events in one batch", ""),
        ("slices=4, two processes", f"{best['sliced']:.2f} s", "the same rows (md5)", ""),
        ("slices=1 : slices=4", f"{ratio:.2f} x", "", "> 1 x"),
    ]


def _applied(made: Site, settings: Settings, name: str, first: int, last: int) -> float:
    """Seconds from a rewind until the batch is applied, both by the server's clock."""
    began = ask(made.target, "SELECT clock_timestamp()")[0][0]
    positions.rewind(settings, name, to_tick=first)
    done = "SELECT updated_at FROM headrace.dispatch_position WHERE consumer = %s AND tick = %s"
    until(lambda: bool(ask(made.target, done, name, last)), 120)
    ended = ask(made.target, done, name, last)[0][0]
    return float((ended - began).total_seconds())


def idle() -> list[Row]:
    """CPU of a deployment in which nothing happens: without consumers, with ten, and with ten that are ticked, too."""
    rows: list[Row] = []
    for label, count, ticked in (
        ("no consumer", 0, False),
        (f"{CONSUMERS} consumers", CONSUMERS, False),
        (f"{CONSUMERS} consumers, run_ticker", CONSUMERS, True),
    ):
        with site() as made:
            wanted = {}
            for number in range(count):
                name = f"c{number}"
                made.queue(name, **({} if ticked else {"external_ticker": "true"}))
                wanted[name] = consumer("keep_latest", name, queue=name, run_ticker=ticked)
            with running(made, wanted) as pids:
                time.sleep(5)
                before = {part: family_cpu(pid) for part, pid in pids.items()}
                began = time.monotonic()
                time.sleep(IDLE_SECONDS)
                wall = time.monotonic() - began
                share = {part: (family_cpu(pid) - before[part]) / wall for part, pid in pids.items()}
        parts = ", ".join(f"{part} {used:.1%}" for part, used in share.items())
        rows.append((label, f"{sum(share.values()):.1%}", parts, ""))
    return rows
