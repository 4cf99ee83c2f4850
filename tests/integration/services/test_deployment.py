"""A whole deployment: real servers under a real supervisor, in the foreground and detached."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from workers.services.background import start_background, stop
from workers.services.credentials import load_credentials
from workers.services.endpoints import read_endpoints
from workers.services.errors import AlreadyRunningError, StartFailedError
from workers.services.processes import is_alive, process_state, wait_for_exit
from workers.services.status import ChildStatus, SupervisorStatus, live_supervisor, read_status

Eventually = Callable[..., None]
Start = Callable[..., Any]

PRELUDE = """
import sys
from pathlib import Path
from workers.services.children import ChildSpec
from workers.services.deployment import Deployment
data_dir = Path(sys.argv[1])
def say(*words):
    print(*words, flush=True)
"""

# A child that forks a grandchild, as a Celery worker forks its pool.
FORKING_CHILD = """
import os, signal, time
from workers.services.processes import die_with_parent
parent = os.getpid()
if os.fork() == 0:
    die_with_parent(signal.SIGKILL, parent)
while True:
    time.sleep(60)
"""

DEPLOYMENT = (
    PRELUDE
    + f"FORKING = {FORKING_CHILD!r}"
    + """
def children(endpoints):
    forks = [sys.executable, "-c", FORKING]
    return [
        ChildSpec(name="forks", argv=forks, log_path=data_dir / "logs" / "forks.log", stop_timeout_seconds=5),
        ChildSpec(name="sleeps", argv=["sleep", "600"], log_path=data_dir / "logs" / "sleeps.log"),
    ]
def prepare(endpoints):
    if "fail" in sys.argv:
        raise ValueError("the migrations do not fit")
Deployment(
    data_dir, control_dsn=None, broker_url=None, environment={}, children=children, prepare=prepare
).run_foreground(lambda endpoints: say("healthy"))
say("over")
"""
)


def status_of(data_dir: Path) -> SupervisorStatus:
    status = read_status(data_dir)
    assert status is not None
    return status


def child(data_dir: Path, name: str) -> ChildStatus:
    return next(one for one in status_of(data_dir).children if one.name == name)


def family(pids: list[int]) -> list[int]:
    """Return the processes `pids` and everything below them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        state = process_state(int(entry.name)) if entry.name.isdigit() else None
        if state is not None:
            parents[state.pid] = state.parent_pid
    found = list(pids)
    for pid in found:
        found += [one for one, parent in parents.items() if parent == pid]
    return found


def test_kill_of_the_supervisor_leaves_no_process(data_dir: Path, helper: Start) -> None:
    """After kill -9 of a foreground deployment its servers, children and grandchildren all end."""
    parent = helper(DEPLOYMENT, str(data_dir))
    assert parent.line() == "healthy"
    below = family([parent.process.pid])[1:]
    assert len(below) >= 4 + 1 + 5  # children, one grandchild, PostgreSQL's own processes
    parent.kill()
    assert [pid for pid in below if not wait_for_exit(pid, None, 10)] == []


def test_ctrl_c_stops_everything_in_order(data_dir: Path, helper: Start) -> None:
    """A SIGINT ends children first and servers last, cleanly, and the endpoints are forgotten."""
    parent = helper(DEPLOYMENT, str(data_dir))
    assert parent.line() == "healthy"
    below = family([parent.process.pid])[1:]
    parent.process.send_signal(signal.SIGINT)
    assert parent.line() == "over"
    assert parent.process.wait(10) == 0
    assert [pid for pid in below if is_alive(pid)] == []
    assert read_endpoints(data_dir) is None
    assert status_of(data_dir).state == "stopped"
    assert "database system is shut down" in (data_dir / "logs" / "postgres.log").read_text()


def test_a_killed_server_comes_back_at_its_address(
    data_dir: Path, helper: Start, query: Callable[..., Any], eventually: Eventually
) -> None:
    """After kill -9 of PostgreSQL the supervisor restarts it, and the DSN of the endpoints still works."""
    parent = helper(DEPLOYMENT, str(data_dir))
    assert parent.line() == "healthy"
    endpoints = read_endpoints(data_dir)
    assert endpoints is not None
    assert stat.S_IMODE((data_dir / "endpoints.json").stat().st_mode) == 0o600
    query(endpoints["control_dsn"], "CREATE TABLE public.kept AS SELECT 7 AS number")
    pid = child(data_dir, "postgres").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: child(data_dir, "postgres").restarts == 1, "restarted")
    eventually(lambda: status_of(data_dir).state == "healthy", "healthy again")
    assert child(data_dir, "postgres").last_exit == -signal.SIGKILL
    assert query(endpoints["control_dsn"], "SELECT number FROM public.kept") == [(7,)]
    assert parent.kill(signal.SIGTERM) == 0


def test_background_start_and_stop(data_dir: Path) -> None:
    """A detached start returns the endpoints once healthy, a second one is refused, and a stop ends all."""
    argv = [sys.executable, "-c", DEPLOYMENT, str(data_dir)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    endpoints = start_background(data_dir, argv, environment=environment)
    assert endpoints == read_endpoints(data_dir)
    holder = live_supervisor(data_dir)
    assert holder is not None
    assert (endpoints["supervisor_pid"], endpoints["supervisor_start"]) == (holder.pid, holder.start)
    with pytest.raises(AlreadyRunningError, match=f"supervisor pid {holder.pid}, since {holder.since[:4]}"):
        start_background(data_dir, argv, environment=environment)
    secrets = [text for name, text in asdict(load_credentials(data_dir)).items() if name != "flower_user"]
    arguments = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert [text for text in secrets if text.encode() in arguments] == []
    below = family([holder.pid])
    assert stop(data_dir) is True
    assert [pid for pid in below if is_alive(pid)] == []
    assert stop(data_dir) is False


def test_stop_finishes_what_a_killed_supervisor_left(data_dir: Path, helper: Start) -> None:
    """A stop after kill -9 of the supervisor returns only when its servers have ended too."""
    parent = helper(DEPLOYMENT, str(data_dir))
    assert parent.line() == "healthy"
    below = family([parent.process.pid])[1:]
    parent.kill()
    stop(data_dir)
    assert [one for one in status_of(data_dir).children if one.pid and is_alive(one.pid, one.start)] == []
    assert [pid for pid in below if not wait_for_exit(pid, None, 5)] == []


def test_a_failed_start_shows_why_and_leaves_nothing(data_dir: Path) -> None:
    """When the preparation fails, the background start reports the log's last lines and nothing runs on."""
    argv = [sys.executable, "-c", DEPLOYMENT, str(data_dir), "fail"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with pytest.raises(StartFailedError, match="the migrations do not fit"):
        start_background(data_dir, argv, environment=environment)
    assert live_supervisor(data_dir) is None
    assert status_of(data_dir).error == "ValueError: the migrations do not fit"
