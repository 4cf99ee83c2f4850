"""What happens in a demonstration: wait until all is healthy, have each room do its part, wait for its end, tell."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from producers.cli.demo_dispatch import Events, EventsOutcome
from producers.cli.demo_jobs import JobOutcome, Jobs
from producers.cli.demo_products import Products, ProductsOutcome
from producers.cli.demo_repack import Rewrite, RewriteOutcome
from producers.cli.instrument import DEVICES, Instrument, Written
from workers import database, queues
from workers.errors import HeadraceError
from workers.services.child_logs import last_lines, log_size
from workers.services.errors import ServiceError
from workers.services.postgres import PostgresServer
from workers.services.status import SupervisorStatus, read_status
from workers.services.valkey import ValkeyServer
from workers.settings import Settings
from workers.sql_files import queries
from workers.telemetry import api

SQL = queries("demo")

START_SECONDS = 90.0
ARRIVAL_SECONDS = 60.0
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 0.5
RATE_SECONDS = 5.0  # the window of the rate that is shown
HOPELESS_RESTARTS = 3  # what crashed this often while starting will not come up by waiting
FORMS = tuple(dict.fromkeys(device.form for device in DEVICES))
_FORM_OF = {device.name: device.form for device in DEVICES}


class DemoError(HeadraceError):
    """The demonstration failed; the message says where to look."""


class _Ended(Exception):
    """Somebody pressed Ctrl-C: nothing more is to be told."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the deployment, and how many seconds after the beginning it was ready."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: per form of file what was written and what of it was read; the rate in records/s, the lag in s."""

    seconds: float
    written: dict[str, Written]
    read: dict[str, Written]
    rate: float
    lag: dict[str, Any]
    waiting: int
    runs: int  # of jobs
    events: EventsOutcome
    outputs: int  # of the mission, built so far

    @property
    def all_written(self) -> Written:
        return sum(self.written.values(), Written())

    @property
    def all_read(self) -> Written:
        return sum(self.read.values(), Written())


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end: the last progress, the archive's rows, the seconds from first record to last row, and the rest."""

    progress: Progress
    rows: int
    seconds: float
    jobs: tuple[JobOutcome, ...]
    events: EventsOutcome
    rewrite: RewriteOutcome
    products: ProductsOutcome

    @property
    def arrived(self) -> bool:
        """Every record arrived exactly once, and nothing was refused."""
        return self.rows == self.progress.all_written.records and not self.progress.lag["dead"]

    @property
    def good(self) -> bool:
        """Every record, change event and product arrived, and every job and the rewrite did what they should."""
        others = (self.events.problem, self.rewrite.problem, self.products.problem)
        problems = [*(job.problem for job in self.jobs), *others]
        return self.arrived and not any(problems)


class Play:
    """The demonstration beside a deployment that another thread runs; `run` belongs into a thread of its own."""

    def __init__(
        self, conf: Settings, folder: Path, *, seconds: float, on_step: Callable[[Step], None],
        on_note: Callable[[str], None], on_progress: Callable[[Progress], None],
        on_outcome: Callable[[Outcome], None], keep: bool,
    ) -> None:  # fmt: skip
        self.stop = threading.Event()
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._conf, self._folder, self._seconds, self._keep = conf, folder, seconds, keep
        self._on_step, self._on_note, self._on_progress = on_step, on_note, on_progress
        self._on_outcome = on_outcome
        self._began = time.monotonic()
        self._watchers = {
            name: (log, log_size(log))
            for name, log in ((name, folder / "logs" / f"{name}.log") for name in ("watcher", "incoming"))
        }
        self._jobs = Jobs(conf)
        self._events = Events(conf, on_note)
        self._rewrite = Rewrite(conf, on_note)
        self._products = Products(conf, folder, on_note)
        self._instrument = Instrument(conf.telemetry.data_dirs[0])
        self._instrument_error: BaseException | None = None
        self._history: list[tuple[float, int]] = []

    def run(self) -> bool:
        """Everything in order; what goes wrong is kept in `error`. False when it ends because the deployment stops."""
        try:
            self._wait_for_all()
            self._jobs.start()
            self._rewrite.begin()
            self.outcome = self._observe()
            self._on_outcome(self.outcome)
            while self._keep:
                self._pause(PROGRESS_SECONDS)
        except _Ended:
            return False
        except BaseException as error:
            if self._stopping():
                return False  # a server that goes away because everything is being stopped is no error
            self.error = error
        finally:
            self._rewrite.stop()
        return True

    def _wait_for_all(self) -> None:
        pending = dict(self._signs())
        deadline = time.monotonic() + START_SECONDS
        while pending:
            status = self._status()
            for name in [name for name, ready in pending.items() if ready(status)]:
                del pending[name]
                if name == "schema":
                    self._events.begin()
                    self._products.set_up()  # before its watcher starts, which looks for new missions now and then
                if name == "PgQ" and self._events.missing is not None:
                    self._on_note(f"without change events: {self._events.missing}")
                    continue
                self._on_step(Step(name, time.monotonic() - self._began))
            hopeless = [one for one in status.children if one.restarts >= HOPELESS_RESTARTS] if status else []
            if hopeless:
                log = hopeless[0].log_path
                raise DemoError(f"{hopeless[0].name} keeps ending. Its log {log} ends:\n{last_lines(Path(log))}")
            if time.monotonic() > deadline:
                raise DemoError(
                    f"not ready within {START_SECONDS:.0f} s: {', '.join(pending)}; look at {self._folder / 'logs'}"
                )
            self._pause(POLL_SECONDS)

    def _signs(self) -> Iterator[tuple[str, Callable[[SupervisorStatus | None], bool]]]:
        """By what each part is known to be ready."""
        postgres, valkey = PostgresServer(self._folder), ValkeyServer(self._folder)
        yield "PostgreSQL", lambda _status: _answers(postgres.running)
        yield "Valkey", lambda _status: _answers(valkey.running)
        yield "schema", lambda status: status is not None and bool(status.children)
        yield "PgQ", lambda _status: self._events.is_settled()
        for name, child in (("worker", "worker"), ("jobs worker", "jobs"), ("beat", "beat"), ("Flower", "flower")):
            yield name, partial(_runs, child=child)
        for name, (log, mark) in self._watchers.items():
            yield name, partial(_watches, log=log, mark=mark)

    def _observe(self) -> Outcome:
        """Let the instrument write for its time, then wait until all of it has arrived and all else is over."""
        ends = threading.Event()
        thread = threading.Thread(target=self._write, args=(ends,), name="instrument", daemon=True)
        began = time.monotonic()
        thread.start()
        try:
            while time.monotonic() - began < self._seconds and thread.is_alive():
                self._on_progress(self._progress(began))
                self._pause(PROGRESS_SECONDS)
        finally:
            ends.set()
            thread.join()
        if self._instrument_error is not None:
            raise DemoError(f"the instrument cannot write: {self._instrument_error}") from self._instrument_error
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            progress = self._progress(began)
            self._on_progress(progress)
            complete = progress.all_read.records >= progress.all_written.records
            if complete or time.monotonic() > deadline:
                rows = sum(row["records"] for row in self._ask("rows_arrived"))
                seconds = time.monotonic() - began
                products = self._products.at_end(self._pause)  # first: the others go on by themselves meanwhile
                jobs, events = self._jobs.at_end(self._pause), self._events.at_end(self._pause)
                return Outcome(progress, rows, seconds, jobs, events, self._rewrite.at_end(self._pause), products)
            self._pause(POLL_SECONDS)

    def _write(self, ends: threading.Event) -> None:
        try:
            self._instrument.run(ends)
        except BaseException as error:
            self._instrument_error = error

    def _progress(self, began: float) -> Progress:
        from workers.app import queue_depths

        # The archive first: what it has was written before that.
        read = dict.fromkeys(FORMS, Written())
        for row in self._ask("files_read"):
            read[_FORM_OF[row["device"]]] += Written(row["files"], row["records"])
        written = dict.fromkeys(FORMS, Written())
        by_device = self._instrument.written()
        for device, count in by_device.items():
            written[_FORM_OF[device]] += count
        self._events.play(by_device)
        self._rewrite.play()
        self._products.play()
        lag = api.lag(self._conf, self._since)
        waiting = sum(queue_depths(queues.names_for(self._conf)).values())
        now, total = time.monotonic(), sum(read.values(), Written()).records
        self._history = [(at, n) for at, n in self._history if now - at < RATE_SECONDS] + [(now, total)]
        first_at, first_total = self._history[0]
        rate = (total - first_total) / (now - first_at) if now > first_at else 0.0
        runs = sum(job.runs for job in self._jobs.outcomes(self._since))
        events, outputs = self._events.outcome(), self._products.built()
        return Progress(now - began, written, read, rate, lag, waiting, runs, events, outputs)

    @property
    def _since(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._instrument.began_ns // 1000)

    def _ask(self, name: str) -> list[dict[str, Any]]:
        target = self._conf.target(self._conf.telemetry.database)
        with database.connection(target, purpose="demo", autocommit=True) as conn:
            return SQL[name].records(conn, {"since": self._since})

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds) or self._stopping():
            raise _Ended

    def _stopping(self) -> bool:
        status = self._status()
        return self.stop.is_set() or (status is not None and status.state in ("stopping", "stopped", "failed"))

    def _status(self) -> SupervisorStatus | None:
        """The deployment's own word, not that of an earlier one in the same folder."""
        status = read_status(self._folder)
        return status if status is not None and status.pid == os.getpid() else None


def _answers(running: Callable[[], bool]) -> bool:
    with suppress(ServiceError):
        return running()
    return False


def _watches(_status: SupervisorStatus | None, *, log: Path, mark: int) -> bool:
    return "watch.started" in last_lines(log, 1000, since_bytes=mark)


def _runs(status: SupervisorStatus | None, *, child: str) -> bool:
    return status is not None and any(one.name == child and one.state == "running" for one in status.children)
