"""What the benchmarks share: a private PostgreSQL, CPU seconds of it and of this process, and tables of ratios."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time, sleep

import psutil

from workers.services.postgres import PostgresServer


def family_cpu(pid: int) -> float:
    """CPU seconds so far of a process, of all below it, and of those that it has reaped."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total: float = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def private_postgres() -> Iterator[PostgresServer]:
    """An embedded server in a temporary folder, with its default configuration."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Meter:
    """CPU seconds of this process plus a whole PostgreSQL cluster, and wall seconds, over a block."""

    def __init__(self, server: PostgresServer | None) -> None:
        self.pid = server.pid if server else None

    def __enter__(self) -> Meter:
        self._server0, self._own0, self._wall0 = self._server_cpu(), process_time(), perf_counter()
        return self

    def __exit__(self, *_details: object) -> None:
        self.wall = perf_counter() - self._wall0
        self.own = process_time() - self._own0
        sleep(0.3)  # a backend that has just ended counts once its postmaster has reaped it
        self.server = self._server_cpu() - self._server0

    @property
    def cpu(self) -> float:
        """CPU seconds of client and server together."""
        return self.own + self.server

    def _server_cpu(self) -> float:
        """CPU of the postmaster, its children, and those that it has reaped."""
        if self.pid is None:
            return 0.0
        return family_cpu(self.pid)


def peak_rss_bytes() -> int:
    """The largest resident set that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(title: str, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print aligned columns under a title that names the machine's load."""
    cells = [[str(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"{title} (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores)")
    for row in cells:
        print(
            "  "
            + "  ".join(
                value.rjust(width) if index else value.ljust(width)
                for index, (value, width) in enumerate(zip(row, widths, strict=True))
            )
        )
