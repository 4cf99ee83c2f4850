"""Scratch data folders and helper processes for the tests of the embedded servers and the supervisor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest

from workers.services.postgres import PostgresServer

TREE = Path(__file__).resolve().parents[3]
PROCESSES = Path("/proc")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until a condition that announces itself nowhere holds; fail with `what` when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def processes_in(folder: Path) -> list[int]:
    """Return the live processes that work in `folder` or name it in their arguments, but for this one."""
    found = []
    for entry in PROCESSES.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            arguments = (entry / "cmdline").read_bytes()
            place = str((entry / "cwd").readlink())
            if place.startswith(str(folder)) or os.fsencode(folder) in arguments:
                found.append(int(entry.name))
    return found


def run_statement(dsn: str, text: str) -> list[tuple[object, ...]]:
    """Run one statement, commit, and return its rows."""
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


class Helper:
    """A Python process that runs a piece of code with the tree on its path; it speaks in lines."""

    def __init__(self, code: str, arguments: Sequence[str], *, python: str, prefix: Sequence[str]) -> None:
        path = os.pathsep.join([str(TREE), *(entry for entry in sys.path if "site-packages" in entry)])
        self.process = subprocess.Popen(
            [*prefix, python, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the helper ended with exit code {self.process.wait()}"
        return text.strip()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal it and wait for its end; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder that every account can reach, with a blank in its name; nothing may live in it later."""
    parent = Path(tempfile.mkdtemp(prefix="headrace test "))
    parent.chmod(0o755)
    yield parent / "the data"
    # A test that killed its server leaves the folder of the Unix socket, as a real kill -9 does.
    PostgresServer(parent / "the data").clean_up()
    left = processes_in(parent)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(parent, ignore_errors=True)
    assert not left, f"processes left behind: {left}"


@pytest.fixture
def helper() -> Iterator[Callable[..., Helper]]:
    """Start helper processes: `helper(code, *arguments)`; they are killed at the end of the test."""
    started: list[Helper] = []

    def start(code: str, *arguments: str, python: str = sys.executable, prefix: Sequence[str] = ()) -> Helper:
        started.append(Helper(code, arguments, python=python, prefix=prefix))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        for stream in (one.process.stdin, one.process.stdout):
            if stream is not None:
                stream.close()


# Test modules cannot import this file (import mode importlib): they get its functions as fixtures.
@pytest.fixture
def query() -> Callable[[str, str], list[tuple[object, ...]]]:
    """Run one statement, commit, and return its rows: `query(dsn, text)`."""
    return run_statement


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait for a condition: `eventually(condition, what)`."""
    return wait_until
