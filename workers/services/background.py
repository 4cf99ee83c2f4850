"""A deployment without a terminal: `headrace up` launches it detached, `headrace down` ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from workers.services.child_logs import bound_log, last_lines, log_size, open_log
from workers.services.endpoints import Endpoints, read_endpoints, remove_endpoints
from workers.services.errors import AlreadyRunningError, ServiceError, StartFailedError
from workers.services.folders import DataFolder
from workers.services.postgres import PostgresServer
from workers.services.processes import send_signal, wait_for_exit
from workers.services.status import ChildStatus, SupervisorStatus, live_supervisor, read_status

SUPERVISOR_LOG = "supervisor.log"
# A child that crashed this often in a start will not come up by waiting.
_HOPELESS_RESTARTS = 3


def start_background(
    data_dir: Path,
    argv: Sequence[str],
    *,
    timeout_seconds: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Endpoints:
    """Launch `argv` (which must run `Deployment.run_foreground` on `data_dir`) detached; return when healthy.

    Its output goes to `<data_dir>/logs/supervisor.log`. Raises AlreadyRunningError, or StartFailedError
    with the last lines of the log that explains it; nothing is left running then.
    """
    folder = DataFolder.at(data_dir)
    folder.prepare()
    holder = live_supervisor(folder.root)
    if holder is not None:
        raise AlreadyRunningError(str(folder.root), holder.pid, holder.since)
    log_path = folder.logs / SUPERVISOR_LOG
    bound_log(log_path)
    mark = log_size(log_path)
    output = open_log(log_path)
    try:
        # No death signal: it is meant to outlive the command that launches it.
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=None if environment is None else dict(environment),
        )  # fmt: skip
    except OSError as error:
        raise StartFailedError(f"{argv[0]} cannot be started: {error.strerror}.") from error
    finally:
        os.close(output)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            if process.poll() is not None:
                tail = last_lines(log_path, since_bytes=mark) or "(nothing written)"
                raise StartFailedError(
                    f"The supervisor ended at its start (exit {process.returncode}). Its log {log_path} ends:\n{tail}"
                )
            holder, status = live_supervisor(folder.root), read_status(folder.root)
            if holder and status and (status.pid, status.start) == (holder.pid, holder.start):
                endpoints = read_endpoints(folder.root)
                if status.state == "healthy" and endpoints is not None:
                    return endpoints
                hopeless = [one for one in status.children if one.restarts >= _HOPELESS_RESTARTS]
                if hopeless:
                    raise StartFailedError(_explain(hopeless, "keeps ending"))
            if time.monotonic() > deadline:
                late = [one for one in status.children if one.state != "running"] if status else []
                raise StartFailedError(
                    _explain(late, f"is not healthy after {timeout_seconds:.0f} s")
                    or f"Nothing came up within {timeout_seconds:.0f} s: look at {log_path}."
                )
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    except BaseException:
        if process.poll() is None:
            stop(folder.root)
            process.terminate()
        raise


def stop(data_dir: Path, *, timeout_seconds: float = 60.0) -> bool:
    """Stop the deployment of `data_dir` and wait until all its processes have ended.

    True when something was stopped, False when nothing ran. After `timeout_seconds` the stop is hastened, ten
    seconds later it is kill -9. Raises ServiceError when a process survives even that.
    """
    root = DataFolder.at(data_dir).root
    if not root.exists():
        return False
    holder = live_supervisor(root)
    if holder is not None:
        send_signal(holder.pid, holder.start, signal.SIGTERM)
        if not wait_for_exit(holder.pid, holder.start, timeout_seconds):
            send_signal(holder.pid, holder.start, signal.SIGTERM)
            if not wait_for_exit(holder.pid, holder.start, 10.0):
                send_signal(holder.pid, holder.start, signal.SIGKILL)
                wait_for_exit(holder.pid, holder.start, 10.0)
    left = _end_left_overs(read_status(root))
    if holder is not None or left:
        PostgresServer(root).clean_up()
    with suppress(OSError):
        remove_endpoints(root)
    return holder is not None or left


def _end_left_overs(status: SupervisorStatus | None) -> bool:
    """End what a killed supervisor left: nothing on Linux but what is still shutting down."""
    found = False
    for number, seconds in ((signal.SIGINT, 15.0), (signal.SIGKILL, 10.0)):
        for one in reversed(status.children if status else ()):
            if one.pid is not None and send_signal(one.pid, one.start, number):
                found = True
                gone = wait_for_exit(one.pid, one.start, seconds)
                if not gone and number == signal.SIGKILL:
                    raise ServiceError(f"{one.name} (pid {one.pid}) survived kill -9: is a disk stuck?")
    return found


def _explain(children: Sequence[ChildStatus], what: str) -> str:
    parts = []
    for one in children:
        tail = last_lines(Path(one.log_path), 8) or "(nothing written)"
        exit_text = "" if one.last_exit is None else f", last exit {one.last_exit}"
        parts.append(f"{one.name} {what} ({one.state}{exit_text}). Its log {one.log_path} ends:\n{tail}")
    return "\n".join(parts)
