"""Copying: the rows in keyset chunks, each a short transaction of its own that also saves how far it came."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from workers import logs
from workers.repack import disk, pacing_catalog, rows, store
from workers.repack.work import GiveUp, Later, Work, as_owner, execute, hold, row, transaction

log = logs.get(__name__)

FIRST_CHUNK_ROWS = 5_000
FIRST_CHUNK_BYTES = 32_000_000  # rows may be wide
UNKNOWN_CHUNK_ROWS = 1_000  # of a table that was never analyzed
MOST_CHUNK_ROWS = 1_000_000
_DISK_LOOK_SECONDS = 5.0


def copy(work: Work) -> Later | None:
    """Copy until it is done, this message has worked long enough, or something says wait; None: done."""
    request, shape = work.request, work.shape
    position, size = request.position, request.chunk_rows or _first_size(work)
    looked = 0.0
    while True:
        work.check()
        if time.monotonic() > looked + _DISK_LOOK_SECONDS:
            looked = time.monotonic()
            watch_disk(work)
        position, copied, size, seconds = _chunk(work, position, size)
        work.run.count(rows=copied)
        if position is None:
            log.info("repack.copied", table=request.name, order=shape.order_text)
            return None
        pause = work.pace.hold(datetime.now(UTC), last_chunk_seconds=seconds)
        if pause is not None and pause.seconds > work.limits.chunk_seconds * 2:
            return Later(pause.seconds, pause.reason)
        if pause is not None:
            time.sleep(pause.seconds)
        if work.is_over:
            return Later()


def _first_size(work: Work) -> int:
    rows_estimated, whole = work.request.rows_estimated, work.request.bytes_before or 0
    if rows_estimated <= 0:
        return min(FIRST_CHUNK_ROWS, UNKNOWN_CHUNK_ROWS)
    return max(1, min(FIRST_CHUNK_ROWS, FIRST_CHUNK_BYTES * rows_estimated // max(whole, 1)))


def watch_disk(work: Work) -> None:
    """Raises GiveUp when the disk, or the budget of it, is about to be used up, or the log is longer than it may be."""
    size, most = store.log_bytes(work.conn, work.request.id), work.limits.max_log_bytes
    if most is not None and size > most:
        raise GiveUp("cannot_catch_up", f"{work.request.name}: its log has {size:,} bytes, over max_log_bytes")
    if problem := disk.problem(work.disk_rules, 0, pacing_catalog.used_bytes(work.conn)):
        raise GiveUp("disk", f"{work.request.name}: {problem}")


def _chunk(work: Work, position: list[str] | None, size: int) -> tuple[list[str] | None, int, int, float]:
    """Copy one chunk; (its last position, rows, rows of the next one, seconds). No position: it was the last one."""
    conn, shape, place = work.conn, work.shape, work.place
    began = time.monotonic()
    with transaction(conn, lock_seconds=max(work.limits.lock_timeout_seconds, 10), durable=False):
        hold(work, shape.source, work.oid)
        execute(conn, f"SET LOCAL search_path = {shape.search_path}")
        last: list[str] | None = None
        before = list(position or [])
        if shape.in_chunks:
            execute(conn, rows.BY_INDEX)
            found = row(conn, rows.last_of_chunk(shape, after=bool(position)), [*before, size - 1])
            last = [str(value) for value in found] if found else None
        text = rows.copy_chunk(place, shape, after=bool(position), until=last is not None)
        with as_owner(conn, shape):
            copied = execute(conn, text, [*before, *(last or [])])
        # Towards chunks of the wanted length, in steps that one slow chunk cannot turn upside down.
        factor = min(2.0, max(0.5, work.limits.chunk_seconds / max(time.monotonic() - began, 0.001)))
        following = max(1, min(MOST_CHUNK_ROWS, int(size * factor)))
        # Together with the rows: a chunk that is in the copy is never copied again, one that is not always is.
        store.copied(conn, work.request.id, position=last, rows=copied, chunk_rows=following)
        if last is None:
            store.next_step(conn, work.request.id, "index")
    return last, copied, following, time.monotonic() - began
