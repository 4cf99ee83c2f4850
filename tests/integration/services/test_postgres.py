"""The embedded PostgreSQL, on a real server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from workers.services.errors import ServiceError
from workers.services.postgres import PostgresServer
from workers.services.postgres_account import nobody_account
from workers.services.processes import wait_for_exit

Query = Callable[[str, str], list[tuple[object, ...]]]
COUNT_KEPT = "SELECT count(*) FROM public.kept"
KEEP_ROWS = "CREATE TABLE public.kept AS SELECT generate_series(1, 1000) AS number"
RUN_UNTIL_KILLED = """
import sys
from pathlib import Path
from workers.services.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[PostgresServer]:
    """A running server."""
    server = PostgresServer(data_dir)
    server.start()
    yield server
    server.stop()


def test_stop_and_start_keep_rows_and_address(postgres: PostgresServer, data_dir: Path, query: Query) -> None:
    """What was committed before a stop is there after the next start, under the same DSN."""
    query(postgres.dsn(), KEEP_ROWS)
    dsn = postgres.dsn()
    sockets = Path(str(query(postgres.superuser_dsn(), "SHOW unix_socket_directories")[0][0]))
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    postgres.stop()
    assert (sockets.exists(), postgres.running()) == (False, False)
    again = PostgresServer(data_dir)
    again.start()
    try:
        assert (again.dsn(), query(again.dsn(), COUNT_KEPT)) == (dsn, [(1000,)])
    finally:
        again.stop()


def test_a_new_server_is_as_promised(postgres: PostgresServer, data_dir: Path, query: Query) -> None:
    """The role is no superuser and owns its database in UTF-8; settings, modes and argv are as designed."""
    role = "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'headrace'"
    assert query(postgres.dsn(), role) == [(False, True, True)]
    owner = "SELECT pg_get_userbyid(datdba), datcollate FROM pg_database WHERE datname = current_database()"
    assert query(postgres.dsn(), owner) == [("headrace", "C.UTF-8")]
    expected = {
        "listen_addresses": "127.0.0.1",
        "server_encoding": "UTF8",
        "client_connection_check_interval": "5s",
        "TimeZone": "UTC",
        "data_checksums": "on",
        "shared_buffers": "128MB",
    }
    assert {name: query(postgres.dsn(), f"SHOW {name}")[0][0] for name in expected} == expected
    credentials = data_dir / "credentials.json"
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    password = postgres.dsn().split("@")[0].rsplit(":", 1)[1]
    assert password in credentials.read_text()
    arguments = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert password.encode() not in arguments


def test_a_wrong_password_is_refused(postgres: PostgresServer, query: Query) -> None:
    """Neither a wrong password nor none gets in, over TCP or the socket."""
    sockets = str(query(postgres.superuser_dsn(), "SHOW unix_socket_directories")[0][0])
    for host in ("127.0.0.1", sockets):
        for password in ("wrong", ""):
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(host=host, port=postgres.port, user="headrace", password=password)


def test_kill_of_the_parent_stops_the_server_cleanly(data_dir: Path, helper: Callable[..., Any]) -> None:
    """After kill -9 of the process that started it the server shuts down by itself, in good order."""
    parent = helper(RUN_UNTIL_KILLED, str(data_dir))
    pid = int(parent.line())
    parent.kill()
    assert wait_for_exit(pid, None, 10)
    assert not (data_dir / "postgres" / "postmaster.pid").exists()
    assert "database system is shut down" in (data_dir / "logs" / "postgres.log").read_text()


def test_start_right_after_a_killed_parent(data_dir: Path, helper: Callable[..., Any]) -> None:
    """A start while the orphaned server still shuts down waits for it and then serves."""
    parent = helper(RUN_UNTIL_KILLED, str(data_dir))
    pid = int(parent.line())
    parent.kill()
    server = PostgresServer(data_dir)
    server.start()
    try:
        assert server.running()
        assert server.pid != pid
    finally:
        server.stop()


def test_kill_of_the_postmaster_keeps_rows(postgres: PostgresServer, data_dir: Path, query: Query) -> None:
    """After kill -9 of the postmaster, now a zombie, another start recovers every committed row."""
    query(postgres.dsn(), KEEP_ROWS)
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    wait_for_exit(postgres.pid, postgres.start_ticks, 10)
    # `postgres` has not reaped it: postmaster.pid names a zombie, which PostgreSQL takes for alive.
    again = PostgresServer(data_dir)
    again.start()
    try:
        assert query(again.dsn(), COUNT_KEPT) == [(1000,)]
    finally:
        again.stop()


def test_a_busy_orphan_does_not_keep_the_next_server_out(
    postgres: PostgresServer, data_dir: Path, query: Query, eventually: Callable[..., None]
) -> None:
    """A query that goes on after its postmaster was killed is ended, and the next server starts."""
    connection = psycopg2.connect(postgres.dsn(), async_=True)
    eventually(lambda: connection.poll() == psycopg2.extensions.POLL_OK, "connected")
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM generate_series(1, 1000000000) AS a (n) WHERE n % 7 = 8")
    busy = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%% = 8' AND pid <> %s"
    eventually(lambda: query(postgres.dsn(), busy % "pg_backend_pid()"), "the query runs")
    postgres.send(signal.SIGKILL)
    postgres.start()
    assert postgres.running()
    connection.close()


def test_an_interrupted_initdb_spoils_nothing(
    data_dir: Path, helper: Callable[..., Any], query: Query, eventually: Callable[..., None]
) -> None:
    """After kill -9 in the middle of the first initdb the next start makes the cluster anew."""
    parent = helper(RUN_UNTIL_KILLED, str(data_dir))
    eventually((data_dir / "postgres.init" / "base").exists, "initdb has begun to write")
    parent.kill()
    assert not (data_dir / "postgres").exists()
    server = PostgresServer(data_dir)
    server.start()
    try:
        assert query(server.dsn(), "SELECT 1") == [(1,)]
        assert [path.name for path in data_dir.glob("postgres*")] == ["postgres"]
    finally:
        server.stop()


def test_a_taken_port_is_replaced(postgres: PostgresServer, data_dir: Path, query: Query) -> None:
    """When another process has the remembered port at the next start, the server takes another one."""
    port = postgres.port
    postgres.stop()
    with socket.create_server(("127.0.0.1", port)):
        again = PostgresServer(data_dir)
        again.start()
        try:
            assert again.port != port
            assert query(again.dsn(), "SHOW port") == [(str(again.port),)]
        finally:
            again.stop()


def test_a_second_start_takes_the_running_server(postgres: PostgresServer, data_dir: Path) -> None:
    """A second start on the same folder finds the healthy server instead of starting one more."""
    second = PostgresServer(data_dir)
    second.start()
    assert (second.pid, second.dsn()) == (postgres.pid, postgres.dsn())
    second.stop()
    assert not postgres.running()


def test_a_lost_credentials_file_is_one_clear_error(postgres: PostgresServer, data_dir: Path) -> None:
    """With other passwords than the server's the start says which file to put back."""
    postgres.stop()
    (data_dir / "credentials.json").unlink()
    with pytest.raises(ServiceError, match=r"credentials\.json"):
        PostgresServer(data_dir).start()
    PostgresServer(data_dir).stop()


def test_a_file_as_data_folder_is_one_clear_error(data_dir: Path) -> None:
    """A data folder that is a file is reported in one sentence that says what to do."""
    data_dir.write_text("not a folder")
    with pytest.raises(ServiceError, match=r"is a file\. Choose another --data-dir"):
        PostgresServer(data_dir).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_one_clear_error(data_dir: Path) -> None:
    """A disk without room for a cluster is reported in one sentence that says what to do."""
    data_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(data_dir)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is refused here")
    try:
        with pytest.raises(ServiceError, match="No space left"):
            PostgresServer(data_dir).start()
    finally:
        subprocess.run(["umount", str(data_dir)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_root_can_run_it_as_nobody(data_dir: Path, query: Query) -> None:
    """Where user namespaces are refused root runs the server as the account nobody."""
    server = PostgresServer(data_dir, account=nobody_account())
    server.start()
    try:
        assert Path(f"/proc/{server.pid}").stat().st_uid == nobody_account().uid
        assert query(server.dsn(), "SELECT 1") == [(1,)]
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user already")
def test_an_ordinary_user_can_run_it(data_dir: Path, helper: Callable[..., Any]) -> None:
    """An ordinary user starts and stops the server without any privilege."""
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}"):
        runs = [*prefix, python, "-c", "import ctypes"]
        if shutil.which(prefix[0]) and not subprocess.run(runs, check=False, capture_output=True).returncode:
            break
    else:
        pytest.skip("no Python that an ordinary user can run")
    data_dir.mkdir()
    os.chown(data_dir, 65534, 65534)
    parent = helper(RUN_UNTIL_KILLED, str(data_dir), python=python, prefix=prefix)
    pid = int(parent.line())
    assert Path(f"/proc/{pid}").stat().st_uid == 65534
    parent.process.stdin.close()
    assert (parent.process.wait(20), wait_for_exit(pid, None, 0)) == (0, True)
