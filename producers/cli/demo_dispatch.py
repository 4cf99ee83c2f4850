"""The change events of a demonstration: a table that the instrument changes, PgQ, and the day partitions behind it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from producers.cli.instrument import Written
from workers import database
from workers.dispatch import api
from workers.errors import PermanentFailure
from workers.messages import ReplayEvents
from workers.settings import Settings
from workers.sql_files import queries
from workers.targets import CONTROL

SQL = queries("demo")

NAME = "demo"  # of the consumer and of its queue
SOURCE, TARGET = "demo.device", "demo.device_by_day"
PREMADE = 3  # days
SETTINGS: dict[str, Any] = {
    "consumers": {
        NAME: {
            "queue": NAME,
            "run_ticker": True,
            "mode": "keep_latest",
            "partition": {"kind": "native", "period": "day", "premake": PREMADE},
            "tables": {SOURCE: {"target": TARGET}},
        }
    }
}
DOME, OPEN = "dome", "open"
POISON = "closed for wind"  # longer than the target's column is at first

SETUP_SECONDS = 30.0  # it takes one, unless a Debian package must be fetched
PATIENCE_SECONDS = 30.0  # beyond the last change; two are usual
REPLAY_SECONDS = 3.0  # after which the replay is asked for again
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Failed:
    """The event that failed on purpose: its number in `failed_event`, the reason, and what has become of it."""

    number: int
    error: str
    state: str


@dataclass(frozen=True, slots=True)
class EventsOutcome:
    """How it stands: changes at the source, events applied at the target, partitions, and how the two tables compare.

    `missing` is why there is no PgQ; then nothing else counts. `failed` events still wait. `lag_seconds` is PgQ's;
    `slowest_seconds` is the longest time from a change to its row, of the rows that stand.
    """

    missing: str | None = None
    changes: int = 0
    applied: int = 0
    failed: int = 0
    newest_error: str | None = None
    poison: Failed | None = None
    partitions: tuple[str, ...] = ()
    made_ahead: int = 0
    rows: int = 0
    differing: int = 0
    lag_seconds: float | None = None
    slowest_seconds: float | None = None
    parked: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong, for people; None: everything is as it should be, or there is no PgQ."""
        if self.missing is not None:
            return None
        if self.parked is not None:
            return f"the consumer {NAME} is parked: {self.parked}"
        if self.failed:
            return f"failed events wait ({self.failed}), the newest because: {self.newest_error}"
        if self.poison is None:
            return "the event that was to fail did not"
        if self.poison.state != "replayed":
            return f"the event that was to fail is {self.poison.state} instead of replayed"
        if self.differing or not self.rows:
            return f"{self.differing} of {self.rows} rows differ between {SOURCE} and {TARGET}"
        if not self.made_ahead:
            return f"no partition of {TARGET} was made ahead"
        return None


class Events:
    """The events of one demonstration, in its control database. `begin` starts a thread; all else is used by one."""

    def __init__(self, conf: Settings, on_note: Callable[[str], None]) -> None:
        self._conf = conf  # its control database has an address once it runs
        self._on_note = on_note
        self._thread: threading.Thread | None = None
        self._deadline = 0.0
        self._missing: str | None = None
        self._error: BaseException | None = None
        self._applied_before = self._failed_before = self._changes = 0
        self._written: dict[str, Written] = {}
        self._is_poisoned = False
        self._asked_at: float | None = None

    def begin(self) -> None:
        """Install PgQ and make everything, in a thread of its own: a package may have to be fetched."""
        self._deadline = time.monotonic() + SETUP_SECONDS
        self._thread = threading.Thread(target=self._set_up_or_tell, name="demo events", daemon=True)
        self._thread.start()

    def is_settled(self) -> bool:
        """Whether all is made, or it is known that this demonstration goes without. Raises what went wrong."""
        if self._thread is None:
            return False
        if self._thread.is_alive():
            if time.monotonic() < self._deadline:
                return False
            self._missing = self._missing or f"PgQ could not be had within {SETUP_SECONDS:.0f} s"
        if self._error is not None:
            raise self._error
        return True

    @property
    def missing(self) -> str | None:
        """Why there is no PgQ; None where there is. Known when it is settled."""
        return self._missing

    def set_up(self) -> None:
        """Install PgQ; make queue, tables, triggers and the consumer's place. What an earlier demonstration left stays.

        Where PgQ cannot be had nothing is made, and `missing` says why.
        """
        try:
            api.install_pgq(self._conf, CONTROL)
        except PermanentFailure as error:
            self._missing = self._missing or str(error)
        if self._missing is not None:
            return  # or too late: nobody waits any more
        api.register(self._conf, NAME, create_queue=True)
        api.drop(self._conf, NAME, None)
        with database.connection(self._conf.target(), purpose="demo") as conn:
            SQL["create_devices"].run(conn)
            conn.commit()
        api.apply_triggers(self._conf, NAME, api.trigger_plan(self._conf, NAME, [SOURCE]))
        self._applied_before = api.status(self._conf, NAME)["events"]
        self._failed_before = max((row["id"] for row in self._failed(limit=1)), default=0)

    def tend(self) -> None:
        """Have a worker make the partitions of the next days now; beat does that every quarter of an hour."""
        from workers.app import send

        send(api.due_for_tending(self._conf), slot=f"demo-{time.time_ns()}")

    def play(self, written: Mapping[str, Written]) -> None:
        """Bring the source table up to what the instrument has written; one poor event among it, which is replayed."""
        if self._missing is not None:
            return
        rows = [_row(name, count) for name, count in written.items() if self._written.get(name) != count]
        if not self._written:
            rows.append(_dome(OPEN))
        elif not self._is_poisoned:
            rows.append(_dome(POISON))
            self._is_poisoned = True
        self._written = dict(written)
        if rows:
            with self._connection() as conn:
                SQL["write_devices"].run(conn, {"rows": json.dumps(rows)})
            self._changes += len(rows)
        self._mend()

    def at_end(self, pause: Callable[[float], None]) -> EventsOutcome:
        """How it stands once source and target agree, or it is too late. `pause` waits, or raises to end it all."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.play(self._written)
            found = self.outcome()
            if found.problem is None or time.monotonic() > deadline:
                return found
            pause(POLL_SECONDS)

    def outcome(self) -> EventsOutcome:
        """How it stands now."""
        if self._missing is not None:
            return EventsOutcome(missing=self._missing)
        with self._connection() as conn:
            # The tables first: what is counted later is at least as new.
            rows, differing, slowest = SQL["compare_devices"].row(conn) or (0, 0, None)
        known = api.status(self._conf, NAME)
        listed = [row for rows in api.partition_listing(self._conf, NAME).values() for row in rows if row.is_attached]
        now = datetime.now(UTC)
        return EventsOutcome(
            changes=self._changes,
            applied=known["events"] - self._applied_before,
            failed=known["failed_events"],
            newest_error=known["newest_error"],
            poison=self._poison(),
            partitions=tuple(str(row.table) for row in listed),
            made_ahead=sum(row.covers_from is not None and row.covers_from > now for row in listed),
            rows=rows,
            differing=differing,
            lag_seconds=known["lag_seconds"],
            slowest_seconds=slowest.total_seconds() if slowest is not None else None,
            parked=known["problem"] if known["state"] == "parked" else None,
        )

    def _set_up_or_tell(self) -> None:
        try:
            self.set_up()
            if self._missing is None:
                self.tend()
        except BaseException as error:
            self._error = error
        finally:
            database.close_all()

    def _mend(self) -> None:
        """Once the event has failed: widen the column, and have the event replayed."""
        from workers.app import send

        found = self._poison()
        if found is None or found.state != "waiting":
            return
        if self._asked_at is None:
            self._on_note(f"an event failed, on purpose: {found.error}; the others went on, it waits in failed_event")
            with self._connection() as conn:
                SQL["widen_state"].run(conn)
            self._on_note(f"{TARGET}.state is wide enough now, and the event is replayed")
        if self._asked_at is None or time.monotonic() > self._asked_at + REPLAY_SECONDS:
            send([ReplayEvents(consumer=NAME, events=(found.number,))], slot=f"demo-{time.time_ns()}")
            self._asked_at = time.monotonic()

    def _poison(self) -> Failed | None:
        for row in self._failed(limit=20):
            if row["id"] > self._failed_before and row["key"] == f'["{DOME}"]':
                return Failed(row["id"], row["error"], row["state"])
        return None

    def _failed(self, *, limit: int) -> list[dict[str, Any]]:
        return api.failed(self._conf, NAME, every=True, limit=limit)

    def _connection(self) -> AbstractContextManager[database.Connection]:
        return database.connection(self._conf.target(), purpose="demo", autocommit=True)


def _row(device: str, count: Written) -> dict[str, Any]:
    state = "writing" if count.files else "idle"
    return {"device": device, "state": state, "files": count.files, "records": count.records, "bytes": count.bytes}


def _dome(state: str) -> dict[str, Any]:
    return {"device": DOME, "state": state, "files": 0, "records": 0, "bytes": 0}
