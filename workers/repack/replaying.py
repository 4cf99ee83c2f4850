"""Replaying: keys out of the log, their rows out of the table as they are now, into the copy.

In one REPEATABLE READ transaction: a row that the log names is read as of the same moment as the log, so that doing a
batch twice, or in another order, or with later changes already in it, ends with the same copy.
"""

from __future__ import annotations

import json
from datetime import timedelta

from workers import database, logs
from workers.database import Connection
from workers.repack import rows, store, twin_catalog
from workers.repack.work import GiveUp, Later, Work, as_owner, execute, hold, row, transaction

log = logs.get(__name__)

_TORN = ("23505", "23P01")  # a batch holds one half of two rows that exchanged a unique value
VACUUM_AFTER_ROWS = 200_000
_MOST_COUNTED = 10_000_000


def replay_once(work: Work, *, whole: bool = False) -> int:
    """One transaction: up to max_replay_rows of the log, or all of it; how many log rows.

    A batch that breaks a unique or exclusion constraint of the copy is done again with the whole log: the whole of it
    is always a state that the table was in. Raises GiveUp when the log cannot be trusted, Busy for a held lock.
    """
    conn = work.conn
    try:
        patience = max(work.limits.lock_timeout_seconds, 10)
        with transaction(conn, lock_seconds=patience, repeatable=True, durable=False):
            hold(work, work.shape.source, work.oid)
            check_triggers(work)
            taken = apply(work, whole=whole)
            store.replayed(conn, work.request.id, taken)
    except database.DatabaseError as error:
        if database.sqlstate(error) not in _TORN or whole:
            raise
        log.info("repack.widened", table=work.request.name, reason=database.first_line(error))
        return replay_once(work, whole=True)
    work.run.count(replayed=taken)
    return taken


def apply(work: Work, *, whole: bool) -> int:
    """The statements of a replay, in the caller's transaction; how many log rows."""
    conn, place, shape = work.conn, work.place, work.shape
    truncated = row(conn, rows.take_truncations(place), [])
    if truncated and truncated[0]:
        # All that is in the table now came after it, and every row of that is in the log: so the whole log is taken.
        execute(conn, f"TRUNCATE {place.new}")
        whole = True
    taken = row(conn, rows.take_batch(place, shape, whole=whole), [] if whole else [work.limits.max_replay_rows])
    count = int(str(taken[0])) if taken else 0
    if count:
        execute(conn, rows.BY_KEY)
        execute(conn, rows.delete_batch(place, shape), [])
        with as_owner(conn, shape):
            execute(conn, rows.insert_batch(place, shape), [])
        execute(conn, rows.empty_batch(place), [])
    return count


def check_triggers(work: Work) -> None:
    """Raises GiveUp when the log triggers are not as they were made: changes may be missing from the log."""
    marks = twin_catalog.trigger_marks(work.conn, work.oid, work.place)
    if marks is None or not same_marks(marks, work.request.marks or ""):
        what = "are gone" if marks is None else "or its columns were changed, or switched off and on again"
        raise GiveUp(
            "log_broken", f"{work.request.name}: the triggers that log its changes {what}: the copy cannot be trusted"
        )


def same_marks(now: str, then: str) -> bool:
    """Whether triggers and columns are those that the copy was made after.

    A new file alone is TRUNCATE or VACUUM FULL, new versions of columns alone are grants or defaults; both together are
    values that were made anew by ALTER TABLE, which no trigger sees. Another set of columns is never the same.
    """
    new, old = json.loads(now), json.loads(then)
    if new["triggers"] != old["triggers"] or list(new["columns"]) != list(old["columns"]):
        return False
    return bool(new["columns"] == old["columns"] or new["file"] == old["file"])


def replay_all(work: Work) -> bool:
    """Bring the copy to a state that the table was in: batches while there are many, then the whole rest at once.

    False when this message has worked long enough before it came to that. Raises GiveUp for a log that does not shrink.
    """
    if catch_up(work, below=work.limits.max_replay_rows) is not None:
        return False
    replay_once(work, whole=True)
    return True


def backlog(work: Work) -> int:
    """How many rows the log has now."""
    found = row(work.conn, rows.backlog(work.place, _MOST_COUNTED), [])
    return int(str(found[0])) if found else 0


def tidy(conn: Connection, work: Work) -> None:
    """Give the space of replayed log rows back, so that the next batch need not read past it."""
    # Without TRUNCATE: that takes a lock for which those who write the log would wait.
    execute(conn, f"VACUUM (TRUNCATE false) {work.place.log}")
    execute(conn, f"VACUUM (TRUNCATE false) {work.place.batch}")


def look(work: Work, *, below: int | None = None) -> tuple[int, float, bool]:
    """Write down how long the log is; (its rows, seconds since it became shorter, whether it is short enough)."""
    limits = work.limits
    left = backlog(work)
    is_little = left <= (limits.swap_below_rows if below is None else below)
    check = timedelta(seconds=limits.check_seconds)
    return left, store.set_backlog(work.conn, work.request.id, left, is_little=is_little, check=check), is_little


def catch_up(work: Work, *, below: int | None = None) -> Later | None:
    """Replay until little is left; None: little enough for a swap. Raises GiveUp for a log that does not shrink."""
    limits, request = work.limits, work.request
    since_tidy = 0
    while True:
        work.check()
        left, behind, is_little = look(work, below=below)
        if is_little:
            return None
        size = store.log_bytes(work.conn, request.id)
        if limits.max_log_bytes is not None and size > limits.max_log_bytes:
            raise GiveUp("cannot_catch_up", f"{request.name}: its log has {size:,} bytes, over max_log_bytes")
        if behind > limits.catch_up_seconds:
            raise GiveUp(
                "cannot_catch_up",
                f"{request.name}: for {behind:.0f} s its log has not become shorter ({left:,} rows): it is changed"
                " faster than the copy can follow; repack it when less is written",
            )
        since_tidy += replay_once(work)
        if since_tidy > VACUUM_AFTER_ROWS:
            tidy(work.conn, work)
            since_tidy = 0
        if work.is_over:
            return Later()
