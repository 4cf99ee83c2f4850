"""Ingest: bring what is new in one telemetry file into the database, exactly once.

Failure analysis. The file's reader holds a session advisory lock on the connection that commits the rows,
so a second reader never overlaps and a dead one never keeps the lock. Each batch commits its rows, its dead
letters and the checkpoint together: killed before the commit, the next reader starts at the old position
and finds nothing of the batch; killed after it, it starts behind it. Rows that are there already (a file
read anew, the same file on two hosts) fall to the primary key. Killed between the last commit and the end
of the run row, only the log for people is behind: the reaper closes it. A message that finds the lock taken
is dropped: the reader looks at the file once more after it let go of the lock, so growth is never missed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from workers import database, paths, runs
from workers.database import Connection
from workers.errors import Cancelled, NothingToDo, PermanentFailure
from workers.messages import IngestFile, Message
from workers.settings import Settings
from workers.telemetry import store
from workers.telemetry.checkpoint import Checkpoint, Print, Sight, judge, take_print
from workers.telemetry.event_schemas import load_schemas
from workers.telemetry.names import parse_name
from workers.telemetry.readers import SUFFIXES, Batch, Limits, batches
from workers.telemetry.records import DeadLetter, dead_letter
from workers.telemetry.streams import Position

UNREADABLE_RETRY = timedelta(minutes=5)
GROWTH_SECONDS = 2.0  # a file that is being written is read again after this, not at every line
LIVE_RUN = timedelta(minutes=10)  # the portions of a live file within this time are one run


def ingest_file(message: IngestFile, settings: Settings) -> list[Message]:
    """Read a file from its checkpoint to its present end; a follow-up message when more is to be done.

    Raises PermanentFailure for what is no readable telemetry file, NothingToDo when it is unchanged,
    gone, or being read by another worker.
    """
    if message.host != settings.host:
        raise PermanentFailure(f"{message.path} lies on host {message.host!r}, and this is {settings.host!r}")
    raw_path = paths.to_bytes(message.path)
    if not message.path.endswith(SUFFIXES):
        raise PermanentFailure(f"{message.path}: not a telemetry file; known endings are {', '.join(SUFFIXES)}")
    work = settings.target(settings.telemetry.database)
    with database.connection(work, purpose="telemetry ingest") as conn:
        store.ensure_schema(conn, work.dsn)
        if not store.lock_file(conn, message.host, message.path):
            raise NothingToDo(f"{message.path} is being read by another worker")
        try:
            with _opened(conn, message, raw_path) as (file, sight):
                reader = _Reader(conn, message, settings, file, sight)
                done = reader.read()
        except OSError as error:
            conn.rollback()
            raise _unreadable(conn, message, f"cannot be read: {error.strerror}", UNREADABLE_RETRY) from error
        finally:
            store.unlock_file(conn, message.host, message.path)
    if not done:
        return [message.model_copy(update={"force": False})]
    if _grew(raw_path, sight) and _first_to_follow(message.path):
        return [message.model_copy(update={"run": None, "force": False, "wait_seconds": GROWTH_SECONDS})]
    if reader.problems:
        # The run row has it already; Celery's own pages should not call it a success.
        raise PermanentFailure(reader.problems[0])
    return []


_followed: dict[str, float] = {}  # until when a message of this process is on its way to a growing file


def _first_to_follow(path: str) -> bool:
    """Whether no look at this growing file is on its way: else each message would start a chain of its own."""
    now = time.monotonic()
    for old in [name for name, until in _followed.items() if until <= now]:
        del _followed[old]
    if path in _followed:
        return False
    _followed[path] = now + GROWTH_SECONDS
    return True


class _Reader:
    """One reader of one file, while it holds the file's lock."""

    def __init__(self, conn: Connection, message: IngestFile, settings: Settings, file: BinaryIO, sight: Sight) -> None:
        self.conn, self.message, self.settings, self.file, self.sight = conn, message, settings, file, sight
        self.host, self.path = message.host, message.path
        self.name = parse_name(os.path.basename(message.path))
        self.fresh = True
        self.dead = 0
        self.accepted = 0  # dead letters that a person has looked at already
        self.records = 0
        self.problems: list[str] = []

    def read(self) -> bool:
        """Read on; whether the file's end was reached within the time slice."""
        known = store.checkpoint(self.conn, self.host, self.path)
        if known is None or known.prints is None:
            known = self._under_another_name() or known
        verdict = judge(known, self.sight, lambda shape, end: take_print(self.file, shape, end, self.sight.size))
        if verdict == "unchanged" and known is not None and known.state == "cancelled" and self.message.run is not None:
            verdict = "grown"  # a person asks again for what a person had cancelled
        if verdict == "unchanged" and not self.message.force:
            raise NothingToDo(f"{self.path} is unchanged since it was read")
        if self.message.force and known is not None:
            verdict = "rewritten"
        self.conn.commit()
        control, work = self.settings.target(), self.settings.target(self.settings.telemetry.database)
        with runs.running(
            self.message, control=control, work=work, conn=self.conn, host=self.host, same_run=LIVE_RUN
        ) as run:
            position = Position()
            if known is not None and verdict == "grown":
                position, self.records = known.position, known.records
                self.accepted = known.accepted_letters
                self.dead = store.keep_letters(self.conn, self.host, self.path, before=position.content)
            elif verdict == "rewritten":
                store.exhume(self.conn, self.host, self.path)
                store.record_event(self.conn, self.host, self.path, "rewritten", {"size": self.sight.size})
                self.fresh = False
            else:
                store.exhume(self.conn, self.host, self.path)
                self._compare_with_twins()
            self.problems = run.problems
            try:
                done = self._batches(run, position)
                run.goes_on = not done and self.message.run is not None  # a person waits for this very run
                if done and not run.problems and run.counters.get("dead_letters"):
                    run.problems.append(f"{self.path}: {run.counters['dead_letters']:.0f} dead letters")
                return done
            except (Cancelled, store.StatementCancelled) as reason:
                self._mark_cancelled()
                raise Cancelled(f"cancelled: {database.first_line(reason)}") from reason

    def _batches(self, run: runs.Run, position: Position) -> bool:
        telemetry = self.settings.telemetry
        limits = Limits(telemetry.batch_bytes, telemetry.max_record_bytes)
        try:
            binary = self.path.endswith((".bintel", ".binlog"))
            schemas = load_schemas(telemetry.event_schemas) if binary else {}
        except (OSError, ValueError) as error:
            raise PermanentFailure(f"telemetry.event_schemas: {error}") from error
        until = time.monotonic() + telemetry.slice_seconds
        began = position
        source = batches(self.file, self.path, self.name.device, position, limits, schemas)
        batch = next(source)
        while True:
            # One batch ahead, so that the last one is known as such and commits with the file's end.
            following = next(source, None)
            run.check()
            self._write(run, batch)
            run.count(bytes_read=batch.after.content - began.content)
            began = batch.after
            if following is None or time.monotonic() > until:
                self._save(run, batch, at_end=following is None)
                self.conn.commit()
                return following is None
            self._save(run, batch, at_end=False)
            self.conn.commit()
            batch = following

    def _write(self, run: runs.Run, batch: Batch) -> None:
        """The batch's rows and dead letters into the transaction at hand."""
        letters = list(batch.dead)
        if batch.quick is not None:
            lines, count, nulled = batch.quick
            try:
                new = self._insert(lines, count)
                self._count(run, count, new, nulled, letters)
                return
            except store.RefusedRows:
                pass  # some line is not what it seems; the careful way finds out which
        parsed = batch.careful()
        letters += parsed.dead
        taken, new = self._insert_bisecting(parsed.lines, parsed.spans, letters)
        self._count(run, taken, new, parsed.nulled, letters)

    def _count(self, run: runs.Run, count: int, new: int, nulled: int, letters: list[DeadLetter]) -> None:
        store.bury(self.conn, self.host, self.path, letters)
        self.records += count
        self.dead += len(letters)
        run.count(records=count, rows=new, nulled=nulled, dead_letters=len(letters))
        if letters:
            first = letters[0]
            run.problems.append(f"{self.path}: byte {first.start}: {first.reason}")

    def _insert(self, lines: bytes, count: int) -> int:
        if count == 0:
            return 0
        if self.fresh:
            try:
                return store.insert(self.conn, lines, count, fresh=True)
            except store.DuplicateRow:
                self.fresh = False
        return store.insert(self.conn, lines, count, fresh=False)

    def _insert_bisecting(
        self, lines: list[bytes], spans: list[tuple[int, int]], letters: list[DeadLetter]
    ) -> tuple[int, int]:
        """(lines taken, rows new); a line that PostgreSQL refuses becomes a dead letter with its reason."""
        try:
            return len(lines), self._insert(b"\n".join(lines) + b"\n", len(lines))
        except store.RefusedRows as error:
            if len(lines) == 1:
                reason = f"PostgreSQL refuses it: {database.first_line(error)}"
                letters.append(dead_letter(*spans[0], reason, lines[0]))
                return 0, 0
        middle = len(lines) // 2
        first = self._insert_bisecting(lines[:middle], spans[:middle], letters)
        second = self._insert_bisecting(lines[middle:], spans[middle:], letters)
        return first[0] + second[0], first[1] + second[1]

    def _save(self, run: runs.Run, batch: Batch, *, at_end: bool) -> None:
        state = "pending"
        if at_end:
            state = "damaged" if self.dead > self.accepted else "open" if batch.open else "done"
            run.count(open=int(batch.open))
        point = Checkpoint(
            device=self.name.device,
            stamp=self.name.stamp,
            state=state,
            volume=self.sight.volume,
            inode=self.sight.inode,
            size=self.sight.size,
            mtime_ns=self.sight.mtime_ns,
            position=batch.after,
            prints=take_print(self.file, None, batch.after.raw, os.fstat(self.file.fileno()).st_size),
            records=self.records,
            dead_letters=self.dead,
            accepted_letters=self.accepted,
            error=run.problems[0] if run.problems else None,
        )
        store.save_checkpoint(self.conn, self.host, self.path, point)
        if at_end and _grew(paths.to_bytes(self.path), self.sight):
            # The row is locked now: an inventory that saw the file grow had its mark overwritten, one that
            # comes later makes its own. So the mark stays, whatever becomes of the follow-up message.
            store.save_checkpoint(self.conn, self.host, self.path, replace(point, state="pending"))
        if at_end:
            raw_path = paths.to_bytes(self.path)
            escaped = raw_path if raw_path != self.path.encode() else None
            created = self.name.stamp or datetime.fromtimestamp(os.fstat(self.file.fileno()).st_ctime, UTC)
            store.finish_file(self.conn, self.host, self.path, escaped, point, created)
            run.counters["lag_seconds"] = round(max(0.0, time.time() - self.sight.mtime_ns / 1e9), 3)

    def _under_another_name(self) -> Checkpoint | None:
        """The checkpoint of this very file under its former name, or under another link to it."""
        for old_path, prints, raw in store.same_inode(self.conn, self.host, self.path, self.sight):
            if take_print(self.file, prints, raw, self.sight.size) != prints:
                continue
            if os.path.lexists(paths.to_bytes(old_path)):
                store.link(self.conn, self.host, old_path, self.path)
            else:
                store.move(self.conn, self.host, old_path, self.path)
            return store.checkpoint(self.conn, self.host, self.path)
        return None

    def _compare_with_twins(self) -> None:
        """The same name on another host should hold the same bytes; if not, both are kept and a person is told."""
        for host, path, head_bytes, head in store.twins(self.conn, self.host, self.name.device, self.name.stamp):
            shape = Print(head_bytes, head, 0, b"")
            now = take_print(self.file, shape, 0, self.sight.size)
            if now is None or now.head != head:
                store.record_event(self.conn, self.host, self.path, "conflict", {"host": host, "path": path})

    def _mark_cancelled(self) -> None:
        """Nobody reads the file again until it changes or is asked for."""
        self.conn.rollback()
        known = store.checkpoint(self.conn, self.host, self.path) or Checkpoint(
            device=self.name.device,
            stamp=self.name.stamp,
            state="cancelled",
            volume=self.sight.volume,
            inode=self.sight.inode,
            size=None,
            mtime_ns=None,
            position=Position(),
            prints=None,
            records=0,
            dead_letters=0,
            accepted_letters=0,
            error=None,
        )
        point = replace(known, state="cancelled", size=self.sight.size, mtime_ns=self.sight.mtime_ns)
        store.save_checkpoint(self.conn, self.host, self.path, point)
        self.conn.commit()


@contextmanager
def _opened(conn: Connection, message: IngestFile, raw_path: bytes) -> Iterator[tuple[BinaryIO, Sight]]:
    """The file, if it is a regular one that can be read; a FIFO is neither opened for long nor waited for."""
    try:
        descriptor = os.open(raw_path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not os.path.islink(raw_path):
            store.forget_pending(conn, message.host, message.path)
            if message.run is None:
                raise NothingToDo(f"{message.path} is gone") from None
        raise _unreadable(conn, message, "there is no such file", None) from None
    except OSError as error:
        raise _unreadable(conn, message, f"cannot be opened: {error.strerror}", UNREADABLE_RETRY) from error
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(seen.st_mode) else "a FIFO, socket or device"
        raise _unreadable(conn, message, f"is {kind}, not a regular file", None)
    with os.fdopen(descriptor, "rb", buffering=0) as raw:
        yield raw, Sight(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _unreadable(conn: Connection, message: IngestFile, reason: str, due: timedelta | None) -> PermanentFailure:
    name = parse_name(os.path.basename(message.path))
    store.fail_file(conn, message.host, message.path, name.device, name.stamp, reason, due)
    hint = "; check its owner and mode" if due else ""
    return PermanentFailure(f"{message.path}: {reason}{hint}")


def _grew(raw_path: bytes, sight: Sight) -> bool:
    try:
        now = Path(os.fsdecode(raw_path)).stat()
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) != (sight.size, sight.mtime_ns)
