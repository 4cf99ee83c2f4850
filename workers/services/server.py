"""What the embedded PostgreSQL and Valkey have in common: one port, one lock, one record per data folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from workers.services.child_logs import bound_log, last_lines, log_size
from workers.services.errors import ServiceError, StartFailedError
from workers.services.folders import DataFolder, describe
from workers.services.ports import choose_port, is_free
from workers.services.private_files import read_json, write_private_json
from workers.services.processes import LINUX, is_alive, own_start, wait_for_exit
from workers.services.service import Service

LAUNCH_PATIENCE_SECONDS = 15.0
# So long the processes of a dead server may take to notice; a server just spawned has its record long before.
ORPHAN_GRACE_SECONDS = 2.0


class Server(Service):
    """A server process of one data folder.

    The process itself inherits an exclusive lock on `run/<name>.lock`: whoever gets that lock knows that no
    process of an earlier server is left, even when its parent was killed.
    """

    title: str

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.folder = DataFolder.at(data_dir)
        self.log_path = self.folder.logs / f"{self.name}.log"
        self._record_path = self.folder.run / f"{self.name}.json"
        self._lock_path = self.folder.run / f"{self.name}.lock"
        self._port: int | None = None
        self._port_is_published = False
        self._log_mark_bytes = 0

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1. Raises ServiceError when the server has never been started."""
        if self._port is None:
            remembered = self._record().get("port")
            if not isinstance(remembered, int):
                raise ServiceError(f"{self.title} in {self.folder.root} has no port yet: start it first.")
            self._port = remembered
        return self._port

    def running(self) -> bool:
        """Tell whether the server of this data folder runs and answers, whoever started it."""
        if self.pid is None:
            record = self._record()
            pid, started = record.get("pid", 0), record.get("start")
            if not is_alive(pid, started):
                return False
            self._port = record["port"]
        elif not self.alive():
            return False
        return self.ready()

    def start(self, timeout_seconds: float = 60.0) -> None:
        """Start the server and wait until it answers; a healthy one of the same folder is taken as it is.

        Raises StartFailedError with the log's last lines, or ServiceError when folder or programs fail.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            before = self.pid
            self.launch()
            spawned = self._process is not None and self.pid != before
            while self.alive():
                if self.ready():
                    self._prepare_content()
                    self._port_is_published = True
                    return
                if time.monotonic() > deadline:
                    self.stop()
                    raise StartFailedError(self._failure(f"did not answer within {timeout_seconds:.0f} s"))
                wait_for_exit(self.pid or 0, self.start_ticks, 0.02)
            taken = "Address already in use" in last_lines(self.log_path, since_bytes=self._log_mark_bytes)
            # One that ran before, and ended under our eyes, is no failure of this start.
            if (spawned and not taken) or time.monotonic() > deadline:
                raise StartFailedError(self._failure(f"ended at its start (exit {self.exit_code})"))

    def stop(self) -> None:
        """Stop the server of this data folder, whoever started it; returns when its process has ended.

        Each signal gets its bounded time, then a harder one follows. Does nothing when it does not run.
        """
        if self.pid is None:
            record = self._record()
            if is_alive(record.get("pid", 0), record.get("start")):
                self._adopts(record["pid"], record["start"])
        for number, seconds in self.stop_steps:
            if not self.alive() or self.pid is None:
                break
            self.send(number)
            wait_for_exit(self.pid, self.start_ticks, seconds)
        if self.alive():
            raise ServiceError(f"{self.title} pid {self.pid} survived kill -9: is the disk or the kernel stuck?")
        self.clean_up()

    def launch(self) -> None:
        """Start the process without waiting for it; the port stays the one that clients were told.

        Takes over a healthy server whose own parent lives, and waits out one that is shutting down.
        Raises StartFailedError or ServiceError.
        """
        if self.alive():
            return
        self.folder.prepare()
        try:
            lock = self._acquire()
            if lock is None:
                return
            try:
                bound_log(self.log_path)
                self._log_mark_bytes = log_size(self.log_path)
                self._choose_port()
                self._now_runs(self._spawn(lock))
                self._write_record()
            finally:
                os.close(lock)
        except OSError as error:
            raise ServiceError(describe(self.folder.root, error)) from error
        except subprocess.SubprocessError as error:
            raise StartFailedError(f"{self.title} cannot be started: {error}") from error

    def clean_up(self) -> None:
        """Remove what only a running server needs."""

    @abstractmethod
    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        """Start the process on `self.port`, with the descriptor `lock` inherited."""

    def _prepare_content(self) -> None:
        """Make what clients expect inside the server; called once it answers."""

    def _end_orphans(self) -> None:
        """End what a dead server process left behind and that still holds the lock."""

    def _extra_record(self) -> dict[str, Any]:
        return {}

    def _record(self) -> dict[str, Any]:
        try:
            return read_json(self._record_path) or {}
        except ValueError:
            return {}  # not synced to the disk: a power cut may empty it, and nothing in it is precious

    def _write_record(self) -> None:
        document = {
            "port": self.port,
            "pid": self.pid,
            "start": self.start_ticks,
            "parent_pid": os.getpid(),
            "parent_start": own_start(),
        }
        write_private_json(self._record_path, document | self._extra_record(), durable=False)

    def _choose_port(self) -> None:
        if self._port_is_published:
            # Clients hold the address: a port that is taken now is waited for, not replaced.
            if not is_free(self.port):
                raise StartFailedError(
                    f"{self.title} cannot listen: port {self.port} of 127.0.0.1 is taken by another process."
                )
            return
        remembered = self._record().get("port")
        self._port = choose_port(remembered if isinstance(remembered, int) else None)

    def _acquire(self) -> int | None:
        """Return the lock's descriptor, or None when a healthy server was taken over instead."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LAUNCH_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                pass
            record = self._record()
            pid, started = record.get("pid", 0), record.get("start", 0)
            lives = is_alive(pid, started)
            # With its parent gone it has been told to end (Linux): never rely on such a server.
            cared_for = not LINUX or is_alive(record.get("parent_pid", 0), record.get("parent_start"))
            if lives and cared_for:
                self._port = record["port"]
                if self.ready():
                    os.close(descriptor)
                    self._adopts(pid, started)
                    return None
            elif pid and not lives and time.monotonic() > deadline - LAUNCH_PATIENCE_SECONDS + ORPHAN_GRACE_SECONDS:
                self._end_orphans()
            if time.monotonic() > deadline:
                os.close(descriptor)
                holder = f"process {pid}" if lives else "some process"
                raise StartFailedError(
                    f"{self.title} in {self.folder.root}: {holder} still holds {self._lock_path} "
                    "and does not "
                    f"answer. Look at {self.log_path}, end that process, and start again."
                )
            if not lives or wait_for_exit(pid, started, 0.1):
                time.sleep(0.02)

    def _failure(self, what: str) -> str:
        root, tail = self.folder.root, last_lines(self.log_path, since_bytes=self._log_mark_bytes)
        if "No space left on device" in tail:
            return f"{self.title} found no space left in {root}: free some, or choose another --data-dir."
        return f"{self.title} {what}. Its log {self.log_path} ends:\n{tail or '(nothing written)'}"

    def _credentials_hint(self) -> str:
        return (
            f"{self.title} in {self.folder.root} refuses the password of "
            f"{self.folder.root / 'credentials.json'}: "
            "that file is not the one the server was made with. Put the old file back."
        )
