"""Real servers for every test: one embedded PostgreSQL and Valkey per test process, a cloned database per test."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from workers import database, execution, migrations
from workers import settings as settings_module
from workers.dispatch import consumers
from workers.messages import Message
from workers.postprocessing import api as postprocessing
from workers.postprocessing import scope
from workers.products import identifying, room
from workers.repack import places
from workers.services.postgres import PostgresServer
from workers.services.valkey import ValkeyServer
from workers.settings import Settings
from workers.telemetry import api, store

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
MODULE_BROKER = 15  # the broker database that a module's tests share; those below it are single tests'
_numbers = itertools.count(1)

# The application with every tick each second, and each message sent so often as $COPIES says.
REHEARSAL = """
import os
from workers import app as module
celery = module.app
for entry in celery.conf.beat_schedule.values():
    entry["schedule"] = 1.0
    entry["options"]["expires"] = 5.0
publish = module._publish
def publish_copies(*arguments):
    return [publish(*arguments) for _ in range(int(os.environ.get("COPIES", "1")))][0]
module._publish = publish_copies
"""

for _name in [name for name in os.environ if name.startswith("HEADRACE_")]:
    # The tests' settings are their own, whatever the shell that starts them has.
    del os.environ[_name]


@dataclass(frozen=True)
class Servers:
    """The two servers of this test process."""

    postgres: PostgresServer
    valkey: ValkeyServer


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Embedded PostgreSQL and Valkey; they end with this process, whatever happens to it."""
    with tempfile.TemporaryDirectory(prefix="headrace-tests-") as folder:
        postgres, valkey = PostgresServer(Path(folder)), ValkeyServer(Path(folder))
        postgres.start()
        valkey.start()
        try:
            yield Servers(postgres, valkey)
        finally:
            valkey.stop()
            postgres.stop()


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """A migrated database to clone."""
    with _admin(servers) as cursor:
        cursor.execute("CREATE DATABASE template_headrace")
    dsn = servers.postgres.dsn("template_headrace")
    conf = Settings(control={"dsn": dsn})
    with database.connection(conf.target(), purpose="tests") as conn:
        migrations.migrate(conn, migrations.FOUNDATION)
        migrations.migrate(conn, "dispatch")
        migrations.migrate(conn, "repack")
        migrations.migrate(conn, "products")
    api.setup(conf)
    postprocessing.set_up(conf, "control")
    database.close_all()
    return "template_headrace"


@contextmanager
def _admin(servers: Servers) -> Iterator[Any]:
    conn = psycopg2.connect(servers.postgres.dsn("headrace"))
    conn.autocommit = True
    try:
        yield conn.cursor()
    finally:
        conn.close()


def _drop(servers: Servers, name: str) -> None:
    """Drop a database; an autovacuum worker, which only a superuser may end, is waited for."""
    for attempt in range(300):
        try:
            with _admin(servers) as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            return
        except psycopg2.errors.InsufficientPrivilege:
            if attempt == 299:
                raise
            time.sleep(0.1)


@pytest.fixture
def empty_dsn(servers: Servers) -> Iterator[str]:
    """A database with nothing in it."""
    name = f"empty_{os.getpid()}_{next(_numbers)}"
    with _admin(servers) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    yield servers.postgres.dsn(name)
    database.close_all()
    _drop(servers, name)


@contextmanager
def _clone(servers: Servers, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with _admin(servers) as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield servers.postgres.dsn(name)
    database.close_all()
    store._ready.clear()
    scope._known.clear()
    consumers.forget()
    places.forget()
    room.forget()
    identifying.forget()
    _drop(servers, name)


@pytest.fixture
def dsn(servers: Servers, template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with _clone(servers, template) as cloned:
        yield cloned


@pytest.fixture
def broker_url(servers: Servers) -> Iterator[str]:
    """A numbered database of the broker, emptied before and after."""
    url = servers.valkey.url(next(_numbers) % MODULE_BROKER)
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An instrument's data folder."""
    folder = tmp_path / "telem"
    folder.mkdir()
    return folder


@pytest.fixture
def conf(dsn: str, data: Path, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a host called `here`, in force for this process."""
    settings = Settings(
        host="here",
        data_dir=tmp_path / "state",
        control={"dsn": dsn},
        telemetry={"data_dirs": [str(data)]},
    )
    settings_module.use(settings)
    yield settings
    settings_module._current = None


@pytest.fixture
def sql(dsn: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Ask this test's database."""
    conn = psycopg2.connect(dsn, options="-c timezone=UTC")
    conn.autocommit = True

    def ask(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with conn.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    yield ask
    conn.close()


@pytest.fixture
def work(conf: Settings) -> Callable[..., list[str]]:
    """Do messages and what follows from them in this process; the problems that remain."""

    def do(*messages: Message, settings: Settings | None = None, seconds: float = 20) -> list[str]:
        return execution.run_here(list(messages), settings or conf, timeout=timedelta(seconds=seconds))

    return do


@dataclass
class Site:
    """A deployment of real processes that share a database, a broker and folders."""

    folder: Path
    dsn: str
    broker_url: str
    data: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.data.mkdir(exist_ok=True)
        (self.folder / "rehearsal.py").write_text(REHEARSAL)

    def environment(self, host: str = "here", **more: str) -> dict[str, str]:
        """What a process of this site reads its settings from."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        return kept | {
            "HEADRACE_CONTROL__DSN": self.dsn,
            "HEADRACE_BROKER__URL": self.broker_url,
            "HEADRACE_DATA_DIR": str(self.folder / "state"),
            "HEADRACE_HOST": host,
            "HEADRACE_TELEMETRY__DATA_DIRS": f'["{self.data}"]',
            "HEADRACE_WORKER__CONCURRENCY": "1",
            "PYTHONUNBUFFERED": "1",
            **more,
        }

    def start(self, *words: str, host: str = "here", app: str = "workers", **more: str) -> subprocess.Popen[bytes]:
        """Start `celery -A workers WORDS` or, with `headrace` first, our own command."""
        argv = [sys.executable, "-m", "producers.cli", *words[1:]] if words[0] == "headrace" else [
            sys.executable, "-m", "celery", "-A", app, *words,
        ]  # fmt: skip
        log = self._log_path(len(self.processes), words[0]).open("wb")
        process = subprocess.Popen(
            argv, env=self.environment(host, **more), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder
        )
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a process of this site has written so far."""
        return next(self.folder.glob(f"*-{self.processes.index(process)}.log")).read_text(errors="replace")

    def _log_path(self, number: int, word: str) -> Path:
        return self.folder / f"{word}-{number}.log"

    def worker(
        self, host: str = "here", *, options: Sequence[str] = (), app: str = "workers", **more: str
    ) -> subprocess.Popen[bytes]:
        """A worker that has announced itself and consumes."""
        before = self.ask("SELECT count(*) FROM headrace.host WHERE name = %s AND last_seen > now()", host)
        began = self.ask("SELECT clock_timestamp()")[0][0]
        node = f"w{len(self.processes)}@{host}"
        process = self.start("worker", "-n", node, "--without-mingle", *options, host=host, app=app, **more)
        self.until(
            lambda: bool(self.ask("SELECT 1 FROM headrace.host WHERE name = %s AND last_seen > %s", host, began)),
            f"the worker of {host} announces itself ({before})",
        )
        return process

    def run(
        self, *words: str, host: str = "here", timeout: float = 60, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run our own command to its end."""
        return self._finish(["-m", "producers.cli", *words], self.environment(host, **more), timeout)

    def celery(self, *words: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `celery -A workers WORDS` to its end."""
        return self._finish(["-m", "celery", "-A", "workers", *words], self.environment(**more), timeout)

    def script(self, code: str, *, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a Python script as somebody at the instrument would."""
        return self._finish(["-c", code], self.environment(**more), timeout)

    def _finish(
        self, words: list[str], environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env=environment, capture_output=True, text=True, timeout=timeout, cwd=self.folder,
        )  # fmt: skip

    @contextmanager
    def blocked(self, table: str = "public.telem") -> Iterator[None]:
        """Nobody can write into the table meanwhile: work that needs it stands still in mid-statement."""
        conn = psycopg2.connect(self.dsn)
        try:
            with conn.cursor() as cursor:
                cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield
        finally:
            conn.close()

    def ask(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the site's database."""
        conn = psycopg2.connect(self.dsn, options="-c timezone=UTC")
        try:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            conn.close()

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait for something to become true; fail with its name and the logs when it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except psycopg2.Error:
                pass  # a server that is being restarted
            time.sleep(0.05)
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))
        raise AssertionError(f"not within {seconds} s: {what}\n{logs}")

    def until_logged(self, process: subprocess.Popen[bytes], text: str, times: int = 1) -> None:
        """Wait until a process has written a text to its log so often."""
        self.until(lambda: self.log(process).count(text) >= times, f"{text!r} is logged")

    def rows(self, device: str) -> int:
        """How many rows of telemetry a device has."""
        return int(self.ask("SELECT count(*) FROM public.telem WHERE device = %s", device)[0][0])

    def until_rows(self, device: str, count: int = 100, seconds: float = 10) -> None:
        """Wait until a device has exactly so many rows."""
        self.until(lambda: self.rows(device) == count, f"{device} has {count} rows", seconds)

    def newest_run(self, path: Path, host: str = "here") -> tuple[int, str]:
        """Id and state of a file's newest run; (0, "none") if it has none."""
        statement = "SELECT id, state FROM headrace.run WHERE key = %s ORDER BY id DESC LIMIT 1"
        found = self.ask(statement, f"{host}:{path}")
        return (found[0][0], found[0][1]) if found else (0, "none")

    def until_run(self, path: Path, state: str) -> int:
        """Wait until the newest run of a file is in a state; its id."""
        self.until(lambda: self.newest_run(path)[1] == state, f"{path.name} is {state}")
        return self.newest_run(path)[0]

    def stop(self) -> None:
        """End every process of the site."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def site(dsn: str, broker_url: str, tmp_path: Path, data: Path) -> Iterator[Site]:
    """A deployment whose processes end with the test."""
    folder = tmp_path / "site"
    made = Site(folder, dsn, broker_url, data)
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def module_site(servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A deployment that the tests of one module share."""
    url = servers.valkey.url(MODULE_BROKER)
    with _clone(servers, template) as dsn, redis.Redis.from_url(url) as client:
        client.flushdb()
        made = Site(tmp_path_factory.mktemp("site"), dsn, url, tmp_path_factory.mktemp("telem"))
        yield made
        made.stop()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files; a test that needs it is skipped where it is missing, except in CI."""
    if not (SHARED / "fixtures").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} is missing in CI")
        pytest.skip("the reference files (../shared) are not here")
    return SHARED
