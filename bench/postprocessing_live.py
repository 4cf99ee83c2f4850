"""Jobs under a live worker and beat: from due to started, a thousand jobs on ten databases, and idle cost."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from measure import family_cpu
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import parse_dsn

from workers import database, migrations
from workers.postprocessing import api
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Settings

Row = tuple[object, ...]

PROCEDURES = """
CREATE PROCEDURE noop(job_id integer, config jsonb) LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE PROCEDURE nap(job_id integer, config jsonb) LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); END $$;
"""
DATABASES = 10
MAX_CONNECTIONS = 300
JOBS = 1000
SERIAL = 100  # calls of the serial floor that are made; the rest is scaled
PROCESSES = 4
DUE_SECONDS = 30
DUE_PER_SECOND = 20
IDLE_SECONDS = 30.0


def ask(conn: Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Execute on a connection in autocommit mode and fetch what there is."""
    with conn.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def quantile(values: Sequence[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(seconds: float) -> str:
    """A duration for a table."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


def set_up(settings: Settings) -> None:
    """The control database with everything that jobs need."""
    with database.connection(settings.target(), purpose="bench") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
    api.set_up(settings, "control")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Real processes: PostgreSQL, Valkey, a worker and a beat. `databases` have jobs, the first is the control."""

    postgres: PostgresServer
    servers: tuple[int, ...]
    worker: subprocess.Popen[bytes]
    beat: subprocess.Popen[bytes]
    databases: tuple[str, ...]

    @contextmanager
    def connections(self) -> Iterator[list[Connection]]:
        """A connection of ours to each database with jobs, in autocommit mode."""
        found = [psycopg2.connect(self.postgres.dsn(name), options="-c timezone=UTC") for name in self.databases]
        try:
            for conn in found:
                conn.autocommit = True
            yield found
        finally:
            for conn in found:
                conn.close()


@contextmanager
def deployment(databases: int = 1) -> Iterator[Deployment]:
    """Start everything; the jobs live in the control database, or in so many databases of the same server."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        postgres, valkey = PostgresServer(folder), ValkeyServer(folder)
        postgres.start()
        if databases > 1:
            _allow_connections(postgres)
        valkey.start()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            names = _databases(postgres, databases)
            environment = _environment(folder, postgres, valkey, names)
            with (folder / "log").open("wb") as log:
                for word in ("worker", "beat"):
                    argv = [sys.executable, "-m", "celery", "-A", "workers", word]
                    processes.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=log))
            worker, beat = processes
            made = Deployment(postgres, (postgres.pid or 0, valkey.pid or 0), worker, beat, names)
            with closing(psycopg2.connect(postgres.dsn())) as conn:
                conn.autocommit = True
                until(lambda: bool(ask(conn, "SELECT 1 FROM headrace.worker WHERE cardinality(queues) > 0")))
                until(lambda: bool(ask(conn, "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%look%'")))
            yield made
        except TimeoutError:
            print((folder / "log").read_text(errors="replace")[-3000:])
            raise
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(40)
            valkey.stop()
            postgres.stop()


def _allow_connections(postgres: PostgresServer) -> None:
    # Every process of the pool keeps two sessions per database; the hundred of the default are then too few.
    with closing(psycopg2.connect(postgres.superuser_dsn())) as conn:
        conn.autocommit = True
        ask(conn, f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
    postgres.stop()
    postgres.start()


def _databases(postgres: PostgresServer, count: int) -> tuple[str, ...]:
    settings = Settings(control={"dsn": postgres.dsn()})
    set_up(settings)
    with closing(psycopg2.connect(postgres.dsn())) as conn:
        conn.autocommit = True
        ask(conn, PROCEDURES)
    database.close_all()
    if count == 1:
        return ("headrace",)
    names = tuple(f"archive{number}" for number in range(count))
    with closing(psycopg2.connect(postgres.superuser_dsn())) as conn:
        conn.autocommit = True
        for name in names:
            ask(conn, f"CREATE DATABASE {name} TEMPLATE headrace OWNER headrace")
    return names


def _environment(
    folder: Path, postgres: PostgresServer, valkey: ValkeyServer, names: tuple[str, ...]
) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    more: dict[str, str] = {}
    if len(names) > 1:
        words = parse_dsn(postgres.dsn())
        same = {key: words[key] for key in ("host", "port", "user", "password")}
        documents = {name: {"connection": same | {"database": name}} for name in names}
        more = {
            "HEADRACE_DATABASES": json.dumps(documents),
            "HEADRACE_POSTPROCESSING__DATABASES": json.dumps(names),
        }
    return kept | more | {
        "HEADRACE_CONTROL__DSN": postgres.dsn(),
        "HEADRACE_BROKER__URL": valkey.url(),
        "HEADRACE_DATA_DIR": str(folder / "state"),
        "HEADRACE_HOST": "bench",
        "HEADRACE_WORKER__CONCURRENCY": str(PROCESSES),
    }  # fmt: skip


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true. Raises TimeoutError when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.3)


def due_to_start() -> list[Row]:
    """One-shot and interval jobs, evenly spread: how long after its slot each run starts."""
    with deployment() as made, made.connections() as (conn,):
        began = ask(conn, "SELECT now() + interval '4 s'")[0][0]
        half = DUE_PER_SECOND / 2
        ask(
            conn,
            "INSERT INTO headrace.job (proc_schema, proc_name, run_at) SELECT 'public', 'noop', %s::timestamptz "
            "+ n * interval '1 s' / %s FROM generate_series(1, %s) n",
            began, half, int(DUE_SECONDS * half),
        )  # fmt: skip
        # Three runs each: a slot every 10 s, the jobs' slots spread over these.
        ask(
            conn,
            "INSERT INTO headrace.job (proc_schema, proc_name, schedule_interval, initial_start) "
            "SELECT 'public', 'noop', '10 s', %s::timestamptz + (n - 0.5) * interval '1 s' / %s "
            "FROM generate_series(1, %s) n",
            began, half, int(10 * half),
        )  # fmt: skip
        count = DUE_SECONDS * DUE_PER_SECOND
        mine = "FROM headrace.job_run WHERE scheduled_for <= %s::timestamptz + %s * interval '1 s'"
        ended = f"SELECT count(*) {mine} AND finished_at IS NOT NULL"
        until(lambda: ask(conn, ended, began, DUE_SECONDS)[0][0] >= count, DUE_SECONDS + 30)
        taken = f"SELECT extract(epoch FROM started_at - scheduled_for)::float8 {mine} AND state = 'succeeded'"
        delays = [row[0] for row in ask(conn, taken, began, DUE_SECONDS)]
    return [
        (f"due to started at {DUE_PER_SECOND}/s, p50", milliseconds(quantile(delays, 50)), f"{len(delays)} runs", ""),
        (f"due to started at {DUE_PER_SECOND}/s, p99", milliseconds(quantile(delays, 99)), "", "1,500 ms"),
        ("the slowest", milliseconds(max(delays)), f"{count - len(delays)} not run", ""),
    ]


def throughput() -> list[Row]:
    """A thousand naps on ten databases at once, against one process that calls them one after the other."""
    each = JOBS // DATABASES
    with deployment(DATABASES) as made, made.connections() as conns:
        serial = _serial(made)
        due = ask(conns[0], "SELECT now() + interval '6 s'")[0][0]
        for conn in conns:
            ask(
                conn,
                "INSERT INTO headrace.job (proc_schema, proc_name, run_at) SELECT 'public', 'nap', %s "
                "FROM generate_series(1, %s)",
                due, each,
            )  # fmt: skip
        open_runs = "SELECT count(*) FROM headrace.job_run WHERE finished_at IS NOT NULL"
        sessions = 0
        parts = {"worker": made.worker.pid, "PostgreSQL": made.servers[0]}
        before = {part: family_cpu(pid) for part, pid in parts.items()}

        def is_over() -> bool:
            nonlocal sessions
            now = ask(conns[0], "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headrace %'")[0][0]
            sessions = max(sessions, now)
            return all(ask(conn, open_runs)[0][0] == each for conn in conns)

        until(is_over, 150)
        spent = {part: (family_cpu(pid) - before[part]) / JOBS for part, pid in parts.items()}
        facts = [
            ask(
                conn,
                "SELECT min(started_at), max(finished_at), count(*) FILTER (WHERE state = 'succeeded'), "
                "sum(extract(epoch FROM finished_at - started_at))::float8 FROM headrace.job_run",
            )[0]
            for conn in conns
        ]
    good = sum(row[2] for row in facts)
    wall = (max(row[1] for row in facts) - due).total_seconds()
    first = (min(row[0] for row in facts) - due).total_seconds()
    claimed = sum(row[3] for row in facts) / JOBS
    return [
        ("1,000 naps of 0.1 s, due to last end", f"{wall:.1f} s", f"{good} succeeded", ""),
        (f"floor: serial, {SERIAL} made and scaled", f"{serial:.1f} s", "", ""),
        ("serial : ours", f"{serial / wall:.2f} x", f"{PROCESSES} processes", "3 x"),
        ("  due to first start", milliseconds(first), "", ""),
        ("  claim to end of one run, mean", milliseconds(claimed), "", ""),
        *((f"  CPU of one run, {part}", milliseconds(used), "", "") for part, used in spent.items()),
        ("  sessions of ours at once", sessions, f"max_connections {MAX_CONNECTIONS}", ""),
    ]


def _serial(made: Deployment) -> float:
    """Seconds of a serial loop over all jobs: per database a connection, then CALL after CALL; from a part of them."""
    began = time.perf_counter()
    for name in made.databases:
        with closing(psycopg2.connect(made.postgres.dsn(name))) as conn:
            conn.autocommit = True
            for number in range(SERIAL // DATABASES):
                ask(conn, "CALL nap(%s, '{}')", number)
    return (time.perf_counter() - began) * JOBS / SERIAL


def idle() -> list[Row]:
    """CPU of a deployment whose hundred jobs are not due."""
    with deployment() as made, made.connections() as (conn,):
        ask(
            conn,
            "INSERT INTO headrace.job (proc_schema, proc_name, schedule_interval, initial_start) "
            "SELECT 'public', 'noop', '1 day', now() + interval '1 day' FROM generate_series(1, 100)",
        )
        until(lambda: not ask(conn, "SELECT 1 FROM headrace.job_state WHERE replan"))
        time.sleep(5)
        parts = {
            "worker": made.worker.pid,
            "beat": made.beat.pid,
            "PostgreSQL": made.servers[0],
            "Valkey": made.servers[1],
        }
        before = {part: family_cpu(pid) for part, pid in parts.items()}
        began = time.monotonic()
        time.sleep(IDLE_SECONDS)
        minutes = (time.monotonic() - began) / 60
        spent = {part: (family_cpu(pid) - before[part]) / minutes for part, pid in parts.items()}
    rows: list[Row] = [("CPU seconds a minute", f"{sum(spent.values()):.2f}", f"{sum(spent.values()) / 60:.1%}", "")]
    return rows + [(f"  {part}", f"{used:.2f}", f"{used / 60:.1%}", "") for part, used in spent.items()]
