"""Everything of one machine together: servers unless configured, preparation, then supervised children."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from workers.services.children import ChildSpec
from workers.services.credentials import load_credentials
from workers.services.endpoints import Endpoints, remove_endpoints, write_endpoints
from workers.services.errors import ServiceError
from workers.services.folders import DataFolder
from workers.services.ports import choose_port
from workers.services.postgres import PostgresServer
from workers.services.server import Server
from workers.services.status import SupervisorLock, SupervisorStatus, utc_now, write_status
from workers.services.supervisor import Supervisor
from workers.services.valkey import ValkeyServer

log = logging.getLogger(__name__)

DEFAULT_FLOWER_PORT = 5555


class Deployment:
    """What `headrace up` runs on one machine.

    `control_dsn` and `broker_url` name servers that exist; None starts the embedded one. `environment` is
    laid over this process's environment for every child, which also gets HEADRACE_CONTROL__DSN,
    HEADRACE_BROKER__URL and HEADRACE_DATA_DIR. `prepare` runs once the servers answer (migrations); then
    `children` says what to keep alive.

    Every process dies with the supervisor, also after kill -9, but the kernel knows only direct children: a
    child that forks must call `processes.die_with_parent(signal.SIGKILL, parent_pid)` in its own children,
    as the Celery worker does in its pool processes.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        control_dsn: str | None,
        broker_url: str | None,
        environment: Mapping[str, str],
        children: Callable[[Endpoints], Sequence[ChildSpec]],
        prepare: Callable[[Endpoints], None],
        flower_port: int = DEFAULT_FLOWER_PORT,
    ) -> None:
        self._folder = DataFolder.at(data_dir)
        self._control_dsn = control_dsn
        self._broker_url = broker_url
        self._environment = dict(environment)
        self._children = children
        self._prepare = prepare
        self._flower_port = flower_port
        self._supervisor: Supervisor | None = None
        self._stop_requested = False

    def run_foreground(self, on_healthy: Callable[[Endpoints], None] | None = None) -> None:
        """Start everything, supervise until SIGTERM, Ctrl-C or `request_stop`, stop everything, return.

        Call it in the main thread. Raises AlreadyRunningError, ServiceError, or what `prepare` and `children`
        raise; nothing is left running then. A signal before supervision begins raises KeyboardInterrupt.
        """
        self._folder.prepare()
        with SupervisorLock(self._folder.root) as lock, _interruptible():
            servers: list[Server] = []
            try:
                self._publish(lock, "starting", None)
                endpoints = self._start_servers(servers, lock)
                write_endpoints(self._folder.root, endpoints)
                self._prepare(endpoints)
                self._supervisor = Supervisor(
                    self._folder.root, self._children(endpoints),
                    servers=servers, environment=self._child_environment(endpoints), lock=lock,
                )  # fmt: skip
                if self._stop_requested:
                    self._supervisor.request_stop()
                self._supervisor.run(None if on_healthy is None else lambda: on_healthy(endpoints))
            except BaseException as error:
                self._stop_servers(servers)
                stopped = isinstance(error, KeyboardInterrupt)
                self._publish(lock, "stopped" if stopped else "failed", f"{type(error).__name__}: {error}")
                raise
            finally:
                self._supervisor = None
                for server in servers:
                    server.clean_up()
                remove_endpoints(self._folder.root)

    def request_stop(self) -> None:
        """End `run_foreground`, from any thread; a second call hastens it."""
        self._stop_requested = True
        if self._supervisor is not None:
            self._supervisor.request_stop()

    def _start_servers(self, servers: list[Server], lock: SupervisorLock) -> Endpoints:
        root = self._folder.root
        control_dsn, broker_url = self._control_dsn, self._broker_url
        if control_dsn is None:
            postgres = PostgresServer(root)
            servers.append(postgres)
            postgres.start()
            control_dsn = postgres.dsn()
        if broker_url is None:
            valkey = ValkeyServer(root)
            servers.append(valkey)
            valkey.start()
            broker_url = valkey.url()
        credentials = load_credentials(root)
        return Endpoints(
            control_dsn=control_dsn,
            broker_url=broker_url,
            flower_url=f"http://127.0.0.1:{choose_port(self._flower_port)}",
            flower_user=credentials.flower_user,
            flower_password=credentials.flower_password,
            supervisor_pid=lock.holder.pid,
            supervisor_start=lock.holder.start,
        )

    def _child_environment(self, endpoints: Endpoints) -> dict[str, str]:
        return {
            **os.environ,
            **self._environment,
            "HEADRACE_CONTROL__DSN": endpoints["control_dsn"],
            "HEADRACE_BROKER__URL": endpoints["broker_url"],
            "HEADRACE_DATA_DIR": str(self._folder.root),
        }

    def _publish(self, lock: SupervisorLock, state: str, error: str | None) -> None:
        holder = lock.holder
        status = SupervisorStatus(
            state=state, pid=holder.pid, start=holder.start, since=holder.since, updated_at=utc_now(),
            error=error, children=(),
        )  # fmt: skip
        with suppress(OSError):
            write_status(self._folder.root, status)

    @staticmethod
    def _stop_servers(servers: Sequence[Server]) -> None:
        for server in reversed(servers):
            try:
                server.stop()
            except (OSError, ServiceError) as error:
                log.error("server.stop_failed name=%s error=%s", server.name, error)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that a half-started deployment is undone."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
