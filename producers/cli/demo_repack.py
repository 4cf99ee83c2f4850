"""The rewrite of a demonstration: a bloated table that a plan has rewritten while it is changed, and a ledger of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from workers import database
from workers.messages import ChooseTables
from workers.repack import api
from workers.settings import Settings
from workers.sql_files import queries
from workers.targets import CONTROL

SQL = queries("demo")

NAME = "demo"  # of the plan
SCHEMA, TABLE = "demo", "readings"
QUALIFIED = f"{SCHEMA}.{TABLE}"
ROWS = 60_000
SETTINGS: dict[str, Any] = {
    "plans": {
        NAME: {
            "tables": [QUALIFIED],
            "engine": "shadow",
            "thresholds": {"min_bloat_percent": 40, "min_bloat_bytes": 5_000_000},
        }
    },
    "limits": {"lock_pause_seconds": 1},
}

PACE_SECONDS = 0.1  # between two changes, of fifty rows each
PATIENCE_SECONDS = 30.0  # beyond the last record; in twenty seconds of play it is done long before
ASK_SECONDS = 3.0  # after which the choice is asked for again
POLL_SECONDS = 0.1
JOIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RewriteOutcome:
    """How it stands: the request's state and figures, the writer's changes, and how table and ledger compare.

    `state` None: the plan did not choose the table. `changes` counts rows; `slowest_seconds` is the longest that one
    transaction of the writer took, the wait for the swap included. `attached` is what the table had, `lost` what of it
    is gone or another.
    """

    state: str | None = None
    step: str | None = None
    failure: str | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    hold_seconds: float = 0.0
    lock_attempts: int = 0
    replayed: int = 0
    compared: int = 0
    changes: int = 0
    slowest_seconds: float = 0.0
    writer_error: str | None = None
    rows: int = 0
    differing: int = 0
    attached: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """What is wrong, for people; None: the table is smaller, and nothing of it was lost."""
        if self.writer_error is not None:
            return f"{QUALIFIED} could not be changed: {self.writer_error}"
        if self.state is None:
            return f"the plan {NAME} did not choose {QUALIFIED}"
        if self.state == "active":
            return f"{QUALIFIED} is still being rewritten, at {self.step}: {self.failure or 'nothing failed'}"
        if self.state != "done" or self.failure is not None:
            return f"{QUALIFIED} was not rewritten as it should be ({self.state}): {self.failure}"
        if self.bytes_after >= self.bytes_before:
            return f"{QUALIFIED} did not become smaller: {self.bytes_before} bytes before, {self.bytes_after} after"
        if self.differing or not self.rows:
            return f"{QUALIFIED} and the ledger of its changes differ in {self.differing} of {self.rows} rows"
        if self.lost:
            return f"{QUALIFIED} lost what it had: {', '.join(self.lost)}"
        return None


class Rewrite:
    """The rewrite of one demonstration, in its control database. `begin` starts a thread; all else is used by one."""

    def __init__(self, conf: Settings, on_note: Callable[[str], None]) -> None:
        self._conf = conf  # its control database has an address once it runs
        self._on_note = on_note
        self._thread: threading.Thread | None = None
        self._is_made, self._is_over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._changes, self._slowest = 0, 0.0
        self._newest_before = 0
        self._attached: list[tuple[str, str]] = []  # (what, its definition)
        self._asked_at: float | None = None
        self._request: dict[str, Any] | None = None

    def begin(self) -> None:
        """Make the bloated table, and change it until `stop`, in a thread of its own."""
        self._thread = threading.Thread(target=self._make_and_change, name="demo readings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more changes; returns at once."""
        self._is_over.set()

    def set_up(self) -> None:
        """Make the table, bloated, with what is attached to it; what an earlier demonstration left goes."""
        api.set_up(self._conf, CONTROL, dry_run=False)
        self._end_earlier()
        with self._connection() as conn:
            SQL["forget_failed_rewrites"].run(conn, {"plan": NAME})
        with database.connection(self._conf.target(), purpose="demo") as conn:
            SQL["create_readings"].run(conn)
            SQL["bloat_readings"].run(conn, {"rows": ROWS})
            conn.commit()  # all at once: no choice sees a table that is not bloated yet
        self._newest_before = max((row["id"] for row in self._requests()), default=0)
        self._attached = self._look_attached()
        self._is_made.set()

    def change(self) -> None:
        """One transaction of the writer: rows of the table updated, added and deleted, and noted in the ledger."""
        began = time.monotonic()
        with self._connection() as conn:
            self._changes += SQL["change_readings"].value(conn)
        self._slowest = max(self._slowest, time.monotonic() - began)

    def play(self) -> None:
        """Have workers choose the table as soon as there is one to choose, and tell how far that is.

        Raises what went wrong while the table was made.
        """
        if not self._is_made.is_set():
            if self._error is not None:
                raise self._error
            return
        found = self._request
        self._look()
        if self._request is None:
            self._ask()
            return
        if found is None:
            self._on_note(
                f"{QUALIFIED} is bloated, on purpose: about {api.size(self._request['estimated_gain_bytes'] or 0)} of "
                f"{api.size(self._request['bytes_before'])}; the plan {NAME} has it rewritten while rows of it change"
            )
        if self._request["state"] == "done" and (found is None or found["state"] != "done"):
            self._on_note(f"{QUALIFIED} is rewritten, and goes on being changed")

    def at_end(self, pause: Callable[[float], None]) -> RewriteOutcome:
        """How it stands once the rewrite is over, or it is too late. `pause` waits, or raises to end it all."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.play()
            is_over = self._request is not None and self._request["state"] != "active"
            if is_over or self._error is not None or time.monotonic() > deadline:
                break
            pause(POLL_SECONDS)
        self.stop()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        return self.outcome()

    def outcome(self) -> RewriteOutcome:
        """How it stands now."""
        if not self._is_made.is_set():
            return RewriteOutcome(writer_error="it could not be made in time")
        self._look()
        with self._connection() as conn:
            rows, differing = SQL["compare_readings"].row(conn) or (0, 0)
        now = self._look_attached()
        request = self._request or {}
        return RewriteOutcome(
            state=request.get("state"),
            step=request.get("step"),
            failure=request.get("problem") or request.get("reason"),
            bytes_before=request.get("bytes_before") or 0,
            bytes_after=request.get("bytes_after") or 0,
            hold_seconds=request.get("hold_seconds") or 0.0,
            lock_attempts=request.get("lock_attempts") or 0,
            replayed=request.get("keys_replayed") or 0,
            compared=request.get("rows_verified") or 0,
            changes=self._changes,
            slowest_seconds=self._slowest,
            writer_error=database.first_line(self._error) if self._error is not None else None,
            rows=rows,
            differing=differing,
            attached=tuple(what for what, _definition in self._attached),
            lost=tuple(one[0] for one in self._attached if one not in now),
        )

    def _make_and_change(self) -> None:
        try:
            self.set_up()
            while not self._is_over.wait(PACE_SECONDS):
                self.change()
        except BaseException as error:
            self._error = error
        finally:
            database.close_all()

    def _end_earlier(self) -> None:
        """Give up what an earlier demonstration in this folder left half-way, and wait until that is taken away."""
        for one in api.active(self._conf, CONTROL, []):
            if one.plan == NAME and api.change(self._conf, CONTROL, one, "abort", "a new demonstration"):
                message = api.message(CONTROL, one.id, one.schema, one.table)
                api.finish(self._conf, [message], timeout=timedelta(seconds=PATIENCE_SECONDS))

    def _ask(self) -> None:
        """Have a worker look for bloated tables now; beat does that once an hour."""
        from workers.app import send

        if self._asked_at is None or time.monotonic() > self._asked_at + ASK_SECONDS:
            send([ChooseTables(database=CONTROL, plan=NAME)], slot=f"demo-{time.time_ns()}")
            self._asked_at = time.monotonic()

    def _look(self) -> None:
        """Read this demonstration's request, until it is over: the first, a later one would be another story."""
        if self._request is None or self._request["state"] == "active":
            ours = [row for row in self._requests() if row["id"] > self._newest_before]
            self._request = min(ours, key=lambda row: int(row["id"]), default=None)

    def _requests(self) -> list[dict[str, Any]]:
        found = api.status_of(self._conf, CONTROL)["requests"]
        return [row for row in found if (row["schema"], row["table"]) == (SCHEMA, TABLE)]

    def _look_attached(self) -> list[tuple[str, str]]:
        with self._connection() as conn:
            return [(row[0], row[1]) for row in SQL["attached"].rows(conn, {"table": QUALIFIED})]

    def _connection(self) -> AbstractContextManager[database.Connection]:
        return database.connection(self._conf.target(), purpose="demo", autocommit=True)
