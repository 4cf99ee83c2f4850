"""The repack room: a bloated table rewritten under load, against CREATE TABLE AS and pg_repack; what its triggers cost.

    python bench/repack.py [rewrite] [triggers] [--rounds 5] [--quick] [--detail] [--only WHO]

Without a part: both, in about a quarter of an hour; `--quick`: one round on a small table, in about a minute, only to
see that all of it works. Debian's PostgreSQL with pgbench (apt-get install postgresql); pg_repack beside it if it is
there (apt-get install postgresql-15-repack, the number being the server's), else it is left out.

Each measurement has a fresh copy of one database: pgbench's tables with 60 % of the accounts updated. pgbench's TPC-B
runs all the time: alone, then beside the rewrite, then alone again. The lock is looked for every 4 ms by a process of
its own. After each one every account must have exactly what pgbench's history says.

The floor is CREATE TABLE AS and its primary key: nothing is logged, replayed, swapped or verified.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import psycopg2
from dispatch_live import DEBIAN, _superuser
from measure import table
from postprocessing_live import Row, ask
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import parse_dsn

from workers import database, execution, logs, migrations
from workers.repack import places, requests
from workers.repack.requests import Wish
from workers.repack_settings import Limits
from workers.services.binaries import POSTGRES_VARIABLE
from workers.services.postgres import PostgresServer
from workers.settings import Logs, Settings

SCALE, QUICK_SCALE = 20, 2
SECONDS_ALONE, QUICK_SECONDS_ALONE = 8.0, 2.0  # before and after each rewrite
SECONDS_OF_CONTROL, QUICK_SECONDS_OF_CONTROL = 20.0, 3.0
LOOK_SECONDS = 0.004
CLIENTS = 4
ACCOUNTS = "public.pgbench_accounts"
SERVER = {
    "shared_buffers": "512MB", "autovacuum": "off", "max_wal_size": "4GB", "checkpoint_timeout": "1h",
    "wal_compression": "off",
}  # fmt: skip
WIDE_ROWS = 200_000
WIDE = f"""
CREATE TABLE wide (id integer PRIMARY KEY, amount integer NOT NULL, note text NOT NULL);
INSERT INTO wide SELECT n, 0, repeat('x', 88) FROM generate_series(1, {WIDE_ROWS}) AS n
"""
# What is asked: shares of the floor or of the load alone, seconds, bytes of the log per key, microseconds per row.
WALL, HOLD_MEDIAN, HOLD_WORST, STALL, SHARE, LOG_BYTES, ROW_MICROSECONDS = 1.5, 0.05, 0.1, 0.25, 0.70, 60, 27
WATCHED = f"""
SELECT CASE WHEN to_regclass('headrace.repack') IS NOT NULL THEN (SELECT max(step) FROM headrace.repack) END,
       ARRAY(SELECT l.pid || ' ' || l.virtualtransaction FROM pg_locks l
              WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                AND l.relation = to_regclass('{ACCOUNTS}'))
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Debian's PostgreSQL with the bloated database `bloated` and the empty one `empty`, both to be cloned."""

    folder: Path
    postgres: PostgresServer
    programs: Path
    scale: int

    @contextmanager
    def clone(self, template: str) -> Iterator[str]:
        """A database of one measurement's own, in memory as far as it fits; nothing is left to be written."""
        _superuser(
            self.postgres, "postgres", f"CREATE DATABASE now TEMPLATE {template} STRATEGY file_copy OWNER headrace"
        )
        try:
            if template == "bloated":
                for name in (ACCOUNTS, "public.pgbench_accounts_pkey"):
                    _superuser(self.postgres, "now", f"SELECT pg_prewarm('{name}')")
            _superuser(self.postgres, "postgres", "CHECKPOINT")
            yield self.postgres.dsn("now")
        finally:
            database.close_all()
            places.forget()
            _superuser(self.postgres, "postgres", "DROP DATABASE now WITH (FORCE)")

    def settings(self, dsn: str) -> Settings:
        """Settings whose control database that is."""
        return Settings(control={"dsn": dsn}, host="bench", data_dir=str(self.folder / "state"))


@dataclass(slots=True)
class Rewrite:
    """One rewrite under load. Moments are epoch seconds, durations seconds."""

    began: float
    swapped: float
    ended: float
    heap: int
    indexes: int
    wal: int
    looks: list[tuple[float, str | None, list[str]]] = field(default_factory=list)
    finished: list[tuple[float, float]] = field(default_factory=list)  # transactions: when, how long
    share: float = 0.0
    alone: float = 0.0

    @property
    def wall(self) -> float:
        """Until the new table was there for everybody."""
        return self.swapped - self.began

    def holds(self) -> list[tuple[float, str | None]]:
        """How long each ACCESS EXCLUSIVE lock was seen, and in which step of ours."""
        since: dict[str, tuple[float, str | None]] = {}
        found: list[tuple[float, str | None]] = []
        for at, step, holders in self.looks:
            for gone in [one for one in since if one not in holders]:
                first, then = since.pop(gone)
                found.append((at - first, then))
            for one in holders:
                since.setdefault(one, (at, step))
        return found

    @property
    def hold(self) -> float:
        """The longest of them."""
        return max((seconds for seconds, _step in self.holds()), default=0.0)

    @property
    def stalls(self) -> list[tuple[float, float]]:
        """(how long, how long after the begin) of the slowest transactions, the slowest first."""
        inside = [(took, at - took - self.began) for at, took in self.finished if self.began <= at <= self.ended + 1]
        return sorted(inside, reverse=True)

    def steps(self) -> str:
        """When each step of ours was first seen."""
        seen: dict[str, float] = {}
        for at, step, _holders in self.looks:
            if step is not None:
                seen.setdefault(step, at - self.began)
        return ", ".join(f"{step} {at:.2f}" for step, at in seen.items())


# The rewrites: each does its work and gives the moment at which the table was the new one.


def control(site: Site, dsn: str) -> float:
    """Nothing."""
    time.sleep(QUICK_SECONDS_OF_CONTROL if site.scale == QUICK_SCALE else SECONDS_OF_CONTROL)
    return time.time()


def floor(site: Site, dsn: str) -> float:
    """A new table and its key."""
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        ask(conn, f"CREATE TABLE floor AS SELECT * FROM {ACCOUNTS}")
        ask(conn, "ALTER TABLE floor ADD PRIMARY KEY (aid)")
    return time.time()


def ours(site: Site, dsn: str) -> float:
    """`headrace repack run`, in this process, verification and all."""
    settings = site.settings(dsn)
    schema, _, name = ACCOUNTS.partition(".")
    repack = requests.request(settings, "control", schema, name, Wish())
    message = requests.message("control", repack, schema, name)
    if problems := requests.finish(settings, [message], timeout=timedelta(seconds=120)):
        raise SystemExit(f"ours: {problems}")
    with closing(psycopg2.connect(dsn)) as conn:
        [(state, swapped)] = ask(conn, "SELECT state, extract(epoch FROM swapped_at)::float8 FROM headrace.repack")
    assert state == "done", state
    return float(swapped)


def pg_repack(site: Site, dsn: str) -> float:
    """The extension and its program, as the superuser."""
    words = parse_dsn(site.postgres.superuser_dsn("now"))
    argv = [
        str(site.programs / "pg_repack"), "-k", "-t", ACCOUNTS, "-d", "now", "-h", words["host"], "-p", words["port"],
        "-U", words["user"],
    ]  # fmt: skip
    done = subprocess.run(argv, env=os.environ | {"PGPASSWORD": words["password"]}, capture_output=True, text=True)
    if done.returncode or "ERROR" in done.stderr:
        raise SystemExit(f"pg_repack: {done.stderr}")
    return time.time()


REWRITES: dict[str, Callable[[Site, str], float]] = {
    "control": control, "floor": floor, "ours": ours, "pg_repack": pg_repack,
}  # fmt: skip


# The load, and who watches it


class Load:
    """pgbench, with a line for each transaction."""

    def __init__(self, site: Site, dsn: str) -> None:
        self._dsn, self._folder = dsn, tempfile.TemporaryDirectory(prefix="headrace-load-")
        self._superuser = site.postgres.superuser_dsn("now")
        argv = [
            str(site.programs / "pgbench"), "-n", "-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-T", "3600", "-l",
            "--log-prefix", f"{self._folder.name}/log", dsn,
        ]  # fmt: skip
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def stop(self) -> list[tuple[float, float]]:
        """End the clients; when each transaction was done, and its seconds. A client that ended before is a failure."""
        with closing(psycopg2.connect(self._superuser)) as conn:
            conn.autocommit = True
            ended = ask(
                conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgbench'"
            )
        _out, errors = self._process.communicate(timeout=30)
        found = [
            (int(words[4]) + int(words[5]) / 1e6, int(words[2]) / 1e6)
            for path in Path(self._folder.name).iterdir()
            for words in map(str.split, path.read_text(encoding="ascii").splitlines())
        ]
        self._folder.cleanup()
        if len(ended) != CLIENTS:
            raise SystemExit(f"pgbench: {CLIENTS - len(ended)} clients failed: {errors}")
        return sorted(found)


class Watch:
    """A process that looks for locks every few milliseconds."""

    def __init__(self, dsn: str) -> None:
        argv = [sys.executable, __file__, "--watch", dsn]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is connected

    def stop(self) -> list[tuple[float, str | None, list[str]]]:
        """What it saw at each look: when, our step, who held the lock."""
        out, _errors = self._process.communicate("", timeout=30)
        return [(at, step, holders) for at, step, holders in json.loads(out)]


def be_watch(dsn: str) -> None:
    """Look until stdin ends, then print all looks."""
    over = threading.Event()

    def until_told() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=until_told, daemon=True).start()
    with suppress(PermissionError):
        os.nice(-10)  # a look that waits for a processor makes locks longer than they were
    looks: list[tuple[float, str | None, list[str]]] = []
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(f"PREPARE look AS {WATCHED}")
        print("ready", flush=True)
        while not over.wait(LOOK_SECONDS):
            cursor.execute("EXECUTE look")
            step, holders = cursor.fetchone() or (None, [])
            looks.append((time.time(), step, holders))
    json.dump(looks, sys.stdout)


# One measurement, and their table


def measure(site: Site, rewrite: Callable[[Site, str], float]) -> Rewrite:
    """A rewrite of a fresh clone under load."""
    alone = QUICK_SECONDS_ALONE if site.scale == QUICK_SCALE else SECONDS_ALONE
    with site.clone("bloated") as dsn, closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        watch, load = Watch(dsn), Load(site, dsn)
        try:
            time.sleep(2 + alone)  # the first transactions of each client are not counted
            position = _position(conn)
            began = time.time()
            swapped = rewrite(site, dsn)
            ended = time.time()
            wal = _position(conn) - position
            time.sleep(alone)
            over = time.time()
        finally:
            finished = load.stop()
            looks = watch.stop()
        _ledger(conn, site.scale)
        name = "public.floor" if rewrite is floor else ACCOUNTS
        heap, indexes = ask(conn, f"SELECT pg_table_size('{name}'), pg_indexes_size('{name}')")[0]
    found = Rewrite(began, swapped, ended, heap, indexes, wal, looks, finished)
    before, during = _rate(finished, began - alone, began), _rate(finished, began, ended)
    found.alone = (before + _rate(finished, ended, over)) / 2
    found.share = during / found.alone
    return found


def _rate(finished: Sequence[tuple[float, float]], since: float, until: float) -> float:
    return sum(since <= at < until for at, _took in finished) / (until - since)


def _position(conn: Connection) -> int:
    return int(ask(conn, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")[0][0])


def _ledger(conn: Connection, scale: int) -> None:
    """Fail unless every account has what the history says, and no other rows are there."""
    [(rows, wrong, changed)] = ask(conn, f"""
        SELECT count(a.aid), count(*) FILTER (WHERE coalesce(a.abalance, 0) <> coalesce(h.delta, 0)), count(h.aid)
          FROM {ACCOUNTS} a FULL JOIN (SELECT aid, sum(delta) AS delta FROM pgbench_history GROUP BY aid) h USING (aid)
    """)  # fmt: skip
    if rows != 100_000 * scale or wrong or not changed:
        raise SystemExit(f"{rows:,} accounts, {wrong:,} of {changed:,} changed ones have not what the history says")


def rewrite(site: Site, rounds: int, who: Sequence[str], detail: bool) -> list[Row]:
    """Every rewrite in turn, round after round."""
    found: dict[str, list[Rewrite]] = {name: [] for name in who}
    for number in range(rounds):
        for name, results in found.items():
            one = measure(site, REWRITES[name])
            results.append(one)
            if detail:
                holds = ", ".join(f"{seconds * 1000:.0f} ms {step or ''}".strip() for seconds, step in one.holds())
                stalls = ", ".join(f"{took * 1000:.0f} ms at {at:.2f}" for took, at in one.stalls[:4])
                print(
                    f"{number + 1} {name}: {one.wall:.1f} s ({one.ended - one.began:.1f}), tps {one.share:.2f} of"
                    f" {one.alone:.0f}, held {holds or 'never'}; stalls {stalls}; {one.steps()}", flush=True,
                )  # fmt: skip
    rows = [_row(name, results, found.get("floor", [])) for name, results in found.items()]
    asked = (
        "asked", "", f"{WALL}", f"{HOLD_MEDIAN * 1000:.0f} ms", f"{HOLD_WORST * 1000:.0f} ms",
        f"{STALL * 1000:.0f} ms", "", f"{SHARE:.2f}", "", "", "",
    )  # fmt: skip
    return [*rows, asked]


def _row(name: str, results: Sequence[Rewrite], floors: Sequence[Rewrite]) -> Row:
    median = statistics.median
    ratio = median(one.wall / by.wall for one, by in zip(results, floors, strict=True)) if floors else 0.0
    holds, stalls = [one.hold for one in results], [one.stalls[0][0] for one in results]
    return (
        name,
        f"{median(one.wall for one in results):.1f} s",
        f"{ratio:.2f}" if name in ("ours", "pg_repack") else "",
        f"{median(holds) * 1000:.0f} ms",
        f"{max(holds) * 1000:.0f} ms",
        f"{median(stalls) * 1000:.0f} ms",
        f"{max(stalls) * 1000:.0f} ms",
        f"{median(one.share for one in results):.2f}",
        f"{median(one.ended - one.began for one in results):.1f} s",
        f"{median(one.wal for one in results) / 1e6:.0f} MB",
        f"{median(one.heap for one in results) / 1e6:.0f}+{median(one.indexes for one in results) / 1e6:.0f} MB",
    )


def triggers(site: Site, rounds: int) -> list[Row]:
    """200,000 rows of about 100 bytes updated in one statement, without and with the log triggers; size of the log."""
    plain: list[float] = []
    logged: list[float] = []
    sizes: list[float] = []
    for _ in range(rounds):
        for seconds in (plain, logged):
            with site.clone("empty") as dsn, closing(psycopg2.connect(dsn)) as conn:
                conn.autocommit = True
                ask(conn, WIDE)
                ask(conn, "VACUUM ANALYZE wide")
                settings = site.settings(dsn)
                if seconds is logged:
                    limits = Limits(swap_below_rows=10_000_000)
                    repack = requests.request(settings, "control", "public", "wide", Wish(goal="ready", limits=limits))
                    message = requests.message("control", repack, "public", "wide")
                    if problems := requests.finish(settings, [message], timeout=timedelta(seconds=60)):
                        raise SystemExit(f"triggers: {problems}")
                _superuser(site.postgres, "postgres", "CHECKPOINT")
                began = time.perf_counter()
                ask(conn, "UPDATE wide SET amount = amount + 1")
                seconds.append((time.perf_counter() - began) / WIDE_ROWS * 1e6)
                if seconds is logged:
                    log = f"headrace_log_{repack}.log"
                    [(rows, size)] = ask(conn, f"SELECT count(*), pg_total_relation_size('{log}') FROM {log}")
                    assert rows == WIDE_ROWS, rows
                    sizes.append(size / rows)
    cost = statistics.median(with_log - without for with_log, without in zip(logged, plain, strict=True))
    return [
        ("a row updated, no triggers", f"{statistics.median(plain):.1f} us", ""),
        ("a row updated, logged", f"{statistics.median(logged):.1f} us", f"{ROW_MICROSECONDS} us"),
        ("the triggers alone", f"{cost:.1f} us", ""),
        ("log, per changed key", f"{statistics.median(sizes):.0f} bytes", f"{LOG_BYTES} bytes"),
    ]


@contextmanager
def made_site(scale: int) -> Iterator[Site]:
    """Start the server, with the settings that the figures of others were measured with, and make what is cloned."""
    programs = sorted(DEBIAN.glob("*/bin/pgbench"), key=lambda path: int(path.parents[1].name))
    with_repack = [path for path in programs if (path.parent / "pg_repack").exists()]
    if not programs:
        raise SystemExit("pgbench is Debian's here: apt-get install postgresql")
    chosen = (with_repack or programs)[-1].parent
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as name,
        patch.dict(os.environ, {POSTGRES_VARIABLE: str(chosen)}),
    ):
        postgres = PostgresServer(Path(name))
        postgres.start()
        try:
            for key, value in SERVER.items():
                _superuser(postgres, "postgres", f"ALTER SYSTEM SET {key} = '{value}'")
            postgres.stop()
            postgres.start()
            site = Site(Path(name), postgres, chosen, scale)
            for base in ("bloated", "empty"):
                _superuser(postgres, "postgres", f"CREATE DATABASE {base} OWNER headrace")
                with database.connection(site.settings(postgres.dsn(base)).target(), purpose="bench") as conn:
                    migrations.migrate(conn, migrations.FOUNDATION)
                places.ensure(site.settings(postgres.dsn(base)).target())
            database.close_all()
            _fill(site)
            yield site
        finally:
            database.close_all()
            postgres.stop()


def _fill(site: Site) -> None:
    dsn = site.postgres.dsn("bloated")
    argv = [str(site.programs / "pgbench"), "-i", "-q", "-s", str(site.scale), dsn]
    subprocess.run(argv, check=True, capture_output=True)
    _superuser(site.postgres, "bloated", "CREATE EXTENSION pg_prewarm")
    if (site.programs / "pg_repack").exists():
        _superuser(site.postgres, "bloated", "CREATE EXTENSION pg_repack")
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        ask(conn, f"UPDATE {ACCOUNTS} SET filler = filler WHERE aid % 10 < 6")
        ask(conn, f"VACUUM ANALYZE {ACCOUNTS}")
        heap, indexes = ask(conn, f"SELECT pg_table_size('{ACCOUNTS}'), pg_indexes_size('{ACCOUNTS}')")[0]
    print(f"{ACCOUNTS}: {100_000 * site.scale:,} rows, {heap / 1e6:.0f}+{indexes / 1e6:.0f} MB, {site.programs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("rewrite", "triggers")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="part", help=", ".join(parts))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round on a small table")
    parser.add_argument("--detail", action="store_true", help="a line for each measurement")
    parser.add_argument("--only", action="append", choices=[*REWRITES], help="these rewrites")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        be_watch(options.watch)
        return
    logs.configure(Logs(level="WARNING"))
    execution.load_rooms()
    rounds = 1 if options.quick else options.rounds
    with made_site(QUICK_SCALE if options.quick else SCALE) as site:
        who = options.only or [*REWRITES]
        if not (site.programs / "pg_repack").exists():
            print(f"pg_repack is not in {site.programs}: left out; apt-get install postgresql-<version>-repack")
            who = [name for name in who if name != "pg_repack"]
        for part in options.parts or parts:
            if part == "rewrite":
                header = (
                    "medians", "wall", ": floor", "held", "worst", "stall", "worst", "tps", "in all", "WAL", "after"
                )  # fmt: skip
                table("rewritten under load", header, rewrite(site, rounds, who, options.detail))
            else:
                table("a change of a row", ("median", "measured", "asked"), triggers(site, rounds))


if __name__ == "__main__":
    main()
