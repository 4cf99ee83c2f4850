"""The child processes that a supervisor keeps alive, as their owner describes them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.services.child_logs import bound_log
from workers.services.processes import spawn
from workers.services.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One process to start and keep alive.

    `env` is laid over the supervisor's environment (secrets go there, never into `argv`). `death_signal` is
    what the kernel sends when the supervisor dies; `stop_signal` what a stop sends, then after
    `stop_timeout_seconds` kill -9 for its whole group; `hasten_signal` what a second Ctrl-C sends.
    `start_after` names children that must be healthy first and that are stopped later. `health` returns
    True when the child does its work; it runs in a thread of its own, may block, and counts as False when
    it raises. With `restart=False` an exit is final (0 is success).
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    death_signal: signal.Signals = signal.SIGTERM
    stop_signal: signal.Signals = signal.SIGTERM
    hasten_signal: signal.Signals = signal.SIGKILL
    stop_timeout_seconds: float = 30.0
    start_after: Sequence[str] = ()
    health: Callable[[], bool] | None = None
    restart: bool = True


class Child(Service):
    """A running or waiting `ChildSpec`."""

    rechecks = True

    def __init__(self, spec: ChildSpec, *, environment: Mapping[str, str], servers: Sequence[str]) -> None:
        super().__init__()
        self.spec = spec
        self.name = spec.name
        self.log_path = spec.log_path
        self.restarts = spec.restart
        self.requires = (*servers, *spec.start_after)
        self.stop_steps = (
            (spec.stop_signal, spec.stop_timeout_seconds),
            (spec.hasten_signal, 5.0),
            (signal.SIGKILL, 10.0),
        )
        self.healthy = spec.health is None
        self._environment = {**environment, **spec.env}

    def launch(self) -> None:
        """Start the process. Raises OSError, for instance when there is no such program."""
        bound_log(self.log_path)
        self.healthy = self.spec.health is None
        self._now_runs(
            spawn(
                self.spec.argv, env=self._environment, cwd=self.spec.cwd, log_path=self.log_path,
                death_signal=self.spec.death_signal,
            )
        )  # fmt: skip

    def ready(self) -> bool:
        """Tell what the last health check said; without a check, a child that runs is ready."""
        return self.healthy
