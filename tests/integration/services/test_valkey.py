"""The embedded Valkey, on a real server."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.services.processes import wait_for_exit
from workers.services.valkey import ValkeyServer

RUN_UNTIL_KILLED = """
import sys
from pathlib import Path
from workers.services.valkey import ValkeyServer
server = ValkeyServer(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def client(server: ValkeyServer) -> Iterator[Any]:
    """Connect to the server and close again."""
    connection: Any = redis.Redis.from_url(server.url(), decode_responses=True)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def valkey(data_dir: Path) -> Iterator[ValkeyServer]:
    """A running server."""
    server = ValkeyServer(data_dir)
    server.start()
    yield server
    server.stop()


def test_stop_and_start_keep_keys_and_address(valkey: ValkeyServer, data_dir: Path) -> None:
    """What was written before a stop is there after the next start, under the same URL."""
    with client(valkey) as connection:
        connection.set("key", "value")
    url = valkey.url()
    valkey.stop()
    assert not valkey.running()
    again = ValkeyServer(data_dir)
    again.start()
    try:
        with client(again) as connection:
            assert (again.url(), connection.get("key")) == (url, "value")
    finally:
        again.stop()


def test_kill_of_the_server_keeps_keys(valkey: ValkeyServer, data_dir: Path) -> None:
    """After kill -9 of the server a new start has every acknowledged key."""
    with client(valkey) as connection:
        connection.set("key", "value")
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.start()
    with client(valkey) as connection:
        assert connection.get("key") == "value"


def test_kill_of_the_parent_ends_the_server(data_dir: Path, helper: Callable[..., Any]) -> None:
    """After kill -9 of the process that started it the server ends by itself."""
    parent = helper(RUN_UNTIL_KILLED, str(data_dir))
    pid = int(parent.line())
    parent.kill()
    assert wait_for_exit(pid, None, 5)


def test_start_right_after_a_killed_parent(data_dir: Path, helper: Callable[..., Any]) -> None:
    """A start while the orphaned server still shuts down waits for it and then serves."""
    parent = helper(RUN_UNTIL_KILLED, str(data_dir))
    pid = int(parent.line())
    parent.kill()
    server = ValkeyServer(data_dir)
    server.start()
    try:
        assert server.running()
        assert server.pid != pid
    finally:
        server.stop()


def test_a_wrong_password_is_refused(valkey: ValkeyServer) -> None:
    """Neither no password nor a wrong one gets in."""
    for password in (None, "wrong"):
        connection: Any = redis.Redis(
            host="127.0.0.1", port=valkey.port, password=password, retry=Retry(NoBackoff(), 0)
        )
        with pytest.raises(redis.AuthenticationError):
            connection.ping()
        connection.close()


def test_the_settings_keep_messages(valkey: ValkeyServer) -> None:
    """Nothing is evicted, and the append-only file is synced every second."""
    expected = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    with client(valkey) as connection:
        assert {name: connection.config_get(name)[name] for name in expected} == expected


def test_a_taken_port_is_replaced(valkey: ValkeyServer, data_dir: Path) -> None:
    """When another process has the remembered port at the next start, the server takes another one."""
    port = valkey.port
    valkey.stop()
    with socket.create_server(("127.0.0.1", port)):
        again = ValkeyServer(data_dir)
        again.start()
        try:
            assert again.port != port
        finally:
            again.stop()


def test_a_second_start_takes_the_running_server(valkey: ValkeyServer, data_dir: Path) -> None:
    """A second start on the same folder finds the healthy server instead of starting one more."""
    second = ValkeyServer(data_dir)
    second.start()
    assert (second.pid, second.url()) == (valkey.pid, valkey.url())


def test_secrets_are_private(valkey: ValkeyServer, data_dir: Path) -> None:
    """The files that hold the password are mode 0600, and the server's arguments do not show it."""
    password = valkey.url().split("@")[0].removeprefix("redis://:")
    for path in (data_dir / "credentials.json", data_dir / "run" / "valkey.conf"):
        assert password in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert password.encode() not in Path(f"/proc/{valkey.pid}/cmdline").read_bytes()
