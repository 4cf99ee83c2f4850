"""The supervisor, with real child processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.services.processes import wait_for_exit
from workers.services.status import ChildStatus, SupervisorStatus, read_status
from workers.services.watched import BackOff

Eventually = Callable[..., None]
Start = Callable[..., Any]

PRELUDE = """
import os, signal, sys
from pathlib import Path
from workers.services.children import ChildSpec
from workers.services.supervisor import Supervisor
from workers.services.watched import BackOff
data_dir = Path(sys.argv[1])
notes = data_dir / "notes"
def shell(name, code, **more):
    log_path = data_dir / "logs" / f"{name}.log"
    return ChildSpec(name=name, argv=["/bin/sh", "-c", code], log_path=log_path, **more)
def say(*words):
    print(*words, flush=True)
"""


def status_of(data_dir: Path) -> SupervisorStatus:
    status = read_status(data_dir)
    assert status is not None
    return status


def child(data_dir: Path, name: str) -> ChildStatus:
    return next(one for one in status_of(data_dir).children if one.name == name)


def test_a_crashed_child_is_restarted(data_dir: Path, helper: Start, eventually: Eventually) -> None:
    """A child that is killed is started again after the back-off, and the status says so."""
    code = PRELUDE + (
        "Supervisor(data_dir, [shell('a', 'exec sleep 600')], back_off=BackOff(first_seconds=0.05))"
        ".run(lambda: say('healthy'))"
    )
    parent = helper(code, str(data_dir))
    parent.line()
    before = child(data_dir, "a")
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: child(data_dir, "a").state == "running" and child(data_dir, "a").restarts, "restart")
    after = child(data_dir, "a")
    assert (after.restarts, after.last_exit) == (1, -signal.SIGKILL)
    assert after.pid != before.pid
    assert parent.kill(signal.SIGTERM) == 0


def test_what_a_crashed_child_left_is_ended(data_dir: Path, helper: Start, eventually: Eventually) -> None:
    """Before a restart the remaining processes of the crashed child's group are killed."""
    code = (
        PRELUDE
        + """
forks = 'sleep 600 & echo $! >> left; wait'
Supervisor(data_dir, [shell("a", forks, cwd=data_dir)], back_off=BackOff(first_seconds=0.05)).run(
    lambda: say("healthy")
)
"""
    )
    parent = helper(code, str(data_dir))
    parent.line()
    eventually(lambda: (data_dir / "left").exists() and (data_dir / "left").read_text(), "grandchild")
    left = int((data_dir / "left").read_text().split()[0])
    pid = child(data_dir, "a").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_for_exit(left, None, 5)
    assert parent.kill(signal.SIGTERM) == 0


def test_children_stop_in_reverse_order(data_dir: Path, helper: Start) -> None:
    """A child that starts after another one starts when that is healthy, and ends before it."""
    code = (
        PRELUDE
        + """
def noting(name):
    return (f'trap "sleep 0.05; echo -{name} >> notes; exit 0" TERM; echo +{name} >> notes; '
            'while :; do sleep 600 & wait; done')
Supervisor(data_dir, [
    shell("first", noting("first"), cwd=data_dir, health=lambda: "+first" in notes.read_text()),
    shell("second", noting("second"), cwd=data_dir, start_after=["first"],
          health=lambda: "+second" in notes.read_text()),
]).run(lambda: say("healthy"))
"""
    )
    parent = helper(code, str(data_dir))
    assert parent.line() == "healthy"
    assert parent.kill(signal.SIGTERM) == 0
    assert (data_dir / "notes").read_text().split() == ["+first", "+second", "-second", "-first"]


def test_a_second_signal_hastens_the_stop(data_dir: Path, helper: Start, eventually: Eventually) -> None:
    """A child that ignores its stop signal is waited for, until the second Ctrl-C kills it."""
    code = (
        PRELUDE
        + """
stubborn = 'trap "" TERM; echo + > notes; while :; do sleep 600; done'
Supervisor(data_dir, [
    shell("stubborn", stubborn, cwd=data_dir, stop_timeout_seconds=600, health=notes.exists),
]).run(lambda: say("healthy"))
"""
    )
    parent = helper(code, str(data_dir))
    assert parent.line() == "healthy"
    parent.process.send_signal(signal.SIGINT)
    eventually(lambda: status_of(data_dir).state == "stopping", "the stop has begun")
    parent.process.send_signal(signal.SIGINT)
    assert parent.process.wait(10) == 0
    assert child(data_dir, "stubborn").last_exit == -signal.SIGKILL


def test_a_deaf_child_is_killed_in_time(data_dir: Path, helper: Start) -> None:
    """A child that ignores its stop signal is killed when its time is over."""
    code = (
        PRELUDE
        + """
stubborn = 'trap "" TERM; echo + > notes; while :; do sleep 600; done'
Supervisor(data_dir, [
    shell("stubborn", stubborn, cwd=data_dir, stop_timeout_seconds=0.2, health=notes.exists),
]).run(lambda: say("healthy"))
"""
    )
    parent = helper(code, str(data_dir))
    assert parent.line() == "healthy"
    assert parent.kill(signal.SIGTERM) == 0
    assert child(data_dir, "stubborn").last_exit == -signal.SIGKILL


def test_hangup_reaches_the_children(data_dir: Path, helper: Start, eventually: Eventually) -> None:
    """SIGHUP is handed on, and the supervisor goes on."""
    code = (
        PRELUDE
        + """
listens = 'trap "echo hup >> notes" HUP; echo + > notes; while :; do sleep 600 & wait; done'
Supervisor(data_dir, [shell("a", listens, cwd=data_dir, health=notes.exists)]).run(lambda: say("healthy"))
"""
    )
    parent = helper(code, str(data_dir))
    assert parent.line() == "healthy"
    parent.process.send_signal(signal.SIGHUP)
    eventually(lambda: "hup" in (data_dir / "notes").read_text(), "the child has heard it")
    assert parent.kill(signal.SIGTERM) == 0


def test_a_child_without_a_program_is_reported(data_dir: Path, helper: Start, eventually: Eventually) -> None:
    """A child whose program is missing stays in back-off and does not end the others."""
    code = (
        PRELUDE
        + """
missing = ChildSpec(name="missing", argv=["/no/such/program"], log_path=data_dir / "logs" / "missing.log")
Supervisor(data_dir, [missing, shell("a", "exec sleep 600")], back_off=BackOff(first_seconds=0.05)).run()
"""
    )
    parent = helper(code, str(data_dir))
    eventually(lambda: read_status(data_dir) is not None, "a status")
    eventually(lambda: child(data_dir, "missing").restarts >= 2, "tried again")
    assert (child(data_dir, "missing").state, child(data_dir, "a").state) == ("backoff", "running")
    assert parent.kill(signal.SIGTERM) == 0


def test_back_off_doubles_up_to_its_limit() -> None:
    """The wait before a restart goes from one second to thirty."""
    policy = BackOff()
    waits = [policy.delay_seconds(crashes) for crashes in (1, 2, 3, 4, 5, 6, 100)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_status_file_is_plain_json(data_dir: Path, helper: Start) -> None:
    """Other programs can read pid, start, restarts, state and last exit of each child."""
    code = PRELUDE + "Supervisor(data_dir, [shell('a', 'exec sleep 600')]).run(lambda: say('healthy'))"
    parent = helper(code, str(data_dir))
    parent.line()
    document = json.loads((data_dir / "supervisor.json").read_text())
    first = document["children"][0]
    assert (document["state"], document["pid"], first["name"]) == ("healthy", parent.process.pid, "a")
    assert {"pid", "start", "restarts", "state", "last_exit"} <= first.keys()
    assert parent.kill(signal.SIGTERM) == 0
